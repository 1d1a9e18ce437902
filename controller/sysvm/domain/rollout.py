"""A rollout's members sorted into buckets, what its status says of them, and when a new rollout may begin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.base import IntOrPercent
from sysvm.api.policy import LastRollout, PatchPolicySpec
from sysvm.api.reasons import Reason
from sysvm.api.rollout import Rollout, RolloutCause, RolloutStatus
from sysvm.domain.facts import VMFacts
from sysvm.domain.planner import Plan


@dataclass(frozen=True, slots=True)
class RolloutView:
    """The members of one rollout, each in exactly one bucket, in the order of the plan."""

    waiting: tuple[VMFacts, ...] = ()
    """Differ, and could be taken."""
    in_work: tuple[VMFacts, ...] = ()
    done: tuple[VMFacts, ...] = ()
    """Their operation in this rollout succeeded, or they are at the revision anyway."""
    failed: tuple[VMFacts, ...] = ()
    """Their operation in this rollout did not succeed."""
    skipped: tuple[VMFacts, ...] = ()
    """Unreachable, on hold, inconsistent or going away: taken after all if that ends while the rollout runs."""
    missing: tuple[str, ...] = ()
    """SystemVM names that are no more, or are another VM (uid) now."""

    @property
    def size(self) -> int:
        return (
            len(self.waiting)
            + len(self.in_work)
            + len(self.done)
            + len(self.failed)
            + len(self.skipped)
            + len(self.missing)
        )


def classify(rollout: Rollout, plan: Plan, vms: Mapping[str, VMFacts]) -> RolloutView:
    """Sorts the members of the plan. `vms`: SystemVM name -> facts, of the endpoint."""
    raise NotImplementedError


def slots(max_unavailable: IntOrPercent, applicable: int) -> int:
    """maxUnavailable as a number: a percentage is rounded down, at least 1."""
    raise NotImplementedError


def outcome(
    rollout: Rollout,
    plan: Plan,
    view: RolloutView,
    *,
    now: datetime,
    superseded: bool = False,
    suspended: str | None = None,
) -> RolloutStatus:
    """The rollout's status.

    `superseded`: the policy now wants something else (another revision, or it is gone): nothing new starts and it ends
    once nothing is in work. `suspended`: the sentence why nothing starts now (policy or endpoint suspended, Observe).
    A result once given stays.
    """
    raise NotImplementedError


def spec_digest(spec: PatchPolicySpec) -> str:
    """`sha256:...` of what may allow another try of a failed revision: the spec without suspend, historyLimit and
    readiness, which change nothing on a VM. retryAt is in it."""
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Start:
    """Whether a rollout toward a revision may begin."""

    allowed: bool
    cause: RolloutCause = RolloutCause.NEW_REVISION
    reason: Reason = Reason.PLAN_COMPUTED
    message: str = ""
    running: bool = False
    """The last rollout has no result yet: look after that one first (supersede it if its revision is another)."""


def may_start(last: LastRollout | None, revision: str, digest: str) -> Start:
    """No way back by accident: a revision whose last rollout ended Failed, Aborted or was deleted is not tried again
    until the policy's spec changes (`digest` = `spec_digest` now), retryAt included, or the revision does.

    After Succeeded another rollout of the same revision may begin (VMs that are new or answer again). `cause` Retry
    goes into `planner.plan(retry=True)`.
    """
    raise NotImplementedError


def finished_to_prune(rollouts: Sequence[Rollout], limit: int) -> tuple[Rollout, ...]:
    """The oldest finished rollouts of a policy beyond `limit`; never one that runs."""
    raise NotImplementedError
