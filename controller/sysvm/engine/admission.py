"""Admission: the one writer of `SystemVM.spec.operation`, one queue key an endpoint, so that no two rollouts can break
a budget together.

Each order is one write that carries the VM's resourceVersion and brings the finalizer with it: a restart finds a VM
with an order and its finalizer, or without both. Before the first order the rollout gets its finalizer, so that the
snapshot an order needs stays while a VM is in work; a restart that finds it there without any order goes on or takes
it off.

A restart that finds an order that was never begun decides about it anew. What still holds begins as it stands, without
a write; what does not is withdrawn, finalizer included, in one write.
"""

import logging
from collections.abc import Callable

from sysvm.api.base import OPERATION_FINALIZER
from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.rollout import Rollout
from sysvm.api.systemvm import SystemVM
from sysvm.domain import admission
from sysvm.domain.admission import Admission, EndpointState
from sysvm.domain.facts import VMFacts, facts_of
from sysvm.domain.ledger import RunningRollout
from sysvm.engine.board import Board
from sysvm.engine.listings import swept_facts
from sysvm.engine.live import live_of
from sysvm.engine.plans import PlanMissing, Plans
from sysvm.engine.ports import Clock, SnapshotOf, no_cloud
from sysvm.engine.resources import ROLLOUT, SYSTEM_VM
from sysvm.engine.stores import Stores
from sysvm.kube.client import Cluster
from sysvm.kube.errors import Conflict, NotFound
from sysvm.kube.objects import Key, merge_patch_between
from sysvm.kube.queue import Again

logger = logging.getLogger(__name__)

CONFLICT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 3600.0
"""The clock may jump meanwhile."""


