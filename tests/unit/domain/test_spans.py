"""The algebra of spans: what touches is one, what ends is over."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.domain.windows import allow, interval, schedule

from sysvm.domain.spans import INSTANT, Span, minus, spans, union

ZERO = datetime(2026, 6, 1, tzinfo=UTC)
LENGTH = 30


def span(start: int, end: int) -> Span:
    return Span(ZERO + timedelta(hours=start), ZERO + timedelta(hours=end))


def hours(found: list[Span]) -> set[int]:
    """The hours that are covered, one by one."""
    covered = {hour for hour in range(LENGTH) for one in found if one.start <= ZERO + timedelta(hours=hour) < one.end}
    assert sum(((one.end - one.start) for one in found), timedelta(0)) == timedelta(hours=len(covered))
    return covered


some_spans = st.lists(
    st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 6)).map(lambda t: span(t[0], min(t[0] + t[1], LENGTH))),
    max_size=6,
).map(sorted)


@given(st.lists(some_spans, max_size=4))
def test_a_union_covers_what_its_parts_cover_in_spans_that_do_not_touch(parts: list[list[Span]]) -> None:
    found = list(union(map(iter, parts)))
    assert hours(found) == {
        hour
        for part in parts
        for one in part
        for hour in range(LENGTH)
        if one.start <= span(hour, hour + 1).start < one.end
    }
    assert all(one.end < other.start for one, other in pairwise(found))


@given(some_spans, some_spans)
def test_what_is_left_is_allowed_and_not_frozen(allowed: list[Span], frozen: list[Span]) -> None:
    windows, freezes = list(union([iter(allowed)])), list(union([iter(frozen)]))
    left = list(minus(windows, freezes))
    assert hours(left) == hours(windows) - hours(freezes)
    assert left == sorted(left)


def test_a_window_that_ends_now_is_over_and_one_that_begins_now_is_open() -> None:
    nights = allow(schedule=schedule(start="22:00", duration="6h"))
    once = allow(interval=interval("2026-06-01T22:00:00Z", "2026-06-02T04:00:00Z"))
    start, end = datetime(2026, 6, 1, 22, tzinfo=UTC), datetime(2026, 6, 2, 4, tzinfo=UTC)
    for window in (nights, once):
        assert list(spans(window, start - INSTANT, start)) == []
        assert list(spans(window, start, start + INSTANT)) == [Span(start, end)]
        assert list(spans(window, end - INSTANT, end)) == [Span(start, end)]
        assert list(spans(window, end, end + INSTANT)) == []
