"""The commands of the API: parameters, what listApis says of them, and where each one's work is.

One table, so that a command that is answered is also one that listApis lists and that a role may lack.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from lab.cloud import answers, listing
from lab.cloud.answers import Fields
from lab.cloud.errors import ApiError, internal, invalid, missing_parameter, unknown_entity
from lab.cloud.jobs import Job, Jobs, Work
from lab.cloud.lifecycle import Lifecycle
from lab.cloud.records import AGENT_TYPES, VM
from lab.cloud.users import User
from lab.cloud.world import World

Parameters = dict[str, str]


class Kind(StrEnum):
    """Types of parameters as listApis names them; ids are `uuid` there."""

    STRING = "string"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    VM = "vm"
    NETWORK = "network"
    VPC = "vpc"
    ZONE = "zone"
    HOST = "host"
    TEMPLATE = "template"
    JOB = "job"


_TOLD = {Kind.STRING: "string", Kind.INTEGER: "integer", Kind.BOOLEAN: "boolean"}


@dataclass(frozen=True)
class Context:
    """What a command works with."""

    world: World
    jobs: Jobs
    lifecycle: Lifecycle
    user: User
    server_id: str
    started: str


@dataclass(frozen=True)
class Command:
    """One command. `parameters` are kinds by name, with `*` behind the name of a required one."""

    name: str
    parameters: Mapping[str, Kind]
    run: Callable[[Context, Parameters], Fields]
    is_async: bool = False
    response: str = ""
    since: str = ""

    @property
    def response_name(self) -> str:
        return self.response or f"{self.name.lower()}response"

    def told(self) -> Fields:
        """As listApis tells it."""
        parameters = [
            {
                "name": name.rstrip("*"),
                "type": _TOLD.get(kind, "uuid"),
                "length": 255,
                "required": name.endswith("*"),
            }
            for name, kind in self.parameters.items()
        ]
        told: Fields = {"name": self.name, "isasync": self.is_async, "params": parameters, "response": []}
        return told | ({"since": self.since} if self.since else {})


def check(command: Command, parameters: Parameters, context: Context) -> None:
    """Refuses what is missing, empty or names nothing. Unknown parameters and odd booleans are let in."""
    for marked, kind in command.parameters.items():
        name = marked.rstrip("*")
        if name not in parameters:
            if marked.endswith("*"):
                raise missing_parameter(command.name, name)
            continue
        value = parameters[name]
        if kind in (Kind.STRING, Kind.BOOLEAN, Kind.INTEGER):
            if kind is Kind.INTEGER and not value.lstrip("-").isdigit():
                raise unknown_entity(command.name, name, value)
            continue
        if not value:
            raise invalid(f"Invalid value provided for API arg: {name}")
        if kind is Kind.VM and value in context.world.removed:
            raise invalid(f"Unable to find UUID for id [{context.world.removed[value]}] of type [VirtualMachine]")
        if value in _known(kind, context):
            continue
        by_number = next((vm.id for vm in context.world.vms.values() if str(vm.number) == value), None)
        if kind is not Kind.VM or by_number is None:
            raise unknown_entity(command.name, name, value)
        parameters[name] = by_number


def _known(kind: Kind, context: Context) -> Mapping[str, object]:
    """What there is of a kind, by id."""
    known: dict[Kind, Mapping[str, object]] = {
        Kind.VM: context.world.vms,
        Kind.NETWORK: context.world.networks,
        Kind.VPC: context.world.vpcs,
        Kind.ZONE: context.world.zones,
        Kind.HOST: context.world.hosts,
        Kind.TEMPLATE: context.world.templates,
        Kind.JOB: context.jobs.all,
    }
    return known[kind]


def _submit(
    context: Context,
    command: str,
    java_class: str,
    work: Work,
    *,
    instance: tuple[str, str] | None = None,
) -> Fields:
    job = context.jobs.submit(
        work,
        command=command,
        java_class=f"org.apache.cloudstack.api.command.{java_class}",
        user=context.user,
        instance_type=instance[0] if instance else None,
        instance_id=instance[1] if instance else None,
    )
    return {"jobid": job.id}


# -- system VMs ----------------------------------------------------------------------------------------------------


def _patch_system_vm(context: Context, parameters: Parameters) -> Fields:
    vm = context.world.vms.get(parameters.get("id", ""))
    context.world.note(
        "LIVE.PATCH.SYSTEM.VM", f"Attempting to live patch System VM with Id: {vm and vm.id} ", state="Scheduled"
    )

    async def work(_: Job) -> Fields:
        return await context.lifecycle.patch_system_vm(vm, forced=listing.truth(parameters, "forced"))

    return _submit(context, "patchSystemVm", "admin.systemvm.PatchSystemVMCmd", work)


def _system_vm(context: Context, parameters: Parameters) -> VM:
    vm = context.world.vms[parameters["id"]]
    if vm.type not in AGENT_TYPES:
        raise invalid("Unable to find a system vm of specified instanceId")
    return vm


def _router(context: Context, parameters: Parameters, *, role: str = "VIRTUAL_ROUTER") -> VM:
    vm = context.world.vms[parameters["id"]]
    if not vm.is_router or (vm.role_name == "INTERNAL_LB_VM") != (role == "INTERNAL_LB_VM"):
        raise invalid(f"Unable to find router by id {vm.number}.")
    return vm


Act = Callable[[Lifecycle, VM, Parameters], Awaitable[None]]


def _on_vm(
    command: str, java_class: str, event: str, act: Act, *, system: bool, role: str = "VIRTUAL_ROUTER"
) -> Command:
    """A command that does one thing to one VM and answers with the VM."""

    def run(context: Context, parameters: Parameters) -> Fields:
        vm = _system_vm(context, parameters) if system else _router(context, parameters, role=role)
        context.world.note(event, f"{command} {vm.id}", state="Scheduled", vm=vm)

        async def work(job: Job) -> Fields:
            vm.job_id = job.id
            try:
                await act(context.lifecycle, vm, parameters)
                context.world.note(event, f"Successfully completed {command} {vm.id}", vm=vm)
                if system:
                    return {"systemvm": answers.system_vm(vm)}
                # Recorded: a router is told with the job that is about to end, as still pending.
                return {"router": answers.router(vm, context.world)}
            finally:
                vm.job_id = None

        instance = ("SystemVm" if system else "DomainRouter", vm.id)
        return _submit(context, command, java_class, work, instance=instance)

    parameters = {"id*": Kind.VM, "forced": Kind.BOOLEAN}
    return Command(command, parameters, run, is_async=True)


def _destroy_system_vm(context: Context, parameters: Parameters) -> Fields:
    vm = _system_vm(context, parameters)
    kind = "SSVM.DESTROY" if vm.name.startswith("s-") else "PROXY.DESTROY"
    context.world.note(kind, f"destroying system vm: {vm.id}", state="Scheduled", vm=vm)

    async def work(job: Job) -> Fields:
        return await context.lifecycle.destroy_system_vm(vm)

    return _submit(context, "destroySystemVm", "admin.systemvm.DestroySystemVmCmd", work, instance=("SystemVm", vm.id))


async def _stop(lifecycle: Lifecycle, vm: VM, _: Parameters) -> None:
    await lifecycle.stop(vm)


async def _start(lifecycle: Lifecycle, vm: VM, _: Parameters) -> None:
    await lifecycle.start(vm)


async def _reboot_system_vm(lifecycle: Lifecycle, vm: VM, parameters: Parameters) -> None:
    await lifecycle.reboot_system_vm(vm, forced=listing.truth(parameters, "forced"))


async def _reboot_router(lifecycle: Lifecycle, vm: VM, _: Parameters) -> None:
    await lifecycle.stop_start(vm)


async def _destroy_router(lifecycle: Lifecycle, vm: VM, _: Parameters) -> None:
    await lifecycle.stop(vm)
    await lifecycle.expunge(vm)


# -- networks ------------------------------------------------------------------------------------------------------


def _restart_network(context: Context, parameters: Parameters) -> Fields:
    network = context.world.networks[parameters["id"]]
    context.world.note("NETWORK.RESTART", f"Restarting network: {network.id}", state="Scheduled")

    async def work(_: Job) -> Fields:
        if network.state not in ("Implemented", "Setup"):
            raise invalid("Network is not in the right state to be restarted. Correct states are: Implemented, Setup")
        return await context.lifecycle.restart_network(
            network,
            cleanup=listing.truth(parameters, "cleanup"),
            livepatch=listing.truth(parameters, "livepatch"),
            redundant=listing.truth(parameters, "makeredundant"),
        )

    return _submit(context, "restartNetwork", "user.network.RestartNetworkCmd", work, instance=("Network", network.id))


def _restart_vpc(context: Context, parameters: Parameters) -> Fields:
    vpc = context.world.vpcs[parameters["id"]]
    context.world.note("VPC.RESTART", f"restarting VPC: {vpc.id}", state="Scheduled")

    async def work(_: Job) -> Fields:
        return await context.lifecycle.restart_vpc(
            vpc,
            cleanup=listing.truth(parameters, "cleanup"),
            livepatch=listing.truth(parameters, "livepatch"),
            redundant=listing.truth(parameters, "makeredundant"),
        )

    return _submit(context, "restartVPC", "user.vpc.RestartVPCCmd", work, instance=("Vpc", vpc.id))


_SCOPES = ("id", "clusterid", "podid", "zoneid", "account", "domainid")


def _upgrade_router_template(context: Context, parameters: Parameters) -> Fields:
    """Synchronous: one reboot job a router that runs below the minimum; those that need nothing are left out."""
    scopes = [name for name in _SCOPES if name in parameters]
    if len(scopes) != 1:
        raise invalid(
            "Multiple parameters not supported. "
            "Specify only one among routerId/zoneId/podId/clusterId/accountId/domainId"
        )
    scope, world = scopes[0], context.world
    wanted = parameters[scope]
    due = [
        vm
        for vm in list(world.vms.values())
        if vm.is_router
        and vm.state.value == "Running"
        and wanted
        == {
            "id": vm.id,
            "clusterid": vm.host.cluster_id if vm.host else "",
            "podid": vm.pod_id,
            "zoneid": vm.zone.id,
            "account": vm.account,
            "domainid": wanted,
        }[scope]
        and answers.version_of(vm.template_version or "0")
        < answers.version_of(world.setting("minreq.sysvmtemplate.version", vm.zone))
    ]
    jobs = [BY_NAME["rebootrouter"].run(context, {"id": vm.id}) for vm in due]
    return {"count": len(jobs), "asyncjobs": jobs} if jobs else {}


def _health(context: Context, parameters: Parameters) -> Fields:
    vm = context.world.vms[parameters["routerid"]]
    return listing.health_results(vm, fresh=listing.truth(parameters, "performfreshchecks"))


# -- the rest ------------------------------------------------------------------------------------------------------


def _register_template(context: Context, parameters: Parameters) -> Fields:
    """Registers as USER or ROUTING; ready in the zones named (`zoneids`) once somebody says so in the world."""
    world = context.world
    kind = "ROUTING" if listing.truth(parameters, "isrouting") else parameters.get("templatetype", "USER").upper()
    if kind == "SYSTEM" and context.user is not world.users[0]:
        raise ApiError(531, "Only admins can create SYSTEM templates")
    wanted = [each for each in parameters.get("zoneids", parameters.get("zoneid", "-1")).split(",") if each != "-1"]
    zones = [world.zones[each] for each in wanted if each in world.zones] or list(world.zones.values())
    template = world.add_template(
        parameters["name"],
        version=_version_in(parameters["name"], world),
        kind=kind,
        hypervisor=parameters["hypervisor"],
        arch=parameters.get("arch", "x86_64"),
        ready=[],
        template_checksum=parameters.get("checksum", ""),
        url=parameters["url"],
    )
    world.note("TEMPLATE.CREATE", f"Successfully completed creating template {template.id}")
    return {"count": 1, "template": [answers.template(template, zone) for zone in zones]}


def _version_in(name: str, world: World) -> str:
    words = [word for word in name.split("-") if word.replace(".", "").isdigit() and "." in word]
    return words[0] if words else world.setting("minreq.sysvmtemplate.version")


def _update_template(context: Context, parameters: Parameters) -> Fields:
    """Of what it can change only the type: what an administrator does to make a template the system VMs'."""
    world = context.world
    template = world.templates[parameters["id"]]
    template.kind = parameters.get("templatetype", template.kind).upper()
    return {"template": answers.template(template, next(iter(world.zones.values())))}


