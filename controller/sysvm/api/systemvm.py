"""SystemVM: one VM: identity, what was observed, what is planned, what is happening, a short history.

Every part of the status has one writer, the SystemVM reconciler; `spec.operation` is written by admission only.
"""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import ApiModel, NameRef, ObjectMeta, ObservedStatus, ShortText, Time, matching, rule
from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method, Route
from sysvm.api.template import Signature

_FINGERPRINT = "^SHA256:[A-Za-z0-9+/]{43}$"


class Hold(ApiModel):
    """A person's wish to leave this VM alone."""

    reason: Annotated[str, Field(min_length=1, max_length=253)]
    """Shown to people."""
    until: Time | None = None
    """The hold ends by itself then; without it a person must remove it."""


class OperationOrder(ApiModel):
    """One attempt at one method on this VM, handed out by admission.

    Open while status.operation has another id or no result.
    """

    id: Annotated[
        str,
        Field(min_length=1, max_length=63, pattern="^[a-z0-9-]+$"),
        matching("^[a-z0-9-]+$", "must be lower case letters, digits and '-'"),
    ]
    """Unique for ever; also the name of the journal on the VM."""
    rollout: Annotated[str, Field(max_length=253)]
    """Rollout that it belongs to."""
    method: Method
    """How the difference is closed. Hold and None are decisions of a plan and are never handed out."""
    route: Route | None = None
    """Of a live patch: API if CloudStack's own is asked for, by one call for all VMs that it patches. Absent: SSH."""
    revision: Annotated[str, Field(max_length=64)]
    """What the VM is brought to."""
    template: Annotated[str, Field(max_length=253)]
    """SystemVMTemplate that the payload comes from."""
    attempt: Annotated[int, Field(ge=1)] = 1
    """Which try of this rollout."""
    epoch: Annotated[int, Field(ge=0)]
    """Number of the leadership that admitted it; the VM refuses a lower one than it has seen."""
    takes_back: Annotated[str, Field(max_length=63)] | None = None
    """Id of the operation that is undone: the VM goes back to what it was before it, services and signature included.
    Absent: the VM is brought to the revision."""
    deadline: Time | None = None
    """When the operation must have ended; then the VM goes back to what it was. Absent: only its own timeouts count."""


class SystemVMSpec(ApiModel):
    """Whose it is, and what people want of it."""

    endpoint_ref: NameRef
    """CloudStackEndpoint that it belongs to. Written by the operator."""
    hold: Hold | None = None
    """Set by people: the VM is looked at but not changed."""
    priority: Annotated[int, Field(ge=0, le=10000)] = 100
    """Set by people: lower goes first."""
    accept_host_key: (
        Annotated[
            str,
            Field(max_length=128, pattern=_FINGERPRINT),
            matching(_FINGERPRINT, "must be a fingerprint as ssh-keygen -l shows it: SHA256: and 43 characters"),
        ]
        | None
    ) = None
    """Set by people after a changed host key held the VM: this fingerprint is right."""
    operation: OperationOrder | None = None
    """Written by the operator's admission only: the operation that this VM was given a slot for."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "self.endpointRef == oldSelf.endpointRef",
            "endpointRef cannot be changed: the operator makes one SystemVM for every VM of an endpoint",
        ),
    )


class VMState(StrEnum):
    CONVERGED = "Converged"
    OUTDATED = "Outdated"
    UPDATING = "Updating"
    HELD = "Held"
    FAILED = "Failed"
    UNREACHABLE = "Unreachable"
    UNKNOWN = "Unknown"


class RedundancyRole(StrEnum):
    PRIMARY = "PRIMARY"
    BACKUP = "BACKUP"
    FAULT = "FAULT"
    UNKNOWN = "UNKNOWN"


class Identity(ApiModel):
    """Who the VM is."""

    id: Annotated[str, Field(max_length=64)] | None = None
    """CloudStack's UUID. Absent in a Static inventory. A recreated VM has another one, and another name."""
    name: Annotated[str, Field(max_length=253)]
    """Name in CloudStack."""
    type: SystemVMType
    """CloudStack's type."""
    zone: ShortText | None = None
    """CloudStack zone that it runs in."""
    pod: ShortText | None = None
    """CloudStack pod that it runs in."""
    host: ShortText | None = None
    """Hypervisor host. Absent while it does not run."""
    group: ShortText | None = None
    """VMs of one group are never in work together. In a CloudStack inventory the id of the network or VPC that a router
    serves; SSVMs and CPVMs have none, those of one type in a zone belong together."""
    redundant: bool | None = None
    """One of a redundant pair, as the management server says. Absent: nobody told; a look shows it."""
    hypervisor: ShortText | None = None
    """Hypervisor, such as KVM."""
    account: ShortText | None = None
    """CloudStack account that owns it."""
    domain: ShortText | None = None
    """Path of the account's CloudStack domain."""
    project: ShortText | None = None
    """CloudStack project that owns it."""
    network: ShortText | None = None
    """CloudStack network that it serves."""
    vpc: ShortText | None = None
    """CloudStack VPC that it serves."""
    address: ShortText | None = None
    """Where the operator connects to. Absent while CloudStack tells none, as of a VM that does not run."""
    state: Annotated[str, Field(max_length=32)] | None = None
    """State as CloudStack spells it (Running, Stopped, Migrating, ...), or Missing: the last sweep did not find it.
    Absent in a Static inventory."""
    template: Annotated[str, Field(max_length=64)] | None = None
    """Id of the template that CloudStack would start it from next; what it runs is under observed."""
    created: Time | None = None
    """When CloudStack made it."""
    predecessor: ShortText | None = None
    """Name of the VM of the same group whose place it took. A hold and a priority of that one became its own."""


