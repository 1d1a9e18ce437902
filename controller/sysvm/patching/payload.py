"""The payload: what live patch installs, read once, judged, and from then on a plain value with an identity.

The identity is the revision: a digest of what the files are, not of how somebody packed them, because every
distribution builds another `cloud-scripts.tgz` from the same source. The signature stays beside it, as CloudStack
compares it: the checksum of the archive as packed, in the algorithm that the payload itself will use at the VM's next
boot.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from sysvm.api.reasons import Reason
from sysvm.patching import archives
from sysvm.patching.archives import FileEntry, FolderEntry
from sysvm.patching.debs import LIST, Deb, read_debs
from sysvm.patching.errors import PayloadError
from sysvm.patching.ownership import is_forbidden

EARLY_CONFIG = "opt/cloud/bin/setup/cloud-early-config"
"""The boot script that compares the signature (CloudStack 4.21 cloud-early-config, function patch)."""

_AGENT_PROPERTIES = "conf/agent.properties"
_CHECKSUM_COMMANDS = {"md5sum": "md5", "sha512sum": "sha512"}
_CHECKSUM_WORD = re.compile(rb"(?<![A-Za-z0-9_])(md5sum|sha512sum)(?![A-Za-z0-9_])")


@dataclass(frozen=True, slots=True)
class ScriptsPart:
    """`cloud-scripts.tgz`: unpacked at `/` on every type. Paths have no leading slash."""

    entries: Mapping[str, FileEntry]
    folders: Mapping[str, FolderEntry]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AgentPart:
    """`agent.zip`: unpacked at `/usr/local/cloud/systemvm` on types that run the agent. Paths are relative to there."""

    entries: Mapping[str, FileEntry]
    folders: Mapping[str, FolderEntry]
    warnings: tuple[str, ...]
    size_bytes: int
    """Of all files, unpacked."""
    properties: bytes = b""
    """The packaged conf/agent.properties."""
    debs: tuple[Deb, ...] = ()
    """Debian packages that scripts need on older templates, on every type."""


@dataclass(frozen=True, slots=True, eq=False)
class Payload:
    """A payload that was read to its end and found safe.

    `revision` is hex sha256 of the normalised manifests (path, sha256, exec bit) of scripts and agent; owner, times and
    order do not count. `signature` is what `/var/cache/cloud/cloud-scripts-signature` of an up-to-date VM holds, in
    `signature_algorithm` (`md5` or `sha512`). `scripts_size_bytes` is the size of the archive.
    """

    revision: str
    scripts: ScriptsPart
    agent: AgentPart | None
    signature_algorithm: str
    signature: str
    scripts_size_bytes: int
    scripts_sha256: str
    scripts_archive: bytes = field(repr=False)
    """The archive as it came: the VM keeps it in /usr/share/cloud."""
    _contents: Mapping[str, bytes] = field(repr=False)
    _agent_source: Path | bytes | None = field(repr=False)
    _agent_paths: Mapping[str, str] = field(repr=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        return self.scripts.warnings + (self.agent.warnings if self.agent is not None else ())

    @property
    def scripts_revision(self) -> str:
        """The part of the revision that hypervisor hosts are compared by."""
        return scripts_revision(self.scripts.entries)

    @contextlib.contextmanager
    def contents(self) -> Iterator["Contents"]:
        """For reading several files: agent.zip is opened at most once."""
        reader = archives.AgentReader(self._agent_source) if self._agent_source is not None else None
        try:
            yield Contents(self, reader)
        finally:
            if reader is not None:
                reader.close()

    def content(self, sha256: str) -> Iterator[bytes]:
        """The file with this digest, in pieces. Blocking where agent.zip has it. KeyError: not of this payload."""
        with self.contents() as contents:
            yield from contents.read(sha256)

    def described(self, sha256: str) -> tuple[int, str]:
        """Size in bytes and name of a file with this digest. KeyError: not of this payload."""
        if sha256 in self._contents:
            return len(self._contents[sha256]), ""
        if sha256 == self.scripts_sha256:
            return self.scripts_size_bytes, "cloud-scripts.tgz"
        path = self._agent_paths[sha256]
        if self.agent is None:
            raise KeyError(sha256)
        return self.agent.entries[path].size, path

    @property
    def agent_archive(self) -> Path | bytes | None:
        """agent.zip as it came, if there is one."""
        return self._agent_source

    def agent_path(self, sha256: str) -> str | None:
        """Where agent.zip has a file with this digest; None: nowhere."""
        return self._agent_paths.get(sha256)

    def script_text(self, path: str) -> bytes:
        """Content of one file of the scripts. KeyError: not of this payload."""
        return self._contents[self.scripts.entries[path].sha256]


@dataclass(frozen=True, slots=True)
class Contents:
    """Files of one payload by their digest, while `Payload.contents` is open."""

    payload: Payload
    _agent: archives.AgentReader | None

    def read(self, sha256: str) -> Iterator[bytes]:
        """As `Payload.content`."""
        payload = self.payload
        if sha256 in payload._contents:  # noqa: SLF001 - the other half of the same value
            yield payload._contents[sha256]  # noqa: SLF001
        elif sha256 == payload.scripts_sha256:
            yield payload.scripts_archive
        elif self._agent is not None:
            yield from self._agent.read(payload._agent_paths[sha256])  # noqa: SLF001
        else:
            raise KeyError(sha256)


def read_payload(scripts: Path | bytes, agent: Path | bytes | None) -> Payload:
    """Reads and judges both archives: blocking, for a thread.

    `agent` as a path must stay where it is as long as the payload is used: its members are streamed from it. Raises
    `PayloadError` with PayloadUnreadable, PayloadUnsafe or PayloadTooLarge and a sentence that names the entry.
    """
    packed = scripts if isinstance(scripts, bytes) else _file(scripts, "cloud-scripts.tgz")
    listing, contents = archives.read_scripts(packed)
    entries = {entry.path: entry for entry in listing.files}
    _judge_shape(entries)
    algorithm = _signature_algorithm(contents[entries[EARLY_CONFIG].sha256])
    part = ScriptsPart(
        entries=MappingProxyType(entries),
        folders=MappingProxyType({folder.path: folder for folder in listing.folders}),
        warnings=listing.warnings,
    )
    agent_part = _agent_part(agent) if agent is not None else None
    return Payload(
        revision=_revision(part, agent_part),
        scripts=part,
        agent=agent_part,
        signature_algorithm=algorithm,
        signature=hashlib.new(algorithm, packed, usedforsecurity=False).hexdigest(),
        scripts_size_bytes=len(packed),
        scripts_sha256=hashlib.sha256(packed).hexdigest(),
        scripts_archive=packed,
        _contents=MappingProxyType(contents),
        _agent_source=agent,
        _agent_paths=MappingProxyType(
            {entry.sha256: entry.path for entry in agent_part.entries.values()} if agent_part is not None else {}
        ),
    )


def _file(path: Path, name: str) -> bytes:
    try:
        size = path.stat().st_size
        if size > archives.SCRIPTS_LIMITS.packed_bytes:
            raise PayloadError(
                f"{name}: it has {size} bytes, the limit is {archives.SCRIPTS_LIMITS.packed_bytes}",
                reason=Reason.PAYLOAD_TOO_LARGE,
            )
        return path.read_bytes()
    except OSError as error:
        raise PayloadError(f"{name} cannot be read from {path}: {error.strerror}") from error


def _agent_part(agent: Path | bytes) -> AgentPart:
    try:
        listing = archives.read_agent(agent)
    except OSError as error:
        raise PayloadError(f"agent.zip cannot be read: {error.strerror}") from error
    entries = {entry.path: entry for entry in listing.files}
    if "_run.sh" not in entries:
        raise PayloadError("agent.zip has no _run.sh at its top: it is not the archive that a system VM unpacks")
    reader = archives.AgentReader(agent)
    try:
        texts = {path: _text(reader, path) for path in (_AGENT_PROPERTIES, LIST) if path in entries}
        debs = read_debs(texts.get(LIST, b""), entries, lambda path: _text(reader, path))
    finally:
        reader.close()
    return AgentPart(
        entries=MappingProxyType(entries),
        folders=MappingProxyType({folder.path: folder for folder in listing.folders}),
        warnings=listing.warnings,
        size_bytes=sum(entry.size for entry in listing.files),
        properties=texts.get(_AGENT_PROPERTIES, b""),
        debs=debs,
    )


def _text(reader: archives.AgentReader, path: str) -> bytes:
    return b"".join(reader.read(path))


def _judge_shape(entries: Mapping[str, FileEntry]) -> None:
    if not any(path.startswith("opt/cloud/bin/") for path in entries):
        raise PayloadError(
            "cloud-scripts.tgz holds nothing below opt/cloud/bin: it is an archive, but not a payload of system VMs"
        )
    if EARLY_CONFIG not in entries:
        raise PayloadError(
            f"cloud-scripts.tgz has no {EARLY_CONFIG}, so which checksum its signature is cannot be told"
        )

    forbidden = sorted(path for path in entries if is_forbidden(path))
    if forbidden:
        raise PayloadError(
            f"cloud-scripts.tgz: {forbidden[0]} belongs to the running VM; a payload never brings it",
            reason=Reason.PAYLOAD_UNSAFE,
        )


def _signature_algorithm(early_config: bytes) -> str:
    """The payload's own `cloud-early-config` recomputes the checksum at the next boot, so its word decides."""
    code = b"\n".join(line for line in early_config.splitlines() if not line.lstrip().startswith(b"#"))
    found = {match.decode() for match in _CHECKSUM_WORD.findall(code)}
    if len(found) != 1:
        what = "names no checksum command" if not found else "names more than one checksum command"
        raise PayloadError(f"{EARLY_CONFIG} {what}, so which checksum its signature is cannot be told")
    return _CHECKSUM_COMMANDS[found.pop()]


def scripts_revision(entries: Mapping[str, FileEntry]) -> str:
    """Hex sha256 of the normalised manifest of the scripts alone: two builds of the same files have the same."""
    return _digest_of(entries, None)


def _revision(scripts: ScriptsPart, agent: AgentPart | None) -> str:
    return _digest_of(scripts.entries, agent.entries if agent is not None else None)


def _digest_of(scripts: Mapping[str, FileEntry], agent: Mapping[str, FileEntry] | None) -> str:
    digest = hashlib.sha256()
    for title, entries in (("scripts", scripts), ("agent", agent)):
        if entries is None:
            continue
        digest.update(f"{title}\n".encode())
        for path in sorted(entries):
            entry = entries[path]
            digest.update(f"{path}\0{entry.sha256}\0{'x' if entry.executable else '-'}\n".encode())
    return digest.hexdigest()
