"""Static routes of a VPC."""

from cs import CsHelper
from cs.CsDatabag import CsDataBag


class CsStaticRoutes(CsDataBag):
    def process(self):
        for route in self.entries().values():
            operation = "del" if route.get("revoke") else "replace"
            CsHelper.execute("ip", "route", operation, route["network"], "via", route["gateway"])
