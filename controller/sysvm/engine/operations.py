"""One operation as the SystemVM tells it: starting it, retrying what was refused, and translating the VM's own report.

The journal on the VM is the truth; what is written into `status.operation` is its mirror. Nothing here decides whether
a VM may be in work: admission did, and its order stands in `spec.operation` until a result answers it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.methods import Method
from sysvm.api.operation import (
    HistoryEntry,
    OperationOrder,
    OperationResult,
    OperationStatus,
    OperationStep,
    ServiceAction,
    StepResult,
)
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.engine.ports import SystemVMs
from sysvm.patching.errors import PatchingError, Refused
from sysvm.patching.payload import Payload
from sysvm.patching.results import JournalPhase, OperationReport, Order, StepReport, Target

HISTORY_LENGTH = 5
_REFUSED_BACKOFF_SECONDS = (2.0, 4.0, 8.0, 15.0)

_RESULTS = {
    JournalPhase.COMMITTED: OperationResult.SUCCEEDED,
    JournalPhase.ROLLED_BACK: OperationResult.ROLLED_BACK,
    JournalPhase.ABANDONED: OperationResult.FAILED,
    JournalPhase.INCONSISTENT: OperationResult.INCONSISTENT,
}


@dataclass(frozen=True, slots=True)
class Work:
    """Everything one operation needs. `payload` None: the release is gone, so the VM is only asked how it ended."""

    target: Target
    payload: Payload | None
    order: Order
    takes_back: str | None = None
    """Id of the operation that is undone; no payload is needed for that."""


async def carry_out(vms: SystemVMs, work: Work, progress: Callable[[OperationReport], None]) -> OperationReport:
    """Runs the operation to its end on the VM.

    A refusal that may pass (a held lock, CloudStack at work) is tried again until the time of one step is over; then it
    is raised, and nothing was changed. Raises `PatchingError`.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + work.order.step_timeout_seconds
    attempts = 0
    while True:
        try:
            return await _once(vms, work, progress)
        except Refused as error:
            wait = _REFUSED_BACKOFF_SECONDS[min(attempts, len(_REFUSED_BACKOFF_SECONDS) - 1)]
            if not error.retryable or clock() + wait > deadline:
                raise
            progress(_waiting(work, error))
        attempts += 1
        await asyncio.sleep(wait)


async def _once(vms: SystemVMs, work: Work, progress: Callable[[OperationReport], None]) -> OperationReport:
    if work.takes_back is not None:
        return await vms.take_back(work.target, work.order, work.takes_back, progress)
    if work.payload is not None:
        return await vms.patch(work.target, work.payload, work.order, progress)
    known = await vms.report(work.target, work.order.id)
    if known is not None and known.phase.is_final:
        return known
    raise Refused(
        f"{work.target.name}: the release of this operation is not there any more"
        + ("; the VM ends what it has begun alone" if known is not None else "; nothing was changed"),
        reason=Reason.TEMPLATE_NOT_FOUND,
        retryable=False,
    )


def _waiting(work: Work, error: Refused) -> OperationReport:
    return OperationReport(
        id=work.order.id,
        revision=work.payload.revision if work.payload else "",
        phase=JournalPhase.STAGING,
        step="Connect",
        steps=(StepReport("Connect", done=False, failed=False, seconds=0.0, message=str(error)),),
        services=(),
        bytes_sent=0,
        reason=error.reason,
        message=str(error),
    )


def begun(order: OperationOrder, now: datetime) -> OperationStatus:
    """The mirror before the VM has said anything."""
    return OperationStatus(
        id=order.id,
        rollout=order.rollout,
        method=order.method,
        route=order.route,
        revision=order.revision,
        attempt=order.attempt,
        takes_back=order.takes_back,
        step="Connect",
        started_at=now,
    )


def mirrored(status: OperationStatus, report: OperationReport) -> OperationStatus:
    """The mirror of an operation in work."""
    return status.model_copy(
        update={
            "step": report.step[:32],
            "steps": tuple(_step(step) for step in report.steps[:16]),
            "bytes_sent": report.bytes_sent,
            "services": _services(report),
            "message": _cut(report.message, 2048),
        }
    )


def ended(status: OperationStatus, report: OperationReport, now: datetime) -> OperationStatus:
    """The mirror of an operation that the VM has ended. One that takes another back has done so once that one is
    RolledBack."""
    went_back = status.takes_back is not None and report.phase is JournalPhase.ROLLED_BACK
    result = OperationResult.SUCCEEDED if went_back else _RESULTS[report.phase]
    reason = "" if result is OperationResult.SUCCEEDED else str(report.reason or Reason.FAILED)
    return mirrored(status, report).model_copy(update={"result": result, "reason": reason, "finished_at": now})


