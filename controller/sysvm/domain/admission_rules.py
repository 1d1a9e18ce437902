"""The rules that keep a VM from getting work now, in order; the first that objects is what the VM says it waits for.

A new one is a function here and a line in the lists at the end.
"""

from collections.abc import Callable
from datetime import datetime

from sysvm.api.methods import Method, Route
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import Blocker
from sysvm.domain import pairs
from sysvm.domain.drift import drift_of
from sysvm.domain.facts import VMFacts
from sysvm.domain.group_operation import OPEN_LIMIT
from sysvm.domain.ledger import Lane, Ledger, Unit, way
from sysvm.domain.members import method_of
from sysvm.domain.planner import is_for_the_group
from sysvm.domain.running import router_of

BLOCKER_LIMIT = 512
"""Characters of a blocker's sentence."""


def first_blocker(unit: Unit, lane: Lane, ledger: Ledger) -> Blocker | None:
    """Orders are one write each. A process that ended between those of a group left some with one: the others get
    theirs then, and the call is made only when all have it."""
    if unit.is_call and len(ledger.calls - {unit.call}) >= OPEN_LIMIT:
        return objection(Reason.WAITING_FOR_SLOT, f"{OPEN_LIMIT} calls to the management server are open")
    rules = RULES
    if unit.is_for_the_group:
        rules = RECREATE_RULES if unit.method is Method.RECREATE else API_RULES
    elif unit.route is Route.SSH:
        rules = SSH_RULES
    for facts in unit.vms:
        blocker = next((found for rule in rules if (found := rule(facts, lane, ledger)) is not None), None)
        if blocker is not None:
            return blocker
    return _group_has_no_slots(unit, lane, ledger) if unit.is_for_the_group else None


