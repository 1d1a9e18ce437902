"""The write-through cache of one kind: what the operator believes the cluster holds.

Four streams meet here without an order between them: watch events, the pages of a relist, the answers to our own
writes, and deletions. A cache that takes whatever came last goes back in time, and a reconciler that decides on the
past hands out work twice. So one rule decides everything: the state with the larger resourceVersion wins, and what is
dead stays dead. Versions of one resource grow over all its objects, so a deleted and recreated object (new uid, same
name) is newer than every state of its forerunner.

Values are projections made on entry, so that ten thousand objects cost what a reconciler reads of them and not what
the server sends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from sysvm.kube.objects import Key, Object, Resource, key_of, metadata_of, resource_version_of, uid_of

T = TypeVar("T")

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
GRAVES_AT_MOST = 20_000


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One object as the cache knows it. ``resource_version`` is the one to write against for compare-and-swap."""

    key: Key
    uid: str
    resource_version: int
    value: T


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What happened to a key: ``old`` None is new, ``new`` None is gone, both for a change or a recreation."""

    key: Key
    old: Entry[T] | None
    new: Entry[T] | None

    @property
    def is_recreation(self) -> bool:
        return self.old is not None and self.new is not None and self.old.uid != self.new.uid


@dataclass(slots=True)
class _Grave:
    """The dead of one key: their uids, and the version up to which nothing under this key may come back."""

    uids: set[str]
    resource_version: int
    settled: int = 0
    """Relists it has outlived."""

    def holds(self, uid: str, resource_version: int) -> bool:
        return uid in self.uids or resource_version <= self.resource_version


class Store(Generic[T]):
    """The cache of one resource. Not thread-safe: it belongs to one event loop and never awaits.

    ``project`` makes the value from the object (``strip`` keeps the object, less its bookkeeping); it must not raise,
    so one that parses returns a value of its own for what it cannot read. ``indices`` gives for each index the values
    under which an entry is found, kept up to date with every change: values must not be changed from outside.
    """

    def __init__(
        self,
        resource: Resource,
        project: Callable[[Object], T],
        *,
        indices: Mapping[str, Callable[[T], Iterable[str]]] | None = None,
    ) -> None:
        self._resource = resource
        self._project = project
        self._entries: dict[Key, Entry[T]] = {}
        self._graves: dict[Key, _Grave] = {}
        self._index_functions = dict(indices or {})
        self._indices: dict[str, dict[str, dict[Key, None]]] = {name: {} for name in self._index_functions}
        """Keys in an order that is the same in every process: reconcilers meet their objects in it."""
        self._listeners: list[Callable[[Change[T]], None]] = []
        self._synced = False

    @property
    def resource(self) -> Resource:
        return self._resource

    @property
    def synced(self) -> bool:
        """Whether a whole list has gone in, so that what is not here is not in the cluster either."""
        return self._synced

    def subscribe(self, listener: Callable[[Change[T]], None]) -> None:
        """Calls the listener with every change, at once. It may only take note (enqueue a key)."""
        self._listeners.append(listener)

    # Reading

    def get(self, key: Key) -> T | None:
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def entry(self, key: Key) -> Entry[T] | None:
        return self._entries.get(key)

    def values(self, namespace: str | None = None, *, index: str | None = None, value: str = "") -> list[T]:
        """The values in the order of their keys, of one namespace, of one index value, or all."""
        return [entry.value for entry in self.entries(namespace, index=index, value=value)]

    def entries(self, namespace: str | None = None, *, index: str | None = None, value: str = "") -> list[Entry[T]]:
        keys = self._entries if index is None else self._indices[index].get(value, ())
        return [self._entries[key] for key in sorted(keys) if namespace is None or key.namespace == namespace]

    def index_values(self, index: str) -> list[str]:
        """The values of the index that have at least one entry."""
        return sorted(self._indices[index])

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    # Taking in

    def observe(self, event_type: str | None, obj: Object) -> bool:
        """A watch event: ``ADDED``, ``MODIFIED``, None (listed at the start of a watch) or ``DELETED``."""
        if event_type == "DELETED":
            return self.remove(obj)
        return self.put(obj)

    def put(self, obj: Object) -> bool:
        """The state of an object. Returns whether it was news; an older or equal one, or one of the dead, is not."""
        key, uid, version = key_of(obj), uid_of(obj), resource_version_of(obj)
        old = self._entries.get(key)
        if old is not None and version <= old.resource_version:
            return False
        grave = self._graves.get(key)
        if grave is not None and grave.holds(uid, version):
            return False
        self._set(key, old, Entry(key, uid, version, self._project(obj)))
        return True

    def remove(self, obj: Object) -> bool:
        """The last state of a deleted object, as a watch gives it. Returns whether it or a forerunner was held."""
        key, uid, version = key_of(obj), uid_of(obj), resource_version_of(obj)
        old = self._entries.get(key)
        if old is not None and old.uid != uid and version <= old.resource_version:
            return False  # the forerunner of what we hold
        self._bury(key, uid, max(version, old.resource_version if old else 0))
        if old is None:
            return False
        self._set(key, old, None)
        return True

    def forget(self, key: Key, uid: str = "") -> bool:
        """The object is gone, as the server told us without its last state. Without ``uid``: whichever we hold."""
        old = self._entries.get(key)
        if old is None or (uid and old.uid != uid):
            if uid:  # a life that we have not heard of yet, and will
                self._bury(key, uid, 0)
            return False
        self._bury(key, old.uid, old.resource_version)
        self._set(key, old, None)
        return True

    def settle(self, keys: Collection[Key], resource_version: int, *, namespace: str | None = None) -> list[Key]:
        """The end of a relist as of ``resource_version`` whose items were all put: drops what it did not name.

        A key that the cache knows from a later moment than the list stays: the list cannot know it. Returns what was
        dropped. With ``namespace`` the list was of that namespace only.
        """
        dropped = [
            entry
            for key, entry in self._entries.items()
            if key not in keys
            and entry.resource_version <= resource_version
            and (namespace is None or key.namespace == namespace)
        ]
        self._age_graves(resource_version, namespace)
        for entry in dropped:
            self._bury(entry.key, entry.uid, resource_version)
            self._set(entry.key, entry, None)
        self._synced = True
        return [entry.key for entry in dropped]

    def replace(self, items: Iterable[Object], resource_version: int, *, namespace: str | None = None) -> list[Key]:
        """A whole list at once: every item put, then settled. Returns the keys that were dropped."""
        keys = set()
        for item in items:
            keys.add(key_of(item))
            self.put(item)
        return self.settle(keys, resource_version, namespace=namespace)

    def _set(self, key: Key, old: Entry[T] | None, new: Entry[T] | None) -> None:
        if old is not None:
            self._unindex(old)
        if new is None:
            self._entries.pop(key, None)
        else:
            self._entries[key] = new
            self._index(new)
        change = Change(key, old, new)
        for listener in self._listeners:
            listener(change)

    def _index(self, entry: Entry[T]) -> None:
        for name, values_of in self._index_functions.items():
            for value in values_of(entry.value):
                self._indices[name].setdefault(value, {})[entry.key] = None

    def _unindex(self, entry: Entry[T]) -> None:
        for name, values_of in self._index_functions.items():
            index = self._indices[name]
            for value in values_of(entry.value):
                keys = index.get(value)
                if keys is not None:
                    keys.pop(entry.key, None)
                    if not keys:
                        del index[value]

    def _bury(self, key: Key, uid: str, version: int) -> None:
        grave = self._graves.pop(key, None) or _Grave(set(), 0)
        grave.uids.add(uid)
        grave.resource_version = max(version, grave.resource_version)
        grave.settled = 0
        self._graves[key] = grave
        if len(self._graves) > GRAVES_AT_MOST:
            del self._graves[next(iter(self._graves))]

    def _age_graves(self, resource_version: int, namespace: str | None) -> None:
        """After two relists no event about the dead can still be on its way."""
        for key, grave in list(self._graves.items()):
            if grave.resource_version <= resource_version and namespace in (None, key.namespace):
                grave.settled += 1
                if grave.settled >= 2:
                    del self._graves[key]


def strip(obj: Object) -> Object:
    """The object without what no reconciler reads and every object carries: managed fields, the last applied text."""
    metadata = dict(metadata_of(obj))
    metadata.pop("managedFields", None)
    annotations = metadata.get("annotations")
    if annotations and LAST_APPLIED in annotations:
        metadata["annotations"] = {name: value for name, value in annotations.items() if name != LAST_APPLIED}
    return {**obj, "metadata": metadata}
