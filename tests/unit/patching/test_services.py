"""The table of services and the table of files say the same, for every type of VM."""

import pytest

from sysvm.api.endpoint import SystemVMType
from sysvm.patching import order_words
from sysvm.patching.boot import parse_boot_arguments
from sysvm.patching.ownership import ActionKind, known_paths, rule_for
from sysvm.patching.services import (
    SERVICES,
    StartedBy,
    UnitAction,
    is_meant,
    order_for,
    service_built_from,
    service_of,
    strongest,
    units_of,
)

BOOT = parse_boot_arguments(b"type=router eth0ip=10.1.1.1 eth1ip=169.254.1.2 guestgw=10.1.1.1")
PATTERNS = (
    "etc/systemd/system/dnsmasq.service",
    "etc/systemd/system/dnsmasq.service.d/limits.conf",
    "etc/systemd/system/haproxy.service.d/limits.conf",
    "etc/systemd/system/apache2.service",
    "etc/systemd/system/cloud-password-server@.service.d/x.conf",
    "etc/default/dnsmasq",
    "etc/default/haproxy",
)
"""What a release to come may bring for a unit; the payload of today has none of it."""

USED_BY: dict[SystemVMType, set[str]] = {
    SystemVMType.ROUTER: {"haproxy", "dnsmasq", "apache2", "cloud-password-server@*", "keepalived", "conntrackd"},
    SystemVMType.VPCROUTER: {"haproxy", "dnsmasq", "apache2", "cloud-password-server@*", "keepalived", "frr", "ipsec"},
    SystemVMType.DHCPSRVR: {"dnsmasq", "apache2", "cloud-password-server@*"},
    SystemVMType.ELBVM: {"haproxy"},
    SystemVMType.ILBVM: {"haproxy"},
    SystemVMType.SECSTORAGE: {"cloud", "apache2"},
    SystemVMType.CONSOLEPROXY: {"cloud"},
}
"""enabled_svcs of CloudStack 4.21 and what configure.py and keepalived start on that type."""


def test_every_action_that_a_file_asks_for_exists_on_every_type_it_asks_it_on() -> None:
    for vm_type in SystemVMType:
        for path in [*known_paths(), *PATTERNS]:
            rule = rule_for(path, vm_type)
            if rule.unit is None:
                continue
            service = service_of(rule.unit.replace("*", "10.1.1.1"))
            assert service is not None, f"{path} asks for {rule.unit}, which is not in the table"
            assert vm_type in service.types, f"{path} asks for {rule.unit} on a {vm_type}, which has none"
            if rule.action is ActionKind.RELOAD:
                assert service.reload, f"{path} wants a reload of {rule.unit}, which has none"
            else:
                assert rule.action is ActionKind.RESTART


@pytest.mark.parametrize("path", PATTERNS)
def test_a_changed_unit_file_acts_on_its_own_unit(path: str) -> None:
    rule = rule_for(path, SystemVMType.ROUTER)
    assert rule.unit is not None
    assert rule.unit.partition("@")[0] in path
    assert rule.action is ActionKind.RESTART
    assert rule.daemon_reload is path.startswith("etc/systemd")


@pytest.mark.parametrize("vm_type", SystemVMType)
def test_every_type_has_the_services_that_its_tenants_use(vm_type: SystemVMType) -> None:
    there = {service.unit for service in SERVICES if vm_type in service.types}
    assert USED_BY[vm_type] <= there
    assert {"ssh", "cron", "rsyslog", "systemd-journald"} <= there
    tenants = {"haproxy", "dnsmasq", "apache2", "cloud-password-server@*", "cloud"}
    assert there & tenants == USED_BY[vm_type] & tenants, "an action on a unit that this type never runs"
    for unit in units_of(BOOT, vm_type):
        assert service_of(unit) is not None


def test_nothing_that_loses_traffic_is_planned_without_a_word() -> None:
    quiet = {"systemd-journald", "cron", "baremetal-vr", "nfs-common", "portmap", "ssh", "radvd"}
    for service in SERVICES:
        assert (service.expected_loss(UnitAction.RESTART) == "none") is (service.unit in quiet), service.unit
        for action in UnitAction:
            assert len(service.expected_loss(action)) <= 128, "the status holds no more"


def test_what_tenants_ask_of_a_vital_service_is_asked_of_it_by_us_too() -> None:
    for service in SERVICES:
        if service.vital and service.unit not in ("keepalived", "cloud"):
            assert service.questions, f"{service.unit} is vital and nothing proves that it serves"
        assert service.started_by
    assert {service.unit for service in SERVICES if StartedBy.NOTIFY in service.started_by} >= {
        "dnsmasq",
        "cloud-password-server@*",
    }, "down on a healthy BACKUP"


