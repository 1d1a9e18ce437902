"""A hold is handed on in two writes, and dies in none of them.

A router with a person's hold is recreated. The operator gives the hold to the one that took its place, then removes the
old object; here it is killed before and after each of its writes, and the next life goes on.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from tests.integration.engine import objects
from tests.integration.engine.cluster import until
from tests.integration.engine.lives import Lane, lane
from tests.integration.engine.simulated_vms import Fleet

from lab.cloud import VM, World, cloud_server
from lab.controlplane import ControlPlane
from sysvm.api.base import REQUESTED_AT_ANNOTATION
from sysvm.engine.resources import ENDPOINT, SYSTEM_VM
from sysvm.kube.client import Cluster
from sysvm.operator.killer import VARIABLE

DEATHS = ("1:before", "1:after", "2:before", "2:after", "3:after", "4:after")


async def test_a_hold_is_never_lost_between_two_writes(
    control_plane: ControlPlane, crds: list[str], tmp_path: Path
) -> None:
    async with (
        await Cluster.connect(kubeconfig=control_plane.kubeconfig) as admin,
        lane(control_plane, admin, "inventory-kills", tmp_path) as here,
    ):
        world = World()
        zone = world.add_zone("ams-1")
        world.add_host(zone, "kvm-1")
        network = world.add_network(zone, "net-1")
        router = world.add_router(network=network)
        fleet = Fleet.of(tmp_path / "fleet.json", {router.name: None})
        async with cloud_server(world) as url:
            await declare(here, world, url)
            await here.nursery.start(fleet)
            await until(partial(known, here, router), "the first router is known", story=here.picture)
            hold = {"hold": {"reason": "CHG-881"}}
            await here.namespace.edit(SYSTEM_VM, f"prod-{router.name.lower()}", hold)
            for number, death in enumerate(DEATHS):
                await here.nursery.kill()
                await here.namespace.release_lease()
                old, router = router, world.add_router(network=network)
                router.created = old.created + timedelta(days=1)
                del world.vms[old.id]
                fleet.add(router.name)
                await here.nursery.start(fleet, **{VARIABLE: death})
                await until(partial(only, here, fleet, router, number), f"after {death}", story=here.picture)


async def declare(here: Lane, world: World, url: str) -> None:
    name, user = here.namespace.name, world.users[0]
    api = {"url": url, "credentialsSecretRef": {"name": "keys"}}
    await here.namespace.create(
        objects.secret(name, "keys", apiKey=user.api_key, secretKey=user.secret),
        objects.endpoint(
            name, "prod", [], inventory="CloudStack", api=api, scan={"interval": "10s", "inventory": "10s"}
        ),
    )


async def known(here: Lane, vm: VM) -> bool:
    found = await here.namespace.find(SYSTEM_VM, f"prod-{vm.name.lower()}")
    return found is not None and "identity" in (found.get("status") or {})


async def only(here: Lane, fleet: Fleet, vm: VM, number: int) -> bool:
    """It has the hold, and the old object has gone. At no moment does nobody have it. Who died is followed by another
    life, which is not killed."""
    if not here.nursery.alive:
        await here.namespace.release_lease()
        await here.nursery.start(fleet)
    found = await here.namespace.all(SYSTEM_VM)
    held = [one for one in found if "hold" in one["spec"]]
    assert held, "the hold is lost"
    await here.namespace.annotate(ENDPOINT, "prod", REQUESTED_AT_ANNOTATION, f"{number}-{len(found)}")
    return (
        [one["metadata"]["name"] for one in found]
        == [f"prod-{vm.name.lower()}"]
        == [one["metadata"]["name"] for one in held]
    )


pytestmark = pytest.mark.asyncio
