"""A cloud whose VMs are a fleet's: what the stand-in management server starts and removes is what answers SSH."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from tests.integration.engine import objects
from tests.integration.engine.simulated_vms import Fleet

from lab.cloud import (
    VM,
    InMemoryMachines,
    ManagementServer,
    Network,
    Patched,
    Told,
    Vpc,
    World,
    Zone,
    management_server,
)
from lab.spec import RedundancyRole as LabRole
from sysvm.api.observed import RedundancyRole
from sysvm.api.reasons import Reason
from sysvm.patching.payload import read_payload

CHANGES = {"restartNetwork", "restartVPC", "destroySystemVm", "rebootRouter", "rebootSystemVm", "patchSystemVm"}
WORDS = ("first", "second")
REVISIONS = {hashlib.md5(objects.scripts(word)).hexdigest(): word for word in WORDS}  # as CloudStack


def payload_of(word: str) -> str:
    """The checksum of a release's scripts, as hosts and the server have it."""
    return hashlib.md5(objects.scripts(word)).hexdigest()


class FleetMachines(InMemoryMachines):
    """Every start, stop and removal shows in the fleet, which is all that SSH sees."""

    def __init__(self, world: World, fleet: Fleet, *, pace: float) -> None:
        super().__init__(world, pace=pace)
        self._fleet = fleet

    async def start(self, vm: VM, *, new_disk: bool) -> Told:
        told = await super().start(vm, new_disk=new_disk)
        self.show(vm, new_disk=new_disk)
        return told

    def show(self, vm: VM, *, new_disk: bool) -> None:
        """It answers now, as it is inside."""
        inside = vm.inside
        word = REVISIONS.get(inside.signature)
        if vm.name not in self._fleet.names():
            self._fleet.add(vm.name, _role(vm), seconds=0.2)
        self._fleet.set(
            vm.name,
            revision=read_payload(objects.scripts(word), None).revision if word else "old",
            signature=inside.signature,
            checksum=inside.payload,
            release=inside.template_version,
            boot_id=f"{vm.name}-{inside.boots}-{time.monotonic_ns()}",
            unreachable=None,
            role=_role(vm),
            host=_host(vm),
            rules=inside.rules,
            **({"host_key": f"AAAA{vm.id[:8]}{time.monotonic_ns()}"} if new_disk else {}),
        )

    async def patch(self, vm: VM, *, forced: bool) -> Patched:
        told = await super().patch(vm, forced=forced)
        word = REVISIONS.get(vm.inside.signature)
        if vm.name in self._fleet.names():
            self._fleet.set(
                vm.name,
                revision=read_payload(objects.scripts(word), None).revision if word else "old",
                signature=vm.inside.signature,
                checksum=vm.inside.payload,
            )
        return told

    async def program(self, vm: VM) -> None:
        await super().program(vm)
        if vm.name in self._fleet.names():
            self._fleet.set(vm.name, rules=vm.inside.rules)

    async def stop(self, vm: VM) -> None:
        await super().stop(vm)
        if vm.name in self._fleet.names():
            self._fleet.set(vm.name, unreachable=Reason.SSH_UNREACHABLE)

    async def remove(self, vm: VM) -> None:
        await super().remove(vm)
        self._fleet.remove(vm.name)

    async def reboot(self, vm: VM) -> None:
        await super().reboot(vm)
        self.show(vm, new_disk=False)

    async def roles(self, vms: Iterable[VM]) -> Mapping[str, LabRole]:
        vms = list(vms)
        found = await super().roles(vms)
        for vm in vms:
            if vm.redundant and vm.name in self._fleet.names():
                self._fleet.set(vm.name, role=_role(vm))
        return found


def _host(vm: VM) -> tuple[str, str, str | None] | None:
    """What lies on its host: name, checksum, digest of its content."""
    if vm.host is None:
        return None
    word = REVISIONS.get(vm.host.payload)
    revision = read_payload(objects.scripts(word), None).scripts_revision if word else None
    return vm.host.name, vm.host.payload, revision


def _role(vm: VM) -> RedundancyRole | None:
    return RedundancyRole(vm.role) if vm.redundant else None


