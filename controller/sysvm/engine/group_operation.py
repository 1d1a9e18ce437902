"""Drives the calls to the management server that a rollout's orders ask for: each step is a key of the work queue.

Nobody waits. A reconcile of the rollout takes the news of a step (a look, an answer, a job's state), computes the next
state, writes it into `Rollout.status.groupOperations` with everything else the rollout says of itself, and only then
begins the step that follows, in a pool. The writes, and what a restart finds after each:

1. orders on the VMs of the group (admission): no operation yet. It is begun when there is room, and orders of a former
   leader when admission has decided about them again.
2. Preparing: nothing was asked. It looks again.
3. Submitting, with the VMs as they are: then, before CloudStack's own patch, backups on the VMs (`backups`); then the
   call. A restart between this write and the next does not know whether the call was made, so it never makes it: it
   becomes Unknown and is found out by looking. If it was not made, a backup stays on the VM that nobody needs.
4. Running, with the job: it is asked for.
5. Unknown or Verifying: it looks again. What was seen is not stored, it is seen again.
6. Done, with the result. Then the VMs' orders are answered, each by its own reconciler, then the operation is dropped.

Right before the call the Lease, the rollout, the endpoint and the VMs are read from the server, not the cache: a leader
that was replaced, a rollout that was aborted, `management: Observe` and a person's hold stop it, and nothing was done.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sysvm.api.endpoint import CloudStackEndpoint, Management
from sysvm.api.methods import HostPayloadRule, Method, Route
from sysvm.api.operation import OperationOrder, OperationResult
from sysvm.api.reasons import EventReason, Reason
from sysvm.api.rollout import DesiredState, GroupOperation, GroupPhase, Rollout
from sysvm.api.systemvm import SystemVM
from sysvm.api.template import SystemVMTemplate
from sysvm.domain import api_patch as api_patches
from sysvm.domain import group_operation as machine
from sysvm.domain.api_patch import ApiPatch
from sysvm.domain.calls import Command, Event, Judge, Looked, NotMade, NotTold, Refused, is_call
from sysvm.domain.cloud import CloudVM, several_releases
from sysvm.domain.facts import facts_of, release_of
from sysvm.domain.group_operation import Limits, Todo
from sysvm.domain.jobs_at_work import not_of_others
from sysvm.domain.lifecycle import ROUTER_TYPES, Aim, aim_of, judge_of
from sysvm.engine.backups import Backups
from sysvm.engine.board import Board
from sysvm.engine.books import Books
from sysvm.engine.notices import Notices
from sysvm.engine.ports import Clock, Clouds, SnapshotOf
from sysvm.engine.resources import ENDPOINT, ROLLOUT, SYSTEM_VM
from sysvm.engine.stores import Stores, endpoint_of, key_of, open_order
from sysvm.engine.work import Handle, Pool
from sysvm.kube.client import Cluster
from sysvm.kube.errors import KubeError
from sysvm.kube.objects import Key

logger = logging.getLogger(__name__)

Leads = Callable[[], Awaitable[bool]]
"""Whether the Lease, as the server has it now, is still this process's with its epoch. Raises `KubeError`."""

_OF_GROUPS = frozenset({Command.RESTART_NETWORK, Command.RESTART_VPC})
"""Commands that change all routers of a network or VPC."""

STALE = timedelta(seconds=15)
"""An older look at a group is none."""

LOOK_COUNTS = timedelta(minutes=1)
"""So long after what was seen of a group was stored the call may leave. Backups, or a turn in the pool, can take
longer: then jobs and VMs are looked at again. And whoever finds the call lost counts from what was stored how long a
host may still be at it."""


async def nobody_leads() -> bool:
    """For a process that has no Lease: it makes no call."""
    return False


@dataclass(frozen=True, slots=True)
class Advanced:
    """What has become of a rollout's operations."""

    operations: tuple[GroupOperation, ...]
    """To be written before `begin` is called with them."""
    again: timedelta | None
    """When the next step of one is due; None: when a step that runs now ends, or an order comes."""
    taken: frozenset[Key]
    """Steps whose news is in `operations`. One that ends while they are written keeps its news for next time."""


