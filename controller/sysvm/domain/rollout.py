"""What a rollout says of itself, and thereby where it stands: a state machine over stored objects.

Its states are the phases in its status. They are computed from the VMs and from what the status said before, written,
and only then relied on: admission reads the stored ones. So a process that ends anywhere leaves a state that the next
one computes again, or goes on from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sysvm.api.operation import OperationResult
from sysvm.api.policy import NextAction, PolicyBlocker
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.rollout import (
    AppendedVM,
    BreakGlassStatus,
    BudgetStatus,
    CloudStatus,
    Rollout,
    RolloutPhase,
    RolloutResult,
    RolloutStatus,
    WavePhase,
    WaveStatus,
)
from sysvm.api.strategy import OnBudgetSpent
from sysvm.api.systemvm import Blocker
from sysvm.domain import conditions, gates
from sysvm.domain.approvals import WaveGate
from sysvm.domain.budgets import Budget, budget_of
from sysvm.domain.calendar import Opening
from sysvm.domain.conditions import Wanted
from sysvm.domain.facts import VMFacts, short
from sysvm.domain.failure import failures_of
from sysvm.domain.members import RolloutView, can_go_back, cloud_word, gives_up_at, retry_at
from sysvm.domain.planner import Plan, digest_with
from sysvm.domain.waves import current_wave, progressed, soaking

APPENDED_LIMIT = 64
"""VMs that one rollout takes beyond its plan: its status must stay small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What a rollout reads live, while it keeps everything else as it was signed."""

    superseded: bool = False
    """Its policy is gone or being deleted, or wants another revision: nothing new starts, and it ends once nothing is
    in work."""
    suspended: str | None = None
    """The sentence why nothing starts now: policy or endpoint suspended, Observe."""
    opening: Opening | None = None
    """The calendar of its policy now; None: any time will do."""
    approvals: Mapping[str, WaveGate] | None = None
    """Wave -> what approvals say of it now; a wave that needs one and is missing here is closed."""
    edited: tuple[str, ...] = ()
    """Parts of the policy that differ by now from what the rollout keeps."""
    newcomers: tuple[AppendedVM, ...] = ()
    """VMs that need the release and are not in the plan, by name."""
    held_back: Mapping[str, Blocker] | None = None
    """SystemVM name -> what it says that it waits for."""
    held_recreations: Mapping[str, Blocker] | None = None
    """SystemVM name -> why the management server is not asked to recreate it now."""
    cloud: CloudStatus | None = None
    """How the cloud differs from the one that it was planned for (`cloud_changed.cloud_status`)."""
    cloud_unseen: bool = False
    """It was planned for a cloud, and nobody has looked at that since the operator began."""
    cloud_too_old: str | None = None
    """Why the last sweep says nothing about its cloud as it is now, as a sentence (`held_since.why_too_old`)."""


NOTHING_NEW = Live()


@dataclass(frozen=True, slots=True)
class _Standing:
    """The rollout at one moment, with everything that its sentences are made of."""

    rollout: Rollout
    view: RolloutView
    live: Live
    budget: Budget
    waves: tuple[WaveStatus, ...]
    now: datetime

    @property
    def returning(self) -> tuple[VMFacts, ...]:
        """VMs that are still to go back."""
        return to_return(self.rollout, self.view, self.budget, superseded=self.live.superseded)


def outcome(
    rollout: Rollout, plan: Plan, view: RolloutView, live: Live = NOTHING_NEW, *, now: datetime
) -> RolloutStatus:
    """The rollout's status. A result once given stays."""
    before, generation = rollout.status, rollout.metadata.generation
    if before.result is not None:
        kept = tuple(
            condition.model_copy(update={"observed_generation": generation}) for condition in before.conditions
        )
        return before.model_copy(update={"observed_generation": generation, "conditions": kept})
    budget = budget_of(rollout, plan, view)
    waves = progressed(
        rollout,
        view,
        plan.release,
        now=now,
        halted=budget.spent is not None,
        skips_soak=[name for name, gate in (live.approvals or {}).items() if gate.open and gate.skip_soak],
    )
    standing = _Standing(rollout, view, live, budget, waves, now)
    result = _result(standing)
    if result is None:
        waves = _with_newcomers(standing, plan)
        standing = _Standing(rollout, view, live, budget, waves, now)
    started_at = before.started_at or _first_start(waves) or (now if view.in_work else None)
    blocked = () if result is not None else blockers_of(standing)
    return before.model_copy(
        update={
            "observed_generation": generation,
            "conditions": conditions.merged(
                before.conditions, _said(standing, result, blocked), generation=generation, now=now
            ),
            "phase": _phase(standing, result, started_at),
            "waves": waves,
            "budget": BudgetStatus(
                failures_used=budget.failures,
                failures_allowed=budget.allowed,
                slots_used=budget.slots_used,
                slots=budget.slots,
            ),
            "summary": f"{len(view.done)}/{view.size}",
            "started_at": started_at,
            "cloud": live.cloud if result is None else before.cloud,
            "break_glass": _glass(rollout, now),
            "finished_at": now if result is not None else None,
            "eta": None if result is not None else _eta(standing, started_at),
            "blocked_by": blocked,
            "next_action": None if result is not None else _next_action(standing, blocked),
            "result": result,
        }
    )


