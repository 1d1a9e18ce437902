"""What a SystemVM, an endpoint and a template say."""

from typing import Any

import pytest

from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.observed import ContentState, DataBags
from sysvm.api.operation import OperationResult, OperationStep
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import Blocker, SystemVM, SystemVMStatus
from sysvm.domain.cloud import CloudZone, Snapshot
from sysvm.domain.cloud_status import CloudFacts, stands_until_swept
from sysvm.domain.facts import NEVER_TRIED, Reach, facts_of
from sysvm.domain.method import decide
from sysvm.domain.source_status import PayloadFound, Problem, endpoint_status, template_status
from sysvm.domain.system_vm_status import plan_entry, system_vm_truth

from . import builders as b
from .kstatus import assert_contract, kstatus

OK = Reach(True, Reason.REACHABLE)
CHANGED = Reach(False, Reason.HOST_KEY_CHANGED, "the VM shows another key")


def truth(vm: SystemVM, reach: Reach = OK, **kwargs: Any) -> tuple[str, SystemVMStatus]:
    release = kwargs.pop("release", b.release())
    decision = decide(facts_of(vm, now=b.NOW), release, **kwargs) if release else None
    found = system_vm_truth(vm, reach=reach, release=release, decision=decision, now=b.NOW)
    status = SystemVMStatus(observed_generation=vm.metadata.generation, conditions=found.conditions)
    assert_contract(vm.metadata.generation, status)
    return str(found.state), status


def said(status: Any) -> dict[str, tuple[str, str]]:
    return {condition.type: (str(condition.status), condition.reason) for condition in status.conditions}


LOST_RULES = DataBags(held=0, before=6, fewer_since=b.ago(hours=1), lost=True)
ORDER = {"operation": b.order(id="op-2").to_dict()}


@pytest.mark.parametrize(
    ("vm", "reach", "state", "ready", "says"),
    [
        (b.system_vm(observed=b.up_to_date()), OK, "Converged", ("True", "Converged"), "Current"),
        (b.system_vm(), OK, "Outdated", ("False", "ScriptsOutdated"), "InProgress"),
        (
            b.system_vm(observed=b.observed(signature=b.NEW_SIGNATURE)),
            OK,
            "Outdated",
            ("False", "Drifted"),
            "InProgress",
        ),
        (b.system_vm(observed=b.observed(version="4.15.0")), OK, "Held", ("False", "NotCompatible"), "InProgress"),
        (b.system_vm(spec={"hold": {"reason": "x"}}), OK, "Held", ("False", "OnHold"), "InProgress"),
        (b.system_vm(spec=ORDER), OK, "Updating", ("False", "InWork"), "InProgress"),
        (b.system_vm(spec=ORDER), b.UNREACHABLE, "Updating", ("False", "InWork"), "InProgress"),
        (
            b.system_vm(operation=b.operation(OperationResult.ROLLED_BACK)),
            OK,
            "Failed",
            ("False", "VMFailed"),
            "Failed",
        ),
        (
            b.system_vm(operation=b.operation(OperationResult.INCONSISTENT), observed=b.observed(signature=b.ZEROS)),
            OK,
            "Failed",
            ("False", "Inconsistent"),
            "Failed",
        ),
        (b.system_vm(), b.UNREACHABLE, "Unreachable", ("False", "SSHTimeout"), "InProgress"),
        (b.system_vm(), CHANGED, "Unreachable", ("False", "HostKeyChanged"), "Failed"),
        (
            b.system_vm(observed=b.up_to_date().model_copy(update={"data_bags": LOST_RULES})),
            OK,
            "Failed",
            ("False", "RulesLost"),
            "InProgress",
        ),
        (b.system_vm(observed=None), NEVER_TRIED, "Unknown", ("Unknown", "NotObserved"), "InProgress"),
        (
            b.system_vm(observed=b.observed(files=ContentState.UNKNOWN)),
            OK,
            "Unknown",
            ("Unknown", "NotCompared"),
            "InProgress",
        ),
    ],
)
def test_a_vm_says_the_first_thing_that_matters(
    vm: SystemVM, reach: Reach, state: str, ready: tuple[str, str], says: str
) -> None:
    found, status = truth(vm, reach)
    assert (found, said(status)["Ready"]) == (state, ready)
    assert kstatus(vm.metadata.generation, status) == says


def test_a_vm_that_no_policy_owns_claims_nothing() -> None:
    state, status = truth(b.system_vm(), release=None)
    assert (state, said(status)["Ready"]) == ("Unknown", ("Unknown", "NoPolicy"))


