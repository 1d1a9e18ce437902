"""Both ends of the live patch over a real OpenSSH server, with a folder in the part of the VM."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.openssh import OpenSSH, find_sshd, make_key, user
from tests.integration.scratch_vm import ScratchVM

from lab.content import payloads, releases
from reach import patch_order
from sysvm.api.endpoint import HostKeyPolicy, SystemVMType
from sysvm.api.observed import ContentState
from sysvm.api.reasons import Reason
from sysvm.patching.errors import Refused, Unreachable
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.remote.digests import load
from sysvm.patching.results import JournalPhase, OperationReport, Order, SSHAccount, Target

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)

ORDER = patch_order(settle_seconds=0.2, step_timeout_seconds=30, vm_timeout_seconds=60)


@dataclasses.dataclass
class Bench:
    """One server, one VM, one patcher."""

    server: OpenSSH
    key: Path
    vm: ScratchVM
    patcher: LivePatcher
    seen: list[OperationReport] = dataclasses.field(default_factory=list)

    @property
    def target(self) -> Target:
        account = SSHAccount(
            user=user(),
            port=self.server.port,
            private_key=self.key.read_bytes(),
            host_key_policy=HostKeyPolicy.TRUST_ON_FIRST_USE,
        )
        return Target(name="r-1-VM", type=SystemVMType(self.vm.type), address="127.0.0.1", account=account)

    async def patch(self, payload: Payload, order: Order = ORDER) -> OperationReport:
        return await self.patcher.patch(self.target, payload, order, self.seen.append)


def payload_of(release: releases.Release, *, agent: bool = False) -> Payload:
    return read_payload(payloads.build_scripts(release), payloads.build_agent(release) if agent else None)


def make_bench(folder: Path, vm_type: str = "vpcrouter", *, agent: bool = False) -> Bench:
    """A VM at the old release behind a server that is not started yet."""
    key = make_key(folder, "id_rsa.cloud")
    program = find_sshd()
    assert program is not None
    (folder / "ssh").mkdir()
    server = OpenSSH(folder / "ssh", [key], program, host_keys=[make_key(folder, "host")])
    vm = ScratchVM(folder, vm_type).lay_out(releases.old(), agent=agent)
    return Bench(server, key, vm, LivePatcher(start=vm.start))


@pytest.fixture
def lay_out(tmp_path: Path) -> Callable[..., Bench]:
    return functools.partial(make_bench, tmp_path)


@pytest_asyncio.fixture
async def bench(lay_out: Callable[..., Bench]) -> AsyncIterator[Bench]:
    made = lay_out()
    with made.server.running():
        yield made


async def test_looking_changes_nothing_and_tells_what_differs(bench: Bench) -> None:
    before = bench.vm.manifest()
    payload = payload_of(releases.new())
    seen = await bench.patcher.observe(bench.target, payload)
    assert bench.vm.manifest() == before
    assert seen.type is SystemVMType.VPCROUTER
    assert seen.release == "4.20.1"
    assert seen.signature == bench.vm.signature == seen.payload_checksums["md5"]
    assert seen.content is not None
    old, new = releases.old().scripts, releases.new().scripts
    changed = sum(new[path] != content for path, content in old.items() if path in new)
    assert seen.content.state is ContentState.DRIFTED
    assert (seen.content.changed, seen.content.missing, seen.content.extra) == (changed, 1, 1)
    assert "/opt/cloud/bin/cs/CsFacts.py" in seen.content.paths
    assert [(action.name, action.action) for action in seen.actions] == [("apache2", "Reload")]
    assert (await bench.patcher.observe(bench.target, payload_of(releases.old()))).content.state is ContentState.MATCHES  # type: ignore[union-attr]


async def test_a_patch_is_decided_by_bytes_and_not_by_what_a_scan_remembers(bench: Bench) -> None:
    payload = payload_of(releases.new())
    memory = bench.vm.root / "var/lib/sysvm/digests"
    memory.parent.mkdir(parents=True, mode=0o700)
    async with asyncio.timeout(30):  # what was changed a moment ago is not remembered
        while "/opt/cloud/bin/configure.py" not in (entries := load(str(memory))):
            await bench.patcher.observe(bench.target, payload)
            await asyncio.sleep(0.2)
    for path, entry in entries.items():
        wanted = payload.scripts.entries.get(path.lstrip("/"))
        entry[5] = wanted.sha256 if wanted is not None and wanted.sha256 else entry[5]
    body = json.dumps(entries).encode()
    memory.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    fooled = await bench.patcher.observe(bench.target, payload)
    assert fooled.content is not None
    assert fooled.content.changed == 0, "a scan does not use what it remembers"
    report = await bench.patch(payload)
    assert report.phase is JournalPhase.COMMITTED, report.message
    for path, content in releases.new().scripts.items():
        if path.startswith("opt/cloud/"):
            assert bench.vm.read(path) == content, path


async def test_a_patch_brings_the_vm_to_the_payload(bench: Bench) -> None:
    payload = payload_of(releases.new())
    report = await bench.patch(payload)
    assert report.phase is JournalPhase.COMMITTED, report.message
    assert bench.vm.signature == payload.signature
    seen = await bench.patcher.observe(bench.target, payload)
    assert seen.content is not None
    assert seen.content.state is ContentState.MATCHES
    assert not (bench.vm.root / "opt/cloud/bin/set_redundant.py").exists()
    assert bench.vm.read("usr/share/cloud/cloud-scripts.tgz") == payload.scripts_archive
    assert [call.removesuffix(".service") for call in bench.vm.calls] == ["reload apache2"]
    names = [step.name for step in report.steps]
    assert names[:3] == ["Connect", "Probe", "Diff"]
    assert names[-1] == "Commit"
    assert all(step.done and not step.failed for step in report.steps)
    assert payload.scripts_size_bytes < report.bytes_sent < payload.scripts_size_bytes + 150_000
    assert {seen.step for seen in bench.seen} >= {"Probe", "Diff", "Stage", "Build"}


async def test_a_second_patch_with_the_same_id_does_nothing_again(bench: Bench) -> None:
    payload = payload_of(releases.new())
    first = await bench.patch(payload)
    calls = bench.vm.calls
    again = await bench.patch(payload)
    assert again.phase is first.phase is JournalPhase.COMMITTED
    assert bench.vm.calls == calls
    assert await bench.patcher.report(bench.target, ORDER.id) is not None
    assert await bench.patcher.report(bench.target, "op-unheard-of") is None


async def test_a_service_that_fails_brings_everything_back(bench: Bench) -> None:
    before = bench.vm.manifest()
    bench.vm.fail_once("apache2")
    report = await bench.patch(payload_of(releases.new()))
    assert report.phase is JournalPhase.ROLLED_BACK, report
    assert report.reason is Reason.SERVICE_FAILED
    assert "apache2" in report.message
    assert "not what the daemon likes" in report.message
    assert bench.vm.manifest() == before
    assert any(service.name == "apache2" and service.action.endswith("(going back)") for service in report.services)


async def test_the_address_that_sshd_listens_on_is_kept(bench: Bench) -> None:
    live = bench.vm.read("etc/ssh/sshd_config") + b"ListenAddress 169.254.1.2\n"
    bench.vm.write("etc/ssh/sshd_config", live)
    start = releases.new()
    text = start.scripts["etc/ssh/sshd_config"] + b"LoginGraceTime 33\n"
    payload = payload_of(start.derive("sshd", change={"etc/ssh/sshd_config": text}))
    report = await bench.patch(payload)
    assert report.phase is JournalPhase.COMMITTED, report.message
    merged = bench.vm.read("etc/ssh/sshd_config").splitlines()
    assert b"ListenAddress 169.254.1.2" in merged
    assert b"LoginGraceTime 33" in merged
    seen = await bench.patcher.observe(bench.target, payload)
    assert seen.content is not None
    assert seen.content.state is ContentState.MATCHES


async def test_a_vm_of_another_type_is_refused_untouched(bench: Bench) -> None:
    before = bench.vm.manifest()
    wrong = dataclasses.replace(bench.target, type=SystemVMType.SECSTORAGE)
    with pytest.raises(Refused, match="vpcrouter") as caught:
        await bench.patcher.patch(wrong, payload_of(releases.new()), ORDER, bench.seen.append)
    assert caught.value.reason is Reason.TYPE_MISMATCH
    assert bench.vm.manifest() == before


async def test_a_lower_epoch_is_refused(bench: Bench) -> None:
    await bench.patch(payload_of(releases.new()), dataclasses.replace(ORDER, epoch=7))
    with pytest.raises(Refused) as caught:
        await bench.patch(payload_of(releases.mended()), dataclasses.replace(ORDER, id="op-2", epoch=6))
    assert caught.value.reason is Reason.EPOCH_REFUSED


async def test_a_machine_that_is_no_system_vm_is_refused(bench: Bench) -> None:
    (bench.vm.root / "var/cache/cloud/cmdline").unlink()
    with pytest.raises(Refused) as caught:
        await bench.patch(payload_of(releases.new()))
    assert caught.value.reason is Reason.NOT_A_SYSTEM_VM


async def test_a_cut_before_the_vm_heard_of_the_order_is_a_lost_connection(bench: Bench) -> None:
    before = bench.vm.manifest()

    def progress(report: OperationReport) -> None:
        if report.step == "Probe":
            bench.server.stop_sessions()

    with pytest.raises(Unreachable) as caught:
        await bench.patcher.patch(bench.target, payload_of(releases.new()), ORDER, progress)
    assert caught.value.reason is Reason.CONNECTION_LOST
    assert bench.vm.manifest() == before


@pytest.mark.parametrize(
    ("step", "after"), [("Diff", 0.0), ("Stage", 0.0), ("Build", 0.0), ("Build", 0.1), ("Build", 0.3), ("Build", 0.7)]
)
async def test_a_cut_connection_is_regained_and_the_vm_is_new(bench: Bench, step: str, after: float) -> None:
    cuts: list[float] = []

    def cut() -> None:
        cuts.append(after)
        bench.server.stop_sessions()

    def progress(report: OperationReport) -> None:
        if report.step == step and not cuts:
            asyncio.get_running_loop().call_later(after, cut)

    payload = payload_of(releases.new())
    report = await bench.patcher.patch(bench.target, payload, dataclasses.replace(ORDER, settle_seconds=1.0), progress)
    assert cuts, "the operation ended before the connection was cut"
    assert report.phase is JournalPhase.COMMITTED, report
    assert bench.vm.signature == payload.signature
    assert [call.removesuffix(".service") for call in bench.vm.calls] == ["reload apache2"]


async def test_an_operator_that_starts_again_attaches_to_what_it_began(bench: Bench) -> None:
    payload = payload_of(releases.new())
    order = dataclasses.replace(ORDER, settle_seconds=2.0)
    running = asyncio.Event()

    def progress(report: OperationReport) -> None:
        if report.phase not in (JournalPhase.STAGING, JournalPhase.BUILT):
            running.set()

    first = asyncio.create_task(bench.patcher.patch(bench.target, payload, order, progress))
    async with asyncio.timeout(30):
        await running.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    report = await LivePatcher(start=bench.vm.start).patch(bench.target, payload, order, bench.seen.append)
    assert report.phase is JournalPhase.COMMITTED
    assert bench.vm.calls.count(next(call for call in bench.vm.calls if "apache2" in call)) == 1


async def test_the_agent_changes_by_its_members_and_keeps_its_own_configuration(lay_out: Callable[..., Bench]) -> None:
    bench = lay_out("secstorage", agent=True)
    vm, payload = bench.vm, payload_of(releases.new(), agent=True)
    home = "usr/local/cloud/systemvm"
    vm.write(f"{home}/conf/agent.properties", b"guid=live\n")
    vm.write(f"{home}/stray-1.0.jar", b"left by an older agent")
    vm.write(f"{home}/cloud.log", b"log\n")
    with bench.server.running():
        seen = await bench.patcher.observe(bench.target, payload)
        assert seen.agent_content is not None
        assert (seen.agent_content.changed, seen.agent_content.extra) == (1, 1)
        assert ("cloud", "StopStart") in {(action.name, action.action) for action in seen.actions}
        report = await bench.patch(payload)
        assert report.phase is JournalPhase.COMMITTED, report.message
        after = await bench.patcher.observe(bench.target, payload)
    assert after.agent_content is not None
    assert after.agent_content.state is ContentState.MATCHES
    kept, *added = vm.read(f"{home}/conf/agent.properties").decode().splitlines()
    assert kept == "guid=live"
    assert added, "what the release packages beside it was added"
    assert not [line for line in added if line.startswith("guid=")]
    assert vm.read(f"{home}/cloud.log") == b"log\n"
    assert not (vm.root / home / "stray-1.0.jar").exists()
    assert payload.agent is not None
    assert report.bytes_sent < 600_000 < payload.agent.size_bytes


async def test_an_old_payload_that_was_cut_is_no_reason_to_stop(bench: Bench) -> None:
    whole = bench.vm.read("usr/share/cloud/cloud-scripts.tgz")
    bench.vm.write("usr/share/cloud/cloud-scripts.tgz", whole[: len(whole) // 2])
    payload = payload_of(releases.new())
    report = await bench.patch(payload)
    assert report.phase is JournalPhase.COMMITTED, report
    assert (bench.vm.root / "opt/cloud/bin/set_redundant.py").exists(), "nobody can tell whose file it is"
    assert bench.vm.signature == payload.signature


async def test_a_vm_that_lost_its_scripts_gets_them_again(bench: Bench) -> None:
    shutil.rmtree(bench.vm.root / "opt/cloud")
    payload = payload_of(releases.new())
    report = await bench.patch(payload)
    assert report.phase is JournalPhase.COMMITTED, report
    seen = await bench.patcher.observe(bench.target, payload)
    assert seen.content is not None
    assert seen.content.state is ContentState.MATCHES


async def test_a_folder_where_a_file_must_be_is_refused_untouched(bench: Bench) -> None:
    place = bench.vm.root / "etc/apache2/conf-enabled/security.conf"
    place.unlink()
    (place / "deeper").mkdir(parents=True)
    before = bench.vm.manifest()
    try:
        report = await bench.patch(payload_of(releases.new()))
    except Refused as refused:
        assert "security.conf" in str(refused)
    else:
        assert report.phase is JournalPhase.ABANDONED, report
        assert "security.conf" in report.message
    assert {name: fact for name, fact in bench.vm.manifest().items() if name in before} == before


async def test_another_operation_holds_the_lock(bench: Bench) -> None:
    started = asyncio.Event()

    def progress(report: OperationReport) -> None:
        if report.step == "Build":
            started.set()

    payload = payload_of(releases.new())
    long = dataclasses.replace(ORDER, id="op-long", settle_seconds=3.0)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(bench.patcher.patch(bench.target, payload, long, progress))
        await started.wait()
        await asyncio.sleep(0.5)
        with pytest.raises(Refused) as caught:
            await bench.patch(payload_of(releases.mended()), dataclasses.replace(ORDER, id="op-other"))
    assert caught.value.reason in (Reason.LOCK_HELD, Reason.VM_BUSY)
    assert "op-long" in str(caught.value)
    assert first.result().phase is JournalPhase.COMMITTED
