"""The stand-in invents nothing: every field it tells was told by the real server, with the same type."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.contract.asking import RECORDED, Keys, Live, recorded
from tests.contract.conftest import URL, small_cloud

from lab.cloud import CHANGING, management_server

pytestmark = pytest.mark.skipif(bool(URL), reason="CLOUDSTACK_URL names a real server, which is no stand-in")


def told(listed: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Types by field, over all entries."""
    found: dict[str, set[str]] = {}
    for each in listed:
        for name, value in each.items():
            found.setdefault(name, set()).add(type(value).__name__)
    return found


def entries(key: str) -> list[dict[str, Any]]:
    """All that was recorded under a key, in lists and in results of jobs."""
    found: list[dict[str, Any]] = []
    for path in sorted(RECORDED.glob("*.json")):
        if path.stem.startswith("timeline"):
            continue
        inner = recorded(path.stem).inner
        for holder in (inner, inner.get("jobresult") or {}):
            value = holder.get(key, []) if isinstance(holder, dict) else []
            found += value if isinstance(value, list) else [value]
    return [each for each in found if isinstance(each, dict)]


@pytest.mark.parametrize(
    ("command", "key", "parameters"),
    [
        ("listZones", "zone", {}),
        ("listHosts", "host", {}),
        ("listSystemVms", "systemvm", {}),
        ("listRouters", "router", {"listall": "true", "fetchhealthcheckresults": "true"}),
        ("listVPCs", "vpc", {"listall": "true"}),
        ("listTemplates", "template", {"templatefilter": "all"}),
        ("listManagementServers", "managementserver", {}),
        ("listEvents", "event", {"listall": "true"}),
    ],
)
async def test_every_field_was_recorded_with_its_type(command: str, key: str, parameters: dict[str, Any]) -> None:
    world = small_cloud()
    world.note("LIVE.PATCH.SYSTEM.VM", "for the list", vm=next(iter(world.vms.values())))
    real = told(entries(key))
    assert real, f"nothing was recorded of {key}"
    async with management_server(world) as server, aiohttp.ClientSession() as session:
        admin = world.users[0]
        live = Live(server.url, session, {"admin": Keys(admin.api_key, admin.secret)})
        ours = told((await live.call(command, **parameters)).inner[key])
    invented = {name: kinds for name, kinds in ours.items() if not kinds <= real.get(name, set())}
    assert not invented


@pytest.mark.parametrize(
    ("command", "kind", "file"),
    [
        ("rebootRouter", "router", "rebootRouter.job"),
        ("rebootSystemVm", "systemvm", "rebootSystemVm.job"),
        ("restartNetwork", "network", "restartNetwork.plain.job"),
        ("patchSystemVm", "systemvm", "patchSystemVm.mockok.job"),
    ],
)
async def test_a_job_is_told_with_the_fields_that_were_recorded(command: str, kind: str, file: str) -> None:
    world = small_cloud()
    router, storage = world.vm("r-1-VM"), world.vm("s-7-VM")
    ids = {"router": router.id, "systemvm": storage.id, "network": router.network.id if router.network else ""}
    async with management_server(world) as server, aiohttp.ClientSession() as session:
        admin = world.users[0]
        live = Live(server.url, session, {"admin": Keys(admin.api_key, admin.secret)}, poll_seconds=0.01)
        ours = await live.job(command, id=ids[kind])
    assert told([ours.inner]) == told([recorded(file).inner])


async def test_the_read_only_part_never_sends_a_call_that_changes_something() -> None:
    """The contract as it is run against a real server, here against the stand-in, which writes down what it is sent."""
    world = small_cloud()
    async with management_server(world) as server:
        admin = world.users[0]
        environment = {**os.environ, "CLOUDSTACK_KEY": admin.api_key, "CLOUDSTACK_SECRET": admin.secret}
        for name in ("ALLOW_CHANGES", "PYTEST_CURRENT_TEST", "PYTEST_ADDOPTS"):
            environment.pop(name, None)
        run = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent)),
            env=environment | {"CLOUDSTACK_URL": server.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await run.communicate()
    assert run.returncode == 0, output.decode()
    asked = {call.command for call in world.calls}
    assert {"listRouters", "listSystemVms", "listApis", "listZones"} <= asked
    assert not asked & CHANGING
