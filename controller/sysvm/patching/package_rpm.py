"""An RPM package: a lead, two headers of tags, and a cpio archive that is packed by one of several compressors.

Read by hand, because the libraries that are to be had answer a bent file with what no caller can bound or catch; how
that was found is told in docs/decisions/package-readers.md. Only what is needed is read: name, version, and how the
files are packed (RPM's v4 and v6 package formats; cpio as `newc` and as rpm strips it).
"""

import re
import stat
import struct
from collections.abc import Iterator
from functools import partial
from typing import IO

from sysvm.patching.archives import Tally, shown
from sysvm.patching.errors import PayloadError
from sysvm.patching.package_members import Member, PackageName, content_of, plain_path
from sysvm.patching.unpacking import MAGIC as PACKED
from sysvm.patching.unpacking import Compression, PlainStream

MAGIC = b"\xed\xab\xee\xdb"

_LEAD_BYTES = 96
_HEADER = struct.Struct(">4s4xII")
_HEADER_MAGIC = b"\x8e\xad\xe8\x01"
_TAG = struct.Struct(">IIII")
_TAGS = 1 << 12
_STORE_BYTES = 32 << 20
_STRING, _STRINGS = 6, 8
_NUMBERS = {3: ("H", 2), 4: ("I", 4), 5: ("Q", 8)}
_TEXT_BYTES = 256

_NAME, _VERSION, _RELEASE, _FORMAT, _COMPRESSOR = 1000, 1001, 1002, 1124, 1125
_SIZES, _LONG_SIZES, _MODES, _FOLDER_OF, _BASE_NAMES, _FOLDERS = 1028, 5008, 1030, 1116, 1117, 1118

_MAGIC_BYTES = 6
_ENTRY = re.compile(rb"[0-9A-Fa-f]{104}", re.DOTALL)
_INDEX = re.compile(rb"[0-9A-Fa-f]{8}", re.DOTALL)
_FULL = (b"070701", b"070702")
_STRIPPED = b"07070X"
_END = b"TRAILER!!!"


def read(stream: IO[bytes], size: int, tally: Tally) -> tuple[PackageName, Iterator[Member]]:
    """What the package calls itself, and its files. Raises `PayloadError`."""
    stream.seek(_LEAD_BYTES)
    _header(stream, size, tally)
    stream.seek(-(stream.tell() - _LEAD_BYTES) % 8, 1)
    header = _header(stream, size, tally)
    name, version, release = header.text(_NAME), header.text(_VERSION), header.text(_RELEASE)
    if not name or not version:
        raise tally.unreadable("has a header that names neither package nor version")
    packed_as = header.text(_FORMAT) or "cpio"
    if packed_as != "cpio":
        raise tally.unreadable(f"holds its files as {shown(packed_as)}; cpio can be read")
    start = stream.tell()
    plain = PlainStream(stream, size - start, _compression(stream, header.text(_COMPRESSOR), tally), tally)
    return PackageName(name, f"{version}-{release}" if release else version), _members(plain, header, tally)


class _Header:
    """The tags of one header. What is not there, or is of another kind than it must be, is empty."""

    def __init__(self, index: bytes, store: bytes, tally: Tally) -> None:
        self._places = {tag: (kind, offset, count) for tag, kind, offset, count in _TAG.iter_unpack(index)}
        self._store = store
        self._tally = tally

    def text(self, tag: int) -> str:
        kind, offset, _ = self._places.get(tag, (0, 0, 0))
        if kind != _STRING:
            return ""
        return self._store[offset : offset + _TEXT_BYTES].partition(b"\0")[0].decode("utf-8", "backslashreplace")

    def texts(self, tag: int) -> list[str]:
        kind, offset, count = self._places.get(tag, (0, 0, 0))
        self._tally.count(count)
        if kind != _STRINGS:
            return []
        found = self._store[offset:].split(b"\0", count)[:count]
        return [text.decode("utf-8", "surrogateescape") for text in found]

    def numbers(self, tag: int) -> tuple[int, ...]:
        kind, offset, count = self._places.get(tag, (0, 0, 0))
        self._tally.count(count)
        letter, width = _NUMBERS.get(kind, ("", 0))
        if not letter or offset + count * width > len(self._store):
            return ()
        return struct.unpack_from(f">{count}{letter}", self._store, offset)

    def files(self) -> list[tuple[str, int, int]]:
        """Path, size and mode of every file, as stripped archives refer to them by number."""
        names, folders, folder_of = self.texts(_BASE_NAMES), self.texts(_FOLDERS), self.numbers(_FOLDER_OF)
        sizes, modes = self.numbers(_LONG_SIZES) or self.numbers(_SIZES), self.numbers(_MODES)
        if not len(names) == len(folder_of) == len(sizes) == len(modes) or any(at >= len(folders) for at in folder_of):
            raise self._tally.unreadable("has a header whose list of files is damaged")
        return [
            (folders[at] + name, size, mode)
            for name, at, size, mode in zip(names, folder_of, sizes, modes, strict=True)
        ]