def _glass(rollout: Rollout, now: datetime) -> BreakGlassStatus | None:
    """Since when the calendar is ignored; written before it is relied on. Another reason begins anew."""
    wish, seen = rollout.spec.break_glass, rollout.status.break_glass
    if wish is None:
        return None
    return seen if seen is not None and seen.reason == wish.reason else BreakGlassStatus(reason=wish.reason, since=now)


def rolls_back(rollout: Rollout, budget: Budget, *, superseded: bool) -> bool:
    """The budget is spent and the policy wants the wave back, unless people have ended the rollout meanwhile."""
    wanted = rollout.spec.snapshot.strategy.on_budget_spent is OnBudgetSpent.ROLL_BACK
    return wanted and budget.spent is not None and not gates.is_over(rollout, superseded=superseded)


def to_return(rollout: Rollout, view: RolloutView, budget: Budget, *, superseded: bool) -> tuple[VMFacts, ...]:
    """The VMs of the wave in work that this rollout has patched, or had patched, and that are to go back to what they
    were."""
    if not rolls_back(rollout, budget, superseded=superseded):
        return ()
    wave = current_wave(rollout, view)
    changed = wave if wave is not None else view
    return can_go_back(rollout.metadata.name, (*changed.done, *changed.failed))


def _result(standing: _Standing) -> RolloutResult | None:
    """Nothing ends while a VM is in work: it is finished or rolled back first."""
    rollout, view, superseded = standing.rollout, standing.view, standing.live.superseded
    if view.in_work:
        return None
    if standing.budget.spent is not None:
        if standing.returning:
            return None
        wholly = view.returned and not _not_brought_back(view)
        return RolloutResult.ROLLED_BACK if wholly else RolloutResult.FAILED
    aborted = gates.is_over(rollout, superseded=False)
    if view.size and len(view.missing) == view.size:
        return RolloutResult.ABORTED if aborted else RolloutResult.SUPERSEDED
    soaked = all(wave.phase is WavePhase.DONE for wave in standing.waves)
    worked_off = _worked_off(view)
    if soaked and not view.unfinished and not view.skipped and not view.held:
        return worked_off
    if aborted:
        return RolloutResult.ABORTED
    if superseded:
        return RolloutResult.SUPERSEDED
    return None if view.unfinished or not soaked else worked_off


def _worked_off(view: RolloutView) -> RolloutResult:
    """Of VMs that are held now the plan is no longer true: the next one is made when they no longer are."""
    if view.failed or view.returned:
        return RolloutResult.FAILED
    return RolloutResult.SUPERSEDED if view.held else RolloutResult.SUCCEEDED


def _not_brought_back(view: RolloutView) -> tuple[VMFacts, ...]:
    return tuple(
        facts
        for facts in view.failed
        if facts.operation is not None
        and (facts.operation.takes_back or facts.operation.result is OperationResult.INCONSISTENT)
    )


def _phase(standing: _Standing, result: RolloutResult | None, started_at: datetime | None) -> RolloutPhase:
    if result is not None:
        return RolloutPhase.DONE
    if standing.returning and not _forward(standing):
        return RolloutPhase.ROLLING_BACK
    if soaking(standing.waves) is not None and not standing.view.in_work:
        return RolloutPhase.SOAKING
    return RolloutPhase.WAITING if started_at is None else RolloutPhase.RUNNING


def _forward(standing: _Standing) -> bool:
    return any(facts.order is not None and not facts.order.takes_back for facts in standing.view.in_work)


def _first_start(waves: Sequence[WaveStatus]) -> datetime | None:
    return min((wave.started_at for wave in waves if wave.started_at is not None), default=None)


# VMs that appear later


