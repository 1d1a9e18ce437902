"""Others are at work on the same VM: CloudStack, another operator, one that leads no more, one whose line is cut."""

from __future__ import annotations

import hashlib
import io
import os
import random
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

from tests.remote import systemd
from tests.remote.vm import (
    BODIES,
    NEW_FILES,
    NEW_TGZ,
    NEW_TREE,
    OLD_FILES,
    OLD_TGZ,
    OLD_TREE,
    SIGNATURE,
    TGZ,
    FakeHost,
    in_child,
    make_order,
)

from faults.hooks import Hook, die
from faults.rows import Row, Trial, Verdict
from faults.scenes import Scene, Scenes, broken_order, next_session, recovered
from faults.table import End
from sysvm.patching import framing
from sysvm.patching.remote import order as orders
from sysvm.patching.remote import worker
from sysvm.patching.remote.failures import Failure
from sysvm.patching.remote.host import Outcome
from sysvm.patching.remote.serve import Session
from sysvm.patching.remote.store import Store
from sysvm.patching.remote.wire import Closed, Wire

# ------------------------------------------------------------------------------------------ CloudStack

STAGED = "var/cache/cloud/cloud-scripts.tgz"
_THEIRS = {
    "opt/cloud/bin/configure.py": b"import theirs\n",
    "opt/cloud/bin/cs/CsHelper.py": b"their helper\n",
    "etc/haproxy/haproxy.cfg": b"good theirs\n",
    "etc/cron.daily/clear_cache": b"#!/bin/sh\ntheirs\n",
    "root/func.sh": b"their functions\n",
}


def archive(members: dict[str, bytes]) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for path, content in members.items():
            entry = tarfile.TarInfo(path)
            entry.mode, entry.size = 0o755, len(content)
            archive.addfile(entry, io.BytesIO(content))
    return plain.getvalue()


THEIRS_TGZ = archive(_THEIRS)
THEIRS_SIGNATURE = hashlib.md5(THEIRS_TGZ).hexdigest()
_PAYLOADS = {
    OLD_TGZ: {**{f"opt/cloud/{path}": body for path, body in OLD_TREE.items()}, **OLD_FILES},
    NEW_TGZ: {**{f"opt/cloud/{path}": body for path, body in NEW_TREE.items()}, **NEW_FILES},
    THEIRS_TGZ: _THEIRS,
}
"""What `tar -C /` writes, by the archive."""


def untar(root: Path, archive: bytes) -> None:
    """Over everything, each file removed and made anew, nothing else taken away."""
    for path, content in _PAYLOADS[archive].items():
        there = root / path
        there.parent.mkdir(parents=True, exist_ok=True)
        there.unlink(missing_ok=True)
        there.write_bytes(content)
        there.chmod(0o755)


def live_patch(root: Path) -> list[Callable[[], object]]:
    """The steps of CloudStack 4.21 patch-sysvms.sh, each to be called in its turn."""
    return [
        lambda: (root / STAGED).write_bytes(THEIRS_TGZ),
        lambda: untar(root, THEIRS_TGZ),
        lambda: (root / SIGNATURE).write_text(THEIRS_SIGNATURE + "\n"),
        lambda: systemd.systemctl(str(root), ["restart", "haproxy"]),
        lambda: (root / STAGED).rename(root / TGZ),
    ]


def boot_patch(root: Path) -> None:
    """CloudStack 4.21 common.sh at each boot: where signature and archive differ, the whole archive once more."""
    archive = (root / TGZ).read_bytes()
    checksum = hashlib.md5(archive).hexdigest()
    if (root / SIGNATURE).read_text().strip() != checksum:
        untar(root, archive)
        (root / SIGNATURE).write_text(checksum + "\n")


def judged_with_theirs(scene: Scene) -> Verdict:
    """THEIRS is a whole payload of somebody else: every file, the archive and the signature."""
    root = scene.vm.root
    signature, archive = scene.vm.signature(), (root / TGZ).read_bytes()
    if any(report["phase"] == "Inconsistent" for _, report in scene.vm.store().operations()):
        # Loud whatever CloudStack wrote into the signature afterwards: the operation is held until a person accepts.
        return End.INCONSISTENT, ""
    if signature == THEIRS_SIGNATURE and archive == THEIRS_TGZ:
        wrong = [path for path, body in _THEIRS.items() if (root / path).read_bytes() != body]
        return (End.NEITHER, f"their signature, not their files: {wrong}") if wrong else (End.THEIRS, "")
    return scene.judged()


