"""When a rollout may begin, and how many finished ones are kept."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sysvm.api.policy import LastRollout, PatchPolicySpec
from sysvm.api.reasons import Reason
from sysvm.api.rollout import Rollout, RolloutCause, RolloutResult
from sysvm.domain.facts import short


def spec_digest(spec: PatchPolicySpec) -> str:
    """`sha256:...` of what may allow another try of a failed revision: the spec without suspend, historyLimit,
    readiness and windowRefs, which change nothing that is done to a VM. retryAt is in it."""
    said = {field: value for field, value in spec.to_dict().items() if field not in _WITHOUT_EFFECT_ON_VMS}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


_WITHOUT_EFFECT_ON_VMS = frozenset({"suspend", "historyLimit", "readiness", "windowRefs"})


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
    """No way back by accident: a revision whose last rollout ended Failed, Aborted, RolledBack or was deleted is not
    tried again until the policy's spec changes (`digest` = `spec_digest` now), retryAt included, or the revision does.

    After Succeeded, Superseded or NotNeeded another rollout of the same revision may begin: for VMs that are new, or
    answer again.
    """
    if last is None:
        return Start(allowed=True)
    if not last.result:
        return Start(
            allowed=False, running=True, reason=Reason.ROLLING_OUT, message=f"rollout {last.name} has not ended yet"
        )
    if last.revision != revision or last.result in _NO_FAILURE:
        return Start(allowed=True)
    if last.spec_digest != digest:
        return Start(allowed=True, cause=RolloutCause.RETRY)
    ended = "was deleted" if last.result == Reason.ROLLOUT_DELETED else f"ended {last.result}"
    return Start(
        allowed=False,
        reason=Reason.NO_WAY_BACK,
        message=f"{short(revision)} is not tried again by itself: rollout {last.name} {ended}. "
        "Set spec.retryAt, change the policy, or declare another release",
    )


_NO_FAILURE = (RolloutResult.SUCCEEDED, RolloutResult.SUPERSEDED, Reason.NOT_NEEDED)


def finished_to_prune(rollouts: Sequence[Rollout], limit: int) -> tuple[Rollout, ...]:
    """The oldest finished rollouts of a policy beyond `limit`; never one that runs."""
    ended = sorted(
        (rollout for rollout in rollouts if rollout.status.result is not None),
        key=lambda rollout: (rollout.spec.number, rollout.metadata.name),
    )
    return tuple(ended[: max(0, len(ended) - limit)])


def edited_since(rollout: Rollout, spec: PatchPolicySpec) -> tuple[str, ...]:
    """Parts of the policy that differ by now from what this rollout keeps."""
    kept, now = rollout.spec.snapshot.to_dict(), spec.to_dict()
    return tuple(part for part in kept if kept[part] != now.get(part))
