"""A host is given no more time than is left, however long other VMs of it were sent to first."""

from __future__ import annotations

import asyncio
import shlex
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.patching.test_zip_ranges import held

from sysvm.patching import host_sending
from sysvm.patching.host_sending import HostSending, Parcel
from sysvm.patching.jumps import Hop
from sysvm.patching.results import Target
from sysvm.patching.session import Session

PARCEL = Parcel(
    ({"sha256": "a" * 64, "size": 1, "encoding": "identity", "wire_size": 1},), ((held().scripts, 0),), None
)
TARGET = cast("Target", SimpleNamespace(address="169.254.3.4", account=SimpleNamespace(port=3922, user="root")))


class HostSSH:
    def __init__(self) -> None:
        self.seconds: list[int] = []

    async def run(self, command: str, **_: object) -> SimpleNamespace:
        # sh -c SCRIPT sh KEY ADDRESS PORT SECONDS USER COMMAND
        self.seconds.append(int(shlex.split(command)[7]))
        return SimpleNamespace(exit_status=0, stderr="")


class VMSession:
    async def request(self, verb: str, *_: object, **__: object) -> dict[str, Any]:
        return {"missing": ["a" * 64]} if verb == "stage" else {}


async def send(ssh: HostSSH, sendings: asyncio.Semaphore, seconds: float) -> str:
    login = SimpleNamespace(user="root")
    hop = cast("Hop", SimpleNamespace(ssh=ssh, sendings=sendings, login=login))
    session = cast("Session", VMSession())
    missing, why_not = await HostSending().send(session, hop, TARGET, "op-1", PARCEL, seconds=seconds)
    assert missing == ("a" * 64,)
    return why_not


async def test_time_that_passed_before_its_turn_is_not_given_to_the_host_again() -> None:
    """Else it would go on sending after the operator has given it up, and nothing can be built meanwhile."""
    ssh, sendings = HostSSH(), asyncio.Semaphore(0)
    asyncio.get_running_loop().call_later(2.0, sendings.release)
    await send(ssh, sendings, 5.0)
    assert ssh.seconds, "it had a turn"
    assert max(ssh.seconds) <= 3


async def test_a_host_whose_turn_does_not_come_is_not_said_to_have_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_sending, "_GRACE_SECONDS", 0.1)
    ssh, sendings = HostSSH(), asyncio.Semaphore(0)
    why_not = await send(ssh, sendings, 0.2)
    assert not ssh.seconds
    assert "other VMs" in why_not
