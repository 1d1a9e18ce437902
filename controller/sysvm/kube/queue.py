"""The work queue: which key is reconciled next, by which of N workers, and when again.

Events come in bursts and tell little; reconciling is slow and tells everything. Between them stands a queue of *keys*:
a key that waits is not added twice, a key in work is not worked on twice at once, and a key added meanwhile runs once
more afterwards, so that no event is lost and none costs a run of its own. Failures come back later and later.

Time is the event loop's, chance is an argument: under a loop of virtual time hours of backoff pass in a test at once.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Again:
    """The answer of a handler that succeeded and wants to look once more after so many seconds."""

    after_seconds: float


@runtime_checkable
class AsksForPatience(Protocol):
    """An error that knows when trying again makes sense (``errors.KubeError``); it can only lengthen the backoff."""

    retry_after_seconds: float | None


class HandlerCancelled(Exception):  # noqa: N818
    """Something that the handler waited for was cancelled, not the handler: a failure like any other."""


class QueueObserver(Protocol):
    """Looks into one queue, for metrics and logs. Called on the loop; must not raise or wait."""

    def depth(self, queue: str, ready: int) -> None: ...

    def started(self, queue: str, key: object, waited_seconds: float) -> None: ...

    def finished(self, queue: str, key: object, ran_seconds: float) -> None: ...

    def failed(self, queue: str, key: object, error: Exception, failures: int, retry_seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Backoff:
    """The wait after the n-th failure in a row: doubling from ``base_seconds`` to ``cap_seconds``, less some chance.

    ``jitter`` is the share of the wait that chance may take away: what failed together does not return together.
    """

    base_seconds: float = 0.5
    cap_seconds: float = 300.0
    jitter: float = 0.25
    chance: Callable[[], float] = random.random

    def seconds(self, failures: int) -> float:
        full = min(self.cap_seconds, self.base_seconds * 2.0 ** min(failures - 1, 60))
        return full * (1.0 - self.jitter * self.chance())


@dataclass(frozen=True, slots=True)
class Running(Generic[K]):
    """A key in work, since ``seconds``."""

    key: K
    seconds: float


class WorkQueue(Generic[K]):
    """A de-duplicating queue of keys with workers. Not thread-safe: it belongs to one event loop.

    ``add`` and ``add_after`` may be called before ``run``, and by the handler itself.
    """

    def __init__(self, name: str, *, backoff: Backoff | None = None, observer: QueueObserver | None = None) -> None:
        self.name = name
        self._backoff = backoff or Backoff()
        self._observer = observer
        self._ready: deque[K] = deque()
        self._waiting_since: dict[K, float] = {}
        """The keys that will run: those in ``_ready``, and those in work that were added meanwhile."""
        self._running: dict[K, float] = {}
        self._due: dict[K, float] = {}
        self._timetable: list[tuple[float, int, K]] = []
        """A heap of ``_due``, with entries that an earlier wish has made stale."""
        self._sequence = 0
        self._timer: asyncio.TimerHandle | None = None
        self._failures: dict[K, int] = {}
        self._wanted = asyncio.Event()
        self._stopping = False
        self._workers: set[asyncio.Task[None]] = set()

    # What is wanted

    def add(self, key: K) -> None:
        """Run the key soon: at the end of the line, or once more after the run it is in."""
        if self._stopping or key in self._waiting_since:
            return
        self._waiting_since[key] = self._now()
        if key not in self._running:
            self._make_ready(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Run the key in so many seconds. Of several such wishes the earliest counts, the others are forgotten.

        An ``add`` meanwhile does not take the wish back: a run too many is cheap, one too few is a stuck object.
        """
        if seconds <= 0:
            self.add(key)
            return
        if self._stopping:
            return
        due = self._now() + seconds
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._sequence += 1
        heapq.heappush(self._timetable, (due, self._sequence, key))
        self._set_timer()

    # What is going on

    @property
    def depth(self) -> int:
        """Keys that could run now."""
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """Keys with a run in the future."""
        return len(self._due)

    @property
    def idle(self) -> bool:
        """Nothing in work and nothing that could be; runs in the future do not count."""
        return not self._running and not self._waiting_since

    def failures(self, key: K) -> int:
        """Failures in a row."""
        return self._failures.get(key, 0)

    def running(self) -> list[Running[K]]:
        """The keys in work, the longest first."""
        now = self._now()
        return [Running(key, now - since) for key, since in sorted(self._running.items(), key=lambda item: item[1])]

    def oldest_wait_seconds(self) -> float:
        """For how long the first in line has been waiting, 0 when there is none."""
        return self._now() - self._waiting_since[self._ready[0]] if self._ready else 0.0

    # Working

    async def run(self, handler: Callable[[K], Awaitable[Again | None]], *, workers: int) -> None:
        """Calls the handler for key after key until ``stop``, at most ``workers`` at once and never two for one key.

        A handler that raises is tried again after the backoff; one that returns has succeeded.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(workers):
                    task = group.create_task(self._work(handler), name=f"{self.name}-worker-{number}")
                    self._workers.add(task)
                    task.add_done_callback(self._workers.discard)
        finally:
            self._cancel_timer()

    def stop(self, *, drain: bool = False, grace_seconds: float | None = None) -> None:
        """Takes nothing more in; ``run`` returns when the keys in work are done, with ``drain`` also those in line.

        What is not done after ``grace_seconds`` is cancelled.
        """
        self._stopping = True
        self._cancel_timer()
        self._due.clear()
        self._timetable.clear()
        if not drain:
            self._ready.clear()
            self._waiting_since.clear()
        self._wanted.set()
        if grace_seconds is not None:
            asyncio.get_running_loop().call_later(grace_seconds, self._cancel_workers)

    async def _work(self, handler: Callable[[K], Awaitable[Again | None]]) -> None:
        while True:
            while not self._ready:
                if self._stopping and not self._waiting_since:
                    return
                self._wanted.clear()
                await self._wanted.wait()
            await self._run_once(self._ready.popleft(), handler)

    async def _run_once(self, key: K, handler: Callable[[K], Awaitable[Again | None]]) -> None:
        started = self._now()
        waited = started - self._waiting_since.pop(key)
        self._running[key] = started
        if self._observer is not None:
            self._observer.depth(self.name, len(self._ready))
            self._observer.started(self.name, key, waited)
        try:
            again = await handler(key)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._fail(key, HandlerCancelled(f"a task that {key} waited for was cancelled: {error}"))
        except Exception as error:  # noqa: BLE001  # whatever a reconciler raises, the queue lives
            self._fail(key, error)
        else:
            self._failures.pop(key, None)
            if again is not None:
                self.add_after(key, again.after_seconds)
        finally:
            del self._running[key]
            if key in self._waiting_since:
                self._make_ready(key)
            if self._stopping:
                self._wanted.set()
            if self._observer is not None:
                self._observer.finished(self.name, key, self._now() - started)

    def _fail(self, key: K, error: Exception) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = self._backoff.seconds(failures)
        if isinstance(error, AsksForPatience):
            seconds = max(seconds, error.retry_after_seconds or 0.0)
        self.add_after(key, seconds)
        if self._observer is not None:
            self._observer.failed(self.name, key, error, failures, seconds)

    def _make_ready(self, key: K) -> None:
        self._ready.append(key)
        self._wanted.set()
        if self._observer is not None:
            self._observer.depth(self.name, len(self._ready))

    # Time

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _set_timer(self) -> None:
        """One timer, for the earliest wish."""
        while self._timetable and self._due.get(self._timetable[0][2]) != self._timetable[0][0]:
            heapq.heappop(self._timetable)
        self._cancel_timer()
        if self._timetable:
            self._timer = asyncio.get_running_loop().call_at(self._timetable[0][0], self._ring)

    def _ring(self) -> None:
        now = self._now()
        while self._timetable and self._timetable[0][0] <= now:
            due, _, key = heapq.heappop(self._timetable)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        self._set_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cancel_workers(self) -> None:
        for task in self._workers:
            task.cancel()