def _header(stream: IO[bytes], size: int, tally: Tally) -> _Header:
    """One header; `stream` stands behind it afterwards."""
    intro = stream.read(_HEADER.size)
    if len(intro) < _HEADER.size or not intro.startswith(_HEADER_MAGIC):
        raise tally.unreadable("was cut or damaged: where a header must be there is none")
    _, count, store_bytes = _HEADER.unpack(intro)
    if count > _TAGS or store_bytes > _STORE_BYTES:
        raise tally.too_large(f"it has a header of {count} tags and {store_bytes} bytes")
    if stream.tell() + count * _TAG.size + store_bytes > size:
        raise tally.unreadable("was cut: it ends in the middle of a header")
    return _Header(stream.read(count * _TAG.size), stream.read(store_bytes), tally)


def _compression(stream: IO[bytes], named: str, tally: Tally) -> Compression:
    """By how it begins, which cannot be wrong; the tag is for the sentence."""
    start = stream.tell()
    begins = stream.read(_MAGIC_BYTES)
    stream.seek(start)
    for compression, magic in PACKED.items():
        if begins.startswith(magic):
            return compression
    if begins in (*_FULL, _STRIPPED):
        return Compression.NONE
    told = f"names the payload compressor {shown(named)}" if named else "names no payload compressor"
    known = ", ".join(compression.value for compression in PACKED)
    raise tally.unreadable(f"{told}, and its files do not begin as those of {known} or plain cpio do")


def _members(plain: PlainStream, header: _Header, tally: Tally) -> Iterator[Member]:
    files: list[tuple[str, int, int]] | None = None
    while True:
        magic = plain.read(_MAGIC_BYTES)
        if magic == _STRIPPED:
            files = files if files is not None else header.files()
            path, size, mode = _numbered(plain, files, tally)
            links = 1
        elif magic in _FULL:
            raw, size, mode, links = _named(plain, tally)
            if raw == _END:
                return
            path = raw.decode("utf-8", "surrogateescape")
        else:
            raise _damaged(tally)
        _skip_padding(plain)
        path, end = plain_path(path), plain.position + size
        yield Member(path, size, _what(mode, links), partial(content_of, plain, path, size, tally))
        plain.skip_to(end)
        if plain.position < end:
            raise tally.unreadable(f"was cut: it ends in the middle of {shown(path)}")
        _skip_padding(plain)


def _numbered(plain: PlainStream, files: list[tuple[str, int, int]], tally: Tally) -> tuple[str, int, int]:
    """An entry of a stripped archive, which rpm writes for large files and, as v6, for all."""
    digits = plain.read(8)
    number = int(digits, 16) if _INDEX.fullmatch(digits) else len(files)
    if number >= len(files):
        raise _damaged(tally)
    path, size, mode = files[number]
    return path, size if stat.S_ISREG(mode) or stat.S_ISLNK(mode) else 0, mode


def _named(plain: PlainStream, tally: Tally) -> tuple[bytes, int, int, int]:
    """Name, size, mode and number of links of an entry of a plain `newc` archive."""
    digits = plain.read(104)
    if not _ENTRY.fullmatch(digits):
        raise _damaged(tally)
    _, mode, _, _, links, _, size, _, _, _, _, name_bytes, _ = (int(digits[at : at + 8], 16) for at in range(0, 104, 8))
    if not 1 <= name_bytes <= 4096:
        raise tally.unreadable(f"holds a cpio archive with a name of {name_bytes} bytes")
    return plain.read(name_bytes).partition(b"\0")[0], size, mode, links


def _damaged(tally: Tally) -> PayloadError:
    return tally.unreadable("holds a cpio archive that was cut or damaged: an entry has no header")


def _skip_padding(plain: PlainStream) -> None:
    plain.skip_to(plain.position + -plain.position % 4)


def _what(mode: int, links: int) -> str:
    if stat.S_ISLNK(mode) or (stat.S_ISREG(mode) and links > 1):
        return "a link"
    return "" if stat.S_ISREG(mode) else "something else"
