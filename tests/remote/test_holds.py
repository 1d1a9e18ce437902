"""Requests wait while their service restarts; nothing of that outlives the program, whatever ends it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.remote import systemd
from tests.remote.vm import OLD_SIGNATURE, VM, FakeHost, in_child, make_order, service, with_file, write

from sysvm.patching.remote import hold, login, questions, services, switch
from sysvm.patching.remote.host import Host, Outcome

DNS = [{"protocol": "udp", "ports": [53, 67]}, {"protocol": "tcp", "ports": [53]}]
IPS = {
    "id": "ips",
    "eth0": [{"nw_type": "guest", "add": True}],
    "eth1": [{"nw_type": "control", "add": True}],
    "eth2": [{"nw_type": "public", "add": True}],
    "eth3": [{"nw_type": "guest", "add": False}],
}
IF_INET6 = b"fe80000000000000004cfefffe000001 02 40 20 80     eth0\n"
LEFT = f"-P INPUT ACCEPT\n-N {hold.CHAIN}\n-A INPUT -i eth0 -j {hold.CHAIN}\n-A {hold.CHAIN} -p udp -j NFQUEUE\n"


class FakeQueue:
    """A queue that packets never come to."""

    held = 3
    longest = 0.25
    number = 7

    def keep(self, seconds: float) -> None:
        assert seconds <= 3.0

    def let_go(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def tables(vm: VM, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mangle table of the scratch VM as a file, and a log of what was done to it and to units."""
    table = vm.base / "mangle"
    table.write_text("-P INPUT ACCEPT\n")
    table6 = vm.base / "mangle6"
    table6.write_text("-P INPUT ACCEPT\n")
    log = vm.base / "log"
    log.write_text("")
    plain = FakeHost.run

    def run(self: FakeHost, argv: list[str], timeout: float, folder: str = "/", merged: bool = True) -> Outcome:
        if argv[0] == "systemctl" and argv[1] in ("restart", "reload", "start"):
            with log.open("a") as file:
                ways = [one.read_text().count("-j " + hold.CHAIN) for one in (table, table6)]
                file.write(f"{argv[1]} {argv[-1]} with {ways[0]} ways in" + f" and {ways[1]} of IPv6" * bool(ways[1]))
                file.write("\n")
        if argv[0] not in ("iptables", "ip6tables"):
            return plain(self, argv, timeout, folder, merged)
        assert argv[1:5] == ["-w", "2", "-t", "mangle"]
        return Outcome(argv, *_iptables(table if argv[0] == "iptables" else table6, argv[5:]))

    monkeypatch.setattr(FakeHost, "run", run)
    monkeypatch.setattr(FakeHost, "plays_packets", True, raising=False)
    monkeypatch.setattr(hold, "Queue", FakeQueue)
    write(vm.root / "etc/cloudstack/ips.json", json.dumps(IPS).encode())
    return table


def _iptables(table: Path, words: list[str]) -> tuple[int, str]:
    lines = table.read_text().splitlines()
    verb, rest = words[0], " ".join(words[1:])
    if verb == "-S":
        return 0, table.read_text()
    if verb == "-N":
        lines.append(f"-N {rest}")
    elif verb in ("-A", "-I"):
        lines.append(f"-A {rest}")
    elif verb == "-D":
        if f"-A {rest}" not in lines:
            return 1, "Bad rule (does a matching rule exist in that chain?)."
        lines.remove(f"-A {rest}")
    elif verb == "-F":
        lines = [line for line in lines if not line.startswith(f"-A {rest} ")]
    elif verb == "-X":
        if any(line.endswith(f"-j {rest}") for line in lines):
            return 1, "Device or resource busy"
        lines.remove(f"-N {rest}")
    table.write_text("\n".join(lines) + "\n")
    return 0, ""


def held_order(**more: Any) -> dict:
    return make_order(services=[service("haproxy", "held-restart", hold=DNS)], **more)


def test_requests_wait_in_the_kernel_exactly_as_long_as_the_restart_takes(vm: VM, tables: Path) -> None:
    vm.prepare(held_order())
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert [(one["unit"], one["action"], one["ok"]) for one in report["services"]] == [
        ("haproxy", "held-restart", True)
    ]
    assert (vm.base / "log").read_text() == "restart haproxy with 1 ways in\n"
    assert hold.CHAIN not in tables.read_text()
    assert "haproxy: 3 packets waited for its restart, the longest 0.250 s" in report["notes"]


