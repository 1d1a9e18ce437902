"""Rollouts keep to the calendar: on the real API server, by the real clock, with simulated VMs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.integration.engine.cluster import says
from tests.integration.engine.journey import Journey
from tests.integration.engine.objects import Manifest

from sysvm.api.base import format_time
from sysvm.engine.resources import POLICY, WINDOW

pytestmark = pytest.mark.asyncio(loop_scope="module")


def window(journey: Journey, name: str, effect: str = "Allow", **spec: Any) -> Manifest:
    """Open from an hour ago for two hours, unless said otherwise. A freeze is about this journey's policy alone."""
    if effect == "Deny":
        spec["policySelector"] = {"matchLabels": {"journey": journey.name}}
    if "schedule" not in spec:
        spec.setdefault("interval", between(-timedelta(hours=1), timedelta(hours=1)))
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "MaintenanceWindow",
        "metadata": {"name": f"{journey.name}-{name}", "namespace": journey.namespace.name},
        "spec": {"effect": effect, **spec},
    }


def between(begin: timedelta, end: timedelta) -> dict[str, str]:
    now = datetime.now(UTC)
    return {"from": format_time(now + begin), "to": format_time(now + end)}


def refs(journey: Journey, *names: str) -> list[dict[str, str]]:
    return [{"name": f"{journey.name}-{name}"} for name in names]


async def blocked(journey: Journey, reason: str, name: str) -> dict[str, Any]:
    """What the policy says it waits for, once it is this window for this reason."""
    ref = f"MaintenanceWindow/{journey.name}-{name}"

    async def said() -> dict[str, Any] | None:
        found = (await journey.namespace.get(POLICY, journey.name)).get("status", {}).get("blockedBy", [])
        return next((one for one in found if (one["reason"], one.get("ref")) == (reason, ref)), None)

    found: dict[str, Any] = await journey.until(said, f"policy is blocked by {reason} {ref}")
    return found


async def test_work_begins_by_itself_when_the_window_opens_and_not_before(journey: Journey) -> None:
    later = between(timedelta(hours=1), timedelta(hours=2))
    await journey.namespace.create(window(journey, "night", interval=later))
    await journey.declare(journey.add("a"), windowRefs=refs(journey, "night"))
    waiting = await blocked(journey, "OutsideWindow", "night")
    assert waiting["until"] == later["from"]
    assert journey.patch_calls() == 0
    opens = between(timedelta(seconds=4), timedelta(hours=1))
    await journey.namespace.edit(WINDOW, f"{journey.name}-night", {"interval": opens})
    await journey.converged()
    began = (await journey.vm(journey.vms[0]))["status"]["operation"]["startedAt"]
    assert began >= opens["from"]
    assert says(await journey.namespace.get(WINDOW, f"{journey.name}-night")) == ("True", "Open")


async def test_a_freeze_stops_a_rollout_that_runs_and_its_end_lets_it_go_on(journey: Journey) -> None:
    entries = journey.add("a", "b")
    first, second = journey.vms
    journey.fleet.never_end(first)
    await journey.declare(entries, strategy={"maxUnavailable": 1})
    await journey.namespace.admin.merge_patch(
        POLICY, journey.namespace.name, journey.name, {"metadata": {"labels": {"journey": journey.name}}}
    )
    await journey.in_work(first)
    await journey.namespace.create(window(journey, "freeze", "Deny", reason="INC-77"))
    frozen = await blocked(journey, "Frozen", "freeze")
    assert "INC-77" in frozen["message"]
    journey.fleet.end(first)

    async def finished() -> bool:
        return bool((await journey.vm(first))["status"]["operation"].get("result") == "Succeeded")

    await journey.until(finished, f"{first} is finished, because a freeze lets work finish")
    await journey.looked(second)
    assert [patch.vm for patch in journey.patches()] == [first]
    await journey.namespace.delete(WINDOW, f"{journey.name}-freeze")
    await journey.converged()


async def test_a_window_that_is_missing_opens_nothing_until_it_is_made(journey: Journey) -> None:
    await journey.declare(journey.add("a"), windowRefs=refs(journey, "night"))
    told = await blocked(journey, "WindowNotFound", "night")
    assert "does not exist" in told["message"]
    assert journey.patch_calls() == 0
    await journey.namespace.create(window(journey, "night"))
    await journey.converged()


async def test_a_window_that_makes_no_sense_opens_nothing_until_it_is_mended(journey: Journey) -> None:
    schedule = {"rrule": "FREQ=WEEKLY;BYDAY=XX", "start": "00:00", "duration": "24h", "timeZone": "UTC"}
    await journey.namespace.create(window(journey, "night", schedule=schedule))
    await journey.declare(journey.add("a"), windowRefs=refs(journey, "night"))
    await blocked(journey, "InvalidSchedule", "night")
    await journey.says(WINDOW, f"{journey.name}-night", "InvalidSchedule")
    assert journey.patch_calls() == 0
    mended = {"schedule": {**schedule, "rrule": "FREQ=DAILY"}}
    await journey.namespace.edit(WINDOW, f"{journey.name}-night", mended)
    await journey.says(WINDOW, f"{journey.name}-night", "Open", "True")
    await journey.converged()
