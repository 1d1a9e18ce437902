"""An event loop whose clock jumps to the next thing that is due, with threads that are none.

Work that was moved into a thread is done at once instead: with a clock that jumps, a thread would be late by hours.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from looptime import LoopTimeEventLoop
from typing_extensions import TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BEGINNING = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
"""A Monday, at noon."""


class VirtualLoop(LoopTimeEventLoop, asyncio.SelectorEventLoop):
    """Seconds since `BEGINNING`."""

    def __init__(self) -> None:
        super().__init__(start=0.0, noop_cycles=1)

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  # whatever it is belongs to the one who waits
            future.set_exception(error)
        return future


def now() -> datetime:
    """The moment on the running loop's clock."""
    return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())
