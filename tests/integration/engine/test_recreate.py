"""Reboot and Recreate by the whole operator: a real API server, the stand-in management server, VMs that are a file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest_asyncio
from tests.integration.engine import objects
from tests.integration.engine.cloud_fleet import CloudFleet, cloud_endpoint, cloud_fleet, cloud_secret, release
from tests.integration.engine.cluster import says, until
from tests.integration.engine.lives import UNDISTURBED, Lane, Trial, lane
from tests.integration.engine.nursery import GRACE, QUIET
from tests.integration.engine.objects import Manifest
from tests.integration.engine.simulated_vms import Fleet

from lab.cloud import CutJob, VMState
from lab.cloud.jobs import Job
from lab.controlplane import ControlPlane
from sysvm.api.base import REQUESTED_AT_ANNOTATION
from sysvm.engine.resources import ENDPOINT, POLICY, ROLLOUT, SYSTEM_VM
from sysvm.kube.client import Cluster
from sysvm.kube.events import EVENT
from sysvm.operator.killer import VARIABLE

STORY_SECONDS = 300.0


@dataclass(frozen=True)
class Death:
    """Of one life."""

    at: str
    phases: dict[str, str]
    """Of the group operations that were stored then, by group."""
    calls: tuple[str, ...]
    """Changing calls that the server had then."""


@dataclass
class Story:
    """One cloud, one endpoint `here`, one policy `routers`, and operators, one after the other as the trial kills
    them."""

    lane: Lane
    cloud: CloudFleet
    trial: Trial = UNDISTURBED
    lives: int = 0
    deaths: list[Death] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    """Of every life, beside the lane's."""

    @property
    def namespace(self) -> Any:
        return self.lane.namespace

    async def declare(self, *, spec: dict[str, Any] | None = None, **policy: Any) -> None:
        name = self.namespace.name
        await self.namespace.create(
            cloud_secret(name, self.cloud),
            objects.config_map(name, "first", objects.scripts("first")),
            release(name, "first"),
            objects.policy(name, "routers", "here", "first", templateVersion="Require", **policy),
            cloud_endpoint(name, "here", self.cloud),
        )
        if spec:
            await self.namespace.edit(ENDPOINT, "here", spec)

    async def live(self) -> None:
        """There is an operator. One that ended otherwise than it was told to is the end of the story."""
        nursery = self.lane.nursery
        if nursery.alive:
            return
        if self.lives:
            code, doom = await nursery.wait(), self.trial.death(self.lives - 1)
            assert code == -9 and doom, f"it ended by itself with {code}\n{nursery.story()}"
            self.deaths.append(await self._death(doom))
            await self.namespace.release_lease()
        await nursery.start(
            self.cloud.fleet, **{QUIET: "2", VARIABLE: self.trial.death(self.lives)}, **self.environment
        )
        self.lives += 1

    async def _death(self, at: str) -> Death:
        rollouts = await self.namespace.all(ROLLOUT)
        return Death(at, phases_of(rollouts), tuple(self.cloud.calls))

    async def until(self, holds: Any, what: str) -> Any:
        async def asked() -> Any:
            await self.live()
            return await holds()

        return await until(asked, what, within=STORY_SECONDS, story=self.picture)

    async def picture(self) -> str:
        vms = [f"{vm.name} {vm.state} {vm.inside}" for vm in self.cloud.world.vms.values()]
        return "\n".join([*vms, *self.cloud.calls, await self.lane.picture()])

    async def called(self) -> None:
        async def made() -> bool:
            return bool(self.cloud.calls)

        await self.until(made, "the server has a call")

    async def ended(self, result: str) -> Manifest:
        async def has_ended() -> Manifest | None:
            rollouts = await self.namespace.all(ROLLOUT)
            return next((one for one in rollouts if one.get("status", {}).get("result") == result), None)

        found: Manifest = await self.until(has_ended, f"the rollout ended {result}")
        return found

    async def converged(self) -> None:
        async def said() -> bool:
            return bool(says(await self.namespace.get(POLICY, "routers")) == ("True", "Converged"))

        await self.until(said, "the policy is Converged")

    async def vms(self) -> dict[str, Manifest]:
        return {vm["status"]["identity"]["name"]: vm for vm in await self.namespace.all(SYSTEM_VM)}


