"""The agent's folder is exchanged: what the VM wrote stays, new keys come and go with it, and `up` is proven."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.remote.judging import MODES, Judge, count_changes, killed_at
from tests.remote.vm import VM, entry, make_order, with_file, write

from sysvm.patching.remote import agent, properties, worker

LIVE = "opt/cloud/conf/agent.properties"
FRESH = "opt/cloud/conf/fresh.xml"
WRITTEN = b"# by the VM\nguid = 7\nworkers=3\n"
LINES = ["guid=", "workers=5", "new.key=1", "other:2"]
MERGED = WRITTEN + b"new.key=1\nother:2\n"


def order(**more: Any) -> dict:
    made = make_order(**more)
    tree = made["trees"][0]
    tree["properties"] = [{"path": "conf/agent.properties", "lines": LINES}]
    tree["files"].append(entry("conf/fresh.xml", b"the VM lacks this one\n"))
    return made


@pytest.fixture
def vm(vm: VM) -> VM:
    write(vm.root / LIVE, WRITTEN, 0o640)
    return vm


def test_only_keys_that_are_missing_are_added_and_no_value_is_changed():
    assert properties.added("a=1\n b : 2", ["a=9", "b=9", "c=3", "# no"]) == "a=1\n b : 2\nc=3\n"
    assert properties.added("a=1\n", ["a=2"]) == "a=1\n"
    assert properties.without("a=1\nc=3\nd=4\n", ["a=1", "c=3"], "a=1\n") == "a=1\nd=4\n"


def test_the_new_tree_has_the_new_keys_and_the_old_one_keeps_its_file(vm):
    vm.prepare(order())
    old = vm.state()
    assert vm.run("op-1")["phase"] == "Committed"
    assert (vm.root / LIVE).read_bytes() == MERGED
    assert (vm.root / LIVE).stat().st_mode & 0o777 == 0o640
    assert (vm.root / FRESH).exists()
    assert worker.back(vm.host(), vm.store(), "op-1") == 0
    assert vm.state()[LIVE] == old[LIVE]
    assert not (vm.root / FRESH).exists()


def test_what_was_written_since_stays_when_it_is_taken_back(vm):
    vm.prepare(order())
    vm.run("op-1")
    (vm.root / LIVE).write_bytes(MERGED.replace(b"guid = 7", b"guid = 8") + b"keystore.passphrase=new\n")
    assert worker.back(vm.host(), vm.store(), "op-1") == 0
    assert vm.report("op-1")["phase"] == "RolledBack"
    written = WRITTEN.replace(b"guid = 7", b"guid = 8") + b"keystore.passphrase=new\n"
    assert (vm.root / LIVE).read_bytes() == written


@pytest.mark.parametrize("broken", [False, True])
def test_killed_at_any_change_with_new_keys_the_vm_is_old_or_new(vm, broken):
    judge = Judge(vm)
    wanted = order()
    vm.prepare(with_file(wanted, "/etc/haproxy/haproxy.cfg", b"broken\n") if broken else wanted)
    vm.keep()
    names = count_changes(vm, lambda: vm.run("op-1"))
    if not broken:
        judge.learn_new()
    verdicts = []
    for number in range(1, len(names) + 1):
        vm.reset()
        mode = MODES[number % 2]
        where = f"{mode} {number} {names[number - 1]}"
        assert killed_at(lambda: vm.run("op-1"), mode, number) == 137, where
        verdicts.append(judge.settle_and_judge(where, at_boot=number // 2 % 2 == 0))
    assert set(verdicts) == ({"old"} if broken else {"old", "new"})


# ------------------------------------------------------------------------------------------ up

SETTINGS = "usr/local/cloud/systemvm/conf/agent.properties"
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def connections(vm: VM, *lines: str, table: str = "tcp") -> None:
    rows = "".join(f"   {number}: {line}\n" for number, line in enumerate(lines))
    write(vm.root / f"proc/net/{table}", (HEAD + rows).encode())


@pytest.mark.parametrize(
    ("host", "remote", "table", "expected"),
    [
        ("172.20.0.1", "010014AC:203A 01", "tcp", True),
        ("172.20.0.9,172.20.0.1@roundrobin", "010014AC:203A 01", "tcp", True),
        ("172.20.0.1", "0000000000000000FFFF0000010014AC:203A 01", "tcp6", True),
        ("ms.example.com", "010014AC:203A 01", "tcp", True),
        ("172.20.0.1", "010014AC:203A 06", "tcp", False),
        ("172.20.0.1", "010014AC:203A 02", "tcp", False),
        ("172.20.0.2", "010014AC:203A 01", "tcp", False),
        ("172.20.0.1", "010014AC:203B 01", "tcp", False),
        ("fd00::1", "000000FD000000000000000001000000:203A 01", "tcp6", True),
    ],
)
def test_a_connection_counts_if_it_is_established_to_the_management_server(vm, host, remote, table, expected):
    write(vm.root / SETTINGS, f"type=secstorage\nhost={host}\nport=8250\n".encode())
    connections(vm, f"5101A8C0:D2F0 {remote} 00000000:00000000", table=table)
    assert agent.connected(vm.host()) is expected


def test_a_vm_whose_agent_had_no_connection_is_not_failed_for_having_none(vm):
    write(vm.root / SETTINGS, b"host=172.20.0.1\n")
    vm.prepare(order())
    assert vm.run("op-1")["phase"] == "Committed"


def test_an_agent_that_had_a_connection_and_gets_none_goes_back(vm):
    write(vm.root / SETTINGS, b"host=172.20.0.1\n")
    connections(vm, "5101A8C0:D2F0 010014AC:203A 01 00000000:00000000")
    judge = Judge(vm)
    wanted = order()
    wanted["services"][1]["timeout_seconds"] = 1
    vm.prepare(wanted)
    write(vm.root / ".systemd/cuts-connections", b"cloud")
    report = vm.run("op-1")
    assert (report["phase"], report["reason"]) == ("RolledBack", "ServiceFailed")
    assert "no connection to the management server (172.20.0.1, port 8250)" in report["message"]
    vm.recover()
    assert judge.verdict("after") == "old"


def test_the_connection_is_part_of_the_baseline_only_where_the_agent_is_acted_on(vm):
    write(vm.root / SETTINGS, b"host=172.20.0.1\n")
    connections(vm, "5101A8C0:D2F0 010014AC:203A 01 00000000:00000000")
    one = make_order()
    assert agent.measure(vm.host(), one) == {"connected": True}
    one["services"] = json.loads(json.dumps(one["services"]).replace("stop-start", "none"))
    assert agent.measure(vm.host(), one) is None
