"""How much may go wrong before a rollout takes no more: the third of the four steps.

A VM that failed counts until its rollout has ended. It also goes on counting against maxUnavailable, so failed VMs can
fill that: then nothing could ever proceed, and instead of a silent wait the budget counts as spent.

A call to the management server that was not made, because its cloud was not ready for it in time, changed nothing and
says nothing about the release: such a VM has failed, and the rollout with it in the end, but it uses up no budget.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.operation import OperationResult
from sysvm.api.reasons import ConditionType
from sysvm.api.rollout import Rollout
from sysvm.domain import conditions
from sysvm.domain.facts import VMFacts
from sysvm.domain.limits import rounded_down
from sysvm.domain.members import Buckets, RolloutView, never_called
from sysvm.domain.planner import Plan


@dataclass(frozen=True, slots=True)
class Budget:
    """What was used of what, and whether that is all."""

    failures: int
    allowed: int
    """So many may fail in all before the rollout takes no more."""
    slots_used: int
    slots: int
    spent: str | None = None
    """Which limit was reached, as a sentence; None: there is something left."""


def slots_of(rollout: Rollout, plan: Plan) -> int:
    """maxUnavailable as a number: a percentage is rounded down, at least 1."""
    return rounded_down(rollout.spec.snapshot.strategy.max_unavailable, plan.applicable)


def holding_slots(rollout: str, view: RolloutView) -> frozenset[str]:
    """SystemVM names of this rollout that count against maxUnavailable: in work, failed, or between two tries."""
    again = (facts for facts in view.waiting if facts.operation_in(rollout) is not None)
    return frozenset(facts.name for facts in (*view.in_work, *counted(rollout, view), *view.retrying, *again))


def counted(rollout: str, bucket: Buckets) -> tuple[VMFacts, ...]:
    """The failed VMs that the budget is for."""
    return tuple(
        facts
        for facts in bucket.failed
        if (operation := facts.operation_in(rollout)) is None or not never_called(operation)
    )


def budget_of(rollout: Rollout, plan: Plan, view: RolloutView) -> Budget:
    """Once spent, always spent: the condition BudgetSpent in the stored status stands, whatever VMs say later."""
    strategy = rollout.spec.snapshot.strategy
    limits = strategy.failure_budget
    total = rounded_down(limits.total, view.size) if limits.total is not None else None
    slots = slots_of(rollout, plan)
    stored = conditions.find(rollout.status.conditions, ConditionType.BUDGET_SPENT)
    failures = len(counted(rollout.metadata.name, view))
    if stored is not None:
        spent: str | None = stored.message
    elif total is not None and failures >= total:
        spent = f"failureBudget.total {limits.total}: {failures} of {view.size} VMs failed"
    else:
        spent = (
            _spent_in_a_wave(rollout, view) or _spent_in_a_row(rollout, view) or _never_proceeds(rollout, view, slots)
        )
    return Budget(
        failures=failures,
        allowed=_allowed(rollout, view, total, slots),
        slots_used=len(holding_slots(rollout.metadata.name, view)),
        slots=slots,
        spent=spent,
    )


def _allowed(rollout: Rollout, view: RolloutView, total: int | None, slots: int) -> int:
    """As many as all limits together let fail, each wave using up its own."""
    limit = rollout.spec.snapshot.strategy.failure_budget.per_wave
    in_waves = sum(rounded_down(limit, wave.size) - 1 for wave in view.waves if wave.size)
    return min(in_waves, slots - 1, *([total - 1] if total is not None else []))


def _spent_in_a_wave(rollout: Rollout, view: RolloutView) -> str | None:
    limit = rollout.spec.snapshot.strategy.failure_budget.per_wave
    for wave in view.waves:
        failures = len(counted(rollout.metadata.name, wave))
        if failures and failures >= rounded_down(limit, wave.size):
            told = f"{failures} of {wave.size} VMs of wave {wave.name} failed"
            return f"failureBudget.perWave {limit}: {told}"
    return None


def _spent_in_a_row(rollout: Rollout, view: RolloutView) -> str | None:
    limit = rollout.spec.snapshot.strategy.failure_budget.consecutive
    if limit is None or longest_row(rollout.metadata.name, (*view.done, *counted(rollout.metadata.name, view))) < limit:
        return None
    return f"failureBudget.consecutive {limit}: so many VMs failed one after the other"


def _never_proceeds(rollout: Rollout, view: RolloutView, slots: int) -> str | None:
    failures = len(counted(rollout.metadata.name, view))
    newcomers = any(facts.operation_in(rollout.metadata.name) is None for facts in view.waiting)
    if failures < slots or not newcomers:
        return None
    limit = rollout.spec.snapshot.strategy.max_unavailable
    return f"can never proceed: {failures} failed VMs hold all {slots} places of maxUnavailable {limit}"


def longest_row(rollout: str, ended: Iterable[VMFacts]) -> int:
    """Most failures without a success between them, in the order in which the operations of a rollout ended."""
    results: list[tuple[datetime, str, bool]] = []
    for facts in ended:
        operation = facts.operation_in(rollout)
        if operation is not None and operation.finished_at is not None:
            results.append((operation.finished_at, facts.name, operation.result is not OperationResult.SUCCEEDED))
    longest = row = 0
    for _, _, failed in sorted(results):
        row = row + 1 if failed else 0
        longest = max(longest, row)
    return longest
