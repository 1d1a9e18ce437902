"""The command gate: whether the management server still sends commands to a router, and what its own patch would do.

A live patch over SSH leaves the server's books as they were. Where a router's template is older than the zone's minimum
the server compares those books with its own payload before every command, and refuses when they differ: the router
then runs, is up to date, and takes no rule any more. Nothing here is guessed: what cannot be known stays unknown, with
the sentence of what is missing.

Sources: CloudStack 4.21 NetworkHelperImpl.java (checkRouterVersion), VirtualNetworkApplianceManagerImpl.java (health
checks that recreate), NetworkOrchestrator.java and VpcManagerImpl.java (whom a live patch patches, and how often).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import ApiCommand, ApiPatchCall, ObservedHostPayload, ObservedManagement
from sysvm.domain.cloud import CloudVM, CloudZone, Snapshot
from sysvm.domain.conditions import bounded
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.versions import is_older, is_same, parse_version

VERSION_CHECK = "router_version_check.py"
"""Compares the VM's signature with the server's books: it fails after every live patch over SSH, until the next start
or patch that the server does itself."""

PATCHED_BY_CLOUDSTACK = frozenset({"KVM", "VMware", "XenServer"})
"""Hypervisors for which CloudStack implements its live patch; with any other the job fails."""

_RESTARTABLE = frozenset({"Implemented", "Setup"})
"""States of a network that restartNetwork accepts."""


# What the server would compare with


class PayloadOrigin(StrEnum):
    """Where a release's payload was read."""

    FILES = "Files"
    PACKAGE = "Package"
    HOST = "Host"
    MANAGEMENT_SERVER = "ManagementServer"


@dataclass(frozen=True, slots=True)
class ServerPayload:
    """The checksum of the management server's own cloud-scripts.tgz, which no call of its API tells."""

    checksum: str | None
    """Hex digits; None: not known."""
    why: str
    """How it is known, or why not: the end of a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """A hypervisor host whose payload was seen."""

    host: str
    version: str | None
    """Release of CloudStack's agent on it."""
    checksum: str
    """Of its cloud-scripts.tgz."""
    holds_release: bool
    """Its content is that of the release."""


def server_payload(
    origin: PayloadOrigin, checksum: str, witnesses: Iterable[Witness], *, server_version: str
) -> ServerPayload:
    """What is known of it from a release with this checksum.

    Read on the server itself it is a fact. Otherwise the hypervisor hosts are the witnesses: hosts that run the
    server's own version and hold one and the same archive, with the release's content, were installed from the same
    package `cloudstack-common` as the server. That a server has another build of it than all of its hosts cannot be
    seen.
    """
    if origin is PayloadOrigin.MANAGEMENT_SERVER:
        return ServerPayload(checksum, "the release's payload was read on it")
    seen = sorted(witnesses, key=lambda each: each.host)
    if not seen:
        return ServerPayload(None, "no hypervisor host's payload was seen")
    for each in seen:
        if not each.holds_release:
            return ServerPayload(None, f"hypervisor host {each.host} has another payload than the release")
        if each.version != server_version:
            has = each.version or "an unknown version"
            return ServerPayload(None, f"hypervisor host {each.host} runs {has} and the server {server_version}")
    builds = {bare_hex(each.checksum) for each in seen}
    if len(builds) > 1:
        return ServerPayload(None, "the hypervisor hosts have several builds of the release's payload")
    return ServerPayload(builds.pop(), f"{len(seen)} hypervisor hosts run {server_version} like it and have one build")


