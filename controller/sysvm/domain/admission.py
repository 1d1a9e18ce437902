"""Admission: the one decision that hands out work, over all VMs and all running rollouts of an endpoint.

It is made in one place so that maxUnavailable, perHost, the pair rule and "the last of a zone" cannot be broken by two
rollouts. Four steps: classify, free the slots of what has finished, check the budgets, choose candidates.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sysvm.api.endpoint import Management
from sysvm.api.names import operation_id
from sysvm.api.policy import Method
from sysvm.api.reasons import Reason
from sysvm.api.rollout import DesiredState, Rollout
from sysvm.api.systemvm import Blocker, OperationOrder
from sysvm.domain import pairs
from sysvm.domain.drift import drift_of
from sysvm.domain.facts import VMFacts
from sysvm.domain.failure import failures_of
from sysvm.domain.planner import Plan
from sysvm.domain.rollout import FAILURES_ALLOWED, RolloutView, classify, slots
from sysvm.domain.running import router_of

BLOCKER_LIMIT = 512
"""Characters of a blocker's sentence."""


@dataclass(frozen=True, slots=True)
class RunningRollout:
    """A rollout without a result, with its plan (decoded, digest checked)."""

    rollout: Rollout
    plan: Plan
    policy_suspended: bool = False
    superseded: bool = False
    """Its policy is gone or being deleted, or wants another revision. A deletion of the rollout itself is seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointState:
    """Everything admission looks at."""

    endpoint: str
    management: Management
    epoch: int
    """leaseTransitions of the leader that decides."""
    vms: tuple[VMFacts, ...]
    """All VMs of the endpoint, selected or not: the others of a group count too."""
    rollouts: tuple[RunningRollout, ...]
    suspended: bool = False
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """One order for spec.operation of one SystemVM, written with its resourceVersion; a conflict means decide again."""

    vm: VMFacts
    order: OperationOrder


@dataclass(frozen=True, slots=True)
class Admissions:
    """The outcome."""

    admitted: tuple[Admission, ...] = ()
    blocked: Mapping[str, tuple[Blocker, ...]] = field(default_factory=dict)
    """SystemVM name -> why it waits, for its plan.blockedBy; every waiting member that was not admitted is here."""
    look_at: frozenset[str] = frozenset()
    """SystemVM names whose last look is too old to decide: observe them soon, files included, at most every few
    seconds; nothing else unblocks the others."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """One rollout's share of the endpoint."""

    running: RunningRollout
    view: RolloutView

    @property
    def rollout(self) -> Rollout:
        return self.running.rollout

    @property
    def name(self) -> str:
        return self.running.rollout.metadata.name


@dataclass(slots=True)
class _Ledger:
    """What is occupied, kept up to date while candidates are chosen."""

    by_group: Mapping[str, tuple[VMFacts, ...]]
    failed: frozenset[str]
    """SystemVM names that failed in a running rollout."""
    lanes: tuple[_Lane, ...]
    in_work: set[str] = field(default_factory=set)
    hosts: Counter[str] = field(default_factory=Counter)
    slots_used: Counter[str] = field(default_factory=Counter)
    """By rollout."""
    look_at: set[str] = field(default_factory=set)

    def take(self, vm: VMFacts) -> None:
        self.in_work.add(vm.name)
        if vm.host:
            self.hosts[vm.host] += 1

    def peers(self, vm: VMFacts, group: str) -> tuple[VMFacts, ...]:
        return tuple(other for other in self.by_group.get(group, ()) if other.name != vm.name)


def admit(state: EndpointState) -> Admissions:
    """Who may begin now. Deterministic: the same state gives the same orders, with the same ids."""
    lanes = _classified(state)
    ledger = _free_finished_slots(state, lanes)
    open_lanes, blocked = _check_budgets(state, lanes)
    admitted = _choose_candidates(state, open_lanes, ledger, blocked)
    for admission in admitted:
        blocked.pop(admission.vm.name, None)
    return Admissions(tuple(admitted), blocked, frozenset(ledger.look_at))


# Step 1


def _classified(state: EndpointState) -> tuple[_Lane, ...]:
    """The rollouts that have not ended, oldest first, with their members in buckets."""
    vms = {facts.name: facts for facts in state.vms}
    never = datetime.max.replace(tzinfo=UTC)
    running = sorted(
        (found for found in state.rollouts if found.rollout.status.result is None),
        key=lambda found: (found.rollout.metadata.creation_timestamp or never, found.rollout.metadata.name),
    )
    return tuple(_Lane(found, classify(found.rollout, found.plan, vms)) for found in running)


# Step 2


def _free_finished_slots(state: EndpointState, lanes: tuple[_Lane, ...]) -> _Ledger:
    """What is still occupied: VMs in work for whatever rollout, and VMs that failed in theirs. All others are free."""
    by_group: dict[str, list[VMFacts]] = {}
    for facts in sorted(state.vms, key=lambda facts: facts.name):
        for group in facts.groups:
            by_group.setdefault(group, []).append(facts)
    ledger = _Ledger(
        by_group={group: tuple(members) for group, members in by_group.items()},
        failed=frozenset(facts.name for lane in lanes for facts in lane.view.failed),
        lanes=lanes,
    )
    for facts in state.vms:
        if facts.in_work:
            ledger.take(facts)
    for lane in lanes:
        planned = {entry.name for entry in lane.running.plan.entries}
        occupied = (planned & ledger.in_work) | {facts.name for facts in lane.view.failed}
        ledger.slots_used[lane.name] = len(occupied)
    return ledger


