"""Which jobs that the management server has not ended may be at work on the VMs of an operation.

The server tells what a job works on for some commands only. Where it does not, a job of that command may be about any
VM that the command can change: it is waited for before a call, because the server does not keep two patches of one VM
apart (CloudStack 4.21 PatchSystemVMCmd.java: no sync object). What narrows that down without guessing is what we know
ourselves: a job that one of our own operations has the id of works on the VMs of that operation.

Once a call has left, another question is asked: whether a job may be that call. A stranger's job is none, however long
it runs.
"""

from collections.abc import Iterable, Mapping

from sysvm.api.endpoint import SystemVMType
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.domain.calls import Job
from sysvm.domain.cloud import CloudVM
from sysvm.domain.facts import ZONE_TYPES
from sysvm.domain.lifecycle import ROUTER_TYPES

UNNAMED: Mapping[str, frozenset[SystemVMType]] = {
    "PatchSystemVMCmd": ZONE_TYPES,
    "RestartNetworkCmd": ROUTER_TYPES,
    "RestartVPCCmd": frozenset({SystemVMType.VPCROUTER}),
}
"""Commands whose jobs do not say what they work on, and the types that they change (CloudStack 4.21, recorded:
queryAsyncJobResult.pending, restartNetwork.*.job and restartVPC.*.job have no jobinstanceid). The job of patchSystemVm
with the id of a router fails; restartNetwork of a tier may patch the routers of its VPC."""


def may_be_at_work(job: Job, operation: GroupOperation, vms: Iterable[CloudVM]) -> bool:
    """By what the server tells of a job. `vms`: the group as it is listed now."""
    if job.id == operation.job_id:
        return True
    if job.instance_id is not None:
        return job.instance_id.lower() in _ids(operation, vms)
    return operation.vm_type in UNNAMED.get(job.command, frozenset()) and _may_be_the_call(job, operation)


def _may_be_the_call(job: Job, operation: GroupOperation) -> bool:
    """Before the call any job counts; after it only one that may be the call itself, whose answer was lost."""
    if operation.phase is not GroupPhase.UNKNOWN:
        return True
    return operation.job_id is None and job.command.casefold() == f"{operation.command}Cmd".casefold()


def not_of_others(
    jobs: Iterable[Job], operation: GroupOperation, vms: Iterable[CloudVM], others: Iterable[GroupOperation]
) -> tuple[Job, ...]:
    """`jobs` without those that work on something else, because another of our operations on the endpoint made them."""
    vms = tuple(vms)
    owners = {other.job_id: other for other in others if other.job_id is not None}
    return tuple(
        job
        for job in jobs
        if job.id == operation.job_id or job.id not in owners or _meet(owners[job.id], operation, vms)
    )


def _meet(other: GroupOperation, operation: GroupOperation, vms: tuple[CloudVM, ...]) -> bool:
    """Two operations change the same VM, network or VPC."""
    changed = {other.target, *(vm.id for vm in other.before)}
    return other.group == operation.group or not changed.isdisjoint(_ids(operation, vms))


def _ids(operation: GroupOperation, vms: Iterable[CloudVM]) -> frozenset[str]:
    of_vms = (id_ for vm in vms for id_ in (vm.id, vm.network_id, vm.vpc_id) if id_ is not None)
    return frozenset((operation.target, *of_vms))
