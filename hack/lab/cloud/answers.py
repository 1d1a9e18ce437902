"""Records of the world as the API tells them: the fields that were recorded, in their spelling, absent where absent.

Absence carries meaning and was recorded too: a stopped VM has no host and no link-local address, a VPC router without
tiers has no guest network, a router that never started is of version UNKNOWN.
"""

from __future__ import annotations

from lab.cloud.jobs import DOMAIN_ID, stamp
from lab.cloud.records import VM, Host, Network, Template, VMState, Vpc, Zone
from lab.cloud.world import World
from lab.spec import SystemVMType

Fields = dict[str, object]
_ON = (VMState.RUNNING, VMState.STOPPING, VMState.MIGRATING)


def zone(it: Zone) -> Fields:
    return {
        "id": it.id,
        "name": it.name,
        "dns1": "10.147.28.6",
        "internaldns1": "10.147.28.6",
        "guestcidraddress": "10.1.1.0/24",
        "networktype": it.network_type,
        "securitygroupsenabled": it.network_type == "Basic",
        "allocationstate": "Enabled" if it.enabled else "Disabled",
        "dhcpprovider": "VirtualRouter",
        "localstorageenabled": False,
        "tags": [],
        "type": "Core",
        "ismultiarch": False,
        "hasannotations": False,
    }


def host(it: Host) -> Fields:
    return {
        "id": it.id,
        "name": it.name,
        "state": it.state,
        "type": "Routing",
        "ipaddress": it.address,
        "zoneid": it.zone.id,
        "zonename": it.zone.name,
        "podid": it.pod_id,
        "podname": it.pod,
        "version": it.version,
        "hypervisor": it.hypervisor,
        "cpunumber": 4,
        "cpuspeed": 8000,
        "cpuallocatedvalue": it.cpu_allocated_mhz,
        "cpuwithoverprovisioning": "32000",
        "memorytotal": 8589934592,
        "memorywithoverprovisioning": "8589934592",
        "memoryallocatedbytes": it.memory_allocated_bytes,
        "clusterid": it.cluster_id,
        "clustername": it.cluster,
        "clustertype": "CloudManaged",
        "hostha": {"haenable": False, "hastate": "Disabled"},
        "resourcestate": it.resource_state,
        "hahost": False,
        "arch": it.arch,
        "hasannotations": False,
    }


def template(it: Template, where: Zone) -> Fields:
    """One template in one zone: the API lists it once a zone."""
    ready = where.id in it.ready_in
    return {
        "id": it.id,
        "name": it.name,
        "displaytext": it.name,
        "ispublic": False,
        "created": stamp(it.created),
        "isready": ready,
        "passwordenabled": False,
        "format": {"KVM": "QCOW2", "VMware": "OVA"}.get(it.hypervisor, "VHD"),
        "isfeatured": False,
        "crossZones": True,
        "account": "system",
        "zoneid": where.id,
        "zonename": where.name,
        "status": "Download Complete" if ready else "30% Downloaded",
        "size": 2147483648,
        "templatetype": it.kind,
        "hypervisor": it.hypervisor,
        "domain": "ROOT",
        "domainpath": "/",
        "domainid": DOMAIN_ID,
        "isextractable": False,
        "checksum": it.checksum,
        "details": {},
        "arch": it.arch,
        "url": it.url,
        "tags": [],
        "hasannotations": False,
    }


def _owner(account: str, project: str | None) -> Fields:
    told: Fields = {"project": project, "projectid": f"project-{project}"} if project else {"account": account}
    return told | {"domainid": DOMAIN_ID, "domain": "ROOT", "domainpath": "/"}


def _tags(tags: dict[str, str]) -> list[Fields]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def network(it: Network) -> Fields:
    told: Fields = {
        "id": it.id,
        "name": it.name,
        "displaytext": it.name,
        "broadcastdomaintype": "Vlan",
        "traffictype": "Guest",
        "gateway": it.gateway,
        "netmask": "255.255.255.0",
        "cidr": f"10.1.{it.number}.0/24",
        "zoneid": it.zone.id,
        "zonename": it.zone.name,
        "issystem": False,
        "state": it.state,
        "related": it.id,
        "type": it.kind,
        "acltype": "Account" if it.kind == "Isolated" else "Domain",
        **_owner(it.account, it.project),
        "networkdomain": "cs2cloud.internal",
        "restartrequired": it.restart_required,
        "canusefordeploy": True,
        "tags": _tags(it.tags),
        "redundantrouter": it.redundant,
        "created": stamp(it.created),
        "hasannotations": False,
    }
    if it.vpc is not None:
        told |= {"vpcid": it.vpc.id, "vpcname": it.vpc.name}
    return told


def vpc(it: Vpc, world: World) -> Fields:
    return {
        "id": it.id,
        "name": it.name,
        "displaytext": it.name,
        "state": "Enabled",
        "zoneid": it.zone.id,
        "zonename": it.zone.name,
        "cidr": "10.1.0.0/16",
        "created": stamp(it.created),
        **_owner(it.account, it.project),
        "network": [network(tier) for tier in world.tiers(it)],
        "restartrequired": it.restart_required,
        "networkdomain": "cs2cloud.internal",
        "tags": _tags(it.tags),
        "fordisplay": True,
        "distributedvpcrouter": False,
        "redundantvpcrouter": it.redundant,
        "hasannotations": False,
    }