def test_only_guest_interfaces_are_held_and_only_what_opens_a_connection(vm: VM, tables: Path) -> None:
    host = vm.host()
    assert hold.guest_interfaces(host, "router") == ["eth0"]
    made = [" ".join(rule) for rule in hold.rules(host, DNS, 7)]
    assert made == [
        "-p udp -m multiport --dports 53,67 -j NFQUEUE --queue-num 7 --queue-bypass",
        "-p tcp --syn -m multiport --dports 53 -j NFQUEUE --queue-num 7 --queue-bypass",
    ]
    (vm.root / "etc/cloudstack/ips.json").write_text("{ torn")
    assert hold.guest_interfaces(host, "router") == ["eth0"], "the type's own order of interfaces"
    assert hold.guest_interfaces(host, "vpcrouter") == [], "which tiers there are is not known"


def test_every_tier_of_a_vpc_router_is_held(vm: VM, tables: Path) -> None:
    guest = {"nw_type": "guest", "add": True}
    told = {"id": "ips", "eth1": [{"nw_type": "public", "add": True}], "eth2": [guest], "eth10": [guest]}
    write(vm.root / "etc/cloudstack/ips.json", json.dumps(told).encode())
    write(vm.root / "var/cache/cloud/cmdline", b"template=domP name=r-4-VM type=vpcrouter eth0ip=169.254.1.2\n")
    vm.prepare(held_order(vm_type="vpcrouter"))
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert (vm.base / "log").read_text() == "restart haproxy with 2 ways in\n"


def test_a_vpc_router_is_asked_on_the_address_of_every_tier(vm: VM) -> None:
    tiers = {
        name: [{"nw_type": "guest", "add": True, "public_ip": f"10.1.{n}.1"}] for n, name in ((2, "eth2"), (3, "eth3"))
    }
    told = {"id": "ips", "eth1": [{"nw_type": "public", "add": True, "public_ip": "198.18.1.1"}], **tiers}
    write(vm.root / "etc/cloudstack/ips.json", json.dumps(told).encode())
    asked = [{"kind": "http", "host": "127.0.0.1", "port": 80}, {"kind": "http", "host": "guests", "port": 80}]
    hosts = [check["host"] for check in questions.questions_here(vm.host(), asked)]
    assert hosts == ["127.0.0.1", "10.1.2.1", "10.1.3.1"]


