"""The shape of the real payloads, read once from two lists of names, modes and sizes.

A payload of the lab must be refused or accepted for what it contains, never for being smaller or tidier than a real
one; so the names, the folders, the duplicate entries and the sizes are those of CloudStack 4.21.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent / "manifests"


@dataclass(frozen=True)
class ScriptEntry:
    """One entry of ``cloud-scripts.tgz``. ``size`` is that of the real file, in bytes."""

    path: str
    folder: bool
    mode: int
    size: int


@dataclass(frozen=True)
class AgentEntry:
    """One entry of ``agent.zip``; folders end with ``/``. Sizes in bytes, plain and packed."""

    path: str
    size: int
    packed: int

    @property
    def folder(self) -> bool:
        """Whether the entry is a folder."""
        return self.path.endswith("/")


def _rows(name: str) -> list[list[str]]:
    lines = (_FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [line.split("\t") for line in lines if line and not line.startswith("#")]


@cache
def script_entries() -> tuple[ScriptEntry, ...]:
    """All entries: 33 folders, 199 files of which 11 are there twice (CloudStack 4.21 cloud-scripts.tgz)."""
    return tuple(
        ScriptEntry(path, kind == "d", int(mode, 8), int(size)) for path, kind, mode, size in _rows("scripts.tsv")
    )


@cache
def script_sizes() -> dict[str, int]:
    """The 188 file paths with their real sizes in bytes."""
    return {entry.path: entry.size for entry in script_entries() if not entry.folder}


@cache
def agent_entries() -> tuple[AgentEntry, ...]:
    """All 456 entries, 222 of them jars (CloudStack 4.21 agent.zip)."""
    return tuple(AgentEntry(path, int(size), int(packed)) for path, size, packed in _rows("agent.tsv"))
