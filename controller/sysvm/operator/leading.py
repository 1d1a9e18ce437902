"""Nothing leaves this process under a lease that may be another's by now.

The lease's own thread ends the process when the lease is lost. A process that stood still (stopped, out of memory, its
machine asleep) wakes in all threads at once, though, and for some milliseconds its loop may go on where it was, with a
cache from before. So every write, and every operation that begins, asks first how old the last renewal is.

What was sent before cannot be called back: a write carries the version it was decided from, an order its epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sysvm.engine.group_operation import Leads
from sysvm.engine.ports import Progress, SystemVMs
from sysvm.kube.client import Write, WriteObserver
from sysvm.kube.errors import KubeError
from sysvm.kube.lease import LEASE
from sysvm.kube.objects import Object, Resource
from sysvm.patching.payload import Payload
from sysvm.patching.results import Observation, OperationReport, Order, Target


class Lead(Protocol):
    """`kube.lease.LeaderThread`."""

    @property
    def identity(self) -> str: ...

    def holds(self) -> bool: ...


class LeaseReader(Protocol):
    """`kube.client.Cluster`."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Object: ...


def reads_its_lease(lead: Lead, cluster: LeaseReader, namespace: str, name: str, epoch: int) -> Leads:
    """Asks the server whose the Lease is now: for what cannot be called back, and carries neither a version that the
    server compares nor an epoch that the other side remembers."""

    async def leads() -> bool:
        if not lead.holds():
            return False
        spec = (await cluster.get(LEASE, namespace, name)).get("spec") or {}
        return bool(spec.get("holderIdentity") == lead.identity and spec.get("leaseTransitions") == epoch)

    return leads


@dataclass(frozen=True, slots=True)
class LedWrites:
    """Implements `WriteObserver`: no write without the lead. `on_lost` ends the process."""

    lead: Lead
    on_lost: Callable[[str], None]
    then: WriteObserver

    def before(self, write: Write) -> None:
        if not self.lead.holds():
            self.on_lost(f"not renewed in time, found out before: {write}")
        self.then.before(write)

    def after(self, write: Write, error: KubeError | None) -> None:
        self.then.after(write, error)


@dataclass(frozen=True, slots=True)
class LedVMs:
    """Implements `SystemVMs`: no operation begins without the lead. Looks change nothing and are free."""

    lead: Lead
    on_lost: Callable[[str], None]
    vms: SystemVMs

    async def observe(self, target: Target, payload: Payload | None, *, samples: int = 1) -> Observation:
        return await self.vms.observe(target, payload, samples=samples)

    async def patch(self, target: Target, payload: Payload, order: Order, progress: Progress) -> OperationReport:
        self._ask(target, order)
        return await self.vms.patch(target, payload, order, progress)

    async def take_back(self, target: Target, order: Order, operation_id: str, progress: Progress) -> OperationReport:
        self._ask(target, order)
        return await self.vms.take_back(target, order, operation_id, progress)

    async def back_up(self, target: Target, payload: Payload, order: Order) -> OperationReport:
        self._ask(target, order)
        return await self.vms.back_up(target, payload, order)

    async def report(self, target: Target, operation_id: str) -> OperationReport | None:
        return await self.vms.report(target, operation_id)

    def _ask(self, target: Target, order: Order) -> None:
        if not self.lead.holds():
            self.on_lost(f"not renewed in time, found out before operation {order.id} on {target.name}")
