"""Events: the same said again is one Event, nobody waits, and a chatterbox is cut short."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.kube.fake_api import FakeApi

from sysvm.kube.errors import Forbidden, Unavailable
from sysvm.kube.events import EVENT, EventLimits, EventRecorder, EventType, cut
from sysvm.kube.objects import Key, Object, ObjectRef
from sysvm.kube.queue import Backoff

pytestmark = [pytest.mark.looptime]

START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
WIDGET = ObjectRef("example.io/v1", "Widget", "n", "a", uid="u1", resource_version="5")


class Counts:
    def __init__(self) -> None:
        self.sent: list[str] = []
        self.dropped: list[tuple[str, str]] = []

    def event_sent(self, reason: str) -> None:
        self.sent.append(reason)

    def event_dropped(self, reason: str, why: str) -> None:
        self.dropped.append((reason, why))


def wall_clock() -> datetime:
    return START + timedelta(seconds=asyncio.get_running_loop().time())


@asynccontextmanager
async def recording(
    api: FakeApi, counts: Counts | None = None, limits: EventLimits | None = None
) -> AsyncIterator[EventRecorder]:
    recorder = EventRecorder(
        api,
        controller="example.io/operator",
        instance="pod-1",
        now=wall_clock,
        limits=limits,
        observer=counts,
        backoff=Backoff(base_seconds=1.0, jitter=0.0),
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(recorder.run())
        yield recorder
        recorder.stop()


def say(recorder: EventRecorder, note: str = "all well", about: ObjectRef = WIDGET) -> None:
    recorder.event(about, EventType.NORMAL, "Patched", "Patch", note)


def stored(api: FakeApi) -> list[Object]:
    return sorted(api.of(EVENT), key=lambda event: str(event["note"]))


async def test_an_event_says_who_did_what_to_which_object_and_why() -> None:
    api = FakeApi()
    async with recording(api) as recorder:
        related = ObjectRef("example.io/v1", "Plan", "n", "p")
        recorder.event(WIDGET, EventType.WARNING, "RolledBack", "Patch", "step 7 failed", related=related)
    (event,) = stored(api)
    assert event.pop("metadata")["name"].startswith("a.")
    assert event == {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "eventTime": "2026-11-22T10:00:00.000000Z",
        "type": "Warning",
        "reason": "RolledBack",
        "action": "Patch",
        "note": "step 7 failed",
        "regarding": {"apiVersion": "example.io/v1", "kind": "Widget", "namespace": "n", "name": "a", "uid": "u1"},
        "related": {"apiVersion": "example.io/v1", "kind": "Plan", "namespace": "n", "name": "p"},
        "reportingController": "example.io/operator",
        "reportingInstance": "pod-1",
    }


async def test_the_same_said_again_is_a_series_and_not_a_new_event() -> None:
    api = FakeApi()
    async with recording(api) as recorder:
        for second in range(100):
            say(recorder, about=ObjectRef("example.io/v1", "Widget", "n", "a", uid="u1", resource_version=str(second)))
            await asyncio.sleep(1)
    (event,) = stored(api)
    assert event["series"] == {"count": 100, "lastObservedTime": "2026-11-22T10:01:39.000000Z"}
    assert len(api.calls) <= 5, "and it is not written each time"


async def test_another_note_or_object_is_another_event() -> None:
    api = FakeApi()
    async with recording(api) as recorder:
        say(recorder, "one")
        say(recorder, "two")
        say(recorder, "one", ObjectRef("example.io/v1", "Widget", "n", "b", uid="u2"))
    assert [event["note"] for event in stored(api)] == ["one", "one", "two"]


async def test_after_a_long_silence_it_is_a_new_event() -> None:
    api = FakeApi()
    async with recording(api) as recorder:
        say(recorder)
        await asyncio.sleep(600)
        say(recorder)
    assert len(stored(api)) == 2


async def test_a_chatterbox_is_cut_short_and_others_are_heard() -> None:
    api, counts = FakeApi(), Counts()
    async with recording(api, counts, EventLimits(object_burst=3, object_per_minute=1)) as recorder:
        for number in range(10):
            say(recorder, f"note {number}")
        say(recorder, "other", ObjectRef("example.io/v1", "Widget", "n", "b", uid="u2"))
        await asyncio.sleep(61)
        say(recorder, "later")
    assert [event["note"] for event in stored(api)] == ["later", "note 0", "note 1", "note 2", "other"]
    assert counts.dropped == [("Patched", "RateLimit")] * 7


async def test_what_cannot_be_remembered_is_dropped_and_counted() -> None:
    api, counts = FakeApi(trouble=Unavailable("down")), Counts()
    async with recording(api, counts, EventLimits(remembered=5)) as recorder:
        for number in range(8):
            say(recorder, f"note {number}", ObjectRef("example.io/v1", "Widget", "n", f"w{number}", uid=f"u{number}"))
        assert counts.dropped == [("Patched", "Full")] * 3


async def test_a_server_that_is_away_is_asked_again_and_no_event_comes_twice() -> None:
    api = FakeApi(trouble=Unavailable("down"))
    async with recording(api) as recorder:
        say(recorder)
        await asyncio.sleep(2)
        api.trouble, api.lose_answers = None, 1
        await asyncio.sleep(30)
    assert len(stored(api)) == 1


async def test_what_the_server_refuses_is_dropped_at_once() -> None:
    api, counts = FakeApi(trouble=Forbidden("namespace is terminating")), Counts()
    async with recording(api, counts) as recorder:
        say(recorder)
        await asyncio.sleep(100)
    assert (len(api.calls), counts.dropped) == (1, [("Patched", "namespace is terminating")])


async def test_an_event_that_the_server_forgot_is_said_anew() -> None:
    api = FakeApi()
    async with recording(api) as recorder:
        say(recorder)
        await asyncio.sleep(200)
        (event,) = api.of(EVENT)
        api.delete(EVENT, Key("n", event["metadata"]["name"]))
        say(recorder)
        await asyncio.sleep(100)
    (event,) = stored(api)
    assert event["series"]["count"] == 2


async def test_what_was_said_last_is_sent_before_the_end() -> None:
    api = FakeApi()
    async with recording(api) as recorder:
        say(recorder)
        await asyncio.sleep(5)
        say(recorder)
    (event,) = stored(api)
    assert event["series"]["count"] == 2


async def test_the_end_does_not_wait_for_a_server_that_does_not_answer() -> None:
    api = FakeApi(delay_seconds=3600)
    async with recording(api) as recorder:
        say(recorder)
        await asyncio.sleep(1)
    assert asyncio.get_running_loop().time() <= 6.0


def test_notes_are_cut_by_bytes_and_never_inside_a_letter() -> None:
    assert cut("short", 1024) == "short"
    for text in ("x" * 2000, "é" * 1000, "x" + "é" * 1000, "🙂" * 500):
        assert len(cut(text, 1024).encode()) in range(1020, 1025)
        assert cut(text, 1024).endswith("…")


async def test_events_about_cluster_scoped_objects_live_in_default() -> None:
    api = FakeApi()
    async with recording(api) as recorder:
        say(recorder, about=ObjectRef("v1", "Node", "", "host-1"))
    assert stored(api)[0]["metadata"]["namespace"] == "default"
