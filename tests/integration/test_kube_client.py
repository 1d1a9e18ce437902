"""The cluster layer on a real API server: what the fakes of the unit tests claim, the server does."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from sysvm.kube import errors
from sysvm.kube.cache import Store
from sysvm.kube.client import Cluster, ClusterOptions, Propagation, Verb, Write
from sysvm.kube.errors import KubeError
from sysvm.kube.events import EVENT, EventLimits, EventRecorder, EventType
from sysvm.kube.informer import Relister
from sysvm.kube.lease import LEASE, LeaderThread, LeaseTimings
from sysvm.kube.objects import (
    Key,
    Object,
    Resource,
    add_finalizer_patch,
    owner_reference,
    ref_to,
    remove_finalizer_patch,
    resource_version_of,
    set_condition,
)

if TYPE_CHECKING:
    from lab.controlplane import ControlPlane

CONFIG_MAP = Resource("", "v1", "configmaps", "ConfigMap")
NAMESPACE = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
CRD = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False)
PROBE = Resource("kube-layer.example.io", "v1", "probes", "Probe")


async def eventually(holds: Callable[[], bool], within_seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + within_seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.05)
    return True


def config_map(namespace: str, name: str, **values: str) -> Object:
    return {"metadata": {"namespace": namespace, "name": name, "labels": {"made-by": "test"}}, "data": values}


def probe(namespace: str, name: str, **spec: object) -> Object:
    return {"metadata": {"namespace": namespace, "name": name}, "spec": spec}


@pytest_asyncio.fixture
async def cluster(control_plane: ControlPlane) -> AsyncIterator[Cluster]:
    async with await Cluster.connect(kubeconfig=control_plane.kubeconfig) as connected:
        yield connected


@pytest.fixture(scope="module")
def probes(control_plane: ControlPlane) -> Iterator[Resource]:
    """A kind with a status of its own, a bound and CEL, as ours have."""
    schema = {
        "type": "object",
        "properties": {
            "spec": {
                "type": "object",
                "properties": {"size": {"type": "integer", "minimum": 1}, "color": {"type": "string"}},
                "x-kubernetes-validations": [
                    {"rule": "!has(self.color) || self.color != 'mauve'", "message": "mauve is not a color here"}
                ],
            },
            "status": {
                "type": "object",
                "properties": {
                    "seen": {"type": "integer"},
                    "conditions": {
                        "type": "array",
                        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                    },
                },
            },
        },
    }
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    crd = {
        "apiVersion": CRD.api_version,
        "kind": CRD.kind,
        "metadata": {"name": "probes.kube-layer.example.io"},
        "spec": {
            "group": PROBE.group,
            "scope": "Namespaced",
            "names": {"plural": "probes", "singular": "probe", "kind": "Probe"},
            "versions": [version],
        },
    }
    control_plane.kubectl("apply", "-f", "-", stdin=json.dumps(crd))
    control_plane.kubectl("wait", "--for=condition=Established", "crd/probes.kube-layer.example.io", "--timeout=30s")
    yield PROBE
    control_plane.kubectl("delete", "crd/probes.kube-layer.example.io", "--wait=false")


async def test_the_version_is_a_kubernetes_version(cluster: Cluster) -> None:
    assert (await cluster.version()).startswith("v1.")


async def test_refusals_carry_the_servers_sentence(cluster: Cluster, namespace: str, probes: Resource) -> None:
    with pytest.raises(errors.NotFound, match=r'configmaps "nowhere" not found'):
        await cluster.get(CONFIG_MAP, namespace, "nowhere")
    await cluster.create(CONFIG_MAP, config_map(namespace, "a"))
    with pytest.raises(errors.AlreadyExists, match=r'configmaps "a" already exists'):
        await cluster.create(CONFIG_MAP, config_map(namespace, "a"))
    with pytest.raises(errors.Invalid, match=r"spec\.size"):
        await cluster.create(probes, probe(namespace, "a", size=0))
    with pytest.raises(errors.Invalid, match="mauve is not a color here") as caught:
        await cluster.create(probes, probe(namespace, "a", color="mauve"))
    assert [cause.field for cause in caught.value.causes] == ["spec"]
    with pytest.raises(errors.Invalid, match=r'unknown field "spec\.colour"'):
        await cluster.create(probes, probe(namespace, "a", colour="red"))
    with pytest.raises(errors.NotFound):
        await cluster.list(Resource("nobody.example.io", "v1", "things", "Thing"), namespace)
    with pytest.raises(errors.NotFound):
        await cluster.create(CONFIG_MAP, config_map("no-such-namespace", "a"))


async def test_what_rbac_forbids_is_forbidden(control_plane: ControlPlane, cluster: Cluster, namespace: str) -> None:
    account = Resource("", "v1", "serviceaccounts", "ServiceAccount")
    await cluster.create(account, {"metadata": {"namespace": namespace, "name": "nobody"}})
    token = control_plane.kubectl("create", "token", "nobody", "-n", namespace).strip()
    admin = json.loads(control_plane.kubectl("config", "view", "--raw", "-o", "json"))
    server = admin["clusters"][0]
    kubeconfig = control_plane.kubeconfig.parent / f"nobody-{uuid.uuid4().hex}.json"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [server],
                "users": [{"name": "nobody", "user": {"token": token}}],
                "contexts": [{"name": "c", "context": {"cluster": server["name"], "user": "nobody"}}],
            }
        )
    )
    try:
        async with await Cluster.connect(kubeconfig=kubeconfig) as powerless:
            with pytest.raises(errors.Forbidden, match="cannot get resource"):
                await powerless.get(CONFIG_MAP, namespace, "a")
    finally:
        kubeconfig.unlink()


async def test_a_status_patch_changes_the_status_and_nothing_else(
    cluster: Cluster, namespace: str, probes: Resource
) -> None:
    created = await cluster.create(probes, probe(namespace, "a", size=1))
    conditions = set_condition([], "Ready", "True", "Fine", "all well", observed_generation=1, now=datetime.now(UTC))
    patch = {"spec": {"size": 7}, "status": {"seen": 1, "conditions": conditions}}
    patched = await cluster.merge_patch(probes, namespace, "a", patch, subresource="status")
    assert patched["spec"] == {"size": 1}
    assert patched["status"] == {"seen": 1, "conditions": conditions}
    assert patched["metadata"]["generation"] == 1
    assert resource_version_of(patched) > resource_version_of(created)
    removed = await cluster.merge_patch(probes, namespace, "a", {"status": {"seen": None}}, subresource="status")
    assert removed["status"] == {"conditions": conditions}


async def test_a_write_against_an_old_version_is_a_conflict_whatever_its_verb(
    cluster: Cluster, namespace: str, probes: Resource
) -> None:
    old = await cluster.create(probes, probe(namespace, "a", size=1))
    new = await cluster.merge_patch(probes, namespace, "a", {"spec": {"size": 2}})
    stale = resource_version_of(old)
    with pytest.raises(errors.Conflict):
        await cluster.merge_patch(probes, namespace, "a", {"spec": {"size": 3}}, resource_version=stale)
    with pytest.raises(errors.Conflict):
        await cluster.merge_patch(
            probes, namespace, "a", {"status": {"seen": 3}}, subresource="status", resource_version=stale
        )
    with pytest.raises(errors.Conflict):
        await cluster.replace(probes, {**old, "spec": {"size": 3}})
    with pytest.raises(errors.Conflict):
        await cluster.json_patch(probes, namespace, "a", add_finalizer_patch(old, "example.io/x"))
    with pytest.raises(errors.Conflict):
        had_one = {"metadata": {**old["metadata"], "finalizers": ["example.io/x"]}}
        await cluster.json_patch(probes, namespace, "a", remove_finalizer_patch(had_one, "example.io/x"))
    with pytest.raises(errors.Conflict):
        await cluster.delete(probes, namespace, "a", resource_version=stale)
    with pytest.raises(errors.Conflict):
        await cluster.delete(probes, namespace, "a", uid=str(uuid.uuid4()))
    assert resource_version_of(await cluster.get(probes, namespace, "a")) == resource_version_of(new)


async def test_a_json_patch_that_is_wrong_is_invalid_and_no_lost_race(
    cluster: Cluster, namespace: str, probes: Resource
) -> None:
    await cluster.create(probes, probe(namespace, "a", size=1))
    with pytest.raises(errors.Invalid) as caught:
        await cluster.json_patch(probes, namespace, "a", [{"op": "remove", "path": "/spec/nothing/here"}])
    assert not isinstance(caught.value, errors.Conflict)


async def test_a_patch_that_changes_nothing_keeps_the_version(
    cluster: Cluster, namespace: str, probes: Resource
) -> None:
    created = await cluster.create(probes, probe(namespace, "a", size=1))
    again = await cluster.merge_patch(probes, namespace, "a", {"spec": {"size": 1}})
    assert resource_version_of(again) == resource_version_of(created)


async def test_an_object_with_a_finalizer_stays_until_it_is_taken_off(
    cluster: Cluster, namespace: str, probes: Resource
) -> None:
    store: Store[bool] = Store(probes, lambda obj: "deletionTimestamp" in obj["metadata"])
    cluster.attach(store)
    key = Key(namespace, "a")
    created = await cluster.create(probes, probe(namespace, "a", size=1))
    held = await cluster.json_patch(probes, namespace, "a", add_finalizer_patch(created, "example.io/x"))
    deleting = await cluster.delete(probes, namespace, "a")
    assert deleting is not None
    assert store.get(key) is True
    patch = remove_finalizer_patch(deleting, "example.io/x")
    await cluster.json_patch(probes, namespace, "a", patch)
    with pytest.raises(errors.NotFound):
        await cluster.get(probes, namespace, "a")
    assert held["metadata"]["finalizers"] == ["example.io/x"]
    assert store.replace([], 2**60) == [key], "taking the last finalizer off is told by an event or a relist only"


async def test_a_deletion_empties_the_cache_and_a_recreation_fills_it(cluster: Cluster, namespace: str) -> None:
    store: Store[Object] = Store(CONFIG_MAP, lambda obj: obj["data"])
    cluster.attach(store)
    key = Key(namespace, "a")
    first = await cluster.create(CONFIG_MAP, config_map(namespace, "a", life="1"))
    assert await cluster.delete(CONFIG_MAP, namespace, "a") is None
    assert store.get(key) is None
    assert not store.observe("MODIFIED", first)
    await cluster.create(CONFIG_MAP, config_map(namespace, "a", life="2"))
    assert store.get(key) == {"life": "2"}


async def test_server_side_apply_owns_its_fields_and_creates_what_is_not_there(
    cluster: Cluster, namespace: str, control_plane: ControlPlane
) -> None:
    await cluster.apply(CONFIG_MAP, {"metadata": {"namespace": namespace, "name": "a"}, "data": {"k": "ours"}})
    other = ClusterOptions(field_manager="somebody-else")
    async with await Cluster.connect(kubeconfig=control_plane.kubeconfig, options=other) as somebody:
        theirs = {"metadata": {"namespace": namespace, "name": "a"}, "data": {"k": "theirs"}}
        with pytest.raises(errors.Conflict, match="sysvm-operator"):
            await somebody.apply(CONFIG_MAP, theirs)
        forced = await somebody.apply(CONFIG_MAP, theirs, force=True)
    assert forced["data"] == {"k": "theirs"}


async def test_lists_come_in_pages_of_one_moment(cluster: Cluster, namespace: str) -> None:
    for number in range(7):
        await cluster.create(CONFIG_MAP, config_map(namespace, f"c{number}"))
    names: list[str] = []
    versions = set()
    sizes: list[int] = []
    async for page in cluster.pages(CONFIG_MAP, namespace, label_selector="made-by=test", page_size=3):
        if not sizes:
            await cluster.create(CONFIG_MAP, config_map(namespace, "c9"))
        sizes.append(len(page.items))
        versions.add(page.resource_version)
        names += [item["metadata"]["name"] for item in page.items]
    assert (sizes, len(versions)) == ([3, 3, 1], 1)
    assert names == [f"c{number}" for number in range(7)]
    by_field = await cluster.list(CONFIG_MAP, namespace, field_selector="metadata.name=c9")
    assert [(item["kind"], item["metadata"]["name"]) for item in by_field.items] == [("ConfigMap", "c9")]


async def test_a_relist_finds_what_was_created_and_what_is_gone(cluster: Cluster, namespace: str) -> None:
    store: Store[str] = Store(CONFIG_MAP, lambda obj: str(obj["metadata"]["name"]))
    relister = Relister(cluster, store, namespace=namespace, label_selector="made-by=test")
    await cluster.create(CONFIG_MAP, config_map(namespace, "a"))
    await cluster.create(CONFIG_MAP, config_map(namespace, "b"))
    await relister.once()
    assert store.values() == ["a", "b"]
    await cluster.delete(CONFIG_MAP, namespace, "a")
    cluster.attach(store)
    await cluster.create(CONFIG_MAP, config_map(namespace, "c"))
    assert await relister.once() == [Key(namespace, "a")]
    assert store.values() == ["b", "c"]


async def test_owned_objects_name_their_owner(cluster: Cluster, namespace: str) -> None:
    owner = await cluster.create(CONFIG_MAP, config_map(namespace, "owner"))
    owned = config_map(namespace, "owned")
    owned["metadata"]["ownerReferences"] = [owner_reference(ref_to(owner))]
    created = await cluster.create(CONFIG_MAP, owned)
    assert created["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
    held = await cluster.delete(CONFIG_MAP, namespace, "owner", propagation=Propagation.FOREGROUND)
    assert held is None or held["metadata"]["finalizers"] == ["foregroundDeletion"]


async def test_every_write_passes_the_one_door(control_plane: ControlPlane, namespace: str) -> None:
    seen: list[tuple[str, Verb, str]] = []

    class Witness:
        def before(self, write: Write) -> None:
            seen.append(("before", write.verb, write.name))

        def after(self, write: Write, error: KubeError | None) -> None:
            seen.append(("after", write.verb, write.name))

    async with await Cluster.connect(kubeconfig=control_plane.kubeconfig, writes=Witness()) as cluster:
        created = await cluster.create(CONFIG_MAP, config_map(namespace, "a"))
        await cluster.replace(CONFIG_MAP, created)
        await cluster.merge_patch(CONFIG_MAP, namespace, "a", {"data": {"k": "v"}})
        await cluster.json_patch(CONFIG_MAP, namespace, "a", [{"op": "remove", "path": "/data/k"}])
        await cluster.apply(CONFIG_MAP, {"metadata": {"namespace": namespace, "name": "a"}})
        await cluster.list(CONFIG_MAP, namespace)
        await cluster.delete(CONFIG_MAP, namespace, "a")
    assert [verb for when, verb, _ in seen if when == "before"] == [
        Verb.CREATE,
        Verb.REPLACE,
        Verb.PATCH,
        Verb.PATCH,
        Verb.APPLY,
        Verb.DELETE,
    ]
    assert [entry[1:] for entry in seen[::2]] == [entry[1:] for entry in seen[1::2]]


WRITES_UNTIL_KILLED = """
import asyncio, os, signal, sys
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Resource

