"""The two moments around a call that no write tells apart: stored and not yet called, called and not yet stored.

What is stored there is the same (`Submitting`, with the VMs as they were), so the next life must look, and must not
believe what it stored. The stand-in server holds back what it takes or what it answers while the operator is killed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio
from tests.integration.engine.cloud_fleet import CHANGES, Contents
from tests.integration.engine.lives import Trial
from tests.integration.engine.test_recreate import Story, admin, phases_of, told

from lab.controlplane import ControlPlane
from sysvm.engine.resources import ROLLOUT
from sysvm.kube.client import Cluster

__all__ = ["admin"]

ON_ITS_WAY_SECONDS = 1.0
"""Less than the stories' QUIET: what is on its way longer than the server takes it is refused there."""
NEVER_SECONDS = 300.0
SMALL = Contents(networks={"single": False}, cpvm=False)
FIRST_WRITES = ("1:after",) * 4 + ("1:before",) * 3 + ("1:after", "1:before") * 2 + ("1:after",) * 3


@pytest_asyncio.fixture
async def story(control_plane: ControlPlane, crds: list[str], admin: Cluster, tmp_path: Path) -> AsyncIterator[Story]:
    async with told(control_plane, admin, tmp_path, contents=SMALL) as story:
        story.cloud.world.faults.commands = set(CHANGES)
        yield story


async def stored(story: Story, phase: str) -> None:
    async def found() -> bool:
        return phase in phases_of(await story.namespace.all(ROLLOUT)).values()

    await story.until(found, f"{phase} is stored")


async def die(story: Story) -> None:
    """Another life begins with the next look."""
    await story.lane.nursery.kill()
    story.trial = Trial(("killed",) * story.lives)


async def test_a_call_whose_answer_nobody_lived_to_hear_is_found_out_and_not_made_again(story: Story) -> None:
    story.cloud.world.faults.late_seconds = NEVER_SECONDS
    await story.declare(methods=["LivePatch", "Recreate"], selector={"types": ["router"]})
    await story.called()
    await die(story)
    await story.ended("Succeeded")
    await story.converged()
    (death,) = story.deaths
    assert (set(death.phases.values()), death.calls) == ({"Submitting"}, ("restartNetwork",))
    assert story.cloud.calls == ["restartNetwork"]


async def test_a_call_that_was_on_its_way_when_its_maker_died_is_waited_for(story: Story) -> None:
    story.cloud.world.faults.delay_seconds = ON_ITS_WAY_SECONDS
    await story.declare(methods=["LivePatch", "Reboot"], selector={"types": ["router"]})
    await stored(story, "Submitting")
    await die(story)
    await story.ended("Succeeded")
    await story.converged()
    (death,) = story.deaths
    assert (set(death.phases.values()), death.calls) == ({"Submitting"}, ())
    assert story.cloud.calls == ["rebootRouter"]


async def test_lives_that_always_die_before_their_call_make_none_and_say_so(story: Story) -> None:
    (name,) = story.cloud.of_type("secstorage")
    host = story.cloud.world.vm(name).host
    assert host is not None
    host.resource_state = "Maintenance"
    await story.declare(methods=["Recreate"], selector={"names": [name]})
    await stored(story, "Preparing")
    host.resource_state = "Enabled"
    await die(story)
    story.trial = Trial(("1:after",), again=True)
    await story.ended("Failed")
    assert story.cloud.calls == []
    assert sum(death.phases.get(name) == "Submitting" for death in story.deaths) >= 2
    operation = (await story.vms())[name]["status"]["operation"]
    assert (operation["result"], operation["reason"]) == ("Failed", "JobLost")


async def test_lives_that_die_at_their_first_write_get_on(story: Story) -> None:
    story.trial = Trial(FIRST_WRITES)
    await story.declare(methods=["LivePatch", "Recreate"], selector={"types": ["router"]})
    await story.ended("Succeeded")
    await story.converged()
    assert [death.at for death in story.deaths] == list(FIRST_WRITES)
    assert story.cloud.calls == ["restartNetwork"]
