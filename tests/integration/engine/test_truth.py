"""What a PatchPolicy says in every situation there is, on the real API server, with simulated VMs.

Each row is judged three ways: by its conditions, by kstatus (Flux, Helm, Argo CD), and by `kubectl wait`, which must
return exactly where Ready is True. Besides, every status that is seen on the way keeps the contract: Reconciling and
Stalled never together, neither of them there without being True, and every condition about the generation it carries.

What only a management server can say (a closed command gate, a host's payload) is said by the stand-in.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.integration.engine import objects
from tests.integration.engine.cloud_fleet import close_gates, cloud_endpoint, cloud_fleet, cloud_secret
from tests.integration.engine.cluster import condition, says
from tests.integration.engine.journey import Journey
from tests.integration.engine.objects import Manifest
from tests.unit.domain.kstatus import assert_contract, kstatus

from sysvm.api.approval import RolloutApproval
from sysvm.api.base import format_time
from sysvm.api.policy import PatchPolicy
from sysvm.api.reasons import Reason
from sysvm.api.rollout import Rollout
from sysvm.domain.rules import PROGRAMMING
from sysvm.engine.resources import APPROVAL, ENDPOINT, POLICY, ROLLOUT, SYSTEM_VM
from sysvm.kube.objects import Resource
from sysvm.patching.results import JournalPhase

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENVIRONMENT = {"SYSVM_ADMISSION_POLICIES": "true"}
"""Approvals count. That the policies refuse what they should is another test's."""

SEEN_AS = {"Reconciling": "InProgress", "Stalled": "Failed", "": "InProgress"}
"""What kstatus makes of a Ready that is False, by the condition beside it."""

ONE_AT_A_TIME = {"maxUnavailable": 1}
CANARY = [{"name": "canary", "limit": 1}, {"name": "rest"}]
SOAKING = [{"name": "canary", "limit": 1, "soak": "1h"}, {"name": "rest"}]


# How a row is judged


async def reached(journey: Journey, reason: str, beside: str = "", *, message: str = "", name: str = "") -> Manifest:
    """The policy once Ready has that reason, judged in all three ways. `beside`: the condition that is also there."""
    policy = await _reached(journey, POLICY, name or journey.name, reason, beside, message)
    judged = PatchPolicy.model_validate(policy)
    wanted = "Current" if reason == "Converged" else SEEN_AS[beside]
    assert kstatus(judged.metadata.generation, judged.status) == wanted
    assert await waits_for(journey, policy, "Ready") is (reason == "Converged")
    if beside:
        assert await waits_for(journey, policy, beside)
    return policy


async def rollout_says(journey: Journey, reason: str, beside: str = "", *, message: str = "") -> Manifest:
    """The same for the policy's last rollout, by conditions alone."""
    name = (await journey.rollouts())[-1]["metadata"]["name"]
    return await _reached(journey, ROLLOUT, name, reason, beside, message)


async def _reached(journey: Journey, resource: Resource, name: str, reason: str, beside: str, message: str) -> Manifest:
    async def said() -> Manifest | None:
        obj = await journey.namespace.find(resource, name)
        if obj is None or not says(obj)[1]:
            return None
        keeps_the_contract(resource, obj)
        there = {word for word in ("Reconciling", "Stalled") if condition(obj, word)}
        right = says(obj)[1] == reason and there == ({beside} if beside else set())
        return obj if right and message in condition(obj, "Ready")["message"] else None

    found: Manifest = await journey.until(said, f"{name} says {reason} {message!r} with {beside or 'nothing beside'}")
    return found


def keeps_the_contract(resource: Resource, obj: Mapping[str, Any]) -> None:
    """Of a status about the generation that is."""
    model = PatchPolicy if resource is POLICY else Rollout
    judged = model.model_validate(obj)
    assert_contract(judged.metadata.generation, judged.status)
    for one in obj["status"]["conditions"]:
        if one["type"] not in ("Ready", "Accepted"):
            assert one["status"] == "True", f"{one['type']} is there and not True"


