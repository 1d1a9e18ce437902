"""What the management server tells a VM: the boot line, and the pushes that follow once it is up.

Both are derived from the VM's NICs, so that the links outside and the configuration inside cannot disagree.
Formats as in CloudStack 4.21 (VirtualNetworkApplianceManagerImpl for the boot line, ConfigBase for the pushes).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from lab.spec import VM, Nic, Segment, SystemVMType

DOMAIN = "cs.test"
SOFTWARE_PORT = 8250
STATS_PORT = 8081
LOAD_BALANCER_PORT = 80
MEMBER_PORT = 8080

Push = Mapping[str, object]

ROUTERS = frozenset({SystemVMType.ROUTER, SystemVMType.VPCROUTER, SystemVMType.DHCPSRVR})
AGENT_TYPES = frozenset({SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY})


@dataclass(frozen=True)
class Tenant:
    """A tenant's machine on a guest network: DHCP host, DNS name, metadata client, member of the load balancer."""

    name: str
    address: IPv4Address
    mac: str


def tenants(guest: IPv4Interface) -> tuple[Tenant, ...]:
    """The two tenants of every guest network, at .251 and .252: above all VMs, whose numbers end at 250."""
    network = guest.network
    octet = network.network_address.packed[2]
    return tuple(
        Tenant(f"tenant-{n}", network.network_address + 250 + n, f"02:4c:{octet:02x}:ff:00:{n:02x}") for n in (1, 2)
    )


def guest_gateway(vm: VM) -> IPv4Interface | None:
    """The gateway of the VM's guest network: its own address, the pair's virtual one, or another router's."""
    nic = _nic(vm, Segment.GUEST)
    if nic is None or nic.address is None:
        return None
    if nic.virtual_address is not None:
        return nic.virtual_address
    if nic.gateway is not None:
        return IPv4Interface((nic.gateway, nic.address.network.prefixlen))
    return nic.address


def held_address(nic: Nic) -> IPv4Interface | None:
    """What the VM holds on a NIC when it carries traffic: its own address or, where it has none, the pair's."""
    return nic.address or nic.virtual_address


def boot_line(vm: VM, *, authorized_key: str) -> str:
    """The one line in ``/var/cache/cloud/cmdline``: ``key=value`` words."""
    words: dict[str, str] = {"template": "domP", "name": vm.name, "type": vm.spec.type.value}
    for nic in vm.nics:
        address = held_address(nic)
        # A VPC router learns its public side and its tiers by push.
        if address is None or (vm.spec.type is SystemVMType.VPCROUTER and nic.segment is not Segment.CONTROL):
            continue
        words[f"{nic.name}ip"] = str(address.ip)
        words[f"{nic.name}mask"] = str(address.netmask)
    words["nic_macs"] = "|".join(nic.mac for nic in vm.nics)
    public = _nic(vm, Segment.PUBLIC)
    if public is not None and public.gateway is not None and vm.spec.type is not SystemVMType.VPCROUTER:
        words["gateway"] = str(public.gateway)
    words |= _role_words(vm)
    words["authorized_key"] = base64.b64encode(authorized_key.strip().encode("ascii") + b"\n").decode("ascii")
    return " ".join(f"{key}={value}" for key, value in words.items()) + "\n"


def _role_words(vm: VM) -> dict[str, str]:
    if vm.spec.type in AGENT_TYPES:
        return {
            "host": "172.20.0.1",
            "port": str(SOFTWARE_PORT),
            "zone": "1",
            "pod": "1",
            "guid": f"{'SecStorage' if vm.spec.type is SystemVMType.SECSTORAGE else 'Proxy'}.{vm.spec.index}",
            "workers": "5",
            "role": "templateProcessor" if vm.spec.type is SystemVMType.SECSTORAGE else "proxy",
            "resource": "com.cloud.storage.resource.PremiumSecondaryStorageResource",
            "instance": vm.spec.type.value,
            "sslcopy": "false",
            "keystore_password": "lab-keystore",
        } | ({"vncport": "8080", "proxy_vm": str(vm.spec.index)} if vm.spec.type is SystemVMType.CONSOLEPROXY else {})
    words = {"domain": DOMAIN, "disable_rp_filter": "true", "mgmtcidr": "172.20.0.0/16"}
    gateway = guest_gateway(vm)
    if gateway is not None and vm.spec.type is not SystemVMType.VPCROUTER:
        network = gateway.network
        words |= {
            "dhcprange": str(network.network_address + 1),
            "guestgw": str(gateway.ip),
            "guestbrd": str(network.broadcast_address),
            "guestcidrsize": str(network.prefixlen),
        }
    if vm.spec.type is SystemVMType.VPCROUTER:
        words["vpccidr"] = "10.1.0.0/16"
    if vm.spec.redundant:
        words |= {
            "redundant_router": "1",
            "redundant_state": "BACKUP",
            "router_pr": str(vm.spec.priority),
            "advert_int": "1",
        }
    return words