# The gate


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether the server refuses to send commands to a VM."""

    closed: bool | None
    """None: not known."""
    sentence: str = ""
    """Why it is closed and what would open it, or what is not known; empty while it is open."""
    opened_by: str | None = None
    """The value of minreq.sysvmtemplate.version at which it would be open, if it is closed."""


OPEN = Gate(closed=False)


def gate_of(vm: CloudVM, zone: CloudZone | None, server: ServerPayload) -> Gate:
    """The server's own rule: closed if it checks versions, the template is older than the minimum, and the books differ
    from the server's payload. One of the three that is known to be otherwise opens it, whatever the others are."""
    if not vm.type.is_router or vm.hypervisor == "Simulator":
        return OPEN
    minimum = zone.min_template_version if zone is not None else None
    booked = bare_hex(vm.scripts_version)
    checks = zone.version_check if zone is not None else None
    older = _older(vm.template_version, minimum)
    differs = booked != bare_hex(server.checksum) if booked is not None and server.checksum is not None else None
    if False in (checks, older, differs):
        return OPEN
    where = f"zone {vm.zone}"
    missing = [
        told
        for known, told in (
            (checks, f"router.version.check of {where} cannot be read"),
            (older, _what_of_the_template(vm, minimum, where)),
            (differs, _what_of_the_scripts(vm, server)),
        )
        if known is None
    ]
    if missing:
        return Gate(
            None, f"whether the management server sends commands to {vm.name} is not known: {'; '.join(missing)}"
        )
    value = vm.template_version or ""
    return Gate(
        True,
        f"the management server sends no command to {vm.name}: its template {value} is older than "
        f"minreq.sysvmtemplate.version {minimum} of {where}, and the scripts in the server's books "
        f"({_short(booked)}) are not the server's own ({_short(server.checksum)}); "
        f"{value} as minreq.sysvmtemplate.version of {where} would open the gate, also for routers there that nobody "
        "patched",
        value,
    )


def _older(version: str | None, minimum: str | None) -> bool | None:
    if version is None or minimum is None or parse_version(version) is None or parse_version(minimum) is None:
        return None
    return is_older(version, minimum)


def _what_of_the_template(vm: CloudVM, minimum: str | None, where: str) -> str:
    if minimum is None:
        return f"minreq.sysvmtemplate.version of {where} cannot be read"
    return f"the server does not say which template it runs, and the minimum of {where} is {minimum}"


def _what_of_the_scripts(vm: CloudVM, server: ServerPayload) -> str:
    if server.checksum is None:
        return f"the checksum of the server's own scripts is not known, because {server.why}"
    return f"the server's books have no scripts of {vm.name}"


def bare_hex(checksum: str | None) -> str | None:
    """A checksum without its algorithm, in lower case. Old routers reported theirs with a line end."""
    if checksum is None:
        return None
    return checksum.strip().lower().rpartition(":")[2] or None


def _short(checksum: str | None) -> str:
    return (bare_hex(checksum) or "none")[:8]


# CloudStack's own live patch


Served = Mapping[str, tuple[str, ...]]
"""Id of a network or VPC -> names of its routers."""


def routers_in(snapshot: Snapshot) -> Served:
    """Made once for a snapshot: every router of a cloud asks for its peers."""
    found: dict[str, list[str]] = {}
    for vm in snapshot.vms.values():
        if not vm.type.is_router:
            continue
        if vm.network_id:
            found.setdefault(vm.network_id, []).append(vm.name)
        if vm.vpc_id and vm.type is SystemVMType.VPCROUTER:
            found.setdefault(vm.vpc_id, []).append(vm.name)
    return {owner: tuple(sorted(names))[:16] for owner, names in found.items()}


