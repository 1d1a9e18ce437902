"""Policies that wait for each other: at the same release, not merely Ready, and never for ever without saying so."""

from __future__ import annotations

from typing import Any

import pytest

from sysvm.api.policy import PatchPolicy, PatchPolicyStatus, PolicyTarget
from sysvm.api.reasons import Reason
from sysvm.domain.sequence import waits_for

from .builders import NEW, OLD, ago, condition, policy, release


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
