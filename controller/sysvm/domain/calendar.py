"""When work may begin: the openings of a policy's windows, minus freezes.

`Openings.at` asks for the few spans around a moment, so nights far away cost nothing, and a clock that jumps, in either
direction, is just another moment. What cannot be computed never counts as open: a window that is missing or makes no
sense keeps its policies closed and says so.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sysvm.api.base import format_duration, format_time
from sysvm.api.policy import PatchPolicy
from sysvm.api.reasons import Reason
from sysvm.api.window import AtEnd, Effect, LabelSelector, MaintenanceWindow, SelectorOperator, SelectorRequirement
from sysvm.domain.spans import BEGIN, END, HORIZON, INSTANT, Span, end_within, is_over, minus, problem, spans, union

LONGEST = timedelta(hours=744)
"""Longest duration of a schedule; also so long a window that closed has a say about VMs in work (`atEnd`)."""
NEVER_AGAIN = "never opens again"
NOT_SOON = "does not open within two years"

ClosedBy = Literal["window", "freeze", "cutoff"]


@dataclass(frozen=True, slots=True)
class Opening:
    """The calendar of one policy at one moment."""

    open: bool
    """A window is open, and no freeze is on."""
    may_start: bool
    """It is open and the cutoff has not begun."""
    closed_by: ClosedBy | None
    """Why nothing may start; a freeze is named before a closed window."""
    ref: str | None
    """`MaintenanceWindow/<name>` that closes, or opens next; None if the calendar closes nothing."""
    closes_at: datetime | None
    """When the opening of now ends, freezes counted; None if nothing is open, or the end is not within two years."""
    next_open: datetime | None
    """When something may start again; None if it may now, or not within two years."""
    at_end: AtEnd
    """What becomes of VMs in work: while open, at `closes_at`; once no window is open, now. A freeze lets them
    finish."""
    message: str
    """A sentence."""
    reason: Reason | None = None
    """`closed_by` as a reason of conditions; None if something may start."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a calendar cannot be computed; it is closed until a person mends that."""

    closed_by: Literal["window", "freeze"]
    reason: Reason
    name: str
    """Of the window."""
    message: str


def openings(windows: Sequence[MaintenanceWindow], freezes: Sequence[MaintenanceWindow]) -> "Openings":
    """The calendar of work that needs one of `windows` (none: any time will do) and may not happen in `freezes`."""
    return Openings(tuple(windows), tuple(freezes), _obstacle(windows, freezes))


def openings_of(policy: PatchPolicy, windows: Iterable[MaintenanceWindow]) -> "Openings":
    """The calendar of a policy; `windows`: all of its namespace, freezes included. One that it names and that is not
    there keeps it closed."""
    known = {window.metadata.name: window for window in windows}
    names = [ref.name for ref in policy.spec.window_refs]
    named = [known[name] for name in names if name in known]
    freezes = freezes_for(policy.metadata.labels, known.values())
    missing = next((name for name in names if name not in known), None)
    if missing is None:
        return openings(named, freezes)
    message = f"MaintenanceWindow {missing} does not exist"
    return Openings(tuple(named), freezes, Obstacle("window", Reason.WINDOW_NOT_FOUND, missing, message))


def freezes_for(
    policy_labels: Mapping[str, str], windows: Iterable[MaintenanceWindow]
) -> tuple[MaintenanceWindow, ...]:
    """The freezes among `windows` that select a policy with these labels."""
    return tuple(
        window
        for window in windows
        if window.spec.effect is Effect.DENY and _selects(window.spec.policy_selector, policy_labels)
    )


