"""The program is killed while it comes to terms with somebody else's patch: before, while it mends, at its last word.

The archives here are real ones, so that what others left half done can be written anew out of the ordered one.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

from tests.remote import systemd
from tests.remote.vm import (
    BODIES,
    NEW_FILES,
    NEW_TREE,
    OLD_TREE,
    SIGNATURE,
    TGZ,
    VM,
    in_child,
    make_order,
    sha256,
)

from faults.hooks import KILLED, Hook, die
from faults.others import archive
from faults.rows import Row, Trial, Verdict
from faults.scenes import Judge, Scene, Scenes, next_boot, next_session, quiet, recovered
from faults.table import End

_TREE = "opt/cloud/"
OURS = archive({**{_TREE + path: body for path, body in NEW_TREE.items()}, **NEW_FILES})
_THEIR_FILES = {
    **{_TREE + path: body for path, body in OLD_TREE.items() if "twin" not in path},
    _TREE + "bin/configure.py": b"import theirs\n",
    _TREE + "bin/cs/CsHelper.py": b"their helper\n",
    "etc/haproxy/haproxy.cfg": b"good theirs\n",
}
THEIRS = archive(_THEIR_FILES)
SAME = archive({**{_TREE + path: body for path, body in NEW_TREE.items()}, **NEW_FILES, "root/marker": b"same\n"})


def checksum(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def _lay(root: Path, members: dict[str, bytes]) -> None:
    """As tar does: each file made anew; here with mode and attributes that it had, which no archive would change."""
    for path, content in members.items():
        there, beside = root / path, (root / path).with_name("theirs")
        there.parent.mkdir(parents=True, exist_ok=True)
        if there.exists():
            shutil.copy2(there, beside)
        beside.write_bytes(content)
        beside.rename(there)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _put(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def whole(root: Path) -> None:
    """Their live patch, from its first file to its restart."""
    _lay(root, _THEIR_FILES)
    _put(root / SIGNATURE, checksum(THEIRS).encode() + b"\n")
    _put(root / TGZ, THEIRS)
    systemd.systemctl(str(root), ["restart", "haproxy"])


def half(root: Path) -> None:
    """It died after some files, with its archive in place."""
    _lay(root, {path: _THEIR_FILES[path] for path in (_TREE + "bin/configure.py", "etc/haproxy/haproxy.cfg")})
    _put(root / TGZ, THEIRS)


def same(root: Path) -> None:
    """They install the very files that were ordered, out of an archive of their own."""
    _lay(root, {path: body for path, body in NEW_FILES.items() if path.startswith("etc/haproxy")})
    _put(root / TGZ, SAME)
    _put(root / SIGNATURE, checksum(SAME).encode() + b"\n")


def nonsense(root: Path) -> None:
    """A signature that speaks of no archive."""
    _put(root / SIGNATURE, b"c" * 32)


Act = Callable[[Path], None]
ACTS: tuple[Act, ...] = (whole, half, same, nonsense)


@cache
def _order() -> dict[str, object]:
    BODIES[sha256(OURS)] = OURS
    payload = {"path": "/" + TGZ, "sha256": sha256(OURS), "size": len(OURS)}
    return make_order(payload=payload, signature=checksum(OURS))


class Overtaken(Scene):
    """A patch forward in the middle of which `act` happens, at a change whose number is a share of them all."""

    def __init__(self, vm: VM, judge: Judge, act: Act, share: float) -> None:
        self._act = act
        self.at = 0
        super().__init__(vm, judge, lambda: vm.run("op-1"))
        undisturbed = len(self.changes)
        self.at = int(undisturbed * share)
        counting = self.arm(0, None)
        try:
            self.work()
        finally:
            Hook.disarm()
        self.changes = counting.names
        vm.reset()

    def arm(self, number: int, after: bool | None) -> Hook:
        """The others act at their change; the program dies before or after the `number`-th."""
        seen = 0

        def before(name: str) -> None:
            nonlocal seen
            seen += 1
            if seen == self.at:
                self._act(self.vm.root)
            if seen == number and after is False:
                die(name)

        def done(name: str) -> None:
            if seen == number and after is True:
                die(name)

        return Hook.arm_here(1, before=before, after=done, last=1 << 30)

    def judged(self, foreign: frozenset[str] = frozenset()) -> Verdict:
        root, signature = self.vm.root, self.vm.signature()
        in_place = (root / TGZ).read_bytes()
        if signature == checksum(THEIRS) and in_place == THEIRS:
            wrong = [path for path, body in _THEIR_FILES.items() if _read(root / path) != body]
            running = systemd.runs_with(str(root), "haproxy").encode() == _THEIR_FILES["etc/haproxy/haproxy.cfg"]
            if wrong or not running or self.vm.systemd() != self.judge.services:
                said = [(report["phase"], report["message"][-200:]) for _, report in self.vm.store().operations()]
                return End.NEITHER, f"their signature, not their files: {wrong}, {self.vm.systemd()}, {running}, {said}"
            return End.THEIRS, ""
        theirs = signature == checksum(SAME) and in_place == SAME
        return super().judged(frozenset([SIGNATURE, TGZ]) if theirs else foreign)


def _scene(scenes: Scenes, act: Act, share: float) -> Overtaken:
    vm = scenes.blank()
    judge = Judge(vm.state(), vm.systemd(), archive=OURS, signature=checksum(OURS))
    vm.prepare(_order())
    return Overtaken(vm, judge, act, share)


SHARES = (0.35, 0.6, 0.85)
"""While files change places, while services are acted on, before the commit."""


def killed(times: int, scenes: Scenes, seeds: int) -> Iterator[Trial]:
    """From the others' act on, before and after each change; `times`: how often the recovery is killed as well."""
    for act in ACTS:
        for share in SHARES:
            scene = _scene(scenes, act, share)
            numbers = list(range(scene.at, len(scene.changes) + 1))
            if times:
                numbers = random.Random(f"{act.__name__} {share}").choices(numbers, k=max(1, seeds // 4))
            for number in numbers:
                for after in (False, True):
                    where = f"{act.__name__} at {scene.at}, {'after' if after else 'before'} {number}"
                    yield f"{where} {scene.changes[number - 1]}", partial(_killed, scene, number, after, times)


def _killed(scene: Overtaken, number: int, after: bool, times: int, turn: int) -> Verdict:
    scene.reset()
    code = in_child(lambda: (scene.arm(number, after), scene.work()))
    if code not in (0, KILLED):
        return End.NEITHER, f"the process ended with {code}"
    draw = random.Random(f"{number} {after} {turn}")
    for _ in range(times):
        second, late = draw.randrange(1, 50), draw.random() < 0.5

        def again(second: int = second, late: bool = late) -> None:
            Hook.arm_here(second, before=None if late else die, after=die if late else None)
            with quiet():
                next_boot(scene.vm, scene.judge.services) if turn % 2 else next_session(scene.vm)

        code = in_child(again)
        if code not in (0, KILLED):
            return End.NEITHER, f"a recovery that was killed at change {second} ended with {code}"
    recovered(scene, turn)
    return scene.judged()


ROWS = (
    Row("killed while others overtake", partial(killed, 0), foreign=True),
    Row("... and its recovery killed too", partial(killed, 1), foreign=True),
)
