"""Rollout: one immutable run of one policy toward one revision; together the history of a policy."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import ApiModel, NameRef, ObjectMeta, ObservedStatus, Time, matching, rule
from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import AllowedMethod, LivePatchOptions, Method
from sysvm.api.observed import RuleCounts
from sysvm.api.operation import OperationResult
from sysvm.api.policy import Approval, Checks, NextAction, PolicyBlocker
from sysvm.api.strategy import Strategy

_WORD = "^[a-f0-9]{8}$"


class RolloutCause(StrEnum):
    NEW_REVISION = "NewRevision"
    DRIFT = "Drift"
    RETRY = "Retry"


class DesiredState(StrEnum):
    RUNNING = "Running"
    PAUSED = "Paused"
    ABORTED = "Aborted"


class PlanRef(ApiModel):
    """The immutable ConfigMap that holds what was decided, made before the rollout."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the ConfigMap."""
    digest: Annotated[
        str,
        Field(max_length=71, pattern="^sha256:[a-f0-9]{64}$"),
        matching("^sha256:[a-f0-9]{64}$", "must be sha256: followed by 64 hexadecimal digits in lower case"),
    ]
    """Digest of the canonical JSON in it."""


class PolicySnapshot(ApiModel):
    """The parts of the policy that a running rollout keeps, whatever is edited meanwhile."""

    methods: Annotated[tuple[AllowedMethod, ...], Field(min_length=1, max_length=3)]
    """Allowed methods."""
    live_patch: LivePatchOptions
    """How a live patch works."""
    strategy: Strategy
    """How fast."""
    checks: Checks
    """What is looked at before and after."""
    approval: Approval = Approval()
    """Which waves wait for a person."""


class BreakGlass(ApiModel):
    """Windows and freezes do not hold this rollout back. Needs the verb breakglass on rollouts."""

    reason: Annotated[str, Field(min_length=1, max_length=253)]
    """Why, such as the number of an incident. Another reason begins another twelve hours."""
    until: Time
    """When windows and freezes count again; twelve hours after it was set at the latest."""


class BreakGlassStatus(ApiModel):
    """Since when the calendar is ignored."""

    reason: Annotated[str, Field(max_length=253)]
    """The reason that was given."""
    since: Time
    """When the operator first saw it."""


class RolloutSpec(ApiModel):
    """What is rolled out. Only state may be changed, by people."""

    policy_ref: NameRef
    """PatchPolicy that it belongs to."""
    endpoint_ref: NameRef
    """CloudStackEndpoint whose VMs are meant."""
    template_ref: NameRef
    """SystemVMTemplate that is rolled out."""
    revision: Annotated[str, Field(min_length=8, max_length=64)]
    """What VMs are brought to."""
    number: Annotated[int, Field(ge=1)]
    """Counts up by one with every rollout of the policy."""
    plan_ref: PlanRef
    """What was decided."""
    snapshot: PolicySnapshot
    """The parts of the policy that this rollout keeps."""
    cause: RolloutCause = RolloutCause.NEW_REVISION
    """Why it was made. NewRevision: VMs are not at the release. Drift: they were, and are put back because
    drift.heal is Automatic. Retry: an earlier rollout of it did not succeed and a person allowed another."""
    state: DesiredState = DesiredState.RUNNING
    """Set by people. Running: VMs are admitted one after the other. Paused: nothing new starts. Aborted: nothing new
    starts for good; VMs in work are finished."""
    break_glass: BreakGlass | None = None
    """Set by people in need: work goes on outside windows and inside freezes. Every use is told as a Warning event."""
    accept_cloud: (
        Annotated[
            str,
            Field(min_length=8, max_length=8, pattern=_WORD),
            matching(_WORD, "must be the eight characters that status.cloud.word says"),
        ]
        | None
    ) = None
    """Set by people after the cloud changed under a rollout: go on as planned in exactly that cloud. Its waves must be
    approved again."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "self.policyRef == oldSelf.policyRef && self.endpointRef == oldSelf.endpointRef"
            " && self.templateRef == oldSelf.templateRef && self.revision == oldSelf.revision"
            " && self.number == oldSelf.number && self.planRef == oldSelf.planRef"
            " && self.snapshot == oldSelf.snapshot && self.cause == oldSelf.cause",
            "a rollout cannot be edited, only its state: change the policy instead",
        ),
        rule("oldSelf.state != 'Aborted' || self.state == 'Aborted'", "an aborted rollout cannot be resumed"),
    )


class RolloutPhase(StrEnum):
    WAITING = "Waiting"
    RUNNING = "Running"
    SOAKING = "Soaking"
    ROLLING_BACK = "RollingBack"
    DONE = "Done"


class WavePhase(StrEnum):
    WAITING = "Waiting"
    RUNNING = "Running"
    SOAKING = "Soaking"
    DONE = "Done"


class RolloutResult(StrEnum):
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ABORTED = "Aborted"
    ROLLED_BACK = "RolledBack"
    SUPERSEDED = "Superseded"


class CloudStatus(ApiModel):
    """How the cloud differs from the one that the rollout was planned for, or did once."""

    word: Annotated[str, Field(max_length=8)]
    """For spec.acceptCloud: it stands for exactly these differences."""
    changes: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=16)] = ()
    """What was and what is. Empty: the cloud is again what it was."""
    since: Time
    """When the first difference was seen."""


class AppendedVM(ApiModel):
    """A VM that appeared after the plan was made."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the SystemVM."""
    uid: Annotated[str, Field(max_length=64)]
    """Its uid: another VM of that name is another VM."""


