"""The leader's lease: never two holders, never an epoch twice, never a holder who cannot know that it is one."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.kube.fake_api import FakeApi

from sysvm.kube.errors import LoginFailed, Unavailable
from sysvm.kube.lease import LEASE, Election, LeadershipLost, LeaderThread, LeaseTimings, epoch_floor
from sysvm.kube.objects import Key, Object

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
FLOOR = epoch_floor(START)
KEY = Key("sysvm-system", "operator")


def election(api: FakeApi, identity: str, *, skew: timedelta = timedelta()) -> Election:
    """``skew``: how wrong the wall clock of this candidate is."""

    def wall_clock() -> datetime:
        return START + skew + timedelta(seconds=asyncio.get_running_loop().time())

    return Election(api, namespace=KEY.namespace, name=KEY.name, identity=identity, now=wall_clock, chance=lambda: 0.0)


def now() -> float:
    return asyncio.get_running_loop().time()


def spec_of(api: FakeApi) -> Object:
    spec: Object = api.objects[LEASE, KEY]["spec"]
    return spec


def edit(api: FakeApi, **spec: object) -> None:
    """Somebody else writes the lease."""
    lease = api.objects[LEASE, KEY]
    lease["spec"] = {**lease["spec"], **spec}
    lease["metadata"]["resourceVersion"] = str(next(api.versions))


@pytest.mark.looptime
class TestElection:
    async def test_the_first_one_takes_it_at_once(self) -> None:
        api = FakeApi()
        assert await election(api, "one").acquire() == FLOOR
        assert now() == 0
        assert spec_of(api) == {
            "holderIdentity": "one",
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-11-22T10:00:00.000000Z",
            "renewTime": "2026-11-22T10:00:00.000000Z",
            "leaseTransitions": FLOOR,
        }

    async def test_the_second_one_waits_while_the_first_renews(self) -> None:
        api = FakeApi()
        first, second = election(api, "one"), election(api, "two")
        await first.acquire()
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(first.hold())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3600):
                    await second.acquire()
            assert second.holder == "one"
            assert await first.is_current()
            assert not await second.is_current()
            holding.cancel()

    async def test_a_dead_holder_is_followed_after_the_lease_has_run_out_before_our_eyes(self) -> None:
        api = FakeApi()
        await election(api, "one").acquire()
        await asyncio.sleep(1000)
        second = election(api, "two")
        assert await second.acquire() == FLOOR + 16
        assert 1015 <= now() <= 1018
        assert spec_of(api)["leaseTransitions"] == FLOOR + 16

    @pytest.mark.parametrize("skew", [timedelta(days=-365), timedelta(days=365)])
    async def test_wrong_wall_clocks_neither_steal_nor_stall(self, skew: timedelta) -> None:
        api = FakeApi()
        first, second = election(api, "one"), election(api, "two", skew=skew)
        epoch = await first.acquire()
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(first.hold())
            waiting = group.create_task(second.acquire())
            await asyncio.sleep(600)
            assert not waiting.done()
            holding.cancel()
            await asyncio.sleep(20)
            assert waiting.done()
        assert waiting.result() > epoch

    async def test_a_released_lease_is_taken_without_waiting(self) -> None:
        api = FakeApi()
        first = election(api, "one")
        await first.acquire()
        await first.release()
        assert spec_of(api)["holderIdentity"] == ""
        assert await election(api, "two").acquire() == FLOOR + 1
        assert now() == 0
        assert not await first.is_current()

    async def test_every_takeover_has_a_higher_epoch_even_after_the_lease_was_deleted(self) -> None:
        api = FakeApi()
        one = election(api, "one")
        epochs = [await one.acquire()]
        for name in ("two", "three"):
            api.delete(LEASE, KEY)
            await asyncio.sleep(60)
            epochs.append(await election(api, name).acquire())
        edit(api, leaseTransitions=3, holderIdentity="")  # an old backup
        await asyncio.sleep(60)
        epochs.append(await election(api, "four").acquire())
        assert epochs == sorted(set(epochs))

    async def test_a_holder_with_our_own_name_is_not_us(self) -> None:
        api = FakeApi()
        first, again = election(api, "one"), election(api, "one")
        epoch = await first.acquire()
        assert await again.acquire() > epoch
        assert now() >= 15, "it waits like anybody else"
        assert not await first.is_current()

    async def test_of_many_candidates_exactly_one_wins_each_time(self) -> None:
        api = FakeApi(delay_seconds=0.5)
        won: list[tuple[str, int]] = []

        async def candidate(name: str) -> None:
            mine = election(api, name)
            won.append((name, await mine.acquire()))
            await asyncio.sleep(3)
            assert await mine.is_current()
            await mine.release()

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(candidate(f"c{number}"))
        assert len({epoch for _, epoch in won}) == 6

    async def test_a_renewal_whose_answer_was_lost_goes_on(self) -> None:
        api = FakeApi()
        first = election(api, "one")
        await first.acquire()
        api.lose_answers = 2
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(first.hold())
            await asyncio.sleep(60)
            assert not holding.done()
            assert await first.is_current()
            holding.cancel()

    @pytest.mark.parametrize("released", [False, True], ids=["created", "taken over"])
    async def test_a_takeover_whose_answer_was_lost_is_not_waited_for(
        self, released: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        api = FakeApi()
        if released:
            before = election(api, "before")
            await before.acquire()
            await before.release()
        mine, other = election(api, "one"), election(api, "two")
        api.lose_answers = 1
        epoch = await mine.acquire()
        assert now() <= 2.4, "the next try, not the end of a lease that nobody else holds"
        assert epoch > FLOOR, "another takeover, with an epoch of its own"
        assert await mine.is_current()
        assert "cannot ask for the lease yet: " in caplog.text, "who waits says why"
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(mine.hold())
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(60):
                    await other.acquire()
            holding.cancel()

    async def test_a_label_on_the_lease_does_not_cost_it(self) -> None:
        api = FakeApi()
        first = election(api, "one")
        await first.acquire()
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(first.hold())
            await asyncio.sleep(5)
            edit(api)
            await asyncio.sleep(60)
            assert not holding.done()
            holding.cancel()

    @pytest.mark.parametrize("delay", [0.0, 3.0, 3600.0])
    async def test_who_cannot_renew_gives_up_before_another_may_take_over(self, delay: float) -> None:
        api = FakeApi()
        first = election(api, "one")
        await first.acquire()
        api.trouble = Unavailable("connection refused")
        api.delay_seconds = delay
        with pytest.raises(LeadershipLost, match=r"not renewed for 1\d\.\d s: (no answer|connection refused)"):
            await first.hold()
        assert now() < 15

    async def test_trouble_that_passes_in_time_is_no_loss(self) -> None:
        api = FakeApi()
        first = election(api, "one")
        await first.acquire()
        async with asyncio.TaskGroup() as group:
            holding = group.create_task(first.hold())
            for _ in range(5):
                api.trouble = Unavailable("connection refused")
                await asyncio.sleep(6)
                api.trouble = None
                await asyncio.sleep(5)
            assert not holding.done()
            holding.cancel()

    async def test_who_was_overtaken_says_by_whom(self) -> None:
        api = FakeApi()
        first = election(api, "one")
        await first.acquire()
        edit(api, holderIdentity="two", leaseTransitions=FLOOR + 1)
        with pytest.raises(LeadershipLost, match="taken by two"):
            await first.hold()
        assert now() == 2

    async def test_the_same_name_in_another_epoch_is_another_holder(self) -> None:
        api = FakeApi()
        first = election(api, "one")
        await first.acquire()
        edit(api, leaseTransitions=FLOOR + 1)
        with pytest.raises(LeadershipLost, match="taken by one"):
            await first.hold()

    async def test_a_deleted_lease_is_lost(self) -> None:
        api = FakeApi()
        first = election(api, "one")
        await first.acquire()
        api.delete(LEASE, KEY)
        assert not await first.is_current()
        with pytest.raises(LeadershipLost, match="deleted"):
            await first.hold()

    async def test_a_release_does_not_take_the_lease_from_a_successor(self) -> None:
        api = FakeApi()
        first = election(api, "one")
        await first.acquire()
        edit(api, holderIdentity="two", leaseTransitions=FLOOR + 1)
        await first.release()
        assert spec_of(api)["holderIdentity"] == "two"


def test_timings_in_which_two_could_hold_it_are_refused() -> None:
    with pytest.raises(ValueError, match="renew deadline"):
        LeaseTimings(lease_seconds=10, renew_deadline_seconds=10)


FAST = LeaseTimings(lease_seconds=2, renew_deadline_seconds=1.0, retry_seconds=0.1)


def leader(api: FakeApi, lost: Callable[[str], None]) -> LeaderThread:
    async def connect() -> FakeApi:
        return api

    return LeaderThread(connect, namespace=KEY.namespace, name=KEY.name, on_lost=lost, timings=FAST)


async def eventually(holds: Callable[[], bool], within_seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + within_seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


class TestLeaderThread:
    """In real threads and real, short time."""

    async def test_a_stalled_main_loop_does_not_lose_the_lease(self) -> None:
        api, lost = FakeApi(), []  # type: ignore[var-annotated]
        thread = leader(api, lost.append)
        epoch = await thread.acquire()
        renewed = spec_of(api)["renewTime"]
        time.sleep(2.5)
        assert lost == []
        assert spec_of(api)["renewTime"] > renewed
        assert thread.epoch == epoch
        assert await thread.is_current()
        await thread.stop()

    async def test_a_loss_is_told_in_the_thread_once_though_the_main_loop_stands(self) -> None:
        api = FakeApi()
        told: list[tuple[str, str]] = []
        thread = leader(api, lambda why: told.append((threading.current_thread().name, why)))
        await thread.acquire()
        edit(api, holderIdentity="two")
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
        assert [name for name, _ in told] == ["lease"]
        assert "taken by two" in told[0][1]
        assert not await thread.is_current()

    async def test_it_is_known_without_asking_anybody_until_when_the_lead_is_ours(self) -> None:
        api = FakeApi()
        thread = leader(api, lambda _: None)
        assert not thread.holds()
        await thread.acquire()
        assert thread.holds()
        api.trouble = Unavailable("cut off")
        assert await eventually(lambda: not thread.holds())
        assert spec_of(api)["holderIdentity"] == thread.identity, "nobody else has taken it yet"

    async def test_stop_releases_and_ends_the_thread(self) -> None:
        api, lost = FakeApi(), []  # type: ignore[var-annotated]
        thread = leader(api, lost.append)
        await thread.acquire()
        await thread.stop()
        assert spec_of(api)["holderIdentity"] == ""
        assert lost == []
        assert await eventually(lambda: "lease" not in {running.name for running in threading.enumerate()})

    async def test_stop_while_waiting_ends_the_wait(self) -> None:
        api = FakeApi()
        first, second = leader(api, print), leader(api, print)
        await first.acquire()
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(self.refused(second))
            assert await eventually(lambda: second.holder == first.identity)
            await second.stop()
            await waiting
        assert spec_of(api)["holderIdentity"] == first.identity
        await first.stop()

    @staticmethod
    async def refused(thread: LeaderThread) -> None:
        with pytest.raises(LeadershipLost, match="stopped before"):
            await thread.acquire()

    async def test_a_login_that_fails_reaches_the_caller(self) -> None:
        async def connect() -> FakeApi:
            raise LoginFailed("no such file")

        thread = LeaderThread(connect, namespace="n", name="l", on_lost=print)
        with pytest.raises(LoginFailed):
            await thread.acquire()

    async def test_a_failure_of_the_thread_itself_counts_as_a_loss(self) -> None:
        api = FakeApi()
        told: list[str] = []
        thread = leader(api, told.append)
        await thread.acquire()
        api.objects[LEASE, KEY]["spec"]["renewTime"] = None
        api.trouble = RuntimeError("a defect of ours")  # type: ignore[assignment]
        assert await eventually(lambda: bool(told))
        assert told == ["a defect of ours"]
