"""cloudstack-common as its makers publish it, a `.deb` or an `.rpm`: the payload is in its `vms` folder.

A package names its files itself, so nothing of it is unpacked by name: two files are looked for, and their content is
handed to whoever asked. All else is passed over. Which readers are libraries and which are ours, and why, is told in
docs/decisions/package-readers.md.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from sysvm.api.reasons import Reason
from sysvm.patching import package_deb, package_rpm
from sysvm.patching.archives import AGENT_LIMITS, SCRIPTS_LIMITS, Limits, Tally, shown
from sysvm.patching.errors import PayloadError
from sysvm.patching.package_members import Member, PackageName

PACKAGE = "cloudstack-common"
FOLDER = "usr/share/cloudstack-common/vms"
"""CloudStack 4.21 debian/cloudstack-common.install and packaging/el8/cloud.spec."""
SCRIPTS = "cloud-scripts.tgz"
AGENT = "agent.zip"
PACKAGE_LIMITS = Limits(packed_bytes=1 << 30, unpacked_bytes=4 << 30, entries=50_000)

_WANTED = {
    f"{FOLDER}/{SCRIPTS}": (SCRIPTS, SCRIPTS_LIMITS.packed_bytes),
    f"{FOLDER}/{AGENT}": (AGENT, AGENT_LIMITS.packed_bytes),
}


class Sink(Protocol):
    """Takes the content of one file."""

    def write(self, part: bytes, /) -> object: ...


SinkFor = Callable[[str], AbstractContextManager[Sink]]
"""By the name of the file, cloud-scripts.tgz or agent.zip. Left with an error if the content did not arrive whole."""


@dataclass(frozen=True, slots=True)
class PackageContents:
    """What was found."""

    package: PackageName
    has_agent: bool


def copy_payload(package: Path | bytes, name: str, sink_for: SinkFor) -> PackageContents:
    """Copies cloud-scripts.tgz, and agent.zip if it is there, out of a package. Blocking.

    `name` is what a person knows the package by. Raises `PayloadError`: PayloadUnreadable (neither format, cut, not
    cloudstack-common, without the files), PayloadUnsafe or PayloadTooLarge.
    """
    tally = Tally(name, PACKAGE_LIMITS, None)
    found: set[str] = set()
    with _opened(package) as stream:
        identity, members = _read(stream, tally)
        if identity.name != PACKAGE:
            raise tally.unreadable(
                f"is the package {shown(identity.name)} {shown(identity.version)}; the payload is in {PACKAGE}"
            )
        for number, member in enumerate(members, start=1):
            tally.count(number)
            wanted = _WANTED.get(member.path)
            if wanted is not None:
                file_name, limit_bytes = wanted
                _copy(member, file_name, limit_bytes, tally, again=file_name in found, sink_for=sink_for)
                found.add(file_name)
    if SCRIPTS not in found:
        raise tally.unreadable(f"({identity}) has no {FOLDER}/{SCRIPTS}: it holds no payload of system VMs")
    return PackageContents(identity, AGENT in found)


def _read(stream: IO[bytes], tally: Tally) -> tuple[PackageName, Iterator[Member]]:
    start = stream.read(16)
    size = stream.seek(0, 2)
    stream.seek(0)
    if size > tally.limits.packed_bytes:
        raise tally.too_large(f"it has {size} bytes, the limit is {tally.limits.packed_bytes}")
    if start.startswith(package_deb.MAGIC):
        return package_deb.read(stream, size, tally)
    if start.startswith(package_rpm.MAGIC):
        return package_rpm.read(stream, size, tally)
    raise tally.unreadable(f"is neither a .deb nor an .rpm{_likely(start)}")


def _likely(start: bytes) -> str:
    if start.lstrip().startswith(b"<"):
        return ": it begins as an HTML or XML page does, so the server told of something else than the package"
    if start.startswith(b"\x1f\x8b"):
        return ": it is gzip'ed; if it is cloud-scripts.tgz itself, use payload.files"
    if start.startswith(b"PK"):
        return ": it is a zip archive; if it is agent.zip itself, use payload.files"
    return ""


def _copy(member: Member, file_name: str, limit_bytes: int, tally: Tally, *, again: bool, sink_for: SinkFor) -> None:
    if again:
        raise tally.unsafe(f"{member.path} is there twice")
    if member.what:
        raise tally.unsafe(f"{member.path} is {member.what}, not a plain file")
    if member.size > limit_bytes:
        raise tally.too_large(f"{member.path} has {member.size} bytes, the limit is {limit_bytes}")
    with sink_for(file_name) as sink:
        for part in member.content():
            sink.write(part)


def _opened(package: Path | bytes) -> IO[bytes]:
    if isinstance(package, bytes):
        return io.BytesIO(package)
    try:
        return package.open("rb")
    except OSError as error:
        raise PayloadError(
            f"the package cannot be read from {package}: {error.strerror}",
            reason=Reason.PAYLOAD_FETCH_FAILED,
            retryable=True,
        ) from error
