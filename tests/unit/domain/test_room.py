"""One VM more must fit beside those that run, as far as the server tells what is free."""

from __future__ import annotations

import pytest

from sysvm.api.endpoint import SystemVMType
from sysvm.domain.cloud import CloudHost, CloudVM, CloudVMState
from sysvm.domain.room import DIRECT_PUBLIC_IP, MIB, PRIVATE_IP, PUBLIC_IP, HostRoom, Room, no_room

HOSTS = [CloudHost(id=f"h-{n}", name=f"kvm-{n}", address=None, zone_id="z") for n in (1, 2)]
FULL, WIDE = HostRoom(511 * MIB, 9000), HostRoom(4096 * MIB, 9000)


def vm(type_: SystemVMType) -> CloudVM:
    return CloudVM(id="v", name="r-1-VM", type=type_, state=CloudVMState.RUNNING, zone_id="z", zone="ams-1")


ROUTER, CPVM = vm(SystemVMType.ROUTER), vm(SystemVMType.CONSOLEPROXY)


@pytest.mark.parametrize(
    ("room", "fits"),
    [
        pytest.param({}, True, id="nothing is told"),
        pytest.param({"h-1": FULL}, True, id="the other host says nothing"),
        pytest.param({"h-1": FULL, "h-2": WIDE}, True, id="one host has room"),
        pytest.param({"h-1": FULL, "h-2": HostRoom(4096 * MIB, 499)}, False, id="memory here and CPU there"),
        pytest.param({"h-1": FULL, "h-2": HostRoom(None, 400)}, False, id="CPU alone"),
    ],
)
def test_a_host_must_have_memory_and_cpu_at_once(room: dict[str, HostRoom], fits: bool) -> None:
    assert (no_room(Room(room), ROUTER, HOSTS) is None) == fits


def test_the_sentence_counts_what_is_there() -> None:
    told = no_room(Room({"h-1": FULL, "h-2": HostRoom(-1, 0)}), ROUTER, HOSTS)
    assert told == (
        "no room in zone ams-1 for another VM like r-1-VM: it needs 512 MiB and 500 MHz; "
        "kvm-1 has 511 MiB and 9000 MHz free, kvm-2 has 0 MiB and 0 MHz free"
    )
    assert no_room(Room({"h-1": HostRoom(1023 * MIB, 9000)}), CPVM, HOSTS[:1]) is not None, "a CPVM is larger"


@pytest.mark.parametrize(
    ("addresses", "fits"),
    [
        ({}, True),
        ({PUBLIC_IP: 1, PRIVATE_IP: 1}, True),
        ({PUBLIC_IP: 0, PRIVATE_IP: 1}, False),
        ({PUBLIC_IP: 0, DIRECT_PUBLIC_IP: 3, PRIVATE_IP: 1}, True),
        ({PUBLIC_IP: 5, PRIVATE_IP: 0}, False),
    ],
)
def test_an_ssvm_or_cpvm_needs_addresses_and_a_router_has_its_own(addresses: dict[int, int], fits: bool) -> None:
    room = Room({}, addresses)
    assert (no_room(room, CPVM, HOSTS) is None) == fits
    assert no_room(room, ROUTER, HOSTS) is None