class WaveStatus(ApiModel):
    """Progress of one wave."""

    name: Annotated[str, Field(max_length=63)]
    """Name of the wave."""
    digest: Annotated[str, Field(max_length=80)]
    """Digest of its members, those that appeared later included: another member makes it another one, and an approval
    of the former void."""
    phase: WavePhase = WavePhase.WAITING
    """Waiting for the wave before it, Running, Soaking, or Done."""
    size: Annotated[int, Field(ge=0)] = 0
    """VMs in it."""
    done: Annotated[int, Field(ge=0)] = 0
    """Verified at the revision."""
    in_work: Annotated[int, Field(ge=0)] = 0
    """In work."""
    failed: Annotated[int, Field(ge=0)] = 0
    """Rolled back, failed or inconsistent."""
    skipped: Annotated[int, Field(ge=0)] = 0
    """On hold, unreachable or gone when their turn came, or left because a peer failed."""
    returned: Annotated[int, Field(ge=0)] = 0
    """Patched and then brought back to what they were, because the failure budget was spent."""
    appended: Annotated[tuple[AppendedVM, ...], Field(max_length=64)] = ()
    """VMs that appeared after the plan was made; only the last wave takes them. More than 64 wait for the next rollout.
    """
    started_at: Time | None = None
    """When its first VM was admitted."""
    soak_until: Time | None = None
    """When its soak ends, if all of its VMs stay well."""
    finished_at: Time | None = None
    """When it was done and had soaked."""
    message: Annotated[str, Field(max_length=512)] = ""
    """What is special about it, such as that it selects no VM, or why its soak does not end."""


class BudgetStatus(ApiModel):
    """What may still go wrong, and how many VMs may be in work."""

    failures_used: Annotated[int, Field(ge=0)] = 0
    """VMs that failed and count."""
    failures_allowed: Annotated[int, Field(ge=0)] = 0
    """So many may fail in all before the rollout takes no more."""
    slots_used: Annotated[int, Field(ge=0)] = 0
    """VMs that count against maxUnavailable."""
    slots: Annotated[int, Field(ge=0)] = 0
    """maxUnavailable as a number."""


class GroupPhase(StrEnum):
    PREPARING = "Preparing"
    SUBMITTING = "Submitting"
    RUNNING = "Running"
    UNKNOWN = "Unknown"
    VERIFYING = "Verifying"
    DONE = "Done"


class GroupVM(ApiModel):
    """A VM of the group as it was right before the call."""

    id: Annotated[str, Field(max_length=64)]
    """CloudStack's id: a VM that was made anew has another one."""
    name: Annotated[str, Field(max_length=63)]
    """Name in CloudStack."""
    boot_id: Annotated[str, Field(max_length=64)] | None = None
    """Of the boot it was in, as last seen over SSH."""
    done: bool = False
    """It had what the call brings already: that it has it later proves nothing of the call."""


