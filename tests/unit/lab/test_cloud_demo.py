"""What the cloud's story counts, and that what it applies is what the docs show."""

from __future__ import annotations

import pytest

from lab.cloud_demo import objects
from lab.cloud_demo.counting import Calls, Phase, own_way, table
from lab.cloud_demo.traffic import Asking
from lab.content import releases
from lab.tenants import Tally
from lab.tenants.kinds import Kind


def identity(type_: str, group: str = "") -> dict[str, str]:
    return {"type": type_, "group": group}


def test_cloudstacks_own_way_is_a_call_a_system_vm_and_a_call_a_group_of_routers() -> None:
    pair = [identity("router", "net-2")] * 2
    found = own_way([*pair, identity("vpcrouter", "vpc-1"), identity("secstorage"), identity("consoleproxy")])
    assert (found.changing, found.total, found.vms) == (4, 4 + 4 + 6, 5)


def test_a_load_balancer_vm_cannot_be_patched_by_cloudstack() -> None:
    assert own_way([identity("ilbvm", "vpc-1-tier1")]).vms == 0


def test_the_policies_are_the_documented_ones_in_their_order() -> None:
    made = objects.policies(releases.new(), "cloud")
    assert tuple(policy["metadata"]["name"] for policy in made) == objects.ORDER
    assert [policy["spec"].get("after", []) for policy in made] == [
        [],
        *([{"name": each}] for each in objects.ORDER[:-1]),
    ]
    assert {policy["spec"]["templateRef"]["name"] for policy in made} == {"systemvm-4.20.2"}


@pytest.fixture
def tenants() -> Asking:
    def tally(lost: int, gap: float) -> Tally:
        return Tally(
            kind=Kind.NAT_UDP, sent=100, lost=lost, failed=0, slow=0, longest_gap_ms=gap, slowest_ms=1.0, errors={}
        )

    return Asking({"net-1": (tally(0, 12.0),), "net-2": (tally(7, 850.0),)})


def test_a_phase_tells_only_what_was_lost_through_its_own_networks(tenants: Asking) -> None:
    calls = Calls(commands={"listRouters": 3, "restartNetwork": 1}, changing=({"command": "restartNetwork"},))

    def row(*through: str) -> list[str]:
        own = own_way([identity("router", "net-2")])
        phase = Phase(title="made anew", vms=2, seconds=9.6, calls=calls, own=own, tenants=tenants, through=through)
        return table([phase]).splitlines()[1].split("  ")

    assert "7 of 200" in " ".join(row("net-1", "net-2"))
    assert "7 of 100" in " ".join(row("net-2"))
    assert "0 of 100" in " ".join(row("net-1"))
    assert [cell.strip() for cell in row("net-2") if cell.strip()][:6] == ["made anew", "2", "10", "4", "2.0", "1"]


def test_traffic_nobody_made_is_not_told_as_none_lost(tenants: Asking) -> None:
    assert tenants.noticed(["net-3"]) is None
    assert tenants.lines()[1] == "net-2: 100 requests, lost nat-udp 7; longest gap 850 ms"
