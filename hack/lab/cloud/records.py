"""What the stand-in's database has rows of: zones, hosts, templates, networks, VPCs, system VMs.

Plain and mutable, because a test says "this host is in maintenance" more clearly than any call of an administrator
would. What a VM *really* runs is kept apart from what the server believes (`VM.inside`): a management server is often
wrong about it, and finding that out is what the product is for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from lab.spec import RedundancyRole, SystemVMType

AGENT_TYPES = frozenset({SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY})


class VMState(StrEnum):
    """CloudStack 4.21 VirtualMachine.State, as the API spells it."""

    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    MIGRATING = "Migrating"
    EXPUNGING = "Expunging"
    ERROR = "Error"
    DESTROYED = "Destroyed"
    UNKNOWN = "Unknown"


def checksum(words: str, *, algorithm: str = "md5") -> str:
    """A signature to play with: the checksum of some words. MD5 is what servers before 4.22 use, then SHA-512."""
    return hashlib.new(algorithm, words.encode(), usedforsecurity=False).hexdigest()


@dataclass(eq=False, kw_only=True)
class Zone:
    """One zone. `settings` override the global ones."""

    id: str
    name: str
    enabled: bool = True
    network_type: str = "Advanced"
    settings: dict[str, str] = field(default_factory=dict)
    free_addresses: dict[str, int] = field(default_factory=dict)
    """VIRTUAL_NETWORK_PUBLIC_IP, PRIVATE_IP: how many are free of 100; 50 where nothing is said."""


@dataclass(eq=False, kw_only=True)
class Host:
    """One hypervisor host. `payload` is the checksum of the cloud-scripts.tgz in its vms/ folder."""

    id: str
    name: str
    zone: Zone
    address: str
    payload: str
    hypervisor: str = "KVM"
    arch: str = "x86_64"
    cluster: str = "C0"
    cluster_id: str = ""
    pod: str = "POD0"
    pod_id: str = ""
    state: str = "Up"
    resource_state: str = "Enabled"
    version: str = "4.21.0.0"
    memory_allocated_bytes: int = 0
    """Of 8 GiB."""
    cpu_allocated_mhz: int = 0
    """Of 32 GHz."""


@dataclass(eq=False, kw_only=True)
class Template:
    """One template. `number` is the database's: of two that fit, SSVMs and CPVMs take the higher one."""

    id: str
    number: int
    name: str
    version: str
    """Release line of the disks made from it, as in /etc/cloudstack-release."""
    signature: str
    """Of the scripts that were built into it: never the same as that of any package."""
    hypervisor: str = "KVM"
    arch: str = "x86_64"
    kind: str = "SYSTEM"
    checksum: str = ""
    url: str = ""
    ready_in: set[str] = field(default_factory=set)
    """Ids of the zones in which it has been downloaded."""
    created: datetime = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(eq=False, kw_only=True)
class Vpc:
    id: str
    name: str
    zone: Zone
    redundant: bool = False
    account: str = "admin"
    project: str | None = None
    restart_required: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    created: datetime = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(eq=False, kw_only=True)
class Network:
    """One guest network; with `vpc` a tier of it."""

    id: str
    name: str
    zone: Zone
    number: int
    kind: str = "Isolated"
    """Isolated, or Shared: its router is then a dhcpsrvr."""
    vpc: Vpc | None = None
    redundant: bool = False
    account: str = "admin"
    project: str | None = None
    state: str = "Implemented"
    restart_required: bool = False
    rules: dict[str, int] = field(default_factory=dict)
    """Tenants' rules by kind: Firewall, Egress, PortForwarding, StaticNat, LoadBalancer, NetworkACL."""
    tags: dict[str, str] = field(default_factory=dict)
    created: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    @property
    def gateway(self) -> str:
        return f"10.1.{self.number}.1"


@dataclass
class Inside:
    """What is on a VM's disk, whatever the server believes."""

    template_version: str
    signature: str
    """Of the scripts that it runs: /var/cache/cloud/cloud-scripts-signature."""
    payload: str
    """Of /usr/share/cloud/cloud-scripts.tgz, which a boot installs when it differs from the signature."""
    agent_version: str = ""
    """Release of the agent of an SSVM or CPVM, which it tells when it connects; empty: the server's."""
    patches: int = 0
    """How often CloudStack's live patch ran in it."""
    boots: int = 0
    programmed: int = 0
    """How often its rules were sent again."""
    rules: dict[str, int] = field(default_factory=dict)
    """How many rules of each kind it holds."""


@dataclass(eq=False, kw_only=True)
class VM:
    """One system VM as the database has it; `inside` is the truth."""

    id: str
    number: int
    name: str
    type: SystemVMType
    zone: Zone
    hypervisor: str
    arch: str
    template: Template
    """The one it will be started from next, not the one it runs."""
    inside: Inside
    disk: Template | None = None
    """What its root volume was made from; another than `template`: its next start by the server makes a new one."""
    host: Host | None = None
    pod: str = "POD0"
    pod_id: str = ""
    state: VMState = VMState.RUNNING
    network: Network | None = None
    vpc: Vpc | None = None
    redundant: bool = False
    role: RedundancyRole = RedundancyRole.UNKNOWN
    priority: int = 100
    account: str = "admin"
    project: str | None = None
    control_address: str | None = None
    private_address: str | None = None
    public_address: str | None = None
    guest_address: str | None = None
    template_version: str | None = None
    """What the server was told at the last start or patch; None: it never started."""
    scripts_version: str | None = None
    software_version: str | None = None
    """Of a router: the server's version then. Of an agent: the release of its agent."""
    agent_state: str | None = None
    viewer_sessions: int = 0
    health: list[dict[str, object]] = field(default_factory=list)
    """`healthcheckresults` as they are told: checkname, checktype, success, details."""
    created: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    job_id: str | None = None

    @property
    def is_router(self) -> bool:
        return self.type not in AGENT_TYPES

    @property
    def role_name(self) -> str:
        return {SystemVMType.ILBVM: "INTERNAL_LB_VM", SystemVMType.ELBVM: "LB"}.get(self.type, "VIRTUAL_ROUTER")


@dataclass(frozen=True)
class Call:
    """One request that was let in, for tests that count them."""

    command: str
    parameters: dict[str, str]
    user: str


@dataclass(frozen=True, kw_only=True)
class CloudEvent:
    type: str
    description: str
    state: str
    created: datetime
    resource_id: str | None = None
    resource_name: str | None = None
    level: str = "INFO"
