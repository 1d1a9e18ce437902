"""The calendar against one that knows no rules: it walks every minute and looks at the clock on the wall.

A window opens at the first minute at which the local clock shows its time, or a later one, on a day that the calendar
on the wall marks. Nothing here knows recurrence rules, spans, offsets or folds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.domain.windows import allow, freeze, schedule

from sysvm.api.window import AtEnd, MaintenanceWindow
from sysvm.domain.calendar import openings

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
BEFORE, AFTER = 6, 7
"""Days that are walked before and after the day in question; no window lasts longer than the first."""
WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")

PLACES = (
    ("Europe/Amsterdam", date(2026, 3, 29), 2),
    ("Europe/Amsterdam", date(2026, 10, 25), 2),
    ("Europe/Amsterdam", date(2026, 12, 31), 0),
    ("America/New_York", date(2026, 3, 8), 2),
    ("America/New_York", date(2026, 11, 1), 1),
    ("Australia/Lord_Howe", date(2026, 4, 5), 1),
    ("Australia/Lord_Howe", date(2026, 10, 4), 2),
    ("Pacific/Apia", date(2011, 12, 30), 22),
    ("UTC", date(2028, 2, 29), 0),
)
"""Zone, a day, and the hour in which its clock is moved, if it is."""


@dataclass(frozen=True)
class Marks:
    """Which days are marked on the wall."""

    kind: str
    first: date
    days: frozenset[int]
    """Weekdays from 0, or days of the month; -1 is its last."""
    ordinal: int = 1
    """Of the weekday in its month; -1 is the last."""
    every: int = 1
    count: int | None = None
    until: date | None = None

    @property
    def rule(self) -> str:
        names = ",".join(WEEKDAYS[day] for day in sorted(self.days) if 0 <= day < 7)
        numbers = ",".join(map(str, sorted(self.days)))
        text = {
            "daily": "FREQ=DAILY",
            "weekly": f"FREQ=WEEKLY;BYDAY={names}",
            "monthly": f"FREQ=MONTHLY;BYMONTHDAY={numbers}",
            "nth": f"FREQ=MONTHLY;BYDAY={','.join(f'{self.ordinal}{name}' for name in names.split(','))}",
        }[self.kind]
        text += f";INTERVAL={self.every}" if self.every > 1 else ""
        text += f";COUNT={self.count}" if self.count is not None else ""
        return text + (f";UNTIL={self.until:%Y%m%d}" if self.until is not None else "")

    def marked(self, until: date) -> set[date]:
        found: list[date] = []
        day = self.first
        while day <= until and (self.until is None or day <= self.until):
            if self._falls(day) and self._in_turn(day) and (self.count is None or len(found) < self.count):
                found.append(day)
            day += DAY
        return set(found)

    def _falls(self, day: date) -> bool:
        match self.kind:
            case "daily":
                return True
            case "weekly":
                return day.weekday() in self.days
            case "monthly":
                return day.day in self.days or ((day + DAY).day == 1 and -1 in self.days)
            case _:
                nth = (day.day - 1) // 7 + 1 == self.ordinal
                last = (day + 7 * DAY).month != day.month and self.ordinal == -1
                return day.weekday() in self.days and (nth or last)

    def _in_turn(self, day: date) -> bool:
        match self.kind:
            case "daily":
                passed = (day - self.first).days
            case "weekly":
                monday = self.first - self.first.weekday() * DAY
                passed = (day - monday).days // 7
            case _:
                passed = (day.year - self.first.year) * 12 + day.month - self.first.month
        return passed % self.every == 0


@dataclass(frozen=True)
class Wish:
    """A window in the test's own words."""

    marks: Marks
    zone: str
    start: time
    minutes: int
    cutoff: int
    rolls_back: bool

    def window(self, name: str, *, deny: bool) -> MaintenanceWindow:
        begin, first = f"{self.start:%H:%M}", self.marks.first.isoformat()
        made = schedule(self.marks.rule, begin, f"{self.minutes}m", self.zone, first)
        if deny:
            return freeze(name, schedule=made)
        cutoff: dict[str, Any] = {"cutoff": f"{self.cutoff}m"} if self.cutoff else {}
        return allow(name, schedule=made, atEnd="RollBack" if self.rolls_back else "Finish", **cutoff)


