"""The kinds of traffic that tenants make, and what is counted of each.

*Lost* is what the network did not give back: no answer within a second, refused, reset. *Failed* is an answer that is
wrong. *Slow* is a right answer later than a quarter of a second. The longest gap is the time between two right
answers, from the first request to the last, so that an outage has one number whatever the rate is.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

TIMEOUT_SECONDS = 1.0
SLOW_SECONDS = 0.25


class Kind(enum.StrEnum):
    """What a tenant, or the outside, asks for. The values are the words of the table."""

    NAT_TCP_NEW = "nat-tcp-new"
    NAT_TCP_LONG = "nat-tcp-long"
    NAT_UDP = "nat-udp"
    DNS_SAME_PORT = "dns-same-port"
    DNS_NEW_PORT = "dns-new-port"
    DNS_TCP = "dns-tcp"
    DHCP_DISCOVER = "dhcp-discover"
    DHCP_RENEW = "dhcp-renew"
    HTTP_NEW = "http-new"
    HTTP_LONG = "http-long"
    METADATA = "metadata"
    STORAGE_NEW = "ssvm-http-new"
    STORAGE_LONG = "ssvm-http-long"

    @property
    def unit(self) -> str | None:
        """The service that answers or carries it; None: the router's kernel."""
        return _UNITS[self]


_UNITS: dict[Kind, str | None] = {
    Kind.NAT_TCP_NEW: None,
    Kind.NAT_TCP_LONG: None,
    Kind.NAT_UDP: None,
    Kind.DNS_SAME_PORT: "dnsmasq",
    Kind.DNS_NEW_PORT: "dnsmasq",
    Kind.DNS_TCP: "dnsmasq",
    Kind.DHCP_DISCOVER: "dnsmasq",
    Kind.DHCP_RENEW: "dnsmasq",
    Kind.HTTP_NEW: "haproxy",
    Kind.HTTP_LONG: "haproxy",
    Kind.METADATA: "apache2",
    Kind.STORAGE_NEW: "apache2",
    Kind.STORAGE_LONG: "apache2",
}

ROUTER_KINDS = tuple(kind for kind in Kind if kind not in (Kind.STORAGE_NEW, Kind.STORAGE_LONG))
STORAGE_KINDS = (Kind.STORAGE_NEW, Kind.STORAGE_LONG)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """One kind of one run."""

    kind: Kind
    sent: int
    lost: int
    failed: int
    slow: int
    longest_gap_ms: float
    slowest_ms: float
    errors: Mapping[str, int]
    """What was seen instead of an answer, by its name."""

    @classmethod
    def read(cls, raw: Mapping[str, object]) -> Tally:
        """From the probes' JSON."""
        errors = raw["errors"]
        assert isinstance(errors, dict)
        return cls(
            kind=Kind(str(raw["kind"])),
            sent=int(str(raw["sent"])),
            lost=int(str(raw["lost"])),
            failed=int(str(raw["failed"])),
            slow=int(str(raw["slow"])),
            longest_gap_ms=float(str(raw["longest_gap_ms"])),
            slowest_ms=float(str(raw["slowest_ms"])),
            errors={str(name): int(count) for name, count in errors.items()},
        )