class GroupOperations:
    """All rollouts; called by the rollout's reconciler only, which is the one writer of their status."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        clouds: Clouds,
        snapshot_of: SnapshotOf,
        board: Board,
        pool: Pool[None, Event],
        notices: Notices,
        wake_vm: Callable[[Key], None],
        leads: Leads,
        books: Books,
        backups: Backups,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._clouds = clouds
        self._snapshot_of = snapshot_of
        self._board = board
        self._pool = pool
        self._notices = notices
        self._wake_vm = wake_vm
        self._leads = leads
        self._books = books
        self._backups = backups
        self._clock = clock
        self._asked_at: dict[Key, tuple[GroupPhase, datetime]] = {}

    @staticmethod
    def of(rollout: Rollout | None, order: OperationOrder) -> GroupOperation | None:
        """The operation that answers an order; None: it is not begun yet."""
        operations = rollout.status.group_operations if rollout is not None else ()
        return next((op for op in operations if order.id in op.orders), None)

    # Before the write

    def advance(self, rollout: Rollout, now: datetime) -> Advanced:
        """Every operation one step further, if there is news of it, and those that orders ask for newly."""
        now = now.replace(microsecond=0)  # as it is stored
        kept = [op for op in rollout.status.group_operations if not self._is_over(rollout, op)]
        handles = {_key(rollout, op): self._pool.get(_key(rollout, op)) for op in kept}
        taken = frozenset(key for key, handle in handles.items() if handle is not None and handle.done)
        operations = [self._stepped(rollout, op, now) for op in kept]
        begun = self._newly_asked_for(rollout, operations, now)
        again = {op.group for op in begun}
        operations = [op for op in operations if op.group not in again] + begun
        return Advanced(tuple(operations), self._next(rollout, operations, now), taken)

    def _stepped(self, rollout: Rollout, op: GroupOperation, now: datetime) -> GroupOperation:
        if op.phase is GroupPhase.DONE:
            return op
        if op.phase is GroupPhase.PREPARING:
            op = op.model_copy(update={"orders": tuple(sorted({*op.orders, *self._orders_for(rollout, op)}))})
        handle = self._handle(rollout, op)
        event = handle.result if handle is not None else None
        if handle is None:
            op = machine.after_restart(op, now)
            if self._clouds.jobs(endpoint_of(rollout)) is None:
                event = NotTold("there is no way to the management server now: see the endpoint's conditions")
        if event is None:
            return op
        event = self._completed(rollout, op, event, now)
        if isinstance(event, Looked) and now - event.look.taken_at > STALE:
            event = NotTold("what was seen of it is history: the cluster took no write for so long")
        judge = self._judge(rollout, op)
        timeouts = rollout.spec.snapshot.strategy.timeouts
        stepped = machine.apply(op, event, judge, Limits(step=timeouts.step, vm=timeouts.vm), now)
        if stepped.phase is GroupPhase.DONE and isinstance(event, Looked):
            self._clouds.note(endpoint_of(rollout), event.look.vms, event.look.taken_at)
        return stepped

    def _completed(self, rollout: Rollout, op: GroupOperation, event: Event, now: datetime) -> Event:
        """A look together with what is known of the VMs over SSH; before the call, only once all have their order."""
        if not isinstance(event, Looked):
            return event
        endpoint = endpoint_of(rollout)
        if op.phase in machine.STARTED_ANEW:
            gone = {vm.id for vm in op.before} - {vm.id for vm in event.look.vms}
            new = {vm.id for vm in event.look.vms} - {vm.id for vm in op.before}
            known_ids = {vm.status.identity.id for vm in self._stores.vms_of(endpoint) if vm.status.identity}
            if gone & known_ids or new - known_ids:
                self._clouds.explain(endpoint, gone)
        scan = self._stores.endpoints.get(endpoint)
        names = {vm.name for vm in event.look.vms}
        known = tuple(
            facts_of(vm, now=now, scan=scan.spec.scan if scan is not None else None)
            for vm in self._stores.vms_of(endpoint)
            if vm.status.identity is not None and vm.status.identity.name in names
        )
        if op.phase is GroupPhase.PREPARING:
            missing = self._without_order(rollout, op)
            limit = rollout.spec.snapshot.strategy.timeouts.step
            if missing and now - op.since >= limit:
                return Refused(Reason.WAITING_FOR_GROUP, f"{missing} was not given to this operation in time")
            if missing:
                return NotTold(f"{missing} is not given to this operation yet")
        jobs = not_of_others(event.look.jobs, op, event.look.vms, self._others(rollout, op))
        return Looked(replace(event.look, jobs=jobs, known=known))

    def _others(self, rollout: Rollout, op: GroupOperation) -> list[GroupOperation]:
        """All other operations on the endpoint, as they are stored."""
        return [
            other
            for running in self._stores.rollouts_on(endpoint_of(rollout))
            for other in running.status.group_operations
            if key_of(running) != key_of(rollout) or other.group != op.group
        ]

    def _newly_asked_for(
        self, rollout: Rollout, operations: Iterable[GroupOperation], now: datetime
    ) -> list[GroupOperation]:
        answered = {order for op in operations for order in op.orders}
        groups = {op.group: op for op in operations}
        begun: dict[str, GroupOperation] = {}
        room = self._room(rollout)
        for vm, order in self._open_orders(rollout):
            if order.id in answered or not self._board.may_begin(endpoint_of(vm), vm):
                continue
            aim = self._aim(vm, order)
            if aim is None:
                continue
            if aim.group in begun:
                known = begun[aim.group]
                begun[aim.group] = known.model_copy(update={"orders": tuple(sorted({*known.orders, order.id}))})
                continue
            earlier = groups.get(aim.group)
            if (earlier is not None and not self._is_answered(rollout, earlier)) or room <= len(begun):
                continue
            cloud_vm = self._cloud_vm(vm)
            if cloud_vm is not None:
                begun[aim.group] = machine.begun(aim.group, order.method, aim.call, cloud_vm, [order.id], now)
        return list(begun.values())

    def _room(self, rollout: Rollout) -> int:
        """Calls that may still be begun: `api.limits.asyncJobs` over all rollouts of the endpoint."""
        endpoint = self._stores.endpoints.get(endpoint_of(rollout))
        api = endpoint.spec.api if endpoint is not None else None
        limit = api.limits.async_jobs if api is not None else machine.OPEN_LIMIT
        busy = sum(
            op.phase is not GroupPhase.DONE
            for other in self._stores.rollouts_on(endpoint_of(rollout))
            for op in other.status.group_operations
        )
        return limit - busy

    def _is_over(self, rollout: Rollout, op: GroupOperation) -> bool:
        """Its result has answered all orders. One that failed is remembered if VMs went with it: their successors
        tell it."""
        if not self._is_answered(rollout, op):
            return False
        return op.result is OperationResult.SUCCEEDED or not op.before

    def _is_answered(self, rollout: Rollout, op: GroupOperation) -> bool:
        """It has ended and every VM's own status says so."""
        if op.phase is not GroupPhase.DONE:
            return False
        return not any(order.id in op.orders for _, order in self._open_orders(rollout))

    def _next(self, rollout: Rollout, operations: Iterable[GroupOperation], now: datetime) -> timedelta | None:
        waits = [
            self._due(rollout, op, now) - now
            for op in operations
            if machine.todo(op) is not Todo.NOTHING and not self._is_running(rollout, op)
        ]
        return max(min(waits), timedelta(0)) if waits else None

    def _due(self, rollout: Rollout, op: GroupOperation, now: datetime) -> datetime:
        phase, last = self._asked_at.get(_key(rollout, op), (None, now))
        return now if phase is not op.phase else last + machine.pause(op, now)

    # After the write

    def begin(self, rollout: Rollout, advanced: Advanced, now: datetime) -> None:
        """Begins the steps that are due. `rollout`: as its status stood before they were written."""
        stored = {op.group: op for op in rollout.status.group_operations}
        for key in advanced.taken:
            self._pool.forget(key)
        for op in advanced.operations:
            before = stored.get(op.group)
            if before != op:
                self._tell(rollout, before, op)
                self._wake_vms(rollout, op)
            self._begin(rollout, op, now, just_written=before is None or before.phase is not op.phase)

    def _begin(self, rollout: Rollout, op: GroupOperation, now: datetime, *, just_written: bool) -> None:
        key = _key(rollout, op)
        todo = machine.todo(op)
        if todo is Todo.NOTHING:
            self._asked_at.pop(key, None)
            return
        if self._pool.get(key) is not None or now < self._due(rollout, op, now):
            return
        if todo is Todo.SUBMIT:
            if just_written:
                self._pool.start(key, _purpose(op), lambda _: self._submit(rollout, op))
            return
        self._asked_at[key] = op.phase, now
        jobs = self._clouds.jobs(endpoint_of(rollout))
        if jobs is None:
            return
        if todo is Todo.ASK_JOB:
            job_id = op.job_id or ""
            self._pool.start(key, _purpose(op), lambda _: jobs.job(job_id))
            return
        if op.phase is not GroupPhase.PREPARING or op.method is not Method.RECREATE:
            self._ask_for_looks(rollout, op)
        self._pool.start(key, _purpose(op), lambda _: jobs.look(op))

    async def _submit(self, rollout: Rollout, op: GroupOperation) -> Event:
        """The call, if everything still stands as the server has it now."""
        try:
            obstacle = await self._obstacle(rollout, op)
            if obstacle is None and op.method is Method.LIVE_PATCH:
                # It takes a while, so everything is asked once more. Who has its backup answers at once next time.
                ordered = [(vm, order) for vm, order in self._open_orders(rollout) if order.id in op.orders]
                obstacle = await self._backups.take(ordered) or await self._obstacle(rollout, op)
        except KubeError as error:
            return NotMade(f"not called, the cluster did not answer: {error}")
        jobs = self._clouds.jobs(endpoint_of(rollout))
        if obstacle is not None:
            return obstacle
        if jobs is None:
            return NotMade("not called, the endpoint is not ready")
        if op.submitted_at is None or self._clock() - op.submitted_at > LOOK_COUNTS:
            return NotMade("not called, what comes before it took too long: it is looked at again")
        call = self._judge(rollout, op).call(op)
        logger.info("calling %s", call, extra={"rollout": str(key_of(rollout)), "group": op.group})
        return await jobs.submit(call)

    async def _obstacle(self, rollout: Rollout, op: GroupOperation) -> Refused | NotMade | None:
        if not await self._leads():
            return NotMade("not called, another process leads")
        namespace = rollout.metadata.namespace
        fresh = Rollout.model_validate(await self._cluster.get(ROLLOUT, namespace, rollout.metadata.name))
        if fresh.metadata.uid != rollout.metadata.uid or op not in fresh.status.group_operations:
            return NotMade("not called, the rollout was changed meanwhile")
        if fresh.metadata.deletion_timestamp is not None or fresh.spec.state is DesiredState.ABORTED:
            return Refused(Reason.ABORTED, f"rollout {rollout.metadata.name} is over; nothing was changed")
        endpoint = CloudStackEndpoint.model_validate(
            await self._cluster.get(ENDPOINT, namespace, rollout.spec.endpoint_ref.name)
        )
        if endpoint.spec.management is not Management.FULL:
            told = f"endpoint {endpoint.metadata.name} has management {endpoint.spec.management}; nothing was changed"
            return Refused(Reason.OBSERVE_ONLY, told)
        now, standing = self._clock(), set[str]()
        for vm, order in self._open_orders(rollout):
            if order.id not in op.orders:
                continue
            seen = SystemVM.model_validate(await self._cluster.get(SYSTEM_VM, namespace, vm.metadata.name))
            hold = seen.spec.hold
            if hold is not None and (hold.until is None or hold.until > now):
                return Refused(Reason.ON_HOLD, f"{vm.metadata.name} is on hold: {hold.reason}; nothing was changed")
            standing |= {seen.spec.operation.id} if seen.spec.operation is not None else set()
        if not standing >= set(op.orders):
            # Withdrawn by admission, which could not see yet that this operation had been begun.
            return Refused(Reason.INTERRUPTED, "an order was taken back before the call; nothing was changed")
        return None

    # Orders and VMs

    def _open_orders(self, rollout: Rollout) -> list[tuple[SystemVM, OperationOrder]]:
        """Orders of this rollout that only the management server can carry out and that no result answers."""
        ordered = ((vm, open_order(vm)) for vm in self._stores.ordered_by(key_of(rollout)))
        found = [(vm, order) for vm, order in ordered if order is not None and is_group_order(order)]
        return sorted(found, key=lambda each: each[0].metadata.name)

    def _orders_for(self, rollout: Rollout, op: GroupOperation) -> list[str]:
        found = []
        for vm, order in self._open_orders(rollout):
            if order.id in op.orders or order.method is not op.method or not self._board.may_begin(endpoint_of(vm), vm):
                continue
            aim = self._aim(vm, order)
            if aim is not None and aim.group == op.group:
                found.append(order.id)
        return found

    def _without_order(self, rollout: Rollout, op: GroupOperation) -> str:
        """Names of VMs that the call would change without having been given to it."""
        if op.command not in _OF_GROUPS:
            return ""
        given = {vm.metadata.name for vm, order in self._open_orders(rollout) if order.id in op.orders}
        members = [vm for vm in self._stores.vms_of(endpoint_of(rollout)) if self.concerns(op, vm)]
        return ", ".join(sorted(vm.metadata.name for vm in members if vm.metadata.name not in given))

    def _cloud_vm(self, vm: SystemVM) -> CloudVM | None:
        snapshot = self._snapshot_of(endpoint_of(vm))
        identity = vm.status.identity
        if snapshot is None or identity is None:
            return None
        if identity.id is not None:
            return snapshot.vms.get(identity.id)
        return next((each for each in snapshot.vms.values() if each.name == identity.name), None)

    def _aim(self, vm: SystemVM, order: OperationOrder) -> Aim | None:
        cloud_vm = self._cloud_vm(vm)
        group = vm.status.identity.group if vm.status.identity is not None else None
        if cloud_vm is None:
            return None
        if order.route is not Route.API:
            return aim_of(order.method, cloud_vm, group)
        call = self._books.api_patch(endpoint_of(vm), cloud_vm)
        return api_patches.aim_of(call, cloud_vm.name, group) if call is not None else None

    def why_never(self, vm: SystemVM, order: OperationOrder) -> tuple[Reason, str] | None:
        """Why no operation will ever be begun for an order; None: one is, or will be."""
        identity = vm.status.identity
        if self._snapshot_of(endpoint_of(vm)) is None or identity is None:
            return None
        if self._cloud_vm(vm) is None:
            return Reason.VM_GONE, f"{identity.name} is not in the management server's list any more"
        if self._aim(vm, order) is None:
            return Reason.RECREATE_IMPOSSIBLE, f"CloudStack has no call that does {order.method} with {identity.name}"
        return None

    @staticmethod
    def concerns(op: GroupOperation, vm: SystemVM) -> bool:
        """Whether the operation changes this VM, or it is one that came of it."""
        identity, order = vm.status.identity, vm.spec.operation
        if order is not None and order.id in op.orders:
            return True
        if identity is None:
            return False
        if op.command == Command.DESTROY_SYSTEM_VM:
            old = {each.name for each in op.before}
            return bool(old) and identity.type is op.vm_type and identity.name not in old
        if op.command in _OF_GROUPS:
            return identity.group == op.group and identity.type in ROUTER_TYPES
        return identity.name == op.group

    def _judge(self, rollout: Rollout, op: GroupOperation) -> Judge:
        template = self._stores.templates.get(Key(rollout.metadata.namespace, rollout.spec.template_ref.name))
        if op.method is Method.LIVE_PATCH:
            return self._judge_of_patch(rollout, template)
        version = template.spec.version if template is not None else None
        images = template.spec.images if template is not None else None
        endpoint = endpoint_of(rollout)
        snapshot = self._snapshot_of(endpoint)
        release = release_of(template) if template is not None else None
        must_agree = rollout.spec.snapshot.live_patch.host_payload is HostPayloadRule.REQUIRE
        return judge_of(
            op,
            version=version,
            images=images,
            unsettled=several_releases(snapshot.servers.values()) if snapshot is not None else None,
            other_payloads=self._books.other_payloads(endpoint, release, self._clock()) if must_agree else (),
        )

    def _judge_of_patch(self, rollout: Rollout, template: SystemVMTemplate | None) -> Judge:
        endpoint = endpoint_of(rollout)
        snapshot = self._snapshot_of(endpoint)
        release = release_of(template) if template is not None else None
        if snapshot is None or release is None:
            return api_patches.NOT_READY
        return ApiPatch(
            release=release,
            server=self._books.server_payload(endpoint, snapshot, template, release, self._clock()),
            server_version=snapshot.server_version,
            zones=snapshot.zones,
            most_patches=rollout.spec.snapshot.live_patch.max_api_patches_per_router,
            unsettled=several_releases(snapshot.servers.values()),
        )

    def _ask_for_looks(self, rollout: Rollout, op: GroupOperation) -> None:
        keys = [key_of(vm) for vm in self._stores.vms_of(endpoint_of(rollout)) if self.concerns(op, vm)]
        self._board.ask(keys)
        for key in keys:
            self._wake_vm(key)

    def _wake_vms(self, rollout: Rollout, op: GroupOperation) -> None:
        for vm in self._stores.vms_of(endpoint_of(rollout)):
            if self.concerns(op, vm):
                self._wake_vm(key_of(vm))

    # Steps

    def _handle(self, rollout: Rollout, op: GroupOperation) -> Handle[None, Event] | None:
        handle = self._pool.get(_key(rollout, op))
        return handle if handle is not None and handle.purpose == _purpose(op) else None

    def _is_running(self, rollout: Rollout, op: GroupOperation) -> bool:
        handle = self._pool.get(_key(rollout, op))
        return handle is not None and not handle.done

    # Telling

    def _tell(self, rollout: Rollout, before: GroupOperation | None, op: GroupOperation) -> None:
        if before is not None and before.phase is op.phase:
            return
        if op.phase is GroupPhase.RUNNING:
            note = f"{op.method} of {op.group}: {op.command} is job {op.job_id}"
            self._notices.tell(ROLLOUT, rollout.metadata, EventReason.CALL_MADE, str(op.method), note)
        elif op.phase is GroupPhase.UNKNOWN:
            note = f"{op.method} of {op.group}: {op.message}; what it did is found out before anything else"
            self._notices.tell(ROLLOUT, rollout.metadata, EventReason.CALL_LOST, str(op.method), note, warning=True)
        elif op.phase is GroupPhase.DONE:
            failed = op.result is not OperationResult.SUCCEEDED
            note = f"{op.method} of {op.group}: {op.message or 'done and verified'}"
            reason = EventReason.CALL_FAILED if failed else EventReason.CALL_VERIFIED
            if op.reason == Reason.DUPLICATE_GATEWAY:
                reason = EventReason.DUPLICATE_GATEWAY
            self._notices.tell(ROLLOUT, rollout.metadata, reason, str(op.method), note, warning=failed)


def is_group_order(order: OperationOrder) -> bool:
    """Whether the management server carries it out, not the VM."""
    return is_call(order.method, order.route)


def rollout_of(step: Key) -> Key:
    """The rollout that a step of the pool belongs to."""
    return Key(step.namespace, step.name.partition("/")[0])


def _key(rollout: Rollout, op: GroupOperation) -> Key:
    return Key(rollout.metadata.namespace, f"{rollout.metadata.name}/{op.group}")


def _purpose(op: GroupOperation) -> str:
    """A step of one phase of one call; one begun in another phase brings nothing any more."""
    return f"{op.phase} {op.submissions} {op.job_id or ''}"
