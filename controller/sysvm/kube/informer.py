"""The LIST that catches what the watch missed.

Live events come from the watch that the operator's host process keeps. A watch that breaks and lists anew never tells
of what was deleted in between, so a cache fed by events alone keeps the dead for ever. A relist every ten minutes puts
every state (the cache drops what it knows already) and buries what the list no longer names.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Generic, Protocol, TypeVar

from sysvm.kube.cache import Store
from sysvm.kube.client import PAGE_SIZE, ObjectList
from sysvm.kube.errors import Expired, KubeError, Unavailable
from sysvm.kube.objects import Key, Resource, key_of
from sysvm.kube.queue import Backoff

T = TypeVar("T")

INTERVAL_SECONDS = 600.0


class Lister(Protocol):
    """What lists (``client.Cluster``)."""

    def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page_size: int = PAGE_SIZE,
    ) -> AsyncIterator[ObjectList]: ...


class RelistObserver(Protocol):
    """Looks at relists, for metrics and logs. ``dropped`` counts deletions that no event had told of."""

    def relisted(self, resource: Resource, items: int, dropped: int, seconds: float) -> None: ...

    def relist_failed(self, resource: Resource, error: KubeError, retry_seconds: float) -> None: ...


class Relister(Generic[T]):
    """Keeps one store true by listing. ``namespace`` None lists all; what the store holds must match the selector."""

    def __init__(
        self,
        lister: Lister,
        store: Store[T],
        *,
        namespace: str | None = None,
        label_selector: str = "",
        field_selector: str = "",
        interval_seconds: float = INTERVAL_SECONDS,
        backoff: Backoff | None = None,
        chance: Callable[[], float] = random.random,
        observer: RelistObserver | None = None,
    ) -> None:
        self._lister = lister
        self._store = store
        self._namespace = namespace
        self._label_selector = label_selector
        self._field_selector = field_selector
        self._interval_seconds = interval_seconds
        self._backoff = backoff or Backoff(base_seconds=1.0, cap_seconds=60.0)
        self._chance = chance
        self._observer = observer

    async def once(self) -> list[Key]:
        """One relist. Returns the keys that were gone without an event. Raises KubeError; the store is then as good."""
        clock = asyncio.get_running_loop().time
        started = clock()
        for page_size in (PAGE_SIZE, PAGE_SIZE, 0):
            try:
                keys, version = await self._put_pages(page_size)
            except Expired:
                continue
            dropped = self._store.settle(keys, version, namespace=self._namespace)
            if self._observer is not None:
                self._observer.relisted(self._store.resource, len(keys), len(dropped), clock() - started)
            return dropped
        raise Unavailable("the list expired again and again", request=f"list {self._store.resource}")

    async def run(self) -> None:
        """Relists for ever, the first time after an interval. The server's refusals are observed and tried again."""
        failures = 0
        while True:
            spread = 0.9 + 0.2 * self._chance()  # so that the kinds do not list in step
            await asyncio.sleep(self._backoff.seconds(failures) if failures else self._interval_seconds * spread)
            try:
                await self.once()
            except KubeError as error:
                failures += 1
                if self._observer is not None:
                    self._observer.relist_failed(self._store.resource, error, self._backoff.seconds(failures))
            else:
                failures = 0

    async def _put_pages(self, page_size: int) -> tuple[set[Key], int]:
        """Puts page after page, so that no more than one page of whole objects is in memory."""
        keys: set[Key] = set()
        version = 0
        async for page in self._lister.pages(
            self._store.resource,
            self._namespace,
            label_selector=self._label_selector,
            field_selector=self._field_selector,
            page_size=page_size,
        ):
            version = page.resource_version
            for item in page.items:
                keys.add(key_of(item))
                self._store.put(item)
        return keys, version
