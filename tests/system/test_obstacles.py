"""A release that would lock everybody out of a router, or needs packages that it lacks, never gets onto it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.system.test_live_patch import patch, payload, told

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import releases
from reach import target_of
from sysvm.api.reasons import Reason
from sysvm.patching.errors import Refused
from sysvm.patching.live import LivePatcher
from sysvm.patching.results import JournalPhase

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

NAME = "r-83-VM"
TREES = ["/opt/cloud", "/etc", "/root/health_checks", "/usr/share/cloud", "/var/lib"]
TEMPLATE = "etc/iptables/iptables-router"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("obstacles"))
    try:
        made.up([VMSpec(name=NAME, type=SystemVMType.ROUTER, index=83, group="net-83")], release="old")
        yield made
    finally:
        made.down()


async def refused(lab: Lab, release: releases.Release, number: int) -> Refused:
    """The refusal; nothing of the VM has changed for it."""
    before = lab.snapshot_tree(NAME, TREES)
    with pytest.raises(Refused) as caught:
        await patch(lab, NAME, payload(release), number)
    now = lab.snapshot_tree(NAME, TREES)
    assert {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)} == set()
    assert not caught.value.retryable
    return caught.value


@pytest.mark.timeout(300)
async def test_a_firewall_template_that_touches_the_way_in_is_refused_and_told_before(lab: Lab) -> None:
    text = releases.old().edited(TEMPLATE, b"--dport 3922", b"--dport 3923")
    wanted = releases.old().derive("way-in", change={TEMPLATE: text})
    seen = await LivePatcher().observe(target_of(lab, NAME), payload(wanted))
    assert seen.content is not None
    assert [obstacle.reason for obstacle in seen.content.obstacles] == [Reason.MANAGEMENT_PORT_RULE_CHANGED]
    assert {(action.name, action.action) for action in seen.actions} == {
        ("iptables-router", "AtNextCommand"),
        ("iptables-router", "EffectiveAtBoot"),
    }
    error = await refused(lab, wanted, 1)
    assert error.reason is Reason.MANAGEMENT_PORT_RULE_CHANGED
    assert "--dport 3922" in str(error)


@pytest.mark.timeout(300)
async def test_a_debian_11_router_without_the_packages_is_refused_and_with_them_patched(lab: Lab) -> None:
    wanted = releases.new()
    lab.exec(NAME, "cp /etc/debian_version /tmp/kept; echo 11.9 > /etc/debian_version")
    error = await refused(lab, wanted, 2)
    assert error.reason is Reason.PACKAGES_NEEDED
    assert "python-is-python3, python3-netaddr" in str(error)
    lab.exec(NAME, "cd /var/lib/dpkg/info && touch python-is-python3.list python3-netaddr.list")
    report = await patch(lab, NAME, payload(wanted), 3)
    assert report.phase is JournalPhase.COMMITTED, told(report)
