"""What a maintenance window says about itself."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.unit.domain.kstatus import assert_contract, kstatus
from tests.unit.domain.windows import allow, freeze, interval, schedule

from sysvm.api.window import MaintenanceWindow
from sysvm.domain.window_status import report


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


NOON = "2026-06-01 12:00"
FOR_EVER = schedule(duration="48h")
CASES: dict[str, tuple[MaintenanceWindow, str, tuple[bool, str | None, str | None, str | None], str, str]] = {
    "closed": (
        allow(cutoff="45m"),
        NOON,
        (False, "2026-06-01 22:00", "2026-06-02 04:00", "2026-06-01 22:00"),
        "Closed",
        "opens at 2026-06-01T22:00:00Z",
    ),
    "open": (
        allow(cutoff="45m"),
        "2026-06-01 22:00",
        (True, "2026-06-02 22:00", "2026-06-02 04:00", "2026-06-02 03:15"),
        "Open",
        "open until 2026-06-02T04:00:00Z",
    ),
    "cut off": (
        allow(cutoff="45m"),
        "2026-06-02 03:15",
        (True, "2026-06-02 22:00", "2026-06-02 04:00", "2026-06-02 04:00"),
        "Open",
        "open until 2026-06-02T04:00:00Z",
    ),
    "frozen": (
        freeze(),
        "2026-06-01 23:00",
        (True, "2026-06-02 22:00", "2026-06-02 04:00", "2026-06-02 04:00"),
        "Open",
        "frozen until 2026-06-02T04:00:00Z",
    ),
    "a freeze to come": (
        freeze(interval=interval("2026-12-20T00:00:00Z", "2040-01-03T00:00:00Z")),
        NOON,
        (False, "2026-12-20 00:00", "2040-01-03 00:00", "2026-12-20 00:00"),
        "Closed",
        "freezes at 2026-12-20T00:00:00Z",
    ),
    "over": (
        allow(interval=interval("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")),
        NOON,
        (False, None, None, None),
        "Over",
        "never opens again",
    ),
    "not soon": (
        allow(schedule=schedule("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO")),
        NOON,
        (False, None, None, None),
        "Closed",
        "opens no more within two years",
    ),
    "a freeze without an end": (
        freeze(schedule=FOR_EVER),
        NOON,
        (True, None, None, None),
        "NeverEnds",
        "a freeze without an end within two years: it begins again before it is over",
    ),
    "always open": (
        allow(schedule=FOR_EVER),
        NOON,
        (True, None, None, None),
        "Open",
        "open, without an end within two years",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_window_says_where_it_is_in_its_calendar(case: str) -> None:
    window, now, expected, reason, message = CASES[case]
    found = report(window, now=moment(now))
    said = found.status
    times = [None if text is None else moment(text) for text in expected[1:]]
    assert (said.open, said.next_open, said.next_close, found.edge) == (expected[0], *times)
    (ready,) = said.conditions
    assert (ready.type, ready.status, ready.reason, ready.message) == ("Ready", "True", reason, message)
    assert_contract(2, said)
    assert kstatus(2, said) == "Current"


def test_a_window_that_cannot_be_computed_is_stalled() -> None:
    found = report(allow(schedule=schedule("FREQ=WEEKLY;BYDAY=XX")), now=moment(NOON))
    said = found.status
    assert (said.open, said.next_open, said.next_close, found.edge) == (None, None, None, None)
    assert {(c.type, str(c.status), c.reason) for c in said.conditions} == {
        ("Ready", "False", "InvalidSchedule"),
        ("Stalled", "True", "InvalidSchedule"),
    }
    assert "BYDAY=XX is in no calendar" in said.conditions[0].message
    assert_contract(2, said)
    assert kstatus(2, said) == "Failed"


def test_a_status_changes_only_at_an_edge() -> None:
    window = allow(cutoff="45m")
    first = report(window, now=moment(NOON))
    seen = window.model_copy(update={"status": first.status})
    assert report(seen, now=moment("2026-06-01 21:59:59")).status == first.status
    assert report(seen, now=moment("2026-06-01 22:00")).status != first.status


def test_a_wish_to_look_again_is_answered() -> None:
    window = allow()
    metadata = window.metadata.model_copy(update={"annotations": {"sysvm.io/requestedAt": "now"}})
    asked = window.model_copy(update={"metadata": metadata})
    assert report(asked, now=moment(NOON)).status.last_handled_reconcile_at == "now"
