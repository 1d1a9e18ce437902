"""On which days a schedule falls, and at which moments it opens: moved clocks, rules that are odd or endless."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.domain.windows import rule

from sysvm.domain.recurrence import ScheduleError, understood

AMSTERDAM, NEW_YORK = "Europe/Amsterdam", "America/New_York"
LORD_HOWE, APIA = "Australia/Lord_Howe", "Pacific/Apia"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def starts(after: str, before: str, *args: str, **kwargs: str) -> list[str]:
    """UTC, to the minute."""
    found = understood(rule(*args, **kwargs)).starts(at(after), at(before))
    return [moment.strftime("%Y-%m-%d %H:%M") for moment in found]


CLOCKS = {
    "an hour that is skipped": (AMSTERDAM, "02:30", "2026-03-29", ["2026-03-29 01:00"]),
    "the first moment of a skipped hour": (AMSTERDAM, "02:00", "2026-03-29", ["2026-03-29 01:00"]),
    "the last minute of a skipped hour": (AMSTERDAM, "02:59", "2026-03-29", ["2026-03-29 01:00"]),
    "right after a skipped hour": (AMSTERDAM, "03:00", "2026-03-29", ["2026-03-29 01:00"]),
    "right before a skipped hour": (AMSTERDAM, "01:59", "2026-03-29", ["2026-03-29 00:59", "2026-03-29 23:59"]),
    "an hour that comes twice": (AMSTERDAM, "02:30", "2026-10-25", ["2026-10-25 00:30"]),
    "the first moment of an hour that comes twice": (AMSTERDAM, "02:00", "2026-10-25", ["2026-10-25 00:00"]),
    "right after an hour that came twice": (AMSTERDAM, "03:00", "2026-10-25", ["2026-10-25 02:00"]),
    "a skipped hour across the ocean": (NEW_YORK, "02:30", "2026-03-08", ["2026-03-08 07:00"]),
    "a repeated hour across the ocean": (NEW_YORK, "01:30", "2026-11-01", ["2026-11-01 05:30"]),
    "half an hour that is skipped": (LORD_HOWE, "02:10", "2026-10-03", ["2026-10-03 15:30"]),
    "right after a skipped half hour": (LORD_HOWE, "02:30", "2026-10-03", ["2026-10-03 15:30"]),
    "half an hour that comes twice": (LORD_HOWE, "01:45", "2026-04-04", ["2026-04-04 14:45"]),
    "a day that never was": (APIA, "22:00", "2011-12-30", ["2011-12-30 08:00", "2011-12-30 10:00"]),
    "no clock to move": ("UTC", "02:30", "2026-03-29", ["2026-03-29 02:30"]),
}
"""Zone, start, a day of UTC, when a daily window opens on it. Apia went from 29 to 31 December 2011: the window of the
29th opens, that of the missing 30th at the midnight that came instead."""


@pytest.mark.parametrize("case", CLOCKS)
def test_a_window_opens_once_a_day_whatever_the_clock_does(case: str) -> None:
    zone, start, day, expected = CLOCKS[case]
    following = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
    assert starts(day, following, "FREQ=DAILY", start, zone=zone) == expected


@pytest.mark.parametrize("zone", [AMSTERDAM, NEW_YORK, LORD_HOWE, "Asia/Kolkata", "UTC"])
def test_a_daily_window_opens_as_often_as_the_year_has_days(zone: str) -> None:
    for start in ("00:00", "01:30", "02:15", "23:59"):
        found = starts("2023-12-30", "2025-01-03", "FREQ=DAILY", start, zone=zone)
        local = [day for day in found if day.startswith("2024")]
        assert 366 <= len(local) + (zone != "UTC") <= 367, start
        assert len(found) == len(set(found))


RULES = {
    "FREQ=WEEKLY;BYDAY=MO,WE": ["2026-06-01", "2026-06-03", "2026-06-08", "2026-06-10"],
    "FREQ=MONTHLY;BYDAY=2TU": ["2026-06-09", "2026-07-14"],
    "FREQ=MONTHLY;BYDAY=-1SU": ["2026-06-28", "2026-07-26"],
    "FREQ=MONTHLY;BYMONTHDAY=-1": ["2026-06-30", "2026-07-31"],
    "FREQ=MONTHLY;BYMONTHDAY=31": ["2026-07-31", "2026-08-31"],
    "FREQ=MONTHLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1": ["2026-06-30", "2026-07-31"],
    "FREQ=MONTHLY;BYDAY=FR;BYMONTHDAY=13": ["2026-11-13", "2027-08-13"],
    "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29": ["2028-02-29", "2032-02-29"],
    "FREQ=YEARLY;BYWEEKNO=53;BYDAY=MO": ["2026-12-28", "2032-12-27"],
    "FREQ=YEARLY;BYYEARDAY=-1": ["2026-12-31", "2027-12-31"],
    "FREQ=WEEKLY;BYDAY=SU;BYMONTH=7": ["2026-07-05", "2026-07-12"],
    "FREQ=DAILY;BYMONTH=12": ["2026-12-01", "2026-12-02"],
    "FREQ=DAILY;UNTIL=20260602": ["2026-06-01", "2026-06-02"],
}
"""From Monday 2026-06-01 on."""


@pytest.mark.parametrize("text", RULES)
def test_a_rule_falls_on_the_days_of_the_calendar(text: str) -> None:
    found = [moment[:10] for moment in starts("2026-06-01", "2034-01-01", text)]
    assert found[: len(RULES[text])] == RULES[text]


COUNTED = {
    ("FREQ=WEEKLY;INTERVAL=2", "2026-01-06"): ["2026-01-06", "2026-01-20", "2026-02-03"],
    ("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,SU", "2026-01-07"): ["2026-01-11", "2026-01-19", "2026-01-25"],
    ("FREQ=WEEKLY;INTERVAL=2;BYDAY=MO,SU;WKST=SU", "2026-01-07"): ["2026-01-18", "2026-01-19", "2026-02-01"],
    ("FREQ=MONTHLY;INTERVAL=3", "2025-11-30"): ["2025-11-30", "2026-05-30", "2026-08-30"],
    ("FREQ=YEARLY;INTERVAL=4", "2000-02-29"): ["2000-02-29", "2004-02-29", "2008-02-29"],
    ("FREQ=YEARLY;BYMONTH=6", "2025-01-15"): ["2025-06-15", "2026-06-15", "2027-06-15"],
    ("FREQ=DAILY;INTERVAL=10", "2025-12-30"): ["2025-12-30", "2026-01-09", "2026-01-19"],
    ("FREQ=DAILY;COUNT=2", "2026-06-01"): ["2026-06-01", "2026-06-02"],
    ("FREQ=MONTHLY;BYDAY=1MO;COUNT=1", "2026-06-02"): ["2026-07-06"],
    ("FREQ=WEEKLY", "2026-06-04"): ["2026-06-04", "2026-06-11", "2026-06-18"],
}


@pytest.mark.parametrize(("text", "first"), COUNTED)
def test_counting_begins_on_the_first_day(text: str, first: str) -> None:
    found = [moment[:10] for moment in starts("2000-01-01", "2099-01-01", text, start_date=first)]
    expected = COUNTED[text, first]
    assert found[: len(expected)] == expected
    if "COUNT" in text:
        assert len(found) == len(expected)


@pytest.mark.parametrize(
    ("until", "last"),
    [
        ("20260603", "2026-06-03 20:00"),
        ("20260603T220000", "2026-06-03 20:00"),
        ("20260603T215959", "2026-06-02 20:00"),
        ("20260603T200000Z", "2026-06-03 20:00"),
        ("20260603T195959Z", "2026-06-02 20:00"),
    ],
)
def test_a_rule_ends_on_a_day_or_at_a_local_time(until: str, last: str) -> None:
    assert starts("2026-06-01", "2027-01-01", f"FREQ=DAILY;UNTIL={until}", zone=AMSTERDAM)[-1] == last


WRONG = {
    "FREQ=WEEKLY;BYDAY=XX": "BYDAY=XX is in no calendar",
    "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=31": "never falls on any day",
    "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30": "never falls on any day",
    "FREQ=YEARLY;BYMONTH=13;BYDAY=MO": "BYMONTH=13 is in no calendar",
    "FREQ=YEARLY;BYMONTH=0;BYDAY=1MO": "BYMONTH=0 is in no calendar",
    "FREQ=YEARLY;BYMONTH=-1;BYDAY=1MO": "BYMONTH=-1 is in no calendar",
    "FREQ=YEARLY;BYWEEKNO=54": "BYWEEKNO=54 is in no calendar",
    "FREQ=YEARLY;BYDAY=54MO": "BYDAY=54MO is in no calendar",
    "FREQ=MONTHLY;BYDAY=6MO": "never falls on any day",
    "FREQ=MONTHLY;BYDAY=MO;BYSETPOS=6": "never falls on any day",
    "FREQ=DAILY;BYSETPOS=2;BYDAY=MO": "never falls on any day",
    "FREQ=MONTHLY;BYMONTHDAY=0": "BYMONTHDAY=0 is in no calendar",
    "FREQ=WEEKLY;BYDAY=1MO": "needs FREQ=MONTHLY or FREQ=YEARLY",
    "FREQ=DAILY;FREQ=WEEKLY": "FREQ is there twice",
    "FREQ=WEEKLY;BYDAY=MO;WKST=XX": "no day of the week",
    "FREQ=DAILY;UNTIL=2026": "UNTIL=2026 must be a day",
    "FREQ=DAILY;UNTIL=20260230": "no time of the calendar",
    "FREQ=DAILY;UNTIL=99991231T235959Z": "no time of the calendar",
    "FREQ=DAILY;COUNT=0": "from 1 to 1000",
    "FREQ=DAILY;INTERVAL=0": "from 1 to 1000",
    "FREQ=DAILY;INTERVAL=-1": "from 1 to 1000",
    "FREQ=DAILY;COUNT=99999999999": "from 1 to 1000",
    "FREQ=DAILY;COUNT=3;UNTIL=20270101": "exclude each other",
    "FREQ=MONTHLY;BYDAY=MO;BYSETPOS=0": "BYSETPOS=0 is in no calendar",
    "FREQ=MONTHLY;BYMONTHDAY=,": "BYMONTHDAY= is in no calendar",
    "FREQ=HOURLY": "FREQ must be one of",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_no_calendar_can_compute_says_why(text: str) -> None:
    with pytest.raises(ScheduleError, match=WRONG[text]):
        understood(rule(text, zone=AMSTERDAM, start_date="2026-01-05"))


@pytest.mark.parametrize("zone", ["Local", "Europe", "Mars/Olympus", "leapseconds"])
def test_a_zone_that_this_python_does_not_know_says_so(zone: str) -> None:
    with pytest.raises(ScheduleError, match=f"time zone {zone} is not known here"):
        understood(rule(zone=zone))


NUMBERS = st.lists(st.integers(-40, 40) | st.integers(-400, 400), min_size=1, max_size=3).map(
    lambda found: ",".join(map(str, found))
)
DAYS = st.lists(
    st.tuples(st.sampled_from(["", "1", "-1", "5", "-6", "60"]), st.sampled_from(["MO", "TH", "SU"])), min_size=1
).map(lambda found: ",".join(number + day for number, day in found[:4]))
PARTS = st.fixed_dictionaries(
    {"FREQ": st.sampled_from(["DAILY", "WEEKLY", "MONTHLY", "YEARLY"])},
    optional={
        "INTERVAL": st.integers(0, 1200).map(str),
        "COUNT": st.integers(0, 1200).map(str),
        "UNTIL": st.sampled_from(["20260101", "20400229T020000", "99991231T235959Z", "20261301"]),
        "BYMONTH": NUMBERS,
        "BYMONTHDAY": NUMBERS,
        "BYYEARDAY": NUMBERS,
        "BYWEEKNO": NUMBERS,
        "BYDAY": DAYS,
        "BYSETPOS": NUMBERS,
        "WKST": st.sampled_from(["SU", "SA", "XX"]),
    },
)


@given(PARTS, st.dates(date(2000, 1, 1), date(2099, 12, 31)), st.sampled_from([AMSTERDAM, LORD_HOWE, APIA]))
def test_any_rule_is_refused_or_computed_in_bounded_work(parts: dict[str, str], first: date, zone: str) -> None:
    """Of dateutil alone some of these take seconds, and some never end. CPU time, because machines are shared."""
    text = ";".join(f"{name}={value}" for name, value in parts.items())
    begun = time.process_time()
    try:
        recurrence = understood(rule(text, zone=zone, start_date=first.isoformat()))
    except ScheduleError:
        pass
    else:
        found = list(recurrence.starts(at("2025-11-01"), at("2028-02-01")))
        assert all(one <= other for one, other in pairwise(found))
        assert all(at("2025-11-01") <= moment < at("2028-02-01") for moment in found)
    assert time.process_time() - begun < 2