def cmd_line_json(line: str) -> dict[str, object]:
    """``/var/cache/cloud/cmd_line.json``: the boot line as the data bag push that the VM makes of it."""
    return {"type": "cmdline", "cmd_line": dict(word.split("=", 1) for word in line.split())}


def pushes(vm: VM, *, release_line: str, signature: str) -> list[tuple[str, Push]]:
    """(file name, content) of what the management server sends after a start, in order; nothing to agent VMs."""
    if vm.spec.type in AGENT_TYPES:
        return []
    found: list[tuple[str, Push]] = [("ip_associations.json", _ip_push(vm))]
    guest = _nic(vm, Segment.GUEST)
    if vm.spec.type in ROUTERS and guest is not None and guest.address is not None:
        found.append(("vm_dhcp_entry.json", _dhcp_push(vm, guest.address)))
        found.append(("vm_metadata.json", _metadata_push(vm, guest.address)))
    if vm.spec.type is not SystemVMType.DHCPSRVR:
        found.append(("load_balancer.json", _load_balancer_push(vm)))
    found.append(("monitor_service.json", _monitor_push(vm, release_line=release_line, signature=signature)))
    return found


def _nic(vm: VM, segment: Segment) -> Nic | None:
    return next((nic for nic in vm.nics if nic.segment is segment), None)


def _ip_push(vm: VM) -> Push:
    """All addresses, also those of the boot line: what the bag lacks is taken off the devices."""
    entries = []
    gateway = guest_gateway(vm)
    for nic in vm.nics:
        address = held_address(nic)
        if address is None:
            continue
        entry: dict[str, object] = {
            "public_ip": str(address.ip),
            "netmask": str(address.netmask),
            "nic_dev_id": nic.name.removeprefix("eth"),
            "nw_type": nic.segment.value,
            "vif_mac_address": nic.mac,
            "add": True,
            "gateway": str(nic.gateway) if nic.gateway else "None",
        }
        if nic.segment is Segment.GUEST and gateway is not None:
            entry["gateway"] = str(gateway.ip)
        entries.append(entry)
    return {"type": "ips", "ip_address": entries}


def _dhcp_push(vm: VM, guest: IPv4Interface) -> Push:
    gateway = guest_gateway(vm)
    entries = [
        {
            "mac_address": tenant.mac,
            "ipv4_address": str(tenant.address),
            "host_name": tenant.name,
            "default_gateway": str(gateway.ip) if gateway else "",
            "default_entry": True,
        }
        for tenant in tenants(guest)
    ]
    return {"type": "dhcpentry", "entries": entries}


def _metadata_push(vm: VM, guest: IPv4Interface) -> Push:
    push: dict[str, object] = {"type": "vmdata"}
    for tenant in tenants(guest):
        push[str(tenant.address)] = [
            ["userdata", "user-data", f"#cloud-config\nhostname: {tenant.name}\n"],
            ["metadata", "instance-id", f"{tenant.name}-of-{vm.spec.network}"],
            ["metadata", "local-hostname", tenant.name],
            ["metadata", "local-ipv4", str(tenant.address)],
            ["metadata", "availability-zone", "zone-1"],
        ]
    return push


def _balanced(vm: VM) -> tuple[IPv4Address, tuple[Tenant, ...]] | None:
    """The address the load balancer serves and its members: public where the VM has a public side, else internal."""
    guest = _nic(vm, Segment.GUEST)
    front = _nic(vm, Segment.PUBLIC) or guest
    address = held_address(front) if front is not None else None
    if guest is None or guest.address is None or address is None:
        return None
    return address.ip, tenants(guest.address)


