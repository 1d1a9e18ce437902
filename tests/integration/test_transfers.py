"""A payload that takes a while: how far it is can be seen; a line that breaks costs what was under way, not more."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.integration.openssh import find_sshd
from tests.integration.test_live_patch import ORDER, Bench, make_bench

from lab.content import payloads, releases
from sysvm.api.reasons import Reason
from sysvm.patching import live, staging
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, OperationReport, StepReport, Target
from sysvm.patching.session import Session

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)

SCALE = 0.15
"""Of the real agent: 13 MB, two batches."""
BESIDES_BYTES = 400_000
"""The program, the order and the questions of one connection."""
UNDER_WAY_BYTES = 4 << 20
"""Lost when the line breaks: one window of the SSH channel (2 MiB) and the file that had not arrived whole."""


@dataclass
class Line:
    """A relay in front of sshd that counts what goes to the VM, and breaks (RST) once when it has counted enough."""

    to: int
    breaks_after: int | None = None
    port: int = 0
    sent: list[int] = field(default_factory=list)
    """Bytes toward the VM, one number a connection."""

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = len(self.sent)
        self.sent.append(0)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.to)
        ends = (writer, far_writer)

        async def toward_vm() -> None:
            while chunk := await reader.read(65536):
                self.sent[number] += len(chunk)
                if self.breaks_after is not None and self.sent[number] > self.breaks_after:
                    self.breaks_after = None
                    raise ConnectionResetError
                far_writer.write(chunk)
                await far_writer.drain()
            far_writer.write_eof()

        async def toward_operator() -> None:
            while chunk := await far_reader.read(65536):
                writer.write(chunk)
                await writer.drain()
            writer.close()

        try:
            await asyncio.gather(toward_vm(), toward_operator())
        except OSError:
            for end in ends:
                end.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.transport.abort()
        finally:
            for end in ends:
                end.close()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Line]:
        server = await asyncio.start_server(self.carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


@pytest.fixture(scope="module")
def payload() -> Payload:
    return read_payload(
        payloads.build_scripts(releases.new()), payloads.build_agent(releases.new(), scale=SCALE, build_seed=1)
    )


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path, "secstorage", agent=True)


def through(bench: Bench, line: Line) -> Target:
    return dataclasses.replace(bench.target, account=dataclasses.replace(bench.target.account, port=line.port))


def stage_of(report: OperationReport) -> StepReport | None:
    """The step Stage while it sends."""
    return next((step for step in report.steps if step.name == "Stage" and step.bytes_total), None)


async def test_progress_tells_how_much_of_how_much_was_sent(
    bench: Bench, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "TELL_SECONDS", 0.0)
    with bench.server.running():
        report = await bench.patch(payload)
    assert report.phase is JournalPhase.COMMITTED, report.message
    told = [step for seen in bench.seen if (step := stage_of(seen))]
    totals = {step.bytes_total for step in told}
    assert len(totals) == 1
    sent = [step.bytes_sent or 0 for step in told]
    assert len(sent) > 10
    assert sent == sorted(sent)
    assert sent[0] < sent[-1] == totals.pop()
    assert not any(step.done or step.failed for step in told)
    (stage,) = [step for step in report.steps if step.name == "Stage"]
    assert stage.bytes_sent is not None
    assert sent[-1] < stage.bytes_sent < sent[-1] + BESIDES_BYTES
    assert stage.bytes_total is None


async def test_a_quick_transfer_is_not_told_in_between(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TELL_SECONDS", 3600.0)
    with bench.server.running():
        await bench.patch(read_payload(payloads.build_scripts(releases.new()), None))
    assert not any(stage_of(seen) for seen in bench.seen)


@pytest.mark.parametrize("share", [0.5, 0.9])
async def test_a_line_that_breaks_during_the_transfer_costs_only_what_was_under_way(
    bench: Bench, payload: Payload, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "TELL_SECONDS", 0.0)
    assert payload.agent is not None
    size = sum(entry.size for entry in payload.agent.entries.values())
    line = Line(bench.server.port, breaks_after=int(size * share))
    seen: list[OperationReport] = []
    with bench.server.running():
        async with line.open():
            report = await bench.patcher.patch(through(bench, line), payload, ORDER, seen.append)
    assert report.phase is JournalPhase.COMMITTED, report.message
    assert line.breaks_after is None, "the line did not break"
    totals = list(dict.fromkeys(step.bytes_total or 0 for told in seen if (step := stage_of(told))))
    assert len(totals) == 2, "the transfer was not begun twice"
    whole, rest = totals
    assert rest < whole * (1 - share) + UNDER_WAY_BYTES
    first, *later = line.sent
    assert sum(later) < rest + len(later) * BESIDES_BYTES
    assert sum(line.sent) < whole + UNDER_WAY_BYTES + len(line.sent) * BESIDES_BYTES
    assert first > whole * share / 2
    seen_then = await observe(bench, payload)
    assert seen_then == "Matches"


async def test_the_next_batch_is_on_its_way_while_the_vm_writes_the_one_before(
    bench: Bench, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    ask, answer = Session._ask, Session._answer

    async def asking(self: Session, verb: str, *args: object) -> int:
        told.append(f"ask {verb}")
        return await ask(self, verb, *args)  # type: ignore[arg-type]

    async def answering(self: Session, *args: object) -> object:
        found = await answer(self, *args)  # type: ignore[arg-type, var-annotated]
        told.append("answer")
        return found

    monkeypatch.setattr(Session, "_ask", asking)
    monkeypatch.setattr(Session, "_answer", answering)
    monkeypatch.setattr(staging, "_BATCH_BYTES", 4 << 20)
    with bench.server.running():
        assert (await bench.patch(payload)).phase is JournalPhase.COMMITTED
    stages = told[told.index("ask stage") : told.index("ask build")]
    assert stages[:3] == ["ask stage", "ask stage", "answer"]
    assert stages.count("ask stage") == stages.count("answer") >= 3


async def test_content_that_the_vm_refuses_ends_the_operation_whatever_was_sent_behind_it(
    bench: Bench, payload: Payload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_BATCH_BYTES", 4 << 20)
    content_of, batches = staging.content_of, []

    async def damaged(source: Payload, batch: list[staging.Outgoing]) -> AsyncIterator[bytes]:
        batches.append(batch)
        async for piece in content_of(source, batch):
            yield bytes(len(piece)) if len(batches) == 1 else piece

    monkeypatch.setattr(staging, "content_of", damaged)
    with bench.server.running():
        report = await bench.patch(payload)
    assert (report.phase, report.reason) == (JournalPhase.ABANDONED, Reason.STAGE_FAILED)
    assert len(batches) == 2


async def observe(bench: Bench, payload: Payload) -> str:
    with bench.server.running():
        found = await bench.patcher.observe(bench.target, payload)
    assert found.agent_content is not None
    return str(found.agent_content.state)
