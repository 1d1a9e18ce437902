"""On which days a schedule falls, and at which moments it opens.

The rule is read on the calendar of the wall, without a zone, because that is how people mean it; the zone then turns
each day into a moment. dateutil knows RFC 5545, but looks for the next day until the year 9999: a rule that falls on
none would keep it busy for seconds, and so would one that counts from long ago. So dateutil is only asked for rules
that certainly fall on some day, year by year, and INTERVAL, COUNT and UNTIL are applied to its answers here.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from zoneinfo import ZoneInfo

from dateutil.rrule import rrulestr

from sysvm.api.window import DAY_PARTS, FIRST_YEAR, FREQUENCIES, LAST_YEAR, RULE_PARTS, Schedule

MOST = 1000
"""Largest INTERVAL and COUNT."""
_NUMBERED = {"BYMONTH": 12, "BYMONTHDAY": 31, "BYYEARDAY": 366, "BYWEEKNO": 53, "BYSETPOS": 366}
"""Largest number of each part; dateutil fails over some that are not in a calendar."""
_WEEKDAYS = ("MO", "TU", "WE", "TH", "FR", "SA", "SU")
_LAST_CYCLE = date(9972, 1, 1)
"""The last 28 years that dateutil knows. 28 years hold every kind of year (first weekday, leap or not), so a rule that
falls on no day of these falls on none; and dateutil's search ends with them."""
_UNTIL = re.compile(r"(\d{4})(\d{2})(\d{2})(?:T(\d{2})(\d{2})(\d{2})(Z?))?")
_DAY = timedelta(days=1)


