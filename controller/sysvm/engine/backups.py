"""Backups over SSH right before the management server is asked to patch VMs: without one it is not asked.

They lie on the VMs under the ids of their orders, so that `strategy.onBudgetSpent: RollBack` and a person on the VM's
console go back from CloudStack's patch as from one of ours. Asked again after a restart, a VM answers that it has one.
"""

import asyncio
from collections.abc import Sequence

from sysvm.api.operation import OperationOrder
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import SystemVM
from sysvm.domain.calls import NotMade, Refused
from sysvm.engine.ports import SystemVMs
from sysvm.engine.preparing import Preparing
from sysvm.patching.errors import PatchingError
from sysvm.patching.results import JournalPhase


class Backups:
    """Takes them of all VMs of one call at once."""

    def __init__(self, vms: SystemVMs, preparing: Preparing) -> None:
        self._vms = vms
        self._preparing = preparing

    async def take(self, ordered: Sequence[tuple[SystemVM, OperationOrder]]) -> Refused | NotMade | None:
        """Why the call must not be made; None: every VM has its backup. Refused: waiting does not help."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._take_one(vm, order)) for vm, order in ordered]
        found = [task.result() for task in tasks]
        lasting = next((each for each in found if isinstance(each, Refused)), None)
        return lasting or next((each for each in found if each is not None), None)

    async def _take_one(self, vm: SystemVM, order: OperationOrder) -> Refused | NotMade | None:
        work = self._preparing.work(vm, order)
        if work is None or work.payload is None:
            return NotMade(f"not called, no backup of {vm.metadata.name}: it, or the release, is not to be had now")
        try:
            report = await self._vms.back_up(work.target, work.payload, work.order)
        except PatchingError as error:
            if error.retryable:
                return NotMade(f"not called: {error}")
            return Refused(error.reason, f"{error}; nothing was changed")
        if report.phase is not JournalPhase.COMMITTED:
            told = f"{work.target.name} has ended operation {order.id} as {report.phase} already; nothing was changed"
            return Refused(Reason.OPERATION_REPEATED, told)
        return None
