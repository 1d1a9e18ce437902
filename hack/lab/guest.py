"""One VM from the inside: its processes, its files and their exact state.

Everything here goes through the VM's namespaces and not through its sshd, so it works when sshd is what broke, and a
path means what it means in the VM: a link there never leads to a file of the host. A VM that is off has no namespaces;
its disk is then reached through the lab's toolbox.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LC_ALL=C.UTF-8",
    "TERM=dumb",
)
EXEC_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_KILLED = (137, -9)

# Runs in the VM with its own Python. One line of JSON in (paths), one out.
_SNAPSHOT = r"""
import hashlib, json, os, stat, sys
def entry(path):
    s = os.lstat(path)
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(stat.S_IFMT(s.st_mode), "other")
    e = {"kind": kind, "mode": stat.S_IMODE(s.st_mode), "uid": s.st_uid, "gid": s.st_gid, "mtime_ns": s.st_mtime_ns,
         "nlink": 0 if kind == "folder" else s.st_nlink, "size": 0, "sha256": "", "target": "", "xattrs": {}}
    if kind == "file":
        e["size"] = s.st_size
        with open(path, "rb") as f:
            digest = hashlib.sha256()
            for chunk in iter(lambda: f.read(1 << 20), b""):
                digest.update(chunk)
        e["sha256"] = digest.hexdigest()
    elif kind == "link":
        e["target"] = os.fsencode(os.readlink(path)).decode("utf-8", "backslashreplace")
    for name in os.listxattr(path, follow_symlinks=False):
        e["xattrs"][name] = os.getxattr(path, name, follow_symlinks=False).hex()
    return e
found = {}
def add(path):
    try:
        found[os.fsencode(path).decode("utf-8", "backslashreplace")] = entry(path)
    except FileNotFoundError:
        pass
for top in json.load(sys.stdin):
    add(top)
    if os.path.isdir(top) and not os.path.islink(top):
        for folder, folders, files in os.walk(top):
            for name in folders + files:
                add(os.path.join(folder, name))
json.dump(found, sys.stdout)
"""


class GuestError(Exception):
    """A command in a VM failed, or the VM cannot run one. The message names VM and command and has its output."""


@dataclass(frozen=True)
class Entry:
    """A file, folder or link as it is on a VM's disk. Times are kept apart, because a restore need not keep all."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    sha256: str
    target: str
    nlink: int
    xattrs: tuple[tuple[str, str], ...]
    mtime_ns: int | None


class Guest:
    """Commands and files of one VM, through a prefix that enters it."""

    def __init__(self, name: str, enter: Sequence[str]) -> None:
        self._name = name
        self._enter = tuple(enter)

    @classmethod
    def running(cls, name: str, init: int) -> Guest:
        """A VM whose PID 1 is `init` here."""
        enter = ("nsenter", "-t", str(init), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--", "env", "-i", *_ENVIRONMENT)
        return cls(name, enter)

    @classmethod
    def off(cls, name: str, enter_toolbox: Sequence[str], root: Path) -> Guest:
        """The disk of a VM that does not run."""
        return cls(name, (*enter_toolbox, "chroot", str(root), "env", "-i", *_ENVIRONMENT))

    def command(self, argv: Sequence[str]) -> list[str]:
        """The host's command line for a command in the VM, for those who run it themselves."""
        return [*self._enter, *argv]

    def exec(
        self,
        command: str | Sequence[str],
        *,
        check: bool = True,
        text: str | None = None,
        timeout: float = EXEC_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Runs words, or a line of shell. Raises GuestError when it fails (`check`) or outlasts `timeout` seconds."""
        done = self._run(command, None if text is None else text.encode(), timeout)
        if check and done.returncode != 0:
            raise GuestError(
                f"{self._name}: {_shown(command)}: exit {done.returncode}: {_text(done.stderr or done.stdout).strip()}"
            )
        return subprocess.CompletedProcess(done.args, done.returncode, _text(done.stdout), _text(done.stderr))

    def read_bytes(self, path: str) -> bytes:
        """A file's content. Raises FileNotFoundError when it is not there."""
        done = self._run(["cat", "--", path], None, EXEC_SECONDS)
        if done.returncode != 0:
            message = f"{self._name}: {_text(done.stderr).strip()}"
            raise FileNotFoundError(message) if b"No such file" in done.stderr else GuestError(message)
        return done.stdout

    def write_bytes(self, path: str, content: bytes) -> None:
        """Replaces a file's content, keeping owner and mode; makes it (and its folder) if it is not there."""
        done = self._run(
            ["sh", "-c", 'mkdir -p -- "$(dirname -- "$1")" && cat > "$1"', "write", path], content, EXEC_SECONDS
        )
        if done.returncode != 0:
            raise GuestError(f"{self._name}: cannot write {path}: {_text(done.stderr).strip()}")

    def snapshot_tree(self, paths: Iterable[str], *, times: bool = False) -> dict[str, Entry]:
        """Every file, folder and link at and below `paths`, for comparing byte for byte. Missing paths are left out.

        `nlink` is 0 for folders, whose count is the file system's business. Modification times only when asked for.
        """
        done = self._run(["python3", "-I", "-c", _SNAPSHOT], json.dumps(list(paths)).encode(), 2 * EXEC_SECONDS)
        if done.returncode != 0:
            raise GuestError(f"{self._name}: cannot take a snapshot: {_text(done.stderr).strip()}")
        raw: Mapping[str, dict[str, object]] = json.loads(done.stdout)
        return {path: _entry(fields, times=times) for path, fields in sorted(raw.items())}

    def _run(
        self, command: str | Sequence[str], content: bytes | None, timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        # Killed from inside: killing only the way in would leave the command in the VM, without a parent there.
        limited = ["timeout", "--signal=KILL", f"{timeout:.3f}", *argv]
        started = time.monotonic()
        overdue = GuestError(f"{self._name}: {_shown(command)}: not done in {timeout:g} s")
        try:
            done = subprocess.run(
                self.command(limited),
                check=False,
                input=content,
                stdin=subprocess.DEVNULL if content is None else None,
                capture_output=True,
                timeout=timeout + _GRACE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise overdue from None
        if done.returncode in _KILLED and time.monotonic() - started >= timeout:
            raise overdue
        return done


def _entry(raw: Mapping[str, object], *, times: bool) -> Entry:
    xattrs = raw["xattrs"]
    assert isinstance(xattrs, dict)
    fields: dict[str, object] = dict(raw) | {"xattrs": tuple(sorted(xattrs.items()))}
    if not times:
        fields["mtime_ns"] = None
    return Entry(**fields)  # type: ignore[arg-type]


def _shown(command: str | Sequence[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