def walk(wishes: list[Wish], begin: datetime, minutes: int) -> list[list[int]]:
    """For each wish the minutes, counted from `begin`, at which it opens."""
    clocks: dict[str, list[datetime]] = {}
    opened = []
    for wish in wishes:
        if wish.zone not in clocks:
            place = ZoneInfo(wish.zone)
            clocks[wish.zone] = [(begin + n * MINUTE).astimezone(place).replace(tzinfo=None) for n in range(minutes)]
        clock = clocks[wish.zone]
        due = sorted(wish.marks.marked(clock[-1].date()))
        waiting = [moment for moment in (datetime.combine(day, wish.start) for day in due) if moment > clock[0]]
        found = []
        for n, shown in enumerate(clock):
            while waiting and shown >= waiting[0]:
                found.append(n)
                waiting.pop(0)
        opened.append(found)
    return opened


class Oracle:
    """Every minute, one by one."""

    def __init__(self, wishes: list[Wish], freezes: list[Wish], begin: datetime, minutes: int) -> None:
        self.wishes = wishes
        starts = walk([*wishes, *freezes], begin, minutes)
        self.spans = [
            [(start, start + wish.minutes) for start in found] for wish, found in zip(wishes, starts, strict=False)
        ]
        self.on = [self._covered(spans, minutes) for spans in self.spans]
        frozen = [
            self._covered([(start, start + wish.minutes) for start in found], minutes)
            for wish, found in zip(freezes, starts[len(wishes) :], strict=True)
        ]
        self.allowed = [not wishes or any(on[n] for on in self.on) for n in range(minutes)]
        self.frozen = [any(on[n] for on in frozen) for n in range(minutes)]
        self.open = [a and not f for a, f in zip(self.allowed, self.frozen, strict=True)]
        self.minutes = minutes

    @staticmethod
    def _covered(spans: list[tuple[int, int]], minutes: int) -> list[bool]:
        covered = [False] * minutes
        for start, end in spans:
            for n in range(start, min(end, minutes)):
                covered[n] = True
        return covered

    def may_start(self, n: int) -> bool:
        if not self.open[n]:
            return False
        if not self.wishes:
            return True
        return any(
            on[n] and all(self.open[n : n + wish.cutoff + 1]) for on, wish in zip(self.on, self.wishes, strict=True)
        )

    def first(self, n: int, wanted: list[bool]) -> int | None:
        return next((m for m in range(n, self.minutes) if wanted[m]), None)

    def at_end(self, n: int) -> AtEnd | None:
        """What those say that end at minute `n`, None if nothing ends there."""
        asked = [
            wish.rolls_back for wish, spans in zip(self.wishes, self.spans, strict=True) for _, end in spans if end == n
        ]
        return (AtEnd.ROLL_BACK if any(asked) else AtEnd.FINISH) if asked else None


first_days = st.integers(-40, 5)
marks = st.one_of(
    st.builds(lambda n, every: ("daily", n, frozenset({0}), 1, every), first_days, st.integers(1, 4)),
    st.builds(
        lambda n, days, every: ("weekly", n, days, 1, every),
        first_days,
        st.frozensets(st.integers(0, 6), min_size=1),
        st.integers(1, 3),
    ),
    st.builds(
        lambda n, days, every: ("monthly", n, days, 1, every),
        first_days,
        st.frozensets(st.sampled_from([1, 2, 5, 8, 25, 28, 29, 30, 31, -1]), min_size=1),
        st.integers(1, 2),
    ),
    st.builds(
        lambda n, days, nth: ("nth", n, days, nth, 1),
        first_days,
        st.frozensets(st.integers(0, 6), min_size=1),
        st.sampled_from([1, 2, 4, 5, -1]),
    ),
)
ends = st.sampled_from([None, None, None, ("count", 1), ("count", 6), ("until", 0), ("until", 3)])
minutes_of_hour = st.sampled_from([0, 10, 15, 29, 30, 45, 59])


