"""A job of the management server that changes a whole group, or a VM that may not come back as itself: a state machine.

The server has no way to ask "did you get my call?", and a job may be cut in the middle (CloudStack 4.21
AsyncJobManagerImpl: a restart of the server ends it with no result). So what is known is stored before and after every
call, in `Rollout.status.groupOperations`, and what is not known is found out by looking, never by calling again:

| phase | stored when | what a restart finds, and does |
|---|---|---|
| Preparing | orders stand on all VMs of the group | nothing was asked: it looks whether the call may be made |
| Submitting | right before the call, with the VMs as they are | unknown whether the call was made: Unknown |
| Running | the server answered with a job id | the job: it is asked how far it is |
| Unknown | no answer to the call, or the job was lost | quiet for `QUIET`, then it looks: changed, not changed, at it |
| Verifying | the job ended, or the group was found changed | the group: it looks until everything is as it should be |
| Done | with a result | the VMs' orders are answered |

What the call is, what must hold before it, how a change is seen and what must hold after it depends on the method: a
`Judge` says so. This module knows none of them, neither clock nor server: events come in, the next state goes out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from sysvm.api.methods import Method
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, GroupPhase, GroupVM
from sysvm.domain.calls import (
    Call,
    Event,
    Job,
    JobState,
    JobTold,
    Judge,
    Look,
    Looked,
    NoAnswer,
    NotMade,
    NotTold,
    Refused,
    Standing,
    Submitted,
    Verdict,
    not_yet,
)
from sysvm.domain.cloud import CloudVM, CloudVMState
from sysvm.domain.rule_counts import held_counts, listed_counts

QUIET = timedelta(minutes=3)
"""So long nothing may move before an unknown call is judged. A management server that was restarted is back after 40 to
80 s and takes up or ends its jobs then (CloudStack 4.21, measured)."""
EXPIRES = timedelta(minutes=2)
"""So long after it was sent a call that is held up on the way may still arrive; then the server refuses it (its
`expires`). Nothing is called again before it would have been quiet after that."""
LONGEST_WORK = timedelta(minutes=15)
"""So long a host may go on with what it was told by a server that has lost the job since: it waits 600 s for a patch
(CloudStack 4.21 LibvirtPatchSystemVmCommandWrapper). No call whose fate is not known is given up before."""
SUBMISSIONS = 2
"""So often a call is made in all; again only after the group was found unchanged."""
OPEN_LIMIT = 16
"""Operations of one rollout that may be open at once: its status must stay small, and the server has few workers."""
MESSAGE_LIMIT = 512

FIRST_POLL = timedelta(seconds=2)
LONGEST_POLL = timedelta(seconds=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`strategy.timeouts` of the rollout."""

    step: timedelta
    """Preparing may take so long."""
    vm: timedelta
    """Verifying may take so long. A job has no limit: one that runs is not ended by waiting less for it."""

    @property
    def silence(self) -> timedelta:
        """So long nobody may be able to tell what became of a call."""
        return max(self.vm, LONGEST_WORK)


# The machine


def begun(group: str, method: Method, call: Call, vm: CloudVM, orders: Iterable[str], now: datetime) -> GroupOperation:
    """The first state of an operation on the group of `vm`. `orders`: ids of the orders on its VMs, which its result
    answers."""
    return GroupOperation(
        group=group,
        method=method,
        vm_type=vm.type,
        zone_id=vm.zone_id,
        command=str(call.command),
        target=call.id,
        orders=tuple(sorted(orders)),
        phase=GroupPhase.PREPARING,
        since=now,
        started_at=now,
    )


class Todo(StrEnum):
    """What the driver does next."""

    LOOK = "Look"
    SUBMIT = "Submit"
    """Make the call: only who has just stored Submitting, never who finds it."""
    ASK_JOB = "AskJob"
    NOTHING = "Nothing"


