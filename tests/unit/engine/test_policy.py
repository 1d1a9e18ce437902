"""When a policy announces a rollout: a reconciler over caches that hold what a crash at the wrong moment leaves."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from tests.integration.engine import objects

from sysvm.engine.cloud import ManagedClouds
from sysvm.engine.inventory import Roster
from sysvm.engine.notices import Notices
from sysvm.engine.plans import Plans
from sysvm.engine.policy import PolicyReconciler
from sysvm.engine.stores import Stores
from sysvm.kube.cache import Store
from sysvm.kube.client import Cluster
from sysvm.kube.events import EventType
from sysvm.kube.objects import Key, Object, ObjectRef, Resource

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
REVISION = "ea0bdc4a" * 8
KEY = Key("ns", "routers")


class Witness:
    """A cluster that takes every status and remembers it."""

    def __init__(self) -> None:
        self.statuses: list[Mapping[str, Any]] = []
        self.created: list[Object] = []

    async def merge_patch(self, resource: Resource, namespace: str, name: str, patch: Object, **_: object) -> Object:
        self.statuses.append(patch["status"])
        return patch

    async def create(self, resource: Resource, obj: Object) -> Object:
        self.created.append(obj)
        return obj


class Nobody:
    def event(
        self,
        about: ObjectRef,
        type_: EventType,
        reason: str,
        action: str,
        note: str,
        *,
        related: ObjectRef | None = None,
    ) -> None: ...


def put(store: Store[Any], obj: Object, status: Object | None = None) -> None:
    obj["metadata"] |= {"uid": f"uid-{obj['metadata']['name']}", "resourceVersion": "7", "generation": 1}
    if status is not None:
        obj["status"] = status
    store.put(obj)


def outdated(name: str) -> Object:
    """A SystemVM that was looked at and compared, and is not at the release."""
    at = "2026-11-22T11:59:00Z"
    content = {"state": "Drifted", "revision": REVISION, "changed": 1, "observedAt": at}
    return {
        "identity": {"name": name, "type": "router", "address": "192.0.2.1"},
        "observed": {
            "at": at,
            "template": {"version": "4.20.1"},
            "signature": {"algorithm": "md5", "value": "a" * 32},
            "payloadChecksum": f"md5:{'a' * 32}",
            "content": content,
        },
        "conditions": [
            {"type": "Reachable", "status": "True", "reason": "Reachable", "message": "", "lastTransitionTime": at}
        ],
    }


def a_vm(name: str, endpoint: str = "here") -> Object:
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "SystemVM",
        "metadata": {"name": f"here-{name}".lower(), "namespace": "ns"},
        "spec": {"endpointRef": {"name": endpoint}},
    }


@pytest.fixture
def stores() -> Stores:
    """An endpoint that lists two VMs, of which the first is there and outdated."""
    found = Stores()
    entries = [objects.vm("r-1-VM"), objects.vm("r-2-VM")]
    signature = {"algorithm": "md5", "value": "b" * 32}
    put(found.endpoints, objects.endpoint("ns", "here", entries))
    template = objects.template("ns", "first", objects.scripts("first"))
    put(found.templates, template, {"revision": REVISION, "signature": signature})
    put(found.policies, objects.policy("ns", "routers", "here", "first"))
    put(found.system_vms, a_vm("r-1-VM"), outdated("r-1-VM"))
    return found


async def announced(stores: Stores) -> str | None:
    """The name of the rollout that the policy announces."""
    witness = Witness()
    cluster = cast("Cluster", witness)
    roster = Roster(stores, ManagedClouds(lambda key: None, lambda: NOW))
    await PolicyReconciler(cluster, stores, roster, Plans(cluster), Notices(Nobody()), lambda: NOW).reconcile(KEY)
    last = witness.statuses[0].get("lastRollout")
    return None if last is None else str(last["name"])


async def test_no_rollout_is_announced_before_every_listed_vm_has_an_object(stores: Stores) -> None:
    assert await announced(stores) is None


async def test_no_rollout_is_announced_before_every_listed_vm_says_what_it_is(stores: Stores) -> None:
    put(stores.system_vms, a_vm("r-2-VM"))
    assert await announced(stores) is None


async def test_one_rollout_is_announced_once_all_are_known(stores: Stores) -> None:
    put(stores.system_vms, a_vm("r-2-VM"), outdated("r-2-VM"))
    assert await announced(stores) == "routers-ea0bdc4a-1"


async def test_a_vm_that_belongs_to_another_endpoint_is_not_waited_for(stores: Stores) -> None:
    put(stores.system_vms, a_vm("r-2-VM", endpoint="there"))
    assert await announced(stores) == "routers-ea0bdc4a-1"
