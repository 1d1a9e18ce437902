"""RolloutApproval: say whether it counts. It opens nothing itself: the rollout asks for the approvals of its waves."""

from sysvm.api.base import REQUESTED_AT_ANNOTATION
from sysvm.api.rollout import Rollout
from sysvm.domain.approvals import approval_status, standing
from sysvm.engine.ports import Clock
from sysvm.engine.resources import APPROVAL
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Key
from sysvm.kube.queue import Again


def wave_digests(rollout: Rollout) -> dict[str, str]:
    """Wave -> digest as the rollout's status shows it: what people see is what they sign."""
    return {wave.name: wave.digest for wave in rollout.status.waves}


class ApprovalReconciler:
    """One key: one RolloutApproval."""

    def __init__(self, cluster: Cluster, stores: Stores, clock: Clock, *, guarded: bool) -> None:
        self._cluster = cluster
        self._stores = stores
        self._clock = clock
        self._guarded = guarded

    async def reconcile(self, key: Key) -> Again | None:
        approval = self._stores.approvals.get(key)
        if approval is None or approval.metadata.deletion_timestamp is not None:
            return None
        now = self._clock()
        rollout = self._stores.rollouts.get(Key(key.namespace, approval.spec.rollout_ref.name))
        found = standing(approval, rollout, wave_digests(rollout) if rollout else {}, now, guarded=self._guarded)
        status = approval_status(
            approval,
            found,
            ended=rollout is not None and rollout.status.result is not None,
            requested=approval.metadata.annotations.get(REQUESTED_AT_ANNOTATION),
            now=now,
        )
        if not await write_status(self._cluster, APPROVAL, approval.metadata, approval.status, status):
            return Again(0.1)
        if found.until is not None:
            return Again(max(0.1, (found.until - now).total_seconds()))
        return None
