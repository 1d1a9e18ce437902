"""Requests keep to the endpoint's rate, in the order of asking. Time is virtual."""

from __future__ import annotations

import asyncio

import pytest

from sysvm.cloudstack.errors import Throttled
from sysvm.cloudstack.rate import LONGEST_PATIENCE_SECONDS, Rate

pytestmark = [pytest.mark.looptime]


def now() -> float:
    return asyncio.get_running_loop().time()


async def times(rate: Rate, number: int) -> list[float]:
    started = now()
    found: list[float] = []

    async def one() -> None:
        await rate.turn()
        found.append(round(now() - started, 3))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(number):
            tasks.create_task(one())
    return found


async def test_a_burst_goes_at_once_and_the_rest_at_the_rate() -> None:
    assert await times(Rate(5, 3), 6) == [0, 0, 0, 0.2, 0.4, 0.6]


async def test_silence_earns_no_more_than_the_burst() -> None:
    rate = Rate(5, 3)
    await rate.turn()
    await asyncio.sleep(3600)
    assert await times(rate, 5) == [0, 0, 0, 0.2, 0.4]


async def test_no_window_of_time_sees_more_than_burst_and_rate() -> None:
    rate = Rate(5, 10)
    found = await times(rate, 200)
    for start in found:
        assert len([moment for moment in found if start <= moment < start + 1.0]) <= 10 + 5


async def test_a_pause_holds_everybody_who_comes_later() -> None:
    rate = Rate(5, 3)
    rate.pause(2.0)
    assert await times(rate, 2) == [2.0, 2.2]


async def test_a_cancelled_waiter_holds_nobody_for_ever() -> None:
    rate = Rate(1, 1)
    await rate.turn()
    waiting = asyncio.create_task(rate.turn())
    await asyncio.sleep(0)
    waiting.cancel()
    assert await times(rate, 1) == [2.0]


async def test_nobody_waits_for_the_end_of_a_long_pause() -> None:
    rate = Rate(5, 3)
    rate.pause(9000.0)
    rate.pause(1.0)
    started = now()
    with pytest.raises(Throttled, match=r"not sent: .* after 9000 s more") as caught:
        await rate.turn()
    assert (now() - started, caught.value.retry_after_seconds) == (0.0, 9000.0)
    await asyncio.sleep(9000.0 - LONGEST_PATIENCE_SECONDS)
    assert await times(rate, 2) == [10.0, 10.2], "the rest of it is short enough, and who was refused has no turn"


async def test_a_long_line_of_our_own_is_no_pause() -> None:
    assert (await times(Rate(1, 1), 30))[-1] == 29.0
