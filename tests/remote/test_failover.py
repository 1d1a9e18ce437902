"""A restart of keepalived in a patch: the role is kept, moved with leave, or the patch goes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.remote import systemd
from tests.remote.vm import VM, FakeHost, make_order, service, write

from sysvm.patching.remote import conntrackd, failover, redundancy, worker
from sysvm.patching.remote.host import Outcome
from sysvm.patching.remote.store import Store

OTHER = "02:aa:00:00:00:00"


class Pair:
    """The router and its peer. A restart of keepalived gives the gateway away, as `nopreempt` does."""

    def __init__(self, root: Path, *, primary: bool) -> None:
        self.root = root
        self.primary = primary
        self.answers = [OTHER]
        """Who else answers while this router is BACKUP."""
        self.asked: list[list[str]] = []
        self.stolen: list[str] = []
        """Who answers although this router is PRIMARY."""
        self.notify_kills = False
        """The notify script's restart of conntrackd meets one that is starting."""

    def host(self) -> FakeHost:
        pair = self

        class Host(FakeHost):
            def run(self, argv, timeout, folder="/", merged=True):
                if argv[0] == "conntrackd":
                    pair.asked.append(argv)
                    return Outcome(argv, 0, "")
                done = super().run(argv, timeout, folder, merged)
                if argv[:2] == ["systemctl", "restart"] and argv[-1] == "keepalived" and pair.notify_kills:
                    pair.kill_conntrackd()
                if argv[:2] == ["systemctl", "restart"] and argv[-1] == "keepalived" and pair.primary:
                    pair.primary = False
                    stopped = {**systemd.load(str(pair.root), "dnsmasq"), "active": "inactive", "pid": 0}
                    systemd.save(str(pair.root), "dnsmasq", stopped)
                return done

        return Host(str(self.root))

    def kill_conntrackd(self) -> None:
        """With its lock file there it does not start again."""
        leave_lock(self.root)
        state = {**systemd.load(str(self.root), "conntrackd"), "active": "activating", "sub": "auto-restart", "pid": 0}
        systemd.save(str(self.root), "conntrackd", state)

    def gateways(self, host, ask=True):
        answers = self.stolen if self.primary else self.answers
        return [{"address": "10.1.1.1", "held": self.primary, "mac": "02:4c", "answers": answers if ask else None}]

    def sample(self, host):
        return {
            "keepalived_active": True,
            "redundant_state": "PRIMARY" if self.primary else "BACKUP",
            "heartbeat_age_seconds": 1.0,
            "public_up": self.primary,
            "conntrackd_active": systemd.load(str(self.root), "conntrackd")["active"] == "active",
            "conntrackd_lock": None,
            "flows": 1,
            "replicated_flows": 1,
            "gateways": self.gateways(host),
        }


def leave_lock(root: Path) -> None:
    write(root / "etc/conntrackd/conntrackd.conf", b"General {\n    LockFile /run/lock/conntrackd.lock\n}\n")
    write(root / "run/lock/conntrackd.lock", b"broken")
    systemd.needs(str(root), "conntrackd", "run/lock/conntrackd.lock")


@pytest.fixture
def primary(vm: VM, monkeypatch: pytest.MonkeyPatch) -> Pair:
    pair = Pair(vm.root, primary=True)
    for unit in ("keepalived", "conntrackd", "dnsmasq"):
        systemd.install(str(vm.root), unit, active=True)
    monkeypatch.setattr(redundancy, "gateways", pair.gateways)
    monkeypatch.setattr(redundancy, "sample", pair.sample)
    monkeypatch.setattr(redundancy, "settings", lambda host: (0.01, []))
    monkeypatch.setattr(failover, "LOOK_EVERY", 0.01)
    return pair


@pytest.fixture
def backup(primary: Pair) -> Pair:
    primary.primary = False
    systemd.install(str(primary.root), "dnsmasq", active=False)
    return primary


def order(*, may_fail_over: bool = False, unit: str = "keepalived") -> dict:
    limits = {"may_fail_over": may_fail_over, "wait_seconds": 0.3, "stable_seconds": 0.05}
    services = [
        service("dnsmasq", "none", follows_role=True),
        service("keepalived", "none"),
        service("conntrackd", "none"),
    ]
    for each in services:
        if each["unit"] == unit:
            each.update(action="restart", pair=limits)
    return make_order(services=services)


def run(vm: VM, pair: Pair, wanted: dict) -> dict:
    vm.prepare(wanted)
    host = pair.host()
    worker.run(host, Store(host), "op-1")
    return vm.report("op-1")


def test_a_backup_restarts_its_keepalived_and_stays_backup(vm, backup):
    report = run(vm, backup, order())
    assert report["phase"] == "Committed", report["message"]
    assert "this router is BACKUP and nothing contradicts it, after keepalived" in report["notes"]


def test_a_primary_restarts_its_keepalived_only_with_leave(vm, primary):
    before = vm.state()
    report = run(vm, primary, order())
    assert (report["phase"], report["reason"]) == ("RolledBack", "FailoverNotAllowed")
    assert primary.primary, "nothing was restarted, forward or back"
    assert vm.state() == before


