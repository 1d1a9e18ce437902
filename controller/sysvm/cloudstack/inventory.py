"""One sweep: everything that the operator reads of a cloud, list by list, into one snapshot.

A sweep is whole or it is nothing. A list that fails, changes while its pages are read, or holds an entry that cannot be
understood ends it with an error, because half a sweep would make VMs look gone. What a role may not read and nothing
depends on (settings, internal load balancers) is told instead.

Lists are read one after the other and page by page, so that the memory is that of one page and of the values that are
kept; words that repeat (zones, hosts, accounts, releases) are kept once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime
from sys import intern
from typing import Protocol, TypeVar

from sysvm.api.endpoint import SystemVMType
from sysvm.cloudstack import answers
from sysvm.cloudstack.errors import BadParameter, ListChanged, NoSuchObject, NotAllowed
from sysvm.cloudstack.transport import Answer, Param
from sysvm.domain.cloud import CloudHost, CloudNetwork, CloudServer, CloudVM, CloudVPC, CloudZone, Snapshot

MIN_TEMPLATE_VERSION = "minreq.sysvmtemplate.version"
VERSION_CHECK = "router.version.check"
RECREATING_CHECKS = "router.health.checks.failures.to.recreate.vr"
_SETTINGS = (MIN_TEMPLATE_VERSION, VERSION_CHECK, RECREATING_CHECKS)

LIST_TRIES = 3
"""A list that changes while it is read is read again this often before the sweep is given up."""

T = TypeVar("T", CloudVM, CloudHost, CloudServer, CloudZone, CloudNetwork, CloudVPC)


class Lists(Protocol):
    """The part of `client.CloudStack` that is needed here."""

    async def call(self, command: str, **params: Param) -> Answer: ...

    def list_all(self, command: str, key: str, *, exact: bool = True, **params: Param) -> AsyncIterator[Answer]: ...


@dataclass(frozen=True, slots=True)
class Sweep:
    """A snapshot, and the commands without which it knows less."""

    snapshot: Snapshot
    not_allowed: tuple[str, ...] = ()


async def sweep(cloud: Lists, clock: Callable[[], datetime]) -> Sweep:
    """Reads everything. The time of the snapshot is that of its beginning: what happened since may be missing.

    Raises the classes of `errors`.
    """
    begun = clock()
    not_allowed: list[str] = []
    unread: frozenset[SystemVMType] = frozenset()
    version = answers.server_version(await cloud.call("listCapabilities"))
    zones = await _all(cloud, "listZones", "zone", answers.zone)
    zones, readable = await _with_settings(cloud, zones)
    if not readable:
        not_allowed.append("listConfigurations")
    hosts = await _all(cloud, "listHosts", "host", answers.host, type="Routing")
    vms = dict(await _all(cloud, "listSystemVms", "systemvm", answers.system_vm))
    vms |= await _all(cloud, "listRouters", "router", answers.router, listall=True, projectid="-1")
    try:
        vms |= await _all(
            cloud,
            "listInternalLoadBalancerVMs",
            "router",
            answers.internal_load_balancer,
            listall=True,
            projectid="-1",
        )
    except NotAllowed:
        not_allowed.append("listInternalLoadBalancerVMs")
        unread = frozenset({SystemVMType.ILBVM})
    servers: dict[str, CloudServer] = {}
    try:
        servers = await _all(cloud, "listManagementServers", "managementserver", answers.management_server)
    except NotAllowed:
        not_allowed.append("listManagementServers")
    networks = await _all(cloud, "listNetworks", "network", answers.network, listall=True, projectid="-1")
    vpcs = await _all(cloud, "listVPCs", "vpc", answers.vpc, listall=True, projectid="-1")
    taken = Snapshot(
        taken_at=begun,
        server_version=version,
        zones=zones,
        hosts=hosts,
        vms=vms,
        networks=networks,
        vpcs=vpcs,
        servers=servers,
        unread=unread,
    )
    return Sweep(taken, tuple(not_allowed))


async def one_vm(cloud: Lists, vm: CloudVM) -> CloudVM | None:
    """The same VM as it is now; None: it is gone. Raises the classes of `errors`."""
    command, key, read = _LISTS.get(vm.type, ("listRouters", "router", answers.router))
    params: dict[str, Param] = {"id": vm.id}
    if command != "listSystemVms":
        params |= {"listall": True, "projectid": "-1"}
    try:
        answer = await cloud.call(command, **params)
    except NoSuchObject:
        return None
    entries = answer.get(key)
    return read(entries[0]) if isinstance(entries, list) and entries and isinstance(entries[0], dict) else None


_LISTS: Mapping[SystemVMType, tuple[str, str, Callable[[Answer], CloudVM]]] = {
    SystemVMType.SECSTORAGE: ("listSystemVms", "systemvm", answers.system_vm),
    SystemVMType.CONSOLEPROXY: ("listSystemVms", "systemvm", answers.system_vm),
    SystemVMType.ILBVM: (
        "listInternalLoadBalancerVMs",
        "router",
        answers.internal_load_balancer,
    ),
}


async def _all(cloud: Lists, command: str, key: str, read: Callable[[Answer], T], **params: Param) -> dict[str, T]:
    """Every entry of a list, by id."""
    for attempt in range(1, LIST_TRIES + 1):
        found: dict[str, T] = {}
        try:
            async for entry in cloud.list_all(command, key, exact=True, **params):
                value = _small(read(entry))
                found[value.id] = value
        except ListChanged:
            if attempt == LIST_TRIES:
                raise
            continue
        return found
    raise AssertionError("the last try raises or returns")


def _small(value: T) -> T:
    """The same, with words that other entries have, too, kept once."""
    for each in fields(value):
        word = getattr(value, each.name)
        if type(word) is str:
            object.__setattr__(value, each.name, intern(word))
    return value


async def _with_settings(cloud: Lists, zones: Mapping[str, CloudZone]) -> tuple[dict[str, CloudZone], bool]:
    """The zones with the settings that decide, and whether the role may read them."""
    found: dict[str, CloudZone] = {}
    try:
        everywhere = {name: await _setting(cloud, name) for name in _SETTINGS}
        for zone in zones.values():
            # Only settings that may differ by zone come with a zone, and the server alone knows which.
            told = {name: await _setting(cloud, name, zone.id) for name in _SETTINGS}
            minimum, check, recreating = (
                told[name] if told[name] is not None else everywhere[name] for name in _SETTINGS
            )
            found[zone.id] = replace(
                zone,
                min_template_version=minimum or None,
                version_check=check.strip().lower() == "true" if check is not None else None,
                recreating_checks=_words(recreating) if recreating is not None else None,
            )
    except NotAllowed:
        return dict(zones), False
    return found, True


async def _setting(cloud: Lists, name: str, zone_id: str | None = None) -> str | None:
    """Its value, of a zone or of all; None: not told there. One that is not set is empty."""
    try:
        entries = cloud.list_all("listConfigurations", "configuration", exact=True, name=name, zoneid=zone_id)
        async for entry in entries:
            found, value = answers.setting(entry)
            if found == name:
                return value or ""
    except BadParameter:
        return None
    return None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
