"""Work beside the reconcilers: whatever becomes of it, its key hears of the end."""

from __future__ import annotations

import asyncio

import pytest

from sysvm.engine.work import CUT_OFF_SECONDS, Pool
from sysvm.kube.objects import Key
from sysvm.patching.errors import Unreachable

KEY, OTHER = Key("cloud", "r-1-vm"), Key("cloud", "r-2-vm")


@pytest.mark.looptime
async def test_work_that_is_cut_off_from_within_wakes_its_key_and_can_be_started_again() -> None:
    told: list[tuple[Key, float]] = []
    clock = asyncio.get_running_loop().time
    async with Pool[None, str](1, lambda key, end: told.append((key, clock()))) as pool:
        shared = asyncio.get_running_loop().create_future()

        async def waits(_: object) -> str:
            result: str = await shared
            return result

        async def answers(_: object) -> str:
            return "seen"

        pool.start(KEY, "look", waits)
        pool.start(OTHER, "look", answers)
        await asyncio.sleep(5)
        shared.cancel()
        await asyncio.sleep(5)
        assert told == [(OTHER, 5.0), (KEY, 5.0 + CUT_OFF_SECONDS)], "its place went to the next, and it was told"
        assert pool.get(KEY) is None
        again = pool.start(KEY, "look", answers)
        await asyncio.sleep(0.1)
        assert again.result == "seen"


@pytest.mark.looptime
async def test_work_that_was_dropped_ends_and_takes_nothing_from_the_work_that_follows_it() -> None:
    told: list[Key] = []
    cut: list[str] = []

    async def lasts(_: object) -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cut.append("first")
            raise
        return "late"

    async def follows(_: object) -> str:
        await asyncio.sleep(1)
        return "seen"

    async with Pool[None, str](1, lambda key, end: told.append(key)) as pool:
        pool.start(KEY, "sweep", lasts)
        await asyncio.sleep(1)
        pool.drop(KEY)
        handle = pool.start(KEY, "sweep", follows)
        await asyncio.sleep(0.5)
        assert (cut, told, pool.get(KEY)) == (["first"], [], handle)
        await asyncio.sleep(1)
        assert (handle.result, told) == ("seen", [KEY])
        pool.drop(KEY)
        assert pool.get(KEY) is None
        pool.drop(KEY)


@pytest.mark.looptime
async def test_an_error_wakes_its_key_and_leaving_wakes_nobody() -> None:
    told: list[Key] = []

    async def fails(_: object) -> str:
        raise Unreachable("no answer")

    async def lasts(_: object) -> str:
        await asyncio.sleep(3600)
        return "late"

    async with Pool[None, str](2, lambda key, end: told.append(key)) as pool:
        handle = pool.start(KEY, "look", fails)
        pool.start(OTHER, "look", lasts)
        await asyncio.sleep(1)
        assert told == [KEY]
        assert isinstance(handle.error, Unreachable)
    assert told == [KEY]
    assert pool.get(OTHER) is None
