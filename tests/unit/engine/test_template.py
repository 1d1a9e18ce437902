"""A release from machines of the cloud: nothing is used before it is pinned, and what is pinned stays."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest
from tests.unit.patching import made_packages as made

from sysvm.api.reasons import Reason
from sysvm.api.template import SystemVMTemplate
from sysvm.engine.images import ImageWatch
from sysvm.engine.notices import Notices
from sysvm.engine.payload_fetch import Fetched, Machines, PayloadFetcher
from sysvm.engine.payloads import Payloads
from sysvm.engine.stores import Stores
from sysvm.engine.template import TemplateReconciler
from sysvm.engine.work import Pool
from sysvm.kube.client import Cluster
from sysvm.kube.errors import Conflict, NotFound
from sysvm.kube.objects import Key, Object, Resource
from sysvm.patching.errors import HostUnreachable, PayloadError
from sysvm.patching.host_source import Machine, MachineSource
from sysvm.patching.payload import read_payload
from sysvm.patching.results import HostFile, HostFiles, HostLogin, HostPlace
from sysvm.patching.sources import PayloadSources

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
KEY = Key("ns", "systemvm-4.20.2")
LOGIN = HostLogin("root", 22, b"", "")


def another_build(packed: bytes) -> bytes:
    return gzip.compress(gzip.decompress(packed), 1, mtime=1)


def machines(*names: str, left_out: tuple[str, ...] = ()) -> Machines:
    return Machines(tuple(Machine(HostPlace(name, name), LOGIN, "KVM") for name in names), left_out)


@dataclass
class Rack:
    """Machines and what they hold: (scripts, agent)."""

    holds: dict[str, tuple[bytes, bytes | None]] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    read_of: list[str] = field(default_factory=list)
    cuts: set[str] = field(default_factory=set)
    logins: list[HostLogin] = field(default_factory=list)

    async def files(self, machine: Machine) -> HostFiles | None:
        self.logins.append(machine.login)
        if machine.name in self.down:
            raise HostUnreachable(f"hypervisor host {machine.name} did not answer")
        if machine.name not in self.holds:
            return None
        scripts, agent = self.holds[machine.name]
        checksums = {"md5": hashlib.md5(scripts).hexdigest(), "sha512": hashlib.sha512(scripts).hexdigest()}
        return HostFiles(
            _file("cloud-scripts.tgz", scripts), _file("agent.zip", agent) if agent is not None else None, checksums
        )

    async def read(self, machine: Machine, file: HostFile) -> AsyncIterator[bytes]:
        scripts, agent = self.holds[machine.name]
        content = scripts if file.path.endswith(".tgz") else agent or b""
        self.read_of.append(f"{machine.name} {file.path.rsplit('/', 1)[1]}")
        yield content[:10]
        if machine.name in self.cuts:
            raise HostUnreachable(f"hypervisor host {machine.name} broke off")
        yield content[10:]


def _file(name: str, content: bytes) -> HostFile:
    return HostFile(f"/usr/share/cloudstack-common/vms/{name}", len(content), hashlib.sha256(content).hexdigest())


class FakeCluster:
    """Remembers statuses; may refuse one, or look at what is in use when one is written."""

    def __init__(self) -> None:
        self.statuses: list[Mapping[str, Any]] = []
        self.conflicts = 0
        self.in_use_at_write: list[bool] = []
        self.in_use: Callable[[], bool] = lambda: False
        self.objects: dict[tuple[str, str], Object] = {}

    async def merge_patch(self, resource: Resource, namespace: str, name: str, patch: Object, **_: object) -> Object:
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict("somebody wrote in between")
        self.in_use_at_write.append(self.in_use())
        self.statuses.append(patch["status"])
        return patch

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        try:
            return self.objects[resource.kind, name]
        except KeyError as error:
            raise NotFound("not found") from error


class _NoImages:
    def look(self, template: SystemVMTemplate) -> tuple[None, None]:
        return None, None

    def forget(self, template: Key) -> None: ...


class _Nobody:
    def event(self, *_: object, **__: object) -> None: ...


@dataclass
class Operator:
    """One process of the operator, over a folder and a cluster that outlive it."""

    rack: Rack
    cluster: FakeCluster
    folder: Path
    source: Object
    hosts: Machines = field(default_factory=lambda: machines("kvm-a", "kvm-b"))
    status: Object = field(default_factory=dict)
    payloads: Payloads = field(default_factory=Payloads)
    version: int = 0

    def __post_init__(self) -> None:
        self.stores = Stores()
        self.observe()
        sources = PayloadSources(cache=self.folder, mounted=self.folder)
        self.fetcher = PayloadFetcher(
            cast("Cluster", self.cluster), sources, MachineSource(self.rack, sources), lambda: NOW
        )
        self.cluster.in_use = lambda: self.payloads.get(self.template) is not None

    def observe(self) -> None:
        """What the cache holds after the last status was written."""
        self.version += 1
        for status in self.cluster.statuses:
            self.status = {**self.status, **status}
        self.stores.templates.put(
            {
                "metadata": {
                    "name": KEY.name, "namespace": KEY.namespace, "uid": "u", "generation": 1,
                    "resourceVersion": str(self.version),
                },
                "spec": {"version": "4.20.2", "payload": self.source},
                "status": self.status,
            }
        )  # fmt: skip

    @property
    def template(self) -> SystemVMTemplate:
        found = self.stores.templates.get(KEY)
        assert found is not None
        return found

    async def works(self) -> None:
        """Until the release is ready or refused."""
        async with asyncio.timeout(20), Pool[None, Fetched](1, lambda key, end: None) as fetches:
            reconciler = TemplateReconciler(
                cast("Cluster", self.cluster),
                self.stores,
                self.fetcher,
                lambda template: self.hosts,
                self.payloads,
                fetches,
                cast("ImageWatch", _NoImages()),
                Notices(_Nobody()),
                lambda key: None,
                lambda: NOW,
            )
            while True:
                await reconciler.reconcile(KEY)
                self.observe()
                ready = {c["type"]: c for c in self.status.get("conditions", ())}.get("Ready", {})
                if self.payloads.get(self.template) is not None or ready.get("reason") not in (
                    None,
                    "Pending",
                    "PayloadReady",
                ):
                    return
                await fetches.drain(10)

    def fetch(self) -> asyncio.Future[Fetched]:
        return asyncio.ensure_future(self.fetcher.fetch(self.template, self.hosts))

    async def refusal(self) -> PayloadError:
        with pytest.raises(PayloadError) as caught:
            await self.fetch()
        return caught.value


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    rack = Rack({name: (made.scripts(), made.agent()) for name in ("kvm-a", "kvm-b")})
    return Operator(rack, FakeCluster(), tmp_path / "cache", {"host": {}})


REVISION = read_payload(made.scripts(), made.agent()).revision


async def test_what_hosts_hold_is_pinned_before_it_is_used(operator: Operator) -> None:
    await operator.works()
    assert operator.status["pinned"] == {
        "scripts": f"sha256:{hashlib.sha256(made.scripts()).hexdigest()}",
        "agent": f"sha256:{hashlib.sha256(made.agent()).hexdigest()}",
        "machines": 2,
        "from": ["kvm-a", "kvm-b"],
        "at": "2026-11-22T12:00:00Z",
    }
    assert operator.status["revision"] == REVISION
    assert operator.status["agentFiles"] == 2
    written_with_pin = [i for i, status in enumerate(operator.cluster.statuses) if "pinned" in status]
    assert not operator.cluster.in_use_at_write[written_with_pin[0]]
    assert operator.payloads.get(operator.template) is not None


async def test_a_pin_that_could_not_be_written_is_not_relied_on(operator: Operator) -> None:
    operator.status = {
        "observedGeneration": 1,
        "conditions": [
            {"type": type_, "status": status, "reason": "Pending", "message": "the payload is being fetched and read",
             "observedGeneration": 1, "lastTransitionTime": "2026-11-22T12:00:00Z"}
            for type_, status in (("Ready", "False"), ("Reconciling", "True"))
        ],
    }  # fmt: skip
    operator.observe()
    operator.cluster.conflicts = 1
    await operator.works()
    assert operator.status["pinned"]["machines"] == 2
    assert not any(operator.cluster.in_use_at_write[:1])


async def test_after_a_restart_the_pin_decides_whatever_hosts_hold_by_then(operator: Operator) -> None:
    await operator.works()
    operator.rack.holds = {name: (made.scripts(b"#new\n"), None) for name in operator.rack.holds}
    operator.rack.down = {"kvm-a"}
    next_process = Operator(operator.rack, operator.cluster, operator.folder, operator.source)
    await next_process.works()
    payload = next_process.payloads.get(next_process.template)
    assert payload is not None
    assert payload.revision == REVISION
    assert next_process.status["pinned"] == operator.status["pinned"]


async def test_a_process_killed_before_it_pinned_leaves_nothing_that_binds(operator: Operator) -> None:
    await operator.fetch()  # and it dies here, with the files in the cache and no pin
    operator.rack.holds = {name: (made.scripts(b"#new\n"), None) for name in operator.rack.holds}
    next_process = Operator(operator.rack, operator.cluster, operator.folder, operator.source)
    await next_process.works()
    assert next_process.status["revision"] == read_payload(made.scripts(b"#new\n"), None).revision


async def test_a_pinned_payload_that_the_cache_lost_comes_from_a_host_that_still_has_it(
    operator: Operator, tmp_path: Path
) -> None:
    await operator.works()
    operator.rack.holds["kvm-a"] = (made.scripts(b"#new\n"), None)
    next_process = Operator(operator.rack, operator.cluster, tmp_path / "empty", operator.source)
    await next_process.works()
    assert next_process.status["revision"] == REVISION
    assert operator.rack.read_of[-1].startswith("kvm-b")


async def test_a_pinned_payload_that_nobody_holds_any_more_asks_for_a_new_release(
    operator: Operator, tmp_path: Path
) -> None:
    await operator.works()
    new = made.scripts(b"#new\n")
    operator.rack.holds = dict.fromkeys(operator.rack.holds, (new, None))
    error = await Operator(operator.rack, operator.cluster, tmp_path / "empty", operator.source).refusal()
    assert error.reason is Reason.DIGEST_MISMATCH
    assert "new SystemVMTemplate" in str(error)
    assert operator.status["pinned"]["scripts"] in str(error)
    assert hashlib.sha256(new).hexdigest() in str(error)


async def test_hosts_that_disagree_stop_everything(operator: Operator) -> None:
    new = made.scripts(b"#new\n")
    operator.rack.holds["kvm-b"] = (new, made.agent())
    await operator.works()
    assert operator.payloads.get(operator.template) is None
    assert "pinned" not in operator.status
    stalled = {c["type"]: c for c in operator.status["conditions"]}["Stalled"]
    assert stalled["reason"] == "HostsDisagree"
    for word in ("kvm-a", "kvm-b", hashlib.sha256(new).hexdigest(), hashlib.sha256(made.scripts()).hexdigest()):
        assert word in stalled["message"]


async def test_hosts_whose_agents_differ_disagree_too(operator: Operator) -> None:
    operator.rack.holds["kvm-b"] = (made.scripts(), None)
    assert (await operator.refusal()).reason is Reason.HOSTS_DISAGREE


async def test_two_builds_of_the_same_files_on_two_hosts_are_one_release(operator: Operator) -> None:
    operator.hosts = machines("kvm-a", "kvm-b", "kvm-c")
    operator.rack.holds["kvm-b"] = operator.rack.holds["kvm-c"] = (another_build(made.scripts()), made.agent())
    await operator.works()
    assert operator.status["revision"] == REVISION
    assert operator.status["pinned"]["from"] == ["kvm-b", "kvm-c"], "the build that most hold"
    assert operator.status["pinned"]["machines"] == 3
    assert operator.status["warnings"] == ["another build of the same files is on kvm-a"]
    assert sorted(operator.rack.read_of) == ["kvm-a agent.zip", "kvm-a cloud-scripts.tgz", "kvm-b cloud-scripts.tgz"]


async def test_a_host_that_does_not_answer_holds_the_release_up(operator: Operator) -> None:
    operator.rack.down = {"kvm-b"}
    error = await operator.refusal()
    assert error.retryable
    assert "1 of 2 machines" in str(error)
    assert "kvm-b" in str(error)
    assert not operator.rack.read_of, "nothing is fetched while it is not known whether all agree"


async def test_hosts_in_maintenance_are_named_and_do_not_hold_it_up(operator: Operator) -> None:
    operator.hosts = machines("kvm-a", left_out=("kvm-b (Maintenance)",))
    operator.rack.down = {"kvm-b"}
    await operator.works()
    assert operator.status["warnings"] == ["not asked: kvm-b (Maintenance)"]
    assert operator.status["pinned"]["machines"] == 1


async def test_a_host_that_breaks_off_is_replaced_by_another_of_the_same_mind(operator: Operator) -> None:
    operator.rack.cuts = {"kvm-a"}
    await operator.works()
    assert operator.status["revision"] == REVISION
    assert {word.split()[0] for word in operator.rack.read_of} == {"kvm-a", "kvm-b"}


@pytest.mark.parametrize("hosts", [machines(), machines(left_out=("kvm-a (Down)",))])
async def test_without_a_host_to_ask_it_is_said_what_is_needed(operator: Operator, hosts: Machines) -> None:
    operator.hosts = hosts
    error = await operator.refusal()
    assert error.reason is Reason.NO_HOSTS
    assert "policy" in str(error)
    assert all(name in str(error) for name in hosts.left_out)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "md5"])
async def test_an_expectation_is_met_or_nothing_happens(operator: Operator, algorithm: str) -> None:
    digest = f"{algorithm}:{hashlib.new(algorithm, made.scripts()).hexdigest()}"
    operator.source = {"host": {"expect": digest}}
    operator.observe()
    assert (await operator.fetch()).payload.revision == REVISION
    operator.rack.holds = {name: (made.scripts(b"#new\n"), None) for name in operator.rack.holds}
    error = await Operator(operator.rack, FakeCluster(), operator.folder, operator.source).refusal()
    assert error.reason is Reason.DIGEST_MISMATCH
    assert digest in str(error)


def servers(**fields: object) -> Object:
    return {
        "managementServer": {
            "addresses": ["ms-1", "ms-2"],
            "keySecretRef": {"name": "ms", "key": "id"},
            "knownHostsRef": {"name": "ms-hosts", "key": "known_hosts"},
            **fields,
        }
    }


def with_login(operator: Operator) -> str:
    key = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    operator.cluster.objects["Secret", "ms"] = {"data": {"id": base64.b64encode(key.encode()).decode()}}
    operator.cluster.objects["ConfigMap", "ms-hosts"] = {"data": {"known_hosts": ""}}
    return key


async def test_management_servers_are_asked_with_the_login_that_the_release_names(operator: Operator) -> None:
    operator.source = servers(user="reader", port=2222)
    operator.observe()
    key = with_login(operator)
    operator.rack.holds = {name: (made.scripts(), made.agent()) for name in ("ms-1", "ms-2")}
    await operator.works()
    assert operator.status["pinned"]["from"] == ["ms-1", "ms-2"]
    assert {(login.user, login.port, login.private_key.decode()) for login in operator.rack.logins} == {
        ("reader", 2222, key)
    }


async def test_management_servers_that_disagree_stop_everything(operator: Operator) -> None:
    operator.source = servers()
    operator.observe()
    with_login(operator)
    operator.rack.holds = {"ms-1": (made.scripts(), None), "ms-2": (made.scripts(b"#new\n"), None)}
    assert (await operator.refusal()).reason is Reason.HOSTS_DISAGREE


@pytest.mark.parametrize(
    ("kind", "name", "found", "reason"),
    [
        ("Secret", "ms", None, Reason.CREDENTIALS_MISSING),
        ("Secret", "ms", {"data": {"id": base64.b64encode(b"no key").decode()}}, Reason.CREDENTIALS_UNREADABLE),
        ("Secret", "ms", {"data": {"other": ""}}, Reason.CREDENTIALS_MISSING),
        (
            "ConfigMap",
            "ms-hosts",
            {"data": {"known_hosts": "@nonsense host ssh-rsa AAAA"}},
            Reason.CREDENTIALS_UNREADABLE,
        ),
    ],
)
async def test_a_login_that_is_missing_or_broken_is_told_before_anybody_is_asked(
    operator: Operator, kind: str, name: str, found: Object | None, reason: Reason
) -> None:
    operator.source = servers()
    operator.observe()
    with_login(operator)
    del operator.cluster.objects[kind, name]
    if found is not None:
        operator.cluster.objects[kind, name] = found
    error = await operator.refusal()
    assert error.reason is reason
    assert name in str(error)
    assert not operator.rack.logins
