"""Restarts and reloads on a real router while tenants ask: nothing is lost, and what would be is said before."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.system.test_live_patch import patch, payload, told

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import releases
from lab.tenants.inside import Namespaces
from lab.tenants.kinds import TIMEOUT_SECONDS, Kind
from lab.tenants.network import GuestPlaces, Place
from lab.tenants.tenancy import Tenancy
from reach import patch_order, target_of
from sysvm.api.reasons import Reason
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload
from sysvm.patching.remote.hold import CHAIN
from sysvm.patching.results import JournalPhase, OperationReport, Order

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

ROUTER = "r-61-VM"
VPC_ROUTER = "r-62-VM"
ASKED = (Kind.DNS_SAME_PORT, Kind.DNS_NEW_PORT, Kind.DNS_TCP, Kind.DHCP_DISCOVER, Kind.DHCP_RENEW)
DROP_IN = "etc/systemd/system/dnsmasq.service.d/limits.conf"
SSHD = "etc/ssh/sshd_config"
QUIET_SECONDS = 200.0
MANGLE = ["iptables", "-t", "mangle", "-S"]

ASK_EVERY_SECONDS = 0.02
_NUMBERS = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Web:
    """A service that guests ask over TCP; its unit is restarted where a drop-in of it changes."""

    unit: str
    drop_in: str
    port: int
    at_balancer: bool = False
    """On the network's public address, which its own guests reach through the guest interface."""

    def address(self, places: GuestPlaces) -> tuple[str, int]:
        return str(places.balancer if self.at_balancer else places.gateway), self.port

    def changed(self, number: int, before: str = "") -> Payload:
        """As `unit_changed`, for this unit."""
        text = f"[Service]\nEnvironment=LAB={number}\n" + (f"ExecStartPre={before}\n" if before else "")
        path = f"etc/systemd/system/{self.drop_in}.service.d/limits.conf"
        return payload(releases.old().derive(f"unit-{number}", add={path: text.encode()}))


