"""What the engine needs from the outside, as protocols: the VM layer, and the telemetry that `operator` wires in.

Tests replace them; the engine never learns which implementation it talks to.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import datetime
from typing import Protocol

from sysvm.api.images import Image
from sysvm.api.rollout import GroupOperation
from sysvm.domain.calls import Call, JobTold, Looked, NoAnswer, NotMade, NotTold, Refused, Submitted
from sysvm.domain.cloud import CloudVM, CloudZone, Snapshot
from sysvm.domain.templates import Change, CloudTemplates
from sysvm.kube.events import EventType
from sysvm.kube.objects import Key, ObjectRef
from sysvm.patching.payload import Payload
from sysvm.patching.results import Observation, OperationReport, Order, Target

Progress = Callable[[OperationReport], None]
"""Called in the event loop with every new state of an operation; must not block."""


class SystemVMs(Protocol):
    """Looks at VMs and patches them. Implemented by `sysvm.patching.live.LivePatcher`."""

    async def observe(self, target: Target, payload: Payload | None, *, samples: int = 1) -> Observation:
        """One look; changes nothing on the VM but what it remembers of digests. With a payload every file is compared.

        `samples`: how often the role of a router of a pair is looked at, 5 s apart. Raises `PatchingError`.
        """
        ...

    async def patch(self, target: Target, payload: Payload, order: Order, progress: Progress) -> OperationReport:
        """Carries an order out, or attaches to it if the VM already knows its id: also after a restart of the operator.

        Returns when the VM has ended it, with a final phase: Committed, RolledBack, Abandoned (nothing was changed)
        or Inconsistent. Raises `Refused` if nothing was begun, `Unreachable` if contact was lost and not regained
        within the order's time: then the VM ends it alone and a later call with the same order learns how.
        """
        ...

    async def take_back(self, target: Target, order: Order, operation_id: str, progress: Progress) -> OperationReport:
        """Brings the VM to what it was before an operation that was committed, or watches it on its way there.

        Returns with the phase RolledBack, or Inconsistent. Raises `Refused` if it did not begin and `Unreachable` like
        `patch`.
        """
        ...

    async def back_up(self, target: Target, payload: Payload, order: Order) -> OperationReport:
        """Keeps on the VM, as operation `order.id`, what CloudStack's own live patch to this payload would change.

        Returns with the phase Committed if there is a backup now, or was before: `take_back` goes back to it. Raises
        `Refused` if none could be made, `Unreachable` if the VM could not be asked; the VM is as it was.
        """
        ...

    async def report(self, target: Target, operation_id: str) -> OperationReport | None:
        """What the VM knows of an operation; None if it never heard of it."""
        ...


SnapshotOf = Callable[[Key], Snapshot | None]
"""The last whole sweep of an endpoint's cloud; None of a Static inventory, and before the first one."""


def no_cloud(endpoint: Key) -> Snapshot | None:
    """For a process without CloudStack inventories."""
    return None


class CloudJobs(Protocol):
    """Changes by the management server of one endpoint. Implemented by `sysvm.cloudstack.lifecycle.CloudJobs`.

    Nothing is raised for what the server says or does not say: every answer is an event.
    """

    async def submit(self, call: Call) -> Submitted | Refused | NoAnswer | NotMade:
        """Makes the call, once."""
        ...

    async def job(self, job_id: str) -> JobTold | NotTold: ...

    async def look(self, operation: GroupOperation) -> Looked | NotTold:
        """The group of the operation with all that may be at work on it, listed now."""
        ...


class CloudImages(Protocol):
    """The system VM templates of one cloud. Implemented by `sysvm.cloudstack.templates.CloudImages`; raises the classes
    of `sysvm.cloudstack.errors`."""

    async def read(self, snapshot: Snapshot, names: Collection[str]) -> CloudTemplates:
        """All of every zone, those of these names whatever their type is."""
        ...

    async def register(self, image: Image, version: str, zones: Sequence[CloudZone]) -> None:
        """As ROUTING, in these zones. `version`: of the release."""
        ...

    async def carry_out(self, changes: Sequence[Change]) -> None:
        """A promotion."""
        ...


class Clouds(Protocol):
    """The management servers behind endpoints, as far as they may be asked for changes."""

    def jobs(self, endpoint: Key) -> CloudJobs | None:
        """None: the endpoint has no management server, or cannot be used now."""
        ...

    def explain(self, endpoint: Key, vm_ids: Collection[str]) -> None:
        """A call of ours replaced these VMs: they are to be looked for again soon, and not missed."""
        ...

    def note(self, endpoint: Key, vms: Iterable[CloudVM], at: datetime) -> None:
        """These VMs were listed alone, after a call of ours: newer than the last sweep."""
        ...

    def images(self, endpoint: Key) -> CloudImages | None:
        """None: the endpoint has no management server, or cannot be used now."""
        ...


class EngineObserver(Protocol):
    """Counts what the engine did, for metrics. Called on the loop; must not raise or wait."""

    def looked(self, *, result: str, seconds: float) -> None: ...

    def operated(self, *, method: str, result: str, seconds: float, bytes_sent: int) -> None: ...


class Recorder(Protocol):
    """Kubernetes Events about an object (`kube.events.EventRecorder`). Never waits and never fails a reconcile."""

    def event(
        self,
        about: ObjectRef,
        type_: EventType,
        reason: str,
        action: str,
        note: str,
        *,
        related: ObjectRef | None = None,
    ) -> None: ...


class Clock(Protocol):
    """The moment, with a zone."""

    def __call__(self) -> datetime: ...
