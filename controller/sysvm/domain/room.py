"""Whether a zone has room for the VM that is to take the place of another.

A restart with cleanup starts the new router before the old one goes, and what a destroyed SSVM or CPVM frees may be
taken by somebody else before the next one is deployed. A start without room is a failed job and, of a router, a
left-over (CloudStack 4.21, recorded); so one VM more must fit beside all that run. What a server does not tell is no
obstacle.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sysvm.api.endpoint import SystemVMType
from sysvm.domain.cloud import CloudHost, CloudVM
from sysvm.domain.facts import ZONE_TYPES

MIB = 1024 * 1024
_MEMORY_BYTES = {SystemVMType.CONSOLEPROXY: 1024 * MIB}
"""System offerings as CloudStack installs them: 1024 MiB for a CPVM, 512 MiB for the others (256 MiB before 4.20, which
the templates of today do not boot with), 500 MHz each (4.21 ConsoleProxyManager, SecondaryStorageVmManager,
VirtualNetworkApplianceManager). An offering of somebody's own may be larger: then the job says so."""
_SMALLEST_BYTES = 512 * MIB
_CPU_MHZ = 500

PUBLIC_IP, PRIVATE_IP, DIRECT_PUBLIC_IP = 4, 5, 8
"""Types of capacity (CloudStack 4.21 Capacity.java)."""
_ADDRESSES = {PUBLIC_IP: "public", DIRECT_PUBLIC_IP: "public", PRIVATE_IP: "private (pod)"}


@dataclass(frozen=True, slots=True)
class HostRoom:
    """What is not allocated on a host, overprovisioning counted; None: not told."""

    memory_bytes: int | None = None
    cpu_mhz: int | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """What a zone has left."""

    hosts: Mapping[str, HostRoom] = field(default_factory=dict)
    """By id."""
    addresses: Mapping[int, int] = field(default_factory=dict)
    """Type of capacity -> free addresses; a type that is not told is left out."""


def no_room(room: Room, vm: CloudVM, hosts: Iterable[CloudHost]) -> str | None:
    """Why another VM like this one would not fit, as a sentence; None: it fits on one of these hosts, as far as is
    known. `hosts`: those that could start it."""
    memory = _MEMORY_BYTES.get(vm.type, _SMALLEST_BYTES)
    full = []
    for host in sorted(hosts, key=lambda host: host.name):
        left = room.hosts.get(host.id, HostRoom())
        if (left.memory_bytes is None or left.memory_bytes >= memory) and (
            left.cpu_mhz is None or left.cpu_mhz >= _CPU_MHZ
        ):
            break
        full.append(f"{host.name} has {_told(left)} free")
    else:
        if full:
            more = f" and {len(full) - 5} more" if len(full) > 5 else ""
            needs = f"it needs {memory // MIB} MiB and {_CPU_MHZ} MHz"
            return f"no room in zone {vm.zone} for another VM like {vm.name}: {needs}; {', '.join(full[:5])}{more}"
    if vm.type not in ZONE_TYPES:
        return None  # a router takes over the addresses of its network; its link-local one is not counted by the server
    for kind, what in _ADDRESSES.items():
        if room.addresses.get(kind, 1) <= 0 and not (kind == PUBLIC_IP and room.addresses.get(DIRECT_PUBLIC_IP, 0) > 0):
            return f"no room in zone {vm.zone} for another VM like {vm.name}: no {what} address is free"
    return None


def _told(left: HostRoom) -> str:
    memory = f"{max(0, left.memory_bytes) // MIB} MiB" if left.memory_bytes is not None else ""
    cpu = f"{max(0, left.cpu_mhz)} MHz" if left.cpu_mhz is not None else ""
    return " and ".join(each for each in (memory, cpu) if each)
