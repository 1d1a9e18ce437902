"""One cgroup tree a lab, named after its run folder: the list of everything that must not outlive the lab.

A list of process ids in a file is wrong from the moment a program forks or a command line is killed between two lines.
The kernel's own list is not: whatever the lab starts joins the tree before it does anything else, so `down` finds every
process of a lab even when the `up` that started them was killed half-way and nobody wrote anything down.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_V1_HIERARCHIES = ("systemd", "unified", "memory", "pids")
_LAUNCH_SECONDS = 20
_LAUNCH = r"""
set -e
out=$1; count=$2; shift 2
while [ "$count" -gt 0 ]; do echo $$ > "$1/cgroup.procs"; shift; count=$((count - 1)); done
setsid "$@" </dev/null >>"$out" 2>&1 &
echo $!
"""
_JOIN = 'set -e; for dir in $1; do echo $$ > "$dir/cgroup.procs"; done; shift; exec "$@"'


class Survivors(Exception):  # noqa: N818 - says who is left
    """Processes of the lab that did not die of SIGKILL in time. The message names them."""


def hierarchies(mount: Path = _MOUNT) -> list[Path]:
    """The hierarchies a lab makes its cgroups in: the one of cgroup v2, or of v1 those that a systemd in a VM needs."""
    if (mount / "cgroup.controllers").exists():
        found = [mount]
    else:
        found = [mount / name for name in _V1_HIERARCHIES if (mount / name / "cgroup.procs").exists()]
    return [each for each in found if os.access(each, os.W_OK)]


class CgroupTree:
    """The cgroups of one lab: a folder `name` in each hierarchy, with a child for each VM and one for the lab."""

    def __init__(self, name: str, *, mount: Path = _MOUNT) -> None:
        self._roots = [hierarchy / name for hierarchy in hierarchies(mount)]

    def exists(self) -> bool:
        return any(root.is_dir() for root in self._roots)

    def create(self, child: str) -> list[Path]:
        """Makes a child in every hierarchy and returns the folders."""
        folders = [root / child for root in self._roots]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        return folders

    def join(self, child: str) -> tuple[str, ...]:
        """A command prefix: what follows it runs in the child. The child is made now."""
        return ("sh", "-c", _JOIN, "join", " ".join(str(folder) for folder in self.create(child)))

    def launch(self, child: str, argv: Sequence[str | Path], *, log: Path) -> int:
        """Starts a process that outlives this one, in the child, in a session of its own. Returns its process id.

        It is in the child before its program runs, and is nobody's child here: no zombie, nothing to wait for.
        """
        folders = self.create(child)
        done = subprocess.run(
            ["sh", "-c", _LAUNCH, "launch", log, str(len(folders)), *folders, *argv],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            timeout=_LAUNCH_SECONDS,
        )
        return int(done.stdout)

    def pids(self, child: str | None = None) -> set[int]:
        """Processes in a child and below, or in the whole tree."""
        found: set[int] = set()
        for folder in self._folders(child):
            with contextlib.suppress(OSError):
                found.update(int(line) for line in (folder / "cgroup.procs").read_text().split())
        return found - {0, os.getpid()}

    def kill(self, child: str | None = None, *, deadline_seconds: float = 20) -> int:
        """SIGKILL to everything in a child or the tree, until nothing is left. Returns how many were killed."""
        killed: set[int] = set()
        end = time.monotonic() + deadline_seconds
        while pids := self.pids(child):
            if time.monotonic() > end:
                raise Survivors(
                    f"still alive {deadline_seconds:.0f} s after SIGKILL: {', '.join(map(describe, sorted(pids)))}"
                )
            for pid in pids - killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= pids
            time.sleep(0.02)
        return len(killed)

    def remove(self, child: str | None = None, *, deadline_seconds: float = 10) -> bool:
        """Removes the cgroups of a child, or of the tree. They must be empty. Returns whether there was one."""
        end = time.monotonic() + deadline_seconds
        existed = False
        while folders := list(self._folders(child)):
            existed = True
            for folder in sorted(folders, key=lambda each: len(each.parts), reverse=True):
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    continue
                except OSError:
                    # The kernel drops the last reference of a dead process a moment after it has left the list.
                    if time.monotonic() > end:
                        raise
            if any(True for _ in self._folders(child)):
                time.sleep(0.02)
        return existed

    def _folders(self, child: str | None) -> Iterator[Path]:
        for root in self._roots:
            for folder, _, _ in os.walk(root / child if child else root):
                yield Path(folder)


def describe(pid: int) -> str:
    """`1234 (name)`, for a message."""
    try:
        return f"{pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return str(pid)


def started_at(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie. Names a process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
