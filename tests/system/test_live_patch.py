"""The live patch of real system VMs: systemd, sshd, apache2, haproxy, dnsmasq and the agent are the real ones."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import Iterator

import pytest

from lab import Fault, Lab, SystemVMType, VMSpec, preflight
from lab.content import payloads, releases
from lab.guest import Entry
from reach import patch_order, target_of
from sysvm.api.endpoint import SystemVMType as Type
from sysvm.api.observed import ContentState
from sysvm.api.reasons import Reason
from sysvm.patching.dialling import SSHTimeouts
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, OperationReport
from sysvm.patching.ssh import SSHTransport

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

TREES = ["/opt/cloud", "/etc", "/root/health_checks", "/var/cache/cloud", "/usr/share/cloud", "/usr/local/cloud"]

PAYLOAD_TREES = ["/opt/cloud", "/etc/apache2", "/root/health_checks", "/usr/share/cloud"]
"""Of these a boot writes nothing by itself."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([VMSpec(name="d-30-VM", type=SystemVMType.DHCPSRVR, index=30)], release="old")
        yield made
    finally:
        made.down()


_NUMBERS = itertools.count(31)


def _fresh(lab: Lab, kind: SystemVMType, letter: str) -> Iterator[str]:
    """A VM of one test, at the old release."""
    number = next(_NUMBERS)
    spec = VMSpec(name=f"{letter}-{number}-VM", type=kind, index=number, group=f"net-{number}")
    lab.add(spec, release="old")
    yield spec.name
    lab.remove(spec.name)


@pytest.fixture
def router(lab: Lab) -> Iterator[str]:
    yield from _fresh(lab, SystemVMType.ROUTER, "r")


@pytest.fixture
def storage(lab: Lab) -> Iterator[str]:
    yield from _fresh(lab, SystemVMType.SECSTORAGE, "s")


def payload(release: releases.Release) -> Payload:
    return read_payload(payloads.build_scripts(release), payloads.build_agent(release))


def told(report: OperationReport) -> str:
    """Everything a person would want to see when a patch of a test did not end as it should."""
    return "\n".join(
        [repr(dataclasses.replace(report, steps=(), services=())), *map(repr, report.steps + report.services)]
    )


async def patch(lab: Lab, name: str, wanted: Payload, number: int, **more: float) -> OperationReport:
    order = patch_order(f"op-{number}", **more)
    return await LivePatcher().patch(target_of(lab, name), wanted, order, lambda _: None)


@pytest.mark.timeout(600)
async def test_real_vms_are_patched_rolled_back_and_patched_again(lab: Lab, router: str, storage: str) -> None:
    names = [router, storage]
    patcher = LivePatcher()
    new = payload(releases.new())
    for name in names:
        before = await patcher.observe(target_of(lab, name), new)
        assert before.type is Type(lab.vm(name).spec.type)
        assert before.content is not None
        assert before.content.state is ContentState.DRIFTED
        assert not before.other_actors
        same = await patcher.observe(target_of(lab, name), payload(releases.old()))
        assert same.content is not None
        assert same.content.state is ContentState.MATCHES, same.content
        if lab.vm(name).spec.type is SystemVMType.SECSTORAGE:
            assert same.agent_content is not None
            assert same.agent_content.state is ContentState.MATCHES, same.agent_content

    reports = await asyncio.gather(*(patch(lab, name, new, 1) for name in names))
    for name, report in zip(names, reports, strict=True):
        print(name, told(report))
        assert report.phase is JournalPhase.COMMITTED, told(report)
        after = await patcher.observe(target_of(lab, name), new)
        assert after.content is not None
        assert after.content.state is ContentState.MATCHES, after.content
        assert after.signature == new.signature == after.payload_checksums["md5"]
        assert after.last_finished is not None
        assert after.last_finished.id == "op-1"
        assert not [service.name for service in after.services if service.active == "failed"]

    await _broken_is_rolled_back(lab, router)
    mended = payload(releases.mended())
    report = await patch(lab, router, mended, 3)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert report.bytes_sent < mended.scripts_size_bytes + 120_000, "hardly more than the archive itself"