def phases_of(rollouts: list[Manifest]) -> dict[str, str]:
    """Of all group operations that are stored, by group."""
    stored = [op for one in rollouts for op in one.get("status", {}).get("groupOperations", [])]
    return {op["group"]: op["phase"] for op in stored}


@pytest_asyncio.fixture
async def admin(control_plane: ControlPlane) -> AsyncIterator[Cluster]:
    async with await Cluster.connect(kubeconfig=control_plane.kubeconfig) as cluster:
        yield cluster


@contextlib.asynccontextmanager
async def told(
    control_plane: ControlPlane, admin: Cluster, folder: Path, trial: Trial = UNDISTURBED, **cloud: Any
) -> AsyncIterator[Story]:
    name = f"recreate-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    fleet = Fleet.of(folder / name / "fleet.json", {})
    async with cloud_fleet(fleet, **cloud) as world, lane(control_plane, admin, name, folder / name) as here:
        yield Story(here, world, trial)
        if here.nursery.alive:
            await here.nursery.kill()


@pytest_asyncio.fixture
async def story(control_plane: ControlPlane, crds: list[str], admin: Cluster, tmp_path: Path) -> AsyncIterator[Story]:
    async with told(control_plane, admin, tmp_path) as story:
        yield story


async def test_a_cloud_is_brought_to_the_template_that_the_policy_requires(story: Story) -> None:
    old = {vm.name for vm in story.cloud.world.vms.values()}
    await story.declare(methods=["LivePatch", "Recreate"])
    rollout = await story.ended("Succeeded")
    await story.converged()
    assert sorted(story.cloud.calls) == ["destroySystemVm"] * 2 + ["restartNetwork"] * 2
    assert not old & {vm.name for vm in story.cloud.world.vms.values()}
    assert {vm.inside.template_version for vm in story.cloud.world.vms.values()} == {"4.20.2"}
    found = await story.vms()
    assert sorted(found) == sorted(vm.name for vm in story.cloud.world.vms.values())
    assert {vm["status"]["state"] for vm in found.values()} == {"Converged"}
    assert not any(vm["metadata"].get("finalizers") for vm in found.values())
    assert rollout["status"]["waves"][0]["done"] == 5
    assert not rollout["status"].get("groupOperations")


async def test_a_router_from_the_right_template_is_replaced_with_its_peer(story: Story) -> None:
    names = story.cloud.routers("pair")
    story.cloud.world.vm(names[0]).inside.template_version = "4.20.2"
    story.cloud.fleet.set(names[0], release="4.20.2")
    await story.declare(methods=["LivePatch", "Recreate"], selector={"networks": ["pair"]})
    await story.ended("Succeeded")
    await story.converged()
    assert story.cloud.calls == ["restartNetwork"]
    assert not {*names} & {*story.cloud.routers("pair")}


async def test_a_new_vm_with_an_older_payload_is_live_patched_and_left_alone_then(
    control_plane: ControlPlane, crds: list[str], admin: Cluster, tmp_path: Path
) -> None:
    async with told(control_plane, admin, tmp_path, host_payload="second") as story:
        await story.declare(
            methods=["LivePatch", "Recreate"], selector={"types": ["router"]}, livePatch={"hostPayload": "Warn"}
        )
        rollout = await story.ended("Succeeded")
        await story.converged()
        assert story.cloud.calls == ["restartNetwork"] * 2
        (wave,) = rollout["status"]["waves"]
        assert (wave["done"], wave.get("appended", [])) == (3, []), "successors are members, and approved as such"
        routers = [*story.cloud.routers("single"), *story.cloud.routers("pair")]
        assert sorted(patch.vm for patch in story.cloud.fleet.patches()) == sorted(routers)
        assert len(await story.namespace.all(ROLLOUT)) == 1


async def test_a_pair_is_rebooted_one_after_the_other_and_its_new_keys_are_expected(story: Story) -> None:
    names = story.cloud.routers("pair")
    await story.declare(methods=["LivePatch", "Reboot"], selector={"names": names})
    await story.ended("Succeeded")
    await story.converged()
    assert story.cloud.calls == ["rebootRouter"] * 2
    assert story.cloud.routers("pair") == names
    for name, vm in (await story.vms()).items():
        if name in names:
            assert vm["status"]["history"][-1]["method"] == "Reboot"
            shown = story.cloud.fleet.state(name)["host_key"]
            assert vm["status"]["hostKey"]["publicKey"] == f"ssh-ed25519 {shown}"


