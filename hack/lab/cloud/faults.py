"""What can be wrong with a management server, to be switched while it runs.

Every fault is a field of `Faults` with a value that means "not now", so a test reads as a sentence:
`world.faults.patch = Patch.NOTHING`. What happens once is a counter that goes down; what lasts is a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import StrEnum


class Patch(StrEnum):
    """What a live patch does."""

    WORKS = "works"
    NOTHING = "nothing"
    """Success is reported and nothing was done."""
    FIRST_ONLY = "first-only"
    """Of several routers only the first is patched; success is reported."""
    FAILS = "fails"
    """The host reports a failure: patchSystemVm says so, restartNetwork and restartVPC report success."""


class CutJob(StrEnum):
    """What becomes of the work when the server loses a job (jobstatus 2 without a result)."""

    NO = "no"
    WORK_STOPS = "work-stops"
    WORK_GOES_ON = "work-goes-on"


class Answer(StrEnum):
    """What is answered instead of the truth."""

    TRUE = "true"
    HTML = "html"
    """200 and a login page: the URL is that of the user interface or of a proxy."""
    HALF = "half"
    """The first half of the body, then the connection ends."""
    EMPTY = "empty"
    """200 without a body."""
    GARBAGE = "garbage"
    """JSON that is no answer."""


@dataclass
class Faults:
    """The switches. `commands` limits what concerns answers to some commands; empty: all."""

    patch: Patch = Patch.WORKS
    restart_does_nothing: bool = False
    """restartNetwork and restartVPC with cleanup report success and replace nothing."""
    cut_job: CutJob = CutJob.NO
    """Jobs submitted from now on are cut a moment after they began."""
    start_fails: int = 0
    """So many starts of a VM fail: a new router is left Stopped, a system VM cycles until one works."""
    keep_old_router: bool = False
    """A cleanup leaves the old router running beside the new one: two with the same gateway."""
    lose_rules: int = 0
    """So many rules of each kind never reach a router that is started or programmed."""
    second_router: bool = False
    """A cleanup of a single-router network makes two new ones."""
    answer: Answer = Answer.TRUE
    throttle: int = 0
    """So many requests get 429."""
    throttle_milliseconds: int = 528
    errors: int = 0
    """So many requests get `error_status` and a page of text, as a proxy in front would answer."""
    error_status: int = 503
    delay_seconds: float = 0.0
    """Every answer is this late, and so is what it is about."""
    late_seconds: float = 0.0
    """The answer is this late, and what it is about has begun."""
    clock_ahead_seconds: float = 0.0
    """The server's clock is ahead of (or, negative, behind) everybody's."""
    half_lists: bool = False
    """Lists end early: `count` says how many there are, but half of each page is missing."""
    commands: set[str] = field(default_factory=set)

    def concerns(self, command: str) -> bool:
        return not self.commands or command in self.commands

    def heal(self) -> None:
        """All switches back."""
        fresh = Faults()
        for each in fields(self):
            setattr(self, each.name, getattr(fresh, each.name))

    def set_from(self, values: dict[str, object]) -> None:
        """Sets switches by name from plain values, all of them or none.

        Raises ValueError for an unknown name, and for a value that would not do what it says.
        """
        read = {name: _read(name, value) for name, value in values.items()}
        for name, value in read.items():
            setattr(self, name, value)


def names_of(value: object) -> set[str]:
    """Names of commands from a list of them, or from words with commas or spaces between. Raises ValueError."""
    listed = re.split(r"[,\s]+", value) if isinstance(value, str) else value
    names = list(listed) if isinstance(listed, Iterable) else [None]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"commands are names with commas between them, not {value!r}")
    return {str(name) for name in names if name}


def _read(name: str, value: object) -> object:
    """What the switch is set to: `"no"` is no truth value, and letters are no commands."""
    fresh = Faults()
    if name not in {each.name for each in fields(fresh)}:
        raise ValueError(f"no fault {name!r}; there are {', '.join(each.name for each in fields(fresh))}")
    usual: object = getattr(fresh, name)
    if isinstance(usual, set):
        return names_of(value)
    if isinstance(usual, StrEnum):
        there = [str(each) for each in type(usual)]
        if value not in there:
            raise ValueError(f"{name} is one of {', '.join(there)}, not {value!r}")
        return type(usual)(value)
    if isinstance(usual, bool):
        if value not in (True, False):
            raise ValueError(f"{name} is true or false, not {value!r}")
        return bool(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(usual, float):
            return float(value)
        if isinstance(value, int):
            return value
    raise ValueError(f"{name} is a {'number' if isinstance(usual, float) else 'count'}, not {value!r}")
