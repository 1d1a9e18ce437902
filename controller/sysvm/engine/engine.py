"""The engine: all reconcilers on one queue, put together from what the process brings (cluster, VM layer, clock)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from sysvm.api.window import MaintenanceWindow
from sysvm.domain.calls import Event
from sysvm.domain.image_status import ImagesSeen
from sysvm.engine.admission import AdmissionReconciler
from sysvm.engine.approval import ApprovalReconciler
from sysvm.engine.backups import Backups
from sysvm.engine.board import Board
from sysvm.engine.books import Books
from sysvm.engine.cloud import Connect, ManagedClouds, connect
from sysvm.engine.credentials import Accounts
from sysvm.engine.endpoint import EndpointReconciler
from sysvm.engine.group_operation import GroupOperations, Leads, nobody_leads, rollout_of
from sysvm.engine.images import ImageWatch
from sysvm.engine.inventory import Roster
from sysvm.engine.looking import Looks
from sysvm.engine.notices import Notices
from sysvm.engine.payload_fetch import Fetched, PayloadFetcher
from sysvm.engine.payload_machines import SelectedHosts
from sysvm.engine.payloads import Payloads
from sysvm.engine.plans import Plans
from sysvm.engine.policy import PolicyReconciler
from sysvm.engine.ports import Clock, Clouds, EngineObserver, Recorder, SnapshotOf, SystemVMs
from sysvm.engine.preparing import Preparing
from sysvm.engine.rollout import RolloutReconciler
from sysvm.engine.stores import Job, Role, Stores, key_of
from sysvm.engine.system_vm import SystemVMReconciler
from sysvm.engine.template import TemplateReconciler
from sysvm.engine.window import WindowReconciler
from sysvm.engine.work import Pool
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Key
from sysvm.kube.queue import Again, QueueObserver, WorkQueue
from sysvm.patching.host_source import MachineSource
from sysvm.patching.results import Observation, OperationReport
from sysvm.patching.sources import PayloadSources

FETCHES = 2
STEPS = 16
"""Questions and calls to management servers at once; their own rates are kept by the client."""
SHARE = 3.0
LONGEST_BATCH_SECONDS = 10.0
"""What counts all VMs of an endpoint is run at most once in so many times its own processor time: a burst of changes
must not make it the only thing the process does."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much at once: keys in work, VMs in work, VMs looked at."""

    workers: int = 8
    operations: int = 50
    looks: int = 32


