"""Readers for archives that somebody else made: every entry is judged before a byte of it is believed.

`cloud-scripts.tgz` and `agent.zip` end up on machines as root, so what tar and unzip would forgive is refused here:
entries outside of the payload's folders, links, devices, bombs, archives that were cut or carry something behind their
end. Nothing is ever unpacked to disk and nothing is asked of the archive that it could answer with more memory than
the limits allow.
"""

import contextlib
import hashlib
import io
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sysvm.api.reasons import Reason
from sysvm.patching.errors import PayloadError

SCRIPTS_ROOTS = ("etc", "opt", "root", "var/www")
"""Folders that a real cloud-scripts.tgz writes to (CloudStack 4.21 systemvm/debian); no other may appear."""

_CHUNK_BYTES = 1 << 18
_RATIO_FREE_BYTES = 16 << 20
_BLOCK = 512
_HEADER_BYTES = 4096
_HEADERS_BYTES = 8 << 20
_COMMON_WORDS = 64
_DIRECTORY_BYTES = 4 << 20
_ODD_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may ask for. `ratio`: unpacked to packed bytes, judged above 16 MiB unpacked."""

    packed_bytes: int
    unpacked_bytes: int
    entries: int
    path_bytes: int = 480
    ratio: int = 200


SCRIPTS_LIMITS = Limits(packed_bytes=32 << 20, unpacked_bytes=64 << 20, entries=5_000)
AGENT_LIMITS = Limits(packed_bytes=1 << 30, unpacked_bytes=2 << 30, entries=20_000)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file. `path` has no leading slash; `sha256` is hex; `executable` is the archive's own bit."""

    path: str
    size: int
    sha256: str
    executable: bool


@dataclass(frozen=True, slots=True)
class FolderEntry:
    path: str
    mode: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in an archive: last wins for a file that is there twice, and `warnings` says so."""

    files: tuple[FileEntry, ...]
    folders: tuple[FolderEntry, ...]
    warnings: tuple[str, ...]


def read_scripts(packed: bytes) -> tuple[Listing, dict[str, bytes]]:
    """Lists a gzip'ed tar and returns its contents by sha256. Raises `PayloadError`."""
    tally = Tally("cloud-scripts.tgz", SCRIPTS_LIMITS, SCRIPTS_ROOTS)
    plain = _TarStream(_gunzip(packed, tally), tally)
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=plain, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            for number, info in enumerate(tar_members(tar, tally), start=1):
                tally.count(number)
                path = tally.judge_path(info.name)
                if info.isdir():
                    if path:
                        tally.add_folder(FolderEntry(path, info.mode & 0o777))
                    continue
                _judge_tar_kind(tally, info)
                content = plain.content(info.offset_data, info.size)
                if len(content) != info.size:
                    raise tally.unreadable(f"ends in the middle of {shown(path)}")
                digest = hashlib.sha256(content).hexdigest()
                contents[digest] = content
                tally.add_file(FileEntry(path, info.size, digest, bool(info.mode & stat.S_IXUSR)))
            end = tar.offset
    except TAR_ERRORS as error:
        raise tally.unreadable(f"is not a tar archive that can be read to its end ({error})") from error
    tail = plain.getbuffer()[end:]
    if len(tail) < _BLOCK:
        raise tally.unreadable("was cut: the mark that ends a tar archive is missing")
    if bytes(tail).strip(b"\0"):
        raise tally.unreadable("holds something behind its end, or a damaged entry that would hide the rest")
    listing = tally.listing()
    wanted = {entry.sha256 for entry in listing.files}
    return listing, {digest: content for digest, content in contents.items() if digest in wanted}


TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, LookupError, OverflowError, RecursionError)
"""How tarfile says that a header is bent, depending on which field."""


