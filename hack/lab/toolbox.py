"""The lab's own root and mount namespace, so that the host keeps its packages and its mount table.

Everything that mounts, and everything that needs a program the host may lack, runs in here. The network namespace stays
the host's. All mounts of a lab exist only in this namespace: when the last process in it is gone, so are they.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from lab.cgroups import CgroupTree, started_at

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_READY = Path("/run/lab-ready")
_START_SECONDS = 20

# Arguments: the cached root, an empty folder to build on, then the folders that are seen under the same path inside.
# The root is a lower layer: what happens in here never reaches the cache.
_ENTER = r"""
set -eu
root=$1; here=$2; shift 2
mount -t tmpfs -o mode=755 tmpfs "$here"
mkdir "$here/upper" "$here/work" "$here/root"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$here/upper,workdir=$here/work" "$here/root"
new=$here/root
for dir in proc sys dev; do mkdir -p "$new/$dir"; mount --rbind "/$dir" "$new/$dir"; done
mount -t tmpfs -o mode=755 tmpfs "$new/run"
mkdir -p "$new/run/lock" "$new/run/netns" "$new/run/sshd" "$new/.old"
for dir in "$@"; do mkdir -p "$new$dir"; mount --bind "$dir" "$new$dir"; done
cd "$new"
pivot_root . .old
cd /
umount -l /.old
mount --make-shared /run
: > /run/lab-ready
exec sleep infinity
"""


class ToolboxError(Exception):
    """A command in the toolbox failed. The message has the command and what it said."""


class Toolbox:
    """A running toolbox, named by the process that keeps its namespace."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    @classmethod
    def start(cls, image: Path, *, cgroups: CgroupTree, folder: Path, log: Path, shared: Sequence[Path]) -> Toolbox:
        """Starts one on a cached root. `folder` is empty and mounted on; `shared` are seen inside as they are."""
        for path in (image, folder, *shared):
            if set(str(path)) & set(",:\\ \t\n'\""):
                raise ToolboxError(
                    f"{path}: the lab's folders must have no comma, colon, quote, backslash or space in them"
                )
        folder.mkdir(parents=True, exist_ok=True)
        pid = cgroups.launch(
            "lab",
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "toolbox", image, folder, *shared],
            log=log,
        )
        toolbox = cls(pid)
        end = time.monotonic() + _START_SECONDS
        while not toolbox.path(_READY).exists():
            if started_at(pid) is None or time.monotonic() > end:
                raise ToolboxError(
                    f"the toolbox did not start: {log.read_text(errors='replace').strip() or 'no output'}"
                )
            time.sleep(0.01)
        return toolbox

    def path(self, inside: Path) -> Path:
        """Where this process sees a file of the toolbox. Absolute links in it lead to the host's files."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def enter(self) -> tuple[str, ...]:
        """The command prefix that runs a program of the toolbox, with a clean environment."""
        # -m alone leaves the root where it was; the process that keeps the namespace has the pivoted one.
        target = str(self.pid)
        return ("nsenter", "-t", target, "-m", "-r", "-w", "--", "env", "-i", _PATH, "LC_ALL=C.UTF-8", "HOME=/root")

    def run(
        self, argv: Sequence[str | Path], *, text: str | None = None, timeout: float = 60, check: bool = True
    ) -> str:
        """Runs a program of the toolbox and returns its standard output. Raises ToolboxError when it fails."""
        done = subprocess.run(
            [*self.enter(), *map(str, argv)],
            check=False,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise ToolboxError(
                f"{' '.join(map(str, argv))}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}"
            )
        return done.stdout
