"""The lab's releases: what a platform team would have from CloudStack as 4.20.1, 4.20.2 and so on.

A release is a set of files. Everything starts from one tree of working scripts beside this module; a release is that
tree and its edits, so that what differs between two releases can be read here in one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from packaging.version import Version

from lab.content import filler, manifests

_FILES = Path(__file__).parent / "files"
_SHA512_SINCE = Version("4.22")
_EARLY_CONFIG = "opt/cloud/bin/setup/cloud-early-config"
_CHECKSUM_TOKEN = b"@CHECKSUM_COMMAND@"

SECURITY_CONF = "etc/apache2/conf-enabled/security.conf"
"""The one file under /etc that differs between the releases; apache2 reloads for it."""

AGENT_JAR = "cloud-agent-4.21.0.0-SNAPSHOT.jar"
"""The member of agent.zip that differs between the releases."""


@cache
def _written(tree: str) -> dict[str, bytes]:
    """Our own working files of ``scripts`` or ``agent``, by payload path."""
    folder = _FILES / tree
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@cache
def _base_scripts() -> dict[str, bytes]:
    written, sizes = _written("scripts"), manifests.script_sizes()
    unknown = sorted(set(written) - set(sizes))
    if unknown:
        raise ValueError(f"not in the real payload: {', '.join(unknown)}")
    return {
        path: filler.pad(path, written[path], size) if path in written else filler.script_filler(path, size)
        for path, size in sizes.items()
    }


@dataclass(frozen=True, eq=False)
class Release:
    """One release: a version and the files of both archives.

    ``scripts`` maps paths without a leading slash to content and holds exactly what ``cloud-scripts.tgz`` unpacks;
    ``agent`` holds only the members of ``agent.zip`` that are not plain filler, ``agent_removed`` the ones left out.
    """

    name: str
    version: str
    scripts: Mapping[str, bytes] = field(repr=False)
    agent: Mapping[str, bytes] = field(repr=False)
    agent_removed: frozenset[str] = frozenset()

    @property
    def signature_algorithm(self) -> str:
        """``md5`` below 4.22, ``sha512`` from there on: what this payload's own ``cloud-early-config`` computes."""
        return "sha512" if Version(self.version) >= _SHA512_SINCE else "md5"

    def derive(
        self,
        name: str,
        *,
        version: str | None = None,
        change: Mapping[str, bytes] | None = None,
        add: Mapping[str, bytes] | None = None,
        remove: tuple[str, ...] | list[str] = (),
        agent_change: Mapping[str, bytes] | None = None,
        agent_add: Mapping[str, bytes] | None = None,
        agent_remove: tuple[str, ...] | list[str] = (),
    ) -> Release:
        """This release with edits. Raises ValueError when an edit does not fit: a path to change or remove that is
        not there, or one to add that is."""
        change, add = dict(change or {}), dict(add or {})
        missing = [path for path in (*change, *remove) if path not in self.scripts]
        if missing:
            raise ValueError(f"{self.name} has no {', '.join(missing)}")
        present = [path for path in add if path in self.scripts]
        if present:
            raise ValueError(f"{self.name} already has {', '.join(present)}")
        scripts = {path: content for path, content in self.scripts.items() if path not in remove} | change | add
        number = version or self.version
        if Version(number) != Version(self.version) and _EARLY_CONFIG not in change:
            scripts[_EARLY_CONFIG] = _early_config(number)
        members = {entry.path for entry in manifests.agent_entries()} | set(self.agent)
        agent_edits = dict(agent_change or {})
        strange = [path for path in (*agent_edits, *agent_remove) if path not in members - self.agent_removed]
        if strange:
            raise ValueError(f"the agent of {self.name} has no {', '.join(strange)}")
        agent = {k: v for k, v in self.agent.items() if k not in agent_remove} | agent_edits | dict(agent_add or {})
        removed = (self.agent_removed | frozenset(agent_remove)) - frozenset(agent_add or {})
        return dataclasses.replace(self, name=name, version=number, scripts=scripts, agent=agent, agent_removed=removed)

    def edited(self, path: str, old: bytes, new: bytes) -> bytes:
        """The content of ``path`` with ``old`` replaced. Raises ValueError when ``old`` is not there."""
        content = self.scripts[path]
        if old not in content:
            raise ValueError(f"{path} of {self.name} does not contain {old!r}")
        return content.replace(old, new)


