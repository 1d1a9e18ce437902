"""Without the lead nothing is written and no operation begins, whoever still wants to."""

from __future__ import annotations

from typing import Any, cast

import pytest

from sysvm.engine.ports import SystemVMs
from sysvm.kube.client import Verb, Write
from sysvm.kube.errors import KubeError
from sysvm.kube.objects import Resource
from sysvm.operator.leading import LedVMs, LedWrites, reads_its_lease
from sysvm.patching.results import Order, Target

WRITE = Write(Verb.CREATE, Resource("", "v1", "configmaps", "ConfigMap"), "ns", "plan")


class Lost(Exception):  # noqa: N818
    """Instead of the end of the process."""


def lost(why: str) -> None:
    raise Lost(why)


class Lead:
    leads = True
    identity = "me"

    def holds(self) -> bool:
        return self.leads


class Witness:
    """What came through."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def before(self, write: Write) -> None:
        self.calls.append(f"before {write}")

    def after(self, write: Write, error: KubeError | None) -> None:
        self.calls.append(f"after {write}")

    async def observe(self, *_: object, **__: object) -> None:
        self.calls.append("observe")

    async def patch(self, *_: object) -> None:
        self.calls.append("patch")

    async def take_back(self, *_: object) -> None:
        self.calls.append("take back")

    async def back_up(self, *_: object) -> None:
        self.calls.append("back up")

    async def report(self, *_: object) -> None:
        self.calls.append("report")


def test_no_write_leaves_without_the_lead() -> None:
    lead, witness = Lead(), Witness()
    led = LedWrites(lead, lost, witness)
    led.before(WRITE)
    led.after(WRITE, None)
    assert witness.calls == [f"before {WRITE}", f"after {WRITE}"]
    lead.leads = False
    with pytest.raises(Lost, match="plan"):
        led.before(WRITE)
    assert len(witness.calls) == 2


async def test_no_operation_begins_without_the_lead_and_looks_are_free() -> None:
    lead, witness = Lead(), Witness()
    led = LedVMs(lead, lost, cast("SystemVMs", witness))
    order = Order("op-1", 7, 1, 1.0, (), 60.0, 60.0)
    target = cast("Target", type("T", (), {"name": "r-1-VM"})())
    nothing = cast("Any", None)
    await led.patch(target, nothing, order, nothing)
    await led.take_back(target, order, "op-0", nothing)
    await led.back_up(target, nothing, order)
    lead.leads = False
    with pytest.raises(Lost, match="op-1 on r-1-VM"):
        await led.patch(target, nothing, order, nothing)
    with pytest.raises(Lost, match="op-1 on r-1-VM"):
        await led.take_back(target, order, "op-0", nothing)
    with pytest.raises(Lost, match="op-1 on r-1-VM"):
        await led.back_up(target, nothing, order)
    await led.observe(target, None)
    await led.report(target, "op-1")
    assert witness.calls == ["patch", "take back", "back up", "observe", "report"]


@pytest.mark.parametrize(
    ("holds", "holder", "transitions", "leads"),
    [
        (True, "me", 7, True),
        (False, "me", 7, False),  # not renewed in time, whatever the server says
        (True, "other", 8, False),
        (True, "me", 8, False),  # lost and taken again meanwhile: this is another epoch
    ],
)
async def test_before_what_cannot_be_called_back_the_server_is_asked_who_leads(
    *, holds: bool, holder: str, transitions: int, leads: bool
) -> None:
    class Cluster:
        async def get(self, resource: Resource, namespace: str, name: str) -> dict[str, Any]:
            assert (resource.kind, namespace, name) == ("Lease", "ns", "sysvm-operator")
            return {"spec": {"holderIdentity": holder, "leaseTransitions": transitions}}

    lead = Lead()
    lead.leads = holds
    assert await reads_its_lease(lead, Cluster(), "ns", "sysvm-operator", 7)() is leads
