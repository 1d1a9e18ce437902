"""Who answers the contract: recorded files and the lab's stand-in, or the server that CLOUDSTACK_URL names.

With a URL the keys come from CLOUDSTACK_KEY and CLOUDSTACK_SECRET (a root admin's), and those of other roles from
CLOUDSTACK_READONLY_KEY/_SECRET and CLOUDSTACK_USER_KEY/_SECRET; without ALLOW_CHANGES=1 nothing is sent that changes
anything.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import aiohttp
import pytest
from tests.contract.asking import Answers, Keys, Live, LiveAnswers, RecordedAnswers

from lab.cloud import World, management_server

URL = os.environ.get("CLOUDSTACK_URL", "")


def small_cloud() -> World:
    """What the recorded cloud had, and an internal load balancer: a network, VPCs of several kinds, SSVM and CPVM."""
    world = World()
    zone = world.add_zone("Sandbox")
    for name in ("kvm-1", "kvm-2", "kvm-3"):
        world.add_host(zone, name)
    world.add_routers(world.add_network(zone, "net1"))
    vpc = world.add_vpc(zone, "vpc1", tiers=1)
    world.add_routers(vpc)
    world.add_routers(world.add_vpc(zone, "rvpc", redundant=True, tiers=1))
    world.add_routers(world.add_vpc(zone, "empty"))
    world.add_cpvm(zone)
    world.add_ssvm(zone)
    world.add_internal_lb(next(world.tiers(vpc)))
    return world


def _keys_of_environment() -> dict[str, Keys]:
    found = {}
    for role, prefix in (("admin", "CLOUDSTACK"), ("readonly", "CLOUDSTACK_READONLY"), ("user", "CLOUDSTACK_USER")):
        key, secret = os.environ.get(f"{prefix}_KEY"), os.environ.get(f"{prefix}_SECRET")
        if key and secret:
            found[role] = Keys(key, secret)
    assert "admin" in found, "CLOUDSTACK_URL is set, so CLOUDSTACK_KEY and CLOUDSTACK_SECRET must be too"
    return found


@pytest.fixture(params=["real"] if URL else ["recorded", "stand-in"])
async def answers(request: pytest.FixtureRequest) -> AsyncIterator[Answers]:
    """Each of those who answer, one after the other."""
    if request.param == "recorded":
        yield RecordedAnswers()
    elif request.param == "stand-in":
        world = small_cloud()
        users = {
            role: Keys(user.api_key, user.secret)
            for role, user in zip(("admin", "readonly", "user"), world.users, strict=True)
        }
        async with management_server(world) as server, aiohttp.ClientSession() as session:
            live = Live(server.url, session, users, world=world, server=server, poll_seconds=0.01)
            yield LiveAnswers(live, may_change=True)
    else:
        async with aiohttp.ClientSession() as session:
            live = Live(URL, session, _keys_of_environment())
            yield LiveAnswers(live, may_change=os.environ.get("ALLOW_CHANGES") == "1")
