"""Machines that hold a payload: all that run VMs are asked, and one voice against the others stops everything."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from sysvm.api.endpoint import SystemVMType
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import Identity
from sysvm.domain.cloud import CloudHost, Snapshot
from sysvm.domain.payload_hosts import Build, chosen, disagreement, hosts_of, named, warnings_of
from sysvm.domain.source_status import Problem

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64
ZIP = "sha256:" + "c" * 64


def vm(name: str, host: str | None, hypervisor: str = "KVM") -> Identity:
    return Identity(name=name, type=SystemVMType.ROUTER, host=host, hypervisor=hypervisor, address="169.254.0.2")


def snapshot(*hosts: CloudHost) -> Snapshot:
    return Snapshot(
        taken_at=datetime(2026, 11, 1, tzinfo=UTC),
        server_version="4.21.0.0",
        zones={},
        hosts={host.id: host for host in hosts},
        vms={},
        networks={},
        vpcs={},
    )


def host(name: str, state: str = "Up", resource_state: str = "Enabled") -> CloudHost:
    return CloudHost(
        id=f"id-{name}",
        name=name,
        address=f"10.0.0.{len(name)}",
        zone_id="z",
        state=state,
        resource_state=resource_state,
    )


def test_every_host_that_runs_a_selected_vm_is_asked_once() -> None:
    vms = [vm("r-2-VM", "kvm-b"), vm("r-1-VM", "kvm-a"), vm("r-3-VM", "kvm-a"), vm("r-4-VM", None)]
    found = hosts_of(vms, snapshot(host("kvm-a"), host("kvm-b"), host("kvm-c")))
    assert [each.name for each in found.asked] == ["kvm-a", "kvm-b"]
    assert [each.address for each in found.asked] == ["10.0.0.5", "10.0.0.5"]
    assert not found.left_out


@pytest.mark.parametrize(
    ("state", "resource_state", "says"),
    [
        ("Down", "Enabled", "Down"),
        ("Disconnected", "Enabled", "Disconnected"),
        ("Up", "Maintenance", "Maintenance"),
        ("Up", "PrepareForMaintenance", "PrepareForMaintenance"),
    ],
)
def test_a_host_that_is_down_or_in_maintenance_is_named_and_does_not_count(
    state: str, resource_state: str, says: str
) -> None:
    found = hosts_of(
        [vm("r-1-VM", "kvm-a"), vm("r-2-VM", "kvm-b")], snapshot(host("kvm-a", state, resource_state), host("kvm-b"))
    )
    assert [each.name for each in found.asked] == ["kvm-b"]
    assert found.left_out == (("kvm-a", says),)


def test_a_disabled_host_still_runs_vms_and_is_asked() -> None:
    assert hosts_of([vm("r-1-VM", "kvm-a")], snapshot(host("kvm-a", "Up", "Disabled"))).asked


def test_a_list_by_hand_knows_nothing_of_states() -> None:
    assert [each.address for each in hosts_of([vm("r-1-VM", "rack-3")], None).asked] == [None]


def test_hosts_with_the_same_archives_agree_unread() -> None:
    assert disagreement([Build(A, ZIP, ("kvm-a", "kvm-b"))], [], []) is None


def test_two_builds_of_the_same_files_agree() -> None:
    builds = [Build(A, ZIP, ("kvm-a",), revision="r" * 64), Build(B, ZIP, ("kvm-b",), revision="r" * 64)]
    assert disagreement(builds, [], []) is None


@pytest.mark.parametrize("revisions", [("1" * 64, "2" * 64), (None, None)])
def test_hosts_that_disagree_are_named_with_their_digests(revisions: tuple[str | None, str | None]) -> None:
    builds = [
        Build(A, ZIP, ("kvm-a", "kvm-b"), revision=revisions[0]),
        Build(B, None, ("kvm-c",), revision=revisions[1]),
    ]
    problem = disagreement(builds, [], ["kvm-d (Maintenance)"])
    assert problem is not None
    assert problem.reason is Reason.HOSTS_DISAGREE
    assert not problem.transient, "nothing passes by itself here"
    for word in (A, B, ZIP, "kvm-a, kvm-b", "kvm-c", "not asked: kvm-d (Maintenance)"):
        assert word in problem.message


def test_a_host_without_a_payload_does_not_agree() -> None:
    problem = disagreement([Build(A, None, ("kvm-a",))], ["kvm-b"], [])
    assert problem is not None
    assert problem.reason is Reason.HOSTS_DISAGREE
    assert "none on kvm-b" in problem.message


def test_no_payload_anywhere_is_a_payload_not_found() -> None:
    problem = disagreement([], ["kvm-a"], [])
    assert problem is not None
    assert problem.reason is Reason.PAYLOAD_NOT_FOUND


def test_a_disagreement_of_a_thousand_hosts_is_still_a_sentence() -> None:
    builds = [Build(f"sha256:{n:064x}", ZIP, tuple(f"kvm-{n}-{m}.example.com" for m in range(50))) for n in range(20)]
    problem = disagreement(builds, [], [])
    assert problem is not None
    assert len(problem.message) <= 4096
    assert "and 40 more" in problem.message


def test_the_build_that_most_hosts_hold_is_installed() -> None:
    builds = [Build(A, None, ("kvm-a",)), Build(B, None, ("kvm-b", "kvm-c"))]
    assert chosen(builds, None) == builds[1]
    told = warnings_of(builds[1], builds, ["kvm-d (Down)"])
    assert told == ("another build of the same files is on kvm-a", "not asked: kvm-d (Down)")
    assert warnings_of(builds[1], builds[1:], []) == ()


def test_the_build_that_is_expected_is_installed_by_any_digest_of_it() -> None:
    builds = [
        Build(A, None, ("kvm-a",), frozenset({"md5:1"})),
        Build(B, None, ("kvm-b", "kvm-c"), frozenset({"md5:2"})),
    ]
    assert chosen(builds, A) == builds[0]
    assert chosen(builds, "md5:1") == builds[0]


def test_an_expectation_that_nobody_meets_is_told_with_what_is_there_in_its_own_algorithm() -> None:
    problem = chosen([Build(A, None, ("kvm-a",), frozenset({"md5:1"}))], "md5:2")
    assert isinstance(problem, Problem)
    assert problem.reason is Reason.DIGEST_MISMATCH
    assert "md5:2" in problem.message
    assert "md5:1 on kvm-a" in problem.message


def test_ten_machines_are_named_and_the_rest_counted() -> None:
    assert named([f"h{n}" for n in range(12)]).endswith("h9 and 2 more")