_TODO = {
    GroupPhase.PREPARING: Todo.LOOK,
    GroupPhase.SUBMITTING: Todo.SUBMIT,
    GroupPhase.RUNNING: Todo.ASK_JOB,
    GroupPhase.UNKNOWN: Todo.LOOK,
    GroupPhase.VERIFYING: Todo.LOOK,
    GroupPhase.DONE: Todo.NOTHING,
}


def todo(operation: GroupOperation) -> Todo:
    return _TODO[operation.phase]


def pause(operation: GroupOperation, now: datetime) -> timedelta:
    """How long to wait before the next look or question: longer the longer the phase lasts already, none at first."""
    lasted = now - operation.since
    if operation.reason == Reason.RULES_NOT_COMPARED:
        return FIRST_POLL
    if lasted < FIRST_POLL and operation.phase is not GroupPhase.UNKNOWN:
        return FIRST_POLL
    return min(max(FIRST_POLL, lasted / 4), LONGEST_POLL)


def counts_rules(operation: GroupOperation) -> bool:
    """The next look lists the tenants' rules: right before the call, and after it once all the rest is as it should
    be, because it takes several questions."""
    reasons = (Reason.RULES_NOT_COMPARED, Reason.RULES_MISSING)
    return operation.phase is GroupPhase.PREPARING or operation.reason in reasons


STARTED_ANEW = frozenset({GroupPhase.UNKNOWN, GroupPhase.VERIFYING})
"""Phases in which a VM may have been started by our own call."""


def after_restart(operation: GroupOperation, now: datetime) -> GroupOperation:
    """Who finds Submitting and has not stored it a moment ago does not know whether the call was made."""
    if operation.phase is not GroupPhase.SUBMITTING:
        return operation
    return _to(operation, GroupPhase.UNKNOWN, now, message="the operator ended around the call")


def apply(operation: GroupOperation, event: Event, judge: Judge, limits: Limits, now: datetime) -> GroupOperation:
    """The next state. An event that does not belong to the phase changes nothing: it is late."""
    match operation.phase, event:
        case GroupPhase.DONE, _:
            return operation
        case _, NotTold():
            return _not_told(operation, event.sentence, limits, now)
        case GroupPhase.SUBMITTING, NotMade():
            undone = {"before": (), "submitted_at": None, "submissions": operation.submissions - 1}
            return _to(operation, GroupPhase.PREPARING, operation.started_at, message=_cut(event.sentence), **undone)
        case GroupPhase.PREPARING | GroupPhase.SUBMITTING, Refused():
            return _done(_untouched(operation), OperationResult.FAILED, event.reason, event.sentence, now)
        case GroupPhase.PREPARING, Looked():
            return _prepared(operation, event.look, judge, limits, now)
        case GroupPhase.SUBMITTING, Submitted():
            return _to(operation, GroupPhase.RUNNING, now, job_id=event.job_id)
        case GroupPhase.SUBMITTING, NoAnswer():
            return _to(operation, GroupPhase.UNKNOWN, now, message=_cut(event.sentence))
        case GroupPhase.RUNNING, JobTold():
            return _job_told(operation, event, limits, now)
        case GroupPhase.UNKNOWN, Looked():
            return _found(operation, event.look, judge, limits, now)
        case GroupPhase.VERIFYING, Looked():
            return _verified(operation, event.look, judge, limits, now)
        case _:
            return operation


