"""The management server's stand-in over real system VMs behind real hosts: what it says happened, happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from cs import AIOCloudStack

from lab import Lab, preflight
from lab.cloud import ManagementServer, Patch, World
from lab.cloud.fleet import empty_world, install, lab_cloud
from lab.cloud.real import LabMachines
from lab.content import layout, payloads, releases
from lab.content.releases import Release
from lab.hosts import Hosts
from lab.spec import RedundancyRole
from lab.tenants.tenancy import Tenancy

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(500),
]

OLD = payloads.checksum(releases.old(), payloads.build_scripts(releases.old()))
NEW = payloads.checksum(releases.new(), payloads.build_scripts(releases.new()))
RATE = 20.0


@dataclass
class Cloud:
    """A cloud that runs, and a client of it."""

    lab: Lab
    world: World
    server: ManagementServer
    machines: LabMachines
    cs: AIOCloudStack

    async def job(self, submitted: dict[str, Any]) -> dict[str, Any]:
        async with asyncio.timeout(240):
            while True:
                told: dict[str, Any] = await self.cs.queryAsyncJobResult(jobid=submitted["jobid"])
                if told["jobstatus"]:
                    return told
                await asyncio.sleep(0.2)

    async def routers(self, **which: str) -> list[dict[str, Any]]:
        return list((await self.cs.listRouters(listall=True, **which)).get("router", []))

    def signature(self, name: str) -> str:
        return self.lab.read_bytes(name, layout.SIGNATURE).decode().strip()

    def boot(self, name: str) -> str:
        """Another one after each boot."""
        return self.lab.exec(name, "cat /proc/1/stat | cut -d' ' -f22").stdout.strip()

    def hosts_have(self, release: Release) -> None:
        self.machines.install_packages(release)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([])
        yield made
    finally:
        made.down()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(running: Lab) -> AsyncIterator[Cloud]:
    """Two hosts, a network with one router, one with a pair, an SSVM and a CPVM, all of the old release."""
    world = empty_world("old")
    zone = world.add_zone("zone-1")
    for name in ("kvm-1", "kvm-2"):
        world.add_host(zone, name)
    world.add_routers(world.add_network(zone, "net-1"))
    world.add_routers(world.add_network(zone, "net-2", redundant=True))
    world.add_ssvm(zone)
    world.add_cpvm(zone)
    async with lab_cloud(running, world, release="old") as (server, machines):
        admin = world.users[0]
        async with AIOCloudStack(
            endpoint=server.url, key=admin.api_key, secret=admin.secret, expiration=timedelta(minutes=5)
        ) as cs:
            yield Cloud(running, world, server, machines, cs)


def network(cloud: Cloud, name: str) -> str:
    return next(each.id for each in cloud.world.networks.values() if each.name == name)


async def eventually(happens: Callable[[], Awaitable[object]], *, seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not await happens():
        assert time.monotonic() < end, f"it has not happened in {seconds:.0f} s"
        await asyncio.sleep(0.3)


async def test_what_is_listed_answers_behind_the_host_that_is_named(cloud: Cloud) -> None:
    listed = await cloud.routers() + (await cloud.cs.listSystemVms())["systemvm"]
    hosts = {host["id"]: host for host in (await cloud.cs.listHosts(type="Routing"))["host"]}
    assert len(listed) == 5
    addresses = []
    for vm in listed:
        host = Hosts(cloud.lab).get(vm["hostname"])
        assert hosts[vm["hostid"]]["ipaddress"] == str(host.address)
        assert vm["name"] in host.vms
        ssh = ["ssh", "-i", "/root/.ssh/id_rsa.cloud", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes"]
        asked = Hosts(cloud.lab).exec(host.name, [*ssh, "-p", "3922", f"root@{vm['linklocalip']}", "hostname"])
        assert asked.stdout.strip() == vm["name"], asked.stderr
        addresses.append(vm["linklocalip"])
    assert len(set(addresses)) < len(addresses), "two hosts hand out the same link-local addresses"


async def test_a_pair_has_the_roles_that_its_routers_say(cloud: Cloud) -> None:
    pair = await cloud.routers(networkid=network(cloud, "net-2"))
    assert sorted(router["redundantstate"] for router in pair) == ["BACKUP", "PRIMARY"]
    assert {router["name"]: cloud.lab.role(router["name"]).value for router in pair} == {
        router["name"]: router["redundantstate"] for router in pair
    }


async def test_a_live_patch_of_a_network_brings_the_payload_of_the_host(cloud: Cloud) -> None:
    cloud.hosts_have(releases.new())
    (router,) = await cloud.routers(networkid=network(cloud, "net-1"))
    booted = cloud.boot(router["name"])
    job = await cloud.job(await cloud.cs.restartNetwork(id=network(cloud, "net-1"), livepatch=True, fetch_result=False))
    assert job["jobresult"] == {"success": True}
    (after,) = await cloud.routers(networkid=network(cloud, "net-1"))
    assert after["id"] == router["id"]
    assert after["scriptsversion"] == cloud.signature(router["name"]) == NEW
    assert b"ManagedFile" in cloud.lab.read_bytes(router["name"], "/opt/cloud/bin/cs/CsFile.py")
    assert b"listen 198_18_" in cloud.lab.read_bytes(router["name"], "/etc/haproxy/haproxy.cfg"), (
        "rules were sent again"
    )
    assert cloud.boot(router["name"]) == booted
    assert {cloud.signature(each["name"]) for each in await cloud.routers(networkid=network(cloud, "net-2"))} == {OLD}


async def test_a_patch_that_was_told_to_lie_changes_nothing(cloud: Cloud) -> None:
    cloud.world.faults.patch = Patch.NOTHING
    try:
        job = await cloud.job(
            await cloud.cs.restartNetwork(id=network(cloud, "net-2"), livepatch=True, fetch_result=False)
        )
    finally:
        cloud.world.faults.heal()
    assert job["jobresult"] == {"success": True}
    assert {cloud.signature(each["name"]) for each in await cloud.routers(networkid=network(cloud, "net-2"))} == {OLD}


async def test_a_rebooted_router_starts_with_the_payload_of_its_host(cloud: Cloud) -> None:
    pair = await cloud.routers(networkid=network(cloud, "net-2"))
    backup = next(router for router in pair if router["redundantstate"] == "BACKUP")
    booted = cloud.boot(backup["name"])
    job = await cloud.job(await cloud.cs.rebootRouter(id=backup["id"], fetch_result=False))
    assert job["jobresult"]["router"]["state"] == "Running"
    assert cloud.boot(backup["name"]) != booted
    assert cloud.signature(backup["name"]) == NEW == job["jobresult"]["router"]["scriptsversion"]


async def test_a_system_vm_is_patched_by_its_own_call(cloud: Cloud) -> None:
    (proxy,) = (await cloud.cs.listSystemVms(systemvmtype="consoleproxy"))["systemvm"]
    assert cloud.signature(proxy["name"]) == OLD
    for details in ("Successfully patched", "No change in the scripts checksum"):
        job = await cloud.job(await cloud.cs.patchSystemVm(id=proxy["id"], fetch_result=False))
        assert job["jobresult"]["details"].startswith(details)
        assert cloud.signature(proxy["name"]) == NEW


async def test_a_storage_vm_takes_the_payload_at_its_second_start(cloud: Cloud) -> None:
    (storage,) = (await cloud.cs.listSystemVms(systemvmtype="secondarystoragevm"))["systemvm"]
    assert cloud.signature(storage["name"]) == OLD
    told = []
    for _ in range(2):
        await cloud.job(await cloud.cs.rebootSystemVm(id=storage["id"], forced=True, fetch_result=False))
        told.append(cloud.signature(storage["name"]))
    assert told == [OLD, NEW]


async def test_a_destroyed_system_vm_goes_and_another_boots_from_the_template(cloud: Cloud) -> None:
    (storage,) = (await cloud.cs.listSystemVms(systemvmtype="secondarystoragevm"))["systemvm"]
    install(cloud.world, cloud.machines, "new")
    await cloud.job(await cloud.cs.destroySystemVm(id=storage["id"], fetch_result=False))
    assert storage["name"] not in {vm.name for vm in cloud.lab.vms()}

    async def there() -> list[dict[str, Any]]:
        found = await cloud.cs.listSystemVms(systemvmtype="secondarystoragevm", state="Running")
        return [vm for vm in found.get("systemvm", []) if vm.get("agentstate") == "Up"]

    await eventually(there)
    (new,) = await there()
    assert (new["id"], new["name"]) != (storage["id"], storage["name"])
    assert new["name"].startswith("s-")
    release = cloud.lab.read_bytes(new["name"], layout.RELEASE_FILE).decode()
    assert f" {releases.new().version} " in release
    assert cloud.signature(new["name"]) == NEW
    assert cloud.lab.exec(new["name"], ["systemctl", "is-active", "cloud"]).stdout.strip() == "active"


async def test_a_network_gets_another_router_while_tenants_ask(cloud: Cloud) -> None:
    (old,) = await cloud.routers(networkid=network(cloud, "net-1"))
    tenancy = Tenancy(cloud.lab)
    await asyncio.to_thread(tenancy.add, old["name"])
    with await asyncio.to_thread(tenancy.start, old["name"], rate=RATE) as run:
        job = await cloud.job(
            await cloud.cs.restartNetwork(id=network(cloud, "net-1"), cleanup=True, fetch_result=False)
        )
        await asyncio.sleep(3)
        traffic = await asyncio.to_thread(run.end)
    assert job["jobresult"] == {"success": True}
    (new,) = await cloud.routers(networkid=network(cloud, "net-1"))
    assert new["id"] != old["id"]
    assert new["name"] != old["name"]
    assert (new["guestipaddress"], new["publicip"]) == (old["guestipaddress"], old["publicip"])
    assert old["name"] not in {vm.name for vm in cloud.lab.vms()}
    assert new["version"] == releases.new().version
    print("\n".join(f"{t.kind}: {t}" for t in traffic.tallies))
    with await asyncio.to_thread(tenancy.start, new["name"], rate=RATE) as run:
        await asyncio.sleep(2)
        after = await asyncio.to_thread(run.end)
    assert all(tally.lost == 0 for tally in after.tallies), after.tallies


async def test_a_pair_is_replaced_and_has_one_primary(cloud: Cloud) -> None:
    before = await cloud.routers(networkid=network(cloud, "net-2"))
    tenancy = Tenancy(cloud.lab)
    await asyncio.to_thread(tenancy.add, before[0]["name"])
    with await asyncio.to_thread(tenancy.start, before[0]["name"], rate=RATE) as run:
        job = await cloud.job(
            await cloud.cs.restartNetwork(id=network(cloud, "net-2"), cleanup=True, fetch_result=False)
        )
        await asyncio.sleep(3)
        traffic = await asyncio.to_thread(run.end)
    print("\n".join(f"{t.kind}: {t}" for t in traffic.tallies))
    assert job["jobresult"] == {"success": True}
    after = await cloud.routers(networkid=network(cloud, "net-2"))
    assert len(after) == 2
    assert not {router["id"] for router in before} & {router["id"] for router in after}
    assert sorted(cloud.lab.role(router["name"]) for router in after) == [
        RedundancyRole.BACKUP,
        RedundancyRole.PRIMARY,
    ]


async def test_a_start_that_fails_leaves_a_router_without_a_machine_and_tenants_their_old_one(cloud: Cloud) -> None:
    (old,) = await cloud.routers(networkid=network(cloud, "net-1"))
    booted = cloud.boot(old["name"])
    cloud.world.faults.start_fails = 1
    job = await cloud.job(await cloud.cs.restartNetwork(id=network(cloud, "net-1"), cleanup=True, fetch_result=False))
    assert (job["jobstatus"], job["jobresultcode"]) == (2, 530)
    left = [each for each in await cloud.routers(networkid=network(cloud, "net-1")) if each["id"] != old["id"]]
    assert [each["state"] for each in left] == ["Stopped"]
    assert left[0]["name"] not in {vm.name for vm in cloud.lab.vms()}
    assert cloud.boot(old["name"]) == booted
    await cloud.job(await cloud.cs.restartNetwork(id=network(cloud, "net-1"), cleanup=True, fetch_result=False))
    (after,) = await cloud.routers(networkid=network(cloud, "net-1"))
    assert after["id"] not in {old["id"], left[0]["id"]}
