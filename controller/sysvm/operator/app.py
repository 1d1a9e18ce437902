"""The process from start to end: log in, lead, list, watch, reconcile, and stop without leaving a half-told story.

Order matters. Probes answer first, so that a standby is seen to live. The lease comes before any list. Every cache
holds a whole list before the first reconcile. The watch starts before the workers do. On SIGTERM no new work begins,
VMs in work get the grace time to end (they would end alone, too), and the lease is given back last.
"""

import asyncio
import gc
import logging
import os
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from sysvm import __version__
from sysvm.cloudstack.client import CloudStack
from sysvm.engine.engine import Engine, Sizes
from sysvm.engine.ports import SystemVMs
from sysvm.engine.resources import WATCHED
from sysvm.engine.stores import Stores
from sysvm.kube.client import Cluster, ClusterOptions
from sysvm.kube.errors import KubeError
from sysvm.kube.events import EventRecorder
from sysvm.kube.informer import Relister
from sysvm.kube.lease import LeaderThread, LeaseTimings
from sysvm.kube.login import Login
from sysvm.kube.objects import Object, Resource
from sysvm.operator.killer import observing
from sysvm.operator.leading import LedVMs, LedWrites, reads_its_lease
from sysvm.operator.probes import ProbeServer
from sysvm.operator.settings import Settings
from sysvm.operator.watch import WatchThread
from sysvm.patching.host_source import MachineFiles, MachineSource, SSHMachines
from sysvm.patching.live import LivePatcher
from sysvm.patching.sources import PayloadSources
from sysvm.telemetry.failures import ToldFailures
from sysvm.telemetry.metrics import Metrics

logger = logging.getLogger("sysvm.operator")

LEASE_NAME = "sysvm-operator"
CONTROLLER = "sysvm.io/operator"
STUCK_SECONDS = 300.0
"""No reconcile waits for a VM, so one that takes this long is stuck."""
DRAIN_SECONDS = 30.0
EXIT_LEADERSHIP_LOST = 3


