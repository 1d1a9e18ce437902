"""A way to die at exactly the n-th write, for the test that proves that no write is a bad moment to die.

`SYSVM_TEST_KILL_AT_WRITE=7:before` ends the process with SIGKILL right before its seventh write is sent, `7:after`
right after it was answered and before anybody learns of the answer. Unset, nothing is counted.

Events are not counted: they are written beside the work whenever there is time, so they would move the n-th write from
one run to the next, and nothing is ever decided from them. A write that the server refuses changes nothing, so there is
nothing to die after: `after` takes the next one.
"""

import os
import signal
from collections.abc import Mapping
from typing import Literal

from sysvm.kube.client import Write, WriteObserver
from sysvm.kube.errors import KubeError
from sysvm.kube.events import EVENT
from sysvm.operator.settings import SettingsError

VARIABLE = "SYSVM_TEST_KILL_AT_WRITE"


class Killer:
    """Counts writes and ends the process at one of them."""

    def __init__(self, number: int, moment: Literal["before", "after"], then: WriteObserver) -> None:
        self._number, self._moment, self._then = number, moment, then
        self._begun = 0
        self._doomed: Write | None = None

    def before(self, write: Write) -> None:
        if write.resource != EVENT:
            self._count(write)
        self._then.before(write)

    def _count(self, write: Write) -> None:
        self._begun += 1
        # More than the number: the doomed one was refused when others had begun already.
        if self._begun >= self._number and self._doomed is None:
            if self._moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            self._doomed = write

    def after(self, write: Write, error: KubeError | None) -> None:
        if error is not None and self._moment == "after" and write.resource != EVENT:
            self._begun -= 1
            self._doomed = None if write is self._doomed else self._doomed
        elif write is self._doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        self._then.after(write, error)


def observing(observer: WriteObserver, environment: Mapping[str, str] = os.environ) -> WriteObserver:
    """The observer, with a killer in front if the environment asks for one. Raises `SettingsError`."""
    wish = environment.get(VARIABLE, "")
    if not wish:
        return observer
    number, _, moment = wish.partition(":")
    if not number.isdecimal() or moment not in ("before", "after"):
        raise SettingsError(f"{VARIABLE}={wish}: such as 7:before or 7:after")
    return Killer(int(number), "before" if moment == "before" else "after", observer)