class HostKey(ApiModel):
    """The VM's SSH host key, required since first seen."""

    type: Annotated[str, Field(max_length=64)]
    """Such as ssh-ed25519."""
    fingerprint: Annotated[str, Field(max_length=128)]
    """SHA256:..."""
    public_key: Annotated[str, Field(max_length=2048)]
    """The key in OpenSSH format."""
    seen_at: Time
    """When it was first seen."""


_MAC = Annotated[str, Field(max_length=17)]


class PairGateway(ApiModel):
    """An address that keepalived moves between the routers of a pair."""

    address: Annotated[str, Field(max_length=64)]
    """The tenants' gateway."""
    held: bool
    """This router has it."""
    mac: _MAC = ""
    """Of this router's interface in that guest network."""
    asked: bool = True
    """The guest network was asked who has the address."""
    answers: Annotated[tuple[_MAC, ...], Field(max_length=4)] = ()
    """Who answered, other than this router itself."""


class PairSample(ApiModel):
    """Facts about the role of a router of a pair at one moment. None of them proves it alone."""

    at: Time
    """When they were seen."""
    keepalived: bool
    """keepalived is active."""
    state: RedundancyRole | None = None
    """What keepalived's notify script noted last, in cmdline.json."""
    heartbeat: bool
    """keepalived has written its time stamp within ten seconds."""
    public_up: bool | None = None
    """A public interface is up; absent: there is none."""
    conntrackd: bool
    """conntrackd is active and answers."""
    flows: Annotated[int, Field(ge=0)] | None = None
    """Connections that it tracks itself."""
    replicated: Annotated[int, Field(ge=0)] | None = None
    """Connections that the other router has sent to it."""
    gateways: Annotated[tuple[PairGateway, ...], Field(max_length=4)] = ()
    """The addresses that keepalived moves."""


class Redundancy(ApiModel):
    """Its part in a pair of routers."""

    role: RedundancyRole
    """What the VM says of itself."""
    peers: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=16)] = ()
    """The other VMs of its group."""
    observed_at: Time
    """When it was seen."""
    samples: Annotated[tuple[PairSample, ...], Field(max_length=3)] = ()
    """What its role is judged by, oldest first: one sample of a usual look, three where a patch depends on it."""


class ObservedTemplate(ApiModel):
    """The disk image that the VM was made from."""

    version: Annotated[str, Field(max_length=64)]
    """Version in /etc/cloudstack-release; live patch never changes it."""


class ContentState(StrEnum):
    MATCHES = "Matches"
    DRIFTED = "Drifted"
    UNKNOWN = "Unknown"


