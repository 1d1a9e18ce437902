"""SystemVM: look at it, carry out its order, say what is true. The only writer of its status.

Two kinds of long work run beside: a look (`looks`) and an operation (`operations`). A reconcile starts one, or takes
note of how far it is, and returns.

What a restart finds: an order that was begun (status.operation has its id, and no result) is taken up again by that id,
and the VM says how far it is. One that was never begun waits until admission has decided about it again. A result that
was written and a finalizer that was not yet taken off: it is taken off.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sysvm.api.base import OPERATION_FINALIZER
from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.operation import OperationOrder, OperationResult, OperationStatus
from sysvm.api.policy import Heal, PatchPolicy
from sysvm.api.reasons import EventReason, Reason
from sysvm.api.systemvm import PlanEntry, PlannedAction, SystemVM, SystemVMStatus, VMState
from sysvm.api.template import SystemVMTemplate
from sysvm.domain.facts import NEVER_TRIED, Release, VMFacts, facts_of, release_of
from sysvm.domain.host_keys import goes_unseen, may_show_another_key
from sysvm.domain.inventory import news
from sysvm.domain.method import Decision, decide
from sysvm.domain.rules import forgotten_if_stopped, rules_lost
from sysvm.domain.running import in_pairs
from sysvm.domain.selection import exclusion, owner_of
from sysvm.domain.system_vm_status import as_allowed, plan_entry, system_vm_truth
from sysvm.engine import operations
from sysvm.engine.board import Board
from sysvm.engine.books import Books
from sysvm.engine.credentials import Accounts
from sysvm.engine.group_operation import GroupOperations, is_group_order
from sysvm.engine.inventory import Place, Roster, missing_identity, target_of
from sysvm.engine.looking import Looks, Memory
from sysvm.engine.notices import Notices
from sysvm.engine.payloads import Payloads
from sysvm.engine.ports import Clock, EngineObserver, SystemVMs
from sysvm.engine.preparing import Preparing
from sysvm.engine.resources import SYSTEM_VM
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores, endpoint_of, key_of, open_order, template_of, told_of_order
from sysvm.engine.work import Handle, Pool
from sysvm.kube.client import Cluster
from sysvm.kube.errors import Conflict, NotFound
from sysvm.kube.objects import Key
from sysvm.kube.queue import Again
from sysvm.patching.errors import Unreachable
from sysvm.patching.payload import Payload
from sysvm.patching.results import OperationReport, SSHAccount

MIRROR_SECONDS = 2.0
"""A running operation is mirrored at most this often."""
ORPHAN_GRACE = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class _Owner:
    """The policy that decides about a VM, and what it wants."""

    policy: PatchPolicy
    template: SystemVMTemplate | None
    release: Release | None
    payload: Payload | None


class SystemVMReconciler:
    """One key: one SystemVM."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        accounts: Accounts,
        roster: Roster,
        payloads: Payloads,
        preparing: Preparing,
        board: Board,
        vms: SystemVMs,
        looks: Looks,
        running: Pool[OperationReport, OperationReport],
        groups: GroupOperations,
        books: Books,
        notices: Notices,
        observer: EngineObserver,
        wake_admission: Callable[[Key], None],
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._accounts = accounts
        self._roster = roster
        self._payloads = payloads
        self._preparing = preparing
        self._board = board
        self._vms = vms
        self._looks = looks
        self._running = running
        self._groups = groups
        self._books = books
        self._notices = notices
        self._observer = observer
        self._wake_admission = wake_admission
        self._clock = clock
        self._mirrored_at: dict[Key, datetime] = {}

    async def reconcile(self, key: Key) -> Again | None:
        vm = self._stores.system_vms.get(key)
        if vm is None:
            self._mirrored_at.pop(key, None)
            self._looks.forget(key)
            self._running.forget(key)
            return None
        order = open_order(vm)
        if order is not None and is_group_order(order):
            return await self._follow(key, vm, order)
        if order is not None:
            return await self._operate(key, vm, order)
        if OPERATION_FINALIZER in vm.metadata.finalizers:
            return await self._let_go(key, vm)
        endpoint = self._stores.endpoints.get(endpoint_of(vm))
        if vm.metadata.deletion_timestamp is not None or endpoint is None:
            return None
        return await self._observe(key, vm, endpoint)

    # Observing

    async def _observe(
        self,
        key: Key,
        vm: SystemVM,
        endpoint: CloudStackEndpoint,
        operation: OperationStatus | None = None,
    ) -> Again | None:
        """`operation`: the mirror of what is being done to it."""
        now = self._clock()
        owner = self._owner(vm, endpoint, now)
        place = self._roster.place_of(vm)
        account = self._accounts.get(key_of(endpoint))
        status = vm.status if operation is None else vm.status.model_copy(update={"operation": operation})
        if place is not None:
            status = status.model_copy(update={"identity": place.identity})
        elif status.identity is not None and self._roster.why_missing(vm) is not None:
            status = status.model_copy(update={"identity": missing_identity(status.identity)})
        if status.identity is not None:
            observed = forgotten_if_stopped(status.observed, status.identity.state)
            status = status.model_copy(update={"observed": observed})
        noted = self._looks.take_note(key, vm, endpoint, status, now)
        told = vm.model_copy(update={"status": status})
        away = facts_of(told, now=now).away is not None
        unseen = goes_unseen(status)
        wants = owner.payload if owner is not None else None
        if noted is None and place is not None and not (away or unseen) and isinstance(account, SSHAccount):
            # The key that the call replaces stays known, so that seeing it once more makes no new one of it.
            target = target_of(_without_key(told, now), place, account)
            if target is not None and not endpoint.spec.suspend:
                self._looks.begin_if_due(key, vm, endpoint, target, wants, now)
        if not await self._report(key, vm, noted or status, owner, now):
            if noted is not None:
                self._looks.lost(key, vm, now)
            return Again(0.1)
        self._tell_news(vm, place, ours=operation is not None or open_order(vm) is not None)
        if away or unseen:  # a sweep that finds it again, or the end of the operation, wakes this key
            return None
        if noted is not None and self._looks.lacks_comparison(key, vm, wants, now):
            return Again(0.1)
        wait = self._looks.seconds_to_next(key, vm, now)
        return Again(wait) if wait is not None else None

    def _tell_news(self, vm: SystemVM, place: Place | None, *, ours: bool) -> None:
        """What a sweep found changed. Told once the new identity is stored: a restart in between does not tell it."""
        if place is None:
            return
        for each in news(vm.status.identity, place.identity, ours=ours):
            self._notices.tell(SYSTEM_VM, vm.metadata, each.reason, "Sweep", each.sentence, warning=each.warning)

    # Deciding and reporting

    def _owner(self, vm: SystemVM, endpoint: CloudStackEndpoint, now: datetime) -> _Owner | None:
        facts = facts_of(vm, now=now, scan=endpoint.spec.scan)
        policy = owner_of(facts, self._stores.policies_of(endpoint_of(vm)))
        if policy is None:
            return None
        template = self._stores.templates.get(template_of(policy))
        release = release_of(template, policy.spec) if template is not None else None
        return _Owner(policy, template, release, self._payloads.get(template))

    async def _report(
        self,
        key: Key,
        vm: SystemVM,
        status: SystemVMStatus,
        owner: _Owner | None,
        now: datetime,
    ) -> bool:
        memory = self._looks.memory(key, vm, now)
        endpoint = self._stores.endpoints.get(endpoint_of(vm))
        reach = memory.reach or NEVER_TRIED
        template, release = (owner.template, owner.release) if owner is not None else (None, None)
        status = self._books.noted(vm, status, template, release, now)
        told = vm.model_copy(update={"status": status})
        scan = endpoint.spec.scan if endpoint is not None else None
        facts = self._in_pair(replace(facts_of(told, now=now, scan=scan), reach=reach), told, now)
        decision, plan = self._decide(vm, facts, owner, memory)
        status = status.model_copy(update={"plan": plan, "observed_generation": vm.metadata.generation})
        truth = system_vm_truth(
            vm.model_copy(update={"status": status}),
            reach=reach,
            release=release,
            decision=decision,
            now=now,
            pair_trouble=facts.pair_trouble,
            absent=self._roster.why_missing(vm),
        )
        handled = memory.request or vm.status.last_handled_reconcile_at
        status = status.model_copy(
            update={"state": truth.state, "conditions": truth.conditions, "last_handled_reconcile_at": handled}
        )
        written = await write_status(self._cluster, SYSTEM_VM, vm.metadata, vm.status, status)
        if written and status.state is VMState.HELD and vm.status.state is not VMState.HELD and plan is not None:
            self._notices.tell(SYSTEM_VM, vm.metadata, EventReason.HELD, "Hold", plan.message)
        if written and facts.rules_lost and not facts_of(vm, now=now).rules_lost:
            lost = f"{facts.vm} {rules_lost(facts)}"
            self._notices.tell(SYSTEM_VM, vm.metadata, EventReason.RULES_LOST, "Look", lost, warning=True)
        return written

    def _in_pair(self, facts: VMFacts, vm: SystemVM, now: datetime) -> VMFacts:
        """The facts with what is wrong with the roles of its pair."""
        others = [facts_of(other, now=now) for other in self._stores.group_of(vm)]
        return next(each for each in in_pairs([facts, *others]) if each.name == facts.name)

    def _decide(
        self, vm: SystemVM, facts: VMFacts, owner: _Owner | None, memory: Memory
    ) -> tuple[Decision | None, PlanEntry | None]:
        if owner is None or owner.release is None or facts.identity is None:
            return None, None
        spec = owner.policy.spec
        written = vm.status.plan if vm.status.plan and vm.status.plan.revision == owner.release.revision else None
        blockers = self._board.blockers(endpoint_of(vm), key_of(vm))
        if blockers is None:
            blockers = written.blocked_by if written is not None else ()
        actions: tuple[PlannedAction, ...] = ()
        if memory.compared == owner.release.revision:
            actions = memory.actions
        elif memory.compared is None and written is not None:
            actions = written.services
        decision = decide(
            replace(facts, actions=actions),
            owner.release,
            methods=spec.methods,
            heal=spec.drift.heal is Heal.AUTOMATIC,
            excluded=exclusion(spec.selector, facts),
            live_patch=spec.live_patch,
        )
        entry = plan_entry(
            owner.policy.metadata.name,
            owner.release,
            decision,
            services=as_allowed(actions, spec.live_patch.databags),
            blocked_by=blockers,
        )
        return decision, entry

    # Operating

    async def _operate(self, key: Key, vm: SystemVM, order: OperationOrder) -> Again | None:
        now = self._clock()
        handle = self._running.get(key)
        if handle is None or handle.purpose != order.id:
            work = self._preparing.work(vm, order)
            if work is None:
                return await self._orphaned(key, vm, now)
            fresh = told_of_order(vm) is None
            if fresh and not self._board.may_begin(endpoint_of(vm), vm):
                self._wake_admission(endpoint_of(vm))
                return None
            if fresh and not await self._mirror(key, vm, operations.begun(order, now), now):
                return Again(0.1)
            if fresh:
                what = (
                    f"going back from {order.takes_back}" if order.takes_back else f"live patch to {order.revision[:8]}"
                )
                note = f"{what} begins ({order.id})"
                self._notices.tell(
                    SYSTEM_VM, vm.metadata, EventReason.PATCH_STARTED, "Patch", note,
                    rollout=order.rollout, operation=order.id,
                )  # fmt: skip
            handle = self._running.start(key, order.id, lambda told: operations.carry_out(self._vms, work, told))
            return None
        current = vm.status.operation or operations.begun(order, now)
        if handle.done:
            return await self._end(key, vm, current, handle, now)
        if handle.progress is None:
            return None
        mirrored = self._mirrored_at.get(key)
        since = (now - mirrored).total_seconds() if mirrored is not None else MIRROR_SECONDS
        if since < MIRROR_SECONDS:
            return Again(MIRROR_SECONDS - since)
        await self._mirror(key, vm, operations.mirrored(current, handle.progress), now)
        return None

    async def _follow(self, key: Key, vm: SystemVM, order: OperationOrder) -> Again | None:
        """An order that the management server carries out: what its group's operation says is mirrored, and the VM is
        looked at meanwhile. What began in `Rollout.status` ends here: the result there is written first, here second,
        and a restart in between finds the first and writes the second."""
        now = self._clock()
        endpoint = self._stores.endpoints.get(endpoint_of(vm))
        if endpoint is None:
            return await self._orphaned(key, vm, now)
        rollout = self._stores.rollouts.get(Key(key.namespace, order.rollout))
        group = self._groups.of(rollout, order)
        if group is None and not self._board.may_begin(key_of(endpoint), vm):
            return await self._wait_for_group(key, vm, endpoint)
        told = told_of_order(vm)
        current = told or operations.begun(order, now)
        if rollout is None:
            why = f"rollout {order.rollout} was removed by force: look at the VM in CloudStack"
            final = operations.given_up(current, Reason.INTERRUPTED, why, now, called=True)
            return await self._end_group_order(key, vm, final, now)
        never = self._groups.why_never(vm, order) if group is None else None
        if never is not None:
            final = operations.given_up(current, *never, now, called=told is not None)
            return await self._end_group_order(key, vm, final, now)
        if group is None:
            return await self._wait_for_group(key, vm, endpoint)
        if told is None:
            what = f"{order.method} by the management server begins ({order.id})"
            self._notices.tell(
                SYSTEM_VM, vm.metadata, EventReason.PATCH_STARTED, str(order.method), what,
                rollout=order.rollout, operation=order.id,
            )  # fmt: skip
        if group.result is not None:
            return await self._end_group_order(key, vm, operations.of_group(current, group), now)
        return await self._observe(key, vm, endpoint, operations.of_group(current, group))

    async def _wait_for_group(self, key: Key, vm: SystemVM, endpoint: CloudStackEndpoint) -> Again:
        """The operation on its group is begun by the rollout, once there is room for one more, and what a former leader
        ordered once admission has decided about it again. Until then nothing is written that says it has begun."""
        again = await self._observe(key, vm, endpoint)
        return Again(min(5.0, again.after_seconds) if again is not None else 5.0)

    async def _end_group_order(self, key: Key, vm: SystemVM, final: OperationStatus, now: datetime) -> Again | None:
        self._looks.after_operation(key, vm, now)
        if not await self._mirror(key, vm, final, now):
            return Again(0.1)
        self._observer.operated(
            method=str(final.method),
            result=str(final.result),
            seconds=(now - final.started_at).total_seconds(),
            bytes_sent=0,
        )
        self._tell_end(vm, final)
        self._wake_admission(endpoint_of(vm))
        return Again(0)

    async def _orphaned(self, key: Key, vm: SystemVM, now: datetime) -> Again | None:
        """An open order that nobody can carry out. Its VM is no more: it failed. Deleted and out of reach for long: let
        the object go."""
        order = open_order(vm)
        if order is not None and self._roster.is_gone(vm):
            name = found_name(vm.status, vm)
            error = Unreachable(f"{name} is not in CloudStack any more", reason=Reason.VM_GONE)
            told = vm.status.operation
            current = told if told is not None and told.id == order.id else operations.begun(order, now)
            final = operations.failed(current, error, now)
            if not await self._mirror(key, vm, final, now):
                return Again(0.1)
            self._tell_end(vm, final)
            self._wake_admission(endpoint_of(vm))
            return Again(0)
        deleted = vm.metadata.deletion_timestamp
        if deleted is None or now - deleted < ORPHAN_GRACE:
            return Again(5)
        who = "the management server" if order is not None and is_group_order(order) else "the VM"
        note = (
            f"{vm.metadata.name} was deleted while in work and its endpoint is gone: the operation cannot be followed;"
            f" {who} ends it alone"
        )
        self._notices.tell(SYSTEM_VM, vm.metadata, EventReason.FINALIZER_DROPPED, "LetGo", note, warning=True)
        return await self._let_go(key, vm)

    async def _end(
        self,
        key: Key,
        vm: SystemVM,
        current: OperationStatus,
        handle: Handle[OperationReport, OperationReport],
        now: datetime,
    ) -> Again | None:
        if handle.result is not None:
            final = operations.ended(current, handle.result, now)
        elif handle.error is not None:
            last = operations.mirrored(current, handle.progress) if handle.progress is not None else current
            final = operations.failed(last, handle.error, now)
        else:
            return None
        self._looks.after_operation(key, vm, now)
        if not await self._mirror(key, vm, final, now):
            return Again(0.1)
        self._running.forget(key)
        self._observer.operated(
            method=str(final.method),
            result=str(final.result),
            seconds=(now - final.started_at).total_seconds(),
            bytes_sent=final.bytes_sent,
        )
        self._tell_end(vm, final)
        self._wake_admission(endpoint_of(vm))
        return Again(0)

    async def _mirror(self, key: Key, vm: SystemVM, operation: OperationStatus, now: datetime) -> bool:
        self._mirrored_at[key] = now
        history = operations.remembered(vm.status.history, operation)
        status = vm.status.model_copy(update={"operation": operation, "history": history})
        endpoint = self._stores.endpoints.get(endpoint_of(vm))
        owner = self._owner(vm, endpoint, now) if endpoint is not None else None
        return await self._report(key, vm, status, owner, now)

    async def _let_go(self, key: Key, vm: SystemVM) -> Again | None:
        """Takes the finalizer off. Found again by a restart that comes before this write."""
        finalizers = [name for name in vm.metadata.finalizers if name != OPERATION_FINALIZER]
        try:
            await self._cluster.merge_patch(
                SYSTEM_VM,
                key.namespace,
                key.name,
                {"metadata": {"finalizers": finalizers or None}},
                resource_version=vm.metadata.resource_version,
            )
        except NotFound:
            return None
        except Conflict:
            return Again(0.1)
        return Again(0)

    # Telling

    def _tell_end(self, vm: SystemVM, operation: OperationStatus) -> None:
        reasons = {
            OperationResult.SUCCEEDED: EventReason.PATCHED,
            OperationResult.ROLLED_BACK: EventReason.ROLLED_BACK,
            OperationResult.INCONSISTENT: EventReason.INCONSISTENT,
        }
        reason = reasons.get(operation.result or OperationResult.FAILED, EventReason.PATCH_FAILED)
        self._notices.tell(
            SYSTEM_VM,
            vm.metadata,
            reason,
            "Patch",
            operations.sentence(found_name(vm.status, vm), operation),
            warning=operation.result is not OperationResult.SUCCEEDED,
            rollout=operation.rollout,
            operation=operation.id,
            bytes=operation.bytes_sent,
        )


def found_name(status: SystemVMStatus, vm: SystemVM) -> str:
    return status.identity.name if status.identity else vm.metadata.name


def _without_key(vm: SystemVM, now: datetime) -> SystemVM:
    """As it is looked at: where another key is expected it need not show the old one. Another disk, another key: that
    is what was ordered, and of nobody else's start is it believed."""
    if not may_show_another_key(vm.status, now):
        return vm
    return vm.model_copy(update={"status": vm.status.model_copy(update={"host_key": None})})
