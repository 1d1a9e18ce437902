"""What a compressor packed, as plain bytes: a piece at a time, and never more than was agreed on.

A few kilobytes of zstd or xz can ask for gigabytes, of output and of memory for the window. So every decompressor here
is told how much it may give at once and how large its window may be, and whoever reads says how much it will take in
all.
"""

import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import IO, Protocol

from sysvm.patching.archives import Tally

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 1 << 18
_WINDOW_BYTES = 128 << 20
"""dpkg and rpm at their highest level need 64 MiB (xz -9) and 128 MiB (zstd -22)."""
_WINDOW_LOG = 27


class Compression(StrEnum):
    NONE = "none"
    GZIP = "gzip"
    XZ = "xz"
    ZSTD = "zstd"


MAGIC = {
    Compression.GZIP: b"\x1f\x8b",
    Compression.XZ: b"\xfd7zXZ\x00",
    Compression.ZSTD: b"\x28\xb5\x2f\xfd",
}


class _Unpacker(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, packed: bytes, /, max_length: int) -> bytes: ...


class _Gunzip:
    """zlib in the manner of the newer decompressors."""

    def __init__(self) -> None:
        self._unpacker = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._unpacker.eof

    @property
    def needs_input(self) -> bool:
        return not self._unpacker.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._unpacker.unused_data

    def decompress(self, packed: bytes, /, max_length: int) -> bytes:
        return self._unpacker.decompress(self._unpacker.unconsumed_tail + packed, max_length)


_UNPACKERS: dict[Compression, Callable[[], _Unpacker]] = {
    Compression.GZIP: _Gunzip,
    Compression.XZ: lambda: lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_WINDOW_BYTES),
    Compression.ZSTD: lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG}),
}


class PlainStream:
    """The plain bytes of `packed` from where it stands, at most `size` packed bytes of it; forward only.

    Raises `PayloadError` by way of `tally`: damaged, cut, or more plain bytes than its limits allow.
    """

    def __init__(self, packed: IO[bytes], size: int, compression: Compression, tally: Tally) -> None:
        parts = _parts(packed, size, tally)
        self._pieces = parts if compression is Compression.NONE else _unpacked(parts, _UNPACKERS[compression], tally)
        self._piece = memoryview(b"")
        self._tally = tally
        self.position = 0

    def take(self, size: int) -> bytes:
        """At least one byte and at most `size`; nothing at the end."""
        while not self._piece:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._piece = memoryview(piece)
        taken = bytes(self._piece[:size])
        self._piece = self._piece[size:]
        self.position += len(taken)
        if self.position > self._tally.limits.unpacked_bytes:
            raise self._tally.too_large(f"it unpacks to more than {self._tally.limits.unpacked_bytes} bytes")
        return taken

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer at the end."""
        parts: list[bytes] = []
        while size > 0 and (part := self.take(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip_to(self, position: int) -> None:
        """Reads over what lies before `position`; the end may come first."""
        while self.position < position and self.take(min(PIECE_BYTES, position - self.position)):
            pass


def _parts(packed: IO[bytes], size: int, tally: Tally) -> Iterator[bytes]:
    while size > 0:
        part = packed.read(min(PIECE_BYTES, size))
        if not part:
            raise tally.unreadable("was cut: it ends before what it announces")
        size -= len(part)
        yield part


def _unpacked(parts: Iterator[bytes], make: Callable[[], _Unpacker], tally: Tally) -> Iterator[bytes]:
    """One stream, or several behind each other; zeros between and behind them are padding."""
    unpacker: _Unpacker | None = None
    try:
        for part in parts:
            packed = part
            while True:
                if unpacker is None:
                    packed = packed.lstrip(b"\0")
                    if not packed:
                        break
                    unpacker = make()
                plain = unpacker.decompress(packed, max_length=PIECE_BYTES)
                packed = b""
                if plain:
                    yield plain
                if unpacker.eof:
                    packed, unpacker = unpacker.unused_data, None
                elif unpacker.needs_input:
                    break
    except (zlib.error, lzma.LZMAError, zstd.ZstdError, ValueError, EOFError) as error:
        raise tally.unreadable(f"cannot be unpacked ({error})") from error
    if unpacker is not None:
        raise tally.unreadable("was cut: what is packed in it does not end")
