"""No write is a bad moment to die.

One story (a redundant pair, a single router and an SSVM go to one release, then to the next) is told again and again,
by operators that are killed at their writes. Every time it must end as if nobody had died: each VM patched exactly once
a release, never two of a group at once, BACKUP before PRIMARY, one Rollout a release, nothing left over.

By default every write is tried in stories that die many times (`ONE_AFTER_THE_OTHER`), and a spread of them in stories
that die once. `SYSVM_TEST_EVERY_KILL=1` tells one for every write and both moments, in some twenty minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.integration.engine import objects
from tests.integration.engine.cluster import kstatus, says, until
from tests.integration.engine.lives import UNDISTURBED, Lane, Trial, free_port, lane, writes
from tests.integration.engine.simulated_vms import Fleet, Patch

from lab.controlplane import ControlPlane
from sysvm.api.observed import RedundancyRole
from sysvm.engine.resources import POLICY, ROLLOUT, SYSTEM_VM
from sysvm.kube.client import Cluster
from sysvm.operator.killer import VARIABLE
from sysvm.patching.payload import read_payload

SPREAD = 5
"""Writes after which a life ends in the short run; before a write half as many."""
LANES = 3
"""Namespaces in which stories are told at once."""
STORY_SECONDS = 180.0
FIRST, SECOND = read_payload(objects.scripts("first"), None), read_payload(objects.scripts("second"), None)
VMS = [
    objects.vm("r-1-VM", group="edge", host="h1"),
    objects.vm("r-2-VM", group="edge", host="h2"),
    objects.vm("r-3-VM", host="h1"),
    objects.vm("s-4-VM", "secstorage", zone="ams", host="h2"),
]
ROLES = {"r-1-VM": RedundancyRole.PRIMARY, "r-2-VM": RedundancyRole.BACKUP, "r-3-VM": None, "s-4-VM": None}
ONE_AFTER_THE_OTHER = (
    ("1:after",),
    ("2:after",),
    ("1:after", "2:before"),
    ("3:after",),
    ("3:before", "2:after"),
    ("5:after", "5:before"),
    ("8:after", "13:before"),
)
"""Where the lives of one story die, in turns, until one ends the story first. Writes are sent side by side, so a life
that dies before a write may have made none: dying only so would be the end of all progress."""


@dataclass
class Told:
    """How a story went."""

    trial: Trial
    lives: int = 0
    was_killed: bool = False
    seconds: float = 0.0


@dataclass
class Teller(Lane):
    """Tells stories in one namespace, one after the other."""

    stories: int = 0

    async def tell(self, trial: Trial) -> Told:
        """One story from a cluster without a trace of it to its end."""
        begun = time.monotonic()
        self.stories += 1
        fleet = Fleet.of(self.folder / f"fleet-{self.stories}.json", ROLES, seconds=0.2)
        told = Told(trial)
        name = self.namespace.name
        await self.namespace.create(
            objects.endpoint(name, "here", VMS),
            objects.template(name, "first", objects.scripts("first")),
            objects.template(name, "second", objects.scripts("second")),
            objects.policy(name, "routers", "here", "first"),
        )
        await self._until_converged(fleet, told, FIRST.revision, number=1)
        await self.namespace.edit(POLICY, "routers", {"templateRef": {"name": "second"}})
        await self._until_converged(fleet, told, SECOND.revision, number=2)
        await self._until_tidy(told)
        await self.nursery.kill()
        await self._check(fleet, told)
        await self.namespace.clear()
        await self.namespace.release_lease()
        told.seconds = time.monotonic() - begun
        return told

    async def _keep_alive(self, fleet: Fleet, told: Told) -> None:
        if self.nursery.alive:
            return
        if told.lives:
            code = await self.nursery.wait()
            assert code == -9, f"{told.trial}: it ended by itself with {code}\n{self.nursery.story()}"
            told.was_killed = True
            await self.namespace.release_lease()
        await self.nursery.start(fleet, **{VARIABLE: told.trial.death(told.lives)})
        told.lives += 1

    async def _until_converged(self, fleet: Fleet, told: Told, revision: str, number: int) -> None:
        async def converged() -> bool:
            await self._keep_alive(fleet, told)
            policy = await self.namespace.get(POLICY, "routers")
            last = (policy.get("status") or {}).get("lastRollout") or {}
            assert last.get("number", 1) <= number, f"{told.trial}: a rollout too many: {last}"
            return says(policy) == ("True", "Converged") and last["revision"] == revision

        await until(converged, f"{told.trial}: converged at {revision[:8]}", within=STORY_SECONDS, story=self.picture)

    async def _until_tidy(self, told: Told) -> None:
        """What a life that dies after the last VM leaves is the next one's to tidy up."""
        if told.trial.again or not self.nursery.alive:
            if self.nursery.alive:
                await self.nursery.kill()
            await self.namespace.release_lease()
            await self.nursery.start(Fleet(self.folder / f"fleet-{self.stories}.json"), **{VARIABLE: ""})
            told.lives += 1

        async def tidy() -> bool:
            policy = await self.namespace.get(POLICY, "routers")
            kept = [*await self.namespace.all(SYSTEM_VM), *await self.namespace.all(ROLLOUT)]
            plans = await self.namespace.plans()
            return (
                policy["status"]["lastRollout"].get("result") == "Succeeded"
                and not any(obj["metadata"].get("finalizers") for obj in kept)
                and all(obj["status"].get("result") for obj in kept if obj["kind"] == "Rollout")
                and all(
                    [owner["kind"] for owner in plan["metadata"]["ownerReferences"]] == ["Rollout"] for plan in plans
                )
            )

        await until(tidy, f"{told.trial}: nothing left over", story=self.picture)

    async def _check(self, fleet: Fleet, told: Told) -> None:
        trial = str(told.trial)
        policy = await self.namespace.get(POLICY, "routers")
        rollouts = {one["metadata"]["name"]: one for one in await self.namespace.all(ROLLOUT)}
        names = [f"routers-{FIRST.revision[:8]}-1", f"routers-{SECOND.revision[:8]}-2"]
        assert sorted(rollouts) == sorted(names), trial
        assert [rollouts[name]["status"]["result"] for name in names] == ["Succeeded", "Succeeded"], trial
        last = policy["status"]["lastRollout"]
        assert (last["name"], last["uid"], last["result"]) == (
            names[1],
            rollouts[names[1]]["metadata"]["uid"],
            "Succeeded",
        )
        plans = [plan["metadata"]["name"] for plan in await self.namespace.plans()]
        assert sorted(plans) == sorted(f"{name}-plan" for name in names), trial
        assert kstatus(policy) == "Current", trial
        for vm in await self.namespace.all(SYSTEM_VM):
            assert vm["status"]["state"] == "Converged", trial
            assert [entry["result"] for entry in vm["status"]["history"]] == ["Succeeded"] * 2, trial
            assert vm["spec"]["operation"]["attempt"] == 1, trial
        check_patches(fleet.patches(), trial)

    async def count_writes(self) -> int:
        """How many writes a story has that nobody disturbs, Events excepted."""
        port = free_port()
        self.nursery.environment = {**self.nursery.environment, "SYSVM_HTTP_PORT": str(port)}
        counted = 0

        async def count() -> None:
            nonlocal counted
            while True:
                found = await writes(port)
                counted = max(counted, int(sum(number for what, number in found.items() if what.split()[1] != "Event")))
                await asyncio.sleep(0.2)

        counting = asyncio.create_task(count())
        try:
            await self.tell(UNDISTURBED)
        finally:
            counting.cancel()
            self.nursery.environment = {**self.nursery.environment, "SYSVM_HTTP_PORT": "0"}
        return counted


