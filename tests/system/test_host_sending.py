"""A release from the hypervisor host to its VM by the host itself: real hosts, a real VM, bytes counted on the wire."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import filler, payloads, releases
from lab.content.releases import AGENT_JAR
from lab.hosts import Hosts
from reach import behind_host, patch_order
from sysvm.api.observed import ContentState
from sysvm.patching.host_sending import HostSending
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, OperationReport

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

HOST = "kvm-1"
KEY = "/root/.ssh/id_rsa.cloud"
JAR_BYTES = 12_000_000
BIG = releases.new().derive("big", agent_change={AGENT_JAR: filler.incompressible("a large jar", JAR_BYTES)})
SCRIPTS, AGENT = payloads.build_scripts(BIG), payloads.build_agent(BIG)
ORDER = patch_order(same_as_host=True)
_NUMBERS = itertools.count(91)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([])
        Hosts(made).add(HOST)
        Hosts(made).put_payload(HOST, scripts=SCRIPTS, agent=AGENT)
        yield made
    finally:
        made.down()


@pytest.fixture
def vm(lab: Lab) -> Iterator[str]:
    """An SSVM at the old release."""
    number = next(_NUMBERS)
    name = f"s-{number}-VM"
    lab.add(VMSpec(name=name, type=SystemVMType.SECSTORAGE, index=number, host=HOST), release="old")
    yield name
    lab.remove(name)


def payload() -> Payload:
    return read_payload(SCRIPTS, AGENT)


async def patched(lab: Lab, name: str, patcher: LivePatcher) -> tuple[OperationReport, int]:
    """The report, and the bytes that went from here to the host meanwhile."""
    before = Hosts(lab).traffic(HOST)
    try:
        report = await patcher.patch(behind_host(lab, name), payload(), ORDER, lambda _: None)
        after = Hosts(lab).traffic(HOST)
        seen = await patcher.observe(behind_host(lab, name), payload())
    finally:
        await patcher.close()
    assert report.phase is JournalPhase.COMMITTED, report
    assert seen.content is not None
    assert seen.agent_content is not None
    assert (seen.content.state, seen.agent_content.state) == (ContentState.MATCHES, ContentState.MATCHES)
    return report, (after - before).sent_bytes


def staged(report: OperationReport) -> str:
    return next(step.message for step in report.steps if step.name == "Stage")


async def test_a_host_that_holds_the_release_sends_it_and_the_operator_sends_orders(lab: Lab, vm: str) -> None:
    hosts, home = Hosts(lab), lab.exec(vm, "ls -A /root/.ssh").stdout
    files = ["find", "/root", "/usr/share/cloudstack-common", "-type", "f"]
    before = hosts.exec(HOST, files).stdout
    report, sent = await patched(lab, vm, LivePatcher())
    print(f"\nfrom the operator {sent} bytes; {staged(report)}")
    assert f"from hypervisor host {HOST}" in staged(report)
    assert sent < 400_000, "the program, the order and what must be merged"
    assert report.bytes_sent < 300_000
    assert hosts.exec(HOST, files).stdout == before
    assert lab.exec(vm, "ls -A /root/.ssh").stdout == home


async def test_a_host_without_a_key_sends_nothing_and_the_operator_does(lab: Lab, vm: str) -> None:
    hosts = Hosts(lab)
    hosts.exec(HOST, ["mv", KEY, f"{KEY}.away"])
    try:
        report, sent = await patched(lab, vm, LivePatcher())
    finally:
        hosts.exec(HOST, ["mv", f"{KEY}.away", KEY])
    print(f"\nfrom the operator {sent} bytes; {staged(report)}")
    assert f"it has no {KEY} that its user root may read" in staged(report)
    assert sent > JAR_BYTES


async def test_a_host_whose_key_the_vm_refuses_costs_a_moment(lab: Lab, vm: str) -> None:
    patcher = LivePatcher()
    patcher.sending = HostSending(key_file=f"{KEY}.other")
    Hosts(lab).exec(HOST, ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{KEY}.other"])
    report, sent = await patched(lab, vm, patcher)
    assert "Permission denied" in staged(report)
    assert sent > JAR_BYTES
