"""The demo of a whole cloud is a test, but for its last acts: what it shows is what holds, on real system VMs.

The upgrade with its calls of CloudStack is told in the demo, and proven by tests/integration/engine/test_gate.py and
test_recreate.py against the stand-in and by tests/system/test_cloud.py on real VMs.
"""

from pathlib import Path

import pytest

from lab import Lab, preflight
from lab.cli import take_down
from lab.cloud_demo.objects import REDUNDANT, SYSTEM_VMS
from lab.cloud_demo.story import CloudStory
from lab.content import releases

pytestmark = pytest.mark.systemvm

SOAKING = {"r-1-VM", "r-7-VM"}
WAITING = {"b-6-VM", "r-8-VM"}


@pytest.mark.timeout(500)
def test_a_cloud_is_found_planned_and_patched_in_order_and_nobody_is_cut_off(tmp_path: Path) -> None:
    missing = preflight.missing()
    if missing:
        pytest.skip(missing)
    told: list[str] = []
    story = CloudStory(tmp_path / "lab", told.append, told.append)
    try:
        story.raise_cloud()
        story.find()
        story.plan(releases.new())
        roles = {vm["status"]["identity"]["name"]: vm["status"].get("redundancy", {}).get("role") for vm in story.vms()}
        story.patch()
        vms = {vm["status"]["identity"]["name"]: vm["status"] for vm in story.vms()}
        kinds = [vm["identity"]["type"] for vm in vms.values()]
        rollouts = {vm["history"][-1]["rollout"] for vm in vms.values() if vm.get("history")}
    finally:
        removed = take_down(Lab(tmp_path / "lab", say=told.append))
    text = "\n".join(told)
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "router": 4, "vpcrouter": 2, "dhcpsrvr": 1, "ilbvm": 1, "secstorage": 2, "consoleproxy": 2,
    }  # fmt: skip
    found, patched = story.phases
    assert (found.vms, patched.vms) == (len(vms), len(vms) - len(WAITING))
    assert found.calls.total < 40
    states = {
        name: (vm["state"], [c["message"] for c in vm["conditions"] if c["type"] == "Ready"])
        for name, vm in vms.items()
    }
    assert {name for name, (state, _) in states.items() if state == "Outdated"} == WAITING, states
    assert {name for name, (state, _) in states.items() if state == "Converged"} == set(vms) - WAITING, states
    assert all(vm["history"][-1]["method"] == "LivePatch" for name, vm in vms.items() if name not in WAITING)
    assert len(rollouts) == 3, "one of each policy that was not left waiting"
    begins = {name: vm["history"][-1]["startedAt"] for name, vm in vms.items() if vm.get("history")}
    system = {name for name in begins if name[0] in "sv"}
    pairs = set(begins) - system - SOAKING
    assert max(begins[name] for name in system) <= min(begins[name] for name in pairs), f"{SYSTEM_VMS} first"
    assert max(begins[name] for name in pairs) <= min(begins[name] for name in SOAKING), f"then {REDUNDANT}"
    for vpc_or_net in ({"r-2-VM", "r-3-VM"}, {"r-4-VM", "r-5-VM"}):
        first, second = sorted(vpc_or_net, key=begins.__getitem__)
        assert (roles[first], roles[second]) == ("BACKUP", "PRIMARY"), "BACKUP goes first"
    assert patched.calls.changing == (), "a live patch over SSH asks CloudStack for nothing"
    assert patched.tenants is not None
    for network in ("net-1", "net-2", "vpc-1"):
        noticed = patched.tenants.noticed([network])
        assert noticed is not None
        assert noticed.sent > 100
        assert noticed.longest_gap_ms < 5000, network
    assert "all the same, and no service has failed" in text
    assert "the operator" in removed
