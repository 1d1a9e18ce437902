"""Policies that wait for each other: at the same release, not merely Ready, and never for ever without saying so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sysvm.api.endpoint import SystemVMType
from sysvm.api.policy import PatchPolicy, PatchPolicyStatus, PolicyTarget
from sysvm.api.reasons import Reason
from sysvm.domain.no_vms import Listing
from sysvm.domain.sequence import waits_for

from .builders import ENDPOINT, NEW, OLD, ago, condition, facts, policy, release


def stage(name: str, *after: str, ready: str = "True", at: str | None = NEW, seen: int = 3, **spec: Any) -> PatchPolicy:
    """A policy of generation 3 that speaks of a revision."""
    made = policy(name, after=[{"name": other} for other in after], **spec)
    said = condition("Ready", ready, "Converged" if ready == "True" else "RollingOut").model_copy(
        update={"observed_generation": seen}
    )
    target = PolicyTarget(revision=at, template_version="4.20.2") if at else None
    return made.model_copy(update={"status": PatchPolicyStatus(conditions=(said,), target=target)})


def blocked(policy_: PatchPolicy, *others: PatchPolicy) -> tuple[str, str] | None:
    found = waits_for(policy_, {one.metadata.name: one for one in (policy_, *others)}, release())
    return (found.reason, found.message) if found else None


def test_a_policy_without_an_order_begins_at_once() -> None:
    assert blocked(stage("routers")) is None


def test_it_begins_when_the_other_is_ready_at_the_same_release() -> None:
    assert blocked(stage("routers", "system-vms"), stage("system-vms")) is None


def test_it_waits_while_the_other_rolls_out() -> None:
    found = blocked(stage("routers", "system-vms"), stage("system-vms", ready="False"))
    assert found == (
        Reason.WAITS_FOR_POLICY,
        "it begins when policy system-vms is Ready at 8c1f03ab; it is RollingOut",
    )


def test_a_policy_that_is_ready_at_an_older_release_does_not_count() -> None:
    """Git's objects arrive one after the other: the edit of the other policy is still on its way."""
    found = blocked(stage("routers", "system-vms"), stage("system-vms", at=OLD))
    assert found is not None
    assert found[0] == Reason.WAITS_FOR_POLICY
    assert "it speaks of systemvm-4.20.2 (1a1a1a1a) now" in found[1]


def test_an_answer_to_an_older_generation_does_not_count() -> None:
    assert blocked(stage("routers", "system-vms"), stage("system-vms", seen=2)) is not None


def test_all_of_them_must_be_ready() -> None:
    found = blocked(stage("routers", "a", "b"), stage("a"), stage("b", ready="False"))
    assert found is not None
    assert "policy b" in found[1]


@pytest.mark.parametrize("gone", [False, True], ids=["never there", "being deleted"])
def test_a_name_that_is_not_there_is_told(gone: bool) -> None:
    other = stage("system-vms")
    other = other.model_copy(
        update={"metadata": other.metadata.model_copy(update={"deletion_timestamp": ago(minutes=1)})}
    )
    found = blocked(stage("routers", "system-vms"), *([other] if gone else []))
    assert found == (
        Reason.POLICY_NOT_FOUND,
        "it is to begin after policy system-vms, which does not exist",
    )


def test_a_circle_is_told_with_its_way() -> None:
    found = blocked(stage("a", "b"), stage("b", "c"), stage("c", "x", "a"), stage("x"))
    assert found == (
        Reason.POLICIES_IN_A_CIRCLE,
        "a is to begin after b, which is to begin after c, which is to begin after a: none of them ever begins",
    )


def test_a_circle_of_others_is_theirs_to_tell() -> None:
    found = blocked(stage("routers", "a"), stage("a", "b", ready="False"), stage("b", "a"))
    assert found is not None
    assert found[0] == Reason.WAITS_FOR_POLICY


# A policy of whose kind the cloud has no VM

PAIRS = {"types": ["router"], "redundancy": "Redundant"}
SYSTEM, SINGLE = facts("s-1-VM", type=SystemVMType.SECSTORAGE), facts("r-1-VM")
CLOUD = Listing((SYSTEM, SINGLE))


def empty(name: str = "pairs", *after: str, flag: str = "Stalled", seen: int = 3, **spec: Any) -> PatchPolicy:
    """It says NoVMs."""
    made = stage(name, *after, seen=seen, **{"selector": PAIRS, **spec})
    said = tuple(
        condition(type_, status, Reason.NO_VMS).model_copy(update={"observed_generation": seen})
        for type_, status in (("Ready", "False"), (flag, "True"))
    )
    return made.model_copy(update={"status": made.status.model_copy(update={"conditions": said})})


