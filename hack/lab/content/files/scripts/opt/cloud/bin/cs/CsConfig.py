"""What every part of configure.py needs: the boot line and the addresses."""

from cs.CsDatabag import CsCmdLine, CsDataBag


class CsConfig:
    def __init__(self):
        self.cmdline = CsCmdLine()
        self.ips = CsDataBag("ips")

    def type(self):
        return self.cmdline.type()

    def is_gateway(self):
        return self.type() in ("router", "vpcrouter")

    def entries(self, nw_type=None):
        """(device, entry) of every address that should be there."""
        for device, entries in sorted(self.ips.entries().items()):
            for entry in entries:
                if entry.get("add", True) and nw_type in (None, entry.get("nw_type")):
                    yield device, entry

    def guests(self):
        return list(self.entries("guest"))

    def publics(self):
        return list(self.entries("public"))

    def holds_traffic(self):
        """Alone, or the PRIMARY of a pair."""
        return not self.cmdline.redundant() or self.cmdline.state() == "PRIMARY"