_OS_TYPES = {"Debian GNU/Linux 11 (64-bit)": "d11", "Debian GNU/Linux 12 (64-bit)": "d12"}


def _list_os_types(context: Context, parameters: Parameters) -> Fields:
    wanted = parameters.get("description")
    found = [(text, key) for text, key in _OS_TYPES.items() if wanted in (None, text)]
    return listing.page(
        found, parameters, "ostype", lambda each: {"id": each[1], "description": each[0]}, context.world
    )


def _update_configuration(context: Context, parameters: Parameters) -> Fields:
    name, value = parameters["name"], parameters.get("value", "")
    if name not in context.world.settings:
        raise invalid(f"Config parameter with name {name} doesn't exist")
    zone = context.world.zones.get(parameters.get("zoneid", ""))
    (zone.settings if zone else context.world.settings)[name] = value
    return {"configuration": {"name": name, "value": value}}


def _job(context: Context, parameters: Parameters) -> Fields:
    return context.jobs.all[parameters["jobid"]].answer(context.server_id)


def _list_apis(context: Context, parameters: Parameters) -> Fields:
    wanted = parameters.get("name")
    found = [
        command.told()
        for command in COMMANDS
        if context.user.may(command.name) and (wanted is None or command.name.lower() == wanted.lower())
    ]
    if not found:
        raise internal("Api Discovery plugin was unable to find an api by that name or process any apis")
    return {"count": len(found), "api": found}


