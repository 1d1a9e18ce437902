"""When the next request to a management server may go: one order for everybody who asks it, whatever they ask.

A turn is taken, not waited for in a queue, so the order is that of asking and a waiter that is cancelled costs its turn
and nothing else. Time is the event loop's.
"""

from __future__ import annotations

import asyncio
import math


class Rate:
    """`per_second` turns on average, `burst` at once after a silence."""

    def __init__(self, per_second: int, burst: int) -> None:
        self._interval = 1.0 / per_second
        self._slack = (burst - 1) * self._interval
        self._next = -math.inf

    async def turn(self) -> None:
        """Returns when it is the caller's turn."""
        now = asyncio.get_running_loop().time()
        mine = max(self._next, now - self._slack)
        self._next = mine + self._interval
        if mine > now:
            await asyncio.sleep(mine - now)

    def pause(self, seconds: float) -> None:
        """Nobody who has not got a turn yet gets one sooner."""
        self._next = max(self._next, asyncio.get_running_loop().time() + seconds)