@dataclass
class CloudFleet:
    """The cloud, its server and its VMs."""

    world: World
    server: ManagementServer
    fleet: Fleet

    @property
    def calls(self) -> list[str]:
        """Calls that change something, in their order."""
        return [call.command for call in self.world.calls if call.command in CHANGES]

    def routers(self, network: str) -> list[str]:
        owners: list[Network | Vpc] = [*self.world.networks.values(), *self.world.vpcs.values()]
        return [vm.name for owner in owners if owner.name == network for vm in self.world.routers_of(owner)]

    def of_type(self, type_: str) -> list[str]:
        return sorted(vm.name for vm in self.world.vms.values() if vm.type == type_)


@dataclass(frozen=True)
class Contents:
    """What a cloud has. `networks` and `vpcs`: names, and whether they have a pair of routers."""

    networks: Mapping[str, bool] = field(default_factory=lambda: {"single": False, "pair": True})
    vpcs: Mapping[str, bool] = field(default_factory=dict)
    cpvm: bool = True

    def fill(self, world: World, zone: Zone) -> None:
        for name, redundant in self.networks.items():
            world.add_routers(world.add_network(zone, name, redundant=redundant))
        for name, redundant in self.vpcs.items():
            world.add_routers(world.add_vpc(zone, name, redundant=redundant, tiers=1))
        world.add_ssvm(zone)
        if self.cpvm:
            world.add_cpvm(zone)


@contextlib.asynccontextmanager
async def cloud_fleet(
    fleet: Fleet, *, host_payload: str = "first", contents: Contents | None = None, pace: float = 0.05
) -> AsyncIterator[CloudFleet]:
    """A zone made by 4.20.1 and then upgraded: what starts anew is 4.20.2 with the payload that its host has."""
    world = World(version="4.20.2.0", template_version="4.20.1", payload=payload_of("first"))
    zone = world.add_zone("ams-1")
    for name in ("kvm-1", "kvm-2"):
        world.add_host(zone, name).payload = payload_of(host_payload)
    (contents or Contents()).fill(world, zone)
    for template in world.templates.values():
        template.created -= timedelta(days=90)
    world.upgrade("4.20.2.0", template_version="4.20.2", payload=payload_of("first"))
    world.settings["minreq.sysvmtemplate.version"] = "4.20.1"
    machines = FleetMachines(world, fleet, pace=pace)
    for vm in world.vms.values():
        world.elect(vm)
    for vm in world.vms.values():
        machines.show(vm, new_disk=True)
    async with management_server(world, machines=machines, pace=pace) as server:
        yield CloudFleet(world, server, fleet)


OLD = "0123456789abcdef" * 2
"""The signature of VMs that nobody patched."""


def close_gates(cloud: CloudFleet) -> None:
    """The server and its hosts were upgraded: the routers run old scripts on a template below the minimum, and the
    server's books say so."""
    world = cloud.world
    world.settings["minreq.sysvmtemplate.version"] = "4.20.2"
    for host in world.hosts.values():
        host.version = world.version
    for vm in world.vms.values():
        vm.inside.signature = vm.inside.payload = OLD
        cloud.fleet.set(vm.name, revision="old", signature=OLD, checksum=OLD)
        if vm.is_router:
            vm.scripts_version, vm.software_version = OLD, "4.20.1.0"


def cloud_endpoint(namespace: str, name: str, cloud: CloudFleet) -> objects.Manifest:
    return objects.endpoint(
        namespace, name, [],
        inventory="CloudStack",
        api={
            "url": cloud.server.url,
            "credentialsSecretRef": {"name": "cs-api"},
            "limits": {"requestsPerSecond": 100, "burst": 100},
        },
    )  # fmt: skip


def cloud_secret(namespace: str, cloud: CloudFleet) -> objects.Manifest:
    user = cloud.world.users[0]
    return objects.secret(namespace, "cs-api", apiKey=user.api_key, secretKey=user.secret)


def release(namespace: str, name: str, word: str = "first") -> objects.Manifest:
    found = objects.template(namespace, name, objects.scripts(word), word)
    found["spec"]["images"] = {"items": [{"hypervisor": "KVM", "name": "systemvm-kvm-4.20.2-x86_64"}]}
    return found
