"""Kubernetes Events that never hold anybody up.

An Event tells a person at ``kubectl describe`` what was done and why. It is worth nothing to the machine, so nothing
may wait for it, fail by it or be crowded out by it: ``event`` only takes note. A worker behind it sends, folds what is
said again into a series instead of a new object, allows each object a few new Events a minute, and drops what the
server does not take.

Written as events.k8s.io/v1. Needs the verbs ``create`` and ``patch`` on ``events`` of that group.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from sysvm.kube.errors import AlreadyExists, KubeError, NotFound, Unavailable
from sysvm.kube.objects import Object, ObjectRef, Resource, rfc3339_micro
from sysvm.kube.queue import Again, Backoff, WorkQueue

EVENT = Resource("events.k8s.io", "v1", "events", "Event")

NOTE_BYTES = 1024
WORD_BYTES = 128
"""The API's limits for the note, and for reason, action and reporting instance."""


class EventType(StrEnum):
    NORMAL = "Normal"
    WARNING = "Warning"


class EventApi(Protocol):
    """What sends Events (``client.Cluster``)."""

    async def create(self, resource: Resource, obj: Object) -> Object: ...

    async def merge_patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch: Mapping[str, object],
        *,
        subresource: str | None = None,
        resource_version: int | str | None = None,
    ) -> Object: ...


class EventObserver(Protocol):
    """Counts Events, for metrics and logs. ``why``: RateLimit, Full, or what the server said."""

    def event_sent(self, reason: str) -> None: ...

    def event_dropped(self, reason: str, why: str) -> None: ...


@dataclass(frozen=True, slots=True)
class EventLimits:
    """What is folded, what is let through, and how much is kept in mind."""

    series_window: timedelta = timedelta(minutes=6)
    """The same said again within this time of the last belongs to its series."""
    series_seconds: float = 30.0
    """A series is written at most this often."""
    object_burst: int = 20
    object_per_minute: float = 5.0
    """New Events (not series) about one object."""
    remembered: int = 2000
    """Series kept in mind; beyond that new ones are dropped."""
    attempts: int = 5


@dataclass(frozen=True, slots=True)
class _Said:
    """What makes two Events the same."""

    about: ObjectRef
    type: EventType
    reason: str
    action: str
    note: str
    related: ObjectRef | None


@dataclass(slots=True)
class _Series:
    first_at: datetime
    last_at: datetime
    count: int = 1
    written: int = 0
    name: str = ""


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: datetime


def _utc_now() -> datetime:
    return datetime.now(UTC)


