"""Admission: the one decision that hands out work, over all VMs and all running rollouts of an endpoint.

It is made in one place so that maxUnavailable, perHost, the pair rule and "the last of a zone" cannot be broken by two
rollouts. Four steps: classify, free the slots of what has finished, check the budgets, choose candidates.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from sysvm.api.endpoint import Management
from sysvm.api.names import operation_id
from sysvm.api.policy import Method, PolicyBlocker, Route
from sysvm.api.reasons import Reason
from sysvm.api.rollout import Rollout
from sysvm.api.systemvm import Blocker, OperationOrder
from sysvm.api.window import AtEnd
from sysvm.domain import gates, pairs
from sysvm.domain.budgets import Budget, budget_of, holding_slots
from sysvm.domain.drift import drift_of
from sysvm.domain.facts import VMFacts
from sysvm.domain.group_operation import OPEN_LIMIT, is_call
from sysvm.domain.members import RolloutView, classify, method_of, route_of
from sysvm.domain.planner import Plan, in_order
from sysvm.domain.rollout import NOTHING_NEW, Live, next_change, to_return
from sysvm.domain.running import router_of
from sysvm.domain.waves import current_wave, open_waves

BLOCKER_LIMIT = 512
"""Characters of a blocker's sentence."""


@dataclass(frozen=True, slots=True)
class RunningRollout:
    """A rollout without a result, with its plan (decoded, digest checked)."""

    rollout: Rollout
    plan: Plan
    live: Live = NOTHING_NEW
    """What it reads live; the same goes into `rollout.outcome`."""

    @property
    def superseded(self) -> bool:
        return self.live.superseded


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointState:
    """Everything admission looks at."""

    endpoint: str
    now: datetime
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
    next_change: datetime | None = None
    """When another decision is due although nothing happens: a VM may be tried again, or the calendar opens."""


@dataclass(frozen=True, slots=True)
class _Lane:
    """One rollout's share of the endpoint."""

    running: RunningRollout
    view: RolloutView
    budget: Budget
    returning: tuple[VMFacts, ...] = ()
    """VMs that are to go back to what they were, in order, because its budget is spent."""

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
    holding: dict[str, set[str]] = field(default_factory=dict)
    """Rollout -> SystemVM names that count against its maxUnavailable."""
    look_at: set[str] = field(default_factory=set)
    together: dict[str, str] = field(default_factory=dict)
    """SystemVM name -> rollout that has one call made for its whole group."""
    calls: set[str] = field(default_factory=set)
    """Calls to the management server that are open."""

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
    candidates, blocked = _check_budgets(state, lanes)
    admitted = _choose_candidates(state, candidates, ledger, blocked)
    for admission in admitted:
        blocked.pop(admission.vm.name, None)
    moments = [
        next_change(lane.rollout, lane.rollout.status, lane.view, lane.running.live, now=state.now) for lane in lanes
    ]
    due = min((moment for moment in moments if moment is not None), default=None)
    return Admissions(tuple(admitted), blocked, frozenset(ledger.look_at), due)


# Step 1


def _classified(state: EndpointState) -> tuple[_Lane, ...]:
    """The rollouts that have not ended, oldest first, with their members in buckets."""
    vms = {facts.name: facts for facts in state.vms}
    never = datetime.max.replace(tzinfo=UTC)
    running = sorted(
        (found for found in state.rollouts if found.rollout.status.result is None),
        key=lambda found: (found.rollout.metadata.creation_timestamp or never, found.rollout.metadata.name),
    )
    return tuple(_lane(found, classify(found.rollout, found.plan, vms)) for found in running)


def _lane(running: RunningRollout, view: RolloutView) -> _Lane:
    rollout = running.rollout
    budget = budget_of(rollout, running.plan, view)
    returning = to_return(rollout, view, budget, superseded=running.superseded)
    return _Lane(running, view, budget, in_order(returning, rollout.spec.snapshot.strategy.order))


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
            order = facts.order
            if order is not None and is_call(order.method, order.route):
                ledger.calls.add(_call_for(facts))
                if _is_for_the_group(order.method, order.route):
                    ledger.together[facts.name] = order.rollout
    for lane in lanes:
        own = {facts.name for facts in lane.view.in_work}
        # A rollout that goes back has nothing left to protect from its failures, and they would hold it up for ever.
        held = frozenset() if lane.returning else holding_slots(lane.name, lane.view)
        taken = {name for name in ledger.in_work if name in own or name in lane.running.plan.planned}
        ledger.holding[lane.name] = taken | held
    return ledger


