"""What people do with the operator, good and bad, and what it answers: on the real API server, with simulated VMs."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from tests.integration.engine import objects
from tests.integration.engine.cluster import condition, kstatus
from tests.integration.engine.journey import FIRST, SECOND, Journey
from tests.integration.engine.simulated_vms import OUTPUT, SENT_BYTES, fingerprint_of

from lab.content import hostile
from sysvm.api.base import ApiModel, ObjectMeta
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import SystemVMStatus
from sysvm.engine import system_vm
from sysvm.engine.resources import ENDPOINT, POLICY, ROLLOUT, SECRET, SYSTEM_VM, TEMPLATE
from sysvm.engine.status import write_status
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Resource
from sysvm.patching.results import JournalPhase

pytestmark = pytest.mark.asyncio(loop_scope="module")

ONE_AT_A_TIME = {"maxUnavailable": 1}


# The way it should go


async def test_what_is_declared_comes_true(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"))
    await journey.converged()
    assert journey.patched() == journey.vms
    await asyncio.to_thread(
        journey.world.control_plane.kubectl,
        "wait",
        "--for=condition=Ready",
        f"patchpolicy/{journey.name}",
        f"cloudstackendpoint/{journey.name}",
        f"systemvm/{journey.object_of(journey.vms[0])}",
        f"--namespace={journey.namespace.name}",
        "--timeout=10s",
    )
    for resource, name in ((ENDPOINT, journey.name), (TEMPLATE, f"{journey.name}-first")):
        assert kstatus(await journey.namespace.get(resource, name)) == "Current"
    (rollout,) = await journey.rollouts()
    assert kstatus(rollout) == "Current"
    assert (await journey.vm(journey.vms[0]))["status"]["history"][0]["result"] == "Succeeded"


async def test_the_next_release_supersedes_the_one_in_work(journey: Journey) -> None:
    entries = journey.add("a", "b")
    first, second = journey.vms
    journey.fleet.never_end(first)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.in_work(first)
    await journey.release("second")
    await journey.namespace.edit(POLICY, journey.name, {"templateRef": {"name": f"{journey.name}-second"}})
    await journey.says(TEMPLATE, f"{journey.name}-second", "PayloadReady", "True")
    journey.fleet.end(first)
    await journey.converged()
    assert journey.patched(FIRST) == [first]
    assert journey.patched(SECOND) == [first, second]
    assert [one["status"]["result"] for one in await journey.rollouts()] == ["Superseded", "Succeeded"]


async def test_status_shows_how_much_was_sent(journey: Journey) -> None:
    await journey.declare(journey.add("a", seconds=30.0))
    await journey.in_work(journey.vms[0])
    seen: list[int] = []

    async def sending() -> bool:
        status = (await journey.vm(journey.vms[0]))["status"]
        steps = (status.get("operation") or {}).get("steps") or [{}]
        if steps[-1].get("bytesTotal") != SENT_BYTES:
            return False
        sent = steps[-1]["bytes"]
        message = condition({"status": status}, "Ready")["message"]
        assert message.endswith(f"step Stage, {sent / 1e6:.0f} of 90 MB")
        if sent not in seen:
            seen.append(sent)
        return len(seen) == 3

    await journey.until(sending, "three times another number of bytes")
    assert seen == sorted(seen)
    # 90 MB in 12 s: written every two seconds, although the VM says more every 30 ms.
    assert all(later - sooner > 10e6 for sooner, later in itertools.pairwise(seen))
    journey.fleet.end(journey.vms[0])
    await journey.converged()
    done = (await journey.vm(journey.vms[0]))["status"]["operation"]["steps"]
    assert not any("bytesTotal" in step for step in done)


async def test_a_look_that_is_asked_for_is_taken_and_echoed(journey: Journey) -> None:
    await journey.declare(journey.add("a"))
    await journey.converged()
    await journey.looked(journey.vms[0])
    assert len(journey.patches()) == 1


async def test_a_look_whose_finding_could_not_be_written_is_taken_again(
    journey: Journey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody writes to the VM while it is compared: else it would be NotCompared until files are compared anyway."""
    refused: list[str] = []

    async def refuse_the_first(
        cluster: Cluster, resource: Resource, metadata: ObjectMeta, old: ApiModel, new: ApiModel
    ) -> bool:
        content = new.observed.content if isinstance(new, SystemVMStatus) and new.observed is not None else None
        compared = content is not None and content.revision == SECOND
        if compared and metadata.name.startswith(f"{journey.name}-") and metadata.name not in refused:
            refused.append(metadata.name)
            return False
        return await write_status(cluster, resource, metadata, old, new)

    monkeypatch.setattr(system_vm, "write_status", refuse_the_first)
    await journey.declare(journey.add("a", "b"))
    await journey.converged()
    await journey.release("second")
    await journey.namespace.edit(POLICY, journey.name, {"templateRef": {"name": f"{journey.name}-second"}})
    await journey.policy_says("Converged", "Current", f"2 at {SECOND[:8]}")
    assert sorted(refused) == [journey.object_of(vm) for vm in journey.vms]
    assert journey.patched(SECOND) == journey.vms