class Obstacle(ApiModel):
    """Why a VM must not be live-patched to the release that it was compared with."""

    reason: Annotated[str, Field(max_length=64)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """A sentence for people."""


class ObservedContent(ApiModel):
    """Files compared with the release."""

    state: ContentState
    """Matches, Drifted, or Unknown when never compared."""
    revision: Annotated[str, Field(max_length=64)] | None = None
    """Release that it was compared with."""
    changed: Annotated[int, Field(ge=0)] = 0
    """Files that differ."""
    missing: Annotated[int, Field(ge=0)] = 0
    """Files of the release that the VM lacks."""
    extra: Annotated[int, Field(ge=0)] = 0
    """Files of an older payload that the release removed."""
    paths: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=10)] = ()
    """The first ten of them."""
    obstacles: Annotated[tuple[Obstacle, ...], Field(max_length=4)] = ()
    """What the comparison found that a live patch must not do; the VM is held."""
    observed_at: Time | None = None
    """When it was compared."""


class ObservedService(ApiModel):
    """A service as systemd sees it."""

    name: Annotated[str, Field(max_length=128)]
    """systemd unit without .service."""
    active: Annotated[str, Field(max_length=32)]
    """systemd's ActiveState."""
    sub: Annotated[str, Field(max_length=32)] = ""
    """systemd's SubState."""


class ApiCommand(StrEnum):
    """CloudStack's own live patch."""

    PATCH_SYSTEM_VM = "patchSystemVm"
    RESTART_NETWORK = "restartNetwork"
    RESTART_VPC = "restartVPC"


class ApiPatchCall(ApiModel):
    """The one call by which CloudStack itself would live-patch the VM, and what else that call would patch."""

    command: ApiCommand
    """patchSystemVm, or restartNetwork or restartVPC with livepatch=true."""
    id: Annotated[str, Field(max_length=64)]
    """CloudStack's id of the system VM, network or VPC."""
    name: ShortText = ""
    """Its name."""
    patches: Annotated[int, Field(ge=1)] = 1
    """How often the call patches each of these VMs: once a tier for a VPC."""
    vms: Annotated[tuple[ShortText, ...], Field(max_length=16)] = ()
    """Names of all VMs that it patches, one right after the other."""


class ObservedManagement(ApiModel):
    """What the management server's books say of the VM. The VM itself may have been patched behind its back."""

    at: Time
    """When the server was asked."""
    template_version: Annotated[str, Field(max_length=64)] | None = None
    """Version of the template that the server believes the VM runs; it tells none for SSVM and CPVM."""
    minimum_template_version: Annotated[str, Field(max_length=64)] | None = None
    """minreq.sysvmtemplate.version of the zone; absent: the role may not read it."""
    scripts_version: Annotated[str, Field(max_length=140)] | None = None
    """Checksum of the scripts as the server recorded it at the last start or patch that it did itself."""
    software_version: Annotated[str, Field(max_length=64)] | None = None
    """Version of the server that started or patched the VM last; of an SSVM or CPVM: of its agent."""
    server_scripts_version: Annotated[str, Field(max_length=140)] | None = None
    """Checksum of the server's own scripts, with which it compares scriptsVersion; absent: it cannot be known."""
    requires_upgrade: bool | None = None
    """requiresupgrade of listRouters. It says nothing about the scripts."""
    gate_closed: bool | None = None
    """true: the server refuses to send commands to this router. Absent: that cannot be known."""
    gate: Annotated[str, Field(max_length=1024)] = ""
    """Why the gate is closed, or what is not known."""
    recreating_checks: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=32)] | None = None
    """Health checks after whose failure the server recreates a router of this zone
    (router.health.checks.failures.to.recreate.vr). Absent: the role may not read it, or the VM is no router."""
    api_patch: ApiPatchCall | None = None
    """How CloudStack itself would live-patch the VM; absent: it cannot."""
    api_patch_refused: Annotated[str, Field(max_length=512)] = ""
    """Why it cannot."""


class ObservedHostPayload(ApiModel):
    """What the hypervisor host keeps for its VMs: what CloudStack installs at a VM's next start or patch."""

    host: Annotated[str, Field(max_length=253)]
    """Hypervisor host that was asked."""
    checksum: Annotated[str, Field(max_length=140)]
    """Of its cloud-scripts.tgz, in the algorithm of the VM's signature."""
    checksums: Annotated[tuple[Annotated[str, Field(max_length=140)], ...], Field(max_length=4)] = ()
    """The same in every algorithm that CloudStack knows: MD5 up to 4.21, SHA-512 from 4.22 on."""
    revision: Annotated[str, Field(max_length=64)] | None = None
    """Digest of its scripts by content, to compare with scriptsRevision of a release; absent: the archive cannot be
    read."""