def _with_newcomers(standing: _Standing, plan: Plan) -> tuple[WaveStatus, ...]:
    """The last wave takes VMs that appeared after the plan was made. They are written down before they get work, and
    make another digest: who approved the former one did not speak of them."""
    waves, live = standing.waves, standing.live
    over = gates.is_over(standing.rollout, superseded=live.superseded) or standing.budget.spent is not None
    if not waves or over or waves[-1].phase is WavePhase.DONE:
        return waves
    last = waves[-1]
    known = {vm.name for vm in last.appended}
    new = [vm for vm in live.newcomers if vm.name not in known]
    room = APPENDED_LIMIT - len(last.appended)
    if not new:
        return waves
    appended = (*last.appended, *new[: max(0, room)])
    planned = next(wave for wave in plan.waves if wave.name == last.name)
    late = len(new) - max(0, room)
    told = f"{late} more VMs appeared after {APPENDED_LIMIT} were added: they wait for the next rollout"
    changed = last.model_copy(
        update={
            "appended": appended,
            "digest": digest_with(planned, appended, cloud_word(standing.rollout)),
            "message": told if late > 0 else last.message,
        }
    )
    return (*waves[:-1], changed)


# Why it waits, and for how long


def blockers_of(standing: _Standing) -> tuple[PolicyBlocker, ...]:
    """Everything that keeps it from starting more VMs now, the most lasting first; VMs in work do not count."""
    rollout, live = standing.rollout, standing.live
    found = [gates.person_gate(rollout, superseded=live.superseded)]
    if live.suspended is not None:
        found.append(gates.blocker(Reason.SUSPENDED, live.suspended))
    # Of a cloud that is unseen what was told before stands: to write it here, and the opposite after the first sweep,
    # would be all that an operator does that is ended again and again at its first write.
    found.append(gates.cloud_gate(rollout, live.cloud, unseen=False))
    found.append(gates.budget_gate(rollout, standing.view, standing.budget))
    soak = soaking(standing.waves)
    if soak is not None:
        found.append(gates.blocker(Reason.SOAKING, _soak_sentence(soak), until=soak.soak_until))
    wave = _to_start(standing)
    if wave is not None:
        found.append(gates.approval_gate(rollout, wave.name, live.approvals or {}))
    if (wave is not None and soak is None) or standing.returning:
        found.append(gates.calendar_gate(live.opening))
    if not any(found) and not standing.view.in_work:
        found.append(_held_back(standing))
    return tuple(each for each in found if each is not None)


_ENDS_BY_ITSELF = (
    Reason.NOT_OBSERVED,
    Reason.IN_WORK,
    Reason.WAITING_FOR_GROUP,
    Reason.WAITING_FOR_SLOT,
    Reason.WAITING_FOR_HOST,
    Reason.WAITING_FOR_WAVE,
    Reason.BACKUP_FIRST,
    Reason.PAIR_NOT_SEEN,
)


def _held_back(standing: _Standing) -> PolicyBlocker | None:
    """Nothing is in work, and a rule keeps a VM waiting for something that may never come: a sick peer, say."""
    held = standing.live.held_back or {}
    why = ((facts, held[facts.name]) for facts in standing.view.waiting if facts.name in held)
    return next(
        (
            PolicyBlocker(reason=each.reason, message=each.message, ref=f"SystemVM/{facts.name}")
            for facts, each in why
            if each.reason not in _ENDS_BY_ITSELF
        ),
        None,
    )


def _to_start(standing: _Standing) -> WaveStatus | None:
    """The wave whose VMs come next: the first that is not done and does not soak, if it has any left."""
    if standing.budget.spent is not None:
        return None
    left = {wave.name for wave in standing.view.waves if wave.waiting or wave.retrying}
    return next(
        (wave for wave in standing.waves if wave.name in left and wave.phase in (WavePhase.WAITING, WavePhase.RUNNING)),
        None,
    )


def _soak_sentence(wave: WaveStatus) -> str:
    return f"wave {wave.name} soaks" + (f"; {wave.message}" if wave.message else "")


def _next_action(standing: _Standing, blocked: Sequence[PolicyBlocker]) -> NextAction | None:
    """What happens next if nothing changes; None while VMs are in work and others follow them."""
    wave = _to_start(standing)
    soak = soaking(standing.waves)
    if any(each.reason in _UNTIL_SOMEBODY_ACTS for each in blocked):
        return None
    follows = f"start wave {wave.name} ({_left(standing, wave)} VMs)" if wave is not None else "end the rollout"
    if wave is not None and wave.phase is WavePhase.RUNNING:
        follows = f"go on with wave {wave.name} ({_left(standing, wave)} VMs left)"
    if soak is not None:
        return NextAction(at=soak.soak_until, what=f"{follows}, if wave {soak.name} has stayed well")
    for each in blocked:
        if each.reason in (Reason.WAITING_FOR_APPROVAL, Reason.REJECTED):
            return NextAction(what=f"{follows} once it is approved")
        if each.reason in gates.WAITING:
            return NextAction(at=each.until, what=follows)
    if _only_tries_again(standing):
        return _next_try(standing)
    return None


