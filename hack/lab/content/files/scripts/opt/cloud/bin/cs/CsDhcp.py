"""dnsmasq: ranges, hosts, options and names out of the dhcpentry bag."""

from cs import CsHelper
from cs.CsDatabag import CsDataBag
from cs.CsFile import ConfigFile


class CsDhcp(CsDataBag):
    def __init__(self, config):
        super().__init__("dhcpentry")
        self.config = config

    def _hosts(self):
        entries = self.entries().values()
        return sorted((entry for entry in entries if not entry.get("remove")), key=lambda entry: entry["ipv4_address"])

    def _cloud_conf(self):
        lines = []
        for number, (device, entry) in enumerate(self.config.guests()):
            tag = "interface-%s-%s" % (device, number)
            router = entry.get("gateway") or entry["public_ip"]
            lines += [
                "interface=%s" % device,
                "dhcp-range=set:%s,%s,static" % (tag, entry["public_ip"]),
                "dhcp-option=tag:%s,3,%s" % (tag, router),
                "dhcp-option=tag:%s,6,%s" % (tag, router),
                "dhcp-option=tag:%s,1,%s" % (tag, entry["netmask"]),
            ]
            domain = self.config.cmdline.get("domain")
            if domain:
                lines.append("dhcp-option=tag:%s,15,%s" % (tag, domain))
        return "".join(line + "\n" for line in lines)

    def process(self):
        hosts = self._hosts()
        changed = ConfigFile("/etc/dnsmasq.d/cloud.conf").write(self._cloud_conf())
        ConfigFile("/etc/dhcphosts.txt").write(
            "".join(
                "%s,%s,%s,infinite\n" % (host["mac_address"], host["ipv4_address"], host["host_name"]) for host in hosts
            )
        )
        ConfigFile("/etc/dhcpopts.txt").write("")
        self._write_hosts(hosts)
        if self.config.holds_traffic():
            if changed:
                CsHelper.service("dnsmasq", "restart")
            elif CsHelper.is_active("dnsmasq"):
                CsHelper.service("dnsmasq", "reload")

    def _write_hosts(self, hosts):
        name = self.config.cmdline.get("name", "systemvm")
        lines = ["127.0.0.1 localhost", "127.0.1.1 %s" % name]
        for _, entry in self.config.guests():
            lines.append("%s %s data-server" % (entry.get("gateway") or entry["public_ip"], name))
        lines += ["%s %s" % (host["ipv4_address"], host["host_name"]) for host in hosts]
        ConfigFile("/etc/hosts").write("".join(line + "\n" for line in lines))