# Step 3


@dataclass(frozen=True, slots=True)
class _Candidates:
    """The VMs of one rollout that may be taken, in order, unless a rule holds one back."""

    lane: _Lane
    vms: tuple[VMFacts, ...]
    back: bool = False
    """They are brought back to what they were."""


def _check_budgets(
    state: EndpointState, lanes: tuple[_Lane, ...]
) -> tuple[tuple[_Candidates, ...], dict[str, tuple[Blocker, ...]]]:
    """Who may be taken by gates, failure budgets and waves, and why not the others. maxUnavailable comes VM by VM."""
    candidates: list[_Candidates] = []
    blocked: dict[str, tuple[Blocker, ...]] = {}
    for lane in lanes:
        for facts in lane.view.stuck:
            why = f"a peer of {facts.vm} failed in rollout {lane.name}: the next rollout takes it"
            blocked[facts.name] = (_blocker(Reason.PEER_UNHEALTHY, why),)
        gate = _closed_gate(state, lane)
        spent = gates.budget_gate(lane.rollout, lane.view, lane.budget)
        why_not = gate or spent
        if why_not is not None:
            _block(blocked, lane.view.waiting, why_not)
        if gate is not None:
            _block(blocked, lane.returning, gate)
        elif spent is None:
            candidates.append(_Candidates(lane, _in_open_waves(lane, blocked)))
        elif lane.returning:
            candidates.append(_going_back(lane, blocked))
    return tuple(candidates), blocked


def _closed_gate(state: EndpointState, lane: _Lane) -> PolicyBlocker | None:
    """What keeps a whole rollout from taking more."""
    live = lane.running.live
    if state.deleting:
        return gates.blocker(Reason.DELETING, f"endpoint {state.endpoint} is being deleted")
    if state.management is not Management.FULL:
        return gates.blocker(Reason.OBSERVE_ONLY, f"endpoint {state.endpoint} has management {state.management}")
    if state.suspended:
        return gates.blocker(Reason.SUSPENDED, f"endpoint {state.endpoint} is suspended")
    person = gates.person_gate(lane.rollout, superseded=live.superseded)
    if person is not None:
        return person
    if live.suspended is not None:
        return gates.blocker(Reason.SUSPENDED, live.suspended)
    changed = gates.cloud_gate(lane.rollout, live.cloud, unseen=live.cloud_unseen)
    return changed or gates.calendar_gate(live.opening)


def _in_open_waves(lane: _Lane, blocked: dict[str, tuple[Blocker, ...]]) -> tuple[VMFacts, ...]:
    """The waiting VMs of the waves that the stored status calls open, approved where that is asked for."""
    current = current_wave(lane.rollout, lane.view)
    taken = open_waves(lane.rollout, lane.view)
    open_names = {wave.name for wave in taken}
    found: list[VMFacts] = []
    for wave in lane.view.waves:
        gate = gates.approval_gate(lane.rollout, wave.name, lane.running.live.approvals or {})
        if wave.name not in open_names and current is not None:
            gate = gates.wave_gate(wave.name, current.name)
        if gate is None:
            found += wave.waiting
        else:
            _block(blocked, wave.waiting, gate)
    return tuple(found)


def _going_back(lane: _Lane, blocked: dict[str, tuple[Blocker, ...]]) -> _Candidates:
    """What goes forward still is finished first: it may be one more that goes back."""
    forward = [facts for facts in lane.view.in_work if facts.order is not None and not facts.order.takes_back]
    if not forward:
        return _Candidates(lane, lane.returning, back=True)
    first = _blocker(Reason.ROLLING_BACK, f"rollout {lane.name} goes back when {forward[0].vm} is out of work")
    blocked.update({facts.name: (first,) for facts in lane.returning})
    return _Candidates(lane, ())