@dataclass(frozen=True, slots=True)
class Openings:
    """When work may begin; made by `openings` or `openings_of`."""

    windows: tuple[MaintenanceWindow, ...]
    freezes: tuple[MaintenanceWindow, ...]
    obstacle: Obstacle | None = None

    def at(self, now: datetime) -> Opening:
        """The calendar at a moment (with a zone). Nothing begins from `cutoff` before the end of the opening on, where
        the opening is the union of all windows minus freezes: a window that another one continues cuts nothing off."""
        if self.obstacle is not None:
            return _obstructed(self.obstacle)
        horizon = now + HORIZON
        current = next(self._effective(now, horizon), None)
        if current is None or current.start > now:
            return self._closed(now, horizon)
        closes_at = end_within(current.end, (*self.windows, *self.freezes), horizon)
        at_end = self._at_end(current.end) if closes_at is not None else AtEnd.FINISH
        if self._first_start(current, now) == now:
            until = f" until {format_time(closes_at)}" if closes_at is not None else ""
            return Opening(True, True, None, None, closes_at, None, at_end, f"open{until}")
        last = max(_on(self.windows, now), key=lambda found: found[0])[1]
        next_open = self._next_start(now, horizon)
        cut = format_duration(last.spec.cut)
        message = (
            f"open until {format_time(current.end)}, but nothing new starts in the last {cut} of MaintenanceWindow"
            f" {last.metadata.name}; {self._when(next_open, horizon)}"
        )
        ref = _ref(last)
        return Opening(True, False, "cutoff", ref, closes_at, next_open, at_end, message, Reason.WINDOW_CUTOFF)

    def _closed(self, now: datetime, horizon: datetime) -> Opening:
        next_open = self._next_start(now, horizon)
        when = self._when(next_open, horizon)
        freezes = _on(self.freezes, now)
        at_end = self._at_end_of_the_last(now)
        if freezes:
            freeze = max(freezes, key=lambda found: found[0])[1]
            why = f" ({freeze.spec.reason})" if freeze.spec.reason else ""
            message = f"frozen by MaintenanceWindow {freeze.metadata.name}{why}; {when}"
            return Opening(False, False, "freeze", _ref(freeze), None, next_open, at_end, message, Reason.FROZEN)
        upcoming = [
            (span.start, position)
            for position, window in enumerate(self.windows)
            for span in _first(spans(window, now, horizon))
        ]
        window = self.windows[min(upcoming)[1] if upcoming else 0]
        message = f"outside of its maintenance windows; {when}"
        return Opening(False, False, "window", _ref(window), None, next_open, at_end, message, Reason.OUTSIDE_WINDOW)

    def _allowed(self, now: datetime, horizon: datetime) -> Iterator[Span]:
        if not self.windows:
            return iter([Span(BEGIN, END)])
        return union(spans(window, now, horizon) for window in self.windows)

    def _effective(self, now: datetime, horizon: datetime) -> Iterator[Span]:
        """What is open and not frozen, from `now` on; the first may begin before."""
        frozen = union(spans(freeze, now, horizon) for freeze in self.freezes)
        return (span for span in minus(self._allowed(now, horizon), frozen) if span.end > now)

    def _next_start(self, now: datetime, horizon: datetime) -> datetime | None:
        """The first moment from `now` on at which something may start; openings shorter than a cutoff have none."""
        starts = (self._first_start(span, now) for span in self._effective(now, horizon))
        return next((start for start in starts if start is not None and start < horizon), None)

    def _first_start(self, opening: Span, now: datetime) -> datetime | None:
        """The first moment in an opening, from `now` on, at which a window is open whose cutoff has not begun."""
        since = max(opening.start, now)
        if not self.windows:
            return since
        found = []
        for window in self.windows:
            last = opening.end - window.spec.cut
            for span in spans(window, since, last):
                start = max(span.start, since)
                if start < min(span.end, last):
                    found.append(start)
                    break
        return min(found, default=None)

    def _at_end(self, end: datetime) -> AtEnd:
        """What the windows that end then say; the stricter counts. Only a freeze ends there: Finish."""
        asked = (
            window.spec.at_end
            for window in self.windows
            for span in spans(window, end - INSTANT, end)
            if span.end == end
        )
        return AtEnd.ROLL_BACK if AtEnd.ROLL_BACK in asked else AtEnd.FINISH

    def _at_end_of_the_last(self, now: datetime) -> AtEnd:
        """What the window says that closed last, unless one is open (below a freeze)."""
        ends = [span.end for window in self.windows for span in spans(window, now - LONGEST, now + INSTANT)]
        if not ends or max(ends) > now:
            return AtEnd.FINISH
        return self._at_end(max(ends))

    def _when(self, next_open: datetime | None, horizon: datetime) -> str:
        if next_open is not None:
            return f"opens next at {format_time(next_open)}"
        return NEVER_AGAIN if self.windows and all(is_over(w, horizon) for w in self.windows) else NOT_SOON


def _on(windows: Iterable[MaintenanceWindow], now: datetime) -> list[tuple[datetime, MaintenanceWindow]]:
    """The windows that are open, each with its end."""
    return [(span.end, window) for window in windows for span in spans(window, now, now + INSTANT)]


def _first(found: Iterator[Span]) -> list[Span]:
    return [span for span in [next(found, None)] if span is not None]


def _obstructed(obstacle: Obstacle) -> Opening:
    ref = f"MaintenanceWindow/{obstacle.name}"
    message = f"{obstacle.message}; nothing starts before that is mended"
    return Opening(False, False, obstacle.closed_by, ref, None, None, AtEnd.FINISH, message, obstacle.reason)


def _obstacle(windows: Sequence[MaintenanceWindow], freezes: Sequence[MaintenanceWindow]) -> Obstacle | None:
    for freeze in freezes:
        name, wrong = freeze.metadata.name, problem(freeze)
        if wrong is not None:
            return Obstacle("freeze", Reason.INVALID_SCHEDULE, name, f"MaintenanceWindow {name}: {wrong}")
    for window in windows:
        name, wrong = window.metadata.name, problem(window)
        if wrong is None and window.spec.effect is Effect.DENY:
            wrong = "it is a freeze (effect Deny) and cannot open anything"
        if wrong is not None:
            return Obstacle("window", Reason.INVALID_SCHEDULE, name, f"MaintenanceWindow {name}: {wrong}")
    return None


def _ref(window: MaintenanceWindow) -> str:
    return f"MaintenanceWindow/{window.metadata.name}"


def _selects(selector: LabelSelector | None, labels: Mapping[str, str]) -> bool:
    if selector is None:
        return True
    wanted = (selector.match_labels or {}).items()
    return all(labels.get(key) == value for key, value in wanted) and all(
        _holds(requirement, labels) for requirement in selector.match_expressions
    )


def _holds(requirement: SelectorRequirement, labels: Mapping[str, str]) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case SelectorOperator.IN:
            return value is not None and value in requirement.values
        case SelectorOperator.NOT_IN:
            return value not in requirement.values
        case SelectorOperator.EXISTS:
            return value is not None
        case SelectorOperator.DOES_NOT_EXIST:
            return value is None