def check_patches(patches: list[Patch], trial: str) -> None:
    """Once a VM and release; a pair one after the other, BACKUP first; one release after the other."""
    for revision in (FIRST.revision, SECOND.revision):
        of_release = [patch for patch in patches if patch.revision == revision]
        assert sorted(patch.vm for patch in of_release) == sorted(ROLES), f"{trial}: {of_release}"
        by_vm = {patch.vm: patch for patch in of_release}
        backup, primary = by_vm["r-2-VM"], by_vm["r-1-VM"]
        assert backup.ends <= primary.begun, f"{trial}: {of_release}"
    assert len(patches) == 2 * len(ROLES), f"{trial}: {patches}"


@contextlib.asynccontextmanager
async def teller(control_plane: ControlPlane, admin: Cluster, folder: Path) -> AsyncIterator[Teller]:
    name = f"kills-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    async with lane(control_plane, admin, name, folder / name) as here:
        await here.namespace.create(
            *(objects.config_map(name, word, objects.scripts(word)) for word in ("first", "second"))
        )
        yield Teller(here.namespace, here.nursery, here.folder)


async def tell_all(control_plane: ControlPlane, folder: Path, trials: list[Trial]) -> list[Told]:
    """The stories, several at once. Ends at the first that goes wrong."""
    waiting = iter(trials)
    told: list[Told] = []

    async def worker(admin: Cluster) -> None:
        async with teller(control_plane, admin, folder) as here:
            for trial in waiting:
                one = await here.tell(trial)
                told.append(one)
                print(f"{one.trial}: {one.lives} lives, {one.seconds:.1f} s", flush=True)

    async with await Cluster.connect(kubeconfig=control_plane.kubeconfig) as admin, asyncio.TaskGroup() as lanes:
        for _ in range(LANES):
            lanes.create_task(worker(admin))
    return told


@pytest.mark.timeout(900)
async def test_dying_at_every_write_one_after_the_other_changes_nothing(
    control_plane: ControlPlane, crds: list[str], tmp_path: Path
) -> None:
    trials = [Trial(at, again=True) for at in ONE_AFTER_THE_OTHER]
    told = await tell_all(control_plane, tmp_path, trials)
    assert all(one.was_killed for one in told)
    most = max(one.lives for one in told)
    assert most > 40, f"{most} lives are too few for a story of so many writes: is the variable still read?"
    print(f"{len(told)} stories, {sum(one.lives for one in told)} lives")


@pytest.mark.timeout(3600)
async def test_dying_once_changes_nothing(control_plane: ControlPlane, crds: list[str], tmp_path: Path) -> None:
    async with (
        await Cluster.connect(kubeconfig=control_plane.kubeconfig) as admin,
        teller(control_plane, admin, tmp_path) as here,
    ):
        count = await here.count_writes()
    every = bool(os.environ.get("SYSVM_TEST_EVERY_KILL"))
    # A life that starts over writes a little more or less, so the last numbers may never be reached.
    numbers = range(1, count + 1) if every else range(1, int(0.85 * count) + 1)
    after = numbers if every else numbers[:: count // SPREAD]
    before = numbers if every else numbers[2 :: 2 * count // SPREAD]
    trials = [Trial((f"{number}:after",)) for number in after] + [Trial((f"{number}:before",)) for number in before]
    told = await tell_all(control_plane, tmp_path, trials)
    killed = sum(one.was_killed for one in told)
    print(f"a story has {count} writes; {len(told)} stories, {killed} of them with a death")
    assert killed > 0.9 * len(told)
