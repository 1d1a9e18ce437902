"""What the changing commands do, step by step, with the mistakes that were recorded.

Claims of success come from CloudStack's own order of things, not from what happened: a restart with livepatch drops
what the patch says, a destroyed VM is told in the state it had, a recreation that failed leaves its router behind.
"""

from __future__ import annotations

import asyncio

from lab.cloud import answers
from lab.cloud.answers import Fields
from lab.cloud.background import Background
from lab.cloud.errors import ApiError, internal, invalid
from lab.cloud.faults import Patch
from lab.cloud.machines import PATCHED, MachineError, Machines, Patched
from lab.cloud.records import AGENT_TYPES, VM, Network, VMState, Vpc
from lab.cloud.world import World
from lab.spec import RedundancyRole, SystemVMType

_JAVA_TYPES = {SystemVMType.SECSTORAGE: "SecondaryStorageVm", SystemVMType.CONSOLEPROXY: "ConsoleProxy"}
_EXPENDABLE = frozenset({VMState.STOPPED, VMState.ERROR, VMState.UNKNOWN})


class Lifecycle:
    """The work behind the jobs; what goes on after a job runs in the background. `pace` is a short while in seconds."""

    def __init__(self, world: World, machines: Machines, background: Background, *, pace: float) -> None:
        self._world = world
        self._machines = machines
        self._background = background
        self._pace = pace
        self._restarting: set[str] = set()

    # -- one VM ----------------------------------------------------------------------------------------------------

    async def stop(self, vm: VM) -> None:
        if vm.state is VMState.STOPPED:
            return
        vm.state = VMState.STOPPING
        await self._machines.stop(vm)
        vm.state = VMState.STOPPED
        vm.role = RedundancyRole.UNKNOWN
        await self._elect_around(vm)

    async def start(self, vm: VM, *, new_disk: bool = False) -> None:
        """Starts a stopped VM. A start that fails leaves it Stopped and is an error of the job."""
        if vm.state is VMState.RUNNING:
            return
        vm.state = VMState.STARTING
        new_disk = new_disk or vm.disk is not vm.template
        try:
            if self._world.faults.start_fails > 0:
                self._world.faults.start_fails -= 1
                await asyncio.sleep(self._pace)
                raise MachineError("a host said no")
            able = self._world.hosts_for(vm.zone)
            vm.host = vm.host if vm.host in able else able[0]
            told = await self._machines.start(vm, new_disk=new_disk)
        except MachineError as problem:
            starting = describe(vm)
            vm.state = VMState.STOPPED
            raise internal(f"Unable to create a deployment for {starting}") from problem
        vm.state, vm.disk = VMState.RUNNING, vm.template
        vm.control_address = vm.control_address or f"169.254.{vm.number // 250 + 1}.{vm.number % 250 + 2}"
        self._world.told(vm, told.template_version, told.signature)
        await self._elect_around(vm)

    async def expunge(self, vm: VM) -> None:
        vm.state = VMState.EXPUNGING
        await self._machines.remove(vm)
        self._world.vms.pop(vm.id, None)
        self._world.removed[vm.id] = vm.number
        await self._elect_around(vm)

    async def _elect_around(self, vm: VM) -> None:
        if vm.redundant:
            await self.refresh_roles(self._world.routers_of(vm.vpc or vm.network))

    async def refresh_roles(self, vms: list[VM]) -> None:
        running = [vm for vm in vms if vm.redundant and vm.state is VMState.RUNNING]
        for vm_id, role in (await self._machines.roles(running)).items():
            if vm_id in self._world.vms:
                self._world.vms[vm_id].role = role

    async def stop_start(self, vm: VM) -> None:
        await self.stop(vm)
        await self.start(vm)

    async def reboot_system_vm(self, vm: VM, *, forced: bool) -> None:
        """Without force the guest reboots and no state is seen in between; a stopped one is started."""
        if forced or vm.state is not VMState.RUNNING:
            await self.stop_start(vm)
        else:
            await self._machines.reboot(vm)

    async def patch_system_vm(self, vm: VM | None, *, forced: bool) -> Fields:
        if vm is None:
            raise invalid("Please provide a valid ID of a system VM to be patched")
        if vm.type not in AGENT_TYPES:
            raise invalid(
                f"Unable to find SystemVm with id {vm.number}. patchSystemVm API can be used to patch CPVM / SSVM only."
            )
        if vm.state is not VMState.RUNNING:
            raise internal(
                f"Unable to patch SystemVM: {describe(vm)} as it is not in Running state. "
                "Please destroy and recreate the SystemVM."
            )
        answer = await self._patch(vm, forced=forced)
        if not answer.succeeded:
            raise internal(f"Failed to patch systemVM {vm.name} due to {answer.details}")
        return {"success": True, "details": answer.details}

    async def _patch(self, vm: VM, *, forced: bool, first: bool = True) -> Patched:
        mode = self._world.faults.patch
        if mode is Patch.FAILS:
            await asyncio.sleep(self._pace)
            return Patched(False, "Failed to copy scripts to system VM", None)
        if mode is Patch.NOTHING or (mode is Patch.FIRST_ONLY and not first):
            await asyncio.sleep(self._pace)
            return Patched(True, PATCHED, None)
        answer = await self._machines.patch(vm, forced=forced)
        # An agent was restarted with the patch and tells its version when it connects again.
        if answer.succeeded and answer.told is not None and (vm.is_router or vm.agent_state is not None):
            self._world.told(vm, answer.told.template_version, answer.told.signature)
        return answer

    # -- SSVM and CPVM ---------------------------------------------------------------------------------------------

    async def destroy_system_vm(self, vm: VM) -> Fields:
        """The job's result shows the VM as it was. Then a scan of the server finds one missing and deploys it."""
        told: Fields = {"systemvm": answers.system_vm(vm)}
        if vm.state is VMState.RUNNING:
            await self._machines.stop(vm)
        vm.agent_state = None
        await self.expunge(vm)
        self._background.start(self._deploy_system_vm(vm), name=f"deploy in place of {vm.name}")
        return told

    async def _deploy_system_vm(self, gone: VM) -> None:
        while True:
            await asyncio.sleep(3 * self._pace)
            new = self._world.new_vm(gone.type, gone.zone)
            new.agent_state = None
            try:
                await self.start(new, new_disk=True)
            except ApiError:
                await asyncio.sleep(self._pace)
                await self.expunge(new)
                continue
            await asyncio.sleep(self._pace)
            new.agent_state, new.software_version = "Up", new.inside.agent_version or self._world.version
            return

    # -- networks and VPCs -----------------------------------------------------------------------------------------

    async def restart_network(self, network: Network, *, cleanup: bool, livepatch: bool, redundant: bool) -> Fields:
        if cleanup and network.vpc is not None:
            raise invalid("Cannot restart a VPC tier with cleanup, please restart the whole VPC.")
        async with self._alone(network.id):
            if redundant:
                network.redundant, cleanup = True, True
            if cleanup:
                await self._roll(network)
            else:
                await self._restart_plain(network, livepatch=livepatch)
        return {"success": True}

    async def restart_vpc(self, vpc: Vpc, *, cleanup: bool, livepatch: bool, redundant: bool) -> Fields:
        async with self._alone(vpc.id):
            if redundant:
                vpc.redundant, cleanup = True, True
                for tier in self._world.tiers(vpc):
                    tier.redundant = True
            if cleanup:
                await self._roll(vpc)
            else:
                # Each tier is restarted, and each restart of a tier patches all routers of the VPC.
                for tier in list(self._world.tiers(vpc)):
                    if livepatch or tier.restart_required:
                        await self._restart_plain(tier, livepatch=livepatch)
                vpc.restart_required = False
        return {"success": True}

    def _alone(self, owner: str) -> _Alone:
        return _Alone(self._restarting, owner)

    async def _restart_plain(self, network: Network, *, livepatch: bool) -> None:
        routers = self._world.routers_of(network.vpc or network)
        if livepatch:
            # Internal load balancers only outside VPCs (CloudStack 4.21 NetworkOrchestrator.restartNetwork).
            beside = [] if network.vpc else self._internal_balancers(network)
            for number, vm in enumerate([*routers, *beside]):
                if vm.state is VMState.RUNNING:
                    # What the patch says is dropped.
                    await self._patch(vm, forced=True, first=number == 0)
        for vm in routers:
            if vm.state is VMState.STOPPED:
                await self.start(vm)
            await self._machines.program(vm)
        network.restart_required = False

    def _internal_balancers(self, network: Network) -> list[VM]:
        return [vm for vm in self._world.vms.values() if vm.type is SystemVMType.ILBVM and vm.network is network]

    async def _roll(self, owner: Network | Vpc) -> None:
        """The rolling restart: throw away what is expendable, add one, take the old ones away, complete the pair."""
        if self._world.faults.restart_does_nothing:
            await asyncio.sleep(self._pace)
            return
        old = self._world.routers_of(owner)
        for vm in self._expendable(old):
            await self.stop(vm)
            await self.expunge(vm)
            old.remove(vm)
        await self._new_router(owner)
        if owner.redundant:
            await asyncio.sleep(self._pace)
        if not self._world.faults.keep_old_router:
            for vm in old:
                await self.stop(vm)
                await self.expunge(vm)
        if owner.redundant or self._world.faults.second_router:
            await self._new_router(owner)
        for vm in self._world.routers_of(owner):
            if vm.state is VMState.RUNNING:
                await self._machines.program(vm)
        owner.restart_required = False

    @staticmethod
    def _expendable(routers: list[VM]) -> list[VM]:
        gone = [vm for vm in routers if vm.state in _EXPENDABLE]
        rest = [vm for vm in routers if vm not in gone]
        if len(rest) >= 2:
            backups = [vm for vm in rest if vm.role is RedundancyRole.BACKUP]
            gone.append(backups[0] if backups else rest[-1])
        return gone

    async def _new_router(self, owner: Network | Vpc) -> VM:
        as_network = owner if isinstance(owner, Network) else None
        as_vpc = owner if isinstance(owner, Vpc) else None
        type_ = SystemVMType.VPCROUTER if as_vpc else SystemVMType.ROUTER
        if as_network is not None and as_network.kind == "Shared":
            type_ = SystemVMType.DHCPSRVR
        peers = self._world.routers_of(owner)
        taken = {vm.host for vm in peers if vm.state is VMState.RUNNING}
        hosts = self._world.hosts_for(owner.zone)
        host = next((each for each in hosts if each not in taken), hosts[0])
        vm = self._world.new_vm(type_, owner.zone, host=host, network=as_network, vpc=as_vpc)
        await self.start(vm, new_disk=True)
        return vm


class _Alone:
    """A network or VPC is restarted once at a time; the second job fails in the words that were recorded."""

    def __init__(self, busy: set[str], owner: str) -> None:
        self._busy = busy
        self._owner = owner

    async def __aenter__(self) -> None:
        if self._owner in self._busy:
            raise internal("Command failed due to Internal Server Error")
        self._busy.add(self._owner)

    async def __aexit__(self, *_: object) -> None:
        self._busy.discard(self._owner)


def describe(vm: VM) -> str:
    """A VM in an error text."""
    java = _JAVA_TYPES.get(vm.type, "DomainRouter")
    return (
        f'VM instance {{"id":{vm.number},"instanceName":"{vm.name}","state":"{vm.state}","type":"{java}",'
        f'"uuid":"{vm.id}"}}'
    )
