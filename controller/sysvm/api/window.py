"""MaintenanceWindow: when system VMs may be changed, and when they may not.

A window repeats by the recurrence rule of calendars (RFC 5545) in a named time zone, because people plan nights and
weekends on their own clock and that clock is moved twice a year; or it is there once, between two moments.
"""

from datetime import date, timedelta
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import (
    DURATION_PATTERN,
    ApiModel,
    Duration,
    ObjectMeta,
    ObservedStatus,
    Says,
    ShortText,
    Time,
    at_least,
    at_most,
    cel_text,
    compare_durations,
    matching,
    rule,
)

RULE_PARTS = (
    "FREQ",
    "INTERVAL",
    "COUNT",
    "UNTIL",
    "BYMONTH",
    "BYMONTHDAY",
    "BYYEARDAY",
    "BYWEEKNO",
    "BYDAY",
    "BYSETPOS",
    "WKST",
)
"""Parts of RFC 5545 that speak of days. The time of day is `start`, so BYHOUR and its like have no place."""
DAY_PARTS = ("BYDAY", "BYMONTHDAY", "BYYEARDAY", "BYWEEKNO")
"""A rule with one of these says by itself on which days it falls; without, the days follow from startDate."""
FREQUENCIES = ("DAILY", "WEEKLY", "MONTHLY", "YEARLY")

FIRST_YEAR, LAST_YEAR = 2000, 2099
"""Years that a schedule may begin in, and that it is computed for."""

_PART = f"({'|'.join(RULE_PARTS)})=[A-Z0-9,+-]+"
_RRULE = f"^{_PART}(;{_PART})*$"
_FREQ = f"(^|;)FREQ=({'|'.join(FREQUENCIES)})(;|$)"
_COUNTED = "(^|;)(INTERVAL|COUNT)="
_OWN_DAYS = f"(^|;)(FREQ=DAILY(;|$)|({'|'.join(DAY_PARTS)})=)"
_START = "^([01][0-9]|2[0-3]):[0-5][0-9]$"
_ZONE = "^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$"
_LABEL_KEY = "^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"


class Effect(StrEnum):
    """Whether a window lets work begin or keeps it from beginning."""

    ALLOW = "Allow"
    DENY = "Deny"


class AtEnd(StrEnum):
    """What becomes of VMs in work when their window closes."""

    FINISH = "Finish"
    ROLL_BACK = "RollBack"


class SelectorOperator(StrEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class SelectorRequirement(ApiModel):
    """One condition on the labels of a policy."""

    key: Annotated[
        str,
        Field(min_length=1, max_length=316, pattern=_LABEL_KEY),
        matching(_LABEL_KEY, "must be the key of a label, such as team or example.com/team"),
    ]
    """Key of the label."""
    operator: SelectorOperator
    """In: the label has one of the values. NotIn: it has none of them, or is not there. Exists: it is there, whatever
    its value. DoesNotExist: it is not there."""
    values: Annotated[
        tuple[Annotated[str, Field(max_length=63)], ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Values for In and NotIn."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "self.operator in ['In', 'NotIn'] == (has(self.values) && size(self.values) > 0)",
            "In and NotIn need values, Exists and DoesNotExist have none",
        ),
    )


class LabelSelector(ApiModel):
    """Chooses policies by their labels: everything that is given must match, empty chooses all of the namespace."""

    match_labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(max_length=16)] | None = None
    """Labels that a policy must have, with these values."""
    match_expressions: Annotated[tuple[SelectorRequirement, ...], Field(max_length=16)] = ()
    """Further conditions on the labels."""


