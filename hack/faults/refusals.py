"""The system refuses a change, or time is not what it was."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.remote.vm import TGZ, VM, in_child, make_order

from faults.hooks import Hook, jump, refuse, refuse_some, set_immutable
from faults.rows import Row, Trial, Verdict, in_child_then_judged
from faults.scenes import Judge, Rows, Scene, Scenes, broken_order, next_boot, next_session, recovered
from faults.table import End
from sysvm.patching.remote import files, transaction
from sysvm.patching.remote.failures import Failure

SCENES = ("preparing", "forward", "failing", "by hand")
NEED_INODES = ("write", "symlink", "mkdir")
_NEVER = 1 << 30


def once(code: int, names: tuple[str, ...], scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """One change of the kind is refused, the next succeeds."""
    for name in SCENES:
        scene = scenes.get(name)
        for number, change in enumerate(scene.changes, 1):
            if change in names:
                arm = partial(Hook.arm_here, number, before=refuse(code))
                yield f"{name}, {number} {change}", partial(_refused, scene, arm)


def from_then_on(code: int, names: tuple[str, ...], scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """Every change of the kind is refused until a person has made room; then somebody recovers."""
    for name in SCENES:
        scene = scenes.get(name)
        for number, change in enumerate(scene.changes, 1):
            arm = partial(Hook.arm_here, number, before=refuse_some(code, names), last=_NEVER)
            yield f"{name}, from {number} {change} on", partial(_refused, scene, arm)


def for_a_while(scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """Two or three changes in a row are refused, whatever they are; also those of a way back that is tried again."""
    codes = (errno.EIO, errno.ENOSPC, errno.EINTR)
    for name in SCENES:
        scene = scenes.get(name)
        for number, change in enumerate(scene.changes, 1):
            code, last = codes[number % 3], number + 1 + number // 3 % 2
            arm = partial(Hook.arm_here, number, before=refuse_some(code, CHANGES), last=last)
            yield f"{name}, {number} {change} to {last}, {errno.errorcode[code]}", partial(_refused, scene, arm)


def _refused(scene: Scene, arm: partial[Hook], turn: int) -> Verdict:
    scene.reset()

    def child() -> None:
        # What is waited for happens here with the next change.
        transaction.BACK_AGAIN_SECONDS = (0.0, 0.0, 0.0)
        arm()
        try:
            scene.work()
        except (OSError, Failure):
            # As the session or the worker does: it says so and ends.
            pass

    code = in_child(child)
    if code:
        return End.NEITHER, f"the process ended with {code}"
    recovered(scene, turn)
    return scene.judged()


def immutable(scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """One file or folder of the VM cannot be changed (chattr +i), whatever root does. Needs root and a file system."""
    for name in ("forward", "failing"):
        scene = scenes.get(name)
        probe = str(scene.vm.root / TGZ)
        able = set_immutable(probe, True)
        set_immutable(probe, False)
        for path in sorted(scene.judge.old) if able else ():
            if not path.startswith(("(", "proc")) and not (scene.vm.root / path).is_symlink():
                yield f"{name}, {path}", partial(_immutable, scene, path)


def _immutable(scene: Scene, path: str, turn: int) -> Verdict:
    scene.reset()
    there = str(scene.vm.root / path)
    if not set_immutable(there, True):
        return End.NEITHER, f"{path} cannot be made immutable"
    inode = os.lstat(there).st_ino

    def child() -> None:
        try:
            scene.work()
        except OSError:
            pass

    try:
        code = in_child(child)
        recovered(scene, turn)
    finally:
        # Where it is now: in place, or with its tree in the stage.
        for folder, folders, names in os.walk(scene.vm.root):
            for one in [*folders, *names]:
                if os.lstat(os.path.join(folder, one)).st_ino == inode:
                    set_immutable(os.path.join(folder, one), False)
    if code:
        return End.NEITHER, f"the process ended with {code}"
    # What it kept from being swept away goes with the next session.
    next_session(scene.vm)
    return scene.judged()


def clock(scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """The wall clock jumps at a change, a day or ten years, and the patch goes on."""
    for name in SCENES:
        scene = scenes.get(name)
        for number, change in enumerate(scene.changes, 1):
            for seconds in (-86400.0, 86400.0, -315360000.0, 315360000.0):
                arm = partial(Hook.arm_here, number, before=jump(seconds))
                yield f"{name}, {number} {change}, {seconds:+.0f} s", partial(in_child_then_judged, scene, arm)


# ------------------------------------------------------------------------------------------ a real small disk


def small_disk(options: str, step: int, scenes: Scenes, _seeds: int) -> Iterator[Trial]:
    """A tmpfs that ends somewhere in the work, from too small for anything to large enough."""
    if os.geteuid() != 0:
        return
    for spare in range(0, 60 * step, step):
        for broken in (False, True):
            yield (
                f"{options.format(spare)}{', broken' if broken else ''}",
                partial(_on_small_disk, scenes, options, spare, broken),
            )


def _on_small_disk(scenes: Scenes, options: str, spare: int, broken: bool, turn: int) -> Verdict:
    new = scenes.get("forward").judge.new
    base = scenes.blank().base
    reading, writing = os.pipe()

    def child() -> None:
        end, detail = _filled(base, options, spare, broken, new, turn)
        os.write(writing, f"{end}\n{detail}".encode()[:60000])

    code = in_child(child)
    os.close(writing)
    with os.fdopen(reading) as told:
        word, _, detail = told.read().partition("\n")
    # The file system went with the child's mount namespace.
    shutil.rmtree(base)
    return (End(word), detail) if word else (End.NEITHER, f"the trial ended with {code}")


def _filled(base: Path, options: str, spare: int, broken: bool, new: Rows, turn: int) -> Verdict:
    """In a process of its own: a mount namespace, the VM on a tmpfs that has `spare` left, the whole patch."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS) or libc.mount(b"none", b"/", None, _PRIVATE, None):
        return End.NEITHER, f"no mount namespace: {os.strerror(ctypes.get_errno())}"
    disk = base / "disk"
    disk.mkdir()
    if libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 0, b"size=64m"):
        return End.NEITHER, f"no tmpfs: {os.strerror(ctypes.get_errno())}"
    subprocess.run(["cp", "-a", base / "vm", disk / "vm"], check=True)
    # What plays systemd has its memory elsewhere, as the real one has.
    shutil.rmtree(disk / "vm/.systemd")
    (disk / "vm/.systemd").symlink_to(base / "vm/.systemd")
    facts = os.statvfs(disk)
    used = {"size": (facts.f_blocks - facts.f_bfree) * facts.f_frsize, "nr_inodes": facts.f_files - facts.f_ffree}
    vm = VM(disk)
    judge = Judge(vm.state(), vm.systemd(), new)
    key = options.partition("=")[0]
    text = f"{key}={used[key] + spare}"
    if libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", _REMOUNT, text.encode()):
        return End.NEITHER, f"remount with {text}: {os.strerror(ctypes.get_errno())}"
    order = {**(broken_order() if broken else make_order()), "reserve_bytes": 0, "reserve_inodes": 0}
    try:
        vm.prepare(order)
        vm.run("op-1")
    except (OSError, Failure, AssertionError):
        # It says so and ends, as a session does; somebody makes room, then somebody recovers.
        pass
    libc.mount(b"tmpfs", str(disk).encode(), b"tmpfs", _REMOUNT, b"size=64m,nr_inodes=100000")
    if turn % 2:
        next_boot(vm, judge.services)
    else:
        next_session(vm)
    return judge.verdict(vm)


_NEW_MOUNTS = 0x00020000
_PRIVATE = 0x44000
_REMOUNT = 0x20
SPACE = files.NEED_SPACE
CHANGES = ("rename", "exchange", "link", "symlink", "unlink", "rmdir", "mkdir", "fsync", "write", "record")
ROWS = (
    Row("no space, once, at every write", partial(once, errno.ENOSPC, SPACE)),
    Row("no space from a change on", partial(from_then_on, errno.ENOSPC, SPACE)),
    Row("no inodes from a change on", partial(from_then_on, errno.ENOSPC, NEED_INODES)),
    Row("a disk with few bytes left (tmpfs)", partial(small_disk, "size={}", 16384)),
    Row("a disk with few inodes left (tmpfs)", partial(small_disk, "nr_inodes={}", 2)),
    Row("read-only file system from a change on", partial(from_then_on, errno.EROFS, CHANGES)),
    Row("an I/O error, once, at every change", partial(once, errno.EIO, CHANGES)),
    Row("I/O errors, no space or interrupts for a while", for_a_while),
    Row("I/O errors from a change on", partial(from_then_on, errno.EIO, CHANGES)),
    Row("an immutable file", immutable),
    Row("the clock jumps", clock),
)