def _load_balancer_push(vm: VM) -> Push:
    lines = [
        "global",
        "\tlog 127.0.0.1:3914 local0 warning",
        "\tmaxconn 4096",
        "\tuser haproxy",
        "\tgroup haproxy",
        "\tstats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners",
        "\tdaemon",
        "",
        "defaults",
        "\tlog global",
        "\tmode tcp",
        "\toption dontlognull",
        "\tretries 3",
        "\toption redispatch",
        "\ttimeout connect 5s",
        "\ttimeout client 50s",
        "\ttimeout server 50s",
        "",
    ]
    add_rules = []
    guest = _nic(vm, Segment.GUEST)
    if guest is not None and guest.address is not None:
        lines += [
            "listen stats_on_guest",
            f"\tbind {guest.address.ip}:{STATS_PORT}",
            "\tmode http",
            "\tstats enable",
            "\tstats uri /admin?stats",
            "",
        ]
        add_rules.append(f"{guest.address.ip}:{STATS_PORT}:")
    balanced = _balanced(vm)
    if balanced is not None:
        address, members = balanced
        name = f"{str(address).replace('.', '_')}-{LOAD_BALANCER_PORT}"
        lines += [f"listen {name}", f"\tbind {address}:{LOAD_BALANCER_PORT}", "\tbalance roundrobin"]
        lines += [f"\tserver {name}_{n} {member.address}:{MEMBER_PORT}" for n, member in enumerate(members)]
        add_rules.append(f"{address}:{LOAD_BALANCER_PORT}:")
    return {
        "type": "loadbalancer",
        "config": [{"configuration": lines, "add_rules": add_rules, "stat_rules": [], "remove_rules": []}],
    }


def _monitor_push(vm: VM, *, release_line: str, signature: str) -> Push:
    guest = _nic(vm, Segment.GUEST)
    serves_guests = vm.spec.type in ROUTERS and guest is not None and guest.address is not None
    machines = tenants(guest.address) if serves_guests and guest is not None and guest.address is not None else ()
    data: dict[str, object] = {
        "systemThresholds": {"minDiskNeeded": "100", "maxCpuUsage": "100", "maxMemoryUsage": "100"},
        "routerVersion": {"templateVersion": release_line.strip(), "scriptsVersion": signature},
        "virtualMachines": [{"vmName": m.name, "ip": str(m.address), "macAddress": m.mac} for m in machines],
        "excludedHealthChecks": [],
    }
    public = _nic(vm, Segment.PUBLIC)
    if public is not None and public.gateway is not None and not vm.spec.redundant:
        data["gateways"] = {"gatewaysIps": str(public.gateway)}
    balanced = _balanced(vm) if vm.spec.type is not SystemVMType.DHCPSRVR else None
    if balanced is not None:
        address, members = balanced
        data["haproxyData"] = [
            {
                "sourceIp": str(address),
                "sourcePort": str(LOAD_BALANCER_PORT),
                "destPort": str(MEMBER_PORT),
                "vmIps": [str(member.address) for member in members],
            }
        ]
    # Services are watched on single isolated and shared routers only (CloudStack 4.21 monitor.conf).
    watched = vm.spec.type in {SystemVMType.ROUTER, SystemVMType.DHCPSRVR} and not vm.spec.redundant
    services = [
        ("ssh", "sshd", "ssh", "/var/run/sshd.pid"),
        ("dns_dhcp", "dnsmasq", "dnsmasq", "/var/run/dnsmasq/dnsmasq.pid"),
        ("loadbalancing", "haproxy", "haproxy", "/var/run/haproxy.pid"),
        ("webserver", "apache2", "apache2", "/var/run/apache2/apache2.pid"),
    ]
    if vm.spec.type is SystemVMType.DHCPSRVR:
        services = [service for service in services if service[0] != "loadbalancing"]
    return {
        "type": "monitorservice",
        "config": {
            "services": [
                {"name": name, "processname": process, "servicename": unit, "pidfile": pid}
                for name, process, unit, pid in (services if watched else [])
            ],
            "health_checks_data": data,
            "interval_basic": 3,
            "interval_advanced": 10,
        },
    }


def as_json(content: Push) -> bytes:
    """The text of a push or bag."""
    return (json.dumps(content, indent=1) + "\n").encode("utf-8")