@pytest.mark.timeout(600)
async def test_a_patch_to_the_former_release_is_a_patch_like_any_other(lab: Lab, router: str, storage: str) -> None:
    """What the newer release brought goes, what it took comes back, and the agent with it."""
    former, newer = payload(releases.old()), payload(releases.new())
    patcher = LivePatcher()
    for name in (router, storage):
        before = _contents(lab, name)
        for number, wanted in enumerate((newer, former), start=1):
            report = await patch(lab, name, wanted, number)
            assert report.phase is JournalPhase.COMMITTED, told(report)
            print(name, wanted.revision[:8], f"{report.bytes_sent} bytes,", *map(repr, report.services), sep="\n")
        after = await patcher.observe(target_of(lab, name), former)
        assert after.content is not None
        assert after.content.state is ContentState.MATCHES, after.content
        assert after.signature == former.signature
        assert not [service.name for service in after.services if service.active == "failed"]
        now = _contents(lab, name)
        assert {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)} == set()
    agent = after.agent_content
    assert agent is not None
    assert agent.state is ContentState.MATCHES, agent


def _contents(lab: Lab, name: str) -> dict[str, Entry]:
    """All but times, and what Python compiles by itself."""
    found = lab.snapshot_tree(name, [*PAYLOAD_TREES, "/usr/local/cloud/systemvm"])
    return {
        path: dataclasses.replace(entry, nlink=0, mtime_ns=None)
        for path, entry in found.items()
        if "__pycache__" not in path
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("after_seconds", [0.3, 0.6, 1.0, 2.0])
async def test_a_vm_that_loses_its_power_is_wholly_old_or_wholly_new(
    lab: Lab, router: str, after_seconds: float
) -> None:
    """Seconds from the moment at which the VM begins to work alone."""
    name, new = router, payload(releases.new())
    old_tree = lab.snapshot_tree(name, PAYLOAD_TREES)
    began = asyncio.Event()

    def progress(report: OperationReport) -> None:
        if report.step == "Build":
            began.set()

    timeouts = SSHTimeouts(keepalive_interval=1.0, keepalive_count=2)
    patcher = LivePatcher(transport=SSHTransport(timeouts=timeouts))
    running = asyncio.create_task(patcher.patch(target_of(lab, name), new, patch_order(), progress))
    await began.wait()
    await asyncio.sleep(after_seconds)
    await asyncio.to_thread(lab.power_off, name)
    await asyncio.to_thread(lab.power_on, name)
    report = await running
    print(told(report))
    seen = await patcher.observe(target_of(lab, name), new)
    assert seen.content is not None
    assert seen.unfinished is None
    if report.phase is JournalPhase.COMMITTED:
        assert seen.content.state is ContentState.MATCHES, seen.content
        assert seen.signature == new.signature
    else:
        assert report.phase in (JournalPhase.ROLLED_BACK, JournalPhase.ABANDONED), told(report)
        now = lab.snapshot_tree(name, PAYLOAD_TREES)
        differing = {path for path in old_tree.keys() | now.keys() if old_tree.get(path) != now.get(path)}
        assert not [path for path in differing if "__pycache__" not in path], told(report)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [Fault.SILENCE, Fault.CUT])
async def test_a_fault_of_the_wire_leaves_the_operation_to_the_vm(lab: Lab, storage: str, fault: Fault) -> None:
    name, new = storage, payload(releases.new())
    began = asyncio.Event()

    def progress(report: OperationReport) -> None:
        if report.step == "Build":
            began.set()

    timeouts = SSHTimeouts(connect=2.0, keepalive_interval=1.0, keepalive_count=2)
    patcher = LivePatcher(transport=SSHTransport(timeouts=timeouts))
    running = asyncio.create_task(patcher.patch(target_of(lab, name), new, patch_order(), progress))
    await began.wait()
    lab.fault(name, fault)
    if fault is Fault.SILENCE:
        # Longer than keepalive takes to notice, and than the whole operation takes on the VM.
        await asyncio.sleep(5)
        assert not running.done(), "nobody can know how it went"
        lab.fault(name, Fault.HEAL)
    report = await running
    assert report.phase is JournalPhase.COMMITTED, told(report)


