"""A cloud of real system VMs: two zones, every kind of network, and the management server over them.

`lab_cloud` is for tests and the demo, in their own process; `python -m lab.cloud` serves the default cloud of a run
folder until the lab goes down, which is what `python -m lab up --cloud` starts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator

from lab.cloud.commands import CHANGING
from lab.cloud.real import LabMachines
from lab.cloud.server import ManagementServer, management_server
from lab.cloud.world import World
from lab.content import payloads, releases
from lab.hosts import Hosts
from lab.machines import Lab

PACE_SECONDS = 0.5
ROLE_SECONDS = 5.0
"""How often redundancy roles are looked at; CloudStack takes 30 s."""


def empty_world(release: str = "old") -> World:
    """A cloud without VMs whose server, template and hosts are of one release of the lab."""
    chosen = releases.find(release)
    payload = payloads.checksum(chosen, payloads.build_scripts(chosen))
    return World(version=f"{chosen.version}.0", template_version=chosen.version, payload=payload)


def default_world(release: str = "old") -> World:
    """Two zones; in the first all there is: single and redundant networks, a redundant VPC of three tiers with an
    internal load balancer, a shared network; SSVM and CPVM in both."""
    world = empty_world(release)
    first, second = world.add_zone("zone-1"), world.add_zone("zone-2")
    for zone, name in ((first, "kvm-1"), (first, "kvm-2"), (second, "kvm-3")):
        world.add_host(zone, name)
    world.add_routers(world.add_network(first, "net-1"))
    world.add_routers(world.add_network(first, "net-2", redundant=True))
    vpc = world.add_vpc(first, "vpc-1", redundant=True, tiers=3)
    world.add_routers(vpc)
    world.add_internal_lb(next(world.tiers(vpc)))
    world.add_routers(world.add_network(first, "shared-1", kind="Shared"))
    world.add_routers(world.add_network(second, "net-3"))
    for zone in (first, second):
        world.add_ssvm(zone)
        world.add_cpvm(zone)
    return world


@contextlib.asynccontextmanager
async def lab_cloud(
    lab: Lab, world: World, *, release: str = "old", port: int = 0
) -> AsyncIterator[tuple[ManagementServer, LabMachines]]:
    """Makes the hosts and VMs of a world in a lab that is up, and serves them.

    Everything stays in the lab when the block ends, but for the server.
    """
    hosts = Hosts(lab)
    there = {host.name for host in hosts.all()}
    for host in world.hosts.values():
        if host.name not in there:
            await asyncio.to_thread(hosts.add, host.name, release=release)
        made = hosts.get(host.name)
        host.address, host.payload = str(made.address), made.payload_checksum()
    machines = LabMachines(lab, world)
    await machines.adopt(world.vms.values(), release=release)

    async def upgrade(values: dict[str, object]) -> dict[str, object]:
        """`POST /lab/upgrade {"release": NAME}`: server, template and hosts; `hosts: false` leaves the hosts, and
        `template: false` the templates."""
        return await asyncio.to_thread(
            install,
            world,
            machines,
            str(values["release"]),
            hosts=bool(values.get("hosts", True)),
            template=bool(values.get("template", True)),
        )

    async def calls(values: dict[str, object]) -> dict[str, object]:
        """`POST /lab/calls {"since": N}`: what was asked of the server since the N-th call, by command, and each call
        that changes something; `next` is the N of the next time."""
        asked = world.calls[int(str(values.get("since", 0))) :]
        return {
            "next": len(world.calls),
            "commands": dict(Counter(call.command for call in asked)),
            "changing": [{"command": c.command, **c.parameters} for c in asked if c.command in CHANGING],
        }

    async with management_server(
        world,
        machines=machines,
        pace=PACE_SECONDS,
        port=port,
        role_interval=ROLE_SECONDS,
        controls={"upgrade": upgrade, "calls": calls},
    ) as server:
        yield server, machines


def install(
    world: World, machines: LabMachines, release: str, *, hosts: bool = True, template: bool = True
) -> dict[str, object]:
    """An administrator installs a release of the lab: the server's package, its template, the hosts' packages.

    Without `template` it is a maintenance release, which goes on with the template of the one before.
    """
    chosen = releases.find(release)
    payload = payloads.checksum(chosen, payloads.build_scripts(chosen))
    made = world.upgrade(f"{chosen.version}.0", template_version=chosen.version if template else None, payload=payload)
    if hosts:
        machines.install_packages(chosen)
    return {"version": world.version, "template": made.name if made else "", "payload": payload}
