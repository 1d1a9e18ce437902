"""Rollout: count where its members are and say what follows. It hands out no work: admission does, for all rollouts."""

from datetime import datetime

from sysvm.api.base import OPERATION_FINALIZER
from sysvm.api.endpoint import CloudStackEndpoint, Management
from sysvm.api.policy import PatchPolicy
from sysvm.api.reasons import ConditionType, EventReason, Reason
from sysvm.api.rollout import Rollout, RolloutPhase, RolloutResult, RolloutStatus
from sysvm.domain.conditions import false, merged, true
from sysvm.domain.facts import facts_of, release_of
from sysvm.domain.planner import Plan
from sysvm.domain.rollout import classify, outcome
from sysvm.engine.notices import Notices
from sysvm.engine.plans import PlanMissing, Plans
from sysvm.engine.ports import Clock
from sysvm.engine.resources import ROLLOUT
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores, endpoint_of, template_of
from sysvm.engine.system_vm import open_order
from sysvm.kube.client import Cluster
from sysvm.kube.errors import Conflict, NotFound
from sysvm.kube.objects import Key
from sysvm.kube.queue import Again


class RolloutReconciler:
    """One key: one Rollout."""

    def __init__(self, cluster: Cluster, stores: Stores, plans: Plans, notices: Notices, clock: Clock) -> None:
        self._cluster = cluster
        self._stores = stores
        self._plans = plans
        self._notices = notices
        self._clock = clock

    async def reconcile(self, key: Key) -> Again | None:
        rollout = self._stores.rollouts.get(key)
        if rollout is None:
            self._plans.forget(key)
            return None
        now = self._clock()
        try:
            plan = await self._plans.of(rollout)
        except PlanMissing as error:
            return await self._without_plan(rollout, error, now)
        status = self._outcome(rollout, plan, now)
        if not await self._write(rollout, status):
            return Again(0.1)
        if OPERATION_FINALIZER in rollout.metadata.finalizers and not self._in_work(rollout):
            deleting = rollout.metadata.deletion_timestamp is not None
            if deleting or status.result is not None:
                return await self._let_go(rollout)
        return None

    def _outcome(self, rollout: Rollout, plan: Plan, now: datetime) -> RolloutStatus:
        endpoint = self._stores.endpoints.get(endpoint_of(rollout))
        policy = self._stores.policies.get(Key(rollout.metadata.namespace, rollout.spec.policy_ref.name))
        scan = endpoint.spec.scan if endpoint is not None else None
        vms = {vm.metadata.name: facts_of(vm, now=now, scan=scan) for vm in self._stores.vms_of(endpoint_of(rollout))}
        view = classify(rollout, plan, vms)
        return outcome(
            rollout,
            plan,
            view,
            now=now,
            superseded=is_superseded(rollout, policy, self._stores),
            suspended=_suspended(endpoint, policy),
        )

    async def _write(self, rollout: Rollout, status: RolloutStatus) -> bool:
        if not await write_status(self._cluster, ROLLOUT, rollout.metadata, rollout.status, status):
            return False
        if status.result is not None and rollout.status.result is None:
            self._tell_end(rollout, status)
        return True

    async def _without_plan(self, rollout: Rollout, error: PlanMissing, now: datetime) -> Again | None:
        """Nothing can be decided without what was signed; VMs in work end alone, and the revision is not retried."""
        if rollout.status.result is None:
            message = f"{error}; VMs in work are finished, nothing new starts"
            conditions = merged(
                rollout.status.conditions,
                (
                    false(ConditionType.READY, Reason.PLAN_MISSING, message),
                    true(ConditionType.STALLED, Reason.PLAN_MISSING, message),
                ),
                generation=rollout.metadata.generation,
                now=now,
            )
            status = rollout.status.model_copy(
                update={
                    "phase": RolloutPhase.DONE,
                    "result": RolloutResult.FAILED,
                    "finished_at": now,
                    "conditions": conditions,
                    "observed_generation": rollout.metadata.generation,
                }
            )
            if not await self._write(rollout, status):
                return Again(0.1)
        if OPERATION_FINALIZER in rollout.metadata.finalizers and not self._in_work(rollout):
            return await self._let_go(rollout)
        return None

    def _in_work(self, rollout: Rollout) -> bool:
        return any(
            (order := open_order(vm)) is not None and order.rollout == rollout.metadata.name
            for vm in self._stores.vms_of(endpoint_of(rollout))
        )

    async def _let_go(self, rollout: Rollout) -> Again | None:
        finalizers = [name for name in rollout.metadata.finalizers if name != OPERATION_FINALIZER]
        try:
            await self._cluster.merge_patch(
                ROLLOUT,
                rollout.metadata.namespace,
                rollout.metadata.name,
                {"metadata": {"finalizers": finalizers or None}},
                resource_version=rollout.metadata.resource_version,
            )
        except NotFound:
            return None
        except Conflict:
            return Again(0.1)
        return None

    def _tell_end(self, rollout: Rollout, status: RolloutStatus) -> None:
        reason = {
            RolloutResult.SUCCEEDED: EventReason.ROLLOUT_SUCCEEDED,
            RolloutResult.FAILED: EventReason.ROLLOUT_FAILED,
        }.get(status.result or RolloutResult.FAILED, EventReason.ROLLOUT_ENDED)
        ready = next((condition for condition in status.conditions if condition.type == ConditionType.READY), None)
        note = ready.message if ready is not None and ready.message else f"{rollout.metadata.name}: {status.result}"
        self._notices.tell(
            ROLLOUT,
            rollout.metadata,
            reason,
            "Roll",
            note,
            warning=status.result is RolloutResult.FAILED,
        )


def is_superseded(rollout: Rollout, policy: PatchPolicy | None, stores: Stores) -> bool:
    """Its policy is gone, or wants another revision. One whose release is not readable yet wants what it wanted."""
    if policy is None or policy.metadata.deletion_timestamp is not None:
        return True
    template = stores.templates.get(template_of(policy))
    if template is None:
        return policy.spec.template_ref.name != rollout.spec.template_ref.name
    release = release_of(template)
    if release is None:
        return policy.spec.template_ref.name != rollout.spec.template_ref.name
    return release.revision != rollout.spec.revision


def _suspended(endpoint: CloudStackEndpoint | None, policy: PatchPolicy | None) -> str | None:
    if policy is not None and policy.spec.suspend:
        return f"policy {policy.metadata.name} is suspended"
    if endpoint is not None and endpoint.spec.suspend:
        return f"endpoint {endpoint.metadata.name} is suspended"
    if endpoint is not None and endpoint.spec.management is not Management.FULL:
        return f"endpoint {endpoint.metadata.name} has management: {endpoint.spec.management}: nothing is changed"
    return None
