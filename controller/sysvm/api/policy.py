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
    rule,
)
from sysvm.api.endpoint import SystemVMType
from sysvm.api.template import Signature


class Method(StrEnum):
    """How a difference is closed."""

    LIVE_PATCH = "LivePatch"
    HOLD = "Hold"
    NONE = "None"


class AllowedMethod(StrEnum):
    """LivePatch: changed files are put in place over SSH while the VM runs."""

    LIVE_PATCH = "LivePatch"


class TemplateVersionRule(StrEnum):
    REPORT = "Report"


class ServicesScope(StrEnum):
    AFFECTED = "Affected"


class Heal(StrEnum):
    NEVER = "Never"


class ExcludedVM(ApiModel):
    """A VM that this policy leaves alone."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of the VM, exactly."""
    reason: ShortText = ""
    """Shown to people."""


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

    services: ServicesScope = ServicesScope.AFFECTED
    """Affected: only services whose files changed get an action, the least one that makes the change effective."""
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
    """Never: it is reported and the policy is not Ready."""


class Strategy(ApiModel):
    """How fast."""

    max_unavailable: IntOrPercent = 1
    """VMs in work or failed at once: a count, or a percentage of the applicable VMs rounded down, at least 1."""
    per_host: Annotated[int, Field(ge=1, le=100)] = 2
    """VMs in work at once on one hypervisor host."""
    timeouts: Timeouts = Timeouts()
    """When a VM in work counts as failed."""


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
    """Report: a VM whose template is older than the release shows the condition TemplateOutdated and stays as it is."""
    selector: Selector = Selector()
    """Which VMs of the endpoint; empty means all."""
    methods: Annotated[
        tuple[AllowedMethod, ...],
        Field(min_length=1, max_length=3, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = (AllowedMethod.LIVE_PATCH,)
    """Allowed methods, least disruptive first; a method that is not listed is never used. LivePatch: changed files are
    put in place over SSH while the VM runs."""
    live_patch: LivePatchOptions = LivePatchOptions()
    """How a live patch works."""
    drift: DriftOptions = DriftOptions()
    """What happens when a VM that was at the release no longer is."""
    strategy: Strategy = Strategy()
    """How fast."""
    checks: Checks = Checks()
    """What is looked at before and after."""
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


class Progress(ApiModel):
    """How far the policy is."""

    done: Annotated[int, Field(ge=0)] = 0
    """Applicable VMs at the release."""
    of: Annotated[int, Field(ge=0)] = 0
    """Applicable VMs."""
    summary: Annotated[str, Field(max_length=64)] = ""
    """The same as a text, such as 643/812."""


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
    )
