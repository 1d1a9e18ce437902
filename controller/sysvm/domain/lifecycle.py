"""Reboot and Recreate: what is asked of the management server, what must hold before it, and what after it.

The server's own word is not enough for either. Before: it starts the template that its settings name, which after an
upgrade may be another than people declared. After: a job may say success with nothing done, or fail with everything
done, and `restartrequired` stays false after a failed restart (CloudStack 4.21, recorded answers). So identities are
compared, by id, with those from right before the call, and every VM is looked at over SSH.

A guest's own reboot is never used: on KVM it loses the router's rules, because only the management server's start
brings them (CloudStack 4.21 VirtualNetworkApplianceManagerImpl.finalizeStart).
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sysvm.api.endpoint import SystemVMType
from sysvm.api.images import Images
from sysvm.api.methods import Method
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation
from sysvm.domain.beside import duplicate_sentence, duplicates, leftover_sentence, leftovers
from sysvm.domain.calls import HOLDS, Call, Command, Look, Standing, Verdict, broken, not_yet
from sysvm.domain.cloud import CloudHost, CloudVM, CloudVMState
from sysvm.domain.facts import ZONE_TYPES, VMFacts
from sysvm.domain.pairs import Trouble, primary_now
from sysvm.domain.room import no_room
from sysvm.domain.rule_counts import missing_rules, not_compared
from sysvm.domain.running import failed_services, router_of
from sysvm.domain.templates import wrong_start
from sysvm.domain.versions import is_older

ROUTER_TYPES = frozenset({SystemVMType.ROUTER, SystemVMType.VPCROUTER, SystemVMType.DHCPSRVR})
"""Types that rebootRouter, restartNetwork and restartVPC know."""

RULED_TYPES = frozenset({SystemVMType.ROUTER, SystemVMType.VPCROUTER})
"""Types that hold rules of tenants which the server lists by network."""

SETTLING = timedelta(seconds=60)
"""After a job has ended the server still removes what it replaced; what is left then stays."""

BOOT_COUNTS = timedelta(minutes=1)
"""So old the boot of before may be, which a reboot is proven by. High availability starts VMs anew too, also while the
operation waits: that start would pass for ours."""

_FLAGS: dict[tuple[Method, Command], tuple[str, ...]] = {
    (Method.REBOOT, Command.REBOOT_SYSTEM_VM): ("forced",),  # stop and start: without it no new template
    (Method.RECREATE, Command.RESTART_NETWORK): ("cleanup",),
    (Method.RECREATE, Command.RESTART_VPC): ("cleanup",),
}


def flags_of(method: Method, command: Command) -> tuple[str, ...]:
    return _FLAGS.get((method, command), ())


@dataclass(frozen=True, slots=True)
class Aim:
    """Which call a method makes for a VM, and for what."""

    group: str
    """Key of the operation: the whole group, or the one VM."""
    call: Call
    whole_group: bool
    """The call changes all routers of the network or VPC."""


def aim_of(method: Method, vm: CloudVM, group: str | None) -> Aim | None:
    """The call for a VM of this group; None: CloudStack has none for its type, or the VM serves nothing yet."""
    command: Command | None = None
    target: str | None = vm.id
    if method is Method.REBOOT and vm.type in ROUTER_TYPES:
        command = Command.REBOOT_ROUTER
    elif method is Method.REBOOT and vm.type in ZONE_TYPES:
        command = Command.REBOOT_SYSTEM_VM
    elif method is Method.RECREATE and vm.type in ZONE_TYPES:
        command = Command.DESTROY_SYSTEM_VM
    elif method is Method.RECREATE and vm.type in ROUTER_TYPES:
        # A tier of a VPC cannot be restarted with cleanup, only the VPC as a whole (CloudStack 4.21 answers 431).
        command, target = (
            (Command.RESTART_VPC, vm.vpc_id) if vm.vpc_id is not None else (Command.RESTART_NETWORK, vm.network_id)
        )
    if command is None or target is None:
        return None
    whole = command in (Command.RESTART_NETWORK, Command.RESTART_VPC)
    return Aim(
        group=(group or vm.name) if whole else vm.name,
        call=Call(command, target, flags_of(method, command)),
        whole_group=whole,
    )


def why_impossible(method: Method, type_: SystemVMType) -> str | None:
    """Why CloudStack cannot do this to VMs of a type, as the end of a sentence; None: it can."""
    if method not in (Method.REBOOT, Method.RECREATE) or type_ in ROUTER_TYPES | ZONE_TYPES:
        return None
    told = f"CloudStack has no call that does {method} with a VM of type {type_}"
    if type_ is SystemVMType.ILBVM:
        # Neither restart looks at it: a VPC restarts its routers, and a tier is not restarted with cleanup (CloudStack
        # 4.21 VpcManagerImpl, NetworkOrchestrator). A stop and a start are two jobs, and between them nobody balances.
        return (
            f"{told}: call stopInternalLoadBalancerVM, then startInternalLoadBalancerVM, which starts it from the "
            "current template with the host's payload; its connections are cut meanwhile"
        )
    return f"{told}: another is deployed when its load balancer rules are deleted and made again"


def interruption(method: Method, type_: SystemVMType, *, redundant: bool, alone: bool) -> str:
    """What tenants lose meanwhile, as a sentence for the plan. `alone`: no other VM of its type serves the zone."""
    if type_ in ZONE_TYPES:
        what = "console sessions end" if type_ is SystemVMType.CONSOLEPROXY else "uploads and downloads in work fail"
        if method is Method.RECREATE:
            gap = "; none serves the zone for 5 to 60 s and the time of a boot" if alone else "; others go on serving"
            return f"it is destroyed and another is deployed, with a new name: {what}{gap}"
        return f"it is stopped and started: {what}" + ("; none serves the zone meanwhile" if alone else "")
    if method is Method.RECREATE and redundant:
        return (
            "both routers are replaced one after the other by CloudStack: the gateway moves at least once, connections "
            "may break"
        )
    if method is Method.RECREATE:
        return "another router takes its place: forwarding stops for about 10 s, up to 30 s for outgoing traffic (ARP)"
    if redundant:
        return "it is stopped and started while its peer has the gateway: a PRIMARY hands it over"
    return "it is stopped and started: no forwarding, DHCP or DNS meanwhile, one to two minutes"


# The judges


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What Reboot and Recreate ask alike."""

    version: str | None = None
    """Template version that the VMs must have afterwards; None: any."""
    images: Images | None = None
    """The images of the release; a VM is not started anew where none is declared for it."""
    unsettled: str | None = None
    """Why nothing is begun in this cloud now, as a sentence; None: nothing stands against it."""
    other_payloads: tuple[str, ...] = ()
    """Hosts with another payload than the release, if that must not be: a VM that starts there falls back to it."""

    def call(self, operation: GroupOperation) -> Call:
        command = Command(operation.command)
        return Call(command, operation.target, flags_of(operation.method, command))

    def is_done(self, look: Look, vm: CloudVM) -> bool:
        """Nobody: a start anew gives another boot or another id, and neither can be there before it."""
        return False

    def _settled(self) -> Verdict:
        return HOLDS if self.unsettled is None else not_yet(Reason.CLOUD_CHANGED, self.unsettled)

    def _choice(self, look: Look, vm: CloudVM) -> Verdict:
        """What the server would start the VM from, wherever in the zone, is the declared image, and ready."""
        if self.version is None:
            return HOLDS
        wrong = wrong_start(vm, look.hosts, self.images, look.templates)
        return HOLDS if wrong is None else not_yet(wrong.reason, wrong.message)

    def _runs_well(self, operation: GroupOperation, vm: CloudVM, facts: VMFacts | None) -> Verdict:
        """Running, booted, its agent Up, seen over SSH after the job ended, from the declared template."""
        if vm.state is not CloudVMState.RUNNING:
            return not_yet(Reason.VM_NOT_RUNNING, f"{vm.name} is {vm.state}")
        if vm.type in ZONE_TYPES and (vm.agent_state or "").casefold() != "up":
            return not_yet(Reason.AGENT_NOT_UP, f"the agent of {vm.name} is {vm.agent_state or 'not registered'}")
        seen = facts.observed if facts is not None else None
        if facts is None or seen is None or seen.at <= operation.since or not facts.reachable:
            why = f": {facts.reach.message}" if facts is not None and facts.unreachable else ""
            return not_yet(Reason.NOT_OBSERVED, f"{vm.name} was not looked at since the job ended{why}")
        if not seen.booted:
            return not_yet(Reason.NOT_OBSERVED, f"the boot scripts of {vm.name} have not finished")
        template = seen.template.version if seen.template is not None else None
        if self.version is not None and (template is None or is_older(template, self.version)):
            told = f"{vm.name} was started from template {template or 'unknown'}, not {self.version}"
            return broken(Reason.TEMPLATE_OUTDATED, told)
        failed = failed_services(facts)
        if failed:
            return not_yet(Reason.SERVICES_FAILED, f"services of {vm.name} have failed: {', '.join(failed[:5])}")
        return HOLDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Reboot(_Common):
    """Stop and start of one VM by the management server: the same id, a new boot."""

    def before(self, operation: GroupOperation, look: Look) -> Verdict:
        vm = _find(look.vms, operation.target)
        if vm is None:
            return broken(Reason.VM_GONE, f"the VM with id {operation.target} is not there any more")
        facts = look.facts(vm)
        seen = facts.observed if facts is not None else None
        if seen is None or seen.boot_id is None:
            return not_yet(Reason.NOT_OBSERVED, f"{vm.name} must be looked at first: its boot is not known")
        if seen.at <= operation.since or look.taken_at - seen.at > BOOT_COUNTS:
            told = f"{vm.name} must be looked at first: it may have been started anew since its boot was seen"
            return not_yet(Reason.NOT_OBSERVED, told)
        return _first(self._settled(), _placed(look, [vm], elsewhere=True), self._choice(look, vm))

    def changed(self, operation: GroupOperation, look: Look) -> bool | None:
        vm = _find(look.vms, operation.target)
        if vm is None or vm.state is not CloudVMState.RUNNING:
            return True
        facts = look.facts(vm)
        seen = facts.observed if facts is not None and facts.reachable else None
        if seen is None or seen.at <= operation.since:
            return None
        return seen.boot_id != _boot_before(operation)

    def after(self, operation: GroupOperation, look: Look) -> Verdict:
        vm = _find(look.vms, operation.target)
        if vm is None:
            return broken(Reason.VM_GONE, f"the VM with id {operation.target} is not there any more")
        facts = look.facts(vm)
        well = self._runs_well(operation, vm, facts)
        if well.standing is not Standing.HOLDS:
            return well
        if facts is not None and facts.observed is not None and facts.observed.boot_id == _boot_before(operation):
            return broken(Reason.CLAIM_NOT_VERIFIED, f"{vm.name} was not started anew: it is in the same boot")
        return rules_are_back(operation, look, [vm])


