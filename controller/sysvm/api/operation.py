"""Operations on a VM: the order that admission gives, how far it is, and what is kept of it."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from sysvm.api.base import ApiModel, Time, matching
from sysvm.api.methods import Method, Route


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
    """Connect, Probe, Diff, Stage, Build, Packages, Fence, Switch, Services, Verify, Commit, Restore."""
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
    submitted_at: Time | None = None
    """Right before the last call to the management server. Absent: none has left, or it has changed nothing."""
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
