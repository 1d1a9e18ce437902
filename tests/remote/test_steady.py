"""A unit that was restarting before the patch decides nothing; one that stood still decides as before."""

import time

import pytest
from tests.remote import systemd
from tests.remote.vm import make_order, service, with_file

from sysvm.patching.remote import steady, worker

WATCHED = [service("haproxy", "reload"), service("cloud", "none")]
LOOPING = {"active": "activating", "sub": "auto-restart", "pid": 0, "restarts": 7}


def since(seconds: float) -> int:
    return int((time.monotonic() - seconds) * 1e6)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(steady, "SAMPLE_SECONDS", 0.0)


def test_a_unit_that_was_crash_looping_neither_fails_a_good_patch_nor_its_way_back(vm):
    up = {"active": "active", "pid": 300, "restarts": 6, "since": since(3)}
    systemd.plays(str(vm.root), "cloud", [up, up, LOOPING])
    vm.prepare(make_order(services=WATCHED))
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert any("cloud" in note and "restarting before" in note for note in report["notes"])

    systemd.plays(str(vm.root), "cloud", [up, up, LOOPING])
    vm.prepare(with_file(make_order("op-2", services=WATCHED), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    report = vm.run("op-2")
    assert report["phase"] == "RolledBack", report["message"]
    assert report["reason"] == "ServiceFailed"


def test_a_unit_that_is_acted_on_while_it_is_restarting_is_no_gate_either(vm):
    up = {"active": "active", "pid": 300, "restarts": 6, "since": since(3)}
    systemd.plays(str(vm.root), "cloud", [up, up, LOOPING])
    vm.prepare(make_order(services=[service("haproxy", "reload"), service("cloud", "restart", timeout_seconds=0.2)]))
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert any(note.startswith("restarting before the patch: cloud") for note in report["notes"]), report["notes"]


def test_a_watched_unit_that_stood_still_and_fails_after_the_patch_still_takes_it_back(vm):
    vm.prepare(make_order(services=WATCHED))
    host = vm.host()
    run = host.run

    def fail(argv, *rest, **named):
        if argv[:2] == ["systemctl", "reload"]:
            systemd.save(str(vm.root), "cloud", {**systemd.load(str(vm.root), "cloud"), "active": "failed", "pid": 0})
        return run(argv, *rest, **named)

    host.run = fail
    worker.run(host, vm.store(), "op-1")
    report = vm.report("op-1")
    # Nobody acted on it, so its state is told, and the files, which are right again, are not called inconsistent.
    assert (report["phase"], report["reason"]) == ("RolledBack", "ServiceFailed"), report["message"]
    assert any("nothing was done to it" in note and "cloud is failed" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ([{"active": "active", "since": 1, "restarts": 9}], False),
        ([{"active": "active", "age": 5}], False),
        ([{"active": "active", "age": 5, "restarts": 1}], True),
        ([{"active": "active", "age": 5}, {"active": "active", "age": 0, "pid": 9}], True),
        ([{"active": "activating"}], True),
        ([{"active": "inactive"}], False),
        ([{"active": "failed"}], False),
    ],
    ids=["long up", "young", "young after a restart", "another process", "activating", "inactive", "failed"],
)
def test_what_counts_as_restarting(vm, quick, shown, found):
    # Ages become moments here: between collecting the tests and running this one minutes may pass.
    moments = [{"since": since(each["age"]), **each} if "age" in each else each for each in shown]
    systemd.plays(str(vm.root), "cloud", moments)
    assert steady.unsteady(vm.host(), ["haproxy", "cloud"]) == (["cloud"] if found else [])
