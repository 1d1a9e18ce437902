"""The command gate: what is known of it, what is not, and what CloudStack's own patch would do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import ApiCommand, ApiPatchCall, ObservedHostPayload, ObservedManagement
from sysvm.domain.cloud import CloudNetwork, CloudVM, CloudVMState, CloudVPC, CloudZone, Snapshot
from sysvm.domain.gate import (
    Claim,
    Gate,
    PayloadOrigin,
    ServerPayload,
    Witness,
    api_patch,
    checksum_of,
    gate_of,
    management_of,
    names_version_check,
    routers_in,
    server_payload,
    suspected_recreation,
    unverified,
)

from . import builders as b

OURS, THEIRS = "bb" * 64, "aa" * 64
KNOWN, UNKNOWN = ServerPayload(OURS, "it was read there"), ServerPayload(None, "nobody looked")
ZONE = CloudZone(id="z1", name="ams-1", min_template_version="4.20.1", version_check=True, recreating_checks=())


def vm(name: str = "r-1-VM", **values: Any) -> CloudVM:
    """A router below the minimum, whose books are not the server's."""
    known: dict[str, Any] = {
        "id": name,
        "name": name,
        "type": SystemVMType.ROUTER,
        "state": CloudVMState.RUNNING,
        "zone_id": "z1",
        "zone": "ams-1",
        "hypervisor": "KVM",
        "network_id": "n1",
        "template_version": "4.19.1",
        "scripts_version": THEIRS,
    }
    return CloudVM(**{**known, **values})


def snapshot(*vms: CloudVM, networks: tuple[CloudNetwork, ...] = (), vpcs: tuple[CloudVPC, ...] = ()) -> Snapshot:
    return Snapshot(
        taken_at=b.NOW,
        server_version="4.21.0.0",
        zones={"z1": ZONE},
        hosts={},
        vms={each.id: each for each in vms},
        networks={each.id: each for each in networks},
        vpcs={each.id: each for each in vpcs},
    )


def call_for(router: CloudVM, cloud: Snapshot) -> ApiPatchCall | str:
    return api_patch(router, cloud, routers_in(cloud))


def kept(router: CloudVM, cloud: Snapshot) -> ObservedManagement:
    return management_of(router, cloud, KNOWN, routers_in(cloud), at=b.NOW)


# The gate


@pytest.mark.parametrize("checks", [True, False, None])
@pytest.mark.parametrize(("template", "older"), [("4.19.1", True), ("4.20.1", False), ("4.21.0", False), (None, None)])
@pytest.mark.parametrize("minimum", ["4.20.1", None])
@pytest.mark.parametrize(
    ("scripts", "server", "differs"),
    [(THEIRS, KNOWN, True), (OURS, KNOWN, False), (None, KNOWN, None), (THEIRS, UNKNOWN, None)],
)
def test_the_gate_is_closed_only_if_all_three_are_known(
    checks: bool | None,
    template: str | None,
    older: bool | None,
    minimum: str | None,
    scripts: str | None,
    server: ServerPayload,
    differs: bool | None,
) -> None:
    zone = replace(ZONE, version_check=checks, min_template_version=minimum)
    gate = gate_of(vm(template_version=template, scripts_version=scripts), zone, server)
    facts = (checks, older if minimum is not None else None, differs)
    expected = False if False in facts else None if None in facts else True
    assert gate.closed is expected
    assert bool(gate.sentence) is (expected is not False)


def test_a_closed_gate_says_what_would_open_it_and_for_whom() -> None:
    gate = gate_of(vm(), ZONE, KNOWN)
    assert gate.opened_by == "4.19.1"
    assert "4.19.1 as minreq.sysvmtemplate.version of zone ams-1 would open the gate" in gate.sentence
    assert "also for routers there that nobody patched" in gate.sentence


def test_an_unknown_gate_names_everything_that_is_missing() -> None:
    gate = gate_of(vm(), replace(ZONE, version_check=None), UNKNOWN)
    assert gate.closed is None
    assert "router.version.check of zone ams-1 cannot be read" in gate.sentence
    assert "because nobody looked" in gate.sentence


@pytest.mark.parametrize("type_", [each for each in SystemVMType if not each.is_router])
def test_only_routers_have_a_gate(type_: SystemVMType) -> None:
    assert gate_of(vm(type=type_), ZONE, KNOWN) == Gate(closed=False)


