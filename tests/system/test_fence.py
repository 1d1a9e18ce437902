"""Commands of the management server go on while a router is patched: none fails, no bag loses a key.

How they are fired, and what each of them refuses: `faults.commands`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest
from tests.system.test_live_patch import told

from faults import commands
from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import payloads
from reach import patch_order, target_of
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import read_payload
from sysvm.patching.results import JournalPhase, OperationReport

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

NAME = "r-71-VM"
PATCHES = 2


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("fence"))
    try:
        made.up([VMSpec(name=NAME, type=SystemVMType.ROUTER, index=71, group="net-71")], release="old")
        yield made
    finally:
        made.down()


async def patch(lab: Lab, number: int) -> OperationReport:
    order = patch_order(f"fence-{number}-{time.time_ns()}", settle_seconds=0.5)
    release = commands.release(number)
    wanted = read_payload(payloads.build_scripts(release), payloads.build_agent(release))
    return await LivePatcher().patch(target_of(lab, NAME), wanted, order, lambda _: None)


@pytest.mark.timeout(300)
async def test_a_client_that_connects_and_never_logs_in_holds_up_no_patch(lab: Lab) -> None:
    """sshd itself would let it stay for two minutes (LoginGraceTime)."""
    vm = lab.vm(NAME)
    reader, writer = await asyncio.open_connection(str(vm.relay_address), vm.port)
    try:
        assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"SSH-2.0-")
        report = await patch(lab, PATCHES + 1)
        assert not reader.at_eof(), "sshd had shut it out before the patch ended"
    finally:
        writer.close()
    assert report.phase is JournalPhase.COMMITTED, told(report)
    (fence,) = [step for step in report.steps if step.name == "Fence"]
    assert "connections to sshd that do not log in were not waited for" in fence.message, told(report)
    assert fence.seconds < 60, told(report)


@pytest.mark.timeout(300)
async def test_commands_fired_every_50_ms_during_patches_neither_fail_nor_lose_a_key(lab: Lab) -> None:
    before = commands.keys(lab, NAME)
    firing = commands.Commands(lab, NAME)
    reports: list[OperationReport] = []
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(firing.fire())
        try:
            reports += [await patch(lab, number) for number in range(1, PATCHES + 1)]
        finally:
            firing.stop.set()
    print(firing.text())
    for report in reports:
        assert report.phase is JournalPhase.COMMITTED, told(report)
    assert not firing.failures, firing.failures[:5]
    assert firing.done["update_config.py"] >= PATCHES, firing.done
    assert commands.lost(lab, NAME, before, firing) == []
    left = lab.exec(NAME, "nft list tables; ls /tmp/*-biglock.lock", check=False).stdout
    assert "sysvm_fence" not in left
    assert "biglock" not in left
