"""A rollout's members sorted into buckets, what its status says of them, and when a new rollout may begin."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.base import IntOrPercent
from sysvm.api.policy import LastRollout, PatchPolicySpec
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.rollout import (
    BudgetStatus,
    DesiredState,
    Rollout,
    RolloutCause,
    RolloutPhase,
    RolloutResult,
    RolloutStatus,
    WaveStatus,
)
from sysvm.api.systemvm import OperationResult
from sysvm.domain import conditions
from sysvm.domain.conditions import Wanted
from sysvm.domain.drift import drift_of
from sysvm.domain.facts import VMFacts, short
from sysvm.domain.failure import failures_of
from sysvm.domain.limits import rounded_down
from sysvm.domain.planner import Plan

FAILURES_ALLOWED = 0
"""The first VM that fails ends its rollout."""


@dataclass(frozen=True, slots=True)
class RolloutView:
    """The members of one rollout, each in exactly one bucket, in the order of the plan."""

    waiting: tuple[VMFacts, ...] = ()
    """Differ, and could be taken."""
    in_work: tuple[VMFacts, ...] = ()
    done: tuple[VMFacts, ...] = ()
    """Their operation in this rollout succeeded, or they are at the revision anyway."""
    failed: tuple[VMFacts, ...] = ()
    """Their operation in this rollout did not succeed."""
    skipped: tuple[VMFacts, ...] = ()
    """Unreachable, on hold, inconsistent or going away: taken after all if that ends while the rollout runs."""
    missing: tuple[str, ...] = ()
    """SystemVM names that are no more, or are another VM (uid) now."""

    @property
    def size(self) -> int:
        return (
            len(self.waiting)
            + len(self.in_work)
            + len(self.done)
            + len(self.failed)
            + len(self.skipped)
            + len(self.missing)
        )


def classify(rollout: Rollout, plan: Plan, vms: Mapping[str, VMFacts]) -> RolloutView:
    """Sorts the members of the plan. `vms`: SystemVM name -> facts, of the endpoint."""
    buckets: dict[str, list[VMFacts]] = {"waiting": [], "in_work": [], "done": [], "failed": [], "skipped": []}
    missing: list[str] = []
    uids = {entry.name: entry.uid for entry in plan.entries}
    for name in plan.members:
        facts = vms.get(name)
        if facts is None or facts.uid != uids[name]:
            missing.append(name)
        else:
            buckets[_bucket(rollout.metadata.name, plan, facts)].append(facts)
    return RolloutView(**{bucket: tuple(members) for bucket, members in buckets.items()}, missing=tuple(missing))


def _bucket(rollout: str, plan: Plan, facts: VMFacts) -> str:
    if facts.in_work and facts.order is not None and facts.order.rollout == rollout:
        return "in_work"
    result = facts.result_in(rollout)
    if result is not None:
        return "done" if result is OperationResult.SUCCEEDED else "failed"
    if drift_of(facts, plan.release).converged:
        return "done"
    if facts.hold or facts.unreachable or facts.inconsistent or facts.deleting:
        return "skipped"
    return "waiting"


def slots(max_unavailable: IntOrPercent, applicable: int) -> int:
    """maxUnavailable as a number: a percentage is rounded down, at least 1."""
    return rounded_down(max_unavailable, applicable)


def outcome(
    rollout: Rollout,
    plan: Plan,
    view: RolloutView,
    *,
    now: datetime,
    superseded: bool = False,
    suspended: str | None = None,
) -> RolloutStatus:
    """The rollout's status.

    `superseded`: the policy now wants something else (another revision, or it is gone): nothing new starts and it ends
    once nothing is in work. `suspended`: the sentence why nothing starts now (policy or endpoint suspended, Observe).
    A result once given stays.
    """
    before, generation = rollout.status, rollout.metadata.generation
    if before.result is not None:
        kept = tuple(
            condition.model_copy(update={"observed_generation": generation}) for condition in before.conditions
        )
        return before.model_copy(update={"observed_generation": generation, "conditions": kept})
    started_at = before.started_at or _first_start(rollout, view, now)
    result = _result(rollout, view, superseded=superseded)
    return RolloutStatus(
        observed_generation=generation,
        conditions=conditions.merged(
            before.conditions,
            _said(rollout, view, result, superseded=superseded, suspended=suspended),
            generation=generation,
            now=now,
        ),
        last_handled_reconcile_at=before.last_handled_reconcile_at,
        phase=_phase(result, started_at),
        waves=_waves(plan, view),
        budget=BudgetStatus(
            failures_used=len(view.failed),
            failures_allowed=FAILURES_ALLOWED,
            slots_used=len(view.in_work) + len(view.failed),
            slots=slots(rollout.spec.snapshot.strategy.max_unavailable, plan.applicable),
        ),
        summary=f"{len(view.done)}/{view.size}",
        started_at=started_at,
        finished_at=now if result is not None else None,
        result=result,
    )


def _result(rollout: Rollout, view: RolloutView, *, superseded: bool) -> RolloutResult | None:
    """Nothing ends while a VM is in work: it is finished or rolled back first."""
    if view.in_work:
        return None
    if len(view.failed) > FAILURES_ALLOWED:
        return RolloutResult.FAILED
    if view.size and len(view.missing) == view.size:
        aborted = rollout.spec.state is DesiredState.ABORTED or rollout.metadata.deletion_timestamp is not None
        return RolloutResult.ABORTED if aborted else RolloutResult.SUPERSEDED
    if not view.waiting and not view.skipped:
        return RolloutResult.SUCCEEDED
    if rollout.spec.state is DesiredState.ABORTED or rollout.metadata.deletion_timestamp is not None:
        return RolloutResult.ABORTED
    if superseded:
        return RolloutResult.SUPERSEDED
    return None if view.waiting else RolloutResult.SUCCEEDED


def _phase(result: RolloutResult | None, started_at: datetime | None) -> RolloutPhase:
    if result is not None:
        return RolloutPhase.DONE
    return RolloutPhase.WAITING if started_at is None else RolloutPhase.RUNNING


def _first_start(rollout: Rollout, view: RolloutView, now: datetime) -> datetime | None:
    name = rollout.metadata.name
    begun = [
        facts.operation.started_at
        for facts in (*view.in_work, *view.done, *view.failed)
        if facts.operation is not None and facts.operation.rollout == name
    ]
    return min(begun) if begun else (now if view.in_work else None)


def _waves(plan: Plan, view: RolloutView) -> tuple[WaveStatus, ...]:
    def count(bucket: Iterable[VMFacts], members: frozenset[str]) -> int:
        return sum(facts.name in members for facts in bucket)

    return tuple(
        WaveStatus(
            name=wave.name,
            digest=wave.digest,
            size=len(wave.members),
            done=count(view.done, members),
            in_work=count(view.in_work, members),
            failed=count(view.failed, members),
            skipped=count(view.skipped, members) + sum(name in members for name in view.missing),
        )
        for wave in plan.waves
        for members in (frozenset(wave.members),)
    )


def _said(
    rollout: Rollout, view: RolloutView, result: RolloutResult | None, *, superseded: bool, suspended: str | None
) -> list[Wanted]:
    if result is RolloutResult.SUCCEEDED:
        return [conditions.true(ConditionType.READY, Reason.SUCCEEDED, _progress(rollout, view))]
    if result is not None:
        reason = Reason.VM_FAILED if result is RolloutResult.FAILED else Reason(str(result))
        told = failures_of(view.failed) or f"{_progress(rollout, view)}; it ended {result}"
        return [
            conditions.false(ConditionType.READY, reason, told),
            conditions.true(ConditionType.STALLED, reason, told),
        ]
    reason, told = _why_unfinished(rollout, view, superseded=superseded, suspended=suspended)
    said = [conditions.false(ConditionType.READY, reason, told)]
    if view.in_work or reason is Reason.ROLLING_OUT:
        said.append(conditions.true(ConditionType.RECONCILING, reason, told))
    return said


def _why_unfinished(
    rollout: Rollout, view: RolloutView, *, superseded: bool, suspended: str | None
) -> tuple[Reason, str]:
    finishing = f"; {_named(view.in_work)} in work first" if view.in_work else ""
    if len(view.failed) > FAILURES_ALLOWED:
        return Reason.VM_FAILED, failures_of(view.failed) + finishing
    if rollout.metadata.deletion_timestamp is not None:
        return Reason.DELETING, f"nothing new starts because the rollout is being deleted{finishing}"
    if rollout.spec.state is DesiredState.ABORTED:
        return Reason.ABORTED, f"nothing new starts: spec.state is Aborted{finishing}"
    if superseded:
        return Reason.SUPERSEDED, f"nothing new starts: the policy wants something else by now{finishing}"
    if rollout.spec.state is DesiredState.PAUSED:
        return Reason.PAUSED, f"nothing new starts: spec.state is Paused{finishing}"
    if suspended is not None:
        return Reason.SUSPENDED, f"nothing new starts: {suspended}{finishing}"
    working = f"; in work: {_named(view.in_work)}" if view.in_work else ""
    return Reason.ROLLING_OUT, _progress(rollout, view) + working


def _progress(rollout: Rollout, view: RolloutView) -> str:
    rest = [
        f"{count} {what}"
        for count, what in (
            (len(view.failed), "failed"),
            (len(view.skipped), "skipped (on hold or unreachable)"),
            (len(view.missing), "gone"),
        )
        if count
    ]
    told = f"{len(view.done)} of {view.size} VMs at {short(rollout.spec.revision)}"
    return "; ".join([told, *rest])


def _named(vms: Sequence[VMFacts]) -> str:
    names = ", ".join(facts.vm for facts in vms[:5])
    return names + (f" and {len(vms) - 5} more" if len(vms) > 5 else "")


def spec_digest(spec: PatchPolicySpec) -> str:
    """`sha256:...` of what may allow another try of a failed revision: the spec without suspend, historyLimit and
    readiness, which change nothing on a VM. retryAt is in it."""
    said = {field: value for field, value in spec.to_dict().items() if field not in _WITHOUT_EFFECT_ON_VMS}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


_WITHOUT_EFFECT_ON_VMS = frozenset({"suspend", "historyLimit", "readiness"})


@dataclass(frozen=True, slots=True)
class Start:
    """Whether a rollout toward a revision may begin."""

    allowed: bool
    cause: RolloutCause = RolloutCause.NEW_REVISION
    reason: Reason = Reason.PLAN_COMPUTED
    message: str = ""
    running: bool = False
    """The last rollout has no result yet: look after that one first (supersede it if its revision is another)."""


def may_start(last: LastRollout | None, revision: str, digest: str) -> Start:
    """No way back by accident: a revision whose last rollout ended Failed, Aborted or was deleted is not tried again
    until the policy's spec changes (`digest` = `spec_digest` now), retryAt included, or the revision does.

    After Succeeded, Superseded or NotNeeded another rollout of the same revision may begin: for VMs that are new, or
    answer again.
    """
    if last is None:
        return Start(allowed=True)
    if not last.result:
        return Start(
            allowed=False, running=True, reason=Reason.ROLLING_OUT, message=f"rollout {last.name} has not ended yet"
        )
    if last.revision != revision or last.result in _NO_FAILURE:
        return Start(allowed=True)
    if last.spec_digest != digest:
        return Start(allowed=True, cause=RolloutCause.RETRY)
    ended = "was deleted" if last.result == Reason.ROLLOUT_DELETED else f"ended {last.result}"
    return Start(
        allowed=False,
        reason=Reason.NO_WAY_BACK,
        message=f"{short(revision)} is not tried again by itself: rollout {last.name} {ended}. "
        "Set spec.retryAt, change the policy, or declare another release",
    )


_NO_FAILURE = (RolloutResult.SUCCEEDED, RolloutResult.SUPERSEDED, Reason.NOT_NEEDED)


def finished_to_prune(rollouts: Sequence[Rollout], limit: int) -> tuple[Rollout, ...]:
    """The oldest finished rollouts of a policy beyond `limit`; never one that runs."""
    ended = sorted(
        (rollout for rollout in rollouts if rollout.status.result is not None),
        key=lambda rollout: (rollout.spec.number, rollout.metadata.name),
    )
    return tuple(ended[: max(0, len(ended) - limit)])
