"""What keeps a rollout, or one of its waves, from taking more VMs: asked by admission before it hands out work, and by
the rollout when it says why it waits, so that the two can never disagree.
"""

from collections.abc import Mapping
from datetime import datetime

from sysvm.api.policy import PolicyBlocker
from sysvm.api.reasons import Reason
from sysvm.api.rollout import CloudStatus, DesiredState, Rollout
from sysvm.domain.approvals import WaveGate
from sysvm.domain.budgets import Budget
from sysvm.domain.calendar import Opening
from sysvm.domain.conditions import bounded
from sysvm.domain.failure import failures_of
from sysvm.domain.members import RolloutView

MESSAGE_LIMIT = 512

WAITING = frozenset(
    {
        Reason.OUTSIDE_WINDOW,
        Reason.FROZEN,
        Reason.WINDOW_CUTOFF,
        Reason.WINDOW_NOT_FOUND,
        Reason.INVALID_SCHEDULE,
        Reason.WAITING_FOR_APPROVAL,
        Reason.REJECTED,
        Reason.SOAKING,
        Reason.PAUSED,
        Reason.CLOUD_CHANGED,
    }
)
"""Nothing is wrong and nothing happens: neither Reconciling nor Stalled."""


def blocker(reason: Reason, message: str, *, ref: str | None = None, until: datetime | None = None) -> PolicyBlocker:
    return PolicyBlocker(reason=str(reason), message=bounded(message, MESSAGE_LIMIT), ref=ref, until=until)


def person_gate(rollout: Rollout, *, superseded: bool) -> PolicyBlocker | None:
    """What people decided about this rollout."""
    name = rollout.metadata.name
    if rollout.metadata.deletion_timestamp is not None:
        return blocker(Reason.DELETING, f"rollout {name} is being deleted")
    if rollout.spec.state is DesiredState.ABORTED:
        return blocker(Reason.ABORTED, f"rollout {name} is aborted")
    if superseded:
        return blocker(Reason.SUPERSEDED, f"rollout {name} is superseded: its policy wants something else by now")
    if rollout.spec.state is DesiredState.PAUSED:
        return blocker(Reason.PAUSED, f"rollout {name} is paused")
    return None


def cloud_gate(rollout: Rollout, cloud: CloudStatus | None, *, unseen: bool) -> PolicyBlocker | None:
    """A cloud that is another than the one it was planned for, until a person accepts that very one; `unseen`: nobody
    has looked at the cloud since the operator began."""
    name = rollout.metadata.name
    if cloud is not None and rollout.spec.accept_cloud != cloud.word:
        what = "; ".join(cloud.changes) or "it changed, and is now what it was"
        told = (
            f"since rollout {name} was planned, {what}. To go on as planned set its spec.acceptCloud to {cloud.word}; "
            "to plan anew abort it and set spec.retryAt of the policy"
        )
        return blocker(Reason.CLOUD_CHANGED, told)
    if unseen:
        return blocker(Reason.DISCOVERING, "the cloud must be listed first: the operator has just begun")
    return None


def is_over(rollout: Rollout, *, superseded: bool) -> bool:
    """It takes no VM any more, for good."""
    return superseded or rollout.metadata.deletion_timestamp is not None or rollout.spec.state is DesiredState.ABORTED


def budget_gate(rollout: Rollout, view: RolloutView, budget: Budget) -> PolicyBlocker | None:
    if budget.spent is None:
        return None
    why = failures_of(view.failed) or budget.spent
    return blocker(Reason.VM_FAILED, f"rollout {rollout.metadata.name} takes no more: {why}")


def calendar_gate(opening: Opening | None) -> PolicyBlocker | None:
    """`opening`: the calendar of its policy now; None: there is none, any time will do."""
    if opening is None or opening.may_start:
        return None
    return blocker(opening.reason or Reason.OUTSIDE_WINDOW, opening.message, ref=opening.ref, until=opening.next_open)


def approval_gate(rollout: Rollout, wave: str, gates: Mapping[str, WaveGate]) -> PolicyBlocker | None:
    """`gates`: wave -> what approvals say of it now; one that needs an approval and is not there is closed."""
    if wave not in rollout.spec.snapshot.approval.before:
        return None
    gate = gates.get(wave)
    if gate is None:
        return blocker(Reason.WAITING_FOR_APPROVAL, f"wave {wave} waits for a RolloutApproval")
    return None if gate.open else blocker(gate.reason, gate.message, until=gate.until)


def wave_gate(wave: str, current: str) -> PolicyBlocker:
    """A wave after the current one. The sentence has no figures, so that it stays the same while it waits."""
    return blocker(Reason.WAITING_FOR_WAVE, f"wave {wave} starts when wave {current} is done and has soaked")
