"""A release that went well and is unwanted all the same: the policy names the former one again, as a revert does.

What `docs/going-back.md` promises, on the real API server with simulated VMs.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.engine import objects
from tests.integration.engine.cluster import condition
from tests.integration.engine.journey import FIRST, SECOND, Journey
from tests.integration.engine.objects import Manifest

from sysvm.engine.resources import POLICY, ROLLOUT, SYSTEM_VM, TEMPLATE
from sysvm.patching.payload import read_payload
from sysvm.patching.results import JournalPhase

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = {"waves": [{"name": "canary", "limit": 1, "soak": "2s"}, {"name": "rest"}]}


async def name_release(journey: Journey, word: str, **more: object) -> None:
    """As a commit does, the one that brings a release and the one that reverts it."""
    await journey.namespace.edit(POLICY, journey.name, {"templateRef": {"name": f"{journey.name}-{word}"}, **more})


async def at(journey: Journey, revision: str) -> None:
    """Converged there, and not still where it was."""

    async def there() -> bool:
        target = (await journey.namespace.get(POLICY, journey.name))["status"].get("target") or {}
        return target.get("revision") == revision

    await journey.until(there, f"the policy speaks of {revision[:8]}")
    await journey.policy_says("Converged", "Current", revision[:8])
    await journey.ended("Succeeded")


async def brought_to_the_second(journey: Journey, entries: list[Manifest], **policy: Any) -> None:
    await journey.declare(entries, **policy)
    await at(journey, FIRST)
    await journey.release("second")
    await name_release(journey, "second")
    await at(journey, SECOND)


async def test_a_reverted_commit_rolls_the_former_release_out_by_the_same_way(journey: Journey) -> None:
    """A plan, the canary, its soak, then the rest; a patch like any other, not an operation taken back."""
    await brought_to_the_second(journey, journey.add("a", "b", "c"), strategy=CANARY)
    await name_release(journey, "first")
    await journey.policy_says("Soaking", "InProgress", f"1 at {FIRST[:8]}")
    assert len([vm for vm in journey.vms if journey.fleet.revision(vm) == FIRST]) == 1, "the rest waits for the canary"
    await at(journey, FIRST)
    for vm in journey.vms:
        assert [patch.revision for patch in journey.fleet.patches_of(vm)] == [FIRST, SECOND, FIRST]
        told = (await journey.vm(vm))["status"]
        assert [one["revision"] for one in told["history"]] == [FIRST, SECOND, FIRST]
        assert not any("takesBack" in one for one in told["history"])
    rollouts = await journey.rollouts()
    assert [one["spec"]["revision"] for one in rollouts] == [FIRST, SECOND, FIRST]
    assert [one["status"]["result"] for one in rollouts] == ["Succeeded"] * 3
    assert rollouts[-1]["spec"]["cause"] == "NewRevision"
    assert [one["phase"] for one in rollouts[-1]["status"]["waves"]] == ["Done", "Done"]


async def test_the_way_back_can_be_read_before_it_is_taken(journey: Journey) -> None:
    await brought_to_the_second(journey, journey.add("a"))
    (vm,) = journey.vms
    await name_release(journey, "first", suspend=True)
    await journey.policy_says("Suspended", "InProgress", "1 waiting")

    async def planned() -> bool:
        plan = (await journey.vm(vm))["status"].get("plan") or {}
        return plan.get("method") == "LivePatch" and FIRST[:8] in plan["message"]

    await journey.until(planned, "the plan names the former release")
    assert journey.patched(FIRST) == [vm], "once, before the second release"
    await journey.namespace.edit(POLICY, journey.name, {"suspend": False})
    await at(journey, FIRST)


async def test_a_release_that_was_pruned_with_its_commit_is_not_needed_to_leave_it(journey: Journey) -> None:
    """Whichever of the two arrives first: until the policy's edit is there, it says what it lacks."""
    await brought_to_the_second(journey, journey.add("a", "b"))
    await journey.namespace.delete(TEMPLATE, f"{journey.name}-second")
    await journey.policy_says("TemplateNotFound", "Failed", f"{journey.name}-second")
    assert len(journey.patches()) == 4
    await name_release(journey, "first")
    await at(journey, FIRST)


async def test_a_commit_that_is_reverted_in_the_middle_takes_back_only_what_it_did(journey: Journey) -> None:
    entries = journey.add("a", "b")
    first, second = journey.vms
    await journey.declare(entries, strategy={"maxUnavailable": 1})
    await at(journey, FIRST)
    await journey.release("second")
    journey.fleet.never_end(first)
    await name_release(journey, "second")

    async def begun() -> bool:
        return journey.patched(SECOND) == [first]

    await journey.until(begun, "the first VM is in work")
    await name_release(journey, "first")
    journey.fleet.end(first)
    await at(journey, FIRST)
    assert [patch.revision for patch in journey.fleet.patches_of(first)] == [FIRST, SECOND, FIRST]
    assert [patch.revision for patch in journey.fleet.patches_of(second)] == [FIRST]
    assert [one["status"]["result"] for one in await journey.rollouts()] == ["Succeeded", "Superseded", "Succeeded"]


