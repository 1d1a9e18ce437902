"""Which template the management server will start a system VM from, and whether that is the declared one.

Asked before anything is recreated: `templateid` of a VM names the template of its next start only until somebody
registers another, and what is destroyed cannot be asked any more. Two rules decide (CloudStack 4.21
VMTemplateDaoImpl.java, SystemVmManagerImpl.java, VirtualNetworkApplianceManagerImpl.java):

* an SSVM or CPVM takes the newest SYSTEM template of its hypervisor and architecture that is ready in the zone,
  whatever its name is;
* a router takes the template that `router.template.<hypervisor>` of the zone names: the newest ROUTING one of that name
  before the newest SYSTEM one, ready or not.

Newest is the highest number in the server's database, which no answer has. `created` follows it, in whole seconds; two
of the same second cannot be told apart, and then nothing is recreated.

Where the hosts of a zone have several architectures the server may try one after the other (CloudStack pull request
10289, in 4.20.1, with the setting `system.vm.preferred.architecture`); this project has never seen it do so. No order
is claimed here: the template of every architecture that has one has to be right.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType

from sysvm.api.endpoint import SystemVMType
from sysvm.api.images import Image, ImageArch, ImageHypervisor, Images, ImageStatus, PromotionStatus
from sysvm.api.reasons import Reason
from sysvm.domain.cloud import CloudHost, CloudVM, CloudZone, Snapshot
from sysvm.domain.conditions import bounded
from sysvm.domain.facts import ZONE_TYPES

SYSTEM, ROUTING = "SYSTEM", "ROUTING"
NAMED_LIMIT = 512
_DIGEST_SIZES = {32: "md5", 64: "sha256", 128: "sha512"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudTemplate:
    """One template in one zone, as `listTemplates` says it: a row a zone."""

    id: str
    name: str
    type: str
    """SYSTEM, ROUTING, USER, BUILTIN, ..."""
    hypervisor: str
    arch: str | None = None
    """None before CloudStack 4.20.1, which had one architecture a hypervisor."""
    zone_id: str | None = None
    """None: of all zones."""
    ready: bool = False
    status: str = ""
    """The server's words about its download."""
    checksum: str | None = None
    created: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudTemplates:
    """All system VM templates of a cloud at one moment, and the settings that choose among them."""

    taken_at: datetime
    templates: tuple[CloudTemplate, ...]
    router_names: Mapping[tuple[str, str], str | None] = field(default_factory=lambda: MappingProxyType({}))
    """Zone id and hypervisor in lower case -> `router.template.<hypervisor>`; missing or None: the role may not read
    it."""


@dataclass(frozen=True, slots=True)
class Place:
    """What an image is needed for: VMs of one type in one zone, on one hypervisor and architecture."""

    type: SystemVMType
    zone_id: str
    zone: str
    hypervisor: str
    arch: str | None = None

    def __str__(self) -> str:
        return f"{self.type} in zone {self.zone} on {self.hypervisor}" + (f" {self.arch}" if self.arch else "")


@dataclass(frozen=True, slots=True)
class Choice:
    """What the server will take; without a template the sentence says why that is not known, or why there is none."""

    template: CloudTemplate | None
    sentence: str


@dataclass(frozen=True, slots=True)
class Wrong:
    """Nothing may be recreated there."""

    reason: Reason
    message: str


def place_of(vm: CloudVM, hosts: Mapping[str, CloudHost]) -> Place | None:
    """Where a successor of the VM would be started; None while its hypervisor is not known."""
    host = hosts.get(vm.host_id) if vm.host_id else None
    hypervisor = vm.hypervisor or (host.hypervisor if host else None)
    if hypervisor is None:
        return None
    return Place(vm.type, vm.zone_id, vm.zone, hypervisor, vm.arch or (host.arch if host else None))


