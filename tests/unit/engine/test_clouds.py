"""The last sweep of a cloud is of the cloud that the endpoint names now, and what was listed since counts more."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lab.cloud import World, cloud_server
from sysvm.api.endpoint import Management
from sysvm.cloudstack.client import CHANGE_EXPIRES, CloudStack, MayChange
from sysvm.cloudstack.errors import ChangeRefused, Unavailable
from sysvm.cloudstack.transport import Access, Credentials
from sysvm.domain.calls import Call, Command, NotMade, Submitted
from sysvm.engine.cloud import RETIRED_FOR, ManagedClouds
from sysvm.kube.objects import Key

KEY, HOUR = Key("cloud", "prod"), timedelta(hours=1)


def world_with(zone: str) -> World:
    world = World()
    world.add_host(world.add_zone(zone), "kvm-1")
    return world


def access(world: World, url: str, *, requests_per_second: int = 500, burst: int = 500) -> Access:
    user = world.users[0]
    return Access(
        url=url,
        credentials=Credentials(user.api_key, user.secret),
        requests_per_second=requests_per_second,
        burst=burst,
    )


async def test_a_sweep_of_the_cloud_that_the_endpoint_named_before_ends_and_the_other_is_swept_at_once() -> None:
    ended = asyncio.Event()
    one, other, now = world_with("ams"), world_with("fra"), datetime.now(UTC)
    async with (
        cloud_server(one) as first,
        cloud_server(other) as second,
        ManagedClouds(lambda key: ended.set(), lambda: now) as clouds,
    ):
        await clouds.follow(KEY, access(one, first), Management.OBSERVE)
        clouds.sweep_if_due(KEY, (), now)
        await until_asked(one)
        await clouds.follow(KEY, access(other, second), Management.OBSERVE)
        assert clouds.take_note(KEY, HOUR, now) is None
        assert clouds.snapshot(KEY) is None
        clouds.sweep_if_due(KEY, (), now)
        await asyncio.wait_for(ended.wait(), 30)
        assert clouds.take_note(KEY, HOUR, now) is not None
        snapshot = clouds.snapshot(KEY)
        assert snapshot is not None
        assert [zone.name for zone in snapshot.zones.values()] == ["fra"]


async def until_asked(world: World) -> None:
    async with asyncio.timeout(30):
        while not world.calls:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_client_is_closed_under_a_long_sweep_when_its_endpoint_is_edited_or_deleted(deleted: bool) -> None:
    world, now = world_with("ams"), datetime.now(UTC)
    async with cloud_server(world) as url, ManagedClouds(lambda key: None, lambda: now) as clouds:

        async def edited() -> None:
            if deleted:
                await clouds.forget(KEY)
            else:
                await clouds.follow(KEY, access(world, url, requests_per_second=4, burst=1), Management.OBSERVE)

        await clouds.follow(KEY, access(world, url, requests_per_second=5, burst=1), Management.OBSERVE)
        clouds.sweep_if_due(KEY, (), now)
        await until_asked(world)
        await edited()
        now += RETIRED_FOR
        await edited()
        asked = len(world.calls)
        async with asyncio.timeout(30):
            while any(task.get_name() == f"sweep {KEY}" for task in asyncio.all_tasks()):
                await asyncio.sleep(0.01)
        assert len(world.calls) == asked, "it was cut off, not let run"


async def test_what_was_listed_after_a_call_counts_at_once_and_no_sweep_that_began_before_undoes_it() -> None:
    ended = asyncio.Event()
    world, now = world_with("ams"), datetime.now(UTC)
    router = world.add_router(network=world.add_network(next(iter(world.zones.values())), "net-1"))
    async with cloud_server(world) as url, ManagedClouds(lambda key: ended.set(), lambda: now) as clouds:

        async def sweep() -> str | None:
            clouds.sweep_now(KEY)
            ended.clear()
            clouds.sweep_if_due(KEY, (), now)
            await asyncio.wait_for(ended.wait(), 30)
            assert clouds.take_note(KEY, HOUR, now) is not None
            return books()

        def books() -> str | None:
            snapshot = clouds.snapshot(KEY)
            assert snapshot is not None
            return snapshot.vms[router.id].scripts_version

        await clouds.follow(KEY, access(world, url), Management.OBSERVE)
        before = await sweep()
        snapshot = clouds.snapshot(KEY)
        assert snapshot is not None
        patched = replace(snapshot.vms[router.id], scripts_version="new")
        stranger = replace(patched, id="of-no-sweep-yet")
        clouds.note(KEY, [patched, stranger], now + timedelta(seconds=1))
        assert books() == "new"
        snapshot = clouds.snapshot(KEY)
        assert snapshot is not None
        assert set(snapshot.vms) == {router.id}, "who was never swept is left to a sweep"
        assert await sweep() == "new", "it began before the VM was listed alone"
        now += timedelta(seconds=2)
        assert await sweep() == before, "a sweep that began later knows better"


async def test_an_endpoint_that_was_corrected_is_swept_although_the_server_wanted_to_be_left_alone() -> None:
    ended, world, now = asyncio.Event(), world_with("ams"), datetime.now(UTC)
    world.faults.throttle, world.faults.throttle_milliseconds = 1, 900_000
    async with cloud_server(world) as url, ManagedClouds(lambda key: ended.set(), lambda: now) as clouds:

        async def failure() -> str:
            clouds.sweep_now(KEY)
            ended.clear()
            clouds.sweep_if_due(KEY, (), now)
            await asyncio.wait_for(ended.wait(), 30)
            clouds.take_note(KEY, HOUR, now)
            failed = clouds.failure(KEY)
            return failed.message if failed is not None else ""

        await clouds.follow(KEY, access(world, url), Management.OBSERVE)
        assert "please retry after [900000] ms" in await failure()
        assert "not sent: the server said before" in await failure(), (
            "a sweep that waited would hold its place for that long"
        )
        await clouds.follow(KEY, access(world, url, requests_per_second=4), Management.OBSERVE)
        assert await failure() == ""


@pytest.mark.parametrize(
    ("server_ahead_seconds", "told"),
    [(180.0, "s behind the server's"), (-180.0, "s ahead of the server's"), (20.0, "")],
)
async def test_a_clock_that_differs_makes_no_call_fail_and_is_told_with_the_sweep(
    server_ahead_seconds: float, told: str
) -> None:
    ended, world, now = asyncio.Event(), world_with("ams"), datetime.now(UTC)
    router = world.add_router(network=world.add_network(next(iter(world.zones.values())), "net-1"))
    world.faults.clock_ahead_seconds = server_ahead_seconds
    async with cloud_server(world) as url, ManagedClouds(lambda key: ended.set(), lambda: now) as clouds:
        await clouds.follow(KEY, access(world, url), Management.FULL)
        clouds.sweep_if_due(KEY, (), now)
        await asyncio.wait_for(ended.wait(), 30)
        assert clouds.take_note(KEY, HOUR, now) is not None
        jobs = clouds.jobs(KEY)
        assert jobs is not None
        answer = await jobs.submit(Call(Command.REBOOT_ROUTER, router.id))
        if server_ahead_seconds > CHANGE_EXPIRES.total_seconds():
            assert isinstance(answer, NotMade)
            assert told in answer.sentence
        else:
            assert isinstance(answer, Submitted)
        assert told in clouds.clocks(KEY)
        assert bool(told) == bool(clouds.clocks(KEY))


class Watched(CloudStack):
    """Says whether it was closed."""

    is_closed = False

    async def close(self) -> None:
        self.is_closed = True
        await super().close()


async def test_a_client_that_is_no_longer_used_is_closed_in_time_although_nothing_changes_again() -> None:
    made: list[Watched] = []
    now = datetime.now(UTC)

    def connect(access: Access, may_change: MayChange | None) -> CloudStack:
        made.append(Watched(access, may_change=may_change))
        return made[-1]

    same = access(world_with("ams"), "http://127.0.0.1:9/client/api")
    async with ManagedClouds(lambda key: None, lambda: now, connect=connect) as clouds:
        await clouds.follow(KEY, same, Management.OBSERVE)
        await clouds.follow(KEY, same, Management.FULL)
        now += RETIRED_FOR - timedelta(seconds=1)
        await clouds.follow(KEY, same, Management.FULL)
        assert [client.is_closed for client in made] == [False, False]
        now += timedelta(seconds=1)
        await clouds.follow(KEY, same, Management.FULL)
        assert [client.is_closed for client in made] == [True, False]


class Unopened(Watched):
    """Cannot be opened without the power to change."""

    observes = False

    async def open(self) -> None:
        if self.observes:
            raise OSError("no more files")
        await super().open()


async def test_who_may_only_observe_changes_nothing_also_where_the_next_client_cannot_be_opened() -> None:
    made: list[Unopened] = []

    def connect(access: Access, may_change: MayChange | None) -> CloudStack:
        made.append(Unopened(access, may_change=may_change))
        made[-1].observes = may_change is None
        return made[-1]

    same = access(world_with("ams"), "http://127.0.0.1:9/client/api")
    async with ManagedClouds(lambda key: None, lambda: datetime.now(UTC), connect=connect) as clouds:
        await clouds.follow(KEY, same, Management.FULL)
        with pytest.raises(OSError, match="no more files"):
            await clouds.follow(KEY, same, Management.OBSERVE)
        with pytest.raises(ChangeRefused):
            await made[0].submit("restartNetwork", id="a")
        await clouds.follow(KEY, same, Management.FULL)
        with pytest.raises(Unavailable):
            await made[-1].submit("restartNetwork", id="a")
