"""Whether what should run runs: services, and the roles of a redundant pair. Files that match are half of the truth.

A failed unit is one that systemd calls failed. One that is inactive is not: CloudStack leaves services off where
nothing needs them (apache2 of a VPC router without VMs, dnsmasq on a BACKUP; CloudStack 4.21 CsRedundant.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import timedelta

from sysvm.api.systemvm import RedundancyRole
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
    return tuple(replace(facts, pair_trouble=troubles.get(facts.name)) for facts in known)


def must_look_again(facts: VMFacts, group: Sequence[VMFacts]) -> bool:
    """Its role was seen so much earlier than a peer's that the two cannot be compared, and together they make no pair.

    `group`: the members of its group, itself included or not.
    """
    members = [*(other for other in group if other.name != facts.name), facts]
    if facts.redundancy is None or len(members) < 2 or _primaries(members) == 1:
        return False
    newest = max(member.redundancy.observed_at for member in members if member.redundancy is not None)
    return newest - facts.redundancy.observed_at > PAIR_WINDOW


def _judge(members: list[VMFacts]) -> Iterable[tuple[VMFacts, str]]:
    if len(members) < 2 or any(member.in_work or not member.reachable for member in members):
        return
    seen = [member.redundancy.observed_at for member in members if member.redundancy is not None]
    if _primaries(members) == 1 or max(seen) - min(seen) > PAIR_WINDOW:
        return
    roles = ", ".join(f"{member.vm} is {member.role}" for member in sorted(members, key=lambda each: each.name))
    for member in members:
        yield member, f"the routers of group {member.group} have not exactly one PRIMARY: {roles}"


def _primaries(members: Iterable[VMFacts]) -> int:
    return sum(member.role is RedundancyRole.PRIMARY for member in members)
