"""What the lists say, which fields are there when, and how a list that is empty or at its end looks."""

from __future__ import annotations

from typing import Any

import pytest
from tests.contract.asking import Answers, Live, Reply, Situation, at, situation

Kinds = dict[str, type]

ZONE: Kinds = {"id": str, "name": str, "networktype": str, "allocationstate": str}
HOST: Kinds = {
    "id": str,
    "name": str,
    "state": str,
    "type": str,
    "ipaddress": str,
    "zoneid": str,
    "version": str,
    "hypervisor": str,
    "clustername": str,
    "resourcestate": str,
    "arch": str,
}
VM: Kinds = {
    "id": str,
    "name": str,
    "state": str,
    "zoneid": str,
    "zonename": str,
    "podname": str,
    "templateid": str,
    "templatename": str,
    "created": str,
    "arch": str,
}
PLACED: Kinds = {"hostid": str, "hostname": str, "hypervisor": str, "linklocalip": str}
ROUTER: Kinds = (
    VM
    | {"isredundantrouter": bool, "redundantstate": str, "version": str, "requiresupgrade": bool}
    | {
        "role": str,
        "domainpath": str,
        "nic": list,
        "healthchecksfailed": bool,
    }
)
NETWORK: Kinds = {"id": str, "name": str, "zoneid": str, "state": str, "type": str, "restartrequired": bool} | {
    "redundantrouter": bool,
    "domainpath": str,
    "tags": list,
}
VPC: Kinds = {"id": str, "name": str, "zoneid": str, "restartrequired": bool, "redundantvpcrouter": bool} | {
    "domainpath": str,
    "network": list,
    "tags": list,
}
TEMPLATE: Kinds = {"id": str, "name": str, "isready": bool, "templatetype": str, "zoneid": str, "zonename": str} | {
    "hypervisor": str,
    "arch": str,
    "status": str,
    "created": str,
}


def has(told: dict[str, Any], kinds: Kinds) -> None:
    wrong = {name: told.get(name) for name, kind in kinds.items() if not isinstance(told.get(name), kind)}
    assert not wrong, f"missing or of another type: {wrong}"


@situation("listZones")
async def zones(cloud: Live) -> Reply:
    return await cloud.call("listZones")


@situation("ok.expires")
async def zones_in_time(cloud: Live) -> Reply:
    return await cloud.call("listZones", expires=at(minutes=10))


@situation("error.expiresZ")
async def zones_in_zulu_time(cloud: Live) -> Reply:
    return await cloud.call("listZones", expires=at(minutes=10).replace("+0000", "Z"))


@situation("ok.post")
async def zones_by_post(cloud: Live) -> Reply:
    return await cloud.call("listZones", post=True)


@situation("ok.extraparam")
async def zones_and_more(cloud: Live) -> Reply:
    return await cloud.call("listZones", nosuchparam="1")


@pytest.mark.parametrize(
    "it", [zones, zones_in_time, zones_in_zulu_time, zones_by_post, zones_and_more], ids=lambda it: it.recorded
)
async def test_zones_by_get_and_post_with_and_without_a_time_limit(answers: Answers, it: Situation) -> None:
    reply = await answers.ask(it)
    assert (reply.status, reply.wrapper) == (200, "listzonesresponse")
    assert reply.inner["count"] == len(reply.inner["zone"])
    has(reply.inner["zone"][0], ZONE)


@situation("listHosts")
async def hosts(cloud: Live) -> Reply:
    return await cloud.call("listHosts", type="Routing")


async def test_hosts_have_an_address_and_two_states(answers: Answers) -> None:
    reply = await answers.ask(hosts)
    routing = [host for host in reply.inner["host"] if host["type"] == "Routing"]
    for host in routing:
        has(host, HOST)


async def test_hosts_tell_what_is_allocated_in_bytes_and_mhz(answers: Answers) -> None:
    reply = await answers.ask(hosts)
    running = [host for host in reply.inner["host"] if host["type"] == "Routing" and host["state"] == "Up"]
    for host in running:
        has(host, {"memoryallocatedbytes": int, "cpuallocatedvalue": int})
        assert host["memorywithoverprovisioning"].isdigit()
        assert host["cpuwithoverprovisioning"].isdigit(), "totals are texts of digits"


