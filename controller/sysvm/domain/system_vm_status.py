"""What a SystemVM says of itself: state in one word, conditions, plan entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.base import Condition
from sysvm.api.systemvm import Blocker, PlanEntry, PlannedAction, SystemVM, VMState
from sysvm.domain.facts import Reach, Release
from sysvm.domain.method import Decision


@dataclass(frozen=True, slots=True)
class VMTruth:
    state: VMState
    conditions: tuple[Condition, ...]


def system_vm_truth(
    vm: SystemVM, *, reach: Reach, release: Release | None, decision: Decision | None, now: datetime
) -> VMTruth:
    """State and conditions of a VM whose other status parts (observed, operation, ...) are already the new ones.

    `reach`: how the last try to reach it went (not the condition, which is written here). `decision` and `release` are
    None while no policy owns the VM or its release is not known.
    """
    raise NotImplementedError


def plan_entry(
    policy: str,
    release: Release,
    decision: Decision,
    *,
    services: Sequence[PlannedAction] = (),
    blocked_by: Sequence[Blocker] = (),
) -> PlanEntry:
    """status.plan, bounded."""
    raise NotImplementedError