@dataclass(frozen=True, slots=True, kw_only=True)
class RecreateRouters(_Common):
    """`restartNetwork` or `restartVPC` with cleanup: every router of the network or VPC is replaced."""

    def before(self, operation: GroupOperation, look: Look) -> Verdict:
        running = [vm for vm in look.vms if vm.state is CloudVMState.RUNNING]
        if not running:
            return broken(Reason.VM_NOT_RUNNING, f"no router of {operation.group} runs")
        twice = duplicates(look.vms)
        if twice:
            return broken(Reason.DUPLICATE_GATEWAY, duplicate_sentence(twice))
        choices = [self._choice(look, vm) for vm in running]
        found = self._settled(), _placed(look, running, elsewhere=True), *choices
        return _first(*found, _fits_in(look, running[0]), same_payload(look.hosts, running[0], self.other_payloads))

    def changed(self, operation: GroupOperation, look: Look) -> bool | None:
        return {vm.id for vm in look.vms} != {vm.id for vm in operation.before}

    def after(self, operation: GroupOperation, look: Look) -> Verdict:
        old = {vm.id for vm in operation.before}
        stayed = [vm for vm in look.vms if vm.id in old]
        new = [vm for vm in look.vms if vm.id not in old]
        twice = duplicates(look.vms)
        if twice:
            return _once_settled(operation, look, broken(Reason.DUPLICATE_GATEWAY, duplicate_sentence(twice)))
        left = leftovers(look.vms)
        if left:
            return _once_settled(operation, look, broken(Reason.LEFTOVER_ROUTER, leftover_sentence(left)))
        if stayed:
            names = ", ".join(vm.name for vm in stayed)
            return _once_settled(operation, look, broken(Reason.CLAIM_NOT_VERIFIED, f"not replaced: {names}"))
        if not new:
            return not_yet(Reason.VM_NOT_RUNNING, f"{operation.group} has no router")
        missing = (2 if any(vm.redundant for vm in new) else 1) - len(new)
        if missing > 0:
            return not_yet(Reason.VM_NOT_RUNNING, f"{operation.group} has only {new[0].name}: its peer is missing")
        well = _first(*(self._runs_well(operation, vm, look.facts(vm)) for vm in new))
        return _in_turn(well, lambda: _one_primary(look, new), lambda: rules_are_back(operation, look, new))


