"""What the stand-in does to real things, as a protocol, and the way it does nothing at all.

The server decides *when* a VM is started, patched or thrown away and what its database says then; how, is behind
`Machines`. `InMemoryMachines` moves checksums in `VM.inside`, in a few milliseconds and without root; the lab's real
system VMs are behind `lab.cloud.real`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from lab.cloud.records import VM
from lab.cloud.world import World
from lab.spec import RedundancyRole


class MachineError(Exception):
    """The host could not do it. The message is what the host says."""


@dataclass(frozen=True)
class Told:
    """What a VM says of itself after a start: the version in its release line, and its signature."""

    template_version: str
    signature: str


@dataclass(frozen=True)
class Patched:
    """A host's answer to a patch command. `told` is None where nothing could be read."""

    succeeded: bool
    details: str
    told: Told | None


class Machines(Protocol):
    """The effects. Every call may take long and may raise MachineError."""

    async def start(self, vm: VM, *, new_disk: bool) -> Told:
        """Boots a VM on `vm.host`, with its disk or a new one of `vm.template`, and sends it the host's payload."""
        ...

    async def stop(self, vm: VM) -> None: ...

    async def remove(self, vm: VM) -> None:
        """Takes a stopped VM away with its disk."""
        ...

    async def reboot(self, vm: VM) -> None:
        """The guest reboots; no host is asked for a payload."""
        ...

    async def patch(self, vm: VM, *, forced: bool) -> Patched:
        """CloudStack's own live patch, with the payload of the VM's host."""
        ...

    async def program(self, vm: VM) -> None:
        """Sends a router all its rules again."""
        ...

    async def roles(self, vms: Iterable[VM]) -> Mapping[str, RedundancyRole]:
        """Redundancy roles by id, of those that know theirs."""
        ...


NOT_PATCHING = "No change in the scripts checksum, not patching systemVM {name}"
PATCHED = "Successfully patched system VM"


class InMemoryMachines:
    """VMs that are records. Each step takes `pace` seconds."""

    def __init__(self, world: World, *, pace: float = 0.01) -> None:
        self._world = world
        self.pace = pace

    async def start(self, vm: VM, *, new_disk: bool) -> Told:
        await asyncio.sleep(self.pace)
        if vm.host is None:
            raise MachineError(f"no host for {vm.name}")
        inside, payload = vm.inside, vm.host.payload
        if new_disk:
            inside.template_version = vm.template.version
            inside.signature = inside.payload = vm.template.signature
        # An agent VM that has an agent tree skips the patch while signature and stored payload agree, and only then
        # takes the new payload into store: it is installed by the start after this one (CloudStack 4.21
        # cloud-early-config). A router has no such tree, so each start patches it.
        if vm.is_router or new_disk or inside.signature != inside.payload:
            inside.signature, inside.agent_version = payload, vm.host.version
        inside.payload = payload
        inside.boots += 1
        inside.rules = self._world.rules_for(vm)
        return Told(inside.template_version, inside.signature)

    async def stop(self, vm: VM) -> None:
        await asyncio.sleep(self.pace)

    async def remove(self, vm: VM) -> None:
        await asyncio.sleep(self.pace)

    async def reboot(self, vm: VM) -> None:
        await asyncio.sleep(self.pace)
        vm.inside.boots += 1

    async def patch(self, vm: VM, *, forced: bool) -> Patched:
        await asyncio.sleep(self.pace)
        if vm.host is None:
            return Patched(False, "Unable to connect", None)
        told = Told(vm.inside.template_version, vm.inside.signature)
        if not forced and vm.inside.signature == vm.host.payload:
            return Patched(True, NOT_PATCHING.format(name=vm.name), told)
        vm.inside.signature = vm.inside.payload = vm.host.payload
        vm.inside.agent_version = vm.host.version
        vm.inside.patches += 1
        return Patched(True, PATCHED, Told(vm.inside.template_version, vm.inside.signature))

    async def program(self, vm: VM) -> None:
        vm.inside.programmed += 1
        vm.inside.rules = self._world.rules_for(vm)

    async def roles(self, vms: Iterable[VM]) -> Mapping[str, RedundancyRole]:
        vms = list(vms)
        for vm in vms:
            self._world.elect(vm)
        return {vm.id: vm.role for vm in vms}
