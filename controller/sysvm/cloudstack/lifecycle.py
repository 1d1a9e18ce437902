"""Jobs that reboot, recreate or patch system VMs: made, asked for, and what there is of their group before and after.

Every answer becomes an event of `domain.calls`: the difference between "it was not done" and "it is not known
whether it was" is made here, because nobody above sees what became of a request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Protocol

from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.cloudstack import answers
from sysvm.cloudstack.client import CloudStack
from sysvm.cloudstack.errors import (
    ClocksDiffer,
    CloudStackError,
    NoSuchObject,
    NotAllowed,
    OutcomeUnknown,
    Throttled,
    Unavailable,
)
from sysvm.cloudstack.jobs import Job, JobId, JobStatus
from sysvm.cloudstack.rules import listed_rules
from sysvm.cloudstack.templates import setting_of
from sysvm.cloudstack.transport import Param
from sysvm.domain import calls, group_operation
from sysvm.domain.calls import (
    Call,
    Command,
    JobState,
    JobTold,
    Look,
    Looked,
    NoAnswer,
    NotMade,
    NotTold,
    Refused,
    Submitted,
)
from sysvm.domain.cloud import CloudHost, CloudVM, CloudZone
from sysvm.domain.jobs_at_work import may_be_at_work
from sysvm.domain.room import HostRoom, Room
from sysvm.domain.templates import ROUTING, SYSTEM, CloudTemplates

_STATES: Mapping[JobStatus, JobState] = {
    JobStatus.PENDING: JobState.PENDING,
    JobStatus.SUCCEEDED: JobState.SUCCEEDED,
    JobStatus.FAILED: JobState.FAILED,
    JobStatus.UNKNOWN: JobState.LOST,
}

_SYSTEM_VM_TYPES = {
    SystemVMType.SECSTORAGE: "secondarystoragevm",
    SystemVMType.CONSOLEPROXY: "consoleproxy",
}


class Clock(Protocol):
    """The moment, with a zone."""

    def __call__(self) -> datetime: ...


class CloudJobs:
    """The management server of one endpoint. Nothing here raises for what the server says or does not say."""

    def __init__(self, client: CloudStack, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def submit(self, call: Call) -> Submitted | Refused | NoAnswer | NotMade:
        """Makes the call, once."""
        flags: dict[str, Param] = dict.fromkeys(call.flags, True)
        try:
            return Submitted(await self._client.submit(str(call.command), id=call.id, **flags))
        except OutcomeUnknown as error:
            return NoAnswer(str(error))
        except (ClocksDiffer, Throttled, Unavailable) as error:
            return NotMade(str(error))
        except CloudStackError as error:
            return Refused(error.reason, str(error))

    async def job(self, job_id: str) -> JobTold | NotTold:
        try:
            job = await self._client.job(JobId(job_id))
        except CloudStackError as error:
            return NotTold(str(error))
        return JobTold(_STATES[job.status], job.error_text)

    async def look(self, operation: GroupOperation) -> Looked | NotTold:
        """The group as it is now; before the call also its zone, hosts and templates, and until the call is known to
        have ended the jobs that may be at work on it. What no judge reads is not asked for; tenants' rules are counted
        when all else is as it should be."""
        preparing = operation.phase is GroupPhase.PREPARING
        try:
            vms = await self._vms(operation)
            running = await self._client.running_jobs() if operation.phase is not GroupPhase.VERIFYING else ()
            zone = await self._zone(operation.zone_id) if preparing else None
            hosts, left = await self._hosts(operation.zone_id) if preparing else ((), {})
            deploys = preparing and operation.command == Command.DESTROY_SYSTEM_VM
            addresses = await self._addresses(operation.zone_id) if deploys else {}
            starts = preparing and operation.method is not Method.LIVE_PATCH
            templates = await self._templates(operation, vms) if starts else None
            counts = group_operation.counts_rules(operation) and group_operation.what_moves(vms) is None
            rules = await listed_rules(self._client, vms) if counts else None
        except CloudStackError as error:
            return NotTold(str(error))
        return Looked(
            Look(
                taken_at=self._clock(),
                vms=vms,
                jobs=tuple(job for job in map(_told, running) if may_be_at_work(job, operation, vms)),
                zone=zone,
                hosts=hosts,
                room=Room(left, addresses),
                templates=templates,
                rules=rules,
            )
        )

    async def _vms(self, operation: GroupOperation) -> tuple[CloudVM, ...]:
        command, target = operation.command, operation.target
        if command == Command.RESTART_NETWORK:
            return await self._routers(network=target)
        if command == Command.RESTART_VPC:
            return await self._routers(vpc=target)
        if command == Command.REBOOT_ROUTER:
            return await self._routers(id_=target)
        if command == Command.DESTROY_SYSTEM_VM:
            kind = _SYSTEM_VM_TYPES[operation.vm_type]
            return await self._system_vms(zone=operation.zone_id, kind=kind)
        return await self._system_vms(id_=target)

    async def _routers(
        self, *, id_: str | None = None, network: str | None = None, vpc: str | None = None
    ) -> tuple[CloudVM, ...]:
        entries = self._client.list_all(
            "listRouters", "router", listall=True, projectid="-1", id=id_, networkid=network, vpcid=vpc
        )
        try:
            return tuple([answers.router(entry) async for entry in entries])
        except NoSuchObject:
            return ()  # an id that is not there any more

    async def _system_vms(
        self, *, id_: str | None = None, zone: str | None = None, kind: str | None = None
    ) -> tuple[CloudVM, ...]:
        entries = self._client.list_all("listSystemVms", "systemvm", id=id_, zoneid=zone, systemvmtype=kind)
        try:
            return tuple([answers.system_vm(entry) async for entry in entries])
        except NoSuchObject:
            return ()

    async def _zone(self, zone_id: str) -> CloudZone | None:
        zones = [answers.zone(entry) async for entry in self._client.list_all("listZones", "zone", id=zone_id)]
        return zones[0] if zones else None

    async def _hosts(self, zone_id: str) -> tuple[tuple[CloudHost, ...], Mapping[str, HostRoom]]:
        entries = [entry async for entry in self._client.list_all("listHosts", "host", type="Routing", zoneid=zone_id)]
        hosts = sorted(map(answers.host, entries), key=lambda host: host.name)
        return tuple(hosts), dict(map(answers.host_room, entries))

    async def _addresses(self, zone_id: str) -> Mapping[int, int]:
        """Free ones by type of capacity, all pods together; nothing where the role may not ask."""
        found: dict[int, int] = {}
        try:
            answer = await self._client.call("listCapacity", zoneid=zone_id)
        except NotAllowed:
            return found
        entries = answer.get("capacity", [])
        for entry in entries if isinstance(entries, list) else []:
            kind, free = answers.free_capacity(entry) if isinstance(entry, dict) else (-1, None)
            if free is not None:
                found[kind] = found.get(kind, 0) + free
        return found

    async def _templates(self, operation: GroupOperation, vms: Sequence[CloudVM]) -> CloudTemplates:
        """What new VMs of the group could be started from."""
        found = [
            answers.template(entry)
            for kind in (SYSTEM, ROUTING)
            async for entry in self._client.list_all(
                "listTemplates", "template", templatefilter="all", templatetype=kind, zoneid=operation.zone_id
            )
        ]
        names: dict[tuple[str, str], str | None] = {}
        for hypervisor in sorted({vm.hypervisor.lower() for vm in vms if vm.hypervisor}):
            name = f"router.template.{hypervisor}"
            try:
                of_zone = await setting_of(self._client, name, operation.zone_id)
                names[operation.zone_id, hypervisor] = of_zone or await setting_of(self._client, name)
            except NotAllowed:
                continue
        return CloudTemplates(taken_at=self._clock(), templates=tuple(found), router_names=names)


def _told(job: Job) -> calls.Job:
    return calls.Job(id=job.id, command=job.command, instance_id=job.instance_id, created=job.created)