@st.composite
def wishes(draw: st.DrawFn, zone: str, day: date, hour: int) -> Wish:
    kind, offset, days, ordinal, every = draw(marks)
    ending = draw(ends)
    minutes = draw(st.sampled_from([1, 30, 60, 61, 360, 24 * 60, 25 * 60, 3 * 24 * 60]) | st.integers(1, 3 * 24 * 60))
    return Wish(
        marks=Marks(
            kind,
            day + offset * DAY,
            days,
            ordinal,
            every,
            count=ending[1] if ending is not None and ending[0] == "count" else None,
            until=day + ending[1] * DAY if ending is not None and ending[0] == "until" else None,
        ),
        zone=draw(st.sampled_from([zone, zone, zone, "UTC", "Asia/Kolkata"])),
        start=time(draw(st.sampled_from([hour, hour, 0, 3, 12, 23])), draw(minutes_of_hour)),
        minutes=minutes,
        cutoff=draw(st.sampled_from([0, 0, 1, 45, 90])) % minutes,
        rolls_back=draw(st.booleans()),
    )


@st.composite
def calendars(draw: st.DrawFn) -> tuple[date, list[Wish], list[Wish]]:
    zone, day, hour = draw(st.sampled_from(PLACES))
    return (
        day,
        draw(st.lists(wishes(zone, day, hour), max_size=3)),
        draw(st.lists(wishes(zone, day, hour), max_size=2)),
    )


@given(calendars(), st.lists(st.integers(0, 3 * 24 * 60), min_size=4, max_size=12))
def test_the_calendar_is_what_the_clock_on_the_wall_says(
    calendar: tuple[date, list[Wish], list[Wish]], moments: list[int]
) -> None:
    day, asked, denied = calendar
    begin = datetime.combine(day, time(), UTC) - BEFORE * DAY
    oracle = Oracle(asked, denied, begin, (BEFORE + AFTER) * 24 * 60)
    made = openings(
        [wish.window(f"w{n}", deny=False) for n, wish in enumerate(asked)],
        [wish.window(f"f{n}", deny=True) for n, wish in enumerate(denied)],
    )
    base = (BEFORE - 1) * 24 * 60
    looked = {base + n for n in moments}
    edges = {n for n in range(base, base + 3 * 24 * 60) if oracle.open[n] != oracle.open[n - 1]}
    looked |= {edge + step for edge in sorted(edges)[:6] for step in (-1, 0, 1)}
    can_start = [oracle.may_start(n) for n in range(oracle.minutes - 24 * 60)]
    for n in sorted(looked):
        check(oracle, can_start, made.at(begin + n * MINUTE), n, begin)


def check(oracle: Oracle, can_start: list[bool], said: Any, n: int, begin: datetime) -> None:
    """`can_start` ends a day before the walk does, so that every cutoff is inside."""
    assert (said.open, said.may_start) == (oracle.open[n], can_start[n]), n

    assert (said.closed_by is None) == said.may_start
    assert said.closed_by == expected_cause(oracle, n, can_start[n])

    closing = oracle.first(n, [not is_open for is_open in oracle.open])
    if not said.open:
        assert said.closes_at is None
    elif closing is not None:
        assert said.closes_at == begin + closing * MINUTE
        assert said.at_end == (oracle.at_end(closing) or AtEnd.FINISH)
    else:
        assert said.closes_at is None or said.closes_at >= begin + oracle.minutes * MINUTE

    starting = next((m for m in range(n, len(can_start)) if can_start[m]), None)
    if said.may_start:
        assert said.next_open is None
    elif starting is not None:
        assert said.next_open == begin + starting * MINUTE
    else:
        assert said.next_open is None or said.next_open >= begin + len(can_start) * MINUTE

    if not oracle.allowed[n]:
        last = next((m for m in range(n, 0, -1) if oracle.at_end(m) is not None), None)
        unseen = max((wish.minutes for wish in oracle.wishes), default=0)
        if last is not None and last > unseen:  # what began before the walk has ended before
            assert said.at_end == oracle.at_end(last)
    elif not said.open:
        assert said.at_end is AtEnd.FINISH


def expected_cause(oracle: Oracle, n: int, may_start: bool) -> str | None:
    if may_start:
        return None
    if oracle.frozen[n]:
        return "freeze"
    return "window" if not oracle.allowed[n] else "cutoff"
