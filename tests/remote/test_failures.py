"""A patch that fails at any step ends with the VM as it was, services included, and says what failed.

Or it says that the VM is inconsistent, with a signature that CloudStack takes for no patch.
"""

import errno
import os
import shutil

import pytest
from tests.remote import systemd
from tests.remote.judging import MODES, Judge, count_changes, killed_at
from tests.remote.vm import (
    NEW_SIGNATURE,
    OLD_SIGNATURE,
    SIGNATURE,
    TGZ,
    in_child,
    make_order,
    send,
    service,
    with_file,
    write,
)

from faults.hooks import Hook
from sysvm.patching.remote import files, switch, transaction, worker
from sysvm.patching.remote.failures import Failure
from sysvm.patching.remote.host import Outcome
from sysvm.patching.remote.transaction import Transaction, tidy

ALL_WELL = {"haproxy": "active", "cloud": "active", "dnsmasq": "inactive"}


def rolled_back(vm, order):
    before = vm.state(folder_times=True)
    vm.prepare(order)
    report = vm.run(order["id"])
    assert report["phase"] == "RolledBack", report["message"]
    after = vm.state(folder_times=True)
    assert after == before
    assert vm.systemd() == ALL_WELL
    assert vm.signature() == OLD_SIGNATURE
    assert "wholly as it was" in report["message"]
    return report


def test_a_validator_that_refuses_takes_everything_back(vm):
    order = with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"invalid\n")
    report = rolled_back(vm, order)
    assert report["reason"] == "ServiceFailed"
    assert report["step"] == "Services"
    assert "unknown keyword" in report["message"]
    assert "reload" not in systemd.load(str(vm.root), "haproxy")["done"]


def test_a_service_that_dies_of_its_file_is_started_again_with_the_old_one(vm):
    order = with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n")
    report = rolled_back(vm, order)
    assert report["reason"] == "ServiceFailed"
    assert "haproxy" in report["message"]
    assert "last words" in report["message"]
    assert [s["ok"] for s in report["services"] if s["unit"] == "haproxy"] == [False, True]
    assert [s["restoring"] for s in report["services"] if s["unit"] == "haproxy"] == [False, True]


def test_a_service_that_starts_again_and_again_does_not_pass_for_active(vm):
    order = with_file(make_order(settle_seconds=0.05), "/etc/haproxy/haproxy.cfg", b"unstable\n")
    report = rolled_back(vm, order)
    assert report["reason"] == "ServiceFailed"
    assert "started again" in report["message"]


def test_content_that_is_not_as_ordered_after_the_switch_fails_verification(vm, monkeypatch):
    monkeypatch.setattr(Transaction, "differences", lambda self: ["/opt/cloud/bin/configure.py"])
    report = rolled_back(vm, make_order())
    assert (report["reason"], report["step"]) == ("VerifyFailed", "Verify")
    assert "configure.py" in report["message"]


def test_a_health_check_that_newly_fails_takes_back_and_one_that_failed_before_does_not(vm):
    script = b"#!/bin/sh\n[ $1 = basic ] || exit 0\necho said\ngrep -q old /opt/../%s/root/func.sh || exit 1\n"
    write(vm.root / "root/health_checks/new_check.py", script % str(vm.root).encode(), 0o755)
    write(vm.root / "root/health_checks/always_check.py", b"#!/bin/sh\necho bad\nexit 1\n", 0o755)
    write(vm.root / "root/health_checks/router_version_check.py", b"#!/bin/sh\necho bad\nexit 1\n", 0o755)
    order = with_file(make_order(run_checks=True), "/root/func.sh", b"new functions\n")
    report = rolled_back(vm, order)
    assert report["reason"] == "VerifyFailed"
    assert "new_check.py" in report["message"]
    assert "always_check.py" not in report["message"]

    order = with_file(make_order("op-2", run_checks=True, ignored_checks=["new_check.py"]), "/root/func.sh", b"new!\n")
    vm.prepare(order)
    assert vm.run("op-2")["phase"] == "Committed"


def test_the_time_is_up_before_the_commit_and_it_goes_back(vm):
    report = rolled_back(vm, make_order(services=[service("haproxy", "none")], settle_seconds=5, timeout_seconds=0.3))
    assert report["reason"] == "TimedOut"