@pytest.mark.parametrize(
    ("vm", "consistent"),
    [
        (b.system_vm(), ("True", "Consistent")),
        (b.system_vm(observed=b.observed(signature=b.ZEROS)), ("False", "PartialPatch")),
        (b.system_vm(observed=b.observed(signature=None)), ("False", "PartialPatch")),
        (b.system_vm(observed=b.observed(payload="sha512:" + "cc" * 64)), ("False", "SignatureMismatch")),
        (b.system_vm(observed=b.up_to_date().model_copy(update={"data_bags": LOST_RULES})), ("False", "RulesLost")),
        (b.system_vm(observed=b.observed().model_copy(update={"data_bags": LOST_RULES})), ("False", "RulesLost")),
        (b.system_vm(observed=b.observed(signature=b.ZEROS), spec=ORDER), None),
        (b.system_vm(observed=None), None),
    ],
)
def test_consistent_says_whether_the_vm_contradicts_itself(vm: SystemVM, consistent: tuple[str, str] | None) -> None:
    assert said(truth(vm)[1]).get("Consistent") == consistent


def test_reachability_survives_the_way_through_the_condition() -> None:
    _, status = truth(b.system_vm(), b.UNREACHABLE)
    again = facts_of(b.system_vm(conditions=status.conditions), now=b.NOW)
    assert again.reach == b.UNREACHABLE


def test_an_outdated_template_is_reported_only_while_it_is() -> None:
    assert said(truth(b.system_vm(observed=b.up_to_date()))[1])["TemplateOutdated"] == ("True", "TemplateOutdated")
    assert "TemplateOutdated" not in said(truth(b.system_vm(observed=b.up_to_date(version="4.20.2")))[1])


def test_the_plan_entry_carries_decision_warnings_and_blockers() -> None:
    decision = decide(b.facts(observed=b.observed(version="4.16.0")), b.release())
    entry = plan_entry("routers", b.release(), decision, blocked_by=[Blocker(reason="WaitingForSlot")] * 20)
    assert (entry.method, entry.reason, entry.revision) == ("LivePatch", "ScriptsOutdated", b.NEW)
    assert "Debian packages that Debian 11 lacks" in entry.message
    assert len(entry.blocked_by) == 16


LOST = b.facts("r-2-VM", reach=b.UNREACHABLE)
NEW = b.facts("r-3-VM", reach=NEVER_TRIED)


@pytest.mark.parametrize(
    ("vms", "problem", "spec", "ready", "reachable", "says"),
    [
        ([b.facts()], None, {}, ("True", "Reachable"), "True", "Current"),
        ([b.facts(), LOST], None, {}, ("True", "Reachable"), "True", "Current"),
        ([LOST], None, {}, ("False", "VMsUnreachable"), "False", "InProgress"),
        ([b.facts(), NEW], None, {}, ("Unknown", "Discovering"), "Unknown", "InProgress"),
        ([], None, {}, ("Unknown", "Discovering"), "Unknown", "InProgress"),
        ([], Problem(Reason.CREDENTIALS_MISSING, "no Secret"), {}, ("False", "CredentialsMissing"), "False", "Failed"),
        (
            [b.facts()],
            Problem(Reason.SSH_TIMEOUT, "x", transient=True),
            {},
            ("False", "SSHTimeout"),
            "False",
            "InProgress",
        ),
        ([b.facts()], None, {"suspend": True}, ("False", "Suspended"), "Unknown", "InProgress"),
    ],
)
def test_an_endpoint_says_whether_its_vms_can_be_reached(
    vms: list[Any], problem: Problem | None, spec: dict[str, Any], ready: tuple[str, str], reachable: str, says: str
) -> None:
    status = endpoint_status(b.endpoint(**spec), vms, problem=problem, now=b.NOW)
    assert said(status)["Ready"] == ready
    assert said(status)["Reachable"][0] == reachable
    assert kstatus(2, status) == says
    assert_contract(2, status)
    assert status.counts is not None
    assert status.counts.system_vms == len(vms)


SWEPT = Snapshot(
    taken_at=b.NOW,
    server_version="4.20.2.0",
    zones={"z": CloudZone(id="z", name="ams-1", min_template_version="4.20.1")},
    hosts={}, vms={}, networks={}, vpcs={},
)  # fmt: skip


