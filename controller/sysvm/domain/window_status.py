"""What a MaintenanceWindow says: whether it is open, when that changes, and what is wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from sysvm.api.base import REQUESTED_AT_ANNOTATION, format_time
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.window import Effect, MaintenanceWindow, MaintenanceWindowStatus
from sysvm.domain import conditions
from sysvm.domain.conditions import Wanted
from sysvm.domain.spans import HORIZON, Span, end_within, is_over, problem, spans, union


@dataclass(frozen=True, slots=True)
class WindowReport:
    """The calendar of one window at one moment."""

    status: MaintenanceWindowStatus
    edge: datetime | None
    """When something changes next: it opens, closes, or its cutoff begins. None: not within two years."""


def report(window: MaintenanceWindow, *, now: datetime) -> WindowReport:
    """The window alone: neither other windows nor freezes count."""
    horizon = now + HORIZON
    upcoming = list(islice(union([spans(window, now, horizon)]), 2))
    is_open = bool(upcoming) and upcoming[0].start <= now
    status = MaintenanceWindowStatus(
        observed_generation=window.metadata.generation,
        last_handled_reconcile_at=window.metadata.annotations.get(REQUESTED_AT_ANNOTATION),
        open=is_open if problem(window) is None else None,
        next_open=next((span.start for span in upcoming if span.start > now), None),
        next_close=end_within(upcoming[0].end, [window], horizon) if upcoming else None,
    )
    said = conditions.merged(
        window.status.conditions,
        _says(window, status, horizon),
        generation=window.metadata.generation,
        now=now,
    )
    return WindowReport(status.model_copy(update={"conditions": said}), _edge(window, upcoming, now, horizon))


def _edge(window: MaintenanceWindow, upcoming: Sequence[Span], now: datetime, horizon: datetime) -> datetime | None:
    edges = [edge for span in upcoming for edge in (span.start, span.end - window.spec.cut, span.end)]
    return min((edge for edge in edges if now < edge < horizon), default=None)


def _says(window: MaintenanceWindow, status: MaintenanceWindowStatus, horizon: datetime) -> list[Wanted]:
    wrong = problem(window)
    if wrong is not None:
        told = f"{wrong}: policies that refer to it or are frozen by it start nothing"
        return [
            conditions.false(ConditionType.READY, Reason.INVALID_SCHEDULE, told),
            conditions.true(ConditionType.STALLED, Reason.INVALID_SCHEDULE, told),
        ]
    reason, told = _where(window, status, horizon)
    return [conditions.true(ConditionType.READY, reason, told)]


def _where(window: MaintenanceWindow, status: MaintenanceWindowStatus, horizon: datetime) -> tuple[Reason, str]:
    is_freeze = window.spec.effect is Effect.DENY
    if status.open:
        if status.next_close is not None:
            verb = "frozen" if is_freeze else "open"
            return Reason.OPEN, f"{verb} until {format_time(status.next_close)}"
        if is_freeze:
            return Reason.NEVER_ENDS, "a freeze without an end within two years: it begins again before it is over"
        return Reason.OPEN, "open, without an end within two years"
    verb = "freezes" if is_freeze else "opens"
    if status.next_open is not None:
        return Reason.CLOSED, f"{verb} at {format_time(status.next_open)}"
    if is_over(window, horizon):
        return Reason.OVER, f"never {verb} again"
    return Reason.CLOSED, f"{verb} no more within two years"
