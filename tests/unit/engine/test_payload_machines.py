"""Whose hosts are asked: those of the VMs that policies select for the release, by the endpoint's own way to them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from tests.unit.patching import made_packages as made

from sysvm.api.endpoint import HostKeyPolicy
from sysvm.api.reasons import Reason
from sysvm.domain.cloud import CloudHost, Snapshot
from sysvm.engine.credentials import Accounts, NoAccount
from sysvm.engine.payload_fetch import Machines, PayloadFetcher
from sysvm.engine.payload_machines import SelectedHosts
from sysvm.engine.stores import Stores
from sysvm.kube.cache import Store
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Key, Object
from sysvm.patching.errors import HostUnreachable, PayloadError
from sysvm.patching.host_source import Machine, MachineSource
from sysvm.patching.results import HostFile, HostFiles, HostLogin, SSHAccount, Way
from sysvm.patching.sources import PayloadSources

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
JUMP = HostLogin("root", 22, b"", "")
ACCOUNT = SSHAccount(
    user="root",
    port=3922,
    private_key=b"",
    host_key_policy=HostKeyPolicy.TRUST_ON_FIRST_USE,
    ways=(Way(frozenset({"kvm"}), JUMP), Way(frozenset(), None)),
)
SSH = {"keySecretRef": {"name": "s", "key": "k"}}
LISTED = [{"name": "r-1-VM", "type": "router", "address": "169.254.0.1"}]


def put(store: Store[Any], name: str, spec: Object, status: Object | None = None) -> None:
    metadata = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "7", "generation": 1}
    store.put({"metadata": metadata, "spec": spec, "status": status or {}})


def stores(**endpoint: object) -> Stores:
    found = Stores()
    put(found.endpoints, "prod", {"inventory": "Static", "systemVMs": LISTED, "ssh": SSH, **endpoint})
    put(found.templates, "release", {"version": "4.20.2", "payload": {"host": {}}})
    put(
        found.policies,
        "routers",
        {"endpointRef": {"name": "prod"}, "templateRef": {"name": "release"}, "selector": {"types": ["router"]}},
    )
    for name, type_, host, hypervisor in (
        ("r-1-VM", "router", "kvm-1", "KVM"),
        ("r-2-VM", "router", "kvm-2", "KVM"),
        ("r-3-VM", "router", "kvm-1", "KVM"),
        ("r-4-VM", "router", "esx-1", "VMware"),
        ("s-5-VM", "secstorage", "kvm-9", "KVM"),
    ):
        identity = {"name": name, "type": type_, "host": host, "hypervisor": hypervisor, "address": "169.254.0.1"}
        put(found.system_vms, f"prod-{name.lower()}", {"endpointRef": {"name": "prod"}}, {"identity": identity})
    return found


def another_cloud(found: Stores) -> Stores:
    """An endpoint `edge` with one router, on a host that has a name of the first cloud's."""
    put(found.endpoints, "edge", {"inventory": "Static", "systemVMs": LISTED, "ssh": SSH})
    put(
        found.policies,
        "edge-routers",
        {"endpointRef": {"name": "edge"}, "templateRef": {"name": "release"}, "selector": {"types": ["router"]}},
    )
    identity = {"name": "r-1-VM", "type": "router", "host": "kvm-1", "hypervisor": "KVM", "address": "169.254.0.1"}
    put(found.system_vms, "edge-r-1-vm", {"endpointRef": {"name": "edge"}}, {"identity": identity})
    return found


class _Accounts:
    def __init__(self, account: SSHAccount | NoAccount | None) -> None:
        self._account = account

    def get(self, endpoint: Key) -> SSHAccount | NoAccount | None:
        return self._account


def snapshot(*hosts: CloudHost) -> Snapshot:
    return Snapshot(
        taken_at=NOW, server_version="4.21.0.0", zones={}, hosts={host.id: host for host in hosts}, vms={},
        networks={}, vpcs={},
    )  # fmt: skip


def host(name: str, address: str, resource_state: str = "Enabled") -> CloudHost:
    return CloudHost(id=name, name=name, address=address, zone_id="z", resource_state=resource_state)


def machines(found: Stores, account: SSHAccount | NoAccount | None = ACCOUNT, **snapshots: Snapshot) -> Machines:
    """`snapshots`: by endpoint."""
    accounts = cast("Accounts", _Accounts(account))
    template = found.templates.get(Key("ns", "release"))
    assert template is not None
    return SelectedHosts(found, accounts, lambda key: snapshots.get(key.name), lambda: NOW)(template)


def selected(
    stored: Stores, account: SSHAccount | NoAccount | None = ACCOUNT, **snapshots: Snapshot
) -> tuple[dict[str, str], tuple[str, ...]]:
    found = machines(stored, account, **snapshots)
    assert all(machine.login is JUMP for machine in found.asked)
    return {machine.name: machine.place.address for machine in found.asked}, found.left_out


