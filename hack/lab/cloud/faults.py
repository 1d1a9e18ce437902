"""What can be wrong with a management server, to be switched while it runs.

Every fault is a field of `Faults` with a value that means "not now", so a test reads as a sentence:
`world.faults.patch = Patch.NOTHING`. What happens once is a counter that goes down; what lasts is a value.
"""

from __future__ import annotations

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
        """Sets switches by name from plain values. Raises ValueError for an unknown name or a value that cannot be."""
        kinds: dict[str, type] = {"patch": Patch, "cut_job": CutJob, "answer": Answer, "commands": set}
        for name, value in values.items():
            if name not in {each.name for each in fields(self)}:
                raise ValueError(f"no fault {name!r}; there are {', '.join(each.name for each in fields(self))}")
            kind = kinds.get(name, type(getattr(self, name)))
            setattr(self, name, kind(value))
