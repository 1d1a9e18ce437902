"""Whether a router that was made anew, started or patched by the management server has its tenants' rules again.

The server sends all rules at a start and answers success whatever became of them (CloudStack 4.18 VpcManagerImpl: a
restart of a VPC with cleanup brought back the load balancer rules of one tier only). So they are counted: by the
server's lists before the call and after it, and in the router's own data bags. Lists and routers differ for reasons of
their own (a rule that waits to be deleted is listed and not sent), so a difference that was there before the call is
none of it; more rules than are listed are no loss.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sysvm.api.observed import RuleKind
from sysvm.domain.facts import VMFacts

_TOLD = {
    RuleKind.FIREWALL: "firewall rules",
    RuleKind.EGRESS: "egress rules",
    RuleKind.PORT_FORWARDING: "port forwarding rules",
    RuleKind.STATIC_NAT: "static NAT rules",
    RuleKind.LOAD_BALANCER: "load balancer rules",
    RuleKind.NETWORK_ACL: "network ACL items",
    RuleKind.VPN_USER: "VPN users",
}


@dataclass(frozen=True, slots=True)
class ListedRules:
    """What the management server lists for one network, or for all tiers of one VPC."""

    counts: Mapping[RuleKind, int]
    """Kinds that could not be listed are left out."""
    why_not: tuple[str, ...] = ()
    """Of those that are left out: the command, and why the server did not answer."""


def listed_counts(listed: ListedRules | None) -> dict[str, int]:
    """As a status keeps it."""
    return {str(kind): count for kind, count in listed.counts.items()} if listed is not None else {}


def held_counts(routers: Iterable[VMFacts]) -> dict[str, int]:
    """What each of these routers holds at least. One that lost its rules by its own reboot, or was not counted, says
    nothing of what there should be."""
    counted = [counts for facts in routers if not facts.rules_lost and (counts := _held(facts)) is not None]
    if not counted:
        return {}
    return {kind: min(each[kind] for each in counted) for kind in counted[0] if all(kind in each for each in counted)}


def missing_rules(
    listed_before: Mapping[str, int], held_before: Mapping[str, int], now: ListedRules | None, router: VMFacts
) -> str | None:
    """What this router lacks, as a sentence; None: nothing that could be compared. Kinds that no list tells are
    compared with what the routers before held."""
    held = _held(router) or {}
    listed_now = listed_counts(now)
    lacks = []
    for kind in RuleKind:
        known, before = listed_now.get(kind), held_before.get(kind)
        differed = max(0, listed_before[kind] - before) if kind in listed_before and before is not None else 0
        expected = known - differed if known is not None else before
        if expected is not None and kind in held and held[kind] < expected:
            why = f"{known} are listed" if known is not None else f"{before} were held before"
            lacks.append(f"{held[kind]} {_TOLD[kind]} where {why}")
    return f"{router.vm} has {', '.join(lacks)}" if lacks else None


def not_compared(now: ListedRules | None, routers: Iterable[VMFacts]) -> str:
    """What of the rules nobody could compare, and why; empty: nothing."""
    parts = [f"rules not compared with the server's: {'; '.join(now.why_not)}"] if now and now.why_not else []
    uncounted = [facts.vm for facts in routers if _held(facts) is None]
    if uncounted and any(listed_counts(now).values()):
        parts.append(f"the rules in {', '.join(uncounted)} could not be counted")
    return "; ".join(parts)


def _held(facts: VMFacts) -> Mapping[str, int] | None:
    bags = facts.observed.data_bags if facts.observed is not None else None
    return bags.rules if bags is not None and bags.rules else None
