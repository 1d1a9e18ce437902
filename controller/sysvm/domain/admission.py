"""Admission: the one decision that hands out work, over all VMs and all running rollouts of an endpoint.

It is made in one place so that maxUnavailable, perHost, the pair rule and "the last of a zone" cannot be broken by two
rollouts. Four steps: classify, free the slots of what has finished, check the budgets, choose candidates.

An order that a former leader handed out and never began is no more than a wish: hours may have passed, and a person may
have stopped the operator to stop the work. It is decided about like a VM that waits, and stands only if the very same
order would be given now.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from sysvm.api.endpoint import Management
from sysvm.api.methods import Method, Route
from sysvm.api.names import operation_id
from sysvm.api.operation import OperationOrder
from sysvm.api.policy import PolicyBlocker
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import Blocker
from sysvm.api.window import AtEnd
from sysvm.domain import gates
from sysvm.domain.admission_rules import first_blocker, objection
from sysvm.domain.budgets import budget_of, holding_slots
from sysvm.domain.calls import is_call
from sysvm.domain.facts import VMFacts
from sysvm.domain.ledger import Lane, Ledger, RunningRollout, Unit, call_for, way
from sysvm.domain.members import RolloutView, classify
from sysvm.domain.planner import in_order, is_for_the_group
from sysvm.domain.rollout import next_change, to_return
from sysvm.domain.waves import current_wave, open_waves

SWEPT_AGAIN = timedelta(minutes=1)
"""So often VMs are decided about that wait for a sweep."""


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
    called_for: frozenset[str] = frozenset()
    """Ids of orders that an operation of the management server answers, in whatever rollout."""


@dataclass(frozen=True, slots=True)
class Admission:
    """One order for spec.operation of one SystemVM, written with its resourceVersion; a conflict means decide again."""

    vm: VMFacts
    """As it was seen: with the order that a former leader may have left."""
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
    confirmed: frozenset[str] = frozenset()
    """Ids of orders of a former leader that would be given now, word for word: they may begin."""
    withdrawn: tuple[VMFacts, ...] = ()
    """VMs that have such an order and would get none now, with the others' reasons in `blocked`. Whoever only waits for
    the first sweep of this process keeps it, and does not begin."""


def admit(state: EndpointState) -> Admissions:
    """Who may begin now. Deterministic: the same state gives the same orders, with the same ids."""
    left = {facts.name: facts for facts in state.vms if was_never_begun(facts, state.epoch, state.called_for)}
    if not left:
        return _decided(state, _classified(state))
    free = replace(state, vms=tuple(replace(facts, order=None) if facts.name in left else facts for facts in state.vms))
    lanes = _classified(free)
    decided = _decided(free, lanes)
    given = {
        admitted.vm.name: replace(admitted, vm=left.get(admitted.vm.name, admitted.vm)) for admitted in decided.admitted
    }
    confirmed = {name for name, admitted in given.items() if _holds_already(admitted)}
    unsure = {lane.name for lane in lanes if lane.running.live.cloud_unseen and _closed_by_people(free, lane) is None}
    return replace(
        decided,
        admitted=tuple(admitted for name, admitted in given.items() if name not in confirmed),
        confirmed=frozenset(given[name].order.id for name in confirmed),
        withdrawn=tuple(
            facts
            for name, facts in left.items()
            if name not in given and facts.order is not None and facts.order.rollout not in unsure
        ),
    )


def was_never_begun(facts: VMFacts, epoch: int, called_for: frozenset[str]) -> bool:
    """It has an order of another leader that no status tells of: an operation is told before it begins, in the VM's
    status or in the rollout's. A Lease that was deleted while clocks went back lets an epoch fall, so another epoch is
    a former one."""
    order = facts.order
    if order is None or order.epoch == epoch or order.id in called_for:
        return False
    return facts.operation is None or facts.operation.id != order.id


def _holds_already(admitted: Admission) -> bool:
    before = admitted.vm.order
    return before is not None and before == admitted.order.model_copy(update={"epoch": before.epoch})


def _decided(state: EndpointState, lanes: tuple[Lane, ...]) -> Admissions:
    ledger = _free_finished_slots(state, lanes)
    candidates, blocked = _check_budgets(state, lanes)
    admitted = _choose_candidates(state, candidates, ledger, blocked)
    for admission in admitted:
        blocked.pop(admission.vm.name, None)
    moments = [
        next_change(lane.rollout, lane.rollout.status, lane.view, lane.running.live, now=state.now) for lane in lanes
    ]
    if any(lane.running.live.cloud_too_old for lane in lanes):
        moments.append(state.now + SWEPT_AGAIN)  # a sweep that finds everything as it was wakes nobody
    due = min((moment for moment in moments if moment is not None), default=None)
    return Admissions(tuple(admitted), blocked, frozenset(ledger.look_at), due)


# Step 1


def _classified(state: EndpointState) -> tuple[Lane, ...]:
    """The rollouts that have not ended, oldest first, with their members in buckets."""
    vms = {facts.name: facts for facts in state.vms}
    never = datetime.max.replace(tzinfo=UTC)
    running = sorted(
        (found for found in state.rollouts if found.rollout.status.result is None),
        key=lambda found: (found.rollout.metadata.creation_timestamp or never, found.rollout.metadata.name),
    )
    return tuple(_lane(found, classify(found.rollout, found.plan, vms)) for found in running)


def _lane(running: RunningRollout, view: RolloutView) -> Lane:
    rollout = running.rollout
    budget = budget_of(rollout, running.plan, view)
    returning = to_return(rollout, view, budget, superseded=running.superseded)
    return Lane(running, view, budget, in_order(returning, rollout.spec.snapshot.strategy.order))


# Step 2


def _free_finished_slots(state: EndpointState, lanes: tuple[Lane, ...]) -> Ledger:
    """What is still occupied: VMs in work for whatever rollout, and VMs that failed in theirs. All others are free."""
    by_group: dict[str, list[VMFacts]] = {}
    for facts in sorted(state.vms, key=lambda facts: facts.name):
        for group in facts.groups:
            by_group.setdefault(group, []).append(facts)
    ledger = Ledger(
        by_group={group: tuple(members) for group, members in by_group.items()},
        failed=frozenset(facts.name for lane in lanes for facts in lane.view.failed),
        lanes=lanes,
    )
    for facts in state.vms:
        if facts.in_work:
            ledger.take(facts)
            order = facts.order
            if order is not None and is_call(order.method, order.route):
                ledger.calls.add(call_for(facts))
                if is_for_the_group(order.method, order.route):
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

    lane: Lane
    vms: tuple[VMFacts, ...]
    back: bool = False
    """They are brought back to what they were."""


def _check_budgets(
    state: EndpointState, lanes: tuple[Lane, ...]
) -> tuple[tuple[_Candidates, ...], dict[str, tuple[Blocker, ...]]]:
    """Who may be taken by gates, failure budgets and waves, and why not the others. maxUnavailable comes VM by VM."""
    candidates: list[_Candidates] = []
    blocked: dict[str, tuple[Blocker, ...]] = {}
    for lane in lanes:
        for facts in lane.view.stuck:
            why = f"a peer of {facts.vm} failed in rollout {lane.name}: the next rollout takes it"
            blocked[facts.name] = (objection(Reason.PEER_UNHEALTHY, why),)
        for facts in lane.view.held:
            found = lane.view.why_held[facts.name]
            blocked[facts.name] = (objection(found.reason, found.sentence),)
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


def _closed_gate(state: EndpointState, lane: Lane) -> PolicyBlocker | None:
    """What keeps a whole rollout from taking more."""
    live = lane.running.live
    closed = _closed_by_people(state, lane) or gates.cloud_gate(lane.rollout, live.cloud, unseen=live.cloud_unseen)
    return closed or gates.calendar_gate(live.opening)


def _closed_by_people(state: EndpointState, lane: Lane) -> PolicyBlocker | None:
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
    return gates.blocker(Reason.SUSPENDED, live.suspended) if live.suspended is not None else None


def _in_open_waves(lane: Lane, blocked: dict[str, tuple[Blocker, ...]]) -> tuple[VMFacts, ...]:
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


def _going_back(lane: Lane, blocked: dict[str, tuple[Blocker, ...]]) -> _Candidates:
    """What goes forward still is finished first: it may be one more that goes back."""
    forward = [facts for facts in lane.view.in_work if facts.order is not None and not facts.order.takes_back]
    if not forward:
        return _Candidates(lane, lane.returning, back=True)
    first = objection(Reason.ROLLING_BACK, f"rollout {lane.name} goes back when {forward[0].vm} is out of work")
    blocked.update({facts.name: (first,) for facts in lane.returning})
    return _Candidates(lane, ())


# Step 4


def _choose_candidates(
    state: EndpointState, candidates: tuple[_Candidates, ...], ledger: Ledger, blocked: dict[str, tuple[Blocker, ...]]
) -> list[Admission]:
    """In the order of each plan, whoever no rule holds back; every choice counts for the next one at once."""
    admitted: list[Admission] = []
    for group in candidates:
        lane = group.lane
        # Whose patch failed is what it was: no reason to leave its peer at what is being taken back.
        known = replace(ledger, failed=frozenset()) if group.back else ledger
        for unit in _units(group):
            blocker = first_blocker(unit, lane, known)
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


def _units(candidates: _Candidates) -> Iterator[Unit]:
    lane, taken = candidates.lane, set[str]()
    for facts in candidates.vms:
        if facts.name in taken:
            continue
        method, route = Method.LIVE_PATCH, None
        if not candidates.back:
            method, route = way(lane, facts)
        group = facts.identity.group if facts.identity is not None and not facts.is_zone_type else None
        together: tuple[VMFacts, ...] = (facts,)
        if is_for_the_group(method, route) and group is not None:
            together = tuple(
                other
                for other in candidates.vms
                if other.identity is not None and other.identity.group == group and way(lane, other) == (method, route)
            )
        taken |= {other.name for other in together}
        yield Unit(method, route, together)


def _order(facts: VMFacts, lane: Lane, unit: Unit, epoch: int, *, back: bool) -> OperationOrder:
    rollout, opening = lane.rollout, lane.running.live.opening
    done = facts.operation
    # What was begun is told in the status: of an order that was withdrawn nothing is left but that.
    earlier = [each.attempt for each in (facts.order, done) if each is not None and each.rollout == lane.name]
    attempt = max(earlier, default=0) + 1
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


def _block(blocked: dict[str, tuple[Blocker, ...]], vms: tuple[VMFacts, ...], gate: PolicyBlocker) -> None:
    """All wait for the same: one sentence, made once, because they may be ten thousand."""
    why = (Blocker(reason=gate.reason, message=gate.message),)
    blocked.update({facts.name: why for facts in vms})