def chosen(place: Place, cloud: CloudTemplates) -> Choice:
    """The template that the server starts a VM from there, on this architecture, by what is known now."""
    found = _candidates(place, cloud)
    if place.type in ZONE_TYPES:
        return _newest([one for one in found if one.ready], f"no SYSTEM template for {place} is ready")
    name = _router_name(place, cloud)
    if not name:
        setting = f"router.template.{place.hypervisor.lower()}"
        return Choice(None, f"{setting} of zone {place.zone} cannot be read: allow listConfigurations")
    routing = [one for one in found if one.type == ROUTING]
    return _newest(routing or found, f"{name}, which routers in zone {place.zone} are to take, is not there")


def _candidates(place: Place, cloud: CloudTemplates) -> list[CloudTemplate]:
    """All that the server chooses among, as far as it is known: of the right type, and of the name if there is one."""
    if place.type in ZONE_TYPES:
        return [one for one in cloud.templates if _fits(one, place) and one.type == SYSTEM]
    name = _router_name(place, cloud)
    fitting = [one for one in cloud.templates if _fits(one, place) and one.type in (SYSTEM, ROUTING)]
    return [one for one in fitting if not name or one.name == name]


def _router_name(place: Place, cloud: CloudTemplates) -> str | None:
    return cloud.router_names.get((place.zone_id, place.hypervisor.lower()))


def _fits(template: CloudTemplate, place: Place) -> bool:
    return (
        template.hypervisor.lower() == place.hypervisor.lower()
        and template.zone_id in (None, place.zone_id)
        and (template.arch is None or place.arch is None or template.arch == place.arch)
    )


def _newest(found: Sequence[CloudTemplate], nothing: str) -> Choice:
    if not found:
        return Choice(None, nothing)
    if len({one.id for one in found}) == 1:
        return Choice(found[0], found[0].name)
    undated = [one for one in found if one.created is None]
    last = max(one.created for one in found if one.created is not None) if not undated else None
    newest = {one.id: one for one in found if one.created == last}
    if undated or len(newest) > 1:
        names = ", ".join(sorted({f"{one.name} ({one.id})" for one in (undated or newest.values())}))
        return Choice(None, f"which of these is the newest cannot be told: {names}; delete all but one")
    one = next(iter(newest.values()))
    return Choice(one, one.name)


def wrong_start(
    vm: CloudVM, hosts: Collection[CloudHost], images: Images | None, cloud: CloudTemplates | None
) -> Wrong | None:
    """Why a VM must not be started anew: on an architecture that it may be started on, what the server will take is not
    the declared image, or not ready. `hosts`: of its zone, those that are down too."""
    place = place_of(vm, {host.id: host for host in hosts})
    if place is None:
        return Wrong(Reason.WRONG_TEMPLATE_WOULD_BE_USED, f"the hypervisor of {vm.name} is not known")
    alike = [host for host in hosts if (host.hypervisor or "").lower() == place.hypervisor.lower()]
    architectures = sorted({place.arch, *(host.arch for host in alike)} - {None}, key=str)
    others = [replace(place, arch=arch) for arch in architectures if arch != place.arch]
    # Where an architecture has no template to take, ready or not, nothing is started on it.
    possible = [place, *(one for one in others if cloud is None or _candidates(one, cloud))]
    wrong = next((found for one in possible if (found := wrong_template(one, images, cloud)) is not None), None)
    if wrong is None or len(architectures) < 2:
        return wrong
    told = f"{place.hypervisor} hosts of zone {place.zone} have several architectures, and the server may take any"
    return replace(wrong, message=f"{wrong.message}; {told}")


