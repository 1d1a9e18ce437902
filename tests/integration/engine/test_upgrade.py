"""A management server that is upgraded under a rollout, policies in order, and the images of a release: the operator on
the real API server, sweeping the stand-in of a management server. The VMs behind are simulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.integration.engine import objects
from tests.integration.engine.cluster import condition, says
from tests.integration.engine.objects import Manifest
from tests.integration.engine.test_inventory import Cloud, cloud, network

from lab.cloud import CHANGING, Answer
from sysvm.engine.resources import POLICY, ROLLOUT, TEMPLATE

__all__ = ["cloud"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME = "systemvm-kvm-4.20.2-x86_64"
IMAGE = {
    "hypervisor": "KVM",
    "name": NAME,
    "url": "https://images.example/a.qcow2.bz2",
    "checksum": f"sha512:{'ab' * 64}",
}


async def rollout_says(cloud: Cloud, reason: str) -> Manifest:
    async def said() -> Manifest | None:
        found = await cloud.journey.rollouts()
        return found[-1] if found and says(found[-1]) == ("False", reason) else None

    return dict(await cloud.journey.until(said, f"the rollout says {reason}"))


async def in_the_middle(cloud: Cloud, **spec: Any) -> tuple[str, Manifest]:
    """Four routers, one in work that does not end by itself; its name, and the rollout."""
    for number in range(4):
        cloud.world.add_routers(network(cloud, f"net-{number}"))
    cloud.answering()
    for vm in cloud.journey.vms:
        cloud.journey.fleet.never_end(vm)
    await cloud.declare()
    await cloud.journey.release("first")
    await cloud.journey.policy(strategy={"maxUnavailable": 1}, **spec)

    async def begun() -> str | None:
        return next((patch.vm for patch in cloud.journey.patches()), None)

    return str(await cloud.journey.until(begun, "one in work")), (await cloud.journey.rollouts())[-1]


async def test_a_rollout_pauses_when_the_management_server_is_upgraded_and_goes_on_by_a_persons_word(
    cloud: Cloud,
) -> None:
    first, rollout = await in_the_middle(cloud)
    cloud.world.upgrade("4.21.1.0")
    await cloud.swept()
    paused = await rollout_says(cloud, "CloudChanged")
    assert paused["status"]["cloud"]["changes"] == ["the management server was 4.21.0.0 and is 4.21.1.0"]
    for vm in cloud.journey.vms:
        cloud.journey.fleet.end(vm)

    async def finished() -> bool:
        return bool((await cloud.journey.rollouts())[-1]["status"]["waves"][0]["done"] == 1)

    await cloud.journey.until(finished, "the VM in work is finished")
    await cloud.swept(2)
    assert [patch.vm for patch in cloud.journey.patches()] == [first], "nothing new started"
    await cloud.journey.policy_says("CloudChanged", "InProgress", "set its spec.acceptCloud to")
    name, word = rollout["metadata"]["name"], paused["status"]["cloud"]["word"]
    await cloud.journey.namespace.edit(ROLLOUT, name, {"acceptCloud": word})
    await cloud.journey.converged()
    assert len(cloud.journey.patches()) == 4


async def test_a_cloud_that_turns_back_waits_for_a_person_all_the_same(cloud: Cloud) -> None:
    _, rollout = await in_the_middle(cloud)
    cloud.world.upgrade("4.21.1.0")
    await cloud.swept()
    first = (await rollout_says(cloud, "CloudChanged"))["status"]["cloud"]["word"]
    cloud.world.upgrade("4.21.0.0")
    await cloud.swept()

    async def turned() -> str | None:
        found: dict[str, Any] = (await cloud.journey.rollouts())[-1]["status"]["cloud"]
        return str(found["word"]) if not found.get("changes") else None

    word = await cloud.journey.until(turned, "the cloud is what it was")
    assert word != first
    for vm in cloud.journey.vms:
        cloud.journey.fleet.end(vm)
    await cloud.swept(2)
    assert len(cloud.journey.patches()) == 1
    await cloud.journey.namespace.edit(ROLLOUT, rollout["metadata"]["name"], {"acceptCloud": word})
    await cloud.journey.converged()


async def test_policies_begin_in_their_order(cloud: Cloud) -> None:
    zone = next(iter(cloud.world.zones.values()))
    cloud.world.add_ssvm(zone)
    cloud.world.add_routers(network(cloud, "net-1"))
    await cloud.declare()
    await cloud.journey.release("first")
    await cloud.journey.policy(selector={"types": ["router"]}, after=[{"name": f"{cloud.name}-system"}])
    await cloud.journey.policy_says("PolicyNotFound", "Failed", "which does not exist")
    await cloud.journey.policy(f"{cloud.name}-system", selector={"types": ["secstorage"]})
    await cloud.journey.converged()
    begun = [patch.vm[0] for patch in cloud.journey.patches()]
    assert begun == ["s", "r"]
    system = await cloud.journey.namespace.get(POLICY, f"{cloud.name}-system")
    assert says(system) == ("True", "Converged")


PAGE = Path(__file__).resolve().parents[3] / "docs/examples/upgrade.yaml"


def the_set_of_the_page(cloud: Cloud) -> dict[str, dict[str, Any]]:
    """Name of the policy -> its spec, of this cloud; by day, and without the hours between two waves."""
    found = {}
    for one in yaml.safe_load_all(PAGE.read_text()):
        if one["kind"] != "PatchPolicy":
            continue
        spec = {key: value for key, value in one["spec"].items() if key not in ("endpointRef", "templateRef")}
        spec.pop("windowRefs", None)
        for wave in spec["strategy"].get("waves", []):
            wave.pop("soak", None)
        spec["after"] = [{"name": f"{cloud.name}-{ref['name']}"} for ref in spec.get("after", [])]
        found[f"{cloud.name}-{one['metadata']['name']}"] = spec
    return found


async def test_the_set_of_the_page_gets_through_a_cloud_without_pairs_and_load_balancers(cloud: Cloud) -> None:
    zone = next(iter(cloud.world.zones.values()))
    system = [cloud.world.add_ssvm(zone).name, cloud.world.add_cpvm(zone).name]
    routers = [
        vm.name
        for owner in (network(cloud, "a"), network(cloud, "b", kind="Shared"), cloud.world.add_vpc(zone, "v"))
        for vm in cloud.world.add_routers(owner)
    ]
    await cloud.declare()
    await cloud.journey.release("first")
    for name, spec in reversed(the_set_of_the_page(cloud).items()):
        await cloud.journey.policy(name, **spec)
    await cloud.journey.says(POLICY, f"{cloud.name}-single-routers", "Converged", "True")
    begun = [patch.vm for patch in cloud.journey.patches()]
    assert (set(begun[:2]), set(begun[2:])) == (set(system), set(routers)), "the system VMs first, then the routers"
    for name in ("redundant-routers", "load-balancers"):
        empty = await cloud.journey.says(POLICY, f"{cloud.name}-{name}", "NoVMs", "True", type_="Stalled")
        assert "it has none of this kind" in condition(empty, "Ready")["message"]


async def without_pairs(cloud: Cloud) -> tuple[str, str, dict[str, dict[str, Any]]]:
    """One single router and a release. The names of the policies for pairs and for single routers, and all specs."""
    cloud.world.add_routers(network(cloud, "net-1"))
    await cloud.declare()
    await cloud.journey.release("first")
    return f"{cloud.name}-redundant-routers", f"{cloud.name}-single-routers", the_set_of_the_page(cloud)


async def test_a_failed_sweep_lets_nobody_pass_over_pairs(cloud: Cloud) -> None:
    pairs, routers, specs = await without_pairs(cloud)
    await cloud.journey.policy(pairs, **{**specs[pairs], "after": []})
    await cloud.journey.says(POLICY, pairs, "NoVMs", "True", type_="Stalled")
    cloud.world.faults.answer = Answer.HTML
    await cloud.ask()
    await cloud.says("NotCloudStack", type_="Reachable")
    await cloud.journey.says(POLICY, pairs, "NoVMs", "True", type_="Reconciling")
    await cloud.journey.policy(routers, **specs[routers])
    await cloud.journey.says(POLICY, routers, "EndpointUnreachable")

    async def blocked() -> bool:
        status = (await cloud.journey.namespace.get(POLICY, routers))["status"]
        return any("is NoVMs" in one["message"] for one in status.get("blockedBy", []))

    await cloud.journey.until(blocked, "the routers were compared, and wait")
    assert cloud.journey.patches() == []
    cloud.world.faults.answer = Answer.TRUE
    await cloud.ask()
    await cloud.journey.says(POLICY, routers, "Converged", "True")
    assert len(cloud.journey.patches()) == 1


async def test_a_misspelt_zone_lets_nobody_pass_over_pairs(cloud: Cloud) -> None:
    pairs, routers, specs = await without_pairs(cloud)
    misspelt = {**specs[pairs]["selector"], "zones": ["ams1"]}
    await cloud.journey.policy(pairs, **{**specs[pairs], "selector": misspelt, "after": []})
    await cloud.journey.policy(routers, **specs[routers])
    told = await cloud.journey.says(POLICY, pairs, "NoVMs", "True", type_="Stalled")
    assert "none of its VMs has zone ams1" in condition(told, "Ready")["message"]
    waits = await cloud.journey.says(POLICY, routers, "WaitsForPolicy")
    assert "none of its VMs has zone ams1" in condition(waits, "Ready")["message"]
    assert cloud.journey.patches() == []
    await cloud.journey.namespace.edit(POLICY, pairs, {"selector": {**misspelt, "zones": ["ams-1"]}})
    await cloud.journey.says(POLICY, routers, "Converged", "True")


async def test_an_image_is_registered_and_armed_only_by_its_word(cloud: Cloud) -> None:
    zone = next(iter(cloud.world.zones.values()))
    cloud.world.add_ssvm(zone)
    cloud.world.add_routers(network(cloud, "net-1"))
    for template in cloud.world.templates.values():
        template.created = template.created.replace(year=template.created.year - 1)
    await cloud.declare()
    release = objects.template(cloud.journey.namespace.name, f"{cloud.name}-first", objects.scripts("first"), "first")
    release["spec"]["images"] = {"mode": "Register", "items": [IMAGE]}
    await cloud.journey.namespace.create(release)
    await cloud.journey.policy()

    async def images(ready: str, reason: str) -> Manifest:
        async def said() -> Manifest | None:
            found = await cloud.journey.namespace.get(TEMPLATE, f"{cloud.name}-first")
            told = [one for one in found.get("status", {}).get("conditions", []) if one["type"] == "ImagesReady"]
            return found if told and (told[0]["status"], told[0]["reason"]) == (ready, reason) else None

        return dict(await cloud.journey.until(said, f"images: {ready} {reason}"))

    def changes() -> list[str]:
        return [call.command for call in cloud.world.calls if call.command in CHANGING]

    await images("False", "ImageNotReady")
    assert changes() == ["registerTemplate"]
    made = next(one for one in cloud.world.templates.values() if one.name == NAME)
    made.ready_in = set(cloud.world.zones)
    patch = {"images": {"mode": "Adopt", "items": [IMAGE]}}  # another wish is looked at now
    await cloud.journey.namespace.edit(TEMPLATE, f"{cloud.name}-first", patch)
    ready = await images("True", "ImagesReady")
    offer = ready["status"]["promotion"]
    assert offer["systemVms"] == 2
    assert "nothing would be started from them yet" in condition(ready, "ImagesReady")["message"]
    accepted = {"images": {**patch["images"], "acceptPromotion": offer["word"]}}
    await cloud.journey.namespace.edit(TEMPLATE, f"{cloud.name}-first", accepted)

    async def armed() -> bool:
        found = (await cloud.journey.namespace.get(TEMPLATE, f"{cloud.name}-first"))["status"]["images"]
        return [row.get("usedBy") for row in found] == ["SSVM and CPVM, routers"]

    await cloud.journey.until(armed, "the image is what the server takes")
    assert changes() == ["registerTemplate", "updateTemplate", "updateConfiguration"]
