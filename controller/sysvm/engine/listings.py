"""The VMs of an endpoint as its policies see them, and whether these are all."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.domain.cloud import Snapshot
from sysvm.domain.facts import VMFacts, facts_of
from sysvm.domain.gate import as_swept
from sysvm.domain.no_vms import Listing, listing_of
from sysvm.domain.running import in_pairs
from sysvm.engine.inventory import Roster
from sysvm.engine.ports import SnapshotOf, no_cloud
from sysvm.engine.stores import Stores, endpoint_of, key_of
from sysvm.kube.objects import Key


def swept_facts(stores: Stores, endpoint: Key, snapshot: Snapshot | None, now: datetime) -> Iterator[VMFacts]:
    """All VMs that are known of an endpoint, which may be gone itself, with what its last sweep found."""
    found = stores.endpoints.get(endpoint)
    scan = found.spec.scan if found is not None else None
    return as_swept((facts_of(vm, now=now, scan=scan) for vm in stores.vms_of(endpoint)), snapshot)


class Listings:
    """Of all endpoints."""

    def __init__(self, stores: Stores, roster: Roster, snapshot_of: SnapshotOf = no_cloud) -> None:
        self._stores = stores
        self._roster = roster
        self._snapshot_of = snapshot_of

    def facts(self, endpoint: CloudStackEndpoint, now: datetime) -> list[VMFacts]:
        key = key_of(endpoint)
        return list(in_pairs(swept_facts(self._stores, key, self._snapshot_of(key), now)))

    def listing(self, endpoint: CloudStackEndpoint, facts: Sequence[VMFacts], now: datetime) -> Listing:
        """`facts`: of all its VMs, at that moment."""
        snapshot = self._snapshot_of(key_of(endpoint))
        return listing_of(endpoint, facts, snapshot, complete=not self.is_incomplete(endpoint), now=now)

    def is_incomplete(self, endpoint: CloudStackEndpoint) -> bool:
        """A VM that the endpoint lists cannot be selected yet: nobody knows its type. Another's VM does not count."""
        key = key_of(endpoint)
        names = self._roster.names(endpoint)
        if names is None:
            return True
        known = (self._stores.system_vms.get(Key(key.namespace, name)) for name in names)
        return any(vm is None or (vm.status.identity is None and endpoint_of(vm) == key) for vm in known)
