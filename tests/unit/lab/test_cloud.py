"""The management server's stand-in, asked by the real client library: its signature, its pages, its jobs, its lies."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from cs import AIOCloudStack, CloudStackApiException

from lab.cloud import (
    CHANGING,
    Answer,
    CutJob,
    Patch,
    VMState,
    World,
    checksum,
    cloud_server,
    management_server,
)
from lab.spec import RedundancyRole


class Client(AIOCloudStack):
    """The library as the operator uses it: one session, no waiting of its own."""


def client(world: World, url: str, *, user: int = 0) -> Client:
    who = world.users[user]
    return Client(endpoint=url, key=who.api_key, secret=who.secret, expiration=timedelta(minutes=5))


def small() -> World:
    """Two hosts, an isolated network with a redundant pair, a redundant VPC of two tiers, an SSVM and a CPVM."""
    world = World()
    zone = world.add_zone("zone-1")
    for name in ("kvm-1", "kvm-2"):
        world.add_host(zone, name)
    world.add_routers(world.add_network(zone, "net-1", redundant=True))
    world.add_routers(world.add_vpc(zone, "vpc-1", redundant=True, tiers=2))
    world.add_ssvm(zone)
    world.add_cpvm(zone)
    return world


async def done(cs: Any, submitted: dict[str, Any]) -> dict[str, Any]:
    for _ in range(2000):
        job: dict[str, Any] = await cs.queryAsyncJobResult(jobid=submitted["jobid"])
        if job["jobstatus"]:
            return job
        await asyncio.sleep(0.005)
    raise AssertionError("the job never ended")


async def test_the_example_of_the_package_lists_what_was_built() -> None:
    world = small()
    async with cloud_server(world) as url, client(world, url) as cs:
        routers = await cs.listRouters(listall=True, page=1, pagesize=500)
        assert [r["name"] for r in routers["router"]] == ["r-1-VM", "r-2-VM", "r-3-VM", "r-4-VM"]
        assert [r["redundantstate"] for r in routers["router"]] == ["PRIMARY", "BACKUP"] * 2
        assert {vm["systemvmtype"] for vm in (await cs.listSystemVms())["systemvm"]} == {
            "secondarystoragevm",
            "consoleproxy",
        }
    assert not [call for call in world.calls if call.command in CHANGING]


async def test_pages_have_no_gap_and_no_overlap() -> None:
    world = World()
    zone = world.add_zone("zone-1")
    world.add_host(zone, "kvm-1")
    for number in range(7):
        world.add_routers(world.add_network(zone, f"net-{number}"))
    async with cloud_server(world) as url, client(world, url) as cs:
        pages = [await cs.listRouters(listall=True, page=n, pagesize=3) for n in (1, 2, 3, 4)]
    assert [each["count"] for each in pages] == [7] * 4
    assert [len(each.get("router", [])) for each in pages] == [3, 3, 1, 0]
    assert len({r["id"] for each in pages for r in each.get("router", [])}) == 7


async def test_others_things_need_listall_and_projects_need_minus_one() -> None:
    world = World()
    zone = world.add_zone("zone-1")
    world.add_host(zone, "kvm-1")
    world.add_routers(world.add_network(zone, "mine"))
    world.add_routers(world.add_network(zone, "theirs", account="tenant"))
    world.add_routers(world.add_network(zone, "projects", project="shop"))
    async with cloud_server(world) as url, client(world, url) as cs:
        assert (await cs.listRouters())["count"] == 1
        assert (await cs.listRouters(listall=True))["count"] == 2
        assert (await cs.listRouters(listall=True, projectid=-1))["count"] == 3


async def test_rules_of_others_need_listall_and_those_of_projects_minus_one() -> None:
    world = World()
    zone = world.add_zone("z")
    world.add_host(zone, "kvm-1")
    others = world.add_network(zone, "others", account="alice")
    projects = world.add_network(zone, "projects", project="p")
    others.rules["Firewall"] = projects.rules["Firewall"] = 3
    async with cloud_server(world) as url, client(world, url) as cs:
        assert await cs.listFirewallRules(networkid=others.id) == {}
        assert (await cs.listFirewallRules(networkid=others.id, listall="true"))["count"] == 3
        assert await cs.listFirewallRules(networkid=projects.id, listall="true") == {}
        assert (await cs.listFirewallRules(networkid=projects.id, listall="true", projectid="-1"))["count"] == 3


async def test_a_live_patch_of_a_network_patches_its_routers_once_and_of_a_vpc_once_a_tier() -> None:
    world = small()
    world.upgrade("4.21.1.0", hosts=True)
    async with management_server(world) as server, client(world, server.url) as cs:
        network = next(iter(world.networks.values()))
        vpc = next(iter(world.vpcs.values()))
        assert (await done(cs, await cs.restartNetwork(id=network.id, livepatch=True, fetch_result=False)))[
            "jobresult"
        ] == {"success": True}
        await done(cs, await cs.restartVPC(id=vpc.id, livepatch=True, fetch_result=False))
    assert [world.vm(f"r-{n}-VM").inside.patches for n in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert {vm.scripts_version for vm in world.vms.values() if vm.is_router} == {world.payload}
    assert {vm.software_version for vm in world.vms.values() if vm.is_router} == {"4.21.1.0"}


async def test_a_vpc_without_tiers_is_not_patched_and_that_is_a_success() -> None:
    world = World()
    zone = world.add_zone("zone-1")
    world.add_host(zone, "kvm-1")
    vpc = world.add_vpc(zone, "empty")
    (router,) = world.add_routers(vpc)
    async with cloud_server(world) as url, client(world, url) as cs:
        told = (await cs.listRouters(listall=True))["router"][0]
        assert "guestnetworkid" not in told
        job = await done(cs, await cs.restartVPC(id=vpc.id, livepatch=True, fetch_result=False))
    assert job["jobresult"] == {"success": True}
    assert router.inside.patches == 0


async def test_a_destroyed_system_vm_is_followed_by_one_with_another_id_and_name() -> None:
    world = small()
    gone = world.vm("s-5-VM")
    async with cloud_server(world) as url, client(world, url) as cs:
        job = await done(cs, await cs.destroySystemVm(id=gone.id, fetch_result=False))
        assert job["jobresult"]["systemvm"]["state"] == "Running", "the result shows the VM as it was"
        while (found := await cs.listSystemVms(systemvmtype="secondarystoragevm", state="Running")) == {}:
            await asyncio.sleep(0.005)
        (new,) = found["systemvm"]
        with pytest.raises(CloudStackApiException) as refused:
            await cs.patchSystemVm(id=gone.id, fetch_result=False)
    assert new["id"] != gone.id
    assert new["name"] == "s-7-VM"
    assert "Unable to find UUID" in str(refused.value.error)


async def test_a_cleanup_replaces_the_pair_and_keeps_one_primary() -> None:
    world = small()
    network = next(iter(world.networks.values()))
    before = {vm.id for vm in world.routers_of(network)}
    async with cloud_server(world) as url, client(world, url) as cs:
        await done(cs, await cs.restartNetwork(id=network.id, cleanup=True, fetch_result=False))
        after = (await cs.listRouters(listall=True, networkid=network.id))["router"]
    assert len(after) == 2
    assert not before & {r["id"] for r in after}
    assert sorted(r["redundantstate"] for r in after) == ["BACKUP", "PRIMARY"]


async def test_a_start_that_fails_leaves_a_stopped_router_and_the_old_one_running() -> None:
    world = World()
    zone = world.add_zone("zone-1")
    world.add_host(zone, "kvm-1")
    network = world.add_network(zone, "net-1")
    (old,) = world.add_routers(network)
    world.faults.start_fails = 1
    async with cloud_server(world) as url, client(world, url) as cs:
        job = await done(cs, await cs.restartNetwork(id=network.id, cleanup=True, fetch_result=False))
        states = {r["name"]: r["state"] for r in (await cs.listRouters(listall=True))["router"]}
        left = next(r for r in (await cs.listRouters(listall=True))["router"] if r["state"] == "Stopped")
        mended = await done(cs, await cs.restartNetwork(id=network.id, cleanup=True, fetch_result=False))
        assert len((await cs.listRouters(listall=True))["router"]) == 1
    assert (job["jobstatus"], job["jobresultcode"]) == (2, 530)
    assert job["jobresult"]["errortext"].startswith("Unable to create a deployment for VM instance {")
    assert states == {old.name: "Running", "r-2-VM": "Stopped"}
    assert (left["requiresupgrade"], left["version"]) == (True, "UNKNOWN")
    assert "hostname" not in left
    assert mended["jobstatus"] == 1


async def test_a_patch_that_did_nothing_is_a_success_by_its_own_account() -> None:
    world = small()
    world.upgrade("4.21.1.0", hosts=True)
    world.faults.patch = Patch.NOTHING
    network = next(iter(world.networks.values()))
    async with cloud_server(world) as url, client(world, url) as cs:
        job = await done(cs, await cs.restartNetwork(id=network.id, livepatch=True, fetch_result=False))
    assert job["jobresult"] == {"success": True}
    assert {vm.inside.patches for vm in world.routers_of(network)} == {0}


async def test_one_of_two_patched_is_a_success_too() -> None:
    world = small()
    world.upgrade("4.21.1.0", hosts=True)
    world.faults.patch = Patch.FIRST_ONLY
    network = next(iter(world.networks.values()))
    async with cloud_server(world) as url, client(world, url) as cs:
        await done(cs, await cs.restartNetwork(id=network.id, livepatch=True, fetch_result=False))
    assert [vm.inside.patches for vm in world.routers_of(network)] == [1, 0]


@pytest.mark.parametrize("work_goes_on", [True, False])
async def test_a_job_cut_by_a_restart_has_no_result_and_its_work_may_go_on(work_goes_on: bool) -> None:
    world = small()
    ssvm = world.vm("s-5-VM")
    ssvm.inside.signature = checksum("something else")
    async with management_server(world, pace=0.03) as server, client(world, server.url) as cs:
        submitted = await cs.patchSystemVm(id=ssvm.id, forced=True, fetch_result=False)
        await server.restart(down_seconds=0.02, work_goes_on=work_goes_on)
        job = await cs.queryAsyncJobResult(jobid=submitted["jobid"])
        await asyncio.sleep(0.1)
    assert (job["jobstatus"], job["jobresultcode"]) == (2, 530)
    assert "jobresult" not in job
    assert "jobresulttype" not in job
    assert ssvm.inside.patches == (1 if work_goes_on else 0)


async def test_while_the_server_is_down_connections_end() -> None:
    world = small()
    async with management_server(world) as server, client(world, server.url) as cs:
        restart = asyncio.create_task(server.restart(down_seconds=0.2))
        with pytest.raises(aiohttp.ClientConnectionError):
            while not restart.done():
                await cs.listZones()
        await restart
        assert (await cs.listZones())["count"] == 1


async def test_a_cut_job_by_fault_ends_without_result() -> None:
    world = small()
    world.faults.cut_job = CutJob.WORK_STOPS
    async with cloud_server(world, pace=0.03) as url, client(world, url) as cs:
        job = await done(cs, await cs.rebootRouter(id=world.vm("r-1-VM").id, fetch_result=False))
    assert job["jobstatus"] == 2
    assert "jobresult" not in job


@pytest.mark.parametrize("answer", [Answer.HTML, Answer.HALF, Answer.EMPTY, Answer.GARBAGE])
async def test_answers_that_are_none(answer: Answer) -> None:
    world = small()
    world.faults.answer = answer
    async with cloud_server(world) as url, client(world, url) as cs:
        with pytest.raises(Exception):  # noqa: B017 - what the library makes of each is its own affair
            told = await cs.listZones()
            assert told["count"] == 1
        world.faults.heal()
        assert (await cs.listZones())["count"] == 1


async def test_faults_are_switched_from_outside_and_by_name_only() -> None:
    world = small()
    async with cloud_server(world) as url, aiohttp.ClientSession() as session:
        control = url.replace("/client/api", "/lab/faults")
        assert (await session.post(control, json={"throttle": 1, "commands": ["listZones"]})).status == 200
        assert (await session.post(control, json={"sunspots": 3})).status == 400
        async with client(world, url) as cs:
            with pytest.raises(CloudStackApiException) as refused:
                await cs.listZones()
            assert refused.value.error["errorcode"] == 429
            assert (await cs.listZones())["count"] == 1
        await session.post(control, json={})
    assert world.faults.commands == set()


async def test_an_agent_vm_takes_a_new_payload_at_the_second_start_and_a_router_at_the_first() -> None:
    world = small()
    world.upgrade("4.21.1.0", hosts=True)
    ssvm, router = world.vm("s-5-VM"), world.vm("r-1-VM")
    async with cloud_server(world) as url, client(world, url) as cs:
        for vm, call in ((ssvm, cs.rebootSystemVm), (router, cs.rebootRouter)):
            await done(cs, await call(id=vm.id, forced=True, fetch_result=False))
        first = (ssvm.inside.signature == world.payload, router.inside.signature == world.payload)
        await done(cs, await cs.rebootSystemVm(id=ssvm.id, forced=True, fetch_result=False))
    assert first == (False, True)
    assert ssvm.inside.signature == world.payload


async def test_requires_upgrade_needs_an_old_template_and_old_software() -> None:
    world = small()
    world.upgrade("4.22.0.0", template_version="4.22.0", payload=checksum("scripts", algorithm="sha512"))
    world.vm("r-2-VM").software_version = "4.22.0.0"
    async with cloud_server(world) as url, client(world, url) as cs:
        told = {r["name"]: r["requiresupgrade"] for r in (await cs.listRouters(listall=True))["router"]}
    assert (told["r-1-VM"], told["r-2-VM"]) == (True, False)


async def test_upgrading_templates_reboots_only_routers_below_the_minimum() -> None:
    world = small()
    async with management_server(world) as server, client(world, server.url) as cs:
        router = world.vm("r-1-VM")
        assert await cs.upgradeRouterTemplate(id=router.id) == {}
        world.upgrade("4.22.0.0", template_version="4.22.0")
        submitted = await cs.upgradeRouterTemplate(id=router.id)
        await server.idle()
    assert submitted["count"] == len(submitted["asyncjobs"]) == 1
    assert router.template_version == "4.22.0"


async def test_the_template_of_a_new_vm_is_the_one_the_server_would_choose() -> None:
    world = small()
    zone = next(iter(world.zones.values()))
    late = world.add_template("a later one", version="4.20.9")
    world.add_template("not ready", version="4.99", ready=[])
    ssvm = world.new_vm(world.vm("s-5-VM").type, zone)
    router = world.new_vm(world.vm("r-1-VM").type, zone)
    assert (ssvm.template, router.template) == (late, world.first_template)


async def test_two_restarts_of_one_network_at_once_and_the_second_fails() -> None:
    world = small()
    network = next(iter(world.networks.values()))
    async with cloud_server(world, pace=0.03) as url, client(world, url) as cs:
        first = await cs.restartNetwork(id=network.id, cleanup=True, fetch_result=False)
        second = await cs.restartNetwork(id=network.id, cleanup=True, fetch_result=False)
        jobs = [await done(cs, each) for each in (first, second)]
    assert [job["jobstatus"] for job in jobs] == [1, 2]
    assert jobs[1]["jobresult"]["errortext"] == "Command failed due to Internal Server Error"


async def test_the_primary_goes_and_the_backup_takes_over() -> None:
    world = small()
    first, second = world.routers_of(next(iter(world.networks.values())))
    async with cloud_server(world) as url, client(world, url) as cs:
        await done(cs, await cs.stopRouter(id=first.id, fetch_result=False))
        roles = {r["name"]: r["redundantstate"] for r in (await cs.listRouters(listall=True))["router"]}
    assert first.state is VMState.STOPPED
    assert (roles[first.name], roles[second.name]) == (RedundancyRole.UNKNOWN, RedundancyRole.PRIMARY)


async def test_a_role_that_lacks_a_call_does_not_list_it() -> None:
    world = small()
    world.users[0].lacks = frozenset({"patchSystemVm"})
    async with cloud_server(world) as url, client(world, url) as cs, client(world, url, user=1) as auditor:
        assert "patchSystemVm" not in {api["name"] for api in (await cs.listApis())["api"]}
        assert {api["name"] for api in (await auditor.listApis())["api"]}.isdisjoint(CHANGING)
        with pytest.raises(CloudStackApiException) as refused:
            await cs.patchSystemVm(id=world.vm("s-5-VM").id)
    assert refused.value.error["errorcode"] == 432


def one_router() -> World:
    """Two hosts and a network with one router."""
    world = World()
    zone = world.add_zone("zone-1")
    for name in ("kvm-1", "kvm-2"):
        world.add_host(zone, name)
    world.add_routers(world.add_network(zone, "net-1"))
    return world


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ("keep_old_router", ["r-1-VM", "r-2-VM"]),
        ("second_router", ["r-2-VM", "r-3-VM"]),
        ("restart_does_nothing", ["r-1-VM"]),
    ],
)
async def test_a_cleanup_that_went_wrong_is_a_success_all_the_same(fault: str, names: list[str]) -> None:
    world = one_router()
    world.faults.set_from({fault: True})
    network = next(iter(world.networks.values()))
    async with cloud_server(world) as url, client(world, url) as cs:
        job = await done(cs, await cs.restartNetwork(id=network.id, cleanup=True, fetch_result=False))
        found = (await cs.listRouters(listall=True))["router"]
    assert job["jobresult"] == {"success": True}
    assert [(r["name"], r["state"], r["guestipaddress"]) for r in found] == [
        (name, "Running", network.gateway) for name in names
    ]


async def test_a_system_vm_that_cannot_start_cycles_until_one_does() -> None:
    world = small()
    world.faults.start_fails = 2
    seen: set[tuple[str, str]] = set()
    async with cloud_server(world, pace=0.02) as url, client(world, url) as cs:
        await done(cs, await cs.destroySystemVm(id=world.vm("s-5-VM").id, fetch_result=False))
        while not any(name == "s-9-VM" and state == "Running" for name, state in seen):
            for vm in (await cs.listSystemVms(systemvmtype="secondarystoragevm")).get("systemvm", []):
                seen.add((vm["name"], vm["state"]))
            await asyncio.sleep(0.002)
    assert {("s-7-VM", "Starting"), ("s-7-VM", "Stopped"), ("s-8-VM", "Starting"), ("s-8-VM", "Stopped")} <= seen


async def test_a_list_that_ends_early_still_counts_all() -> None:
    world = small()
    world.faults.half_lists = True
    async with cloud_server(world) as url, client(world, url) as cs:
        told = await cs.listRouters(listall=True)
    assert (told["count"], len(told["router"])) == (4, 2)


@pytest.mark.parametrize(("ahead", "code"), [(0.0, None), (-3600.0, None), (3600.0, 401)])
async def test_a_server_whose_clock_is_ahead_takes_every_request_for_expired(ahead: float, code: int | None) -> None:
    world = small()
    world.faults.clock_ahead_seconds = ahead
    async with cloud_server(world) as url, client(world, url) as cs:
        try:
            await cs.listZones()
            got = None
        except CloudStackApiException as refused:
            got = refused.error["errorcode"]
    assert got == code


async def test_errors_of_a_proxy_are_counted_down_and_concern_what_was_named() -> None:
    world = small()
    world.faults.errors, world.faults.error_status, world.faults.commands = 2, 502, {"listRouters"}
    async with cloud_server(world) as url, client(world, url) as cs, aiohttp.ClientSession() as session:
        assert (await cs.listZones())["count"] == 1
        for _ in range(2):
            async with session.get(url, params={"command": "listRouters"}) as answer:
                assert (answer.status, answer.content_type) == (502, "text/plain")
        assert (await cs.listRouters(listall=True))["count"] == 4


async def test_a_late_answer_is_late() -> None:
    world = small()
    world.faults.delay_seconds = 0.3
    async with cloud_server(world) as url, client(world, url) as cs:
        began = asyncio.get_running_loop().time()
        await cs.listZones()
        assert asyncio.get_running_loop().time() - began >= 0.3


async def test_a_host_in_maintenance_gets_no_new_vm() -> None:
    world = one_router()
    busy = world.vm("r-1-VM").host
    other = next(host for host in world.hosts.values() if host is not busy)
    assert busy is not None
    busy.resource_state = "Maintenance"
    async with cloud_server(world) as url, client(world, url) as cs:
        await done(cs, await cs.rebootRouter(id=world.vm("r-1-VM").id, fetch_result=False))
        (router,) = (await cs.listRouters(listall=True))["router"]
    assert router["hostname"] == other.name


async def test_internal_load_balancers_are_listed_apart_and_not_patched_in_a_vpc() -> None:
    world = small()
    vpc = next(iter(world.vpcs.values()))
    balancer = world.add_internal_lb(next(world.tiers(vpc)))
    async with cloud_server(world) as url, client(world, url) as cs:
        listed = await cs.listInternalLoadBalancerVMs(listall=True)
        assert balancer.name not in {r["name"] for r in (await cs.listRouters(listall=True))["router"]}
        await done(cs, await cs.restartVPC(id=vpc.id, livepatch=True, fetch_result=False))
    assert [(vm["name"], vm["role"]) for vm in listed["router"]] == [(balancer.name, "INTERNAL_LB_VM")]
    assert balancer.inside.patches == 0


async def test_a_patched_agent_tells_the_release_of_its_host() -> None:
    world = small()
    storage = world.vm("s-5-VM")
    world.upgrade("4.21.1.0", hosts=True)
    async with cloud_server(world) as url, client(world, url) as cs:
        (before,) = (await cs.listSystemVms(id=storage.id))["systemvm"]
        await done(cs, await cs.patchSystemVm(id=storage.id, fetch_result=False))
        (after,) = (await cs.listSystemVms(id=storage.id))["systemvm"]
    assert (before["version"], after["version"]) == ("4.21.0.0", "4.21.1.0")