_PAGE = {"page": Kind.INTEGER, "pagesize": Kind.INTEGER, "keyword": Kind.STRING}
_MINE = {"listall": Kind.BOOLEAN, "account": Kind.STRING, "domainid": Kind.STRING, "projectid": Kind.STRING} | _PAGE
_WHERE = {"zoneid": Kind.ZONE, "podid": Kind.STRING, "hostid": Kind.HOST, "state": Kind.STRING, "name": Kind.STRING}
_ROUTERS = (
    {"id": Kind.VM, "networkid": Kind.NETWORK, "vpcid": Kind.VPC, "forvpc": Kind.BOOLEAN, "clusterid": Kind.STRING}
    | {"fetchhealthcheckresults": Kind.BOOLEAN, "healthchecksfailed": Kind.BOOLEAN, "version": Kind.STRING}
    | {"arch": Kind.STRING}
    | _WHERE
    | _MINE
)

COMMANDS: tuple[Command, ...] = (
    Command("listApis", {"name": Kind.STRING}, _list_apis),
    Command(
        "listAsyncJobs",
        _MINE,
        lambda c, p: listing.async_jobs(c.world, c.jobs, p, c.server_id),
    ),
    Command("queryAsyncJobResult", {"jobid*": Kind.JOB}, _job),
    Command("listCapabilities", {}, lambda c, _: listing.capabilities(c.world)),
    Command(
        "listManagementServers",
        _PAGE | {"name": Kind.STRING},
        lambda c, _: listing.management_servers(c.world, c.server_id, pending=len(c.jobs.pending()), started=c.started),
    ),
    Command("listZones", _PAGE | {"id": Kind.ZONE, "name": Kind.STRING}, lambda c, p: listing.zones(c.world, p)),
    Command(
        "listHosts",
        _PAGE
        | _WHERE
        | {"id": Kind.HOST, "clusterid": Kind.STRING, "type": Kind.STRING, "hypervisor": Kind.STRING}
        | {"resourcestate": Kind.STRING},
        lambda c, p: listing.hosts(c.world, p),
    ),
    Command(
        "listNetworks",
        _MINE
        | {"id": Kind.NETWORK, "zoneid": Kind.ZONE, "vpcid": Kind.VPC, "forvpc": Kind.BOOLEAN, "type": Kind.STRING},
        lambda c, p: listing.networks(c.world, p, c.user),
    ),
    Command(
        "listVPCs",
        _MINE | {"id": Kind.VPC, "zoneid": Kind.ZONE, "name": Kind.STRING},
        lambda c, p: listing.vpcs(c.world, p, c.user),
    ),
    Command(
        "listSystemVms",
        _PAGE | _WHERE | {"id": Kind.VM, "systemvmtype": Kind.STRING, "arch": Kind.STRING},
        lambda c, p: listing.system_vms(c.world, p),
    ),
    Command("listRouters", _ROUTERS, lambda c, p: listing.routers(c.world, p, c.user, role="VIRTUAL_ROUTER")),
    Command(
        "listInternalLoadBalancerVMs",
        _ROUTERS,
        lambda c, p: listing.routers(c.world, p, c.user, role="INTERNAL_LB_VM"),
        response="listinternallbvmsresponse",
    ),
    Command(
        "listTemplates",
        _PAGE
        | {"templatefilter*": Kind.STRING, "id": Kind.TEMPLATE, "zoneid": Kind.ZONE, "name": Kind.STRING}
        | {"templatetype": Kind.STRING, "hypervisor": Kind.STRING, "listall": Kind.BOOLEAN},
        lambda c, p: listing.templates(c.world, p),
    ),
    Command(
        "listConfigurations",
        _PAGE | {"name": Kind.STRING, "zoneid": Kind.ZONE, "category": Kind.STRING},
        lambda c, p: listing.configurations(c.world, p),
    ),
    Command(
        "listEvents",
        _MINE | {"type": Kind.STRING, "level": Kind.STRING, "startdate": Kind.STRING, "resourceid": Kind.STRING},
        lambda c, p: listing.events(c.world, p),
    ),
    Command("getRouterHealthCheckResults", {"routerid*": Kind.VM, "performfreshchecks": Kind.BOOLEAN}, _health),
    Command("patchSystemVm", {"id": Kind.VM, "forced": Kind.BOOLEAN}, _patch_system_vm, is_async=True, since="4.17.0"),
    Command("destroySystemVm", {"id*": Kind.VM}, _destroy_system_vm, is_async=True),
    _on_vm("stopSystemVm", "admin.systemvm.StopSystemVmCmd", "SSVM.STOP", _stop, system=True),
    _on_vm("startSystemVm", "admin.systemvm.StartSystemVMCmd", "SSVM.START", _start, system=True),
    _on_vm("rebootSystemVm", "admin.systemvm.RebootSystemVmCmd", "SSVM.REBOOT", _reboot_system_vm, system=True),
    _on_vm("stopRouter", "admin.router.StopRouterCmd", "ROUTER.STOP", _stop, system=False),
    _on_vm("startRouter", "admin.router.StartRouterCmd", "ROUTER.START", _start, system=False),
    _on_vm("rebootRouter", "admin.router.RebootRouterCmd", "ROUTER.REBOOT", _reboot_router, system=False),
    _on_vm("destroyRouter", "admin.router.DestroyRouterCmd", "ROUTER.DESTROY", _destroy_router, system=False),
    _on_vm(
        "stopInternalLoadBalancerVM",
        "admin.internallb.StopInternalLBVMCmd",
        "INTERNALLBVM.STOP",
        _stop,
        system=False,
        role="INTERNAL_LB_VM",
    ),
    _on_vm(
        "startInternalLoadBalancerVM",
        "admin.internallb.StartInternalLBVMCmd",
        "INTERNALLBVM.START",
        _start,
        system=False,
        role="INTERNAL_LB_VM",
    ),
    Command(
        "restartNetwork",
        {"id*": Kind.NETWORK, "cleanup": Kind.BOOLEAN, "livepatch": Kind.BOOLEAN, "makeredundant": Kind.BOOLEAN},
        _restart_network,
        is_async=True,
    ),
    Command(
        "restartVPC",
        {"id*": Kind.VPC, "cleanup": Kind.BOOLEAN, "livepatch": Kind.BOOLEAN, "makeredundant": Kind.BOOLEAN},
        _restart_vpc,
        is_async=True,
    ),
    Command(
        "upgradeRouterTemplate",
        {"id": Kind.VM, "zoneid": Kind.ZONE}
        | dict.fromkeys(("clusterid", "podid", "account", "domainid"), Kind.STRING),
        _upgrade_router_template,
    ),
    Command(
        "registerTemplate",
        {"name*": Kind.STRING, "url*": Kind.STRING, "hypervisor*": Kind.STRING, "format*": Kind.STRING}
        | {"isrouting": Kind.BOOLEAN, "templatetype": Kind.STRING, "zoneid": Kind.STRING, "zoneids": Kind.STRING}
        | {"checksum": Kind.STRING, "arch": Kind.STRING, "ostypeid": Kind.STRING, "displaytext": Kind.STRING},
        _register_template,
    ),
    Command("updateTemplate", {"id*": Kind.TEMPLATE, "templatetype": Kind.STRING}, _update_template),
    Command("listOsTypes", _PAGE | {"description": Kind.STRING}, _list_os_types),
    Command(
        "updateConfiguration",
        {"name*": Kind.STRING, "value": Kind.STRING, "zoneid": Kind.ZONE},
        _update_configuration,
    ),
)

BY_NAME = {command.name.lower(): command for command in COMMANDS}
CHANGING = frozenset(c.name for c in COMMANDS if not c.name.startswith(("list", "query", "get")))
"""Commands that change something, for whoever proves that none was called."""
