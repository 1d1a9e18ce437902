#!/usr/bin/python
"""Applies the data bags to the router: configure.py <databag>.json, or cmd_line.json for everything.

Every run also puts the addresses right and looks after the redundant set. Exit code 0 says only that no exception got out.
"""

import logging
import os
import sys
import urllib.error
import urllib.request

from cs.CsAddress import CsAddress
from cs.CsApp import CsApache, CsPasswdSvc
from cs.CsBgpPeers import CsBgpPeers
from cs.CsConfig import CsConfig
from cs.CsDatabag import CsDataBag
from cs.CsDhcp import CsDhcp
from cs.CsFile import ConfigFile
from cs.CsGuestNetwork import CsGuestNetwork
from cs.CsLoadBalancer import CsLoadBalancer
from cs.CsMonitor import CsMonitor
from cs.CsNetfilter import CsNetfilters
from cs.CsProcess import CsProcess
from cs.CsRedundant import CsRedundant
from cs.CsRoute import CsRoute
from cs.CsStaticRoutes import CsStaticRoutes
from cs.CsVpcGuestNetwork import CsVpcGuestNetwork

WEB = "/var/www/html"


class CsVmMetadata(CsDataBag):
    """Metadata and user data of tenants, served by apache2 by the address that asks."""

    def process(self):
        items = set()
        for address, records in self.entries().items():
            for folder, name, content in records:
                items.add((folder, name))
                ConfigFile("%s/%s/%s/%s" % (WEB, folder, address, name)).write(content or "")
        self._htaccess(items)

    def _htaccess(self, items):
        """Items that the packaged file does not know get a rule of their own at its end."""
        target = ConfigFile(WEB + "/latest/.htaccess")
        text = target.text()
        for folder, name in sorted(items):
            if folder != "metadata":
                continue
            rule = "RewriteRule ^meta-data/%s$  ../metadata/%%{REMOTE_ADDR}/%s [L,NC,QSA]\n" % (name, name)
            if rule not in text:
                text += rule
        target.write(text)


class CsPassword(CsDataBag):
    """Sends the last pushed passwords to the password server, which keeps them until they are fetched."""

    def process(self, config):
        if not config.holds_traffic():
            return
        token = ConfigFile("/tmp/passwdsrvrtoken").text().strip()
        servers = [entry["public_ip"] for _, entry in config.guests()]
        for address, entry in self.entries().items():
            body = ("ip=%s&password=%s&token=%s" % (address, entry["password"], token)).encode()
            for server in servers:
                try:
                    urllib.request.urlopen("http://%s:8080/" % server, body, timeout=3).close()
                except (OSError, urllib.error.URLError) as error:
                    logging.error("password server %s: %s", server, error)


class CsForwardingRules(CsDataBag):
    """Port forwarding: a rule is {public_ip, public_port, internal_ip, internal_port, protocol}."""

    def process(self, rules):
        for records in self.entries().values():
            for rule in records if isinstance(records, list) else ():
                rules.add(
                    "nat",
                    "-A PREROUTING -d %s/32 -p %s -m %s --dport %s -j DNAT --to-destination %s:%s"
                    % (
                        rule["public_ip"],
                        rule["protocol"],
                        rule["protocol"],
                        rule["public_port"],
                        rule["internal_ip"],
                        rule["internal_port"],
                    ),
                )


class CsVpn(CsDataBag):
    """VPNs are not served by the lab's routers."""

    def process(self):
        if self.entries():
            logging.info("%s: %d entries, no IPsec here", self.key, len(self.entries()))


def source_nat(config, rules):
    if not config.is_gateway():
        return
    for device, entry in config.publics():
        rules.add("nat", "-A POSTROUTING -o %s -j SNAT --to-source %s" % (device, entry["public_ip"]))
        for guest, _ in config.guests():
            if config.type() == "vpcrouter":
                rules.add("filter", "-A FORWARD -i %s -o %s -j ACCEPT" % (guest, device))
    if config.type() == "vpcrouter":
        for guest, _ in config.guests():
            for protocol, port in (("udp", 67), ("udp", 53), ("tcp", 53), ("tcp", 80), ("tcp", 8080)):
                rules.add(
                    "filter", "-A INPUT -i %s -p %s -m %s --dport %d -j ACCEPT" % (guest, protocol, protocol, port)
                )


def apply_rules(config):
    rules = CsNetfilters(config)
    source_nat(config, rules)
    CsLoadBalancer(config).process(rules)
    CsForwardingRules("forwardingrules").process(rules)
    rules.compare()


def parts(config):
    """databag file -> what to do for it."""
    rules = lambda: apply_rules(config)  # noqa: E731
    table = {
        "load_balancer.json": rules,
        "vm_dhcp_entry.json": CsDhcp(config).process,
        "dhcp.json": CsDhcp(config).process,
        "vm_metadata.json": CsVmMetadata("vmdata").process,
        "vm_password.json": lambda: CsPassword("vmpassword").process(config),
        "remote_access_vpn.json": CsVpn("remoteaccessvpn").process,
        "site_2_site_vpn.json": CsVpn("site2sitevpn").process,
        "vpn_user_list.json": CsVpn("vpnuserlist").process,
        "bgp_peers.json": CsBgpPeers("bgppeers").process,
        "guest_network.json": CsVpcGuestNetwork().process,
        "static_routes.json": CsStaticRoutes("staticroutes").process,
        "monitor_service.json": CsMonitor(config).process,
    }
    for name in (
        "network_acl",
        "firewall_rules",
        "ipv6_firewall_rules",
        "forwarding_rules",
        "staticnat_rules",
        "ip_aliases",
    ):
        table[name + ".json"] = rules
    return table


def main(name):
    logging.basicConfig(
        filename="/var/log/cloud.log", level=logging.INFO, format="%(asctime)s configure.py %(levelname)s %(message)s"
    )
    name = os.path.basename(name)
    logging.info(
        "%s, domain %s, password servers %s",
        name,
        CsGuestNetwork().domain("eth0") or "-",
        CsProcess("passwd_server_ip.py").pids(),
    )
    config = CsConfig()
    address = CsAddress(config)
    address.compare()
    address.process()
    CsRoute(config).process()
    if config.type() in ("router", "vpcrouter", "dhcpsrvr"):
        CsApache(config).setup()
        CsPasswdSvc(config).setup()
    table = parts(config)
    if name == "cmd_line.json":
        for part in (
            "vm_dhcp_entry.json",
            "vm_metadata.json",
            "vm_password.json",
            "guest_network.json",
            "static_routes.json",
            "bgp_peers.json",
            "monitor_service.json",
            "load_balancer.json",
        ):
            table[part]()
    elif name in table:
        table[name]()
    if config.is_gateway():
        CsRedundant(config).set()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: configure.py <databag>.json")
    main(sys.argv[1])
