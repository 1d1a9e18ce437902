"""What a PatchPolicy says: the one table from situation to conditions, counts, progress and methods.

Ready speaks of the applicable VMs; the message counts the rest. Conditions follow the kstatus contract: Reconciling and
Stalled are there only when true and never together, and every condition carries the generation it speaks of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.policy import LastRollout, PatchPolicy, PatchPolicyStatus
from sysvm.api.rollout import Rollout
from sysvm.api.template import SystemVMTemplate
from sysvm.domain.method import Decision
from sysvm.domain.selection import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySituation:
    """Everything the status is made of."""

    policy: PatchPolicy
    endpoint: CloudStackEndpoint | None
    template: SystemVMTemplate | None
    selection: Selection
    decisions: Mapping[str, Decision]
    """SystemVM name -> decision (`planner.decide_all`); empty while the release is not known."""
    rollout: Rollout | None = None
    """The one that lastRollout names, if it is there."""
    last_rollout: LastRollout | None = None
    """What goes into the status; with it failures are told from news (`rollout.may_start`)."""


def policy_status(situation: PolicySituation, *, now: datetime) -> PatchPolicyStatus:
    """The whole status but lastHandledReconcileAt, which is kept. Only the policy's own reconciler writes it."""
    raise NotImplementedError
