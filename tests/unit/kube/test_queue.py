"""The work queue on virtual time: no key twice at once, no wish lost, failures later and later."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import looptime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysvm.kube.errors import Unavailable
from sysvm.kube.queue import Again, Backoff, HandlerCancelled, WorkQueue

pytestmark = [pytest.mark.looptime]

EXACT = Backoff(base_seconds=1.0, cap_seconds=60.0, jitter=0.0)


def now() -> float:
    return asyncio.get_running_loop().time()


@dataclass
class Log:
    """What a queue did, in seconds of virtual time."""

    runs: list[tuple[str, float]] = field(default_factory=list)
    failures: list[tuple[str, str, int, float]] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    ran: list[float] = field(default_factory=list)

    def depth(self, queue: str, ready: int) -> None:
        self.depths.append(ready)

    def started(self, queue: str, key: object, waited_seconds: float) -> None:
        self.runs.append((str(key), round(now(), 3)))
        self.waited.append(round(waited_seconds, 3))

    def finished(self, queue: str, key: object, ran_seconds: float) -> None:
        self.ran.append(round(ran_seconds, 3))

    def failed(self, queue: str, key: object, error: Exception, failures: int, retry_seconds: float) -> None:
        self.failures.append((str(key), type(error).__name__, failures, retry_seconds))


Handler = Callable[[str], Awaitable[Again | None]]


@asynccontextmanager
async def working(queue: WorkQueue[str], handler: Handler, *, workers: int = 1) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        group.create_task(queue.run(handler, workers=workers))
        yield
        queue.stop()


async def nothing(_key: str) -> None:
    return None


def busy(seconds: float) -> Handler:
    async def handler(_key: str) -> None:
        await asyncio.sleep(seconds)

    return handler


async def test_a_key_that_waits_is_not_added_twice() -> None:
    log = Log()
    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    for _ in range(5):
        queue.add("a")
    async with working(queue, nothing):
        await asyncio.sleep(1)
    assert log.runs == [("a", 0.0)]


async def test_a_key_added_while_in_work_runs_once_more_afterwards() -> None:
    log = Log()
    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    queue.add("a")
    async with working(queue, busy(10), workers=4):
        for _ in range(3):
            await asyncio.sleep(2)
            queue.add("a")
        await asyncio.sleep(30)
    assert log.runs == [("a", 0.0), ("a", 10.0)]


async def test_keys_run_in_the_order_they_came_and_a_busy_key_goes_to_the_end() -> None:
    log = Log()
    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    for key in "abc":
        queue.add(key)
    async with working(queue, busy(1)):
        await asyncio.sleep(0.5)
        queue.add("a")
        await asyncio.sleep(9.5)
    assert [key for key, _ in log.runs] == ["a", "b", "c", "a"]


async def test_n_workers_work_on_n_keys_at_once() -> None:
    log = Log()
    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    for key in "abcde":
        queue.add(key)
    async with working(queue, busy(10), workers=2):
        await asyncio.sleep(5)
        assert [running.key for running in queue.running()] == ["a", "b"]
        assert [running.seconds for running in queue.running()] == [5.0, 5.0]
        assert (queue.depth, queue.oldest_wait_seconds()) == (3, 5.0)
        await asyncio.sleep(50)
    assert log.runs == [("a", 0.0), ("b", 0.0), ("c", 10.0), ("d", 10.0), ("e", 20.0)]


async def test_of_delayed_wishes_the_earliest_counts() -> None:
    log = Log()
    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    async with working(queue, nothing):
        queue.add_after("a", 30)
        queue.add_after("a", 10)
        queue.add_after("a", 20)
        queue.add_after("b", 15)
        assert queue.delayed == 2
        await asyncio.sleep(100)
    assert log.runs == [("a", 10.0), ("b", 15.0)]


async def test_an_immediate_add_does_not_take_a_delayed_wish_back() -> None:
    log = Log()
    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    async with working(queue, nothing):
        queue.add_after("a", 10)
        queue.add("a")
        await asyncio.sleep(100)
    assert log.runs == [("a", 0.0), ("a", 10.0)]


async def test_a_handler_may_ask_to_look_again() -> None:
    log = Log()

    async def every_minute(_key: str) -> Again:
        return Again(60)

    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    queue.add("a")
    async with working(queue, every_minute):
        await asyncio.sleep(150)
    assert log.runs == [("a", 0.0), ("a", 60.0), ("a", 120.0)]


async def test_failures_come_back_later_and_later_and_success_forgets_them() -> None:
    log = Log()
    left = [3]

    async def fails_three_times(_key: str) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("not yet")

    queue: WorkQueue[str] = WorkQueue("q", backoff=EXACT, observer=log)
    queue.add("a")
    async with working(queue, fails_three_times):
        await asyncio.sleep(6.5)
        assert queue.failures("a") == 3
        await asyncio.sleep(30)
    assert log.runs == [("a", 0.0), ("a", 1.0), ("a", 3.0), ("a", 7.0)]
    assert [(failures, seconds) for _, _, failures, seconds in log.failures] == [(1, 1.0), (2, 2.0), (3, 4.0)]
    assert queue.failures("a") == 0


async def test_a_server_that_asks_for_patience_gets_it() -> None:
    log = Log()

    async def overloaded(_key: str) -> None:
        raise Unavailable("too many requests", retry_after_seconds=17)

    queue: WorkQueue[str] = WorkQueue("q", backoff=EXACT, observer=log)
    queue.add("a")
    async with working(queue, overloaded):
        await asyncio.sleep(20)
    assert log.runs == [("a", 0.0), ("a", 17.0)]


def test_backoff_has_a_cap_and_chance_only_shortens_it() -> None:
    backoff = Backoff(base_seconds=1.0, cap_seconds=300.0, jitter=0.25, chance=lambda: 1.0)
    assert [backoff.seconds(n) for n in (1, 2, 3)] == [0.75, 1.5, 3.0]
    assert backoff.seconds(5000) == 225.0


async def test_a_cancelled_task_inside_a_handler_is_a_failure_and_does_not_cost_a_worker() -> None:
    log = Log()
    inner: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    inner.cancel()

    async def waits_for_the_cancelled(key: str) -> None:
        if key == "bad":
            await inner

    queue: WorkQueue[str] = WorkQueue("q", backoff=EXACT, observer=log)
    queue.add("bad")
    queue.add("good")
    async with working(queue, waits_for_the_cancelled):
        await asyncio.sleep(0.5)
    assert [key for key, _ in log.runs] == ["bad", "good"]
    assert log.failures == [("bad", HandlerCancelled.__name__, 1, 1.0)]


async def test_stop_lets_the_keys_in_work_finish_and_takes_nothing_more() -> None:
    log = Log()
    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    queue.add("a")
    queue.add("b")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(queue.run(busy(10), workers=1))
        await asyncio.sleep(1)
        queue.stop()
        queue.add("c")
        queue.add_after("d", 1)
        await task
    assert (log.runs, log.ran, now()) == ([("a", 0.0)], [10.0], 10.0)
    assert queue.idle


async def test_drain_also_runs_what_stands_in_line() -> None:
    log = Log()
    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    for key in "abc":
        queue.add(key)
    async with asyncio.TaskGroup() as group:
        group.create_task(queue.run(busy(10), workers=2))
        await asyncio.sleep(1)
        queue.add("a")
        queue.stop(drain=True)
    assert [key for key, _ in log.runs] == ["a", "b", "c", "a"]


async def test_what_does_not_end_in_its_grace_is_cancelled() -> None:
    queue: WorkQueue[str] = WorkQueue("q")
    queue.add("a")
    async with asyncio.TaskGroup() as group:
        group.create_task(queue.run(busy(1000), workers=2))
        await asyncio.sleep(1)
        queue.stop(grace_seconds=5)
    assert now() == 6.0


async def test_cancelling_run_cancels_the_handlers() -> None:
    queue: WorkQueue[str] = WorkQueue("q")
    queue.add("a")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await queue.run(busy(1000), workers=1)
    assert (now(), queue.running()) == (3.0, [])


async def test_the_observer_sees_depth_wait_and_run_time() -> None:
    log = Log()
    queue: WorkQueue[str] = WorkQueue("q", observer=log)
    queue.add("a")
    queue.add("b")
    async with working(queue, busy(3)):
        await asyncio.sleep(10)
    assert (log.depths, log.waited, log.ran) == ([1, 2, 1, 0], [0.0, 3.0], [3.0, 3.0])


@dataclass(frozen=True)
class Wish:
    at: float
    key: str
    after: float


SECONDS = st.integers(0, 120).map(lambda quarters: quarters / 4)
"""Sums of quarters are exact: what is due at a moment is due at that moment, and not a rounding later."""
WISHES = st.lists(
    st.builds(Wish, at=SECONDS, key=st.sampled_from("abc"), after=st.just(0.0) | SECONDS), min_size=1, max_size=20
)


@given(
    wishes=WISHES,
    durations=st.lists(SECONDS, min_size=1, max_size=5),
    outcomes=st.lists(st.sampled_from(["ok", "ok", "fail", "again"]), min_size=1, max_size=8),
    workers=st.integers(1, 3),
)
def test_no_wish_is_lost_and_no_key_runs_twice_at_once(
    wishes: list[Wish], durations: list[float], outcomes: list[str], workers: int
) -> None:
    runs: dict[str, list[tuple[float, float]]] = defaultdict(list)
    extra: list[str] = []

    async def scenario() -> None:
        in_work: set[str] = set()
        queue: WorkQueue[str] = WorkQueue("q", backoff=EXACT)

        async def handler(key: str) -> Again | None:
            assert key not in in_work
            in_work.add(key)
            assert len(in_work) <= workers
            number = sum(map(len, runs.values()))
            start = now()
            runs[key].append((start, start))
            index = len(runs[key]) - 1
            await asyncio.sleep(durations[number % len(durations)])
            runs[key][index] = (start, now())
            in_work.remove(key)
            outcome = outcomes[number] if number < len(outcomes) else "ok"
            if outcome != "ok":
                extra.append(key)
            if outcome == "fail":
                raise RuntimeError(key)
            return Again(5) if outcome == "again" else None

        async with asyncio.TaskGroup() as group:
            group.create_task(queue.run(handler, workers=workers))
            for wish in sorted(wishes, key=lambda wish: wish.at):
                await asyncio.sleep(wish.at - now())
                queue.add_after(wish.key, wish.after)
            await asyncio.sleep(100_000)
            assert queue.idle
            assert queue.delayed == 0
            queue.stop()

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        runner.run(scenario())
    for key, spans in runs.items():
        assert len(spans) <= sum(wish.key == key for wish in wishes) + extra.count(key)
        assert all(ended <= started for (_, ended), (started, _) in itertools.pairwise(spans))
    for wish in wishes:
        assert any(started >= wish.at for started, _ in runs[wish.key]), f"lost: {wish}"


def expected_runs(wishes: list[Wish]) -> dict[str, list[float]]:
    """When keys run if nothing takes time: the contract of ``add`` and ``add_after`` in ten lines."""
    runs: dict[str, set[float]] = defaultdict(set)
    due: dict[str, float] = {}
    for wish in [*sorted(wishes, key=lambda wish: wish.at), *(Wish(1e6, key, 0.0) for key in "abc")]:
        if wish.key in due and due[wish.key] <= wish.at:
            runs[wish.key].add(due.pop(wish.key))
        if wish.at == 1e6:
            continue
        if wish.after == 0:
            runs[wish.key].add(wish.at)
        else:
            due[wish.key] = min(wish.at + wish.after, due.get(wish.key, 1e9))
    return {key: sorted(times) for key, times in runs.items() if times}


@given(WISHES)
def test_keys_run_exactly_when_they_were_wished_for(wishes: list[Wish]) -> None:
    log = Log()

    async def scenario() -> None:
        queue: WorkQueue[str] = WorkQueue("q", observer=log)
        async with working(queue, nothing):
            for wish in sorted(wishes, key=lambda wish: wish.at):
                await asyncio.sleep(wish.at - now())
                queue.add_after(wish.key, wish.after)
                await asyncio.sleep(0)
            await asyncio.sleep(1000)

    with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
        runner.run(scenario())
    runs: dict[str, set[float]] = defaultdict(set)
    for key, at in log.runs:
        runs[key].add(at)
    assert {key: sorted(times) for key, times in runs.items()} == expected_runs(wishes)
