"""What the VM measured around an action on a service reaches the SystemVM's history, for every kind of action."""

from __future__ import annotations

from datetime import UTC, datetime

from sysvm.api.methods import Method
from sysvm.api.operation import OperationStatus
from sysvm.api.reasons import Reason
from sysvm.engine.operations import ended, remembered
from sysvm.patching import protocol
from sysvm.patching.observing import operation_report
from sysvm.patching.results import JournalPhase

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def acted(unit: str, action: str, gap: float | None, slowest: float | None, *, back: bool) -> protocol.ReportService:
    return {
        "unit": unit,
        "action": action,
        "ok": True,
        "unavailable_seconds": gap,
        "slowest_seconds": slowest,
        "restoring": back,
    }


def test_the_measured_interruption_of_every_action_is_kept_in_the_history() -> None:
    report: protocol.Report = {
        "id": "op-1",
        "epoch": 1,
        "revision": "r",
        "phase": JournalPhase.ROLLED_BACK,
        "alive": False,
        "step": "Services",
        "steps": [],
        "services": [
            acted("dnsmasq.service", "held-restart", 0.0741, 0.004, back=False),
            acted("apache2.service", "reload", 0.0, 1.0812, back=False),
            acted("apache2.service", "start", 0.101, 0.002, back=True),
            acted("cloud.service", "stop", None, None, back=False),
        ],
        "bytes_received": 1,
        "reason": Reason.SERVICE_FAILED,
        "message": "apache2 died",
        "notes": [],
        "started_at": NOW.timestamp(),
        "finished_at": NOW.timestamp(),
    }
    begun = OperationStatus(id="op-1", method=Method.LIVE_PATCH, revision="r", started_at=NOW)
    (entry,) = remembered((), ended(begun, operation_report(report), NOW))
    assert [(one.name, one.action, one.unavailable_seconds, one.slowest_seconds) for one in entry.services] == [
        ("dnsmasq", "HeldRestart", 0.074, 0.004),
        ("apache2", "Reload", 0.0, 1.081),
        ("apache2", "Start (going back)", 0.101, 0.002),
        ("cloud", "Stop", None, None),
    ]
