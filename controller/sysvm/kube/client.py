"""The one door to the API server: dicts in, dicts out, every call with a timeout, every refusal typed.

The generated models of the official client are not used, because objects of our kinds have none and a dict keeps
every field the server sent. What is here is what a reconciler needs and a generated client does not say: errors by
what to do next, a single method that all writes go through (so a test can stop the process at exactly the n-th), and
answers that go straight into the attached caches. ``transport`` carries the requests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from kubernetes.aio.client.configuration import Configuration

from sysvm.kube.errors import Expired, KubeError, Unavailable
from sysvm.kube.login import Login
from sysvm.kube.objects import JsonPatch, Key, Object, Resource, is_deleting, key_of, metadata_of
from sysvm.kube.transport import (
    APPLY_PATCH,
    JSON,
    JSON_PATCH,
    MERGE_PATCH,
    ClusterOptions,
    Request,
    RequestObserver,
    Transport,
    path_of,
    sentence_of,
)

__all__ = [
    "PAGE_SIZE",
    "Cluster",
    "ClusterOptions",
    "ObjectList",
    "Propagation",
    "RequestObserver",
    "Verb",
    "Write",
    "WriteObserver",
    "WriteThrough",
]

PAGE_SIZE = 100
"""Objects in a page. A SystemVM is 30 KiB while it is parsed: larger pages only cost memory for good."""


class Verb(StrEnum):
    """What a write does, in the words of RBAC where there is one (``apply`` needs ``patch`` and ``create``)."""

    CREATE = "create"
    REPLACE = "update"
    PATCH = "patch"
    APPLY = "apply"
    DELETE = "delete"


class Propagation(StrEnum):
    """What a deletion does to the objects that the deleted one owns."""

    BACKGROUND = "Background"
    FOREGROUND = "Foreground"
    ORPHAN = "Orphan"


@dataclass(frozen=True, slots=True)
class Write:
    """One write, as its observer sees it. ``name`` is empty when the server makes it up (``generateName``)."""

    verb: Verb
    resource: Resource
    namespace: str
    name: str
    subresource: str | None = None

    def __str__(self) -> str:
        return sentence_of(self.verb.value, self.resource, self.namespace, self.name, self.subresource)


class WriteObserver(Protocol):
    """Sees every write, before it is sent and after it was answered; may end the process or raise instead.

    ``after`` is called before the answer reaches the caches and the caller. It is not called for a write that was
    cancelled while it was waited for.
    """

    def before(self, write: Write) -> None: ...

    def after(self, write: Write, error: KubeError | None) -> None: ...


class WriteThrough(Protocol):
    """A cache that wants the answers to our own reads and writes of its resource (``cache.Store``)."""

    @property
    def resource(self) -> Resource: ...

    def put(self, obj: Object) -> bool: ...

    def forget(self, key: Key, uid: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class ObjectList:
    """A list as it was at ``resource_version``; ``next_page`` is the server's token, empty on the last page."""

    items: list[Object]
    resource_version: int
    next_page: str = ""


