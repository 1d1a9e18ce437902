"""Which loss breaks a promise. Pure.

The plan speaks in words ("none lost; ...", "DNS and DHCP requests of about a tenth of a second"): what does not begin
with "none" is a named loss, and what was named before is not broken.
"""

from __future__ import annotations

from lab.tenants import Tally
from traffic.measuring import Measurement
from traffic.scenarios import Keep, Scenario

FAILOVER = "keepalived"
"""A loss that the plan names for it is a failover: of everything that the pair carries."""


def excused(scenario: Scenario, measured: Measurement) -> frozenset[str]:
    """Services whose traffic may lose in this measurement."""
    if scenario.must_keep is Keep.ALL:
        return scenario.victims
    named = {unit for unit, loss in measured.account.losses.items() if not loss.startswith("none")}
    return scenario.victims | named


def is_broken(scenario: Scenario, measured: Measurement, tally: Tally) -> bool:
    """Whether this kind lost something that the plan had promised to keep."""
    unit, planned = tally.kind.unit, excused(scenario, measured)
    if FAILOVER in planned:
        return False
    return bool(tally.lost or tally.failed) and (unit is None or unit not in planned)


def broken_promises(scenario: Scenario, measured: Measurement) -> tuple[str, ...]:
    """A sentence for each; empty: all kept. CloudStack promises nothing, so ask only for ours."""
    found = [
        f"{scenario.name}: {tally.kind} lost {tally.lost} and failed {tally.failed} of {tally.sent}"
        for tally in measured.tallies
        if is_broken(scenario, measured, tally)
    ]
    missing = [action for action in scenario.acts if action not in measured.account.actions]
    if missing:
        did = ", ".join(measured.account.actions) or "nothing"
        found.append(f"{scenario.name}: it should have done {', '.join(missing)}, and did {did}")
    if not measured.account.as_wanted:
        found.append(f"{scenario.name}: ended {measured.account.ended} instead of {scenario.ends}")
    elif not measured.works:
        found.append(f"{scenario.name}: said {scenario.ends}, but that is not what the VM does")
    return tuple(found)
