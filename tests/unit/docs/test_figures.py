"""Figures of the pages that can be counted here, counted."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

from lab.cloud import World, cloud_server
from sysvm.cloudstack.client import CloudStack
from sysvm.cloudstack.inventory import sweep
from sysvm.cloudstack.transport import Access, Credentials

DOCS = Path(__file__).resolve().parents[3] / "docs"


async def test_a_sweep_of_two_zones_asks_as_often_as_the_page_says() -> None:
    world = World()
    for name in ("ams-1", "ams-2"):
        zone = world.add_zone(name)
        world.add_host(zone, f"kvm-{name}")
        world.add_routers(world.add_network(zone, f"net-{name}", redundant=True))
        world.add_routers(world.add_vpc(zone, f"vpc-{name}", redundant=False, tiers=2))
        world.add_ssvm(zone)
        world.add_cpvm(zone)
    user = world.users[0]
    async with cloud_server(world) as url:
        access = Access(url=url, credentials=Credentials(user.api_key, user.secret), requests_per_second=500, burst=500)
        async with CloudStack(access, may_change=None) as cloudstack:
            await sweep(cloudstack, lambda: datetime.now(UTC))
    told = re.search(r"\((\d+) calls in two\s+zones\)", (DOCS / "lab-cloud.md").read_text())
    assert told is not None
    assert int(told[1]) == len(world.calls)
