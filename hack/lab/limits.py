"""The one setting of the host that many VMs need raised, and its way back.

Every systemd in a VM watches files, and inotify counts its watchers for the whole machine: with the kernel's default of
128 the guests from about the thirtieth on fail to start services. Labs share the raise: the first notes what was there,
the last puts it back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_WANTED = {"max_user_instances": 16384, "max_user_watches": 1048576}
_INOTIFY = Path("/proc/sys/fs/inotify")


@dataclass
class _Note:
    """Who wants the limits raised, and what they were before the first did."""

    labs: set[str] = field(default_factory=set)
    before: dict[str, int] = field(default_factory=dict)


class InotifyLimits:
    """The limits, with a note in the cache folder that goes when nobody wants them raised any more."""

    def __init__(self, cache: Path, *, alive: Callable[[str], bool], limits: Path = _INOTIFY) -> None:
        """`alive` tells whether the lab of an id still runs: one that died without `down` is no reason to wait."""
        self._note = cache / "inotify.json"
        self._alive = alive
        self._limits = limits

    def hold(self, lab: str) -> None:
        """Raises what is too low. Holding twice is holding once."""
        with self._locked():
            note = self._read()
            note.labs.add(lab)
            found = {name: int((self._limits / name).read_text()) for name in _WANTED}
            for name, value in found.items():
                if value < _WANTED[name]:
                    note.before.setdefault(name, value)
            self._write(note)
            for name, value in found.items():
                if value < _WANTED[name]:
                    (self._limits / name).write_text(str(_WANTED[name]))

    def release(self, lab: str) -> bool:
        """Puts back what was there, if no other lab needs it. Returns whether something was put back."""
        if not self._note.exists():
            return False
        with self._locked():
            note = self._read()
            note.labs = {each for each in note.labs if each != lab and self._alive(each)}
            if note.labs:
                self._write(note)
                return False
            for name, value in note.before.items():
                (self._limits / name).write_text(str(value))
            self._note.unlink(missing_ok=True)
            return bool(note.before)

    def _read(self) -> _Note:
        try:
            raw = json.loads(self._note.read_text())
        except FileNotFoundError:
            return _Note()
        return _Note(set(raw["labs"]), {name: int(value) for name, value in raw["before"].items()})

    def _write(self, note: _Note) -> None:
        partial = self._note.with_suffix(".partial")
        partial.write_text(json.dumps({"labs": sorted(note.labs), "before": note.before}))
        partial.replace(self._note)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._note.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._note.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
