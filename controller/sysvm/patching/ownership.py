"""Who owns a file on a running system VM, asked in one place.

A payload holds 188 files and a VM has changed some of them since it booted: putting the packaged text over those loses
a listen address or every load balancer rule. The facts are in `ownership.tsv`; the rest of the layer asks `rule_for`.
"""

import csv
import fnmatch
import importlib.resources
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from sysvm.api.endpoint import SystemVMType


class Owner(StrEnum):
    PACKAGE = "package"
    """The VM never changes it: replaced."""
    EDITED = "edited"
    """The VM changes lines of it: merged, or kept and told."""
    RUNTIME = "runtime"
    """The VM writes it: never touched once it is there."""


class ActionKind(StrEnum):
    """What makes a changed file effective. Only the last three are done during a live patch."""

    NONE = "none"
    NEXT_USE = "next-use"
    NEXT_BOOT = "next-boot"
    CRON = "cron-auto"
    RERUN = "rerun"
    SYSCTL = "sysctl"
    DAEMON_RELOAD = "daemon-reload"
    RELOAD = "reload"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class FileRule:
    """What holds for one path on one type of VM."""

    owner: Owner
    action: ActionKind
    unit: str | None
    """For reload and restart; may be a pattern of instances (`cloud-password-server@*`)."""
    daemon_reload: bool
    payload_mode: bool
    """The payload's exec bit counts. Otherwise the live file's mode is kept and a new file gets 644."""
    ignored: bool
    """What a payload brings for this path is never looked at: the VM makes the file itself, or must not have it."""


_EXECUTABLE_KINDS = frozenset({"script", "python-module", "health-check", "cron"})
_NEVER_TOUCHED = frozenset({"generated", "forbidden"})
_AGENT_TYPES = frozenset({SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY})

_ABSENT: dict[str, frozenset[SystemVMType]] = {"etc/logrotate.d/cloud": _AGENT_TYPES}
"""Deleted at each boot there (CloudStack 4.21 secstorage.sh, consoleproxy.sh): the agent rotates its log itself."""


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    kind: str
    owner: Owner
    action: str
    types: frozenset[SystemVMType]


def rule_for(path: str, vm_type: SystemVMType) -> FileRule:
    """The rule for a path of cloud-scripts.tgz (no leading slash). Every path has one."""
    row = _row(path)
    kind, _, unit = row.action.partition(":")
    action = ActionKind(kind)
    if vm_type not in row.types and action in (ActionKind.RELOAD, ActionKind.RESTART):
        action, unit = ActionKind.NONE, ""
    return FileRule(
        owner=row.owner,
        action=action,
        unit=unit if action in (ActionKind.RELOAD, ActionKind.RESTART) else None,
        daemon_reload=row.kind == "systemd-unit",
        payload_mode=row.kind in _EXECUTABLE_KINDS,
        ignored=row.kind in _NEVER_TOUCHED or vm_type in _ABSENT.get(path, frozenset()),
    )


def is_forbidden(path: str) -> bool:
    """Whether a payload that brings this path is refused: logins, keys, the only copy of a VM's configuration."""
    return _row(path).kind == "forbidden"


def _row(path: str) -> _Row:
    exact, patterns = _table()
    if path in exact:
        return exact[path]
    for row in patterns:
        if fnmatch.fnmatchcase(path, row.path):
            return row
    return _Row(path, "other", Owner.PACKAGE, "none", frozenset(SystemVMType))


def known_paths() -> frozenset[str]:
    """Paths that the table names exactly."""
    return frozenset(_table()[0])


@cache
def _table() -> tuple[dict[str, _Row], tuple[_Row, ...]]:
    text = importlib.resources.files(__package__).joinpath("ownership.tsv").read_text(encoding="utf-8")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    rows = [_parse(fields) for fields in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]
    exact = {row.path: row for row in rows if "*" not in row.path}
    return exact, tuple(row for row in rows if "*" in row.path)


def _parse(fields: dict[str, str]) -> _Row:
    words = fields["types"].replace("-", "").split()
    types = frozenset(SystemVMType) if words == ["all"] else frozenset(SystemVMType(word) for word in words)
    ActionKind(fields["action"].partition(":")[0])
    return _Row(fields["path"], fields["kind"], Owner(fields["owner"]), fields["action"], types)
