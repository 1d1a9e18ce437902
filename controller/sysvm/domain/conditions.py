"""Conditions as values: what a status wants to say, merged with what it said before.

A `lastTransitionTime` that moves without a transition makes every write a change and every change an event, so the rule
is applied in one place, to every kind.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.base import Condition, ConditionStatus
from sysvm.api.reasons import ConditionType, Reason

MESSAGE_LIMIT = 1024
"""Characters of a condition's message: a status must stay small however long the output of a failed command was."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A condition that should be there. Bad news that is over (Reconciling, Stalled, ...) is simply not wanted."""

    type: ConditionType
    status: ConditionStatus
    reason: Reason
    message: str = ""


def true(type_: ConditionType, reason: Reason, message: str = "") -> Wanted:
    return Wanted(type_, ConditionStatus.TRUE, reason, message)


def false(type_: ConditionType, reason: Reason, message: str = "") -> Wanted:
    return Wanted(type_, ConditionStatus.FALSE, reason, message)


def unknown(type_: ConditionType, reason: Reason, message: str = "") -> Wanted:
    return Wanted(type_, ConditionStatus.UNKNOWN, reason, message)


def bounded(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """The text, shortened in the middle if too long: the beginning names the VM, the end holds the last output."""
    if len(text) <= limit:
        return text
    cut = " [...] "
    head = (limit - len(cut)) // 2
    return text[:head] + cut + text[-(limit - len(cut) - head) :]


def merged(
    old: Sequence[Condition], wanted: Iterable[Wanted], *, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """Exactly the wanted conditions, in order of the types. `lastTransitionTime` moves only when the status does."""
    before = {condition.type: condition for condition in old}
    order = {str(type_): position for position, type_ in enumerate(ConditionType)}

    def made(want: Wanted) -> Condition:
        last = before.get(str(want.type))
        kept = last is not None and last.status is want.status
        return Condition(
            type=str(want.type),
            status=want.status,
            reason=str(want.reason),
            message=bounded(want.message),
            observed_generation=generation,
            last_transition_time=last.last_transition_time if last is not None and kept else now,
        )

    return tuple(sorted((made(want) for want in wanted), key=lambda condition: order[condition.type]))


def find(conditions: Sequence[Condition], type_: ConditionType) -> Condition | None:
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Sequence[Condition], type_: ConditionType) -> bool:
    condition = find(conditions, type_)
    return condition is not None and condition.status is ConditionStatus.TRUE