def _is_busy(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """Another rollout's operation on this very VM is still open."""
    if facts.name not in ledger.in_work:
        return None
    return objection(Reason.IN_WORK, f"{facts.vm} is still in work for another rollout")


def _is_not_known(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """The plan was made from an older look; a VM that must be looked at again is."""
    if facts.reachable and drift_of(facts, lane.running.plan.release).certain:
        return None
    if facts.unreachable and method_of(lane.rollout, lane.running.plan, facts) is Method.RECREATE:
        return None
    ledger.look_at.add(facts.name)
    return objection(Reason.NOT_OBSERVED, f"{facts.vm} must be looked at again first")


def _books_are_too_old(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """A setting of the zone can make CloudStack recreate a router that was patched over SSH, and nobody knows whether
    it was made since the last sweep."""
    identity, plan = facts.identity, lane.running.plan
    if identity is None or not identity.type.is_router or plan.cloud is None:
        return None
    too_old = lane.running.live.cloud_too_old
    if too_old is not None:
        told = f"whether CloudStack would recreate {facts.vm} after a live patch over SSH is not known: {too_old}"
        return objection(Reason.ENDPOINT_UNREACHABLE, told)
    if identity.id is None or facts.observed is None or facts.observed.management is not None:
        return None
    ledger.look_at.add(facts.name)
    return objection(Reason.NOT_OBSERVED, f"what the management server's books say of {facts.vm} must be read first")


def _has_a_peer_in_work(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """Never two VMs of one group."""
    for group in sorted(facts.groups):
        for peer in ledger.peers(facts, group):
            if peer.name in ledger.in_work and not _is_changed_with(facts, peer, lane, ledger):
                return objection(Reason.WAITING_FOR_GROUP, f"{peer.vm} of the same group ({group}) is in work")
    return None


def _is_changed_with(facts: VMFacts, peer: VMFacts, lane: Lane, ledger: Ledger) -> bool:
    """One call changes both, and the peer has its order for it already."""
    if facts.is_zone_type or ledger.together.get(peer.name) != lane.name:
        return False
    return is_for_the_group(*way(lane, facts))


def _has_an_unwell_peer(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """Who cannot be relied on to take over keeps the others of its group from being touched."""
    group = facts.identity.group if facts.identity else None
    for peer in ledger.peers(facts, group) if group else ():
        ailment = "failed in this rollout" if peer.name in ledger.failed else peer.ailment
        if ailment is not None:
            return objection(Reason.PEER_UNHEALTHY, f"{peer.vm} of the same group ({group}) {ailment}")
    return None


def _is_the_last_of_its_zone(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """Never the last healthy SSVM or CPVM of a zone, where there are several; a single one is patched as it is."""
    peers = ledger.peers(facts, facts.zone_group) if facts.zone_group else ()
    if not peers or any(peer.healthy and peer.name not in ledger.failed for peer in peers):
        return None
    first = peers[0]
    ailment = first.ailment or "failed in a running rollout"
    return objection(Reason.LAST_OF_ZONE, f"{facts.vm} is the last healthy one of its zone: {first.vm} {ailment}")


def _pair_is_not_settled(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
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
        return objection(
            Reason.WAITING_FOR_GROUP, f"the roles of the group {group} must be seen again after the last patch: {names}"
        )
    primary = pairs.primary_now([router_of(member) for member in members])
    if not isinstance(primary, str):
        ledger.look_at.update(member.name for member in members)
        trouble = primary or pairs.Trouble(Reason.PAIR_NOT_SEEN, "the routers must be looked at first")
        return objection(trouble.reason, f"the group {group} needs exactly one PRIMARY: {trouble.sentence}")
    if primary != facts.vm:
        return None
    return _backup_comes_first(facts, members, ledger)


def _pair_of(facts: VMFacts, ledger: Ledger) -> tuple[str | None, tuple[VMFacts, ...]]:
    """Its redundant group and all members, itself included; none for a VM that is not part of a pair."""
    group = facts.identity.group if facts.identity else None
    members = ledger.by_group.get(group, ()) if group else ()
    return group, members if any(member.role is not None for member in members) else ()


def _pair_is_not_proven(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """Right before the order: exactly one PRIMARY by three looks at all members together, moments ago. Last of the
    rules, because it makes the VMs work."""
    group, members = _pair_of(facts, ledger)
    if not members:
        return None
    proof = pairs.one_primary([router_of(member) for member in members], now=facts.moment)
    if isinstance(proof, pairs.Proof):
        return None
    ledger.look_at.update(member.name for member in members)
    return objection(proof.reason, f"the group {group} needs exactly one PRIMARY, proven: {proof.sentence}")


def _backup_comes_first(facts: VMFacts, members: tuple[VMFacts, ...], ledger: Ledger) -> Blocker | None:
    others = {member.name for member in members if member.name != facts.name}
    for lane in ledger.lanes:
        if lane.running.superseded:
            continue
        for peer in lane.view.waiting:
            if peer.name in others:
                return objection(Reason.BACKUP_FIRST, f"{facts.vm} is PRIMARY: {peer.vm} goes first")
        for peer in lane.view.done:
            release = lane.running.plan.release
            if peer.name in others and not drift_of(peer, release).converged:
                ledger.look_at.add(peer.name)
                return objection(
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


def _has_no_slot(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """maxUnavailable: in work or failed at once. The sentence names no VM, so that it stays the same while it waits."""
    holding, count = ledger.holding[lane.name], lane.budget.slots
    if facts.name in holding or len(holding) < count:
        return None
    limit = lane.rollout.spec.snapshot.strategy.max_unavailable
    return objection(Reason.WAITING_FOR_SLOT, f"maxUnavailable {limit}: all {count} are in work or failed")


def _group_has_no_slots(unit: Unit, lane: Lane, ledger: Ledger) -> Blocker | None:
    """maxUnavailable for a group that is never split: as a wave, it may be larger than the limit if it is alone."""
    group = {peer.name for facts in unit.vms for name in facts.groups for peer in ledger.peers(facts, name)}
    given = {name for name in group if ledger.together.get(name) == lane.name}  # before a process ended in between
    others = ledger.holding[lane.name] - {facts.name for facts in unit.vms} - given
    count = lane.budget.slots
    if not others or len(others) + len(unit.vms) <= count:
        return None
    limit = lane.rollout.spec.snapshot.strategy.max_unavailable
    return objection(Reason.WAITING_FOR_SLOT, f"maxUnavailable {limit}: {count} in work or failed at most")


def _would_come_up_with_another_payload(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """On a host where it may be started anew."""
    return (lane.running.live.held_recreations or {}).get(facts.name)


def _host_is_full(facts: VMFacts, lane: Lane, ledger: Ledger) -> Blocker | None:
    """perHost, over all rollouts; a VM whose host is not known has no such limit."""
    limit = lane.rollout.spec.snapshot.strategy.per_host
    if not facts.host or ledger.hosts[facts.host] < limit:
        return None
    return objection(Reason.WAITING_FOR_HOST, f"perHost {limit}: as many VMs of host {facts.host} are in work")


Rule = Callable[[VMFacts, Lane, Ledger], Blocker | None]


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


SSH_RULES: tuple[Rule, ...] = (_books_are_too_old, *RULES)
"""For VMs that are live-patched by us. Not for those that go back: then they are what the books say."""


RECREATE_RULES: tuple[Rule, ...] = (
    _is_busy,
    _is_not_known,
    _has_a_peer_in_work,
    _is_the_last_of_its_zone,
    _would_come_up_with_another_payload,
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


def objection(reason: Reason, message: str) -> Blocker:
    """With at most `BLOCKER_LIMIT` characters of the sentence."""
    return Blocker(reason=str(reason), message=message[:BLOCKER_LIMIT])
