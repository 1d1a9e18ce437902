"""kstatus, written from its rules alone: what Flux, Helm and kubectl conclude from an object's status."""

from sysvm.api.base import ObservedStatus


def kstatus(generation: int, status: ObservedStatus) -> str:
    if status.observed_generation != generation:
        return "InProgress"
    by_type = {condition.type: str(condition.status) for condition in status.conditions}
    if by_type.get("Reconciling") == "True":
        return "InProgress"
    if by_type.get("Stalled") == "True":
        return "Failed"
    if by_type.get("Ready") in ("False", "Unknown"):
        return "InProgress"
    return "Current"


def assert_contract(generation: int, status: ObservedStatus) -> None:
    """What holds for every status of every kind."""
    types = [condition.type for condition in status.conditions]
    assert "Ready" in types
    assert len(types) == len(set(types))
    assert not {"Reconciling", "Stalled"} <= set(types)
    for condition in status.conditions:
        assert condition.observed_generation == generation
        assert len(condition.message) <= 1024
        if condition.type in ("Reconciling", "Stalled", "TemplateOutdated"):
            assert condition.status == "True"
    assert status.observed_generation == generation
