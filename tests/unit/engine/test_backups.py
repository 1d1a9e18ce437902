"""Without a backup of every VM of a call it is not made; whether it is tried again depends on why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from tests.unit.domain import builders as b

from sysvm.api.reasons import Reason
from sysvm.domain.calls import NotMade, Refused
from sysvm.engine import operations
from sysvm.engine.backups import Backups
from sysvm.patching.errors import PatchingError, Unreachable
from sysvm.patching.errors import Refused as VMRefused
from sysvm.patching.results import JournalPhase, OperationReport, Order

ORDERED = [(b.system_vm(name), b.order(id=f"op-{name[2]}")) for name in ("r-1-VM", "r-2-VM")]


@dataclass
class VMs:
    """Answers by VM; those that are not named make a backup."""

    answers: dict[str, PatchingError | JournalPhase] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    lost: tuple[str, ...] = ()

    def work(self, vm: Any, order: Any) -> operations.Work | None:
        if vm.status.identity.name in self.lost:
            return None
        target = cast("Any", type("T", (), {"name": vm.status.identity.name})())
        return operations.Work(target, cast("Any", object()), Order(order.id, 1, 1, 0.0, (), 1.0, 1.0))

    async def back_up(self, target: Any, payload: object, order: Order) -> OperationReport:
        self.asked.append(f"{target.name} {order.id}")
        answer = self.answers.get(target.name, JournalPhase.COMMITTED)
        if isinstance(answer, PatchingError):
            raise answer
        return OperationReport(order.id, "", answer, "Build", (), (), 0)

    async def taken(self) -> Refused | NotMade | None:
        return await Backups(cast("Any", self), cast("Any", self)).take(ORDERED)


FULL = VMRefused("r-2-VM has no room", reason=Reason.DISK_FULL, retryable=False)
LOCKED = VMRefused("r-2-VM is in work", reason=Reason.LOCK_HELD, retryable=True)
AWAY = Unreachable("r-1-VM does not answer")


async def test_every_vm_keeps_its_own_under_the_id_of_its_order() -> None:
    vms = VMs()
    assert await vms.taken() is None
    assert sorted(vms.asked) == ["r-1-VM op-1", "r-2-VM op-2"]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"r-2-VM": LOCKED}, NotMade),
        ({"r-1-VM": AWAY}, NotMade),
        ({"r-2-VM": FULL}, Refused),
        ({"r-1-VM": AWAY, "r-2-VM": FULL}, Refused),
        ({"r-1-VM": JournalPhase.ROLLED_BACK}, Refused),
    ],
)
async def test_one_without_a_backup_stops_the_call_for_all(
    answers: dict[str, PatchingError | JournalPhase], expected: type[Refused | NotMade]
) -> None:
    found = await VMs(answers).taken()
    assert isinstance(found, expected)
    assert found.sentence


async def test_a_vm_whose_login_is_not_known_now_is_waited_for() -> None:
    assert isinstance(await VMs(lost=("r-1-VM",)).taken(), NotMade)
