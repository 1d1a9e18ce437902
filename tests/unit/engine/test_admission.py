"""What is written of a decision is only what still holds: writes take their time, and VMs begin meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from tests.unit.domain import builders

from sysvm.api.base import OPERATION_FINALIZER
from sysvm.engine.admission import CONFLICT_SECONDS, AdmissionReconciler
from sysvm.engine.board import Board
from sysvm.engine.resources import ENDPOINT, SYSTEM_VM
from sysvm.engine.stores import Stores
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Key, Resource
from sysvm.kube.queue import Again

ENDPOINT_KEY = Key("ns", builders.ENDPOINT)


@dataclass
class World:
    """An endpoint, and VMs with orders of a former leader that belong to no rollout any more."""

    stores: Stores = field(default_factory=Stores)
    written: list[tuple[str, Any]] = field(default_factory=list)
    while_written: Callable[[], None] = lambda: None

    def put(self, name: str, version: int = 1, **status: Any) -> None:
        vm = builders.system_vm(name, **status).to_dict()
        vm["metadata"] |= {"namespace": "ns", "uid": name, "resourceVersion": str(version)}
        vm["metadata"]["finalizers"] = [OPERATION_FINALIZER, "other"]
        order = builders.order(id=f"op-{name.lower()}").model_copy(update={"epoch": builders.EPOCH - 1})
        vm["spec"]["operation"] = order.to_dict()
        self.stores.system_vms.put({"apiVersion": SYSTEM_VM.api_version, "kind": "SystemVM", **vm})

    def put_endpoint(self) -> None:
        endpoint = builders.endpoint().to_dict()
        endpoint["metadata"] |= {"namespace": "ns", "resourceVersion": "1"}
        self.stores.endpoints.put({"apiVersion": ENDPOINT.api_version, "kind": ENDPOINT.kind, **endpoint})

    async def merge_patch(
        self, resource: Resource, namespace: str, name: str, patch: Any, *, resource_version: str
    ) -> None:
        assert (resource, namespace) == (SYSTEM_VM, "ns")
        self.written.append((name, patch))
        self.while_written()

    async def reconcile(self) -> Again | None:
        admission = AdmissionReconciler(
            cast("Cluster", self), self.stores, cast("Any", None), Board(builders.EPOCH), builders.EPOCH,
            lambda key: None, lambda key: None, lambda: builders.NOW, guarded=False,
        )  # fmt: skip
        return await admission.reconcile(ENDPOINT_KEY)


WITHDRAWN = {"metadata": {"finalizers": ["other"]}, "spec": {"operation": None}}


async def test_an_order_that_nobody_would_give_goes_with_its_finalizer_in_one_write() -> None:
    world = World()
    world.put_endpoint()
    world.put("r-1-VM")
    await world.reconcile()
    assert world.written == [("prod-r-1-vm", WITHDRAWN)]


async def test_what_begins_while_another_order_is_withdrawn_keeps_its_own() -> None:
    world = World()
    world.put_endpoint()
    world.put("r-1-VM")
    world.put("r-2-VM")
    world.while_written = lambda: world.put("r-2-VM", 2, operation=builders.operation(None, id="op-r-2-vm"))
    assert await world.reconcile() == Again(CONFLICT_SECONDS)
    assert [name for name, _ in world.written] == ["prod-r-1-vm"]


async def test_without_its_endpoint_nothing_begins_any_more_and_what_has_begun_goes_on() -> None:
    world = World()
    world.put("r-1-VM")
    world.put("r-2-VM", operation=builders.operation(None, id="op-r-2-vm"))
    assert await world.reconcile() is None
    assert world.written == [("prod-r-1-vm", WITHDRAWN)]
