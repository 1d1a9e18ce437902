"""The operator as a process: it rests, it restarts, it ends when asked, another one takes over."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.engine import objects
from tests.integration.engine.cluster import says, until
from tests.integration.engine.lives import Lane, Nursery, ask, free_port, lane, writes
from tests.integration.engine.simulated_vms import Fleet

from lab.controlplane import ControlPlane
from sysvm.engine.resources import ENDPOINT, POLICY, ROLLOUT, SYSTEM_VM
from sysvm.kube.client import Cluster
from sysvm.kube.lease import LEASE
from sysvm.operator.killer import VARIABLE

IDLE_SECONDS = 5.0
SHORT_LEASE_SECONDS = 8
VMS = ("r-1-VM", "r-2-VM")


@pytest_asyncio.fixture
async def here(control_plane: ControlPlane, crds: list[str], tmp_path: Path) -> AsyncIterator[Lane]:
    async with (
        await Cluster.connect(kubeconfig=control_plane.kubeconfig) as admin,
        lane(control_plane, admin, f"lives-{os.getpid()}-{time.monotonic_ns() % 10**9}", tmp_path) as found,
    ):
        await found.namespace.create(
            *(objects.config_map(found.namespace.name, word, objects.scripts(word)) for word in ("first", "second"))
        )
        yield found


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.of(tmp_path / "fleet.json", dict.fromkeys(VMS))


async def declare(here: Lane, **policy: object) -> None:
    name = here.namespace.name
    await here.namespace.create(
        objects.endpoint(name, "here", [objects.vm(vm) for vm in VMS]),
        objects.template(name, "first", objects.scripts("first")),
        objects.policy(name, "routers", "here", "first", **policy),
    )


async def until_converged(here: Lane) -> None:
    async def converged() -> bool:
        policy = await here.namespace.get(POLICY, "routers")
        ended = (policy["status"].get("lastRollout") or {}).get("result") == "Succeeded"
        return says(policy) == ("True", "Converged") and ended

    await until(converged, "converged", story=here.picture)


async def until_in_work(here: Lane, fleet: Fleet, number: int = 1) -> None:
    async def in_work() -> bool:
        return len(fleet.patches()) == number

    await until(in_work, f"{number} VMs in work", story=here.picture)


async def until_ready(port: int) -> None:
    async def ready() -> bool:
        return (await ask(port, "/readyz"))[0] == 200

    await until(ready, "ready")


async def watch_idleness(port: int, since: dict[str, float]) -> None:
    begun = time.monotonic()

    async def long_enough() -> bool:
        assert await writes(port) == since
        return time.monotonic() - begun >= IDLE_SECONDS

    await until(long_enough, "idle")


async def until_idle(port: int) -> None:
    """Until nothing was written for a while: a VM in work is still mirrored once by a new life."""
    seen, since = await writes(port), time.monotonic()

    async def quiet() -> bool:
        nonlocal seen, since
        now = await writes(port)
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since >= IDLE_SECONDS

    await until(quiet, "nothing to write")


async def test_an_idle_operator_writes_nothing_and_answers_its_probes(here: Lane, fleet: Fleet) -> None:
    port = free_port()
    await declare(here)
    await here.nursery.start(fleet, SYSVM_HTTP_PORT=str(port))
    await until_converged(here)
    looks = [fleet.looks(vm) for vm in VMS]

    async def looked_again() -> bool:
        return all(fleet.looks(vm) > before for vm, before in zip(VMS, looks, strict=True))

    await until(looked_again, "the looks of the next interval")
    await watch_idleness(port, await writes(port))
    assert (await ask(port, "/healthz"))[0] == 200
    assert (await ask(port, "/readyz"))[0] == 200
    _, metrics = await ask(port, "/metrics")
    assert 'sysvm_operations_total{method="LivePatch",result="Succeeded"} 2.0' in metrics
    assert 'state="Converged",type="router"} 2.0' in metrics
    assert "sysvm_leader 1.0" in metrics


async def test_a_restart_finds_everything_as_it_was_and_writes_nothing(here: Lane, fleet: Fleet) -> None:
    await declare(here)
    await here.nursery.start(fleet)
    await until_converged(here)
    await here.nursery.kill()
    await here.namespace.release_lease()
    looks, port = [fleet.looks(vm) for vm in VMS], free_port()
    await here.nursery.start(fleet, SYSVM_HTTP_PORT=str(port))

    async def looked() -> bool:
        return all(fleet.looks(vm) > before for vm, before in zip(VMS, looks, strict=True))

    await until(looked, "looks of the new life")
    await watch_idleness(port, {})


async def test_a_restart_while_vms_wait_keeps_what_they_wait_for(here: Lane, fleet: Fleet) -> None:
    fleet.never_end("r-1-VM")
    await declare(here, strategy={"maxUnavailable": 1})
    await here.nursery.start(fleet)
    await until_in_work(here, fleet)

    async def waits() -> bool:
        vm = await here.namespace.get(SYSTEM_VM, "here-r-2-vm")
        blockers = ((vm.get("status") or {}).get("plan") or {}).get("blockedBy") or []
        return [one["reason"] for one in blockers] == ["WaitingForSlot"]

    await until(waits, "r-2-VM waits for the slot", story=here.picture)
    before = await here.namespace.get(SYSTEM_VM, "here-r-2-vm")
    assert before["status"]["plan"]["services"], "what it would cost is in the plan"
    await here.nursery.kill()
    await here.namespace.release_lease()
    looks, port = fleet.looks("r-2-VM"), free_port()
    await here.nursery.start(fleet, SYSVM_HTTP_PORT=str(port))

    async def looked() -> bool:
        return fleet.looks("r-2-VM") > looks

    await until(looked, "looks of the new life")
    await until_idle(port)
    after = await here.namespace.get(SYSTEM_VM, "here-r-2-vm")
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_a_vm_in_work_survives_a_tidy_end_and_is_patched_once(here: Lane, fleet: Fleet) -> None:
    fleet.set("r-1-VM", seconds=4.0)
    await declare(here, strategy={"maxUnavailable": 1})
    await here.nursery.start(fleet)
    await until_in_work(here, fleet)
    assert await here.nursery.stop() == 0, here.nursery.story()
    lease = await here.namespace.get(LEASE, "sysvm-operator")
    assert not lease["spec"].get("holderIdentity"), "the lease is given back"
    assert len(fleet.patches()) == 1, "nothing new begins once it was asked to end"
    await here.nursery.start(fleet)
    await until_converged(here)
    assert [patch.vm for patch in fleet.patches()] == ["r-1-VM", "r-2-VM"]


async def test_a_vm_in_work_is_attached_to_after_a_crash(here: Lane, fleet: Fleet) -> None:
    fleet.never_end("r-1-VM")
    await declare(here, strategy={"maxUnavailable": 1})
    await here.nursery.start(fleet)
    await until_in_work(here, fleet)
    await here.nursery.kill()
    await here.namespace.release_lease()
    await here.nursery.start(fleet)
    calls = fleet.patch_calls()

    async def attached() -> bool:
        return fleet.patch_calls() > calls

    await until(attached, "the new life asks the VM", story=here.picture)
    assert len(fleet.patches()) == 1
    fleet.end("r-1-VM")
    await until_converged(here)
    assert [patch.vm for patch in fleet.patches()] == ["r-1-VM", "r-2-VM"]


async def test_what_was_ordered_and_not_begun_is_withdrawn_where_nothing_may_change_any_more(
    here: Lane, fleet: Fleet
) -> None:
    await declare(here, strategy={"maxUnavailable": 1})
    ordered = ""
    while not ordered:
        await here.nursery.start(fleet, **{VARIABLE: "1:after"})
        assert await here.nursery.wait() == -9, here.nursery.story()
        await here.namespace.release_lease()
        assert here.nursery.born < 60, await here.picture()
        if await standing(here):
            await here.namespace.edit(ENDPOINT, "here", {"management": "Observe"})
            ordered = await standing(here)  # a write that was under way when the life ended has arrived by now
        if not ordered:
            await here.namespace.edit(ENDPOINT, "here", {"management": "Full"})
    await here.nursery.start(fleet, **{VARIABLE: ""})

    async def withdrawn() -> bool:
        vm = await here.namespace.get(SYSTEM_VM, f"here-{ordered.lower()}")
        return not vm["spec"].get("operation") and not vm["metadata"].get("finalizers")

    await until(withdrawn, "the order is withdrawn, finalizer and all", story=here.picture)
    assert ordered not in {patch.vm for patch in fleet.patches()}
    await here.namespace.edit(ENDPOINT, "here", {"management": "Full"})
    await until_converged(here)
    assert sorted(patch.vm for patch in fleet.patches()) == sorted(VMS)


async def standing(here: Lane) -> str:
    """The VM that has an order which no status tells of; empty: none."""
    for vm in await here.namespace.all(SYSTEM_VM):
        order, status = vm["spec"].get("operation"), vm.get("status") or {}
        if order is not None and order["id"] != (status.get("operation") or {}).get("id"):
            return str(status["identity"]["name"])
    return ""


async def test_a_second_operator_waits_and_takes_over_when_the_first_is_lost(
    here: Lane, fleet: Fleet, tmp_path: Path
) -> None:
    port, lease = free_port(), {"SYSVM_LEASE_SECONDS": str(SHORT_LEASE_SECONDS)}
    fleet.set("r-1-VM", seconds=4.0 * SHORT_LEASE_SECONDS)  # so that the other VM is left to the second one
    await declare(here, strategy={"maxUnavailable": 1})
    await here.nursery.start(fleet, **lease)
    await until_in_work(here, fleet)
    async with Nursery.open(tmp_path / "second", here.nursery.environment) as second:
        await second.start(fleet, SYSVM_HTTP_PORT=str(port), **lease)
        await until_ready(port)
        holder = (await here.namespace.get(LEASE, "sysvm-operator"))["spec"]["holderIdentity"]
        assert "sysvm_leader 0.0" in (await ask(port, "/metrics"))[1]
        await here.nursery.kill()
        lost = time.monotonic()

        async def taken_over() -> bool:
            return bool((await here.namespace.get(LEASE, "sysvm-operator"))["spec"]["holderIdentity"] != holder)

        await until(taken_over, "taken over")
        seconds = time.monotonic() - lost
        print(f"failover: {seconds:.1f} s at a lease of {SHORT_LEASE_SECONDS} s")
        assert seconds < 2 * SHORT_LEASE_SECONDS
        await until_converged(here)
        assert sorted(patch.vm for patch in fleet.patches()) == sorted(VMS)
        rollouts = await here.namespace.all(ROLLOUT)
        assert len(rollouts) == 1
        epochs = [vm["spec"]["operation"]["epoch"] for vm in await here.namespace.all(SYSTEM_VM)]
        assert max(epochs) > min(epochs), "the second one hands out work under an epoch of its own"
