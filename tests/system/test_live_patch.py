"""The live patch of real system VMs: systemd, sshd, apache2, haproxy, dnsmasq and the agent are the real ones."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator

import pytest

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import payloads, releases
from sysvm.api.endpoint import HostKeyPolicy
from sysvm.api.endpoint import SystemVMType as Type
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import ContentState
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, OperationReport, Order, SSHAccount, Target

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

ROUTER = VMSpec(name="r-31-VM", type=SystemVMType.ROUTER, index=31, group="net-1")
STORAGE = VMSpec(name="s-32-VM", type=SystemVMType.SECSTORAGE, index=32)
VMS = [ROUTER.name, STORAGE.name]
TREES = ["/opt/cloud", "/etc", "/root/health_checks", "/var/cache/cloud", "/usr/share/cloud", "/usr/local/cloud"]


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([ROUTER, STORAGE], release="old")
        yield made
    finally:
        made.down()


def target(lab: Lab, name: str) -> Target:
    vm = lab.vm(name)
    account = SSHAccount(
        user="root",
        port=vm.port,
        private_key=lab.private_key.read_bytes(),
        host_key_policy=HostKeyPolicy.STRICT,
        known_hosts=lab.known_hosts(),
        pool="lab",
    )
    return Target(name=name, type=Type(vm.spec.type), address=str(vm.relay_address), account=account)


def payload(release: releases.Release) -> Payload:
    return read_payload(payloads.build_scripts(release), payloads.build_agent(release))


def order(number: int) -> Order:
    return Order(
        id=f"op-{number}",
        epoch=1,
        keep_backups=1,
        settle_seconds=2.0,
        ignored_checks=(),
        step_timeout_seconds=120,
        vm_timeout_seconds=300,
    )


def told(report: OperationReport) -> str:
    """Everything a person would want to see when a patch of a test did not end as it should."""
    return "\n".join(
        [repr(dataclasses.replace(report, steps=(), services=())), *map(repr, report.steps + report.services)]
    )


async def patch(lab: Lab, name: str, wanted: Payload, number: int) -> OperationReport:
    return await LivePatcher().patch(target(lab, name), wanted, order(number), lambda _: None)


@pytest.mark.timeout(600)
async def test_real_vms_are_patched_rolled_back_and_patched_again(lab: Lab) -> None:
    patcher = LivePatcher()
    new = payload(releases.new())
    for name in VMS:
        before = await patcher.observe(target(lab, name), new)
        assert before.type is Type(lab.vm(name).spec.type)
        assert before.content is not None
        assert before.content.state is ContentState.DRIFTED
        assert not before.other_actors
        same = await patcher.observe(target(lab, name), payload(releases.old()))
        assert same.content is not None
        assert same.content.state is ContentState.MATCHES, same.content
        if lab.vm(name).spec.type is SystemVMType.SECSTORAGE:
            assert same.agent_content is not None
            assert same.agent_content.state is ContentState.MATCHES, same.agent_content

    reports = await asyncio.gather(*(patch(lab, name, new, 1) for name in VMS))
    for name, report in zip(VMS, reports, strict=True):
        print(name, told(report))
        assert report.phase is JournalPhase.COMMITTED, told(report)
        after = await patcher.observe(target(lab, name), new)
        assert after.content is not None
        assert after.content.state is ContentState.MATCHES, after.content
        assert after.signature == new.signature == after.payload_checksums["md5"]
        assert after.last_finished is not None
        assert after.last_finished.id == "op-1"
        assert not [service.name for service in after.services if service.active == "failed"]

    await _broken_is_rolled_back(lab, ROUTER.name)
    mended = payload(releases.mended())
    report = await patch(lab, ROUTER.name, mended, 3)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert report.bytes_sent < mended.scripts_size_bytes + 120_000, "hardly more than the archive itself"


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
