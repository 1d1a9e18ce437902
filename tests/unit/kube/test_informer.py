"""The relist: what the watch never told of is noticed, and no trouble of the server stops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from tests.unit.kube.fake_api import FakeApi

from sysvm.kube.cache import Store
from sysvm.kube.client import PAGE_SIZE, ObjectList
from sysvm.kube.errors import Expired, KubeError, Unavailable
from sysvm.kube.informer import Relister
from sysvm.kube.objects import Key, Resource

pytestmark = [pytest.mark.looptime]

WIDGET = Resource("example.io", "v1", "widgets", "Widget")


class Log:
    def __init__(self) -> None:
        self.relists: list[tuple[int, int]] = []
        self.failures: list[float] = []

    def relisted(self, resource: Resource, items: int, dropped: int, seconds: float) -> None:
        self.relists.append((items, dropped))

    def relist_failed(self, resource: Resource, error: KubeError, retry_seconds: float) -> None:
        self.failures.append(retry_seconds)


async def filled(api: FakeApi, count: int) -> Store[str]:
    for number in range(count):
        await api.create(WIDGET, {"metadata": {"namespace": "n", "name": f"w{number:04}"}})
    return Store(WIDGET, lambda obj: str(obj["metadata"]["name"]))


async def test_a_relist_fills_an_empty_store_page_by_page() -> None:
    api = FakeApi()
    store = await filled(api, 1100)
    assert await Relister(api, store).once() == []
    assert len(store) == 1100
    assert store.synced
    pages = [f"list {start}" for start in range(0, 1100, PAGE_SIZE)]
    assert [call for call in api.calls if call.startswith("list")] == pages


async def test_a_deletion_that_no_event_told_of_is_noticed_within_the_interval() -> None:
    api, log = FakeApi(), Log()
    store = await filled(api, 3)
    gone: list[Key] = []
    relister = Relister(api, store, chance=lambda: 0.5, observer=log)
    await relister.once()
    store.subscribe(lambda change: gone.append(change.key) if change.new is None else None)
    api.delete(WIDGET, Key("n", "w0001"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(601):
            await relister.run()
    assert gone == [Key("n", "w0001")]
    assert log.relists == [(3, 0), (2, 1)]


async def test_a_relist_that_fails_leaves_the_store_and_is_tried_again_soon() -> None:
    api, log = FakeApi(), Log()
    store = await filled(api, 3)
    relister = Relister(api, store, chance=lambda: 0.5, observer=log)
    await relister.once()
    api.trouble = Unavailable("down")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(relister.run())
        await asyncio.sleep(605)
        assert len(store) == 3
        assert len(log.failures) >= 2
        api.trouble = None
        await asyncio.sleep(10)
        running.cancel()
    assert log.relists == [(3, 0), (3, 0)]


class Forgetful:
    """Its continue tokens expire after the first page, so many times."""

    def __init__(self, api: FakeApi, times: int) -> None:
        self.api = api
        self.times = times
        self.page_sizes: list[int] = []

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page_size: int = 500,
    ) -> AsyncIterator[ObjectList]:
        self.page_sizes.append(page_size)
        async for page in self.api.pages(resource, namespace, page_size=page_size):
            yield page
            if self.times > 0:
                self.times -= 1
                raise Expired("The provided continue parameter is too old", status=410)


async def test_a_list_that_expires_on_the_way_is_begun_again_and_at_last_in_one_piece() -> None:
    api = FakeApi()
    store = await filled(api, 700)
    lister = Forgetful(api, 2)
    await Relister(lister, store).once()
    assert (len(store), lister.page_sizes) == (700, [PAGE_SIZE, PAGE_SIZE, 0])


async def test_a_half_list_drops_nothing() -> None:
    api = FakeApi()
    store = await filled(api, 700)
    await Relister(api, store).once()
    with pytest.raises(Unavailable):
        await Relister(Forgetful(api, 3), store).once()
    assert len(store) == 700


async def test_an_object_that_came_while_the_list_was_on_its_way_is_kept() -> None:
    api = FakeApi(delay_seconds=1.0)
    store = await filled(api, 1)

    async def create_meanwhile() -> None:
        await asyncio.sleep(0.5)
        api.delay_seconds = 0.0
        store.put(await api.create(WIDGET, {"metadata": {"namespace": "n", "name": "new"}}))

    async with asyncio.TaskGroup() as group:
        group.create_task(create_meanwhile())
        group.create_task(Relister(api, store).once())
    assert Key("n", "new") in store