def _early_config(version: str) -> bytes:
    command = b"sha512sum" if Version(version) >= _SHA512_SINCE else b"md5sum"
    source = _base_scripts()[_EARLY_CONFIG]
    if _CHECKSUM_TOKEN not in source:
        raise ValueError(f"{_EARLY_CONFIG} names no checksum command")
    return source.replace(_CHECKSUM_TOKEN, command)


@cache
def base(name: str, version: str) -> Release:
    """The unedited tree as a release of that name and version."""
    scripts = dict(_base_scripts())
    scripts[_EARLY_CONFIG] = _early_config(version)
    return Release(name, version, scripts, _written("agent"))


@cache
def old() -> Release:
    """4.20.1: what the lab's VMs run when they come up."""
    return base("old", "4.20.1")


@cache
def new() -> Release:
    """4.20.2: modules that only work together, a health check, an apache2 setting, one file more, one less, a jar.

    ``cs.CsFile`` renames the class that six other modules import, so a tree that is half old and half new does not
    start; the apache2 setting shows in every answer (no ETag), so that a reload can be told from none.
    """
    start = old()
    importers = ("CsApp", "CsDhcp", "CsFile", "CsLoadBalancer", "CsMonitor", "CsRedundant")
    paths = ("opt/cloud/bin/configure.py", *(f"opt/cloud/bin/cs/{module}.py" for module in importers))
    modules = {path: start.edited(path, b"ConfigFile", b"ManagedFile") for path in paths}
    disk_check = "root/health_checks/disk_space_check.py"
    return start.derive(
        "new",
        version="4.20.2",
        change={
            **modules,
            disk_check: start.edited(disk_check, b"Sufficient free space", b"Free space is sufficient"),
            SECURITY_CONF: start.scripts[SECURITY_CONF] + b"FileETag None\n",
        },
        add={"opt/cloud/bin/cs/CsFacts.py": b'"""Names the payload that is installed."""\n\nPAYLOAD = "4.20.2"\n'},
        remove=["opt/cloud/bin/set_redundant.py"],
        agent_change={AGENT_JAR: filler.incompressible("4.20.2 of the agent", 90_000)},
    )


@cache
def broken() -> Release:
    """As ``new``, with an apache2 setting that ``apachectl -t`` accepts and on which apache2 dies when it reloads.

    The port is sshd's, on every system VM; a configuration test binds nothing, so only the reload finds out.
    """
    start = new()
    text = start.scripts[SECURITY_CONF] + b"Listen 0.0.0.0:3922\n"
    return start.derive("broken", version="4.20.3", change={SECURITY_CONF: text})


@cache
def mended() -> Release:
    """As ``broken``, but for the setting that broke it."""
    start = new()
    text = start.scripts[SECURITY_CONF] + b"UseCanonicalName Off\n"
    return start.derive("mended", version="4.20.4", change={SECURITY_CONF: text})


def find(word: str) -> Release:
    """The release of that name or version; empty is ``old``. Raises LookupError with the names there are."""
    if not word:
        return old()
    for release in named().values():
        if word in (release.name, release.version):
            return release
    there = ", ".join(f"{release.name} ({release.version})" for release in named().values())
    raise LookupError(f"no release {word!r}: there are {there}")


def named() -> dict[str, Release]:
    """All releases of the lab by name."""
    return {release.name: release for release in (old(), new(), broken(), mended())}
