"""Whose hosts are asked: those of the VMs that policies select for the release, by the endpoint's own way to them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from sysvm.api.endpoint import HostKeyPolicy
from sysvm.api.reasons import Reason
from sysvm.domain.cloud import CloudHost, Snapshot
from sysvm.engine.credentials import Accounts, NoAccount
from sysvm.engine.payload_machines import SelectedHosts
from sysvm.engine.stores import Stores
from sysvm.kube.cache import Store
from sysvm.kube.objects import Key, Object
from sysvm.patching.results import HostLogin, SSHAccount, Way

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
JUMP = HostLogin("root", 22, b"", "")
ACCOUNT = SSHAccount(
    user="root",
    port=3922,
    private_key=b"",
    host_key_policy=HostKeyPolicy.TRUST_ON_FIRST_USE,
    ways=(Way(frozenset({"kvm"}), JUMP), Way(frozenset(), None)),
)


def put(store: Store[Any], name: str, spec: Object, status: Object | None = None) -> None:
    metadata = {"name": name, "namespace": "ns", "uid": name, "resourceVersion": "7", "generation": 1}
    store.put({"metadata": metadata, "spec": spec, "status": status or {}})


def stores(**endpoint: object) -> Stores:
    found = Stores()
    ssh = {"keySecretRef": {"name": "s", "key": "k"}}
    listed = [{"name": "r-1-VM", "type": "router", "address": "169.254.0.1"}]
    put(found.endpoints, "prod", {"inventory": "Static", "systemVMs": listed, "ssh": ssh, **endpoint})
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


class _Accounts:
    def __init__(self, account: SSHAccount | NoAccount | None) -> None:
        self._account = account

    def get(self, endpoint: Key) -> SSHAccount | NoAccount | None:
        assert endpoint == Key("ns", "prod")
        return self._account


def selected(
    found: Stores, account: SSHAccount | NoAccount | None = ACCOUNT, snapshot: Snapshot | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    hosts = SelectedHosts(found, cast("Accounts", _Accounts(account)), lambda key: snapshot, lambda: NOW)
    template = found.templates.get(Key("ns", "release"))
    assert template is not None
    machines = hosts(template)
    assert all(machine.login is JUMP for machine in machines.asked)
    return {machine.name: machine.place.address for machine in machines.asked}, machines.left_out


def test_hosts_of_selected_vms_are_asked_and_those_without_a_way_are_named() -> None:
    assert selected(stores()) == (
        {"kvm-1": "kvm-1", "kvm-2": "kvm-2"},
        ("esx-1 (its endpoint has no route by way of it)",),
    )


def test_the_cloud_says_where_hosts_are_and_which_are_down() -> None:
    hosts = [
        CloudHost(id="1", name="kvm-1", address="10.0.0.1", zone_id="z"),
        CloudHost(id="2", name="kvm-2", address="10.0.0.2", zone_id="z", resource_state="Maintenance"),
    ]
    snapshot = Snapshot(
        taken_at=NOW, server_version="4.21.0.0", zones={}, hosts={host.id: host for host in hosts}, vms={},
        networks={}, vpcs={},
    )  # fmt: skip
    asked, left_out = selected(stores(), snapshot=snapshot)
    assert asked == {"kvm-1": "10.0.0.1"}
    assert "kvm-2 (Maintenance)" in left_out


@pytest.mark.parametrize("account", [None, NoAccount(Reason.CREDENTIALS_MISSING, "no Secret")])
def test_an_endpoint_that_nobody_can_log_in_for_has_no_hosts(account: NoAccount | None) -> None:
    assert selected(stores(), account) == ({}, ())


def test_a_suspended_endpoint_is_not_looked_at() -> None:
    assert selected(stores(suspend=True)) == ({}, ())
