"""The fence: nothing of CloudStack's runs at the moment of the switch, and nobody is kept out for longer than that."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time

import pytest
from tests.remote.judging import count_changes, killed_at, recover_by_next_session
from tests.remote.test_refusals import fake_process
from tests.remote.vm import make_order, with_file, write

from sysvm.patching.remote import actors, fence, store, switch
from sysvm.patching.remote.host import Outcome

NFT = ".systemd/nft"


def messages(report: dict) -> dict[str, str]:
    return {step["name"]: step["message"] for step in report["steps"]}


def locks(vm) -> list[str]:
    return sorted(path.name for path in (vm.root / "tmp").glob("*-biglock.lock"))


@pytest.fixture
def seen(vm, monkeypatch):
    """What was held at each move of the switch."""
    found = []
    forward = switch.forward

    def look(move, journal, number):
        names = locks(vm)
        found.append((names, (vm.root / NFT).exists()))
        forward(move, journal, number)

    monkeypatch.setattr(switch, "forward", look)
    return found


def test_during_every_move_the_lock_is_ours_and_new_connections_wait_and_afterwards_neither(vm, seen, monkeypatch):
    write(vm.root / "etc/ssh/sshd_config", b"# Port 22\nPort 3922\nMatch User x\n  Port 5\n")
    rules = []
    vm.prepare(make_order())
    run = fence.Fence.straddled

    def straddled(self):
        rules.append(((vm.root / NFT).exists(), locks(vm)))
        run(self)

    monkeypatch.setattr(fence.Fence, "straddled", straddled)
    report = vm.run("op-1")
    assert report["phase"] == "Committed"
    assert len(seen) > 3
    assert all(len(names) == 1 and names[0].split("-")[1] == str(os.getpid()) and held for names, held in seen)
    assert rules == [(False, [])]
    assert locks(vm) == []
    assert "at most 1 s" in messages(report)["Fence"]
    assert "were held for" in messages(report)["Switch"]


def test_the_hold_names_the_port_of_sshd_and_ends_by_itself(vm):
    write(vm.root / "etc/ssh/sshd_config", b"Port 3922\n")
    hold = fence.SynHold(vm.host())
    hold.begin()
    said = (vm.root / NFT).read_text()
    assert "3922 timeout 1s" in said
    assert "flags timeout" in said
    hold.end()
    assert not (vm.root / NFT).exists()


def test_without_nft_it_is_told_and_the_switch_goes_on(vm, monkeypatch):
    monkeypatch.setattr(type(vm.host()), "filters_packets", lambda self: False)
    vm.prepare(make_order())
    report = vm.run("op-1")
    assert report["phase"] == "Committed"
    assert "nft is missing" in messages(report)["Fence"]


def test_a_kernel_that_refuses_the_set_is_told_too(vm, monkeypatch):
    host = vm.host()
    run = type(host).run

    def refuse(self, argv, *rest, **named):
        if argv[0] == "nft" and argv[1].startswith("add"):
            return fence_outcome(argv)
        return run(self, argv, *rest, **named)

    monkeypatch.setattr(type(host), "run", refuse)
    vm.prepare(make_order())
    report = vm.run("op-1")
    assert report["phase"] == "Committed"
    assert "Operation not supported" in messages(report)["Fence"]


def fence_outcome(argv):
    return Outcome(argv, 1, "Error: Could not process rule: Operation not supported\n")


@pytest.mark.parametrize(
    ("argv", "busy"),
    [
        (["python3", "/opt/cloud/bin/configure.py", "cmd_line.json"], True),
        (["/usr/bin/python", "./update_config.py", "x.json"], True),
        (["bash", "-c", "cd /opt/cloud/bin && ./configure.py x.json"], True),
        (["bash", "-c", "cd / && /opt/cloud/bin/vr_cfg.sh -c /var/cache/cloud/x"], True),
        (["/bin/bash", "/opt/cloud/bin/keystore-setup", "x"], True),
        (["/usr/bin/python", "/root/monitorServices.py", "basic"], True),
        (["/usr/bin/python", "/root/health_checks/dns_check.py", "basic"], True),
        (["scp", "-t", "/var/cache/cloud"], True),
        (["/usr/bin/python", "/opt/cloud/bin/passwd_server_ip.py", "10.1.1.1"], False),
        (["vi", "/opt/cloud/bin/configure.py"], False),
        (["sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"], False),
        (["sshd: root@pts/0"], False),
        (["sshd: admin [priv]"], False),
        (["/usr/sbin/dnsmasq", "-x", "/run/dnsmasq.pid"], False),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_counts_as_a_command_of_cloudstack(vm, argv, busy):
    fake_process(vm, 80, *argv)
    assert bool(actors.busy(vm.host())) is busy


def made(vm, pid: int, seconds: float) -> None:
    """A process of the VM, which is up for 5000 s, is so old."""
    stat = vm.root / "proc" / str(pid) / "stat"
    stat.write_text(stat.read_text().replace("490000", str(int((5000 - seconds) * 100))))


@pytest.mark.parametrize("title", ["sshd: [accepted]", "sshd: root [net]", "sshd-auth: root [preauth]"])
def test_a_login_on_its_way_counts_for_as_long_as_a_login_takes(vm, title):
    """A client that connects and says nothing would hold a patch until sshd shuts it out, two minutes later."""
    fake_process(vm, 80, title)
    made(vm, 80, actors.LOGIN_SECONDS - 1)
    assert [process.pid for process in actors.busy(vm.host())] == [80]
    fake_process(vm, 80, title)
    made(vm, 80, actors.LOGIN_SECONDS + 1)
    assert not actors.busy(vm.host())
    vm.prepare(make_order())
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert "1 connections to sshd that do not log in were not waited for" in messages(report)["Fence"]


@pytest.mark.parametrize("title", ["sshd: root@notty", "/usr/sbin/sshd", "sshd: root", "sshd: root [priv]"])
def test_a_session_that_has_not_started_its_command_yet_counts_and_one_at_work_does_not(vm, title):
    fake_process(vm, 70, "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups")
    fake_process(vm, 80, title)
    stat = vm.root / "proc/80/stat"
    stat.write_text(stat.read_text().replace("(sh) S 1 ", "(sh) S 70 "))
    assert not actors.busy(vm.host()), "it is old"
    stat.write_text(stat.read_text().replace("490000", "499950"))
    assert [process.pid for process in actors.busy(vm.host())] == [80]
    fake_process(vm, 81, "python3", "-c", "something else")
    child = vm.root / "proc/81/stat"
    child.write_text(child.read_text().replace("(sh) S 1 ", "(sh) S 80 "))
    assert not actors.busy(vm.host())
    child.write_text(child.read_text().replace("490000", "499950"))
    assert [process.pid for process in actors.busy(vm.host())] == [81], "a shell about to start something"
    fake_process(vm, 81, "python3", "-c", "from sysvm_remote.main import main")
    child.write_text(child.read_text().replace("(sh) S 1 ", "(sh) S 80 ").replace("490000", "499950"))
    assert not actors.busy(vm.host()), "the operator's own"


def test_a_connection_that_waits_for_sshd_counts(vm):
    head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n"
    row = "   0: 00000000:{0:04X} 00000000:0000 {1} 00000000:{2:08X} 00:00000000 00000000 0 0 1 1 0 100\n"
    for port, state, waiting, arriving in [
        (3922, "0A", 0, False),
        (3922, "0A", 1, True),
        (3922, "03", 0, True),
        (80, "0A", 4, False),
        (3922, "01", 99, False),
    ]:
        write(vm.root / "proc/net/tcp", (head + row.format(port, state, waiting)).encode())
        assert actors.arriving(vm.host(), [3922]) is arriving


def test_the_main_process_of_a_unit_stays_and_its_children_are_waited_for(vm):
    fake_process(vm, 80, "python3", "/opt/cloud/bin/some_server.py")
    write(vm.root / "proc/80/cgroup", b"1:name=systemd:/x\n0::/system.slice/some.service\n")
    assert not actors.busy(vm.host())
    write(vm.root / "proc/80/cgroup", b"0::/system.slice/cron.service\n")
    assert actors.busy(vm.host())


def test_commands_that_end_are_waited_for_and_the_step_says_which(vm):
    vm.prepare(make_order())
    fake_process(vm, 78, "python3", "/opt/cloud/bin/configure.py", "cmd_line.json")
    timer = threading.Timer(0.4, shutil.rmtree, [vm.root / "proc/78"])
    timer.start()
    report = vm.run("op-1")
    timer.join()
    assert report["phase"] == "Committed", report["message"]
    said = messages(report)["Fence"]
    assert "configure.py" in said
    assert float(said.split("waited for ")[1].split(" s")[0]) >= 0.3


def test_a_command_that_ran_through_the_switch_is_waited_for_and_one_that_stays_is_told(vm, monkeypatch):
    monkeypatch.setattr(fence, "STRADDLING_SECONDS", 0.2)
    forward = switch.forward

    def begin(move, journal, number):
        fake_process(vm, 79, "python3", "/opt/cloud/bin/configure.py", "late.json")
        forward(move, journal, number)

    monkeypatch.setattr(switch, "forward", begin)
    vm.prepare(make_order())
    report = vm.run("op-1")
    assert report["phase"] == "Committed"
    assert any("late.json" in note for note in report["notes"])


# ------------------------------------------------------------------------------------ biglock


def test_a_script_that_holds_the_lock_is_waited_for_and_refuses_after_its_time(vm, monkeypatch):
    monkeypatch.setattr(fence, "LOCK_SECONDS", 0.3)
    vm.prepare(make_order())
    before = vm.texts()
    fake_process(vm, 4242, "sleep", "9")
    theirs = vm.root / f"tmp/{int(time.time() * 1e9) - 10**9}-4242-biglock.lock"
    theirs.write_text("root 4242 netusage.sh\n")
    report = vm.run("op-1")
    assert (report["phase"], report["reason"]) == ("Abandoned", "VMBusy")
    assert theirs.name in report["message"]
    assert locks(vm) == [theirs.name]
    theirs.unlink()
    assert vm.texts() == before


def test_the_lock_of_a_dead_process_keeps_nobody(vm):
    theirs = vm.root / "tmp/1000000000000000000-4243-biglock.lock"
    vm.prepare(make_order())
    theirs.write_text("root 4243 netusage.sh\n")
    assert vm.run("op-1")["phase"] == "Committed"
    assert theirs.exists()


# ------------------------------------------------------------------------------------ leftovers


def test_killed_at_any_change_of_the_fence_nothing_of_it_stays(vm):
    vm.prepare(make_order())
    saved = b"table ip filter {\n\tchain INPUT {\n\t}\n}\n"
    ours = b"table inet sysvm_fence {\n\tset ports {\n\t\ttype inet_service\n\t}\n}\n"
    write(vm.root / "etc/iptables/rules.nftables", saved + ours + saved, 0o600)
    vm.keep()
    names = count_changes(vm, lambda: vm.run("op-1"))
    first = names.index("nft")
    last = len(names) - names[::-1].index("nft")
    for number in range(max(1, first - 4), last + 3):
        vm.reset()
        assert killed_at(lambda: vm.run("op-1"), "kill-after", number) == 137
        recover_by_next_session(vm) if number % 2 else vm.recover()
        assert locks(vm) == [], names[number - 1]
        assert not (vm.root / NFT).exists(), names[number - 1]
        if number > first:
            rules = vm.root / "etc/iptables/rules.nftables"
            assert rules.read_bytes() == saved + saved
            assert rules.stat().st_mode & 0o777 == 0o600


def test_rules_saved_meanwhile_lose_our_table_and_nothing_else():
    others = ("table ip x {\n\tset a {\n\t}\n}\n", "table ip6 y {\n}\n")
    ours = "table inet sysvm_fence { # handle 3\n\tset ports {\n\t}\n}\n"
    assert fence.without_table(ours.join(others)) == "".join(others)


def test_the_marks_of_other_patchers_are_compared_right_before_the_switch(vm):
    order = make_order(payload=None)
    vm.prepare(order)
    assert json.loads((vm.root / "var/lib/sysvm/operations/op-1/marks.json").read_text())
    write(vm.root / "usr/share/cloud/cloud-scripts.tgz", b"another payload")
    report = vm.run("op-1")
    assert (report["phase"], report["reason"]) == ("Abandoned", "OtherActor")
    assert "cloud-scripts.tgz" in report["message"]


# ------------------------------------------------------------------------------------ what others left


@pytest.mark.parametrize("works", [True, False])
def test_a_stale_payload_goes_with_the_switch_and_comes_back_with_it(vm, works):
    stale = vm.root / "var/cache/cloud/cloud-scripts.tgz"
    write(stale, b"a time bomb", age=1900)
    script = vm.root / "var/cache/cloud/patch-sysvms.sh"
    write(script, b"#!/bin/bash\n", age=1900)
    before = vm.state()
    vm.prepare(make_order() if works else with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    assert stale.exists()
    report = vm.run("op-1")
    assert report["phase"] == ("Committed" if works else "RolledBack")
    assert any(str(stale.name) in note and "next boot" in note for note in report["notes"])
    assert stale.exists() is not works
    assert script.exists(), "it harms nobody"
    if not works:
        assert vm.state() == before


def test_a_stale_payload_is_left_alone_while_cloudstack_patches(vm):
    write(vm.root / "var/cache/cloud/cloud-scripts.tgz", b"in work", age=1900)
    assert actors.stale_payloads(vm.host())
    fake_process(vm, 77, "/bin/bash", "/var/cache/cloud/patch-sysvms.sh")
    assert not actors.stale_payloads(vm.host())


def test_backups_are_bounded_by_bytes_and_the_newest_stays(vm, monkeypatch):
    for number in range(1, 4):
        name = f"op-{number}"
        vm.prepare(with_file(make_order(name, keep_backups=3), "/root/func.sh", b"x" * 5000 + str(number).encode()))
        vm.run(name)
    assert [operation.id for operation, _ in vm.store().backups()] == ["op-3", "op-2", "op-1"]
    monkeypatch.setattr(store, "BACKUP_SHARE", 0.0)
    vm.store().prune(3)
    assert [operation.id for operation, _ in vm.store().backups()] == ["op-3"]
    assert not list((vm.root / "opt").glob(".sysvm-op-1")) + list((vm.root / "opt").glob(".sysvm-op-2"))
