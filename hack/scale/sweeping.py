"""`python -m scale.sweeping`: what one sweep of a cloud costs at 100, 1,000 and 10,000 system VMs.

The stand-in of the management server runs in a process of its own; what is measured is the operator's side: requests,
seconds, processor, the memory that the snapshot keeps, the peak while it is read, and the judgement of its objects.
"""

import asyncio
import gc
import multiprocessing
import re
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import click

from lab.cloud import World, cloud_server
from sysvm.cloudstack.client import CloudStack
from sysvm.cloudstack.inventory import sweep
from sysvm.cloudstack.transport import Access, Credentials
from sysvm.domain.cloud import Snapshot
from sysvm.domain.inventory import Known, delta_of, identity_of, judge, objects_of

SIZES = (100, 1000, 10000)
PER_VPC = 10


def world_of(size: int) -> World:
    """A third of the routers in VPCs, half of all in pairs, 200 hosts, four zones, an SSVM and a CPVM in each."""
    world = World(version="4.21.0.0", template_version="4.20.2")
    zones = [world.add_zone(f"zone-{number}") for number in range(4)]
    for number in range(200):
        world.add_host(zones[number % 4], f"kvm-{number}")
    for zone in zones:
        world.add_ssvm(zone)
        world.add_cpvm(zone)
    number = 0
    while len(world.vms) < size:
        zone, account = zones[number % 4], f"account-{number % 500}"
        if number % 3 == 0:
            vpc = world.add_vpc(zone, f"vpc-{number}", redundant=True, tiers=2, account=account)
            world.add_routers(vpc)
        else:
            pair = number % 2 == 0
            world.add_routers(world.add_network(zone, f"net-{number}", redundant=pair, account=account))
        number += 1
    return world


def serve(size: int, told: Connection) -> None:
    """Until the other side says so."""

    async def run() -> None:
        world = world_of(size)
        async with cloud_server(world) as url:
            told.send((url, world.users[0].api_key, world.users[0].secret, len(world.vms)))
            while not told.poll():
                await asyncio.sleep(0.05)

    asyncio.run(run())


@dataclass
class Requests:
    """`client.ApiObserver`."""

    count: int = 0
    by_command: dict[str, int] = field(default_factory=dict)

    def cloud_asked(self, command: str, code: int, seconds: float) -> None:
        self.count += 1
        self.by_command[command] = self.by_command.get(command, 0) + 1


@dataclass(frozen=True)
class Cost:
    vms: int
    requests: int
    seconds: float
    cpu: float
    kept: float
    """MiB."""
    peak: float
    """MiB above what there was before."""
    judged: float
    """Seconds to compare with the former sweep and to judge all objects, nothing having changed."""


def memory(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found.group(1)) / 1024 if found else 0.0


async def swept(access: Access) -> tuple[Snapshot, Requests]:
    requests = Requests()
    async with CloudStack(access, observer=requests) as cloud:
        return (await sweep(cloud, lambda: datetime.now(UTC))).snapshot, requests


def measured(size: int, told: Connection) -> None:
    """In a process of its own, so that peaks are its own."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(size, there))
    server.start()
    url, api_key, secret, vms = here.recv()
    access = Access(
        url=url,
        credentials=Credentials(api_key, secret),
        timeout=timedelta(seconds=60),
        requests_per_second=1000,
        burst=1000,
        trust_environment_proxy=False,
    )
    try:
        gc.collect()
        before = memory("VmRSS")
        cpu, begun = time.process_time(), time.perf_counter()
        snapshot, requests = asyncio.run(swept(access))
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        peak = memory("VmHWM")
        gc.collect()
        kept = memory("VmRSS")
        again, _ = asyncio.run(swept(access))
        known = [Known(name=name, identity=identity_of(vm)) for name, vm in objects_of("prod", snapshot)[0].items()]
        begun = time.perf_counter()
        delta, verdict = delta_of(snapshot, again), judge("prod", again, known)
        judged = time.perf_counter() - begun
        if delta.vms or delta.around or verdict.newcomers or verdict.gone or verdict.missing:
            raise click.ClickException("two sweeps of a cloud in which nothing happens differ")
        told.send(Cost(vms, requests.count, seconds, cpu, kept - before, peak - before, judged))
    finally:
        here.send("end")
        server.join()


@click.command()
@click.option("--sizes", default=",".join(map(str, SIZES)), show_default=True)
def main(sizes: str) -> None:
    """One sweep at each size."""
    click.echo("| VMs | requests | one sweep | processor | kept | a VM | peak above the start | judged |")
    click.echo("|--:|--:|--:|--:|--:|--:|--:|--:|")
    context = multiprocessing.get_context("spawn")
    for size in (int(word) for word in sizes.split(",")):
        here, there = multiprocessing.Pipe()
        process = context.Process(target=measured, args=(size, there))
        process.start()
        cost: Cost = here.recv()
        process.join()
        click.echo(
            f"| {cost.vms:,} | {cost.requests} | {cost.seconds:.1f} s | {cost.cpu:.1f} s | {cost.kept:.0f} MiB "
            f"| {cost.kept * 1024 / cost.vms:.1f} KiB | {cost.peak:.0f} MiB | {cost.judged:.2f} s |"
        )


if __name__ == "__main__":
    main()
