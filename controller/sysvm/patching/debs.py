"""The packages of a payload: Debian packages in agent.zip that scripts need on older templates.

CloudStack's own patch installs them on every type, by the VM's Debian release (CloudStack 4.21 patch.sh,
packages/packages.ini). A list that cannot be believed makes the payload unreadable, because it says what is installed
as root. A package that is listed and cannot be had concerns only the VMs that need it, so it is kept with its problem.
"""

import configparser
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sysvm.patching import package_deb
from sysvm.patching.archives import FileEntry, Limits, Tally, shown
from sysvm.patching.errors import PayloadError

FOLDER = "packages"
LIST = "packages/packages.ini"
LINKS_BELOW = "/usr/bin/"
"""Where a package may bring a link that decides which program scripts run with."""

_LIST_BYTES = 64 * 1024
_MAX_PACKAGES = 64
_MAX_LINKS = 16
_LIMITS = Limits(packed_bytes=16 << 20, unpacked_bytes=64 << 20, entries=10_000)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{1,63}")
_RELEASE = re.compile(r"[0-9]{1,2}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._~%-]{0,120}\.deb")
_VERSION = re.compile(r"[A-Za-z0-9.+~:-]{1,64}")
_TARGET = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Deb:
    """One package for one Debian release. `path` is its place in agent.zip, `size` in bytes, `sha256` hex."""

    debian: str
    """Major release, such as 11."""
    name: str
    version: str
    path: str
    sha256: str
    size: int
    conflicts: tuple[str, ...]
    """Packages that have to go before it can come."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Links that it brings in /usr/bin, by absolute path."""
    problem: str = ""
    """Why it cannot be installed, as the end of a sentence; the fields above are empty then but for the list's."""

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


def read_debs(packed_list: bytes, entries: Mapping[str, FileEntry], content: Callable[[str], bytes]) -> tuple[Deb, ...]:
    """What packages.ini lists. `content` gives a file of agent.zip. Raises `PayloadError` for a list that is none."""
    parser = _parsed(packed_list)
    if len(parser.sections()) > _MAX_PACKAGES:
        raise _strange(f"lists more than {_MAX_PACKAGES} packages")
    found: dict[tuple[str, str], Deb] = {}
    for section in parser.sections():
        listed = _listed(section, parser[section])
        if (listed.debian, listed.name) in found:
            raise _strange(f"lists {listed.name} for Debian {listed.debian} twice")
        found[listed.debian, listed.name] = _read(listed, entries.get(listed.path), content)
    return tuple(found.values())


def _parsed(packed_list: bytes) -> configparser.ConfigParser:
    if len(packed_list) > _LIST_BYTES:
        raise _strange(f"has {len(packed_list)} bytes, more than {_LIST_BYTES}")
    # Not strict: only the names are ours, and what a section says twice is the last, as it is for CloudStack's reader.
    parser = configparser.ConfigParser(strict=False, interpolation=None, default_section="\0")
    try:
        parser.read_string(packed_list.decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise _strange(f"cannot be read ({str(error).splitlines()[0]})") from error
    return parser


def _listed(section: str, words: Mapping[str, str]) -> Deb:
    name = words.get("package_name", section).strip()
    debian = words.get("debian_os", "").strip()
    file_name = words.get("file_name", "").strip()
    conflicts = tuple(words.get("conflicted_packages", "").replace(",", " ").split())
    for word in (name, *conflicts):
        if not _PACKAGE.fullmatch(word):
            raise _strange(f"names a package {shown(word)} in [{shown(section)}], which is no name of one")
    if not _RELEASE.fullmatch(debian):
        raise _strange(f"says debian_os={shown(debian)} in [{shown(section)}]: it has to be a release such as 11")
    if not _FILE.fullmatch(file_name):
        raise _strange(f"says file_name={shown(file_name)} in [{shown(section)}], which is no .deb beside it")
    return Deb(debian, name, "", f"{FOLDER}/{file_name}", "", 0, conflicts)


def _strange(what: str) -> PayloadError:
    return PayloadError(f"agent.zip: {LIST} {what}, so which Debian packages are to be installed cannot be told")


def _read(listed: Deb, entry: FileEntry | None, content: Callable[[str], bytes]) -> Deb:
    if entry is None:
        return _without(listed, f"agent.zip has no {listed.path}")
    if entry.size > _LIMITS.packed_bytes:
        return _without(listed, f"{listed.path} has {entry.size} bytes, the limit is {_LIMITS.packed_bytes}")
    packed = content(listed.path)
    tally = Tally(listed.path, _LIMITS, None)
    links: dict[str, str] = {}
    try:
        identity, members = package_deb.read(io.BytesIO(packed), len(packed), tally)
        for number, member in enumerate(members, start=1):
            tally.count(number)
            path = f"/{member.path}"
            if member.target and path.startswith(LINKS_BELOW) and "/" not in path[len(LINKS_BELOW) :]:
                links[path] = member.target
    except PayloadError as error:
        return _without(listed, str(error))
    problem = ""
    if identity.name != listed.name:
        problem = f"{listed.path} is the package {shown(identity.name)}"
    elif not _VERSION.fullmatch(identity.version):
        problem = f"{listed.path} has the version {shown(identity.version)}"
    elif len(links) > _MAX_LINKS or not all(_TARGET.fullmatch(target) for target in links.values()):
        problem = f"{listed.path} brings links that lead out of {LINKS_BELOW}, or more than {_MAX_LINKS}"
    if problem:
        return _without(listed, problem)
    return Deb(
        listed.debian,
        listed.name,
        identity.version,
        listed.path,
        entry.sha256,
        entry.size,
        listed.conflicts,
        MappingProxyType(links),
    )


def _without(listed: Deb, problem: str) -> Deb:
    return Deb(listed.debian, listed.name, "", listed.path, "", 0, listed.conflicts, problem=problem)
