"""The networks of one system VM, as the management server would describe them to it.

A machine knows its addresses only from the boot line and from pushed data bags. This is the one description from which
the layout writes both, so that the namespace outside and the VM inside cannot disagree.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface


class NicRole(enum.Enum):
    """What a NIC of a system VM is for; the values are CloudStack's ``nw_type`` words."""

    GUEST = "guest"
    CONTROL = "control"
    PUBLIC = "public"
    MANAGEMENT = "management"
    STORAGE = "storage"


@dataclass(frozen=True)
class Nic:
    """One NIC of the VM. The device must exist (up, addressed or not) before the VM boots; ``init.sh`` adds the address."""

    device: str
    role: NicRole
    address: IPv4Interface
    mac: str


@dataclass(frozen=True)
class Tenant:
    """A tenant's machine on the guest network: a DHCP host, a DNS name, a metadata client and a load balancer member."""

    name: str
    address: IPv4Address
    mac: str


@dataclass(frozen=True)
class LoadBalancerRule:
    """One rule of the load balancer: ``source`` port on ``address`` spread over ``members`` (tenants' addresses)."""

    address: IPv4Address
    port: int
    member_port: int
    members: tuple[IPv4Address, ...]


@dataclass(frozen=True)
class Addressing:
    """Everything a VM is told about its networks.

    ``guest_gateway`` is the address tenants use as gateway and name server: on a single router the guest NIC's own
    address, on a redundant one the virtual address that moves between the two. ``vrrp_priority`` is CloudStack's
    ``router_pr``; it only orders a first election, for both start as BACKUP and neither preempts.
    """

    nics: tuple[Nic, ...]
    guest_gateway: IPv4Interface | None = None
    public_gateway: IPv4Address | None = None
    domain: str = "cs.test"
    dns: tuple[IPv4Address, ...] = ()
    management_servers: tuple[IPv4Address, ...] = (IPv4Address("127.0.0.1"),)
    tenants: tuple[Tenant, ...] = ()
    load_balancer: tuple[LoadBalancerRule, ...] = ()
    vrrp_priority: int = 100
    vrrp_router_id: int = 51

    def nic(self, role: NicRole) -> Nic | None:
        """The first NIC of that role, or None."""
        return next((nic for nic in self.nics if nic.role is role), None)

    def control(self) -> Nic:
        """The NIC that sshd listens on. Raises LookupError when the VM has none."""
        nic = self.nic(NicRole.CONTROL)
        if nic is None:
            raise LookupError("a system VM needs a control NIC: sshd listens on it")
        return nic
