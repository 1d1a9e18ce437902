"""A share of `make faults` in every test run: each fault, some of its places. The whole table is in docs/faults.md."""

from __future__ import annotations

import pytest
from tests.remote.vm import NEW_SIGNATURE, SIGNATURE, make_order, with_file

from faults import running
from faults.hooks import Hook
from faults.table import End
from sysvm.patching.remote import files
from sysvm.patching.remote.transaction import Transaction, recover_all

AT_MOST = 8
"""Trials a row."""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("row", running.ROWS, ids=lambda row: row.name)
def test_no_fault_leaves_a_vm_that_is_neither_old_nor_new(row):
    table = running.table_for([row])
    for result in running.results([row], seeds=AT_MOST, at_most=AT_MOST):
        table.add(result)
    assert table.rows, "no trial"
    assert not table.failures, "\n".join(f"{each.where}: {each.end}: {each.detail}" for each in table.failures)


def test_a_destroyed_backup_is_told_loudly():
    (row,) = [row for row in running.ROWS if row.name == "the backup is destroyed"]
    ends = [result.end for result in running.results([row], seeds=1, at_most=12)]
    assert End.INCONSISTENT in ends
    assert End.NEITHER not in ends


def test_taking_back_needs_no_space(vm):
    """Also months later, on a disk that is full by then."""
    before = vm.state()
    vm.prepare(make_order())
    vm.run("op-1")
    transaction = Transaction(vm.host(), vm.store(), vm.store().operation("op-1"))
    files.FAULTS.arm("disk-full:1")
    transaction.go_back(None, "taken back on a full disk")
    files.FAULTS.mode = None
    transaction.close()
    assert vm.report("op-1")["phase"] == "RolledBack", vm.report("op-1")["message"]
    recover_all(vm.host(), vm.store(), False)
    assert vm.state() == before


def test_a_signature_that_somebody_writes_at_the_last_moment_is_seen_and_judged(vm):
    """Between the last look and the last rename: this one speaks of no archive, so what was verified is committed."""
    vm.prepare(make_order())
    live = vm.root / SIGNATURE
    written: list[int] = []

    def write(_name):
        if not written and vm.report("op-1")["phase"] == "Committing":
            written.append(live.write_text("e" * 32))

    Hook.arm_here(1, before=write, last=1 << 30)
    try:
        vm.run("op-1")
    finally:
        Hook.disarm()
    assert written
    report = vm.report("op-1")
    assert (report["phase"], report["reason"]) == ("Committed", "SupersededExternally")
    assert "somebody else" in report["message"]
    assert vm.signature() == NEW_SIGNATURE


def test_a_signature_that_cloudstack_writes_while_ours_goes_back_is_not_overwritten(vm):
    """In the last moment of going back: what was restored would pass for whole under its old signature."""
    vm.prepare(with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    live = vm.root / SIGNATURE
    exchange = files.exchange

    def late(one, other):
        if other == str(live):
            live.write_text("e" * 32)
        exchange(one, other)

    files.exchange = late
    try:
        vm.run("op-1")
    finally:
        files.exchange = exchange
    assert vm.report("op-1")["phase"] == "Inconsistent"
    assert "somebody else" in vm.report("op-1")["message"]
