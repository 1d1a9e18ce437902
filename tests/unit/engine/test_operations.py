"""What a SystemVM tells of a call that the management server was to carry out."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.domain import builders as b

from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.domain import conditions
from sysvm.domain.facts import Reach, facts_of
from sysvm.domain.members import never_called
from sysvm.domain.method import decide
from sysvm.domain.system_vm_status import system_vm_truth
from sysvm.engine.operations import begun, given_up, of_group

ORDER = b.order(id="op-1").model_copy(update={"method": Method.REBOOT})
WAITS = "job j-9 (RestartNetworkCmd) runs since 2026-11-22T11:00:00Z"


def group(**changes: Any) -> GroupOperation:
    return GroupOperation(
        group="r-101-VM", method=Method.REBOOT, command="rebootRouter", target="id-1", vm_type=SystemVMType.ROUTER,
        zone_id="z", orders=("op-1",), since=b.NOW, started_at=b.NOW,
        **{"phase": GroupPhase.PREPARING, **changes},
    )  # fmt: skip


@pytest.mark.parametrize("called", [False, True])
def test_an_order_that_nobody_carries_out_counts_only_if_a_call_may_have_been_made(called: bool) -> None:
    ended = given_up(begun(ORDER, b.NOW), Reason.VM_GONE, "r-101-VM is not listed any more", b.NOW, called=called)
    assert ended.result is OperationResult.FAILED
    assert never_called(ended) is not called


FAILED = {"phase": GroupPhase.DONE, "result": OperationResult.FAILED, "finished_at": b.NOW, "reason": "JobRunning"}


@pytest.mark.parametrize("mirrored", ["Connect", "Preparing", "Submitting", "Verifying"])
@pytest.mark.parametrize("submissions", [0, 1, 2])
def test_a_failure_is_one_of_preparing_only_if_no_call_was_made(mirrored: str, submissions: int) -> None:
    """Whatever of it the VM's own status has heard: it may have been written last long before."""
    heard = begun(ORDER, b.NOW).model_copy(update={"step": mirrored})
    told = of_group(heard, group(submissions=submissions, **FAILED))
    assert never_called(told) is (submissions == 0)
    assert told.step in ({"Preparing"} if submissions == 0 else {"Submitting", "Verifying"})


def test_a_live_patch_over_ssh_is_no_call() -> None:
    failed = begun(b.order(id="op-1"), b.NOW).model_copy(update={"step": "Preparing", "result": OperationResult.FAILED})
    assert not never_called(failed)


def test_what_a_call_waits_for_is_in_the_condition() -> None:
    mirror = of_group(begun(ORDER, b.NOW), group(reason=str(Reason.JOB_RUNNING), message=WAITS))
    vm = b.system_vm(spec={"operation": ORDER.to_dict()}, operation=mirror)
    decision = decide(facts_of(vm, now=b.NOW), b.release())
    truth = system_vm_truth(vm, reach=Reach(True, Reason.REACHABLE), release=b.release(), decision=decision, now=b.NOW)
    for kind in (ConditionType.READY, ConditionType.RECONCILING):
        condition = conditions.find(truth.conditions, kind)
        assert condition is not None
        assert condition.message.endswith(f"step Preparing, {WAITS}")
