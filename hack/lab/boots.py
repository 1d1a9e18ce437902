"""The boots of a VM, seen from the host: its PID 1, since when it runs, and whether this boot is done.

The kernel's process table is asked and not a record: a guest that reboots by itself gets a new PID 1 and tells nobody.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from lab.cgroups import started_at
from lab.guest import Guest, GuestError
from lab.spec import BOOT_MARKER

_SYSTEMD_SECONDS = 3.0


def init_of(loop: Iterable[int]) -> int | None:
    """The guest's PID 1 as the host numbers it, below the processes of its boot loop; None between two boots."""
    for shell in loop:
        for nspawn in _children(shell):
            for child in _children(nspawn):
                if _is_init(child):
                    return child
    return None


def seconds_since(init: int) -> float:
    """How long a guest has been running; 0 when it is gone."""
    boot = _boot_time(init)
    return 0.0 if boot is None else time.time() - boot


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _is_init(pid: int) -> bool:
    """Whether a process is number 1 of a namespace directly below ours, and lives."""
    if started_at(pid) is None:
        return False
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    numbers = next((line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:")), [])
    return len(numbers) > 1 and numbers[-1] == "1"


def _boot_time(pid: int) -> float | None:
    """When a process started, as a wall clock time."""
    ticks = started_at(pid)
    if ticks is None:
        return None
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def systemd_is_done(name: str, init: int) -> bool:
    """Whether a guest's systemd has no job of its boot left. Waits a moment, which is cheaper than asking again."""
    with contextlib.suppress(GuestError):
        asked = Guest.running(name, init).exec(
            ["systemctl", "is-system-running", "--wait"], check=False, timeout=_SYSTEMD_SECONDS
        )
        return asked.stdout.strip() in ("running", "degraded")
    return False


def is_marked(init: int) -> bool:
    """Whether the guest has written its marker in this boot: the marker of the last one is still there for a while."""
    boot = _boot_time(init)
    try:
        written = os.lstat(f"/proc/{init}/root{BOOT_MARKER}").st_mtime
    except OSError:
        return False
    return boot is not None and written >= boot - 0.02
