"""The clouds behind the endpoints: one client and the last whole sweep of each, kept in memory.

Sweeps run in a bounded pool beside the reconcilers. The endpoint's reconciler says with which access its cloud is asked
(`follow`), starts a sweep when one is due, and is called again when it ended. A sweep that fails leaves the former
snapshot: what was true then is better than nothing, and nobody is forgotten by it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Protocol, Self

from sysvm.api.endpoint import Management
from sysvm.api.reasons import Reason
from sysvm.cloudstack.client import CloudStack, MayChange
from sysvm.cloudstack.errors import CloudStackError, clocks_differ
from sysvm.cloudstack.inventory import Sweep, one_vm, sweep
from sysvm.cloudstack.lifecycle import CloudJobs
from sysvm.cloudstack.preflight import Feature, Permissions, missing_permissions
from sysvm.cloudstack.templates import CloudImages
from sysvm.cloudstack.transport import Access
from sysvm.domain.beside import Beside, found_beside
from sysvm.domain.cloud import CloudHost, CloudVM, Snapshot
from sysvm.domain.inventory import Delta, delta_of
from sysvm.engine.ports import Clock
from sysvm.engine.work import Pool
from sysvm.kube.objects import Key
from sysvm.patching.errors import Unreachable

SWEEPS = 4
FIRST_RETRY = timedelta(seconds=10)
PERMISSIONS_FOR = timedelta(hours=1)
"""What the role may do is asked again this often, and whenever more is needed."""
EXPLAINED_AT_MOST = 1000
RETIRED_FOR = timedelta(minutes=11)
"""A client that is no longer used may still wait for an answer, the longest `api.timeout` long."""


@dataclass(frozen=True, slots=True)
class SweepFailed:
    """Why the last sweep brought nothing."""

    reason: Reason
    message: str
    transient: bool


@dataclass(frozen=True, slots=True)
class _Swept:
    """What a sweep brought."""

    outcome: Sweep | SweepFailed
    permissions: Permissions | None


@dataclass(slots=True)
class _Cloud:
    """One endpoint's."""

    access: Access
    management: Management
    client: CloudStack
    next_sweep: datetime
    snapshot: Snapshot | None = None
    failure: SweepFailed | None = None
    failures: int = 0
    not_allowed: tuple[str, ...] = ()
    clocks: str = ""
    beside: Beside = field(default_factory=Beside)
    features: frozenset[Feature] = frozenset()
    permissions: Permissions | None = None
    permissions_at: datetime | None = None
    explained: dict[str, None] = field(default_factory=dict)
    noted: dict[str, tuple[datetime, CloudVM]] = field(default_factory=dict)
    """By id: VMs that were listed alone since the last sweep began."""
    rival: Key | None = None


class Connect(Protocol):
    """Makes a client; it is opened and closed here."""

    def __call__(self, access: Access, may_change: MayChange | None) -> CloudStack: ...


def connect(access: Access, may_change: MayChange | None) -> CloudStack:
    return CloudStack(access, may_change=may_change)