@given(written=st.sampled_from([OURS, OURS.upper(), f"{OURS}\n", f"sha512:{OURS}"]))
def test_a_checksum_is_the_same_however_it_is_written(written: str) -> None:
    assert gate_of(vm(scripts_version=written), ZONE, KNOWN).closed is False


# What is known of the server's own payload


def witness(host: str = "kvm-1", **values: Any) -> Witness:
    known: dict[str, Any] = {"host": host, "version": "4.21.0.0", "checksum": f"sha512:{THEIRS}", "holds_release": True}
    return Witness(**{**known, **values})


@pytest.mark.parametrize("origin", [each for each in PayloadOrigin if each is not PayloadOrigin.MANAGEMENT_SERVER])
@pytest.mark.parametrize(
    ("witnesses", "why"),
    [
        ((witness(), witness("kvm-2")), ""),
        ((), "no hypervisor host's payload was seen"),
        ((witness(), witness("kvm-2", holds_release=False)), "kvm-2 has another payload than the release"),
        ((witness(version="4.20.2.0"),), "kvm-1 runs 4.20.2.0 and the server 4.21.0.0"),
        ((witness(version=None),), "kvm-1 runs an unknown version"),
        ((witness(), witness("kvm-2", checksum=f"sha512:{OURS}")), "several builds"),
    ],
)
def test_hosts_are_witnesses_if_they_all_say_the_same(
    origin: PayloadOrigin, witnesses: tuple[Witness, ...], why: str
) -> None:
    """The checksum is that of their build, which need not be the one that the release was read from."""
    found = server_payload(origin, OURS, witnesses, server_version="4.21.0.0")
    assert found.checksum == (None if why else THEIRS)
    assert why in found.why


@pytest.mark.parametrize("witnesses", [(), (witness(holds_release=False, version="4.19.3.0"),)])
def test_what_was_read_on_the_server_needs_no_witness(witnesses: tuple[Witness, ...]) -> None:
    found = server_payload(PayloadOrigin.MANAGEMENT_SERVER, OURS, witnesses, server_version="4.21.0.0")
    assert found.checksum == OURS


# CloudStack's own patch

NETWORK = CloudNetwork(id="n1", name="blue", zone_id="z1")


def vpc(*tiers: str) -> CloudVPC:
    return CloudVPC(id="v1", name="shop", zone_id="z1", tiers=tiers)


def test_a_network_is_one_call_for_all_of_its_routers() -> None:
    routers = (vm("r-2-VM", redundant=True), vm("r-1-VM", redundant=True), vm("r-3-VM", network_id="n2"))
    call = call_for(routers[0], snapshot(*routers, networks=(NETWORK,)))
    assert call == ApiPatchCall(command=ApiCommand.RESTART_NETWORK, id="n1", name="blue", vms=("r-1-VM", "r-2-VM"))


@given(tiers=st.integers(min_value=1, max_value=12))
def test_a_vpc_patches_each_router_once_a_tier(tiers: int) -> None:
    router = vm(type=SystemVMType.VPCROUTER, network_id=None, vpc_id="v1")
    call = call_for(router, snapshot(router, vpcs=(vpc(*(f"t{number}" for number in range(tiers))),)))
    assert isinstance(call, ApiPatchCall)
    assert (call.command, call.id, call.patches) == (ApiCommand.RESTART_VPC, "v1", tiers)


@pytest.mark.parametrize(
    ("router", "why"),
    [
        (vm(type=SystemVMType.VPCROUTER, network_id=None, vpc_id="v1"), "patches nothing there and reports success"),
        (vm(type=SystemVMType.ILBVM), "type ilbvm"),
        (vm(type=SystemVMType.ELBVM), "type elbvm"),
        (vm(hypervisor="Hyperv"), "on Hyperv"),
        (vm(network_id=None), "is not known"),
        (vm(network_id="n9"), "network off is Shutdown"),
    ],
)
def test_where_no_call_patches_the_reason_is_said(router: CloudVM, why: str) -> None:
    off = CloudNetwork(id="n9", name="off", zone_id="z1", state="Shutdown")
    found = call_for(router, snapshot(router, networks=(NETWORK, off), vpcs=(vpc(),)))
    assert isinstance(found, str)
    assert why in found