@dataclass(frozen=True, slots=True, kw_only=True)
class RecreateSystemVM(_Common):
    """`destroySystemVm`: the server's scan deploys another, under a new id and name. `Look.vms`: all of this type in
    the zone."""

    def before(self, operation: GroupOperation, look: Look) -> Verdict:
        vm = _find(look.vms, operation.target)
        if vm is None:
            return broken(Reason.VM_GONE, f"the VM with id {operation.target} is not there any more")
        found = self._settled(), _placed(look, [vm], elsewhere=True), self._choice(look, vm)
        return _first(*found, _fits_in(look, vm), same_payload(look.hosts, vm, self.other_payloads))

    def changed(self, operation: GroupOperation, look: Look) -> bool | None:
        return _find(look.vms, operation.target) is None

    def after(self, operation: GroupOperation, look: Look) -> Verdict:
        old = {vm.id for vm in operation.before}
        stayed = _find(look.vms, operation.target)
        if stayed is not None:
            return _once_settled(
                operation, look, broken(Reason.CLAIM_NOT_VERIFIED, f"{stayed.name} was not destroyed: {stayed.state}")
            )
        new = [vm for vm in look.vms if vm.id not in old]
        if not new:
            return not_yet(Reason.VM_NOT_RUNNING, "the server has not deployed another one yet")
        verdicts = [self._runs_well(operation, vm, look.facts(vm)) for vm in new]
        return next((each for each in verdicts if each.standing is Standing.HOLDS), verdicts[0])


