"""What a cloud says of its system VMs, hosts, zones and networks, as plain values taken at one moment.

The room `cloudstack` makes them from the management server's answers; decisions and reconcilers read them and never an
answer itself. An id is CloudStack's UUID, in lower case. What an answer does not have is None: a VM that was never
started has no host, an agent that never registered has no state.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import RedundancyRole


class CloudVMState(StrEnum):
    """States of a VM as `listRouters` and `listSystemVms` spell them (CloudStack 4.21 VirtualMachine.State)."""

    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    MIGRATING = "Migrating"
    DESTROYED = "Destroyed"
    EXPUNGING = "Expunging"
    ERROR = "Error"
    SHUTDOWN = "Shutdown"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudVM:
    """One system VM as the management server sees it."""

    id: str
    name: str
    """r-15-VM. A recreated VM has a new name and a new id."""
    type: SystemVMType
    state: CloudVMState
    zone_id: str
    zone: str
    pod: str | None = None
    host_id: str | None = None
    host: str | None = None
    """Name of the hypervisor host; None while it does not run."""
    hypervisor: str | None = None
    """KVM, VMware, XenServer, ...: as the server spells it."""
    arch: str | None = None
    account: str | None = None
    domain: str | None = None
    """Path of the CloudStack domain, / for ROOT."""
    project: str | None = None
    network_id: str | None = None
    """The guest network that it serves; None for SSVM, CPVM and a VPC router without tiers."""
    network: str | None = None
    vpc_id: str | None = None
    vpc: str | None = None
    control_address: str | None = None
    """linklocalip: where KVM and XenServer hosts reach it."""
    private_address: str | None = None
    """privateip, the address in the pod's management network (SSVM and CPVM; routers on VMware have it as control)."""
    public_address: str | None = None
    guest_address: str | None = None
    redundant: bool = False
    role: RedundancyRole | None = None
    """`redundantstate`, up to 30 s old."""
    template_id: str | None = None
    """The template that it would be started from next, not the one it runs."""
    template_version: str | None = None
    """`version` of a router: the release line its template was built with. None: unknown, or not told for this type."""
    scripts_version: str | None = None
    """`scriptsversion`: the checksum of the scripts as the server's database has it."""
    software_version: str | None = None
    """`softwareversion` of a router, or `version` of an SSVM or CPVM: that of the server that programmed it last."""
    requires_upgrade: bool | None = None
    agent_state: str | None = None
    """`agentstate` of an SSVM or CPVM: Up, Down, Disconnected, ..."""
    viewer_sessions: int | None = None
    """Open console sessions of a CPVM."""
    job_id: str | None = None
    """A job of the server that works on it now."""
    created: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudHost:
    """One hypervisor host."""

    id: str
    name: str
    address: str | None
    """Where its sshd listens."""
    zone_id: str
    cluster: str | None = None
    hypervisor: str | None = None
    arch: str | None = None
    state: str = "Up"
    """`state` of its agent: Up, Down, Disconnected, Alert, ..."""
    resource_state: str = "Enabled"
    """Enabled, Disabled, Maintenance, PrepareForMaintenance, ..."""
    version: str | None = None
    """Release of CloudStack's agent on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudServer:
    """One management server of the cloud."""

    id: str
    name: str
    state: str | None = None
    """Up, Down, ..."""
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudZone:
    """One zone, with the settings of it that decide."""

    id: str
    name: str
    enabled: bool = True
    network_type: str = "Advanced"
    min_template_version: str | None = None
    """`minreq.sysvmtemplate.version`; None: the role may not read it."""
    version_check: bool | None = None
    """`router.version.check`."""
    recreating_checks: tuple[str, ...] | None = None
    """`router.health.checks.failures.to.recreate.vr`: names of checks after which the server recreates a router."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudNetwork:
    """One guest network."""

    id: str
    name: str
    zone_id: str
    vpc_id: str | None = None
    account: str | None = None
    domain: str | None = None
    project: str | None = None
    state: str = "Implemented"
    restart_required: bool = False
    redundant: bool = False
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudVPC:
    """One VPC."""

    id: str
    name: str
    zone_id: str
    account: str | None = None
    domain: str | None = None
    project: str | None = None
    redundant: bool = False
    restart_required: bool = False
    tiers: tuple[str, ...] = ()
    """Ids of its networks."""
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything of one sweep. Only complete sweeps become a snapshot: one list that failed makes none."""

    taken_at: datetime
    server_version: str
    """`cloudstackversion` of listCapabilities, such as 4.21.0.0."""
    zones: Mapping[str, CloudZone]
    hosts: Mapping[str, CloudHost]
    vms: Mapping[str, CloudVM]
    networks: Mapping[str, CloudNetwork]
    vpcs: Mapping[str, CloudVPC]
    servers: Mapping[str, CloudServer] = field(default_factory=dict)
    """Management servers; empty: the role may not list them."""
    unread: frozenset[SystemVMType] = frozenset()
    """Types whose list the role may not read: of their VMs it tells nothing, not that there are none."""


def several_releases(servers: Iterable[CloudServer]) -> str | None:
    """Why the management servers are not of one mind, as a sentence; None: they run one release, as far as is told.

    Which of them carries a job out, with which payload and checks, is chance then: an upgrade is under way.
    """
    running = sorted((each for each in servers if each.version and each.state in (None, "Up")), key=lambda it: it.name)
    if len({each.version for each in running}) <= 1:
        return None
    named = ", ".join(f"{each.name} {each.version}" for each in running[:5])
    return f"the management servers run several releases: {named}"
