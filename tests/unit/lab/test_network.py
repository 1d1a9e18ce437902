"""Addresses and links of the lab's VMs follow from what was asked for, and never meet."""

from __future__ import annotations

from itertools import combinations

import pytest

from lab import DEFAULT_FLEET, SystemVMType, VMSpec, network
from lab.spec import LARGEST_INDEX, NIC_ORDER, Segment


def router(index: int, *, redundant: bool = False, group: str = "net-1") -> VMSpec:
    return VMSpec(name=f"r-{index}-VM", type=SystemVMType.ROUTER, index=index, redundant=redundant, group=group)


@pytest.mark.parametrize("vm_type", SystemVMType)
def test_every_type_has_one_control_nic_and_it_alone_is_addressed_by_the_lab(vm_type: SystemVMType) -> None:
    spec = VMSpec(name="x-9-VM", type=vm_type, index=9)
    nics = network.nics_of(spec, network=1)
    assert [nic.name for nic in nics] == [f"eth{n}" for n in range(len(NIC_ORDER[vm_type]))]
    assert [nic.segment for nic in nics].count(Segment.CONTROL) == 1
    assert [word for word in network.wire_script(spec, nics).splitlines() if word.startswith("addr add")] == [
        f"addr add 169.254.1.9/16 dev {next(nic.name for nic in nics if nic.segment is Segment.CONTROL)}"
    ]


def test_addresses_of_a_fleet_never_meet() -> None:
    fleet = [network.nics_of(spec, network=n) for n, spec in enumerate(DEFAULT_FLEET, 1)]
    for one, other in combinations(fleet, 2):
        assert not {nic.address for nic in one if nic.address} & {nic.address for nic in other}
        assert not {nic.mac for nic in one} & {nic.mac for nic in other}


def test_a_single_router_is_the_gateway_and_a_pair_shares_it() -> None:
    (alone,) = (nic for nic in network.nics_of(router(2), network=4) if nic.segment is Segment.GUEST)
    assert (str(alone.address), alone.virtual_address) == ("10.1.4.1/24", None)
    pair = [network.nics_of(router(n, redundant=True), network=4) for n in (2, 3)]
    assert [str(nics[0].address) for nics in pair] == ["10.1.4.2/24", "10.1.4.3/24"]
    assert {nics[0].virtual_address for nics in pair} == {network.guest_gateway(4)}
    assert {nics[2].address for nics in pair} == {None}
    assert len({nics[2].virtual_address for nics in pair}) == 1


def test_link_names_fit_the_kernel_and_differ() -> None:
    names = [
        network.host_link(spec, nic)
        for spec in (router(2), router(22), router(LARGEST_INDEX))
        for nic in network.nics_of(spec, network=1)
    ]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= 15


def test_a_fresh_namespace_first_drops_what_a_former_boot_left() -> None:
    spec = router(7)
    lines = network.wire_script(spec, network.nics_of(spec, network=1)).splitlines()
    assert lines.index("ip netns del r-7-VM 2>/dev/null || true") < lines.index("ip netns add r-7-VM")
    links = [line for line in lines if "link del" in line]
    assert len(links) == 3
    assert lines.index(links[-1]) < lines.index("ip netns del r-7-VM 2>/dev/null || true")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "r 1"}, "no VM name"),
        ({"name": "../../etc"}, "no VM name"),
        ({"index": 1}, "index 1 is outside 2 to 250"),
        ({"index": 251}, "index 251 is outside"),
        ({"priority": 255}, "priority 255"),
        ({"redundant": True, "group": None}, "with a group can be redundant"),
        ({"redundant": True, "type": SystemVMType.SECSTORAGE}, "only a router"),
        ({"tmpfs_mib": 4}, "too small"),
    ],
)
def test_a_spec_that_cannot_be_is_refused_with_its_name(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"name": "r-9-VM", "type": SystemVMType.ROUTER, "index": 9, "group": "net-1"}
    with pytest.raises(ValueError, match=message):
        VMSpec(**(fields | change))  # type: ignore[arg-type]
