"""The templates of a cloud: read zone by zone, registered under their exact name, and armed by a person's word.

A name is what makes registering safe to repeat: whoever does not know whether a former call arrived lists the zones by
that name first. The server makes the row before it answers, so a row that is there is never made twice; nothing here
deletes one. Facts are those of CloudStack 4.21 RegisterTemplateCmd, UpdateTemplateCmd and UpdateConfigurationCmd.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from typing import Protocol

from sysvm.api.images import Image, ImageHypervisor
from sysvm.cloudstack import answers
from sysvm.cloudstack.errors import BadParameter, CloudStackError, NotAllowed
from sysvm.cloudstack.transport import Answer, Clock, Param
from sysvm.domain.cloud import CloudZone, Snapshot
from sysvm.domain.templates import ROUTING, SYSTEM, Change, CloudTemplate, CloudTemplates

FORMATS = {
    ImageHypervisor.KVM: "QCOW2",
    ImageHypervisor.LXC: "QCOW2",
    ImageHypervisor.VMWARE: "OVA",
    ImageHypervisor.XENSERVER: "VHD",
    ImageHypervisor.HYPERV: "VHD",
    ImageHypervisor.OVM3: "RAW",
}
"""Of the images that CloudStack publishes (CloudStack 4.21 templateConfig.sh)."""

_JAVA_NAMES = {"md5": "MD5", "sha256": "SHA-256", "sha512": "SHA-512"}
_DEBIAN = (("4.20", 12), ("4.16", 11), ("0", 10))


class Reads(Protocol):
    """The part of `client.CloudStack` that looks."""

    async def call(self, command: str, **params: Param) -> Answer: ...

    def list_all(self, command: str, key: str, *, exact: bool = True, **params: Param) -> AsyncIterator[Answer]: ...


class Changes(Reads, Protocol):
    """And the part that changes, which an endpoint with `management: Observe` refuses."""

    async def change(self, command: str, **params: Param) -> Answer: ...


async def read_templates(cloud: Reads, snapshot: Snapshot, names: Collection[str], clock: Clock) -> CloudTemplates:
    """The SYSTEM and ROUTING templates of every zone, those of these names whatever their type is, and the settings
    that name one for routers. Raises the classes of `errors`."""
    taken_at = clock()
    found: dict[tuple[str, str | None], CloudTemplate] = {}
    for zone in snapshot.zones.values():
        for asked in ({"templatetype": SYSTEM}, {"templatetype": ROUTING}, *({"name": name} for name in sorted(names))):
            # A zone at a time: without it the list has an entry for every zone, all with the template's one id.
            entries = cloud.list_all(
                "listTemplates", "template", exact=False, templatefilter="all", listall=True, zoneid=zone.id, **asked
            )
            async for entry in entries:
                template = answers.template(entry)
                found[template.id, template.zone_id] = template
    return CloudTemplates(
        taken_at=taken_at,
        templates=tuple(found.values()),
        router_names=await _router_names(cloud, snapshot),
    )


async def _router_names(cloud: Reads, snapshot: Snapshot) -> dict[tuple[str, str], str | None]:
    """Zone id and hypervisor -> the template that routers take there; the zone's own setting goes before all zones'."""
    kinds = sorted({(host.zone_id, host.hypervisor.lower()) for host in snapshot.hosts.values() if host.hypervisor})
    try:
        everywhere = {
            hypervisor: await setting_of(cloud, f"router.template.{hypervisor}")
            for hypervisor in sorted({hypervisor for _, hypervisor in kinds})
        }
        return {
            (zone_id, hypervisor): await setting_of(cloud, f"router.template.{hypervisor}", zone_id)
            or everywhere[hypervisor]
            for zone_id, hypervisor in kinds
        }
    except NotAllowed:
        return {}


async def setting_of(cloud: Reads, name: str, zone_id: str | None = None) -> str | None:
    """The value of a setting, of a zone or of all; None: it is not told there."""
    try:
        async for entry in cloud.list_all("listConfigurations", "configuration", name=name, zoneid=zone_id):
            found, value = answers.setting(entry)
            if found == name:
                return value
    except BadParameter:
        return None
    return None


async def register(cloud: Changes, image: Image, version: str, zones: Sequence[CloudZone]) -> None:
    """Registers the image as ROUTING in these zones; the server downloads it by itself. `version`: of the release.

    Raises `ValueError` for an image without url or checksum, and the classes of `errors`; after `OutcomeUnknown` the
    zones must be listed by its name before it is registered again.
    """
    if image.url is None or image.checksum is None:
        raise ValueError(f"{image.name} has no url or no checksum")
    algorithm, _, digits = image.checksum.partition(":")
    parameters: dict[str, Param] = {
        "name": image.name,
        "displaytext": image.name,
        "url": image.url,
        # Without the algorithm in braces the digits count as MD5.
        "checksum": digits if algorithm == "md5" else f"{{{_JAVA_NAMES[algorithm]}}}{digits}",
        "hypervisor": image.hypervisor.value,
        "format": FORMATS[image.hypervisor],
        "arch": image.arch.value,
        "zoneids": ",".join(zone.id for zone in zones),
        "isrouting": True,
        "ispublic": True,
        "isextractable": False,
        "passwordenabled": False,
    }
    os_type = await _os_type(cloud, version)
    if os_type is not None:
        parameters["ostypeid"] = os_type
    await cloud.change("registerTemplate", **parameters)


async def _os_type(cloud: Reads, version: str) -> str | None:
    """Id of the Debian that templates of this release are built from; None: the server does not tell, and takes its
    default."""
    numbers = [int(part) for part in version.split(".")[:2]]
    debian = next(debian for since, debian in _DEBIAN if numbers >= [int(part) for part in since.split(".")])
    wanted = f"Debian GNU/Linux {debian} (64-bit)"
    try:
        async for entry in cloud.list_all("listOsTypes", "ostype", description=wanted):
            if entry.get("description") == wanted and isinstance(entry.get("id"), str):
                return str(entry["id"])
    except CloudStackError:
        return None
    return None


async def carry_out(cloud: Changes, changes: Iterable[Change]) -> None:
    """Makes templates SYSTEM, and names them for routers, in the order that the person was shown.

    A process that ends in between leaves a part done. What is left then has another word, and waits for a person again.
    """
    for change in changes:
        if change.template_id is not None:
            await cloud.change("updateTemplate", id=change.template_id, templatetype=SYSTEM)
        if change.setting is not None:
            zone_id, name, value = change.setting
            await cloud.change("updateConfiguration", name=name, value=value, zoneid=zone_id)


class CloudImages:
    """The images of one cloud through its client. Implements `engine.ports.CloudImages`."""

    def __init__(self, client: Changes, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def read(self, snapshot: Snapshot, names: Collection[str]) -> CloudTemplates:
        return await read_templates(self._client, snapshot, names, self._clock)

    async def register(self, image: Image, version: str, zones: Sequence[CloudZone]) -> None:
        await register(self._client, image, version, zones)

    async def carry_out(self, changes: Sequence[Change]) -> None:
        await carry_out(self._client, changes)