def _not_told(operation: GroupOperation, sentence: str, limits: Limits, now: datetime) -> GroupOperation:
    """Nothing follows from a question without an answer. If nobody answers for long, the phase ends all the same: the
    VMs, the rollout and its slots would wait for ever, and not even aborting would let them go.

    | phase | ends after | what is known then |
    |---|---|---|
    | Preparing | `step` | nothing was called, or what was called had changed nothing |
    | Running | `silence`, since the first question without an answer | the job may still run |
    | Unknown | `silence`, since something last moved | the call may have been made, its job may still run or wait |
    | Verifying | `vm` | the job has ended, with whatever effect |

    Submitting ends with its own step, or with the process. No end here lets a second call leave beside a job that may
    still run: who comes next is Preparing, and there the server must answer first and list neither a job nor a VM of
    the group at work; jobs that wait for their turn are listed like those that run. What was on its way to the server
    was refused long before (`EXPIRES`).
    """
    lasted = now - operation.since
    if operation.phase is GroupPhase.PREPARING and lasted >= limits.step:
        lost = operation.submissions > 0
        reason = Reason.JOB_LOST if lost else Reason.TIMED_OUT
        known = "the call that was lost had changed nothing" if lost else "nothing was changed"
        return _done(_untouched(operation), OperationResult.FAILED, reason, f"{sentence}; {known}", now)
    if operation.phase is GroupPhase.RUNNING:
        silent_since = operation.silent_since or now
        if now - silent_since < limits.silence:
            return operation.model_copy(update={"silent_since": silent_since, "message": _cut(sentence)})
        told = (
            f"job {operation.job_id} may still run, look at the management server, which was asked in vain: {sentence}"
        )
        return _done(operation, OperationResult.FAILED, Reason.JOB_LOST, told, now)
    if operation.phase is GroupPhase.UNKNOWN and lasted >= limits.silence:
        told = f"lost the job; what it did could not be learned, look at the management server: {sentence}"
        return _done(operation, OperationResult.FAILED, Reason.JOB_LOST, told, now)
    if operation.phase is GroupPhase.VERIFYING and lasted >= limits.vm:
        failure = operation.job_failure
        reason = Reason.JOB_FAILED if failure else Reason.CLAIM_NOT_VERIFIED
        told = f"{operation.command}: {failure or 'ended'}; what it did could not be looked at: {sentence}"
        return _done(operation, OperationResult.FAILED, reason, told, now)
    return operation.model_copy(update={"message": _cut(sentence)})


def _prepared(operation: GroupOperation, look: Look, judge: Judge, limits: Limits, now: datetime) -> GroupOperation:
    moving = what_moves(look.vms, look.jobs)
    verdict = not_yet(Reason.JOB_RUNNING, moving) if moving is not None else judge.before(operation, look)
    # VMs are marked before the next call only if an earlier one was lost and had changed nothing until then.
    came_late = bool(operation.before) and moving is None and judge.changed(operation, look)
    if came_late or (verdict.standing is Standing.NEEDLESS and operation.submissions):
        return _to(operation, GroupPhase.VERIFYING, now, message="the call that was lost has changed the group by now")
    if verdict.standing is Standing.NEEDLESS:
        return _done(operation, OperationResult.SUCCEEDED, verdict.reason, verdict.sentence, now)
    late = now - operation.since >= limits.step
    if verdict.standing is Standing.HOLDS and late:
        # The server did not answer for so long, or what is taken right before the call could not be had: who gave the
        # order spoke of another hour, perhaps of another window.
        verdict = not_yet(Reason.TIMED_OUT, operation.message or "the call could not be made in timeouts.step")
    if verdict.standing is Standing.HOLDS:
        return _to(
            operation,
            GroupPhase.SUBMITTING,
            now,
            before=_marks(look, judge),
            rules_listed=listed_counts(look.rules),
            rules_held=held_counts(look.known),
            submitted_at=now,
            submissions=operation.submissions + 1,
            job_id=None,
        )
    if verdict.standing is Standing.BROKEN or late:
        reason = verdict.reason or Reason.FAILED
        told = f"{verdict.sentence}; nothing was changed"
        return _done(_untouched(operation), OperationResult.FAILED, reason, told, now)
    return _waits(operation, verdict)


