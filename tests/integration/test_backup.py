"""The backup before CloudStack's own live patch, over a real OpenSSH server: what that patch did is undone."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import tarfile
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from tests.integration.openssh import find_sshd
from tests.integration.test_live_patch import ORDER, Bench, lay_out, payload_of
from tests.integration.test_take_back import BACK, take_back
from tests.unit.patching.made_packages import debian_11_agent

from lab.content import payloads, releases
from sysvm.api.reasons import Reason
from sysvm.patching.errors import Refused
from sysvm.patching.payload import read_payload
from sysvm.patching.results import JournalPhase

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)

__all__ = ["lay_out"]

OURS = "/sysvm-recover.service"
"""Ends what a reboot interrupts; it goes with the backup."""


@pytest_asyncio.fixture(params=["vpcrouter", "secstorage"])
async def bench(lay_out: Callable[..., Bench], request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made = lay_out(request.param, agent=request.param == "secstorage")
    with made.server.running():
        yield made


def patch_as_cloudstack_does(bench: Bench) -> None:
    """What CloudStack 4.21 patch-sysvms.sh leaves of files: everything unpacked over the VM, nothing merged or kept."""
    root, agent = bench.vm.root, bench.vm.root / "usr/local/cloud/systemvm"
    scripts = payloads.build_scripts(releases.new())
    shutil.rmtree(agent, ignore_errors=True)
    if bench.vm.type == "secstorage":
        agent.mkdir(parents=True)
        (agent / "agent.jar").write_bytes(b"another agent")
    with tarfile.open(fileobj=io.BytesIO(scripts)) as archive:
        for member in archive:
            if member.isfile():
                (root / member.name).unlink(missing_ok=True)
        archive.extractall(root, filter="tar")
    (root / "usr/share/cloud/cloud-scripts.tgz").write_bytes(scripts)
    (root / "var/cache/cloud/cloud-scripts-signature").write_text(hashlib.md5(scripts).hexdigest() + "\n")


async def back_up(bench: Bench) -> None:
    report = await bench.patcher.back_up(bench.target, payload_of(releases.new(), agent=True), ORDER)
    assert (report.id, report.phase) == (ORDER.id, JournalPhase.COMMITTED)


async def test_cloudstacks_own_patch_is_taken_back_wholly(bench: Bench) -> None:
    before, signature = bench.vm.manifest(), bench.vm.signature
    await back_up(bench)
    assert {path: row for path, row in bench.vm.manifest().items() if not path.endswith(OURS)} == before
    assert not [call for call in bench.vm.calls if call.startswith(("reload ", "restart ", "start ", "stop "))]
    patch_as_cloudstack_does(bench)
    report = await take_back(bench)
    assert (report.id, report.phase) == (BACK.id, JournalPhase.ROLLED_BACK), report
    assert bench.vm.manifest() == before
    assert bench.vm.signature == signature


@pytest.mark.parametrize("before", ["python2", None])
async def test_the_python_that_scripts_get_is_taken_back_with_them(
    lay_out: Callable[..., Bench], before: str | None
) -> None:
    """CloudStack's patch installs the Debian packages too, and the scripts of before need what they had."""
    bench = lay_out("vpcrouter")
    bench.vm.write("etc/debian_version", b"11.9\n")
    python = bench.vm.root / "usr/bin/python"
    python.parent.mkdir(parents=True)
    if before is not None:
        python.symlink_to(before)
    payload = read_payload(payloads.build_scripts(releases.new()), debian_11_agent())
    with bench.server.running():
        await bench.patcher.back_up(bench.target, payload, ORDER)
        patch_as_cloudstack_does(bench)
        python.unlink(missing_ok=True)
        python.symlink_to("python3")
        report = await take_back(bench)
    assert report.phase == JournalPhase.ROLLED_BACK, report
    assert (str(python.readlink()) if python.is_symlink() else None) == before


async def test_a_backup_is_made_once_however_often_it_is_asked_for(bench: Bench) -> None:
    before = bench.vm.manifest()
    await back_up(bench)
    patch_as_cloudstack_does(bench)
    await back_up(bench)
    await take_back(bench)
    assert bench.vm.manifest() == before


async def test_a_vm_whose_disk_is_too_small_for_cloudstacks_patch_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bench.vm.manifest()
    payload = payload_of(releases.new(), agent=True)
    assert payload.agent is not None
    huge = dataclasses.replace(payload, agent=dataclasses.replace(payload.agent, size_bytes=1 << 60))
    with pytest.raises(Refused, match="no backup of r-1-VM could be made") as caught:
        await bench.patcher.back_up(bench.target, huge, ORDER)
    assert caught.value.reason is Reason.DISK_FULL
    assert bench.vm.manifest() == before


async def test_an_operator_that_no_longer_leads_makes_no_backup(bench: Bench) -> None:
    await bench.patcher.back_up(
        bench.target, payload_of(releases.new(), agent=True), dataclasses.replace(ORDER, epoch=7)
    )
    with pytest.raises(Refused) as caught:
        order = dataclasses.replace(ORDER, id="op-2", epoch=6)
        await bench.patcher.back_up(bench.target, payload_of(releases.new(), agent=True), order)
    assert caught.value.reason is Reason.EPOCH_REFUSED
