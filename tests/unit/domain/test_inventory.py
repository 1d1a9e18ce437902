"""From sweeps to objects: nobody is given up too early, and a person's wish finds the VM that took the place."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysvm.api.endpoint import SystemVMType
from sysvm.api.reasons import EventReason
from sysvm.domain.cloud import CloudHost, CloudNetwork, CloudVM, CloudVMState, CloudVPC, CloudZone, Snapshot
from sysvm.domain.inventory import (
    Heir,
    Known,
    Newcomer,
    address_of,
    delta_of,
    group_of,
    identity_of,
    judge,
    news,
    objects_of,
)

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def vm(number: int, **more: Any) -> CloudVM:
    values: dict[str, Any] = {
        "id": f"id-{number}",
        "name": f"r-{number}-VM",
        "type": SystemVMType.ROUTER,
        "state": CloudVMState.RUNNING,
        "zone_id": "z1",
        "zone": "ams-1",
        "host_id": "h1",
        "host": "kvm-1",
        "hypervisor": "KVM",
        "network_id": "n1",
        "network": "net-1",
        "control_address": f"169.254.0.{number}",
        "private_address": f"10.0.0.{number}",
        "created": NOW + timedelta(minutes=number),
    }
    return CloudVM(**{**values, **more})


def snapshot(*vms: CloudVM, **more: Any) -> Snapshot:
    values: dict[str, Any] = {
        "taken_at": NOW,
        "server_version": "4.21.0.0",
        "zones": {"z1": CloudZone(id="z1", name="ams-1")},
        "hosts": {"h1": CloudHost(id="h1", name="kvm-1", address="192.0.2.1", zone_id="z1")},
        "vms": {one.id: one for one in vms},
        "networks": {"n1": CloudNetwork(id="n1", name="net-1", zone_id="z1")},
        "vpcs": {"v1": CloudVPC(id="v1", name="vpc-1", zone_id="z1")},
    }
    return Snapshot(**{**values, **more})


def known(one: CloudVM, **more: Any) -> Known:
    return Known(name=f"prod-{one.name.lower()}", identity=identity_of(one), **more)


# Who it is


@pytest.mark.parametrize(
    ("type_", "hypervisor", "address"),
    [
        (SystemVMType.ROUTER, "KVM", "169.254.0.1"),
        (SystemVMType.SECSTORAGE, "KVM", "169.254.0.1"),
        (SystemVMType.CONSOLEPROXY, "XenServer", "169.254.0.1"),
        (SystemVMType.VPCROUTER, "VMware", "169.254.0.1"),
        (SystemVMType.SECSTORAGE, "VMware", "10.0.0.1"),
        (SystemVMType.CONSOLEPROXY, "VMware", "10.0.0.1"),
    ],
)
def test_the_address_is_where_sshd_listens(type_: SystemVMType, hypervisor: str, address: str) -> None:
    assert address_of(vm(1, type=type_, hypervisor=hypervisor)) == address


def test_routers_belong_to_their_vpc_or_network_and_others_to_their_zone() -> None:
    assert group_of(vm(1)) == "n1"
    assert group_of(vm(1, type=SystemVMType.VPCROUTER, vpc_id="v1", network_id="tier")) == "v1"
    assert group_of(vm(1, type=SystemVMType.VPCROUTER, vpc_id="v1", network_id=None)) == "v1"
    assert group_of(vm(1, type=SystemVMType.ILBVM, vpc_id="v1", network_id="tier")) == "tier"
    assert group_of(vm(1, type=SystemVMType.SECSTORAGE, network_id=None)) is None


def test_of_two_names_that_differ_in_case_only_the_older_has_the_object() -> None:
    found, doubles = objects_of("prod", snapshot(vm(2, name="R-1-vm"), vm(1)))
    assert (found["prod-r-1-vm"].id, doubles) == ("id-1", ("R-1-vm",))


# Who comes and goes


def test_a_new_vm_gets_an_object_and_one_that_is_being_expunged_does_not() -> None:
    verdict = judge("prod", snapshot(vm(1), vm(2, state=CloudVMState.EXPUNGING)), [])
    assert [one.name for one in verdict.newcomers] == ["prod-r-1-vm"]


def test_one_sweep_without_it_is_told_and_the_second_ends_it() -> None:
    gone = known(vm(1))
    first = judge("prod", snapshot(), [gone])
    assert (first.gone, first.missed) == ((), {gone.name: 1})
    assert "is forgotten if the next one does not find it either" in first.missing[gone.name]
    same = judge("prod", snapshot(), [replace(gone, missed=1)], again=True)
    assert (same.gone, same.missed) == ((), {gone.name: 1}), "the same sweep counts once"
    second = judge("prod", snapshot(), [replace(gone, missed=1)])
    assert [one.name for one in second.gone] == [gone.name]


def test_a_vm_that_a_job_of_ours_destroyed_is_given_up_at_once() -> None:
    assert judge("prod", snapshot(), [known(vm(1))], explained={"id-1"}).gone


def test_who_is_on_a_list_that_the_role_may_no_longer_read_is_kept_and_not_counted_as_missed() -> None:
    balancer, router = vm(1, type=SystemVMType.ILBVM), vm(2)
    blind = snapshot(unread=frozenset({SystemVMType.ILBVM}))
    for missed in (0, 1, 2):
        verdict = judge("prod", blind, [known(balancer, missed=missed), known(router, missed=missed)])
        assert "may no longer list" in verdict.missing["prod-r-1-vm"]
        assert verdict.missed["prod-r-1-vm"] == missed
        assert [each.name for each in verdict.gone] == (["prod-r-2-vm"] if missed else [])
    assert not judge("prod", blind, [Known(name="prod-b-3-vm", identity=None, missed=1)]).gone
    seeing = judge("prod", snapshot(), [known(balancer, missed=0)])
    assert "if the next one does not find it" in seeing.missing["prod-r-1-vm"]


def test_one_in_work_is_kept_until_its_operation_has_ended() -> None:
    verdict = judge("prod", snapshot(), [known(vm(1), in_work=True, missed=9)], explained={"id-1"})
    assert verdict.gone == ()


def test_another_vm_under_an_old_name_waits_until_the_old_object_has_gone() -> None:
    other = vm(1, id="id-9")
    assert judge("prod", snapshot(other), [known(vm(1))]).newcomers == ()
    assert judge("prod", snapshot(other), []).newcomers


# Whose place it took


def test_a_newcomer_of_the_same_network_takes_the_place() -> None:
    verdict = judge("prod", snapshot(vm(2)), [known(vm(1))])
    (newcomer,) = verdict.newcomers
    assert newcomer.predecessor is not None
    assert newcomer.predecessor.name == "prod-r-1-vm"


@pytest.mark.parametrize(
    "other",
    [vm(2, network_id="n2"), vm(2, type=SystemVMType.DHCPSRVR), vm(2, created=NOW)],
    ids=["another network", "another type", "made before"],
)
def test_who_serves_another_place_or_was_there_before_takes_none(other: CloudVM) -> None:
    verdict = judge("prod", snapshot(other), [known(vm(1))])
    assert all(newcomer.predecessor is None for newcomer in verdict.newcomers)


def test_one_that_has_its_object_already_is_the_heir() -> None:
    verdict = judge("prod", snapshot(vm(2)), [known(vm(1)), known(vm(2))])
    assert [(heir.name, heir.predecessor.name) for heir in verdict.heirs] == [("prod-r-2-vm", "prod-r-1-vm")]


def test_a_pair_that_is_replaced_is_followed_one_by_one_and_wishes_go_first() -> None:
    old = [known(vm(1)), known(vm(2), has_wishes=True)]
    verdict = judge("prod", snapshot(vm(3)), old)
    (newcomer,) = verdict.newcomers
    assert newcomer.predecessor is not None
    assert newcomer.predecessor.name == "prod-r-2-vm"


def test_a_wish_waits_for_a_successor_as_long_as_there_is_a_place() -> None:
    held = known(vm(1), has_wishes=True, missed=5)
    assert "is kept here for the VM that takes its place" in judge("prod", snapshot(), [held]).missing[held.name]
    assert judge("prod", snapshot(networks={}), [held]).gone == (held,)
    followed = judge("prod", snapshot(vm(2)), [held])
    assert followed.gone == (held,), "its successor has the wish before this object goes"


def test_a_place_once_taken_stays_taken_and_a_late_wish_is_passed_on() -> None:
    heir = known(vm(2), predecessor="r-1-VM")
    verdict = judge("prod", snapshot(vm(2), vm(3)), [known(vm(1), missed=1), heir])
    assert [one.name for one in verdict.gone] == ["prod-r-1-vm"]
    assert all(one.predecessor is None for one in verdict.newcomers), "nobody takes the same place twice"
    late = judge("prod", snapshot(vm(2)), [known(vm(1), missed=0, has_wishes=True), heir])
    assert [(one.name, one.predecessor.name) for one in late.heirs] == [("prod-r-2-vm", "prod-r-1-vm")]


def test_one_that_could_not_be_removed_yet_is_removed_when_the_same_sweep_is_judged_again() -> None:
    gone = known(vm(1), missed=1)
    first = judge("prod", snapshot(), [gone])
    again = judge("prod", snapshot(), [replace(gone, missed=first.missed[gone.name])], again=True)
    assert [one.name for one in again.gone] == [gone.name]


def test_a_wish_about_an_ssvm_waits_in_its_zone() -> None:
    ssvm = vm(1, type=SystemVMType.SECSTORAGE, network_id=None)
    held = known(ssvm, has_wishes=True, missed=5)
    assert judge("prod", snapshot(), [held]).missing
    assert judge("prod", snapshot(zones={}), [held]).gone == (held,)


@given(
    there=st.sets(st.integers(1, 8)),
    objects=st.sets(st.integers(1, 8)),
    wishes=st.sets(st.integers(1, 8)),
    missed=st.integers(0, 3),
)
def test_nobody_who_is_there_is_given_up_and_no_wish_is_lost(
    there: set[int], objects: set[int], wishes: set[int], missed: int
) -> None:
    before = [known(vm(number), has_wishes=number in wishes, missed=missed) for number in sorted(objects)]
    verdict = judge("prod", snapshot(*(vm(number) for number in there)), before)
    gone = {one.name for one in verdict.gone}
    assert gone.isdisjoint(f"prod-r-{number}-vm" for number in there)
    assert not gone or missed >= 1
    followers: list[Newcomer | Heir] = [*verdict.newcomers, *verdict.heirs]
    heirs = {one.predecessor.name for one in followers if one.predecessor is not None}
    lost = {one.name for one in verdict.gone if one.has_wishes} - heirs
    assert not lost, "its network is there"
    created = {one.name for one in verdict.newcomers}
    assert created == {f"prod-r-{number}-vm" for number in there - objects}


# What is told


def test_what_happened_between_two_sweeps_is_told_once_and_not_when_we_did_it() -> None:
    before = identity_of(vm(1, template_id="t1"))
    after = identity_of(vm(1, host="kvm-2", template_id="t2"))
    assert [one.reason for one in news(before, after, ours=False)] == [
        EventReason.MIGRATED,
        EventReason.NEXT_TEMPLATE_CHANGED,
    ]
    assert news(after, after, ours=False) == ()
    assert news(before, after, ours=True) == ()
    (stopped,) = news(before, identity_of(vm(1, state=CloudVMState.STOPPED, host=None, template_id="t1")), ours=False)
    assert (stopped.reason, stopped.warning) == (EventReason.STATE_CHANGED, True)


def test_only_what_differs_is_a_delta() -> None:
    before = snapshot(vm(1), vm(2), vm(3))
    after = snapshot(vm(1), vm(2, host="kvm-2"), vm(4))
    assert delta_of(before, after).vms == {"id-2", "id-3", "id-4"}
    assert not delta_of(before, after).around
    assert delta_of(before, replace(before, server_version="4.22.0.0")).around
    assert delta_of(None, before).vms == before.vms.keys()