class DataBags(ApiModel):
    """A router's copy of its rules in /etc/cloudstack. Its boot deletes it, and only the management server can send it
    again."""

    held: Annotated[int, Field(ge=0)]
    """How many data bags hold what the management server sent."""
    before: Annotated[int, Field(ge=1)] | None = None
    """How many did before the VM booted; while fewer do, or the boot has not finished."""
    fewer_since: Time | None = None
    """The first look after that boot had finished and fewer than half did."""
    lost: bool = False
    """The management server had time to send them and did not: the VM rebooted by itself and has lost its rules."""


class Observed(ApiModel):
    """What the last look found."""

    at: Time
    """When the VM was looked at."""
    template: ObservedTemplate | None = None
    """Release line of the disk image."""
    signature: Signature | None = None
    """/var/cache/cloud/cloud-scripts-signature."""
    payload_checksum: Annotated[str, Field(max_length=140)] | None = None
    """Checksum of /usr/share/cloud/cloud-scripts.tgz in the signature's algorithm."""
    content: ObservedContent | None = None
    """Files compared with the release."""
    services: Annotated[
        tuple[ObservedService, ...],
        Field(
            max_length=64, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = ()
    """Services that CloudStack knows on this type."""
    boot_id: Annotated[str, Field(max_length=64)] | None = None
    """Changes with every boot of the VM."""
    host_payload: ObservedHostPayload | None = None
    """What the hypervisor host keeps; absent: it is not on the way to the VM, or keeps none."""
    booted: bool | None = None
    """CloudStack's boot scripts have finished."""
    data_bags: DataBags | None = None
    """What a router has of its rules; absent for an SSVM or CPVM, and since CloudStack stopped the VM."""
    management: ObservedManagement | None = None
    """What the management server's books say; absent for a VM of a Static inventory."""


class DriftKind(StrEnum):
    SCRIPTS = "Scripts"
    AGENT = "Agent"
    CONTENT = "Content"
    SERVICES = "Services"
    TEMPLATE = "Template"


class Blocker(ApiModel):
    """Something that the VM waits for."""

    reason: Annotated[str, Field(max_length=64)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=512)] = ""
    """A sentence for people."""


class PlannedAction(ApiModel):
    """An action on a service that the change of files asks for."""

    name: Annotated[str, Field(max_length=128)]
    """systemd unit without .service, or a run of configure.py such as configure.py load_balancer.json."""
    action: Annotated[str, Field(max_length=32)]
    """Reload, HeldRestart, Restart, StopStart, EffectiveAtBoot; of configure.py: Rerun, or AtNextCommand where the next
    command of the management server applies what changed."""
    expected_loss: Annotated[str, Field(max_length=128)] = "none"
    """What tenants notice."""


class PlanEntry(ApiModel):
    """What will happen to this VM and why."""

    policy: Annotated[str, Field(max_length=253)]
    """Policy that decided."""
    revision: Annotated[str, Field(max_length=64)]
    """Release it was compared with."""
    drift: Annotated[tuple[DriftKind, ...], Field(max_length=8)] = ()
    """Differences."""
    method: Method
    """How they are closed."""
    route: Route | None = None
    """Of a live patch: SSH, or API for CloudStack's own."""
    reason: Annotated[str, Field(max_length=64)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """A sentence for people."""
    services: Annotated[tuple[PlannedAction, ...], Field(max_length=32)] = ()
    """Service actions that the change of files asks for."""
    blocked_by: Annotated[tuple[Blocker, ...], Field(max_length=16)] = ()
    """What it waits for."""


class OperationResult(StrEnum):
    SUCCEEDED = "Succeeded"
    ROLLED_BACK = "RolledBack"
    FAILED = "Failed"
    INCONSISTENT = "Inconsistent"


class StepResult(StrEnum):
    RUNNING = "Running"
    DONE = "Done"
    FAILED = "Failed"


class OperationStep(ApiModel):
    """One step of an operation."""

    name: Annotated[str, Field(max_length=32)]
    """Connect, Probe, Diff, Stage, Build, Fence, Switch, Services, Verify, Commit, Restore."""
    result: StepResult
    """Running, Done or Failed."""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long it took."""
    bytes: Annotated[int, Field(ge=0)] | None = None
    """Bytes sent."""
    bytes_total: Annotated[int, Field(ge=0)] | None = None
    """While content is being sent: how many bytes it is in all, without what an earlier connection brought."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """What was done, or what failed with its output."""


class ServiceAction(ApiModel):
    """An action on a service that was carried out."""

    name: Annotated[str, Field(max_length=128)]
    """systemd unit without .service."""
    action: Annotated[str, Field(max_length=32)]
    """Reload, Restart, ..."""
    unavailable_seconds: Annotated[float, Field(ge=0)] | None = None
    """Measured on the VM around the action, where it was measured; going back, from the last answer before."""
    slowest_seconds: Annotated[float, Field(ge=0)] | None = None
    """The longest that one answer took meanwhile: a reload makes requests wait and loses none."""


class OperationStatus(ApiModel):
    """Mirror of the journal on the VM, which is the truth."""

    id: Annotated[str, Field(max_length=63)]
    """Same as spec.operation.id."""
    rollout: Annotated[str, Field(max_length=253)] = ""
    """Rollout that it belongs to."""
    method: Method
    """How the difference is closed."""
    route: Route | None = None
    """Of a live patch: API if CloudStack did it; the operator cannot take that back. Absent: SSH."""
    revision: Annotated[str, Field(max_length=64)]
    """What the VM is brought to."""
    attempt: Annotated[int, Field(ge=1)] = 1
    """Which try."""
    step: Annotated[str, Field(max_length=32)] = ""
    """Step in work, or the step that failed."""
    started_at: Time
    """When the operator began."""
    finished_at: Time | None = None
    """When the result was known."""
    result: OperationResult | None = None
    """Absent while it runs."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """One word for programs about a result that is not Succeeded."""
    takes_back: Annotated[str, Field(max_length=63)] | None = None
    """Id of the operation that it undoes."""
    message: Annotated[str, Field(max_length=2048)] = ""
    """A sentence for people: what happened, and after a failure what state the VM is in and what to do."""
    steps: Annotated[tuple[OperationStep, ...], Field(max_length=16)] = ()
    """Every step so far."""
    bytes_sent: Annotated[int, Field(ge=0)] = 0
    """Bytes sent to the VM."""
    services: Annotated[tuple[ServiceAction, ...], Field(max_length=32)] = ()
    """Actions on services."""


class HistoryEntry(ApiModel):
    """An operation that ended."""

    id: Annotated[str, Field(max_length=63)]
    """Operation."""
    rollout: Annotated[str, Field(max_length=253)] = ""
    """Rollout that it belonged to."""
    revision: Annotated[str, Field(max_length=64)]
    """What the VM was brought to."""
    method: Method
    """How the difference was closed."""
    result: OperationResult
    """How it ended."""
    started_at: Time
    """When it began."""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """How long it took."""
    bytes_sent: Annotated[int, Field(ge=0)] = 0
    """Bytes sent to the VM."""
    services: Annotated[tuple[ServiceAction, ...], Field(max_length=32)] = ()
    """Actions on services."""
    takes_back: Annotated[str, Field(max_length=63)] | None = None
    """Id of the operation that it undid."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """What happened."""


class SystemVMStatus(ObservedStatus):
    """What is known of the VM."""

    state: VMState = VMState.UNKNOWN
    """In one word."""
    identity: Identity | None = None
    """Who the VM is."""
    host_key: HostKey | None = None
    """Its SSH host key, required since first seen."""
    redundancy: Redundancy | None = None
    """Its part in a pair of routers."""
    observed: Observed | None = None
    """What the last look found."""
    plan: PlanEntry | None = None
    """What will happen to it and why."""
    operation: OperationStatus | None = None
    """The operation in work, or the last one."""
    history: Annotated[tuple[HistoryEntry, ...], Field(max_length=5)] = ()
    """The last five operations, newest first."""


class SystemVM(ApiModel):
    """One system VM. Made by the operator; people set only spec.hold, spec.priority and spec.acceptHostKey."""

    metadata: ObjectMeta
    spec: SystemVMSpec
    """Whose it is, and what people want of it."""
    status: SystemVMStatus = SystemVMStatus()
    """What is known of the VM. Written by the operator only."""
