"""Entries of the management server's lists, checked and made the plain values of `sysvm.domain.cloud`.

CloudStack adds fields with every release, so unknown ones are ignored. A field that decides (identity, state, zone,
host, network, versions) must have its type: a wrong one is an error that names the path, because a guess would end in a
change of the wrong VM. A field that only informs (pod, sessions, times) becomes None instead. Words of a closed set
that are new become Unknown. Field names are those of CloudStack 4.21 DomainRouterResponse, SystemVmResponse,
HostResponse, ZoneResponse, NetworkResponse, VpcResponse and TemplateResponse, and were seen on a running server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import RedundancyRole
from sysvm.cloudstack.errors import AnswerInvalid
from sysvm.cloudstack.transport import Answer
from sysvm.domain.cloud import CloudHost, CloudNetwork, CloudServer, CloudVM, CloudVMState, CloudVPC, CloudZone
from sysvm.domain.room import HostRoom
from sysvm.domain.templates import CloudTemplate

M = TypeVar("M", bound="_Entry")


def _empty_is_absent(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _trimmed(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _time(value: object) -> object:
    """2026-11-22T15:42:30+0000."""
    if not isinstance(value, str):
        return value
    moment = datetime.fromisoformat(value)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _number(value: object) -> object:
    whole = value.strip().partition(".")[0] if isinstance(value, str) else ""
    return int(whole) if whole.isdecimal() else value


def _or_none(value: object, check: ValidatorFunctionWrapHandler) -> object:
    try:
        return check(_empty_is_absent(value))
    except ValidationError:
        return None


_Id = Annotated[str, BeforeValidator(_lower), Field(min_length=1)]
_Name = Annotated[str, BeforeValidator(_trimmed), Field(min_length=1)]
_OptionalId = Annotated[str | None, BeforeValidator(_lower), BeforeValidator(_empty_is_absent)]
_Word = Annotated[str | None, BeforeValidator(_trimmed), BeforeValidator(_empty_is_absent)]
"""A text that decides, where it is there."""
_Note = Annotated[str | None, WrapValidator(_or_none)]
"""A text that only informs."""
_Count = Annotated[int | None, WrapValidator(_or_none)]
_Moment = Annotated[datetime | None, BeforeValidator(_time), WrapValidator(_or_none)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class _Tag(_Entry):
    key: str
    value: str = ""


_Tags = Annotated[tuple[_Tag, ...] | None, Field(strict=False), WrapValidator(_or_none)]


class _Named(_Entry):
    id: _Id
    name: _Name


class _Owned(_Named):
    """What an account, or a project, has."""

    account: _Note = None
    domainpath: _Note = None
    domain: _Note = None
    """The name alone, where the path is not told."""
    project: _Note = None

    def domain_told(self) -> str | None:
        return self.domainpath or self.domain


class _Nic(_Entry):
    traffictype: _Note = None
    type: _Note = None


_Nics = Annotated[tuple[_Nic, ...] | None, Field(strict=False), WrapValidator(_or_none)]


class _VM(_Named):
    state: _Name
    zoneid: _Id
    zonename: _Name
    podname: _Note = None
    hostid: _OptionalId = None
    hostname: _Word = None
    hypervisor: _Word = None
    arch: _Note = None
    linklocalip: _Word = None
    publicip: _Word = None
    templateid: _OptionalId = None
    version: _Word = None
    jobid: _OptionalId = None
    jobstatus: _Count = None
    created: _Moment = None

    def running_job(self) -> str | None:
        """`jobid` names the last job on the object; it works on it only while its status is 0 or not told."""
        return self.jobid if self.jobstatus in (None, 0) else None


class _Router(_VM, _Owned):
    role: _Word = None
    guestnetworkid: _OptionalId = None
    guestnetworkname: _Word = None
    vpcid: _OptionalId = None
    vpcname: _Word = None
    guestipaddress: _Note = None
    isredundantrouter: bool = False
    redundantstate: _Word = None
    scriptsversion: _Word = None
    softwareversion: _Word = None
    requiresupgrade: bool | None = None
    nic: _Nics = None


class _SystemVM(_VM):
    systemvmtype: _Name
    privateip: _Word = None
    agentstate: _Word = None
    activeviewersessions: _Count = None


class _Host(_Named):
    ipaddress: _Word = None
    zoneid: _Id
    clustername: _Note = None
    hypervisor: _Word = None
    arch: _Note = None
    state: _Name
    resourcestate: _Name
    version: _Word = None


_Whole = Annotated[int | None, BeforeValidator(_number), WrapValidator(_or_none)]
"""A number that the server tells as a number or as a text of digits, perhaps with decimals."""


class _HostRoom(_Entry):
    id: _Id
    memorywithoverprovisioning: _Whole = None
    memoryallocatedbytes: _Whole = None
    cpuwithoverprovisioning: _Whole = None
    cpuallocatedvalue: _Whole = None


class _Capacity(_Entry):
    type: int
    capacityused: _Whole = None
    capacitytotal: _Whole = None


class _Server(_Named):
    state: _Word = None
    version: _Word = None


class _Zone(_Named):
    allocationstate: _Word = None
    networktype: _Word = None


class _Network(_Owned):
    zoneid: _Id
    vpcid: _OptionalId = None
    state: _Name
    restartrequired: bool = False
    redundantrouter: bool = False
    tags: _Tags = None


class _Tier(_Entry):
    id: _Id


class _VPC(_Owned):
    zoneid: _Id
    redundantvpcrouter: bool = False
    restartrequired: bool = False
    network: Annotated[tuple[_Tier, ...], Field(strict=False)] = ()
    tags: _Tags = None


class _Template(_Named):
    templatetype: _Name
    hypervisor: _Word = None
    arch: _Note = None
    zoneid: _OptionalId = None
    isready: bool
    status: _Note = None
    checksum: _Word = None
    created: _Moment = None


class _Capability(_Entry):
    cloudstackversion: _Name


class _Capabilities(_Entry):
    capability: _Capability


class _Setting(_Entry):
    name: _Name
    value: str | None = None


_SYSTEM_VM_TYPES: Mapping[str, SystemVMType] = {
    "secondarystoragevm": SystemVMType.SECSTORAGE,
    "consoleproxy": SystemVMType.CONSOLEPROXY,
}


def router(entry: Answer) -> CloudVM:
    """An entry of `listRouters`. Raises `AnswerInvalid`."""
    return _router(_checked(_Router, "router", entry), "router")


def internal_load_balancer(entry: Answer) -> CloudVM:
    """An entry of `listInternalLoadBalancerVMs`, where it is named `router` too. Raises `AnswerInvalid`.

    Its array has that key by CloudStack 4.21 DomainRouterJoinDaoImpl.java; no answer of it was recorded.
    """
    return _router(_checked(_Router, "internalloadbalancervm", entry), "internalloadbalancervm")


def system_vm(entry: Answer) -> CloudVM:
    """An entry of `listSystemVms`: SSVM or CPVM. Raises `AnswerInvalid`."""
    vm = _checked(_SystemVM, "systemvm", entry)
    kind = _SYSTEM_VM_TYPES.get(vm.systemvmtype.lower())
    if kind is None:
        raise AnswerInvalid(f"systemvm {vm.name}: systemvmtype is {vm.systemvmtype!r}, which is not known")
    return replace(
        _vm(vm, kind),
        private_address=vm.privateip,
        software_version=vm.version,
        agent_state=vm.agentstate,
        viewer_sessions=vm.activeviewersessions if kind is SystemVMType.CONSOLEPROXY else None,
    )


def host(entry: Answer) -> CloudHost:
    """An entry of `listHosts`. Raises `AnswerInvalid`."""
    found = _checked(_Host, "host", entry)
    return CloudHost(
        id=found.id,
        name=found.name,
        address=found.ipaddress,
        zone_id=found.zoneid,
        cluster=found.clustername,
        hypervisor=found.hypervisor,
        arch=found.arch,
        state=found.state,
        resource_state=found.resourcestate,
        version=found.version,
    )


def host_room(entry: Answer) -> tuple[str, HostRoom]:
    """Id of a host and what is free on it, of an entry of `listHosts` with its details. Raises `AnswerInvalid`."""
    found = _checked(_HostRoom, "host", entry)
    return found.id, HostRoom(
        memory_bytes=_left(found.memorywithoverprovisioning, found.memoryallocatedbytes),
        cpu_mhz=_left(found.cpuwithoverprovisioning, found.cpuallocatedvalue),
    )


def free_capacity(entry: Answer) -> tuple[int, int | None]:
    """Type and what is free, of an entry of `listCapacity` (CloudStack 4.21 CapacityResponse). Raises
    `AnswerInvalid`."""
    found = _checked(_Capacity, "capacity", entry)
    return found.type, _left(found.capacitytotal, found.capacityused)


def _left(total: int | None, used: int | None) -> int | None:
    return total - used if total is not None and used is not None else None


def management_server(entry: Answer) -> CloudServer:
    """An entry of `listManagementServers`. Raises `AnswerInvalid`."""
    found = _checked(_Server, "managementserver", entry)
    return CloudServer(id=found.id, name=found.name, state=found.state, version=found.version)


def zone(entry: Answer) -> CloudZone:
    """An entry of `listZones`, without the settings. Raises `AnswerInvalid`."""
    found = _checked(_Zone, "zone", entry)
    return CloudZone(
        id=found.id,
        name=found.name,
        enabled=(found.allocationstate or "Enabled") == "Enabled",
        network_type=found.networktype or "Advanced",
    )


def network(entry: Answer) -> CloudNetwork:
    """An entry of `listNetworks`. Raises `AnswerInvalid`."""
    found = _checked(_Network, "network", entry)
    return CloudNetwork(
        id=found.id,
        name=found.name,
        zone_id=found.zoneid,
        vpc_id=found.vpcid,
        account=found.account,
        domain=found.domain_told(),
        project=found.project,
        state=found.state,
        restart_required=found.restartrequired,
        redundant=found.redundantrouter,
        tags=_tags(found.tags),
    )


def vpc(entry: Answer) -> CloudVPC:
    """An entry of `listVPCs`. Raises `AnswerInvalid`."""
    found = _checked(_VPC, "vpc", entry)
    return CloudVPC(
        id=found.id,
        name=found.name,
        zone_id=found.zoneid,
        account=found.account,
        domain=found.domain_told(),
        project=found.project,
        redundant=found.redundantvpcrouter,
        restart_required=found.restartrequired,
        tiers=tuple(tier.id for tier in found.network),
        tags=_tags(found.tags),
    )


def template(entry: Answer) -> CloudTemplate:
    """An entry of `listTemplates`: one template in one zone. Raises `AnswerInvalid`."""
    found = _checked(_Template, "template", entry)
    return CloudTemplate(
        id=found.id,
        name=found.name,
        type=found.templatetype,
        hypervisor=found.hypervisor or "",
        arch=found.arch,
        zone_id=found.zoneid,
        ready=found.isready,
        status=found.status or "",
        checksum=found.checksum,
        created=found.created,
    )


def server_version(answer: Answer) -> str:
    """`cloudstackversion` of `listCapabilities`, such as 4.21.0.0-SNAPSHOT. Raises `AnswerInvalid`."""
    return _checked(_Capabilities, "listCapabilities", answer).capability.cloudstackversion


def setting(entry: Answer) -> tuple[str, str | None]:
    """Name and value of an entry of `listConfigurations`; a value that is not set is None. Raises `AnswerInvalid`."""
    found = _checked(_Setting, "configuration", entry)
    return found.name, found.value


def _router(vm: _Router, what: str) -> CloudVM:
    return replace(
        _vm(vm, _router_type(vm, what)),
        account=vm.account,
        domain=vm.domain_told(),
        project=vm.project,
        network_id=vm.guestnetworkid,
        network=vm.guestnetworkname,
        vpc_id=vm.vpcid,
        vpc=vm.vpcname,
        guest_address=vm.guestipaddress,
        redundant=vm.isredundantrouter,
        role=_role(vm),
        template_version=None if vm.version in (None, "UNKNOWN") else vm.version,
        scripts_version=vm.scriptsversion,
        software_version=vm.softwareversion,
        requires_upgrade=vm.requiresupgrade,
    )


def _vm(vm: _VM, kind: SystemVMType) -> CloudVM:
    """What the server tells of every system VM."""
    return CloudVM(
        id=vm.id,
        name=vm.name,
        type=kind,
        state=_state(vm.state),
        zone_id=vm.zoneid,
        zone=vm.zonename,
        pod=vm.podname,
        host_id=vm.hostid,
        host=vm.hostname,
        hypervisor=vm.hypervisor,
        arch=vm.arch,
        control_address=vm.linklocalip,
        public_address=vm.publicip,
        template_id=vm.templateid,
        job_id=vm.running_job(),
        created=vm.created,
    )


def _router_type(vm: _Router, what: str) -> SystemVMType:
    """As the server writes `type=` into the boot arguments: of a VPC; with a public interface; without one."""
    if vm.role == "INTERNAL_LB_VM" or what == "internalloadbalancervm":
        return SystemVMType.ILBVM
    if vm.role == "LB":
        return SystemVMType.ELBVM
    if vm.vpcid is not None:
        return SystemVMType.VPCROUTER
    if vm.publicip is not None or any(nic.traffictype == "Public" for nic in vm.nic or ()):
        return SystemVMType.ROUTER
    if vm.nic or vm.state == CloudVMState.RUNNING:
        return SystemVMType.DHCPSRVR
    return SystemVMType.ROUTER


def _role(vm: _Router) -> RedundancyRole | None:
    if not vm.isredundantrouter:
        return None
    word = "PRIMARY" if vm.redundantstate == "MASTER" else vm.redundantstate  # MASTER up to CloudStack 4.15
    return RedundancyRole(word) if word in set(RedundancyRole) else RedundancyRole.UNKNOWN


def _state(word: str) -> CloudVMState:
    return CloudVMState(word) if word in set(CloudVMState) else CloudVMState.UNKNOWN


def _tags(tags: tuple[_Tag, ...] | None) -> Mapping[str, str]:
    return MappingProxyType({tag.key: tag.value for tag in tags or ()})


def _checked(model: type[M], what: str, entry: Answer) -> M:
    try:
        return model.model_validate(entry)
    except ValidationError as error:
        name = entry.get("name", entry.get("id")) if isinstance(entry, Mapping) else None
        problems = [
            f"{'.'.join(map(str, (what, *problem['loc'])))}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise AnswerInvalid(f"{what} {name}: {'; '.join(problems[:5])}") from None