def test_a_hand_edited_signature_comes_back_as_it_was(vm):
    write(vm.root / SIGNATURE, b"edited by hand", 0o600, 99)
    before = vm.state()
    vm.prepare(with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    assert vm.run("op-1")["phase"] == "RolledBack"
    assert vm.state() == before


@pytest.mark.parametrize("missing", [SIGNATURE, TGZ])
def test_what_was_missing_is_missing_again(vm, missing):
    (vm.root / missing).unlink()
    before = vm.state()
    vm.prepare(with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    assert vm.run("op-1")["phase"] == "RolledBack"
    assert vm.state() == before
    vm.prepare(make_order("op-2"))
    assert vm.run("op-2")["phase"] == "Committed"
    worker.back(vm.host(), vm.store(), "op-2")
    assert vm.report("op-2")["phase"] == "RolledBack"
    assert vm.state() == before


# ------------------------------------------------------------------------------------ the way back fails


@pytest.mark.parametrize("lost", ["tree", "file", "signature"])
def test_a_destroyed_backup_is_inconsistent_loudly_and_keeps_the_zeros(vm, lost):
    order = with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n")
    vm.prepare(order)
    stage = vm.root / "opt/.sysvm-op-1"
    host = vm.host()
    run = host.run

    def destroy(argv, *rest, **named):
        if argv[:2] == ["systemctl", "reload"]:
            if lost == "tree":
                shutil.rmtree(stage / "trees/0/cloud")
            elif lost == "signature":
                (stage / "back/signature").unlink()
            else:
                for name in os.listdir(stage / "back"):
                    if name.startswith("f"):
                        (stage / "back" / name).unlink()
        return run(argv, *rest, **named)

    host.run = destroy
    worker.run(host, vm.store(), "op-1")

    report = vm.report("op-1")
    assert (report["phase"], report["reason"]) == ("Inconsistent", "Inconsistent")
    assert set(vm.signature()) == {"0"}
    for word in ("haproxy", "going back failed", "/opt/.sysvm-op-1", "--accept op-1"):
        assert word in report["message"]
    # Nothing more happens by itself: not at boot, not by the next order.
    vm.recover()
    assert vm.report("op-1")["phase"] == "Inconsistent"
    with pytest.raises(Failure) as refused:
        vm.prepare(make_order("op-2"))
    assert refused.value.reason == "Inconsistent"
    assert not refused.value.retryable


def test_a_service_that_does_not_come_back_is_inconsistent(vm):
    vm.prepare(with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    host = vm.host()
    run = host.run

    def stay_down(argv, *rest, **named):
        if argv[:2] in (["systemctl", "start"], ["systemctl", "restart"]):
            return Outcome(argv, 1, "no")
        return run(argv, *rest, **named)

    host.run = stay_down
    worker.run(host, vm.store(), "op-1")
    assert vm.report("op-1")["phase"] == "Inconsistent"
    assert set(vm.signature()) == {"0"}


def test_a_signature_that_speaks_of_nothing_is_no_reason_to_go_back_from_what_was_verified(vm):
    vm.prepare(make_order())
    host = vm.host()
    run = host.run

    def interfere(argv, *rest, **named):
        if argv[:2] == ["systemctl", "reload"]:
            (vm.root / SIGNATURE).write_text("c" * 32)
        return run(argv, *rest, **named)

    host.run = interfere
    worker.run(host, vm.store(), "op-1")
    report = vm.report("op-1")
    assert (report["phase"], report["reason"]) == ("Committed", "SupersededExternally"), report["message"]
    assert "somebody else" in report["message"]
    assert vm.signature() == NEW_SIGNATURE


# ------------------------------------------------------------------------------------ by hand, and killed


def test_killed_while_a_person_takes_it_back_the_vm_is_old_or_new(vm):
    judge = Judge(vm)
    vm.prepare(make_order())
    vm.run("op-1")
    judge.learn_new()
    vm.keep()

    def back():
        worker.back(vm.host(), vm.store(), "op-1")

    names = count_changes(vm, back)
    for number in range(1, len(names) + 1):
        vm.reset()
        mode = MODES[number // 2 % 2]
        where = f"{mode} {number} {names[number - 1]}"
        assert killed_at(back, mode, number) == 137, where
        judge.settle_and_judge(where, at_boot=number % 2 == 0)


def test_only_the_latest_can_be_taken_back_and_only_untouched(vm):
    vm.prepare(make_order(keep_backups=5))
    vm.run("op-1")
    vm.prepare(with_file(make_order("op-2", keep_backups=5), "/root/func.sh", b"newer functions\n"))
    vm.run("op-2")
    with pytest.raises(Failure, match="only the latest"):
        worker.back(vm.host(), vm.store(), "op-1")
    backup = next((vm.root / "opt/.sysvm-op-2/back").glob("f*"))
    backup.unlink()
    state = vm.state()
    with pytest.raises(Failure, match="no way back"):
        worker.back(vm.host(), vm.store(), "op-2")
    assert vm.state() == state


def test_a_stop_start_unit_is_running_again_whatever_fails(vm):
    vm.prepare(make_order())
    assert in_child(lambda: vm.run("op-1")) == 0
    assert vm.systemd() == ALL_WELL
    session = vm.session()
    order = with_file(make_order("op-2"), "/etc/haproxy/haproxy.cfg", b"broken\n")
    begun = session.do_begin(1, {"order": order})
    send(session, begun["missing"])
    session.do_build(2, {})
    session.let_go()
    assert vm.run("op-2")["phase"] == "RolledBack"
    assert vm.systemd() == ALL_WELL


# ------------------------------------------------------------------------------------ refused for a while


def phase(vm) -> str:
    report = vm.store().operation("op-1").report()
    return report["phase"] if report else ""


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EINTR])
@pytest.mark.parametrize("name", ["record", "exchange", "rename", "fsync"])
def test_what_the_system_refuses_for_a_moment_on_the_way_back_is_tried_again(vm, monkeypatch, code, name):
    monkeypatch.setattr(transaction, "BACK_AGAIN_SECONDS", (0.0, 0.0, 0.0))
    refused: list[str] = []

    def refuse(change):
        if change == name and len(refused) < 3 and phase(vm) == "RollingBack":
            refused.append(change)
            raise OSError(code, os.strerror(code), change)

    Hook.arm_here(1, before=refuse, last=1 << 30)
    try:
        rolled_back(vm, with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    finally:
        Hook.disarm()
    assert refused


def test_what_the_system_refuses_for_ever_is_inconsistent_with_its_words(vm, monkeypatch):
    monkeypatch.setattr(transaction, "BACK_AGAIN_SECONDS", (0.0, 0.0, 0.0))
    vm.prepare(with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))

    def refuse(change):
        if change == "exchange" and phase(vm) == "RollingBack":
            raise OSError(errno.EIO, os.strerror(errno.EIO), "/opt/cloud")

    Hook.arm_here(1, before=refuse, last=1 << 30)
    try:
        report = vm.run("op-1")
    finally:
        Hook.disarm()
    assert report["phase"] == "Inconsistent"
    assert "Input/output error: /opt/cloud" in report["message"]


def test_taking_back_that_cannot_begin_says_why_and_changes_nothing(vm, monkeypatch):
    vm.prepare(make_order())
    vm.run("op-1")
    before = vm.state()

    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/opt/cloud")

    monkeypatch.setattr(switch, "check_backup", refuse)
    with pytest.raises(Failure, match="could not be taken back, and nothing was changed: Input/output error"):
        worker.back(vm.host(), vm.store(), "op-1")
    report = vm.report("op-1")
    assert report["phase"] == "Committed"
    assert "could not be taken back" in report["notes"][-1]
    assert vm.state() == before
    monkeypatch.undo()
    worker.back(vm.host(), vm.store(), "op-1")
    assert vm.report("op-1")["phase"] == "RolledBack"


def test_a_backup_is_given_back_on_a_full_disk_and_its_report_stays(vm):
    vm.prepare(make_order())
    vm.run("op-1")
    store = vm.store()
    files.FAULTS.arm("disk-full:1")
    tidy(store, 0)
    files.FAULTS.mode = None
    assert not (vm.root / "opt/.sysvm-op-1").exists(), "the space is given back"
    assert store.backups() == [], "and nobody takes it for a way back"
    assert vm.report("op-1")["phase"] == "Committed"
    # Somebody made room.
    tidy(store, None)
    assert not os.path.exists(store.operation("op-1").journal_path)
    assert vm.report("op-1")["phase"] == "Committed"


def test_a_boot_that_meets_an_error_recovers_all_the_same(vm, monkeypatch):
    monkeypatch.setattr(worker, "BACK_AGAIN_SECONDS", (0.0, 0.0))
    before = vm.state()
    vm.prepare(make_order())
    killed_at(lambda: vm.run("op-1"), "kill-after", 60)
    refused: list[str] = []

    def refuse(change):
        if not refused:
            refused.append(change)
            raise OSError(errno.EIO, os.strerror(errno.EIO), change)

    Hook.arm_here(1, before=refuse, last=1 << 30)
    try:
        vm.recover()
    finally:
        Hook.disarm()
    assert refused
    assert vm.report("op-1")["phase"] == "RolledBack"
    assert vm.state() == before


def test_a_new_leader_takes_back_on_a_full_disk_with_the_program_that_is_there(vm):
    vm.prepare(make_order())
    vm.run("op-1")
    store = vm.store()
    session = vm.session()
    session.digest = "e" * 64
    files.FAULTS.arm("disk-full:1")
    store.raise_epoch(7)
    assert session.installed_program(store.operation("op-1")) == "d" * 64
    worker.back(vm.host(), store, "op-1")
    files.FAULTS.mode = None
    assert store.highest_epoch() == 7
    assert vm.report("op-1")["phase"] == "RolledBack"