def api_patch(vm: CloudVM, snapshot: Snapshot, served: Served) -> ApiPatchCall | str:
    """The call that would patch the VM, or why there is none: a sentence. `served`: `routers_in(snapshot)`.

    CloudStack patches all routers of the network or VPC one right after the other, those of a VPC once for each tier.
    """
    if vm.type in (SystemVMType.ILBVM, SystemVMType.ELBVM):
        return f"no call of CloudStack patches a VM of type {vm.type}"
    if vm.hypervisor is not None and vm.hypervisor not in PATCHED_BY_CLOUDSTACK:
        return f"CloudStack cannot patch VMs on {vm.hypervisor}"
    if not vm.type.is_router:
        return ApiPatchCall(command=ApiCommand.PATCH_SYSTEM_VM, id=vm.id, name=vm.name, vms=(vm.name,))
    network = snapshot.networks.get(vm.network_id) if vm.network_id else None
    vpc_id = vm.vpc_id or (network.vpc_id if network is not None else None)
    if vpc_id:
        return _of_vpc(vm, vpc_id, snapshot, served)
    if network is None:
        return f"the network of {vm.name} is not known"
    if network.state not in _RESTARTABLE:
        return f"network {network.name} is {network.state}: restartNetwork refuses it"
    return ApiPatchCall(
        command=ApiCommand.RESTART_NETWORK, id=network.id, name=network.name, vms=served.get(network.id, (vm.name,))
    )


def _of_vpc(vm: CloudVM, vpc_id: str, snapshot: Snapshot, served: Served) -> ApiPatchCall | str:
    vpc = snapshot.vpcs.get(vpc_id)
    if vpc is None:
        return f"the VPC of {vm.name} is not known"
    if not vpc.tiers:
        return f"VPC {vpc.name} has no tier: restartVPC with livepatch=true patches nothing there and reports success"
    return ApiPatchCall(
        command=ApiCommand.RESTART_VPC,
        id=vpc.id,
        name=vpc.name,
        patches=len(vpc.tiers),
        vms=served.get(vpc_id, (vm.name,)),
    )


# What the status keeps, and what follows


@dataclass(frozen=True, slots=True, kw_only=True)
class Installs:
    """Which archive CloudStack's own live patch would put on a VM."""

    checksum: str | None = None
    """Hex digits; None: not one of the release."""
    why_not: str = ""
    """Why not, as the end of a sentence."""
    known: bool = False
    """It was seen what it would be."""


def management_of(
    vm: CloudVM, snapshot: Snapshot, server: ServerPayload, served: Served, *, at: datetime
) -> ObservedManagement:
    """What the server's books say of a VM, with what follows from it."""
    zone = snapshot.zones.get(vm.zone_id)
    gate = gate_of(vm, zone, server)
    call = api_patch(vm, snapshot, served)
    return ObservedManagement(
        at=at,
        template_version=vm.template_version,
        minimum_template_version=zone.min_template_version if zone is not None and vm.type.is_router else None,
        scripts_version=bare_hex(vm.scripts_version),
        software_version=vm.software_version,
        requires_upgrade=vm.requires_upgrade,
        server_scripts_version=bare_hex(server.checksum),
        gate_closed=gate.closed,
        gate=bounded(gate.sentence),
        recreating_checks=_recreating_checks(vm, zone),
        api_patch=call if isinstance(call, ApiPatchCall) else None,
        api_patch_refused=call[:512] if isinstance(call, str) else "",
    )


def _recreating_checks(vm: CloudVM, zone: CloudZone | None) -> tuple[str, ...] | None:
    """What a status has room for: the one that decides is never what is cut off."""
    checks = zone.recreating_checks if zone is not None and vm.type.is_router else None
    if checks is None:
        return None
    first = [VERSION_CHECK if len(name) > 128 else name for name in checks if VERSION_CHECK in name]
    return tuple(first + [name[:128] for name in checks if VERSION_CHECK not in name])[:32]


def as_swept(vms: Iterable[VMFacts], snapshot: Snapshot | None) -> Iterator[VMFacts]:
    """The same VMs with the health checks of their zone as the last sweep found them. Statuses are written one after
    the other: those that a sweep makes untrue must not be relied on until the last one is."""
    if snapshot is None:
        yield from vms
        return
    for facts in vms:
        observed, id_ = facts.observed, facts.identity.id if facts.identity is not None else None
        vm = snapshot.vms.get(id_) if id_ is not None else None
        if vm is None or observed is None or observed.management is None:
            yield facts
            continue
        checks = _recreating_checks(vm, snapshot.zones.get(vm.zone_id))
        if checks == observed.management.recreating_checks:
            yield facts
            continue
        management = observed.management.model_copy(update={"recreating_checks": checks})
        yield replace(facts, observed=observed.model_copy(update={"management": management}))


