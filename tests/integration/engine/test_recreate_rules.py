"""What is asked of the cloud before and after a recreation, by the whole operator: room, and tenants' rules."""

from __future__ import annotations

from collections import Counter

from tests.integration.engine.test_recreate import Story, admin, story  # noqa: F401  # fixtures

from sysvm.engine.resources import ENDPOINT

RULES = {"Firewall": 3, "Egress": 1, "PortForwarding": 2, "StaticNat": 1, "LoadBalancer": 2}


def network(story: Story, name: str) -> None:  # noqa: F811  # the fixture's name
    story.cloud.world.add_rules(next(n for n in story.cloud.world.networks.values() if n.name == name), **RULES)
    for router in story.cloud.routers(name):
        story.cloud.fleet.set(router, rules=story.cloud.world.vm(router).inside.rules)


async def test_a_recreated_router_that_lacks_rules_is_told_and_did_not_succeed(story: Story) -> None:  # noqa: F811
    network(story, "single")
    (old,) = story.cloud.routers("single")
    story.cloud.world.faults.lose_rules = 1
    await story.declare(methods=["LivePatch", "Recreate"], selector={"networks": ["single"]})
    rollout = await story.ended("Failed")
    (new,) = story.cloud.routers("single")
    assert new != old
    operation = rollout["status"]["groupOperations"][0]
    assert (operation["result"], operation["reason"]) == ("Failed", "RulesMissing")
    assert f"{new} has 2 firewall rules where 3 are listed" in operation["message"]
    assert "rulesListed" not in operation or not operation["rulesListed"]
    assert story.cloud.calls == ["restartNetwork"]


async def test_a_recreation_whose_rules_are_back_costs_few_questions(story: Story) -> None:  # noqa: F811
    network(story, "pair")
    await story.declare(methods=["LivePatch", "Recreate"], selector={"networks": ["pair"]})
    await story.ended("Succeeded")
    await story.converged()
    asked = Counter(call.command for call in story.cloud.world.calls)
    counting = [name for name in asked if "Rules" in name or name == "listPublicIpAddresses"]
    assert story.cloud.calls == ["restartNetwork"]
    assert sorted(asked[name] for name in counting) == [2] * 5, "once before the call and once after it"


async def test_a_zone_without_room_keeps_its_router_and_the_status_says_why(story: Story) -> None:  # noqa: F811
    (old,) = story.cloud.routers("single")
    for host in story.cloud.world.hosts.values():
        host.memory_allocated_bytes = 8 * 1024**3
    await story.declare(
        methods=["Recreate"], selector={"names": [old]}, strategy={"timeouts": {"step": "10s", "vm": "60s"}}
    )
    await story.ended("Failed")
    vm = (await story.vms())[old]
    assert vm["status"]["operation"]["reason"] == "NoCapacity"
    assert f"no room in zone ams-1 for another VM like {old}" in vm["status"]["operation"]["message"]
    assert story.cloud.calls == []


async def test_two_routers_with_one_gateway_are_told_on_the_endpoint_whoever_made_them(story: Story) -> None:  # noqa: F811
    single = next(n for n in story.cloud.world.networks.values() if n.name == "single")
    story.cloud.world.add_router(network=single)
    names = story.cloud.routers("single")
    await story.declare(methods=["Recreate"], selector={"names": ["none"]}, spec={"scan": {"inventory": "10s"}})

    async def told() -> bool:
        endpoint = await story.namespace.get(ENDPOINT, "here")
        ready = [c for c in endpoint["status"]["conditions"] if c["type"] == "Ready"]
        return bool(ready and f"{' and '.join(names)} run with the same gateway" in ready[0]["message"])

    await story.until(told, "the endpoint tells of the two")
