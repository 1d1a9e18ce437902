"""Where the chart's admission policies are missing nothing proves who signed: nothing that people sign counts, and that
is said, on the real API server."""

from __future__ import annotations

import pytest
from tests.integration.engine.cluster import condition
from tests.integration.engine.journey import Journey
from tests.integration.engine.test_truth import CANARY, approval, events, later, reached, seen_by_others, window

from sysvm.engine.resources import APPROVAL, ROLLOUT

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_approval_that_nobody_checked_opens_nothing(journey: Journey) -> None:
    await journey.declare(journey.add("a", "b"), strategy={"waves": CANARY}, approval={"before": ["rest"]})
    await reached(journey, "WaitingForApproval", message="admissionPolicies.enabled")
    (rollout,) = await journey.rollouts()
    await journey.namespace.create(approval(journey, "alice", rollout))
    found = await journey.says(APPROVAL, f"{journey.name}-alice", "ApprovalUnguarded")
    assert seen_by_others(found) == "Failed"
    assert "admissionPolicies.enabled" in condition(found, "Ready")["message"]
    await journey.looked(journey.vms[1])
    assert len(journey.patches()) == 1


async def test_a_glass_that_anybody_could_have_broken_opens_nothing_and_is_told(journey: Journey) -> None:
    await journey.namespace.create(window(journey, "Allow", interval={"from": later(), "to": later(2)}))
    await journey.declare(journey.add("a"), windowRefs=[{"name": f"{journey.name}-allow"}])
    await reached(journey, "OutsideWindow")
    (rollout,) = await journey.rollouts()
    name = rollout["metadata"]["name"]
    await journey.namespace.edit(ROLLOUT, name, {"breakGlass": {"reason": "INC-77", "until": later(2)}})

    async def told() -> list[tuple[str, str, str]]:
        return [one for one in await events(journey, name) if one[0] == "Warning"]

    ((_, reason, note),) = await journey.until(told, "a Warning")
    assert reason == "BreakGlassRefused"
    assert "admissionPolicies.enabled" in note
    await journey.looked(journey.vms[0])
    await reached(journey, "OutsideWindow")
    assert journey.patch_calls() == 0
