"""A lab for the time of one program: there when it begins, and gone whatever ends it.

Measurements take minutes, so they are stopped: by Ctrl-C, by `timeout`, by whoever ends a job of CI. Python's own
answer to SIGTERM is to die at once, and then VMs, mounts and namespaces would stay, in a folder nobody knows.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from lab.machines import Lab


@contextmanager
def borrowed(say: Callable[[str], None] = lambda _line: None) -> Iterator[Lab]:
    """A lab in a temporary folder, not up yet; what it has by then is taken down at the end."""
    with tidy_end(), tempfile.TemporaryDirectory(prefix="sysvm-lab-") as folder:
        lab = Lab(Path(folder) / "lab", say=say)
        try:
            yield lab
        finally:
            lab.down()


@contextmanager
def tidy_end() -> Iterator[None]:
    """The first SIGTERM ends the block as SystemExit, with the exit code that a shell gives one that died of it; a
    second one does not cut short what tidies up. For the main thread."""

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
