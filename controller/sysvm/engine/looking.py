"""When a VM is looked at, whether its files are compared, and what a finished look adds to its status.

What is not worth a write is remembered here and lost with the process: a restarted operator looks at every VM once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sysvm.api.base import REQUESTED_AT_ANNOTATION, format_time
from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.methods import Method, Route
from sysvm.api.observed import Observed
from sysvm.api.reasons import EventReason, Reason
from sysvm.api.systemvm import PlannedAction, SystemVM, SystemVMStatus
from sysvm.domain import rules
from sysvm.domain.facts import NEVER_TRIED, Reach, VMFacts, facts_of, reach_of
from sysvm.domain.host_keys import goes_unseen, may_show_another_key
from sysvm.domain.pairs import SAMPLES
from sysvm.domain.running import must_look_again
from sysvm.domain.system_vm_status import AT_NEXT_COMMAND, RERUN
from sysvm.engine.board import Board
from sysvm.engine.notices import Notices
from sysvm.engine.observed import observed_from, redundancy_from, seen_host_key
from sysvm.engine.ports import EngineObserver, SystemVMs
from sysvm.engine.resources import SYSTEM_VM
from sysvm.engine.stores import Stores, key_of, open_order, told_of_order
from sysvm.engine.work import Handle, Pool
from sysvm.kube.objects import Key
from sysvm.patching.payload import Payload
from sysvm.patching.results import Observation, Target

FIRST_RETRY = timedelta(seconds=5)
AFTER_OPERATION = timedelta(seconds=1)
"""Times in a status have whole seconds: a look in the same second could not be told from one before the end."""
REFRESH = timedelta(hours=1)
"""A look that found nothing new is written down only when the last one written is older."""
TOGETHER = timedelta(seconds=2)
"""Looks at the routers of a pair that begin so far apart still see them together."""
ASKED_LOOK = timedelta(seconds=3)
"""Admission may ask for looks again and again while it waits for a pair to settle; this is how often it gets one."""
QUICK_LOOKS = 5
"""So many of them; a pair that has not settled by then needs somebody, and the pauses grow."""
LONGEST_PAUSE = timedelta(minutes=2)


@dataclass(slots=True)
class Memory:
    """What is known of the looks at one VM."""

    next_look: datetime
    looked_at: datetime | None = None
    began_at: datetime | None = None
    any_key: bool = False
    """The look that runs, or ran last, asked for no host key that was seen before."""
    failures: int = 0
    told: bool = False
    """That it does not answer, since it last did."""
    waited: int = 0
    """Looks in a row that were waited for and did not end the waiting."""
    reach: Reach | None = None
    compared: str | None = None
    """Revision that the last comparison of this process was with."""
    compare_next: bool = True
    prove_next: bool = False
    """An operation on its pair has ended: the next look takes several samples of the role."""
    actions: tuple[PlannedAction, ...] = ()
    request: str = ""
    generation: int = 0

    def asked(self, now: datetime) -> datetime:
        """When somebody who waits for a look gets one."""
        if self.looked_at is None:
            return now
        doubled: int = 2 ** min(max(0, self.waited - QUICK_LOOKS), 10)
        return self.looked_at + min(ASKED_LOOK * doubled, LONGEST_PAUSE)


BEING_STARTED = Reach(
    False,
    Reason.IN_WORK,
    "the management server starts it anew: what answers at its address is another VM, or shows its next host key",
)
"""Of a VM whose host key was refused meanwhile."""


def _is_started_anew(vm: SystemVM) -> bool:
    """The management server was asked for its start: that it is silent meanwhile, or that another VM has its address
    and shows its own key there, is no news. If it stays so, it is told once the operation has ended."""
    told = told_of_order(vm)
    return told is not None and told.result is None and told.method in (Method.REBOOT, Method.RECREATE)


class Looks:
    """Looks at the VMs of all endpoints, each when it is due, in a bounded pool."""

    def __init__(
        self,
        stores: Stores,
        board: Board,
        vms: SystemVMs,
        pool: Pool[None, Observation],
        notices: Notices,
        observer: EngineObserver,
    ) -> None:
        self._stores = stores
        self._board = board
        self._vms = vms
        self._pool = pool
        self._notices = notices
        self._observer = observer
        self._memories: dict[Key, Memory] = {}

    def memory(self, key: Key, vm: SystemVM, now: datetime) -> Memory:
        """What is remembered of a VM. After a restart the former process's last word counts until the next look."""
        known = self._memories.get(key)
        if known is None:
            reach = reach_of(vm.status.conditions)
            known = Memory(
                next_look=now, reach=None if reach is NEVER_TRIED else reach, generation=vm.metadata.generation
            )
            self._memories[key] = known
        return known

    def forget(self, key: Key) -> None:
        self._memories.pop(key, None)
        self._pool.forget(key)

    def after_operation(self, key: Key, vm: SystemVM, now: datetime) -> None:
        """An operation has ended: everything is to be looked at again."""
        memory = self.memory(key, vm, now)
        memory.next_look = now + AFTER_OPERATION
        memory.compare_next = memory.prove_next = True
        if vm.status.redundancy is None:
            return
        for other in self._stores.group_of(vm):
            peer = self._memories.get(key_of(other))
            if peer is not None and not peer.failures:
                peer.next_look, peer.prove_next = min(peer.next_look, now + AFTER_OPERATION), True

    def seconds_to_next(self, key: Key, vm: SystemVM, now: datetime) -> float | None:
        """None while one runs: the pool tells when it ends, and until then there is nothing to do."""
        memory = self.memory(key, vm, now)
        handle = self._pool.get(key)
        if handle is not None and not handle.done:
            return None
        next_look = memory.next_look
        if self._is_waited_for(key, vm, memory, now):
            next_look = min(next_look, memory.asked(now))
            if next_look <= now and not self._may_be_seen_together(vm, now):
                next_look = now + timedelta(seconds=1)
        return max(0.1, (next_look - now).total_seconds())

    def lacks_comparison(self, key: Key, vm: SystemVM, wants: Payload | None, now: datetime) -> bool:
        """It answers, and was not yet compared with what it should be at: that need not wait for its next look."""
        memory = self.memory(key, vm, now)
        return wants is not None and not memory.failures and memory.compared != wants.revision

    def begin_if_due(
        self,
        key: Key,
        vm: SystemVM,
        endpoint: CloudStackEndpoint,
        target: Target,
        wants: Payload | None,
        now: datetime,
    ) -> None:
        """Starts a look if one is due and none runs. `wants`: the payload that the VM should be at."""
        memory = self.memory(key, vm, now)
        if not self._is_due(key, vm, memory, wants, now):
            return
        compare = wants if self._must_compare(vm, endpoint, memory, wants, now) else None
        if self._pool.get(key) is None:
            memory.began_at, memory.any_key = now, target.pinned_host_key is None
        samples = self._samples(key, vm, memory, now)
        self._pool.start(
            key,
            f"look {compare.revision if compare else ''}",
            lambda _: self._vms.observe(target, compare, samples=samples),
        )

    def take_note(
        self, key: Key, vm: SystemVM, endpoint: CloudStackEndpoint, status: SystemVMStatus, now: datetime
    ) -> SystemVMStatus | None:
        """The status with what a finished look found; None while none has finished, or one that proves nothing."""
        handle = self._pool.get(key)
        if handle is None or not handle.done:
            return None
        self._pool.forget(key)
        memory = self.memory(key, vm, now)
        seconds = (now - (memory.began_at or now)).total_seconds()
        if handle.result is None:
            return self._failed(vm, endpoint, status, memory, handle, seconds, now)
        if memory.any_key and (goes_unseen(status) or _is_anothers_key(status, handle.result, now)):
            # It believed whoever answered, and by now nobody but the VM that is known is believed: it is asked anew.
            memory.next_look = now
            return None
        return self._found(key, vm, endpoint, status, memory, handle.result, seconds, now)

    def lost(self, key: Key, vm: SystemVM, now: datetime) -> None:
        """What the last look found was not written down: somebody wrote to the VM in between. It is taken again, with
        the files, or what it was taken for would stay unknown until files are compared anyway, a day later."""
        memory = self.memory(key, vm, now)
        memory.next_look = now
        memory.compare_next = memory.prove_next = True

    def _tell_what_others_did(self, vm: SystemVM, status: SystemVMStatus, now: Observed) -> None:
        """A start or a patch that no operation of ours explains: by high availability, CloudStack, or a person."""
        before = status.observed
        last = status.operation
        ours = last is not None and (last.finished_at is None or before is None or before.at <= last.finished_at)
        if before is None or ours:
            return
        name = status.identity.name if status.identity else vm.metadata.name
        if before.boot_id and now.boot_id and before.boot_id != now.boot_id:
            told = f"{name} was started anew since {format_time(before.at)}, and not by this operator"
            self._notices.tell(SYSTEM_VM, vm.metadata, EventReason.RESTARTED_OUTSIDE, "Look", told)
        if before.signature is not None and before.signature != now.signature:
            value = now.signature.value[:12] if now.signature is not None else "nothing"
            told = (
                f"the signature of {name} is {value}, it was {before.signature.value[:12]}: its scripts changed "
                "without an operation of this operator"
            )
            self._notices.tell(SYSTEM_VM, vm.metadata, EventReason.PATCHED_OUTSIDE, "Look", told, warning=True)

    def _is_due(self, key: Key, vm: SystemVM, memory: Memory, wants: Payload | None, now: datetime) -> bool:
        ended = vm.status.operation.finished_at if vm.status.operation else None
        if ended is not None and now < ended + AFTER_OPERATION:
            return False
        request = vm.metadata.annotations.get(REQUESTED_AT_ANNOTATION, "")
        if request and request not in (memory.request, vm.status.last_handled_reconcile_at):
            memory.request = request
            memory.compare_next = True
            return True
        if vm.metadata.generation != memory.generation:  # a person accepted a host key, or ended a hold
            memory.generation = vm.metadata.generation
            return True
        if now >= memory.next_look:
            return True
        if memory.failures:
            return False
        if wants is not None and memory.compared != wants.revision:
            return True
        return (
            self._is_waited_for(key, vm, memory, now)
            and now >= memory.asked(now)
            and self._may_be_seen_together(vm, now)
        )

    def _may_be_seen_together(self, vm: SystemVM, now: datetime) -> bool:
        """What is seen of two routers counts only if it is seen together: none begins while another is well under way,
        or has to wait for its next look."""
        if vm.status.redundancy is None:
            return True
        for other in self._stores.group_of(vm):
            key = key_of(other)
            memory, handle = self._memories.get(key), self._pool.get(key)
            if memory is None or memory.failures:
                continue
            running = handle is not None and not handle.done
            if running and memory.began_at is not None and now - memory.began_at > TOGETHER:
                return False
            if not running and self._board.wants_look(key) and now < memory.asked(now):
                return False
        return True

    def _samples(self, key: Key, vm: SystemVM, memory: Memory, now: datetime) -> int:
        """More than one takes ten seconds: only where a pair is to be proven, before and after an operation."""
        if vm.status.redundancy is None:
            return 1
        return SAMPLES if memory.prove_next or self._is_waited_for(key, vm, memory, now) else 1

    def _is_waited_for(self, key: Key, vm: SystemVM, memory: Memory, now: datetime) -> bool:
        """Admission, or the judgement of its pair, cannot go on before this VM was looked at again."""
        if memory.failures:
            return False
        return self._board.wants_look(key) or must_look_again(facts_of(vm, now=now), self._group(vm, now))

    def _group(self, vm: SystemVM, now: datetime) -> Sequence[VMFacts]:
        return [facts_of(other, now=now) for other in self._stores.group_of(vm)]

    @staticmethod
    def _must_compare(
        vm: SystemVM, endpoint: CloudStackEndpoint, memory: Memory, wants: Payload | None, now: datetime
    ) -> bool:
        if wants is None:
            return False
        order = open_order(vm)
        if order is not None and order.route is Route.API:
            return True  # CloudStack patches it: what it claims is proven by the files alone
        content = vm.status.observed.content if vm.status.observed else None
        compared_at = content.observed_at if content is not None else None
        stale = compared_at is None or now - compared_at >= endpoint.spec.scan.content
        return memory.compare_next or memory.compared != wants.revision or stale

    def _failed(
        self,
        vm: SystemVM,
        endpoint: CloudStackEndpoint,
        status: SystemVMStatus,
        memory: Memory,
        handle: Handle[None, Observation],
        seconds: float,
        now: datetime,
    ) -> SystemVMStatus:
        error = handle.error
        reason = error.reason if error is not None else Reason.PROTOCOL_ERROR
        self._observer.looked(result=str(reason), seconds=seconds)
        memory.failures += 1
        memory.reach = Reach(False, reason, str(error))
        if reason is Reason.HOST_KEY_CHANGED and _is_started_anew(vm):
            memory.reach = BEING_STARTED  # else a person would be told to accept the key
        memory.next_look = now + min(FIRST_RETRY * 2 ** min(memory.failures - 1, 8), endpoint.spec.scan.interval)
        if not memory.told and not _is_started_anew(vm):
            memory.told = True
            told = EventReason.HOST_KEY_CHANGED if reason is Reason.HOST_KEY_CHANGED else EventReason.UNREACHABLE
            self._notices.tell(SYSTEM_VM, vm.metadata, told, "Look", memory.reach.message, warning=True)
        return status

    def _found(
        self,
        key: Key,
        vm: SystemVM,
        endpoint: CloudStackEndpoint,
        status: SystemVMStatus,
        memory: Memory,
        found: Observation,
        seconds: float,
        now: datetime,
    ) -> SystemVMStatus:
        self._observer.looked(result="Reached", seconds=seconds)
        if memory.reach is not None and memory.reach.reachable is False:
            name = status.identity.name if status.identity else vm.metadata.name
            self._notices.tell(SYSTEM_VM, vm.metadata, EventReason.REACHABLE, "Look", f"{name} answers again")
        waited_for = self._is_waited_for(key, vm, memory, now)
        memory.looked_at, memory.failures, memory.prove_next, memory.told = now, 0, False, False
        memory.waited = memory.waited + 1 if waited_for else 0
        memory.reach = Reach(True, Reason.REACHABLE)
        memory.next_look = now + endpoint.spec.scan.interval
        if found.content is not None:
            memory.compared = found.content.revision
            memory.compare_next = False
            memory.actions = tuple(
                PlannedAction(name=action.name, action=action.action, expected_loss=action.expected_loss)
                for action in found.actions
            ) + tuple(
                PlannedAction(
                    name=bag.name,
                    action=RERUN if bag.possible else AT_NEXT_COMMAND,
                    expected_loss=bag.expected_loss if bag.possible else "none",
                )
                for bag in found.databags
            )
        ended = status.operation.finished_at if status.operation else None
        if ended is not None and found.at.replace(microsecond=0) <= ended:
            # It began before the operation ended: it says nothing about now.
            memory.compare_next = True
            memory.next_look = now + AFTER_OPERATION
        self._board.looked(key)
        refresh = min(REFRESH, endpoint.spec.scan.content)
        observed = observed_from(
            status.observed, found, force_time=waited_for, refresh=refresh, operation=status.operation
        )
        self._tell_what_others_did(vm, status, observed)
        certain = rules.next_look(observed.data_bags)
        if certain is not None:
            memory.next_look = min(memory.next_look, max(certain, now) + timedelta(seconds=1))
        if found.content is None and status.observed is not None and observed.signature != status.observed.signature:
            memory.compare_next = True
            memory.next_look = now
        peers = tuple(other.status.identity.name for other in self._stores.group_of(vm) if other.status.identity)
        redundancy = redundancy_from(status.redundancy, found, peers[:16], force_time=waited_for, refresh=refresh)
        return status.model_copy(
            update={
                "observed": observed,
                "redundancy": redundancy,
                "host_key": seen_host_key(status.host_key, found, now),
            }
        )


def _is_anothers_key(status: SystemVMStatus, found: Observation, now: datetime) -> bool:
    known = status.host_key
    other = known is not None and found.host_key.public_key != known.public_key
    return other and not may_show_another_key(status, now)
