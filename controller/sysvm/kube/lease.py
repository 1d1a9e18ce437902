"""Which process is the operator: a Lease, held by compare-and-swap, and the epoch that comes with it.

Two operators would hand out the same work twice, so exactly one works and the others wait. The lock is a Lease
(coordination.k8s.io/v1) that the holder renews; who does not, loses it, and the process ends, because work begun under
a lock cannot be paused safely, only abandoned. The official client's election was not taken: it does not notice when
the work ends, never releases, and compares wall clocks of different machines.

* Expiry is judged by our own monotonic clock: a record that did not change for its duration since we saw it change.
* Renewal runs in a thread with its own loop and connections: a stalled main loop neither loses the lock nor fakes it.
* Every takeover raises ``leaseTransitions``: that number is the epoch. Machines remember the highest epoch they have
  seen and refuse lower ones, so it must not start over when somebody deletes the Lease, restores an old backup or
  installs anew. Therefore a takeover goes to at least the minutes since 1970 (28 million in 2025, within int32 for
  some four thousand years).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import socket
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from sysvm.kube.errors import Conflict, KubeError, NotFound
from sysvm.kube.objects import Object, Resource, rfc3339_micro

logger = logging.getLogger(__name__)

LEASE = Resource("coordination.k8s.io", "v1", "leases", "Lease")


class LeaseApi(Protocol):
    """What an election needs of the API server (``client.Cluster``)."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Object: ...

    async def create(self, resource: Resource, obj: Object) -> Object: ...

    async def replace(self, resource: Resource, obj: Object, *, subresource: str | None = None) -> Object: ...


@dataclass(frozen=True, slots=True)
class LeaseTimings:
    """Others may take the lease ``lease_seconds`` after the last renewal they saw; we give up earlier, after
    ``renew_deadline_seconds`` without one. Tried every ``retry_seconds``."""

    lease_seconds: int = 15
    renew_deadline_seconds: float = 10.0
    retry_seconds: float = 2.0

    def __post_init__(self) -> None:
        if not self.lease_seconds > self.renew_deadline_seconds > 1.2 * self.retry_seconds > 0:
            raise ValueError(f"lease > renew deadline > 1.2 x retry is needed, not {self}")


class LeadershipLost(Exception):  # noqa: N818
    """The lease is not ours any more, or we cannot know that it is. The message says which."""


def new_identity() -> str:
    """A name for this process that no other process had or will have: host and chance."""
    return f"{socket.gethostname()}_{uuid.uuid4()}"


