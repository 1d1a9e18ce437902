"""A fleet shares few payloads: what one VM was asked is not asked of the next."""

from __future__ import annotations

import asyncio
import hashlib
from typing import cast

import pytest

from lab.content import payloads, releases
from sysvm.patching import observing
from sysvm.patching.diff import Previous
from sysvm.patching.errors import Unreachable
from sysvm.patching.observing import PreviousPayloads
from sysvm.patching.session import Session

PACKED = payloads.build_scripts(releases.old())
SUMS = {"sha512": hashlib.sha512(PACKED).hexdigest()}


class VM:
    """A session that counts how often its archive is read."""

    def __init__(self, *, failing: bool = False) -> None:
        self.reads = 0
        self.go_on = asyncio.Event()
        self.failing = failing

    async def read(self, path: str, *, limit: int, timeout: float) -> bytes:
        assert path == observing.PAYLOAD_PATH
        self.reads += 1
        await self.go_on.wait()
        if self.failing:
            raise Unreachable("cut")
        return PACKED

    @property
    def session(self) -> Session:
        return cast("Session", self)


async def asked(known: PreviousPayloads, vms: list[VM]) -> list[asyncio.Task[Previous]]:
    tasks = [asyncio.ensure_future(known.of(vm.session, SUMS)) for vm in vms]
    for _ in range(5):
        await asyncio.sleep(0)
    return tasks


async def test_vms_with_the_same_payload_are_asked_for_it_once() -> None:
    vms = [VM() for _ in range(3)]
    known = PreviousPayloads()
    tasks = await asked(known, vms)
    vms[0].go_on.set()
    found = await asyncio.gather(*tasks)
    assert [vm.reads for vm in vms] == [1, 0, 0]
    assert found[0].entries
    assert found[0] is found[1] is found[2]
    assert await known.of(VM().session, SUMS) is found[0]


async def test_a_vm_that_is_lost_while_it_is_asked_leaves_the_question_to_the_next() -> None:
    vms = [VM(failing=True), VM()]
    tasks = await asked(PreviousPayloads(), vms)
    for vm in vms:
        vm.go_on.set()
    with pytest.raises(Unreachable):
        await tasks[0]
    assert (await tasks[1]).entries
    assert [vm.reads for vm in vms] == [1, 1]


async def test_a_vm_that_is_slow_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "_ANOTHERS_SECONDS", 0.01)
    slow, quick = VM(), VM()
    quick.go_on.set()
    first, second = await asked(PreviousPayloads(), [slow, quick])
    assert (await second).entries
    assert not first.done()
    slow.go_on.set()
    await first
