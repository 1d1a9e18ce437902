"""A cluster, a fleet and lives of the operator on one virtual clock, and what people do meanwhile.

A life ends at a write: what it had sent is done, what it had not is not, and nothing that it still wanted happens. The
next one begins with an empty memory, a higher epoch, and what server and VMs remember.
"""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from sim.fleet import Fleet, Machine, SimulatedVMs
from sim.loop import now
from sim.narrator import Narrator
from sim.payloads import archive
from sim.server import WATCH_SECONDS, Server, SimulatedCluster, Wire, version_of
from sysvm.api.base import format_time
from sysvm.domain.cloud import CloudZone, Snapshot
from sysvm.engine.engine import Engine, Sizes
from sysvm.engine.resources import CONFIG_MAP, ENDPOINT, POLICY, ROLLOUT, SECRET, SYSTEM_VM, TEMPLATE, WATCHED
from sysvm.engine.stores import Stores
from sysvm.kube.client import Write
from sysvm.kube.errors import KubeError, NotFound
from sysvm.kube.events import EventType
from sysvm.kube.objects import Key, Object, ObjectRef, Resource
from sysvm.patching.sources import PayloadSources

NAMESPACE = "cloud"
GLANCE_SECONDS = 30.0
REBIRTH_SECONDS = 10.0
"""Until the next life leads."""


@cache
def _private_key() -> str:
    """A key that can be read; nobody logs in with it."""
    import asyncssh

    return asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()


class _Deaths:
    """A write observer that ends its life at the n-th write, before or after it is carried out."""

    def __init__(self, at: int | None, end: Callable[[], None], *, after: bool) -> None:
        self.writes = 0
        self._at, self._end, self._after = at, end, after

    def before(self, write: Write) -> None:
        self.writes += 1
        if self.writes == self._at and not self._after:
            self._end()

    def after(self, write: Write, error: KubeError | None) -> None:
        if self.writes == self._at and self._after:
            self._end()


@dataclass(frozen=True)
class _Recorder:
    """Events go to the narrator."""

    narrator: Narrator

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
        self.narrator.event(about, str(type_), reason, note)


@dataclass
class _Failures:
    """Of reconcilers. One that meets a conflict or a server in trouble tries again; anything else is a defect."""

    found: list[str]

    def depth(self, queue: str, ready: int) -> None: ...

    def started(self, queue: str, key: object, waited_seconds: float) -> None: ...

    def finished(self, queue: str, key: object, ran_seconds: float) -> None: ...

    def failed(self, queue: str, key: object, error: Exception, failures: int, retry_seconds: float) -> None:
        if not isinstance(error, KubeError):
            self.found.append(f"{now():%a %H:%M:%S} reconciling {key} failed: {error!r}")


class _Nobody:
    def looked(self, *, result: str, seconds: float) -> None: ...

    def operated(self, *, method: str, result: str, seconds: float, bytes_sent: int) -> None: ...


@dataclass
class Life:
    """One process of the operator."""

    stores: Stores
    wire: Wire
    vms: SimulatedVMs
    engine: Engine
    deaths: _Deaths
    task: asyncio.Task[None] | None = None