def _marks(look: Look, judge: Judge) -> tuple[GroupVM, ...]:
    def boot_of(vm: CloudVM) -> str | None:
        facts = look.facts(vm)
        return facts.observed.boot_id if facts is not None and facts.observed is not None else None

    return tuple(
        GroupVM(id=vm.id, name=vm.name, boot_id=boot_of(vm), done=judge.is_done(look, vm))
        for vm in sorted(look.vms, key=lambda vm: vm.name)
    )


def _job_told(operation: GroupOperation, told: JobTold, limits: Limits, now: datetime) -> GroupOperation:
    if operation.silent_since is not None:
        operation = operation.model_copy(update={"silent_since": None, "message": ""})
    if told.state is JobState.PENDING and now - operation.since < limits.vm:
        return operation
    if told.state is JobState.PENDING:
        # Waiting less for it would not end it, and a second call beside it is the one thing that must not happen.
        sentence = f"job {operation.job_id} runs longer than timeouts.vm: look at the management server"
        return operation.model_copy(update={"message": sentence})
    if told.state is JobState.LOST:
        return _to(operation, GroupPhase.UNKNOWN, now, message=_cut(told.sentence))
    # A job that failed may have changed the group, and one that succeeded may not: both are looked at.
    failure = told.sentence or "the job failed" if told.state is JobState.FAILED else ""
    return _to(operation, GroupPhase.VERIFYING, now, job_failure=_cut(failure))


def _found(operation: GroupOperation, look: Look, judge: Judge, limits: Limits, now: datetime) -> GroupOperation:
    """Nothing is decided while something moves, and for a time after it has stopped."""
    moving = what_moves(look.vms, look.jobs)
    if moving is not None:
        return _moves(operation, look, moving, limits, now)
    if operation.reason == Reason.JOB_RUNNING:
        stopped = "lost the job; nothing moves any more"
        return operation.model_copy(update={"since": now, "reason": "", "message": stopped})
    if now - operation.since < QUIET:
        return operation
    changed = judge.changed(operation, look)
    if changed is None:
        return _not_seen(operation, look, limits, now)
    if changed:
        return _to(operation, GroupPhase.VERIFYING, now, message="lost the job; the group has changed")
    if operation.submitted_at is not None and now - operation.submitted_at < EXPIRES + QUIET:
        return operation.model_copy(update={"message": "nothing has changed; the call may still be on its way"})
    if operation.submissions < SUBMISSIONS:
        return _to(operation, GroupPhase.PREPARING, now, message="lost the job; nothing has changed: once more")
    sentence = f"{operation.message or 'the job was lost'}; nothing has changed after {operation.submissions} calls"
    unchanged = _without_who_stayed(operation, look).model_copy(update={"submitted_at": None})
    return _done(unchanged, OperationResult.FAILED, Reason.JOB_LOST, sentence, now)


def _moves(operation: GroupOperation, look: Look, moving: str, limits: Limits, now: datetime) -> GroupOperation:
    """A job is waited for however long it runs. A VM may be between two states for ever, with no job to end that, where
    a server was restarted. Then it is given up; nothing is called while the VM is so (`_not_told`)."""
    by_job = bool(look.jobs) or any(vm.job_id is not None for vm in look.vms)
    begins = operation.reason != Reason.JOB_RUNNING
    if not by_job and not begins and now - operation.since >= limits.silence:
        told = f"lost the job; {moving}, and no job works on it: look at the management server"
        return _done(operation, OperationResult.FAILED, Reason.JOB_LOST, told, now)
    since = now if by_job or begins else operation.since
    told = _cut(f"lost the job; {moving}")
    return operation.model_copy(update={"since": since, "reason": str(Reason.JOB_RUNNING), "message": told})


