"""What the commands that change something do.

Each refuses at once what the real server refuses at once, and leaves the rest to a job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from lab.cloud import answers, listing
from lab.cloud.answers import Fields
from lab.cloud.command import Command, Context, Kind, Parameters, submit
from lab.cloud.errors import ApiError, invalid
from lab.cloud.jobs import Job
from lab.cloud.lifecycle import Lifecycle
from lab.cloud.records import AGENT_TYPES, VM
from lab.cloud.world import World


def patch_system_vm(context: Context, parameters: Parameters) -> Fields:
    vm = context.world.vms.get(parameters.get("id", ""))
    context.world.note(
        "LIVE.PATCH.SYSTEM.VM", f"Attempting to live patch System VM with Id: {vm and vm.id} ", state="Scheduled"
    )

    async def work(_: Job) -> Fields:
        return await context.lifecycle.patch_system_vm(vm, forced=listing.truth(parameters, "forced"))

    return submit(context, "patchSystemVm", "admin.systemvm.PatchSystemVMCmd", work)


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


def on_vm(
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
        return submit(context, command, java_class, work, instance=instance)

    parameters = {"id*": Kind.VM, "forced": Kind.BOOLEAN}
    return Command(command, parameters, run, is_async=True)


def destroy_system_vm(context: Context, parameters: Parameters) -> Fields:
    vm = _system_vm(context, parameters)
    kind = "SSVM.DESTROY" if vm.name.startswith("s-") else "PROXY.DESTROY"
    context.world.note(kind, f"destroying system vm: {vm.id}", state="Scheduled", vm=vm)

    async def work(job: Job) -> Fields:
        return await context.lifecycle.destroy_system_vm(vm)

    return submit(context, "destroySystemVm", "admin.systemvm.DestroySystemVmCmd", work, instance=("SystemVm", vm.id))


async def stop(lifecycle: Lifecycle, vm: VM, _: Parameters) -> None:
    await lifecycle.stop(vm)


async def start(lifecycle: Lifecycle, vm: VM, _: Parameters) -> None:
    await lifecycle.start(vm)


async def reboot_system_vm(lifecycle: Lifecycle, vm: VM, parameters: Parameters) -> None:
    await lifecycle.reboot_system_vm(vm, forced=listing.truth(parameters, "forced"))


async def _reboot_router(lifecycle: Lifecycle, vm: VM, _: Parameters) -> None:
    await lifecycle.stop_start(vm)


async def destroy_router(lifecycle: Lifecycle, vm: VM, _: Parameters) -> None:
    await lifecycle.stop(vm)
    await lifecycle.expunge(vm)


def restart_network(context: Context, parameters: Parameters) -> Fields:
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

    return submit(context, "restartNetwork", "user.network.RestartNetworkCmd", work, instance=("Network", network.id))


def restart_vpc(context: Context, parameters: Parameters) -> Fields:
    vpc = context.world.vpcs[parameters["id"]]
    context.world.note("VPC.RESTART", f"restarting VPC: {vpc.id}", state="Scheduled")

    async def work(_: Job) -> Fields:
        return await context.lifecycle.restart_vpc(
            vpc,
            cleanup=listing.truth(parameters, "cleanup"),
            livepatch=listing.truth(parameters, "livepatch"),
            redundant=listing.truth(parameters, "makeredundant"),
        )

    return submit(context, "restartVPC", "user.vpc.RestartVPCCmd", work, instance=("Vpc", vpc.id))


REBOOT_ROUTER = on_vm("rebootRouter", "admin.router.RebootRouterCmd", "ROUTER.REBOOT", _reboot_router, system=False)

_SCOPES = ("id", "clusterid", "podid", "zoneid", "account", "domainid")


def upgrade_router_template(context: Context, parameters: Parameters) -> Fields:
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
    jobs = [REBOOT_ROUTER.run(context, {"id": vm.id}) for vm in due]
    return {"count": len(jobs), "asyncjobs": jobs} if jobs else {}


def register_template(context: Context, parameters: Parameters) -> Fields:
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


def update_template(context: Context, parameters: Parameters) -> Fields:
    """Of what it can change only the type: what an administrator does to make a template the system VMs'."""
    world = context.world
    template = world.templates[parameters["id"]]
    template.kind = parameters.get("templatetype", template.kind).upper()
    return {"template": answers.template(template, next(iter(world.zones.values())))}


def update_configuration(context: Context, parameters: Parameters) -> Fields:
    name, value = parameters["name"], parameters.get("value", "")
    if name not in context.world.settings:
        raise invalid(f"Config parameter with name {name} doesn't exist")
    zone = context.world.zones.get(parameters.get("zoneid", ""))
    (zone.settings if zone else context.world.settings)[name] = value
    return {"configuration": {"name": name, "value": value}}
