"""The words and small rules of the Kubernetes API conventions, as pure functions over plain data.

Conditions, owners and finalizers are easy to write almost right: a ``lastTransitionTime`` that moves without a
transition makes every write a change and every change an event, for ever. So the rules are here once, without a
client or a clock, and every reconciler calls them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

Object = dict[str, Any]
"""One JSON object as the API server sends it. Readers give it a type at once (a projection, a model)."""

JsonPatch = list[dict[str, Any]]
"""The operations of a JSON patch (RFC 6902)."""


class Key(NamedTuple):
    """What a reconciler is called with. ``namespace`` is empty for cluster-scoped kinds."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind and where the API server keeps it. ``group`` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """A reference to one object, as Events and owner references need it."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""
    resource_version: str = ""

    def as_object(self) -> Object:
        """The ``ObjectReference`` of the core API; empty fields are left out."""
        fields = {
            "apiVersion": self.api_version,
            "kind": self.kind,
            "namespace": self.namespace,
            "name": self.name,
            "uid": self.uid,
            "resourceVersion": self.resource_version,
        }
        return {field: value for field, value in fields.items() if value}


# Reading metadata


def metadata_of(obj: Mapping[str, Any]) -> Mapping[str, Any]:
    """The object's metadata, empty when it has none."""
    metadata: Mapping[str, Any] = obj.get("metadata") or {}
    return metadata


def key_of(obj: Mapping[str, Any]) -> Key:
    """The key of an object. Raises KeyError for one without a name."""
    metadata = metadata_of(obj)
    return Key(str(metadata.get("namespace") or ""), str(metadata["name"]))


def uid_of(obj: Mapping[str, Any]) -> str:
    return str(metadata_of(obj).get("uid") or "")


def resource_version_of(obj: Mapping[str, Any]) -> int:
    """The resourceVersion as a number, 0 when there is none.

    The server guarantees that the versions of one resource compare as integers since Kubernetes 1.35; before, it was
    true of every server with etcd behind it.
    """
    return int(metadata_of(obj).get("resourceVersion") or 0)


def is_deleting(obj: Mapping[str, Any]) -> bool:
    """Whether deletion was asked for and something (a finalizer) still holds the object."""
    return bool(metadata_of(obj).get("deletionTimestamp"))


def ref_to(obj: Mapping[str, Any], resource: Resource | None = None) -> ObjectRef:
    """A reference to the object. Items of a list carry no kind: pass their resource."""
    metadata = metadata_of(obj)
    return ObjectRef(
        api_version=resource.api_version if resource else str(obj["apiVersion"]),
        kind=resource.kind if resource else str(obj["kind"]),
        namespace=str(metadata.get("namespace") or ""),
        name=str(metadata["name"]),
        uid=str(metadata.get("uid") or ""),
        resource_version=str(metadata.get("resourceVersion") or ""),
    )


# Time


def rfc3339(moment: datetime) -> str:
    """``metav1.Time``: whole seconds in UTC, ``2026-11-22T10:00:00Z``. Needs a moment with a zone."""
    return _utc(moment).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_micro(moment: datetime) -> str:
    """``metav1.MicroTime``: microseconds in UTC, ``2026-11-22T10:00:00.000000Z``. Needs a moment with a zone."""
    return _utc(moment).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError(f"a moment without a time zone: {moment!r}")
    return moment.astimezone(UTC)


# Conditions


def find_condition(conditions: Sequence[Mapping[str, Any]], type_: str) -> Mapping[str, Any] | None:
    return next((condition for condition in conditions if condition.get("type") == type_), None)


def set_condition(
    conditions: Sequence[Mapping[str, Any]],
    type_: str,
    status: str,
    reason: str,
    message: str,
    *,
    observed_generation: int,
    now: datetime,
) -> list[Object]:
    """The conditions with this one set, in their old order (a new one last).

    ``lastTransitionTime`` moves only when ``status`` does (API conventions): a new reason or message is no transition.
    ``status`` is "True", "False" or "Unknown".
    """
    if status not in ("True", "False", "Unknown"):
        raise ValueError(f"condition {type_}: status is True, False or Unknown, not {status!r}")
    old = find_condition(conditions, type_)
    kept = str(old["lastTransitionTime"]) if old and old.get("status") == status else rfc3339(now)
    new: Object = {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": observed_generation,
        "lastTransitionTime": kept,
    }
    if old is None:
        return [*(dict(condition) for condition in conditions), new]
    return [new if condition.get("type") == type_ else dict(condition) for condition in conditions]