@pytest.mark.parametrize("vm_type", SystemVMType)
def test_a_restart_is_held_where_the_vm_can_and_costs_what_the_plan_says_where_it_cannot(vm_type: SystemVMType) -> None:
    there = [service for service in SERVICES if vm_type in service.types]
    held = {one.unit for one in there if one.restart(vm_type, can_hold=True) is UnitAction.HELD_RESTART}
    serving = {"dnsmasq", "haproxy", "apache2", "cloud-password-server@*"} & {one.unit for one in there}
    agent = vm_type in (SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY)
    assert held == (set() if agent else serving), "there is no guest network on an agent's VM"
    for service in there:
        assert service.restart(vm_type, can_hold=False) is UnitAction.RESTART
        assert service.expected_loss(UnitAction.HELD_RESTART) != service.restart_loss or service.unit not in held


def test_templates_that_only_a_boot_reads_are_effective_then() -> None:
    for path in ("etc/dnsmasq.conf.tmpl", "etc/vpcdnsmasq.conf", "etc/radvd.conf.tmpl"):
        service = service_built_from(path, SystemVMType.VPCROUTER)
        assert service is not None
        assert rule_for(path, SystemVMType.VPCROUTER).action is ActionKind.NEXT_BOOT
    assert service_built_from("etc/dnsmasq.conf.tmpl", SystemVMType.ELBVM) is None
    assert strongest([UnitAction.EFFECTIVE_AT_BOOT, UnitAction.RELOAD]) is UnitAction.RELOAD
    assert UnitAction.EFFECTIVE_AT_BOOT.word == "none"


def test_the_order_carries_what_an_action_needs_and_nothing_for_units_that_are_only_watched() -> None:
    def order(unit: str, action: UnitAction) -> order_words.ServiceOrder:
        return order_for(unit, action, BOOT, SystemVMType.ROUTER, 120)

    assert order("dnsmasq", UnitAction.HELD_RESTART).get("hold") == [
        {"protocol": "udp", "ports": [53, 67, 547]},
        {"protocol": "tcp", "ports": [53]},
    ]
    assert order("apache2", UnitAction.RELOAD).get("hold") == [{"protocol": "tcp", "ports": [80, 443]}], "it may die"
    assert "hold" not in order_for("apache2", UnitAction.RELOAD, BOOT, SystemVMType.SECSTORAGE, 120)
    assert "stop_seconds" not in order("apache2", UnitAction.RELOAD)
    assert order("apache2", UnitAction.HELD_RESTART).get("stop_seconds") == 0.5, "it waits for idle connections"
    assert order("haproxy", UnitAction.RELOAD)["serving"][0] == {
        "kind": "haproxy",
        "host": "/run/haproxy/admin.sock",
        "port": 0,
    }
    assert order("haproxy", UnitAction.RELOAD).get("drain") == {
        "max_old": 1,
        "min_memory_bytes": 64 << 20,
        "wait_seconds": 20.0,
    }
    assert order("ssh", UnitAction.RELOAD).get("login_seconds") == 60.0
    for unit in ("dnsmasq", "haproxy", "ssh"):
        for action in (UnitAction.NOTHING, UnitAction.EFFECTIVE_AT_BOOT):
            watched = order(unit, action)
            assert watched["action"] == "none"
            assert not {"hold", "drain", "login_seconds"} & set(watched)


def test_a_vpc_router_is_asked_for_what_its_boot_line_does_not_tell() -> None:
    boot = parse_boot_arguments(b"type=vpcrouter eth0ip=169.254.1.2 vpccidr=10.1.0.0/16")
    assert "cloud-password-server@*" in units_of(boot, SystemVMType.VPCROUTER)
    for unit in ("dnsmasq", "apache2"):
        asked = order_for(unit, UnitAction.NOTHING, boot, SystemVMType.VPCROUTER, 120)["serving"]
        assert "guests" in {check["host"] for check in asked}, unit
    instance = order_for("cloud-password-server@10.1.2.1", UnitAction.NOTHING, boot, SystemVMType.VPCROUTER, 120)
    assert instance["serving"] == [{"kind": "tcp", "host": "10.1.2.1", "port": 8080}]


def test_an_instance_is_meant_by_its_pattern() -> None:
    assert is_meant("cloud-password-server@10.1.1.1.service", "cloud-password-server@*")
    assert not is_meant("cloud", "cloud-password-server@*")