# Step 4


def _choose_candidates(
    state: EndpointState, candidates: tuple[_Candidates, ...], ledger: _Ledger, blocked: dict[str, tuple[Blocker, ...]]
) -> list[Admission]:
    """In the order of each plan, whoever no rule holds back; every choice counts for the next one at once."""
    admitted: list[Admission] = []
    for group in candidates:
        lane = group.lane
        # Whose patch failed is what it was: no reason to leave its peer at what is being taken back.
        known = replace(ledger, failed=frozenset()) if group.back else ledger
        for unit in _units(group):
            blocker = _first_blocker(unit, lane, known)
            if blocker is not None:
                blocked.update({facts.name: (blocker,) for facts in unit.vms})
                continue
            for facts in unit.vms:
                ledger.take(facts)
                ledger.holding[lane.name].add(facts.name)
                if unit.is_for_the_group:
                    ledger.together[facts.name] = lane.name
                if unit.is_call:
                    ledger.calls.add(unit.call)
                admitted.append(Admission(facts, _order(facts, lane, unit, state.epoch, back=group.back)))
    return admitted


@dataclass(frozen=True, slots=True)
class _Unit:
    """Who gets an order together: one VM, or all routers that CloudStack replaces or patches with one call."""

    method: Method
    route: Route | None
    vms: tuple[VMFacts, ...]

    @property
    def call(self) -> str:
        return _call_for(self.vms[0])

    @property
    def is_call(self) -> bool:
        return is_call(self.method, self.route)

    @property
    def is_for_the_group(self) -> bool:
        return _is_for_the_group(self.method, self.route)


def _is_for_the_group(method: Method, route: Route | None) -> bool:
    """One call changes all routers of the network or VPC."""
    return method is Method.RECREATE or route is Route.API


def _call_for(facts: VMFacts) -> str:
    """One name for all that the management server changes with the same call."""
    return facts.name if facts.is_zone_type else facts.group or facts.name


def _units(candidates: _Candidates) -> Iterator[_Unit]:
    lane, taken = candidates.lane, set[str]()
    for facts in candidates.vms:
        if facts.name in taken:
            continue
        method, route = Method.LIVE_PATCH, None
        if not candidates.back:
            method, route = _way(lane, facts)
        group = facts.identity.group if facts.identity is not None and not facts.is_zone_type else None
        together: tuple[VMFacts, ...] = (facts,)
        if _is_for_the_group(method, route) and group is not None:
            together = tuple(
                other
                for other in candidates.vms
                if other.identity is not None and other.identity.group == group and _way(lane, other) == (method, route)
            )
        taken |= {other.name for other in together}
        yield _Unit(method, route, together)


def _way(lane: _Lane, facts: VMFacts) -> tuple[Method, Route | None]:
    """What its rollout does next to it, and which way a live patch goes."""
    method = method_of(lane.rollout, lane.running.plan, facts) or Method.LIVE_PATCH
    return method, route_of(lane.rollout, lane.running.plan, facts)