def test_hosts_of_selected_vms_are_asked_and_those_without_a_way_are_named() -> None:
    assert selected(stores()) == (
        {"kvm-1": "kvm-1", "kvm-2": "kvm-2"},
        ("esx-1 (its endpoint has no route by way of it)",),
    )


def test_the_cloud_says_where_hosts_are_and_which_are_down() -> None:
    cloud = snapshot(host("kvm-1", "10.0.0.1"), host("kvm-2", "10.0.0.2", "Maintenance"))
    asked, left_out = selected(stores(), prod=cloud)
    assert asked == {"kvm-1": "10.0.0.1"}
    assert "kvm-2 (Maintenance)" in left_out


def test_hosts_of_one_name_in_two_clouds_are_both_asked_and_told_apart() -> None:
    prod, edge = snapshot(host("kvm-1", "10.0.0.1"), host("kvm-2", "10.0.0.2")), snapshot(host("kvm-1", "10.9.9.9"))
    asked, _ = selected(another_cloud(stores()), prod=prod, edge=edge)
    assert asked == {"edge/kvm-1": "10.9.9.9", "prod/kvm-1": "10.0.0.1", "kvm-2": "10.0.0.2"}


def test_a_host_that_is_left_out_is_told_apart_from_one_of_its_name_that_is_asked() -> None:
    prod = snapshot(host("kvm-1", "10.0.0.1", "Maintenance"), host("kvm-2", "10.0.0.2"))
    asked, left_out = selected(another_cloud(stores()), prod=prod, edge=snapshot(host("kvm-1", "10.9.9.9")))
    assert asked == {"edge/kvm-1": "10.9.9.9", "kvm-2": "10.0.0.2"}
    assert "prod/kvm-1 (Maintenance)" in left_out


def test_a_host_that_two_endpoints_reach_in_the_same_way_is_asked_once() -> None:
    assert selected(another_cloud(stores()))[0] == {"kvm-1": "kvm-1", "kvm-2": "kvm-2"}


@dataclass
class _Rack:
    """What lies at an address; nothing at all if it is down."""

    holds: dict[str, bytes]

    async def files(self, machine: Machine) -> HostFiles:
        if machine.place.address not in self.holds:
            raise HostUnreachable(f"hypervisor host {machine.place.told(22)} did not answer")
        scripts = self.holds[machine.place.address]
        return HostFiles(HostFile("cloud-scripts.tgz", len(scripts), hashlib.sha256(scripts).hexdigest()), None, {})

    async def read(self, machine: Machine, file: HostFile) -> AsyncIterator[bytes]:
        yield self.holds[machine.place.address]


@pytest.mark.parametrize(
    ("edge", "told"),
    [
        (made.scripts(b"# other"), "on edge/kvm-1"),
        (None, "1 of 3 machines cannot be asked what they hold: edge/kvm-1: hypervisor host kvm-1 (10.9.9.9 port 22)"),
    ],
)
async def test_what_another_clouds_host_of_the_same_name_holds_counts(
    tmp_path: Path, edge: bytes | None, told: str
) -> None:
    found = another_cloud(stores())
    hosts = machines(
        found,
        prod=snapshot(host("kvm-1", "10.0.0.1"), host("kvm-2", "10.0.0.2")),
        edge=snapshot(host("kvm-1", "10.9.9.9")),
    )
    rack = _Rack({"10.0.0.1": made.scripts(), "10.0.0.2": made.scripts()} | ({"10.9.9.9": edge} if edge else {}))
    source = MachineSource(rack, PayloadSources(cache=tmp_path, mounted=tmp_path))
    fetcher = PayloadFetcher(cast("Cluster", None), source.sources, source, lambda: NOW)
    template = found.templates.get(Key("ns", "release"))
    assert template is not None
    with pytest.raises(PayloadError) as refused:
        await fetcher.fetch(template, hosts)
    assert told in str(refused.value)
    rack.holds["10.9.9.9"] = made.scripts()
    fetched = await fetcher.fetch(template, hosts)
    assert fetched.pinned is not None
    assert (fetched.pinned.machines, fetched.pinned.from_) == (3, ("edge/kvm-1", "kvm-2", "prod/kvm-1"))


@pytest.mark.parametrize("account", [None, NoAccount(Reason.CREDENTIALS_MISSING, "no Secret")])
def test_an_endpoint_that_nobody_can_log_in_for_has_no_hosts(account: NoAccount | None) -> None:
    assert selected(stores(), account) == ({}, ())


def test_a_suspended_endpoint_is_not_looked_at() -> None:
    assert selected(stores(suspend=True)) == ({}, ())
