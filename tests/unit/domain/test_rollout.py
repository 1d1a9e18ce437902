"""Buckets, outcomes, and no way back by accident."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sysvm.api.operation import OperationResult
from sysvm.api.policy import LastRollout
from sysvm.api.reasons import Reason
from sysvm.api.rollout import AppendedVM, Rollout, RolloutCause, RolloutPhase, RolloutResult, RolloutStatus
from sysvm.domain.facts import VMFacts
from sysvm.domain.members import classify
from sysvm.domain.rollout import Live, outcome
from sysvm.domain.starts import finished_to_prune, may_start, spec_digest

from . import builders as b
from .kstatus import assert_contract, kstatus

VMS = tuple(b.facts(f"r-{number}-VM") for number in range(1, 5))


LIVE = ("superseded", "suspended", "opening", "approvals", "edited", "newcomers")


def status_of(*now: VMFacts, gone: int = 0, **kwargs: Any) -> tuple[Rollout, RolloutStatus]:
    live = Live(**{key: kwargs.pop(key) for key in LIVE if key in kwargs})
    made = b.plan_for(*VMS[: len(now) + gone])
    rollout = b.rollout(made, **kwargs)
    view = classify(rollout, made, {facts.name: facts for facts in now})
    return rollout, outcome(rollout, made, view, live, now=b.NOW)


def vm(number: int, **kwargs: Any) -> VMFacts:
    return replace(VMS[number - 1], **kwargs)


DONE, FAILED = b.done(), b.done(OperationResult.ROLLED_BACK)
WORK = {"order": b.order()}


def test_every_member_is_in_exactly_one_bucket() -> None:
    made = b.plan_for(*VMS)
    vms = [vm(1, **DONE), vm(2, **FAILED), vm(3, **WORK), vm(4, uid="another")]
    view = classify(b.rollout(made), made, {facts.name: facts for facts in vms})
    assert [facts.vm for facts in view.done] == ["r-1-VM"]
    assert [facts.vm for facts in view.failed] == ["r-2-VM"]
    assert [facts.vm for facts in view.in_work] == ["r-3-VM"]
    assert view.missing == ("prod-r-4-vm",)
    assert view.size == 4


@pytest.mark.parametrize(
    ("kwargs", "bucket"),
    [
        ({}, "waiting"),
        ({"content_fresh": False}, "waiting"),
        ({"observed": b.up_to_date()}, "done"),
        ({"hold": b.HOLD}, "skipped"),
        ({"reach": b.UNREACHABLE}, "skipped"),
        ({"deleting": True}, "skipped"),
        ({"reach": b.UNREACHABLE, **WORK}, "in_work"),
        ({"hold": b.HOLD, **DONE}, "done"),
        (b.done(OperationResult.FAILED, rollout="routers-0"), "waiting"),
        (b.done(OperationResult.FAILED), "failed"),
        (b.done(OperationResult.INCONSISTENT), "failed"),
    ],
)
def test_what_was_seen_and_done_decides_the_bucket(kwargs: dict[str, Any], bucket: str) -> None:
    made = b.plan_for(VMS[0])
    view = classify(b.rollout(made), made, {VMS[0].name: vm(1, **kwargs)})
    assert [name for name in ("waiting", "in_work", "done", "failed", "skipped") if getattr(view, name)] == [bucket]


@pytest.mark.parametrize(
    ("vms", "kwargs", "phase", "result", "reason", "kstatus_says"),
    [
        ([vm(1)], {}, "Waiting", None, Reason.ROLLING_OUT, "InProgress"),
        ([vm(1, **WORK), vm(2)], {}, "Running", None, Reason.ROLLING_OUT, "InProgress"),
        ([vm(1, **DONE), vm(2)], {}, "Running", None, Reason.ROLLING_OUT, "InProgress"),
        ([vm(1, **DONE), vm(2, **DONE)], {}, "Done", "Succeeded", Reason.SUCCEEDED, "Current"),
        ([vm(1, **DONE), vm(2, hold=b.HOLD)], {}, "Done", "Succeeded", Reason.SUCCEEDED, "Current"),
        ([vm(1, **FAILED), vm(2, **WORK), vm(3)], {}, "Running", None, Reason.VM_FAILED, "InProgress"),
        ([vm(1, **FAILED), vm(2, **DONE), vm(3)], {}, "Done", "Failed", Reason.VM_FAILED, "Failed"),
        ([vm(1, **FAILED)], {"state": "Aborted"}, "Done", "Failed", Reason.VM_FAILED, "Failed"),
        ([vm(1, **DONE), vm(2)], {"state": "Aborted"}, "Done", "Aborted", Reason.ABORTED, "Failed"),
        ([vm(1, **WORK), vm(2)], {"state": "Aborted"}, "Running", None, Reason.ABORTED, "InProgress"),
        ([vm(1, **DONE)], {"state": "Aborted"}, "Done", "Succeeded", Reason.SUCCEEDED, "Current"),
        ([vm(1, **DONE), vm(2)], {"superseded": True}, "Done", "Superseded", Reason.SUPERSEDED, "Failed"),
        ([vm(1, **WORK), vm(2)], {"superseded": True}, "Running", None, Reason.SUPERSEDED, "InProgress"),
        ([vm(1)], {"state": "Paused"}, "Waiting", None, Reason.PAUSED, "InProgress"),
        ([vm(1)], {"suspended": "policy routers is suspended"}, "Waiting", None, Reason.SUSPENDED, "InProgress"),
        ([vm(1)], {"metadata": {"deletionTimestamp": b.NOW}}, "Done", "Aborted", Reason.ABORTED, "Failed"),
    ],
)
def test_nothing_ends_while_a_vm_is_in_work(
    vms: list[VMFacts], kwargs: dict[str, Any], phase: str, result: str | None, reason: Reason, kstatus_says: str
) -> None:
    rollout, status = status_of(*vms, **kwargs)
    assert (status.phase, status.result) == (phase, result)
    assert status.conditions[0].reason == reason
    assert (status.finished_at is not None) is (result is not None)
    assert_contract(rollout.metadata.generation, status)
    assert kstatus(rollout.metadata.generation, status) == kstatus_says


def test_a_rollout_whose_vms_are_all_gone_did_not_succeed() -> None:
    _, status = status_of(gone=2)
    assert status.result is RolloutResult.SUPERSEDED


def test_the_numbers_add_up() -> None:
    _, status = status_of(vm(1, **DONE), vm(2, **WORK), vm(3, hold=b.HOLD), gone=1, strategy={"maxUnavailable": "50%"})
    (wave,) = status.waves
    assert (wave.size, wave.done, wave.in_work, wave.failed, wave.skipped) == (4, 1, 1, 0, 2)
    assert status.budget is not None
    assert (status.budget.slots, status.budget.slots_used) == (2, 1)
    assert status.summary == "1/4"
    assert status.started_at == b.ago(minutes=12)


def test_a_failure_names_vm_step_and_output() -> None:
    _, status = status_of(vm(1, **FAILED))
    message = status.conditions[0].message
    assert "r-1-VM was rolled back after step Services failed" in message
    assert "dnsmasq: bad option at line 3" in message


def test_a_result_once_given_stays() -> None:
    rollout, ended = status_of(vm(1, **FAILED))
    edited = rollout.metadata.model_copy(update={"generation": 2})
    later = rollout.model_copy(update={"status": ended, "metadata": edited})
    made = b.plan_for(VMS[0])
    again = outcome(later, made, classify(later, made, {VMS[0].name: vm(1, **DONE)}), now=b.NOW + timedelta(hours=1))
    assert (again.result, again.finished_at) == (RolloutResult.FAILED, b.NOW)
    assert again.phase is RolloutPhase.DONE
    assert_contract(2, again)


def last(result: str, revision: str = b.NEW, digest: str = "d1") -> LastRollout:
    return LastRollout(name="routers-1", number=1, revision=revision, spec_digest=digest, result=result)


@pytest.mark.parametrize(
    ("before", "digest", "allowed", "cause"),
    [
        (None, "d1", True, RolloutCause.NEW_REVISION),
        (last("", b.OTHER), "d1", False, RolloutCause.NEW_REVISION),
        (last(""), "d2", False, RolloutCause.NEW_REVISION),
        (last("Failed", b.OTHER), "d1", True, RolloutCause.NEW_REVISION),
        (last("Failed"), "d1", False, RolloutCause.NEW_REVISION),
        (last("Aborted"), "d1", False, RolloutCause.NEW_REVISION),
        (last(Reason.ROLLOUT_DELETED), "d1", False, RolloutCause.NEW_REVISION),
        (last("Failed"), "d2", True, RolloutCause.RETRY),
        (last("Succeeded"), "d1", True, RolloutCause.NEW_REVISION),
        (last("Superseded"), "d1", True, RolloutCause.NEW_REVISION),
        (last(Reason.NOT_NEEDED), "d1", True, RolloutCause.NEW_REVISION),
    ],
)
def test_a_failed_revision_is_not_tried_again_by_itself(
    before: LastRollout | None, digest: str, cause: RolloutCause, *, allowed: bool
) -> None:
    start = may_start(before, b.NEW, digest)
    assert (start.allowed, start.cause) == (allowed, cause)
    assert start.allowed or start.message
    assert start.running is (before is not None and not before.result)


def test_what_changes_nothing_on_a_vm_is_no_reason_to_try_again() -> None:
    digest = spec_digest(b.policy_spec())
    assert spec_digest(b.policy_spec(suspend=True, historyLimit=3, readiness={"maxUnreachable": 2})) == digest
    assert spec_digest(b.policy_spec(retryAt="2026-11-22T10:00:00Z")) != digest
    assert spec_digest(b.policy_spec(strategy={"maxUnavailable": 2})) != digest


def test_only_the_oldest_finished_rollouts_are_pruned() -> None:
    made = b.plan_for(VMS[0])
    rollouts = []
    for number in range(1, 6):
        rollout = b.rollout(made, f"routers-{number}")
        result = None if number == 1 else RolloutResult.SUCCEEDED
        rollouts.append(
            rollout.model_copy(
                update={
                    "spec": rollout.spec.model_copy(update={"number": number}),
                    "status": RolloutStatus(result=result),
                }
            )
        )
    pruned = finished_to_prune(rollouts[::-1], 2)
    assert [rollout.metadata.name for rollout in pruned] == ["routers-2", "routers-3"]
    assert finished_to_prune(rollouts, 9) == ()


def test_a_status_of_ten_thousand_vms_stays_small() -> None:
    """With everything in it that may be long: sixteen waves with long names, failures with much output, newcomers."""
    failed = b.done(OperationResult.ROLLED_BACK, output="haproxy: " + "x" * 1000)
    vms = [b.facts(f"r-{number}-VM", **(failed if number % 3 else {})) for number in range(10_000)]
    waves: list[dict[str, Any]] = [{"name": f"{number:02}".ljust(40, "w"), "limit": 600} for number in range(15)]
    strategy = {"waves": [*waves, {"name": "rest".ljust(40, "w")}]}
    made = b.plan_for(*vms, strategy=strategy)
    rollout = b.rollout(made, strategy=strategy)
    newcomers = tuple(AppendedVM(name=f"{number}".ljust(253, "n"), uid="u" * 36) for number in range(1000))
    live = Live(edited=("methods", "strategy", "checks"), newcomers=newcomers, suspended="x" * 400)
    untouched = {facts.name: b.facts(facts.vm) for facts in vms}
    begun = outcome(rollout, made, classify(rollout, made, untouched), live, now=b.NOW)
    assert len(begun.waves[-1].appended) == 64
    after = rollout.model_copy(update={"status": begun})
    ended = outcome(after, made, classify(after, made, {facts.name: facts for facts in vms}), live, now=b.NOW)
    assert ended.budget is not None
    assert ended.budget.failures_used == 6666
    for status in (begun, ended):
        assert len(status.waves) == 16
        assert len(json.dumps(status.to_dict())) < 32 * 1024