def _first_blocker(unit: _Unit, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """Orders are one write each. A process that ended between those of a group left some with one: the others get
    theirs then, and the call is made only when all have it."""
    if unit.is_call and len(ledger.calls - {unit.call}) >= OPEN_LIMIT:
        return _blocker(Reason.WAITING_FOR_SLOT, f"{OPEN_LIMIT} calls to the management server are open")
    rules = RULES
    if unit.is_for_the_group:
        rules = RECREATE_RULES if unit.method is Method.RECREATE else API_RULES
    for facts in unit.vms:
        blocker = next((found for rule in rules if (found := rule(facts, lane, ledger)) is not None), None)
        if blocker is not None:
            return blocker
    return _group_has_no_slots(unit, lane, ledger) if unit.is_for_the_group else None


def _order(facts: VMFacts, lane: _Lane, unit: _Unit, epoch: int, *, back: bool) -> OperationOrder:
    rollout, opening = lane.rollout, lane.running.live.opening
    earlier, done = facts.order, facts.operation
    attempt = earlier.attempt + 1 if earlier is not None and earlier.rollout == lane.name else 1
    # What the management server has begun cannot be called back.
    may_end = not unit.is_call and not back
    ends = opening is not None and opening.at_end is AtEnd.ROLL_BACK and may_end
    return OperationOrder(
        id=operation_id(rollout.metadata.uid, facts.uid, attempt),
        rollout=lane.name,
        method=unit.method,
        route=Route.API if unit.route is Route.API else None,
        revision=rollout.spec.revision,
        template=rollout.spec.template_ref.name,
        attempt=attempt,
        epoch=epoch,
        takes_back=done.id if back and done is not None else None,
        deadline=opening.closes_at if ends and opening is not None else None,
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
    if facts.unreachable and method_of(lane.rollout, lane.running.plan, facts) is Method.RECREATE:
        return None
    ledger.look_at.add(facts.name)
    return _blocker(Reason.NOT_OBSERVED, f"{facts.vm} must be looked at again first")


def _has_a_peer_in_work(facts: VMFacts, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """Never two VMs of one group."""
    for group in sorted(facts.groups):
        for peer in ledger.peers(facts, group):
            if peer.name in ledger.in_work and not _is_changed_with(facts, peer, lane, ledger):
                return _blocker(Reason.WAITING_FOR_GROUP, f"{peer.vm} of the same group ({group}) is in work")
    return None


def _is_changed_with(facts: VMFacts, peer: VMFacts, lane: _Lane, ledger: _Ledger) -> bool:
    """One call changes both, and the peer has its order for it already."""
    if facts.is_zone_type or ledger.together.get(peer.name) != lane.name:
        return False
    return _is_for_the_group(*_way(lane, facts))


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
    holding, count = ledger.holding[lane.name], lane.budget.slots
    if facts.name in holding or len(holding) < count:
        return None
    limit = lane.rollout.spec.snapshot.strategy.max_unavailable
    return _blocker(Reason.WAITING_FOR_SLOT, f"maxUnavailable {limit}: all {count} are in work or failed")


def _group_has_no_slots(unit: _Unit, lane: _Lane, ledger: _Ledger) -> Blocker | None:
    """maxUnavailable for a group that is never split: as a wave, it may be larger than the limit if it is alone."""
    group = {peer.name for facts in unit.vms for name in facts.groups for peer in ledger.peers(facts, name)}
    given = {name for name in group if ledger.together.get(name) == lane.name}  # before a process ended in between
    others = ledger.holding[lane.name] - {facts.name for facts in unit.vms} - given
    count = lane.budget.slots
    if not others or len(others) + len(unit.vms) <= count:
        return None
    limit = lane.rollout.spec.snapshot.strategy.max_unavailable
    return _blocker(Reason.WAITING_FOR_SLOT, f"maxUnavailable {limit}: {count} in work or failed at most")


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


RECREATE_RULES: tuple[Rule, ...] = (
    _is_busy,
    _is_not_known,
    _has_a_peer_in_work,
    _is_the_last_of_its_zone,
    _host_is_full,
)
"""For VMs that CloudStack replaces. A sick peer is replaced with it, and roles are made anew."""

API_RULES: tuple[Rule, ...] = (
    _is_busy,
    _is_not_known,
    _has_a_peer_in_work,
    _has_an_unwell_peer,
    _is_the_last_of_its_zone,
    _host_is_full,
    _pair_is_not_proven,
)
"""For VMs that CloudStack patches with one call: a pair must be one, and who goes first is not for us to say."""


def _blocker(reason: Reason, message: str) -> Blocker:
    return Blocker(reason=str(reason), message=message[:BLOCKER_LIMIT])


def _block(blocked: dict[str, tuple[Blocker, ...]], vms: tuple[VMFacts, ...], gate: PolicyBlocker) -> None:
    """All wait for the same: one sentence, made once, because they may be ten thousand."""
    why = (Blocker(reason=gate.reason, message=gate.message),)
    blocked.update({facts.name: why for facts in vms})