def test_with_leave_the_role_moves_and_what_belongs_to_it_is_not_missed(vm, primary):
    """dnsmasq was active and is stopped by the notify script: right on a BACKUP, and never started there."""
    report = run(vm, primary, order(may_fail_over=True))
    assert report["phase"] == "Committed", report["message"]
    assert not primary.primary
    assert "this router is BACKUP and nothing contradicts it, after keepalived" in report["notes"]
    assert systemd.load(str(vm.root), "dnsmasq")["active"] == "inactive"


@pytest.mark.parametrize(("answers", "reason"), [(["02:aa", "02:bb"], "DuplicatePrimary"), ([], "NoSinglePrimary")])
def test_a_failover_without_exactly_one_primary_goes_back(vm, primary, answers, reason):
    before = vm.state()
    primary.answers = answers
    report = run(vm, primary, order(may_fail_over=True))
    assert (report["phase"], report["reason"]) == ("RolledBack", reason)
    assert "has no role that lasts" in report["message"]
    assert vm.state() == before
    assert systemd.load(str(vm.root), "dnsmasq")["active"] == "inactive", "two DHCP servers in one guest network"


def test_a_patch_after_which_the_router_has_no_clear_role_goes_back(vm, backup, monkeypatch):
    monkeypatch.setattr(failover, "CLEAR_SECONDS", 0.05)
    vm.prepare(order(unit="none"))
    samples = iter([Pair.sample(backup, None)])
    wrong = dict(Pair.sample(backup, None), heartbeat_age_seconds=30.0)
    monkeypatch.setattr(redundancy, "sample", lambda host: next(samples, wrong))
    host = backup.host()
    worker.run(host, Store(host), "op-1")
    report = vm.report("op-1")
    assert (report["phase"], report["reason"]) == ("RolledBack", "NoSinglePrimary")
    assert "it was BACKUP before" in report["message"]


def test_a_router_whose_role_was_not_clear_before_is_not_judged_by_it(vm, backup, monkeypatch):
    wrong = dict(Pair.sample(backup, None), heartbeat_age_seconds=30.0)
    monkeypatch.setattr(redundancy, "sample", lambda host: wrong)
    assert run(vm, backup, order(unit="none"))["phase"] == "Committed"


def test_conntrackd_is_filled_again_after_its_restart(vm, backup):
    assert run(vm, backup, order(unit="conntrackd"))["phase"] == "Committed"
    assert backup.asked == [["conntrackd", "-n"]]


def test_a_primary_sends_its_connections_again_and_keeps_its_role(vm, primary):
    assert run(vm, primary, order(unit="conntrackd"))["phase"] == "Committed"
    assert primary.asked == [["conntrackd", "-R"], ["conntrackd", "-B"]]
    assert primary.primary


LEFT = "conntrackd was killed while it started and left its lock file /run/lock/conntrackd.lock: removed, and it was"


def test_a_conntrackd_that_the_notify_script_kills_as_it_starts_is_started_again(vm, backup):
    """Its lock file would keep it from starting for ever, and nobody else removes it."""
    backup.notify_kills = True
    report = run(vm, backup, order())
    assert report["phase"] == "Committed", report["message"]
    assert any(note.startswith(LEFT) for note in report["notes"]), report["notes"]
    assert systemd.load(str(vm.root), "conntrackd")["active"] == "active"
    assert backup.asked == [["conntrackd", "-n"]], "what it forgot is asked for"


def test_a_conntrackd_that_is_killed_in_its_own_restart_is_started_again(vm, backup):
    leave_lock(vm.root)
    report = run(vm, backup, order(unit="conntrackd"))
    assert report["phase"] == "Committed", report["message"]
    assert any(note.startswith(LEFT) for note in report["notes"]), report["notes"]


def test_a_conntrackd_that_was_dead_before_is_not_started(vm, backup):
    backup.kill_conntrackd()
    report = run(vm, backup, order(unit="none"))
    assert report["phase"] == "Committed", report["message"]
    assert systemd.load(str(vm.root), "conntrackd")["active"] == "activating"
    assert (vm.root / "run/lock/conntrackd.lock").exists()


def test_the_lock_file_of_a_conntrackd_that_runs_is_left_alone(vm, backup, monkeypatch):
    """It hangs, or takes long to start: that is another trouble, and goes back."""
    monkeypatch.setattr(conntrackd, "LOOK_EVERY", 0.001)
    backup.notify_kills = True
    write(vm.root / "proc/77/cmdline", b"/usr/sbin/conntrackd\0-C\0/etc/conntrackd/conntrackd.conf\0")
    report = run(vm, backup, order())
    assert (report["phase"], report["reason"]) == ("RolledBack", "NoSinglePrimary")
    assert (vm.root / "run/lock/conntrackd.lock").exists()


def test_a_role_that_comes_and_goes_is_none(vm, backup, monkeypatch):
    turns = iter(range(10**6))

    def flapping(host):
        backup.primary = next(turns) % 2 == 1
        return Pair.sample(backup, host)

    monkeypatch.setattr(redundancy, "sample", flapping)
    report = run(vm, backup, order())
    assert (report["phase"], report["reason"]) == ("RolledBack", "NoSinglePrimary")


@pytest.mark.parametrize("limits", [{"may_fail_over": "yes"}, {"wait_seconds": -1}, {"stable_seconds": None}])
def test_an_order_with_strange_limits_is_refused(vm, primary, limits):
    wanted = order(may_fail_over=True)
    wanted["services"][1]["pair"].update(limits)
    answer = vm.session().do_begin
    with pytest.raises(Exception, match="order is refused"):
        answer(1, {"order": wanted})
