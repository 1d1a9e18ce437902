"""Which running jobs keep a call waiting: none of something else does, and none that may be of ours is missed."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.domain.builders import NOW

from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method
from sysvm.api.rollout import GroupOperation, GroupPhase, GroupVM
from sysvm.domain.calls import Call, Command, Job
from sysvm.domain.cloud import CloudVM, CloudVMState
from sysvm.domain.group_operation import begun
from sysvm.domain.jobs_at_work import may_be_at_work, not_of_others

RESTART = Job(id="j-1", command="RestartNetworkCmd")
RESTART_VPC = Job(id="j-2", command="RestartVPCCmd")
PATCH = Job(id="j-3", command="PatchSystemVMCmd")
UNNAMED = (RESTART, RESTART_VPC, PATCH)


def vm(type_: SystemVMType, number: int = 1) -> CloudVM:
    vpc = type_ is SystemVMType.VPCROUTER
    return CloudVM(
        id=f"id-{number}", name=f"vm-{number}", type=type_, state=CloudVMState.RUNNING, zone_id="z", zone="ams-1",
        network_id=f"n-{number}", vpc_id=f"vpc-{number}" if vpc else None,
    )  # fmt: skip


def operation(
    type_: SystemVMType = SystemVMType.ROUTER,
    command: Command = Command.RESTART_NETWORK,
    target: str = "n-1",
    group: str = "network/n-1",
    **changes: Any,
) -> GroupOperation:
    return begun(group, Method.RECREATE, Call(command, target), vm(type_), ["op-1"], NOW).model_copy(update=changes)


@pytest.mark.parametrize(
    ("type_", "at_work"),
    [
        (SystemVMType.SECSTORAGE, {PATCH}),
        (SystemVMType.CONSOLEPROXY, {PATCH}),
        (SystemVMType.ROUTER, {RESTART}),
        (SystemVMType.DHCPSRVR, {RESTART}),
        (SystemVMType.VPCROUTER, {RESTART, RESTART_VPC}),  # a tier is restarted with the routers of its VPC
    ],
)
def test_a_job_that_does_not_say_what_it_works_on_concerns_every_vm_that_it_can_change(
    type_: SystemVMType, at_work: set[Job]
) -> None:
    preparing = operation(type_)
    assert {job for job in UNNAMED if may_be_at_work(job, preparing, [vm(type_)])} == at_work


@pytest.mark.parametrize(
    ("named", "ours"),
    [("id-1", True), ("ID-1", True), ("n-1", True), ("vpc-1", True), ("id-2", False), ("vpc-2", False)],
)
def test_a_job_that_names_what_it_works_on_concerns_nothing_else(named: str, *, ours: bool) -> None:
    job = Job(id="j-1", command="RestartNetworkCmd", instance_id=named)
    found = may_be_at_work(job, operation(SystemVMType.VPCROUTER, target="x"), [vm(SystemVMType.VPCROUTER)])
    assert found is ours


@pytest.mark.parametrize(
    ("command", "job_id", "waited_for"),
    [
        (Command.PATCH_SYSTEM_VM, None, {PATCH}),
        (Command.PATCH_SYSTEM_VM, "j-9", set()),  # what our call became is known, and has ended
        (Command.REBOOT_SYSTEM_VM, None, set()),  # its job names the VM
    ],
)
def test_after_a_lost_call_only_a_job_that_may_be_that_call_is_waited_for(
    command: Command, job_id: str | None, waited_for: set[Job]
) -> None:
    """A stranger's is waited for again before the next call."""
    storage = SystemVMType.SECSTORAGE
    lost = operation(storage, command, target="id-1", phase=GroupPhase.UNKNOWN, job_id=job_id)
    assert {job for job in UNNAMED if may_be_at_work(job, lost, [vm(storage)])} == waited_for
    again = lost.model_copy(update={"phase": GroupPhase.PREPARING})
    assert may_be_at_work(PATCH, again, [vm(storage)])


def test_a_lost_restart_of_a_network_is_not_looked_for_among_restarts_of_vpcs() -> None:
    router = SystemVMType.VPCROUTER
    lost = operation(router, Command.RESTART_VPC, target="vpc-1", phase=GroupPhase.UNKNOWN)
    assert [job for job in UNNAMED if may_be_at_work(job, lost, [vm(router)])] == [RESTART_VPC]


def test_its_own_job_is_always_at_work() -> None:
    lost = operation(phase=GroupPhase.UNKNOWN, job_id="j-1")
    assert may_be_at_work(Job(id="j-1"), lost, [])
    assert not_of_others([RESTART], lost, [], [operation(target="n-2", group="network/n-2", job_id="j-1")]) == (
        RESTART,
    )


@pytest.mark.parametrize(
    ("other", "strange"),
    [
        ({"group": "network/n-2", "target": "n-2"}, False),
        ({"group": "network/n-1", "target": "n-1"}, True),  # of another rollout
        ({"group": "tier", "target": "n-1"}, True),  # a call for the network of ours
        ({"group": "vpc", "target": "vpc-9", "before": (GroupVM(id="id-1", name="vm-1"),)}, True),
        ({"group": "network/n-2", "target": "n-2", "job_id": None}, True),  # whose it is, is not known
    ],
)
def test_a_job_of_another_operation_of_ours_works_on_the_vms_of_that_one(
    other: dict[str, Any], *, strange: bool
) -> None:
    reboot = operation(command=Command.REBOOT_ROUTER, target="id-1", group="vm-1")
    owner = operation(**{"phase": GroupPhase.RUNNING, "job_id": "j-1", **other})
    found = not_of_others([RESTART], reboot, [vm(SystemVMType.ROUTER)], [owner])
    assert found == ((RESTART,) if strange else ())


def test_the_jobs_of_strangers_stay() -> None:
    mine = operation(target="n-2", group="network/n-2", job_id="j-7", phase=GroupPhase.RUNNING)
    assert not_of_others(UNNAMED, operation(), [vm(SystemVMType.ROUTER)], [mine]) == UNNAMED
