"""What this layer tells the engine: plain immutable values, times with a zone, sizes in bytes, durations in seconds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from sysvm.api.endpoint import HostKeyPolicy, SSHAlgorithms, SystemVMType
from sysvm.api.observed import ContentState, PairSample, RedundancyRole, RuleKind
from sysvm.api.reasons import Reason


@dataclass(frozen=True, slots=True)
class HostPlace:
    """A hypervisor host: its name in the inventory, and where its sshd listens."""

    name: str
    address: str
    kind: str = "hypervisor host"
    """What it is, for sentences: management servers are logged in to in the same way."""

    def told(self, port: int) -> str:
        return f"{self.name} ({self.address} port {port})"


@dataclass(frozen=True, slots=True)
class HostLogin:
    """How to log in on the hypervisor hosts of one route. `private_key` is PEM or OpenSSH text and never shown."""

    user: str
    port: int
    private_key: bytes = field(repr=False)
    known_hosts: str = field(repr=False)
    """known_hosts text: a host that it does not list is sent nothing."""
    connections: int = 4
    """Open connections to VMs through one host at once."""
    field_name: str = "jump"
    """Of the field that holds it, for sentences."""


@dataclass(frozen=True, slots=True)
class Way:
    """How the VMs of some hypervisors are reached."""

    hypervisors: frozenset[str]
    """In lower case; empty: all."""
    jump: HostLogin | None
    """None: directly."""


class Locate(Protocol):
    """Says on which hypervisor host one VM runs; None: nobody knows.

    `again`: what was said before did not lead to the VM, so it may have moved: whoever knows first hand is to be asked.
    Raises `PatchingError` where that cannot be asked.
    """

    async def __call__(self, *, again: bool) -> HostPlace | None: ...


@dataclass(frozen=True, slots=True)
class Through:
    """The way to a VM that only its hypervisor host reaches. The host is asked for right before every use."""

    login: HostLogin
    locate: Locate = field(compare=False)
    hypervisor: str | None = None
    """It decides where the host keeps its payload."""


@dataclass(frozen=True, slots=True)
class HostFile:
    """A file of a hypervisor host: absolute path, size in bytes, hex digest."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class HostFiles:
    """The payload that a hypervisor host keeps for its VMs."""

    scripts: HostFile
    agent: HostFile | None
    checksums: Mapping[str, str]
    """Of the scripts by algorithm (md5, sha512): CloudStack compares one of them with a VM's signature."""


@dataclass(frozen=True, slots=True)
class HostPayload:
    """The same by content."""

    host: str
    files: HostFiles
    scripts_revision: str | None
    """As `Payload.scripts_revision`; None: the archive cannot be read."""


@dataclass(frozen=True, slots=True)
class SSHAccount:
    """How to log in on the VMs of one endpoint. `private_key` is PEM or OpenSSH text and never shown."""

    user: str
    port: int
    private_key: bytes = field(repr=False)
    host_key_policy: HostKeyPolicy
    known_hosts: str | None = None
    """known_hosts text for `Strict`."""
    algorithms: SSHAlgorithms = SSHAlgorithms.MODERN
    connections: int = 50
    """Open connections to the VMs of this endpoint at once."""
    pool: str = ""
    """Key of the endpoint whose connections count together."""
    ways: tuple[Way, ...] = ()
    """The first whose hypervisors match is taken; without any, VMs are reached directly."""

    def jump_for(self, hypervisor: str | None) -> HostLogin | None:
        """The login on the hypervisor hosts that such VMs are reached through; None: they are reached directly."""
        name = (hypervisor or "").casefold()
        return next((way.jump for way in self.ways if not way.hypervisors or name in way.hypervisors), None)


@dataclass(frozen=True, slots=True)
class Target:
    """One VM to talk to."""

    name: str
    type: SystemVMType
    address: str
    account: SSHAccount
    pinned_host_key: str | None = None
    """Public key in OpenSSH format that the VM must show; None: first contact."""
    accepted_fingerprint: str | None = None
    """`SHA256:...` that a person accepted in place of the pinned key."""
    through: Through | None = None
    """None: the address is reached directly."""


@dataclass(frozen=True, slots=True)
class SeenHostKey:
    type: str
    fingerprint: str
    public_key: str