class Schedule(ApiModel):
    """A window that comes again."""

    rrule: Annotated[
        str,
        Field(min_length=10, max_length=256, pattern=_RRULE),
        matching(
            _RRULE,
            "must be a recurrence rule of the parts FREQ, INTERVAL, COUNT, UNTIL, BYMONTH, BYMONTHDAY, BYYEARDAY,"
            " BYWEEKNO, BYDAY, BYSETPOS and WKST in capital letters, such as FREQ=WEEKLY;BYDAY=MO,TU: the time of day"
            " is start",
        ),
        Says(
            f"self.matches({cel_text(_FREQ)})",
            "FREQ must be DAILY, WEEKLY, MONTHLY or YEARLY: a window opens at most once a day",
        ),
    ]
    """The days, as a recurrence rule of RFC 5545: FREQ=WEEKLY;BYDAY=MO,TU or FREQ=MONTHLY;BYDAY=-1SU. UNTIL is a day
    (20261231, which is the last one) or a local time."""
    start: Annotated[
        str,
        Field(min_length=5, max_length=5, pattern=_START),
        matching(_START, "must be a time of day from 00:00 to 23:59"),
    ]
    """Time of day at which it opens, in timeZone. On a day whose clock is put forward over it: the next moment that the
    clock shows; on a day whose clock shows it twice: the first time."""
    start_date: (
        Annotated[
            date,
            Field(json_schema_extra={"maxLength": 10}),
            Says(
                f"self >= timestamp('{FIRST_YEAR}-01-01T00:00:00Z')"
                f" && self < timestamp('{LAST_YEAR + 1}-01-01T00:00:00Z')",
                f"must be a day from {FIRST_YEAR}-01-01 to {LAST_YEAR}-12-31",
            ),
        ]
        | None
    ) = None
    """First day on which it may open, such as 2026-01-05. INTERVAL and COUNT count from here, and a rule without BYDAY
    or the like falls on the same weekday, day of the month or day of the year."""
    duration: Annotated[Duration, at_least("1m"), at_most("744h")]
    """How long it is open: elapsed time, also where the clock is changed meanwhile. From 1m to 744h."""
    time_zone: Annotated[
        str,
        Field(min_length=1, max_length=64, pattern=_ZONE),
        matching(_ZONE, "must be a name such as Europe/Amsterdam or UTC"),
        Says(
            "timestamp('2026-01-01T00:00:00Z').getHours(self) >= 0",
            "must be a time zone of the IANA database, such as Europe/Amsterdam or UTC",
        ),
    ]
    """IANA name of the time zone whose clock counts."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            f"has(self.startDate) || !self.rrule.matches({cel_text(_COUNTED)})",
            "a rule with INTERVAL or COUNT needs startDate: what would it count from?",
        ),
        rule(
            f"has(self.startDate) || self.rrule.matches({cel_text(_OWN_DAYS)})",
            "a rule that names no days (BYDAY, BYMONTHDAY, BYYEARDAY or BYWEEKNO) needs startDate: it falls on the same"
            " day as that",
        ),
    )


class Interval(ApiModel):
    """A window that is there once."""

    from_: Annotated[Time, Field(alias="from")]
    """When it opens."""
    to: Time
    """When it closes; later than from."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (rule("self.to > self.from", "to must be later than from"),)


class MaintenanceWindowSpec(ApiModel):
    """When, and for whom."""

    effect: Effect
    """Allow: policies that name it in windowRefs begin work while one of their windows is open, and at no other time.
    Deny: a freeze. Nothing begins on the VMs of the policies that it selects, whatever other windows allow."""
    schedule: Schedule | None = None
    """A window that comes again. Either this or interval."""
    interval: Interval | None = None
    """A window that is there once. Either this or schedule."""
    cutoff: Duration | None = None
    """Nothing new begins in so long a time before the policy's windows close; shorter than the window. Absent: work
    begins until the end."""
    at_end: AtEnd = AtEnd.FINISH
    """What becomes of VMs in work when it closes and no other window of the policy is open. Finish: they are finished.
    RollBack: they go back to what they were."""
    policy_selector: LabelSelector | None = None
    """Deny: the policies that it freezes, by their labels; absent or empty means all of the namespace."""
    reason: ShortText = ""
    """Shown to people who wait."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule("has(self.schedule) != has(self.interval)", "exactly one of schedule and interval is needed"),
        rule(
            "self.effect != 'Allow' || !has(self.policySelector)",
            "policySelector belongs to effect Deny: an Allow window counts for the policies that name it in windowRefs",
        ),
        rule(
            "self.effect != 'Deny' || !has(self.cutoff)",
            "cutoff belongs to effect Allow: a freeze begins when it begins",
        ),
        rule(
            "self.effect != 'Deny' || self.atEnd == 'Finish'",
            "atEnd RollBack belongs to effect Allow: a freeze lets VMs in work finish",
        ),
        rule(
            "!has(self.cutoff) || !has(self.schedule) || "
            + compare_durations("self.cutoff", "<", "self.schedule.duration"),
            "cutoff must be shorter than the window: otherwise nothing would ever begin",
        ),
        rule(
            "!has(self.cutoff) || !has(self.interval) || self.interval.to <= self.interval.from"
            f" || !self.cutoff.matches({cel_text(DURATION_PATTERN)})"
            " || duration(self.cutoff) < self.interval.to - self.interval.from",
            "cutoff must be shorter than the window: otherwise nothing would ever begin",
        ),
    )

    @property
    def cut(self) -> timedelta:
        """`cutoff`, zero if there is none."""
        return self.cutoff or timedelta(0)


class MaintenanceWindowStatus(ObservedStatus):
    """Where in its calendar the window is. Ready: it can be computed."""

    open: bool | None = None
    """true while it is in effect: work may begin (Allow), or may not (Deny). Absent: not computed yet, or it cannot
    be."""
    next_open: Time | None = None
    """When it opens next. Absent: not within two years, or never again; the condition says which."""
    next_close: Time | None = None
    """When it closes: the opening that is now, otherwise the next one. Openings without a gap are one."""


class MaintenanceWindow(ApiModel):
    """When system VMs may be changed (Allow), or may not (Deny: a freeze). A freeze wins over any window."""

    metadata: ObjectMeta
    spec: MaintenanceWindowSpec
    """When, and for whom."""
    status: MaintenanceWindowStatus = MaintenanceWindowStatus()
    """Where in its calendar the window is. Written by the operator only."""
