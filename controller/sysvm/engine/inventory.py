"""The VMs of an endpoint, whoever names them: a person in its spec, or CloudStack in the last sweep.

Everything that has to do with one VM asks the roster where it is. What no source names has no place: it is neither
looked at nor changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from sysvm.api.base import PREDECESSOR_ANNOTATION
from sysvm.api.endpoint import CloudStackEndpoint, Inventory, StaticSystemVM
from sysvm.api.names import system_vm_name
from sysvm.api.systemvm import Identity, SystemVM
from sysvm.domain.cloud import CloudHost, CloudVM, Snapshot
from sysvm.domain.inventory import MISSING, SWEEPS_TO_FORGET, Verdict, identity_of, objects_of
from sysvm.engine.stores import Stores, endpoint_of, key_of
from sysvm.kube.objects import Key
from sysvm.patching.results import HostPlace, Locate, SSHAccount, Target, Through


class Whereabouts(Protocol):
    """What is known of the clouds (`cloud.ManagedClouds`)."""

    def snapshot(self, endpoint: Key) -> Snapshot | None: ...

    async def host_of(self, endpoint: Key, vm_id: str, *, ask: bool) -> CloudHost | None:
        """`ask`: the management server, now; else the last sweep may know it. Raises `PatchingError`."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """One VM: who it is, and how the host that runs it is found."""

    identity: Identity
    locate: Locate = field(compare=False)
    in_cloud: CloudVM | None = None
    """As the last sweep had it."""


@dataclass(frozen=True, slots=True)
class _Listing:
    """Object name -> VM, of one state of the source."""

    source: object
    static: Mapping[str, StaticSystemVM] = field(default_factory=dict)
    cloud: Mapping[str, CloudVM] = field(default_factory=dict)


class Roster:
    """Of all endpoints."""

    def __init__(self, stores: Stores, clouds: Whereabouts) -> None:
        self._stores = stores
        self._clouds = clouds
        self._listings: dict[Key, _Listing] = {}
        self._missing: dict[Key, Mapping[str, str]] = {}
        self._gone: dict[Key, frozenset[str]] = {}

    def names(self, endpoint: CloudStackEndpoint) -> frozenset[str] | None:
        """Names of the objects of all its VMs; None: nobody knows them yet."""
        if endpoint.spec.inventory is Inventory.STATIC:
            return frozenset(self._listing(endpoint).static)
        if self._clouds.snapshot(key_of(endpoint)) is None:
            return None
        return frozenset(self._listing(endpoint).cloud)

    def place_of(self, vm: SystemVM, *, to_change: bool = False) -> Place | None:
        """None: its endpoint is gone, or does not name it now. `to_change`: the way there is for a change."""
        endpoint = self._stores.endpoints.get(endpoint_of(vm))
        if endpoint is None:
            return None
        listing = self._listing(endpoint)
        entry = listing.static.get(vm.metadata.name)
        if entry is not None:
            return Place(_listed_identity(entry), _Listed(entry.host))
        found = listing.cloud.get(vm.metadata.name)
        before = vm.status.identity
        if found is None or (before is not None and before.id not in (None, found.id)):
            return None
        predecessor = vm.metadata.annotations.get(PREDECESSOR_ANNOTATION)
        locate = _Swept(self._clouds, key_of(endpoint), found.id, to_change)
        return Place(identity_of(found, predecessor), locate, found)

    def why_missing(self, vm: SystemVM) -> str | None:
        """Why the object is there although its VM was not found, as a sentence; None: nothing is known of that."""
        return self._missing.get(endpoint_of(vm), {}).get(vm.metadata.name)

    def is_gone(self, vm: SystemVM) -> bool:
        """So many sweeps did not find it that nothing more can be done to it."""
        return vm.metadata.name in self._gone.get(endpoint_of(vm), ())

    def note_missing(self, endpoint: Key, verdict: Verdict) -> list[Key]:
        """What was kept although its VM was not found. Returns the VMs for which that is news."""
        before, missing = self._missing.get(endpoint, {}), verdict.missing
        self._missing[endpoint] = missing
        self._gone[endpoint] = frozenset(n for n, count in verdict.missed.items() if count >= SWEEPS_TO_FORGET)
        names = {name for name in before.keys() | missing.keys() if before.get(name) != missing.get(name)}
        return [Key(endpoint.namespace, name) for name in sorted(names)]

    def forget(self, endpoint: Key) -> None:
        self._listings.pop(endpoint, None)
        self._missing.pop(endpoint, None)
        self._gone.pop(endpoint, None)

    def _listing(self, endpoint: CloudStackEndpoint) -> _Listing:
        """Made once for each state of the source, because every look at every VM asks."""
        key = key_of(endpoint)
        known = self._listings.get(key)
        snapshot: Snapshot | None = None
        source: object = endpoint.spec
        if endpoint.spec.inventory is Inventory.CLOUDSTACK:
            source = snapshot = self._clouds.snapshot(key)
        if known is not None and known.source is source:
            return known
        if endpoint.spec.inventory is Inventory.STATIC:
            made = _Listing(source, static=listed(endpoint))
        else:
            made = _Listing(source, cloud=objects_of(key.name, snapshot)[0] if snapshot is not None else {})
        self._listings[key] = made
        return made


def listed(endpoint: CloudStackEndpoint) -> dict[str, StaticSystemVM]:
    """Name of the SystemVM object -> entry. Of two with one name the first counts; `doubles` names the others."""
    found: dict[str, StaticSystemVM] = {}
    for entry in endpoint.spec.system_vms:
        found.setdefault(system_vm_name(endpoint.metadata.name, entry.name), entry)
    return found


def doubles(endpoint: CloudStackEndpoint) -> list[str]:
    """Entries whose object name another entry already has: they differ in upper and lower case only."""
    seen: set[str] = set()
    found: list[str] = []
    for entry in endpoint.spec.system_vms:
        name = system_vm_name(endpoint.metadata.name, entry.name)
        if name in seen:
            found.append(entry.name)
        seen.add(name)
    return found


def _listed_identity(entry: StaticSystemVM) -> Identity:
    return Identity(
        name=entry.name,
        type=entry.type,
        zone=entry.zone,
        host=entry.host,
        group=entry.group,
        hypervisor=entry.hypervisor,
        account=entry.account,
        network=entry.network,
        address=entry.address,
    )


def missing_identity(identity: Identity) -> Identity:
    """Of a VM that the last sweep did not find."""
    return identity if identity.state == MISSING else identity.model_copy(update={"state": MISSING})


def target_of(vm: SystemVM, place: Place, account: SSHAccount) -> Target | None:
    """Where and how to reach it, and which host key it must show; None: it has no address."""
    identity = place.identity
    if identity.address is None:
        return None
    pinned = vm.status.host_key
    jump = account.jump_for(identity.hypervisor)
    return Target(
        name=identity.name,
        type=identity.type,
        address=identity.address,
        account=account,
        pinned_host_key=pinned.public_key if pinned is not None else None,
        accepted_fingerprint=vm.spec.accept_host_key,
        through=Through(jump, place.locate, identity.hypervisor) if jump is not None else None,
    )


@dataclass(frozen=True, slots=True)
class _Listed:
    """Where a VM of a Static inventory runs: a person keeps the list, and nobody else can be asked."""

    host: str | None

    async def __call__(self, *, again: bool) -> HostPlace | None:
        return HostPlace(self.host, self.host) if self.host is not None else None


@dataclass(frozen=True, slots=True)
class _Swept:
    """Where CloudStack runs a VM. A look begins with what the last sweep knows; a change, and whoever was led nowhere,
    asks the management server: VMs migrate."""

    clouds: Whereabouts
    endpoint: Key
    vm_id: str
    to_change: bool = False

    async def __call__(self, *, again: bool) -> HostPlace | None:
        found = await self.clouds.host_of(self.endpoint, self.vm_id, ask=again or self.to_change)
        return HostPlace(found.name, found.address) if found is not None and found.address is not None else None
