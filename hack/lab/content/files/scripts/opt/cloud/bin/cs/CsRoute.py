"""The default route toward the public gateway."""

from cs import CsHelper


class CsRoute:
    def __init__(self, config):
        self.config = config

    def process(self):
        if not self.config.is_gateway() or not self.config.holds_traffic():
            return
        for device, entry in self.config.publics():
            gateway = entry.get("gateway")
            if gateway and gateway != "None":
                CsHelper.execute("ip", "route", "replace", "default", "via", gateway, "dev", device)
                return
