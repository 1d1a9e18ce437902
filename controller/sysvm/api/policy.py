"""PatchPolicy: which VMs, toward which release, how and when."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import (
    ApiModel,
    Duration,
    IntOrPercent,
    NameRef,
    ObjectMeta,
    ObservedStatus,
    ShortText,
    Time,
    at_least,
    at_most,
    compare_durations,
    matching,
    rule,
)
from sysvm.api.endpoint import SystemVMType
from sysvm.api.template import Signature


class Method(StrEnum):
    """How a difference is closed."""

    LIVE_PATCH = "LivePatch"
    REBOOT = "Reboot"
    RECREATE = "Recreate"
    HOLD = "Hold"
    NONE = "None"

    @property
    def is_work(self) -> bool:
        """It changes a VM: what an order may ask for."""
        return self in (Method.LIVE_PATCH, Method.REBOOT, Method.RECREATE)


class AllowedMethod(StrEnum):
    """LivePatch: changed files are put in place while the VM runs. Reboot and Recreate: by the management server."""

    LIVE_PATCH = "LivePatch"
    REBOOT = "Reboot"
    RECREATE = "Recreate"


class TemplateVersionRule(StrEnum):
    REPORT = "Report"
    REQUIRE = "Require"


class HostPayloadRule(StrEnum):
    REQUIRE = "Require"
    WARN = "Warn"


class LivePatchRoute(StrEnum):
    AUTO = "Auto"
    SSH = "SSH"
    API = "API"


class Route(StrEnum):
    """The way that a live patch takes."""

    SSH = "SSH"
    API = "API"


class ServicesScope(StrEnum):
    AFFECTED = "Affected"


class Databags(StrEnum):
    NEVER = "Never"
    NEEDED = "Needed"


class PlannedFailover(StrEnum):
    NEVER = "Never"
    ALLOWED = "Allowed"


class Heal(StrEnum):
    NEVER = "Never"
    AUTOMATIC = "Automatic"


class RedundancyKind(StrEnum):
    REDUNDANT = "Redundant"
    SINGLE = "Single"


class OrderKey(StrEnum):
    PRIORITY = "priority"
    NAME = "name"


class OnBudgetSpent(StrEnum):
    PAUSE = "Pause"
    ROLL_BACK = "RollBack"


class RetryReason(StrEnum):
    """Failures that pass by themselves, and before which nothing of the VM was changed."""

    SSH_UNREACHABLE = "SSHUnreachable"
    SSH_TIMEOUT = "SSHTimeout"
    HOST_UNREACHABLE = "HostUnreachable"
    VM_BUSY = "VMBusy"
    LOCK_HELD = "LockHeld"
    OTHER_ACTOR = "OtherActor"
    HAPROXY_DRAINING = "HaproxyDraining"


class ExcludedVM(ApiModel):
    """A VM that this policy leaves alone."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of the VM, exactly."""
    reason: ShortText = ""
    """Shown to people."""
    until: Time | None = None
    """The exclusion ends by itself then; without it a person must remove it."""