@pytest.mark.timeout(300)
async def test_each_kind_of_file_gets_the_least_action_that_makes_it_effective(lab: Lab, router: str) -> None:
    start = releases.new()
    sshd, unit = "etc/ssh/sshd_config", "etc/systemd/system/cloud-password-server@.service"
    server, template = "opt/cloud/bin/passwd_server_ip.py", "etc/dnsmasq.conf.tmpl"
    changed = {
        sshd: start.scripts[sshd] + b"LoginGraceTime 37\n",
        unit: start.scripts[unit] + b"# a comment more\n",
        server: start.scripts[server] + b"# a comment more\n",
        template: start.scripts[template] + b"# a comment more\n",
        "etc/haproxy/haproxy.cfg": start.scripts["etc/haproxy/haproxy.cfg"] + b"# never arrives\n",
    }
    wanted = payload(start.derive("kinds", change=changed))
    live = {path: lab.read_bytes(router, f"/{path}") for path in (sshd, "etc/haproxy/haproxy.cfg")}
    pids = _main_pids(lab, router)
    report = await patch(lab, router, wanted, 1)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    acted = {service.name.partition("@")[0]: service.action for service in report.services}
    assert acted == {"apache2": "Reload", "ssh": "Reload", "cloud-password-server": "HeldRestart"}, told(report)
    after = _main_pids(lab, router)
    assert {name for name in pids if pids[name] != after[name]} == {"cloud-password-server"}
    assert lab.read_bytes(router, "/etc/haproxy/haproxy.cfg") == live["etc/haproxy/haproxy.cfg"]
    merged = lab.read_bytes(router, f"/{sshd}").splitlines()
    assert b"LoginGraceTime 37" in merged
    for line in live[sshd].splitlines():
        if line.startswith((b"ListenAddress", b"PubkeyAcceptedAlgorithms")):
            assert line in merged
    assert lab.exec(router, ["systemctl", "show", "-p", "NeedDaemonReload", "ssh", "cron"]).stdout.count("no") == 2
    seen = await LivePatcher().observe(target_of(lab, router), wanted)
    assert seen.content is not None
    assert seen.content.state is ContentState.MATCHES, seen.content


def _main_pids(lab: Lab, name: str) -> dict[str, str]:
    text = lab.exec(
        name, "systemctl show -p Id -p MainPID apache2 haproxy dnsmasq ssh cron 'cloud-password-server@*'"
    ).stdout
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in text.split("\n\n") if block.strip()]
    return {block["Id"].removesuffix(".service").partition("@")[0]: block["MainPID"] for block in blocks}


async def _broken_is_rolled_back(lab: Lab, name: str) -> None:
    snapshot = lab.snapshot_tree(name, TREES)
    active = _active(lab, name)
    report = await patch(lab, name, payload(releases.broken()), 2)
    print(told(report))
    assert report.phase is JournalPhase.ROLLED_BACK, told(report)
    assert report.reason in (Reason.SERVICE_FAILED, Reason.VERIFY_FAILED)
    assert "apache2" in report.message
    now = lab.snapshot_tree(name, TREES)
    assert {path for path in snapshot.keys() | now.keys() if snapshot.get(path) != now.get(path)} == set()
    assert _active(lab, name) == active


def _active(lab: Lab, name: str) -> str:
    units = ("apache2", "haproxy", "dnsmasq", "ssh", "cron", "rsyslog")
    return lab.exec(name, ["systemctl", "is-active", *units], check=False).stdout
