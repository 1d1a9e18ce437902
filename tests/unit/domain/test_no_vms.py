"""A policy without VMs: only where the whole cloud is known, and every word of the selector, has the cloud none."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from sysvm.api.endpoint import CloudStackEndpoint, SystemVMType
from sysvm.api.policy import Selector
from sysvm.domain.cloud import Snapshot
from sysvm.domain.facts import Reach, VMFacts
from sysvm.domain.no_vms import Listing, listing_of, unexplained

from .builders import NOW, UNREACHABLE, ago, condition, facts
from .builders import endpoint as static

ROUTER = facts("r-1-VM", hypervisor="KVM", account="acme", network="lan")
STORAGE = facts("s-1-VM", type=SystemVMType.SECSTORAGE, zone="fra-1")
NEVER_LOOKED_AT = replace(ROUTER, observed=None, reach=Reach(None, UNREACHABLE.reason))


def selector(**words: Any) -> Selector:
    return Selector.model_validate(words)


def why(chosen: Selector, *vms: VMFacts, **listing: Any) -> tuple[str, bool] | None:
    found = unexplained(chosen, Listing(vms or (ROUTER, STORAGE), **listing))
    return (found.message, found.passes) if found is not None else None


@pytest.mark.parametrize(
    "words",
    [
        {"types": ["ilbvm", "elbvm"]},
        {"types": ["router", "vpcrouter"], "redundancy": "Redundant"},
        {"types": ["router"], "zones": ["fra-1"]},
        {"types": ["secstorage"], "hypervisors": ["KVM"]},
        {"types": ["secstorage"], "accounts": ["acme"], "networks": ["lan"]},
        {"types": ["secstorage"], "names": ["r-?-VM"]},
    ],
)
def test_a_cloud_may_have_none_of_a_kind(words: dict[str, Any]) -> None:
    assert why(selector(**words)) is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"zones": ["ams-1", "ams1"]}, "zone ams1"),
        ({"hypervisors": ["kvm"]}, "hypervisor kvm"),
        ({"accounts": ["acme", "amce"]}, "account amce"),
        ({"networks": ["lna"]}, "network lna"),
        ({"names": ["r-*", "nobody-*"]}, "name nobody-*"),
        ({"zones": ["ams1"], "names": ["x"]}, "zone ams1, name x"),
        ({"names": [f"x-{number}" for number in range(40)]}, ", ".join(f"name x-{number}" for number in range(10))),
    ],
)
def test_a_word_that_no_vm_has_is_told(words: dict[str, Any], named: str) -> None:
    assert why(selector(types=["ilbvm"], **words)) == (f"none of its VMs has {named}", False)


def test_a_cloud_without_any_vm_explains_nothing() -> None:
    assert unexplained(selector(types=["ilbvm"]), Listing(())) is not None


def test_a_list_that_the_role_may_not_read_is_no_empty_list() -> None:
    unread = frozenset({SystemVMType.ILBVM})
    assert why(selector(types=["ilbvm", "elbvm"]), unread=unread) == ("the role may not list ilbvm", False)
    assert why(selector(types=["elbvm"]), unread=unread) is None
    assert why(selector(redundancy="Redundant"), unread=unread) == ("the role may not list ilbvm", False)


def test_a_router_that_was_not_looked_at_may_be_of_a_pair() -> None:
    pairs = selector(types=["router"], redundancy="Redundant")
    told = "r-1-VM may be of a pair and was not looked at"
    assert why(pairs, NEVER_LOOKED_AT) == (told, True)
    assert why(selector(types=["vpcrouter"], redundancy="Redundant"), NEVER_LOOKED_AT) is None
    silent = replace(NEVER_LOOKED_AT, reach=UNREACHABLE)
    assert why(pairs, silent) is None, "else one dead router would keep all others waiting"
    assert ROUTER.identity is not None
    stopped = replace(NEVER_LOOKED_AT, identity=ROUTER.identity.model_copy(update={"state": "Stopped"}))
    assert why(pairs, stopped) is None


# Whether all of them are known


def cloud_endpoint(**kwargs: Any) -> CloudStackEndpoint:
    made = static(inventory="CloudStack", systemVMs=[], scan={"inventory": "5m"}, api=API, **kwargs)
    assert made.status.counts is not None
    return made


API = {"url": "https://cloud.example/client/api", "credentialsSecretRef": {"name": "keys"}}


def swept(at: datetime) -> Snapshot:
    return Snapshot(taken_at=at, server_version="4.21.0.0", zones={}, hosts={}, vms={}, networks={}, vpcs={})


def listed(
    endpoint: CloudStackEndpoint, snapshot: Snapshot | None, *, complete: bool = True
) -> tuple[str, bool] | None:
    found = unexplained(selector(types=["ilbvm"]), listing_of(endpoint, [ROUTER], snapshot, complete=complete, now=NOW))
    return (found.message, found.passes) if found is not None else None


def test_a_whole_and_fresh_sweep_counts() -> None:
    assert listed(cloud_endpoint(), swept(ago(minutes=9))) is None


def test_before_all_are_known_nothing_is_concluded() -> None:
    assert listed(cloud_endpoint(), swept(NOW), complete=False) == ("it was not looked at", True)
    young = cloud_endpoint()
    young = young.model_copy(update={"status": young.status.model_copy(update={"counts": None})})
    assert listed(young, swept(NOW)) == ("it was not looked at", True)


def test_a_failed_sweep_explains_nothing_although_the_former_stays() -> None:
    failed = cloud_endpoint(conditions=(condition("Reachable", "False", "APIUnreachable", "connection refused"),))
    assert listed(failed, swept(ago(minutes=1))) == ("it is not reachable: connection refused", True)


def test_vms_that_do_not_answer_are_listed_all_the_same() -> None:
    silent = cloud_endpoint(conditions=(condition("Reachable", "False", "VMsUnreachable", "none of 9 VMs answers"),))
    assert listed(silent, swept(NOW)) is None


@pytest.mark.parametrize(("age", "fresh"), [(10, True), (11, False)])
def test_an_old_sweep_explains_nothing(age: int, *, fresh: bool) -> None:
    told = None if fresh else ("its last sweep is too long ago", True)
    assert listed(cloud_endpoint(), swept(NOW - timedelta(minutes=age))) == told


def test_a_list_in_the_spec_is_never_old() -> None:
    assert listed(static(), None) is None
    broken = static(conditions=(condition("Reachable", "False", "CredentialsMissing", "no Secret"),))
    assert listed(broken, None) is None