WEB = (
    Web("haproxy", "haproxy", 80, at_balancer=True),
    Web("apache2", "apache2", 80),
    Web("cloud-password-server@10.1.1.1", "cloud-password-server@", 8080),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        vpc = VMSpec(name=VPC_ROUTER, type=SystemVMType.VPCROUTER, index=62, group="net-62")
        made.up([VMSpec(name=ROUTER, type=SystemVMType.ROUTER, index=61, group="net-61"), vpc], release="old")
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
            pytest.skip(f"a machine with time for its VMs is missing: nothing is done, and {traffic.tallies}")
        await asyncio.sleep(5)


@pytest.mark.timeout(600)
async def test_dnsmasq_restarts_under_dns_and_dhcp_and_not_one_request_is_lost(lab: Lab, tenants: Tenancy) -> None:
    number = next(_NUMBERS)
    wanted = unit_changed(number)
    seen = await LivePatcher().observe(target_of(lab, ROUTER), wanted)
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
        seen = await LivePatcher().observe(target_of(lab, ROUTER), wanted)
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("web", WEB, ids=lambda web: web.drop_in)
async def test_guests_of_a_restarted_service_wait_and_the_firewall_still_decides(
    lab: Lab, tenants: Tenancy, web: Web
) -> None:
    """One guest asks all the time and loses nothing; another, that the filter table drops, is never let in."""
    await quiet(tenants)
    places = tenants.add(ROUTER)
    let_in, dropped_one = places.members
    number = next(_NUMBERS)
    rule = ["INPUT", "-s", str(dropped_one.address.ip), "-p", "tcp", "--dport", str(web.port), "-j", "DROP"]
    lab.exec(ROUTER, ["iptables", "-I", *rule])
    try:
        report, found = await asked_during(
            lab, web.address(places), (let_in, dropped_one), patch(lab, ROUTER, web.changed(number), number)
        )
    finally:
        lab.exec(ROUTER, ["iptables", "-D", *rule])
    print(told(report), found, sep="\n")
    assert report.phase is JournalPhase.COMMITTED, told(report)
    acted = {one.name: one for one in report.services}
    assert acted[web.unit].action == "HeldRestart"
    assert acted[web.unit].unavailable_seconds is not None
    assert f"{web.unit}: " in report.message
    assert "packets waited for its restart" in report.message
    assert set(found[let_in.namespace]) == {"answered"}, found
    assert "answered" not in found[dropped_one.namespace], "held connections came in past the firewall"
    assert_nothing_left(lab)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("web", WEB, ids=lambda web: web.drop_in)
async def test_a_kill_while_guests_of_a_service_wait_lets_them_in_and_leaves_no_rule(
    lab: Lab, tenants: Tenancy, web: Web
) -> None:
    places = tenants.add(ROUTER)
    number = next(_NUMBERS)
    running = asyncio.create_task(patch(lab, ROUTER, web.changed(number, before="/bin/sleep 2"), number))
    held = f"--dports {web.port}"
    await until(lambda: "-j NFQUEUE" in (said := lab.exec(ROUTER, MANGLE).stdout) and held in said)
    lab.exec(ROUTER, "iptables-save > /etc/iptables/rules.v4")
    lab.exec(ROUTER, ["systemctl", "kill", "-s", "KILL", f"sysvm-op-{number}.service"])
    lab.exec(ROUTER, ["systemctl", "start", web.unit], check=False)
    report, found = await asked_during(lab, web.address(places), (places.client,), running)
    print(told(report), found, sep="\n")
    assert report.phase is JournalPhase.ROLLED_BACK, told(report)
    assert found[places.client.namespace]["answered"] > 0
    assert_nothing_left(lab)


@pytest.mark.timeout(300)
async def test_guests_that_wait_do_not_wait_for_one_who_says_nothing(lab: Lab, tenants: Tenancy) -> None:
    """apache2 that is told to stop waits for idle connections and for half requests: alone it takes ten seconds."""
    places = tenants.add(ROUTER)
    web = WEB[1]
    namespaces = Namespaces(str(lab.toolbox().path(Path("/run/netns"))))
    number = next(_NUMBERS)
    with await namespaces.tcp(places.members[0].namespace) as idle:
        await asyncio.get_running_loop().sock_connect(idle, web.address(places))
        await asyncio.get_running_loop().sock_sendall(idle, b"GET / HTTP/1.1\r\n")
        report, found = await asked_during(
            lab, web.address(places), (places.client,), patch(lab, ROUTER, web.changed(number), number)
        )
    print(told(report), found, sep="\n")
    assert report.phase is JournalPhase.COMMITTED, told(report)
    waited = re.search(r"apache2: .*the longest ([0-9.]+) s", report.message)
    assert waited is not None
    assert float(waited[1]) < 2.5
    assert "had not stopped after 0.5 s and was killed" in report.message


@pytest.mark.timeout(300)
@pytest.mark.parametrize("web", WEB[1:], ids=lambda web: web.drop_in)
async def test_guests_of_a_tier_wait_too(lab: Lab, tenants: Tenancy, web: Web) -> None:
    """What a VPC router serves goes with its tiers, which its boot line does not tell."""
    places = tenants.add(VPC_ROUTER)
    number = next(_NUMBERS)
    report, found = await asked_during(
        lab, web.address(places), (places.client,), patch(lab, VPC_ROUTER, web.changed(number), number)
    )
    print(told(report), found, sep="\n")
    assert report.phase is JournalPhase.COMMITTED, told(report)
    (acted,) = [one for one in report.services if one.name.startswith(web.drop_in)]
    assert acted.action == "HeldRestart"
    assert acted.unavailable_seconds is not None, "asked on the tier's own address"
    assert "packets waited for its restart" in report.message
    assert set(found[places.client.namespace]) == {"answered"}, found


@pytest.mark.timeout(300)
async def test_what_asks_for_a_service_that_a_release_kills_waits_until_the_old_files_serve(
    lab: Lab, tenants: Tenancy
) -> None:
    places = tenants.add(ROUTER)
    # A drop-in that an earlier release left would go with this one, and with it apache2's unit would change.
    report = await patch(lab, ROUTER, payload(releases.old()), next(_NUMBERS))
    assert report.phase is JournalPhase.COMMITTED, told(report)
    report, found = await asked_during(
        lab,
        (str(places.gateway), 80),
        (places.client,),
        patch(lab, ROUTER, payload(releases.broken()), next(_NUMBERS)),
    )
    print(told(report), found, sep="\n")
    assert report.phase is JournalPhase.ROLLED_BACK, told(report)
    acted = [one for one in report.services if one.name == "apache2"]
    assert [one.action for one in acted] == ["Reload", "Start (going back)"]
    forward, back = (one.unavailable_seconds or 0.0 for one in acted)
    assert 0.0 < forward < back, "the second counts from the last answer before it died"
    assert_nothing_left(lab)


async def test_a_release_that_locks_everybody_out_is_gone_back_on(lab: Lab) -> None:
    start = releases.old()
    number = next(_NUMBERS)
    locked = payload(start.derive("locked", change={SSHD: start.scripts[SSHD] + b"AllowUsers nobody\n"}))
    before = lab.read_bytes(ROUTER, f"/{SSHD}")
    began = time.monotonic()
    wanted = patient_for_less(number)
    report = await LivePatcher().patch(target_of(lab, ROUTER), locked, wanted, lambda _: None)
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


async def asked_during(
    lab: Lab, address: tuple[str, int], places: tuple[Place, ...], work: Awaitable[OperationReport]
) -> tuple[OperationReport, dict[str, Counter[str]]]:
    """What `work` gives, and by namespace how the requests of that time ended: `answered`, or the name of an error."""
    namespaces = Namespaces(str(lab.toolbox().path(Path("/run/netns"))))
    found: dict[str, Counter[str]] = {place.namespace: Counter() for place in places}
    ended = asyncio.Event()

    async def ask(place: str) -> None:
        connection = await namespaces.tcp(place)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await loop.sock_connect(connection, address)
                await loop.sock_sendall(connection, b"GET / HTTP/1.0\r\n\r\n")
                answer = await loop.sock_recv(connection, 4096)
            found[place]["answered" if answer.startswith(b"HTTP/1.") else "empty"] += 1
        except OSError as error:
            found[place][type(error).__name__] += 1
        finally:
            connection.close()

    async def ask_on(place: str) -> None:
        async with asyncio.TaskGroup() as asking:
            while not ended.is_set():
                asking.create_task(ask(place))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), ASK_EVERY_SECONDS)

    async with asyncio.TaskGroup() as group:
        for place in places:
            group.create_task(ask_on(place.namespace))
        try:
            report = await work
        finally:
            ended.set()
    return report, found


def assert_nothing_left(lab: Lab) -> None:
    """No rule of ours is in force, and none comes back at the next boot."""
    for program in ("iptables", "ip6tables"):
        assert CHAIN not in lab.exec(ROUTER, [program, "-t", "mangle", "-S"]).stdout
    assert CHAIN not in lab.read_bytes(ROUTER, "/etc/iptables/rules.v4").decode()


def patient_for_less(number: int) -> Order:
    """A login is awaited for half a step at most."""
    return patch_order(f"op-{number}", step_timeout_seconds=40)


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
