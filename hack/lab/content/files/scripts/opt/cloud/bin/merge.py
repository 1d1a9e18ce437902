#!/usr/bin/python
"""Merges what is pushed into the data bags of /etc/cloudstack."""

import gzip
import json
import logging
import os
import shutil

import cs_bgppeers
import cs_cmdline
import cs_dhcp
import cs_firewallrules
import cs_forwardingrules
import cs_guestnetwork
import cs_ip
import cs_loadbalancer
import cs_monitorservice
import cs_network_acl
import cs_remoteaccessvpn
import cs_site2sitevpn
import cs_staticroutes
import cs_vmdata
import cs_vmp
import cs_vpnusers

BAGS = "/etc/cloudstack"
CACHE = "/var/cache/cloud"
PROCESSED = CACHE + "/processed"

# type of a push -> (bag, merge)
MERGERS = {
    "cmdline": ("cmdline", cs_cmdline.merge),
    "ips": ("ips", cs_ip.merge),
    "guestnetwork": ("guestnetwork", cs_guestnetwork.merge),
    "networkacl": ("networkacl", cs_network_acl.merge),
    "firewallrules": ("firewallrules", cs_firewallrules.merge),
    "ipv6firewallrules": ("ipv6firewallrules", cs_firewallrules.merge),
    "forwardrules": ("forwardingrules", cs_forwardingrules.merge),
    "staticnatrules": ("forwardingrules", cs_forwardingrules.merge),
    "loadbalancer": ("loadbalancer", cs_loadbalancer.merge),
    "dhcpentry": ("dhcpentry", cs_dhcp.merge),
    "vmdata": ("vmdata", cs_vmdata.merge),
    "vmpassword": ("vmpassword", cs_vmp.merge),
    "site2sitevpn": ("site2sitevpn", cs_site2sitevpn.merge),
    "remoteaccessvpn": ("remoteaccessvpn", cs_remoteaccessvpn.merge),
    "vpnuserlist": ("vpnuserlist", cs_vpnusers.merge),
    "staticroutes": ("staticroutes", cs_staticroutes.merge),
    "monitorservice": ("monitorservice", cs_monitorservice.merge),
    "bgppeer": ("bgppeers", cs_bgppeers.merge),
}


def load(key):
    """A bag; one that is missing or cannot be read is empty."""
    try:
        with open("%s/%s.json" % (BAGS, key), encoding="utf-8") as source:
            return json.load(source)
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError):
            logging.error("data bag %s: %s", key, error)
        return {"id": key}


def save(key, bag):
    bag["id"] = key
    os.makedirs(BAGS, exist_ok=True)
    with open("%s/%s.json" % (BAGS, key), "w", encoding="utf-8") as target:
        json.dump(bag, target, indent=2, sort_keys=True)
        target.write("\n")


def take(name):
    """Merges the pushed file of that name in /var/cache/cloud and files it away. Returns the bag's name."""
    path = os.path.join(CACHE, name)
    with open(path, encoding="utf-8") as source:
        pushed = json.load(source)
    key, function = MERGERS[pushed["type"]]
    bag = function(load(key), pushed)
    save(key, bag)
    if key == "cmdline":
        save("ips", cs_ip.from_cmdline(load("ips"), bag["config"]))
    else:
        os.makedirs(PROCESSED, exist_ok=True)
        with open(path, "rb") as source, gzip.open("%s/%s.gz" % (PROCESSED, name), "wb") as target:
            shutil.copyfileobj(source, target)
        os.remove(path)
    return key
