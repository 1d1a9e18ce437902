"""SystemVM: one VM: identity, what was observed, what is planned, what is happening, a short history.

Every part of the status has one writer, the SystemVM reconciler; `spec.operation` is written by admission only.
"""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import ApiModel, NameRef, ObjectMeta, ObservedStatus, ShortText, Time, matching, rule
from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method, Route
from sysvm.api.observed import Observed, Redundancy
from sysvm.api.operation import HistoryEntry, OperationOrder, OperationStatus

_FINGERPRINT = "^SHA256:[A-Za-z0-9+/]{43}$"


class Hold(ApiModel):
    """A person's wish to leave this VM alone."""

    reason: Annotated[str, Field(min_length=1, max_length=253)]
    """Shown to people."""
    until: Time | None = None
    """The hold ends by itself then; without it a person must remove it."""


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
    """systemd unit without .service, a run of configure.py such as configure.py load_balancer.json, or a Debian
    package."""
    action: Annotated[str, Field(max_length=32)]
    """Reload, HeldRestart, Restart, StopStart, EffectiveAtBoot; of packages: Install, Remove; of configure.py: Rerun,
    or AtNextCommand where the next command of the management server applies what changed."""
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