@dataclass(frozen=True, slots=True)
class ServiceState:
    """systemd's view of one unit. `name` without `.service`."""

    name: str
    load: str
    active: str
    sub: str
    enabled: bool
    main_pid: int
    restarts: int


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why this payload must not be put on this VM while it runs. `message` is a sentence without the VM's name."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class ContentReport:
    """The VM's files against one payload."""

    revision: str
    state: ContentState
    changed: int = 0
    missing: int = 0
    extra: int = 0
    paths: tuple[str, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()


class JournalPhase(StrEnum):
    """Where an operation stands according to the VM. Until `SWITCHING` nothing of the VM has changed."""

    STAGING = "Staging"
    BUILT = "Built"
    SWITCHING = "Switching"
    SWITCHED = "Switched"
    SERVICES = "Services"
    VERIFYING = "Verifying"
    COMMITTING = "Committing"
    COMMITTED = "Committed"
    ROLLING_BACK = "RollingBack"
    ROLLED_BACK = "RolledBack"
    ABANDONED = "Abandoned"
    INCONSISTENT = "Inconsistent"

    @property
    def is_final(self) -> bool:
        return self in (
            JournalPhase.COMMITTED,
            JournalPhase.ROLLED_BACK,
            JournalPhase.ABANDONED,
            JournalPhase.INCONSISTENT,
        )


@dataclass(frozen=True, slots=True)
class StepReport:
    """One of the twelve steps: Connect Probe Diff Stage Build Packages Fence Switch Services Verify Commit Restore."""

    name: str
    done: bool
    failed: bool
    seconds: float
    bytes_sent: int | None = None
    message: str = ""
    bytes_total: int | None = None
    """While content is being sent: how much it is in all."""


@dataclass(frozen=True, slots=True)
class ServiceReport:
    """An action on a unit. Seconds where they were measured on the VM: without an answer, and of the slowest answer."""

    name: str
    action: str
    unavailable_seconds: float | None = None
    slowest_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class OperationReport:
    """The state of one operation, as the journal on the VM has it, or its end."""

    id: str
    revision: str
    phase: JournalPhase
    step: str
    """Step in work, or the one that failed."""
    steps: tuple[StepReport, ...]
    services: tuple[ServiceReport, ...]
    bytes_sent: int
    reason: Reason | None = None
    """Why it did not end as Committed."""
    message: str = ""
    """A sentence: what happened, with the output of what failed, and what state the VM is in."""
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class PlannedServiceAction:
    name: str
    action: str
    expected_loss: str


@dataclass(frozen=True, slots=True)
class PlannedDatabag:
    """A run of configure.py by which changed files would take effect now; without it they wait for the next command of
    the management server."""

    name: str
    possible: bool
    """Not on a router of a pair, where it may be a failover."""
    expected_loss: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What one look at a VM found. Nothing on the VM was changed for it."""

    at: datetime
    host_key: SeenHostKey
    type: SystemVMType | None
    """From the VM's own boot arguments; None if they are missing."""
    release: str | None
    """Version of the template in /etc/cloudstack-release (CloudStack 4.21 get_template_version.sh), such as 4.20.1."""
    debian_version: str | None
    signature: str | None
    """Text of the signature file, stripped; None if it is missing."""
    payload_checksums: Mapping[str, str]
    """Of /usr/share/cloud/cloud-scripts.tgz by algorithm (md5, sha512); empty if it is missing."""
    boot_id: str
    booted: bool
    """CloudStack's boot scripts have finished (boot_up_done)."""
    services: tuple[ServiceState, ...]
    redundancy: RedundancyRole | None
    """None: not part of a pair."""
    failing_health_checks: tuple[str, ...]
    """Health checks that fail now: a baseline, not a verdict. Empty where the type has none."""
    disk_available_bytes: int
    """Of the file system that needs most and has least."""
    memory_available_bytes: int
    other_actors: tuple[str, ...]
    """Signs of another patch: staged payloads, CloudStack's own patch script or its backup folder."""
    unfinished: OperationReport | None
    """An operation that has not ended."""
    last_finished: OperationReport | None
    highest_epoch: int
    content: ContentReport | None
    """Only if a payload was given to compare with."""
    agent_content: ContentReport | None
    """Only for types that run the agent and payloads that have one."""
    actions: tuple[PlannedServiceAction, ...]
    """What the changed files would ask for. Only if a payload was given."""
    databags: tuple[PlannedDatabag, ...] = ()
    """Only if a payload was given."""
    pair_samples: tuple[PairSample, ...] = ()
    """What the role is to be judged by, oldest first; empty where it is not part of a pair."""
    data_bags: int | None = None
    """How many data bags hold what the management server sent; None: its type has none, or was not told."""
    rules: Mapping[RuleKind, int] | None = None
    """How many rules of each kind its data bags hold; a kind that could not be counted is left out. None: not told."""
    host_payload: HostPayload | None = None
    """What the hypervisor host on the way keeps; None: no host is on the way, or it keeps none or did not say."""


@dataclass(frozen=True, slots=True)
class Order:
    """One live patch to carry out. `revision` and the rest come from the payload."""

    id: str
    epoch: int
    keep_backups: int
    settle_seconds: float
    ignored_checks: tuple[str, ...]
    step_timeout_seconds: float
    vm_timeout_seconds: float
    apply_databags: bool = False
    """Run configure.py for the data bags that changed files concern."""
    may_fail_over: bool = False
    """keepalived may be restarted on a router that has the gateway of its pair."""
    same_as_host: bool = False
    """Refuse if the hypervisor host on the way keeps another payload: its next start would undo the patch."""
