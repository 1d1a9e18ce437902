"""CloudStack's monitoring on a router of the lab restarts what it misses, also in the middle of a patch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.system.test_live_patch import patch, payload, told

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import releases
from sysvm.patching.results import JournalPhase

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

NAME = "r-82-VM"
DROP_IN = "etc/systemd/system/dnsmasq.service.d/slow.conf"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("monitor"))
    try:
        made.up([VMSpec(name=NAME, type=SystemVMType.ROUTER, index=82, group="net-82")], release="old")
        yield made
    finally:
        made.down()


def release(name: str, drop_in: bytes) -> releases.Release:
    return releases.old().derive(name, add={DROP_IN: drop_in})


@pytest.mark.timeout(300)
async def test_a_restart_by_the_monitoring_is_told_and_the_patch_is_whole(lab: Lab) -> None:
    """A unit that takes longer than the monitoring's five seconds, and a monitoring that runs all the time."""
    done = asyncio.Event()

    async def monitoring() -> None:
        await asyncio.sleep(0)
        while not done.is_set():
            # Between two runs the fence finds its quiet moment.
            await asyncio.to_thread(lab.exec, NAME, "python3 /root/monitorServices.py basic", check=False)
            await asyncio.sleep(3)

    running = asyncio.create_task(monitoring())
    wanted = release("slow-start", b"[Service]\nExecStartPre=/bin/sleep 9\n")
    report = await patch(lab, NAME, payload(wanted), 1)
    done.set()
    await running
    print(told(report), lab.exec(NAME, "cat /var/log/routerServiceMonitor.log", check=False).stdout)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert "RestartedByMonitor" in report.message
    assert "dnsmasq" in report.message
    assert lab.exec(NAME, ["systemctl", "is-active", "dnsmasq"]).stdout.strip() == "active"
