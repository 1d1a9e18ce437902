"""How many rules of tenants the management server lists for a network, or for the tiers of a VPC.

Counted, never read: each list is asked for a page of one entry, whose `count` is the total (CloudStack 4.21, recorded
for other lists). So a network costs five questions and a VPC two and three a tier, whatever tenants have.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from sysvm.api.observed import RuleKind
from sysvm.cloudstack.errors import AnswerInvalid, CloudStackError, Throttled, Unavailable
from sysvm.cloudstack.transport import Answer, Param
from sysvm.domain.cloud import CloudVM
from sysvm.domain.lifecycle import RULED_TYPES
from sysvm.domain.rule_counts import ListedRules

COMMANDS = (
    "listFirewallRules",
    "listEgressFirewallRules",
    "listPortForwardingRules",
    "listLoadBalancerRules",
    "listNetworkACLs",
    "listPublicIpAddresses",
)
"""Without one of these its rules are compared with what the routers held before."""


class Reads(Protocol):
    """The part of the client that is needed here."""

    async def call(self, command: str, **params: Param) -> Answer: ...


@dataclass(frozen=True, slots=True)
class _Question:
    kind: RuleKind
    command: str
    params: dict[str, Param]


async def listed_rules(cloud: Reads, routers: tuple[CloudVM, ...]) -> ListedRules:
    """Of the network or VPC that these routers serve. None of a type that holds rules: nothing is asked.

    A list that the server refuses is left out, and why is told. Raises the classes of `errors` for what may be better
    a moment later.
    """
    router = next((vm for vm in routers if vm.type in RULED_TYPES), None)
    counts: dict[RuleKind, int] = {}
    why_not: dict[str, str] = {}
    if router is None:
        return ListedRules(counts)
    try:
        tiers = await _tiers(cloud, router.vpc_id) if router.vpc_id is not None else ()
    except CloudStackError as error:
        return ListedRules(counts, (_said(error),))
    for question in _questions(router, tiers):
        if question.command in why_not:
            continue
        try:
            found = await _count(cloud, question)
        except CloudStackError as error:
            why_not[question.command] = _said(error)
            counts.pop(question.kind, None)
            continue
        counts[question.kind] = counts.get(question.kind, 0) + found
    return ListedRules(counts, tuple(why_not.values()))


def _questions(router: CloudVM, tiers: tuple[str, ...]) -> Iterator[_Question]:
    """Parameters: CloudStack 4.21 ListFirewallRulesCmd, ListPortForwardingRulesCmd, ListLoadBalancerRulesCmd,
    ListNetworkACLsCmd, ListPublicIpAddressesCmd."""
    if router.vpc_id is not None:
        for tier in tiers:
            yield _Question(RuleKind.PORT_FORWARDING, "listPortForwardingRules", {"networkid": tier})
            yield _Question(RuleKind.LOAD_BALANCER, "listLoadBalancerRules", {"networkid": tier})
            yield _Question(RuleKind.NETWORK_ACL, "listNetworkACLs", {"networkid": tier})
        yield _Question(RuleKind.STATIC_NAT, "listPublicIpAddresses", {"vpcid": router.vpc_id, "isstaticnat": True})
    elif router.network_id is not None:
        network: dict[str, Param] = {"networkid": router.network_id}
        yield _Question(RuleKind.FIREWALL, "listFirewallRules", network)
        yield _Question(RuleKind.EGRESS, "listEgressFirewallRules", network)
        yield _Question(RuleKind.PORT_FORWARDING, "listPortForwardingRules", network)
        yield _Question(RuleKind.LOAD_BALANCER, "listLoadBalancerRules", network)
        addresses: dict[str, Param] = {"associatednetworkid": router.network_id, "isstaticnat": True}
        yield _Question(RuleKind.STATIC_NAT, "listPublicIpAddresses", addresses)


async def _count(cloud: Reads, question: _Question) -> int:
    answer = await cloud.call(question.command, **question.params, listall=True, projectid="-1", page=1, pagesize=1)
    count = answer.get("count", 0)
    if isinstance(count, bool) or not isinstance(count, int):
        raise AnswerInvalid("count is not a number", command=question.command)
    return count


def _said(error: CloudStackError) -> str:
    """Why a list cannot be had. Raises what may be better a moment later."""
    if isinstance(error, Throttled | Unavailable):
        raise error
    return f"{error.command}: {error.what.rstrip('.')}"


async def _tiers(cloud: Reads, vpc_id: str) -> tuple[str, ...]:
    answer = await cloud.call("listNetworks", vpcid=vpc_id, listall=True, projectid="-1")
    entries = answer.get("network", [])
    if not isinstance(entries, list):
        raise AnswerInvalid("network is not a list", command="listNetworks")
    return tuple(str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry)