def judge_of(
    operation: GroupOperation,
    *,
    version: str | None,
    images: Images | None,
    unsettled: str | None = None,
    other_payloads: tuple[str, ...] = (),
) -> Reboot | RecreateRouters | RecreateSystemVM:
    """The judge of a Reboot or Recreate. `version`: the template version that the policy requires, if it does."""
    kind: type[Reboot] | type[RecreateRouters] | type[RecreateSystemVM] = RecreateRouters
    if operation.method is Method.REBOOT:
        kind = Reboot
    elif operation.command == Command.DESTROY_SYSTEM_VM:
        kind = RecreateSystemVM
    return kind(version=version, images=images, unsettled=unsettled, other_payloads=other_payloads)


def _find(vms: Iterable[CloudVM], id_: str) -> CloudVM | None:
    return next((vm for vm in vms if vm.id == id_), None)


def _boot_before(operation: GroupOperation) -> str | None:
    return next((vm.boot_id for vm in operation.before if vm.id == operation.target), None)


def _first(*verdicts: Verdict) -> Verdict:
    """What is broken before what only takes time."""
    found = [verdict for verdict in verdicts if verdict.standing is not Standing.HOLDS]
    return next((each for each in found if each.standing is Standing.BROKEN), found[0] if found else HOLDS)


def _once_settled(operation: GroupOperation, look: Look, verdict: Verdict) -> Verdict:
    """The server may still be clearing up."""
    if operation.job_failure or look.taken_at - operation.since >= SETTLING:
        return verdict
    return Verdict(Standing.NOT_YET, verdict.reason, verdict.sentence)


