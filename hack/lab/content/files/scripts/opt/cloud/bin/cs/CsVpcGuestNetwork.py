"""Tiers of a VPC: IPv6 is not used in the lab, so there is nothing to advertise."""

from cs.CsDatabag import CsDataBag


class CsVpcGuestNetwork(CsDataBag):
    def __init__(self):
        super().__init__("guestnetwork")

    def process(self):
        return sorted(self.entries())