def would_install(facts: VMFacts, release: Release) -> Installs:
    """What CloudStack's own live patch would install on a VM: what lies on its hypervisor host, or for VMware on the
    server (CloudStack 4.21 LibvirtPatchSystemVmCommandWrapper, VmwareResource). By content, as everywhere."""
    observed = facts.observed
    hypervisor = facts.identity.hypervisor if facts.identity else None
    if (hypervisor or "").casefold() == "vmware":
        management = observed.management if observed is not None else None
        own = management.server_scripts_version if management is not None else None
        if own is None:
            return Installs(
                why_not=f"CloudStack would install the server's own payload on {facts.vm}, and nobody saw it"
            )
        if own != bare_hex(release.signature.value):
            return Installs(why_not=f"the server's own payload is another build than {release.version}", known=True)
        return Installs(checksum=own, known=True)
    found = observed.host_payload if observed is not None else None
    if found is None:
        return Installs(why_not=f"CloudStack would install the payload of the host of {facts.vm}, and nobody saw it")
    if found.revision is None or found.revision != release.scripts_revision:
        told = (
            f"host {found.host} of {facts.vm} holds another payload than {release.version}, and that would be installed"
        )
        return Installs(why_not=told, known=True)
    return Installs(checksum=checksum_of(found, release), known=True)


def checksum_of(found: ObservedHostPayload, release: Release) -> str | None:
    """Hex digits of a host's archive as the release computes signatures, whatever the VM's old scripts used."""
    wanted = f"{release.signature.algorithm}:"
    return bare_hex(next((each for each in found.checksums if each.startswith(wanted)), found.checksum))


def names_version_check(management: ObservedManagement) -> bool:
    """The server recreates routers after the failure of the check that every live patch over SSH makes fail. It looks
    for the check's name anywhere in the setting."""
    return any(VERSION_CHECK in name for name in management.recreating_checks or ())


def suspected_recreation(management: ObservedManagement) -> str | None:
    """Why CloudStack may have recreated a router by itself; None: its zone recreates none for a failed check."""
    if not management.recreating_checks:
        return None
    checks = ", ".join(management.recreating_checks[:5])
    return f"its zone recreates routers after a failure of {checks}; see the health checks before more is patched"


# What a claim of success must stand up to


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What the VM and the server's books show after CloudStack said that a patch succeeded."""

    vm: str
    content_matches: bool
    signature: str | None
    failed_services: tuple[str, ...] = ()
    """Failed now and not before the call."""
    roles: str | None = None
    """What is wrong with the roles of its pair; None: nothing."""
    software_version: str | None = None
    gate: Gate = OPEN


def unverified(claim: Claim, *, signature: str, server_version: str, router: bool) -> tuple[str, ...]:
    """What contradicts the claim, as sentences; empty: it is true.

    CloudStack 4.19.2, 4.19.3, 4.20.1 and 4.21.0 patch a router and forget to note it (fixed by its change 10962): then
    all is right but the gate.
    """
    found: list[str] = []
    if not claim.content_matches:
        found.append("its files are not those of the release")
    if claim.signature is None or claim.signature.lower() != signature.lower():
        found.append(f"its signature is {_short(claim.signature)}, not {_short(signature)}")
    if claim.failed_services:
        found.append(f"services failed: {', '.join(claim.failed_services[:5])}")
    if claim.roles:
        found.append(claim.roles)
    if router and not is_same(claim.software_version, server_version):
        found.append(f"the server's books have it at {claim.software_version or 'no version'}, not {server_version}")
    if claim.gate.closed:
        found.append(claim.gate.sentence)
    return tuple(found)
