"""Rollouts keep to their plan: waves, soaks, budgets, the way back, tries and repairs, on the real API server."""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.engine.cluster import condition, kstatus
from tests.integration.engine.journey import Journey

from sysvm.api.reasons import Reason
from sysvm.engine.resources import ENDPOINT, POLICY, ROLLOUT
from sysvm.patching.results import JournalPhase

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = [{"name": "canary", "limit": 1, "soak": "3s"}, {"name": "rest"}]


async def the_rollout(journey: Journey) -> dict[str, Any]:
    found = await journey.rollouts()
    return found[-1] if found else {}


async def wave(journey: Journey, name: str) -> dict[str, Any]:
    waves = (await the_rollout(journey)).get("status", {}).get("waves", [])
    return next((one for one in waves if one["name"] == name), {})


async def ended(journey: Journey, result: str) -> dict[str, Any]:
    async def said() -> dict[str, Any] | None:
        rollout = await the_rollout(journey)
        return rollout if rollout.get("status", {}).get("result") == result else None

    found: dict[str, Any] = await journey.until(said, f"the rollout ended {result}")
    return found


async def test_the_rest_waits_until_the_canary_has_soaked(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b", "c"), strategy={"waves": CANARY, "maxUnavailable": 2})
    await journey.policy_says("Soaking", "InProgress", "1 at")
    assert len(journey.patches()) == 1
    policy = await journey.namespace.get(POLICY, journey.name)
    assert policy["status"]["progress"]["wave"] == "canary"
    assert "start wave rest (2 VMs)" in policy["status"]["nextAction"]["what"]
    assert condition(policy, "Reconciling") == {}
    soaked = (await wave(journey, "canary"))["soakUntil"]
    await journey.converged()
    rollout = await ended(journey, "Succeeded")
    assert [one["phase"] for one in rollout["status"]["waves"]] == ["Done", "Done"]
    assert rollout["status"]["waves"][1]["startedAt"] >= soaked


async def test_when_the_budget_is_spent_the_wave_goes_back_to_what_it_was(journey: Journey) -> None:
    entries = journey.add("a", "b", "c")
    canary, good, bad = journey.vms
    journey.fleet.set(bad, outcome=JournalPhase.ROLLED_BACK)
    old = journey.fleet.revision(canary)
    waves = [{"name": "canary", "limit": 1}, {"name": "rest"}]
    await journey.declare(entries, strategy={"waves": waves, "maxUnavailable": 1, "onBudgetSpent": "RollBack"})
    rollout = await ended(journey, "RolledBack")
    assert journey.fleet.revision(good) == old
    assert journey.fleet.revision(canary) != old, "the canary was done before: only the wave in work goes back"
    assert [(one["done"], one["failed"], one.get("returned")) for one in rollout["status"]["waves"]] == [
        (1, 0, 0),
        (0, 1, 1),
    ]
    assert condition(rollout, "BudgetSpent")["status"] == "True"
    assert kstatus(rollout) == "Failed"
    operation = (await journey.vm(good))["status"]["operation"]
    assert operation["result"] == "Succeeded"
    assert operation["takesBack"] != operation["id"]
    await journey.policy_says("VMFailed", "Failed", bad)
    assert len(await journey.rollouts()) == 1, "it is not tried again by itself"
    journey.fleet.set(bad, outcome=JournalPhase.COMMITTED)
    await journey.namespace.edit(POLICY, journey.name, {"retryAt": "2026-11-01T00:00:00Z"})
    await journey.converged()
    assert "takesBack" not in (await journey.vm(good))["spec"]["operation"], "an order has nothing of the one before"
    assert len(await journey.rollouts()) == 2


async def test_a_busy_vm_is_tried_again(journey: Journey) -> None:
    entries = journey.add("a")
    (vm,) = journey.vms
    journey.fleet.set(vm, refused=(Reason.VM_BUSY, False))
    await journey.declare(entries, strategy={"retry": {"limit": 3, "backoff": "1s"}})
    await journey.policy_says("Retrying", "InProgress")
    journey.fleet.set(vm, refused=None)
    await journey.converged()
    assert (await journey.vm(vm))["spec"]["operation"]["attempt"] > 1
    assert len(await journey.rollouts()) == 1


async def test_a_vm_that_appears_joins_the_rollout_that_runs(journey: Journey) -> None:
    entries = journey.add("a")
    journey.fleet.never_end(journey.vms[0])
    await journey.declare(entries)
    await journey.in_work(journey.vms[0])
    before = (await wave(journey, "rest"))["digest"]
    late = journey.add("b")
    await journey.namespace.edit(ENDPOINT, journey.name, {"systemVMs": [*entries, *late]})

    async def appended() -> bool:
        return bool((await wave(journey, "rest")).get("appended"))

    await journey.until(appended, "the new VM is written down")
    rest = await wave(journey, "rest")
    assert [one["name"] for one in rest["appended"]] == [journey.object_of(journey.vms[1])]
    assert rest["digest"] != before
    journey.fleet.end(journey.vms[0])
    await journey.converged()
    assert (await ended(journey, "Succeeded"))["status"]["summary"] == "2/2"
    assert len(await journey.rollouts()) == 1


async def test_drift_is_put_back_where_the_policy_says_so_until_it_is_a_fight(journey: Journey) -> None:
    await journey.declare(journey.add("a"), drift={"heal": "Automatic"})
    await journey.converged()
    (vm,) = journey.vms
    for healed in (1, 2, 3):
        journey.fleet.set(vm, drifted=True)
        await journey.ask_for_a_look(vm)

        async def put_back(count: int = healed) -> bool:
            rollouts = await journey.rollouts()
            causes = [one["spec"]["cause"] for one in rollouts if one.get("status", {}).get("result") == "Succeeded"]
            return causes.count("Drift") == count

        await journey.until(put_back, f"repair {healed} has ended")
        await journey.policy_says("Converged", "Current")
    journey.fleet.set(vm, drifted=True)
    await journey.ask_for_a_look(vm)
    await journey.policy_says("HealLoop", "Failed", vm)
    assert len(journey.patches()) == 4


async def test_an_edit_in_the_middle_counts_for_the_next_rollout(journey: Journey) -> None:
    entries = journey.add("a", "b")
    first, second = journey.vms
    journey.fleet.never_end(first)
    await journey.declare(entries, strategy={"maxUnavailable": 1})
    await journey.in_work(first)
    await journey.namespace.edit(POLICY, journey.name, {"strategy": {"maxUnavailable": 2}})
    name = (await the_rollout(journey))["metadata"]["name"]
    rollout = await journey.says(ROLLOUT, name, "PolicyChanged", "True", type_="PolicyChanged")
    assert "strategy" in condition(rollout, "PolicyChanged")["message"]
    assert journey.patched() == [first]
    journey.fleet.end(first)
    await journey.converged()
    assert journey.patched() == [first, second]