def wrong_template(place: Place, images: Images | None, cloud: CloudTemplates | None) -> Wrong | None:
    """Why a VM must not be started there, on a host of this architecture."""
    item = item_for(images, place)
    if item is None:
        told = f"the release declares no image for {place.hypervisor} {place.arch or ''}".rstrip()
        return Wrong(Reason.IMAGE_NOT_DECLARED, f"{told}: add it to spec.images of the SystemVMTemplate")
    if cloud is None:
        return Wrong(Reason.IMAGES_NOT_SEEN, "the templates of the cloud were not listed yet")
    choice = chosen(place, cloud)
    if choice.template is None:
        return Wrong(Reason.WRONG_TEMPLATE_WOULD_BE_USED, f"{choice.sentence}: {place} would not come up again")
    if not _is_declared(choice.template, item):
        told = f"{place} would be started from {_described(choice.template)}, not from {item.name}"
        return Wrong(Reason.WRONG_TEMPLATE_WOULD_BE_USED, f"{told}: {_way_there(place, item, cloud)}")
    if not choice.template.ready:
        told = f"{item.name} is not ready in zone {place.zone} ({choice.template.status or 'no word of its download'})"
        return Wrong(Reason.IMAGE_NOT_READY, f"{told}: {place} would not come up again")
    return None


def item_for(images: Images | None, place: Place) -> Image | None:
    """The declared image. Of a VM whose architecture nobody knows: the only one of its hypervisor."""
    items = [one for one in images.items if one.hypervisor.lower() == place.hypervisor.lower()] if images else []
    if place.arch is not None:
        items = [one for one in items if one.arch == place.arch]
    return items[0] if len(items) == 1 else None


def _is_declared(template: CloudTemplate, item: Image) -> bool:
    return template.name == item.name and not _other_file(template, item)


def _other_file(template: CloudTemplate, item: Image) -> bool:
    """Its checksum is known, of the declared kind, and another. One of another kind proves nothing."""
    if item.checksum is None or not template.checksum:
        return False
    # The server stores a checksum as it was given: bare MD5 digits, or {SHA-512}digits (CloudStack 4.21 DigestHelper).
    digits = template.checksum.rpartition("}")[2].lower()
    algorithm, _, declared = item.checksum.partition(":")
    return _DIGEST_SIZES.get(len(digits)) == algorithm and digits != declared


def _described(template: CloudTemplate) -> str:
    return f"{template.name} ({template.type}, {template.id})"


def _way_there(place: Place, item: Image, cloud: CloudTemplates) -> str:
    rows = [one for one in cloud.templates if _fits(one, place) and one.name == item.name]
    if not rows:
        return f"{item.name} is not registered in zone {place.zone}"
    if all(_other_file(one, item) for one in rows):
        return "the template of that name has another checksum: it was made from another file"
    if place.type in ZONE_TYPES:
        return f"{item.name} must be of type SYSTEM, ready, and the newest one"
    return f"set router.template.{place.hypervisor.lower()} of zone {place.zone} to {item.name}"


# Zone by zone


def places(snapshot: Snapshot) -> tuple[Place, ...]:
    """What images are needed for: every enabled zone's hypervisors and architectures, as its hosts have them, for a
    system VM and a router each."""
    return _places_in(snapshot, {zone.id for zone in snapshot.zones.values() if zone.enabled})


def _places_in(snapshot: Snapshot, zone_ids: Collection[str]) -> tuple[Place, ...]:
    kinds = {
        (host.zone_id, host.hypervisor, host.arch)
        for host in snapshot.hosts.values()
        if host.hypervisor and host.zone_id in zone_ids
    }
    ordered = sorted(kinds, key=lambda kind: (snapshot.zones[kind[0]].name, kind[1] or "", kind[2] or ""))
    return tuple(
        Place(type_, zone_id, snapshot.zones[zone_id].name, str(hypervisor), arch)
        for zone_id, hypervisor, arch in ordered
        for type_ in (SystemVMType.SECSTORAGE, SystemVMType.ROUTER)
    )


def image_statuses(
    endpoint: str, images: Images, needed: Sequence[Place], cloud: CloudTemplates
) -> tuple[ImageStatus, ...]:
    """A row for every zone and image in use there."""
    rows: dict[tuple[str, str, str], ImageStatus] = {}
    for place in needed:
        item = item_for(images, place)
        if item is None:
            continue
        key = (place.zone_id, item.hypervisor, item.arch)
        if key not in rows:
            rows[key] = _row(endpoint, item, place, [one for one in needed if _same_kind(one, place)], cloud)
    return tuple(rows.values())


