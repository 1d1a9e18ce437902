"""BGP peers: the lab's root has no frr, so they are only counted."""

import logging

from cs.CsDatabag import CsDataBag


class CsBgpPeers(CsDataBag):
    def process(self):
        if self.entries():
            logging.info("%d BGP peers, no frr here", len(self.entries()))
