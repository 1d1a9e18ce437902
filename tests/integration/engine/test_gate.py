"""The command gate and CloudStack's own live patch by the whole operator: a real API server, the stand-in management
server, VMs that are a file.

An upgrade of the cloud has happened: the server and its hosts have the new payload, the routers run old scripts on a
template below the minimum, and the server's books say so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.integration.engine import objects
from tests.integration.engine.cloud_fleet import OLD, CloudFleet, close_gates, cloud_endpoint, cloud_secret, payload_of
from tests.integration.engine.cluster import condition, kstatus, says
from tests.integration.engine.lives import Trial
from tests.integration.engine.nursery import SUBMISSIONS
from tests.integration.engine.objects import Manifest
from tests.integration.engine.test_recreate import Story, admin, phases_of, told

from lab.cloud import CutJob, Patch
from lab.controlplane import ControlPlane
from sysvm.engine.resources import POLICY, ROLLOUT, SYSTEM_VM
from sysvm.kube.client import Cluster
from sysvm.patching.payload import read_payload
from sysvm.patching.results import JournalPhase

__all__ = ["admin"]

NEVER_SECONDS = 300.0
RECREATING = "router.health.checks.failures.to.recreate.vr"
LIVES = (("8:after", "7:before", "15:after"), ("6:before", "11:after", "14:after"))
"""Where the lives of one story die, in turns. Lives that all die between the order to call and the call would use up
every try without a call, so some live a little longer."""


@pytest_asyncio.fixture
async def story(control_plane: ControlPlane, crds: list[str], admin: Cluster, tmp_path: Path) -> AsyncIterator[Story]:
    async with told(control_plane, admin, tmp_path) as story:
        close_gates(story.cloud)
        yield story


def has_every_file(cloud: CloudFleet, name: str, *, finished: bool) -> None:
    """Of the release, and the server has noted it; `finished`: also the VM itself."""
    vm, revision = cloud.world.vm(name), read_payload(objects.scripts("first"), None).revision
    vm.inside.payload = payload_of("first")
    vm.inside.signature = payload_of("first") if finished else "0" * 32
    vm.scripts_version, vm.software_version = payload_of("first"), cloud.world.version
    cloud.fleet.set(name, revision=revision, signature=vm.inside.signature, checksum=vm.inside.payload)


async def declare(story: Story, *names: str, route: str = "Auto", spec: Any = None, **policy: Any) -> None:
    """A policy for these VMs by name, or for every router."""
    name = story.namespace.name
    selector = {"names": list(names)} if names else {"types": ["router"]}
    await story.namespace.create(
        objects.config_map(name, "first", objects.scripts("first")),
        *await endpoint(story, spec or {}),
        objects.template(name, "first", objects.scripts("first")),
        objects.policy(
            name, "routers", "here", "first",
            selector=selector, livePatch={"route": route, **policy.pop("livePatch", {})}, **policy,
        ),
    )  # fmt: skip


async def endpoint(story: Story, spec: dict[str, Any]) -> list[Manifest]:
    name = story.namespace.name
    made = cloud_endpoint(name, "here", story.cloud)
    made["spec"] |= {"scan": {"interval": "10s", "inventory": "10s"}, **spec}
    return [cloud_secret(name, story.cloud), made]


async def policy_says(story: Story, reason: str, message: str = "") -> Manifest:
    async def said() -> Manifest | None:
        policy: Manifest = await story.namespace.get(POLICY, "routers")
        right = says(policy)[1] == reason and message in condition(policy, "Ready")["message"]
        return policy if right else None

    found: Manifest = await story.until(said, f"the policy says {reason} {message!r}")
    return found


async def vm_of(story: Story, name: str) -> Manifest:
    async def there() -> Manifest | None:
        found = await story.namespace.all(SYSTEM_VM)
        return next((vm for vm in found if vm.get("status", {}).get("identity", {}).get("name") == name), None)

    found: Manifest = await story.until(there, f"{name} is there")
    return found


# The gate


async def test_a_gated_pair_without_leave_is_held_and_the_policy_says_what_would_open_the_gate(story: Story) -> None:
    names = story.cloud.routers("pair")
    await declare(story, *names)
    policy = await policy_says(story, "ManagementGateClosed", "minreq.sysvmtemplate.version of zone ams-1 would open")
    assert kstatus(policy) == "InProgress"
    assert policy["status"]["counts"]["held"] == 2

    async def closed() -> Manifest | None:  # the policy counts what its VM's own status is about to say
        vm = (await story.vms())[names[0]]
        return vm if vm["status"].get("plan", {}).get("reason") == "ManagementGateClosed" else None

    vm = await story.until(closed, f"{names[0]} says that its gate is closed")
    plan, books = vm["status"]["plan"], vm["status"]["observed"]["management"]
    assert plan["method"] == "Hold"
    assert "one right after the other" in plan["message"]
    assert (books["gateClosed"], books["minimumTemplateVersion"], books["scriptsVersion"]) == (True, "4.20.2", OLD)
    assert books["apiPatch"]["command"] == "restartNetwork"
    assert story.cloud.calls == []
    assert await story.namespace.all(ROLLOUT) == []
    # A person lowers the minimum: the gate is open, and the operator goes on over SSH.
    story.cloud.world.settings["minreq.sysvmtemplate.version"] = "4.20.1"
    await story.converged()
    assert story.cloud.calls == []
    assert sorted(patch.vm for patch in story.cloud.fleet.patches()) == sorted(names)
    for vm in (await story.vms()).values():
        if vm["status"]["identity"]["name"] in names:
            assert condition(vm, "ManagementViewStale")["status"] == "True"
            assert vm["status"]["history"][0].get("message", "") == ""


async def test_route_ssh_patches_and_says_that_the_gate_stays_closed(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    await declare(story, name, route="SSH")
    await story.ended("Succeeded")
    await policy_says(story, "ManagementGateClosed", f"{name} is at 4.20.2")
    assert [patch.vm for patch in story.cloud.fleet.patches()] == [name]
    assert story.cloud.calls == []
    assert condition(await vm_of(story, name), "ManagementViewStale")["status"] == "True"


async def test_hosts_that_disagree_leave_the_gate_unknown_and_nothing_is_guessed(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    for host in story.cloud.world.hosts.values():
        host.version = "4.20.1.0"
    await declare(story, name)
    await policy_says(story, "ManagementGateUnknown", "runs 4.20.1.0 and the server 4.20.2.0")
    assert "gateClosed" not in (await vm_of(story, name))["status"]["observed"]["management"]
    assert story.cloud.calls == []
    assert story.cloud.fleet.patches() == []


async def test_a_zone_that_recreates_after_the_version_check_keeps_ssh_away(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    story.cloud.world.settings["minreq.sysvmtemplate.version"] = "4.20.1"
    story.cloud.world.settings["router.health.checks.failures.to.recreate.vr"] = "dns_check.py,router_version_check.py"
    await declare(story, name)
    await policy_says(story, "VMsHeld", "CloudStack would recreate the router")
    assert (await vm_of(story, name))["status"]["plan"]["reason"] == "HealthCheckWouldRecreate"
    assert story.cloud.fleet.patches() == []
    story.cloud.world.settings["router.health.checks.failures.to.recreate.vr"] = "dns_check.py"
    await story.converged()
    assert [patch.vm for patch in story.cloud.fleet.patches()] == [name]


async def test_a_zone_that_begins_to_recreate_after_the_version_check_stops_ssh_in_a_running_rollout(
    story: Story,
) -> None:
    names = story.cloud.routers("pair")
    settings, fleet = story.cloud.world.settings, story.cloud.fleet
    settings["minreq.sysvmtemplate.version"] = "4.20.1"
    for name in names:
        fleet.never_end(name)
    await declare(story, *names)

    async def in_work() -> str | None:
        return next((patch.vm for patch in fleet.patches()), None)

    first = await story.until(in_work, "the first of the pair is in work")
    (second,) = (name for name in names if name != first)
    settings[RECREATING] = "router_version_check.py"

    async def refused() -> bool:
        return bool((await vm_of(story, second))["status"]["plan"]["reason"] == "HealthCheckWouldRecreate")

    await story.until(refused, f"{second} says why it is held")
    for name in names:
        fleet.end(name)
    rollout = await story.ended("Superseded")
    ready = condition(rollout, "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "VMsHeld")
    assert f"1 held ({second}: HealthCheckWouldRecreate)" in ready["message"]
    assert rollout["status"]["summary"] == "1/2"
    assert [patch.vm for patch in fleet.patches()] == [first]
    assert "operation" not in (await vm_of(story, second))["spec"]
    await policy_says(story, "VMsHeld", "CloudStack would recreate the router")
    settings[RECREATING] = ""
    await story.converged()
    assert [patch.vm for patch in fleet.patches()] == [first, second]
    results = [one["status"]["result"] for one in await story.namespace.all(ROLLOUT)]
    assert sorted(results) == ["Succeeded", "Superseded"]


async def test_a_router_that_was_rebooted_is_not_patched_over_ssh_where_the_version_check_recreates(
    control_plane: ControlPlane, crds: list[str], admin: Cluster, tmp_path: Path
) -> None:
    async with told(control_plane, admin, tmp_path, host_payload="second") as story:
        (name,) = story.cloud.routers("single")
        story.cloud.world.settings[RECREATING] = "router_version_check.py"
        await story.declare(
            methods=["LivePatch", "Reboot"], selector={"names": [name]}, livePatch={"hostPayload": "Warn"},
            spec={"scan": {"interval": "10s", "inventory": "10s"}},
        )  # fmt: skip
        rollout = await story.ended("Superseded")
        assert f"1 held ({name}: HealthCheckWouldRecreate)" in condition(rollout, "Ready")["message"]
        await policy_says(story, "VMsHeld", "CloudStack would recreate the router")
        assert (await vm_of(story, name))["status"]["plan"]["reason"] == "HealthCheckWouldRecreate"
        assert story.cloud.calls == ["rebootRouter"]
        assert story.cloud.fleet.patches() == []
        story.cloud.world.settings[RECREATING] = ""
        await story.converged()
        assert story.cloud.calls == ["rebootRouter"]
        assert [patch.vm for patch in story.cloud.fleet.patches()] == [name]


async def test_a_router_that_cloudstack_recreates_by_itself_is_told_where_checks_may_do_that(
    story: Story, control_plane: ControlPlane
) -> None:
    (name,) = story.cloud.routers("single")
    world = story.cloud.world
    world.settings["router.health.checks.failures.to.recreate.vr"] = "dns_check.py"
    await declare(story, name, spec={"management": "Observe"})

    async def known() -> bool:
        observed = (await vm_of(story, name))["status"].get("observed", {})
        return bool(observed.get("management", {}).get("recreatingChecks") == ["dns_check.py"])

    await story.until(known, "the setting was read")
    network = world.vm(name).network
    assert network is not None
    await story.cloud.server.lifecycle.restart_network(network, cleanup=True, livepatch=False, redundant=False)
    (new,) = story.cloud.routers("single")

    async def told() -> str:
        return await asyncio.to_thread(
            control_plane.kubectl, "get", "events.events.k8s.io", f"--namespace={story.namespace.name}",
            "--field-selector=reason=ExternalRecreation", "--output=jsonpath={.items[*].note}",
        )  # fmt: skip

    note = await story.until(told, "it is told")
    assert f"{new} took the place of {name}, and not by this operator" in note
    assert "after a failure of dns_check.py" in note


# The API route


async def test_a_gated_network_is_patched_by_one_call_and_its_gate_opens(story: Story) -> None:
    names = story.cloud.routers("pair")
    await declare(story, *names, livePatch={"plannedFailover": "Allowed"})
    await story.ended("Succeeded")
    await story.converged()
    assert story.cloud.calls == ["restartNetwork"]
    assert [
        call.parameters.get("livepatch") for call in story.cloud.world.calls if call.command == "restartNetwork"
    ] == ["true"]
    assert story.cloud.fleet.patches() == [], "nothing went over SSH"
    for name in names:
        vm = (await story.vms())[name]
        assert vm["status"]["observed"]["management"]["gateClosed"] is False
        operation = vm["status"]["operation"]
        assert (operation["method"], operation["route"], operation["result"]) == ("LivePatch", "API", "Succeeded")
        assert not condition(vm, "ManagementViewStale")


async def test_a_router_that_needs_nothing_goes_along_with_its_peer(story: Story) -> None:
    first, second = story.cloud.routers("pair")
    has_every_file(story.cloud, first, finished=True)
    await declare(story, first, second, livePatch={"plannedFailover": "Allowed"})
    await story.ended("Succeeded")
    await story.converged()
    assert story.cloud.calls == ["restartNetwork"]
    for name in (first, second):
        assert len(story.cloud.fleet.backups_of(name)) == 1, "without one the call is not made"


async def test_a_patched_network_is_known_to_be_obeyed_long_before_the_next_sweep(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    await declare(story, name, spec={"scan": {"interval": "10s", "inventory": "1h"}})
    await story.ended("Succeeded")
    await story.converged()
    assert (await vm_of(story, name))["status"]["observed"]["management"]["gateClosed"] is False
    assert story.cloud.calls == ["restartNetwork"], "what the last sweep still says is no reason to patch it again"
    assert len(await story.namespace.all(ROLLOUT)) == 1


async def test_an_ssvm_and_a_cpvm_are_patched_by_route_api(story: Story) -> None:
    names = [*story.cloud.of_type("secstorage"), *story.cloud.of_type("consoleproxy")]
    await declare(story, *names, route="API")
    await story.ended("Succeeded")
    await story.converged()
    assert story.cloud.calls == ["patchSystemVm"] * 2


async def test_success_with_nothing_done_is_told_as_a_claim(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    story.cloud.world.faults.patch = Patch.NOTHING
    await declare(story, name)
    await story.ended("Failed")
    operation = (await vm_of(story, name))["status"]["operation"]
    assert (operation["result"], operation["reason"]) == ("Failed", "ClaimNotVerified")
    assert "its files are not those of the release" in operation["message"]
    policy = await policy_says(story, "VMFailed", name)
    assert kstatus(policy) == "Failed"
    assert story.cloud.calls == ["restartNetwork"], "a claim that was not true is not asked for again"


async def test_a_pair_of_which_one_was_patched_goes_back_where_the_policy_says_so(story: Story) -> None:
    names = story.cloud.routers("pair")
    story.cloud.world.faults.patch = Patch.FIRST_ONLY
    await declare(story, *names, livePatch={"plannedFailover": "Allowed"}, strategy={"onBudgetSpent": "RollBack"})
    await story.ended("RolledBack")
    assert story.cloud.calls == ["restartNetwork"]
    for name in names:
        assert list(story.cloud.fleet.backups_of(name).values()) == [JournalPhase.ROLLED_BACK], name
        assert story.cloud.fleet.revision(name) == "old", name


async def test_without_a_backup_the_call_is_not_made(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    story.cloud.fleet.set(name, refused=("DiskFull", False))
    await declare(story, name)
    await story.ended("Failed")
    operation = (await vm_of(story, name))["status"]["operation"]
    assert (operation["result"], operation["reason"]) == ("Failed", "DiskFull")
    assert not story.cloud.calls
    assert not story.cloud.fleet.backups_of(name)


async def test_observing_never_lets_the_call_out(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    await declare(story, name, spec={"management": "Observe"})
    await policy_says(story, "ObserveOnly")
    plan = (await vm_of(story, name))["status"]["plan"]
    assert (plan["method"], plan["route"]) == ("LivePatch", "API")
    assert plan["services"] == [
        {
            "name": "every enabled service",
            "action": "Restart",
            "expectedLoss": "load-balanced connections are cut; DNS, DHCP and metadata pause",
        }
    ]
    assert story.cloud.calls == []


# Deaths and lost jobs


async def test_a_job_that_the_server_lost_is_found_out_and_not_made_again(story: Story) -> None:
    (name,) = story.cloud.routers("single")
    story.cloud.world.faults.cut_job = CutJob.WORK_GOES_ON
    await declare(story, name)
    await story.ended("Succeeded")
    await story.converged()
    assert story.cloud.calls == ["restartNetwork"]


async def test_a_call_that_never_left_is_made_though_one_router_has_every_file_already(story: Story) -> None:
    first, second = story.cloud.routers("pair")
    has_every_file(story.cloud, first, finished=False)
    story.cloud.world.faults.commands = {"restartNetwork"}
    story.cloud.world.faults.delay_seconds = NEVER_SECONDS
    await declare(story, first, second, livePatch={"plannedFailover": "Allowed"})

    async def stored() -> bool:
        return "Submitting" in phases_of(await story.namespace.all(ROLLOUT)).values()

    await story.until(stored, "the call is about to be made")
    await story.lane.nursery.kill()
    story.trial = Trial(("killed",) * story.lives)
    story.cloud.world.faults.delay_seconds = 0.0
    await story.ended("Succeeded")
    await story.converged()
    (death,) = story.deaths
    assert (set(death.phases.values()), death.calls) == ({"Submitting"}, ())
    assert story.cloud.calls == ["restartNetwork"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("deaths", LIVES, ids=" ".join)
async def test_dying_at_writes_leaves_every_call_made_once(story: Story, deaths: tuple[str, ...]) -> None:
    story.trial = Trial(deaths, again=True)
    story.environment[SUBMISSIONS] = "9"
    await declare(story, *story.cloud.routers("pair"), livePatch={"plannedFailover": "Allowed"})
    await story.ended("Succeeded")
    await story.converged()
    assert story.cloud.calls == ["restartNetwork"]
    assert len(await story.namespace.all(ROLLOUT)) == 1
    assert len(story.deaths) > 3, story.deaths