_Name = Annotated[str, Field(min_length=1, max_length=253)]
Names16 = Annotated[tuple[_Name, ...], Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"})]
Names256 = Annotated[tuple[_Name, ...], Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"})]


class Selector(ApiModel):
    """Which VMs of the endpoint; every list that is given must match, an empty selector is every VM."""

    types: Annotated[
        tuple[SystemVMType, ...], Field(max_length=7, json_schema_extra={"x-kubernetes-list-type": "set"})
    ] = ()
    """CloudStack's types."""
    zones: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=253)], ...],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Zone names."""
    hypervisors: Names16 = ()
    """Hypervisors, such as KVM, as the inventory names them."""
    accounts: Names256 = ()
    """CloudStack accounts that own the VMs; exactly, without wildcards."""
    networks: Names256 = ()
    """CloudStack networks that routers serve; exactly, without wildcards."""
    redundancy: RedundancyKind | None = None
    """Redundant: VMs of a pair of routers, which take over from each other. Single: all others, system VMs and load
    balancers included. Absent: both. A router of which neither the management server nor a look has told yet counts as
    Single, and nothing begins before it was looked at."""
    names: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=63)], ...],
        Field(max_length=256, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """VM names; * and ? are wildcards."""
    exclude: Annotated[
        tuple[ExcludedVM, ...],
        Field(
            max_length=256, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = ()
    """VMs left alone although they match."""


class LivePatchOptions(ApiModel):
    """How a live patch works."""

    route: LivePatchRoute = LivePatchRoute.AUTO
    """Auto: over SSH where the management server sends commands to the VM; where its command gate is closed, by
    CloudStack's own live patch (patchSystemVm, or restartNetwork and restartVPC with livepatch=true) if that can work,
    else the VM is held. SSH: only over SSH; a closed gate stays closed and the policy is not Ready. API: only by
    CloudStack's own live patch, which restarts every service, takes the hypervisor host's payload and cannot be taken
    back."""
    max_api_patches_per_router: Annotated[int, Field(ge=1, le=50)] = 2
    """How often one call may patch the same router: CloudStack patches every router of a VPC once for each tier, with
    all of its restarts. A VPC with more tiers than this is not patched by the API route."""
    services: ServicesScope = ServicesScope.AFFECTED
    """Affected: only services whose files changed get an action, the least one that makes the change effective."""
    databags: Databags = Databags.NEVER
    """Never: CloudStack's configure.py is not run; a changed file that only it applies takes effect at the next command
    of the management server. Needed: it is run for exactly the data bag concerned, on single routers; addresses and
    firewall rules are then set anew, and new outbound connections may fail for a moment, which the plan says."""
    host_payload: HostPayloadRule = HostPayloadRule.REQUIRE
    """Require: a VM whose hypervisor host keeps another payload than the release is held, for its next stop and start
    would undo the patch. Warn: the condition HostPayloadMismatch tells it and the VM is patched. It counts where the
    host is on the way to the VM (spec.ssh.routes via Host of the endpoint)."""
    planned_failover: PlannedFailover = PlannedFailover.NEVER
    """Never: the PRIMARY of a pair of routers is held where its keepalived would have to be restarted. Allowed: it is
    restarted once the BACKUP is patched and exactly one PRIMARY is proven, and the other router takes over: tenants
    lose what the plan names."""
    keep_backups: Annotated[int, Field(ge=0, le=10)] = 2
    """Backups of earlier patches kept on the VM, beside the one of the patch in work. They use at most 10 % of the
    disk."""


class Timeouts(ApiModel):
    """When a VM in work counts as failed."""

    step: Annotated[Duration, at_least("10s")] = timedelta(minutes=10)
    """One step of an operation; then the VM goes back to what it was. At least 10s."""
    vm: Duration = timedelta(minutes=30)
    """A whole operation; then the VM goes back to what it was. Not shorter than step."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(compare_durations("self.vm", ">=", "self.step"), "vm must not be shorter than step"),
    )


class DriftOptions(ApiModel):
    """What happens when a VM that was at the release no longer is."""

    heal: Heal = Heal.NEVER
    """Never: it is reported and the policy is not Ready. Automatic: changed files are put back by a rollout of cause
    Drift, within windows, waves and budgets; a VM that was put back three times in 24 hours is held, because somebody
    else changes it again and again. A failed service is only reported in both cases."""


WAVE_NAME_PATTERN = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

WaveName = Annotated[
    str,
    Field(min_length=1, max_length=40, pattern=WAVE_NAME_PATTERN),
    matching(WAVE_NAME_PATTERN, "must be lower case letters, digits and '-', and begin and end with one of the first"),
]


class WaveSpec(ApiModel):
    """A slice of the rollout; the next one starts when this one is done and has soaked."""

    name: WaveName
    """Shown to people; approvals name it."""
    limit: IntOrPercent | None = None
    """VMs that this wave adds: a count, or a percentage of the VMs that the rollout works on, rounded up. The routers
    of one group are never split: a wave takes as many whole groups as fit, at least one. The last wave has no limit
    and takes the rest; every other wave needs one."""
    soak: Annotated[Duration, at_most("168h")] = timedelta(0)
    """How long the VMs of this wave must stay well before the next wave starts, after the last one the rollout ends.
    At most 168h."""


