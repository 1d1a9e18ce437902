"""Routers beside those that serve are told at each sweep; only what two sweeps have found wakes anybody."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.unit.domain.builders import NOW

from sysvm.api.endpoint import SystemVMType
from sysvm.domain.beside import found_beside
from sysvm.domain.cloud import CloudServer, CloudVM, CloudVMState, Snapshot, several_releases
from sysvm.domain.cloud_status import CloudFacts, authorized, notes


def vm(name: str, **values: Any) -> CloudVM:
    base: dict[str, Any] = {"id": name, "name": name, "type": SystemVMType.ROUTER, "state": CloudVMState.RUNNING}
    return CloudVM(**{**base, "zone_id": "z", "zone": "ams-1", "network_id": "n-1", **values})


def sweep(*vms: CloudVM, servers: tuple[CloudServer, ...] = ()) -> Snapshot:
    return Snapshot(
        taken_at=NOW, server_version="4.21.0.0", zones={}, hosts={}, networks={}, vpcs={},
        vms={each.id: each for each in vms}, servers={each.id: each for each in servers},
    )  # fmt: skip


TWICE = "r-1-VM and r-2-VM run with the same gateway and are no redundant pair: tenants' traffic is at risk now"


def test_two_routers_with_one_gateway_are_an_alarm_once_a_second_sweep_finds_them() -> None:
    both = sweep(vm("r-1-VM"), vm("r-2-VM"))
    assert found_beside(sweep(vm("r-1-VM")), both).told == (), "a restart of the network is under way, perhaps"
    found = found_beside(both, both)
    assert found.told == (TWICE,)
    assert found.alarms == {TWICE}
    began = found_beside(None, both)
    assert (began.told, began.alarms) == ((TWICE,), frozenset()), "a restart of the operator changes no status"


def test_a_left_over_is_told_and_no_alarm() -> None:
    left = sweep(vm("r-1-VM"), vm("r-2-VM", state=CloudVMState.STOPPED))
    found = found_beside(left, left)
    assert found.told[0].startswith("r-2-VM (Stopped) left over beside routers that run")
    assert not found.alarms


def test_pairs_other_networks_load_balancers_and_pods_are_as_they_should_be() -> None:
    fine = sweep(
        vm("r-1-VM", redundant=True), vm("r-2-VM", redundant=True),
        vm("r-3-VM", network_id="n-2"), vm("r-4-VM", network_id="n-3", state=CloudVMState.STOPPED),
        vm("b-5-VM", network_id="n-2", type=SystemVMType.ILBVM),
        vm("r-6-VM", network_id="n-4", pod="p-1", type=SystemVMType.DHCPSRVR),
        vm("r-7-VM", network_id="n-4", pod="p-2", type=SystemVMType.DHCPSRVR),
        vm("r-8-VM", network_id="n-5", vpc_id="vpc-1"), vm("r-9-VM", network_id="n-5", vpc_id="vpc-2"),
    )  # fmt: skip
    assert found_beside(fine, fine).told == ()


def test_the_endpoint_tells_of_them_and_counts_the_rest() -> None:
    told = tuple(f"group {number}" for number in range(12))
    said = notes(CloudFacts(sweep(), beside=told))
    assert said == "; ".join([*told[:10], "and 2 such groups more"])


def test_the_endpoint_tells_of_a_clock_that_differs_first() -> None:
    assert (
        notes(CloudFacts(sweep(), clocks="The operator's clock is", beside=("r-1",))) == "The operator's clock is; r-1"
    )


def test_management_servers_of_several_releases_are_told_and_one_that_is_down_is_not_asked() -> None:
    new = CloudServer(id="1", name="ms-1", state="Up", version="4.21.0.0")
    old = CloudServer(id="2", name="ms-2", state="Up", version="4.20.2.0")
    told = "the management servers run several releases: ms-1 4.21.0.0, ms-2 4.20.2.0"
    assert several_releases([old, new]) == told
    assert several_releases([new, replace(old, state="Down")]) is None
    assert several_releases([new, replace(old, version=None)]) is None
    assert several_releases([]) is None
    assert told in notes(CloudFacts(sweep(servers=(new, old))))


def test_a_permission_that_can_be_done_without_is_told_and_no_fault() -> None:
    (condition,) = authorized(CloudFacts(sweep(), dispensable="lacks listFirewallRules", not_allowed=("listHosts",)))
    assert (str(condition.status), condition.message) == ("True", "not read: listHosts; lacks listFirewallRules")