def _placed(vm: VM) -> Fields:
    told: Fields = {"podid": vm.pod_id, "podname": vm.pod}
    if vm.host is not None and vm.state in _ON:
        told |= {
            "hostid": vm.host.id,
            "hostname": vm.host.name,
            "hostcontrolstate": "Enabled" if vm.host.resource_state == "Enabled" else "Maintenance",
        }
    # Recorded: an SSVM or CPVM keeps its hypervisor when it is stopped, a router loses it with its host.
    if not vm.is_router or "hostid" in told:
        told["hypervisor"] = vm.hypervisor
    return told


def _control(vm: VM) -> Fields:
    if vm.control_address is None or vm.state not in _ON:
        return {}
    return {"linklocalip": vm.control_address, "linklocalnetmask": "255.255.0.0"}


def _working(vm: VM) -> Fields:
    return {} if vm.job_id is None else {"jobid": vm.job_id, "jobstatus": 0}


def system_vm(vm: VM) -> Fields:
    """One entry of listSystemVms."""
    is_storage = vm.type is SystemVMType.SECSTORAGE
    told: Fields = {
        "id": vm.id,
        "systemvmtype": "secondarystoragevm" if is_storage else "consoleproxy",
        "zoneid": vm.zone.id,
        "zonename": vm.zone.name,
        "dns1": "10.147.28.6",
        "gateway": "198.18.0.1",
        "name": vm.name,
        **_placed(vm),
    }
    if vm.state in _ON and vm.private_address:
        told |= {"privateip": vm.private_address, "privatenetmask": "255.255.0.0"}
    told |= _control(vm)
    if vm.public_address:
        told |= {"publicip": vm.public_address, "publicnetmask": "255.255.0.0"}
    told |= {
        "templateid": vm.template.id,
        "templatename": vm.template.name,
        "created": stamp(vm.created),
        "state": vm.state.value,
    }
    if vm.agent_state is not None and vm.state in _ON:
        told |= {"agentstate": vm.agent_state, "version": vm.software_version or ""}
    if not is_storage:
        told["activeviewersessions"] = vm.viewer_sessions
    return told | {"isdynamicallyscalable": False, "arch": vm.arch, "hasannotations": False}


def router(vm: VM, world: World, *, with_health: bool = False) -> Fields:
    """One entry of listRouters or listInternalLoadBalancerVMs."""
    told: Fields = {
        "id": vm.id,
        "zoneid": vm.zone.id,
        "zonename": vm.zone.name,
        "dns1": "10.147.28.6",
        "name": vm.name,
        **_placed(vm),
        **_control(vm),
    }
    if vm.public_address:
        told |= {"publicip": vm.public_address, "publicnetmask": "255.255.0.0", "gateway": "198.18.0.1"}
    tiers = list(world.tiers(vm.vpc)) if vm.vpc else [vm.network] if vm.network else []
    if tiers:
        first = tiers[0]
        told |= {
            "networkdomain": "cs2cloud.internal",
            "guestipaddress": vm.guest_address or first.gateway,
            "guestnetmask": "255.255.255.0",
            "guestnetworkid": first.id,
            "guestnetworkname": first.name,
        }
    told |= {
        "templateid": vm.template.id,
        "templatename": vm.template.name,
        "created": stamp(vm.created),
        "state": vm.state.value,
        **_owner(vm.account, vm.project),
        "isredundantrouter": vm.redundant,
        "redundantstate": vm.role.value,
        "version": vm.template_version or "UNKNOWN",
    }
    if vm.scripts_version is not None:
        told["scriptsversion"] = vm.scripts_version
    vpc_of = vm.vpc or (vm.network.vpc if vm.network else None)
    if vpc_of is not None:
        told |= {"vpcid": vpc_of.id, "vpcname": vpc_of.name}
    told |= {
        "role": vm.role_name,
        "nic": _nics(vm, tiers),
        "requiresupgrade": requires_upgrade(vm, world),
        "healthchecksfailed": any(not check["success"] for check in vm.health),
    }
    if vm.software_version is not None:
        told["softwareversion"] = vm.software_version
    if with_health:
        told["healthcheckresults"] = vm.health
    return told | {"arch": vm.arch, "hasannotations": False} | _working(vm)


def _nics(vm: VM, tiers: list[Network]) -> list[Fields]:
    nics: list[Fields] = []
    if vm.control_address and vm.state in _ON:
        nics.append(
            {
                "traffictype": "Control",
                "ipaddress": vm.control_address,
                "netmask": "255.255.0.0",
                "gateway": "169.254.0.1",
                "isdefault": False,
            }
        )
    if vm.public_address:
        nics.append(
            {
                "traffictype": "Public",
                "ipaddress": vm.public_address,
                "netmask": "255.255.0.0",
                "gateway": "198.18.0.1",
                "isdefault": True,
            }
        )
    nics += [
        {
            "networkid": tier.id,
            "networkname": tier.name,
            "traffictype": "Guest",
            "type": tier.kind,
            "ipaddress": vm.guest_address if tier is tiers[0] and vm.guest_address else tier.gateway,
            "netmask": "255.255.255.0",
            "isdefault": False,
        }
        for tier in tiers
    ]
    return nics


def requires_upgrade(vm: VM, world: World) -> bool:
    """CloudStack 4.21 DomainRouterJoinDaoImpl: below the minimum *and* programmed by another server version."""
    if vm.template_version is None:
        return True
    minimum = world.setting("minreq.sysvmtemplate.version", vm.zone)
    if version_of(vm.template_version) >= version_of(minimum):
        return False
    return vm.software_version != world.release


def version_of(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
