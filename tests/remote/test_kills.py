"""The program is killed before and after every change it makes, forward and on its way back. The VM is old or new.

A change is a journal record, rename, exchange, link, unlink, folder, sync, owner, time, or a command to systemd. The
numbers of trials are printed with `-s` and are large; each trial is a fork of this process on a scratch VM in memory.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys

import pytest
from tests.remote import systemd
from tests.remote.judging import MODES, Judge, count_changes, judge_of, killed_at, recover_by_next_session
from tests.remote.test_session import INTERPRETERS
from tests.remote.vm import VM, make_order, send, with_file

from sysvm.patching.bundle import bundle
from sysvm.patching.remote import files
from sysvm.patching.remote.failures import Failure


def broken() -> dict:
    """An order that is rolled back: the service dies of its new file."""
    return with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n")


@pytest.fixture
def built(vm: VM) -> tuple[VM, Judge]:
    return vm, judge_of(vm, make_order())


@pytest.mark.parametrize(("mode", "at_boot"), [("kill-before", False), ("kill-after", True)])
def test_killed_at_any_change_of_the_switch_the_vm_is_old_or_new(built, mode, at_boot):
    vm, judge = built
    names = count_changes(vm, lambda: vm.run("op-1"))
    assert len(names) > 60
    verdicts = []
    for number in range(1, len(names) + 1):
        vm.reset()
        where = f"{mode} {number} {names[number - 1]}"
        assert killed_at(lambda: vm.run("op-1"), mode, number) == 137, where
        verdicts.append(judge.settle_and_judge(where, at_boot=at_boot))
    print(f"\n{mode}: {len(names)} points, {verdicts.count('old')} old, {verdicts.count('new')} new")
    # Once new, never old again: the decision is one moment.
    assert verdicts == sorted(verdicts, reverse=True)
    assert {"old", "new"} == set(verdicts)


def test_killed_at_any_change_on_the_way_back_the_vm_is_old(vm):
    judge = Judge(vm)
    vm.prepare(broken())
    vm.keep()
    names = count_changes(vm, lambda: vm.run("op-1"))
    assert vm.report("op-1")["phase"] == "RolledBack"
    for number in range(1, len(names) + 1):
        vm.reset()
        mode = MODES[number // 2 % 2]
        where = f"{mode} {number} {names[number - 1]}"
        assert killed_at(lambda: vm.run("op-1"), mode, number) == 137, where
        assert judge.settle_and_judge(where, at_boot=number % 2 == 0) == "old", where
    print(f"\n{len(names)} points of a failing patch, all old")


def test_killed_where_trees_cannot_be_exchanged_the_vm_is_old_or_new(vm, monkeypatch):
    def refuse(one, other):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), one, None, other)

    monkeypatch.setattr(files, "exchange", refuse)
    shutil.rmtree(vm.root / "opt/cloud/bin/__pycache__")
    judge = Judge(vm)
    vm.prepare(make_order())
    vm.keep()
    names = count_changes(vm, lambda: vm.run("op-1"))
    judge.learn_new()
    for number in range(1, len(names) + 1):
        vm.reset()
        where = f"{number} {names[number - 1]}"
        assert killed_at(lambda: vm.run("op-1"), MODES[number % 2], number) == 137, where
        judge.settle_and_judge(where, at_boot=number % 3 == 0)
    print(f"\n{len(names)} points without exchange")


def test_killed_again_during_every_recovery_the_vm_is_still_old_or_new(built):
    vm, judge = built
    names = count_changes(vm, lambda: vm.run("op-1"))
    interesting = [
        number for number, name in enumerate(names, 1) if name in ("exchange", "rename", "systemctl", "link")
    ]
    trials = 0
    for first in interesting[::3] + interesting[-3:]:
        vm.reset()
        killed_at(lambda: vm.run("op-1"), "kill-after", first)
        vm.base.joinpath("template").rename(vm.base / "first")
        vm.keep()
        # At boot no service is touched (systemd starts them all afterwards), so both recoveries are of one kind.
        at_boot = bool(first % 2)
        recover = vm.recover if at_boot else (lambda: recover_by_next_session(vm))
        again = count_changes(vm, recover)
        for second in range(1 + first // 2 % 2, len(again) + 1, 2):
            vm.reset()
            where = f"{first} {names[first - 1]}, then {second} {again[second - 1]}"
            assert killed_at(recover, "kill-before", second) == 137, where
            judge.settle_and_judge(where, at_boot=at_boot)
            trials += 1
        shutil.rmtree(vm.base / "template")
        vm.base.joinpath("first").rename(vm.base / "template")
    print(f"\n{trials} pairs of kills")
    assert trials > 100


def test_killed_while_it_prepares_nothing_has_changed_and_the_same_order_still_works(vm):
    judge = Judge(vm)
    vm.keep()
    names = count_changes(vm, lambda: vm.prepare(make_order()))
    for number in range(1, len(names) + 1):
        vm.reset()
        mode = MODES[number // 2 % 2]
        where = f"{mode} {number} {names[number - 1]}"
        assert killed_at(lambda: vm.prepare(make_order()), mode, number) == 137, where
        if number % 3 == 0:
            session = vm.session()
            begun = session.do_begin(1, {"order": make_order()})
            assert begun["state"] == "staging", where
            send(session, begun["missing"])
            session.do_build(2, {})
            session.let_go()
            assert vm.run("op-1")["phase"] == "Committed", where
        else:
            assert judge.settle_and_judge(where, at_boot=number % 3 == 1) == "old", where
    print(f"\n{len(names)} points of preparing")


def test_a_full_disk_at_any_change_leaves_the_old(vm):
    judge = Judge(vm)
    vm.prepare(make_order())
    vm.keep()
    names = count_changes(vm, lambda: vm.run("op-1"))
    judge.learn_new()
    ends = []
    for number, name in enumerate(names, 1):
        vm.reset()
        where = f"no space at {number} {name}"
        files.FAULTS.arm(f"no-space:{number}")
        try:
            vm.run("op-1")
        except OSError:
            # The process died of it, as it would of a kill: somebody recovers.
            pass
        finally:
            files.FAULTS.mode = None
        report = vm.report("op-1")
        if report["phase"] not in ("Committed", "RolledBack", "Abandoned"):
            recover_by_next_session(vm)
        verdict = judge.verdict(where) if vm.report("op-1")["phase"] == "Committed" else None
        if verdict is None:
            recover_by_next_session(vm)
            verdict = judge.verdict(where)
            assert vm.report("op-1")["phase"] in ("RolledBack", "Abandoned"), where
            assert vm.report("op-1")["reason"] in ("DiskFull", "Interrupted"), where
        assert vm.systemd() == judge.services, where
        ends.append(verdict)
    assert ends.count("old") > len(names) // 2


def test_a_disk_that_stays_full_from_any_change_on_leaves_the_old_or_the_new(vm):
    judge = Judge(vm)
    vm.prepare(make_order())
    vm.keep()
    names = count_changes(vm, lambda: vm.run("op-1"))
    judge.learn_new()
    verdicts = []
    for number, name in enumerate(names, 1):
        vm.reset()
        files.FAULTS.arm(f"disk-full:{number}")
        vm.run("op-1")
        recover_by_next_session(vm)
        files.FAULTS.mode = None
        recover_by_next_session(vm)
        verdicts.append(judge.verdict(f"disk full from {number} {name} on"))
        ends = ("Committed",) if verdicts[-1] == "new" else ("RolledBack", "Abandoned")
        assert vm.report("op-1")["phase"] in ends
        assert vm.report("op-1")["reason"] in ((None,) if verdicts[-1] == "new" else ("DiskFull",))
        assert vm.systemd() == judge.services
    # Once every backup has its second name nothing needs space any more.
    assert verdicts == sorted(verdicts, reverse=True)
    assert {"old", "new"} == set(verdicts)


def test_a_full_disk_while_preparing_is_told_and_changes_nothing(vm):
    judge = Judge(vm)
    vm.keep()
    names = count_changes(vm, lambda: vm.prepare(make_order()))
    for number, name in enumerate(names, 1):
        vm.reset()
        where = f"no space at {number} {name}"
        files.FAULTS.arm(f"no-space:{number}")
        try:
            vm.prepare(make_order())
        except (OSError, Failure) as error:
            assert "No space" in str(error) or getattr(error, "reason", "") == "DiskFull", where
        finally:
            files.FAULTS.mode = None
        recover_by_next_session(vm)
        assert judge.verdict(where) == "old"


AGES = sorted(INTERPRETERS, key=lambda path: [int(number) for number in re.findall(r"\d+", path)])
PYTHONS = [AGES[0], AGES[-1]]
"""The oldest and the newest that this machine has."""


@pytest.mark.parametrize("python", sorted(set(PYTHONS)))
def test_on_the_oldest_and_the_newest_python_a_killed_program_leaves_the_old_or_the_new(built, python):
    """As processes of that Python, the recovery too: every fifth change, by turns before and after."""
    vm, judge = built
    program, tools = vm.base / "sysvm.pyz", vm.base / "tools"
    program.write_bytes(bundle().content)
    tools.mkdir()
    for name in ("systemctl", "journalctl", "validate"):
        script = f'exec {sys.executable} {systemd.__file__} {vm.root} {name} "$@"' if name == "systemctl" else "exit 0"
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)

    def start(*words: str, fault: str = "count:0") -> int:
        environment = {"PATH": f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin", "SYSVM_FAULT": fault}
        argv = [python, "-I", "-B", str(program), "--root", str(vm.root), *words]
        return subprocess.run(argv, env=environment, check=False, stderr=subprocess.DEVNULL).returncode

    verdicts = []
    for number in range(1, 200, 5):
        vm.reset()
        if start("run", "op-1", fault=f"{MODES[number % 2]}:{number}") == 0:
            break
        assert start("--recover") == 0
        verdicts.append(judge.verdict(f"{python} {number}"))
    print(f"\n{python}: {len(verdicts)} kills, {verdicts.count('old')} old, {verdicts.count('new')} new")
    assert len(verdicts) > 10
    assert {"old", "new"} == set(verdicts)
