"""The API server in memory: what the engine relies on, and nothing else.

Versions, generations, conflicts, finalizers, owners and the status subresource behave as a real one's do
(tests/integration asks that one the same questions); admission by schema and CEL is left out. Every request takes a
moment, so that reconcilers meet each other as they would.
"""

import asyncio
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import ValidationError

from sim.loop import now
from sysvm.api.base import PENDING_STATUS, format_time
from sysvm.api.crds import KINDS
from sysvm.api.schema import JsonObject, filled, kind_schema
from sysvm.kube.client import Cluster, WriteObserver
from sysvm.kube.errors import AlreadyExists, Conflict, Invalid, NotFound
from sysvm.kube.objects import Key, Object, Resource, metadata_of
from sysvm.kube.transport import MERGE_PATCH, ClusterOptions, Request

REQUEST_SECONDS = 0.004
WATCH_SECONDS = 0.02
"""How late an event is."""

Listener = Callable[[Resource, Object | None, Object | None], None]
"""Called with the resource, the object as it was and as it is; None: not there."""


class Server:
    """All objects of one cluster."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, Key], Object] = {}
        self._resources: dict[str, Resource] = {}
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)
        self._listeners: list[Listener] = []
        self._models = {kind.plural: kind.model for kind in KINDS}
        self._schemas = _schemas()

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def deafen(self, listener: Listener) -> None:
        self._listeners.remove(listener)

    def get(self, resource: Resource, key: Key) -> Object:
        """A copy. Raises NotFound."""
        try:
            return copy.deepcopy(self._objects[resource.plural, key])
        except KeyError:
            raise NotFound(f'{resource.plural} "{key.name}" not found', status=404) from None

    def all(self, resource: Resource) -> Iterator[Object]:
        for (plural, _), obj in sorted(self._objects.items(), key=lambda item: item[0]):
            if plural == resource.plural:
                yield copy.deepcopy(obj)

    def create(self, resource: Resource, obj: Object) -> Object:
        made = copy.deepcopy(obj)
        metadata = made.setdefault("metadata", {})
        key = Key(str(metadata["namespace"]), str(metadata["name"]))
        if (resource.plural, key) in self._objects:
            raise AlreadyExists(f'{resource.plural} "{key.name}" already exists', status=409, reason="AlreadyExists")
        made.pop("status", None)
        made |= {"apiVersion": resource.api_version, "kind": resource.kind}
        metadata |= {"uid": f"uid-{next(self._uids)}", "generation": 1, "creationTimestamp": format_time(now())}
        if resource.plural in self._models:
            made = self._defaulted(resource, made)
            made["status"] = copy.deepcopy(PENDING_STATUS)
        return self._store(resource, key, None, made)

    def patch(
        self, resource: Resource, key: Key, patch: Mapping[str, Any], *, subresource: str | None = None
    ) -> Object:
        before = self.get(resource, key)
        wanted = (patch.get("metadata") or {}).get("resourceVersion")
        if wanted is not None and str(wanted) != before["metadata"]["resourceVersion"]:
            raise Conflict("the object has been modified", status=409, reason="Conflict")
        after = _merged(before, patch)
        for name in ("resourceVersion", "uid", "generation", "creationTimestamp", "deletionTimestamp"):
            if name in before["metadata"]:
                after["metadata"][name] = before["metadata"][name]
        if subresource == "status":
            after = {**before, "status": after.get("status", {})}
        elif "status" in before:
            after["status"] = before["status"]
        if resource.plural in self._models:
            after = self._defaulted(resource, after)
        if after == before:
            return before
        if {k: v for k, v in after.items() if k not in ("metadata", "status")} != {
            k: v for k, v in before.items() if k not in ("metadata", "status")
        }:
            after["metadata"]["generation"] = before["metadata"]["generation"] + 1
        if "deletionTimestamp" in after["metadata"] and not after["metadata"].get("finalizers"):
            self._remove(resource, key, before)
            return after
        return self._store(resource, key, before, after)

    def delete(self, resource: Resource, key: Key, *, uid: str = "", version: str = "") -> Object:
        before = self.get(resource, key)
        metadata = before["metadata"]
        if (uid and uid != metadata["uid"]) or (version and version != metadata["resourceVersion"]):
            raise Conflict("the precondition does not hold", status=409, reason="Conflict")
        if metadata.get("finalizers"):
            if "deletionTimestamp" in metadata:
                return before
            after = copy.deepcopy(before)
            after["metadata"]["deletionTimestamp"] = format_time(now())
            after["metadata"]["generation"] = metadata["generation"] + 1
            return self._store(resource, key, before, after)
        self._remove(resource, key, before)
        return {"kind": "Status", "apiVersion": "v1", "status": "Success", "details": {"uid": metadata["uid"]}}

    def _defaulted(self, resource: Resource, obj: Object) -> Object:
        result: Object = dict(obj)
        properties = self._schemas[resource.plural].get("properties", {})
        assert isinstance(properties, dict)
        for part in ("spec", "status"):
            schema = properties.get(part)
            if part in result and isinstance(schema, dict):
                result[part] = filled(schema, result[part])
        try:
            self._models[resource.plural].model_validate(result)
        except ValidationError as error:
            raise Invalid(str(error), status=422, reason="Invalid") from error
        return result

    def _store(self, resource: Resource, key: Key, before: Object | None, after: Object) -> Object:
        after["metadata"]["resourceVersion"] = str(next(self._versions))
        self._objects[resource.plural, key] = after
        self._resources[resource.plural] = resource
        self._tell(resource, before, after)
        return copy.deepcopy(after)

    def _remove(self, resource: Resource, key: Key, before: Object) -> None:
        del self._objects[resource.plural, key]
        last = copy.deepcopy(before)
        last["metadata"]["resourceVersion"] = str(next(self._versions))
        self._tell(resource, last, None)
        owner = before["metadata"]["uid"]
        for (plural, other), obj in sorted(self._objects.items(), key=lambda item: item[0]):
            if any(ref.get("uid") == owner for ref in obj["metadata"].get("ownerReferences") or ()):
                asyncio.get_running_loop().call_later(WATCH_SECONDS, self._collect, self._resources[plural], other)

    def _collect(self, resource: Resource, key: Key) -> None:
        if (resource.plural, key) in self._objects:
            self.delete(resource, key)

    def _tell(self, resource: Resource, before: Object | None, after: Object | None) -> None:
        for listener in tuple(self._listeners):
            listener(resource, before, after)


class Wire:
    """In place of `kube.transport.Transport`: one life's way to the server. A dead life is never answered."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.dead = False

    async def close(self) -> None:
        self.dead = True

    async def send(self, request: Request) -> Object:
        await asyncio.sleep(REQUEST_SECONDS)
        if self.dead:
            await asyncio.Event().wait()
        namespace, name, subresource = _place(request)
        resource, key = request.resource, Key(namespace, name)
        match request.method:
            case "GET" if name:
                return self._server.get(resource, key)
            case "GET":
                raise NotImplementedError("a life gets its lists from the world")
            case "POST":
                assert isinstance(request.body, dict)
                return self._server.create(resource, request.body)
            case "PATCH":
                assert request.content_type == MERGE_PATCH
                assert isinstance(request.body, dict)
                return self._server.patch(resource, key, request.body, subresource=subresource or None)
            case "DELETE":
                assert isinstance(request.body, dict)
                wanted = request.body.get("preconditions") or {}
                return self._server.delete(
                    resource, key, uid=wanted.get("uid", ""), version=wanted.get("resourceVersion", "")
                )
        raise NotImplementedError(request.sentence)


class SimulatedCluster(Cluster):
    """`Cluster` on a `Wire`: its caches, errors and write observer are the real ones."""

    def __init__(self, wire: Wire, *, writes: WriteObserver | None = None) -> None:
        self._options = ClusterOptions()
        self._transport = wire  # type: ignore[assignment]
        self._writes = writes
        self._caches = {}


@cache
def _schemas() -> dict[str, JsonObject]:
    return {kind.plural: kind_schema(kind.model) for kind in KINDS}


def _place(request: Request) -> tuple[str, str, str]:
    """Namespace, name, subresource of a path such as /apis/sysvm.io/v1alpha1/namespaces/ns/rollouts/name/status."""
    words = request.path.split("/")
    after = words[words.index("namespaces") + 1 :]
    return after[0], after[2] if len(after) > 2 else "", after[3] if len(after) > 3 else ""


def _merged(old: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """RFC 7386."""
    result = dict(copy.deepcopy(old))
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, Mapping):
            inner = result.get(name)
            result[name] = _merged(inner if isinstance(inner, Mapping) else {}, value)
        else:
            result[name] = copy.deepcopy(value)
    return result


def version_of(obj: Object) -> int:
    return int(metadata_of(obj)["resourceVersion"])
