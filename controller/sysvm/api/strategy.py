"""How fast a rollout goes, in which order, and how much may go wrong."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import ApiModel, Duration, IntOrPercent, at_least, at_most, compare_durations, matching, rule


class OrderKey(StrEnum):
    PRIORITY = "priority"
    NAME = "name"


class OnBudgetSpent(StrEnum):
    PAUSE = "Pause"
    ROLL_BACK = "RollBack"


class RetryReason(StrEnum):
    """Failures that pass by themselves, and before which nothing of the VM was changed. Of a call to the management
    server only before it was made."""

    SSH_UNREACHABLE = "SSHUnreachable"
    SSH_TIMEOUT = "SSHTimeout"
    HOST_UNREACHABLE = "HostUnreachable"
    VM_BUSY = "VMBusy"
    LOCK_HELD = "LockHeld"
    OTHER_ACTOR = "OtherActor"
    HAPROXY_DRAINING = "HaproxyDraining"
    JOB_RUNNING = "JobRunning"
    HOST_NOT_READY = "HostNotReady"
    NO_CAPACITY = "NoCapacity"
    CLOUD_CHANGED = "CloudChanged"


class Timeouts(ApiModel):
    """When a VM in work counts as failed."""

    step: Annotated[Duration, at_least("10s")] = timedelta(minutes=10)
    """One step of an operation; then the VM goes back to what it was. At least 10s."""
    vm: Duration = timedelta(minutes=30)
    """A whole operation; then the VM goes back to what it was. Not shorter than step."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(compare_durations("self.vm", ">=", "self.step"), "vm must not be shorter than step"),
    )


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
    maxUnavailable: once failed VMs fill that, the budget is spent too. One for which the management server was not
    called, because that could not be done in time, does not count: nothing was changed."""

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
