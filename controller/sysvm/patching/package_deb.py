"""A Debian package (deb(5)): an `ar` archive of a version, a tar of words about it and a tar of its files.

`arpy` reads the outer archive and `tarfile` the inner ones. Both are given headers only, in small measure: neither asks
how long a name may be before it reads it.
"""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO

import arpy

from sysvm.patching.archives import TAR_ERRORS, HeaderAllowance, Limits, Tally, shown, tar_members
from sysvm.patching.package_members import Member, PackageName, content_of, plain_path
from sysvm.patching.unpacking import Compression, PlainStream

MAGIC = b"!<arch>\n"
"""Not `!<thin>`, whose members would be files of this machine."""

_PARTS = 16
_PART_NAME_BYTES = 4096
_CONTROL_LIMITS = Limits(packed_bytes=4 << 20, unpacked_bytes=16 << 20, entries=64)
_CONTROL_BYTES = 1 << 20
_HEADERS_BYTES = 64 << 20
_SUFFIXES = {
    "": Compression.NONE,
    ".gz": Compression.GZIP,
    ".xz": Compression.XZ,
    ".zst": Compression.ZSTD,
}


@dataclass(frozen=True, slots=True)
class _Part:
    name: str
    offset: int
    size: int


def read(stream: IO[bytes], size: int, tally: Tally) -> tuple[PackageName, Iterator[Member]]:
    """What the package calls itself, and its files. Raises `PayloadError`."""
    parts = _parts(stream, size, tally)
    if not parts or parts[0].name != "debian-binary":
        raise tally.unreadable("is an ar archive, but no Debian package")
    control = Tally(f"{tally.name}, control.tar", _CONTROL_LIMITS, None)
    identity = _identity(_tar(stream, _one(parts, "control.tar", tally), control), control)
    return identity, _tar(stream, _one(parts, "data.tar", tally), tally)


class _Headers(io.RawIOBase):
    """The outer archive as arpy may see it: a few bytes at a time."""

    def __init__(self, stream: IO[bytes], tally: Tally) -> None:
        self._stream = stream
        self._tally = tally

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _PART_NAME_BYTES:
            raise self._tally.unreadable("has a list of names that no Debian package has")
        return self._stream.read(size)


def _parts(stream: IO[bytes], size: int, tally: Tally) -> list[_Part]:
    parts: list[_Part] = []
    try:
        archive = arpy.Archive(fileobj=_Headers(stream, tally))
        while (header := archive.read_next_header()) is not None:
            if len(parts) == _PARTS or header.type != arpy.HEADER_NORMAL:
                raise tally.unreadable("is an ar archive, but no Debian package")
            name = header.name.decode("ascii", "backslashreplace")
            if header.size < 0 or header.file_offset + header.size > size:
                raise tally.unreadable(f"was cut: {shown(name)} is longer than what is there")
            parts.append(_Part(name, header.file_offset, header.size))
    except (arpy.ArchiveFormatError, arpy.ArchiveAccessError, ValueError, OverflowError) as error:
        raise tally.unreadable(f"is not a Debian package that can be read to its end ({error})") from error
    return parts


def _one(parts: list[_Part], stem: str, tally: Tally) -> _Part:
    found = [part for part in parts if part.name == stem or part.name.startswith(f"{stem}.")]
    if len(found) != 1:
        raise tally.unreadable(f"has {len(found) or 'no'} {stem}: a Debian package has one")
    return found[0]


def _tar(stream: IO[bytes], part: _Part, tally: Tally) -> Iterator[Member]:
    compression = _SUFFIXES.get(part.name[part.name.index(".tar") + 4 :])
    if compression is None:
        known = ", ".join(f".tar{suffix}" for suffix in _SUFFIXES)
        raise tally.unreadable(f"packs its files as {shown(part.name)}; {known} can be read")
    stream.seek(part.offset)
    plain = PlainStream(stream, part.size, compression, tally)
    try:
        with tarfile.open(
            fileobj=_ForwardTar(plain, tally), mode="r:", encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for info in tar_members(tar, tally):
                yield _member(plain, info, tally)
    except TAR_ERRORS as error:
        raise tally.unreadable(f"holds a tar that cannot be read to its end ({error})") from error


class _ForwardTar(io.RawIOBase):
    """A stream as `tarfile` may see it: its headers, one after the other."""

    def __init__(self, plain: PlainStream, tally: Tally) -> None:
        self._plain = plain
        self._tally = tally
        self._allowance = HeaderAllowance(tally, _HEADERS_BYTES)

    def tell(self) -> int:
        return self._plain.position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence != io.SEEK_SET or offset < self._plain.position:
            raise self._tally.unreadable("holds a tar whose entries overlap")
        self._plain.skip_to(offset)
        return self._plain.position

    def read(self, size: int = -1, /) -> bytes:
        self._allowance.charge(size)
        return self._plain.read(size)


def _member(plain: PlainStream, info: tarfile.TarInfo, tally: Tally) -> Member:
    path = plain_path(info.name)
    is_plain, is_link = info.isreg() and not info.issparse(), info.issym() or info.islnk()
    what = "" if is_plain else "a link" if is_link else "something else"
    target = info.linkname if info.issym() else ""
    return Member(path, info.size, what, partial(content_of, plain, path, info.size, tally), target)


def _identity(members: Iterator[Member], tally: Tally) -> PackageName:
    for number, member in enumerate(members, start=1):
        tally.count(number)
        if member.path == "control" and not member.what:
            if member.size > _CONTROL_BYTES:
                raise tally.too_large(f"its control file has {member.size} bytes")
            return _named(b"".join(member.content()), tally)
    raise tally.unreadable("has no control file, so which package it is cannot be told")


def _named(control: bytes, tally: Tally) -> PackageName:
    lines = [line.partition(":") for line in control.decode("utf-8", "replace").splitlines()]
    words = {key: value.strip() for key, colon, value in lines if colon}
    name, version = words.get("Package"), words.get("Version")
    if not name or not version:
        raise tally.unreadable("has a control file that does not name Package and Version")
    return PackageName(name, version)