def cloudstack_at_once(name: str, scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """Its whole live patch happens between two of our changes."""
    scene = scenes.get(name)
    for number, change in enumerate(scene.changes, 1):
        yield f"{number} {change}", partial(_cloudstack, scene, [number] * 5)


def cloudstack_spread(scenes: Scenes, seeds: int) -> Iterator[Trial]:
    """It begins at one of our changes and goes on by steps at later ones, and after our end."""
    draw = random.Random("spread")
    for name in ("forward", "failing"):
        scene = scenes.get(name)
        for _ in range(seeds):
            first = draw.randrange(1, len(scene.changes) + 1)
            steps = sorted([first, *(draw.randrange(first, len(scene.changes) * 2) for _ in range(4))])
            yield f"{name}, {steps}", partial(_cloudstack, scene, steps)


def _cloudstack(scene: Scene, at: list[int], turn: int) -> Verdict:
    scene.reset()
    todo = list(zip(at, live_patch(scene.vm.root), strict=True))
    left = scene.vm.base / "left"

    def child() -> None:
        def act(_name: str) -> None:
            while todo and todo[0][0] <= len(hook.names):
                todo.pop(0)[1]()
                left.write_text(str(len(todo)))

        def wait(_host: FakeHost, seconds: float) -> None:
            """Who waits sees the other go on."""
            time.sleep(min(seconds, 0.01))
            if todo and len(todo) < len(at):
                todo.pop(0)[1]()
                left.write_text(str(len(todo)))

        left.write_text(str(len(todo)))
        hook = Hook.arm_here(1, before=act, last=1 << 30)
        with patch.object(FakeHost, "wait", wait):
            try:
                scene.work()
            except (OSError, Failure):
                pass

    if code := in_child(child):
        return End.NEITHER, f"the process ended with {code}"
    for step in live_patch(scene.vm.root)[5 - int(left.read_text()) :]:
        step()
    recovered(scene, turn)
    return judged_with_theirs(scene)


def foreign_write(path: str, content: bytes, scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """One file is written by somebody else at each of our changes."""
    for name in ("forward", "failing"):
        scene = scenes.get(name)
        for number, change in enumerate(scene.changes, 1):
            yield f"{name}, {number} {change}", partial(_written, scene, number, path, content)


def _written(scene: Scene, number: int, path: str, content: bytes, turn: int) -> Verdict:
    scene.reset()
    there = scene.vm.root / path

    def write(_name: str) -> None:
        there.unlink(missing_ok=True)
        there.write_bytes(content)

    def child() -> None:
        Hook.arm_here(number, before=write)
        try:
            scene.work()
        except (OSError, Failure):
            pass

    if code := in_child(child):
        return End.NEITHER, f"the process ended with {code}"
    recovered(scene, turn)
    his = there.read_bytes() == content
    return scene.judged(frozenset([path]) if his else frozenset())


def boot_patch_after_kill(scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """Killed at each change, the boot's recovery and CloudStack's re-patch run one after the other."""
    for name in ("forward", "failing", "by hand"):
        scene = scenes.get(name)
        for number, change in enumerate(scene.changes, 1):
            yield f"{name}, {number} {change}", partial(_boot_patch, scene, number)


def _boot_patch(scene: Scene, number: int, _turn: int) -> Verdict:
    scene.reset()
    in_child(lambda: (Hook.arm_here(number, after=die), scene.work()))
    recovered(scene, 1)
    before = scene.vm.state()
    boot_patch(scene.vm.root)
    if scene.vm.state() != before:
        return End.NEITHER, "the boot's recovery left a signature that made CloudStack patch again"
    return scene.judged()


# ------------------------------------------------------------------------------------------ operators


def lock_held(scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """Another session holds the VM's lock for a while, or for ever."""
    yield "preparing, for ever", partial(_lock_held, scenes.get("preparing"), 1.5)
    yield "forward, longer than anybody waits", partial(_lock_held, scenes.get("forward"), 20.0)
    for seconds in (0.05, 0.3, 1.0):
        for name in ("forward", "failing", "preparing", "by hand"):
            yield f"{name}, {seconds} s", partial(_lock_held, scenes.get(name), seconds)


def _lock_held(scene: Scene, seconds: float, turn: int) -> Verdict:
    scene.reset()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        store = scene.vm.store()
        store.take_lock("somebody")
        os.write(writing, b"1")
        time.sleep(seconds)
        os._exit(0)
    os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    try:
        scene.work()
    except Failure as failure:
        if failure.reason != "LockHeld":
            return End.NEITHER, f"refused with {failure.reason}"
    os.waitpid(pid, 0)
    recovered(scene, turn)
    return scene.judged()


def two_operators(epoch: int, scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """Another operator gives an order at each change: the lock refuses it, and the work ends as if it were alone."""
    for name in ("preparing", "forward", "failing", "by hand"):
        scene = scenes.get(name)
        for number, change in enumerate(scene.changes, 1):
            for order in ("op-1", "op-2"):
                yield f"{name}, {number} {change}, {order}", partial(_two_operators, scene, name, number, order, epoch)


def _two_operators(scene: Scene, name: str, number: int, order: str, epoch: int, turn: int) -> Verdict:
    scene.reset()

    def interfere(_name: str) -> None:
        if scene.vm.store().holder() is None:
            # Nobody has the lock yet: whoever comes first is the one.
            return
        session = scene.vm.session()
        try:
            begun = session.do_begin(1, {"order": make_order(order, epoch=epoch)})
        except Failure as failure:
            if failure.reason not in ("LockHeld", "EpochRefused"):
                os._exit(3)
        else:
            # Of the same id it may say that it goes on, or is over; it must not be let in.
            if begun["state"] == "staging":
                os._exit(4)
        finally:
            session.let_go()

    def child() -> None:
        Hook.arm_here(number, before=interfere)
        scene.work()

    if code := in_child(child):
        return End.NEITHER, f"the process ended with {code}"
    if name == "preparing":
        scene.vm.run("op-1")
    recovered(scene, turn)
    return scene.judged()


def deposed(scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """Killed at each change; a new leader comes with a higher epoch, then the old one tries to go on."""
    for name in ("preparing", "forward", "failing"):
        scene = scenes.get(name)
        for number, change in enumerate(scene.changes, 1):
            yield f"{name}, {number} {change}", partial(_deposed, scene, number)


def _deposed(scene: Scene, number: int, turn: int) -> Verdict:
    scene.reset()
    vm = scene.vm
    in_child(lambda: (Hook.arm_here(number, before=None if turn % 2 else die, after=die), scene.work()))
    fails = turn % 3 == 0
    order = {**(broken_order() if fails else make_order()), "id": "op-2", "epoch": 9}
    vm.prepare(order)
    session = vm.session()
    try:
        begun = session.do_begin(1, {"order": make_order("op-1", epoch=3)})
        if begun["state"] != "finished":
            return End.NEITHER, f"the deposed leader was let in: {begun['state']}"
    except Failure as failure:
        if failure.reason != "EpochRefused":
            return End.NEITHER, f"the deposed leader was refused with {failure.reason}"
    finally:
        session.let_go()
    host = vm.host()
    try:
        worker.run(host, Store(host), "op-1")
    except Failure:
        # Its operation is over, and may be forgotten.
        pass
    if vm.report("op-2")["phase"] != "Built":
        return End.NEITHER, f"the deposed leader's program touched the new one's: {vm.report('op-2')['phase']}"
    vm.run("op-2")
    next_session(vm)
    return scene.judged()


# ------------------------------------------------------------------------------------------ the line is cut


class _DetachingHost(FakeHost):
    """Starts the worker as systemd-run does: in a process that outlives its session, with one descriptor of ours."""

    kept = 3

    def has_program(self, name: str) -> bool:
        return True

    def run(self, argv: list[str], timeout: float, folder: str = "/", merged: bool = True) -> Outcome:
        if argv[0] != "systemd-run":
            return super().run(argv, timeout, folder, merged)
        if os.fork() == 0:
            os.setsid()
            # As an exec does; but for the pipe by which the trial knows when everybody is done.
            os.closerange(3, self.kept)
            os.closerange(self.kept + 1, 1024)
            code = 1
            try:
                host = FakeHost(self.root)
                code = worker.run(host, Store(host), argv[-1])
            finally:
                os._exit(code)
        return Outcome(argv, 0, "")


def _conversation(order: dict[str, object]) -> list[bytes]:
    """All that an operator sends, as frames."""
    wanted = sorted(orders.contents(order))
    items = [{"sha256": d, "size": len(BODIES[d]), "encoding": "identity", "wire_size": len(BODIES[d])} for d in wanted]
    frames = [framing.encode_json({"id": 1, "verb": "probe", "args": {"units": ["haproxy"], "paths": ["/opt"]}})]
    frames.append(framing.encode_json({"id": 2, "verb": "begin", "args": {"order": order}}))
    frames.append(framing.encode_json({"id": 3, "verb": "stage", "args": {"items": items}}))
    for digest in wanted:
        frames += list(framing.encode_bytes(BODIES[digest]))
    frames.append(framing.encode_json({"id": 4, "verb": "build", "args": {}}))
    frames.append(framing.encode_json({"id": 5, "verb": "run", "args": {"id": order["id"]}}))
    frames.append(framing.encode_json({"id": 6, "verb": "bye", "args": {}}))
    return frames


def cut(scenes: Scenes, seeds: int) -> Iterator[Trial]:
    """The session's input ends after every frame, in the middle of one, and its output is gone, too."""
    scene = scenes.get("preparing")
    for broken in (False, True):
        order = broken_order() if broken else make_order()
        frames = _conversation(order)
        ends = [sum(map(len, frames[:count])) for count in range(len(frames) + 1)]
        draw = random.Random("cut")
        ends += [draw.randrange(ends[-1]) for _ in range(seeds // 2)]
        whole = b"".join(frames)
        for end in ends:
            for deaf in (False, True):
                where = f"after {end} of {len(whole)} bytes{', output gone' if deaf else ''}"
                yield where, partial(_cut, scene, whole[:end], deaf)


def _cut(scene: Scene, sent: bytes, deaf: bool, turn: int) -> Verdict:
    scene.reset()
    reading, writing = os.pipe()

    def child() -> None:
        os.close(reading)
        source = os.open(scene.vm.base / "sent", os.O_RDONLY)
        ours, sink = os.pipe()
        if deaf:
            os.close(ours)
        else:
            sink = os.open(os.devnull, os.O_WRONLY)
        host = _DetachingHost(str(scene.vm.root))
        host.kept = writing
        try:
            Session(Wire(source, sink), host, Store(host), b"program", "d" * 64).serve()
        except Closed:
            pass

    (scene.vm.base / "sent").write_bytes(sent)
    code = in_child(child)
    os.close(writing)
    # The worker has the other end, and the pipe closes with the last process of this trial.
    os.read(reading, 1)
    os.close(reading)
    if code:
        return End.NEITHER, f"the session ended with {code}"
    recovered(scene, turn)
    return scene.judged()


ROWS = (
    Row("CloudStack's live patch between two changes", partial(cloudstack_at_once, "forward"), foreign=True, loud=True),
    Row("... of a patch that goes back", partial(cloudstack_at_once, "failing"), foreign=True, loud=True),
    Row("CloudStack's live patch spread over ours", cloudstack_spread, foreign=True, loud=True),
    Row("somebody writes the signature", partial(foreign_write, SIGNATURE, b"c" * 32), foreign=True, loud=True),
    Row("somebody writes the archive", partial(foreign_write, TGZ, THEIRS_TGZ), foreign=True, loud=True),
    Row("killed, then CloudStack's patch at boot", boot_patch_after_kill),
    Row("the lock is held", lock_held),
    Row("two operators at once", partial(two_operators, 3)),
    Row("an operator of an older epoch at every change", partial(two_operators, 2)),
    Row("a leader deposed at every change tries again", deposed),
    Row("the session is cut at every frame", cut),
)