def tar_members(tar: tarfile.TarFile, tally: "Tally") -> Iterator[tarfile.TarInfo]:
    """The members, each with a size that is worth asking for. None is kept: a member may carry many words."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        if len(tar.pax_headers) > _COMMON_WORDS:
            raise tally.too_large(f"its headers hold more than {_COMMON_WORDS} words for all entries")
        if info.size < 0 or info.size > tally.limits.unpacked_bytes:
            raise tally.too_large(f"{shown(info.name)} claims {info.size} bytes")
        yield info


class HeaderAllowance:
    """How much of a tar may be read as headers: none that is larger than a payload has.

    What tarfile does with a header may take the square of its length (CVE-2024-6232), so that is what one costs of
    what all may have; and a negative size means all that is left.
    """

    def __init__(self, tally: "Tally", all_bytes: int = _HEADERS_BYTES) -> None:
        self._tally = tally
        self._left = all_bytes

    def charge(self, wanted: int) -> None:
        self._left -= wanted * max(wanted, _BLOCK) // _BLOCK
        if not 0 <= wanted <= _HEADER_BYTES or self._left < 0:
            raise self._tally.too_large(
                f"a header has more than {_HEADER_BYTES} bytes, or all of them more than a payload has"
            )


class _TarStream(io.BytesIO):
    """The plain tar, of which `tarfile` is given headers only."""

    def __init__(self, plain: bytes, tally: "Tally") -> None:
        super().__init__(plain)
        self._allowance = HeaderAllowance(tally)

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = -1 if size is None else size
        self._allowance.charge(wanted)
        return super().read(wanted)

    def content(self, offset: int, size: int) -> bytes:
        return bytes(self.getbuffer()[offset : offset + size])


def _judge_tar_kind(tally: "Tally", info: tarfile.TarInfo) -> None:
    name = shown(info.name)
    if info.issym() or info.islnk():
        raise tally.unsafe(f"{name} is a link to {shown(info.linkname)}; a payload holds files and folders only")
    if info.issparse():
        raise tally.unsafe(f"{name} is a sparse file")
    if not info.isreg():
        kind = "a device" if info.isdev() and not info.isfifo() else "a pipe" if info.isfifo() else "no plain file"
        raise tally.unsafe(f"{name} is {kind}; a payload holds files and folders only")
    if info.mode & _ODD_BITS:
        raise tally.unsafe(f"{name} has mode {info.mode & 0o7777:o}: set-user-id, set-group-id and sticky are refused")


def _gunzip(packed: bytes, tally: "Tally") -> bytes:
    """The plain bytes, never more than the limit at any moment."""
    if len(packed) > tally.limits.packed_bytes:
        raise tally.too_large(f"it has {len(packed)} bytes, the limit is {tally.limits.packed_bytes}")
    if packed[:2] != b"\x1f\x8b":
        raise tally.unreadable("is not gzip'ed")
    parts: list[bytes] = []
    rest, total = packed, 0
    try:
        while rest:
            unpacker = zlib.decompressobj(wbits=31)
            while not unpacker.eof:
                part = unpacker.decompress(rest, _CHUNK_BYTES)
                rest = unpacker.unconsumed_tail
                total += len(part)
                if total > tally.limits.unpacked_bytes:
                    raise tally.too_large(f"it unpacks to more than {tally.limits.unpacked_bytes} bytes")
                parts.append(part)
                if not part and not rest and not unpacker.eof:
                    raise tally.unreadable("was cut: its gzip stream does not end")
            rest = unpacker.unused_data.lstrip(b"\0")
            if rest[:2] not in (b"", b"\x1f\x8b"):
                raise tally.unreadable(f"has {len(rest)} bytes behind the end of its gzip stream")
    except zlib.error as error:
        raise tally.unreadable(f"cannot be unpacked ({error})") from error
    tally.judge_ratio(len(packed), total)
    return b"".join(parts)


def read_agent(source: Path | bytes) -> Listing:
    """Lists a zip archive, reading every member to its end. Raises `PayloadError`."""
    tally = Tally("agent.zip", AGENT_LIMITS, None)
    packed_size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if packed_size > tally.limits.packed_bytes:
        raise tally.too_large(f"it has {packed_size} bytes, the limit is {tally.limits.packed_bytes}")
    try:
        with opened(source) as stream:
            _judge_zip_ends(tally, stream, packed_size)
            archive = zipfile.ZipFile(stream)
            infos = archive.infolist()
            tally.count(len(infos))
            _judge_overlaps(tally, archive.start_dir, infos)
            claimed = sum(info.file_size for info in infos)
            if claimed > tally.limits.unpacked_bytes:
                raise tally.too_large(f"it unpacks to {claimed} bytes, the limit is {tally.limits.unpacked_bytes}")
            tally.judge_ratio(packed_size, claimed)
            for info in infos:
                _add_zip_member(tally, archive, info)
    except _ZIP_ERRORS as error:
        raise tally.unreadable(f"is not a zip archive that can be read to its end ({error})") from error
    except RuntimeError as error:  # how zipfile says that a member is encrypted
        raise tally.unreadable(f"cannot be read ({error})") from error
    return tally.listing()


_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
)
"""How zipfile says that an archive is bent, depending on where."""


class AgentReader:
    """Files of a zip archive that `read_agent` has accepted, one after the other. Close it.

    Exists because opening an archive costs more than reading most of its files: its whole list is parsed.
    """

    def __init__(self, source: Path | bytes) -> None:
        self._source = source
        self._open = contextlib.ExitStack()
        self._archive: zipfile.ZipFile | None = None
        self._members: dict[str, zipfile.ZipInfo] = {}

    def read(self, path: str) -> Iterator[bytes]:
        """The content of one file in pieces of at most 256 KiB. Blocking.

        Raises `PayloadError` if the archive is not there any more or has changed.
        """
        try:
            if self._archive is None:
                stream = self._open.enter_context(opened(self._source))
                self._archive = self._open.enter_context(zipfile.ZipFile(stream))
                # By the names of the listing, which have no `./`; the last of two counts there too.
                self._members = {posixpath.normpath(info.filename): info for info in self._archive.infolist()}
            with self._archive.open(self._members[path]) as member:
                while part := member.read(_CHUNK_BYTES):
                    yield part
        except (OSError, KeyError, *_ZIP_ERRORS) as error:
            text = f"agent.zip cannot be read any more at {shown(path)}: {error}"
            raise PayloadError(text, retryable=True) from error

    def close(self) -> None:
        self._open.close()


@contextlib.contextmanager
def opened(source: Path | bytes) -> Iterator[IO[bytes]]:
    """An archive, wherever it is kept. Raises OSError."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        yield stream