# Nothing is done that was not allowed


async def test_observe_changes_nothing_and_says_so(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"), spec={"management": "Observe"})
    await journey.policy_says("ObserveOnly", "InProgress", "2 waiting")
    for vm in journey.vms:
        await journey.looked(vm)
    assert journey.patch_calls() == 0
    assert not await journey.rollouts()
    await journey.namespace.edit(ENDPOINT, journey.name, {"management": "Full"})
    await journey.converged()


@pytest.mark.parametrize("resource", [POLICY, ENDPOINT], ids=lambda resource: resource.kind)
async def test_what_is_suspended_waits(journey: Journey, resource: object) -> None:
    suspended: dict[str, Any] = {"suspend": True}
    if resource is POLICY:
        await journey.declare(journey.add("a"), **suspended)
    else:
        await journey.declare(journey.add("a"), spec=suspended)
    await journey.policy_says("Suspended", "InProgress")
    assert journey.patch_calls() == 0
    assert resource in (POLICY, ENDPOINT)
    await journey.namespace.edit(POLICY if resource is POLICY else ENDPOINT, journey.name, {"suspend": False})
    await journey.converged()


async def test_drift_is_told_and_not_healed(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"))
    await journey.converged()
    first = journey.vms[0]
    journey.fleet.set(first, drifted=True)
    await journey.ask_for_a_look(first)
    message = await journey.policy_says("Drifted", "InProgress", first)
    assert "/opt/cloud/bin/patched.sh" in message
    await journey.says(SYSTEM_VM, journey.object_of(first), "Drifted")
    assert len(journey.patches()) == 2
    journey.fleet.set(first, drifted=False)
    await journey.looked(first)
    await journey.policy_says("Converged", "Current")
    assert len(journey.patches()) == 2


async def test_a_vm_on_hold_is_left_alone_until_it_is_let_go(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"), spec={"management": "Observe"})
    held, other = journey.vms
    await journey.policy_says("ObserveOnly", "InProgress", "2 waiting")
    await journey.namespace.edit(SYSTEM_VM, journey.object_of(held), {"hold": {"reason": "CHG-881"}})
    await journey.says(SYSTEM_VM, journey.object_of(held), "OnHold")
    await journey.namespace.edit(ENDPOINT, journey.name, {"management": "Full"})
    await journey.policy_says("Converged", "Current", "1 on hold")
    assert journey.patched() == [other]
    assert "CHG-881" in (await journey.vm(held))["status"]["plan"]["message"]
    await journey.namespace.edit(SYSTEM_VM, journey.object_of(held), {"hold": None})
    await journey.policy_says("Converged", "Current", "2 at")
    assert journey.patched() == [held, other]


# What the spec refers to


async def test_a_policy_waits_for_what_is_not_there_yet(journey: Journey) -> None:
    await journey.policy()
    await journey.policy_says("EndpointNotFound", "Failed", journey.name)
    await journey.endpoint(journey.add("a"))
    await journey.policy_says("TemplateNotFound", "Failed", f"{journey.name}-first")
    await journey.release("first")
    await journey.converged()


async def test_a_policy_that_selects_nothing_says_so(journey: Journey) -> None:
    await journey.declare(journey.add("a"), selector={"names": ["nobody-*"]})
    await journey.policy_says("NoVMs", "Failed")
    assert journey.patch_calls() == 0


async def test_of_two_policies_over_one_vm_the_older_keeps_it(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"), selector={"names": ["a-*"]})
    await journey.converged()
    newer = f"{journey.name}-z-newer"
    await journey.policy(newer)
    policy = await journey.says(POLICY, newer, "Conflict", type_="Accepted")
    assert journey.vms[0] in condition(policy, "Accepted")["message"]

    async def told() -> bool:
        policy = await journey.namespace.get(POLICY, newer)
        return condition(policy, "Ready")["reason"] == "Conflict" and kstatus(policy) == "Failed"

    await journey.until(told, "the newer policy is stalled, its own VM patched")
    assert journey.patched() == journey.vms
    await journey.policy_says("Converged", "Current")


async def test_two_endpoints_with_one_name_for_a_vm_do_not_share_it(journey: Journey) -> None:
    name = journey.name
    await journey.endpoint(journey.add("x"))
    vm = journey.vms[0]
    await journey.says(ENDPOINT, name, "Reachable", "True")
    head, _, tail = vm.partition("-")
    journey.fleet.add(tail)
    await journey.endpoint([objects.vm(tail)], f"{name}-{head}")
    other = await journey.says(ENDPOINT, f"{name}-{head}", "NameConflict")
    assert kstatus(other) == "Failed"
    assert journey.object_of(vm) in condition(other, "Ready")["message"]
    assert (await journey.vm(vm))["spec"]["endpointRef"]["name"] == name
    assert kstatus(await journey.namespace.get(ENDPOINT, name)) == "Current"


# Payloads that cannot be used


async def test_a_payload_with_another_digest_touches_no_vm(journey: Journey) -> None:
    await journey.endpoint(journey.add("a"))
    await journey.release("first", digest=f"sha256:{'0' * 64}")
    await journey.policy()
    template = await journey.says(TEMPLATE, f"{journey.name}-first", "DigestMismatch")
    assert kstatus(template) == "Failed"
    await journey.policy_says("TemplateNotReady", "Failed")
    assert journey.patch_calls() == 0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("parent-path", "PayloadUnsafe"),
        ("absolute-path", "PayloadUnsafe"),
        ("symlink-out", "PayloadUnsafe"),
        ("device", "PayloadUnsafe"),
        ("truncated", "PayloadUnreadable"),
        ("garbage", "PayloadUnreadable"),
    ],
)
async def test_a_hostile_payload_touches_no_vm(journey: Journey, kind: str, reason: str) -> None:
    archive = hostile.SCRIPTS[kind]()
    namespace = journey.namespace.name
    await journey.endpoint(journey.add("a"))
    await journey.namespace.create(
        objects.config_map(namespace, f"{journey.name}-bad", archive),
        objects.template(namespace, f"{journey.name}-first", archive, f"{journey.name}-bad"),
    )
    await journey.policy()
    template = await journey.says(TEMPLATE, f"{journey.name}-first", reason)
    assert kstatus(template) == "Failed"
    await journey.policy_says("TemplateNotReady", "Failed")
    assert journey.patch_calls() == 0


async def test_a_payload_that_comes_late_is_found_without_help(journey: Journey) -> None:
    late = f"{journey.name}-late"
    await journey.endpoint(journey.add("a"))
    await journey.release("first", source=late)
    await journey.policy()
    template = await journey.says(TEMPLATE, f"{journey.name}-first", "PayloadNotFound")
    assert kstatus(template) == "InProgress"
    await journey.policy_says("TemplateNotReady", "InProgress")
    await journey.namespace.create(objects.config_map(journey.namespace.name, late, objects.scripts("first")))
    await journey.converged()


# VMs that cannot be reached


async def test_a_login_that_is_mended_is_found_without_help(journey: Journey) -> None:
    namespace, secret = journey.namespace.name, f"{journey.name}-key"
    refs = {
        "missing": ({"name": secret, "key": "id"}, "CredentialsMissing"),
        "keyless": ({"name": f"{secret}-2", "key": "id"}, "CredentialsMissing"),
        "broken": ({"name": f"{secret}-3", "key": "id"}, "CredentialsUnreadable"),
    }
    await journey.namespace.create(
        objects.secret(namespace, f"{secret}-2", other="x"), objects.secret(namespace, f"{secret}-3", id="no key")
    )
    for word, (ref, _) in refs.items():
        await journey.endpoint(journey.add(word), f"{journey.name}-{word}", ssh={"keySecretRef": ref})
    for word, (_, reason) in refs.items():
        name = f"{journey.name}-{word}"
        endpoint = await journey.says(ENDPOINT, name, reason, type_="Reachable")
        assert kstatus(endpoint) == "Failed"
        assert secret in condition(endpoint, "Ready")["message"]
    mended = {"stringData": {"id": objects.private_key()}}
    await journey.namespace.create(objects.secret(namespace, secret, id=objects.private_key()))
    for name in (f"{secret}-2", f"{secret}-3"):
        await journey.namespace.admin.merge_patch(SECRET, namespace, name, mended)
    for word in refs:
        await journey.says(ENDPOINT, f"{journey.name}-{word}", "Reachable", "True", type_="Reachable")


async def test_old_algorithms_are_a_persons_decision_and_stay_visible(journey: Journey) -> None:
    await journey.endpoint(journey.add("old", sha1_only=True))
    await journey.says(ENDPOINT, journey.name, "VMsUnreachable", type_="Reachable")
    assert not condition(await journey.namespace.get(ENDPOINT, journey.name), "LegacyAlgorithms")
    await journey.namespace.edit(ENDPOINT, journey.name, {"ssh": {"algorithms": "Legacy"}})
    endpoint = await journey.says(ENDPOINT, journey.name, "LegacyAlgorithms", "True", type_="LegacyAlgorithms")
    assert journey.name in condition(endpoint, "LegacyAlgorithms")["message"]
    await journey.says(ENDPOINT, journey.name, "Reachable", "True")

    async def warned() -> bool:
        found = await asyncio.to_thread(
            journey.world.control_plane.kubectl,
            "get",
            "events.events.k8s.io",
            f"--namespace={journey.namespace.name}",
            "--output=json",
        )
        said = [one for one in json.loads(found)["items"] if one.get("regarding", {}).get("name") == journey.name]
        return [one["type"] for one in said if one["reason"] == "LegacyAlgorithms"] == ["Warning"]

    await journey.until(warned, "one Warning about the algorithms")
    await journey.namespace.edit(ENDPOINT, journey.name, {"ssh": {"algorithms": "Modern"}})

    async def quiet() -> bool:
        return not condition(await journey.namespace.get(ENDPOINT, journey.name), "LegacyAlgorithms")

    await journey.until(quiet, "the condition is gone")


async def test_vms_that_do_not_answer_keep_no_other_from_being_patched(journey: Journey) -> None:
    await journey.declare(
        [
            *journey.add("closed", unreachable=Reason.SSH_UNREACHABLE),
            *journey.add("good"),
            *journey.add("silent", silent=True),
        ]
    )
    closed, good, silent = journey.vms
    for vm, reason in ((closed, "SSHUnreachable"), (silent, "SSHTimeout")):
        found = await journey.says(SYSTEM_VM, journey.object_of(vm), reason, type_="Reachable")
        assert found["status"]["state"] == "Unreachable"
    message = await journey.policy_says("VMsUnreachable", "InProgress", "1 at")
    assert closed in message
    assert silent in message
    assert journey.patched() == [good]
    endpoint = await journey.says(ENDPOINT, journey.name, "Reachable", "True")
    assert endpoint["status"]["counts"] == {"systemVMs": 3, "unreachable": 2}
    journey.fleet.set(closed, unreachable=None)
    journey.fleet.set(silent, silent=False)
    await journey.policy_says("Converged", "Current", "3 at")
    assert journey.patched() == journey.vms


async def test_a_changed_host_key_is_a_persons_decision(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"))
    await journey.converged()
    changed = journey.vms[0]
    journey.fleet.set(changed, host_key="BBBB2")
    await journey.ask_for_a_look(changed)
    vm = await journey.says(SYSTEM_VM, journey.object_of(changed), "HostKeyChanged")
    assert kstatus(vm) == "Failed"
    await journey.policy_says("VMsUnreachable", "InProgress", changed)
    await journey.namespace.edit(SYSTEM_VM, journey.object_of(changed), {"acceptHostKey": fingerprint_of("BBBB2")})
    await journey.policy_says("Converged", "Current", "2 at")
    assert (await journey.vm(changed))["status"]["hostKey"]["fingerprint"] == fingerprint_of("BBBB2")
    assert len(journey.patches()) == 2


# Patches that fail


async def test_a_failure_is_told_with_vm_step_and_output_and_stops_the_rest(journey: Journey) -> None:
    entries = journey.add("a", "b")
    bad, other = journey.vms
    journey.fleet.set(bad, outcome=JournalPhase.ROLLED_BACK)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    message = await journey.policy_says("VMFailed", "Failed", bad)
    assert "step Services" in message
    assert OUTPUT in message
    await journey.ended("Failed")
    for vm in journey.vms:
        await journey.looked(vm)
    assert journey.patched() == [bad], "a revision that failed is not tried again by itself, and nobody else is touched"
    assert (await journey.vm(bad))["status"]["state"] == "Failed"
    await asyncio.to_thread(
        journey.world.control_plane.kubectl,
        "wait",
        "--for=condition=Stalled",
        f"patchpolicy/{journey.name}",
        f"--namespace={journey.namespace.name}",
        "--timeout=10s",
    )

    journey.fleet.set(bad, outcome=JournalPhase.COMMITTED)
    await journey.namespace.edit(POLICY, journey.name, {"retryAt": "2026-11-22T10:00:00Z"})
    await journey.converged()
    assert journey.patched() == [bad, bad, other]
    assert (await journey.rollouts())[-1]["spec"]["cause"] == "Retry"


async def test_a_failed_release_is_left_for_the_next_one(journey: Journey) -> None:
    entries = journey.add("a", "b")
    bad = journey.vms[0]
    journey.fleet.set(bad, outcome=JournalPhase.ROLLED_BACK)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.policy_says("VMFailed", "Failed", bad)
    await journey.ended("Failed")
    journey.fleet.set(bad, outcome=JournalPhase.COMMITTED)
    await journey.release("second")
    await journey.namespace.edit(POLICY, journey.name, {"templateRef": {"name": f"{journey.name}-second"}})
    await journey.converged()
    assert journey.patched(FIRST) == [bad]
    assert journey.patched(SECOND) == journey.vms


async def test_a_vm_that_could_not_go_back_is_loud_and_left_to_a_person(journey: Journey) -> None:
    entries = journey.add("a", "b")
    broken, other = journey.vms
    journey.fleet.set(broken, outcome=JournalPhase.INCONSISTENT)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.policy_says("RollbackFailed", "Failed", broken)
    await journey.says(SYSTEM_VM, journey.object_of(broken), "Inconsistent", type_="Consistent")
    await journey.ended("Failed")
    await journey.namespace.edit(POLICY, journey.name, {"retryAt": "2026-11-22T10:00:00Z"})

    async def other_patched() -> bool:
        return journey.fleet.revision(other) == FIRST

    await journey.until(other_patched, "the other VM is patched by the retry")
    await journey.policy_says("RollbackFailed", "Failed", broken)
    assert [patch.vm for patch in journey.patches()].count(broken) == 1

    journey.fleet.set(broken, revision=FIRST, signature="a" * 32, checksum="a" * 32)
    await journey.looked(broken)
    await journey.policy_says("Converged", "Current", "2 at")


async def test_a_lock_that_is_held_for_a_while_is_waited_for(journey: Journey) -> None:
    entries = journey.add("a", refused=(Reason.LOCK_HELD, True))
    (vm,) = journey.vms
    await journey.declare(entries)

    async def waits() -> bool:
        found = await journey.namespace.find(SYSTEM_VM, journey.object_of(vm))
        operation = (found or {}).get("status", {}).get("operation") or {}
        return "LockHeld" in operation.get("message", "")

    await journey.until(waits, "it says what it waits for")
    journey.fleet.set(vm, refused=None)
    await journey.converged()
    assert (await journey.vm(vm))["spec"]["operation"]["attempt"] == 1


async def test_a_refusal_that_will_not_pass_fails_at_once(journey: Journey) -> None:
    entries = journey.add("a", refused=(Reason.DISK_FULL, False))
    await journey.declare(entries)
    message = await journey.policy_says("VMFailed", "Failed", journey.vms[0])
    assert "DiskFull" in message
    assert journey.patch_calls() == 1
    assert not journey.patches()


# A rollout is disturbed


async def test_a_rollout_deleted_in_the_middle_finishes_what_is_in_work_and_does_not_come_back(
    journey: Journey,
) -> None:
    entries = journey.add("a", "b")
    first, second = journey.vms
    journey.fleet.never_end(first)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.in_work(first)
    (rollout,) = await journey.rollouts()
    await journey.namespace.delete(ROLLOUT, rollout["metadata"]["name"])
    await journey.says(ROLLOUT, rollout["metadata"]["name"], "Deleting")
    journey.fleet.end(first)
    await journey.gone(ROLLOUT, rollout["metadata"]["name"])
    message = await journey.policy_says("NotRetried", "Failed")
    assert "retryAt" in message
    await journey.looked(second)
    assert journey.patched() == [first]
    assert not await journey.rollouts()
    await journey.namespace.edit(POLICY, journey.name, {"retryAt": "2026-11-22T10:00:00Z"})
    await journey.converged()
    assert journey.patched() == [first, second]


async def test_a_policy_deleted_in_the_middle_finishes_what_is_in_work(journey: Journey) -> None:
    entries = journey.add("a", "b")
    first, second = journey.vms
    journey.fleet.never_end(first)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.in_work(first)
    (rollout,) = await journey.rollouts()
    await journey.namespace.delete(POLICY, journey.name)
    await journey.gone(POLICY, journey.name)
    journey.fleet.end(first)
    await journey.gone(ROLLOUT, rollout["metadata"]["name"])
    await journey.says(SYSTEM_VM, journey.object_of(first), "NoPolicy", "Unknown")
    vm = await journey.vm(first)
    assert vm["status"]["operation"]["result"] == "Succeeded"
    assert not vm["metadata"].get("finalizers")
    await journey.looked(second)
    assert journey.patched() == [first]


async def test_a_deleted_endpoint_forgets_its_vms_and_harms_none(journey: Journey) -> None:
    entries = journey.add("a", "b")
    first, _ = journey.vms
    journey.fleet.never_end(first)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.in_work(first)
    await journey.namespace.delete(ENDPOINT, journey.name)
    await journey.gone(SYSTEM_VM, journey.object_of(journey.vms[1]))
    await journey.policy_says("EndpointNotFound", "Failed")
    assert (await journey.vm(first))["metadata"]["deletionTimestamp"]
    journey.fleet.end(first)
    await journey.gone(SYSTEM_VM, journey.object_of(first))
    assert journey.patched() == [first]


async def test_a_vm_taken_off_the_list_while_in_work_is_finished_and_forgotten(journey: Journey) -> None:
    entries = journey.add("a", "b")
    first, second = journey.vms
    journey.fleet.never_end(first)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.in_work(first)
    await journey.namespace.edit(ENDPOINT, journey.name, {"systemVMs": entries[1:]})

    async def going() -> bool:
        return bool((await journey.vm(first))["metadata"].get("deletionTimestamp"))

    await journey.until(going, "its object is going")
    journey.fleet.end(first)
    await journey.gone(SYSTEM_VM, journey.object_of(first))
    await journey.converged()
    assert journey.patched() == [first, second]


async def test_a_paused_rollout_goes_on_and_an_aborted_one_does_not(journey: Journey) -> None:
    entries = journey.add("a", "b", "c")
    first, second, third = journey.vms
    journey.fleet.never_end(first)
    journey.fleet.never_end(second)
    await journey.declare(entries, strategy=ONE_AT_A_TIME)
    await journey.in_work(first)
    (rollout,) = await journey.rollouts()
    name = rollout["metadata"]["name"]
    await journey.namespace.edit(ROLLOUT, name, {"state": "Paused"})
    await journey.says(ROLLOUT, name, "Paused")
    journey.fleet.end(first)
    await journey.policy_says("Paused", "InProgress")
    assert journey.patched() == [first]
    await journey.namespace.edit(ROLLOUT, name, {"state": "Running"})
    await journey.in_work(first, second)
    await journey.namespace.edit(ROLLOUT, name, {"state": "Aborted"})
    journey.fleet.end(second)
    await journey.ended("Aborted")
    await journey.policy_says("NotRetried", "Failed")
    await journey.looked(third)
    assert journey.patched() == [first, second]