def held_up(listing: Listing | None, *others: PatchPolicy) -> str | None:
    """What keeps `routers`, which comes after `pairs`."""
    routers = stage("routers", "pairs", selector={"types": ["router"], "redundancy": "Single"})
    known = {one.metadata.name: one for one in (routers, *others)}
    found = waits_for(routers, known, release(), {ENDPOINT: listing} if listing is not None else {})
    assert found is None or found.reason == Reason.WAITS_FOR_POLICY
    return found.message if found is not None else None


BEGIN = "it begins when policy pairs is Ready at 8c1f03ab; it "


def test_a_policy_of_whose_kind_the_cloud_has_none_is_passed_over() -> None:
    assert held_up(CLOUD, empty()) is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (empty(seen=2), BEGIN.removesuffix("; it ")),
        (empty(flag="Reconciling"), f"{BEGIN}is NoVMs"),
        (empty(selector={**PAIRS, "zones": ["ams1"]}), f"{BEGIN}is NoVMs: none of its VMs has zone ams1"),
    ],
    ids=["of an older generation", "not yet", "a misspelt zone"],
)
def test_it_is_not_passed_over(other: PatchPolicy, message: str) -> None:
    assert held_up(CLOUD, other) == message


def test_it_is_not_passed_over_at_an_older_release() -> None:
    other = empty()
    target = PolicyTarget(revision=OLD, template_version="4.20.1")
    other = other.model_copy(update={"status": other.status.model_copy(update={"target": target})})
    assert held_up(CLOUD, other) == f"{BEGIN}speaks of systemvm-4.20.2 (1a1a1a1a) now"


@pytest.mark.parametrize(
    ("listing", "why"),
    [
        (None, ""),
        (Listing((SYSTEM, SINGLE), complete=False), ": it was not looked at"),
        (Listing((SYSTEM, SINGLE), doubt="it is not reachable: refused"), ": it is not reachable: refused"),
        (Listing((SYSTEM, SINGLE), unread=frozenset({SystemVMType.ROUTER})), ": the role may not list router"),
        (Listing(()), ": it has none at all"),
    ],
    ids=["no endpoint", "not all are known", "the sweep failed", "not allowed", "an empty cloud"],
)
def test_it_is_not_passed_over_while_the_cloud_is_not_known(listing: Listing | None, why: str) -> None:
    assert held_up(listing, empty()) == f"{BEGIN}is NoVMs{why}"


def test_what_it_says_is_older_than_a_pair_that_was_found_meanwhile() -> None:
    assert SINGLE.identity is not None
    paired = facts("r-2-VM")
    assert paired.identity is not None
    paired = replace(paired, identity=paired.identity.model_copy(update={"redundant": True}))
    assert held_up(Listing((SYSTEM, SINGLE, paired)), empty()) == f"{BEGIN}is NoVMs"


def test_whoever_comes_after_it_comes_after_those_that_it_names() -> None:
    """Else the routers of a cloud without pairs would not wait for the system VMs."""
    told = held_up(CLOUD, empty("pairs", "system-vms"), stage("system-vms", ready="False"))
    assert told == f"{BEGIN}is NoVMs, and it begins when policy system-vms is Ready at 8c1f03ab; it is RollingOut"
    assert held_up(CLOUD, empty("pairs", "system-vms"), stage("system-vms")) is None
    missing = held_up(CLOUD, empty("pairs", "system-vms"))
    assert missing == f"{BEGIN}is NoVMs, and it is to begin after policy system-vms, which does not exist"


def test_several_in_a_row_are_passed_over_together() -> None:
    others = empty("pairs", "balancers"), empty("balancers", "system-vms", selector={"types": ["ilbvm"]})
    assert held_up(CLOUD, *others, stage("system-vms")) is None
    assert held_up(CLOUD, *others, stage("system-vms", ready="False")) is not None


def test_policies_without_vms_in_a_circle_are_not_passed_over() -> None:
    others = empty("pairs", "balancers"), empty("balancers", "pairs", selector={"types": ["ilbvm"]})
    assert (
        held_up(CLOUD, *others)
        == f"{BEGIN}is NoVMs, and {BEGIN.replace('pairs', 'balancers')}is NoVMs, and waits in a circle"
    )
