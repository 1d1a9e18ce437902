"""The table of what a PatchPolicy says, and what Flux, Helm and kubectl make of it."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sysvm.api.observed import ContentState
from sysvm.api.operation import OperationResult
from sysvm.api.policy import LastRollout, NextAction, PatchPolicy, PatchPolicyStatus, PolicyBlocker
from sysvm.api.reasons import Reason
from sysvm.api.rollout import RolloutResult, RolloutStatus, WavePhase, WaveStatus
from sysvm.domain.facts import Reach, VMFacts, release_of
from sysvm.domain.no_vms import Listing
from sysvm.domain.planner import decide_all
from sysvm.domain.policy_status import PolicySituation, policy_status
from sysvm.domain.selection import select
from sysvm.domain.starts import spec_digest

from . import builders as b
from .kstatus import assert_contract, kstatus

GOOD = b.facts("r-1-VM", observed=b.up_to_date())
OLD = b.facts("r-2-VM")
AT_WORK = b.facts("r-3-VM", order=b.order())
LOST = b.facts("r-4-VM", observed=b.up_to_date(), reach=b.UNREACHABLE)
DRIFTED = b.facts("r-5-VM", observed=b.observed(signature=b.NEW_SIGNATURE))
FAILED = b.facts("r-6-VM", **b.done(OperationResult.ROLLED_BACK))
BROKEN = b.facts("r-7-VM", observed=b.observed(signature=b.ZEROS), **b.done(OperationResult.INCONSISTENT))
TOO_OLD = b.facts("r-8-VM", observed=b.observed(version="4.15.0"))
ON_HOLD = b.facts("r-9-VM", hold=b.HOLD)
UNKNOWN = b.facts("r-10-VM", observed=b.observed(files=ContentState.UNKNOWN))
STALE = b.facts("r-11-VM", observed=b.up_to_date(), content_fresh=False)

UNREACHABLE = b.condition("Reachable", "False", "CredentialsMissing", "there is no Secret cs-ssh")
STALLED = (
    b.condition("Ready", "False", "DigestMismatch", "not what was declared"),
    b.condition("Stalled", "True", "DigestMismatch"),
)


def situation(*vms: VMFacts, **kwargs: Any) -> PolicySituation:
    policy: PatchPolicy = kwargs.pop("policy", None) or b.policy()
    template = kwargs.pop("template", b.template())
    selection = select(policy, kwargs.pop("policies", []), vms)
    release = release_of(template) if template else None
    decisions = decide_all(policy.spec, release, selection.vms, excluded=selection.excluded) if release else {}
    result = kwargs.pop("result", None)
    if result is not None:
        kwargs["last_rollout"] = LastRollout(
            name="routers-1", number=1, revision=b.NEW, spec_digest=spec_digest(policy.spec), result=result
        )
    values: dict[str, Any] = {"endpoint": b.endpoint(), **kwargs}
    return PolicySituation(policy=policy, template=template, selection=selection, decisions=decisions, **values)


OBSERVE = {"endpoint": b.endpoint(management="Observe")}


def says(reason: str, **status: Any) -> dict[str, Any]:
    """A rollout that has not ended, with what it says of itself."""
    ready = b.condition("Ready", "False", reason, "the rollout's own words")
    return {"rollout": b.rollout(b.plan_for(OLD), status=RolloutStatus(conditions=(ready,), **status)), "result": ""}


OLDER = {"policies": [b.policy("older", created=b.ago(days=9), selector={"names": ["r-2-VM"]})]}


@pytest.mark.parametrize(
    ("vms", "kwargs", "reason", "flag", "seen_as"),
    [
        # converged
        ([GOOD], {}, Reason.CONVERGED, "", "Current"),
        ([GOOD, ON_HOLD], {}, Reason.CONVERGED, "", "Current"),
        ([GOOD], {"result": "Failed"}, Reason.CONVERGED, "", "Current"),
        ([GOOD], OBSERVE, Reason.CONVERGED, "", "Current"),
        # rolling out
        ([GOOD, OLD], {}, Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        ([GOOD, AT_WORK], {"result": ""}, Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        ([AT_WORK, FAILED], {"result": ""}, Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        ([AT_WORK, BROKEN], {"result": ""}, Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        ([AT_WORK], {"template": None}, Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        ([FAILED], {"result": ""}, Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        ([GOOD], says("RollingOut"), Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        ([GOOD, FAILED, OLD], says("RollingOut"), Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        ([OLD, FAILED], says("RollingBack"), Reason.ROLLING_BACK, "Reconciling", "InProgress"),
        ([OLD], says("Retrying"), Reason.RETRYING, "Reconciling", "InProgress"),
        # waiting for a person, the calendar, a soak
        ([OLD], says("Paused"), Reason.PAUSED, "", "InProgress"),
        ([OLD], says("OutsideWindow"), Reason.OUTSIDE_WINDOW, "", "InProgress"),
        ([OLD], says("Frozen"), Reason.FROZEN, "", "InProgress"),
        ([OLD], says("WindowCutoff"), Reason.WINDOW_CUTOFF, "", "InProgress"),
        ([OLD], says("WindowNotFound"), Reason.WINDOW_NOT_FOUND, "", "InProgress"),
        ([OLD], says("WaitingForApproval"), Reason.WAITING_FOR_APPROVAL, "", "InProgress"),
        ([OLD], says("Rejected"), Reason.REJECTED, "", "InProgress"),
        ([GOOD, OLD], says("Soaking"), Reason.SOAKING, "", "InProgress"),
        ([GOOD], says("Soaking"), Reason.SOAKING, "", "InProgress"),
        ([AT_WORK, OLD], says("OutsideWindow"), Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        # nothing is known yet
        ([GOOD, UNKNOWN], {}, Reason.NOT_OBSERVED, "Reconciling", "InProgress"),
        ([GOOD, STALE], {}, Reason.NOT_OBSERVED, "Reconciling", "InProgress"),
        ([OLD, UNKNOWN], {}, Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        # drift seen, healing not allowed; Observe
        ([GOOD, DRIFTED], {}, Reason.DRIFTED, "", "InProgress"),
        ([GOOD, OLD], OBSERVE, Reason.OBSERVE_ONLY, "", "InProgress"),
        # suspended
        ([GOOD], {"policy": b.policy(suspend=True)}, Reason.SUSPENDED, "", "InProgress"),
        ([AT_WORK], {"policy": b.policy(suspend=True)}, Reason.SUSPENDED, "", "InProgress"),
        ([GOOD], {"endpoint": b.endpoint(suspend=True)}, Reason.SUSPENDED, "", "InProgress"),
        # unreachable
        ([GOOD, LOST], {}, Reason.VMS_UNREACHABLE, "Reconciling", "InProgress"),
        ([GOOD, LOST], {"policy": b.policy(readiness={"maxUnreachable": 1})}, Reason.CONVERGED, "", "Current"),
        (
            [GOOD],
            {"endpoint": b.endpoint(conditions=(UNREACHABLE,))},
            Reason.ENDPOINT_UNREACHABLE,
            "Reconciling",
            "InProgress",
        ),
        # failures
        ([GOOD, FAILED, OLD], {"result": "Failed"}, Reason.VM_FAILED, "Stalled", "Failed"),
        ([GOOD, FAILED], {"result": "RolledBack"}, Reason.VM_FAILED, "Stalled", "Failed"),
        ([OLD], {"result": "RolledBack"}, Reason.NO_WAY_BACK, "Stalled", "Failed"),
        ([FAILED, LOST], {"result": "Failed"}, Reason.VM_FAILED, "Stalled", "Failed"),
        ([OLD], {"result": "Aborted"}, Reason.NO_WAY_BACK, "Stalled", "Failed"),
        ([OLD], {"result": Reason.ROLLOUT_DELETED}, Reason.NO_WAY_BACK, "Stalled", "Failed"),
        ([GOOD, BROKEN], {"result": "Failed"}, Reason.ROLLBACK_FAILED, "Stalled", "Failed"),
        # what it speaks of is not there
        ([], {}, Reason.NO_VMS, "Stalled", "Failed"),
        ([], {"listing": Listing((GOOD,))}, Reason.NO_VMS, "Stalled", "Failed"),
        ([], {"listing": Listing((GOOD,), complete=False)}, Reason.NO_VMS, "Reconciling", "InProgress"),
        ([], {"listing": Listing((GOOD,), doubt="it is not reachable")}, Reason.NO_VMS, "Reconciling", "InProgress"),
        ([OLD], OLDER, Reason.CONFLICT, "Stalled", "Failed"),
        ([GOOD, OLD], OLDER, Reason.CONFLICT, "Stalled", "Failed"),
        ([AT_WORK, OLD], OLDER, Reason.ROLLING_OUT, "Reconciling", "InProgress"),
        ([GOOD], {"endpoint": None}, Reason.ENDPOINT_NOT_FOUND, "Stalled", "Failed"),
        ([GOOD], {"template": None}, Reason.TEMPLATE_NOT_FOUND, "Stalled", "Failed"),
        (
            [GOOD],
            {"template": b.template(ready=False, conditions=STALLED)},
            Reason.TEMPLATE_NOT_READY,
            "Stalled",
            "Failed",
        ),
        ([GOOD], {"template": b.template(ready=False)}, Reason.TEMPLATE_NOT_READY, "Reconciling", "InProgress"),
        # nobody may touch it
        ([GOOD, TOO_OLD], {}, Reason.VMS_HELD, "", "InProgress"),
        ([ON_HOLD], {}, Reason.VMS_HELD, "", "InProgress"),
    ],
)
def test_one_line_of_the_table(
    vms: list[VMFacts], kwargs: dict[str, Any], reason: Reason, flag: str, seen_as: str
) -> None:
    seen = situation(*vms, **kwargs)
    status = policy_status(seen, now=b.NOW)
    generation = seen.policy.metadata.generation
    by_type = {condition.type: condition for condition in status.conditions}
    assert by_type["Ready"].reason == reason
    assert {"Reconciling", "Stalled"} & set(by_type) == ({flag} if flag else set())
    assert kstatus(generation, status) == seen_as
    assert_contract(generation, status)
    assert status.counts is not None
    assert status.counts.total == len(seen.selection.vms)


def ready(status: PatchPolicyStatus) -> Any:
    return next(condition for condition in status.conditions if condition.type == "Ready")


def test_a_policy_without_vms_says_whether_its_selector_or_the_cloud_is_the_reason() -> None:
    misspelt = situation(policy=b.policy(selector={"zones": ["ams1"]}), listing=Listing((GOOD,)))
    told = "the selector matches no VM of endpoint prod: "
    assert ready(policy_status(misspelt, now=b.NOW)).message == f"{told}none of its VMs has zone ams1"
    none_there = situation(policy=b.policy(selector={"types": ["ilbvm"]}), listing=Listing((GOOD,)))
    assert ready(policy_status(none_there, now=b.NOW)).message == f"{told}it has none of this kind"


def test_what_was_said_of_no_vms_stands_until_a_restarted_process_has_looked() -> None:
    policy = b.policy(selector={"types": ["ilbvm"]})
    said = policy_status(situation(policy=policy, listing=Listing((GOOD,))), now=b.NOW)
    later, unseen = b.NOW + timedelta(minutes=1), Listing((GOOD,), complete=False)
    again = policy_status(situation(policy=policy.model_copy(update={"status": said}), listing=unseen), now=later)
    assert again == said
    edited = b.policy(selector={"types": ["elbvm"]}, generation=4).model_copy(update={"status": said})
    anew = policy_status(situation(policy=edited, listing=unseen), now=later)
    assert kstatus(4, anew) == "InProgress"


def test_the_message_counts_the_rest() -> None:
    policy = b.policy(readiness={"maxUnreachable": 1}, selector={"exclude": [{"name": "r-2-VM"}]})
    status = policy_status(situation(GOOD, LOST, ON_HOLD, OLD, policy=policy), now=b.NOW)
    assert ready(status).message == "1 at 8c1f03ab; 1 unreachable, 1 on hold, 1 excluded"
    assert status.counts is not None
    assert (status.counts.applicable, status.counts.converged, status.counts.held) == (2, 1, 1)
    assert status.progress is not None
    assert status.progress.summary == "1/2"


def test_a_stalled_policy_names_vm_step_and_output() -> None:
    told = ready(policy_status(situation(GOOD, FAILED, result="Failed"), now=b.NOW)).message
    assert "r-6-VM was rolled back after step Services failed: dnsmasq: bad option at line 3" in told


def test_a_changed_spec_ends_the_stall() -> None:
    failed = situation(OLD, result="Failed")
    assert failed.last_rollout is not None
    mended = replace(failed, policy=b.policy(retryAt=b.NOW))
    assert ready(policy_status(mended, now=b.NOW)).reason == Reason.ROLLING_OUT


def test_a_conflict_is_not_accepted_and_says_whose_it_is() -> None:
    status = policy_status(situation(GOOD, OLD, **OLDER), now=b.NOW)
    accepted = next(condition for condition in status.conditions if condition.type == "Accepted")
    assert (accepted.status, accepted.reason) == ("False", Reason.CONFLICT)
    assert "r-2-VM (older)" in accepted.message


def test_the_time_of_a_transition_moves_only_with_the_status() -> None:
    first = policy_status(situation(OLD), now=b.NOW)
    later = b.NOW + timedelta(hours=1)
    known = b.policy().model_copy(update={"status": first})
    same = policy_status(situation(OLD, FAILED, policy=known), now=later)
    assert ready(same).last_transition_time == b.NOW
    other = policy_status(situation(GOOD, policy=known), now=later)
    assert ready(other).last_transition_time == later
    assert policy_status(situation(OLD, policy=known), now=later) == first


def test_the_status_stays_small_with_ten_thousand_vms() -> None:
    long = "x" * 5000
    vms = [
        replace(b.facts(f"r-{number}-VM"), **b.done(OperationResult.FAILED, output=long[:1024]))
        for number in range(2000)
    ]
    status = policy_status(situation(*vms, result=str(RolloutResult.FAILED)), now=b.NOW)
    assert len(status.model_dump_json()) < 8192


def test_an_object_that_was_edited_since_is_in_progress() -> None:
    status = policy_status(situation(GOOD), now=b.NOW)
    assert kstatus(3, status) == "Current"
    assert kstatus(4, status) == "InProgress"


def test_what_the_rollout_waits_for_is_told_by_the_policy() -> None:
    blocker = PolicyBlocker(reason="OutsideWindow", ref="MaintenanceWindow/nights", until=b.NOW + timedelta(hours=9))
    following = NextAction(at=blocker.until, what="start wave rest (1 VMs)")
    waves = (
        WaveStatus(name="canary", digest="d", phase=WavePhase.DONE),
        WaveStatus(name="rest", digest="d"),
    )
    running = says("OutsideWindow", waves=waves, blocked_by=(blocker,), next_action=following, eta=b.ago(days=-1))
    status = policy_status(situation(GOOD, OLD, **running), now=b.NOW)
    assert status.blocked_by == (blocker,)
    assert status.next_action == following
    assert status.progress is not None
    assert (status.progress.wave, status.progress.eta) == ("rest", b.ago(days=-1))
    ended = says("OutsideWindow", waves=waves, blocked_by=(blocker,), result=RolloutResult.SUCCEEDED)
    after = policy_status(situation(GOOD, **ended), now=b.NOW)
    assert (after.blocked_by, after.next_action) == ((), None)


def test_a_status_of_ten_thousand_vms_stays_small() -> None:
    reach = Reach(False, Reason.SSH_TIMEOUT, "no answer within 10 s. " * 9)
    failed = b.done(OperationResult.ROLLED_BACK, output="haproxy: " + "x" * 1000)
    vms = [
        b.facts(f"r-{number}-VM", **(failed if number % 3 else {}), **({} if number % 7 else {"reach": reach}))
        for number in range(10_000)
    ]
    older = b.policy("older", created=b.ago(days=9), selector={"names": ["r-?-VM"]})
    status = policy_status(situation(*vms, policies=[older], result="Failed"), now=b.NOW)
    assert len(json.dumps(status.to_dict())) < 32 * 1024
