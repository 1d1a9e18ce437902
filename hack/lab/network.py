"""The lab's wires: which addresses a VM has, and the `ip` lines that make its links.

A lab has one network namespace that plays the hypervisor hosts' part: a bridge for each wire, the host side of every
link, and the only way to a VM's link-local control address. Each VM has a namespace of its own, made anew at each boot,
because a real machine forgets its addresses, rules and connections when it restarts. Nothing is added to the namespace
of the caller. A hypervisor host of its own is one more namespace with one more bridge: the control NICs of its VMs hang
there and nowhere else, so two hosts may carry the same link-local address.

Pure: lines of text come out, and `lab.machines` runs them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address, IPv4Interface

from lab.spec import FABRIC, GATEWAY_TYPES, NIC_ORDER, Nic, Segment, VMSpec

HOST_BRIDGE = "cloud0"
"""The bridge of a hypervisor host for control addresses (CloudStack 4.21 libvirt agent)."""

CONTROL_HOST = IPv4Interface("169.254.0.1/16")
PUBLIC_GATEWAY = IPv4Interface("198.18.0.1/16")
PRIVATE_GATEWAY = IPv4Interface("172.20.0.1/16")
LARGEST_NETWORK = 250


def relay_address(slot: int, index: int) -> IPv4Address:
    """The loopback address of a VM on the host; `slot` keeps labs on one machine apart."""
    return IPv4Address(f"127.77.{slot}.{index}")


def control_address(index: int) -> IPv4Interface:
    return IPv4Interface(f"169.254.1.{index}/16")


def guest_gateway(network: int) -> IPv4Interface:
    """The address that tenants of guest network `network` (1 to 250) use as gateway and name server."""
    return IPv4Interface(f"10.1.{network}.1/24")


def host_namespace(host: str) -> str:
    """The network namespace of a hypervisor host of the lab."""
    return f"host.{host}"


def nics_of(spec: VMSpec, *, network: int, hosts: Collection[str] = ()) -> tuple[Nic, ...]:
    """The NICs of a VM in the order of its type, with the addresses that follow from its index and guest network.

    `hosts` are the hypervisor hosts that the lab has: a VM on one of them is wired there.
    """
    return tuple(
        _nic(spec, segment, position, network=network, hosted=spec.host in hosts)
        for position, segment in enumerate(NIC_ORDER[spec.type])
    )


def _nic(spec: VMSpec, segment: Segment, position: int, *, network: int, hosted: bool) -> Nic:
    address: IPv4Interface | None
    virtual: IPv4Interface | None = None
    gateway: IPv4Address | None = None
    bridge, namespace = segment.value, FABRIC
    if segment is Segment.CONTROL:
        address = IPv4Interface(f"{spec.link_local}/16") if spec.link_local else control_address(spec.index)
        if hosted:
            bridge, namespace = HOST_BRIDGE, host_namespace(spec.host)
    elif segment is Segment.PRIVATE:
        address = IPv4Interface(f"172.20.1.{spec.index}/16")
    elif segment is Segment.PUBLIC:
        gateway = PUBLIC_GATEWAY.ip
        address = IPv4Interface(f"{spec.public_address or f'198.18.1.{spec.index}'}/16")
        if spec.redundant:
            address, virtual = None, IPv4Interface(f"198.18.2.{network}/16")
    else:
        bridge = f"guest-{network}"
        address = IPv4Interface(f"10.1.{network}.{spec.index}/24")
        if spec.redundant:
            virtual = guest_gateway(network)
        elif spec.type in GATEWAY_TYPES:
            address = guest_gateway(network)
        if Segment.PUBLIC not in NIC_ORDER[spec.type]:
            gateway = guest_gateway(network).ip
    return Nic(
        name=f"eth{position}",
        segment=segment,
        bridge=bridge,
        mac=f"02:4c:{network:02x}:00:{spec.index:02x}:{position:02x}",
        address=address,
        virtual_address=virtual,
        gateway=gateway,
        namespace=namespace,
    )


def host_link(spec: VMSpec, nic: Nic) -> str:
    """The name of a link's other end, in the lab's namespace (at most 15 bytes)."""
    return f"v{spec.index}{nic.name}"


def fabric_lines() -> list[str]:
    """`ip -batch` lines that make the wires every lab has, inside its namespace."""
    return [
        "link set lo up",
        *_bridge(Segment.CONTROL.value, CONTROL_HOST),
        *_bridge(Segment.PUBLIC.value, PUBLIC_GATEWAY),
        *_bridge(Segment.PRIVATE.value, PRIVATE_GATEWAY),
    ]


def host_lines() -> list[str]:
    """`ip -batch` lines that make the wires of one hypervisor host, inside its namespace."""
    return ["link set lo up", *_bridge(HOST_BRIDGE, CONTROL_HOST)]


def guest_lines(network: int) -> list[str]:
    """`ip -batch` lines that make one guest network. The lab has no address on it: its router has."""
    return _bridge(f"guest-{network}", None)


def _bridge(name: str, address: IPv4Interface | None) -> list[str]:
    lines = [f"link add {name} type bridge mcast_snooping 0"]
    if address is not None:
        lines.append(f"addr add {address} dev {name}")
    return [*lines, f"link set {name} up"]


def wire_script(spec: VMSpec, nics: Iterable[Nic]) -> str:
    """A shell program that gives a VM a fresh namespace with its links; whatever a former boot left is removed."""
    nics = tuple(nics)
    outside = [line for place in dict.fromkeys(nic.namespace for nic in nics) for line in _outside(spec, nics, place)]
    inside = ["link set lo up"]
    for nic in nics:
        if nic.segment is Segment.CONTROL and nic.address is not None:
            inside.append(f"addr add {nic.address} dev {nic.name}")
        inside.append(f"link set {nic.name} up")
    return "\n".join(
        [
            "set -eu",
            unwire_script(spec, nics),
            f"ip netns add {spec.name}",
            *outside,
            f"ip -n {spec.name} -batch - <<'LINES'",
            *inside,
            "LINES",
            "",
        ]
    )


def _outside(spec: VMSpec, nics: Iterable[Nic], place: str) -> list[str]:
    """The ends of a VM's links that hang in one namespace."""
    lines = [
        line
        for nic in nics
        if nic.namespace == place
        for line in (
            f"link add {host_link(spec, nic)} type veth peer name {nic.name} address {nic.mac} netns {spec.name}",
            f"link set {host_link(spec, nic)} master {nic.bridge} up",
        )
    ]
    return [f"ip -n {place} -batch - <<'LINES'", *lines, "LINES"]


def unwire_script(spec: VMSpec, nics: Iterable[Nic]) -> str:
    """A shell program that pulls a VM's cables and drops its namespace. Links go first: nothing says good-bye."""
    pulled = [f"ip -n {nic.namespace} link del {host_link(spec, nic)} 2>/dev/null || true" for nic in nics]
    return "\n".join([*pulled, f"ip netns del {spec.name} 2>/dev/null || true"])
