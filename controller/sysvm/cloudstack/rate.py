"""When the next request to a management server may go: one order for everybody who asks it, whatever they ask.

A turn is taken, not waited for in a queue, so the order is that of asking and a waiter that is cancelled costs its turn
and nothing else. A server that wants to be left alone for long gets no waiters: who comes then is told so and may come
back. Time is the event loop's.
"""

from __future__ import annotations

import asyncio
import math

from sysvm.cloudstack.errors import Throttled

LONGEST_PATIENCE_SECONDS = 10.0
"""A longer wait that the server asks for is left to the caller, whose work queue holds nothing meanwhile."""


class Rate:
    """`per_second` turns on average, `burst` at once after a silence."""

    def __init__(self, per_second: int, burst: int) -> None:
        self._interval = 1.0 / per_second
        self._slack = (burst - 1) * self._interval
        self._next = -math.inf
        self._paused_until = -math.inf

    async def turn(self) -> None:
        """Returns when it is the caller's turn. Raises `Throttled` at once when a pause lasts longer than patience."""
        now = asyncio.get_running_loop().time()
        pause = self._paused_until - now
        if pause > LONGEST_PATIENCE_SECONDS:
            raise Throttled(
                f"not sent: the server said before that it is to be asked again after {pause:.0f} s more",
                retry_after_seconds=pause,
            )
        mine = max(self._next, now - self._slack)
        self._next = mine + self._interval
        if mine > now:
            await asyncio.sleep(mine - now)

    def pause(self, seconds: float) -> None:
        """Nobody who has not got a turn yet gets one sooner."""
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)
        self._next = max(self._next, self._paused_until)