async def test_a_router_that_comes_up_after_its_reboot_was_given_up_is_known_by_its_new_key(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    await story.declare(
        methods=["LivePatch", "Reboot"],
        selector={"names": [name]},
        strategy={"timeouts": {"step": "10s", "vm": "10s"}},
    )

    await story.called()
    story.cloud.fleet.set(name, sha1_only=True)  # it starts, and nobody gets in
    await story.ended("Failed")
    old = (await story.vms())[name]["status"]["hostKey"]["publicKey"]
    story.cloud.fleet.set(name, sha1_only=False)

    async def reached() -> bool:
        vm = (await story.vms())[name]
        await story.namespace.annotate(SYSTEM_VM, vm["metadata"]["name"], REQUESTED_AT_ANNOTATION, str(time.time()))
        return bool(vm["status"]["hostKey"]["publicKey"] != old)

    await story.until(reached, "its new key is taken")
    found = {one["type"]: one for one in (await story.vms())[name]["status"]["conditions"]}
    assert (found["Reachable"]["status"], story.cloud.calls) == ("True", ["rebootRouter"])


async def test_a_lost_reboot_whose_router_lets_nobody_in_ends_and_lets_go(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    story.cloud.world.faults.cut_job = CutJob.WORK_GOES_ON
    await story.declare(
        methods=["LivePatch", "Reboot"],
        selector={"names": [name]},
        strategy={"timeouts": {"step": "10s", "vm": "10s"}},
    )

    await story.called()
    story.cloud.fleet.set(name, sha1_only=True)
    await story.ended("Failed")

    async def let_go() -> bool:
        objects = [*(await story.vms()).values(), *await story.namespace.all(ROLLOUT)]
        return not any(each["metadata"].get("finalizers") for each in objects)

    await story.until(let_go, "nothing is held any more")
    operation = (await story.vms())[name]["status"]["operation"]
    assert (operation["result"], operation["reason"]) == ("Failed", "JobLost")
    assert f"{name} cannot be reached" in operation["message"]
    assert story.cloud.calls == ["rebootRouter"], "and it was not called once more"


async def test_a_failed_start_is_told_and_nothing_is_deleted(story: Story) -> None:
    (old,) = story.cloud.routers("single")
    story.cloud.world.faults.start_fails = 1
    await story.declare(methods=["Recreate"], selector={"names": [old]})
    rollout = await story.ended("Failed")
    (left,) = set(story.cloud.routers("single")) - {old}
    vm = (await story.vms())[old]
    assert vm["status"]["operation"]["reason"] == "LeftoverRouter"
    assert f"{left} (Stopped) left over" in vm["status"]["operation"]["message"]
    assert "LeftoverRouter" in str(rollout["status"]) or left in str(rollout["status"]["conditions"])
    assert story.cloud.world.vm(old).state is VMState.RUNNING
    assert story.cloud.calls == ["restartNetwork"]


async def test_two_routers_with_one_gateway_are_told_by_who_came(story: Story) -> None:
    (old,) = story.cloud.routers("single")
    story.cloud.world.faults.second_router = True
    await story.declare(methods=["Recreate"], selector={"networks": ["single"]})
    rollout = await story.ended("Failed")
    assert all(name in str(rollout["status"]) for name in story.cloud.routers("single"))
    assert old not in story.cloud.routers("single")
    operation = rollout["status"]["groupOperations"][0]
    assert (operation["result"], operation["reason"]) == ("Failed", "DuplicateGateway")


async def test_a_host_in_maintenance_keeps_everything_as_it_is(story: Story) -> None:
    (old,) = story.cloud.routers("single")
    host = story.cloud.world.vm(old).host
    assert host is not None
    host.resource_state = "Maintenance"
    await story.declare(
        methods=["Recreate"],
        selector={"names": [old]},
        strategy={"timeouts": {"step": "10s", "vm": "60s"}},
    )
    await story.ended("Failed")
    vm = (await story.vms())[old]
    assert vm["status"]["operation"]["reason"] == "HostNotReady"
    assert story.cloud.calls == []


def hanging_restart(story: Story) -> tuple[asyncio.Event, str]:
    """Somebody restarts another network, until the event is set; and the id of the job, which names no network."""
    goes_on = asyncio.Event()

    async def work(job: Job) -> dict[str, object]:
        await goes_on.wait()
        return {"success": True}

    job = story.cloud.server.jobs.submit(
        work,
        command="restartNetwork",
        java_class="org.apache.cloudstack.api.command.user.network.RestartNetworkCmd",
        user=story.cloud.world.users[0],
        instance_type="Network",
        instance_id="another",
    )
    return goes_on, job.id


async def test_a_restart_that_may_be_of_its_network_is_told_and_the_rollout_goes_on_with_the_others(
    story: Story,
) -> None:
    (router,), (storage,) = story.cloud.routers("single"), story.cloud.of_type("secstorage")
    _, job = hanging_restart(story)
    await story.declare(
        methods=["LivePatch", "Reboot"],
        selector={"names": [router, storage]},
        strategy={"maxUnavailable": 1, "timeouts": {"step": "10s", "vm": "60s"}},
    )

    async def said() -> bool:
        vms = [vm for vm in await story.namespace.all(SYSTEM_VM) if vm["metadata"]["name"] == f"here-{router}".lower()]
        told = [one.get("message", "") for vm in vms for one in vm.get("status", {}).get("conditions", [])]
        return any(f"job {job} (RestartNetworkCmd) runs since 2" in message for message in told)

    await story.until(said, "what the reboot waits for is in a condition")
    rollout = await story.ended("Failed")
    operation = (await story.vms())[router]["status"]["operation"]
    assert (operation["step"], operation["reason"]) == ("Preparing", "JobRunning")
    assert story.cloud.calls == ["rebootSystemVm"], "one failure ends it by default, and this is none of that kind"
    assert rollout["status"]["budget"].get("failuresUsed", 0) == 0
    assert rollout["status"]["summary"] == "1/2"


async def test_a_call_that_could_not_be_made_is_tried_again_and_made_once_the_job_has_ended(story: Story) -> None:
    (router,) = story.cloud.routers("single")
    goes_on, _ = hanging_restart(story)
    await story.declare(
        methods=["LivePatch", "Reboot"],
        selector={"names": [router]},
        strategy={"timeouts": {"step": "10s", "vm": "60s"}, "retry": {"limit": 2, "backoff": "1s"}},
    )

    async def second_try() -> bool:
        vms = await story.namespace.all(SYSTEM_VM)
        return any(vm.get("status", {}).get("operation", {}).get("attempt") == 2 for vm in vms)

    await story.until(second_try, "it is tried again")
    assert story.cloud.calls == []
    goes_on.set()
    await story.ended("Succeeded")
    assert story.cloud.calls == ["rebootRouter"]


async def test_an_endpoint_deleted_while_a_call_runs_is_let_go_and_the_server_ends_it(
    control_plane: ControlPlane, crds: list[str], admin: Cluster, tmp_path: Path
) -> None:
    async with told(control_plane, admin, tmp_path, pace=2.0) as story:
        story.environment[GRACE] = "3"
        (old,) = story.cloud.routers("single")
        await story.declare(methods=["Recreate"], selector={"names": [old]})

        async def running() -> bool:
            return "Running" in phases_of(await story.namespace.all(ROLLOUT)).values()

        await story.until(running, "the management server works")
        await story.namespace.delete(ENDPOINT, "here")

        async def gone() -> bool:
            return not await story.namespace.all(SYSTEM_VM)

        await story.until(gone, "no object waits for what nobody follows")

        async def replaced() -> bool:
            return story.cloud.routers("single") not in ([], [old])

        await story.until(replaced, "the management server has ended what it began")
        assert story.cloud.calls == ["restartNetwork"]
        said = [event["note"] for event in await story.namespace.all(EVENT)]
        assert any("the management server ends it alone" in note for note in said), said


async def test_observing_never_lets_a_call_out(story: Story) -> None:
    await story.declare(methods=["Recreate"], spec={"management": "Observe"})

    async def said() -> bool:
        policy = await story.namespace.get(POLICY, "routers")
        return bool((policy.get("status") or {}).get("methods", {}).get("Recreate") == 5)

    await story.until(said, "what would be done is told")
    assert story.cloud.calls == []
    assert await story.namespace.all(ROLLOUT) == []


async def test_a_job_that_the_server_lost_is_found_out_and_not_made_again(story: Story) -> None:
    story.cloud.world.faults.cut_job = CutJob.WORK_GOES_ON
    await story.declare(methods=["Recreate"], selector={"names": story.cloud.of_type("secstorage")})
    await story.ended("Succeeded")
    assert story.cloud.calls == ["destroySystemVm"]
