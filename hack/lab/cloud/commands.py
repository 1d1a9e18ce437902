"""The commands of the API: parameters, what listApis says of them, and where each one's work is.

One table, so that a command that is answered is also one that listApis lists and that a role may lack.
"""

from __future__ import annotations

from lab.cloud import listing, rules
from lab.cloud.answers import Fields
from lab.cloud.changing import (
    REBOOT_ROUTER,
    destroy_router,
    destroy_system_vm,
    on_vm,
    patch_system_vm,
    reboot_system_vm,
    register_template,
    restart_network,
    restart_vpc,
    start,
    stop,
    update_configuration,
    update_template,
    upgrade_router_template,
)
from lab.cloud.command import Command, Context, Kind, Parameters
from lab.cloud.errors import internal


def _health(context: Context, parameters: Parameters) -> Fields:
    vm = context.world.vms[parameters["routerid"]]
    return listing.health_results(vm, fresh=listing.truth(parameters, "performfreshchecks"))


_OS_TYPES = {"Debian GNU/Linux 11 (64-bit)": "d11", "Debian GNU/Linux 12 (64-bit)": "d12"}


def _list_os_types(context: Context, parameters: Parameters) -> Fields:
    wanted = parameters.get("description")
    found = [(text, key) for text, key in _OS_TYPES.items() if wanted in (None, text)]
    return listing.page(
        found, parameters, "ostype", lambda each: {"id": each[1], "description": each[0]}, context.world
    )


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
    *rules.COMMANDS,
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
    Command("patchSystemVm", {"id": Kind.VM, "forced": Kind.BOOLEAN}, patch_system_vm, is_async=True, since="4.17.0"),
    Command("destroySystemVm", {"id*": Kind.VM}, destroy_system_vm, is_async=True),
    on_vm("stopSystemVm", "admin.systemvm.StopSystemVmCmd", "SSVM.STOP", stop, system=True),
    on_vm("startSystemVm", "admin.systemvm.StartSystemVMCmd", "SSVM.START", start, system=True),
    on_vm("rebootSystemVm", "admin.systemvm.RebootSystemVmCmd", "SSVM.REBOOT", reboot_system_vm, system=True),
    on_vm("stopRouter", "admin.router.StopRouterCmd", "ROUTER.STOP", stop, system=False),
    on_vm("startRouter", "admin.router.StartRouterCmd", "ROUTER.START", start, system=False),
    REBOOT_ROUTER,
    on_vm("destroyRouter", "admin.router.DestroyRouterCmd", "ROUTER.DESTROY", destroy_router, system=False),
    on_vm(
        "stopInternalLoadBalancerVM",
        "admin.internallb.StopInternalLBVMCmd",
        "INTERNALLBVM.STOP",
        stop,
        system=False,
        role="INTERNAL_LB_VM",
    ),
    on_vm(
        "startInternalLoadBalancerVM",
        "admin.internallb.StartInternalLBVMCmd",
        "INTERNALLBVM.START",
        start,
        system=False,
        role="INTERNAL_LB_VM",
    ),
    Command(
        "restartNetwork",
        {"id*": Kind.NETWORK, "cleanup": Kind.BOOLEAN, "livepatch": Kind.BOOLEAN, "makeredundant": Kind.BOOLEAN},
        restart_network,
        is_async=True,
    ),
    Command(
        "restartVPC",
        {"id*": Kind.VPC, "cleanup": Kind.BOOLEAN, "livepatch": Kind.BOOLEAN, "makeredundant": Kind.BOOLEAN},
        restart_vpc,
        is_async=True,
    ),
    Command(
        "upgradeRouterTemplate",
        {"id": Kind.VM, "zoneid": Kind.ZONE}
        | dict.fromkeys(("clusterid", "podid", "account", "domainid"), Kind.STRING),
        upgrade_router_template,
    ),
    Command(
        "registerTemplate",
        {"name*": Kind.STRING, "url*": Kind.STRING, "hypervisor*": Kind.STRING, "format*": Kind.STRING}
        | {"isrouting": Kind.BOOLEAN, "templatetype": Kind.STRING, "zoneid": Kind.STRING, "zoneids": Kind.STRING}
        | {"checksum": Kind.STRING, "arch": Kind.STRING, "ostypeid": Kind.STRING, "displaytext": Kind.STRING},
        register_template,
    ),
    Command("updateTemplate", {"id*": Kind.TEMPLATE, "templatetype": Kind.STRING}, update_template),
    Command("listOsTypes", _PAGE | {"description": Kind.STRING}, _list_os_types),
    Command(
        "updateConfiguration",
        {"name*": Kind.STRING, "value": Kind.STRING, "zoneid": Kind.ZONE},
        update_configuration,
    ),
)

BY_NAME = {command.name.lower(): command for command in COMMANDS}
CHANGING = frozenset(c.name for c in COMMANDS if not c.name.startswith(("list", "query", "get")))
"""Commands that change something, for whoever proves that none was called."""
