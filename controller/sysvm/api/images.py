"""The images of a release: what Recreate needs of a cloud, and what was found there.

A part of SystemVMTemplate with a file of its own: payload and images are two ways to the same release, and neither
needs the other's words.
"""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import ApiModel, Digest, ShortText, matching, rule

NAME_PATTERN = r"^systemvm-[a-z0-9]+-[0-9]{1,5}(\.[0-9]{1,5}){1,3}([-.][A-Za-z0-9._-]*)?$"
_URL = "^https?://[^ ]+$"
_WORD = "^[a-f0-9]{8}$"

ImageName = Annotated[
    str,
    Field(min_length=1, max_length=100, pattern=NAME_PATTERN),
    matching(NAME_PATTERN, "must be the name of a system VM template, such as systemvm-kvm-4.20.2-x86_64"),
]


class ImageMode(StrEnum):
    ADOPT = "Adopt"
    REGISTER = "Register"


class ImageHypervisor(StrEnum):
    """Hypervisors as CloudStack spells them (CloudStack 4.21 Hypervisor.HypervisorType)."""

    KVM = "KVM"
    VMWARE = "VMware"
    XENSERVER = "XenServer"
    HYPERV = "Hyperv"
    LXC = "LXC"
    OVM3 = "Ovm3"


class ImageArch(StrEnum):
    X86_64 = "x86_64"
    AARCH64 = "aarch64"
    S390X = "s390x"


class Image(ApiModel):
    """The image of one hypervisor and architecture."""

    hypervisor: ImageHypervisor
    """KVM, VMware, XenServer, Hyperv, LXC or Ovm3."""
    arch: ImageArch = ImageArch.X86_64
    """x86_64, aarch64 or s390x."""
    name: ImageName
    """Exact name of the template in CloudStack; it says hypervisor and version of the release."""
    url: (
        Annotated[
            str,
            Field(min_length=8, max_length=2048, pattern=_URL),
            matching(_URL, "must be a URL that begins with http:// or https:// and holds no space"),
        ]
        | None
    ) = None
    """Where CloudStack fetches it from. Needed by mode Register; Adopt does not read it."""
    checksum: Digest | None = None
    """Digest of the file behind the URL, as alg:hex; CloudStack refuses another file. Needed by mode Register. A
    template of this name with another checksum is not taken for this one."""


class Images(ApiModel):
    """The images of the release, one for each hypervisor and architecture in use."""

    mode: ImageMode = ImageMode.ADOPT
    """Adopt: they are looked for, and none is registered. Register: one that no zone has is registered there as ROUTING
    under its exact name, where the endpoint's management is Full; nothing uses it yet."""
    items: Annotated[tuple[Image, ...], Field(min_length=1, max_length=16)]
    """The images."""
    accept_promotion: (
        Annotated[
            str,
            Field(min_length=8, max_length=8, pattern=_WORD),
            matching(_WORD, "must be the eight characters that status.promotion says"),
        ]
        | None
    ) = None
    """Set by people after they read status.promotion: with exactly that word, in either mode and where the endpoint's
    management is Full, the images become what CloudStack takes for every system VM that it starts from then on, whoever
    starts it. Without it nothing is promoted."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "self.items.all(a, self.items.exists_one(b, b.hypervisor == a.hypervisor && b.arch == a.arch))",
            "images.items must hold one image for a hypervisor and architecture, not two",
        ),
        rule(
            "self.mode != 'Register' || self.items.all(image, has(image.url) && has(image.checksum))",
            "mode Register needs url and checksum of every image: CloudStack fetches it and checks what it got",
        ),
    )


NAMES_THE_RELEASE = rule(
    "!has(self.images) || self.images.items.all(image,"
    " image.name == 'systemvm-' + image.hypervisor.lowerAscii() + '-' + self.version"
    " || image.name.startsWith('systemvm-' + image.hypervisor.lowerAscii() + '-' + self.version + '-')"
    " || image.name.startsWith('systemvm-' + image.hypervisor.lowerAscii() + '-' + self.version + '.'))",
    "images: a name must say hypervisor and version of the release, such as systemvm-kvm-4.20.2-x86_64",
)
"""For the spec of a SystemVMTemplate: an image of another version would bring VMs to another release."""


class ImageStatus(ApiModel):
    """One image in one zone of one cloud."""

    endpoint: ShortText
    """CloudStackEndpoint of the cloud."""
    zone: ShortText
    """Zone that has hosts for it."""
    hypervisor: ImageHypervisor
    """Of the image."""
    arch: ImageArch
    """Of the image."""
    ready: bool
    """It is there under its name, of type ROUTING or SYSTEM, and downloaded in this zone."""
    type: Annotated[str, Field(max_length=32)] | None = None
    """ROUTING: registered, and taken for routers where router.template names it. SYSTEM: taken for SSVM and CPVM too.
    Absent: it is not there."""
    used_by: Annotated[str, Field(max_length=253)] = ""
    """Which types of VMs CloudStack would start from it now, on hosts of this architecture."""
    message: ShortText = ""
    """What is missing, and what a person can do."""


class PromotionStatus(ApiModel):
    """What making the images the ones that CloudStack takes would do."""

    word: Annotated[str, Field(max_length=8)]
    """For spec.images.acceptPromotion: it stands for exactly these changes and these VMs."""
    changes: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=64)]
    """Each call to the cloud in words."""
    system_vms: Annotated[int, Field(ge=0)]
    """System VMs that would be of this release after their next start, an HA restart included."""
    named: Annotated[tuple[Annotated[str, Field(max_length=63)], ...], Field(max_length=512)] = ()
    """Their names, the first 512."""
