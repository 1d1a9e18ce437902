"""Merging of addresses: by device, and those of the boot line come first."""

import ipaddress

NW_TYPES = {
    "router": {"eth0": "guest", "eth1": "control", "eth2": "public"},
    "dhcpsrvr": {"eth0": "guest", "eth1": "control"},
    "ilbvm": {"eth0": "guest", "eth1": "control"},
    "vpcrouter": {"eth0": "control"},
}


def entry(device, address, netmask, nw_type, gateway):
    interface = ipaddress.IPv4Interface("%s/%s" % (address, netmask))
    return {
        "add": True,
        "broadcast": str(interface.network.broadcast_address),
        "cidr": interface.with_prefixlen,
        "device": device,
        "gateway": gateway,
        "netmask": str(interface.netmask),
        "network": str(interface.network),
        "nic_dev_id": device[3:],
        "nw_type": nw_type,
        "public_ip": str(interface.ip),
        "size": str(interface.network.prefixlen),
    }


def _put(bag, new):
    rest = [old for old in bag.get(new["device"], []) if old["public_ip"] != new["public_ip"]]
    bag[new["device"]] = rest + ([new] if new.get("add", True) else [])


def from_cmdline(bag, config):
    for device, nw_type in NW_TYPES.get(config.get("type"), {}).items():
        address, netmask = config.get(device + "ip"), config.get(device + "mask")
        if address and netmask and address != "0.0.0.0":
            gateway = {"guest": config.get("guestgw", address), "public": config.get("gateway", "None")}.get(
                nw_type, "None"
            )
            _put(bag, entry(device, address, netmask, nw_type, gateway))
    return bag


def merge(bag, pushed):
    for address in pushed.get("ip_address", []):
        device = "eth%s" % address["nic_dev_id"]
        new = entry(
            device, address["public_ip"], address["netmask"], address["nw_type"], address.get("gateway", "None")
        )
        _put(bag, dict(new, add=address.get("add", True)))
    return bag
