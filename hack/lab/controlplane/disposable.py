"""A control plane that ends with the process that uses it, however that process ends.

A folder per owner, locked by it: the kernel drops the lock when the owner dies, so the next owner finds what a
killed one left and ends it, and never touches one that is in use.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab.controlplane.binaries import Progress, say
from lab.controlplane.server import ControlPlane

_LOCK = "owner.lock"
_PREFIX = "control-plane-"


@contextlib.contextmanager
def disposable(*, progress: Progress = say) -> Iterator[ControlPlane]:
    """A new control plane for the length of the block.

    Raises:
        Unavailable, ControlPlaneError: as ``ControlPlane.start``.
    """
    root = Path(tempfile.gettempdir()) / f"sysvm-lab-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise PermissionError(f"{root} belongs to somebody else")
    with contextlib.ExitStack() as ours:
        with _locked(root / ".lock", fcntl.LOCK_EX):  # else a folder is seen between its creation and its lock
            _end_abandoned(root)
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
            ours.enter_context(_locked(folder / _LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB))
        try:
            yield ControlPlane.start(folder / "run", progress=progress)
        finally:
            ControlPlane.stop(folder / "run")
            shutil.rmtree(folder, ignore_errors=True)


def _end_abandoned(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(BlockingIOError), _locked(folder / _LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB):
            ControlPlane.stop(folder / "run")
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, operation)
        yield
