"""The program is killed: at every change, torn in the middle of a write, at any instruction, at any microsecond."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial

from tests.remote import debian
from tests.remote.dpkg import CUT
from tests.remote.vm import in_child

from faults.hooks import KILLED, Hook, Instructions, die, tear_writes
from faults.rows import Row, Trial, Verdict, in_child_then_judged
from faults.scenes import Scene, Scenes, next_boot, next_session, quiet, recovered
from faults.table import End

RANDOM_SCENES = ("forward", "failing", "by hand", "preparing", "singly")


def _arm(number: int, after: bool) -> Callable[[], object]:
    return lambda: Hook.arm_here(number, before=None if after else die, after=die if after else None)


def at_every_change(name: str, scenes: Scenes, _seeds: int, *, until: str = "") -> Iterator[Trial]:
    """Before and after each, recovered by a session and by a boot. `until`: the last change, where not all are new."""
    scene = scenes.get(name)
    last = scene.changes.index(until) + 1 if until else len(scene.changes)
    for number, change in enumerate(scene.changes[:last], 1):
        for after in (False, True):
            where = f"{name}, {'after' if after else 'before'} {number} {change}"
            # Twice: once a session recovers, once a boot.
            yield where, partial(_killed, scene, number, after, 0)
            yield where, partial(_killed, scene, number, after, 1)


def _killed(scene: Scene, number: int, after: bool, turn: int, _trial: int) -> Verdict:
    return in_child_then_judged(scene, _arm(number, after), turn, codes=(KILLED,))


def torn(scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """Half of a record, or of a file, reaches the disk."""
    for name in ("preparing", "forward", "failing", "by hand"):
        scene = scenes.get(name)
        for number in range(1, 1 + sum(change in ("write", "record") for change in scene.changes)):
            arm = partial(tear_writes, number)
            # The lock's own text and empty files are written without being a change, so a few more or less are hit.
            yield f"{name}, write {number}", partial(in_child_then_judged, scene, arm)


def twice(scenes: Scenes, seeds: int) -> Iterator[Trial]:
    """Killed at a change of the work, and again at a change of the recovery, which is then repeated."""
    draw = random.Random("twice")
    for name in ("forward", "failing", "by hand"):
        scene = scenes.get(name)
        firsts = [n for n, change in enumerate(scene.changes, 1) if change not in ("times", "owner")]
        for number in range(seeds * 2):
            first = firsts[number % len(firsts)]
            yield f"{name}, {first} {scene.changes[first - 1]}", partial(_twice, scene, first, draw.random(), 1)


def thrice(scenes: Scenes, seeds: int) -> Iterator[Trial]:
    """The recovery is killed three times in a row, each time at another change."""
    draw = random.Random("thrice")
    scene = scenes.get("forward")
    for _ in range(seeds):
        first = draw.randrange(1, len(scene.changes) + 1)
        yield f"{first} {scene.changes[first - 1]}", partial(_twice, scene, first, draw.random(), 3)


def _twice(scene: Scene, first: int, chance: float, times: int, turn: int) -> Verdict:
    scene.reset()
    if in_child(lambda: (_arm(first, bool(turn % 3))(), scene.work())) != KILLED:
        return End.NEITHER, "the first kill did not happen"
    draw = random.Random(chance)
    for _ in range(times):
        # How many changes the recovery has is not known before: up to 70, and one that ends before its kill is fine.
        number, after = draw.randrange(1, 70), draw.random() < 0.5

        def again(number: int = number, after: bool = after) -> None:
            _arm(number, after)()
            with quiet():
                next_boot(scene.vm, scene.judge.services) if turn % 2 else next_session(scene.vm)

        code = in_child(again)
        if code not in (0, KILLED):
            return End.NEITHER, f"a recovery that was killed at change {number} ended with {code}"
    recovered(scene, turn)
    return scene.judged()


# ------------------------------------------------------------------------------------------ at random


def at_instructions(scenes: Scenes, seeds: int) -> Iterator[Trial]:
    """Any bytecode instruction of the program's modules."""
    for name in RANDOM_SCENES:
        scene = scenes.get(name)
        total = _count_instructions(scene)
        for seed in range(seeds):
            chosen = random.Random(f"{name} {seed}").randrange(1, total + 1)
            yield f"{name}, instruction {chosen} of {total}", partial(_at_instruction, scene, chosen)


