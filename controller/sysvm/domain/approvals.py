"""Whether an approval counts, and whether a wave or a closed window may be opened by a person.

An approval is a person's word about exactly one list of VMs. Whatever makes it say less than that (other members,
another rollout of the same name, nobody who checks who wrote it) makes it void, and a void approval opens nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sysvm.api.approval import RolloutApproval, RolloutApprovalStatus, Verdict
from sysvm.api.base import format_time
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.rollout import Rollout
from sysvm.domain import conditions
from sysvm.domain.conditions import Wanted

BREAK_GLASS_LIMIT = timedelta(hours=12)
"""The longest that a calendar may be ignored, from the moment the operator first saw the wish."""

UNGUARDED = (
    "nothing checks who wrote it, because the chart's admission policies are not installed: "
    "install it with admissionPolicies.enabled"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one approval is worth now."""

    counts: bool
    reason: Reason
    message: str
    until: datetime | None = None
    """When that changes by itself."""
    final: bool = False
    """Nothing but another object changes it any more."""


@dataclass(frozen=True, slots=True)
class WaveGate:
    """Whether a wave that needs an approval may begin."""

    open: bool
    reason: Reason
    message: str
    skip_soak: bool = False
    until: datetime | None = None
    """When an open gate closes by itself."""


def standing(
    approval: RolloutApproval, rollout: Rollout | None, digests: Mapping[str, str], now: datetime, *, guarded: bool
) -> Standing:
    """Whether an approval counts. `digests`: wave -> digest, of what the rollout would do now; `guarded`: the
    admission policies that prove the approver are installed."""
    spec = approval.spec
    name = spec.rollout_ref.name
    if not guarded:
        return Standing(False, Reason.APPROVAL_UNGUARDED, f"it does not count: {UNGUARDED}", final=True)
    if rollout is None:
        return Standing(False, Reason.ROLLOUT_NOT_FOUND, f"there is no rollout {name}: make the approval once there is")
    if _is_older(approval, rollout):
        told = f"it was made before rollout {name}, so it cannot have been about it: make it again"
        return Standing(False, Reason.APPROVAL_VOID, told, final=True)
    if spec.expires_at is not None and now >= spec.expires_at:
        told = f"it expired at {format_time(spec.expires_at)}: make another"
        return Standing(False, Reason.APPROVAL_EXPIRED, told, final=True)
    digest = digests.get(spec.wave)
    if digest is None:
        waves = ", ".join(digests) or "none yet"
        return Standing(False, Reason.WAVE_NOT_FOUND, f"rollout {name} has no wave {spec.wave}; its waves: {waves}")
    if digest != spec.wave_digest:
        told = (
            f"the VMs of wave {spec.wave}, or what is done with them, are not what was looked at: "
            f"its digest is {digest} now. Look at the rollout and approve that one"
        )
        return Standing(False, Reason.APPROVAL_VOID, told)
    told = f"wave {spec.wave} of {name} is {spec.decision.lower()} by {spec.approver}"
    reason = Reason.APPROVED if spec.decision is Verdict.APPROVED else Reason.REJECTED
    return Standing(True, reason, told, until=spec.expires_at)


def _is_older(approval: RolloutApproval, rollout: Rollout) -> bool:
    """Names of rollouts can be foreseen, and who may approve is asked of the policy that a rollout belongs to: an
    approval that was there first was asked nothing. Times have whole seconds."""
    made, begun = approval.metadata.creation_timestamp, rollout.metadata.creation_timestamp
    return made is not None and begun is not None and made < begun


def wave_gate(
    rollout: Rollout,
    wave: str,
    digests: Mapping[str, str],
    approvals: Iterable[RolloutApproval],
    now: datetime,
    *,
    guarded: bool,
) -> WaveGate:
    """Whether `wave` of the rollout may begin, or go on, by the approvals that there are. One rejection keeps it
    closed; among several approvals the one that lasts longest counts."""
    digest = digests.get(wave, "")
    mine = [
        (approval, standing(approval, rollout, digests, now, guarded=guarded))
        for approval in approvals
        if approval.spec.rollout_ref.name == rollout.metadata.name
        and approval.metadata.namespace == rollout.metadata.namespace
        and approval.spec.wave == wave
        and approval.metadata.deletion_timestamp is None
    ]
    counting = sorted((found for found in mine if found[1].counts), key=lambda found: found[0].metadata.name)
    rejected = [found for found in counting if found[0].spec.decision is Verdict.REJECTED]
    if rejected:
        approval = rejected[0][0]
        why = f": {approval.spec.comment}" if approval.spec.comment else ""
        told = f"{approval.spec.approver} rejected wave {wave} in RolloutApproval {approval.metadata.name}{why}"
        return WaveGate(False, Reason.REJECTED, told, until=_earliest(rejected))
    if counting:
        unlimited = [found for found in counting if found[1].until is None]
        until = None if unlimited else max(found[1].until for found in counting if found[1].until is not None)
        skip = any(approval.spec.skip_soak for approval, _ in counting)
        return WaveGate(True, Reason.APPROVED, counting[0][1].message, skip_soak=skip, until=until)
    return WaveGate(False, Reason.WAITING_FOR_APPROVAL, _sentence(wave, digest, mine, guarded=guarded))


def _earliest(found: list[tuple[RolloutApproval, Standing]]) -> datetime | None:
    return min((standing.until for _, standing in found if standing.until is not None), default=None)


def _sentence(wave: str, digest: str, found: list[tuple[RolloutApproval, Standing]], *, guarded: bool) -> str:
    told = f"wave {wave} waits for a RolloutApproval of its digest {digest}"
    if not guarded:
        return f"{told}; none will count: {UNGUARDED}"
    if not found:
        return told
    approval, last = max(found, key=lambda each: each[0].metadata.name)
    return f"{told}; {approval.metadata.name} does not count: {last.message}"


def approval_status(
    approval: RolloutApproval, found: Standing, *, ended: bool, requested: str | None, now: datetime
) -> RolloutApprovalStatus:
    """What the approval says of itself. `ended`: its rollout has its result, so nothing can be opened any more."""
    return RolloutApprovalStatus(
        observed_generation=approval.metadata.generation,
        conditions=conditions.merged(
            approval.status.conditions,
            _said(found, ended=ended),
            generation=approval.metadata.generation,
            now=now,
        ),
        last_handled_reconcile_at=requested,
    )


def _said(found: Standing, *, ended: bool) -> list[Wanted]:
    if found.counts or ended:
        return [conditions.true(ConditionType.READY, found.reason, found.message)]
    said = [conditions.false(ConditionType.READY, found.reason, found.message)]
    if found.reason is not Reason.ROLLOUT_NOT_FOUND:
        said.append(conditions.true(ConditionType.STALLED, found.reason, found.message))
    return said


def glass_broken_until(rollout: Rollout, now: datetime, *, guarded: bool) -> datetime | None:
    """Until when the calendar is ignored; None: it counts.

    `status.breakGlass.since` is stored before it is relied on: without it a restart would begin the twelve hours anew.
    """
    wish, seen = rollout.spec.break_glass, rollout.status.break_glass
    if wish is None or seen is None or not guarded or seen.reason != wish.reason:
        return None
    until = min(wish.until, seen.since + BREAK_GLASS_LIMIT)
    return until if now < until else None
