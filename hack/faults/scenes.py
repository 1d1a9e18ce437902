"""Scratch VMs at the beginning of a piece of work, and the judge of what became of them."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.remote import configure, debian, systemd
from tests.remote.vm import (
    NEW_SIGNATURE,
    NEW_TGZ,
    OLD_SIGNATURE,
    SIGNATURE,
    TGZ,
    UNITS,
    VM,
    make_order,
    scratch_folder,
    with_file,
)

from faults.hooks import Hook
from faults.table import End
from sysvm.patching.remote import files, worker

Rows = dict[str, tuple[object, ...]]
CONFIGURATION = "etc/haproxy/haproxy.cfg"
OWN = (".sysvm-", "sysvm-recover")
"""What the program keeps beside a new VM: its backup and its boot unit."""
_MTIME = 5


def broken_order() -> dict[str, object]:
    """Goes back by itself: haproxy dies of its new file."""
    return with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n")


def shape(rows: Rows) -> Rows:
    """Everything but times (every build has its own) and what the program keeps for going back."""
    kept: Rows = {}
    for path, row in rows.items():
        if any(word in path for word in OWN) or "__pycache__" in path:
            continue
        if path.startswith("("):
            groups = [tuple(name for name in group if not any(word in name for word in OWN)) for group in row]  # type: ignore[attr-defined]
            kept[path] = tuple(group for group in groups if len(group) > 1)
        else:
            kept[path] = row[:_MTIME] + row[_MTIME + 1 :] if row[0] == stat.S_IFREG else row
    return kept


def differing(one: Rows, other: Rows) -> list[str]:
    """Paths that are not the same in both."""
    return sorted(path for path in one.keys() | other.keys() if one.get(path) != other.get(path))


@dataclass
class Judge:
    """Knows the old VM and the new one; everything between is NEITHER, with what differs."""

    old: Rows
    services: dict[str, str]
    new: Rows = field(default_factory=dict)
    archive: bytes = NEW_TGZ
    signature: str = NEW_SIGNATURE
    """Of the new release."""

    def verdict(self, vm: VM, foreign: frozenset[str] = frozenset()) -> tuple[End, str]:
        """What `vm` is. A VM whose last word does not fit its files is NEITHER too.

        `foreign`: paths (relative) that somebody else wrote last; they are his, everything else has to be whole.
        """
        ended = [report for _, report in vm.store().operations()]
        phases = [report["phase"] for report in ended]
        told = f"phases {phases}, {ended[0]['message'][:300] if ended else ''}"
        signature = vm.signature()
        if "Inconsistent" in phases:
            loud = set(signature) == {"0"} or "somebody else" in ended[0]["message"]
            return (End.INCONSISTENT, told) if loud else (End.NEITHER, f"inconsistent with signature {signature}")
        if vm.systemd() != self.services:
            return End.NEITHER, f"services {vm.systemd()}; {told}"
        if systemd.runs_with(str(vm.root), "haproxy") != (vm.root / CONFIGURATION).read_text():
            return End.NEITHER, f"haproxy runs with another file than the one in place; {told}"
        if vm.store().unfinished():
            return End.NEITHER, f"not brought to its end; {told}"
        rows = vm.state()
        new = differing(shape(rows), self.new)
        old = differing(rows, self.old)
        if (vm.root / TGZ).read_bytes() != self.archive:
            new.append(TGZ)
        if signature not in (OLD_SIGNATURE, self.signature):
            new.append(SIGNATURE)
        committed = "Committed" in phases
        end, wrong = (End.NEW, new) if (signature == self.signature or (foreign and committed)) else (End.OLD, old)
        wrong = [path for path in wrong if path not in foreign]
        if phases and committed != (end is End.NEW):
            wrong.append("the last word does not fit")
        return (End.NEITHER, f"{', '.join(wrong[:6])}; signature {signature}; {told}") if wrong else (end, "")


class Scene:
    """A VM at the beginning of a piece of work; `reset` brings it there again."""

    def __init__(self, vm: VM, judge: Judge, work: Callable[[], object]) -> None:
        self.vm = vm
        self.judge = judge
        self.work = work
        vm.keep()
        counting = Hook.arm_here()
        try:
            work()
        finally:
            Hook.disarm()
        self.changes = counting.names
        """Names of the changes that the work makes when nothing goes wrong."""
        if not judge.new and vm.signature() == judge.signature:
            judge.new = shape(vm.state())
        vm.reset()

    def reset(self) -> None:
        self.vm.reset()

    def judged(self, foreign: frozenset[str] = frozenset()) -> tuple[End, str]:
        return self.judge.verdict(self.vm, foreign)


def next_session(vm: VM) -> None:
    """What the operator's next session does first."""
    session = vm.session()
    session.store.take_lock("next", wait=20.0)
    try:
        session.recover_others(None)
    finally:
        session.let_go()


