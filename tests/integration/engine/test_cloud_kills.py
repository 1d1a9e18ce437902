"""No write is a bad moment to die, also where the management server is called.

A call cannot be taken back and bears no name of ours: who dies around one leaves it to the next life to find out
whether it was made. Three stories (CloudStack's own live patch, Recreate, Reboot; of a router, a VPC and an SSVM) are
told by operators that are killed at their writes. Every time each call must have been made exactly once, and all must
end as if nobody had died.

By default a spread of the writes is tried; `SYSVM_TEST_EVERY_KILL=1` tells a story for every write and both moments,
`50:75` for those writes, `1::6` for every sixth.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.integration.engine import objects
from tests.integration.engine.cloud_fleet import (
    CHANGES,
    Contents,
    close_gates,
    cloud_endpoint,
    cloud_fleet,
    cloud_secret,
    release,
)
from tests.integration.engine.cluster import Namespace, kstatus, says
from tests.integration.engine.lives import UNDISTURBED, Lane, Trial, free_port, lane, writes
from tests.integration.engine.nursery import SUBMISSIONS
from tests.integration.engine.objects import Manifest
from tests.integration.engine.simulated_vms import Fleet
from tests.integration.engine.test_recreate import Death, Story

from lab.controlplane import ControlPlane
from sysvm.engine.resources import POLICY, ROLLOUT, SYSTEM_VM
from sysvm.kube.client import Cluster

LANES = 5
"""Stories that are told at once: they wait most of the time."""
MEMBERS = {"types": ["router", "vpcrouter", "secstorage"]}
CONTENTS = Contents(networks={"single": False}, vpcs={"vpc": False}, cpvm=False)
SPREAD = (
    Trial(("56:after",)),
    Trial(("63:before",)),
    Trial(("48:after", "19:before", "9:after")),
    Trial(("17:after", "21:before"), again=True),
    Trial(("34:after", *["1:after"] * 12)),
)
"""Where lives end in the short run. In the last story one dies before anything is ordered, and then one after each
write, so that no phase passes without a death whatever the machine's pace."""


@dataclass(frozen=True)
class Plot:
    """What is told. `calls`: every changing call, each to be made once. `gated`: the routers' command gates are closed
    and everybody's scripts are old."""

    calls: tuple[str, ...]
    policy: Mapping[str, Any]
    gated: bool = False

    async def declare(self, story: Story) -> None:
        name, cloud = story.namespace.name, story.cloud
        if self.gated:
            close_gates(cloud)
        endpoint = cloud_endpoint(name, "here", cloud)
        endpoint["spec"]["scan"] = {"interval": "10s", "inventory": "10s"}
        await story.namespace.create(
            release(name, "first"),
            objects.policy(name, "routers", "here", "first", selector=MEMBERS, **dict(self.policy)),
            endpoint,
        )


PLOTS = {
    "livepatch": Plot(("patchSystemVm", "restartNetwork", "restartVPC"), {"livePatch": {"route": "API"}}, gated=True),
    "recreate": Plot(
        ("destroySystemVm", "restartNetwork", "restartVPC"),
        {"methods": ["LivePatch", "Recreate"], "templateVersion": "Require"},
    ),
    "reboot": Plot(
        ("rebootRouter", "rebootRouter", "rebootSystemVm"),
        {"methods": ["LivePatch", "Reboot"], "templateVersion": "Require"},
    ),
}


@dataclass
class Told:
    """How a story went. `ending`: what it came to; of names and times only what does not depend on the order."""

    trial: Trial
    ending: dict[str, object]
    deaths: list[Death]
    writes: int
    """Counted of who was not disturbed, Events left out."""
    seconds: float

    def __str__(self) -> str:
        deaths = ", ".join(
            f"{death.at} with {len(death.calls)} calls and {'+'.join(death.phases.values()) or 'none stored'}"
            for death in self.deaths
        )
        return f"{self.trial}: {self.seconds:.1f} s; {deaths or 'nobody died'}"


@dataclass
class Teller:
    """Tells one plot in one namespace, again and again."""

    plot: Plot
    lane: Lane
    stories: int = 0

    async def tell(self, trial: Trial, *, count: bool = False) -> Told:
        """One story from a cluster without a trace of it to its end."""
        begun = time.monotonic()
        self.stories += 1
        fleet = Fleet.of(self.lane.folder / f"fleet-{self.stories}.json", {})
        async with cloud_fleet(fleet, contents=CONTENTS) as cloud:
            port = free_port() if count else 0
            story = Story(self.lane, cloud, trial, environment={"SYSVM_HTTP_PORT": str(port)})
            if len(trial.at) > 1:  # several lives may all end between what is stored and its call
                story.environment[SUBMISSIONS] = "9"
            if self.stories == 1:
                await self.namespace.create(
                    cloud_secret(self.namespace.name, cloud),
                    objects.config_map(self.namespace.name, "first", objects.scripts("first")),
                )
            await self.plot.declare(story)
            await story.ended("Succeeded")
            await story.converged()
            await story.until(partial(_tidy, story), f"{trial}: nothing left over")
            counted = sum(n for what, n in (await writes(port)).items() if what != "create Event") if count else 0
            if self.lane.nursery.alive:
                await self.lane.nursery.kill()
            self._check(story)
            ending = await _ending(story)
        await self.namespace.clear()
        await self.namespace.release_lease()
        return Told(trial, ending, story.deaths, int(counted), time.monotonic() - begun)

    @property
    def namespace(self) -> Namespace:
        return self.lane.namespace

    def _check(self, story: Story) -> None:
        made = [call for call in story.cloud.world.calls if call.command in CHANGES]
        said = f"{story.trial}: {made}\n{self.lane.nursery.story()}"
        assert sorted(story.cloud.calls) == sorted(self.plot.calls), said
        assert len({(call.command, call.parameters["id"]) for call in made}) == len(made), said


