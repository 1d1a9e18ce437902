"""Addresses: what is in the bag is put on the devices, what is not is taken away."""

from cs import CsHelper


class CsAddress:
    def __init__(self, config):
        self.config = config

    def _wanted(self):
        wanted = {}
        for device, entry in self.config.entries():
            wanted.setdefault(device, []).append(entry["cidr"])
        return wanted

    def compare(self):
        """Removes addresses that no bag names. With unreadable bags that is every address of every device."""
        wanted = self._wanted()
        virtual = self.config.cmdline.guest_gateway() if self.config.cmdline.redundant() else None
        for device in CsHelper.devices():
            for cidr in CsHelper.addresses(device):
                if cidr not in wanted.get(device, []) and cidr.split("/")[0] != virtual:
                    CsHelper.execute("ip", "addr", "del", cidr, "dev", device)

    def process(self):
        for device, cidrs in self._wanted().items():
            present = CsHelper.addresses(device)
            for cidr in cidrs:
                if cidr not in present:
                    CsHelper.execute("ip", "addr", "add", cidr, "brd", "+", "dev", device)
        public = {device for device, _ in self.config.publics()}
        for device in self._wanted():
            if device not in public:
                CsHelper.execute("ip", "link", "set", device, "up")
            elif self.config.is_gateway():
                CsHelper.execute("ip", "link", "set", device, "up" if self.config.holds_traffic() else "down")