def next_boot(vm: VM, active: dict[str, str]) -> None:
    """The boot unit, then systemd starts what was enabled; then a session tidies up what a boot leaves to it."""
    with quiet():
        vm.recover()
    for unit, state in active.items():
        row = systemd.load(str(vm.root), unit)
        row.update(active="inactive", pid=0, unstable=False)
        systemd.save(str(vm.root), unit, row)
        if state == "active":
            systemd.systemctl(str(vm.root), ["start", unit])


def recovered(scene: Scene, number: int) -> None:
    """By session and by boot, by turns."""
    if number % 2:
        next_boot(scene.vm, scene.judge.services)
    else:
        next_session(scene.vm)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The boot unit writes into the VM's journal what it did; thousands of these help nobody."""
    kept = sys.stderr
    with open(os.devnull, "w") as nowhere:
        sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stderr = kept


class Scenes:
    """Made at first use, removed at the end."""

    def __init__(self) -> None:
        self._made: dict[str, Scene] = {}
        self._folders = [scratch_folder()]

    def close(self) -> None:
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)

    def get(self, name: str) -> Scene:
        """`preparing`, `forward`, `failing`, `by hand`, `databags`, `packages`, `packages failing`, `singly`."""
        if name not in self._made:
            self._made[name] = getattr(self, "_" + name.replace(" ", "_"))()
        return self._made[name]

    def blank(self) -> VM:
        """A VM that nobody has worked on."""
        base = scratch_folder()
        self._folders.append(base)
        return VM(base).lay_out()

    def _judge(self, vm: VM) -> Judge:
        judge = Judge(vm.state(), {unit: vm.systemd()[unit] for unit in UNITS})
        if "forward" in self._made:
            judge.new = self._made["forward"].judge.new
        elif not self._making:
            judge.new = self.get("forward").judge.new
        return judge

    _making = False

    def _forward(self) -> Scene:
        vm = self.blank()
        self._making = True
        try:
            judge = self._judge(vm)
        finally:
            self._making = False
        vm.prepare(make_order())
        return Scene(vm, judge, lambda: vm.run("op-1"))

    def _preparing(self) -> Scene:
        vm = self.blank()
        return Scene(vm, self._judge(vm), lambda: vm.prepare(make_order()))

    def _failing(self) -> Scene:
        vm = self.blank()
        judge = self._judge(vm)
        vm.prepare(broken_order())
        return Scene(vm, judge, lambda: vm.run("op-1"))

    def _by_hand(self) -> Scene:
        vm = self.blank()
        judge = self._judge(vm)
        vm.prepare(make_order())
        vm.run("op-1")
        return Scene(vm, judge, lambda: worker.back(vm.host(), vm.store(), "op-1"))

    def _databags(self) -> Scene:
        """configure.py is run for a bag, and writes it in place."""
        vm = self.blank()
        configure.lay_out(vm.root)
        judge = Judge(vm.state(), {unit: vm.systemd()[unit] for unit in UNITS})
        vm.prepare(make_order(databags=[configure.BAG]))
        return Scene(vm, judge, lambda: vm.run("op-1"))

    def _packages(self) -> Scene:
        """The real dpkg installs Debian packages before the switch."""
        vm = debian.lay_out(self.blank())
        judge = Judge(vm.state(), {unit: vm.systemd()[unit] for unit in UNITS})
        vm.prepare(debian.order())
        return Scene(vm, judge, lambda: vm.run("op-1"))

    def _packages_failing(self) -> Scene:
        """The same in a patch that goes back by itself."""
        vm = debian.lay_out(self.blank())
        judge = Judge(vm.state(), {unit: vm.systemd()[unit] for unit in UNITS})
        vm.prepare(with_file(debian.order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
        return Scene(vm, judge, lambda: vm.run("op-1"))

    def _singly(self) -> Scene:
        """On a file system that cannot exchange folders; forward."""
        vm = self.blank()
        shutil.rmtree(vm.root / "opt/cloud/bin/__pycache__")
        judge = self._judge(vm)
        with no_exchange():
            vm.prepare(make_order())

        def work() -> None:
            with no_exchange():
                vm.run("op-1")

        return Scene(vm, judge, work)


@contextlib.contextmanager
def no_exchange() -> Iterator[None]:
    def refuse(one: str, other: str) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), one, None, other)

    kept = files.exchange
    files.exchange = refuse
    try:
        yield
    finally:
        files.exchange = kept
