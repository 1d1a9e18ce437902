"""Processor time on the VMs' side. In a cloud each VM has its own processor; here all of them share this machine's, so
what a contestant costs the VMs decides its wall time, and is worth a column."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable
from pathlib import Path

from lab.cgroups import CgroupTree

_ACCOUNTS = Path("/sys/fs/cgroup/cpuacct")
_REMOVE_SECONDS = 10.0
_NUMBERS = itertools.count()


class Processors:
    """The kernel's account of each VM: everything that runs on it now, and whatever that starts."""

    def __init__(self, tree: CgroupTree, names: Iterable[str]) -> None:
        """`tree`: the lab's. Where the kernel has the accounts of cgroup v1, the VMs are moved into some."""
        self._folders: dict[str, Path] = {}
        if not _ACCOUNTS.is_dir():
            return
        top = _ACCOUNTS / f"bench-{id(self):x}-{next(_NUMBERS)}"
        for name in names:
            folder = top / name
            folder.mkdir(parents=True)
            self._folders[name] = folder
            # A process that is made while its parent is moved stays behind, so until nothing new is found.
            while strays := tree.pids(name) - {int(line) for line in (folder / "cgroup.procs").read_text().split()}:
                for pid in strays:
                    with contextlib.suppress(OSError):
                        (folder / "cgroup.procs").write_text(str(pid))

    def seconds(self, names: Iterable[str]) -> float:
        """Used by these VMs so far; 0 where the kernel keeps no such accounts."""
        found = [self._folders[name] for name in names if name in self._folders]
        return sum(int((folder / "cpuacct.usage").read_text()) for folder in found) / 1e9

    def close(self) -> None:
        """When the VMs are down."""
        end = time.monotonic() + _REMOVE_SECONDS
        for folder in [*self._folders.values(), *{folder.parent for folder in self._folders.values()}]:
            while folder.exists():
                try:
                    folder.rmdir()
                except OSError:
                    if time.monotonic() > end:
                        raise
                    time.sleep(0.02)
