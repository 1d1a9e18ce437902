"""What the management server's books say of each VM, put beside what was seen on it.

A function of three things that change at different times: the last sweep of the cloud, the release that the VM's policy
wants, and the payloads that looks found on hypervisor hosts. None of it is asked for here.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sysvm.api.observed import ApiPatchCall, ObservedHostPayload, ObservedManagement
from sysvm.api.systemvm import SystemVM, SystemVMStatus
from sysvm.api.template import SystemVMTemplate
from sysvm.domain.cloud import CloudVM, Snapshot, several_releases
from sysvm.domain.facts import Release
from sysvm.domain.gate import (
    PayloadOrigin,
    Served,
    ServerPayload,
    Witness,
    api_patch,
    checksum_of,
    management_of,
    routers_in,
    server_payload,
)
from sysvm.engine.ports import SnapshotOf
from sysvm.engine.stores import Stores, endpoint_of
from sysvm.kube.objects import Key

REFRESH = timedelta(hours=1)
"""A time alone is written down only when the one written is older."""
WITNESSES_FOR = timedelta(seconds=30)
"""Looking through all VMs for the payloads of their hosts is worth it so often, not for every VM."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Payloads of an endpoint's hosts, as looks found them."""

    at: datetime
    taken_at: datetime
    payloads: tuple[ObservedHostPayload, ...]


class Books:
    """Of all endpoints."""

    def __init__(self, stores: Stores, snapshot_of: SnapshotOf) -> None:
        self._stores = stores
        self._snapshot_of = snapshot_of
        self._seen: dict[Key, _Seen] = {}
        self._served: dict[Key, tuple[Snapshot, Served]] = {}

    def server_payload(
        self,
        endpoint: Key,
        snapshot: Snapshot,
        template: SystemVMTemplate | None,
        release: Release | None,
        now: datetime,
    ) -> ServerPayload:
        """What is known of the management server's own scripts."""
        if template is None or release is None:
            return ServerPayload(None, "no release is declared for it")
        if (differing := several_releases(snapshot.servers.values())) is not None:
            return ServerPayload(None, differing)
        versions = {host.name: host.version for host in snapshot.hosts.values()}
        witnesses = (
            Witness(
                host=found.host,
                version=versions.get(found.host),
                checksum=checksum_of(found, release) or "",
                holds_release=found.revision is not None and found.revision == release.scripts_revision,
            )
            for found in self._hosts(endpoint, snapshot, now)
        )
        return server_payload(
            origin_of(template), release.signature.value, witnesses, server_version=snapshot.server_version
        )

    def other_payloads(self, endpoint: Key, release: Release | None, now: datetime) -> tuple[str, ...]:
        """Hosts that were seen with another payload than the release. One that nobody has seen is not named."""
        snapshot = self._snapshot_of(endpoint)
        if snapshot is None or release is None or release.scripts_revision is None:
            return ()
        seen = self._hosts(endpoint, snapshot, now)
        return tuple(found.host for found in seen if found.revision != release.scripts_revision)

    def noted(
        self,
        vm: SystemVM,
        status: SystemVMStatus,
        template: SystemVMTemplate | None,
        release: Release | None,
        now: datetime,
    ) -> SystemVMStatus:
        """The status with what the books say; without a sweep since the process began, what is written stands."""
        endpoint = endpoint_of(vm)
        snapshot = self._snapshot_of(endpoint)
        observed, identity = status.observed, status.identity
        if snapshot is None or observed is None or identity is None or identity.id is None:
            return status
        found = snapshot.vms.get(identity.id)
        if found is None:
            return status
        server = self.server_payload(endpoint, snapshot, template, release, now)
        told = _kept(
            observed.management,
            management_of(found, snapshot, server, self._routers(endpoint, snapshot), at=snapshot.taken_at),
        )
        if told is observed.management:
            return status
        return status.model_copy(update={"observed": observed.model_copy(update={"management": told})})

    def api_patch(self, endpoint: Key, vm: CloudVM) -> ApiPatchCall | None:
        """The call by which CloudStack itself would patch the VM; None: there is none, or the cloud is not known."""
        snapshot = self._snapshot_of(endpoint)
        found = api_patch(vm, snapshot, self._routers(endpoint, snapshot)) if snapshot is not None else None
        return found if isinstance(found, ApiPatchCall) else None

    def _routers(self, endpoint: Key, snapshot: Snapshot) -> Served:
        known = self._served.get(endpoint)
        if known is None or known[0] is not snapshot:
            known = snapshot, routers_in(snapshot)
            self._served[endpoint] = known
        return known[1]

    def _hosts(self, endpoint: Key, snapshot: Snapshot, now: datetime) -> tuple[ObservedHostPayload, ...]:
        known = self._seen.get(endpoint)
        if known is None or known.taken_at != snapshot.taken_at or now - known.at >= WITNESSES_FOR:
            known = _Seen(now, snapshot.taken_at, self._look_through(endpoint))
            self._seen[endpoint] = known
        return known.payloads

    def _look_through(self, endpoint: Key) -> tuple[ObservedHostPayload, ...]:
        """By the newest look at a VM of each host: a host that was upgraded is another witness from then on."""
        newest: dict[str, tuple[datetime, ObservedHostPayload]] = {}
        for vm in self._stores.vms_of(endpoint):
            observed = vm.status.observed
            found = observed.host_payload if observed is not None else None
            if observed is None or found is None:
                continue
            if found.host not in newest or newest[found.host][0] < observed.at:
                newest[found.host] = observed.at, found
        return tuple(found for _, (_, found) in sorted(newest.items()))


def origin_of(template: SystemVMTemplate) -> PayloadOrigin:
    payload = template.spec.payload
    if payload.management_server is not None:
        return PayloadOrigin.MANAGEMENT_SERVER
    if payload.host is not None:
        return PayloadOrigin.HOST
    return PayloadOrigin.PACKAGE if payload.package is not None else PayloadOrigin.FILES


def _kept(old: ObservedManagement | None, new: ObservedManagement) -> ObservedManagement:
    """The old one, if nothing but the time is new and that is not old."""
    if old is None or new.at - old.at >= REFRESH:
        return new
    return old if old == new.model_copy(update={"at": old.at}) else new