def failed(status: OperationStatus, error: PatchingError, now: datetime) -> OperationStatus:
    """An operation that did not begin, or whose end could not be learned; the sentence says which."""
    return status.model_copy(
        update={
            "result": OperationResult.FAILED,
            "reason": str(error.reason),
            "message": _cut(str(error), 2048),
            "finished_at": now,
        }
    )


def of_group(status: OperationStatus, group: GroupOperation) -> OperationStatus:
    """The mirror of what the management server does to the VM's group. Its result is this VM's too."""
    return status.model_copy(
        update={
            "step": _step_of_group(status, group),
            "message": _cut(group.message, 2048),
            "submitted_at": group.submitted_at,
            "result": group.result,
            "reason": group.reason,
            "finished_at": group.finished_at,
        }
    )


def _step_of_group(status: OperationStatus, group: GroupOperation) -> str:
    """Its phase; of one that failed the phase in which it did, which is Preparing only if no call was made
    (`members.never_called`)."""
    if group.result in (None, OperationResult.SUCCEEDED):
        return str(group.phase)
    if not group.submissions:
        return str(GroupPhase.PREPARING)
    called = status.step not in ("Connect", GroupPhase.PREPARING)
    return status.step if called else str(GroupPhase.SUBMITTING)


def given_up(status: OperationStatus, reason: Reason, sentence: str, now: datetime, *, called: bool) -> OperationStatus:
    """An order that nobody will carry out. `called`: a call may have been made for it; if none was, its failure is not
    counted (`members.never_called`)."""
    return status.model_copy(
        update={
            "step": status.step if called else str(GroupPhase.PREPARING),
            "result": OperationResult.FAILED,
            "reason": str(reason),
            "message": _cut(sentence, 2048),
            "finished_at": now,
        }
    )


def remembered(history: tuple[HistoryEntry, ...], operation: OperationStatus) -> tuple[HistoryEntry, ...]:
    """The history with a finished operation in front; once only, however often it is told."""
    if operation.result is None or any(entry.id == operation.id for entry in history):
        return history
    finished = operation.finished_at or operation.started_at
    entry = HistoryEntry(
        id=operation.id,
        rollout=operation.rollout,
        revision=operation.revision,
        method=operation.method,
        result=operation.result,
        started_at=operation.started_at,
        seconds=max(0.0, (finished - operation.started_at).total_seconds()),
        bytes_sent=operation.bytes_sent,
        services=operation.services,
        takes_back=operation.takes_back,
        message=_cut(operation.message, 1024),
    )
    return (entry, *history)[:HISTORY_LENGTH]


def sentence(vm: str, operation: OperationStatus) -> str:
    """What happened, for Events and logs."""
    if operation.result is OperationResult.SUCCEEDED and operation.takes_back is not None:
        return f"{vm} is again what it was before operation {operation.takes_back}, services and signature included"
    if operation.result is OperationResult.SUCCEEDED and operation.method in (Method.REBOOT, Method.RECREATE):
        finished = operation.finished_at or operation.started_at
        seconds = (finished - operation.started_at).total_seconds()
        return f"{operation.method} of {vm} by the management server is done and verified, {seconds:.0f} s"
    if operation.result is OperationResult.SUCCEEDED:
        actions = ", ".join(f"{action.name} {action.action.lower()}" for action in operation.services) or "no service"
        finished = operation.finished_at or operation.started_at
        seconds = (finished - operation.started_at).total_seconds()
        done = f"{vm} is at {operation.revision[:8]} and verified"
        return f"{done}: {operation.bytes_sent} bytes sent, {actions}, {seconds:.0f} s"
    return f"{vm}: {operation.message}" if vm not in operation.message else operation.message


def _step(step: StepReport) -> OperationStep:
    result = StepResult.FAILED if step.failed else StepResult.DONE if step.done else StepResult.RUNNING
    return OperationStep(
        name=step.name[:32],
        result=result,
        seconds=round(max(0.0, step.seconds), 3),
        bytes=step.bytes_sent,
        bytes_total=step.bytes_total,
        message=_cut(step.message, 1024),
    )


def _services(report: OperationReport) -> tuple[ServiceAction, ...]:
    return tuple(
        ServiceAction(
            name=action.name[:128],
            action=action.action[:32],
            unavailable_seconds=_rounded(action.unavailable_seconds),
            slowest_seconds=_rounded(action.slowest_seconds),
        )
        for action in report.services[:32]
    )


def _rounded(seconds: float | None) -> float | None:
    return round(seconds, 3) if seconds is not None else None


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 4] + " ..."