class FailureBudget(ApiModel):
    """When a rollout takes no more VMs. A VM that failed counts until the rollout ends, and goes on counting against
    maxUnavailable: once failed VMs fill that, the budget is spent too."""

    per_wave: IntOrPercent = 1
    """Spent when so many VMs of one wave have failed: a count, or a percentage of the wave rounded down, at least 1.
    1: the first failure."""
    total: IntOrPercent | None = None
    """Spent when so many VMs of the rollout have failed: a count, or a percentage of its VMs rounded down, at least 1.
    Absent: only the other limits count."""
    consecutive: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Spent when so many VMs failed one after the other. Absent: only the other limits count."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "!has(self.total) || type(self.total) != int || type(self.perWave) != int || self.perWave <= self.total",
            "perWave must not be more than total: total would always be spent first",
        ),
        rule(
            "!has(self.total) || type(self.total) != int || !has(self.consecutive) || self.consecutive <= self.total",
            "consecutive must not be more than total: total would always be spent first",
        ),
    )


class Retry(ApiModel):
    """Whether a VM whose operation could not begin is tried again in the same rollout."""

    limit: Annotated[int, Field(ge=0, le=10)] = 0
    """Further tries of one VM. 0: the first failure counts."""
    backoff: Annotated[Duration, at_least("1s"), at_most("1h")] = timedelta(seconds=30)
    """Wait before the second try; doubled before each further one. From 1s to 1h. The VM keeps its place in
    maxUnavailable meanwhile."""
    reasons: Annotated[
        tuple[RetryReason, ...],
        Field(min_length=1, max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = tuple(RetryReason)
    """Failures that are worth another try. With all of them nothing on the VM was changed."""


class Strategy(ApiModel):
    """How fast, in which order, and how much may go wrong."""

    waves: Annotated[
        tuple[WaveSpec, ...],
        Field(
            min_length=1,
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = (WaveSpec(name="rest"),)
    """Slices of the rollout, one after the other."""
    max_unavailable: IntOrPercent = 1
    """VMs in work or failed at once: a count, or a percentage of the applicable VMs rounded down, at least 1."""
    per_host: Annotated[int, Field(ge=1, le=100)] = 2
    """VMs in work at once on one hypervisor host."""
    failure_budget: FailureBudget = FailureBudget()
    """When a rollout takes no more VMs."""
    on_budget_spent: OnBudgetSpent = OnBudgetSpent.PAUSE
    """Pause: nothing new starts and the rollout ends once nothing is in work; what was patched stays. RollBack: the VMs
    of the wave in work that were patched go back to what they were, one group at a time, then the rollout ends."""
    order: Annotated[
        tuple[OrderKey, ...],
        Field(min_length=1, max_length=2, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = (OrderKey.PRIORITY, OrderKey.NAME)
    """What decides who goes first: priority is spec.priority of the SystemVM, lower first. The BACKUP of a pair goes
    before its PRIMARY in any case."""
    timeouts: Timeouts = Timeouts()
    """When a VM in work counts as failed."""
    retry: Retry = Retry()
    """Whether a VM whose operation could not begin is tried again."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "self.waves.all(wave, has(wave.limit) == (wave.name != self.waves[size(self.waves) - 1].name))",
            "the last wave takes the rest and has no limit; every other wave needs one",
        ),
        rule(
            "type(self.maxUnavailable) != int || self.maxUnavailable < 1 || type(self.failureBudget.perWave) != int"
            " || self.failureBudget.perWave <= self.maxUnavailable",
            "can never proceed: failed VMs go on counting against maxUnavailable, so failureBudget.perWave must not be "
            "more than maxUnavailable",
        ),
    )


class Approval(ApiModel):
    """Which waves wait for a person."""

    before: Annotated[
        tuple[WaveName, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Waves that start only when they were approved; naming the first means that nothing starts by itself."""


class Checks(ApiModel):
    """What is looked at before and after."""

    ignore: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=128)], ...],
        Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Health checks of the VM whose result does not count."""
    settle: Annotated[Duration, at_most("5m")] = timedelta(seconds=5)
    """How long the services must stay healthy before the patch counts as done. At most 5m."""


class Readiness(ApiModel):
    """What Ready=True tolerates."""

    max_unreachable: Annotated[int, Field(ge=0, le=10000)] = 0
    """So many applicable VMs may be unreachable while the policy still counts as ready."""


class PatchPolicySpec(ApiModel):
    """Which VMs, toward which release, how and when."""

    endpoint_ref: NameRef
    """CloudStackEndpoint whose VMs are meant."""
    template_ref: NameRef
    """SystemVMTemplate that they should be at."""
    template_version: TemplateVersionRule = TemplateVersionRule.REPORT
    """Report: a VM whose template is older than the release shows the condition TemplateOutdated and stays as it is.
    Require: it is rebooted or recreated, whichever of the two methods lists first, and not converged before."""
    selector: Selector = Selector()
    """Which VMs of the endpoint; empty means all."""
    methods: Annotated[
        tuple[AllowedMethod, ...],
        Field(min_length=1, max_length=3, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = (AllowedMethod.LIVE_PATCH,)
    """Allowed methods, least disruptive first; a method that is not listed is never used. LivePatch: changed files are
    put in place while the VM runs. Reboot: the management server stops and starts the VM, which gives it the template
    that is current there. Recreate: the management server destroys it and makes another, of routers all those of the
    network or VPC at once. The last two are used where a live patch cannot be, or templateVersion is Require; the plan
    says what tenants lose meanwhile."""
    live_patch: LivePatchOptions = LivePatchOptions()
    """How a live patch works."""
    drift: DriftOptions = DriftOptions()
    """What happens when a VM that was at the release no longer is."""
    after: Annotated[
        tuple[NameRef, ...],
        Field(
            max_length=8, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = ()
    """PatchPolicies that must be Ready at the same release before a rollout of this one begins; what has begun is not
    stopped by them. Empty: it begins by itself."""
    strategy: Strategy = Strategy()
    """How fast."""
    checks: Checks = Checks()
    """What is looked at before and after."""
    approval: Approval = Approval()
    """Which waves wait for a person."""
    window_refs: Annotated[
        tuple[NameRef, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = ()
    """MaintenanceWindows (effect Allow) in which work may begin: while at least one is open. Empty: at any time that is
    not frozen."""
    readiness: Readiness = Readiness()
    """What Ready=True tolerates."""
    retry_at: Time | None = None
    """A new value allows a failed release again."""
    history_limit: Annotated[int, Field(ge=1, le=100)] = 10
    """Finished rollouts that are kept."""
    suspend: bool = False
    """true: nothing new starts; VMs in work are finished."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "!has(self.approval.before)"
            " || self.approval.before.all(name, self.strategy.waves.exists(wave, wave.name == name))",
            "approval.before must name waves of strategy.waves",
        ),
        rule(
            "self.strategy.onBudgetSpent != 'RollBack' || self.livePatch.keepBackups >= 1",
            "onBudgetSpent RollBack needs livePatch.keepBackups of at least 1: without a backup no VM can go back",
        ),
        rule(
            "self.templateVersion != 'Require' || self.methods.exists(method, method in ['Reboot', 'Recreate'])",
            "templateVersion Require needs Reboot or Recreate among methods: live patch does not change a template",
        ),
    )


class PolicyTarget(ApiModel):
    """What VMs should be at."""

    revision: Annotated[str, Field(max_length=64)]
    """Digest of the normalised payload."""
    template_version: Annotated[str, Field(max_length=32)]
    """Version of the release."""
    signature: Signature | None = None
    """What their signature file should hold."""


class PolicyCounts(ApiModel):
    """How many of the selected VMs are where."""

    total: Annotated[int, Field(ge=0)] = 0
    """Selected."""
    applicable: Annotated[int, Field(ge=0)] = 0
    """Selected, running, not excluded, not on hold: the VMs that Ready speaks of."""
    converged: Annotated[int, Field(ge=0)] = 0
    """Verified at the release."""
    waiting: Annotated[int, Field(ge=0)] = 0
    """Different from the release, not yet in work."""
    updating: Annotated[int, Field(ge=0)] = 0
    """In work."""
    held: Annotated[int, Field(ge=0)] = 0
    """Cannot be patched, or a person holds them."""
    failed: Annotated[int, Field(ge=0)] = 0
    """The last attempt failed; the VM is back at what it was unless its own status says otherwise."""
    unreachable: Annotated[int, Field(ge=0)] = 0
    """Could not be reached at the last look."""
    drifted: Annotated[int, Field(ge=0)] = 0
    """Were at the release and no longer are."""


class LastRollout(ApiModel):
    """The newest rollout of the policy. Written before the rollout it names."""

    name: Annotated[str, Field(max_length=253)]
    """Name of the Rollout."""
    number: Annotated[int, Field(ge=1)]
    """Counts up by one with every rollout of the policy."""
    revision: Annotated[str, Field(max_length=64)]
    """What it rolls out."""
    spec_digest: Annotated[str, Field(max_length=80)] = ""
    """Digest of the policy's spec when it began: a changed spec, a new revision or a new retryAt allows another try."""
    uid: Annotated[str, Field(max_length=64)] = ""
    """Empty until the Rollout was seen: a missing rollout without it was never made, with it somebody deleted it."""
    cause: Annotated[str, Field(max_length=32)] = "NewRevision"
    """Why it was made."""
    result: Annotated[str, Field(max_length=32)] = ""
    """Empty while it runs."""


class PolicyBlocker(ApiModel):
    """Something that keeps the running rollout from starting more VMs."""

    reason: Annotated[str, Field(max_length=64)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=512)] = ""
    """A sentence for people."""
    ref: Annotated[str, Field(max_length=300)] | None = None
    """The object that it comes from, as Kind/name."""
    until: Time | None = None
    """When it ends by itself, if that is known."""