@situation("listSystemVms")
async def system_vms(cloud: Live) -> Reply:
    return await cloud.call("listSystemVms")


async def test_a_system_vm_tells_its_agent_only_once_that_has_registered(answers: Answers) -> None:
    reply = await answers.ask(system_vms)
    by_type = {vm["systemvmtype"]: vm for vm in reply.inner["systemvm"] if vm["state"] == "Running"}
    for vm in by_type.values():
        has(vm, VM | PLACED)
        assert ("agentstate" in vm) == ("version" in vm)
        assert not {"scriptsversion", "softwareversion", "requiresupgrade"} & set(vm), "drift shows over SSH only"
    assert "activeviewersessions" in by_type["consoleproxy"]
    assert "activeviewersessions" not in by_type["secondarystoragevm"]
    assert by_type["secondarystoragevm"]["agentstate"] == "Up"


@situation("listRouters")
async def routers(cloud: Live) -> Reply:
    return await cloud.call("listRouters", listall="true")


async def test_a_running_router_tells_host_address_and_versions(answers: Answers) -> None:
    reply = await answers.ask(routers)
    running = [router for router in reply.inner["router"] if router["state"] == "Running"]
    assert running
    for router in running:
        has(router, ROUTER | PLACED | {"scriptsversion": str, "softwareversion": str})
        assert router["role"] == "VIRTUAL_ROUTER"
        assert {nic["traffictype"] for nic in router["nic"]} <= {"Guest", "Control", "Public"}
    tier = next((router for router in running if "vpcid" in router), None)
    if tier is not None:
        assert tier["vpcname"]


@situation("listRouters.redundant.primary")
async def redundant_routers(cloud: Live) -> Reply:
    router = await cloud.pick("listRouters", "router", lambda r: bool(r["isredundantrouter"]), listall="true")
    key = "vpcid" if "vpcid" in router else "networkid"
    return await cloud.call("listRouters", listall="true", **{key: router.get("vpcid") or router["guestnetworkid"]})


async def test_a_redundant_pair_has_one_primary_and_one_backup(answers: Answers) -> None:
    reply = await answers.ask(redundant_routers)
    pair = reply.inner["router"]
    assert {router["isredundantrouter"] for router in pair} == {True}
    assert sorted(router["redundantstate"] for router in pair) == ["BACKUP", "PRIMARY"]
    assert len({router["hostid"] for router in pair}) == 2
    assert len({router["guestnetworkid"] for router in pair}) == 1


@situation("listRouters.vpc-without-tiers")
async def tierless(cloud: Live) -> Reply:
    router = await cloud.pick(
        "listRouters", "router", lambda r: "vpcid" in r and "guestnetworkid" not in r, listall="true"
    )
    return await cloud.call("listRouters", listall="true", id=router["id"])


async def test_a_vpc_router_without_tiers_serves_no_network(answers: Answers) -> None:
    (router,) = (await answers.ask(tierless)).inner["router"]
    assert router["vpcid"]
    assert not [name for name in router if name.startswith("guest")]


@situation("listRouters.requiresupgrade", arranged=True)
async def behind(cloud: Live) -> Reply:
    router = await cloud.pick("listRouters", "router", listall="true")
    vm = cloud.world.vms[router["id"]]
    vm.template_version, vm.software_version = "4.9.2", "4.20.0.0"
    return await cloud.call("listRouters", listall="true", id=vm.id)


@situation("listRouters.oldtemplate", arranged=True)
async def old_template_new_software(cloud: Live) -> Reply:
    router = await cloud.pick("listRouters", "router", listall="true")
    vm = cloud.world.vms[router["id"]]
    vm.template_version, vm.software_version = "4.9.2", cloud.world.version
    return await cloud.call("listRouters", listall="true", id=vm.id)


async def test_requires_upgrade_takes_an_old_template_and_old_software(answers: Answers) -> None:
    (both,) = (await answers.ask(behind)).inner["router"]
    assert (both["version"], both["softwareversion"], both["requiresupgrade"]) == ("4.9.2", "4.20.0.0", True)
    (one,) = (await answers.ask(old_template_new_software)).inner["router"]
    assert (one["version"], one["softwareversion"], one["requiresupgrade"]) == ("4.9.2", "4.21.0.0", False)


@situation("listVPCs")
async def vpcs(cloud: Live) -> Reply:
    return await cloud.call("listVPCs", listall="true")


