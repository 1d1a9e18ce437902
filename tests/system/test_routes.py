"""Real system VMs that only their hypervisor hosts reach, two of them with the same address on two hosts."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lab import Fault, Lab, SystemVMType, VMSpec, preflight
from lab.content import payloads, releases
from lab.hosts import Hosts
from reach import Inventory, behind_host, login_of, patch_order
from sysvm.api.endpoint import HostKeyPolicy
from sysvm.api.observed import ContentState
from sysvm.api.reasons import Reason
from sysvm.patching.dialling import SSHTimeouts
from sysvm.patching.errors import HostKeyRejected, HostUnreachable, Refused, Unreachable
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, OperationReport, Target
from sysvm.patching.ssh import SSHTransport

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

SAME = "169.254.9.9"
ONE = VMSpec(name="r-71-VM", type=SystemVMType.ROUTER, index=71, host="kvm-1", link_local=SAME, group="net-1")
OTHER = VMSpec(name="r-72-VM", type=SystemVMType.ROUTER, index=72, host="kvm-2", link_local=SAME, group="net-2")
_NUMBERS = itertools.count(73)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([])
        for name in ("kvm-1", "kvm-2"):
            Hosts(made).add(name, release="new")
        made.add(ONE, OTHER, release="old")
        yield made
    finally:
        made.down()


@pytest.fixture
def hosts(lab: Lab) -> Hosts:
    return Hosts(lab)


@pytest.fixture
def vm(lab: Lab) -> Iterator[str]:
    """A VM of one test, at the old release, on the first host."""
    number = next(_NUMBERS)
    lab.add(VMSpec(name=f"r-{number}-VM", type=SystemVMType.ROUTER, index=number, host="kvm-1", group=f"net-{number}"))
    yield f"r-{number}-VM"
    lab.remove(f"r-{number}-VM")


@pytest.fixture
def patcher() -> Iterator[LivePatcher]:
    timeouts = SSHTimeouts(connect=3.0, keepalive_interval=1.0, keepalive_count=2)
    yield LivePatcher(transport=SSHTransport(timeouts=timeouts))


def payload(release: releases.Release) -> Payload:
    return read_payload(payloads.build_scripts(release), payloads.build_agent(release))


ORDER = patch_order(same_as_host=True)


async def patch_and_break(
    patcher: LivePatcher, target: Target, wanted: Payload, at: str, happens: Callable[[], object]
) -> OperationReport:
    """Something happens once the operation has reached a step."""
    reached = asyncio.Event()

    def progress(report: OperationReport) -> None:
        if report.step == at:
            reached.set()

    async with asyncio.TaskGroup() as group:
        running = group.create_task(patcher.patch(target, wanted, ORDER, progress))
        await reached.wait()
        await asyncio.to_thread(happens)
    return running.result()


async def test_the_same_address_on_two_hosts_leads_to_two_vms(lab: Lab, patcher: LivePatcher) -> None:
    one, other = await asyncio.gather(
        *(patcher.observe(behind_host(lab, name), payload(releases.new())) for name in (ONE.name, OTHER.name))
    )
    for seen, name in ((one, ONE.name), (other, OTHER.name)):
        assert lab.vm(name).host_key.startswith(seen.host_key.public_key)
        assert seen.host_payload is not None
        assert seen.host_payload.host == lab.vm(name).spec.host
        assert seen.host_payload.scripts_revision == payload(releases.new()).scripts_revision
    await patcher.close()


async def test_a_patch_leaves_the_build_of_the_host_and_its_checksum(
    lab: Lab, hosts: Hosts, vm: str, patcher: LivePatcher
) -> None:
    new = payload(releases.new())
    theirs = gzip.compress(gzip.decompress(payloads.build_scripts(releases.new())), 1, mtime=1)
    agent = payloads.build_agent(releases.new())
    hosts.put_payload("kvm-1", scripts=theirs, agent=agent)
    try:
        report = await patcher.patch(behind_host(lab, vm), new, ORDER, lambda _: None)
        assert report.phase is JournalPhase.COMMITTED, report
        after = await patcher.observe(behind_host(lab, vm), new)
        assert after.content is not None
        assert after.content.state is ContentState.MATCHES
        assert after.signature == hosts.get("kvm-1").payload_checksum(new.signature_algorithm) != new.signature
        assert after.payload_checksums["sha512"] == hashlib.sha512(theirs).hexdigest()
    finally:
        hosts.put_payload("kvm-1", scripts=payloads.build_scripts(releases.new()), agent=agent)
        await patcher.close()


async def test_a_host_of_another_release_holds_the_patch(lab: Lab, hosts: Hosts, vm: str, patcher: LivePatcher) -> None:
    old = payloads.build_scripts(releases.old())
    agent = payloads.build_agent(releases.old())
    before = lab.snapshot_tree(vm, ["/opt/cloud", "/var/cache/cloud"])
    hosts.put_payload("kvm-1", scripts=old, agent=agent)
    try:
        with pytest.raises(Refused) as caught:
            await patcher.patch(behind_host(lab, vm), payload(releases.new()), ORDER, lambda _: None)
        assert caught.value.reason is Reason.HOST_PAYLOAD_MISMATCH
        assert lab.snapshot_tree(vm, ["/opt/cloud", "/var/cache/cloud"]) == before
    finally:
        new = releases.new()
        hosts.put_payload("kvm-1", scripts=payloads.build_scripts(new), agent=payloads.build_agent(new))
        await patcher.close()


@pytest.mark.parametrize("at", ["Build", "Services"])
@pytest.mark.parametrize("fault", [Fault.CUT, Fault.SILENCE])
async def test_a_host_that_dies_in_the_middle_of_a_patch_costs_time_and_nothing_else(
    lab: Lab, hosts: Hosts, vm: str, patcher: LivePatcher, at: str, fault: Fault
) -> None:
    new = payload(releases.new())
    target = behind_host(lab, vm)

    def dies() -> None:
        hosts.fault("kvm-1", fault)
        if fault is not Fault.CUT:
            lab.exec(vm, "sleep 6")
            hosts.fault("kvm-1", Fault.HEAL)

    report = await patch_and_break(patcher, target, new, at, dies)
    assert report.phase is JournalPhase.COMMITTED, report
    after = await patcher.observe(target, new)
    assert after.content is not None
    assert after.content.state is ContentState.MATCHES
    assert after.last_finished is not None
    assert after.last_finished.id == ORDER.id
    await patcher.close()


async def test_a_vm_whose_host_stays_away_ends_its_patch_alone(
    lab: Lab, hosts: Hosts, vm: str, patcher: LivePatcher
) -> None:
    new = payload(releases.new())
    began = asyncio.Event()

    def progress(report: OperationReport) -> None:
        if report.step == "Build":
            began.set()

    running = asyncio.create_task(patcher.patch(behind_host(lab, vm), new, ORDER, progress))
    await began.wait()
    await asyncio.sleep(0.5)
    hosts.fault("kvm-1", Fault.REFUSE)
    hosts.fault("kvm-1", Fault.CUT)
    running.cancel()  # the operator goes too
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(HostUnreachable) as caught:
        await patcher.observe(behind_host(lab, vm), None)
    assert vm in str(caught.value)
    assert "kvm-1" in str(caught.value)
    hosts.fault("kvm-1", Fault.HEAL)
    async with asyncio.timeout(120):
        while (known := await _report(patcher, behind_host(lab, vm))) is None or not known.phase.is_final:
            await asyncio.sleep(0.5)
    seen = await patcher.observe(behind_host(lab, vm), new)
    assert seen.content is not None
    if known.phase is JournalPhase.COMMITTED:
        assert seen.content.state is ContentState.MATCHES
        assert seen.signature == new.signature
    else:
        old = await patcher.observe(behind_host(lab, vm), payload(releases.old()))
        assert old.content is not None
        assert old.content.state is ContentState.MATCHES
    await patcher.close()


async def _report(patcher: LivePatcher, target: Target) -> OperationReport | None:
    try:
        return await patcher.report(target, ORDER.id)
    except Unreachable:
        return None


async def test_a_vm_that_migrates_in_the_middle_of_its_patch_is_followed_to_its_new_host(
    lab: Lab, hosts: Hosts, vm: str, patcher: LivePatcher
) -> None:
    new = payload(releases.new())
    target = behind_host(lab, vm)
    report = await patch_and_break(patcher, target, new, "Build", lambda: hosts.move(vm, "kvm-2"))
    assert report.phase is JournalPhase.COMMITTED, report
    assert target.through is not None
    inventory = target.through.locate
    assert isinstance(inventory, Inventory)
    assert inventory.known == "kvm-2"
    assert True in inventory.asked
    seen = await patcher.observe(behind_host(lab, vm), new)
    assert seen.host_payload is not None
    assert seen.host_payload.host == "kvm-2"
    assert seen.content is not None
    assert seen.content.state is ContentState.MATCHES
    await patcher.close()


async def test_a_host_with_another_key_is_sent_nothing_and_stops_nobody_else(
    lab: Lab, hosts: Hosts, patcher: LivePatcher
) -> None:
    first, second = hosts.get("kvm-1"), hosts.get("kvm-2")
    exchanged = f"[{first.address}]:{first.port} {second.host_key}\n{second.known_hosts_line}"
    login = login_of(lab, known_hosts=exchanged)
    wrong, right = await asyncio.gather(
        patcher.observe(behind_host(lab, ONE.name, login=login), None),
        patcher.observe(behind_host(lab, OTHER.name, login=login), None),
        return_exceptions=True,
    )
    assert isinstance(wrong, HostUnreachable)
    assert wrong.reason is Reason.HOST_NOT_TRUSTED
    assert not isinstance(right, BaseException), right
    await patcher.close()


@pytest.mark.parametrize("policy", list(HostKeyPolicy))
async def test_another_vm_with_the_address_is_never_taken_for_the_one_that_was_meant(
    lab: Lab, patcher: LivePatcher, policy: HostKeyPolicy
) -> None:
    """The inventory is wrong about the host, and the VM there has the same address."""
    target = behind_host(lab, ONE.name)
    wrong = Inventory(lab, OTHER.name)
    assert target.through is not None
    changes: dict[str, Any] = {"through": dataclasses.replace(target.through, locate=wrong)}
    if policy is HostKeyPolicy.TRUST_ON_FIRST_USE:
        changes["account"] = dataclasses.replace(target.account, host_key_policy=policy, known_hosts=None)
    target = dataclasses.replace(target, **changes)
    with pytest.raises(Unreachable) as caught:
        await patcher.patch(target, payload(releases.new()), ORDER, lambda _: None)
    if policy is HostKeyPolicy.STRICT:
        assert isinstance(caught.value, HostKeyRejected)
    else:
        assert caught.value.reason is Reason.WRONG_VM
        assert OTHER.name in str(caught.value)
    seen = await patcher.observe(behind_host(lab, OTHER.name), payload(releases.old()))
    assert seen.content is not None
    assert seen.content.state is ContentState.MATCHES
    await patcher.close()


async def test_hosts_that_are_down_stop_nobody_behind_another(lab: Lab, hosts: Hosts, patcher: LivePatcher) -> None:
    hosts.fault("kvm-1", Fault.SILENCE)
    try:
        down = [asyncio.create_task(patcher.observe(behind_host(lab, ONE.name), None)) for _ in range(8)]
        await asyncio.sleep(0.1)
        await patcher.observe(behind_host(lab, OTHER.name), None)
        assert not any(task.done() for task in down)
        ended = await asyncio.gather(*down, return_exceptions=True)
    finally:
        hosts.fault("kvm-1", Fault.HEAL)
    assert all(isinstance(error, HostUnreachable) for error in ended), ended
    await asyncio.sleep(patcher.transport.jumps.rest_seconds)
    await patcher.observe(behind_host(lab, ONE.name), None)
    await patcher.close()