def epoch_floor(now: datetime) -> int:
    """The least epoch of a takeover at this time: minutes since 1970."""
    return int(now.timestamp() // 60)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Election:
    """The protocol of the lease, on whatever event loop it is called, with that loop's clock."""

    def __init__(
        self,
        api: LeaseApi,
        *,
        namespace: str,
        name: str,
        identity: str,
        timings: LeaseTimings | None = None,
        now: Callable[[], datetime] = _utc_now,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._timings = timings or LeaseTimings()
        self._now = now
        self._chance = chance
        self._record: tuple[object, ...] | None = None
        self._record_seen_at = 0.0
        self._lease: Object | None = None
        """The lease as we last wrote it; None when it is not ours."""
        self._renewed_at = 0.0
        self._asked_at: set[str] = set()
        """Acquire times of takeovers whose answer we have not seen: one of them may have been carried out."""
        self.epoch: int | None = None
        self.holder = ""
        """Who held the lease when it was last looked at."""

    async def acquire(self) -> int:
        """Waits until the lease is ours. Returns the epoch."""
        while True:
            epoch = await self._try_to_acquire()
            if epoch is not None:
                return epoch
            await asyncio.sleep(self._timings.retry_seconds * (1.0 + 0.2 * self._chance()))

    async def hold(self) -> None:
        """Renews for ever. Raises LeadershipLost."""
        clock = asyncio.get_running_loop().time
        trouble = "no answer"
        while True:
            await asyncio.sleep(self._timings.retry_seconds)
            deadline = self._renewed_at + self._timings.renew_deadline_seconds
            started = clock()
            if started >= deadline:  # also after the whole process was stopped for a while
                raise self._lost(f"not renewed for {started - self._renewed_at:.1f} s: {trouble}")
            try:
                async with asyncio.timeout_at(deadline):
                    await self._renew()
            except KubeError as error:
                trouble = str(error)
            except TimeoutError as error:
                raise self._lost(f"not renewed for {clock() - self._renewed_at:.1f} s: {trouble}") from error
            else:
                self._renewed_at = started

    async def release(self) -> None:
        """Gives the lease back, so that the next holder need not wait. To be called when all work has ended.

        Raises KubeError when that cannot be told to the server; then the lease runs out by itself.
        """
        if self._lease is None:
            return
        lease, self._lease = self._lease, None
        freed = {**lease["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": self._moment()}
        try:
            await self._api.replace(LEASE, {**lease, "spec": freed})
        except (Conflict, NotFound):
            return  # somebody else's already

    async def is_current(self) -> bool:
        """Whether the server says, now, that we hold the lease in our epoch. Raises KubeError."""
        if self.epoch is None:
            return False
        try:
            lease = await self._api.get(LEASE, self._namespace, self._name)
        except NotFound:
            return False
        return self._is_ours(lease)

    def holds(self) -> bool:
        """Whether nobody else can have the lease yet, by our own clock alone: it was renewed within the deadline at
        which we give up. For any thread; costs nothing."""
        deadline = self._renewed_at + self._timings.renew_deadline_seconds
        return self._lease is not None and time.monotonic() < deadline  # the clock of every asyncio loop

    async def _try_to_acquire(self) -> int | None:
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._timings.renew_deadline_seconds):
                written = await self._take()
        except (KubeError, TimeoutError) as error:
            if not isinstance(error, Conflict):  # who loses a race waits for the winner
                logger.warning("cannot ask for the lease yet: %s", str(error) or "no answer in time")
            return None  # the same question again in a moment
        if written is None:
            return None
        self._lease = written
        self._renewed_at = started
        self.epoch = int(written["spec"]["leaseTransitions"])
        self.holder = self._identity
        return self.epoch

    async def _take(self) -> Object | None:
        try:
            lease = await self._api.get(LEASE, self._namespace, self._name)
        except NotFound:
            metadata = {"namespace": self._namespace, "name": self._name}
            return await self._api.create(LEASE, {"metadata": metadata, "spec": self._taken({})})
        spec: Mapping[str, Any] = lease.get("spec") or {}
        self.holder = str(spec.get("holderIdentity") or "")
        if self.holder and not self._is_unanswered(spec) and not self._has_run_out(spec):
            return None
        return await self._api.replace(LEASE, {**lease, "spec": self._taken(spec)})

    def _is_unanswered(self, spec: Mapping[str, Any]) -> bool:
        """A takeover of ours whose answer was lost. We have done nothing under it, so it may be taken over at once."""
        return spec.get("holderIdentity") == self._identity and spec.get("acquireTime") in self._asked_at

    def _taken(self, spec: Mapping[str, Any]) -> Object:
        moment = self._moment()
        self._asked_at.add(moment)
        return {
            **spec,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": self._timings.lease_seconds,
            "acquireTime": moment,
            "renewTime": moment,
            "leaseTransitions": max(int(spec.get("leaseTransitions") or 0) + 1, epoch_floor(self._now())),
        }

    def _has_run_out(self, spec: Mapping[str, Any]) -> bool:
        """Whether the record has stood unchanged, before our eyes, for as long as its holder asked for."""
        clock = asyncio.get_running_loop().time()
        record = tuple(spec.get(name) for name in ("holderIdentity", "acquireTime", "renewTime", "leaseTransitions"))
        if record != self._record:
            self._record = record
            self._record_seen_at = clock
        return clock - self._record_seen_at >= float(spec.get("leaseDurationSeconds") or self._timings.lease_seconds)

    async def _renew(self) -> None:
        if self._lease is None:
            raise self._lost("never acquired")
        try:
            self._lease = await self._api.replace(LEASE, self._renewed(self._lease))
        except NotFound as error:
            raise self._lost("the Lease was deleted") from error
        except Conflict:  # an answer of ours got lost, somebody put a label on it, or it has been taken
            try:
                lease = await self._api.get(LEASE, self._namespace, self._name)
            except NotFound as error:
                raise self._lost("the Lease was deleted") from error
            if not self._is_ours(lease):
                self.holder = str((lease.get("spec") or {}).get("holderIdentity") or "")
                raise self._lost(f"taken by {self.holder or 'nobody: somebody emptied it'}") from None
            self._lease = await self._api.replace(LEASE, self._renewed(lease))

    def _renewed(self, lease: Object) -> Object:
        return {**lease, "spec": {**lease["spec"], "renewTime": self._moment()}}

    def _is_ours(self, lease: Object) -> bool:
        spec = lease.get("spec") or {}
        return spec.get("holderIdentity") == self._identity and spec.get("leaseTransitions") == self.epoch

    def _lost(self, why: str) -> LeadershipLost:
        self._lease = None
        return LeadershipLost(f"lease {self._namespace}/{self._name}, epoch {self.epoch}: {why}")

    def _moment(self) -> str:
        return rfc3339_micro(self._now())


class LeaderThread:
    """Holds the lease from a thread of its own.

    ``connect`` opens the connection that the thread uses and closes; give it a request timeout of a few seconds.
    ``on_lost`` is called in that thread, at most once, when a lease that was ours is not any more or the thread fails:
    it must end the process without help of the main loop (``os._exit``).
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[AbstractAsyncContextManager[LeaseApi]]],
        *,
        namespace: str,
        name: str,
        on_lost: Callable[[str], None],
        identity: str | None = None,
        timings: LeaseTimings | None = None,
    ) -> None:
        self._connect = connect
        self._namespace = namespace
        self._name = name
        self._on_lost = on_lost
        self._timings = timings or LeaseTimings()
        self.identity = identity or new_identity()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._acquired: concurrent.futures.Future[int] = concurrent.futures.Future()
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: Callable[[], None] | None = None
        self._election: Election | None = None
        self._stopping = False

    @property
    def epoch(self) -> int | None:
        """The epoch once the lease is ours, None before."""
        return self._acquired.result() if self._acquired.done() and not self._acquired.exception() else None

    @property
    def holder(self) -> str:
        """Who held the lease when it was last looked at; for the log of one who waits."""
        return self._election.holder if self._election else ""

    async def acquire(self) -> int:
        """Starts the thread at the first call and waits until the lease is ours. Returns the epoch.

        Raises what ended the thread before that: LoginFailed, or LeadershipLost after ``stop``.
        """
        if self._thread.ident is None:
            self._thread.start()
        return await asyncio.shield(asyncio.wrap_future(self._acquired))

    async def is_current(self) -> bool:
        """Whether the server says, now, that we hold the lease in our epoch. Raises KubeError."""
        if self._loop is None or self._election is None or self._ended.done():
            return False
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._election.is_current(), self._loop))

    def holds(self) -> bool:
        """Whether nobody else can have the lease yet, by our own clock alone (`Election.holds`)."""
        return self._election is not None and self._election.holds()

    async def stop(self, *, timeout_seconds: float = 5.0) -> None:
        """Releases the lease and ends the thread. To be called when all work under the lease has ended.

        Raises TimeoutError when the thread does not end in time; the lease then runs out by itself.
        """
        with self._lock:
            self._stopping = True
            if self._loop is not None and self._end is not None:
                self._loop.call_soon_threadsafe(self._end)
        if self._thread.ident is None:
            return
        async with asyncio.timeout(timeout_seconds):
            await asyncio.shield(asyncio.wrap_future(self._ended))

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001  # nobody may go on under a lease that nobody renews
            if self._acquired.done():
                self._on_lost(str(error) or type(error).__name__)
            else:
                self._acquired.set_exception(error)
        finally:
            if not self._acquired.done():
                self._acquired.set_exception(LeadershipLost("stopped before the lease was ours"))
            self._ended.set_result(None)

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as closing:
            try:
                async with asyncio.timeout(None) as work:  # no time limit: the scope that ``stop`` ends
                    with self._lock:
                        if self._stopping:
                            return
                        self._loop = loop
                        self._end = lambda: _expire(work)
                    api = await closing.enter_async_context(await self._connect())
                    self._election = Election(
                        api, namespace=self._namespace, name=self._name, identity=self.identity, timings=self._timings
                    )
                    self._acquired.set_result(await self._election.acquire())
                    await self._election.hold()
            except TimeoutError:
                if not work.expired():
                    raise
            finally:
                with self._lock:
                    self._loop = None
            if self._election is not None:
                await self._release(self._election)

    @staticmethod
    async def _release(election: Election) -> None:
        with suppress(KubeError):  # it runs out by itself
            await election.release()


def _expire(scope: asyncio.Timeout) -> None:
    try:
        scope.reschedule(0.0)
    except RuntimeError:
        return  # it ended by itself meanwhile