_UNTIL_SOMEBODY_ACTS = (
    Reason.PAUSED,
    Reason.SUSPENDED,
    Reason.ABORTED,
    Reason.SUPERSEDED,
    Reason.DELETING,
    Reason.CLOUD_CHANGED,
)


def _only_tries_again(standing: _Standing) -> bool:
    """Nothing else can happen before the time of the next try."""
    view, budget = standing.view, standing.budget
    return bool(view.retrying) and not view.in_work and (not view.waiting or budget.slots_used >= budget.slots)


def _next_try(standing: _Standing) -> NextAction | None:
    retry = standing.rollout.spec.snapshot.strategy.retry
    tries = [
        (at, f"try {facts.vm} again")
        if at > facts.moment
        else (gives_up_at(retry, facts.operation), f"give up on {facts.vm}, which does not answer")
        for facts in standing.view.retrying
        if facts.operation is not None and (at := retry_at(retry, facts.operation)) is not None
    ]
    if not tries:
        return None
    at, what = min(tries)
    return NextAction(at=at, what=what)


def _left(standing: _Standing, wave: WaveStatus) -> int:
    view = next(each for each in standing.view.waves if each.name == wave.name)
    return len(view.waiting) + len(view.retrying)


def _eta(standing: _Standing, started_at: datetime | None) -> datetime | None:
    """From what is stored alone, so that it moves only when a VM ended: the pace so far, and the soaks to come."""
    name, view = standing.rollout.metadata.name, standing.view
    ends = [
        facts.operation.finished_at
        for facts in (*view.done, *view.failed)
        if facts.operation is not None and facts.operation.rollout == name and facts.operation.finished_at is not None
    ]
    if not ends or started_at is None or standing.budget.spent is not None:
        return None
    last = max(ends)
    pace = (last - started_at) / len(ends)
    phases = {wave.name: wave for wave in standing.waves}
    soaks = timedelta(0)
    for spec in standing.rollout.spec.snapshot.strategy.waves:
        wave = phases.get(spec.name)
        if wave is not None and wave.size and wave.phase is not WavePhase.DONE:
            soaks += spec.soak
    return (last + pace * len(view.unfinished) + soaks).replace(microsecond=0)


def next_change(
    rollout: Rollout, status: RolloutStatus, view: RolloutView, live: Live, *, now: datetime
) -> datetime | None:
    """The next moment at which something changes by itself: a soak ends, a try is due, calendar or approvals change."""
    retry = rollout.spec.snapshot.strategy.retry
    moments = [wave.soak_until for wave in status.waves if wave.phase is WavePhase.SOAKING]
    tried = [facts.operation for facts in view.retrying if facts.operation is not None]
    moments += [moment for operation in tried for moment in (retry_at(retry, operation), gives_up_at(retry, operation))]
    if live.opening is not None:
        moments += [live.opening.next_open, live.opening.closes_at]
    if rollout.spec.break_glass is not None:
        moments.append(rollout.spec.break_glass.until)
    moments += [gate.until for gate in (live.approvals or {}).values()]
    return min((moment for moment in moments if moment is not None and moment > now), default=None)


# What it says


def _said(standing: _Standing, result: RolloutResult | None, blocked: Sequence[PolicyBlocker]) -> list[Wanted]:
    said = _changed(standing)
    budget = standing.budget
    said += [
        conditions.true(ConditionType.CLOUD_CHANGED, Reason.CLOUD_CHANGED, each.message)
        for each in blocked
        if each.reason == Reason.CLOUD_CHANGED
    ]
    if budget.spent is not None:
        said.append(conditions.true(ConditionType.BUDGET_SPENT, Reason.BUDGET_SPENT, budget.spent))
    if result is RolloutResult.SUCCEEDED:
        return [conditions.true(ConditionType.READY, Reason.SUCCEEDED, _progress(standing)), *said]
    if result is not None:
        return [*_ended_badly(standing, result), *said]
    reason, told = _why_unfinished(standing, blocked)
    said.append(conditions.false(ConditionType.READY, reason, told))
    if standing.view.in_work or reason not in gates.WAITING | _STANDING_STILL:
        said.append(conditions.true(ConditionType.RECONCILING, reason, told))
    for each in blocked:
        if each.reason in (Reason.WAITING_FOR_APPROVAL, Reason.REJECTED):
            said.append(conditions.true(ConditionType.WAITING_FOR_APPROVAL, Reason(each.reason), each.message))
        elif each.ref is not None and each.reason in gates.WAITING:
            said.append(conditions.true(ConditionType.WAITING_FOR_WINDOW, Reason(each.reason), each.message))
    return said