async def waits_for(journey: Journey, obj: Manifest, type_: str) -> bool:
    """Whether `kubectl wait --for=condition=...` returns at once."""
    done = await asyncio.to_thread(
        journey.world.control_plane.try_kubectl,
        "wait",
        f"--for=condition={type_}",
        f"{obj['kind'].lower()}/{obj['metadata']['name']}",
        f"--namespace={journey.namespace.name}",
        "--timeout=0",
    )
    assert done.returncode == 0 or "condition not met" in done.stderr or "timed out" in done.stderr, done.stderr
    return bool(done.returncode == 0)


def later(hours: float = 1.0) -> str:
    return format_time(datetime.now(UTC) + timedelta(hours=hours))


def window(journey: Journey, effect: str, **spec: Any) -> Manifest:
    """A freeze is about this journey's policy alone."""
    if effect == "Deny":
        spec["policySelector"] = {"matchLabels": {"journey": journey.name}}
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "MaintenanceWindow",
        "metadata": {"name": f"{journey.name}-{effect.lower()}", "namespace": journey.namespace.name},
        "spec": {"effect": effect, **spec},
    }


async def events(journey: Journey, name: str) -> list[tuple[str, str, str]]:
    """Type, reason and sentence of every Event about an object."""
    found = await asyncio.to_thread(
        journey.world.control_plane.kubectl,
        "get",
        "events.events.k8s.io",
        f"--namespace={journey.namespace.name}",
        "--output=json",
    )
    about = [one for one in json.loads(found)["items"] if one.get("regarding", {}).get("name") == name]
    return [(one["type"], one["reason"], one.get("note", "")) for one in about]


# The rows


async def test_rolling_out_and_converged(journey: Journey) -> None:
    entries = journey.add("a", "b")
    for vm in journey.vms:
        journey.fleet.never_end(vm)
    await journey.declare(entries)
    await journey.in_work(*journey.vms)
    await reached(journey, "RollingOut", "Reconciling", message="2 in work")
    for vm in journey.vms:
        journey.fleet.end(vm)
    policy = await reached(journey, "Converged", message="2 at")
    assert policy["status"]["counts"]["converged"] == 2
    assert policy["status"]["progress"]["summary"] == "2/2"
    await rollout_says(journey, "Succeeded")


async def test_waiting_for_a_window(journey: Journey) -> None:
    opens = later()
    await journey.namespace.create(window(journey, "Allow", interval={"from": opens, "to": later(2)}))
    await journey.declare(journey.add("a"), windowRefs=[{"name": f"{journey.name}-allow"}])
    policy = await reached(journey, "OutsideWindow", message=opens)
    (blocker,) = policy["status"]["blockedBy"]
    assert (blocker["ref"], blocker["until"]) == (f"MaintenanceWindow/{journey.name}-allow", opens)
    assert policy["status"]["nextAction"]["at"] == opens
    rollout = await rollout_says(journey, "OutsideWindow")
    assert says(rollout, "WaitingForWindow") == ("True", "OutsideWindow")
    assert journey.patch_calls() == 0


async def test_waiting_for_a_window_that_is_not_there(journey: Journey) -> None:
    await journey.declare(journey.add("a"), windowRefs=[{"name": f"{journey.name}-allow"}])
    await reached(journey, "WindowNotFound", message="does not exist")


async def test_waiting_for_the_end_of_a_freeze(journey: Journey) -> None:
    ends = later()
    await journey.namespace.create(
        window(journey, "Deny", interval={"from": later(-1), "to": ends}, reason="end of year")
    )
    await journey.endpoint(journey.add("a"))
    await journey.release("first")
    policy = objects.policy(journey.namespace.name, journey.name, journey.name, f"{journey.name}-first")
    policy["metadata"]["labels"] = {"journey": journey.name}
    await journey.namespace.create(policy)
    found = await reached(journey, "Frozen", message="end of year")
    assert found["status"]["blockedBy"][0]["until"] == ends
    assert says(await rollout_says(journey, "Frozen"), "WaitingForWindow") == ("True", "Frozen")


