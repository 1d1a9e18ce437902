"""What tenants notice of a patch: nothing, where nothing of a service changed or what changed can be reloaded.

The short version of `make traffic`: two of its scenarios, ours against CloudStack's way on identical VMs. The other
way must lose, or the measurement sees nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import Lab, preflight
from lab.tenants import Kind
from lab.tenants.kinds import ROUTER_KINDS, STORAGE_KINDS
from traffic import measuring, scenarios, verdicts
from traffic.ways import CloudStacks, Ours

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

LEAST_REQUESTS = 300
"""Fewer than this of a kind would prove little; a free machine sends about 1000."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    with measuring.undisturbed():
        try:
            made.up([], release="old")
            yield made
        finally:
            made.down()
        assert not made.cgroups.exists(), "tenants go with their lab"


def test_tenants_lose_nothing_while_nothing_is_done(lab: Lab) -> None:
    tallies = measuring.baseline(lab, 10, seconds=4)
    assert {tally.kind for tally in tallies} == {*ROUTER_KINDS, *STORAGE_KINDS}
    assert [tally for tally in tallies if tally.lost or tally.failed] == []
    assert all(tally.sent >= 100 for tally in tallies), tallies


@pytest.mark.parametrize(("name", "number"), [("scripts-only", 20), ("apache-config", 30)])
async def test_our_patch_loses_nothing_of_what_it_promised_to_keep(lab: Lab, name: str, number: int) -> None:
    (scenario,) = scenarios.find((name,))
    ours = await measuring.measure(lab, scenario, Ours(), number)
    assert verdicts.broken_promises(scenario, ours) == ()
    assert ours.works, "what was reported as done has its effect"
    assert {tally.kind for tally in ours.tallies} == set(ROUTER_KINDS)
    assert all(tally.sent >= LEAST_REQUESTS for tally in ours.tallies), ours.tallies


async def test_cloudstacks_patch_of_the_same_vm_is_noticed(lab: Lab) -> None:
    (scenario,) = scenarios.find(("scripts-only",))
    theirs = await measuring.measure(lab, scenario, CloudStacks(), 40)
    lost = {tally.kind: tally.lost for tally in theirs.tallies}
    assert theirs.account.as_wanted, theirs.account
    assert lost[Kind.HTTP_NEW] > 100, "the load balancer's configuration was overwritten"
    assert lost[Kind.HTTP_LONG] > 100
    assert lost[Kind.NAT_TCP_LONG] == lost[Kind.NAT_UDP] == 0, "the kernel goes on forwarding"
