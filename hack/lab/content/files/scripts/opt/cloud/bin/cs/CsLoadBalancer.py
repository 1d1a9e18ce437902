"""haproxy.cfg out of the loadbalancer bag; reloaded only when the text changes."""

from cs import CsHelper
from cs.CsDatabag import CsDataBag
from cs.CsFile import ConfigFile

LIVE = "/etc/haproxy/haproxy.cfg"


class CsLoadBalancer(CsDataBag):
    def __init__(self, config):
        super().__init__("loadbalancer")
        self.config = config

    def process(self, rules):
        if "config" not in self.bag:
            return
        pushed = self.bag["config"][0]
        for rule in pushed.get("add_rules", []):
            address, port = rule.split(":")[:2]
            rules.add(
                "filter", "-A INPUT -d %s/32 -p tcp -m tcp --dport %s -m state --state NEW -j ACCEPT" % (address, port)
            )
        text = "".join(line + "\n" for line in pushed["configuration"])
        ConfigFile(LIVE + ".new").write(text)
        if ConfigFile(LIVE).write(text):
            CsHelper.service("haproxy", "reload" if CsHelper.is_active("haproxy") else "restart")
