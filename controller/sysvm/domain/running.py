"""Whether what should run runs: services, and the roles of a redundant pair. Files that match are half of the truth.

A failed unit is one that systemd calls failed. One that is inactive is not: CloudStack leaves services off where
nothing needs them (apache2 of a VPC router without VMs, dnsmasq on a BACKUP; CloudStack 4.21 CsRedundant.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta

from sysvm.domain import pairs
from sysvm.domain.facts import VMFacts

PAIR_WINDOW = timedelta(seconds=30)
"""Roles that were seen further apart than this prove nothing: a failover may lie between them."""


def failed_services(facts: VMFacts) -> tuple[str, ...]:
    """Units that systemd calls failed, by name."""
    if facts.observed is None:
        return ()
    return tuple(sorted(service.name for service in facts.observed.services if service.active == "failed"))


def in_pairs(vms: Iterable[VMFacts]) -> tuple[VMFacts, ...]:
    """The same VMs, each with what is wrong with the roles of its pair (`pair_trouble`), in the same order."""
    known = tuple(vms)
    groups: dict[str, list[VMFacts]] = {}
    for facts in known:
        if facts.group and facts.redundancy is not None:
            groups.setdefault(facts.group, []).append(facts)
    troubles = {facts.name: trouble for members in groups.values() for facts, trouble in _judge(members)}
    return tuple(
        facts if facts.pair_trouble is (trouble := troubles.get(facts.name)) else replace(facts, pair_trouble=trouble)
        for facts in known
    )


def must_look_again(facts: VMFacts, group: Sequence[VMFacts]) -> bool:
    """Its role was seen so much earlier than a peer's that the two cannot be compared, and together they make no pair.

    `group`: the members of its group, itself included or not.
    """
    members = [*(other for other in group if other.name != facts.name), facts]
    if facts.redundancy is None or len(members) < 2 or not isinstance(_primary(members), pairs.Trouble):
        return False
    newest = max(member.redundancy.observed_at for member in members if member.redundancy is not None)
    return newest - facts.redundancy.observed_at > PAIR_WINDOW


def router_of(facts: VMFacts) -> pairs.Router:
    """Its samples; none for a VM that was never seen as part of a pair."""
    return pairs.Router(facts.vm, facts.redundancy.samples if facts.redundancy is not None else ())


def _judge(members: list[VMFacts]) -> Iterable[tuple[VMFacts, pairs.Trouble]]:
    if len(members) < 2 or any(member.in_work or not member.reachable for member in members):
        return
    seen = [member.redundancy.observed_at for member in members if member.redundancy is not None]
    found = _primary(members)
    if not isinstance(found, pairs.Trouble) or max(seen) - min(seen) > PAIR_WINDOW:
        return
    for member in members:
        sentence = f"the routers of group {member.group} have not exactly one PRIMARY: {found.sentence}"
        yield member, pairs.Trouble(found.reason, sentence)


def _primary(members: Iterable[VMFacts]) -> str | pairs.Trouble | None:
    return pairs.primary_now([router_of(member) for member in members if member.redundancy is not None])
