"""What counts as a broken promise, and what the table says of it."""

from __future__ import annotations

import pytest

from lab.tenants import Kind, Tally
from traffic import table
from traffic.measuring import Measurement
from traffic.scenarios import SCENARIOS, Keep, Scenario, Shape, find
from traffic.verdicts import broken_promises
from traffic.ways import Account


def tally(kind: Kind, *, lost: int = 0, failed: int = 0, slow: int = 0, gap: float = 12.0) -> Tally:
    return Tally(
        kind=kind, sent=1000, lost=lost, failed=failed, slow=slow, longest_gap_ms=gap, slowest_ms=3.0, errors={}
    )


EVERY_ACTION = tuple(action for each in SCENARIOS for action in each.acts)


def measured(
    *tallies: Tally,
    as_wanted: bool = True,
    works: bool = True,
    losses: dict[str, str] | None = None,
    actions: tuple[str, ...] = EVERY_ACTION,
) -> Measurement:
    return Measurement(
        way="ours",
        account=Account(ended="Committed", as_wanted=as_wanted, losses=losses or {}, actions=actions),
        works=works,
        tallies=tallies,
        patch_seconds=2.0,
        late_ms=1.0,
    )


def scenario(name: str) -> Scenario:
    return find((name,))[0]


def test_one_lost_request_breaks_the_promise_where_nothing_of_the_service_changed() -> None:
    found = broken_promises(scenario("scripts-only"), measured(tally(Kind.DNS_TCP, lost=1)))
    assert found == ("scripts-only: dns-tcp lost 1 and failed 0 of 1000",)


def test_a_named_loss_does_not_excuse_what_can_be_reloaded() -> None:
    named = {"apache2": "metadata requests of two to three seconds"}
    assert broken_promises(scenario("apache-config"), measured(tally(Kind.METADATA, failed=1), losses=named))


@pytest.mark.parametrize("kind", [Kind.NAT_UDP, Kind.DNS_TCP, Kind.HTTP_LONG])
def test_only_a_failover_that_the_plan_named_excuses_whatever_the_pair_carries(kind: Kind) -> None:
    lost = tally(kind, lost=40)
    named = {"keepalived": "a failover: about a second of all traffic"}
    assert not broken_promises(scenario("pair-failover"), measured(lost, losses=named))
    assert broken_promises(scenario("pair-failover"), measured(lost, losses={"keepalived": "none"}))
    assert broken_promises(scenario("pair"), measured(lost, losses=named))


@pytest.mark.parametrize(("kind", "kept"), [(Kind.DNS_NEW_PORT, True), (Kind.DHCP_RENEW, True), (Kind.HTTP_NEW, False)])
def test_a_loss_that_the_plan_named_is_excused_for_that_service_only(kind: Kind, kept: bool) -> None:
    named = {"dnsmasq": "DNS and DHCP requests of about a tenth of a second"}
    found = broken_promises(scenario("dnsmasq-unit"), measured(tally(kind, lost=3), losses=named))
    assert (found == ()) is kept


def test_a_plan_that_says_none_excuses_nothing() -> None:
    named = {"dnsmasq": "none lost; a request may wait up to a second"}
    assert broken_promises(scenario("dnsmasq-unit"), measured(tally(Kind.DNS_TCP, lost=3), losses=named))


@pytest.mark.parametrize("name", ["dnsmasq-unit", "apache-unit", "vpc-unit", "haproxy-unit"])
def test_a_restart_that_was_not_held_is_no_held_restart_whatever_its_plan_named(name: str) -> None:
    unit = scenario(name).acts[0].split()[0]
    named = {unit: "all of it"}
    found = broken_promises(scenario(name), measured(losses=named, actions=(f"{unit} restart",)))
    assert found == (f"{name}: it should have done {unit} heldrestart, and did {unit} restart",)


def test_forwarding_is_never_excused() -> None:
    every = dict.fromkeys(("apache2", "dnsmasq", "haproxy"), "all of it")
    for each in SCENARIOS:
        for kind in (Kind.NAT_TCP_NEW, Kind.NAT_TCP_LONG, Kind.NAT_UDP):
            assert broken_promises(each, measured(tally(kind, lost=1), losses=every)), (each.name, kind)


def test_a_service_that_the_scenario_kills_may_lose() -> None:
    assert broken_promises(scenario("rollback"), measured(tally(Kind.METADATA, lost=30))) == ()


def test_an_ending_that_was_not_wanted_and_an_effect_that_is_not_there_are_broken_promises() -> None:
    quiet = tally(Kind.NAT_UDP)
    assert "instead of Committed" in broken_promises(scenario("same-files"), measured(quiet, as_wanted=False))[0]
    assert "not what the VM does" in broken_promises(scenario("same-files"), measured(quiet, works=False))[0]


def test_the_last_line_of_the_table_sums_all_of_both_ways() -> None:
    ours = measured(tally(Kind.NAT_UDP, gap=20), tally(Kind.DNS_TCP, lost=2, slow=1, gap=70))
    theirs = measured(tally(Kind.NAT_UDP, lost=5, gap=900), tally(Kind.DNS_TCP, failed=4))
    shown = table.text([(scenario("same-files"), ours, theirs)]).splitlines()
    assert shown[-1].split() == ["all", "all", "kinds", *["2000", "2", "0", "1", "70", "2000", "5", "4", "0", "900"]]
    assert sum("dns-tcp !" in line for line in shown) == 1
    alone = table.text([(scenario("same-files"), ours, None)]).splitlines()
    assert alone[-1].split()[-5:] == ["-"] * 5


def test_scenarios_have_names_of_their_own_and_unknown_ones_are_told() -> None:
    assert len({each.name for each in SCENARIOS}) == len(SCENARIOS)
    assert [each.name for each in find(("pair", "same-files"))] == ["same-files", "pair"]
    with pytest.raises(LookupError, match="no scenario nonsense: there are same-files"):
        find(("nonsense",))


def test_vms_of_two_scenarios_never_meet() -> None:
    pair, router = Shape.PAIR.specs(10), Shape.ROUTER.specs(12)
    assert {spec.group for spec in pair} == {"net-10"} != {spec.group for spec in router}
    assert len({spec.index for spec in (*pair, *router)}) == 3


def test_only_a_unit_change_a_failover_and_a_rollback_may_lose_anything() -> None:
    assert {each.name for each in SCENARIOS if each.must_keep is Keep.PLANNED} == {
        "haproxy-unit",
        "apache-unit",
        "dnsmasq-unit",
        "vpc-unit",
        "pair-failover",
        "rollback",
    }
