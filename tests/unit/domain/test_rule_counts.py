"""Rules that did not come back are counted; what the lists and a router disagreed about before is no loss."""

from __future__ import annotations

import pytest

from sysvm.api.observed import DataBags, RuleKind
from sysvm.domain.facts import VMFacts
from sysvm.domain.rule_counts import ListedRules, held_counts, missing_rules, not_compared

from . import builders as b

FIREWALL, FORWARDS, USERS = RuleKind.FIREWALL, RuleKind.PORT_FORWARDING, RuleKind.VPN_USER


def router(name: str = "r-9-VM", *, lost: bool = False, **rules: int) -> VMFacts:
    return holding(name, rules, lost=lost)


def holding(name: str, rules: dict[str, int], *, lost: bool = False) -> VMFacts:
    bags = DataBags(held=4, lost=lost, rules=rules)
    return b.facts(name, observed=b.up_to_date().model_copy(update={"data_bags": bags}))


@pytest.mark.parametrize(
    ("listed_before", "held_before", "listed", "held", "lacks"),
    [
        pytest.param({FIREWALL: 3}, {FIREWALL: 3}, {FIREWALL: 3}, {FIREWALL: 3}, None, id="all are back"),
        pytest.param(
            {FIREWALL: 3}, {FIREWALL: 3}, {FIREWALL: 3}, {FIREWALL: 1},
            "r-9-VM has 1 firewall rules where 3 are listed", id="two did not come back",
        ),
        pytest.param({FIREWALL: 3}, {FIREWALL: 2}, {FIREWALL: 3}, {FIREWALL: 2}, None, id="one was never sent"),
        pytest.param(
            {FIREWALL: 3}, {FIREWALL: 2}, {FIREWALL: 3}, {FIREWALL: 1},
            "r-9-VM has 1 firewall rules where 3 are listed", id="one was never sent, and another is lost",
        ),
        pytest.param({FIREWALL: 3}, {FIREWALL: 3}, {FIREWALL: 1}, {FIREWALL: 1}, None, id="tenants deleted two"),
        pytest.param(
            {FIREWALL: 1}, {FIREWALL: 1}, {FIREWALL: 2}, {FIREWALL: 1},
            "r-9-VM has 1 firewall rules where 2 are listed", id="one was added meanwhile, and is not there",
        ),
        pytest.param({FIREWALL: 1}, {FIREWALL: 1}, {FIREWALL: 1}, {FIREWALL: 2}, None, id="more is no loss"),
        pytest.param(
            {}, {FORWARDS: 4}, {}, {FORWARDS: 3},
            "r-9-VM has 3 port forwarding rules where 4 were held before", id="a list that the role may not read",
        ),
        pytest.param({}, {USERS: 2}, {}, {USERS: 0}, "r-9-VM has 0 VPN users where 2 were held before", id="no list"),
        pytest.param({FIREWALL: 3}, {}, {FIREWALL: 3}, {}, None, id="a router that was not counted"),
        pytest.param(
            {FIREWALL: 3}, {}, {FIREWALL: 3}, {FIREWALL: 0},
            "r-9-VM has 0 firewall rules where 3 are listed", id="nobody counted the router before",
        ),
    ],
)  # fmt: skip
def test_what_a_router_lacks(
    listed_before: dict[str, int],
    held_before: dict[str, int],
    listed: dict[RuleKind, int],
    held: dict[str, int],
    lacks: str | None,
) -> None:
    assert missing_rules(listed_before, held_before, ListedRules(listed), holding("r-9-VM", held)) == lacks


def test_both_routers_of_a_pair_count_and_one_that_lost_its_rules_says_nothing() -> None:
    assert held_counts([router("r-1-VM", Firewall=3, Egress=1), router("r-2-VM", Firewall=2)]) == {"Firewall": 2}
    assert held_counts([router("r-1-VM", Firewall=0, lost=True), router("r-2-VM", Firewall=2)]) == {"Firewall": 2}
    assert held_counts([router("r-1-VM", Firewall=0, lost=True)]) == {}


def test_what_nobody_compared_is_told() -> None:
    listed = ListedRules({}, ("listFirewallRules: not allowed",))
    assert not_compared(listed, [router(Firewall=1)]) == (
        "rules not compared with the server's: listFirewallRules: not allowed"
    )
    assert not_compared(ListedRules({FIREWALL: 1}), [router()]) == "the rules in r-9-VM could not be counted"
    assert not_compared(ListedRules({FIREWALL: 1}), [router(Firewall=1)]) == ""
