"""Rollout: count where its members are and say what follows. It hands out no work: admission does, for all rollouts."""

from dataclasses import replace
from datetime import datetime

from sysvm.api.base import OPERATION_FINALIZER, format_time
from sysvm.api.reasons import ConditionType, EventReason, Reason
from sysvm.api.rollout import BreakGlassStatus, Rollout, RolloutPhase, RolloutResult, RolloutStatus
from sysvm.domain.approvals import UNGUARDED, glass_broken_until
from sysvm.domain.conditions import false, merged, true
from sysvm.domain.members import RolloutView, classify
from sysvm.domain.planner import Plan
from sysvm.domain.rollout import Live, next_change, outcome
from sysvm.domain.running import in_pairs
from sysvm.engine.group_operation import Advanced, GroupOperations
from sysvm.engine.listings import swept_facts
from sysvm.engine.live import live_of
from sysvm.engine.notices import Notices
from sysvm.engine.plans import PlanMissing, Plans
from sysvm.engine.ports import Clock, SnapshotOf, no_cloud
from sysvm.engine.resources import ROLLOUT
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores, endpoint_of, key_of
from sysvm.kube.client import Cluster
from sysvm.kube.errors import Conflict, NotFound
from sysvm.kube.objects import Key
from sysvm.kube.queue import Again

LONGEST_WAIT_SECONDS = 3600.0


class RolloutReconciler:
    """One key: one Rollout."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        plans: Plans,
        notices: Notices,
        groups: GroupOperations,
        clock: Clock,
        *,
        guarded: bool,
        snapshot_of: SnapshotOf = no_cloud,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._plans = plans
        self._notices = notices
        self._groups = groups
        self._clock = clock
        self._guarded = guarded
        self._snapshot_of = snapshot_of

    async def reconcile(self, key: Key) -> Again | None:
        rollout = self._stores.rollouts.get(key)
        if rollout is None:
            self._plans.forget(key)
            return None
        now = self._clock()
        # Calls to the management server are followed whatever else becomes of the rollout.
        groups = self._groups.advance(rollout, now)
        seen = rollout.model_copy(
            update={"status": rollout.status.model_copy(update={"group_operations": groups.operations})}
        )
        try:
            plan = await self._plans.of(rollout)
        except PlanMissing as error:
            return await self._without_plan(rollout, seen, error, groups, now)
        view, live = self._look(seen, plan, now)
        status = outcome(seen, plan, view, live, now=now)
        if not await self._write(rollout, status):
            return Again(0.1)
        self._groups.begin(rollout, groups, now)
        if OPERATION_FINALIZER in rollout.metadata.finalizers and not self._in_work(rollout):
            deleting = rollout.metadata.deletion_timestamp is not None
            if deleting or status.result is not None:
                return await self._let_go(rollout)
        again = _again(status, next_change(rollout, status, view, live, now=now), now)
        return _sooner(again, groups)

    def _look(self, rollout: Rollout, plan: Plan, now: datetime) -> tuple[RolloutView, Live]:
        endpoint = endpoint_of(rollout)
        snapshot = self._snapshot_of(endpoint)
        vms = {facts.name: facts for facts in in_pairs(swept_facts(self._stores, endpoint, snapshot, now))}
        live = replace(
            live_of(
                rollout,
                plan,
                self._stores,
                vms,
                now,
                guarded=self._guarded,
                snapshot=snapshot,
            ),
            held_back={
                vm.metadata.name: vm.status.plan.blocked_by[0]
                for vm in self._stores.vms_of(endpoint)
                if vm.status.plan is not None and vm.status.plan.blocked_by
            },
        )
        return classify(rollout, plan, vms), live

    async def _write(self, rollout: Rollout, status: RolloutStatus) -> bool:
        if not await write_status(self._cluster, ROLLOUT, rollout.metadata, rollout.status, status):
            return False
        if status.result is not None and rollout.status.result is None:
            self._tell_end(rollout, status)
        if status.break_glass is not None and status.break_glass != rollout.status.break_glass:
            self._tell_glass(rollout, status, status.break_glass)
        return True

    def _tell_glass(self, rollout: Rollout, status: RolloutStatus, glass: BreakGlassStatus) -> None:
        seen = rollout.model_copy(update={"status": status})
        until = glass_broken_until(seen, glass.since, guarded=self._guarded)
        reason = EventReason.GLASS_BROKEN
        note = f"the calendar is ignored since {format_time(glass.since)}: {glass.reason}"
        if until is None:
            reason = EventReason.GLASS_REFUSED
            why = "its until is over" if self._guarded else UNGUARDED
            note = f"breakGlass ({glass.reason}) does not count: {why}"
        self._notices.tell(ROLLOUT, rollout.metadata, reason, "BreakGlass", note, warning=True)

    async def _without_plan(
        self, rollout: Rollout, seen: Rollout, error: PlanMissing, groups: Advanced, now: datetime
    ) -> Again | None:
        """Nothing can be decided without what was signed; VMs in work end alone, and the revision is not retried."""
        status = seen.status
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
            status = status.model_copy(
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
        self._groups.begin(rollout, groups, now)
        if OPERATION_FINALIZER in rollout.metadata.finalizers and not self._in_work(rollout):
            return await self._let_go(rollout)
        return _sooner(None, groups)

    def _in_work(self, rollout: Rollout) -> bool:
        return bool(self._stores.ordered_by(key_of(rollout)))

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


def _sooner(again: Again | None, groups: Advanced) -> Again | None:
    if groups.again is None:
        return again
    seconds = max(0.1, groups.again.total_seconds())
    return Again(seconds) if again is None else Again(min(seconds, again.after_seconds))


def _again(status: RolloutStatus, moment: datetime | None, now: datetime) -> Again | None:
    """When the status changes by itself, at the latest in an hour: the clock may jump meanwhile."""
    if moment is None or status.result is not None:
        return None
    return Again(min(max(0.1, (moment - now).total_seconds()), LONGEST_WAIT_SECONDS))
