"""Where the files of a zip lie in it, so that somebody who has the same zip can send them without unpacking it."""

import hashlib
import posixpath
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from sysvm.patching.archives import opened

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, 22 bytes that the list of members says too, lengths of name and extra field."""
_ENCODINGS: dict[int, Literal["identity", "deflate"]] = {
    zipfile.ZIP_STORED: "identity",
    zipfile.ZIP_DEFLATED: "deflate",
}
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Range:
    """The packed bytes of one file. `encoding`: how they are packed, as `protocol.ExpectedItem` has it."""

    offset: int
    length: int
    encoding: Literal["identity", "deflate"]


@dataclass(frozen=True, slots=True)
class ZipRanges:
    """Of one zip, told by its digest."""

    sha256: str
    members: Mapping[str, Range]
    """By path; those that are packed in another way, or cannot be found, are left out."""


def zip_ranges(source: Path | bytes) -> ZipRanges:
    """Reads all of it: blocking. Raises OSError or zipfile.BadZipFile if it is not there any more or was changed."""
    with opened(source) as stream:
        state = hashlib.sha256()
        while chunk := stream.read(_CHUNK_BYTES):
            state.update(chunk)
        with zipfile.ZipFile(stream) as archive:
            found = {posixpath.normpath(info.filename): _range(stream, info) for info in archive.infolist()}
    return ZipRanges(state.hexdigest(), {path: each for path, each in found.items() if each is not None})


def _range(stream: IO[bytes], info: zipfile.ZipInfo) -> Range | None:
    encoding = _ENCODINGS.get(info.compress_type)
    stream.seek(info.header_offset)
    header = stream.read(_LOCAL_HEADER.size)
    if encoding is None or len(header) < _LOCAL_HEADER.size:
        return None
    signature, name, extra = _LOCAL_HEADER.unpack(header)
    if signature != b"PK\x03\x04":
        return None
    return Range(info.header_offset + _LOCAL_HEADER.size + name + extra, info.compress_size, encoding)