@pytest.mark.parametrize("type_", [SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY])
def test_an_ssvm_or_cpvm_is_patched_by_itself(type_: SystemVMType) -> None:
    call = call_for(vm("s-1-VM", type=type_), snapshot())
    assert call == ApiPatchCall(command=ApiCommand.PATCH_SYSTEM_VM, id="s-1-VM", name="s-1-VM", vms=("s-1-VM",))


# What the status keeps


@pytest.mark.parametrize(
    ("checks", "named"),
    [
        ((), False),
        (("haproxy_check.py",), False),
        (("router_version_check.py",), True),
        (("haproxy_check.py", " my_router_version_check.py "), True),
        ((*(f"check_{number}.py" for number in range(40)), "router_version_check.py"), True),
        (("dns_check.py;" * 20 + "router_version_check.py",), True),
        (None, False),
    ],
)
def test_the_version_check_is_found_anywhere_in_the_setting(checks: tuple[str, ...] | None, *, named: bool) -> None:
    cloud = replace(snapshot(vm(), networks=(NETWORK,)), zones={"z1": replace(ZONE, recreating_checks=checks)})
    management = kept(vm(), cloud)
    assert names_version_check(management) is named
    assert management.gate_closed is True
    assert management.api_patch is not None


def test_an_ssvm_has_no_minimum_and_no_health_checks() -> None:
    management = kept(vm("s-1-VM", type=SystemVMType.SECSTORAGE), snapshot())
    assert (management.gate_closed, management.minimum_template_version) == (False, None)
    assert management.recreating_checks is None


@pytest.mark.parametrize("checks", [(), None, ("dns_check.py",)])
def test_only_a_zone_that_recreates_is_suspected_of_it(checks: tuple[str, ...] | None) -> None:
    cloud = replace(snapshot(vm(), networks=(NETWORK,)), zones={"z1": replace(ZONE, recreating_checks=checks)})
    told = suspected_recreation(kept(vm(), cloud))
    assert (told is not None and "dns_check.py" in told) is bool(checks)


# Claims

TRUE = Claim(vm="r-1-VM", content_matches=True, signature=OURS, software_version="4.21.0.0")


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        (TRUE, ""),
        (replace(TRUE, signature=OURS.upper()), ""),
        (replace(TRUE, content_matches=False), "its files are not those of the release"),
        (replace(TRUE, signature=THEIRS), "its signature is aaaaaaaa, not bbbbbbbb"),
        (replace(TRUE, signature=None), "its signature is none, not bbbbbbbb"),
        (replace(TRUE, failed_services=("haproxy",)), "services failed: haproxy"),
        (replace(TRUE, roles="two say PRIMARY"), "two say PRIMARY"),
        (replace(TRUE, software_version="4.20.2.0"), "at 4.20.2.0, not 4.21.0.0"),
        (replace(TRUE, gate=gate_of(vm(), ZONE, KNOWN)), "sends no command to r-1-VM"),
    ],
)
def test_a_claim_of_success_is_believed_only_when_everything_agrees(claim: Claim, said: str) -> None:
    found = unverified(claim, signature=OURS, server_version="4.21.0.0", router=True)
    assert (said in found[0]) if said else not found


def test_a_suffix_of_the_servers_own_version_is_no_other_release() -> None:
    """The recorded server is 4.21.0.0-SNAPSHOT and notes 4.21.0.0 of its routers."""
    assert not unverified(TRUE, signature=OURS, server_version="4.21.0.0-SNAPSHOT", router=True)
    assert not unverified(replace(TRUE, software_version="own"), signature=OURS, server_version="own", router=True)
    assert unverified(replace(TRUE, software_version=None), signature=OURS, server_version="own", router=True)


def test_the_books_of_an_ssvm_say_nothing() -> None:
    claim = replace(TRUE, software_version=None)
    assert not unverified(claim, signature=OURS, server_version="4.21.0.0", router=False)


@pytest.mark.parametrize("seen_in", ["md5", "sha512"])
def test_a_hosts_archive_is_known_as_the_release_computes_it_whatever_the_vm_still_uses(seen_in: str) -> None:
    """CloudStack 4.22 computes SHA-512 where 4.21 had MD5: the VM to be patched still has the old one."""
    both = ("md5:" + "1" * 32, f"sha512:{OURS}")
    found = ObservedHostPayload(
        host="kvm-1", checksum=next(each for each in both if each.startswith(seen_in)), checksums=both, revision=b.NEW
    )
    assert checksum_of(found, b.release()) == OURS
