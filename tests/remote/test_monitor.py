"""CloudStack's monitoring is waited for before a service is stopped, and what it restarts all the same is told."""

from __future__ import annotations

import pytest
from tests.remote import systemd
from tests.remote.vm import VM, FakeHost, make_order, service, write

from sysvm.patching import protocol
from sysvm.patching.observing import operation_report
from sysvm.patching.remote import monitor
from sysvm.patching.remote.host import Outcome


def process(vm: VM, *argv: str, pid: int = 4321) -> None:
    folder = vm.root / f"proc/{pid}"
    write(folder / "cmdline", "\0".join(argv).encode() + b"\0")
    write(folder / "stat", f"{pid} (python3) S 1 {' '.join(['0'] * 17)} 499000 0\n".encode())


@pytest.fixture
def order() -> dict:
    return make_order(services=[service("haproxy", "restart")])


def test_a_monitoring_that_runs_is_waited_for_before_a_service_is_stopped(vm: VM, order: dict, monkeypatch) -> None:
    vm.prepare(order)
    asked = []

    def runs(host: object) -> bool:
        asked.append(systemd.load(str(vm.root), "haproxy")["done"].count("restart"))
        return len(asked) < 5

    monkeypatch.setattr(monitor, "running", runs)
    report = vm.run("op-1")
    assert report["phase"] == "Committed"
    assert asked == [0] * 5, "asked until it had ended, all before the restart"
    assert any(note.startswith("CloudStack's monitoring was waited for") for note in report["notes"])


def test_a_monitoring_that_never_ends_does_not_keep_the_patch_for_ever(vm: VM, order: dict, monkeypatch) -> None:
    vm.prepare(order)
    monkeypatch.setattr(monitor, "running", lambda host: True)
    monkeypatch.setattr(monitor, "WAIT_SECONDS", 0.2)
    report = vm.run("op-1")
    assert report["phase"] == "Committed"
    assert "CloudStack's monitoring still ran when services were restarted" in report["notes"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("/usr/bin/python", "/root/monitorServices.py", "basic"), True),
        (("/bin/sh", "-c", "/usr/bin/python /root/monitorServices.py basic"), False),
        (("/usr/bin/python", "/root/health_checks/dns_check.py"), False),
    ],
)
def test_it_is_known_by_its_name(vm: VM, argv: tuple[str, ...], expected: bool) -> None:
    process(vm, *argv)
    assert monitor.running(vm.host()) is expected


def test_a_restart_that_the_monitoring_took_over_is_told_and_no_failure(vm: VM, order: dict, monkeypatch) -> None:
    """systemd gives our job up when another one for the same unit is asked for; the unit comes up all the same."""
    run = FakeHost.run

    def canceled(self, argv, timeout, folder="/", merged=True):
        done = run(self, argv, timeout, folder, merged)
        if argv[:2] == ["systemctl", "restart"]:
            return Outcome(argv, 1, "Job for haproxy.service canceled.")
        return done

    monkeypatch.setattr(FakeHost, "run", canceled)
    vm.prepare(order)
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert "RestartedByMonitor: haproxy" in operation_report(protocol.parse(protocol.Report, report)).message


def test_a_restart_between_our_action_and_the_settle_time_is_told(vm: VM, monkeypatch) -> None:
    """Another process than the one that our action left, and systemd has not counted it."""
    vm.prepare(make_order(services=[service("haproxy", "restart"), service("cloud", "restart")]))
    run = FakeHost.run

    def meanwhile(self, argv, timeout, folder="/", merged=True):
        if argv == ["systemctl", "restart", "--", "cloud"]:
            systemd.systemctl(str(vm.root), ["restart", "haproxy"])
        return run(self, argv, timeout, folder, merged)

    monkeypatch.setattr(FakeHost, "run", meanwhile)
    report = vm.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert [note for note in report["notes"] if note.startswith("RestartedByMonitor: haproxy got another main process")]


def test_what_its_log_says_is_told(vm: VM, order: dict, monkeypatch) -> None:
    log = vm.root / monitor.LOG[1:]
    write(log, b"2026-11-22 10:00:00 apache2 is not running, restarting apache2\n")
    run = FakeHost.run

    def meanwhile(self, argv, timeout, folder="/", merged=True):
        if argv == ["systemctl", "restart", "--", "haproxy"]:
            with log.open("a") as file:
                file.write("2026-11-22 10:03:00 haproxy is not running, restarting haproxy\nhaproxy-like restarted\n")
        return run(self, argv, timeout, folder, merged)

    monkeypatch.setattr(FakeHost, "run", meanwhile)
    vm.prepare(order)
    told = [note for note in vm.run("op-1")["notes"] if note.startswith(monitor.WORD)]
    assert told == [
        "RestartedByMonitor: haproxy: 2026-11-22 10:03:00 haproxy is not running, restarting haproxy",
    ]


def test_what_was_restarted_by_others_is_part_of_the_message_of_a_failure_too(vm: VM, order: dict) -> None:
    vm.prepare(order)
    report = vm.run("op-1")
    report.update(message="Services failed: it died", notes=["nothing of note", f"{monitor.WORD}: haproxy"])
    assert (
        operation_report(protocol.parse(protocol.Report, report)).message
        == "Services failed: it died; RestartedByMonitor: haproxy"
    )
