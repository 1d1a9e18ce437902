"""PatchPolicy: which VMs, toward which release, how and when."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import ApiModel, Duration, NameRef, ObjectMeta, ObservedStatus, ShortText, Time, at_most, rule
from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import AllowedMethod, LivePatchOptions
from sysvm.api.strategy import Strategy, WaveName
from sysvm.api.template import Signature


class TemplateVersionRule(StrEnum):
    REPORT = "Report"
    REQUIRE = "Require"


class Heal(StrEnum):
    NEVER = "Never"
    AUTOMATIC = "Automatic"


class RedundancyKind(StrEnum):
    REDUNDANT = "Redundant"
    SINGLE = "Single"


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


class DriftOptions(ApiModel):
    """What happens when a VM that was at the release no longer is."""

    heal: Heal = Heal.NEVER
    """Never: it is reported and the policy is not Ready. Automatic: changed files are put back by a rollout of cause
    Drift, within windows, waves and budgets; a VM that was put back three times in 24 hours is held, because somebody
    else changes it again and again. A failed service is only reported in both cases."""


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
    stopped by them. One of whose kind the cloud has no VM is passed over; those that it names are waited for in its
    place. Empty: it begins by itself."""
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