kubeconfig, namespace, nth, moment = sys.argv[1:]

class Killer:
    seen = 0
    def before(self, write):
        self.seen += 1
        self.kill("before")
    def after(self, write, error):
        self.kill("after")
    def kill(self, now):
        if (self.seen, now) == (int(nth), moment):
            os.kill(os.getpid(), signal.SIGKILL)

async def main():
    kind = Resource("", "v1", "configmaps", "ConfigMap")
    async with await Cluster.connect(kubeconfig=kubeconfig, writes=Killer()) as cluster:
        for number in range(1, 6):
            await cluster.create(kind, {"metadata": {"namespace": namespace, "name": f"w{number}"}})
            await cluster.get(kind, namespace, f"w{number}")

asyncio.run(main())
"""


@pytest.mark.parametrize(("moment", "written"), [("before", ["w1", "w2"]), ("after", ["w1", "w2", "w3"])])
async def test_a_process_can_be_killed_at_exactly_the_nth_write(
    control_plane: ControlPlane, cluster: Cluster, namespace: str, moment: str, written: list[str], tmp_path: Path
) -> None:
    arguments = [str(control_plane.kubeconfig), namespace, "3", moment]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # the client keeps certificates in files until it exits
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WRITES_UNTIL_KILLED, *arguments, env=environment
    )
    async with asyncio.timeout(60):
        assert await process.wait() == -signal.SIGKILL
    found = await cluster.list(CONFIG_MAP, namespace)
    names = [item["metadata"]["name"] for item in found.items]
    assert [name for name in names if name.startswith("w")] == written


# The lease

FAST = LeaseTimings(lease_seconds=3, renew_deadline_seconds=2.0, retry_seconds=0.2)


def leader(control_plane: ControlPlane, namespace: str, lost: list[str]) -> LeaderThread:
    async def connect() -> Cluster:
        return await Cluster.connect(kubeconfig=control_plane.kubeconfig, options=ClusterOptions(request_timeout=2.0))

    return LeaderThread(connect, namespace=namespace, name="operator", on_lost=lost.append, timings=FAST)


async def test_a_released_lease_goes_to_the_next_with_a_higher_epoch(
    control_plane: ControlPlane, namespace: str
) -> None:
    lost: list[str] = []
    first, second = leader(control_plane, namespace, lost), leader(control_plane, namespace, lost)
    epoch = await first.acquire()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(second.acquire())
        assert await eventually(lambda: second.holder == first.identity)
        await asyncio.sleep(2 * FAST.lease_seconds)  # the time in which it must not be taken over
        assert not waiting.done()
        assert await first.is_current()
        await first.stop()
    assert waiting.result() > epoch
    assert await second.is_current()
    assert lost == []
    await second.stop()


async def test_a_holder_who_was_overtaken_learns_it_within_seconds(
    control_plane: ControlPlane, cluster: Cluster, namespace: str
) -> None:
    lost: list[str] = []
    thread = leader(control_plane, namespace, lost)
    await thread.acquire()
    await cluster.merge_patch(LEASE, namespace, "operator", {"spec": {"holderIdentity": "usurper"}})
    assert not await thread.is_current()
    assert await eventually(lambda: bool(lost), within_seconds=10)
    assert "taken by usurper" in lost[0]
    lease = await cluster.get(LEASE, namespace, "operator")
    assert lease["spec"]["holderIdentity"] == "usurper"


# Events


async def test_what_is_said_again_is_one_event_that_kubectl_shows(
    control_plane: ControlPlane, cluster: Cluster, namespace: str
) -> None:
    about = ref_to(await cluster.create(CONFIG_MAP, config_map(namespace, "a")))
    recorder = EventRecorder(
        cluster, controller="example.io/test", instance="here", limits=EventLimits(series_seconds=0.2)
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(recorder.run())
        for _ in range(5):
            recorder.event(about, EventType.WARNING, "RolledBack", "Patch", "step 7 failed: é" + "x" * 2000)
            await asyncio.sleep(0.1)
        recorder.event(about, EventType.NORMAL, "Patched", "Patch", "done", related=about)
        recorder.stop()
    events = (await cluster.list(EVENT, namespace, field_selector="reportingController=example.io/test")).items
    assert sorted((event["reason"], event.get("series", {}).get("count")) for event in events) == [
        ("Patched", None),
        ("RolledBack", 5),
    ]
    shown = control_plane.kubectl("get", "events", "-n", namespace)
    assert "RolledBack" in shown
    assert "configmap/a" in shown


async def test_an_event_about_what_is_gone_with_its_namespace_harms_nobody(cluster: Cluster) -> None:
    dropped: list[str] = []

    class Counts:
        def event_sent(self, reason: str) -> None:
            raise AssertionError(reason)

        def event_dropped(self, reason: str, why: str) -> None:
            dropped.append(why)

    recorder = EventRecorder(cluster, controller="example.io/test", instance="here", observer=Counts())
    about = ref_to({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "no-such-namespace", "name": "p"}})
    async with asyncio.TaskGroup() as group:
        group.create_task(recorder.run())
        recorder.event(about, EventType.NORMAL, "Patched", "Patch", "done")
        assert await eventually(lambda: bool(dropped))
        recorder.stop()
    assert "no-such-namespace" in dropped[0]


async def test_namespaces_are_found_without_one(cluster: Cluster, namespace: str) -> None:
    found = await cluster.get(NAMESPACE, "", namespace)
    assert found["metadata"]["name"] == namespace