def undeclared(images: Images, needed: Sequence[Place]) -> tuple[str, ...]:
    """Kinds of hosts, as `zone hypervisor arch`, that the release has no image for."""
    missing = {f"{one.zone} {one.hypervisor} {one.arch or ''}".rstrip() for one in needed if not item_for(images, one)}
    return tuple(sorted(missing))


def _same_kind(one: Place, other: Place) -> bool:
    return (one.zone_id, one.hypervisor, one.arch) == (other.zone_id, other.hypervisor, other.arch)


def _alike(place: Place, needed: Iterable[Place]) -> list[Place]:
    """It, and what differs from it by architecture only."""
    return [one for one in needed if replace(one, arch=place.arch) == place]


def _row(endpoint: str, item: Image, place: Place, same: Sequence[Place], cloud: CloudTemplates) -> ImageStatus:
    usable = [one for one in cloud.templates if _fits(one, place) and one.name == item.name]
    mine = [one for one in usable if one.type in (SYSTEM, ROUTING) and not _other_file(one, item)]
    best = max(mine, key=lambda one: (one.ready, one.type == SYSTEM), default=None)
    users = [_USERS[one.type] for one in same if wrong_template(one, Images(items=(item,)), cloud) is None]
    return ImageStatus(
        endpoint=endpoint,
        zone=place.zone,
        hypervisor=ImageHypervisor(item.hypervisor),
        arch=ImageArch(item.arch),
        ready=best is not None and best.ready,
        type=best.type if best is not None else None,
        used_by=", ".join(users),
        message=bounded(_missing(item, place, usable, best), 253),
    )


_USERS = {SystemVMType.SECSTORAGE: "SSVM and CPVM", SystemVMType.ROUTER: "routers"}


def _missing(item: Image, place: Place, usable: Sequence[CloudTemplate], best: CloudTemplate | None) -> str:
    if best is not None and best.ready:
        return ""
    if best is not None:
        return f"{item.name} is not downloaded in zone {place.zone}: {best.status or 'nothing is said about it'}"
    if not usable:
        return f"{item.name} is not registered in zone {place.zone}, or was deleted"
    if all(_other_file(one, item) for one in usable):
        return f"{item.name} in zone {place.zone} has another checksum: it was made from another file"
    return f"{item.name} in zone {place.zone} is of type {usable[0].type}: only ROUTING and SYSTEM are for system VMs"


def unused(snapshot: Snapshot, cloud: CloudTemplates, declared: Iterable[Image]) -> tuple[str, ...]:
    """Names of ROUTING and SYSTEM templates that nothing would be started from and no release declares.

    A person may delete what is named here, so all that may be taken counts as taken: in a disabled zone too, every
    candidate where the choice is not known, one that is not ready yet, and whatever bears the name of one of these.
    """
    used = {vm.template_id for vm in snapshot.vms.values()}
    keep = {image.name for image in declared} | {one.name for one in cloud.templates if one.id in used}
    needed = _places_in(snapshot, snapshot.zones.keys())
    for place in needed:
        choice = chosen(place, cloud).template
        is_known = choice is not None and len(_alike(place, needed)) == 1
        keep.update(one.name for one in _candidates(place, cloud) if one == choice or not is_known or not one.ready)
    return tuple(sorted({one.name for one in cloud.templates if one.type in (SYSTEM, ROUTING)} - keep))


# Making the images the ones that are taken


@dataclass(frozen=True, slots=True)
class Change:
    """One call to the cloud that arms the images."""

    sentence: str
    template_id: str | None = None
    """To be made SYSTEM."""
    setting: tuple[str, str, str] | None = None
    """Zone id, name and value of a setting."""