async def test_a_vpc_lists_its_tiers(answers: Answers) -> None:
    reply = await answers.ask(vpcs)
    assert reply.inner["vpc"]
    for vpc in reply.inner["vpc"]:
        has(vpc, VPC)
        for tier in vpc["network"]:
            has(tier, NETWORK | {"vpcid": str})
            assert tier["vpcid"] == vpc["id"]


@situation("listTemplates.all.SYSTEM")
async def system_templates(cloud: Live) -> Reply:
    return await cloud.call("listTemplates", templatefilter="all", templatetype="SYSTEM")


async def test_system_templates_are_listed_by_type_once_a_zone(answers: Answers) -> None:
    reply = await answers.ask(system_templates)
    assert reply.inner["template"]
    for template in reply.inner["template"]:
        has(template, TEMPLATE)
        assert template["templatetype"] == "SYSTEM"
    places = [(template["id"], template["zoneid"]) for template in reply.inner["template"]]
    assert len(places) == len(set(places))


@situation("listCapabilities")
async def capabilities(cloud: Live) -> Reply:
    return await cloud.call("listCapabilities")


async def test_the_version_of_the_server_is_a_capability(answers: Answers) -> None:
    version = (await answers.ask(capabilities)).inner["capability"]["cloudstackversion"]
    assert version.split("-")[0].replace(".", "").isdigit()


@situation("listManagementServers")
async def management_servers(cloud: Live) -> Reply:
    return await cloud.call("listManagementServers")


async def test_management_servers_tell_version_and_state(answers: Answers) -> None:
    for server in (await answers.ask(management_servers)).inner["managementserver"]:
        has(server, {"id": str, "name": str, "state": str, "version": str, "lastserverstart": str})


@situation("listSystemVms.empty")
async def no_system_vm(cloud: Live) -> Reply:
    return await cloud.call("listSystemVms", name="nosuch")


@situation("listRouters.empty")
async def no_router(cloud: Live) -> Reply:
    return await cloud.call("listRouters", listall="true", name="nosuch")


@situation("listAsyncJobs", arranged=True)
async def no_job(cloud: Live) -> Reply:
    return await cloud.call("listAsyncJobs", listall="true")


@situation("listEvents.patch")
async def no_event(cloud: Live) -> Reply:
    return await cloud.call("listEvents", type="SYSTEM.VM.PATCH", pagesize="5", page="1", listall="true")


@pytest.mark.parametrize("it", [no_system_vm, no_router, no_job, no_event], ids=lambda it: it.recorded)
async def test_an_empty_list_is_an_empty_object(answers: Answers, it: Situation) -> None:
    reply = await answers.ask(it)
    assert (reply.status, reply.inner) == (200, {})


@situation("ok.pastpage")
async def past_the_end(cloud: Live) -> Reply:
    return await cloud.call("listRouters", listall="true", page="500", pagesize="10")


async def test_a_page_past_the_end_has_a_count_and_no_array(answers: Answers) -> None:
    reply = await answers.ask(past_the_end)
    assert set(reply.inner) == {"count"}
    assert reply.inner["count"] > 0


@pytest.mark.parametrize(
    ("name", "is_async", "required"),
    [
        ("patchSystemVm", True, set()),
        ("restartNetwork", True, {"id"}),
        ("restartVPC", True, {"id"}),
        ("destroySystemVm", True, {"id"}),
        ("rebootRouter", True, {"id"}),
        ("rebootSystemVm", True, {"id"}),
        ("upgradeRouterTemplate", False, set()),
        ("listRouters", False, set()),
        ("listSystemVms", False, set()),
        ("listAsyncJobs", False, set()),
        ("queryAsyncJobResult", False, {"jobid"}),
        ("getRouterHealthCheckResults", False, {"routerid"}),
    ],
)
async def test_list_apis_describes_a_call(answers: Answers, name: str, is_async: bool, required: set[str]) -> None:
    async def ask(cloud: Live) -> Reply:
        return await cloud.call("listApis", name=name)

    reply = await answers.ask(Situation(f"listApis.{name}", ask))
    (api,) = reply.inner["api"]
    assert (reply.inner["count"], api["name"], api["isasync"]) == (1, name, is_async)
    assert {each["name"] for each in api["params"] if each["required"]} == required