class App:
    """One run of the operator. `vms` is the VM layer; None: live patch over SSH."""

    def __init__(self, settings: Settings, vms: SystemVMs | None = None, machines: MachineFiles | None = None) -> None:
        self._settings = settings
        self._vms = vms or LivePatcher()
        # Hosts are read over the connections that lead to their VMs; whoever replaces those brings his own.
        self._machines = SSHMachines(self._vms.hosts) if isinstance(self._vms, LivePatcher) else machines
        self._metrics = Metrics()
        self._stores = Stores()
        self._engine: Engine | None = None
        self._leading = False
        self._stopping = asyncio.Event()
        self._watch: WatchThread | None = None

    async def run(self) -> None:
        """Until `stop`. Raises what made going on impossible."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            if isinstance(self._vms, LivePatcher):
                stack.push_async_callback(self._vms.close)
            probes = await stack.enter_async_context(
                ProbeServer(
                    settings.http_host,
                    settings.http_port,
                    alive=self._alive,
                    ready=self._ready,
                    registry=self._metrics.registry,
                )
            )
            logger.info("sysvm-operator %s, probes and metrics on port %d", __version__, probes.port)
            leader = self._leader()
            cluster = await stack.enter_async_context(
                await Cluster.connect(
                    kubeconfig=settings.kubeconfig,
                    writes=LedWrites(leader, _end_at_once, observing(self._metrics)),
                    requests=self._metrics,
                )
            )
            epoch = await self._acquire(leader)
            if epoch is None:
                await leader.stop()
                return
            self._metrics.leader.set(1)
            self._leading = True
            try:
                await self._lead(cluster, epoch, leader)
            finally:
                self._metrics.leader.set(0)
                await leader.stop()
        logger.info("stopped")

    def stop(self) -> None:
        """Asks for a tidy end: what SIGTERM means. To be called on the loop of `run`."""
        self._stopping.set()

    def _leader(self) -> LeaderThread:
        settings = self._settings
        timings = LeaseTimings(
            lease_seconds=settings.lease_seconds,
            renew_deadline_seconds=settings.lease_seconds * 2 / 3,
            retry_seconds=settings.lease_seconds / 7.5,
        )
        options = ClusterOptions(connections=2, request_timeout=5.0, connect_timeout=3.0)

        async def connect() -> Cluster:
            return await Cluster.connect(kubeconfig=settings.kubeconfig, options=options)

        return LeaderThread(
            connect, namespace=settings.namespace, name=LEASE_NAME, on_lost=_end_at_once, timings=timings
        )

    async def _acquire(self, leader: LeaderThread) -> int | None:
        """The epoch; None when asked to stop while waiting."""
        logger.info("waiting for the lease %s/%s", self._settings.namespace, LEASE_NAME)
        acquiring = asyncio.ensure_future(leader.acquire())
        stopped = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait((acquiring, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not acquiring.done():
                return None
            epoch = acquiring.result()
        finally:
            for task in (acquiring, stopped):
                task.cancel()
        logger.info("leading, epoch %d", epoch)
        return epoch

    async def _lead(self, cluster: Cluster, epoch: int, leader: LeaderThread) -> None:
        settings = self._settings
        namespaces: tuple[str | None, ...] = settings.watch_namespaces or (None,)
        for store in self._stores.all:
            cluster.attach(store)
        relisters = [Relister(cluster, store, namespace=name) for store in self._stores.all for name in namespaces]
        await self._list(relisters)
        # What was listed stays: the collector need not look through ten thousand objects again and again.
        gc.collect()
        gc.freeze()
        recorder = EventRecorder(cluster, controller=CONTROLLER, instance=leader.identity)
        sources = PayloadSources(cache=settings.cache_dir / "payloads", mounted=settings.payloads_dir)
        engine = self._engine = Engine(
            cluster,
            self._stores,
            LedVMs(leader, _end_at_once, self._vms),
            sources,
            recorder,
            self._metrics,
            lambda: datetime.now(UTC),
            epoch=epoch,
            guarded=self._settings.admission_policies,
            sizes=Sizes(settings.workers, settings.operations, settings.looks),
            queue_observer=ToldFailures(self._metrics),
            leads=reads_its_lease(leader, cluster, settings.namespace, LEASE_NAME, epoch),
            machines=MachineSource(self._machines, sources) if self._machines is not None else None,
            connect=lambda access, may_change: CloudStack(access, may_change=may_change, observer=self._metrics),
        )
        self._count_objects()
        login = Login(kubeconfig=settings.kubeconfig)
        watch = self._watch = WatchThread(WATCHED, settings.watch_namespaces, login, await login.open(), self._on_event)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(recorder.run(), name="events")
            background = [tasks.create_task(relister.run(), name="relist") for relister in relisters]
            watching = tasks.create_task(watch.run(), name="watch")
            tasks.create_task(engine.run(), name="engine")
            await self._stopping.wait()
            logger.info("stopping: no new work; %d VMs in work", engine.operations_running)
            watch.stop()
            for task in background:
                task.cancel()
            left = await engine.wait_for_operations(DRAIN_SECONDS)
            if left:
                logger.warning("%d VMs are still in work: they end their operations alone", left)
            engine.stop(grace_seconds=10.0)
            recorder.stop()
            await asyncio.wait((watching,), timeout=10.0)
            watching.cancel()

    async def _list(self, relisters: list[Relister[object]]) -> None:
        for relister in relisters:
            while True:
                try:
                    await relister.once()
                    break
                except KubeError as error:
                    logger.warning("cannot list yet: %s", error)
                    async with asyncio.timeout(5):
                        await asyncio.sleep(2)

    def _on_event(self, resource: Resource, type_: str | None, obj: Object) -> None:
        for store in self._stores.all:
            if store.resource == resource:
                store.observe(type_, obj)

    def _count_objects(self) -> None:
        stores = self._stores
        self._metrics.count_from(
            "sysvm_system_vms",
            "System VMs by endpoint, type and state",
            ("namespace", "endpoint", "type", "state"),
            lambda: (
                (
                    vm.metadata.namespace,
                    vm.spec.endpoint_ref.name,
                    str(vm.status.identity.type) if vm.status.identity else "unknown",
                    str(vm.status.state),
                )
                for vm in stores.system_vms.values()
            ),
        )
        self._metrics.count_from(
            "sysvm_rollouts",
            "Rollouts by policy and result",
            ("namespace", "policy", "result"),
            lambda: (
                (rollout.metadata.namespace, rollout.spec.policy_ref.name, str(rollout.status.result or "Running"))
                for rollout in stores.rollouts.values()
            ),
        )

    def _alive(self) -> str | None:
        if self._engine is None:
            return None
        stuck = [job for job in self._engine.queue.running() if job.seconds > STUCK_SECONDS]
        return f"{stuck[0].key} has been reconciling for {stuck[0].seconds:.0f} s" if stuck else None

    def _ready(self) -> str | None:
        if self._stopping.is_set():
            return "stopping"
        if self._leading and not all(store.synced for store in self._stores.all):
            return "the first lists are not complete"
        return None


def _end_at_once(why: str) -> None:
    """Nothing may go on under a lease that is not ours: not even a tidy end."""
    os.write(2, f'{{"level": "error", "message": "leadership lost: {why}"}}\n'.encode())
    os._exit(EXIT_LEADERSHIP_LOST)