_STANDING_STILL = frozenset({Reason.SUSPENDED, Reason.ABORTED, Reason.SUPERSEDED, Reason.DELETING, Reason.VM_FAILED})


def _changed(standing: _Standing) -> list[Wanted]:
    if not standing.live.edited:
        return []
    parts = ", ".join(standing.live.edited)
    told = f"the policy was edited after this rollout began ({parts}): that counts for the next one"
    return [conditions.true(ConditionType.POLICY_CHANGED, Reason.POLICY_CHANGED, told)]


def _ended_badly(standing: _Standing, result: RolloutResult) -> list[Wanted]:
    view = standing.view
    if result is RolloutResult.FAILED:
        reason = (
            Reason.ROLLBACK_FAILED
            if any(f.operation and f.operation.takes_back for f in view.failed)
            else (Reason.VM_FAILED)
        )
    elif result is RolloutResult.SUPERSEDED and view.held and not standing.live.superseded:
        reason = Reason.VMS_HELD
    else:
        reason = Reason(str(result))
    told = failures_of(view.failed)
    if result is RolloutResult.ROLLED_BACK:
        told = f"{len(view.returned)} VMs went back to what they were: {told}"
    elif not told:
        told = f"{_progress(standing)}; it ended {result}"
    return [
        conditions.false(ConditionType.READY, reason, told),
        conditions.true(ConditionType.STALLED, reason, told),
    ]


def _why_unfinished(standing: _Standing, blocked: Sequence[PolicyBlocker]) -> tuple[Reason, str]:
    view = standing.view
    finishing = f"; {_named(view.in_work)} in work first" if view.in_work else ""
    lasting = next((each for each in blocked if each.reason in _UNTIL_SOMEBODY_ACTS), None)
    if standing.returning and lasting is None:
        told = f"{len(standing.returning)} VMs go back to what they were: {failures_of(view.failed)}"
        closed = gates.calendar_gate(standing.live.opening)
        if closed is not None:
            return Reason(closed.reason), f"{closed.message}: {told}{finishing}"
        return Reason.ROLLING_BACK, told + finishing
    if standing.budget.spent is not None and not standing.returning:
        return Reason.VM_FAILED, failures_of(view.failed) + finishing
    if lasting is not None:
        return Reason(lasting.reason), f"nothing new starts: {lasting.message}{finishing}"
    working = f"; in work: {_named(view.in_work)}" if view.in_work else ""
    if blocked:
        return Reason(blocked[0].reason), f"{blocked[0].message}: {_progress(standing)}{working}"
    if _only_tries_again(standing):
        return Reason.RETRYING, f"{_named(view.retrying)} will be tried again: {_progress(standing)}"
    return Reason.ROLLING_OUT, _progress(standing) + working


def _progress(standing: _Standing) -> str:
    view = standing.view
    rest = [
        f"{count} {what}"
        for count, what in (
            (len(view.failed), "failed"),
            (len(view.returned), "went back"),
            (len(view.skipped), "skipped (on hold or unreachable)"),
            (len(view.held), f"held ({_why_held(view)})"),
            (len(view.stuck), "left because a peer failed"),
            (len(view.missing), "gone"),
        )
        if count
    ]
    told = f"{len(view.done)} of {view.size} VMs at {short(standing.rollout.spec.revision)}"
    return "; ".join([told, *rest])


def _why_held(view: RolloutView) -> str:
    """Each reason once, with a VM that it holds."""
    first: dict[str, str] = {}
    for facts in view.held:
        first.setdefault(str(view.why_held[facts.name].reason), facts.vm)
    return ", ".join(f"{vm}: {reason}" for reason, vm in sorted(first.items()))


def _named(vms: Sequence[VMFacts]) -> str:
    names = ", ".join(facts.vm for facts in vms[:5])
    return names + (f" and {len(vms) - 5} more" if len(vms) > 5 else "")
