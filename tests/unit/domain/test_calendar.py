"""When work may begin: edges of windows, freezes and cutoffs, and what can never be computed into an open window."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.domain.windows import allow, freeze, interval, policy, schedule

from sysvm.api.reasons import Reason
from sysvm.api.window import AtEnd, MaintenanceWindow
from sysvm.domain.calendar import Opening, freezes_for, openings, openings_of
from sysvm.domain.spans import problem

NIGHTS = allow(schedule=schedule(zone="Europe/Amsterdam"), cutoff="45m", atEnd="RollBack")
"""22:00 to 04:00: in winter 21:00 to 03:00 UTC, and nothing new from 02:15 on."""


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def at(text: str, *windows: MaintenanceWindow, frozen: tuple[MaintenanceWindow, ...] = ()) -> Opening:
    return openings(windows, frozen).at(moment(text))


EDGES = {
    "2026-01-10 20:59:59": (False, False, "window"),
    "2026-01-10 21:00": (True, True, None),
    "2026-01-11 02:14:59": (True, True, None),
    "2026-01-11 02:15": (True, False, "cutoff"),
    "2026-01-11 02:59:59": (True, False, "cutoff"),
    "2026-01-11 03:00": (False, False, "window"),
}


@pytest.mark.parametrize("now", EDGES)
def test_a_window_begins_at_its_first_moment_and_ends_before_its_last(now: str) -> None:
    found = at(now, NIGHTS)
    assert (found.open, found.may_start, found.closed_by) == EDGES[now]


def test_no_windows_is_always_open() -> None:
    found = at("2026-01-10 12:00")
    assert found == Opening(True, True, None, None, None, None, AtEnd.FINISH, "open")


def test_an_open_window_says_until_when() -> None:
    found = at("2026-01-10 22:00", NIGHTS)
    assert found.closes_at == moment("2026-01-11 03:00")
    assert found.at_end is AtEnd.ROLL_BACK
    assert found.message == "open until 2026-01-11T03:00:00Z"


def test_a_closed_window_says_when_it_opens() -> None:
    found = at("2026-01-10 12:00", NIGHTS)
    assert (found.ref, found.reason) == ("MaintenanceWindow/nights", Reason.OUTSIDE_WINDOW)
    assert found.next_open == moment("2026-01-10 21:00")
    assert found.message == "outside of its maintenance windows; opens next at 2026-01-10T21:00:00Z"


def test_the_cutoff_says_when_something_may_start_again() -> None:
    found = at("2026-01-11 02:30", NIGHTS)
    assert (found.ref, found.reason) == ("MaintenanceWindow/nights", Reason.WINDOW_CUTOFF)
    assert found.closes_at == moment("2026-01-11 03:00")
    assert found.next_open == moment("2026-01-11 21:00")
    assert "nothing new starts in the last 45m of MaintenanceWindow nights" in found.message


def test_a_freeze_wins_over_any_window() -> None:
    holidays = freeze("holidays", interval=interval("2026-01-10T22:00:00Z", "2026-01-12T22:00:00Z"), reason="CHG-9")
    found = at("2026-01-10 23:00", NIGHTS, allow("always", schedule=schedule(duration="48h")), frozen=(holidays,))
    assert (found.open, found.closed_by, found.ref) == (False, "freeze", "MaintenanceWindow/holidays")
    assert found.next_open == moment("2026-01-12 22:00")
    assert found.message == "frozen by MaintenanceWindow holidays (CHG-9); opens next at 2026-01-12T22:00:00Z"


def test_a_freeze_is_named_also_where_no_window_is_open() -> None:
    holidays = freeze("holidays", interval=interval("2026-01-10T08:00:00Z", "2026-01-10T18:00:00Z"))
    found = at("2026-01-10 12:00", NIGHTS, frozen=(holidays,))
    assert (found.closed_by, found.next_open) == ("freeze", moment("2026-01-10 21:00"))


def test_a_freeze_closes_what_needs_no_window() -> None:
    found = at("2026-01-10 12:00", frozen=(freeze(schedule=schedule(start="09:00", duration="8h")),))
    assert (found.open, found.next_open) == (False, moment("2026-01-10 17:00"))
    assert at(
        "2026-01-10 18:00", frozen=(freeze(schedule=schedule(start="09:00", duration="8h")),)
    ).closes_at == moment("2026-01-11 09:00")


def test_the_longest_of_several_freezes_is_named() -> None:
    short = freeze("short", interval=interval("2026-01-10T00:00:00Z", "2026-01-11T00:00:00Z"))
    longer = freeze("longer", interval=interval("2026-01-10T00:00:00Z", "2026-01-13T00:00:00Z"))
    assert at("2026-01-10 12:00", frozen=(short, longer)).ref == "MaintenanceWindow/longer"


def test_a_freeze_that_comes_cuts_off_like_the_end_of_the_window() -> None:
    at_two = freeze(schedule=schedule(start="01:00", duration="10h"))
    assert at("2026-01-11 00:14", NIGHTS, frozen=(at_two,)).may_start
    found = at("2026-01-11 00:15", NIGHTS, frozen=(at_two,))
    assert (found.closed_by, found.closes_at) == ("cutoff", moment("2026-01-11 01:00"))
    assert found.at_end is AtEnd.FINISH, "a freeze lets VMs in work finish"


def test_a_window_that_another_one_continues_cuts_nothing_off() -> None:
    early = allow("early", schedule=schedule(start="03:00", duration="2h", zone="UTC"))
    assert at("2026-01-11 02:30", NIGHTS, early).may_start
    assert at("2026-01-11 02:30", NIGHTS, early).closes_at == moment("2026-01-11 05:00")


def test_a_window_that_follows_itself_never_closes() -> None:
    whole = allow("whole", schedule=schedule(start="00:00", duration="24h"), cutoff="1h", atEnd="RollBack")
    for hour in range(24):
        found = at(f"2026-01-11 {hour:02}:59", whole)
        assert found.may_start
        assert found.closes_at is None
        assert found.at_end is AtEnd.FINISH, "there is no end"


def test_an_opening_shorter_than_the_cutoff_is_none_to_wait_for() -> None:
    but_half_an_hour = freeze(interval=interval("2026-01-10T21:30:00Z", "2026-01-11T21:00:00Z"))
    found = at("2026-01-10 20:00", NIGHTS, frozen=(but_half_an_hour,))
    assert found.next_open == moment("2026-01-11 21:00")


@pytest.mark.parametrize("minute", ["03:00", "09:00", "20:59"])
def test_what_was_in_work_when_the_window_closed_goes_back_or_finishes_as_the_window_says(minute: str) -> None:
    assert at(f"2026-01-11 {minute}", NIGHTS).at_end is AtEnd.ROLL_BACK
    assert at(f"2026-01-11 {minute}", allow(schedule=schedule(zone="Europe/Amsterdam"))).at_end is AtEnd.FINISH


def test_of_windows_that_end_together_the_stricter_counts() -> None:
    finish = allow("finish", schedule=schedule(start="23:00", duration="4h"))
    for windows in ((NIGHTS, finish), (finish, NIGHTS)):
        assert at("2026-01-11 00:00", *windows).at_end is AtEnd.ROLL_BACK
        assert at("2026-01-11 04:00", *windows).at_end is AtEnd.ROLL_BACK


def test_of_windows_that_end_one_after_the_other_the_last_counts() -> None:
    later = allow("later", schedule=schedule(start="23:00", duration="6h"))
    assert at("2026-01-11 04:00", NIGHTS, later).at_end is AtEnd.FINISH
    assert at("2026-01-11 06:00", NIGHTS, later).at_end is AtEnd.FINISH


def test_a_freeze_within_an_open_window_lets_work_finish() -> None:
    holidays = freeze(interval=interval("2026-01-10T22:00:00Z", "2026-01-12T22:00:00Z"))
    assert at("2026-01-10 23:00", NIGHTS, frozen=(holidays,)).at_end is AtEnd.FINISH
    assert at("2026-01-11 03:00", NIGHTS, frozen=(holidays,)).at_end is AtEnd.ROLL_BACK, "then the window is over too"


NEVER: dict[str, Any] = {
    "once, and over": {"interval": interval("2025-01-01T00:00:00Z", "2025-01-02T00:00:00Z")},
    "until a day that has passed": {"schedule": schedule("FREQ=DAILY;UNTIL=20251231")},
    "counted, and all are over": {"schedule": schedule("FREQ=DAILY;COUNT=3", start_date="2025-01-01")},
}


@pytest.mark.parametrize("case", NEVER)
def test_a_window_that_is_over_says_so(case: str) -> None:
    found = at("2026-06-01 12:00", allow(**NEVER[case]))
    assert (found.open, found.next_open, found.closed_by) == (False, None, "window")
    assert found.message == "outside of its maintenance windows; never opens again"


@pytest.mark.parametrize(
    "far",
    [
        {"interval": interval("2031-01-01T00:00:00Z", "2031-01-02T00:00:00Z")},
        {"schedule": schedule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO")},
        {"schedule": schedule("FREQ=DAILY;INTERVAL=7;BYDAY=MO", start_date="2026-01-06")},
        {"schedule": schedule("FREQ=DAILY;COUNT=3", start_date="2031-01-01")},
    ],
    ids=["once", "the 29th of February on a Monday", "days that never meet", "counted from later"],
)
def test_a_window_that_does_not_open_soon_says_so(far: dict[str, Any]) -> None:
    found = at("2026-06-01 12:00", allow(**far))
    assert found.next_open is None
    assert found.message == "outside of its maintenance windows; does not open within two years"


def test_a_window_that_is_frozen_whenever_it_opens_says_so() -> None:
    nights = freeze(schedule=schedule(start="20:00", duration="12h"))
    found = at("2026-06-01 12:00", allow(), frozen=(nights,))
    assert (found.closed_by, found.next_open) == ("window", None)
    assert "does not open within two years" in found.message


def test_a_freeze_without_an_end_says_so() -> None:
    for_ever = freeze("for-ever", schedule=schedule(duration="48h"))
    found = at("2026-06-01 12:00", allow(), frozen=(for_ever,))
    assert (found.closed_by, found.next_open) == ("freeze", None)
    assert found.message == "frozen by MaintenanceWindow for-ever; does not open within two years"


def test_a_single_freeze_of_many_years_has_an_end() -> None:
    decade = freeze("decade", interval=interval("2026-01-01T00:00:00Z", "2036-01-01T00:00:00Z"))
    found = at("2026-06-01 12:00", frozen=(decade,))
    assert (found.closed_by, found.next_open) == ("freeze", None)
    long = allow("long", interval=interval("2026-01-01T00:00:00Z", "2036-01-01T00:00:00Z"))
    assert at("2026-06-01 12:00", long).closes_at == moment("2036-01-01 00:00")


def test_the_clock_may_jump_anywhere() -> None:
    """Asked in any order the answers are the same: nothing is remembered."""
    calendar = openings([NIGHTS], [freeze(schedule=schedule("FREQ=MONTHLY;BYMONTHDAY=1", duration="24h"))])
    times = [moment("2026-01-10 00:00") + timedelta(hours=7 * n) for n in range(40)]
    times += [moment("1971-01-01 00:00"), moment("2150-01-01 00:00"), moment("2099-12-31 23:00")]
    forward = {now: calendar.at(now) for now in times}
    backward = {now: calendar.at(now) for now in reversed(times)}
    assert forward == backward


# What cannot be computed

BAD = allow("bad", schedule=schedule("FREQ=WEEKLY;BYDAY=XX"))
BAD_FREEZE = freeze("bad-freeze", schedule=schedule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=31"))


def test_a_window_that_makes_no_sense_is_never_open() -> None:
    assert problem(BAD) == "BYDAY=XX is in no calendar"
    for windows in ((BAD,), (allow("always", schedule=schedule(duration="48h")), BAD)):
        found = at("2026-06-01 12:00", *windows)
        assert (found.open, found.may_start, found.closed_by) == (False, False, "window")
        assert (found.ref, found.reason, found.next_open) == ("MaintenanceWindow/bad", Reason.INVALID_SCHEDULE, None)
        assert found.message == (
            "MaintenanceWindow bad: BYDAY=XX is in no calendar; nothing starts before that is mended"
        )


def test_a_freeze_that_makes_no_sense_freezes() -> None:
    found = at("2026-06-01 12:00", frozen=(BAD_FREEZE,))
    assert (found.open, found.closed_by, found.reason) == (False, "freeze", Reason.INVALID_SCHEDULE)


def test_nothing_in_work_goes_back_because_a_window_was_edited_into_nonsense() -> None:
    wrong = allow("bad", schedule=schedule("FREQ=WEEKLY;BYDAY=XX"), atEnd="RollBack")
    assert at("2026-06-01 12:00", wrong).at_end is AtEnd.FINISH


def test_a_window_that_is_missing_keeps_its_policy_closed() -> None:
    found = openings_of(policy("nights", "weekends"), [allow()]).at(moment("2026-06-01 23:00"))
    assert (found.may_start, found.closed_by, found.reason) == (False, "window", Reason.WINDOW_NOT_FOUND)
    assert found.ref == "MaintenanceWindow/weekends"
    assert found.message.startswith("MaintenanceWindow weekends does not exist")


def test_a_freeze_opens_nothing_for_a_policy_that_names_it() -> None:
    found = openings_of(policy("freeze"), [freeze(policySelector={"matchLabels": {"a": "b"}})]).at(
        moment("2026-06-01 12:00")
    )
    assert (found.may_start, found.reason) == (False, Reason.INVALID_SCHEDULE)
    assert "is a freeze (effect Deny) and cannot open anything" in found.message


def test_a_policy_has_its_own_windows_and_the_freezes_that_select_it() -> None:
    always = allow("always", schedule=schedule(duration="48h"))
    frozen = freeze("net", schedule=schedule(duration="48h"), policySelector={"matchLabels": {"team": "net"}})
    windows = [allow(), always, frozen, BAD]
    noon = moment("2026-06-01 12:00")
    assert openings_of(policy("always"), windows).at(noon).may_start
    assert openings_of(policy(), windows).at(noon).may_start
    assert openings_of(policy("nights"), windows).at(noon).closed_by == "window"
    assert openings_of(policy("always", labels={"team": "net"}), windows).at(noon).closed_by == "freeze"


# Which policies a freeze is about

LABELS = {"team": "net", "tier": "gold"}
SELECTORS: dict[str, tuple[dict[str, Any] | None, bool]] = {
    "absent": (None, True),
    "empty": ({}, True),
    "labels that match": ({"matchLabels": {"team": "net", "tier": "gold"}}, True),
    "labels of which one does not": ({"matchLabels": {"team": "net", "tier": "silver"}}, False),
    "a label that is not there": ({"matchLabels": {"zone": ""}}, False),
    "In": ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "net"]}]}, True),
    "In others": ({"matchExpressions": [{"key": "team", "operator": "In", "values": ["a"]}]}, False),
    "In without the label": ({"matchExpressions": [{"key": "zone", "operator": "In", "values": [""]}]}, False),
    "NotIn": ({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}, True),
    "NotIn without the label": ({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}, True),
    "NotIn that has it": ({"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["net"]}]}, False),
    "Exists": ({"matchExpressions": [{"key": "team", "operator": "Exists"}]}, True),
    "Exists not": ({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}, False),
    "DoesNotExist": ({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}, True),
    "DoesNotExist but does": ({"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}, False),
    "labels and expressions": (
        {"matchLabels": {"team": "net"}, "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]},
        False,
    ),
}


@pytest.mark.parametrize("case", SELECTORS)
def test_a_freeze_selects_policies_by_their_labels(case: str) -> None:
    selector, expected = SELECTORS[case]
    more: dict[str, Any] = {} if selector is None else {"policySelector": selector}
    frozen = freeze(**more)
    assert freezes_for(LABELS, [allow(), frozen]) == ((frozen,) if expected else ())
