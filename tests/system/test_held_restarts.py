"""Restarts and reloads on a real router while tenants ask: nothing is lost, and what would be is said before."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator

import pytest
from tests.system.test_live_patch import order, patch, payload, target, told

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import releases
from lab.tenants.kinds import Kind
from lab.tenants.tenancy import Tenancy
from sysvm.api.reasons import Reason
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload
from sysvm.patching.remote.hold import CHAIN
from sysvm.patching.results import JournalPhase, Order

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

ROUTER = "r-61-VM"
ASKED = (Kind.DNS_SAME_PORT, Kind.DNS_NEW_PORT, Kind.DNS_TCP, Kind.DHCP_DISCOVER, Kind.DHCP_RENEW)
DROP_IN = "etc/systemd/system/dnsmasq.service.d/limits.conf"
SSHD = "etc/ssh/sshd_config"
QUIET_SECONDS = 200.0
MANGLE = ["iptables", "-t", "mangle", "-S"]

_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([VMSpec(name=ROUTER, type=SystemVMType.ROUTER, index=61, group="net-61")], release="old")
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def tenants(lab: Lab) -> Tenancy:
    made = Tenancy(lab)
    made.add(ROUTER)
    return made


def unit_changed(number: int, before: str = "") -> Payload:
    """A release whose dnsmasq unit has a drop-in that differs each time. `before`: a command before dnsmasq starts."""
    text = f"[Service]\nLimitNOFILE={8192 + number}\n" + (f"ExecStartPre={before}\n" if before else "")
    return payload(releases.old().derive(f"unit-{number}", add={DROP_IN: text.encode()}))


async def quiet(tenants: Tenancy) -> None:
    """Until nothing is lost while nothing happens: on a machine that starves its VMs no figure says anything."""
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        with tenants.start(ROUTER, kinds=ASKED) as run:
            await asyncio.sleep(2)
            traffic = await asyncio.to_thread(run.end)
        if not any(tally.lost or tally.failed or tally.slow for tally in traffic.tallies):
            return
        if time.monotonic() > deadline:
            pytest.skip(f"without any patch tenants lose requests: {traffic.tallies}")
        await asyncio.sleep(5)


@pytest.mark.timeout(600)
async def test_dnsmasq_restarts_under_dns_and_dhcp_and_not_one_request_is_lost(lab: Lab, tenants: Tenancy) -> None:
    number = next(_NUMBERS)
    wanted = unit_changed(number)
    seen = await LivePatcher().observe(target(lab, ROUTER), wanted)
    assert [(action.name, action.action) for action in seen.actions] == [("dnsmasq", "HeldRestart")]
    assert seen.actions[0].expected_loss.startswith("none lost")
    pid = main_pid(lab)
    await quiet(tenants)
    with tenants.start(ROUTER, kinds=ASKED) as run:
        report = await patch(lab, ROUTER, wanted, number)
        traffic = await asyncio.to_thread(run.end)
    print(told(report), *traffic.tallies, sep="\n")
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert [(one.name, one.action) for one in report.services] == [("dnsmasq", "HeldRestart")]
    assert main_pid(lab) != pid
    assert "packets waited" in report.message
    for tally in traffic.tallies:
        assert (tally.lost, tally.failed) == (0, 0), tally
    assert CHAIN not in lab.exec(ROUTER, MANGLE).stdout


@pytest.mark.timeout(600)
async def test_the_firewall_decides_on_held_packets_as_on_any_other(lab: Lab, tenants: Tenancy) -> None:
    """DNS over TCP is dropped by the filter table all the time, the hold included; the rest is not."""
    await quiet(tenants)
    number = next(_NUMBERS)
    rule = ["INPUT", "-i", "eth0", "-p", "tcp", "--dport", "53", "-j", "DROP"]
    with tenants.start(ROUTER, kinds=(Kind.DNS_NEW_PORT, Kind.DNS_TCP)) as run:
        lab.exec(ROUTER, ["iptables", "-I", *rule])
        before = dropped(lab)
        try:
            report = await patch(lab, ROUTER, unit_changed(number), number)
            after = dropped(lab)
        finally:
            lab.exec(ROUTER, ["iptables", "-D", *rule])
        traffic = await asyncio.to_thread(run.end)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert after > before
    assert "packets waited" in report.message
    assert traffic.of(Kind.DNS_NEW_PORT).lost == 0
    blocked = traffic.of(Kind.DNS_TCP)
    assert blocked.lost + blocked.failed > 0.5 * blocked.sent, "held connections came in past the firewall"


async def test_a_vm_that_cannot_hold_says_in_its_plan_what_will_be_lost(lab: Lab) -> None:
    number = next(_NUMBERS)
    wanted = unit_changed(number)
    lab.exec(ROUTER, "mv /usr/sbin/iptables /usr/sbin/iptables.away")
    try:
        seen = await LivePatcher().observe(target(lab, ROUTER), wanted)
        report = await patch(lab, ROUTER, wanted, number)
    finally:
        lab.exec(ROUTER, "mv /usr/sbin/iptables.away /usr/sbin/iptables")
    planned = [(action.name, action.action, action.expected_loss) for action in seen.actions]
    assert planned == [("dnsmasq", "Restart", "DNS and DHCP requests of about a tenth of a second")]
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert [(one.name, one.action) for one in report.services] == [("dnsmasq", "Restart")]


@pytest.mark.timeout(300)
async def test_no_packet_waits_longer_than_three_seconds_however_long_the_restart_takes(
    lab: Lab, tenants: Tenancy
) -> None:
    number = next(_NUMBERS)
    with tenants.start(ROUTER, kinds=(Kind.DNS_NEW_PORT,)) as run:
        report = await patch(lab, ROUTER, unit_changed(number, before="/bin/sleep 5"), number)
        traffic = await asyncio.to_thread(run.end)
    print(told(report), *traffic.tallies, sep="\n")
    assert report.phase is JournalPhase.COMMITTED, told(report)
    waited = re.search(r"the longest ([0-9.]+) s", report.message)
    assert waited is not None
    assert 2.5 < float(waited[1]) < 3.2
    gaps = {one.name: one.unavailable_seconds or 0.0 for one in report.services}
    assert gaps["dnsmasq"] > 4.5
    assert "dnsmasq did not serve for" in report.message, "longer than CloudStack's own monitoring waits"
    assert CHAIN not in lab.exec(ROUTER, MANGLE).stdout


async def test_a_program_that_is_killed_while_it_holds_lets_packets_through_and_leaves_no_rule(
    lab: Lab, tenants: Tenancy
) -> None:
    number = next(_NUMBERS)
    wanted = unit_changed(number, before="/bin/sleep 2")
    running = asyncio.create_task(patch(lab, ROUTER, wanted, number))
    await until(lambda: f"-j {CHAIN}" in lab.exec(ROUTER, MANGLE).stdout)
    # What CloudStack would do if it saved the rules at this very moment.
    lab.exec(ROUTER, "iptables-save > /etc/iptables/rules.v4")
    lab.exec(ROUTER, ["systemctl", "kill", "-s", "KILL", f"sysvm-op-{number}.service"])
    lab.exec(ROUTER, "systemctl start dnsmasq", check=False)
    # Whether or not the rules are still there: nobody reads the queue, and DNS is answered.
    with tenants.start(ROUTER, kinds=(Kind.DNS_NEW_PORT,)) as run:
        await asyncio.sleep(0.5)
        report = await running
        traffic = await asyncio.to_thread(run.end)
    print(told(report), *traffic.tallies, sep="\n")
    assert report.phase is JournalPhase.ROLLED_BACK, told(report)
    assert traffic.of(Kind.DNS_NEW_PORT).sent > traffic.of(Kind.DNS_NEW_PORT).lost
    assert CHAIN not in lab.exec(ROUTER, MANGLE).stdout
    assert CHAIN not in lab.read_bytes(ROUTER, "/etc/iptables/rules.v4").decode()


async def test_a_release_that_locks_everybody_out_is_gone_back_on(lab: Lab) -> None:
    start = releases.old()
    number = next(_NUMBERS)
    locked = payload(start.derive("locked", change={SSHD: start.scripts[SSHD] + b"AllowUsers nobody\n"}))
    before = lab.read_bytes(ROUTER, f"/{SSHD}")
    began = time.monotonic()
    wanted = patient_for_less(number)
    report = await LivePatcher().patch(target(lab, ROUTER), locked, wanted, lambda _: None)
    print(told(report), time.monotonic() - began)
    assert report.phase is JournalPhase.ROLLED_BACK, told(report)
    assert report.reason is Reason.SERVICE_FAILED
    assert "no new login was proven" in report.message
    assert lab.read_bytes(ROUTER, f"/{SSHD}") == before
    timers = lab.exec(ROUTER, "systemctl list-timers --all --no-legend 'sysvm-login-*'").stdout
    assert not timers.strip()

    number = next(_NUMBERS)
    fine = payload(start.derive("fine", change={SSHD: start.scripts[SSHD] + b"LoginGraceTime 41\n"}))
    report = await patch(lab, ROUTER, fine, number)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert ("ssh", "Reload") in [(one.name, one.action) for one in report.services]


async def test_an_answer_that_apache_delays_when_it_reloads_counts_as_no_gap(lab: Lab) -> None:
    start = releases.old()
    path = releases.SECURITY_CONF
    for word in (b"Off", b"On"):
        number = next(_NUMBERS)
        text = start.scripts[path] + b"UseCanonicalName " + word + b"\n"
        report = await patch(lab, ROUTER, payload(start.derive(f"web-{number}", change={path: text})), number)
        assert report.phase is JournalPhase.COMMITTED, told(report)
        gaps = {one.name: one.unavailable_seconds for one in report.services}
        assert gaps["apache2"] == 0.0, told(report)


def patient_for_less(number: int) -> Order:
    """A login is awaited for half a step at most."""
    return dataclasses.replace(order(number), step_timeout_seconds=40)


def main_pid(lab: Lab) -> str:
    return lab.exec(ROUTER, "systemctl show -p MainPID dnsmasq").stdout.strip()


def dropped(lab: Lab) -> int:
    """Packets that the rule of this test has dropped."""
    lines = lab.exec(ROUTER, "iptables -L INPUT -v -x -n").stdout.splitlines()
    return next(int(line.split()[0]) for line in lines if "DROP" in line and "dpt:53" in line)


async def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(true):
        assert time.monotonic() < deadline, "it never came to it"
        await asyncio.sleep(0.02)