async def test_going_back_leaves_alone_who_went_back_by_itself_and_the_next_try_is_a_declaration(
    journey: Journey,
) -> None:
    """The VM that failed is at the former release already. A failed release that is declared anew is tried anew."""
    entries = journey.add("a", "b")
    good, bad = journey.vms
    await journey.declare(entries, strategy={"maxUnavailable": 1})
    await at(journey, FIRST)
    await journey.release("second")
    journey.fleet.set(bad, outcome=JournalPhase.ROLLED_BACK)
    await name_release(journey, "second")
    await journey.policy_says("VMFailed", "Failed", bad)
    await journey.ended("Failed")
    journey.fleet.set(bad, outcome=JournalPhase.COMMITTED)
    await name_release(journey, "first")
    await at(journey, FIRST)
    assert [patch.revision for patch in journey.fleet.patches_of(good)] == [FIRST, SECOND, FIRST]
    assert [patch.revision for patch in journey.fleet.patches_of(bad)] == [FIRST, SECOND]
    await name_release(journey, "second")
    await at(journey, SECOND)
    assert journey.fleet.revision(bad) == SECOND


async def test_a_release_that_failed_before_the_one_that_is_reverted_is_tried_again(journey: Journey) -> None:
    """A revert is a decision: what became of the release before it is not asked."""
    entries = journey.add("a")
    (vm,) = journey.vms
    journey.fleet.set(vm, outcome=JournalPhase.ROLLED_BACK)
    await journey.declare(entries)
    await journey.policy_says("VMFailed", "Failed", vm)
    await journey.ended("Failed")
    journey.fleet.set(vm, outcome=JournalPhase.COMMITTED)
    await journey.release("second")
    await name_release(journey, "second")
    await at(journey, SECOND)
    await name_release(journey, "first")
    await at(journey, FIRST)


async def test_a_vm_taken_back_on_its_console_is_left_there_until_git_says_the_same(journey: Journey) -> None:
    """`--back` on the VM: the operator tells it and does not undo it. Once the policy says so too, all is well."""
    await brought_to_the_second(journey, journey.add("a", "b"))
    by_hand, other = journey.vms
    last = journey.fleet.patches_of(by_hand)[-1].id
    journey.fleet.take_back(by_hand, last, 10**12)
    await journey.ask_for_a_look(by_hand)
    await journey.policy_says("Drifted", "InProgress", by_hand)
    told = await journey.says(SYSTEM_VM, journey.object_of(by_hand), "Drifted")
    assert "drift.heal is Never" in condition(told, "Ready")["message"]
    await name_release(journey, "first")
    await at(journey, FIRST)
    assert journey.patched(FIRST) == [by_hand, other, other], "who is there already is not patched"


async def test_where_drift_is_healed_a_hold_keeps_what_was_taken_back_on_the_console(journey: Journey) -> None:
    await brought_to_the_second(journey, journey.add("a"), drift={"heal": "Automatic"})
    (vm,) = journey.vms
    await journey.namespace.edit(SYSTEM_VM, journey.object_of(vm), {"hold": {"reason": "INC-77"}})
    await journey.says(SYSTEM_VM, journey.object_of(vm), "OnHold")
    journey.fleet.take_back(vm, journey.fleet.patches_of(vm)[-1].id, 10**12)
    await journey.looked(vm)
    assert journey.fleet.revision(vm) == FIRST
    await name_release(journey, "first")
    await journey.namespace.edit(SYSTEM_VM, journey.object_of(vm), {"hold": None})
    await journey.policy_says("Converged", "Current", f"1 at {FIRST[:8]}")
    assert journey.patched(FIRST) == [vm]
    assert (
        len([one for one in await journey.namespace.all(ROLLOUT) if one["metadata"]["name"].startswith(journey.name)])
        == 2
    )


async def test_a_host_that_keeps_the_newer_release_holds_its_vms_until_it_keeps_the_former_one(
    journey: Journey,
) -> None:
    """A stop and start of the VM would install what the host keeps."""
    await brought_to_the_second(journey, journey.add("a"))
    (vm,) = journey.vms
    former, newer = (read_payload(objects.scripts(word), None) for word in ("first", "second"))
    journey.fleet.set(vm, host=("kvm-1", newer.signature, newer.scripts_revision))
    await name_release(journey, "first")
    told = await journey.policy_says("HostPayloadMismatch", "InProgress", "kvm-1")
    assert "a stop and start of the VM would install it" in told
    assert journey.patched(FIRST) == [vm], "once, before the second release"
    journey.fleet.set(vm, host=("kvm-1", former.signature, former.scripts_revision))
    await journey.ask_for_a_look(vm)
    await at(journey, FIRST)
