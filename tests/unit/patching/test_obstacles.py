"""What a payload must not do to a VM that runs: lock everybody out."""

from __future__ import annotations

import pytest
from tests.unit.patching.test_diff import OLD, PREVIOUS, facts_of

from lab.content import payloads, releases
from sysvm.api.endpoint import SystemVMType
from sysvm.api.reasons import Reason
from sysvm.patching import firewall
from sysvm.patching.diff import Difference, compare, contents_to_read
from sysvm.patching.ownership import known_paths
from sysvm.patching.payload import read_payload

ROUTER = SystemVMType.ROUTER
TEMPLATE = "etc/iptables/iptables-router"
TEXT = releases.old().scripts[TEMPLATE]
SSH = b"-A INPUT -i eth1 -p tcp -m tcp --dport 3922 -m state --state NEW,ESTABLISHED -j ACCEPT"


def found(text: bytes, vm_type: SystemVMType = ROUTER, path: str = TEMPLATE) -> Difference:
    """The difference for a VM of the old release and a release with this text of a template."""
    payload = read_payload(payloads.build_scripts(releases.old().derive("rules", change={path: text})), None)
    facts = facts_of(OLD)
    live = {f"/{name}": OLD.script_text(name) for name in firewall.templates_of(vm_type)}
    wanted = contents_to_read(payload, vm_type, PREVIOUS, facts)
    return compare(payload, vm_type, PREVIOUS, facts, {name: live[name] for name in wanted})


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace(SSH, b""),
        TEXT.replace(b"--dport 3922", b"--dport 3923"),
        TEXT.replace(SSH, SSH.replace(b"-m tcp ", b"")),
        TEXT.replace(SSH, SSH.replace(b"eth1", b"eth0")),
        TEXT.replace(b"COMMIT", b"-A INPUT -s 192.0.2.0/24 -p tcp --dport 3922 -j DROP\nCOMMIT"),
    ],
    ids=["removed", "another port", "other words", "another side", "one more"],
)
def test_a_template_that_touches_the_way_in_holds_the_vm(text: bytes) -> None:
    assert text != TEXT
    (obstacle,) = found(text).obstacles
    assert obstacle.reason is Reason.MANAGEMENT_PORT_RULE_CHANGED
    assert "3922" in obstacle.message
    assert found(text).scripts_report.obstacles == (obstacle,)


def test_a_template_of_another_type_or_in_other_spaces_is_no_obstacle() -> None:
    assert not found(TEXT.replace(SSH, b""), SystemVMType.VPCROUTER).obstacles
    assert not found(TEXT.replace(SSH, b"# words\n" + SSH.replace(b" -p", b"   -p"))).obstacles
    assert found(TEXT.replace(SSH, b""), SystemVMType.DHCPSRVR).obstacles, "a dhcpsrvr boots with a router's rules"


def test_every_other_rule_that_goes_or_comes_is_named_with_its_time() -> None:
    gone = b"-A INPUT -i eth0 -p tcp -m tcp --dport 443 -m state --state NEW -j ACCEPT"
    more = b"-A INPUT -i eth0 -p udp --dport 123 -j ACCEPT"
    assert gone in TEXT
    told = [(name, when.value, what) for name, when, what in found(TEXT.replace(gone, more)).rules_later]
    assert told == [
        ("iptables-router", "AtNextCommand", f"taken away: filter: {gone.decode()}"),
        ("iptables-router", "EffectiveAtBoot", f"added: filter: {more.decode()}"),
    ]
    path = "etc/iptables/iptables-secstorage"
    storage = found(
        releases.old().scripts[path].replace(b"-A INPUT -p icmp -j ACCEPT", b""), SystemVMType.SECSTORAGE, path
    )
    assert [(when.value, what) for _, when, what in storage.rules_later] == [
        ("EffectiveAtBoot", "taken away: filter: -A INPUT -p icmp -j ACCEPT"),
    ]


def test_policies_of_chains_and_tables_count_as_rules() -> None:
    rules = firewall.changed_rules(b"*nat\n:A ACCEPT [0:0]\n-A A -j B\n", b"*filter\n:A DROP [1:2]\n-A A -j B\n")
    assert rules.taken == ("nat: :A ACCEPT", "nat: -A A -j B")
    assert rules.added == ("filter: :A DROP", "filter: -A A -j B")
    assert not rules.management_port
    assert not firewall.changed_rules(b"-A A --dport 13922\n", b"-A A --dport 39220\n").management_port


def test_every_type_has_its_templates_and_they_are_of_the_payload() -> None:
    for vm_type in SystemVMType:
        assert set(firewall.templates_of(vm_type)) <= known_paths()