class GroupOperation(ApiModel):
    """One call to the management server that changes the VMs of a group, from before it is made until it is judged."""

    group: Annotated[str, Field(min_length=1, max_length=253)]
    """The group as a whole (identity.group), or the name of the one VM that it works on."""
    method: Method
    """How the difference is closed."""
    command: Annotated[str, Field(max_length=64)]
    """Command of the management server, such as restartNetwork."""
    target: Annotated[str, Field(max_length=64)]
    """Id of the network, VPC or VM that the command is given."""
    vm_type: SystemVMType
    """CloudStack's type of the VMs."""
    zone_id: Annotated[str, Field(max_length=64)]
    """Id of their zone."""
    orders: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=16)] = ()
    """Ids of the orders (spec.operation of the VMs) that its result answers."""
    phase: GroupPhase
    """Preparing: nothing was asked yet. Submitting: the call is being made; found after a restart, it is not known
    whether it was. Running: the job is known. Unknown: the job was lost, the group is looked at until nothing moves.
    Verifying: the job has ended, what it did is looked at. Done."""
    since: Time
    """When it came into this phase, or in Unknown, when a job was last seen or a VM began or ceased to move."""
    silent_since: Time | None = None
    """Running: since when the management server does not tell how the job is. Absent: it did when it was last asked."""
    started_at: Time
    """When it began to prepare."""
    before: Annotated[tuple[GroupVM, ...], Field(max_length=16)] = ()
    """The VMs of the group right before the call."""
    rules_listed: RuleCounts = Field(default_factory=dict)
    """Rules of the network or VPC right before the call, as the management server listed them, by kind."""
    rules_held: RuleCounts = Field(default_factory=dict)
    """The same as the routers held them, each of them at least so many. Both are gone when it is Done."""
    job_id: Annotated[str, Field(max_length=64)] | None = None
    """The job, as soon as the server has named it."""
    job_failure: Annotated[str, Field(max_length=512)] = ""
    """What the server says went wrong; empty also when it says nothing."""
    submitted_at: Time | None = None
    """Right before the last call. Absent: none has left, or it has changed nothing."""
    submissions: Annotated[int, Field(ge=0, le=10)] = 0
    """Calls made or begun. A second one only after the group was found unchanged."""
    finished_at: Time | None = None
    """When the result was known."""
    result: OperationResult | None = None
    """Absent while it is open."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """One word for programs about a result that is not Succeeded, or about what it waits for."""
    message: Annotated[str, Field(max_length=512)] = ""
    """What it waits for, what went wrong, or what could not be verified."""


class RolloutStatus(ObservedStatus):
    """How far it is."""

    phase: RolloutPhase = RolloutPhase.WAITING
    """Waiting, Running, Soaking, RollingBack or Done."""
    waves: Annotated[
        tuple[WaveStatus, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = ()
    """Progress wave by wave."""
    group_operations: Annotated[
        tuple[GroupOperation, ...],
        Field(
            max_length=64, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["group"]}
        ),
    ] = ()
    """Calls to the management server: open ones, and those that failed after VMs were replaced."""
    budget: BudgetStatus | None = None
    """What may still go wrong."""
    summary: Annotated[str, Field(max_length=64)] = ""
    """Such as 3/4."""
    started_at: Time | None = None
    """When the first VM was admitted."""
    finished_at: Time | None = None
    """When the result was known."""
    break_glass: BreakGlassStatus | None = None
    """There while spec.breakGlass is."""
    cloud: CloudStatus | None = None
    """There once the cloud differed from the one that the rollout was planned for. Nothing new starts until
    spec.acceptCloud says its word."""
    eta: Time | None = None
    """When it ends if it goes on at its pace so far, soaks included; windows and approvals are not."""
    blocked_by: Annotated[tuple[PolicyBlocker, ...], Field(max_length=8)] = ()
    """What keeps it from starting more VMs."""
    next_action: NextAction | None = None
    """What happens next, if nothing changes."""
    result: RolloutResult | None = None
    """Absent while it runs."""


class Rollout(ApiModel):
    """One run of one policy toward one revision. Made by the operator; people set only spec.state."""

    metadata: ObjectMeta
    spec: RolloutSpec
    """What is rolled out. Only state may be changed, by people."""
    status: RolloutStatus = RolloutStatus()
    """How far it is. Written by the operator only."""
