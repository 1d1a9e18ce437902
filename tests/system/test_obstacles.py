"""A release that would lock everybody out of a router, or needs packages that it lacks, never gets onto it."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from tests.system.test_live_patch import patch, payload, told
from tests.unit.patching import made_packages

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import releases
from reach import patch_order, target_of
from sysvm.api.observed import ContentState
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


def debs() -> dict[str, bytes]:
    """The members of agent.zip that concern Debian 11, installable."""
    netaddr = made_packages.netaddr_deb("Depends: python3 (>= 3.7)\n")
    found = {made_packages.PYTHON_DEB: made_packages.python_deb(), made_packages.NETADDR_DEB: netaddr}
    return found | {"packages/packages.ini": made_packages.PACKAGES_INI}


def debian_11(lab: Lab) -> None:
    """The VM says that it is one, and has python-is-python2 from a package, as templates of 4.16 to 4.19 have."""
    deb = base64.b64encode(made_packages.python_deb(2)).decode()
    lab.exec(
        NAME,
        "set -e; echo 11.9 > /etc/debian_version; sed -i 's/^VERSION_ID=.*/VERSION_ID=\"11\"/' /etc/os-release; "
        f"ln -sf python3 /usr/bin/python2; echo {deb} | base64 -d > /tmp/2.deb; dpkg --install /tmp/2.deb; "
        "rm /tmp/2.deb",
    )


def python(lab: Lab) -> str:
    return lab.exec(NAME, "readlink /usr/bin/python").stdout.strip()


def installed(lab: Lab) -> set[str]:
    asked = "dpkg-query -W -f '${db:Status-Status} ${Package}\\n' 'python-is-*' python3-netaddr 2>/dev/null || true"
    lines = lab.exec(NAME, asked).stdout.splitlines()
    return {line.split()[1] for line in lines if line.startswith("installed ")}


@pytest.mark.timeout(540)
async def test_a_debian_11_router_gets_its_packages_and_goes_back_to_the_python_it_had(lab: Lab) -> None:
    name = "opt/cloud/bin/configure.py"
    script = releases.new().scripts[name].replace(b"\nimport ", b"\nimport netaddr\nimport ", 1)
    wanted = releases.new().derive("debian-11", change={name: script}, agent_change=debs())
    debian_11(lab)
    error = await refused(lab, releases.new(), 2)
    assert error.reason is Reason.PACKAGES_NEEDED, "its members are noise of the right size"
    assert "python-is-python3, python3-netaddr" in str(error)

    seen = await LivePatcher().observe(target_of(lab, NAME), payload(wanted))
    assert seen.content is not None
    assert not seen.content.obstacles
    assert [(action.name, action.action) for action in seen.actions][:3] == [
        ("python-is-python2", "Remove"),
        ("python-is-python3 3.9.2-1", "Install"),
        ("python3-netaddr 0.7.19-5", "Install"),
    ]
    assert (python(lab), installed(lab)) == ("python2", {"python-is-python2"}), "looking changes nothing"
    before = lab.snapshot_tree(NAME, TREES[:-1])

    report = await patch(lab, NAME, payload(wanted), 3)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert [step.name for step in report.steps][4:8] == ["Build", "Packages", "Fence", "Switch"]
    assert installed(lab) == {"python-is-python3", "python3-netaddr"}
    assert python(lab) == "python3"
    lab.exec(NAME, "/usr/bin/python -c 'import netaddr'")
    after = await LivePatcher().observe(target_of(lab, NAME), payload(wanted))
    assert after.content is not None
    assert after.content.state is ContentState.MATCHES

    back = patch_order("op-4")
    ended = await LivePatcher().take_back(target_of(lab, NAME), back, "op-3", lambda _: None)
    assert ended.phase is JournalPhase.ROLLED_BACK, told(ended)
    assert "which stay: installed python-is-python3 3.9.2-1" in ended.message
    assert python(lab) == "python2"
    assert installed(lab) == {"python-is-python3", "python3-netaddr"}
    now = lab.snapshot_tree(NAME, TREES[:-1])
    changed = {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
    assert {path for path in changed if "__pycache__" not in path} == set()

    again = await patch(lab, NAME, payload(wanted), 5)
    assert again.phase is JournalPhase.COMMITTED, told(again)
    assert python(lab) == "python3"
