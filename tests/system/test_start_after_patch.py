"""A start by CloudStack after a patch of ours: its host sends its payload, and the boot leaves all as it is."""

from __future__ import annotations

import asyncio
import gzip
from datetime import timedelta
from pathlib import Path

import pytest
from cs import AIOCloudStack

from lab import Lab, preflight
from lab.cloud.fleet import empty_world, lab_cloud
from lab.cloud.users import User
from lab.content import layout, payloads, releases
from lab.hosts import Hosts
from reach import behind_host, patch_order
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import read_payload
from sysvm.patching.results import JournalPhase

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.timeout(400),
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

ORDER = patch_order(same_as_host=True)
STAMPS = ["find", "/opt/cloud", "-name", "__pycache__", "-prune", "-o", "-type", "f", "-printf", "%p %i %s %T@\n"]
"""A file that somebody has put there again has another inode, or another time."""


async def test_a_start_by_cloudstack_after_a_patch_finds_its_own_build_there_and_unpacks_nothing(
    tmp_path: Path,
) -> None:
    new = releases.new()
    ours, agent = payloads.build_scripts(new), payloads.build_agent(new)
    theirs = gzip.compress(gzip.decompress(ours), 1, mtime=1)
    assert theirs != ours
    lab = Lab(tmp_path)
    try:
        lab.up([])
        world = empty_world("old")
        zone = world.add_zone("zone-1")
        host = world.add_host(zone, "kvm-1")
        world.add_routers(world.add_network(zone, "net-1"))
        async with lab_cloud(lab, world, release="old") as (server, _):
            Hosts(lab).put_payload("kvm-1", scripts=theirs, agent=agent)
            host.payload = payloads.checksum(new, theirs)
            (name,) = [vm.name for vm in world.vms.values()]
            patcher = LivePatcher()
            report = await patcher.patch(behind_host(lab, name), read_payload(ours, agent), ORDER, lambda _: None)
            await patcher.close()
            assert report.phase is JournalPhase.COMMITTED, report
            signature = lab.read_bytes(name, layout.SIGNATURE)
            assert signature.decode().strip() == host.payload != payloads.checksum(new, ours)
            stamps, boot = lab.exec(name, STAMPS).stdout, boot_of(lab, name)
            await reboot(server.url, world.users[0])
        assert boot_of(lab, name) != boot, "it was started"
        assert lab.read_bytes(name, layout.SIGNATURE) == signature
        assert sorted(lab.exec(name, STAMPS).stdout.splitlines()) == sorted(stamps.splitlines())
        assert lab.read_bytes(name, "/usr/share/cloud/cloud-scripts.tgz") == theirs
    finally:
        lab.down()


def boot_of(lab: Lab, name: str) -> str:
    return lab.exec(name, "cat /proc/1/stat | cut -d' ' -f22").stdout.strip()


async def reboot(url: str, admin: User) -> None:
    """By the server: a stop, and a start to which the host sends what it keeps."""
    async with AIOCloudStack(
        endpoint=url, key=admin.api_key, secret=admin.secret, expiration=timedelta(minutes=5)
    ) as cs:
        (router,) = (await cs.listRouters(listall=True))["router"]
        job = await cs.rebootRouter(id=router["id"], fetch_result=False)
        async with asyncio.timeout(240):
            while not (told := await cs.queryAsyncJobResult(jobid=job["jobid"]))["jobstatus"]:
                await asyncio.sleep(0.2)
    assert told["jobstatus"] == 1, told