def test_instances_are_those_that_the_vm_has(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FakeHost.run

    def run(self: FakeHost, argv: list[str], timeout: float, folder: str = "/", merged: bool = True) -> Outcome:
        if argv[1] != "list-units":
            return plain(self, argv, timeout, folder, merged)
        assert argv[-1] == "cloud-password-server@*.service"
        return Outcome(argv, 0, "cloud-password-server@10.1.2.1.service loaded active running CloudStack\n")

    monkeypatch.setattr(FakeHost, "run", run)
    units = services.spelled_out(vm.host(), ["haproxy", "cloud-password-server@*"])
    assert units == ["haproxy", "cloud-password-server@10.1.2.1"]


def test_ipv6_guests_wait_too_where_there_are_any(vm: VM, tables: Path) -> None:
    write(vm.root / "proc/net/if_inet6", IF_INET6)
    vm.prepare(held_order())
    assert vm.run("op-1")["phase"] == "Committed"
    assert (vm.base / "log").read_text() == "restart haproxy with 1 ways in and 1 of IPv6\n"
    assert hold.CHAIN not in (vm.base / "mangle6").read_text()


def test_where_ipv6_cannot_be_held_the_others_wait_all_the_same(
    vm: VM, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(vm.root / "proc/net/if_inet6", IF_INET6)

    def only_ipv4(table: Path, words: list[str], plain=_iptables) -> tuple[int, str]:
        return plain(table, words) if table.name == "mangle" else (3, "ip6tables: No chain/target/match by that name.")

    monkeypatch.setitem(globals(), "_iptables", only_ipv4)
    vm.prepare(held_order())
    report = vm.run("op-1")
    assert (vm.base / "log").read_text() == "restart haproxy with 1 ways in\n"
    assert [note for note in report["notes"] if note.startswith("requests of haproxy over IPv6 do not wait")]
    assert hold.CHAIN not in tables.read_text()


def test_requests_wait_from_the_death_of_a_service_until_its_old_files_serve(vm: VM, tables: Path) -> None:
    """Neither a reload nor going back needs a hold as long as the service lives."""
    before = vm.state()
    order = make_order(services=[service("cloud", "restart"), service("haproxy", "reload", hold=DNS)])
    vm.prepare(with_file(order, "/etc/haproxy/haproxy.cfg", b"broken\n"))
    report = vm.run("op-1")
    assert report["phase"] == "RolledBack", report["message"]
    assert (vm.base / "log").read_text().splitlines() == [
        "restart cloud with 0 ways in",
        "reload haproxy with 0 ways in",
        "start haproxy with 1 ways in",
        "restart cloud with 0 ways in",
    ], "what tenants wait for comes first"
    assert [note for note in report["notes"] if "packets waited for its restart" in note]
    assert hold.CHAIN not in tables.read_text()
    after = vm.state()
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == set()


def test_requests_wait_for_a_service_that_dies_while_it_should_settle(
    vm: VM, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Host.wait

    def wait(self: Host, seconds: float) -> None:
        state = systemd.load(str(vm.root), "haproxy")
        if state["done"] == ["reload"] and state["active"] == "active":
            systemd.save(str(vm.root), "haproxy", {**state, "active": "failed", "pid": 0})
        plain(self, seconds)

    monkeypatch.setattr(Host, "wait", wait)
    vm.prepare(make_order(services=[service("haproxy", "reload", hold=DNS)], settle_seconds=0.5))
    report = vm.run("op-1")
    assert report["phase"] == "RolledBack", report["message"]
    assert "became failed (success) after it was active" in report["message"]
    assert (vm.base / "log").read_text().splitlines() == [
        "reload haproxy with 0 ways in",
        "start haproxy with 1 ways in",
    ]
    assert hold.CHAIN not in tables.read_text()


@pytest.mark.parametrize("lingers", [False, True])
def test_a_unit_that_does_not_stop_while_guests_wait_is_killed(
    vm: VM, tables: Path, monkeypatch: pytest.MonkeyPatch, lingers: bool
) -> None:
    said = []
    plain = FakeHost.run

    def run(self: FakeHost, argv: list[str], timeout: float, folder: str = "/", merged: bool = True) -> Outcome:
        if argv[0] == "systemctl" and argv[1] in ("stop", "kill", "start", "restart"):
            said.append(" ".join(argv[1:3]))
            if lingers and argv[1] == "stop":
                return Outcome(argv, 0, "")
            if argv[1] == "kill":
                state = systemd.load(str(vm.root), "haproxy")
                systemd.save(str(vm.root), "haproxy", {**state, "active": "failed", "pid": 0})
                return Outcome(argv, 0, "")
        return plain(self, argv, timeout, folder, merged)

    monkeypatch.setattr(FakeHost, "run", run)
    vm.prepare(make_order(services=[service("haproxy", "held-restart", hold=DNS, stop_seconds=0.1)]))
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert said == ["stop --no-block", *(["kill --signal=KILL"] if lingers else []), "start --"]
    assert bool([note for note in report["notes"] if "was killed" in note]) is lingers
    assert (vm.base / "log").read_text() == "start haproxy with 1 ways in\n"


def test_a_way_back_that_fails_leaves_no_rule_either(vm: VM, tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("the disk is on fire")

    order = make_order(services=[service("haproxy", "reload", hold=DNS)])
    vm.prepare(with_file(order, "/etc/haproxy/haproxy.cfg", b"broken\n"))
    monkeypatch.setattr(switch, "back", broken)
    assert vm.run("op-1")["phase"] == "Inconsistent"
    assert hold.CHAIN not in tables.read_text()


def test_the_ports_of_haproxy_are_those_it_binds(vm: VM) -> None:
    text = b"listen stats\n\tbind 10.1.1.1:8081\nfrontend x\n\tbind 198.18.1.61:80,198.18.1.61:443 ssl\n"
    write(vm.root / "etc/haproxy/haproxy.cfg", text)
    held = {"protocol": "tcp", "ports": [], "binds": "/etc/haproxy/haproxy.cfg"}
    assert hold.ports_of(vm.host(), held) == [80, 443, 8081]


@pytest.mark.parametrize("where", ["queue", "interfaces", "iptables"])
def test_where_nothing_can_be_held_it_restarts_and_says_so(
    vm: VM, tables: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def refuse() -> None:
        raise hold.NotHeld("no packet queue: not permitted")

    if where == "queue":
        monkeypatch.setattr(hold, "Queue", refuse)
    elif where == "interfaces":
        monkeypatch.setattr(hold, "guest_interfaces", lambda host, vm_type: [])
    else:
        monkeypatch.setitem(globals(), "_iptables", lambda table, words: (1, "iptables: No chain/target/match"))
    vm.prepare(held_order())
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert [one["action"] for one in report["services"]] == ["restart"]
    assert any("restarted without holding its requests" in note for note in report["notes"])


def test_what_a_killed_program_left_is_taken_away_by_whoever_comes_next(
    vm: VM, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = vm.state()
    vm.prepare(held_order())

    def dies_while_it_holds() -> None:
        monkeypatch.setattr(services.Services, "_await", lambda *_: os._exit(9))
        vm.run("op-1")

    assert in_child(dies_while_it_holds) == 9
    assert f"-j {hold.CHAIN}" in tables.read_text(), "it did not die while it held"
    vm.run("op-1")
    assert hold.CHAIN not in tables.read_text()
    assert vm.report("op-1")["phase"] == "RolledBack"
    after = vm.state()
    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == set()


def test_rules_that_cloudstack_saved_meanwhile_do_not_come_back_at_the_next_boot(vm: VM, tables: Path) -> None:
    tables.write_text(LEFT)
    kept = "*mangle\n:INPUT ACCEPT [0:0]\nCOMMIT\n"
    ours = f":{hold.CHAIN} - [0:0]\n-A INPUT -i eth0 -j {hold.CHAIN}\n-A {hold.CHAIN} -p udp -j NFQUEUE\n"
    write(vm.root / "etc/iptables/rules.v4", kept.replace("COMMIT", ours + "COMMIT").encode(), 0o640)
    nft = (
        "table ip mangle {\n"
        f"\tchain {hold.CHAIN} {{\n\t\tmeta l4proto udp queue flags bypass to 7\n\t}}\n"
        f'\tchain INPUT {{\n\t\tiifname "eth0" counter jump {hold.CHAIN}\n\t\tcounter accept\n\t}}\n'
        "}\n"
    )
    write(vm.root / "etc/iptables/rules.nftables", nft.encode())
    hold.remove(vm.host())
    assert tables.read_text() == "-P INPUT ACCEPT\n"
    assert (vm.root / "etc/iptables/rules.v4").read_text() == kept
    assert (vm.root / "etc/iptables/rules.v4").stat().st_mode & 0o777 == 0o640
    left = "table ip mangle {\n\tchain INPUT {\n\t\tcounter accept\n\t}\n}\n"
    assert (vm.root / "etc/iptables/rules.nftables").read_text() == left


# ------------------------------------------------------------------------------------------ haproxy's old workers


@pytest.mark.parametrize(("workers", "memory_kb", "refused"), [(2, 300000, False), (3, 300000, True), (1, 1000, True)])
def test_an_haproxy_that_still_drains_is_not_reloaded_once_more(
    vm: VM, workers: int, memory_kb: int, refused: bool
) -> None:
    write(vm.root / "proc/100/comm", b"haproxy\n")
    write(vm.root / "proc/100/task/100/children", b"".join(b"%d " % (200 + n) for n in range(workers)))
    for number in range(workers):
        write(vm.root / f"proc/{200 + number}/comm", b"haproxy\n")
    write(vm.root / "proc/meminfo", b"MemTotal: 500000 kB\nMemAvailable: %d kB\n" % memory_kb)
    drain = {"max_old": 1, "min_memory_bytes": 64 << 20, "wait_seconds": 0.1}
    before = vm.state()
    vm.prepare(make_order(services=[service("haproxy", "reload", drain=drain)], min_memory_bytes=0))
    report = vm.run("op-1")
    if refused:
        assert (report["phase"], report["reason"]) == ("Abandoned", "HaproxyDraining")
        assert vm.state() == before
        assert "reload" not in systemd.load(str(vm.root), "haproxy")["done"]
    else:
        assert report["phase"] == "Committed", report["message"]
        assert systemd.load(str(vm.root), "haproxy")["done"].count("reload") == 1


# ------------------------------------------------------------------------------------------ the way in


def ssh_order(seconds: float) -> dict:
    return make_order(services=[service("ssh", "reload", login_seconds=seconds)])


def test_a_new_login_lets_the_patch_go_on(vm: VM) -> None:
    systemd.install(str(vm.root), "ssh", active=True)
    vm.prepare(ssh_order(20.0))
    seen = []

    def log_in() -> None:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            report = vm.report("op-1")
            if report.get("awaiting") == "login":
                seen.append(vm.session().do_prove_login(1, {"id": "op-1"}))
                return
            time.sleep(0.02)

    assert vm.session().do_prove_login(1, {"id": "op-1"}) == {"awaited": False}, "too early proves nothing"
    other = threading.Thread(target=log_in)
    other.start()
    report = vm.run("op-1")
    other.join()
    assert seen == [{"awaited": True}]
    assert report["phase"] == "Committed", report["message"]
    assert report.get("awaiting") is None


def test_without_a_new_login_the_old_way_in_comes_back(vm: VM) -> None:
    systemd.install(str(vm.root), "ssh", active=True)
    before = vm.state()
    vm.prepare(ssh_order(0.3))
    report = vm.run("op-1")
    assert (report["phase"], report["reason"]) == ("RolledBack", "ServiceFailed")
    assert "no new login was proven" in report["message"]
    assert vm.state() == before
    assert vm.signature() == OLD_SIGNATURE
    assert systemd.load(str(vm.root), "ssh")["done"] == ["reload", "reload"]


# ------------------------------------------------------------------------------------------ others, and honest figures


def test_a_restart_by_cloudstacks_monitoring_is_told_and_does_not_fail_the_patch(
    vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Host.wait

    def wait(self: Host, seconds: float) -> None:
        state = systemd.load(str(vm.root), "haproxy")
        if state["done"] and state["pid"] < 900:  # in the settle time, not while the baseline is taken
            systemd.save(str(vm.root), "haproxy", {**state, "pid": 900})
        plain(self, seconds)

    monkeypatch.setattr(Host, "wait", wait)
    vm.prepare(make_order(services=[service("haproxy", "reload")], settle_seconds=0.3))
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert [note for note in report["notes"] if note.startswith("RestartedByMonitor: haproxy")]


def test_an_answer_that_comes_late_is_slow_and_no_gap() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve() -> None:
        first = True
        while not done.is_set():
            one, _ = listener.accept()
            time.sleep(0.7 if first else 0)
            first = False
            one.recv(1000)
            one.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            one.close()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with questions.GapMeter([{"kind": "http", "host": "127.0.0.1", "port": listener.getsockname()[1]}]) as meter:
        time.sleep(1.0)
    done.set()
    assert meter.gap == 0.0
    assert 0.65 < meter.slowest < 1.2


def test_a_gap_is_measured_from_the_last_answer_to_the_next() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with questions.GapMeter([{"kind": "tcp", "host": "127.0.0.1", "port": port}]) as meter:
        time.sleep(0.2)
        listener.close()
        time.sleep(0.6)
        listener = socket.create_server(("127.0.0.1", port))
        time.sleep(0.3)
    listener.close()
    assert 0.6 <= meter.gap < 0.9


def test_the_timer_behind_sshd_puts_back_the_old_file_only_if_nobody_logged_in(tmp_path: Path) -> None:
    live, old, proof = tmp_path / "sshd_config", tmp_path / "old", tmp_path / "proof"
    programs = tmp_path / "bin"
    programs.mkdir()
    write(programs / "systemctl", f"#!/bin/sh\necho $* >> {tmp_path}/said\n".encode(), 0o755)

    def fire() -> str:
        live.write_text("new")
        old.write_text("old")
        argv = ["/bin/sh", "-c", login._RESTORE, "sysvm", str(proof), str(old), str(live)]
        subprocess.run(argv, env={"PATH": f"{programs}:/usr/bin:/bin"}, check=True)
        return live.read_text()

    assert fire() == "old"
    assert (tmp_path / "said").read_text() == "reload ssh\n"
    proof.touch()
    assert fire() == "new"


def test_the_gap_of_a_service_that_died_is_counted_from_its_last_answer_on_the_way_forward() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    checks = [{"kind": "tcp", "host": "127.0.0.1", "port": port}]
    with questions.GapMeter(checks) as forward:
        time.sleep(0.2)
        listener.close()
        time.sleep(0.2)
    assert forward.silent_since is not None
    time.sleep(0.4)
    with questions.GapMeter(checks, forward.silent_since) as back:
        listener = socket.create_server(("127.0.0.1", port))
        time.sleep(0.3)
    listener.close()
    assert forward.gap is not None
    assert back.gap >= forward.gap + 0.4
    assert back.silent_since is None


# ------------------------------------------------------------------------------------------ slow, or dead


class Dns:
    """A name server that stays silent for its first questions."""

    def __init__(self, silent: int) -> None:
        self.silent = silent
        self.asked = 0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.check = {"kind": "dns", "host": "127.0.0.1", "port": self.socket.getsockname()[1]}
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            question, sender = self.socket.recvfrom(512)
            self.asked += 1
            if self.asked > self.silent:
                self.socket.sendto(question[:2] + b"\x80" + question[3:], sender)


def settled(vm: VM, check: dict, **more: Any) -> dict:
    vm.prepare(make_order(services=[service("haproxy", "none", serving=[check])], settle_seconds=0, **more))
    return vm.run("op-1")


def test_a_question_that_has_no_answer_once_is_asked_again(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Dns(silent=0)
    judged = services.Services.settle

    def settle(self: services.Services, deadline: object) -> None:
        server.silent = server.asked + 2
        judged(self, deadline)

    monkeypatch.setattr(services.Services, "settle", settle)
    report = settled(vm, server.check)
    assert report["phase"] == "Committed", report["message"]


def test_a_service_that_is_active_and_never_answers_is_not_serving(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Dns(silent=0)
    judged = services.Services.settle

    def settle(self: services.Services, deadline: object) -> None:
        server.silent, server.asked = 1000, 0
        judged(self, deadline)

    monkeypatch.setattr(services.Services, "settle", settle)
    report = settled(vm, server.check)
    assert (report["phase"], report["reason"]) == ("RolledBack", "ServiceFailed")
    assert "it no longer answers on dns 127.0.0.1" in report["message"]
    assert server.asked == questions.TRIES


def test_a_service_that_dies_while_it_is_asked_again_is_not_taken_for_a_slow_one(
    vm: VM, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Dns(silent=0)
    asked_again = services.Services._answers_at_last

    def dies(self: services.Services, check: dict, deadline: object) -> bool:
        state = systemd.load(str(vm.root), "haproxy")
        systemd.save(str(vm.root), "haproxy", {**state, "active": "failed", "pid": 0})
        return asked_again(self, check, deadline)

    monkeypatch.setattr(services.Services, "_answers_at_last", dies)
    report = settled(vm, server.check)
    assert (report["phase"], report["reason"]) == ("RolledBack", "ServiceFailed")
    assert "became failed" in report["message"]


def test_the_baseline_asks_again_what_was_silent_and_not_what_refuses() -> None:
    server = Dns(silent=2)
    assert questions.answers_in_time(server.check)
    assert server.asked == 3
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    began = time.monotonic()
    assert not questions.answers_in_time({"kind": "tcp", "host": "127.0.0.1", "port": port})
    assert time.monotonic() - began < questions.ASK_TIMEOUT


@pytest.mark.parametrize(("said", "serves"), [(b"Name: HAProxy\nVersion: 2.6\n", True), (b"Unknown command\n", False)])
def test_haproxy_answers_on_its_command_socket(tmp_path: Path, said: bytes, serves: bool) -> None:
    path = tmp_path / "admin.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        one, _ = listener.accept()
        assert one.recv(100) == b"show info\n"
        one.sendall(said)
        one.close()

    threading.Thread(target=serve, daemon=True).start()
    check = {"kind": "haproxy", "host": str(path), "port": 0}
    assert questions.answers(check) is serves
    listener.close()
    path.unlink()
    assert not questions.answers(check)