@dataclass
class World:
    """Everything. Scenarios call its verbs; all of them are what a person or the cloud could do."""

    cache: Path
    machines: dict[str, Machine] = field(default_factory=dict)
    narrator: Narrator = field(default_factory=Narrator)
    guarded: bool = True
    kill_at: tuple[int, ...] = ()
    """The n-th write of the first, second, ... life ends it; lives beyond go on to the end."""
    kill_after: bool = False
    scan: str = "15m"

    def __post_init__(self) -> None:
        self.server = Server()
        self.fleet = Fleet(self.machines)
        self.life: Life | None = None
        self.epoch = 0
        self.writes = 0
        self.failures: list[str] = []
        self.cloud: Snapshot | None = None
        """What the last sweep found; None: the endpoint has no management server."""
        self._killed = asyncio.Event()
        self._changed = asyncio.Event()
        self.server.listen(self._watch)
        self.server.listen(self.narrator.saw)

    # The operator

    async def run(self, story: Callable[["World"], Awaitable[None]]) -> None:
        """Lives, one after the other, until the story has been told."""
        self._begin_life()
        tale = asyncio.ensure_future(story(self))
        try:
            while not tale.done():
                death = asyncio.ensure_future(self._killed.wait())
                waiting: set[asyncio.Future[Any]] = {tale, death}
                if self.life is not None and self.life.task is not None:
                    waiting.add(self.life.task)
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                death.cancel()
                if self.life is not None and self.life.task in done and not self._killed.is_set():
                    self.life.task.result()  # an engine that ends by itself is a defect
                    raise RuntimeError("the engine ended by itself")
                if self._killed.is_set():
                    self._killed.clear()
                    await self._bury()
                    await asyncio.sleep(REBIRTH_SECONDS)
                    self._begin_life()
            await tale
        finally:
            tale.cancel()
            await self._bury()

    def kill(self) -> None:
        """SIGKILL, from now on nothing of this life reaches anybody."""
        if self.life is not None:
            self.life.wire.dead = self.life.vms.dead = True
            self._killed.set()

    def _begin_life(self) -> None:
        self.epoch += 1
        lives = self.epoch - 1
        at = self.kill_at[lives] if lives < len(self.kill_at) else None
        deaths = _Deaths(at, self.kill, after=self.kill_after)
        wire, stores, vms = Wire(self.server), Stores(), SimulatedVMs(self.fleet)
        cluster = SimulatedCluster(wire, writes=deaths)
        for store in stores.all:
            cluster.attach(store)
            items = list(self.server.all(store.resource))
            store.replace(items, max((version_of(item) for item in items), default=0))
        engine = Engine(
            cluster,
            stores,
            vms,
            PayloadSources(cache=self.cache, mounted=self.cache),
            _Recorder(self.narrator),
            _Nobody(),
            now,
            epoch=self.epoch,
            sizes=Sizes(workers=4, operations=50, looks=50),
            guarded=self.guarded,
            queue_observer=_Failures(self.failures),
            processor_seconds=lambda: 0.0,
            snapshot_of=lambda endpoint: self.cloud,
        )
        self.life = Life(stores, wire, vms, engine, deaths)
        self.life.task = asyncio.ensure_future(engine.run())
        if lives:
            self.narrator.say("operator", f"is back, epoch {self.epoch}")

    async def _bury(self) -> None:
        life, self.life = self.life, None
        if life is None or life.task is None:
            return
        life.wire.dead = life.vms.dead = True
        self.writes += life.deaths.writes
        life.task.cancel()
        await asyncio.gather(life.task, return_exceptions=True)

    def _watch(self, resource: Resource, before: Object | None, after: Object | None) -> None:
        self._changed.set()
        if resource in WATCHED:
            asyncio.get_running_loop().call_later(WATCH_SECONDS, self._arrive, resource, before, after)

    def _arrive(self, resource: Resource, before: Object | None, after: Object | None) -> None:
        if self.life is None or self.life.wire.dead:
            return
        store = next(store for store in self.life.stores.all if store.resource == resource)
        if after is not None:
            store.put(after)
        elif before is not None:
            store.remove(before)

    # What people write

    def apply(self, resource: Resource, name: str, spec: Mapping[str, Any], **metadata: Any) -> Object:
        """Creates the object, or merges the spec into it."""
        key = Key(NAMESPACE, name)
        try:
            self.server.get(resource, key)
        except NotFound:
            return self.server.create(
                resource, {"metadata": {"name": name, "namespace": NAMESPACE, **metadata}, "spec": dict(spec)}
            )
        return self.server.patch(resource, key, {"spec": dict(spec), "metadata": metadata})

    def delete(self, resource: Resource, name: str) -> None:
        self.server.delete(resource, Key(NAMESPACE, name))

    def endpoint(self, name: str = "prod", **spec: Any) -> None:
        """The endpoint with all machines, and its key."""
        secret = {"metadata": {"name": "key", "namespace": NAMESPACE}}
        secret["data"] = {"id": base64.b64encode(_private_key().encode()).decode()}
        try:
            self.server.create(SECRET, secret)
        except KubeError:
            pass
        listed = [self._listed(machine) for _, machine in sorted(self.machines.items())]
        self.apply(
            ENDPOINT,
            name,
            {
                "inventory": "Static",
                "management": "Full",
                "systemVMs": listed,
                "ssh": {"keySecretRef": {"name": "key", "key": "id"}},
                "scan": {"interval": self.scan},
                **spec,
            },
        )

    def release(self, name: str) -> None:
        """A release whose payload says nothing but its name."""
        content = archive(name)
        self.server.create(
            CONFIG_MAP,
            {
                "metadata": {"name": name, "namespace": NAMESPACE},
                "binaryData": {"scripts.tgz": base64.b64encode(content).decode()},
            },
        )
        source = {"configMapRef": {"name": name, "key": "scripts.tgz"}}
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        spec = {"version": "4.20.2", "payload": {"files": {"scripts": {"digest": digest, "source": source}}}}
        self.apply(TEMPLATE, name, spec)

    def policy(self, name: str = "routers", *, template: str = "new", **spec: Any) -> None:
        self.apply(POLICY, name, {"endpointRef": {"name": "prod"}, "templateRef": {"name": template}, **spec})

    def management_server(self, version: str, **minimum: str) -> None:
        """From now on the sweeps find this version, and these lowest template versions by zone (`ams="4.19.1"`)."""
        self.cloud = Snapshot(
            taken_at=now(),
            server_version=version,
            zones={name: CloudZone(id=name, name=name, min_template_version=said) for name, said in minimum.items()},
            hosts={},
            vms={},
            networks={},
            vpcs={},
        )

    def rollouts(self, policy: str = "routers") -> list[Object]:
        found = [one for one in self.server.all(ROLLOUT) if one["spec"]["policyRef"]["name"] == policy]
        return sorted(found, key=lambda one: int(one["spec"]["number"]))

    def vm(self, name: str) -> Object:
        return self.server.get(SYSTEM_VM, Key(NAMESPACE, f"prod-{name.lower()}"))

    def get(self, resource: Resource, name: str) -> Object:
        return self.server.get(resource, Key(NAMESPACE, name))

    @staticmethod
    def _listed(machine: Machine) -> dict[str, Any]:
        listed = {
            "name": machine.name,
            "type": str(machine.type),
            "address": "192.0.2.1",
            "group": machine.group,
            "host": machine.host,
            "zone": machine.zone,
        }
        return {name: value for name, value in listed.items() if value is not None}

    # Time

    async def wait(self, **duration: float) -> None:
        """Lets so much time pass (`minutes=5`)."""
        await asyncio.sleep(timedelta(**duration).total_seconds())

    async def until(self, holds: Callable[[], bool], *, hours: float = 48) -> None:
        """Lets time pass until it holds, looking at every change and now and then. Raises TimeoutError, with the log so
        far, if it never does."""
        clock = asyncio.get_running_loop()
        end = clock.time() + hours * 3600
        while not holds():
            if clock.time() > end:
                raise TimeoutError(f"it did not happen within {hours} hours\n{self.narrator.text()}")
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), GLANCE_SECONDS)
            except TimeoutError:
                continue

    def has_ended(self, policy: str = "routers", number: int = 1) -> bool:
        found = [one for one in self.rollouts(policy) if int(one["spec"]["number"]) == number]
        return bool(found) and "result" in found[0].get("status", {})

    def stands(self, vm: str) -> bool:
        """It has an order, and its status does not tell of it yet."""
        found = next((each for each in self.server.all(SYSTEM_VM) if each["metadata"]["name"] == vm), None)
        order = found["spec"].get("operation") if found is not None else None
        told = ((found or {}).get("status") or {}).get("operation") or {}
        return order is not None and told.get("id") != order["id"]

    @staticmethod
    def at(**duration: float) -> str:
        """The moment so far from now, as objects have it."""
        return format_time(now() + timedelta(**duration))