class EventRecorder:
    """Takes note of Events at once and sends them in ``run``. Belongs to one event loop.

    ``controller`` is a qualified name (``sysvm.io/operator``), ``instance`` tells this process from its siblings.
    """

    def __init__(
        self,
        api: EventApi,
        *,
        controller: str,
        instance: str,
        limits: EventLimits | None = None,
        now: Callable[[], datetime] = _utc_now,
        backoff: Backoff | None = None,
        observer: EventObserver | None = None,
    ) -> None:
        self._api = api
        self._controller = controller
        self._instance = cut(instance, WORD_BYTES)
        self._limits = limits or EventLimits()
        self._now = now
        self._observer = observer
        self._series: dict[_Said, _Series] = {}
        self._buckets: dict[str, _Bucket] = {}
        self._queue: WorkQueue[_Said] = WorkQueue("events", backoff=backoff or Backoff(base_seconds=1, cap_seconds=60))

    def event(
        self,
        about: ObjectRef,
        type_: EventType,
        reason: str,
        action: str,
        note: str,
        *,
        related: ObjectRef | None = None,
    ) -> None:
        """Takes note of an Event: never waits, never raises for what the cluster may say.

        ``reason`` is why (a word in CamelCase), ``action`` what was done (the same), ``note`` the sentence for a
        person, cut to 1024 bytes. What is to be folded into one series must have the same note: keep numbers that
        change every time out of it.
        """
        about, related = _without_version(about), related and _without_version(related)
        said = _Said(about, type_, cut(reason, WORD_BYTES), cut(action, WORD_BYTES), cut(note, NOTE_BYTES), related)
        now = self._now()
        series = self._series.get(said)
        if series is not None and now - series.last_at <= self._limits.series_window:
            series.count += 1
            series.last_at = now
            self._queue.add_after(said, self._limits.series_seconds)
            return
        if not self._is_allowed(about, now):
            self._dropped(reason, "RateLimit")
        elif series is None and not self._has_room(now):
            self._dropped(reason, "Full")
        else:
            self._series[said] = _Series(now, now)
            self._queue.add(said)

    async def run(self) -> None:
        """Sends until ``stop``."""
        await self._queue.run(self._send, workers=1)

    def stop(self, *, grace_seconds: float = 5.0) -> None:
        """Sends what is left, for at most so long; then ``run`` returns."""
        for said, series in self._series.items():
            if series.written != series.count:
                self._queue.add(said)
        self._queue.stop(drain=True, grace_seconds=grace_seconds)

    # Folding and limiting

    def _is_allowed(self, about: ObjectRef, now: datetime) -> bool:
        limits = self._limits
        who = about.uid or f"{about.kind}/{about.namespace}/{about.name}"
        bucket = self._buckets.pop(who, None) or _Bucket(float(limits.object_burst), now)
        refill = (now - bucket.filled_at).total_seconds() / 60.0 * limits.object_per_minute
        bucket.tokens = min(float(limits.object_burst), bucket.tokens + max(refill, 0.0))
        bucket.filled_at = now
        self._buckets[who] = bucket  # last used last
        if len(self._buckets) > limits.remembered:
            del self._buckets[next(iter(self._buckets))]
        if bucket.tokens < 1.0:
            return False
        bucket.tokens -= 1.0
        return True

    def _has_room(self, now: datetime) -> bool:
        if len(self._series) < self._limits.remembered:
            return True
        ended = [
            said
            for said, series in self._series.items()
            if series.written == series.count and now - series.last_at > self._limits.series_window
        ]
        for said in ended:
            del self._series[said]
        return len(self._series) < self._limits.remembered

    # Sending

    async def _send(self, said: _Said) -> Again | None:
        series = self._series.get(said)
        if series is None or series.written == series.count:
            return None
        count = series.count
        try:
            await self._write(said, series, count)
        except Unavailable as error:
            if self._queue.failures(said) + 1 < self._limits.attempts:
                raise  # the queue tries again later
            self._give_up(said, error)
        except KubeError as error:
            self._give_up(said, error)
        else:
            series.written = count
            if self._observer is not None:
                self._observer.event_sent(said.reason)
            if series.count > count:
                return Again(self._limits.series_seconds)
        return None

    async def _write(self, said: _Said, series: _Series, count: int) -> None:
        if series.name:
            try:
                await self._api.merge_patch(EVENT, _namespace(said), series.name, {"series": _folded(series, count)})
                return
            except NotFound:  # the server forgets Events after an hour
                series.first_at = series.last_at
        name = _name(said, series)
        try:
            await self._api.create(EVENT, self._object(said, series, count, name))
        except AlreadyExists:  # an earlier attempt of ours whose answer was lost
            if count > 1:
                await self._api.merge_patch(EVENT, _namespace(said), name, {"series": _folded(series, count)})
        series.name = name

    def _object(self, said: _Said, series: _Series, count: int, name: str) -> Object:
        event: Object = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.kind,
            "metadata": {"namespace": _namespace(said), "name": name},
            "eventTime": rfc3339_micro(series.first_at),
            "type": said.type.value,
            "reason": said.reason,
            "action": said.action,
            "note": said.note,
            "regarding": said.about.as_object(),
            "reportingController": self._controller,
            "reportingInstance": self._instance,
        }
        if said.related is not None:
            event["related"] = said.related.as_object()
        if count > 1:
            event["series"] = _folded(series, count)
        return event

    def _give_up(self, said: _Said, error: KubeError) -> None:
        self._series.pop(said, None)
        self._dropped(said.reason, str(error))

    def _dropped(self, reason: str, why: str) -> None:
        if self._observer is not None:
            self._observer.event_dropped(reason, why)


def cut(text: str, size_bytes: int) -> str:
    """The text in at most so many bytes of UTF-8, with an ellipsis where something was cut off."""
    encoded = text.encode()
    if len(encoded) <= size_bytes:
        return text
    return encoded[: size_bytes - len("…".encode())].decode(errors="ignore") + "…"


def _without_version(ref: ObjectRef) -> ObjectRef:
    """The same words about a later version of the object are the same Event."""
    return replace(ref, resource_version="")


def _namespace(said: _Said) -> str:
    return said.about.namespace or "default"  # where Events about cluster-scoped objects live


def _folded(series: _Series, count: int) -> Object:
    return {"count": count, "lastObservedTime": rfc3339_micro(series.last_at)}


def _name(said: _Said, series: _Series) -> str:
    """The same for every attempt to create one Event, so that a lost answer does not make two of it."""
    what = repr((said, rfc3339_micro(series.first_at))).encode()
    return f"{said.about.name[:230]}.{hashlib.sha256(what).hexdigest()[:16]}"
