"""The data bags in /etc/cloudstack: the router's only copy of its configuration."""

import merge


class CsDataBag:
    """A bag by name; what cannot be read is empty, as if nothing had ever been pushed."""

    def __init__(self, key):
        self.key = key
        self.bag = merge.load(key)

    def entries(self):
        return {name: value for name, value in self.bag.items() if name != "id"}

    def save(self):
        merge.save(self.key, self.bag)


class CsCmdLine(CsDataBag):
    """The boot line, and the role that keepalived gave this router."""

    def __init__(self):
        super().__init__("cmdline")
        self.config = self.bag.setdefault("config", {})

    def get(self, key, default=""):
        return self.config.get(key, default)

    def type(self):
        return self.get("type", "unknown")

    def redundant(self):
        return self.get("redundant_router") in ("1", "true")

    def state(self):
        return self.get("redundant_state", "BACKUP")

    def set_state(self, state):
        self.config["redundant_state"] = state
        self.save()

    def guest_gateway(self):
        return self.get("guestgw")