def _placed(look: Look, vms: Sequence[CloudVM], *, elsewhere: bool) -> Verdict:
    """The zone is enabled, the VMs run on hosts that work, and there is a host that a new one can start on."""
    if look.zone is None:
        return not_yet(Reason.ZONE_DISABLED, "the zone is not known")
    if not look.zone.enabled:
        return not_yet(Reason.ZONE_DISABLED, f"zone {look.zone.name} is disabled: nothing can be started in it")
    hosts = {host.id: host for host in look.hosts}
    for vm in vms:
        if vm.state is not CloudVMState.RUNNING:
            return not_yet(Reason.VM_NOT_RUNNING, f"{vm.name} is {vm.state}")
        host = hosts.get(vm.host_id or "")
        if host is None or not takes_vms(host):
            told = f"host {vm.host or 'unknown'} of {vm.name} is {_condition(host)}"
            return not_yet(Reason.HOST_NOT_READY, told)
        if elsewhere and not any(takes_vms(each) and _fits(each, vm) for each in look.hosts):
            return not_yet(Reason.HOST_NOT_READY, f"no host of zone {look.zone.name} can start {vm.name} anew")
    return HOLDS


def _fits_in(look: Look, vm: CloudVM) -> Verdict:
    """One more like it finds room, as far as the server tells."""
    hosts = [host for host in look.hosts if takes_vms(host) and _fits(host, vm)]
    told = no_room(look.room, vm, hosts)
    return HOLDS if told is None else not_yet(Reason.NO_CAPACITY, told)


def same_payload(hosts: Iterable[CloudHost], vm: CloudVM, other_payloads: Collection[str]) -> Verdict:
    """Wherever the new VM may be started, it gets the release. `hosts`: of its zone; `other_payloads`: names of those
    with another one."""
    found = [host for host in hosts if takes_vms(host) and _fits(host, vm) and host.name in other_payloads]
    if not found:
        return HOLDS
    named = ", ".join(host.name for host in found[:5])
    told = f"what takes the place of {vm.name} may be started on {named}, which keeps another payload than the release"
    return not_yet(Reason.HOST_PAYLOAD_MISMATCH, told)


def takes_vms(host: CloudHost) -> bool:
    """The server can start VMs on it: its agent answers and nobody has taken it out of service."""
    return host.state == "Up" and host.resource_state == "Enabled"


def _fits(host: CloudHost, vm: CloudVM) -> bool:
    same = (host.hypervisor or "").casefold() == (vm.hypervisor or "").casefold()
    return same and (host.arch is None or vm.arch is None or host.arch == vm.arch)


def _condition(host: CloudHost | None) -> str:
    return "not listed" if host is None else f"{host.state}, {host.resource_state}"


def rules_are_back(operation: GroupOperation, look: Look, routers: Sequence[CloudVM]) -> Verdict:
    """The routers hold the rules that the server lists, as far as there is anything to compare."""
    counted = [vm for vm in routers if vm.type in RULED_TYPES]
    if not counted:
        return HOLDS
    if look.rules is None:
        return not_yet(Reason.RULES_NOT_COMPARED, "all else is as it should be; tenants' rules are counted now")
    known = [facts for vm in counted if (facts := look.facts(vm)) is not None]
    lacking = [
        told
        for facts in known
        if (told := missing_rules(operation.rules_listed, operation.rules_held, look.rules, facts)) is not None
    ]
    if lacking and operation.reason != Reason.RULES_MISSING:
        # A tenant may have made a rule between the look at the router and the list: both are asked for once more.
        return not_yet(Reason.RULES_MISSING, "; ".join(lacking))
    if lacking:
        return _once_settled(operation, look, broken(Reason.RULES_MISSING, "; ".join(lacking)))
    return Verdict(Standing.HOLDS, sentence=not_compared(look.rules, known))


def _in_turn(first: Verdict, *others: Callable[[], Verdict]) -> Verdict:
    """The first that does not hold, or the last."""
    verdict = first
    for other in others:
        if verdict.standing is not Standing.HOLDS:
            return verdict
        verdict = other()
    return verdict


def _one_primary(look: Look, routers: Sequence[CloudVM]) -> Verdict:
    """A new pair has exactly one PRIMARY, by what both say at one time."""
    if not any(vm.redundant for vm in routers):
        return HOLDS
    members = [facts for vm in routers if (facts := look.facts(vm)) is not None]
    found = primary_now([router_of(facts) for facts in members])
    if isinstance(found, str):
        return HOLDS
    if isinstance(found, Trouble):
        return not_yet(found.reason, found.sentence)
    return not_yet(Reason.PAIR_NOT_SEEN, "the roles of the new routers were not seen together yet")