# Step 3


def _check_budgets(
    state: EndpointState, lanes: tuple[_Lane, ...]
) -> tuple[tuple[_Lane, ...], dict[str, tuple[Blocker, ...]]]:
    """The rollouts that may take more, and the blockers of those that may not. maxUnavailable is checked VM by VM."""
    open_lanes: list[_Lane] = []
    blocked: dict[str, tuple[Blocker, ...]] = {}
    for lane in lanes:
        gate = _closed_gate(state, lane)
        if gate is None:
            open_lanes.append(lane)
        else:
            blocked.update({facts.name: (gate,) for facts in lane.view.waiting})
    return tuple(open_lanes), blocked


def _closed_gate(state: EndpointState, lane: _Lane) -> Blocker | None:
    """What keeps a whole rollout from taking more."""
    rollout, name = lane.rollout, lane.name
    if state.deleting:
        return _blocker(Reason.DELETING, f"endpoint {state.endpoint} is being deleted")
    if state.management is not Management.FULL:
        return _blocker(Reason.OBSERVE_ONLY, f"endpoint {state.endpoint} has management {state.management}")
    if state.suspended:
        return _blocker(Reason.SUSPENDED, f"endpoint {state.endpoint} is suspended")
    if rollout.metadata.deletion_timestamp is not None:
        return _blocker(Reason.DELETING, f"rollout {name} is being deleted")
    if lane.running.superseded:
        return _blocker(Reason.SUPERSEDED, f"rollout {name} is superseded: its policy wants something else by now")
    if lane.running.policy_suspended:
        return _blocker(Reason.SUSPENDED, f"policy {rollout.spec.policy_ref.name} is suspended")
    if rollout.spec.state is DesiredState.PAUSED:
        return _blocker(Reason.PAUSED, f"rollout {name} is paused")
    if rollout.spec.state is DesiredState.ABORTED:
        return _blocker(Reason.ABORTED, f"rollout {name} is aborted")
    if len(lane.view.failed) > FAILURES_ALLOWED:
        return _blocker(Reason.VM_FAILED, f"rollout {name} takes no more: {failures_of(lane.view.failed)}")
    return None


# Step 4


def _choose_candidates(
    state: EndpointState, open_lanes: tuple[_Lane, ...], ledger: _Ledger, blocked: dict[str, tuple[Blocker, ...]]
) -> list[Admission]:
    """In the order of each plan, whoever no rule holds back; every choice counts for the next one at once."""
    admitted: list[Admission] = []
    for lane in open_lanes:
        for facts in lane.view.waiting:
            blocker = next((found for rule in RULES if (found := rule(facts, lane, ledger)) is not None), None)
            if blocker is not None:
                blocked[facts.name] = (blocker,)
                continue
            ledger.take(facts)
            ledger.slots_used[lane.name] += 1
            admitted.append(Admission(facts, _order(facts, lane, state.epoch)))
    return admitted


def _order(facts: VMFacts, lane: _Lane, epoch: int) -> OperationOrder:
    rollout = lane.rollout
    earlier = facts.order
    attempt = earlier.attempt + 1 if earlier is not None and earlier.rollout == lane.name else 1
    return OperationOrder(
        id=operation_id(rollout.metadata.uid, facts.uid, attempt),
        rollout=lane.name,
        method=Method.LIVE_PATCH,
        revision=rollout.spec.revision,
        template=rollout.spec.template_ref.name,
        attempt=attempt,
        epoch=epoch,
    )