def _count_instructions(scene: Scene) -> int:
    reading, writing = os.pipe()

    def child() -> None:
        counting = Instructions(None)
        counting.start()
        try:
            scene.work()
        finally:
            counting.stop()
        os.write(writing, str(counting.count).encode())

    scene.reset()
    code = in_child(child)
    os.close(writing)
    with os.fdopen(reading) as told:
        text = told.read()
    assert code == 0, f"counting ended with {code}"
    return int(text)


def _at_instruction(scene: Scene, chosen: int, turn: int) -> Verdict:
    # A loop that waits may make a run shorter than the counted one; then it simply ended before its fault.
    return in_child_then_judged(scene, lambda: Instructions(chosen).start(), turn, codes=(0, KILLED))


def at_microseconds(scenes: Scenes, seeds: int) -> Iterator[Trial]:
    """SIGKILL from outside at a random moment; three of four hit before the work ends."""
    for name in RANDOM_SCENES:
        scene = scenes.get(name)
        for seed in range(seeds):
            yield f"{name}, seed {seed}", partial(_at_microsecond, scene, random.Random(f"us {name} {seed}").random())


_durations: dict[int, float] = {}


def _at_microsecond(scene: Scene, chance: float, turn: int) -> Verdict:
    if id(scene) not in _durations:
        scene.reset()
        began = time.monotonic()
        in_child(scene.work)
        _durations[id(scene)] = time.monotonic() - began
    scene.reset()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            scene.work()
            code = 0
        finally:
            os._exit(code)
    time.sleep(chance * _durations[id(scene)] * 1.3)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    recovered(scene, turn)
    return scene.judged()


def in_dpkg(scenes: Scenes, seeds: int) -> Iterator[Trial]:
    """dpkg and the program die together, as in a loss of power."""
    scene = scenes.get("packages")
    for seed in range(seeds):
        yield f"seed {seed}", partial(_in_dpkg, scene, random.Random(f"dpkg {seed}").random() * DPKG_SECONDS)


DPKG_SECONDS = 0.4
"""An installation takes less on an idle machine; one that has ended before is killed right behind it."""


def _in_dpkg(scene: Scene, seconds: float, turn: int) -> Verdict:
    scene.reset()
    (scene.vm.root / CUT).write_text(str(seconds))
    if in_child(scene.work) != KILLED:
        return End.NEITHER, "dpkg was not killed"
    (scene.vm.root / CUT).unlink()
    recovered(scene, turn)
    return scene.judged()


# ------------------------------------------------------------------------------------------ the backup destroyed


def backup_destroyed(scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """All that one could go back to is removed at each change of a patch that has to go back."""
    scene = scenes.get("failing")
    for number, change in enumerate(scene.changes, 1):
        yield f"{number} {change}", partial(_destroyed, scene, number)


def _destroyed(scene: Scene, number: int, turn: int) -> Verdict:
    stage = scene.vm.root / "opt/.sysvm-op-1"

    def destroy(_name: str) -> None:
        for name in ("trees", "back"):
            shutil.rmtree(stage / name, ignore_errors=True)

    return in_child_then_judged(scene, lambda: Hook.arm_here(number, before=destroy), turn, swallow=True)


def _with_dpkg(*rows: Row) -> tuple[Row, ...]:
    """They need the real one, and the right to use it."""
    return () if debian.missing() else rows


def _every(name: str) -> Callable[[Scenes, int], Iterator[Trial]]:
    return partial(at_every_change, name)


ROWS = (
    Row("killed before and after every change, going forward", _every("forward")),
    Row("... of a patch that fails and goes back", _every("failing")),
    Row("... while it prepares", _every("preparing")),
    Row("... while a person takes it back", _every("by hand")),
    Row("... while configure.py applies a data bag", _every("databags")),
    *_with_dpkg(
        Row("... while Debian packages are installed", partial(at_every_change, "packages", until="exchange")),
        Row("... of a patch that goes back after Debian packages", _every("packages failing")),
    ),
    Row("... where folders cannot be exchanged", _every("singly")),
    Row("killed in the middle of a write", torn),
    Row("killed, and its recovery killed too", twice),
    Row("killed, and its recovery killed three times", thrice),
    Row("killed at a random instruction", at_instructions),
    Row("killed at a random microsecond", at_microseconds),
    *_with_dpkg(Row("killed at a random microsecond, dpkg too", in_dpkg)),
    Row("the backup is destroyed", backup_destroyed, loud=True),
)