class Cluster:
    """A connection pool to one API server under one identity. Belongs to the event loop that first uses it.

    All methods raise the classes of ``errors``. Objects passed in are not modified.
    """

    def __init__(
        self,
        login: Login,
        configuration: Configuration,
        *,
        options: ClusterOptions | None = None,
        writes: WriteObserver | None = None,
        requests: RequestObserver | None = None,
    ) -> None:
        self._options = options or ClusterOptions()
        self._transport = Transport(login, configuration, options=self._options, observer=requests)
        self._writes = writes
        self._caches: dict[Resource, list[WriteThrough]] = {}

    @classmethod
    async def connect(
        cls,
        *,
        kubeconfig: Path | str | None = None,
        context: str | None = None,
        options: ClusterOptions | None = None,
        writes: WriteObserver | None = None,
        requests: RequestObserver | None = None,
    ) -> Self:
        """A cluster by kubeconfig, or by the service account of the Pod when there is none.

        Nothing is sent yet. Raises LoginFailed when the file or the service account cannot be used.
        """
        login = Login(kubeconfig=Path(kubeconfig) if kubeconfig else None, context=context)
        return cls(login, await login.open(), options=options, writes=writes, requests=requests)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    def attach(self, cache: WriteThrough) -> None:
        """From now on what the server answers about this resource goes into the cache before the caller sees it."""
        self._caches.setdefault(cache.resource, []).append(cache)

    # Reading

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        """The object as the server has it now, not as the cache remembers it."""
        answer = await self._transport.send(
            Request(
                verb="get",
                method="GET",
                resource=resource,
                path=path_of(resource, namespace, name),
                sentence=sentence_of("get", resource, namespace, name, None),
            )
        )
        self._put(resource, answer)
        return answer

    async def pages(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page_size: int = PAGE_SIZE,
    ) -> AsyncIterator[ObjectList]:
        """The list in pages, all as of one moment. ``namespace`` None means all of them; page size 0 means one page.

        Raises Expired between pages when the token has outlived the server's memory (some five minutes): start again.
        """
        query = {"labelSelector": label_selector, "fieldSelector": field_selector}
        query = {name: value for name, value in query.items() if value}
        if page_size:
            query["limit"] = str(page_size)
        while True:
            answer = await self._transport.send(
                Request(
                    verb="list",
                    method="GET",
                    resource=resource,
                    path=path_of(resource, namespace or "", None),
                    sentence=sentence_of("list", resource, namespace or "", "", None),
                    query=query,
                )
            )
            metadata = metadata_of(answer)
            token = str(metadata.get("continue") or "")
            items: list[Object] = answer.get("items") or []
            for item in items:  # items of built-in kinds come without
                item.setdefault("apiVersion", resource.api_version)
                item.setdefault("kind", resource.kind)
            yield ObjectList(items, int(metadata.get("resourceVersion") or 0), token)
            if not token:
                return
            query["continue"] = token

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        page_size: int = PAGE_SIZE,
    ) -> ObjectList:
        """The whole list as of one moment; begun again when it expires on the way, the last time in one piece."""
        for size in (page_size, page_size, 0):
            items: list[Object] = []
            try:
                async for page in self.pages(
                    resource, namespace, label_selector=label_selector, field_selector=field_selector, page_size=size
                ):
                    items += page.items
                    version = page.resource_version
            except Expired:
                continue
            return ObjectList(items, version)
        raise Unavailable("the list expired again and again", request=f"list {resource}")

    async def version(self) -> str:
        """The server's version, e.g. ``v1.37.2``. Needs no permission beyond being known."""
        resource = Resource("", "", "version", "Info", namespaced=False)
        answer = await self._transport.send(
            Request(verb="get", method="GET", resource=resource, path="/version", sentence="get /version")
        )
        return str(answer.get("gitVersion") or "")

    # Writing

    async def create(self, resource: Resource, obj: Object) -> Object:
        """Creates the object in the namespace of its metadata. Raises AlreadyExists."""
        metadata = metadata_of(obj)
        namespace = str(metadata.get("namespace") or "")
        if resource.namespaced and not namespace:
            raise ValueError(f"a new {resource.kind} needs a namespace")
        write = Write(Verb.CREATE, resource, namespace, str(metadata.get("name") or ""))
        return await self._write(
            write, "POST", path_of(resource, namespace, None), _with_kind(resource, obj), query=self._manager()
        )

    async def replace(self, resource: Resource, obj: Object, *, subresource: str | None = None) -> Object:
        """Puts the object in place of the one with the same resourceVersion. Raises Conflict when it is not current."""
        key = key_of(obj)
        write = Write(Verb.REPLACE, resource, key.namespace, key.name, subresource)
        return await self._write(
            write, "PUT", path_of(resource, *key, subresource), _with_kind(resource, obj), query=self._manager()
        )

    async def merge_patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Mapping[str, object],
        *,
        subresource: str | None = None,
        resource_version: int | str | None = None,
    ) -> Object:
        """Merges the patch (RFC 7386: null removes, lists are replaced whole).

        With ``resource_version`` it raises Conflict unless that version is current.
        """
        body = dict(patch)
        if resource_version is not None:
            metadata = body.get("metadata")
            kept = dict(metadata) if isinstance(metadata, Mapping) else {}
            body["metadata"] = {**kept, "resourceVersion": str(resource_version)}
        write = Write(Verb.PATCH, resource, namespace, name, subresource)
        return await self._write(
            write,
            "PATCH",
            path_of(resource, namespace, name, subresource),
            body,
            content_type=MERGE_PATCH,
            query=self._manager(),
        )

    async def json_patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: JsonPatch,
        *,
        subresource: str | None = None,
    ) -> Object:
        """Applies the operations (RFC 6902), all or none.

        Raises Invalid when one cannot be applied; the server does not tell a ``test`` that does not hold from a path
        that is not there. To compare and swap, replace ``/metadata/resourceVersion`` by the version that was read:
        then it raises Conflict (``objects.at_version``).
        """
        write = Write(Verb.PATCH, resource, namespace, name, subresource)
        return await self._write(
            write,
            "PATCH",
            path_of(resource, namespace, name, subresource),
            patch,
            content_type=JSON_PATCH,
            query=self._manager(),
        )

    async def apply(
        self,
        resource: Resource,
        obj: Object,
        *,
        force: bool = False,
        subresource: str | None = None,
    ) -> Object:
        """Server-side apply: creates the object or owns the given fields of it.

        Raises Conflict when another manager owns one of them with another value, unless ``force``.
        """
        key = key_of(obj)
        write = Write(Verb.APPLY, resource, key.namespace, key.name, subresource)
        return await self._write(
            write,
            "PATCH",
            path_of(resource, *key, subresource),
            _with_kind(resource, obj),
            content_type=APPLY_PATCH,
            query={**self._manager(), "force": "true" if force else "false"},
        )

    async def delete(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        propagation: Propagation = Propagation.BACKGROUND,
        uid: str = "",
        resource_version: int | str | None = None,
    ) -> Object | None:
        """Asks for the deletion. Returns the object while finalizers hold it, None once it is gone.

        Raises NotFound, and Conflict when ``uid`` or ``resource_version`` is given and is not the current one.
        """
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation.value}
        preconditions = {"uid": uid, "resourceVersion": "" if resource_version is None else str(resource_version)}
        preconditions = {name: value for name, value in preconditions.items() if value}
        if preconditions:
            body["preconditions"] = preconditions
        write = Write(Verb.DELETE, resource, namespace, name)
        answer = await self._write(write, "DELETE", path_of(resource, namespace, name), body)
        return answer if _still_there(answer) else None

    async def _write(
        self,
        write: Write,
        method: str,
        path: str,
        body: Object | JsonPatch,
        *,
        content_type: str = JSON,
        query: Mapping[str, str] | None = None,
    ) -> Object:
        """The one method that changes anything in the cluster."""
        request = Request(
            verb="patch" if write.verb is Verb.APPLY else write.verb.value,
            method=method,
            resource=write.resource,
            path=path,
            sentence=str(write),
            query=query or {},
            body=body,
            content_type=content_type,
        )
        if self._writes is not None:
            self._writes.before(write)
        try:
            answer = await self._transport.send(request)
        except KubeError as error:
            if self._writes is not None:
                self._writes.after(write, error)
            raise
        if self._writes is not None:
            self._writes.after(write, None)
        self._remember(write, answer)
        return answer

    def _manager(self) -> dict[str, str]:
        """Strict: a field that the schema lacks would be dropped silently, and written again for ever."""
        return {"fieldManager": self._options.field_manager, "fieldValidation": "Strict"}

    def _remember(self, write: Write, answer: Object) -> None:
        if write.verb is Verb.DELETE and not _still_there(answer):
            uid = str((answer.get("details") or {}).get("uid") or metadata_of(answer).get("uid") or "")
            for cache in self._caches.get(write.resource, ()):
                cache.forget(Key(write.namespace, write.name), uid)
        else:
            self._put(write.resource, answer)

    def _put(self, resource: Resource, answer: Object) -> None:
        if answer.get("kind") == resource.kind:  # subresources such as scale answer with another kind
            for cache in self._caches.get(resource, ()):
                cache.put(answer)


def _still_there(answer: Object) -> bool:
    """Whether a deletion's answer is an object that waits for its finalizers; some kinds answer with the dead one."""
    return answer.get("kind") != "Status" and is_deleting(answer) and bool(metadata_of(answer).get("finalizers"))


def _with_kind(resource: Resource, obj: Object) -> Object:
    return {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
