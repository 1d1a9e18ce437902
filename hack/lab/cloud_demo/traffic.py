"""What tenants notice while the cloud is worked on: numbered requests of every kind through several routers at once."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from lab.machines import Lab
from lab.tenants import Tally, Tenancy

RATE = 10.0
"""Requests a second of each kind, through each router: eleven kinds, three to four routers, on a small machine."""


@dataclass(frozen=True, kw_only=True)
class Noticed:
    """What tenants noticed through some routers."""

    sent: int
    lost: int
    failed: int
    longest_gap_ms: float


@dataclass
class Asking:
    """Tenants that ask; what they noticed is known once they have ended."""

    tallies: dict[str, tuple[Tally, ...]] = field(default_factory=dict)
    """By the name of the network or VPC."""

    def noticed(self, through: Collection[str]) -> Noticed | None:
        """None where nobody asked."""
        found = [tally for name, tallies in self.tallies.items() if name in through for tally in tallies]
        if not found:
            return None
        return Noticed(
            sent=sum(tally.sent for tally in found),
            lost=sum(tally.lost for tally in found),
            failed=sum(tally.failed for tally in found),
            longest_gap_ms=max(tally.longest_gap_ms for tally in found),
        )

    def lines(self) -> list[str]:
        """A line a network: what it lost, by kind."""
        found = []
        for name, tallies in self.tallies.items():
            sent, gap = sum(tally.sent for tally in tallies), max(tally.longest_gap_ms for tally in tallies)
            bad = [f"{t.kind} {t.lost + t.failed}" for t in tallies if t.lost + t.failed]
            words = f"lost {', '.join(bad)}" if bad else "nothing lost"
            found.append(f"{name}: {sent:,} requests, {words}; longest gap {gap:.0f} ms")
        return found


@contextlib.contextmanager
def asking(lab: Lab, routers: Mapping[str, str], *, rate: float = RATE) -> Iterator[Asking]:
    """Tenants ask through each of the routers (name of what it serves -> VM) until the block ends; then is counted."""
    tenancy = Tenancy(lab)
    found = Asking()
    with contextlib.ExitStack() as running:
        runs = {}
        for name, vm in routers.items():
            tenancy.add(vm)
            runs[name] = running.enter_context(tenancy.start(vm, rate=rate))
        yield found
        for name, run in runs.items():
            found.tallies[name] = run.end().tallies
