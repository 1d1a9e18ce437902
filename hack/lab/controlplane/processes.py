"""Processes that outlive the command that started them, and are still never confused with anyone else's.

``lab up`` returns and the servers go on; a killed parent must leave nothing that the next ``stop`` cannot find. So
the intent is written before a process starts and its pid after, and a pid is signalled only while ``/proc`` says
that it is that very process: its command line is the recorded one and its environment names the record (pids are
used again; two labs run the same binaries).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_MARK = "SYSVM_LAB_RECORD"
_POLL_SECONDS = 0.02
_RECOGNISED_SECONDS = 10.0
_SUFFIX = ".process.json"

# A child's end is known for sure by its parent alone. Kept until then: Popen warns when it is collected first.
_children: dict[int, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Recorded:
    """One long-lived process, known by the file that records it."""

    record: Path
    argv: tuple[str, ...]
    pid: int | None

    def alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        return next(self._pids(), None) is not None

    def _pids(self) -> Iterator[int]:
        child = _children.get(self.pid) if self.pid is not None else None
        if child is not None:
            if child.poll() is None:
                yield child.pid
            return
        if self.pid is not None:
            candidates: Iterator[int] = iter([self.pid])
        else:
            candidates = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
        for pid in candidates:
            if _is_ours(pid, self):
                yield pid

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it ended; False if it has not by then."""
        deadline = time.monotonic() + timeout_seconds
        while self.alive():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
        if self.pid is not None:
            _children.pop(self.pid, None)
        return True


def start(
    folder: Path,
    name: str,
    argv: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    log: Path,
    directory: Path | None = None,
) -> Recorded:
    """Start a process in its own session; its output goes to ``log``, ``environment`` is added to a minimal one."""
    record = folder / f"{name}{_SUFFIX}"
    command = tuple(str(word) for word in argv)
    base = {key: os.environ[key] for key in ("PATH", "HOME", "LANG", "TMPDIR", "TZ") if key in os.environ}
    _write(record, command, None)
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=base | dict(environment or {}) | {_MARK: str(record)},
            cwd=directory or folder,
            start_new_session=True,
        )
    _children[child.pid] = child
    _write(record, command, child.pid)
    started = Recorded(record=record, argv=command, pid=child.pid)
    # Popen returns a moment before /proc shows the new program; until then others would take it for a stranger.
    deadline = time.monotonic() + _RECOGNISED_SECONDS
    while child.poll() is None and not _is_ours(child.pid, started) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    return started


def load(folder: Path, name: str) -> Recorded | None:
    """The recorded process of that name, running or not; None if there is no record."""
    record = folder / f"{name}{_SUFFIX}"
    try:
        content = json.loads(record.read_text())
    except FileNotFoundError:
        return None
    return Recorded(record=record, argv=tuple(content["argv"]), pid=content["pid"])


def stop(folder: Path, name: str, *, grace_seconds: float) -> bool:
    """End the recorded process (SIGTERM, then SIGKILL) and forget it; False if it had to be killed.

    Without a record there is nothing to do.
    """
    process = load(folder, name)
    if process is None:
        return True
    process.signal(signal.SIGTERM)
    gently = process.wait(grace_seconds)
    if not gently:
        process.signal(signal.SIGKILL)
        process.wait(grace_seconds)
    process.record.unlink(missing_ok=True)
    return gently


def _is_ours(pid: int, process: Recorded) -> bool:
    mark = f"{_MARK}={process.record}".encode()
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return command == [os.fsencode(word) for word in process.argv] and mark in environment


def _write(record: Path, command: Sequence[str], pid: int | None) -> None:
    draft = record.with_suffix(".tmp")
    draft.write_text(json.dumps({"argv": list(command), "pid": pid}))
    draft.replace(record)
