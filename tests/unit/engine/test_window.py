"""Windows over days of virtual time: the status changes at the edges and nowhere else, and who waits is woken."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from tests.integration.engine import objects

from sysvm.api.window import MaintenanceWindow
from sysvm.engine.stores import Job, Role, Stores
from sysvm.engine.window import WindowReconciler
from sysvm.kube.cache import Store
from sysvm.kube.client import Cluster
from sysvm.kube.errors import Conflict
from sysvm.kube.objects import Key, Object, Resource
from sysvm.kube.queue import Again, WorkQueue

pytestmark = [pytest.mark.looptime]

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = 3600.0


def window(name: str = "nights", effect: str = "Allow", **spec: Any) -> Object:
    schedule = {"rrule": "FREQ=DAILY", "start": "22:00", "duration": "6h", "timeZone": "UTC"}
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "MaintenanceWindow",
        "metadata": {"name": name, "namespace": "ns"},
        "spec": {"effect": effect, "schedule": schedule, **spec},
    }


@dataclass
class World:
    """Stores, a cluster that answers each write into them, a clock that can be moved, and a note of all work."""

    stores: Stores = field(default_factory=Stores)
    jumped: timedelta = timedelta(0)
    version: int = 0
    conflicts: int = 0
    statuses: list[tuple[datetime, Object]] = field(default_factory=list)
    woken: list[tuple[datetime, Job]] = field(default_factory=list)
    queue: WorkQueue[Job] = field(default_factory=lambda: WorkQueue("test"))
    objects: dict[Key, Object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reconciler = WindowReconciler(
            cast("Cluster", self),
            self.stores,
            self.passed,
            self.now,
        )
        self.stores.connect(self.enqueue)

    def now(self) -> datetime:
        return NOON + timedelta(seconds=asyncio.get_running_loop().time()) + self.jumped

    def enqueue(self, job: Job, delay: float) -> None:
        if job.role is Role.WINDOW:
            self.queue.add_after(job, delay)
        else:
            self.woken.append((self.now(), job))

    def passed(self, window: MaintenanceWindow) -> None:
        for job, delay in self.stores.around_window(window):
            self.enqueue(job, delay)

    def put(self, store: Store[Any], obj: Object) -> None:
        self.version += 1
        name = obj["metadata"]["name"]
        obj["metadata"] |= {"uid": f"uid-{name}", "resourceVersion": str(self.version), "generation": 1}
        store.put(copy.deepcopy(obj))
        if obj["kind"] == "MaintenanceWindow":
            self.objects[Key(obj["metadata"]["namespace"], name)] = obj

    async def merge_patch(self, resource: Resource, namespace: str, name: str, patch: Object, **_: object) -> Object:
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict("somebody else wrote")
        obj = copy.deepcopy(self.objects[Key(namespace, name)])
        status = obj.setdefault("status", {}) | patch["status"]
        obj["status"] = {key: value for key, value in status.items() if value is not None}
        self.statuses.append((self.now(), obj["status"]))
        self.put(self.stores.windows, obj)
        return obj

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        return self.objects[Key(namespace, name)]

    def roles_woken(self, since: datetime) -> set[tuple[Role, str]]:
        return {(job.role, job.key.name) for at, job in self.woken if at >= since}

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        async def reconcile(job: Job) -> Again | None:
            return await self.reconciler.reconcile(job.key)

        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.queue.run(reconcile, workers=1))
            yield
            self.queue.stop(grace_seconds=1)
            await running


@pytest.fixture
def make() -> Callable[[], World]:
    """A namespace with a policy in windows, another without, and the same names elsewhere. In the loop: it has a
    queue."""

    def made() -> World:
        world = World()
        for namespace in ("ns", "other"):
            named = objects.policy(namespace, "routers", "prod", "t", windowRefs=[{"name": "nights"}])
            world.put(world.stores.policies, named)
            world.put(world.stores.policies, objects.policy(namespace, "free", "lab", "t"))
        world.woken.clear()
        return world

    return made


ROUTERS = {(Role.POLICY, "routers"), (Role.ADMISSION, "prod")}
ALL = ROUTERS | {(Role.POLICY, "free"), (Role.ADMISSION, "lab")}


async def test_a_day_of_a_window_is_told_at_its_edges_and_nowhere_else(make: Callable[[], World]) -> None:
    world = make()
    world.put(world.stores.windows, window(cutoff="45m"))
    async with world.working():
        await asyncio.sleep(24 * HOUR)
    told = [(f"{at:%d %H:%M}", status["open"], status["conditions"][0]["reason"]) for at, status in world.statuses]
    assert told == [("01 12:00", False, "Closed"), ("01 22:00", True, "Open"), ("02 04:00", False, "Closed")]
    assert [status["nextOpen"] for _, status in world.statuses] == [
        "2026-06-01T22:00:00Z",
        "2026-06-02T22:00:00Z",
        "2026-06-02T22:00:00Z",
    ]


async def test_everyone_concerned_is_woken_when_it_opens_is_cut_off_and_closes(make: Callable[[], World]) -> None:
    world = make()
    world.put(world.stores.windows, window(cutoff="45m"))
    async with world.working():
        await asyncio.sleep(24 * HOUR)
    assert {job.key.namespace for _, job in world.woken} == {"ns"}
    assert world.roles_woken(NOON) == ROUTERS
    at_night = {f"{at:%d %H:%M}" for at, job in world.woken if job.role is Role.ADMISSION and at > NOON}
    assert {"01 22:00", "02 03:15", "02 04:00"} <= at_night


async def test_a_running_rollout_of_the_policy_is_woken_too(make: Callable[[], World]) -> None:
    world = make()
    for name, result in (("routers-8c1f03ab-1", "Failed"), ("routers-8c1f03ab-2", None)):
        rollout: Object = {
            "apiVersion": "sysvm.io/v1alpha1",
            "kind": "Rollout",
            "metadata": {"name": name, "namespace": "ns"},
            "spec": {
                "policyRef": {"name": "routers"},
                "endpointRef": {"name": "prod"},
                "templateRef": {"name": "t"},
                "revision": "8c1f03ab" * 8,
                "number": 1,
                "planRef": {"name": f"{name}-plan", "digest": f"sha256:{'a' * 64}"},
                "snapshot": {"methods": ["LivePatch"], "livePatch": {}, "strategy": {}, "checks": {}},
            },
            "status": {"result": result} if result else {},
        }
        world.put(world.stores.rollouts, rollout)
    world.woken.clear()
    world.put(world.stores.windows, window())
    assert world.roles_woken(NOON) == ROUTERS | {(Role.ROLLOUT, "routers-8c1f03ab-2")}


async def test_a_freeze_wakes_every_policy_of_its_namespace(make: Callable[[], World]) -> None:
    """Also one that it selected before an edit, and one that it will select."""
    world = make()
    world.put(world.stores.windows, window("holidays", "Deny", policySelector={"matchLabels": {"a": "b"}}))
    assert world.roles_woken(NOON) == ALL
    assert {job.key.namespace for _, job in world.woken} == {"ns"}


async def test_a_window_that_goes_wakes_who_waited_for_it(make: Callable[[], World]) -> None:
    world = make()
    world.put(world.stores.windows, window())
    async with world.working():
        await asyncio.sleep(1)
        world.woken.clear()
        world.stores.windows.forget(Key("ns", "nights"))
        await asyncio.sleep(HOUR)
    assert world.roles_woken(NOON) == ROUTERS
    assert len(world.statuses) == 1, "nothing is written about what is gone"


async def test_a_window_that_becomes_a_freeze_wakes_both_sides(make: Callable[[], World]) -> None:
    world = make()
    world.put(world.stores.windows, window())
    world.woken.clear()
    world.put(world.stores.windows, window(effect="Deny"))
    assert world.roles_woken(NOON) == ALL


async def test_a_clock_that_is_put_forward_is_found_within_an_hour(make: Callable[[], World]) -> None:
    world = make()
    world.put(world.stores.windows, window())
    async with world.working():
        await asyncio.sleep(10)
        world.jumped = timedelta(hours=11)
        world.woken.clear()
        await asyncio.sleep(HOUR)
    assert world.statuses[-1][1]["open"]
    assert (Role.ADMISSION, "prod") in world.roles_woken(NOON)


async def test_a_clock_that_is_put_back_is_found_within_an_hour_and_harms_nothing(make: Callable[[], World]) -> None:
    world = make()
    world.put(world.stores.windows, window())
    async with world.working():
        await asyncio.sleep(11 * HOUR)
        assert world.statuses[-1][1]["open"]
        world.jumped = -timedelta(hours=8)
        await asyncio.sleep(HOUR + 1)
        assert not world.statuses[-1][1]["open"]
        await asyncio.sleep(7 * HOUR)
        assert world.statuses[-1][1]["open"]


async def test_a_window_that_cannot_be_computed_is_looked_at_again_only_when_it_changes(
    make: Callable[[], World],
) -> None:
    world = make()
    wrong = {"rrule": "FREQ=WEEKLY;BYDAY=XX", "start": "22:00", "duration": "6h", "timeZone": "UTC"}
    world.put(world.stores.windows, window(schedule=wrong))
    async with world.working():
        await asyncio.sleep(72 * HOUR)
        assert [status["conditions"][0]["reason"] for _, status in world.statuses] == ["InvalidSchedule"]
        world.put(world.stores.windows, window())
        await asyncio.sleep(1)
        assert world.statuses[-1][1]["conditions"][0]["reason"] == "Closed"


async def test_a_status_that_somebody_else_wrote_meanwhile_is_decided_again(make: Callable[[], World]) -> None:
    world = make()
    world.conflicts = 3
    world.put(world.stores.windows, window())
    async with world.working():
        await asyncio.sleep(1)
    assert [status["open"] for _, status in world.statuses] == [False]
