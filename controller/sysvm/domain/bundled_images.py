"""What CloudStack's own package says of its system VM images: `metadata.ini`, as a part of a SystemVMTemplate.

The management server registers from this file when it is upgraded (CloudStack 4.21 SystemVmTemplateRegistration.java;
templateConfig.sh writes it), so names taken from it are the names that the server will know. Typing them from a web
page is how a cloud gets a template that nothing ever uses.
"""

import configparser
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from sysvm.api.base import API_VERSION
from sysvm.api.images import Image, ImageArch, ImageHypervisor

HYPERVISORS: Mapping[str, ImageHypervisor] = {hypervisor.lower(): hypervisor for hypervisor in ImageHypervisor}
_ALGORITHMS = {32: "md5", 64: "sha256", 128: "sha512"}
_NEEDED = ("templatename", "downloadurl")


class NotMetadataError(ValueError):
    """The text is not CloudStack's metadata.ini; the message says what is wrong in which section."""


@dataclass(frozen=True, slots=True)
class BundledImages:
    """The images of one release."""

    version: str
    """Version of the templates, as their names have it: not that of CloudStack."""
    software_version: str
    images: tuple[Image, ...]
    warnings: tuple[str, ...] = ()
    """Sections that were left out, and what is missing in others."""

    def manifest(self, name: str | None = None) -> dict[str, object]:
        """A SystemVMTemplate with these images, whose payload is that of the hypervisor hosts."""
        return {
            "apiVersion": API_VERSION,
            "kind": "SystemVMTemplate",
            "metadata": {"name": name or f"systemvm-{self.version}"},
            "spec": {
                "version": self.version,
                "payload": {"host": {}},
                "images": {"mode": "Adopt", "items": [image.to_dict() for image in self.images]},
            },
        }


def read_metadata(text: str, *, hypervisors: Collection[ImageHypervisor] = ()) -> BundledImages:
    """Reads a metadata.ini; `hypervisors`: only these, all if empty. Raises NotMetadataError."""
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(text)
    except configparser.Error as error:
        first = str(error).replace("<string>", "the file").splitlines()[0]
        raise NotMetadataError(f"this is not CloudStack's metadata.ini: {first}") from error
    software = parser.get("default", "version", fallback="")
    if not software:
        raise NotMetadataError("this is not CloudStack's metadata.ini: it has no version in a section [default]")
    images: dict[tuple[ImageHypervisor, ImageArch], Image] = {}
    versions: dict[str, str] = {}
    warnings: list[str] = []
    for section in parser.sections():
        if section == "default":
            continue
        hypervisor = HYPERVISORS.get(section.partition("-")[0].lower())
        if hypervisor is None:
            warnings.append(f"[{section}] is left out: no hypervisor that is known here")
            continue
        if hypervisors and hypervisor not in hypervisors:
            continue
        image = _image(section, hypervisor, parser[section])
        if (hypervisor, image.arch) in images:
            raise NotMetadataError(f"[{section}]: there is another image for {hypervisor} {image.arch}")
        if image.checksum is None:
            warnings.append(f"[{section}] has no checksum: mode Register needs one")
        images[hypervisor, image.arch] = image
        versions[section] = _version_of(image)
    if not images:
        only = f" of {', '.join(sorted(hypervisors))}" if hypervisors else ""
        raise NotMetadataError(f"the file names no image{only}")
    if len(set(versions.values())) > 1:
        said = ", ".join(f"[{section}] {version}" for section, version in versions.items())
        raise NotMetadataError(f"the images are of different versions: {said}; a release has one")
    ordered = tuple(images[key] for key in sorted(images))
    return BundledImages(next(iter(versions.values())), software, ordered, tuple(warnings))


def _image(section: str, hypervisor: ImageHypervisor, values: Mapping[str, str]) -> Image:
    missing = [name for name in _NEEDED if not values.get(name)]
    if missing:
        raise NotMetadataError(f"[{section}] has no {' and no '.join(missing)}")
    arch = values.get("arch") or section.partition("-")[2] or ImageArch.X86_64
    try:
        return Image.model_validate(
            {
                "hypervisor": hypervisor,
                "arch": arch,
                "name": values["templatename"],
                "url": values["downloadurl"],
                "checksum": _checksum(section, values.get("checksum", "")),
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise NotMetadataError(f"[{section}]: {field} {first['input']!r} cannot be used: {first['msg']}") from error


def _checksum(section: str, text: str) -> str | None:
    """As `alg:hex`: the file has bare digits, MD5 until CloudStack 4.21 and SHA-512 from 4.22."""
    digits = text.strip().lower()
    if not digits:
        return None
    algorithm = _ALGORITHMS.get(len(digits))
    if algorithm is None:
        raise NotMetadataError(f"[{section}]: checksum {digits[:40]!r} is neither MD5, SHA-256 nor SHA-512")
    return f"{algorithm}:{digits}"


def _version_of(image: Image) -> str:
    """systemvm-kvm-4.20.2-x86_64 is of 4.20.2; the pattern of names has it."""
    return image.name.split("-")[2]