def _is_busy(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """Another rollout's operation on this very VM is still open."""
    if facts.name not in ledger.in_work:
        return None
    return _blocker(Reason.IN_WORK, f"{facts.vm} is still in work for another rollout")


def _is_not_known(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """The plan was made from an older look; a VM that must be looked at again is."""
    if facts.reachable and drift_of(facts, lane.running.plan.release).certain:
        return None
    ledger.look_at.add(facts.name)
    return _blocker(Reason.NOT_OBSERVED, f"{facts.vm} must be looked at again first")


def _has_a_peer_in_work(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """Never two VMs of one group."""
    for group in sorted(facts.groups):
        for peer in ledger.peers(facts, group):
            if peer.name in ledger.in_work:
                return _blocker(Reason.WAITING_FOR_GROUP, f"{peer.vm} of the same group ({group}) is in work")
    return None


def _has_an_unwell_peer(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """Who cannot be relied on to take over keeps the others of its group from being touched."""
    group = facts.identity.group if facts.identity else None
    for peer in ledger.peers(facts, group) if group else ():
        ailment = "failed in this rollout" if peer.name in ledger.failed else peer.ailment
        if ailment is not None:
            return _blocker(Reason.PEER_UNHEALTHY, f"{peer.vm} of the same group ({group}) {ailment}")
    return None


def _is_the_last_of_its_zone(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """Never the last healthy SSVM or CPVM of a zone, where there are several; a single one is patched as it is."""
    peers = ledger.peers(facts, facts.zone_group) if facts.zone_group else ()
    if not peers or any(peer.healthy and peer.name not in ledger.failed for peer in peers):
        return None
    first = peers[0]
    ailment = first.ailment or "failed in a running rollout"
    return _blocker(Reason.LAST_OF_ZONE, f"{facts.vm} is the last healthy one of its zone: {first.vm} {ailment}")


def _pair_is_not_settled(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """In a redundant group: the roles are as seen after the last operation, exactly one is PRIMARY, and it goes last,
    after every patched peer was found converged."""
    group, members = _pair_of(facts, ledger)
    if not members:
        return None
    ends = [member.operation.finished_at for member in members if member.operation and member.operation.finished_at]
    stale = [member for member in members if ends and not _seen_after(member, max(ends))]
    if stale:
        ledger.look_at.update(member.name for member in stale)
        names = ", ".join(member.vm for member in stale)
        return _blocker(
            Reason.WAITING_FOR_GROUP, f"the roles of the group {group} must be seen again after the last patch: {names}"
        )
    primary = pairs.primary_now([router_of(member) for member in members])
    if not isinstance(primary, str):
        ledger.look_at.update(member.name for member in members)
        trouble = primary or pairs.Trouble(Reason.PAIR_NOT_SEEN, "the routers must be looked at first")
        return _blocker(trouble.reason, f"the group {group} needs exactly one PRIMARY: {trouble.sentence}")
    if primary != facts.vm:
        return None
    return _backup_comes_first(facts, members, ledger)


def _pair_of(facts: VMFacts, ledger: _Ledger) -> tuple[str | None, tuple[VMFacts, ...]]:
    """Its redundant group and all members, itself included; none for a VM that is not part of a pair."""
    group = facts.identity.group if facts.identity else None
    members = ledger.by_group.get(group, ()) if group else ()
    return group, members if any(member.role is not None for member in members) else ()


def _pair_is_not_proven(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """Right before the order: exactly one PRIMARY by three looks at all members together, moments ago. Last of the
    rules, because it makes the VMs work."""
    group, members = _pair_of(facts, ledger)
    if not members:
        return None
    proof = pairs.one_primary([router_of(member) for member in members], now=facts.moment)
    if isinstance(proof, pairs.Proof):
        return None
    ledger.look_at.update(member.name for member in members)
    return _blocker(proof.reason, f"the group {group} needs exactly one PRIMARY, proven: {proof.sentence}")


def _backup_comes_first(facts: VMFacts, members: tuple[VMFacts, ...], ledger: _Ledger) -> Blocker | None:
    others = {member.name for member in members if member.name != facts.name}
    for lane in ledger.lanes:
        if lane.running.superseded:
            continue
        for peer in lane.view.waiting:
            if peer.name in others:
                return _blocker(Reason.BACKUP_FIRST, f"{facts.vm} is PRIMARY: {peer.vm} goes first")
        for peer in lane.view.done:
            release = lane.running.plan.release
            if peer.name in others and not drift_of(peer, release).converged:
                ledger.look_at.add(peer.name)
                return _blocker(
                    Reason.BACKUP_FIRST, f"{facts.vm} is PRIMARY: {peer.vm} must first be found at {release.short}"
                )
    return None


def _seen_after(member: VMFacts, moment: datetime) -> bool:
    """Role and everything else were seen later; times have whole seconds, so the same second is not later."""
    return (
        member.observed is not None
        and member.observed.at > moment
        and (member.redundancy is None or member.redundancy.observed_at > moment)
    )


def _has_no_slot(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """maxUnavailable: in work or failed at once. The sentence names no VM, so that it stays the same while it waits."""
    limit = lane.rollout.spec.snapshot.strategy.max_unavailable
    count = slots(limit, lane.running.plan.applicable)
    if ledger.slots_used[lane.name] < count:
        return None
    return _blocker(Reason.WAITING_FOR_SLOT, f"maxUnavailable {limit}: all {count} are in work or failed")


def _host_is_full(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """perHost, over all rollouts; a VM whose host is not known has no such limit."""
    limit = lane.rollout.spec.snapshot.strategy.per_host
    if not facts.host or ledger.hosts[facts.host] < limit:
        return None
    return _blocker(Reason.WAITING_FOR_HOST, f"perHost {limit}: as many VMs of host {facts.host} are in work")


Rule = Callable[[VMFacts, _Lane, _Ledger], Blocker | None]

RULES: tuple[Rule, ...] = (
    _is_busy,
    _is_not_known,
    _has_a_peer_in_work,
    _has_an_unwell_peer,
    _is_the_last_of_its_zone,
    _pair_is_not_settled,
    _has_no_slot,
    _host_is_full,
    _pair_is_not_proven,
)
"""The first that objects is what the VM says it waits for."""


def _blocker(reason: Reason, message: str) -> Blocker:
    return Blocker(reason=str(reason), message=message[:BLOCKER_LIMIT])
