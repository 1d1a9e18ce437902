"""The cache never goes back in time, never wakes the dead, and in the end holds what the cluster holds."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sysvm.kube.cache import Change, Store, strip
from sysvm.kube.objects import Key, Object, Resource

WIDGET = Resource("example.io", "v1", "widgets", "Widget")
A = Key("n", "a")


def widget(version: int, *, uid: str = "u1", name: str = "a", color: str = "red", namespace: str = "n") -> Object:
    metadata = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"color": color}}


def colors(obj: Object) -> str:
    return str(obj["spec"]["color"])


@pytest.fixture
def store() -> Store[str]:
    return Store(WIDGET, colors, indices={"color": lambda color: [color]})


def test_a_late_event_does_not_undo_the_answer_to_our_own_write(store: Store[str]) -> None:
    store.observe("ADDED", widget(5, color="red"))
    assert store.put(widget(9, color="blue"))
    assert not store.observe("MODIFIED", widget(7, color="green"))
    assert not store.observe("MODIFIED", widget(9, color="blue"))
    assert store.get(A) == "blue"


def test_versions_are_numbers_and_not_words(store: Store[str]) -> None:
    store.put(widget(9, color="red"))
    assert store.put(widget(10, color="blue"))


def test_a_late_event_does_not_wake_the_dead(store: Store[str]) -> None:
    store.put(widget(5))
    assert store.observe("DELETED", widget(8))
    assert not store.observe("MODIFIED", widget(7))
    assert store.get(A) is None


def test_what_we_deleted_ourselves_stays_gone_though_its_last_states_were_never_seen(store: Store[str]) -> None:
    store.put(widget(5))
    assert store.forget(A, "u1")
    assert not store.observe("MODIFIED", widget(7)), "newer than all we knew, and dead all the same"
    assert not store.observe("DELETED", widget(8))
    assert not store.replace([widget(7)], 7)
    assert store.get(A) is None


def test_a_recreated_object_lives_and_its_forerunner_does_not_come_back(store: Store[str]) -> None:
    store.put(widget(5))
    store.forget(A, "u1")
    assert store.observe("ADDED", widget(9, uid="u2", color="blue"))
    assert not store.observe("DELETED", widget(8, uid="u1"))
    assert not store.observe("MODIFIED", widget(7, uid="u1"))
    assert store.get(A) == "blue"


def test_a_recreation_without_a_deletion_event_is_told_as_such(store: Store[str]) -> None:
    seen: list[Change[str]] = []
    store.put(widget(5))
    store.subscribe(seen.append)
    store.put(widget(9, uid="u2"))
    assert [change.is_recreation for change in seen] == [True]


def test_the_deletion_of_a_successor_that_we_never_saw_buries_its_forerunner(store: Store[str]) -> None:
    store.put(widget(5, uid="u1"))
    assert store.observe("DELETED", widget(9, uid="u2"))
    assert not store.put(widget(8, uid="u2"))
    assert store.get(A) is None


def test_a_relist_drops_what_it_does_not_name(store: Store[str]) -> None:
    store.put(widget(5))
    assert store.replace([widget(6, name="b", uid="u2")], 8) == [A]
    assert store.values() == ["red"]


def test_a_relist_does_not_drop_what_is_newer_than_itself(store: Store[str]) -> None:
    store.put(widget(12))
    assert store.replace([], 11) == []
    assert store.get(A) == "red"


def test_a_relist_of_one_namespace_leaves_the_others(store: Store[str]) -> None:
    store.put(widget(5))
    store.put(widget(6, namespace="other", uid="u2"))
    assert store.replace([], 10, namespace="other") == [Key("other", "a")]
    assert A in store


def test_a_store_is_synced_once_a_whole_list_went_in(store: Store[str]) -> None:
    store.put(widget(5))
    assert not store.synced
    store.replace([], 6)
    assert store.synced


def test_indices_follow_every_change(store: Store[str]) -> None:
    store.put(widget(5, color="red"))
    store.put(widget(6, name="b", uid="u2", color="red"))
    store.put(widget(7, color="blue"))
    assert store.index_values("color") == ["blue", "red"]
    assert [entry.key.name for entry in store.entries(index="color", value="red")] == ["b"]
    store.observe("DELETED", widget(8, name="b", uid="u2"))
    assert store.index_values("color") == ["blue"]
    assert store.values(index="color", value="red") == []


def test_listeners_hear_of_news_and_of_nothing_else(store: Store[str]) -> None:
    seen: list[tuple[str | None, str | None]] = []
    store.subscribe(
        lambda change: seen.append((change.old.value if change.old else None, change.new.value if change.new else None))
    )
    store.put(widget(5))
    store.put(widget(5))
    store.put(widget(4))
    store.put(widget(6, color="blue"))
    store.observe("DELETED", widget(7))
    store.observe("DELETED", widget(7))
    assert seen == [(None, "red"), ("red", "blue"), ("blue", None)]


def test_an_entry_gives_the_version_that_its_value_was_read_at(store: Store[str]) -> None:
    store.put(widget(5))
    entry = store.entry(A)
    store.put(widget(6, color="blue"))
    assert entry is not None
    assert (entry.value, entry.resource_version) == ("red", 5)


def test_a_projection_that_fails_leaves_the_cache_as_it_was(store: Store[str]) -> None:
    store.put(widget(5))
    store.observe("DELETED", widget(6))
    with pytest.raises(KeyError):
        store.put({"metadata": widget(9, uid="u2")["metadata"], "spec": {}})
    assert store.get(A) is None
    assert not store.put(widget(5)), "the grave is still there"


def test_strip_drops_only_bookkeeping() -> None:
    obj = widget(5)
    obj["metadata"]["managedFields"] = [{"manager": "m"}]
    obj["metadata"]["annotations"] = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "kept": "yes"}
    assert strip(obj)["metadata"]["annotations"] == {"kept": "yes"}
    assert "managedFields" not in strip(obj)["metadata"]
    assert "managedFields" in obj["metadata"]


@dataclass(frozen=True)
class Event:
    type: str
    obj: Object
    relists: int
    """How many relists had been taken in when it happened."""


class CacheAgainstCluster(RuleBasedStateMachine):
    """A cluster, and four streams from it to the cache, each late in its own way."""

    NAMES = st.sampled_from(["a", "b"])

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        self.lives = 0
        self.cluster: dict[Key, Object] = {}
        self.store: Store[int] = Store(WIDGET, lambda obj: int(obj["metadata"]["resourceVersion"]))
        self.watch: list[Event] = []
        self.answers: list[Object] = []
        self.snapshots: list[tuple[list[Object], int]] = []
        self.relists = 0
        self.highest: dict[Key, int] = {}
        self.known_dead: set[str] = set()

    def write(self, name: str, uid: str) -> Object:
        self.version += 1
        obj = self.cluster[Key("n", name)] = widget(self.version, uid=uid, name=name)
        return obj

    @rule(name=NAMES, ours=st.booleans())
    def create_or_change(self, name: str, ours: bool) -> None:
        old = self.cluster.get(Key("n", name))
        if old is None:
            self.lives += 1
        uid = old["metadata"]["uid"] if old else f"u{self.lives}"
        obj = self.write(name, uid)
        self.watch.append(Event("MODIFIED" if old else "ADDED", obj, self.relists))
        if ours:
            self.answers.append(obj)

    @rule(name=NAMES, ours=st.booleans(), heard=st.booleans())
    def delete(self, name: str, ours: bool, heard: bool) -> None:
        old = self.cluster.pop(Key("n", name), None)
        if old is None:
            return
        self.version += 1
        uid = old["metadata"]["uid"]
        if heard:
            self.watch.append(Event("DELETED", widget(self.version, uid=uid, name=name), self.relists))
        if ours:
            self.store.forget(Key("n", name), uid)
            self.known_dead.add(uid)

    @precondition(lambda self: self.watch)
    @rule()
    def hear_one_event(self) -> None:
        event = self.watch.pop(0)
        self.store.observe(event.type, event.obj)
        if event.type == "DELETED":
            self.known_dead.add(event.obj["metadata"]["uid"])

    @precondition(lambda self: self.watch)
    @rule()
    def the_watch_breaks(self) -> None:
        """It lists anew: what exists comes once more, what was deleted meanwhile is never told."""
        self.watch = [Event("MODIFIED", obj, self.relists) for obj in self.cluster.values()]

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def get_an_answer(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.answers) - 1))
        self.store.put(self.answers.pop(index))

    @rule()
    def list_begins(self) -> None:
        self.snapshots.append((list(self.cluster.values()), self.version))

    @precondition(lambda self: self.snapshots)
    @rule()
    def list_arrives(self) -> None:
        self.store.replace(*self.snapshots.pop(0))
        self.relists += 1
        # What is on its way for longer than two relists, ten minutes each, is beyond what the cache promises.
        self.watch = [event for event in self.watch if event.relists > self.relists - 2]
        if self.relists % 2 == 0:
            self.answers.clear()
            self.snapshots.clear()

    @invariant()
    def never_goes_back(self) -> None:
        for entry in self.store.entries():
            assert entry.resource_version >= self.highest.get(entry.key, 0)
            self.highest[entry.key] = entry.resource_version

    @invariant()
    def the_dead_stay_dead(self) -> None:
        assert not self.known_dead & {entry.uid for entry in self.store.entries()}

    def teardown(self) -> None:
        self.store.replace(list(self.cluster.values()), self.version)
        assert {entry.key: entry.resource_version for entry in self.store.entries()} == {
            key: int(obj["metadata"]["resourceVersion"]) for key, obj in self.cluster.items()
        }


CacheAgainstCluster.TestCase.settings = settings(stateful_step_count=40)
test_the_cache_follows_the_cluster = CacheAgainstCluster.TestCase