class AdmissionReconciler:
    """One key: one CloudStackEndpoint, all its VMs and rollouts."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        plans: Plans,
        board: Board,
        epoch: int,
        wake_vm: Callable[[Key], None],
        wake_rollout: Callable[[Key], None],
        clock: Clock,
        *,
        guarded: bool,
        snapshot_of: SnapshotOf = no_cloud,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._plans = plans
        self._board = board
        self._epoch = epoch
        self._wake_vm = wake_vm
        self._wake_rollout = wake_rollout
        self._clock = clock
        self._guarded = guarded
        self._snapshot_of = snapshot_of

    async def reconcile(self, key: Key) -> Again | None:
        endpoint = self._stores.endpoints.get(key)
        if endpoint is None:
            return await self._let_go(key)
        state = await self._look(key, endpoint)
        decided = admission.admit(state)
        self._board.confirm(key, decided.confirmed & self._board.confirmed(key))  # none before those that give way
        for facts in decided.withdrawn:
            if not await self._withdraw(key.namespace, facts):
                return Again(CONFLICT_SECONDS)
        if self._board.confirm(key, decided.confirmed):
            for facts in state.vms:
                if facts.order is not None and facts.order.id in decided.confirmed:
                    self._wake_vm(Key(key.namespace, facts.name))
                    self._wake_rollout(Key(key.namespace, facts.order.rollout))
        if any(rollout.live.cloud_unseen for rollout in state.rollouts):
            # Nothing would be admitted, and why VMs wait is written in them: it stands until the first sweep of this
            # process, which wakes this key. Written anew at every restart it could be all that a short life writes.
            return None
        for vm in self._board.post(key, decided.blocked, decided.look_at):
            self._wake_vm(vm)
        for admitted in decided.admitted:
            if not await self._hand_out(key.namespace, admitted):
                return Again(CONFLICT_SECONDS)
        if decided.next_change is None:
            return None
        wait = (decided.next_change - self._clock()).total_seconds()
        return Again(min(max(CONFLICT_SECONDS, wait), LONGEST_WAIT_SECONDS))

    async def _look(self, key: Key, endpoint: CloudStackEndpoint) -> EndpointState:
        now = self._clock()
        snapshot = self._snapshot_of(key)
        facts = {found.name: found for found in swept_facts(self._stores, key, snapshot, now)}
        running: list[RunningRollout] = []
        for rollout in self._stores.rollouts_on(key):
            if rollout.status.result is not None:
                continue
            try:
                plan = await self._plans.of(rollout)
            except PlanMissing:
                continue  # the rollout's own reconciler says so and ends it
            live = live_of(rollout, plan, self._stores, facts, now, guarded=self._guarded, snapshot=snapshot)
            running.append(RunningRollout(rollout=rollout, plan=plan, live=live))
        return EndpointState(
            endpoint=key.name,
            now=now,
            management=endpoint.spec.management,
            epoch=self._epoch,
            vms=tuple(facts.values()),
            rollouts=tuple(running),
            suspended=endpoint.spec.suspend,
            deleting=endpoint.metadata.deletion_timestamp is not None,
            called_for=self._called_for(key),
        )

    async def _let_go(self, key: Key) -> Again | None:
        """Without the endpoint nobody begins anything any more. What has begun is followed to its end."""
        now, called_for = self._clock(), self._called_for(key)
        for facts in swept_facts(self._stores, key, None, now):
            left = admission.was_never_begun(facts, self._epoch, called_for)
            if left and not await self._withdraw(key.namespace, facts):
                return Again(CONFLICT_SECONDS)
        return None

    def _called_for(self, key: Key) -> frozenset[str]:
        """Orders that calls answer, of whatever rollout: also of one that has ended, or has no plan."""
        operations = (op for rollout in self._stores.rollouts_on(key) for op in rollout.status.group_operations)
        return frozenset(order for op in operations for order in op.orders)

    def _as_decided(self, namespace: str, facts: VMFacts) -> SystemVM | None:
        """The VM, if what was decided from still holds: other VMs' writes take their time, and meanwhile it may have
        begun what it was left with, or a person may hold it."""
        vm = self._stores.system_vms.get(Key(namespace, facts.name))
        if vm is None or vm.metadata.uid != facts.uid:
            return None
        now = facts_of(vm, now=facts.moment)
        same = (now.order, now.operation, now.hold) == (facts.order, facts.operation, facts.hold)
        return vm if same else None

    async def _hand_out(self, namespace: str, admitted: Admission) -> bool:
        """Writes one order. False: the world changed in between, decide again."""
        order = admitted.order
        rollout = self._stores.rollouts.get(Key(namespace, order.rollout))
        vm = self._as_decided(namespace, admitted.vm)
        if rollout is None or vm is None:
            return False
        # A merge keeps what it does not name: the order would inherit way back, route and deadline of the one before.
        last = vm.spec.operation.to_dict() if vm.spec.operation is not None else {}
        try:
            if OPERATION_FINALIZER not in rollout.metadata.finalizers:
                await self._hold(rollout)
            await self._cluster.merge_patch(
                SYSTEM_VM,
                namespace,
                vm.metadata.name,
                {
                    "metadata": {"finalizers": [*vm.metadata.finalizers, OPERATION_FINALIZER]}
                    if OPERATION_FINALIZER not in vm.metadata.finalizers
                    else {},
                    "spec": {"operation": merge_patch_between(last, order.to_dict())},
                },
                resource_version=vm.metadata.resource_version,
            )
        except (Conflict, NotFound):
            return False
        logger.info(
            "admitted %s",
            admitted.vm.vm,
            extra={"systemvm": f"{namespace}/{vm.metadata.name}", "rollout": order.rollout, "operation": order.id},
        )
        return True

    async def _withdraw(self, namespace: str, facts: VMFacts) -> bool:
        """Takes back an order that was never begun. False: the world changed in between, decide again."""
        vm = self._as_decided(namespace, facts)
        if vm is None or facts.order is None:
            return False
        finalizers = [name for name in vm.metadata.finalizers if name != OPERATION_FINALIZER]
        try:
            await self._cluster.merge_patch(
                SYSTEM_VM,
                namespace,
                vm.metadata.name,
                {"metadata": {"finalizers": finalizers or None}, "spec": {"operation": None}},
                resource_version=vm.metadata.resource_version,
            )
        except (Conflict, NotFound):
            return False
        logger.info(
            "withdrew an order of a former leader that nobody had begun: it would not be given now",
            extra={
                "systemvm": f"{namespace}/{facts.name}",
                "rollout": facts.order.rollout,
                "operation": facts.order.id,
            },
        )
        return True

    async def _hold(self, rollout: Rollout) -> None:
        await self._cluster.merge_patch(
            ROLLOUT,
            rollout.metadata.namespace,
            rollout.metadata.name,
            {"metadata": {"finalizers": [*rollout.metadata.finalizers, OPERATION_FINALIZER]}},
            resource_version=rollout.metadata.resource_version,
        )
