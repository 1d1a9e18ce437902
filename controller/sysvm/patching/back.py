"""Going back from an operation that was committed: the VM has the old files beside the new, and does it alone.

Asked again, by whoever leads then, it is the same operation on the VM: one that is on its way back is watched, one that
has arrived is only reported. So a cut, a crash or a change of leader costs nothing but time.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from sysvm.api.reasons import Reason
from sysvm.patching import protocol
from sysvm.patching.errors import Refused, Unreachable
from sysvm.patching.observing import operation_report
from sysvm.patching.results import JournalPhase, OperationReport, Order, Target
from sysvm.patching.session import RemoteFailure, Session

REPORT_SECONDS = 30.0
GRACE_SECONDS = 120.0
BACKOFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)

Conversation = Callable[[], AbstractAsyncContextManager[Session]]
Progress = Callable[[OperationReport], None]


async def take_back(
    conversation: Conversation, target: Target, order: Order, operation_id: str, progress: Progress
) -> OperationReport:
    """Brings the VM to what it was before `operation_id`, which must be the latest one committed there.

    Returns its report, with a final phase: RolledBack, or Inconsistent. The report carries the id of `order`. Raises
    `Refused` if the VM did not begin (no backup, another actor, a lower epoch): it is as it was, and `Unreachable` if
    contact was lost and not regained within the order's time.
    """
    deadline = time.monotonic() + order.vm_timeout_seconds + GRACE_SECONDS
    asked, tries = False, 0
    while True:
        try:
            async with asyncio.timeout(max(1.0, deadline - time.monotonic())), conversation() as session:
                asked = True
                return await _carry_out(session, target, order, operation_id, progress)
        except TimeoutError as error:
            raise _not_regained(target, operation_id) from error
        except Unreachable as error:
            pause = BACKOFF_SECONDS[min(tries, len(BACKOFF_SECONDS) - 1)]
            if not asked or not error.retryable:
                raise
            if time.monotonic() + pause >= deadline:
                raise _not_regained(target, operation_id) from error
        tries += 1
        await asyncio.sleep(pause)


async def _carry_out(
    session: Session, target: Target, order: Order, operation_id: str, progress: Progress
) -> OperationReport:
    known = await _ask(session, operation_id)
    if known is None:
        raise Refused(
            f"{target.name} does not know operation {operation_id}, so there is nothing to go back from: it was made "
            "anew, or its journal is gone. Nothing was changed.",
            reason=Reason.OPERATION_REPEATED,
            retryable=False,
        )
    phase = JournalPhase(known["phase"])
    if phase.is_final and phase is not JournalPhase.COMMITTED:
        return _told(known, order)

    def on_report(report: protocol.Report) -> None:
        progress(_told(report, order))

    seconds = order.vm_timeout_seconds + GRACE_SECONDS
    try:
        if known["alive"]:
            attach: protocol.AttachArgs = {"id": operation_id}
            ended = await session.request(
                "attach", {**attach}, protocol.RunResult, timeout=seconds, on_report=on_report
            )
        else:
            back: protocol.BackArgs = {"id": operation_id, "epoch": order.epoch}
            ended = await session.request("back", {**back}, protocol.RunResult, timeout=seconds, on_report=on_report)
    except RemoteFailure as failure:
        # A worker that was killed on its way is finished first, and then there is nothing left to go back from.
        found = await _ask(session, operation_id)
        if found is not None and JournalPhase(found["phase"]) in (JournalPhase.ROLLED_BACK, JournalPhase.INCONSISTENT):
            return _told(found, order)
        raise Refused(
            f"{target.name} did not go back and is as it was: {failure}",
            reason=failure.reason,
            retryable=failure.retryable,
        ) from failure
    report = ended["report"]
    if JournalPhase(report["phase"]) not in (JournalPhase.ROLLED_BACK, JournalPhase.INCONSISTENT):
        raise Unreachable(
            f"Operation {operation_id} on {target.name} was interrupted on its way back, at {report['step']}",
            reason=Reason.INTERRUPTED,
        )
    return _told(report, order)


async def _ask(session: Session, operation_id: str) -> protocol.Report | None:
    args: protocol.ReportArgs = {"id": operation_id}
    result = await session.request("report", {**args}, protocol.ReportResult, timeout=REPORT_SECONDS)
    return result["report"]


def _told(report: protocol.Report, order: Order) -> OperationReport:
    return replace(operation_report(report), id=order.id)


def _not_regained(target: Target, operation_id: str) -> Unreachable:
    return Unreachable(
        f"Contact with {target.name} was lost on its way back from operation {operation_id} and not regained within "
        "its time. The VM ends it alone; the next look at it tells how.",
        reason=Reason.CONNECTION_LOST,
    )