async def tell_all(plot: Plot, control_plane: ControlPlane, folder: Path, trials: Iterable[Trial]) -> list[Told]:
    """Several at once. Ends at the first that goes wrong."""
    waiting = iter(trials)
    found: list[Told] = []

    async def worker(admin: Cluster, number: int) -> None:
        name = f"cloud-kills-{number}-{os.getpid()}-{time.monotonic_ns() % 10**9}"
        async with lane(control_plane, admin, name, folder / name) as here:
            teller = Teller(plot, here)
            for trial in waiting:
                one = await teller.tell(trial, count=trial == UNDISTURBED)
                found.append(one)
                print(one, flush=True)

    async with await Cluster.connect(kubeconfig=control_plane.kubeconfig) as admin, asyncio.TaskGroup() as lanes:
        for number in range(LANES):
            lanes.create_task(worker(admin, number))
    return found


async def _tidy(story: Story) -> bool:
    """Who was replaced is forgotten, who was in work is let go, and so is what was noted of the calls."""
    vms, rollouts = await story.namespace.all(SYSTEM_VM), await story.namespace.all(ROLLOUT)
    names = {vm.name for vm in story.cloud.world.vms.values()}
    return (
        {vm["status"].get("identity", {}).get("name") for vm in vms} == names
        and not any(obj["metadata"].get("finalizers") for obj in (*vms, *rollouts))
        and not any(one["status"].get("groupOperations") for one in rollouts)
        and all(vm["status"].get("state") == "Converged" for vm in vms)
    )


async def _ending(story: Story) -> dict[str, object]:
    policy = await story.namespace.get(POLICY, "routers")
    status = policy["status"]
    rollouts = await story.namespace.all(ROLLOUT)
    world = story.cloud.world
    return {
        "policy": (says(policy), kstatus(policy), status["counts"], status["lastRollout"]["result"]),
        "rollouts": [(one["metadata"]["name"], one["status"]["result"], _waves(one)) for one in rollouts],
        "plans": len(await story.namespace.plans()),
        "vms": sorted(_told_of(vm) for vm in await story.namespace.all(SYSTEM_VM)),
        "cloud": sorted(
            (vm.type, str(vm.state), vm.inside.template_version, vm.inside.patches, vm.inside.boots)
            for vm in world.vms.values()
        ),
        "removed": len(world.removed),
    }


def _waves(rollout: Manifest) -> list[dict[str, object]]:
    return [{key: wave.get(key) for key in ("phase", "total", "done", "failed")} for wave in rollout["status"]["waves"]]


def _told_of(vm: Manifest) -> tuple[str, ...]:
    status = vm["status"]
    history = [f"{entry['method']} {entry['result']} {entry.get('reason', '')}" for entry in status.get("history", [])]
    return (status["identity"]["type"], status["state"], str(says(vm)), *history)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("plot", PLOTS)
async def test_dying_around_calls_leaves_each_made_once(
    plot: str, control_plane: ControlPlane, crds: list[str], tmp_path: Path
) -> None:
    wish = os.environ.get("SYSVM_TEST_EVERY_KILL")
    if wish:
        (whole,) = await tell_all(PLOTS[plot], control_plane, tmp_path, [UNDISTURBED])
        found = await tell_all(PLOTS[plot], control_plane, tmp_path, every(whole.writes, wish))
    else:
        found = await tell_all(PLOTS[plot], control_plane, tmp_path, (UNDISTURBED, *SPREAD))
        whole = next(one for one in found if one.trial == UNDISTURBED)
        found.remove(whole)
    assert not whole.deaths
    for one in found:
        assert one.ending == whole.ending, one.trial
    killed = sum(bool(one.deaths) for one in found)
    assert killed > 0.9 * len(found), f"{killed} of {len(found)}"
    found_in = Counter(phase for one in found for death in one.deaths for phase in set(death.phases.values()))
    print(f"{plot}: {whole.writes} writes, {len(found)} stories, {killed} with a death; {dict(found_in)}")
    assert {"Preparing", "Verifying"} <= found_in.keys(), found_in
    # How long a job runs beside its stories is the machine's: the few of the short run need not have met each phase.
    assert {"Submitting", "Running", "Unknown"} & found_in.keys(), found_in


def every(count: int, wish: str) -> list[Trial]:
    parts = [int(part) if part else None for part in wish.split(":")]
    numbers = range(1, count + 1) if len(parts) == 1 else range(count + 1)[slice(*parts)]
    return [Trial((f"{number}:{moment}",)) for number in numbers for moment in ("after", "before")]
