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
    _end_abandoned(root)
    # Under another name until it is locked: nobody may take it for abandoned in between.
    nascent = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    with _owned(nascent):
        folder = nascent.rename(root / f"{_PREFIX}{nascent.name.removeprefix('.new-')}")
        try:
            yield ControlPlane.start(folder / "run", progress=progress)
        finally:
            ControlPlane.stop(folder / "run")
            shutil.rmtree(folder, ignore_errors=True)


def _end_abandoned(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), _owned(folder):
            ControlPlane.stop(folder / "run")
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    with (folder / _LOCK).open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
