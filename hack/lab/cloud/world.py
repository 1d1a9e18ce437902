"""One cloud as the stand-in's database has it: built by a test, changed by commands, asked by both.

Ids, names and addresses follow from a seed, in the order in which things are made, so two runs tell the same story.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address

from lab.cloud.faults import Faults
from lab.cloud.records import (
    AGENT_TYPES,
    VM,
    Call,
    CloudEvent,
    Host,
    Inside,
    Network,
    Template,
    VMState,
    Vpc,
    Zone,
    checksum,
)
from lab.cloud.users import User, default_users
from lab.spec import RedundancyRole, SystemVMType

GLOBAL_SETTINGS = {
    "minreq.sysvmtemplate.version": "4.20.2",
    "router.version.check": "true",
    "router.health.checks.failures.to.recreate.vr": "",
    "router.template.kvm": "SystemVM Template (KVM)",
    "router.template.vmware": "SystemVM Template (vSphere)",
    "router.template.xenserver": "SystemVM Template (XenServer)",
    "network.rolling.restart": "true",
    "default.page.size": "500",
}
"""Settings that the stand-in obeys, with their values on a new server; a zone may have its own (`Zone.settings`)."""


class World:
    """One cloud. Ids and addresses follow from `seed`, so that two runs tell the same story.

    `version` is the management server's; `payload` the checksum of its own cloud-scripts.tgz, which the command gate
    compares with; new hosts get the same one.
    """

    def __init__(
        self,
        *,
        version: str = "4.21.0.0",
        template_version: str = "4.20.2",
        payload: str | None = None,
        seed: int = 1,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._draw = random.Random(seed)
        self._number = 0
        self._network_number = 0
        self.now = now
        self.version = version
        self.payload = payload or checksum(f"scripts {version}")
        self.settings = dict(GLOBAL_SETTINGS) | {"minreq.sysvmtemplate.version": template_version}
        self.users: list[User] = default_users()
        self.faults = Faults()
        self.zones: dict[str, Zone] = {}
        self.hosts: dict[str, Host] = {}
        self.templates: dict[str, Template] = {}
        self.vpcs: dict[str, Vpc] = {}
        self.networks: dict[str, Network] = {}
        self.vms: dict[str, VM] = {}
        # What ten thousand VMs are too many to search for.
        self._tiers: dict[str, list[Network]] = {}
        self._routers: dict[str, list[VM]] = {}
        self.removed: dict[str, int] = {}
        """Ids of VMs that are gone, with their number."""
        self.calls: list[Call] = []
        self.events: list[CloudEvent] = []
        self.first_template = self.add_template(
            self.settings["router.template.kvm"], version=template_version, kind="SYSTEM"
        )

    # -- building it -----------------------------------------------------------------------------------------------

    def new_id(self) -> str:
        return str(uuid.UUID(int=self._draw.getrandbits(128), version=4))

    def new_number(self) -> int:
        """The next id of the vm_instance table: one sequence for s-, v- and r- names of the whole cloud."""
        self._number += 1
        return self._number

    def add_zone(self, name: str, *, network_type: str = "Advanced", enabled: bool = True) -> Zone:
        zone = Zone(id=self.new_id(), name=name, network_type=network_type, enabled=enabled)
        self.zones[zone.id] = zone
        for template in self.templates.values():
            template.ready_in.add(zone.id)
        return zone

    def add_host(
        self,
        zone: Zone,
        name: str,
        *,
        address: str = "",
        hypervisor: str = "KVM",
        arch: str = "x86_64",
        cluster: str = "C0",
        payload: str | None = None,
        version: str | None = None,
    ) -> Host:
        sibling = next((h for h in self.hosts.values() if h.zone is zone), None)
        twin = next((h for h in self.hosts.values() if h.zone is zone and h.cluster == cluster), None)
        host = Host(
            id=self.new_id(),
            name=name,
            zone=zone,
            address=address or f"172.16.15.{len(self.hosts) + 5}",
            hypervisor=hypervisor,
            arch=arch,
            cluster=cluster,
            cluster_id=twin.cluster_id if twin else self.new_id(),
            pod_id=sibling.pod_id if sibling else self.new_id(),
            payload=payload or self.payload,
            version=version or self.version,
        )
        self.hosts[host.id] = host
        return host

    def add_template(
        self,
        name: str,
        *,
        version: str,
        kind: str = "SYSTEM",
        hypervisor: str = "KVM",
        arch: str = "x86_64",
        ready: Iterable[Zone] | None = None,
        template_checksum: str = "",
        url: str = "",
    ) -> Template:
        """Ready everywhere unless `ready` names the zones."""
        zones = self.zones.values() if ready is None else ready
        template = Template(
            id=self.new_id(),
            number=200 + len(self.templates) + 1,
            name=name,
            version=version,
            signature=checksum(f"built into {name} {version}"),
            kind=kind,
            hypervisor=hypervisor,
            arch=arch,
            checksum=template_checksum,
            url=url,
            ready_in={zone.id for zone in zones},
            created=self.now(),
        )
        self.templates[template.id] = template
        return template

    def add_vpc(self, zone: Zone, name: str, *, redundant: bool = False, tiers: int = 0, account: str = "admin") -> Vpc:
        """A VPC with its routers: `add_router(vpc=...)` is called for it, twice when redundant, after the tiers."""
        vpc = Vpc(id=self.new_id(), name=name, zone=zone, redundant=redundant, account=account, created=self.now())
        self.vpcs[vpc.id] = vpc
        for number in range(tiers):
            self.add_network(zone, f"{name}-tier{number + 1}", vpc=vpc)
        return vpc

    def add_network(
        self,
        zone: Zone,
        name: str,
        *,
        vpc: Vpc | None = None,
        redundant: bool = False,
        kind: str = "Isolated",
        account: str = "admin",
        project: str | None = None,
    ) -> Network:
        self._network_number += 1
        network = Network(
            id=self.new_id(),
            name=name,
            zone=zone,
            number=self._network_number,
            vpc=vpc,
            redundant=vpc.redundant if vpc else redundant,
            kind=kind,
            account=vpc.account if vpc else account,
            project=project,
            created=self.now(),
        )
        self.networks[network.id] = network
        if vpc is not None:
            self._tiers.setdefault(vpc.id, []).append(network)
        return network

    def add_router(
        self, *, network: Network | None = None, vpc: Vpc | None = None, host: Host | None = None, priority: int = 100
    ) -> VM:
        """One router that runs. Of a redundant pair the first becomes PRIMARY."""
        if network is not None and network.vpc is not None:
            vpc, network = network.vpc, None
        owner = network or vpc
        if owner is None:
            raise ValueError("a router belongs to a network or to a VPC")
        type_ = SystemVMType.VPCROUTER if vpc else SystemVMType.ROUTER
        if network is not None and network.kind == "Shared":
            type_ = SystemVMType.DHCPSRVR
        vm = self.new_vm(type_, owner.zone, host=host, network=network, vpc=vpc, priority=priority)
        return self._settle(vm)

    def add_routers(self, owner: Network | Vpc) -> list[VM]:
        """All routers that a network or VPC needs: one, or a redundant pair on different hosts where there are two."""
        hosts = self.hosts_for(owner.zone)
        count = 2 if owner.redundant else 1
        as_network = owner if isinstance(owner, Network) else None
        as_vpc = owner if isinstance(owner, Vpc) else None
        return [self.add_router(network=as_network, vpc=as_vpc, host=hosts[n % len(hosts)]) for n in range(count)]

    def add_ssvm(self, zone: Zone, *, host: Host | None = None) -> VM:
        return self._settle(self.new_vm(SystemVMType.SECSTORAGE, zone, host=host))

    def add_cpvm(self, zone: Zone, *, host: Host | None = None) -> VM:
        return self._settle(self.new_vm(SystemVMType.CONSOLEPROXY, zone, host=host))

    def add_internal_lb(self, network: Network, *, host: Host | None = None) -> VM:
        return self._settle(self.new_vm(SystemVMType.ILBVM, network.zone, host=host, network=network))

    def new_vm(
        self,
        type_: SystemVMType,
        zone: Zone,
        *,
        host: Host | None = None,
        network: Network | None = None,
        vpc: Vpc | None = None,
        priority: int = 100,
    ) -> VM:
        """A VM that has been defined and never started, with a new id, name and addresses."""
        number = self.new_number()
        letter = {SystemVMType.SECSTORAGE: "s", SystemVMType.CONSOLEPROXY: "v", SystemVMType.ILBVM: "b"}.get(type_, "r")
        chosen = host or self.hosts_for(zone)[number % len(self.hosts_for(zone))]
        owner: Network | Vpc | None = network or vpc
        tier = network or next(iter(self.tiers(vpc)), None)
        template = self.template_for(type_, zone, hypervisor=chosen.hypervisor, arch=chosen.arch)
        vm = VM(
            id=self.new_id(),
            number=number,
            name=f"{letter}-{number}-VM",
            type=type_,
            zone=zone,
            hypervisor=chosen.hypervisor,
            arch=chosen.arch,
            template=template,
            inside=Inside(template.version, template.signature, template.signature),
            host=chosen,
            pod=chosen.pod,
            pod_id=chosen.pod_id,
            state=VMState.STOPPED,
            network=tier,
            vpc=vpc,
            redundant=owner.redundant if owner and type_ is not SystemVMType.ILBVM else False,
            priority=priority,
            account=owner.account if owner else "system",
            project=owner.project if owner else None,
            private_address=_address("172.20.0.0", number) if type_ in AGENT_TYPES else None,
            public_address=None
            if type_ in (SystemVMType.DHCPSRVR, SystemVMType.ILBVM)
            else _address("198.18.0.0", number),
            guest_address=None if tier is None or type_ in AGENT_TYPES else _guest_address(tier, number, owner),
            created=self.now(),
        )
        self.vms[vm.id] = vm
        if owner is not None and vm.role_name == "VIRTUAL_ROUTER":
            self._routers.setdefault(owner.id, []).append(vm)
        return vm

    def _settle(self, vm: VM) -> VM:
        """Makes a VM look as if CloudStack had started it some time ago."""
        host = vm.host
        assert host is not None
        vm.disk = vm.template
        vm.inside = Inside(vm.template.version, host.payload, host.payload, host.version, boots=1)
        self.told(vm, vm.inside.template_version, vm.inside.signature)
        vm.state = VMState.RUNNING
        vm.control_address = _address("169.254.0.0", vm.number)
        self.elect(vm)
        return vm

    @property
    def release(self) -> str:
        """The server's version as it notes it of the routers that it programs: without a suffix such as -SNAPSHOT."""
        return self.version.partition("-")[0]

    def told(self, vm: VM, template_version: str, signature: str) -> None:
        """Writes down what a VM said of itself at a start or after a patch (CloudStack 4.21 domain_router table)."""
        if vm.is_router:
            vm.template_version, vm.scripts_version, vm.software_version = template_version, signature, self.release
        elif vm.type is SystemVMType.SECSTORAGE or vm.agent_state is not None:
            vm.agent_state, vm.software_version = "Up", vm.inside.agent_version or self.version

    def elect(self, vm: VM) -> None:
        """Gives the routers that share a network or VPC with `vm` their roles: who was PRIMARY stays it."""
        if not vm.redundant:
            return
        running = [each for each in self.routers_of(vm.vpc or vm.network) if each.state is VMState.RUNNING]
        leader = next((each for each in running if each.role is RedundancyRole.PRIMARY), None)
        leader = leader or next(iter(sorted(running, key=lambda each: (-each.priority, each.number))), None)
        for each in running:
            each.role = RedundancyRole.PRIMARY if each is leader else RedundancyRole.BACKUP

    # -- an administrator's acts -----------------------------------------------------------------------------------

    def upgrade(
        self, version: str, *, template_version: str | None = None, payload: str | None = None, hosts: bool = False
    ) -> Template | None:
        """What installing a new release of the management server does to its database.

        The server has another version and payload. With `template_version` a SYSTEM template is registered under a
        name of its own, `router.template.*` and minreq are set, and every VM is said to use it next, as CloudStack
        4.21 SystemVmTemplateRegistration does. With `hosts` their packages are upgraded too.
        """
        self.version = version
        self.payload = payload or checksum(f"scripts {version}")
        if hosts:
            for host in self.hosts.values():
                host.payload, host.version = self.payload, version
        if template_version is None:
            return None
        template = self.add_template(f"systemvm-kvm-{template_version}-x86_64", version=template_version)
        self.settings["router.template.kvm"] = template.name
        self.settings["minreq.sysvmtemplate.version"] = template_version
        for zone in self.zones.values():
            zone.settings.pop("minreq.sysvmtemplate.version", None)
        for vm in self.vms.values():
            if vm.hypervisor == template.hypervisor:
                vm.template = template
        return template

    def note(self, type_: str, description: str, *, state: str = "Completed", vm: VM | None = None) -> None:
        resource = (vm.id, vm.name) if vm else (None, None)
        self.events.append(
            CloudEvent(
                type=type_,
                description=description,
                state=state,
                created=self.now(),
                resource_id=resource[0],
                resource_name=resource[1],
            )
        )

    # -- asking it -------------------------------------------------------------------------------------------------

    def vm(self, name: str) -> VM:
        """The VM of a name. Raises KeyError with the names there are."""
        for vm in self.vms.values():
            if vm.name == name:
                return vm
        raise KeyError(f"no VM {name}; there are {', '.join(sorted(each.name for each in self.vms.values()))}")

    def setting(self, name: str, zone: Zone | None = None) -> str:
        return (zone.settings if zone else {}).get(name, self.settings[name])

    def hosts_for(self, zone: Zone) -> list[Host]:
        """Where a VM of a zone can be started."""
        fit = [h for h in self.hosts.values() if h.zone is zone and h.state == "Up" and h.resource_state == "Enabled"]
        return fit or [h for h in self.hosts.values() if h.zone is zone]

    def add_rules(self, network: Network, **counts: int) -> None:
        """Tenants have so many rules more; the routers that run hold them. Kinds are those of `Network.rules`."""
        for kind, count in counts.items():
            network.rules[kind] = network.rules.get(kind, 0) + count
        for vm in self.routers_of(network.vpc or network):
            vm.inside.rules = self.rules_for(vm)

    def rules_for(self, vm: VM) -> dict[str, int]:
        """What the server sends to a router: everything of its network or of all tiers, but what a fault keeps back."""
        networks = list(self.tiers(vm.vpc)) if vm.vpc else [vm.network] if vm.network else []
        if vm.role_name != "VIRTUAL_ROUTER":
            return {}
        kinds = {kind for network in networks for kind in network.rules}
        return {
            kind: max(0, sum(network.rules.get(kind, 0) for network in networks) - self.faults.lose_rules)
            for kind in sorted(kinds)
        }

    def tiers(self, vpc: Vpc | None) -> Iterator[Network]:
        if vpc is not None:
            yield from (tier for tier in self._tiers.get(vpc.id, []) if tier.id in self.networks)

    def routers_of(self, owner: Network | Vpc | None) -> list[VM]:
        """Routers of a network or VPC in database order, internal load balancers left out."""
        return [vm for vm in self._routers.get(owner.id if owner else "", []) if vm.id in self.vms]

    def template_for(self, type_: SystemVMType, zone: Zone, *, hypervisor: str, arch: str) -> Template:
        """The template the server takes for a new disk.

        Routers go by the name in `router.template.<hypervisor>`, ROUTING before SYSTEM; SSVMs and CPVMs take the
        highest number among the ready SYSTEM templates (CloudStack 4.21 VMTemplateDaoImpl).
        """
        fit = [
            t
            for t in self.templates.values()
            if t.hypervisor == hypervisor
            and t.arch == arch
            and zone.id in t.ready_in
            and t.kind in ("SYSTEM", "ROUTING")
        ]
        system = sorted((t for t in fit if t.kind == "SYSTEM"), key=lambda t: -t.number)
        if type_ not in AGENT_TYPES:
            name = self.settings.get(f"router.template.{hypervisor.lower()}", "")
            name = zone.settings.get(f"router.template.{hypervisor.lower()}", name)
            named = sorted((t for t in fit if t.name == name), key=lambda t: (t.kind != "ROUTING", -t.number))
            system = named or system
        return system[0] if system else self.first_template


def _address(base: str, number: int) -> str:
    return str(IPv4Address(base) + 256 + number)


def _guest_address(network: Network, number: int, owner: Network | Vpc | None) -> str:
    if owner is not None and owner.redundant:
        return f"10.1.{network.number}.{2 + number % 240}"
    return network.gateway