class NextAction(ApiModel):
    """What happens next, if nothing changes."""

    at: Time | None = None
    """When; absent if it depends on a person, or on VMs in work."""
    what: Annotated[str, Field(max_length=512)]
    """A sentence."""


class Progress(ApiModel):
    """How far the policy is."""

    wave: Annotated[str, Field(max_length=63)] | None = None
    """Wave that the running rollout is in."""
    done: Annotated[int, Field(ge=0)] = 0
    """Applicable VMs at the release."""
    of: Annotated[int, Field(ge=0)] = 0
    """Applicable VMs."""
    summary: Annotated[str, Field(max_length=64)] = ""
    """The same as a text, such as 643/812."""
    eta: Time | None = None
    """When the running rollout ends if it goes on at its pace so far, soaks included; windows and approvals are not."""


class PatchPolicyStatus(ObservedStatus):
    """Where the VMs of this policy are."""

    target: PolicyTarget | None = None
    """What VMs should be at."""
    counts: PolicyCounts | None = None
    """How many of the selected VMs are where."""
    methods: Annotated[dict[str, int], Field(max_length=8)] | None = None
    """How many VMs need which method."""
    last_rollout: LastRollout | None = None
    """The newest rollout."""
    progress: Progress | None = None
    """How far the policy is."""
    blocked_by: Annotated[tuple[PolicyBlocker, ...], Field(max_length=8)] = ()
    """What keeps the running rollout from starting more VMs."""
    next_action: NextAction | None = None
    """What happens next."""


class PatchPolicy(ApiModel):
    """Which VMs of an endpoint should be at which release, how they get there and how fast."""

    metadata: ObjectMeta
    spec: PatchPolicySpec
    """Which VMs, toward which release, how and when."""
    status: PatchPolicyStatus = PatchPolicyStatus()
    """Where the VMs of this policy are. Written by the operator only."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "size(self.metadata.name) <= 40",
            "the name of a PatchPolicy must not be longer than 40 characters: it becomes part of other names",
        ),
        rule(
            "!has(self.spec.after) || self.spec.after.all(policy, policy.name != self.metadata.name)",
            "spec.after must not name the policy itself: it would never begin",
        ),
    )
