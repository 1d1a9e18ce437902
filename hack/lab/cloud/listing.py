"""What the list commands answer: filters, ownership, pages.

An empty list is `{}`; a page past the end has a `count` and no array; without a page the answer is cut at
`default.page.size` (all recorded from CloudStack 4.21).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from lab.cloud import answers
from lab.cloud.answers import Fields
from lab.cloud.errors import ApiError, internal, invalid
from lab.cloud.jobs import Jobs, stamp
from lab.cloud.records import AGENT_TYPES, VM, CloudEvent, Network, Template, Vpc, Zone
from lab.cloud.users import Role, User
from lab.cloud.world import World

T = TypeVar("T")
Parameters = dict[str, str]


def page(found: Sequence[T], parameters: Parameters, key: str, tell: Callable[[T], Fields], world: World) -> Fields:
    """One page of a list as the API wraps it."""
    largest = int(world.setting("default.page.size"))
    number, size = parameters.get("page"), parameters.get("pagesize")
    if number is not None and size is None:
        raise ApiError(431, '"pagesize" parameter is required when "page" is specified')
    if size is not None and int(size) > largest:
        raise invalid(f"Page size can't exceed max allowed page size value: {largest}")
    if not found:
        return {}
    wide = int(size) if size is not None else largest
    start = (int(number) - 1) * wide if number is not None else 0
    shown = [tell(each) for each in found[start : start + wide]]
    if world.faults.half_lists:
        shown = shown[: (len(shown) + 1) // 2]
    return {"count": len(found)} | ({key: shown} if shown else {})


def truth(parameters: Parameters, name: str) -> bool:
    """A boolean as CloudStack reads it: anything but `true` is false."""
    return parameters.get(name, "").lower() == "true"


def _matches(parameters: Parameters, **values: str | None) -> bool:
    return all(name not in parameters or parameters[name] == value for name, value in values.items())


def owned(it: VM | Network | Vpc, parameters: Parameters, user: User) -> bool:
    """Whether a caller is shown what an account owns: listall for others' things, projectid=-1 for projects' too."""
    project = parameters.get("projectid")
    if it.project is not None:
        return project == "-1" or project == f"project-{it.project}"
    if project not in (None, "-1"):
        return False
    if "account" in parameters:
        return parameters["account"] == it.account
    everything = truth(parameters, "listall") and user.role is not Role.USER
    return everything or "id" in parameters or it.account == user.name


def zones(world: World, parameters: Parameters) -> Fields:
    found = [z for z in world.zones.values() if _matches(parameters, id=z.id, name=z.name)]
    return page(found, parameters, "zone", answers.zone, world)


def hosts(world: World, parameters: Parameters) -> Fields:
    wanted = parameters.get("type", "Routing")
    found = [
        h
        for h in world.hosts.values()
        if wanted == "Routing"
        and _matches(
            parameters,
            id=h.id,
            name=h.name,
            zoneid=h.zone.id,
            podid=h.pod_id,
            clusterid=h.cluster_id,
            state=h.state,
            resourcestate=h.resource_state,
            hypervisor=h.hypervisor,
        )
    ]
    return page(found, parameters, "host", answers.host, world)


def networks(world: World, parameters: Parameters, user: User) -> Fields:
    found = [
        n
        for n in world.networks.values()
        if owned(n, parameters, user)
        and _matches(parameters, id=n.id, zoneid=n.zone.id, vpcid=n.vpc.id if n.vpc else None, type=n.kind)
        and ("forvpc" not in parameters or truth(parameters, "forvpc") == (n.vpc is not None))
    ]
    return page(found, parameters, "network", answers.network, world)


def vpcs(world: World, parameters: Parameters, user: User) -> Fields:
    found = [
        v
        for v in world.vpcs.values()
        if owned(v, parameters, user) and _matches(parameters, id=v.id, zoneid=v.zone.id, name=v.name)
    ]
    return page(found, parameters, "vpc", lambda it: answers.vpc(it, world), world)


def system_vms(world: World, parameters: Parameters) -> Fields:
    words = {"secondarystoragevm": "secstorage", "consoleproxy": "consoleproxy"}
    wanted = words.get(parameters.get("systemvmtype", ""), "")
    found = [
        vm
        for vm in world.vms.values()
        if vm.type in AGENT_TYPES
        and _placed(vm, parameters)
        and ("systemvmtype" not in parameters or vm.type.value == wanted)
    ]
    return page(found, parameters, "systemvm", answers.system_vm, world)


def routers(world: World, parameters: Parameters, user: User, *, role: str) -> Fields:
    with_health = truth(parameters, "fetchhealthcheckresults")
    found = [vm for vm in world.vms.values() if vm.is_router and vm.role_name == role]
    found = [
        vm
        for vm in found
        if owned(vm, parameters, user)
        and _placed(vm, parameters)
        and _in_network(vm, parameters, world)
        and _matches(parameters, version=vm.template_version, clusterid=vm.host.cluster_id if vm.host else None)
        and (
            "healthchecksfailed" not in parameters
            or truth(parameters, "healthchecksfailed") == any(not check["success"] for check in vm.health)
        )
    ]
    return page(found, parameters, "router", lambda vm: answers.router(vm, world, with_health=with_health), world)


def _placed(vm: VM, parameters: Parameters) -> bool:
    keyword = parameters.get("keyword")
    return (keyword is None or keyword in vm.name) and _matches(
        parameters,
        id=vm.id,
        name=vm.name,
        state=vm.state.value,
        zoneid=vm.zone.id,
        podid=vm.pod_id,
        hostid=vm.host.id if vm.host else None,
        arch=vm.arch,
    )


def _in_network(vm: VM, parameters: Parameters, world: World) -> bool:
    vpc = vm.vpc or (vm.network.vpc if vm.network else None)
    if "forvpc" in parameters and truth(parameters, "forvpc") != (vpc is not None):
        return False
    if not _matches(parameters, vpcid=vpc.id if vpc else None):
        return False
    wanted = parameters.get("networkid")
    if wanted is None or (vm.network is not None and vm.network.id == wanted):
        return True
    return wanted in {tier.id for tier in world.tiers(vm.vpc)}


def templates(world: World, parameters: Parameters) -> Fields:
    chosen = parameters.get("templatefilter", "")
    if chosen not in {"all", "featured", "self", "selfexecutable", "executable", "community", "sharedexecutable"}:
        raise ApiError(431, f"No enum constant com.cloud.template.VirtualMachineTemplate.TemplateFilter.{chosen}")
    pairs: Iterable[tuple[Template, Zone]] = (
        (t, z) for t in world.templates.values() for z in world.zones.values() if chosen == "all"
    )
    found = [
        (t, z)
        for t, z in pairs
        if _matches(parameters, id=t.id, zoneid=z.id, name=t.name, templatetype=t.kind, hypervisor=t.hypervisor)
    ]
    return page(found, parameters, "template", lambda pair: answers.template(*pair), world)


_ZONE_SCOPE = frozenset(
    {"minreq.sysvmtemplate.version", "router.health.checks.failures.to.recreate.vr"}
    | {f"router.template.{hypervisor}" for hypervisor in ("kvm", "vmware", "xenserver")}
)


def configurations(world: World, parameters: Parameters) -> Fields:
    """Settings, with those of a zone where `zoneid` asks for them: then only what has a value a zone."""
    zone = world.zones[parameters["zoneid"]] if "zoneid" in parameters else None
    keyword = parameters.get("keyword", "")
    names = [
        name
        for name in sorted(world.settings)
        if _matches(parameters, name=name) and keyword in name and (zone is None or name in _ZONE_SCOPE)
    ]

    def tell(name: str) -> Fields:
        told: Fields = {
            "category": "Advanced",
            "group": "System VMs",
            "subgroup": "Others",
            "name": name,
            "description": name.replace(".", " "),
            "isdynamic": name != "router.version.check",
            "component": "VirtualNetworkApplianceManager",
            "displaytext": name.replace(".", " "),
            "type": "String",
        }
        value = world.setting(name, zone)
        if value:
            told["value"] = value
        if zone is not None or name in _ZONE_SCOPE:
            told["scope"] = "zone"
        return told

    return page(names, parameters, "configuration", tell, world)


def events(world: World, parameters: Parameters) -> Fields:
    found = [
        event
        for event in reversed(world.events)
        if _matches(parameters, type=event.type, level=event.level, resourceid=event.resource_id)
    ]

    def tell(event: CloudEvent) -> Fields:
        told: Fields = {
            "type": event.type,
            "level": event.level,
            "description": event.description,
            "account": "admin",
            "username": "admin",
            "created": stamp(event.created),
            "state": event.state,
        }
        if event.resource_id:
            told |= {"resourceid": event.resource_id, "resourcename": event.resource_name or ""}
        return told

    return page(found, parameters, "event", tell, world)


def async_jobs(world: World, jobs: Jobs, parameters: Parameters, server_id: str) -> Fields:
    return page(jobs.pending(), parameters, "asyncjobs", lambda job: job.answer(server_id), world)


def health_results(vm: VM, *, fresh: bool) -> Fields:
    if not vm.health:
        words = (
            "Unable to perform fresh checks on router."
            if fresh
            else "No health check results found for the router. This could happen for a newly created router. Please "
            "wait for periodic results to populate or manually call for checks to execute."
        )
        raise internal(f"Failed to get health check results due to: {words}")
    return {"routerhealthchecks": {"routerid": vm.id, "healthchecks": vm.health}}


def capabilities(world: World) -> Fields:
    return {
        "capability": {
            "securitygroupsenabled": False,
            "dynamicrolesenabled": True,
            "cloudstackversion": world.version,
            "userpublictemplateenabled": True,
            "supportELB": "false",
            "kvmsnapshotenabled": False,
            "kubernetesserviceenabled": False,
            "defaultuipagesize": 20,
        }
    }


def management_servers(world: World, server_id: str, *, pending: int, started: str) -> Fields:
    agents = [host.id for host in world.hosts.values() if host.state == "Up"]
    server: Fields = {
        "id": server_id,
        "name": "localhost",
        "state": "Up",
        "version": world.version,
        "osdistribution": "Debian GNU/Linux 12 (bookworm)",
        "lastserverstart": started,
        "serviceip": "127.0.0.1",
        "ipaddress": "127.0.0.1",
        "agents": agents,
        "agentscount": len(agents),
        "pendingjobscount": pending,
    }
    return {"count": 1, "managementserver": [server]}
