"""What takes long says what it waits for, while it waits."""

from __future__ import annotations

import pytest
from tests.remote import systemd
from tests.remote.vm import VM, FakeHost, make_order, service

from sysvm.patching.remote import journal, worker
from sysvm.patching.remote.store import Store

STARTING = {"active": "activating", "sub": "start"}
UP = {"active": "active", "sub": "running"}


@pytest.mark.parametrize(
    ("lasted", "said"),
    [
        (1.9, None),
        (2.0, "waiting for haproxy to serve, at most 60 s"),
        (4.9, "waiting for haproxy to serve, at most 60 s"),
        (12.4, "waiting for haproxy to serve, 10 s of 60 s"),
        (3600.0, "waiting for haproxy to serve, 60 s of 60 s"),
        (-50.0, None),
    ],
)
def test_a_wait_is_told_in_steps_of_five_seconds(lasted: float, said: str | None) -> None:
    record = {"kind": "wait", "what": "haproxy to serve", "seconds": 60, "lasted": 2.0, "at": 1000.0}
    assert journal.waiting([record], 1000.0 - 2.0 + lasted) == said


def test_an_action_that_takes_long_is_a_wait_too_and_the_next_record_ends_it() -> None:
    began = {"kind": "unit", "unit": "cloud", "action": "start", "state": "start", "seconds": 90.0, "at": 1000.0}
    assert journal.waiting([began], 1007.0) == "waiting for the start of cloud, 5 s of 90 s"
    assert journal.waiting([began, {**began, "state": "done"}], 1020.0) is None
    assert journal.waiting([], 0.0) is None


class SlowHost(FakeHost):
    """haproxy takes three looks to come up. What a look at the operation shows meanwhile is kept."""

    seen: list[str]

    def run(self, argv, timeout, folder="/", merged=True):
        done = super().run(argv, timeout, folder, merged)
        if argv[:2] == ["systemctl", "restart"]:
            systemd.plays(self.root, argv[-1], [STARTING, STARTING, STARTING, UP])
        return done

    def wait(self, seconds):
        report = Store(self).report(Store(self).operation("op-1"))
        step = report["steps"][-1]
        self.seen.append("{}: {}".format(step["name"], step["message"]))
        super().wait(min(seconds, 0.01))


def test_a_look_at_a_running_patch_shows_what_it_waits_for(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "TELL_SECONDS", 0.0)
    vm.prepare(make_order(services=[service("haproxy", "restart", timeout_seconds=60)]))
    host = SlowHost(str(vm.root))
    host.seen = []
    worker.run(host, Store(host), "op-1")
    report = vm.report("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert "Services: waiting for haproxy to be active, at most 60 s" in host.seen
    assert not [step for step in report["steps"] if step["message"].startswith("waiting")], "it waits no longer"
