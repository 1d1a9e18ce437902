"""The openings of maintenance windows as spans of time, and the algebra of spans.

Half-open, in UTC, ordered, and made on demand: who wants the next opening does not pay for those of two years.
"""

import heapq
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sysvm.api.window import MaintenanceWindow
from sysvm.domain.recurrence import ScheduleError, understood

HORIZON = timedelta(days=731)
"""So far ahead the next opening is looked for."""
BEGIN, END = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
INSTANT = timedelta(microseconds=1)
"""The smallest step of a datetime: `spans(window, now, now + INSTANT)` is what is open now."""


class Span(NamedTuple):
    """From `start` until just before `end`."""

    start: datetime
    end: datetime


def problem(window: MaintenanceWindow) -> str | None:
    """What is wrong with a window that the API server accepted; None if it can be computed."""
    spec = window.spec
    try:
        if spec.schedule is not None:
            understood(spec.schedule)
        elif spec.interval is None:
            return "it has neither a schedule nor an interval"
    except ScheduleError as error:
        return str(error)
    return None


def spans(window: MaintenanceWindow, after: datetime, before: datetime) -> Iterator[Span]:
    """When a window is open, in order of starts: all that end after `after` and start before `before`. They overlap
    where it lasts longer than its period. Nothing for a window that has a `problem`."""
    spec = window.spec
    if problem(window) is not None:
        return
    if spec.schedule is not None:
        length = spec.schedule.duration
        for start in understood(spec.schedule).starts(after - length + INSTANT, before):
            yield Span(start, start + length)
    elif spec.interval is not None and spec.interval.to > after and spec.interval.from_ < before:
        yield Span(spec.interval.from_, spec.interval.to)


def union(sources: Iterable[Iterator[Span]]) -> Iterator[Span]:
    """Spans that neither overlap nor touch, of sources that are each ordered by start."""
    current: Span | None = None
    for span in heapq.merge(*sources):
        if current is None:
            current = span
        elif span.start <= current.end:
            current = Span(current.start, max(current.end, span.end))
        else:
            yield current
            current = span
    if current is not None:
        yield current


def minus(allowed: Iterable[Span], frozen: Iterable[Span]) -> Iterator[Span]:
    """What is left of `allowed`; both as `union` gives them."""
    freezes = iter(frozen)
    freeze = next(freezes, None)
    for start, end in allowed:
        rest = start
        while freeze is not None and freeze.end <= rest:
            freeze = next(freezes, None)
        while freeze is not None and freeze.start < end:
            if rest < freeze.start:
                yield Span(rest, freeze.start)
            rest = freeze.end
            if rest >= end:
                break
            freeze = next(freezes, None)
        if rest < end:
            yield Span(rest, end)


def end_within(end: datetime, windows: Iterable[MaintenanceWindow], horizon: datetime) -> datetime | None:
    """`end` of a union that was computed up to `horizon`; None if that is where the computing ended, not the union."""
    if end < horizon or any(window.spec.interval is not None and window.spec.interval.to == end for window in windows):
        return end
    return None


def is_over(window: MaintenanceWindow, since: datetime) -> bool:
    """No more opening begins at `since` or later, however long one waits."""
    spec = window.spec
    if spec.schedule is None:
        return spec.interval is None or spec.interval.from_ < since
    recurrence = understood(spec.schedule)
    return recurrence.is_finite and next(recurrence.starts(since, END), None) is None
