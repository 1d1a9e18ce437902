"""One test's corner of the shared operator's world: an endpoint, its VMs, releases, a policy; and what to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from tests.integration.engine import objects
from tests.integration.engine.cluster import Namespace, condition, kstatus, says, until
from tests.integration.engine.objects import Manifest
from tests.integration.engine.simulated_vms import Fleet, Patch

from lab.controlplane import ControlPlane
from sysvm.api.base import REQUESTED_AT_ANNOTATION
from sysvm.engine.resources import ENDPOINT, POLICY, ROLLOUT, SYSTEM_VM, TEMPLATE
from sysvm.kube.objects import Resource
from sysvm.patching.payload import read_payload

FIRST = read_payload(objects.scripts("first"), None).revision
SECOND = read_payload(objects.scripts("second"), None).revision


@dataclass(frozen=True)
class World:
    """The operator that all journeys share."""

    namespace: Namespace
    fleet: Fleet
    control_plane: ControlPlane
    running: asyncio.Task[None]


@dataclass
class Journey:
    """`name` is the name of its endpoint and policy; releases are `<name>-first` and `<name>-second`."""

    world: World
    name: str
    vms: list[str] = field(default_factory=list)
    requests: int = 0

    @property
    def fleet(self) -> Fleet:
        return self.world.fleet

    @property
    def namespace(self) -> Namespace:
        return self.world.namespace

    # What people do

    def add(self, *names: str, **state: object) -> list[Manifest]:
        """New VMs at the old payload; returns their entries for `systemVMs`."""
        entries = []
        for name in names:
            vm = f"{name}-{self.name}-VM"
            self.fleet.add(vm)
            if state:
                self.fleet.set(vm, **state)
            self.vms.append(vm)
            entries.append(objects.vm(vm))
        return entries

    async def declare(self, entries: list[Manifest], *, spec: dict[str, Any] | None = None, **policy: Any) -> None:
        """Endpoint (`spec` changes it), first release, policy."""
        await self.endpoint(entries, **(spec or {}))
        await self.release("first")
        await self.policy(**policy)

    async def endpoint(self, entries: list[Manifest], name: str = "", **spec: Any) -> None:
        await self.namespace.create(objects.endpoint(self.namespace.name, name or self.name, entries, **spec))

    async def release(self, word: str, **more: str) -> None:
        archive = objects.scripts(word)
        source = more.pop("source", word)
        await self.namespace.create(
            objects.template(self.namespace.name, f"{self.name}-{word}", archive, source, **more)
        )

    async def policy(self, name: str = "", word: str = "first", **spec: Any) -> None:
        await self.namespace.create(
            objects.policy(self.namespace.name, name or self.name, self.name, f"{self.name}-{word}", **spec)
        )

    async def ask_for_a_look(self, vm: str) -> str:
        """As `kubectl annotate` does. Returns the word that will be echoed."""
        self.requests += 1
        word = f"request-{self.requests}"
        await self.namespace.annotate(SYSTEM_VM, self.object_of(vm), REQUESTED_AT_ANNOTATION, word)
        return word

    # What there is

    def object_of(self, vm: str) -> str:
        return f"{self.name}-{vm}".lower()

    async def vm(self, vm: str) -> Manifest:
        return await self.namespace.get(SYSTEM_VM, self.object_of(vm))

    async def rollouts(self) -> list[Manifest]:
        found = [one for one in await self.namespace.all(ROLLOUT) if one["spec"]["policyRef"]["name"] == self.name]
        return sorted(found, key=lambda one: int(one["spec"]["number"]))

    def patches(self) -> list[Patch]:
        return [patch for patch in self.fleet.patches() if patch.vm in self.vms]

    def patched(self, revision: str = FIRST) -> list[str]:
        return sorted(patch.vm for patch in self.patches() if patch.revision == revision)

    def patch_calls(self) -> int:
        return sum(int(self.fleet.state(vm)["patch_calls"]) for vm in self.vms)

    # What is waited for

    async def until(self, holds: Callable[[], Awaitable[Any]], what: str) -> Any:
        async def asked() -> Any:
            if self.world.running.done():
                self.world.running.result()
                raise AssertionError("the operator ended")
            return await holds()

        return await until(asked, f"{self.name}: {what}", story=self.picture)

    async def says(
        self, resource: Resource, name: str, reason: str, status: str = "False", *, type_: str = "Ready"
    ) -> Manifest:
        """The object once that condition has this status and reason."""

        async def said() -> Manifest | None:
            obj = await self.namespace.find(resource, name)
            return obj if obj is not None and says(obj, type_) == (status, reason) else None

        found: Manifest = await self.until(said, f"{resource.kind} {name} says {type_}={status} {reason}")
        return found

    async def policy_says(self, reason: str, kstatus_is: str, message: str = "") -> str:
        """The message of Ready, once its reason is this one and kstatus agrees."""

        async def said() -> str | None:
            policy = await self.namespace.get(POLICY, self.name)
            ready = condition(policy, "Ready")
            right = says(policy)[1] == reason and message in ready["message"] and kstatus(policy) == kstatus_is
            return str(ready["message"]) if right else None

        found: str = await self.until(said, f"policy says {reason} {message!r}, {kstatus_is}")
        return found

    async def converged(self) -> None:
        await self.policy_says("Converged", "Current")
        await self.ended("Succeeded")

    async def ended(self, result: str) -> Manifest:
        """The last rollout with that result."""

        async def has_ended() -> Manifest | None:
            found = await self.rollouts()
            return found[-1] if found and found[-1].get("status", {}).get("result") == result else None

        rollout: Manifest = await self.until(has_ended, f"the last rollout ended {result}")
        return rollout

    async def in_work(self, *vms: str) -> None:
        async def begun() -> bool:
            return {patch.vm for patch in self.patches()} == set(vms)

        await self.until(begun, f"{vms} in work")

    async def gone(self, resource: Resource, name: str) -> None:
        async def is_gone() -> bool:
            return await self.namespace.find(resource, name) is None

        await self.until(is_gone, f"{resource.kind} {name} is gone")

    async def looked(self, vm: str) -> None:
        """A look that was asked for has been taken and told."""
        word = await self.ask_for_a_look(vm)
        looks = self.fleet.looks(vm)

        async def told() -> bool:
            handled = (await self.vm(vm))["status"].get("lastHandledReconcileAt") == word
            return handled and self.fleet.looks(vm) > looks

        await self.until(told, f"{vm} was looked at again")

    async def picture(self) -> str:
        lines = (await self.namespace.picture()).splitlines()
        ours, keep = [], False
        for line in lines:
            if not line.startswith("    "):
                keep = self.name in line
            if keep:
                ours.append(line)
        return "\n".join(ours)

    async def leave(self) -> None:
        """Nothing of this test stays in work, and nobody looks at its VMs any more."""
        for vm in self.vms:
            self.fleet.end(vm)
        for resource in (POLICY, ENDPOINT, TEMPLATE):
            for obj in await self.namespace.all(resource):
                name = obj["metadata"]["name"]
                if name == self.name or name.startswith(f"{self.name}-"):
                    await self.namespace.delete(resource, name)