async def test_waiting_for_a_soak(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"), strategy={"waves": SOAKING})
    policy = await reached(journey, "Soaking", message="1 at")
    assert policy["status"]["progress"]["wave"] == "canary"
    (rollout,) = await journey.rollouts()
    assert policy["status"]["nextAction"]["at"] == rollout["status"]["waves"][0]["soakUntil"]
    await rollout_says(journey, "Soaking")


async def test_waiting_for_an_approval(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"), strategy={"waves": CANARY}, approval={"before": ["rest"]})
    policy = await reached(journey, "WaitingForApproval", message="1 at")
    assert "once it is approved" in policy["status"]["nextAction"]["what"]
    rollout = await rollout_says(journey, "WaitingForApproval")
    digest = next(wave["digest"] for wave in rollout["status"]["waves"] if wave["name"] == "rest")
    assert digest in condition(rollout, "WaitingForApproval")["message"]


async def test_waiting_for_a_person_who_paused_it(journey: Journey) -> None:
    entries = journey.add("a", "b")
    first = journey.vms[0]
    journey.fleet.never_end(first)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.in_work(first)
    (rollout,) = await journey.rollouts()
    await journey.namespace.edit(ROLLOUT, rollout["metadata"]["name"], {"state": "Paused"})
    await rollout_says(journey, "Paused", "Reconciling")
    await reached(journey, "RollingOut", "Reconciling")
    journey.fleet.end(first)
    await reached(journey, "Paused")
    await rollout_says(journey, "Paused")


async def test_drift_that_may_not_be_healed(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"))
    await reached(journey, "Converged")
    drifted = journey.vms[0]
    journey.fleet.set(drifted, drifted=True)
    await journey.ask_for_a_look(drifted)
    policy = await reached(journey, "Drifted", message=drifted)
    assert policy["status"]["counts"]["drifted"] == 1
    assert len(journey.patches()) == 2


async def test_a_router_that_lost_its_rules_by_its_own_reboot(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"))
    await reached(journey, "Converged")
    lost = journey.vms[0]
    name = journey.object_of(lost)
    journey.fleet.set(lost, boot_id="b2", data_bags=0)
    await journey.looked(lost)
    assert (await journey.vm(lost))["status"]["observed"]["dataBags"]["before"] == 6
    await reached(journey, "Converged")
    journey.fleet.set(lost, ahead_seconds=PROGRAMMING.total_seconds() + 1)
    for _ in range(2):
        await journey.looked(lost)
        await journey.says(SYSTEM_VM, name, "RulesLost", type_="Consistent")
        await journey.says(SYSTEM_VM, name, "RulesLost")
    policy = await reached(journey, "Drifted", message=lost)
    assert policy["status"]["counts"]["drifted"] == 1

    async def told() -> list[tuple[str, str]]:
        return [(kind, note) for kind, why, note in await events(journey, name) if why == "RulesLost"]

    await journey.until(told, "an Event RulesLost")
    ((kind, note),) = await told()
    assert kind == "Warning"
    assert "restart its network or VPC in CloudStack without cleanup" in note
    assert len(journey.patches()) == 2, "nothing was done about it"
    journey.fleet.set(lost, data_bags=6)
    await journey.looked(lost)
    await journey.says(SYSTEM_VM, name, "Consistent", "True", type_="Consistent")
    await reached(journey, "Converged")


async def test_an_endpoint_that_is_only_observed(journey: Journey) -> None:
    await journey.declare(journey.add("a"), spec={"management": "Observe"})
    await reached(journey, "ObserveOnly", message="1 waiting")
    assert not await journey.rollouts()


async def test_suspended_by_a_person(journey: Journey) -> None:
    await journey.declare(journey.add("a"), suspend=True)
    await reached(journey, "Suspended", message="spec.suspend")
    await journey.namespace.edit(ENDPOINT, journey.name, {"suspend": True})
    await journey.namespace.edit(POLICY, journey.name, {"suspend": False})
    await reached(journey, "Suspended", message=f"endpoint {journey.name}")
    assert journey.patch_calls() == 0


async def test_more_vms_unreachable_than_is_allowed(journey: Journey) -> None:
    await journey.declare([*journey.add("good"), *journey.add("lost", unreachable=Reason.SSH_UNREACHABLE)])
    policy = await reached(journey, "VMsUnreachable", "Reconciling", message=journey.vms[1])
    assert policy["status"]["counts"]["unreachable"] == 1
    await journey.namespace.edit(POLICY, journey.name, {"readiness": {"maxUnreachable": 1}})
    await reached(journey, "Converged", message="1 unreachable")


async def test_an_endpoint_that_cannot_be_reached(journey: Journey) -> None:
    await journey.declare(journey.add("a"))
    await reached(journey, "Converged")
    missing = {"name": f"{journey.name}-gone", "key": "id"}
    await journey.namespace.edit(ENDPOINT, journey.name, {"ssh": {"keySecretRef": missing}})
    await reached(journey, "EndpointUnreachable", "Reconciling", message=f"{journey.name}-gone")


async def test_a_spent_budget_is_told_once_nothing_is_in_work(journey: Journey) -> None:
    entries = journey.add("bad", "good", "last")
    bad, good, last = journey.vms
    journey.fleet.set(bad, outcome=JournalPhase.ROLLED_BACK)
    journey.fleet.never_end(good)
    await journey.declare(entries, strategy={"maxUnavailable": 2})
    policy = await reached(journey, "RollingOut", "Reconciling", message=f"{bad} was rolled back")
    assert policy["status"]["counts"]["failed"] == 1
    rollout = await rollout_says(journey, "VMFailed", "Reconciling")
    assert says(rollout, "BudgetSpent") == ("True", "BudgetSpent")
    journey.fleet.end(good)
    await reached(journey, "VMFailed", "Stalled", message=bad)
    rollout = await rollout_says(journey, "VMFailed", "Stalled")
    assert rollout["status"]["result"] == "Failed"
    assert last not in journey.patched()


async def test_a_vm_that_could_not_go_back(journey: Journey) -> None:
    entries = journey.add("broken")
    journey.fleet.set(journey.vms[0], outcome=JournalPhase.INCONSISTENT)
    await journey.declare(entries)
    await reached(journey, "RollbackFailed", "Stalled", message=journey.vms[0])


async def test_a_release_that_is_not_tried_again(journey: Journey) -> None:
    entries = journey.add("a", "b")
    first = journey.vms[0]
    journey.fleet.never_end(first)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.in_work(first)
    (rollout,) = await journey.rollouts()
    await journey.namespace.edit(ROLLOUT, rollout["metadata"]["name"], {"state": "Aborted"})
    journey.fleet.end(first)
    await reached(journey, "NotRetried", "Stalled", message="retryAt")
    await rollout_says(journey, "Aborted", "Stalled")


async def test_what_the_spec_refers_to_and_is_not_there(journey: Journey) -> None:
    await journey.policy()
    await reached(journey, "EndpointNotFound", "Stalled", message=journey.name)
    await journey.endpoint(journey.add("a"))
    await reached(journey, "TemplateNotFound", "Stalled", message=f"{journey.name}-first")
    await journey.release("first", source=f"{journey.name}-late")
    await reached(journey, "TemplateNotReady", "Reconciling", message=f"{journey.name}-late")


async def test_a_release_that_cannot_be_used(journey: Journey) -> None:
    await journey.endpoint(journey.add("a"))
    await journey.release("first", digest=f"sha256:{'0' * 64}")
    await journey.policy()
    await reached(journey, "TemplateNotReady", "Stalled")


async def test_a_selector_that_selects_nothing(journey: Journey) -> None:
    await journey.declare(journey.add("a"), selector={"names": ["nobody-*"]})
    await reached(journey, "NoVMs", "Stalled", message=journey.name)


async def test_another_policy_owns_its_vms(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"), selector={"names": ["a-*"]})
    await reached(journey, "Converged")
    newer = f"{journey.name}-z-newer"
    await journey.policy(newer)
    policy = await reached(journey, "Conflict", "Stalled", message=journey.vms[0], name=newer)
    assert says(policy, "Accepted") == ("False", "Conflict")
    assert journey.patched() == journey.vms, "its other VM is patched"
    await reached(journey, "Converged")


async def test_nobody_is_left_to_speak_of(journey: Journey) -> None:
    await journey.declare(journey.add("a"), suspend=True)
    await reached(journey, "Suspended")
    await journey.namespace.edit(SYSTEM_VM, journey.object_of(journey.vms[0]), {"hold": {"reason": "CHG-881"}})
    await journey.namespace.edit(POLICY, journey.name, {"suspend": False})
    await reached(journey, "VMsHeld", message="no VM is applicable")


# What people sign


def approval(journey: Journey, name: str, rollout: Manifest, **spec: Any) -> Manifest:
    """Of the wave `rest` as it is, unless said otherwise."""
    digest = next(wave["digest"] for wave in rollout["status"]["waves"] if wave["name"] == "rest")
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "RolloutApproval",
        "metadata": {"name": f"{journey.name}-{name}", "namespace": journey.namespace.name},
        "spec": {
            "rolloutRef": {"name": rollout["metadata"]["name"]},
            "wave": "rest",
            "waveDigest": digest,
            "decision": "Approved",
            "approver": "alice",
            **spec,
        },
    }


async def test_every_approval_says_whether_it_counts(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"), strategy={"waves": CANARY}, approval={"before": ["rest"]})
    await reached(journey, "WaitingForApproval")
    (rollout,) = await journey.rollouts()
    late = {"name": "nobody-1"}
    for name, spec, status, reason, seen_as in (
        ("other", {"waveDigest": f"sha256:{'0' * 64}"}, "False", "ApprovalVoid", "Failed"),
        ("expired", {"expiresAt": later(-1)}, "False", "ApprovalExpired", "Failed"),
        ("wave", {"wave": "nobody"}, "False", "WaveNotFound", "Failed"),
        ("early", {"rolloutRef": late}, "False", "RolloutNotFound", "InProgress"),
        ("rejected", {"decision": "Rejected", "comment": "not tonight"}, "True", "Rejected", "Current"),
    ):
        await journey.namespace.create(approval(journey, name, rollout, **spec))
        found = await journey.says(APPROVAL, f"{journey.name}-{name}", reason, status)
        assert seen_by_others(found) == seen_as, name
    await reached(journey, "Rejected", message="not tonight")
    await journey.namespace.create(approval(journey, "approved", rollout))
    await journey.says(APPROVAL, f"{journey.name}-approved", "Approved", "True")
    await journey.looked(journey.vms[1])
    assert len(journey.patches()) == 1, "a rejection outweighs an approval"
    await journey.namespace.delete(APPROVAL, f"{journey.name}-rejected")
    await reached(journey, "Converged", message="2 at")


async def test_an_approval_that_runs_out_says_so_by_itself(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"), strategy={"waves": SOAKING}, approval={"before": ["rest"]})
    await reached(journey, "Soaking")
    (rollout,) = await journey.rollouts()
    soon = format_time(datetime.now(UTC) + timedelta(seconds=4))
    await journey.namespace.create(approval(journey, "short", rollout, expiresAt=soon))
    await journey.says(APPROVAL, f"{journey.name}-short", "Approved", "True")
    found = await journey.says(APPROVAL, f"{journey.name}-short", "ApprovalExpired")
    assert seen_by_others(found) == "Failed"


def seen_by_others(obj: Manifest) -> str:
    judged = RolloutApproval.model_validate(obj)
    assert_contract(judged.metadata.generation, judged.status)
    return kstatus(judged.metadata.generation, judged.status)


async def test_a_broken_glass_opens_the_calendar_and_is_told_as_a_warning(journey: Journey) -> None:
    await journey.namespace.create(window(journey, "Allow", interval={"from": later(), "to": later(2)}))
    await journey.declare(journey.add("a"), windowRefs=[{"name": f"{journey.name}-allow"}])
    await reached(journey, "OutsideWindow")
    (rollout,) = await journey.rollouts()
    name = rollout["metadata"]["name"]
    await journey.namespace.edit(ROLLOUT, name, {"breakGlass": {"reason": "INC-77", "until": later(2)}})
    await reached(journey, "Converged")

    async def warned() -> bool:
        told = await events(journey, name)
        return [type_ for type_, reason, note in told if reason == "GlassBroken" and "INC-77" in note] == ["Warning"]

    await journey.until(warned, "one Warning about the broken glass")


# Plans that make no sense, and plans that changed


async def test_budgets_that_contradict_each_other_are_refused_or_told(journey: Journey) -> None:
    entries = journey.add("a", "b", "c")
    journey.fleet.set(journey.vms[0], outcome=JournalPhase.ROLLED_BACK)
    await journey.declare(entries, strategy={"maxUnavailable": 1, "failureBudget": {"perWave": "100%"}})
    await reached(journey, "VMFailed", "Stalled")
    rollout = await rollout_says(journey, "VMFailed", "Stalled")
    assert "can never proceed" in condition(rollout, "BudgetSpent")["message"]
    assert journey.patched() == [journey.vms[0]]


async def test_a_wave_that_selects_nothing_is_told_and_holds_nobody_up(journey: Journey) -> None:
    waves = [{"name": "canary", "limit": 5}, {"name": "rest"}]
    await journey.declare(journey.add("a"), strategy={"waves": waves})
    await reached(journey, "Converged")
    rollout = await rollout_says(journey, "Succeeded")
    assert "selects no VM" in rollout["status"]["waves"][1]["message"]


async def test_a_policy_that_changed_is_told_by_the_rollout_that_keeps_its_own(journey: Journey) -> None:
    entries = journey.add("a")
    journey.fleet.never_end(journey.vms[0])
    await journey.declare(entries)
    await journey.in_work(journey.vms[0])
    await journey.namespace.edit(POLICY, journey.name, {"checks": {"settle": "2s"}})
    (rollout,) = await journey.rollouts()
    changed = await journey.says(ROLLOUT, rollout["metadata"]["name"], "PolicyChanged", "True", type_="PolicyChanged")
    assert "checks" in condition(changed, "PolicyChanged")["message"]
    keeps_the_contract(ROLLOUT, changed)
    journey.fleet.end(journey.vms[0])
    await reached(journey, "Converged")


async def test_the_command_gate_of_a_member_is_closed_and_a_hosts_payload_differs(journey: Journey) -> None:
    """Two rows, one after the other: SSH has done all it can, and then the host is what a stop and start would undo."""
    namespace = journey.namespace.name
    async with cloud_fleet(journey.fleet) as cloud:
        close_gates(cloud)
        (name,) = cloud.routers("single")
        endpoint = cloud_endpoint(namespace, journey.name, cloud)
        endpoint["spec"]["scan"] = {"interval": "10s", "inventory": "10s"}
        await journey.namespace.create(cloud_secret(namespace, cloud), endpoint)
        await journey.release("first")
        await journey.policy(selector={"names": [name]}, livePatch={"route": "SSH"})
        await reached(journey, "ManagementGateClosed", message="4.20.1 as minreq.sysvmtemplate.version of zone ams-1")
        cloud.world.settings["minreq.sysvmtemplate.version"] = "4.20.1"
        await reached(journey, "Converged")
        host = cloud.world.vm(name).host
        assert host is not None
        journey.fleet.set(name, host=(host.name, "f" * 32, None))
        await reached(journey, "HostPayloadMismatch", message="keeps an unreadable payload")
        await journey.namespace.delete(POLICY, journey.name)
        await journey.namespace.delete(ENDPOINT, journey.name)
