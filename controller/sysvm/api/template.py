"""SystemVMTemplate: a release of the system VMs: the template version and the payload that live patch installs."""

from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import ApiModel, ObjectMeta, ObservedStatus, ShortText, matching, rule
from sysvm.api.images import NAMES_THE_RELEASE, Images, ImageStatus, PromotionStatus
from sysvm.api.payload import (
    FileSource,
    HostSource,
    HttpSource,
    ManagementServerSource,
    MountedSource,
    OciSource,
    PackageSource,
    PayloadFile,
    PayloadFiles,
    PayloadSource,
    PinnedPayload,
)

_VERSION = r"^[0-9]{1,5}\.[0-9]{1,5}(\.[0-9]{1,5}){0,2}$"
_VERSION_BOUND = r"(<|<=|>|>=|==|!=) *[0-9]{1,5}(\.[0-9]{1,5}){0,3}"
_VERSION_RANGE = rf"^{_VERSION_BOUND}( *, *{_VERSION_BOUND})*$"
_RANGE_SENTENCE = "must be a version range, such as <4.20 or >=4.16,<4.20"


class CompatibilityRow(ApiModel):
    """From which template versions a live patch to which release is possible."""

    from_: Annotated[
        str,
        Field(alias="from", min_length=1, max_length=64, pattern=_VERSION_RANGE),
        matching(_VERSION_RANGE, _RANGE_SENTENCE),
    ]
    """Version range of the VM's template, such as ">=4.16,<4.20"."""
    to: Annotated[
        str,
        Field(min_length=1, max_length=64, pattern=_VERSION_RANGE),
        matching(_VERSION_RANGE, _RANGE_SENTENCE),
    ]
    """Version range of the release."""
    supported: bool
    """false: such a VM is held and must be recreated."""
    warning: Annotated[str, Field(max_length=253)] | None = None
    """Shown in the plan."""
    reason: Annotated[str, Field(max_length=253)] | None = None
    """Why it is not supported."""


DEFAULT_COMPATIBILITY: tuple[CompatibilityRow, ...] = tuple(
    CompatibilityRow.model_validate(row)
    for row in (
        {"from": "<4.14", "to": "<4.20", "supported": False, "reason": "OpenJDK was updated in 4.14"},
        {
            "from": ">=4.14,<4.15",
            "to": "<4.20",
            "supported": True,
            "warning": "remote access VPN may be affected by the older Strongswan",
        },
        {"from": ">=4.15", "to": "<4.20", "supported": True},
        {"from": "<4.16", "to": ">=4.20", "supported": False, "reason": "Debian 10 is not supported by 4.20 payloads"},
        {
            "from": ">=4.16,<4.20",
            "to": ">=4.20",
            "supported": True,
            "warning": "Debian packages that Debian 11 lacks are installed before, and stay after a roll back",
        },
        {"from": ">=4.20", "to": ">=4.20", "supported": True},
    )
)


class LivePatchSupport(ApiModel):
    """From where live patch is allowed."""

    compatibility: Annotated[tuple[CompatibilityRow, ...], Field(min_length=1, max_length=32)] = DEFAULT_COMPATIBILITY
    """First match wins; a VM that no row matches is held. The default is CloudStack's documented table."""


class SystemVMTemplateSpec(ApiModel):
    """A release. Version and payload cannot be edited: a new release is a new object."""

    version: Annotated[
        str,
        Field(min_length=3, max_length=32, pattern=_VERSION),
        matching(_VERSION, "must be a version of two to four numbers, such as 4.20.2"),
    ]
    """Template version as in /etc/cloudstack-release, such as 4.20.2."""
    payload: PayloadSource
    """What live patch installs."""
    images: Images | None = None
    """The images that VMs are recreated from. Absent: this release is for live patch only."""
    live_patch: LivePatchSupport = LivePatchSupport()
    """From where live patch is allowed."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "self.version == oldSelf.version && self.payload == oldSelf.payload",
            "version and payload of a release cannot be changed: create a new SystemVMTemplate and let the policy"
            " refer to that",
        ),
        NAMES_THE_RELEASE,
    )


class Signature(ApiModel):
    """Content of /var/cache/cloud/cloud-scripts-signature."""

    algorithm: Annotated[str, Field(max_length=16, pattern="^(md5|sha512|unknown)$")]
    """md5 or sha512, as the payload's own cloud-early-config computes it."""
    value: Annotated[str, Field(max_length=256)]
    """The text of the file, without white space at the ends."""


class SystemVMTemplateStatus(ObservedStatus):
    """What was found in the payload. Ready: fetched, digest verified, archive safe and readable."""

    revision: Annotated[str, Field(max_length=64)] | None = None
    """Digest of the normalised manifests: what a VM should be at."""
    scripts_revision: Annotated[str, Field(max_length=64)] | None = None
    """Digest of the normalised manifest of the scripts alone: what a hypervisor host should keep for its VMs."""
    signature: Signature | None = None
    """What the signature file of an up-to-date VM holds."""
    files: Annotated[int, Field(ge=0)] | None = None
    """Files in cloud-scripts.tgz."""
    agent_files: Annotated[int, Field(ge=0)] | None = None
    """Files in agent.zip; absent if the payload has none."""
    pinned: PinnedPayload | None = None
    """What hosts or management servers held when the release was first read: from then on the release is that."""
    size_bytes: Annotated[int, Field(ge=0)] | None = None
    """Size of the payload as fetched."""
    warnings: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=16)] = ()
    """Harmless oddities of the archive, such as duplicate entries."""
    images: Annotated[tuple[ImageStatus, ...], Field(max_length=256)] | None = None
    """The images zone by zone, of every cloud whose policies name this release."""
    unused: Annotated[tuple[ShortText, ...], Field(max_length=64)] | None = None
    """System VM templates that no type of VM would be started from, as endpoint/name. They are never deleted."""
    promotion: PromotionStatus | None = None
    """There while the images are ready and are not yet what CloudStack takes."""


class SystemVMTemplate(ApiModel):
    """A release of the system VMs: the template version and the payload that live patch installs."""

    metadata: ObjectMeta
    spec: SystemVMTemplateSpec
    """A release. Version and payload cannot be edited: a new release is a new object."""
    status: SystemVMTemplateStatus = SystemVMTemplateStatus()
    """What was found in the payload. Written by the operator only."""


__all__ = [
    "DEFAULT_COMPATIBILITY",
    "CompatibilityRow",
    "FileSource",
    "HostSource",
    "HttpSource",
    "LivePatchSupport",
    "ManagementServerSource",
    "MountedSource",
    "OciSource",
    "PackageSource",
    "PayloadFile",
    "PayloadFiles",
    "PayloadSource",
    "PinnedPayload",
    "Signature",
    "SystemVMTemplate",
    "SystemVMTemplateSpec",
    "SystemVMTemplateStatus",
]
