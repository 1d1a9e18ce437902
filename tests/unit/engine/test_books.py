"""What is known of the management server's own payload, and of hosts that keep another than the release."""

from __future__ import annotations

from datetime import UTC, datetime

from tests.unit.domain import builders as b

from sysvm.api.observed import ObservedHostPayload
from sysvm.domain.cloud import CloudServer, Snapshot
from sysvm.engine.books import Books
from sysvm.engine.resources import SYSTEM_VM
from sysvm.engine.stores import Stores, endpoint_of
from sysvm.kube.objects import Key

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
RELEASE = b.release().model_copy(update={"scripts_revision": b.NEW})


def snapshot(*versions: str) -> Snapshot:
    servers = {v: CloudServer(id=v, name=f"ms-{n}", state="Up", version=v) for n, v in enumerate(versions, 1)}
    return Snapshot(
        taken_at=NOW, server_version="4.21.0.0", zones={}, hosts={}, vms={}, networks={}, vpcs={}, servers=servers
    )


def stores(**revisions: str) -> Stores:
    """VMs whose hosts were seen with these payloads."""
    found = Stores()
    for number, (host, revision) in enumerate(revisions.items()):
        kept = ObservedHostPayload(host=host, checksum="md5:" + "0" * 32, revision=revision)
        vm = b.system_vm(f"r-{number}-vm", observed=b.up_to_date().model_copy(update={"host_payload": kept})).to_dict()
        vm["metadata"] |= {"namespace": "ns", "resourceVersion": "1", "uid": f"u{number}"}
        found.system_vms.put({"apiVersion": SYSTEM_VM.api_version, "kind": "SystemVM", **vm})
    return found


def endpoint(found: Stores) -> Key:
    return endpoint_of(found.system_vms.values()[0])


def test_hosts_that_keep_another_payload_are_named_and_unseen_ones_are_not() -> None:
    found = stores(kvm1=b.NEW, kvm2="0" * 40)
    books = Books(found, lambda key: snapshot("4.21.0.0"))
    assert books.other_payloads(endpoint(found), RELEASE, NOW) == ("kvm2",)
    assert books.other_payloads(endpoint(found), None, NOW) == ()
    assert Books(found, lambda key: None).other_payloads(endpoint(found), RELEASE, NOW) == ()


def test_servers_of_several_releases_have_no_payload_that_is_known() -> None:
    found = stores(kvm1=b.NEW)
    several = snapshot("4.21.0.0", "4.20.2.0")
    told = Books(found, lambda key: several).server_payload(endpoint(found), several, b.template(), RELEASE, NOW)
    assert (told.checksum, told.why) == (
        None, "the management servers run several releases: ms-1 4.21.0.0, ms-2 4.20.2.0",
    )  # fmt: skip