def swept(**spec: Any) -> CloudStackEndpoint:
    """As the process before left it."""
    before = b.endpoint(inventory="CloudStack", **spec)
    facts = CloudFacts(None if spec.get("suspend") else SWEPT)
    status = endpoint_status(before, [b.facts(reach=OK)], problem=None, now=b.NOW, cloud=facts)
    return before.model_copy(update={"status": status})


def test_what_was_told_of_a_cloud_stands_until_a_new_process_has_swept_it() -> None:
    endpoint = swept()
    assert endpoint.status.management_server_version == "4.20.2.0"
    assert stands_until_swept(endpoint, CloudFacts(None))
    assert not stands_until_swept(endpoint, CloudFacts(SWEPT))
    again = endpoint_status(endpoint, [b.facts(reach=OK)], problem=None, now=b.NOW, cloud=CloudFacts(SWEPT))
    assert again == endpoint.status, "the sweep of an unchanged cloud is no news"


def test_a_server_that_is_away_at_a_restart_leaves_what_was_known_of_it() -> None:
    endpoint, away = swept(), CloudFacts(None, failure=Reason.API_UNREACHABLE, failure_message="refused")
    assert not stands_until_swept(endpoint, away)
    problem = Problem(Reason.API_UNREACHABLE, "refused", transient=True)
    status = endpoint_status(endpoint, [b.facts(reach=OK)], problem=problem, now=b.NOW, cloud=away)
    assert said(status)["Ready"] == ("False", "APIUnreachable")
    assert said(status)["Authorized"] == ("True", "Authorized")
    assert status.management_server_version == "4.20.2.0"
    assert [each.version for each in status.minimum_template_version] == ["4.20.1"]


@pytest.mark.parametrize("change", ["another spec", "suspended", "never swept"])
def test_what_was_told_of_another_cloud_does_not_stand(change: str) -> None:
    endpoint = swept(suspend=change == "suspended")
    if change == "another spec":
        edited = endpoint.metadata.model_copy(update={"generation": 3})
        endpoint = endpoint.model_copy(update={"metadata": edited})
        status = endpoint_status(endpoint, [b.facts(reach=OK)], problem=None, now=b.NOW, cloud=CloudFacts(None))
        assert status.management_server_version is None
        assert "Authorized" not in said(status)
    elif change == "never swept":
        endpoint = b.endpoint(inventory="CloudStack")
    assert not stands_until_swept(endpoint, CloudFacts(None))


FOUND = PayloadFound(b.NEW, b.NEW_SIGNATURE, 188, 144000, ("w" * 300,) * 20)


def test_a_template_keeps_what_was_found_beside_a_later_problem() -> None:
    fresh = b.template(ready=False)
    found = template_status(fresh, FOUND, now=b.NOW)
    assert (found.revision, found.files) == (b.NEW, 188)
    assert kstatus(1, found) == "Current"
    later = template_status(fresh.model_copy(update={"status": found}), Problem(Reason.DIGEST_MISMATCH, "x"), now=b.NOW)
    assert later.revision == b.NEW
    assert kstatus(1, later) == "Failed"
    for status in (found, later):
        assert_contract(1, status)


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (None, "InProgress"),
        (Problem(Reason.PAYLOAD_UNSAFE, "../etc/passwd"), "Failed"),
        (Problem(Reason.PAYLOAD_FETCH_FAILED, "503", transient=True), "InProgress"),
    ],
)
def test_a_template_without_a_payload_is_not_ready(outcome: Problem | None, says: str) -> None:
    status = template_status(b.template(ready=False), outcome, now=b.NOW)
    assert said(status)["Ready"][0] == "False"
    assert kstatus(1, status) == says
    assert_contract(1, status)


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (
            {"message": "waiting for haproxy to serve, 10 s of 60 s"},
            ": step Services, waiting for haproxy to serve, 10 s",
        ),
        ({"bytes": 34_000_000, "bytes_total": 90_000_000}, ": step Services, 34 of 90 MB"),
        ({}, ": step Services"),
    ],
)
def test_work_in_progress_says_what_its_step_waits_for(step: dict[str, Any], told: str) -> None:
    running = OperationStep.model_validate({"name": "Services", "result": "Running", **step})
    operation = b.operation(None, id="op-2").model_copy(update={"steps": (running,)})
    _, status = truth(b.system_vm(spec=ORDER, operation=operation))
    (ready,) = [each for each in status.conditions if each.type == "Ready"]
    assert ready.message.partition(":")[2].startswith(told[1:]), ready.message
