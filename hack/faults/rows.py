"""What a row of the table is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.remote.vm import in_child

from faults.scenes import Scene, Scenes, recovered
from faults.table import End

Verdict = tuple[End, str]
Trial = tuple[str, Callable[[int], Verdict]]
"""Where it happens, and what is done: called with the trial's number, by which session and boot take turns."""


@dataclass(frozen=True)
class Row:
    """A fault and all of its trials.

    Attributes:
        name: as it stands in the table.
        trials: every place where it happens; `seeds` says how many where chance decides.
        loud: the way back may be destroyed (removed, overwritten by somebody else, on a disk that is broken), so that
            INCONSISTENT is what has to come.
        foreign: somebody else writes a whole payload, which may be what stays.
    """

    name: str
    trials: Callable[[Scenes, int], Iterator[Trial]]
    loud: bool = False
    foreign: bool = False


def in_child_then_judged(
    scene: Scene, arm: Callable[[], object], number: int, *, codes: tuple[int, ...] = (), swallow: bool = False
) -> Verdict:
    """The scene's work with a fault, in a process of its own; recovery; the verdict.

    `codes`: how that process must end, if it matters. `swallow`: what the system refused may come out of it.
    """
    scene.reset()

    def child() -> None:
        arm()
        try:
            scene.work()
        except OSError:
            if not swallow:
                raise

    code = in_child(child)
    if codes and code not in codes:
        return End.NEITHER, f"the process ended with {code}, not with {codes}: the fault did not happen"
    recovered(scene, number)
    return scene.judged()