def _judge_zip_ends(tally: "Tally", stream: IO[bytes], size: int) -> None:
    """Looks at both ends before `zipfile` does, which makes an object of every member before it can be asked how many
    there are."""
    if stream.read(4) not in (b"PK\x03\x04", b"PK\x05\x06"):
        raise tally.unreadable("does not begin as a zip archive")
    start = max(0, size - 22 - 65_535)
    stream.seek(start)
    tail = stream.read(size - start)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise tally.unreadable("has no list of its members at its end")
    entries, length, _, comment = struct.unpack_from("<HLLH", tail, at + 10)
    if at + 22 + comment != len(tail):
        raise tally.unreadable("holds something behind its end")
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\x06\x07":
        # Where zipfile looks for it too, whatever the locator says.
        stream.seek(max(0, start + at - 20 - 56))
        record = stream.read(56)
        if len(record) == 56 and record[:4] == b"PK\x06\x06":
            entries, length = struct.unpack_from("<QQ", record, 32)
    tally.count(entries)
    if length > _DIRECTORY_BYTES:
        raise tally.too_large(f"its list of members has {length} bytes, more than {tally.limits.entries} entries need")
    stream.seek(0)


def _judge_overlaps(tally: "Tally", end: int, infos: list[zipfile.ZipInfo]) -> None:
    """One stream under many names is how a small archive becomes a large tree."""
    for info in sorted(infos, key=lambda each: each.header_offset, reverse=True):
        # 30: what a local header has at least, without its name.
        if info.header_offset + 30 + len(info.filename) + info.compress_size > end:
            raise tally.unsafe(f"{shown(info.filename)} and what follows it share the same bytes")
        end = info.header_offset