def _not_seen(operation: GroupOperation, look: Look, limits: Limits, now: datetime) -> GroupOperation:
    """What the call did can only be seen on VMs that do not answer. No job works on them and none is Starting or
    Stopping, so nothing of ours goes on; whether it happened is for a person to see."""
    if now - operation.since < limits.silence:
        return operation.model_copy(update={"message": "lost the job; what it did cannot be seen yet"})
    known = [(vm.name, look.facts(vm)) for vm in look.vms]
    mute = ", ".join(name for name, facts in known if facts is None or not facts.reachable)
    told = f"lost the job; what it did could not be seen{f': {mute} cannot be reached' if mute else ''}"
    return _done(_without_who_stayed(operation, look), OperationResult.FAILED, Reason.JOB_LOST, told, now)


def _verified(operation: GroupOperation, look: Look, judge: Judge, limits: Limits, now: datetime) -> GroupOperation:
    moving = what_moves(look.vms)
    verdict = not_yet(Reason.JOB_RUNNING, moving) if moving is not None else judge.after(operation, look)
    failure = operation.job_failure
    judged = _without_who_stayed(operation, look)
    if verdict.standing is Standing.HOLDS and not failure:
        return _done(judged, OperationResult.SUCCEEDED, None, verdict.sentence, now)
    if verdict.standing is Standing.HOLDS:
        return _done(
            judged,
            OperationResult.FAILED,
            Reason.JOB_FAILED,
            f"{operation.command}: {failure}; the group is as it should be all the same",
            now,
        )
    late = now - operation.since >= limits.vm
    if verdict.standing is Standing.NOT_YET and not late:
        return _waits(operation, verdict)
    told = f"{operation.command}: {failure}; {verdict.sentence}" if failure else verdict.sentence
    return _done(judged, OperationResult.FAILED, verdict.reason or Reason.TIMED_OUT, told, now)


def _untouched(operation: GroupOperation) -> GroupOperation:
    """No call was made, or what was called has changed nothing."""
    return operation.model_copy(update={"before": (), "submitted_at": None})


def _without_who_stayed(operation: GroupOperation, look: Look) -> GroupOperation:
    """Who went in the call is kept with its result, because nobody else can tell of it; if all are there, nobody."""
    stayed = {vm.id for vm in operation.before} <= {vm.id for vm in look.vms}
    return operation.model_copy(update={"before": ()}) if stayed else operation


_MOVING = {
    CloudVMState.STARTING,
    CloudVMState.STOPPING,
    CloudVMState.MIGRATING,
    CloudVMState.EXPUNGING,
    CloudVMState.SHUTDOWN,
}


def what_moves(vms: Iterable[CloudVM], jobs: Sequence[Job] = ()) -> str | None:
    """What is still going on in the group, as part of a sentence; None: nothing."""
    for vm in vms:
        if vm.state in _MOVING:
            return f"{vm.name} is {vm.state}"
        if vm.job_id is not None:
            return f"job {vm.job_id} works on {vm.name}"
    if jobs:
        job = jobs[0]
        since = f" since {job.created.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" if job.created is not None else ""
        return f"job {job.id} ({job.command or 'unknown'}) runs{since}"
    return None


def _waits(operation: GroupOperation, verdict: Verdict) -> GroupOperation:
    reason = str(verdict.reason) if verdict.reason is not None else ""
    return operation.model_copy(update={"reason": reason, "message": _cut(verdict.sentence)})


def _to(operation: GroupOperation, phase: GroupPhase, now: datetime, **changes: object) -> GroupOperation:
    left = {"since": now, "reason": "", "message": "", "silent_since": None}
    return operation.model_copy(update={"phase": phase, **left, **changes})


def _done(
    operation: GroupOperation, result: OperationResult, reason: Reason | None, sentence: str, now: datetime
) -> GroupOperation:
    return operation.model_copy(
        update={
            "phase": GroupPhase.DONE,
            "since": now,
            "finished_at": now,
            "silent_since": None,
            "result": result,
            "reason": str(reason) if reason is not None else "",
            "message": _cut(sentence),
            "rules_listed": {},
            "rules_held": {},
        }
    )


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 4] + " ..."