class ManagedClouds:
    """By endpoint. `engine.ports.Clouds`. Use as a context manager."""

    def __init__(
        self, wake: Callable[[Key], None], clock: Clock, *, connect: Connect = connect, sweeps: int = SWEEPS
    ) -> None:
        self._clock = clock
        self._connect = connect
        self._clouds: dict[Key, _Cloud] = {}
        self._retired: list[tuple[datetime, CloudStack]] = []
        self._pool: Pool[None, _Swept] = Pool(sweeps, lambda key, end: wake(key))

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._pool.__aexit__(kind, error, trace)
        finally:
            for client in [*(cloud.client for cloud in self._clouds.values()), *(one for _, one in self._retired)]:
                await client.close()

    # Reading

    def snapshot(self, endpoint: Key) -> Snapshot | None:
        """The last whole sweep. None: there was none yet, or the cloud belongs to another endpoint."""
        cloud = self._clouds.get(endpoint)
        return cloud.snapshot if cloud is not None and cloud.rival is None else None

    def failure(self, endpoint: Key) -> SweepFailed | None:
        """Why the last sweep failed; None if it did not, or none has ended."""
        cloud = self._clouds.get(endpoint)
        return cloud.failure if cloud is not None else None

    def permissions(self, endpoint: Key) -> Permissions | None:
        """What the role may not do, of what is needed; None: not asked yet."""
        cloud = self._clouds.get(endpoint)
        return cloud.permissions if cloud is not None else None

    def not_allowed(self, endpoint: Key) -> tuple[str, ...]:
        """Lists that the last sweep had to do without."""
        cloud = self._clouds.get(endpoint)
        return cloud.not_allowed if cloud is not None else ()

    def clocks(self, endpoint: Key) -> str:
        """By how much the operator's clock differed from the server's at the last sweep, as a sentence; empty: little.
        Who is far behind has every change refused, and need not notice it by sweeps."""
        cloud = self._clouds.get(endpoint)
        return cloud.clocks if cloud is not None else ""

    def beside(self, endpoint: Key) -> Beside:
        """Routers left over or twice, as the last two sweeps found them."""
        cloud = self._clouds.get(endpoint)
        return cloud.beside if cloud is not None else Beside()

    def explained(self, endpoint: Key) -> Collection[str]:
        """Ids of VMs that a job of ours destroyed."""
        cloud = self._clouds.get(endpoint)
        return cloud.explained.keys() if cloud is not None else ()

    def rival(self, endpoint: Key) -> Key | None:
        """The endpoint whose cloud this one's is, too, and which keeps it."""
        cloud = self._clouds.get(endpoint)
        return cloud.rival if cloud is not None else None

    def jobs(self, endpoint: Key) -> CloudJobs | None:
        """The way to change it; None: there is none now."""
        cloud = self._clouds.get(endpoint)
        if cloud is None or cloud.rival is not None or cloud.snapshot is None:
            return None
        return CloudJobs(cloud.client, self._clock)

    def images(self, endpoint: Key) -> CloudImages | None:
        """The way to its templates; None: there is none now."""
        cloud = self._clouds.get(endpoint)
        if cloud is None or cloud.rival is not None or cloud.snapshot is None:
            return None
        return CloudImages(cloud.client, self._clock)

    async def host_of(self, endpoint: Key, vm_id: str, *, ask: bool) -> CloudHost | None:
        """The host that runs a VM, as the last sweep or (`ask`) the management server says. Raises `Unreachable`."""
        cloud = self._clouds.get(endpoint)
        snapshot = cloud.snapshot if cloud is not None else None
        vm = snapshot.vms.get(vm_id) if snapshot is not None else None
        if cloud is None or snapshot is None or vm is None:
            return None
        host_id = vm.host_id
        if ask:
            try:
                now = await one_vm(cloud.client, vm)
            except CloudStackError as error:
                raise Unreachable(
                    f"CloudStack was asked which host runs {vm.name}, and did not say: {error}", reason=error.reason
                ) from error
            host_id = now.host_id if now is not None else None
        return snapshot.hosts.get(host_id) if host_id is not None else None

    def seconds_to_next(self, endpoint: Key, now: datetime) -> float:
        """Until a sweep is due."""
        cloud = self._clouds.get(endpoint)
        return max(0.0, (cloud.next_sweep - now).total_seconds()) if cloud is not None else 0.0

    def state(self, endpoint: Key) -> object:
        """Another one, whenever anything that is told here has changed."""
        cloud = self._clouds.get(endpoint)
        if cloud is None:
            return None
        taken_at = cloud.snapshot.taken_at if cloud.snapshot is not None else None
        return taken_at, cloud.failure, cloud.rival, cloud.permissions_at, len(cloud.explained)

    def swept(self) -> Iterator[tuple[Key, Snapshot]]:
        """All that have a snapshot, rivals included."""
        for key, cloud in self._clouds.items():
            if cloud.snapshot is not None:
                yield key, cloud.snapshot

    # Changing what is known

    async def follow(self, endpoint: Key, access: Access, management: Management) -> None:
        """From now on the cloud is asked with this access. Another one means another client, and a sweep at once."""
        known = self._clouds.get(endpoint)
        if known is not None and known.access == access and known.management is management:
            await self._close_retired()
            return
        if known is not None:  # at once: before anything here can wait or fail
            known.client.give_up_power()
            known.management = Management.OBSERVE
        await self._close_retired()
        client = self._connect(access, MayChange.of(management))
        await client.open()
        cloud = _Cloud(access, management, client, self._clock())
        if known is not None:
            cloud.snapshot, cloud.explained, cloud.rival = known.snapshot, known.explained, known.rival
            if known.access.url != access.url:
                cloud.snapshot = None
            self._retire(endpoint, known.client)
        self._clouds[endpoint] = cloud

    async def forget(self, endpoint: Key) -> None:
        """The endpoint is gone, or nobody can ask its cloud."""
        cloud = self._clouds.pop(endpoint, None)
        if cloud is not None:
            cloud.client.give_up_power()
            self._retire(endpoint, cloud.client)
        await self._close_retired()

    def _retire(self, endpoint: Key, client: CloudStack) -> None:
        """Its sweep ends now: it may last longer than the client, and what it brings is of another server or user."""
        self._pool.drop(endpoint)
        self._retired.append((self._clock(), client))

    async def _close_retired(self) -> None:
        due = [each for each in self._retired if self._clock() - each[0] >= RETIRED_FOR]
        self._retired = [each for each in self._retired if each not in due]
        for _, client in due:
            await client.close()

    def explain(self, endpoint: Key, vm_ids: Collection[str]) -> None:
        """A job of ours destroyed these VMs: they may be forgotten with the next sweep, which is due now."""
        cloud = self._clouds.get(endpoint)
        if cloud is None:
            return
        cloud.explained |= dict.fromkeys(vm_ids)
        while len(cloud.explained) > EXPLAINED_AT_MOST:
            del cloud.explained[next(iter(cloud.explained))]
        cloud.next_sweep = self._clock()

    def note(self, endpoint: Key, vms: Iterable[CloudVM], at: datetime) -> None:
        """Of VMs that a call of ours changed: what the server says of them counts at once, not with the next sweep.

        Until then its books would still say what was before, and a VM would be patched for it once more. VMs that no
        sweep found yet are left to the next one.
        """
        cloud = self._clouds.get(endpoint)
        if cloud is None or cloud.snapshot is None:
            return
        cloud.noted |= {vm.id: (at, vm) for vm in vms}
        cloud.snapshot = _with_noted(cloud.snapshot, cloud.noted)

    def yield_to(self, endpoint: Key, rival: Key | None) -> None:
        """The cloud belongs to this other endpoint; None: to this one."""
        cloud = self._clouds.get(endpoint)
        if cloud is not None:
            cloud.rival = rival

    # Sweeping

    def sweep_now(self, endpoint: Key) -> None:
        """Somebody asks for a sweep."""
        cloud = self._clouds.get(endpoint)
        if cloud is not None:
            cloud.next_sweep = min(cloud.next_sweep, self._clock())

    def sweep_if_due(self, endpoint: Key, features: Collection[Feature], now: datetime) -> None:
        """Begins a sweep if one is due and none runs. `features`: what the role is to be able to do."""
        cloud = self._clouds.get(endpoint)
        if cloud is None or self._pool.get(endpoint) is not None:
            return
        wanted = frozenset(features)
        ask = cloud.permissions_at is None or now - cloud.permissions_at >= PERMISSIONS_FOR
        if now < cloud.next_sweep and wanted <= cloud.features:
            return
        ask = ask or wanted != cloud.features
        cloud.features = wanted
        self._pool.start(endpoint, "sweep", lambda _: self._sweep(cloud.client, wanted if ask else None))

    def take_note(self, endpoint: Key, interval: timedelta, now: datetime) -> Delta | None:
        """Takes what a sweep that ended has brought. None: no new snapshot."""
        handle = self._pool.get(endpoint)
        cloud = self._clouds.get(endpoint)
        if handle is None or not handle.done:
            return None
        self._pool.forget(endpoint)
        if cloud is None or handle.result is None:
            return None
        if handle.result.permissions is not None:
            cloud.permissions, cloud.permissions_at = handle.result.permissions, now
        outcome = handle.result.outcome
        if isinstance(outcome, SweepFailed):
            cloud.failure = outcome
            cloud.next_sweep = now + min(FIRST_RETRY * 2 ** min(cloud.failures, 8), max(interval, FIRST_RETRY))
            cloud.failures += 1
            return None
        cloud.noted = {id_: each for id_, each in cloud.noted.items() if each[0] > outcome.snapshot.taken_at}
        snapshot = _with_noted(outcome.snapshot, cloud.noted)
        delta = delta_of(cloud.snapshot, snapshot)
        cloud.beside = found_beside(cloud.snapshot, snapshot)
        cloud.clocks = clocks_differ(cloud.client.clock_ahead)
        cloud.failure, cloud.failures = None, 0
        cloud.snapshot, cloud.not_allowed = snapshot, outcome.not_allowed
        cloud.next_sweep = now + interval
        return delta

    async def _sweep(self, client: CloudStack, features: Collection[Feature] | None) -> _Swept:
        """`features`: ask for permissions first; None: they are known."""
        permissions: Permissions | None = None
        try:
            if features is not None:
                permissions = await missing_permissions(client, features)
            return _Swept(await sweep(client, self._clock), permissions)
        except CloudStackError as error:
            return _Swept(SweepFailed(error.reason, str(error), error.retryable), permissions)


def _with_noted(snapshot: Snapshot, noted: Mapping[str, tuple[datetime, CloudVM]]) -> Snapshot:
    """`taken_at` of a snapshot is when the sweep began: what was listed alone after that is newer."""
    newer = {id_: vm for id_, (at, vm) in noted.items() if at > snapshot.taken_at and id_ in snapshot.vms}
    return replace(snapshot, vms={**snapshot.vms, **newer}) if newer else snapshot


__all__ = ["Connect", "ManagedClouds", "SweepFailed", "connect"]
