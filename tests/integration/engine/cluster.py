"""What the tests of the engine do to a cluster, as an administrator: write what people write, and read what is true."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tests.integration.engine.objects import Manifest

from sysvm.engine.resources import (
    APPROVAL,
    CONFIG_MAP,
    ENDPOINT,
    POLICY,
    ROLLOUT,
    SECRET,
    SYSTEM_VM,
    TEMPLATE,
    WINDOW,
)
from sysvm.kube.client import Cluster
from sysvm.kube.errors import NotFound
from sysvm.kube.lease import LEASE
from sysvm.kube.objects import Resource

T = TypeVar("T")

BY_KIND = {
    resource.kind: resource
    for resource in (APPROVAL, CONFIG_MAP, ENDPOINT, POLICY, ROLLOUT, SECRET, SYSTEM_VM, TEMPLATE, WINDOW)
}
WITHIN_SECONDS = 60.0
_LOOK_SECONDS = 0.1
_OURS = (POLICY, ENDPOINT, TEMPLATE, ROLLOUT, SYSTEM_VM, WINDOW)


@dataclass(frozen=True)
class Namespace:
    """One namespace of the real API server, seen by an administrator."""

    admin: Cluster
    name: str

    async def create(self, *objects: Manifest) -> None:
        for obj in objects:
            await self.admin.create(BY_KIND[obj["kind"]], obj)

    async def get(self, resource: Resource, name: str) -> Manifest:
        return await self.admin.get(resource, self.name, name)

    async def find(self, resource: Resource, name: str) -> Manifest | None:
        try:
            return await self.get(resource, name)
        except NotFound:
            return None

    async def all(self, resource: Resource) -> list[Manifest]:
        return (await self.admin.list(resource, self.name)).items

    async def edit(self, resource: Resource, name: str, spec: Mapping[str, object]) -> Manifest:
        return await self.admin.merge_patch(resource, self.name, name, {"spec": spec})

    async def annotate(self, resource: Resource, name: str, annotation: str, value: str) -> Manifest:
        return await self.admin.merge_patch(
            resource, self.name, name, {"metadata": {"annotations": {annotation: value}}}
        )

    async def delete(self, resource: Resource, name: str) -> None:
        try:
            await self.admin.delete(resource, self.name, name)
        except NotFound:
            return

    async def release_lease(self) -> None:
        """So that the next life need not wait until the dead one's lease runs out; it has another epoch."""
        with contextlib.suppress(NotFound):
            await self.admin.merge_patch(LEASE, self.name, "sysvm-operator", {"spec": {"holderIdentity": ""}})

    async def clear(self) -> None:
        """Removes everything that a story left, the Secret and the payloads excepted."""
        for resource in _OURS:
            for obj in await self.all(resource):
                name = obj["metadata"]["name"]
                if obj["metadata"].get("finalizers"):
                    await self.admin.merge_patch(resource, self.name, name, {"metadata": {"finalizers": None}})
                await self.delete(resource, name)
        for obj in await self.plans():
            await self.delete(CONFIG_MAP, obj["metadata"]["name"])

    async def picture(self) -> str:
        """Everything of ours without what only machines read, for a test that failed."""
        lines = []
        for resource in _OURS:
            for obj in await self.all(resource):
                meta, status = obj["metadata"], dict(obj.get("status") or {})
                said = [
                    f"{one['type']}={one['status']} {one['reason']}: {one.get('message', '')[:160]}"
                    for one in status.pop("conditions", [])
                ]
                lines.append(f"{obj['kind']} {meta['name']} v{meta['resourceVersion']} {meta.get('finalizers', '')}")
                lines += [f"    {line}" for line in said]
                if resource in (POLICY, ROLLOUT, SYSTEM_VM):
                    lines.append(f"    {json.dumps(obj['spec'].get('operation'))} {json.dumps(status)[:1500]}")
        lines += [f"ConfigMap {plan['metadata']['name']}" for plan in await self.plans()]
        return "\n".join(lines)

    async def plans(self) -> list[Manifest]:
        return [obj for obj in await self.all(CONFIG_MAP) if obj["metadata"]["name"].endswith("-plan")]


async def _nothing() -> str:
    return ""


async def until(
    holds: Callable[[], Awaitable[T | None]],
    what: str,
    *,
    within: float = WITHIN_SECONDS,
    story: Callable[[], Awaitable[str]] = _nothing,
) -> T:
    """Asks until the answer is not false, and returns it."""
    deadline = time.monotonic() + within
    while True:
        answer = await holds()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:.0f} s: {what}\n{await story()}")
        await asyncio.sleep(_LOOK_SECONDS)


def condition(obj: Mapping[str, Any], type_: str) -> Mapping[str, Any]:
    """The condition, or an empty one."""
    found: list[Mapping[str, Any]] = (obj.get("status") or {}).get("conditions") or []
    return next((one for one in found if one["type"] == type_), {})


def says(obj: Mapping[str, Any], type_: str = "Ready") -> tuple[str, str]:
    """Status and reason of a condition, of the generation that is; two empty words if it speaks of another."""
    found = condition(obj, type_)
    if found.get("observedGeneration") != obj["metadata"]["generation"]:
        return "", ""
    return str(found.get("status", "")), str(found.get("reason", ""))


def kstatus(obj: Mapping[str, Any]) -> str:
    """What kstatus computes (Flux, Helm, kubectl wait): written from its documentation, shared with nobody."""
    metadata, status = obj["metadata"], obj.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata["generation"]:
        return "InProgress"
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or []}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    if conditions.get("Ready") in ("False", "Unknown"):
        return "InProgress"
    return "Current"
