"""Which changed files take effect only when CloudStack's configure.py applies a data bag, and what that costs.

configure.py is never run by itself: it sets addresses anew and rebuilds rules one command at a time. Where a policy
asks for it, it is run for exactly the bag that a changed file concerns. The facts are those of CloudStack 4.21
(configure.py, cs/CsLoadBalancer.py, cs/CsDhcp.py, cs/CsMonitor.py, cs/CsBgpPeers.py, cs/CsVpcGuestNetwork.py,
cs/CsStaticRoutes.py, merge.py). Other modules of configure.py belong to every bag: they are read at the next command.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from sysvm.api.endpoint import SystemVMType
from sysvm.patching import order_words

_ISOLATED = frozenset({SystemVMType.ROUTER})
_VPC = frozenset({SystemVMType.VPCROUTER})
_ROUTERS = _ISOLATED | _VPC
_DHCP = _ROUTERS | {SystemVMType.DHCPSRVR}
_RUN_SECONDS = 30.0
"""For so long new connections of the management server wait; it gives its ssh three minutes."""

_ADDRESSES = "addresses are set anew"
_RULES = "egress rules are set anew one at a time: new outbound connections may fail for a second or more"


@dataclass(frozen=True, slots=True)
class Databag:
    """One argument of configure.py, what it is made of, and what it makes."""

    name: str
    """Such as load_balancer.json."""
    bag: str
    """Its file in /etc/cloudstack, without .json. A router without it has nothing to apply."""
    types: frozenset[SystemVMType]
    made_by: tuple[str, ...]
    """Paths of the payload (no leading slash) whose change takes effect by it."""
    expected_loss: str
    """What tenants may notice; configure.py answers for none of it."""
    generated: tuple[str, ...] = ()
    """Files outside of the payload that it writes: kept like the bags for the way back."""
    unit: str | None = None
    """Reads what is generated, so it acts when that is put back."""
    verb: Literal["reload", "restart"] = "restart"

    @property
    def title(self) -> str:
        return f"configure.py {self.name}"


DATABAGS: tuple[Databag, ...] = (
    Databag(
        "vm_dhcp_entry.json",
        "dhcpentry",
        _DHCP,
        ("opt/cloud/bin/cs/CsDhcp.py",),
        "DNS and DHCP requests of about a tenth of a second if the hosts' file changes",
        generated=("/etc/dnsmasq.d/cloud.conf", "/etc/dhcphosts.txt", "/etc/dhcpopts.txt", "/etc/hosts"),
        unit="dnsmasq",
    ),
    Databag("vm_metadata.json", "vmdata", _DHCP, ("var/www/html/latest/.htaccess",), _ADDRESSES),
    Databag(
        "guest_network.json",
        "guestnetwork",
        _VPC,
        ("opt/cloud/bin/cs/CsVpcGuestNetwork.py",),
        _ADDRESSES,
        generated=("/etc/radvd.conf",),
        unit="radvd",
    ),
    Databag("static_routes.json", "staticroutes", _ROUTERS, ("opt/cloud/bin/cs/CsStaticRoutes.py",), _RULES),
    Databag(
        "bgp_peers.json",
        "bgppeers",
        _ROUTERS,
        ("opt/cloud/bin/cs/CsBgpPeers.py",),
        "BGP sessions are dropped and set up again if frr's configuration changes",
        generated=("/etc/frr/daemons", "/etc/frr/frr.conf"),
        unit="frr",
    ),
    Databag(
        "monitor_service.json",
        "monitorservice",
        _DHCP,
        ("opt/cloud/bin/cs/CsMonitor.py",),
        _ADDRESSES,
        generated=("/etc/monitor.conf", "/etc/cron.d/process"),
    ),
    Databag(
        "remote_access_vpn.json",
        "remoteaccessvpn",
        _ROUTERS,
        ("etc/ipsec.d/l2tp.conf", "etc/xl2tpd/xl2tpd.conf", "etc/ppp/options.xl2tpd"),
        _RULES,
        generated=("/etc/ipsec.d/l2tp.conf", "/etc/xl2tpd/xl2tpd.conf", "/etc/ppp/options.xl2tpd"),
        unit="ipsec",
        verb="reload",
    ),
    Databag(
        "load_balancer.json",
        "loadbalancer",
        _ROUTERS,
        ("opt/cloud/bin/cs/CsLoadBalancer.py",),
        _RULES,
        generated=("/etc/haproxy/haproxy.cfg",),
        unit="haproxy",
        verb="reload",
    ),
)
"""In the order in which configure.py itself goes through them."""


def databags_for(paths: Iterable[str], vm_type: SystemVMType) -> tuple[Databag, ...]:
    """The bags that these changed paths (absolute) concern on a VM of this type."""
    changed = {path.lstrip("/") for path in paths}
    return tuple(bag for bag in DATABAGS if vm_type in bag.types and changed.intersection(bag.made_by))


def databag_order(bag: Databag, seconds: float) -> order_words.DatabagOrder:
    """What the VM is told. `seconds`: upper bound of one step, from the policy."""
    return {
        "name": bag.name,
        "bag": bag.bag,
        "generated": list(bag.generated),
        "unit": bag.unit,
        "verb": bag.verb,
        "timeout_seconds": min(_RUN_SECONDS, seconds),
    }
