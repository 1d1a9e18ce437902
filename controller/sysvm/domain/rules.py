"""Whether a router still has the rules that the management server sent it.

A boot deletes a router's data bags and loads the rules of its template (CloudStack 4.21 init.sh, common.sh). At a start
by CloudStack the management server sends all of them again; of a reboot from within on KVM it learns nothing, so the
router runs without firewall, forwarding and DHCP entries until somebody asks it to. What is judged is written in the
status with every look, so a restart of the operator forgets nothing.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import MappingProxyType

from sysvm.api.methods import Method
from sysvm.api.observed import DataBags, Observed, RuleKind
from sysvm.api.operation import OperationStatus
from sysvm.domain.facts import VMFacts

PROGRAMMING = timedelta(minutes=5)
"""So long a booted router may have fewer bags than before: a start by CloudStack looks the same while the management
server still sends them. Two looks of one boot at least so far apart must have seen it."""
_STOPPED = ("Stopping", "Stopped", "Starting")
"""A migration, an error and a VM that one sweep missed are no start."""


def data_bags(
    old: Observed | None,
    *,
    held: int | None,
    boot_id: str,
    booted: bool,
    at: datetime,
    operation: OperationStatus | None,
    rules: Mapping[RuleKind, int] = MappingProxyType({}),
) -> DataBags | None:
    """What a look that found `held` bags, and in them so many `rules`, adds to the last one.

    `operation`: the one in work, or the last. A start that the operator ordered is the management server's, so nothing
    is compared with what was before it. Otherwise a router is compared with itself only: one that never had a bag has
    none to lose. Fewer than half are suspect: the last rule of a kind may be deleted while CloudStack starts the VM,
    and one that was added after a loss is sent alone. What is lost is back when it has as many as before.
    """
    if held is None:
        return None
    bags = _compared(old, held=held, boot_id=boot_id, booted=booted, at=at, operation=operation)
    return bags.model_copy(update={"rules": {str(kind): count for kind, count in rules.items()}})


def _compared(
    old: Observed | None, *, held: int, boot_id: str, booted: bool, at: datetime, operation: OperationStatus | None
) -> DataBags:
    known = old.data_bags if old is not None else None
    if old is None or known is None:
        return DataBags(held=held)
    before, since, lost = known.before, known.fewer_since, known.lost
    if boot_id and old.boot_id and boot_id != old.boot_id:
        if _started_by_server(old, operation):
            return DataBags(held=held)
        before, since = max(before or 0, known.held) or None, None
    enough = before is None or held >= before or (held * 2 >= before and not lost)
    if before is None or (booted and enough):
        return DataBags(held=held)
    if not booted:
        return DataBags(held=held, before=before, lost=lost)
    since = since or at
    return DataBags(held=held, before=before, fewer_since=since, lost=lost or at - since >= PROGRAMMING)


def forgotten_if_stopped(observed: Observed | None, state: str | None) -> Observed | None:
    """`state` is CloudStack's word. What it stopped or starts is programmed by it: nothing is compared with before."""
    if observed is None or observed.data_bags is None or state not in _STOPPED:
        return observed
    return observed.model_copy(update={"data_bags": None})


def next_look(bags: DataBags | None) -> datetime | None:
    """When a look can tell whether the rules are lost; None: nothing waits for it."""
    if bags is None or bags.fewer_since is None or bags.lost:
        return None
    return bags.fewer_since + PROGRAMMING


def rules_lost(facts: VMFacts) -> str:
    """Of a VM that has lost them: what happened and what to do, as the end of a sentence that begins with its name."""
    bags = facts.observed.data_bags if facts.observed else None
    held, before = (bags.held, bags.before) if bags is not None else (0, None)
    return (
        f"rebooted without CloudStack and lost its rules ({held} data bags, {before} before): restart its network or "
        "VPC in CloudStack without cleanup, only the management server can send them again"
    )


def _started_by_server(old: Observed, operation: OperationStatus | None) -> bool:
    if operation is None or operation.method not in (Method.REBOOT, Method.RECREATE):
        return False
    return operation.finished_at is None or old.at <= operation.finished_at
