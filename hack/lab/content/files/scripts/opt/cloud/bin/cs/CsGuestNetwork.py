"""Facts of a guest network out of the guestnetwork bag."""

from cs.CsDatabag import CsDataBag


class CsGuestNetwork(CsDataBag):
    def __init__(self):
        super().__init__("guestnetwork")

    def domain(self, device):
        tiers = self.bag.get(device) or [{}]
        return tiers[0].get("domain_name", "")
