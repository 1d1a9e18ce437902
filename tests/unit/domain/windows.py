"""Builders of maintenance windows and policies that name them."""

from typing import Any

from sysvm.api.policy import PatchPolicy
from sysvm.api.window import MaintenanceWindow, Schedule


def schedule(
    rrule: str = "FREQ=DAILY",
    start: str = "22:00",
    duration: str = "6h",
    zone: str = "UTC",
    start_date: str | None = None,
) -> dict[str, Any]:
    found = {"rrule": rrule, "start": start, "duration": duration, "timeZone": zone}
    return found | ({"startDate": start_date} if start_date is not None else {})


def rule(*args: str, **kwargs: str) -> Schedule:
    return Schedule.model_validate(schedule(*args, **kwargs))


def interval(start: str, end: str) -> dict[str, str]:
    return {"from": start, "to": end}


def allow(name: str = "nights", **spec: Any) -> MaintenanceWindow:
    """A window of every night from 22:00 to 04:00, unless `schedule` or `interval` says otherwise."""
    return _window(name, {"effect": "Allow", **spec})


def freeze(name: str = "freeze", **spec: Any) -> MaintenanceWindow:
    return _window(name, {"effect": "Deny", **spec})


def _window(name: str, spec: dict[str, Any]) -> MaintenanceWindow:
    when = {} if "schedule" in spec or "interval" in spec else {"schedule": schedule()}
    return MaintenanceWindow.model_validate(
        {"metadata": {"name": name, "namespace": "ns", "uid": f"uid-{name}", "generation": 2}, "spec": spec | when}
    )


def policy(*names: str, labels: dict[str, str] | None = None) -> PatchPolicy:
    refs = [{"name": name} for name in names]
    return PatchPolicy.model_validate(
        {
            "metadata": {"name": "routers", "namespace": "ns", "labels": labels or {}},
            "spec": {"endpointRef": {"name": "prod"}, "templateRef": {"name": "t"}, "windowRefs": refs},
        }
    )
