"""Going back from a committed patch, over a real OpenSSH server: wholly what it was, whoever asks, however often."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.openssh import find_sshd
from tests.integration.test_live_patch import ORDER, Bench, make_bench, payload_of

from lab.content import releases
from sysvm.api.reasons import Reason
from sysvm.patching.errors import Refused
from sysvm.patching.results import JournalPhase, OperationReport

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)

BACK = dataclasses.replace(ORDER, id="op-1-back")


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = make_bench(tmp_path)
    with made.server.running():
        yield made


async def take_back(bench: Bench, operation: str = ORDER.id, *, epoch: int = 1) -> OperationReport:
    order = dataclasses.replace(BACK, epoch=epoch)
    return await bench.patcher.take_back(bench.target, order, operation, bench.seen.append)


async def test_a_patched_vm_goes_back_wholly_files_signature_and_services(bench: Bench) -> None:
    before, signature = bench.vm.manifest(), bench.vm.signature
    patched = await bench.patch(payload_of(releases.new()))
    assert patched.phase is JournalPhase.COMMITTED
    report = await take_back(bench)
    assert (report.id, report.phase) == (BACK.id, JournalPhase.ROLLED_BACK)
    assert bench.vm.manifest() == before
    assert bench.vm.signature == signature
    acted = [call.removesuffix(".service") for call in bench.vm.calls if call.startswith(("reload ", "restart "))]
    assert acted == ["reload apache2", "reload apache2"], "once on the way there, once on the way back"


async def test_asked_twice_it_goes_back_once(bench: Bench) -> None:
    await bench.patch(payload_of(releases.new()))
    await take_back(bench)
    calls = bench.vm.calls
    again = await take_back(bench)
    assert (again.id, again.phase) == (BACK.id, JournalPhase.ROLLED_BACK)
    assert bench.vm.calls == calls


async def test_a_cut_on_the_way_back_is_regained(bench: Bench) -> None:
    before = bench.vm.manifest()
    await bench.patch(payload_of(releases.new()))
    cuts: list[str] = []

    def progress(report: OperationReport) -> None:
        if not cuts:
            cuts.append(report.step)
            bench.server.stop_sessions()

    asking = asyncio.create_task(bench.patcher.take_back(bench.target, BACK, ORDER.id, progress))
    report = await asyncio.wait_for(asking, 60)
    assert cuts, "the way back ended before the connection was cut"
    assert report.phase is JournalPhase.ROLLED_BACK
    assert bench.vm.manifest() == before


async def test_only_the_latest_patch_can_be_taken_back(bench: Bench) -> None:
    await bench.patch(payload_of(releases.new()))
    await bench.patch(payload_of(releases.mended()), dataclasses.replace(ORDER, id="op-2"))
    there = bench.vm.manifest()
    with pytest.raises(Refused, match="is as it was") as caught:
        await take_back(bench)
    assert caught.value.reason is Reason.OPERATION_REPEATED
    assert bench.vm.manifest() == there


async def test_a_vm_that_was_never_patched_has_nothing_to_go_back_from(bench: Bench) -> None:
    with pytest.raises(Refused, match="nothing to go back from"):
        await take_back(bench, "op-unheard-of")


async def test_an_operator_that_no_longer_leads_takes_nothing_back(bench: Bench) -> None:
    await bench.patch(payload_of(releases.new()), dataclasses.replace(ORDER, epoch=7))
    there = bench.vm.manifest()
    with pytest.raises(Refused) as caught:
        await take_back(bench, epoch=6)
    assert caught.value.reason is Reason.EPOCH_REFUSED
    assert bench.vm.manifest() == there
