"""Where tenants are: a namespace each, a veth into the bridge of their guest network, an address the router knows.

Pure: lines of text come out, and `tenancy` runs them. A guest network has two tenants that the router was told about
(`bootline.tenants`: DHCP entries, metadata, members of the load balancer) and a client that nobody was told about.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from lab.content import bootline
from lab.spec import FABRIC, VM, Segment

OUTSIDE = "outside"
OUTSIDE_ADDRESS = IPv4Interface("198.18.3.1/16")
_CLIENT_HOST = 253


@dataclass(frozen=True, kw_only=True)
class Place:
    """One machine that is not a system VM: the name of its namespace, its address, its next hop."""

    namespace: str
    link: str
    bridge: str
    address: IPv4Interface
    mac: str
    gateway: IPv4Address | None

    def lines(self) -> str:
        """A shell program that makes it. Links go away with the namespace."""
        link = f"ip -n {FABRIC} link"
        route = f"route add default via {self.gateway}" if self.gateway is not None else ""
        return "\n".join(
            [
                "set -eu",
                f"ip netns add {self.namespace}",
                f"{link} add {self.link} type veth peer name eth0 address {self.mac} netns {self.namespace}",
                f"{link} set {self.link} master {self.bridge} up",
                f"ip -n {self.namespace} -batch - <<'LINES'",
                "link set lo up",
                f"addr add {self.address} dev eth0",
                "link set eth0 up",
                route,
                "LINES",
                "",
            ]
        )


def outside() -> Place:
    """A host beyond the routers, on the public wire."""
    return Place(
        namespace=OUTSIDE,
        link="t-outside",
        bridge=Segment.PUBLIC.value,
        address=OUTSIDE_ADDRESS,
        mac="02:4c:fe:ff:00:01",
        gateway=None,
    )


@dataclass(frozen=True, kw_only=True)
class GuestPlaces:
    """The tenants of one guest network, and where its router serves them."""

    client: Place
    members: tuple[Place, Place]
    gateway: IPv4Address
    balancer: IPv4Address
    """The public address of the network's load balancer."""


def guest_places(vm: VM) -> GuestPlaces:
    """The tenants of a router's guest network. Raises ValueError for a VM without one."""
    guest = vm.nic(Segment.GUEST)
    gateway = bootline.guest_gateway(vm)
    public = bootline.held_address(vm.nic(Segment.PUBLIC))
    if guest.address is None or gateway is None or public is None:
        raise ValueError(f"{vm.name} serves no guest network")
    number = guest.address.ip.packed[2]
    first, second = bootline.tenants(guest.address)
    base = guest.address.network
    client = IPv4Address(int(base.network_address) + _CLIENT_HOST)
    places = [
        (f"client-{number}", f"t{number}c", client, f"02:4c:{number:02x}:ff:00:fd"),
        (f"tenant-{number}-1", f"t{number}a", first.address, first.mac),
        (f"tenant-{number}-2", f"t{number}b", second.address, second.mac),
    ]
    made = [
        Place(
            namespace=namespace,
            link=link,
            bridge=guest.bridge,
            address=IPv4Interface((address, base.prefixlen)),
            mac=mac,
            gateway=gateway.ip,
        )
        for namespace, link, address, mac in places
    ]
    return GuestPlaces(client=made[0], members=(made[1], made[2]), gateway=gateway.ip, balancer=public.ip)
