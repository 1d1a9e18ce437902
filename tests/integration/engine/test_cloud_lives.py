"""Restarts over a cloud that did not change: nothing is written that says nothing new, and so no life is spent on it.

A new process knows nothing of the cloud before its first sweep. If it wrote that, and then what the sweep found, an
operator that dies after its second write each time would write the same two for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.engine.cloud_fleet import close_gates, cloud_endpoint, cloud_secret
from tests.integration.engine.cluster import says
from tests.integration.engine.lives import free_port
from tests.integration.engine.nursery import QUIET
from tests.integration.engine.objects import Manifest
from tests.integration.engine.test_gate import declare
from tests.integration.engine.test_lives import until_idle, until_ready, watch_idleness
from tests.integration.engine.test_recreate import Story, admin, told

from lab.cloud import management_server
from lab.controlplane import ControlPlane
from sysvm.engine.resources import ENDPOINT, POLICY, ROLLOUT, SYSTEM_VM, TEMPLATE
from sysvm.kube.client import Cluster
from sysvm.operator.killer import VARIABLE

__all__ = ["admin"]

LIVES_AT_MOST = 60
"""Each does two writes, and what leads to a rollout of this cloud is some thirty."""
OFTEN = {"scan": {"interval": "10s", "inventory": "10s"}}
ALL = (ENDPOINT, TEMPLATE, POLICY, SYSTEM_VM, ROLLOUT)


@pytest_asyncio.fixture
async def story(control_plane: ControlPlane, crds: list[str], admin: Cluster, tmp_path: Path) -> AsyncIterator[Story]:
    async with told(control_plane, admin, tmp_path) as story:
        yield story


async def everything(story: Story) -> dict[str, Manifest]:
    found = [obj for resource in ALL for obj in await story.namespace.all(resource)]
    return {f"{obj['kind']} {obj['metadata']['name']}": obj for obj in found}


async def looked(story: Story) -> None:
    """Every VM was looked at twice from now on, and a sweep with them: what looks bring for the books of others is
    there, too."""
    fleet = story.cloud.fleet
    looks = {name: fleet.looks(name) for name in fleet.names()}

    async def seen() -> bool:
        return all(fleet.looks(name) > number + 1 for name, number in looks.items())

    await story.until(seen, "two looks at every VM")


@pytest.mark.parametrize("images", [False, True], ids=["patched", "recreated from declared images"])
async def test_a_restart_over_an_unchanged_cloud_writes_nothing(story: Story, images: bool) -> None:
    nursery, fleet, port = story.lane.nursery, story.cloud.fleet, free_port()
    if images:
        await story.declare(methods=["LivePatch", "Recreate"], spec=OFTEN)
    else:
        close_gates(story.cloud)
        story.cloud.world.settings["minreq.sysvmtemplate.version"] = "4.20.1"
        await declare(story)
    await nursery.start(fleet, SYSVM_HTTP_PORT=str(port), **{QUIET: "2"})
    story.lives += 1
    await story.converged()
    await looked(story)
    await until_idle(port)
    await nursery.kill()
    await story.namespace.release_lease()
    before, port = await everything(story), free_port()
    await nursery.start(fleet, SYSVM_HTTP_PORT=str(port))
    await until_ready(port)
    await looked(story)
    await watch_idleness(port, {})
    assert await everything(story) == before


@pytest.mark.timeout(400)
async def test_lives_of_two_writes_each_get_to_a_rollout(story: Story) -> None:
    close_gates(story.cloud)
    await declare(story, *story.cloud.routers("pair"), livePatch={"plannedFailover": "Allowed"})
    nursery = story.lane.nursery
    for _ in range(LIVES_AT_MOST):
        await nursery.start(story.cloud.fleet, **{QUIET: "2", VARIABLE: "2:after"})
        async with asyncio.timeout(60):
            assert await nursery.wait() == -9, nursery.story()
        await story.namespace.release_lease()
        if await story.namespace.all(ROLLOUT):
            return
    raise AssertionError(f"{LIVES_AT_MOST} lives and no rollout\n{await story.picture()}")


async def test_a_restart_gives_the_cloud_to_nobody_else(story: Story) -> None:
    """Also where the endpoint that has it cannot be swept at first, and the other one can."""
    name, cloud, fleet = story.namespace.name, story.cloud, story.cloud.fleet
    async with management_server(cloud.world) as other:
        older, younger = (cloud_endpoint(name, each, cloud) for each in ("older", "younger"))
        younger["spec"]["api"]["url"] = other.url
        for endpoint in (older, younger):
            endpoint["spec"]["scan"] = OFTEN["scan"]
        await story.namespace.create(cloud_secret(name, cloud), older)
        await story.until(lambda: _says(story, "older", "Reachable"), "the older has it")
        await story.namespace.create(younger)
        await story.until(lambda: _says(story, "younger", "Conflict"), "the younger yields")
        await story.lane.nursery.kill()
        await story.namespace.release_lease()
        before, port = await everything(story), free_port()
        asked = len(cloud.world.calls)
        cloud.server.stop_answering()
        await story.lane.nursery.start(fleet, SYSVM_HTTP_PORT=str(port))
        await until_ready(port)

        async def swept() -> bool:
            return sum(call.command == "listRouters" for call in cloud.world.calls[asked:]) >= 2

        await story.until(swept, "the younger was swept twice")
        await story.until(lambda: _says(story, "older", "APIUnreachable"), "the older was asked in vain")
        found = await everything(story)
        assert found["CloudStackEndpoint younger"] == before["CloudStackEndpoint younger"]
        assert sorted(found) == sorted(before), "no object of the younger"


async def _says(story: Story, endpoint: str, reason: str) -> bool:
    return says(await story.namespace.get(ENDPOINT, endpoint))[1] == reason
