"""A small API server in memory: versions that grow over all objects, compare-and-swap, and trouble on request."""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from sysvm.kube.client import ObjectList
from sysvm.kube.errors import AlreadyExists, Conflict, KubeError, NotFound, Unavailable
from sysvm.kube.objects import Key, Object, Resource, key_of


@dataclass
class FakeApi:
    """``delay_seconds`` and ``trouble`` apply to every call; ``lose_answers`` carries out, then fails."""

    objects: dict[tuple[Resource, Key], Object] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    versions: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    delay_seconds: float = 0.0
    trouble: KubeError | None = None
    lose_answers: int = 0

    async def __aenter__(self) -> FakeApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        await self._arrive(f"get {name}")
        return copy.deepcopy(self._find(resource, Key(namespace, name)))

    async def create(self, resource: Resource, obj: Object) -> Object:
        key = key_of(obj)
        await self._arrive(f"create {key.name}")
        if (resource, key) in self.objects:
            raise AlreadyExists(f"{key} is there", status=409)
        return self._answer(self._store(resource, key, obj))

    async def replace(self, resource: Resource, obj: Object, *, subresource: str | None = None) -> Object:
        key = key_of(obj)
        await self._arrive(f"replace {key.name}")
        if obj["metadata"]["resourceVersion"] != self._find(resource, key)["metadata"]["resourceVersion"]:
            raise Conflict(f"{key} was modified", status=409)
        return self._answer(self._store(resource, key, obj))

    async def merge_patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Mapping[str, Any],
        *,
        subresource: str | None = None,
        resource_version: int | str | None = None,
    ) -> Object:
        await self._arrive(f"patch {name}")
        old = self._find(resource, Key(namespace, name))
        return self._answer(self._store(resource, Key(namespace, name), {**old, **patch}))

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page_size: int = 500,
    ) -> AsyncIterator[ObjectList]:
        version = next(self.versions)
        items = [
            copy.deepcopy(obj)
            for (kind, key), obj in self.objects.items()
            if kind == resource and namespace in (None, key.namespace)
        ]
        size = page_size or len(items) or 1
        for start in range(0, len(items), size) or [0]:
            await self._arrive(f"list {start}")
            yield ObjectList(items[start : start + size], version)

    def delete(self, resource: Resource, key: Key) -> Object:
        gone = self.objects.pop((resource, key))
        return {**gone, "metadata": {**gone["metadata"], "resourceVersion": str(next(self.versions))}}

    def of(self, resource: Resource) -> list[Object]:
        return [obj for (kind, _), obj in self.objects.items() if kind == resource]

    async def _arrive(self, call: str) -> None:
        self.calls.append(call)
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        if self.trouble is not None:
            raise self.trouble

    def _find(self, resource: Resource, key: Key) -> Object:
        try:
            return self.objects[resource, key]
        except KeyError:
            raise NotFound(f"{key} is not there", status=404) from None

    def _store(self, resource: Resource, key: Key, obj: Object) -> Object:
        version = next(self.versions)
        metadata = {"uid": f"uid-{version}", **obj["metadata"], "resourceVersion": str(version)}
        stored = self.objects[resource, key] = {**copy.deepcopy(obj), "metadata": metadata}
        return copy.deepcopy(stored)

    def _answer(self, obj: Object) -> Object:
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unavailable("connection reset", outcome_unknown=True)
        return obj