def remove_condition(conditions: Sequence[Mapping[str, Any]], type_: str) -> list[Object]:
    return [dict(condition) for condition in conditions if condition.get("type") != type_]


def set_abnormal(
    conditions: Sequence[Mapping[str, Any]],
    type_: str,
    present: bool,
    reason: str,
    message: str,
    *,
    observed_generation: int,
    now: datetime,
) -> list[Object]:
    """A condition that is bad news when True (Reconciling, Stalled): it is "True" or it is not there (kstatus)."""
    if not present:
        return remove_condition(conditions, type_)
    return set_condition(conditions, type_, "True", reason, message, observed_generation=observed_generation, now=now)


# Owners


def owner_reference(owner: ObjectRef, *, controller: bool = True, block_owner_deletion: bool = True) -> Object:
    """The entry of ``metadata.ownerReferences`` for an owner in the same namespace. The owner's uid is needed.

    ``block_owner_deletion`` makes a foreground deletion of the owner wait for this object; to set it, the writer needs
    the permission to update the owner's ``finalizers`` subresource where that admission plugin is on.
    """
    if not owner.uid:
        raise ValueError(f"owner {owner.kind} {owner.name} has no uid")
    return {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": controller,
        "blockOwnerDeletion": block_owner_deletion,
    }


def is_owned_by(obj: Mapping[str, Any], owner_uid: str) -> bool:
    return any(reference.get("uid") == owner_uid for reference in metadata_of(obj).get("ownerReferences") or ())


# Finalizers


def has_finalizer(obj: Mapping[str, Any], finalizer: str) -> bool:
    return finalizer in (metadata_of(obj).get("finalizers") or ())


def add_finalizer_patch(obj: Mapping[str, Any], finalizer: str) -> JsonPatch:
    """The JSON patch that adds the finalizer to exactly this version of the object; empty when it is there.

    The server answers a version that is no longer current with a conflict. Adding one to an object that is being
    deleted is forbidden by the server.
    """
    if has_finalizer(obj, finalizer):
        return []
    return _with_finalizers(obj, [*(metadata_of(obj).get("finalizers") or ()), finalizer])


def remove_finalizer_patch(obj: Mapping[str, Any], finalizer: str) -> JsonPatch:
    """The JSON patch that takes the finalizer off exactly this version of the object; empty when it is not there."""
    if not has_finalizer(obj, finalizer):
        return []
    return _with_finalizers(obj, [other for other in metadata_of(obj)["finalizers"] if other != finalizer])


def _with_finalizers(obj: Mapping[str, Any], finalizers: Sequence[str]) -> JsonPatch:
    """The list as a whole: an index into a list that has changed meanwhile would be invalid, not a conflict."""
    return [at_version(obj), {"op": "add", "path": "/metadata/finalizers", "value": list(finalizers)}]


def at_version(obj: Mapping[str, Any]) -> dict[str, Any]:
    """The operation that makes a JSON patch valid for this version of the object only, else a conflict.

    Not ``test``: the server answers a test that does not hold as it answers a malformed patch (422, no cause given).
    """
    return {"op": "replace", "path": "/metadata/resourceVersion", "value": str(metadata_of(obj)["resourceVersion"])}


# Writes that are worth sending


def differs(old: object, new: object) -> bool:
    """Whether writing ``new`` over ``old`` would change anything, absent and null being the same.

    A write that changes nothing costs the server as much as one that does.
    """
    return _without_nulls(old) != _without_nulls(new)


def merge_patch_between(old: Mapping[str, Any], new: Mapping[str, Any]) -> Object:
    """The JSON merge patch (RFC 7386) that turns ``old`` into ``new``; empty when there is nothing to do.

    Lists are replaced whole. A null in ``new`` means absent.
    """
    patch: Object = {field: None for field, value in old.items() if value is not None and new.get(field) is None}
    for field, value in new.items():
        before = old.get(field)
        if value is None:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            inner = merge_patch_between(before, value)
            if inner:
                patch[field] = inner
        elif differs(before, value):
            patch[field] = _without_nulls(value)
    return patch


def _without_nulls(value: object) -> object:
    if isinstance(value, Mapping):
        return {field: _without_nulls(item) for field, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return value
