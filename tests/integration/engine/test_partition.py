"""Two leaders, forced: the first is cut off or stands still with VMs in work, the second takes over, the first comes
back. No VM is patched twice, and nothing that the first one does afterwards reaches a VM or the server.

That a real VM refuses an order of a lower epoch, and one whose id it knows, is in tests/remote/test_refusals.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.engine import objects
from tests.integration.engine.cluster import says, until
from tests.integration.engine.journey import Journey
from tests.integration.engine.lives import Lane, Nursery, ask, free_port, lane, writes
from tests.integration.engine.objects import Manifest
from tests.integration.engine.simulated_vms import Fleet
from tests.integration.engine.wire import Wire

from lab.controlplane import ControlPlane
from sysvm.api.base import OPERATION_FINALIZER, format_time
from sysvm.api.reasons import Reason
from sysvm.engine.admission import CONFLICT_SECONDS, AdmissionReconciler
from sysvm.engine.board import Board
from sysvm.engine.plans import Plans
from sysvm.engine.resources import CONFIG_MAP, ENDPOINT, POLICY, ROLLOUT, SYSTEM_VM, TEMPLATE, WATCHED, WINDOW
from sysvm.engine.stores import Stores
from sysvm.kube.client import Cluster, Write
from sysvm.kube.errors import Conflict, KubeError
from sysvm.kube.lease import LEASE
from sysvm.kube.objects import Key, Resource
from sysvm.kube.queue import Again
from sysvm.operator.app import EXIT_LEADERSHIP_LOST
from sysvm.patching.errors import Refused
from sysvm.patching.payload import read_payload
from sysvm.patching.results import Order

LEASE_SECONDS = 8
SHORT_LEASE = {"SYSVM_LEASE_SECONDS": str(LEASE_SECONDS)}
QUIET_SECONDS = 5.0
VMS = ("r-1-VM", "r-2-VM", "r-3-VM")


@pytest_asyncio.fixture
async def here(control_plane: ControlPlane, crds: list[str], tmp_path: Path) -> AsyncIterator[Lane]:
    async with (
        await Cluster.connect(kubeconfig=control_plane.kubeconfig) as admin,
        lane(control_plane, admin, f"partition-{os.getpid()}-{time.monotonic_ns() % 10**9}", tmp_path) as found,
    ):
        await found.namespace.create(
            objects.config_map(found.namespace.name, "first", objects.scripts("first")),
            objects.endpoint(found.namespace.name, "here", [objects.vm(vm) for vm in VMS]),
            objects.template(found.namespace.name, "first", objects.scripts("first")),
            objects.policy(found.namespace.name, "routers", "here", "first", strategy={"maxUnavailable": 1}),
        )
        yield found


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.of(tmp_path / "fleet.json", dict.fromkeys(VMS))


async def holder(here: Lane) -> tuple[str, int]:
    spec = (await here.namespace.get(LEASE, "sysvm-operator"))["spec"]
    return spec["holderIdentity"], spec["leaseTransitions"]


async def standby(second: Nursery, fleet: Fleet) -> int:
    """A second operator that waits for the lease; the port of its metrics."""
    port = free_port()
    await second.start(fleet, SYSVM_HTTP_PORT=str(port), **SHORT_LEASE)

    async def waits() -> bool:
        return "sysvm_leader 0.0" in (await ask(port, "/metrics"))[1]

    await until(waits, "a standby")
    return port


async def taken_over(here: Lane, first: str) -> int:
    """The epoch of the second leader, once there is one."""

    async def another() -> int | None:
        name, epoch = await holder(here)
        return epoch if name not in ("", first) else None

    return await until(another, "the second operator leads", story=here.picture)


async def converged(here: Lane) -> None:
    async def all_done() -> bool:
        policy = await here.namespace.get(POLICY, "routers")
        ended = (policy["status"].get("lastRollout") or {}).get("result") == "Succeeded"
        return says(policy) == ("True", "Converged") and ended

    await until(all_done, "converged", story=here.picture)


async def idle(port: int) -> None:
    """Until the operator behind that port has written nothing for a while."""
    seen, since = await writes(port), time.monotonic()

    async def quiet() -> bool:
        nonlocal seen, since
        now = await writes(port)
        if now != seen:
            seen, since = now, time.monotonic()
        return time.monotonic() - since >= QUIET_SECONDS

    await until(quiet, "nothing to write")


async def versions(here: Lane) -> dict[str, str]:
    """Of everything of ours in the namespace."""
    found = [obj for kind in (*WATCHED, CONFIG_MAP) for obj in await here.namespace.all(kind)]
    return {f"{obj['kind']}/{obj['metadata']['name']}": obj["metadata"]["resourceVersion"] for obj in found}


async def orders(here: Lane) -> dict[str, int]:
    """SystemVM -> epoch of its order."""
    return {vm["metadata"]["name"]: vm["spec"]["operation"]["epoch"] for vm in await here.namespace.all(SYSTEM_VM)}


async def test_a_leader_that_is_cut_off_ends_itself_and_no_vm_is_patched_twice(
    here: Lane, fleet: Fleet, tmp_path: Path
) -> None:
    fleet.never_end("r-1-VM")
    direct = Path(here.nursery.environment["KUBECONFIG"])
    async with (
        Wire.before(direct, tmp_path) as (wire, through),
        Nursery.open(tmp_path / "second", here.nursery.environment) as second,
    ):
        await here.nursery.start(fleet, KUBECONFIG=str(through), **SHORT_LEASE)

        async def in_work() -> bool:
            vm = await here.namespace.find(SYSTEM_VM, "here-r-1-vm")
            return bool(fleet.patches()) and bool(((vm or {}).get("status") or {}).get("operation"))

        await until(in_work, "r-1-VM is in work, and the status says so", story=here.picture)
        first, first_epoch = await holder(here)
        await standby(second, fleet)
        wire.cut()
        cut = time.monotonic()
        ending = asyncio.create_task(here.nursery.wait())
        epoch = await taken_over(here, first)
        print(f"failover: {time.monotonic() - cut:.1f} s at a lease of {LEASE_SECONDS} s, cut off from the API server")
        assert epoch > first_epoch
        async with asyncio.timeout(60):
            assert await ending == EXIT_LEADERSHIP_LOST, here.nursery.story()
        assert "leadership lost" in here.nursery.story()
        wire.mend()
        fleet.end("r-1-VM")
        await converged(here)
    assert wire.held_bytes, "the first one went on talking into the void"
    assert [patch.vm for patch in fleet.patches()] == list(VMS)
    assert await orders(here) == {"here-r-1-vm": first_epoch, "here-r-2-vm": epoch, "here-r-3-vm": epoch}
    assert len(await here.namespace.all(ROLLOUT)) == 1


async def test_a_leader_that_wakes_after_its_lease_reaches_no_vm_and_writes_nothing(
    here: Lane, fleet: Fleet, tmp_path: Path
) -> None:
    fleet.set("r-1-VM", refused=(Reason.LOCK_HELD, True))
    async with Nursery.open(tmp_path / "second", here.nursery.environment) as second:
        await here.nursery.start(fleet, **SHORT_LEASE)

        async def waits_for_the_lock() -> bool:
            return fleet.patch_calls() > 0

        await until(waits_for_the_lock, "it tries to begin with r-1-VM, again and again", story=here.picture)
        first, first_epoch = await holder(here)
        port = await standby(second, fleet)
        os.kill(here.nursery.pid, signal.SIGSTOP)
        stood = time.monotonic()
        epoch = await taken_over(here, first)
        print(f"failover: {time.monotonic() - stood:.1f} s at a lease of {LEASE_SECONDS} s, stopped")
        assert epoch > first_epoch
        fleet.set("r-1-VM", refused=None)
        await converged(here)
        await idle(port)
        before, calls = await versions(here), fleet.patch_calls()

        os.kill(here.nursery.pid, signal.SIGCONT)
        async with asyncio.timeout(60):
            assert await here.nursery.wait() == EXIT_LEADERSHIP_LOST, here.nursery.story()
        assert "leadership lost" in here.nursery.story()
        assert fleet.patch_calls() == calls, "its next try would have been due at once"
        assert await versions(here) == before
        assert (await holder(here))[1] == epoch
    assert sorted(patch.vm for patch in fleet.patches()) == sorted(VMS)
    with pytest.raises(Refused) as refused:
        late = Order("late", first_epoch, 1, 1.0, (), 60.0, 60.0)
        fleet.begin("r-2-VM", read_payload(objects.scripts("first"), None), late)
    assert refused.value.reason is Reason.EPOCH_REFUSED


# A cache that is late


class Attempts:
    """Remembers how the writes of one client ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, KubeError | None]] = []

    def before(self, write: Write) -> None: ...

    def after(self, write: Write, error: KubeError | None) -> None:
        self.ended.append((write.resource.kind, error))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("refused_at", ["Rollout", "SystemVM"])