def _add_zip_member(tally: "Tally", archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    if not info.filename:
        raise tally.unsafe("an entry has no name")
    if info.orig_filename != info.filename:
        raise tally.unsafe(f"the name {shown(info.orig_filename)} holds control characters")
    # Without the UTF-8 flag zipfile reads the name as code page 437, which gives every byte some letter.
    if not info.flag_bits & 0x800 and not info.filename.isascii():
        raise tally.unsafe(f"the name {shown(info.filename)} is not UTF-8")
    path = tally.judge_path(info.filename.removesuffix("/"))
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if info.is_dir():
        if path:
            tally.add_folder(FolderEntry(path, mode & 0o777 or 0o755))
        return
    if kind not in (0, stat.S_IFREG):
        what = "a link" if kind == stat.S_IFLNK else "a device, pipe or folder entry with content"
        raise tally.unsafe(f"{shown(path)} is {what}; a payload holds files and folders only")
    if mode & _ODD_BITS:
        raise tally.unsafe(f"{shown(path)} has mode {mode & 0o7777:o}: set-user-id and its like are refused")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise tally.unreadable(f"packs {shown(path)} in a way that the VM's unzip may not know")
    digest, size = hashlib.sha256(), 0
    with archive.open(info) as member:
        while part := member.read(_CHUNK_BYTES):
            size += len(part)
            digest.update(part)
    if size != info.file_size:
        raise tally.unreadable(f"ends in the middle of {shown(path)}")
    # CloudStack 4.21 bootstrap.sh: every *.sh of the agent folder becomes executable whatever the archive says.
    executable = bool(mode & stat.S_IXUSR) or path.endswith(".sh")
    tally.add_file(FileEntry(path, size, digest.hexdigest(), executable))


def shown(name: str) -> str:
    """A hostile name as text that cannot move a terminal's cursor or flood a status."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8").encode("unicode_escape").decode("ascii")
    return text if len(text) <= 120 else f"{text[:117]}..."


class Tally:
    """Judges paths and collects entries of one archive, and words what is wrong with it."""

    def __init__(self, name: str, limits: Limits, roots: tuple[str, ...] | None) -> None:
        self.limits = limits
        self.name = name
        self._roots = roots
        self._files: dict[str, FileEntry] = {}
        self._folders: dict[str, FolderEntry] = {}
        self._parents: set[str] = set()
        self._repeated: dict[str, int] = {}

    def count(self, entries: int) -> None:
        if entries > self.limits.entries:
            raise self.too_large(f"it has more than {self.limits.entries} entries")

    def judge_ratio(self, packed: int, unpacked: int) -> None:
        if unpacked > _RATIO_FREE_BYTES and unpacked > packed * self.limits.ratio:
            raise self.too_large(f"{packed} bytes unpack to {unpacked}: no payload does that")

    def judge_path(self, name: str) -> str:
        """The path without leading `./`; empty for the top folder itself."""
        told = shown(name)
        try:
            size = len(name.encode("utf-8"))
        except UnicodeEncodeError as error:
            raise self.unsafe(f"the name {told} is not UTF-8") from error
        if size > self.limits.path_bytes:
            raise self.unsafe(f"the name {told} is longer than {self.limits.path_bytes} bytes")
        if not name.isprintable() or "\\" in name:
            raise self.unsafe(f"the name {told} holds control characters or a backslash")
        if name.startswith("/"):
            raise self.unsafe(f"{told} is an absolute path")
        parts = name.rstrip("/").split("/")
        while parts and parts[0] in (".", ""):
            parts = parts[1:]
        if any(part == ".." for part in parts):
            raise self.unsafe(f"{told} leads out of its folder")
        if any(part in (".", "") for part in parts):
            raise self.unsafe(f"{told} is not a plain path")
        path = "/".join(parts)
        if path and not self._allowed(path):
            raise self.unsafe(f"{told} lies outside of {', '.join(self._roots or ())}")
        return path

    def _allowed(self, path: str) -> bool:
        if self._roots is None:
            return True
        return any(f"{path}/".startswith(f"{root}/") or f"{root}/".startswith(f"{path}/") for root in self._roots)

    def add_file(self, entry: FileEntry) -> None:
        path = entry.path
        if not path:
            raise self.unsafe("an entry has no name")
        if self._roots is not None and not any(path.startswith(f"{root}/") for root in self._roots):
            raise self.unsafe(f"{shown(path)} is a file where a folder must be")
        if path in self._folders or path in self._parents:
            raise self.unsafe(f"{shown(path)} is both a file and a folder")
        self._claim_parents(path)
        if path in self._files:
            self._repeated[path] = self._repeated.get(path, 1) + 1
        self._files[path] = entry

    def add_folder(self, entry: FolderEntry) -> None:
        if entry.path in self._files:
            raise self.unsafe(f"{shown(entry.path)} is both a file and a folder")
        self._claim_parents(entry.path)
        self._folders[entry.path] = entry

    def _claim_parents(self, path: str) -> None:
        parts = path.split("/")[:-1]
        for length in range(len(parts), 0, -1):
            parent = "/".join(parts[:length])
            if parent in self._parents:
                return
            if parent in self._files:
                raise self.unsafe(f"{shown(parent)} is both a file and a folder")
            self._parents.add(parent)

    def listing(self) -> Listing:
        warnings = tuple(
            f"{path} is there {times} times; the last entry counts" for path, times in sorted(self._repeated.items())
        )
        return Listing(
            files=tuple(self._files[path] for path in sorted(self._files)),
            folders=tuple(self._folders[path] for path in sorted(self._folders)),
            warnings=warnings,
        )

    def unsafe(self, what: str) -> PayloadError:
        return PayloadError(f"{self.name}: {what}", reason=Reason.PAYLOAD_UNSAFE)

    def unreadable(self, what: str) -> PayloadError:
        return PayloadError(f"{self.name} {what}", reason=Reason.PAYLOAD_UNREADABLE)

    def too_large(self, what: str) -> PayloadError:
        return PayloadError(f"{self.name}: {what}", reason=Reason.PAYLOAD_TOO_LARGE)