class Engine:
    """Level-triggered: what is in the stores, and on the VMs, decides; events only say where to look.

    The stores must hold a whole list before `run`: a reconciler that takes a missing object for a deleted one would act
    on it.
    """

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        vms: SystemVMs,
        sources: PayloadSources,
        recorder: Recorder,
        observer: EngineObserver,
        clock: Clock,
        *,
        epoch: int,
        sizes: Sizes,
        guarded: bool = False,
        queue_observer: QueueObserver | None = None,
        snapshot_of: SnapshotOf | None = None,
        clouds: Clouds | None = None,
        connect: Connect = connect,
        processor_seconds: Callable[[], float] = time.thread_time,
        leads: Leads = nobody_leads,
        machines: MachineSource | None = None,
    ) -> None:
        self.queue: WorkQueue[Job] = WorkQueue("engine", observer=queue_observer)
        self._stores = stores
        self._sizes = sizes
        self._processor_seconds = processor_seconds
        self._seconds: dict[Job, float] = {}
        """What the last run of each counting job took."""
        wake = self._wake
        self._fetches: Pool[None, Fetched] = Pool(FETCHES, lambda key, end: wake(Role.TEMPLATE, key))
        self._image_looks: Pool[None, ImagesSeen] = Pool(FETCHES, lambda key, end: wake(Role.TEMPLATE, key))
        self._looks: Pool[None, Observation] = Pool(sizes.looks, lambda key, end: wake(Role.SYSTEM_VM, key))
        self._operations: Pool[OperationReport, OperationReport] = Pool(
            sizes.operations, lambda key, end: wake(Role.SYSTEM_VM, key)
        )
        self._steps: Pool[None, Event] = Pool(STEPS, lambda key, end: wake(Role.ROLLOUT, rollout_of(key)))
        accounts, payloads, board, plans = Accounts(cluster), Payloads(), Board(epoch), Plans(cluster)
        notices = Notices(recorder)
        managed = self._clouds = ManagedClouds(lambda key: wake(Role.ENDPOINT, key), clock, connect=connect)
        snapshot_of, clouds = snapshot_of or managed.snapshot, clouds or managed
        roster = Roster(stores, managed)
        endpoint = EndpointReconciler(
            cluster,
            stores,
            accounts,
            managed,
            roster,
            notices,
            self._login_changed,
            lambda key: wake(Role.SYSTEM_VM, key),
            lambda key: wake(Role.ENDPOINT, key),
            self._cloud_changed,
            clock,
        )
        template = TemplateReconciler(
            cluster,
            stores,
            PayloadFetcher(cluster, sources, machines, clock),
            SelectedHosts(stores, accounts, snapshot_of, clock),
            payloads,
            self._fetches,
            ImageWatch(cluster, stores, clouds, snapshot_of, leads, self._image_looks, clock),
            notices,
            self._payload_changed,
            clock,
        )
        policy = PolicyReconciler(cluster, stores, roster, plans, notices, clock, snapshot_of=snapshot_of)
        books = Books(stores, snapshot_of)
        preparing = Preparing(stores, accounts, roster, payloads, clock)
        groups = GroupOperations(
            cluster,
            stores,
            clouds,
            snapshot_of,
            board,
            self._steps,
            notices,
            lambda key: wake(Role.SYSTEM_VM, key),
            leads,
            books,
            Backups(vms, preparing),
            clock,
        )
        rollout = RolloutReconciler(
            cluster, stores, plans, notices, groups, clock, guarded=guarded, snapshot_of=snapshot_of
        )
        system_vm = SystemVMReconciler(
            cluster,
            stores,
            accounts,
            roster,
            payloads,
            preparing,
            board,
            vms,
            Looks(stores, board, vms, self._looks, notices, observer),
            self._operations,
            groups,
            books,
            notices,
            observer,
            lambda key: wake(Role.ADMISSION, key),
            clock,
        )
        admit = AdmissionReconciler(
            cluster,
            stores,
            plans,
            board,
            epoch,
            lambda key: wake(Role.SYSTEM_VM, key),
            lambda key: wake(Role.ROLLOUT, key),
            clock,
            guarded=guarded,
            snapshot_of=snapshot_of,
        )
        self._reconcilers: dict[Role, Callable[[Key], Awaitable[Again | None]]] = {
            Role.ENDPOINT: endpoint.reconcile,
            Role.TEMPLATE: template.reconcile,
            Role.POLICY: policy.reconcile,
            Role.ROLLOUT: rollout.reconcile,
            Role.APPROVAL: ApprovalReconciler(cluster, stores, clock, guarded=guarded).reconcile,
            Role.WINDOW: WindowReconciler(cluster, stores, self._window_passed, clock).reconcile,
            Role.SYSTEM_VM: system_vm.reconcile,
            Role.ADMISSION: admit.reconcile,
        }
        stores.connect(self._enqueue)

    @property
    def operations_running(self) -> int:
        return self._operations.running

    async def run(self) -> None:
        """Reconciles until `stop`. Looks and operations that run then are cut: their VMs end them alone."""
        self._look_at_everything()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._clouds)
            for pool in (self._fetches, self._image_looks, self._looks, self._operations, self._steps):
                await stack.enter_async_context(pool)
            await self.queue.run(self._reconcile, workers=self._sizes.workers)

    def stop(self, grace_seconds: float) -> None:
        """Takes no new work; what is being reconciled may end."""
        self.queue.stop(grace_seconds=grace_seconds)

    async def wait_for_operations(self, seconds: float) -> int:
        """Waits for VMs in work, at most so long. Returns how many still are."""
        return await self._operations.drain(seconds)

    async def _reconcile(self, job: Job) -> Again | None:
        if job.role is Role.SYSTEM_VM:
            return await self._reconcilers[job.role](job.key)
        clock = asyncio.get_running_loop().time
        begun, worked = clock(), self._processor_seconds()
        try:
            return await self._reconcilers[job.role](job.key)
        finally:
            # Waiting for the API server, or for a processor that others use, is no reason to count less often.
            self._seconds[job] = min(clock() - begun, self._processor_seconds() - worked)

    def _enqueue(self, job: Job, delay: float) -> None:
        if delay:
            self.queue.add_after(job, max(delay, min(SHARE * self._seconds.get(job, 0.0), LONGEST_BATCH_SECONDS)))
        else:
            self.queue.add(job)

    def _wake(self, role: Role, key: Key) -> None:
        self.queue.add(Job(role, key))

    def _login_changed(self, endpoint: Key) -> None:
        for vm in self._stores.vms_of(endpoint):
            self._wake(Role.SYSTEM_VM, key_of(vm))

    def _payload_changed(self, template: Key) -> None:
        for policy in self._stores.policies_using(template):
            self._wake(Role.POLICY, key_of(policy))
        for vm in self._stores.system_vms.values(template.namespace):
            self._wake(Role.SYSTEM_VM, key_of(vm))

    def _cloud_changed(self, endpoint: Key) -> None:
        for job, delay in self._stores.around_cloud(endpoint):
            self._enqueue(job, delay)

    def _window_passed(self, window: MaintenanceWindow) -> None:
        for job, delay in self._stores.around_window(window):
            self._enqueue(job, delay)

    def _look_at_everything(self) -> None:
        for role, store in (
            (Role.ENDPOINT, self._stores.endpoints),
            (Role.TEMPLATE, self._stores.templates),
            (Role.SYSTEM_VM, self._stores.system_vms),
            (Role.ROLLOUT, self._stores.rollouts),
            (Role.POLICY, self._stores.policies),
            (Role.APPROVAL, self._stores.approvals),
            (Role.WINDOW, self._stores.windows),
            (Role.ADMISSION, self._stores.endpoints),
        ):
            for obj in store.values():
                self._wake(role, key_of(obj))