async def test_a_stale_cache_hands_out_no_work_twice(journey: Journey, refused_at: str) -> None:
    """Admission decides from a cache in which all VMs still wait, while another leader has patched them."""
    namespace = journey.namespace
    closed = {"from": format_time(datetime.now(UTC) + timedelta(hours=1)), "to": "2099-01-01T00:00:00Z"}
    await namespace.create(
        {
            "apiVersion": "sysvm.io/v1alpha1",
            "kind": "MaintenanceWindow",
            "metadata": {"name": journey.name, "namespace": namespace.name},
            "spec": {"effect": "Allow", "interval": closed},
        }
    )
    await journey.declare(journey.add("a", "b"), windowRefs=[{"name": journey.name}])
    await journey.policy_says("OutsideWindow", "InProgress")
    seen = {kind: await namespace.all(kind) for kind in (ENDPOINT, TEMPLATE, POLICY, SYSTEM_VM, ROLLOUT)}
    opened = {**closed, "from": "2020-01-01T00:00:00Z"}
    await namespace.edit(WINDOW, journey.name, {"interval": opened})
    await journey.converged()
    handed_out = {vm: (await journey.vm(vm))["spec"]["operation"] for vm in journey.vms}

    stale = stale_stores(journey, seen, held=refused_at == "SystemVM")
    stale.windows.put(await namespace.get(WINDOW, journey.name))
    attempts = Attempts()
    async with await Cluster.connect(kubeconfig=journey.world.control_plane.kubeconfig, writes=attempts) as cluster:
        admission = AdmissionReconciler(
            cluster,
            stale,
            Plans(cluster),
            Board(1),
            1,
            lambda _: None,
            lambda _: None,
            lambda: datetime.now(UTC),
            guarded=False,
        )
        for _ in range(3):
            assert await admission.reconcile(Key(namespace.name, journey.name)) == Again(CONFLICT_SECONDS)
    assert len(attempts.ended) == 3
    for kind, error in attempts.ended:
        assert kind == refused_at
        assert isinstance(error, Conflict)
    assert {vm: (await journey.vm(vm))["spec"]["operation"] for vm in journey.vms} == handed_out
    assert journey.patched() == journey.vms


def stale_stores(journey: Journey, seen: dict[Resource, list[Manifest]], *, held: bool) -> Stores:
    """This journey's objects as they were. `held`: the rollout has its finalizer already, so the next write is the
    order itself."""
    stores = Stores()
    for store in stores.all:
        for obj in seen.get(store.resource, []):
            if not f"{obj['metadata']['name']}-".startswith(f"{journey.name}-"):
                continue
            if held and store.resource == ROLLOUT:
                obj["metadata"]["finalizers"] = [OPERATION_FINALIZER]
            store.put(obj)
    return stores