@dataclass(frozen=True, slots=True)
class Promotion:
    """What promotion would do, as one thing that a person can agree to."""

    changes: tuple[Change, ...]
    vms: tuple[str, ...]
    """Names of the VMs that would be of this release after their next start."""

    @property
    def word(self) -> str:
        """Eight characters that stand for exactly these changes and these VMs."""
        said = json.dumps([[change.sentence for change in self.changes], list(self.vms)])
        return hashlib.sha256(said.encode()).hexdigest()[:8]

    def status(self) -> PromotionStatus:
        return PromotionStatus(
            word=self.word,
            changes=tuple(bounded(change.sentence, 253) for change in self.changes[:64]),
            system_vms=len(self.vms),
            named=self.vms[:NAMED_LIMIT],
        )


def promotion(images: Images, snapshot: Snapshot, cloud: CloudTemplates) -> Promotion | None:
    """What is left to do until every place takes its declared image. None: nothing, or an image is not ready in a zone
    that needs it: a promotion then would leave VMs there that cannot start."""
    needed = [place for place in places(snapshot) if item_for(images, place) is not None]
    late = [place for place in needed if wrong_template(place, images, cloud) is not None]
    if not late or any(not _is_ready(place, images, cloud) for place in needed):
        return None
    changes: dict[str, Change] = {}
    armed: list[Place] = []
    for place in late:
        change = _change(place, images, cloud)
        if change is not None and not _is_contested(place, needed, images):
            changes.setdefault(change.sentence, change)
            armed.append(place)
    if not changes:
        return None
    return Promotion(tuple(changes.values()), _armed(armed, snapshot))


def _is_contested(place: Place, needed: Iterable[Place], images: Images) -> bool:
    """Routers of several architectures are to take images of several names, and the zone's setting holds one: whichever
    is set makes another one late. A person has to decide."""
    if place.type in ZONE_TYPES:
        return False
    names = {item.name for one in _alike(place, needed) if (item := item_for(images, one)) is not None}
    return len(names) > 1


def _is_ready(place: Place, images: Images, cloud: CloudTemplates) -> bool:
    item = item_for(images, place)
    return item is not None and any(
        one.ready and one.type in (SYSTEM, ROUTING) and _is_declared(one, item)
        for one in cloud.templates
        if _fits(one, place)
    )


def _change(place: Place, images: Images, cloud: CloudTemplates) -> Change | None:
    item = item_for(images, place)
    if item is None:
        return None
    if place.type not in ZONE_TYPES:
        setting = f"router.template.{place.hypervisor.lower()}"
        return Change(f"set {setting} of zone {place.zone} to {item.name}", setting=(place.zone_id, setting, item.name))
    ready = [one for one in cloud.templates if _fits(one, place) and one.ready and _is_declared(one, item)]
    routing = [one for one in ready if one.type == ROUTING]
    if not routing or any(one.type == SYSTEM for one in ready):
        return None  # it is SYSTEM already and another one is newer: no call can change that
    return Change(f"make template {item.name} ({routing[0].id}) SYSTEM", template_id=routing[0].id)


def _armed(late: Sequence[Place], snapshot: Snapshot) -> tuple[str, ...]:
    """VMs whose next start, an HA restart included, would take another image than now."""

    def kind(type_: SystemVMType, zone_id: str, hypervisor: str) -> tuple[bool, str, str]:
        return type_ in ZONE_TYPES, zone_id, hypervisor.lower()

    kinds = {kind(place.type, place.zone_id, place.hypervisor) for place in late}
    found = []
    for vm in snapshot.vms.values():
        place = place_of(vm, snapshot.hosts)
        if place is not None and kind(place.type, place.zone_id, place.hypervisor) in kinds:
            found.append(vm.name)
    return tuple(sorted(found))


def zones_of(needed: Iterable[Place], item: Image, zones: Mapping[str, CloudZone]) -> tuple[CloudZone, ...]:
    """Zones whose hosts could run VMs of this image."""
    wanted = {place.zone_id for place in needed if item_for(Images(items=(item,)), place) is not None}
    return tuple(zone for zone in zones.values() if zone.id in wanted)
