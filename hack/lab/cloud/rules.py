"""Tenants' rules and free room, as the API counts them.

None of these lists was recorded. Their names, parameters and keys are those of CloudStack 4.21 ListFirewallRulesCmd,
ListEgressFirewallRulesCmd, ListPortForwardingRulesCmd, ListLoadBalancerRulesCmd, ListNetworkACLsCmd,
ListPublicIpAddressesCmd and ListCapacityCmd; of an entry there is only what tells it from another.
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.cloud.answers import Fields
from lab.cloud.command import Command, Context, Kind, Parameters
from lab.cloud.listing import owned, page
from lab.cloud.records import Network, Zone


@dataclass(frozen=True)
class _List:
    """One list of rules. `kind` is a key of `Network.rules`, `where` the parameter that names the network."""

    command: str
    key: str
    kind: str
    where: str = "networkid"

    def run(self, context: Context, parameters: Parameters) -> Fields:
        world = context.world
        networks: list[Network] = list(world.networks.values())
        if self.where in parameters:
            networks = [world.networks[parameters[self.where]]]
        elif "vpcid" in parameters:
            networks = list(world.tiers(world.vpcs[parameters["vpcid"]]))
        shown = [each for each in networks if owned(each, parameters, context.user)]
        found = [(each, number) for each in shown for number in range(each.rules.get(self.kind, 0))]

        def tell(one: tuple[Network, int]) -> Fields:
            network, number = one
            return {"id": f"{self.kind.lower()}-{network.number}-{number}", self.where: network.id, "state": "Active"}

        return page(found, parameters, self.key, tell, world)


_LISTS = (
    _List("listFirewallRules", "firewallrule", "Firewall"),
    _List("listEgressFirewallRules", "firewallrule", "Egress"),
    _List("listPortForwardingRules", "portforwardingrule", "PortForwarding"),
    _List("listLoadBalancerRules", "loadbalancerrule", "LoadBalancer"),
    _List("listNetworkACLs", "networkacl", "NetworkACL"),
    _List("listPublicIpAddresses", "publicipaddress", "StaticNat", "associatednetworkid"),
)
"""listPublicIpAddresses knows those of static NAT only, whether `isstaticnat` asks for them or not."""

_ADDRESSES = ((4, "VIRTUAL_NETWORK_PUBLIC_IP"), (5, "PRIVATE_IP"))
"""Types of CloudStack 4.21 Capacity.java."""


def _capacity(context: Context, parameters: Parameters) -> Fields:
    world = context.world
    zones = [world.zones[parameters["zoneid"]]] if "zoneid" in parameters else list(world.zones.values())
    rows = [(zone, *kind) for zone in zones for kind in _ADDRESSES if parameters.get("type") in (None, str(kind[0]))]

    def tell(row: tuple[Zone, int, str]) -> Fields:
        zone, number, name = row
        total, free = 100, zone.free_addresses.get(name, 50)
        used = total - free
        return {
            "type": number,
            "name": name,
            "zoneid": zone.id,
            "zonename": zone.name,
            "capacityused": used,
            "capacitytotal": total,
            "percentused": str(used),
        }

    return {"count": len(rows), "capacity": [tell(row) for row in rows]} if rows else {}


_PAGE = {"page": Kind.INTEGER, "pagesize": Kind.INTEGER, "keyword": Kind.STRING}
_MINE = {"listall": Kind.BOOLEAN, "account": Kind.STRING, "domainid": Kind.STRING, "projectid": Kind.STRING} | _PAGE

COMMANDS = (
    *(
        Command(
            each.command, {each.where: Kind.NETWORK, "vpcid": Kind.VPC, "isstaticnat": Kind.BOOLEAN} | _MINE, each.run
        )
        for each in _LISTS
    ),
    Command("listCapacity", {"zoneid": Kind.ZONE, "type": Kind.INTEGER} | _PAGE, _capacity),
)