class ScheduleError(ValueError):
    """A schedule that the API server takes and no calendar can compute; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Recurrence:
    """A schedule, understood."""

    rule: str
    """For dateutil: without INTERVAL, COUNT and UNTIL, with the days and the first day of the week spelled out."""
    frequency: str
    week_start: int
    """0 is Monday."""
    interval: int
    count: int | None
    first: date
    last: datetime | None
    """Local time of UNTIL; nothing begins later."""
    start: time
    zone: ZoneInfo
    is_finite: bool
    """COUNT or UNTIL ends it."""

    def starts(self, after: datetime, before: datetime) -> Iterator[datetime]:
        """Moments at which it opens, in order, with `after <= moment < before`. UTC."""
        for year in range(max(self.first.year, after.year - 1), min(self._last_year, before.year + 1) + 1):
            for moment in _moments(self, year):
                if moment >= before:
                    return
                if moment >= after:
                    yield moment

    @property
    def _last_year(self) -> int:
        if self.count is not None:
            days = _counted(self)
            return days[-1].year if days else self.first.year
        return LAST_YEAR if self.last is None else min(LAST_YEAR, self.last.year)


def understood(schedule: Schedule) -> Recurrence:
    """Reads a schedule. Raises ScheduleError."""
    found = _tried(schedule)
    if isinstance(found, str):
        raise ScheduleError(found)
    return found


@lru_cache(maxsize=256)
def _tried(schedule: Schedule) -> Recurrence | str:
    """The recurrence, or what is wrong: that a rule falls on no day takes the longest to find out."""
    try:
        return _read(schedule)
    except ScheduleError as error:
        return str(error)


def _read(schedule: Schedule) -> Recurrence:
    parts = _parts(schedule.rrule)
    zone = _zone(schedule.time_zone)
    frequency = parts["FREQ"]
    interval = _number(parts, "INTERVAL") or 1
    count = _number(parts, "COUNT")
    if count is not None and "UNTIL" in parts:
        raise ScheduleError("COUNT and UNTIL exclude each other")
    if schedule.start_date is None and (interval > 1 or count is not None):
        raise ScheduleError("a rule with INTERVAL or COUNT needs startDate")
    asked = {name: text for name, text in parts.items() if name not in ("INTERVAL", "COUNT", "UNTIL")}
    asked = {"WKST": "MO", **asked, **_implied(asked, schedule.start_date)}
    if asked["WKST"] not in _WEEKDAYS:
        raise ScheduleError(f"WKST={asked['WKST']} is no day of the week")
    _check_days(asked)
    hours, minutes = schedule.start.split(":")
    found = Recurrence(
        rule=";".join(f"{name}={text}" for name, text in asked.items()),
        frequency=frequency,
        week_start=_WEEKDAYS.index(asked["WKST"]),
        interval=interval,
        count=count,
        first=schedule.start_date or date(FIRST_YEAR, 1, 1),
        last=_until(parts["UNTIL"], zone) if "UNTIL" in parts else None,
        start=time(int(hours), int(minutes)),
        zone=zone,
        is_finite=count is not None or "UNTIL" in parts,
    )
    if next(_matching(found, _LAST_CYCLE), None) is None:
        raise ScheduleError(f"{schedule.rrule} never falls on any day")
    return found


def _parts(text: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for part in text.split(";"):
        name, _, value = part.partition("=")
        if name not in RULE_PARTS or not value:
            raise ScheduleError(f"{part} is no part of a rule of days")
        if name in parts:
            raise ScheduleError(f"{name} is there twice")
        parts[name] = value
    if parts.get("FREQ") not in FREQUENCIES:
        raise ScheduleError(f"FREQ must be one of {', '.join(FREQUENCIES)}")
    return parts


def _number(parts: dict[str, str], name: str) -> int | None:
    if name not in parts:
        return None
    if not re.fullmatch("[0-9]{1,4}", parts[name]) or not 1 <= int(parts[name]) <= MOST:
        raise ScheduleError(f"{name}={parts[name]} must be a number from 1 to {MOST}")
    return int(parts[name])


def _check_days(asked: dict[str, str]) -> None:
    for part, largest in _NUMBERED.items():
        for text in asked[part].split(",") if part in asked else ():
            number = int(text) if re.fullmatch("[+-]?[0-9]{1,3}", text) else 0
            if not 1 <= abs(number) <= largest or (part == "BYMONTH" and number < 0):
                raise ScheduleError(f"{part}={text} is in no calendar")
    for text in asked["BYDAY"].split(",") if "BYDAY" in asked else ():
        match = re.fullmatch("([+-]?[0-9]{1,2})?([A-Z]{2})", text)
        if match is None or match[2] not in _WEEKDAYS or (match[1] is not None and not 1 <= abs(int(match[1])) <= 53):
            raise ScheduleError(f"BYDAY={text} is in no calendar")
        if match[1] is not None and asked["FREQ"] in ("DAILY", "WEEKLY"):
            raise ScheduleError(f"BYDAY={text} numbers a weekday: that needs FREQ=MONTHLY or FREQ=YEARLY")


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:  # a folder of the database is an OSError
        raise ScheduleError(f"time zone {name} is not known here") from error


def _until(text: str, zone: ZoneInfo) -> datetime:
    """The last local time. A day alone is meant as a whole."""
    match = _UNTIL.fullmatch(text)
    if match is None:
        raise ScheduleError(f"UNTIL={text} must be a day such as 20261231, or a time such as 20261231T220000")
    *numbers, utc = match.groups()
    try:
        year, month, day, *clock = (int(number) for number in numbers if number is not None)
        last = datetime(year, month, day, *(clock or (23, 59, 59)))  # noqa: DTZ001  # local time
        return last.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None) if utc else last
    except (ValueError, OverflowError) as error:
        raise ScheduleError(f"UNTIL={text} is no time of the calendar") from error


def _implied(asked: dict[str, str], start: date | None) -> dict[str, str]:
    """A rule that names no days falls on the same day as its first one (RFC 5545, 3.3.10)."""
    if asked["FREQ"] == "DAILY" or any(part in asked for part in DAY_PARTS):
        return {}
    if start is None:
        raise ScheduleError("a rule that names no days needs startDate")
    if asked["FREQ"] == "WEEKLY":
        return {"BYDAY": _WEEKDAYS[start.weekday()]}
    if asked["FREQ"] == "MONTHLY" or "BYMONTH" in asked:
        return {"BYMONTHDAY": str(start.day)}
    return {"BYMONTH": str(start.month), "BYMONTHDAY": str(start.day)}


def _matching(recurrence: Recurrence, since: date) -> Iterator[date]:
    """The days of the rule from `since` on, before INTERVAL, COUNT and UNTIL. Raises ScheduleError."""
    # BYSETPOS picks from whole weeks, months and years, so the search begins with a whole one.
    begin = {
        "WEEKLY": since - (since.weekday() - recurrence.week_start) % 7 * _DAY,
        "MONTHLY": since.replace(day=1),
        "YEARLY": since.replace(month=1, day=1),
    }.get(recurrence.frequency, since)
    try:
        found = rrulestr(recurrence.rule, dtstart=datetime.combine(begin, time()))
    except ValueError as error:
        raise ScheduleError(f"the rule cannot be computed: {error}") from error
    return (day for day in (moment.date() for moment in found) if day >= since)


def _on_grid(recurrence: Recurrence) -> Callable[[date], bool]:
    """Whether INTERVAL leaves a day in: periods are counted from the one that holds the first day."""

    def period(day: date) -> int:
        match recurrence.frequency:
            case "DAILY":
                return day.toordinal()
            case "WEEKLY":
                return (day.toordinal() - 1 - recurrence.week_start) // 7
            case "MONTHLY":
                return day.year * 12 + day.month
            case _:
                return day.year

    begun = period(recurrence.first)
    return lambda day: (period(day) - begun) % recurrence.interval == 0


@lru_cache(maxsize=256)
def _counted(recurrence: Recurrence) -> tuple[date, ...]:
    """All days of a rule with COUNT."""
    days = takewhile(lambda day: day.year <= LAST_YEAR, _matching(recurrence, recurrence.first))
    return tuple(islice(filter(_on_grid(recurrence), days), recurrence.count))


@lru_cache(maxsize=512)
def _moments(recurrence: Recurrence, year: int) -> tuple[datetime, ...]:
    """When it opens on the days of one year."""
    if recurrence.count is not None:
        days = [day for day in _counted(recurrence) if day.year == year]
    else:
        since = max(recurrence.first, date(year, 1, 1))
        of_year = takewhile(lambda day: day.year <= year, _matching(recurrence, since))
        days = list(filter(_on_grid(recurrence), of_year)) if since.year == year else []
    local = (datetime.combine(day, recurrence.start) for day in days)
    last = recurrence.last
    return tuple(_moment(begin, recurrence.zone) for begin in local if last is None or begin <= last)


def _moment(local: datetime, zone: ZoneInfo) -> datetime:
    """The moment at which the clock of the zone shows this time; for one that it skips, the end of the gap."""
    before, after = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if before <= after:  # shown once, or twice: then the first
        return before
    # In a gap fold 0 counts with the offset before it and so lies behind it, fold 1 lies before it.
    offset = after.astimezone(zone).utcoffset()
    low, high = after, before
    while high - low > timedelta(seconds=1):
        middle = low + (high - low) / 2
        if middle.astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0)  # clocks change at whole seconds, and the search ends less than one behind
