"""Frames: how a message of `protocol.py` travels, and what of a stream is not one.

A frame is 1 byte kind (`J` JSON object in UTF-8, `Z` the same compressed with zlib, only from the VM, `B` bytes), 4
bytes big-endian length, payload. The program on the VM cannot import this module; it has its own small copy
(`remote/wire.py`) and a test holds the two together.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sysvm.api.reasons import Reason
from sysvm.patching.errors import PatchingError

VERSION = 1
MAGIC = b"\x00SYSVM/1\n"
MAX_NOISE = 16 * 1024
"""Bytes that a login script may print before `MAGIC`."""
MAX_JSON = 8 * 1024 * 1024
MAX_BYTES = 256 * 1024
"""Largest payload of one byte frame; larger content travels in several."""

_HEADER = struct.Struct(">cI")


class ProtocolError(PatchingError):
    """The other end said something that this version does not understand. The connection is of no more use."""

    reason = Reason.PROTOCOL_ERROR


@dataclass(frozen=True, slots=True)
class JSONFrame:
    """A JSON object as the other end sent it, not yet checked: give it to `parse`."""

    value: Mapping[str, object]
    size: int = 0
    """Bytes of its text, which is what it takes of memory."""


@dataclass(frozen=True, slots=True)
class BytesFrame:
    content: bytes

    @property
    def size(self) -> int:
        return len(self.content)


Frame: TypeAlias = JSONFrame | BytesFrame


def encode_json(message: Mapping[str, object]) -> bytes:
    """One JSON frame. Raises `ProtocolError` if it is longer than `MAX_JSON`."""
    payload = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    if len(payload) > MAX_JSON:
        raise ProtocolError(f"a message of {len(payload)} bytes is longer than the {MAX_JSON} that a frame may have")
    return _HEADER.pack(b"J", len(payload)) + payload


def encode_bytes(content: bytes) -> Iterator[bytes]:
    """`content` as byte frames of at most `MAX_BYTES`. No frame for empty content."""
    for start in range(0, len(content), MAX_BYTES):
        chunk = content[start : start + MAX_BYTES]
        yield _HEADER.pack(b"B", len(chunk)) + chunk


class Decoder:
    """Turns what arrives into frames. `feed` takes any cut of the stream; nothing is read ahead of a frame's end."""

    def __init__(self, *, expect_magic: bool = True) -> None:
        """`expect_magic`: the stream comes from the VM and starts with noise and `MAGIC`."""
        self._buffer = bytearray()
        self._awaiting_magic = expect_magic

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """The frames completed by `chunk`. Raises `ProtocolError` on endless noise, unknown kinds, sizes, bad JSON."""
        self._buffer += chunk
        if self._awaiting_magic and not self._skip_noise():
            return
        while len(self._buffer) >= _HEADER.size:
            kind, length = _HEADER.unpack_from(self._buffer)
            limit = {b"J": MAX_JSON, b"Z": MAX_JSON, b"B": MAX_BYTES}.get(kind)
            if limit is None:
                raise ProtocolError(f"a frame of the unknown kind {kind!r}: not the program writes here")
            if length > limit:
                raise ProtocolError(f"a frame of {length} bytes where at most {limit} are allowed")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            if kind == b"B":
                yield BytesFrame(payload)
                continue
            text = _unpacked(payload) if kind == b"Z" else payload
            yield JSONFrame(_object(text), len(text))

    def finish(self) -> None:
        """Called at the end of the stream. Raises `ProtocolError` if it ended inside a frame or before `MAGIC`."""
        if self._awaiting_magic:
            said = bytes(self._buffer[:200]).decode(errors="replace").strip()
            raise ProtocolError(f"the program on the VM did not start; it said: {said or 'nothing'}")
        if self._buffer:
            raise ProtocolError("the connection ended inside a message")

    def _skip_noise(self) -> bool:
        at = self._buffer.find(MAGIC)
        if at >= 0:
            del self._buffer[: at + len(MAGIC)]
            self._awaiting_magic = False
            return True
        if len(self._buffer) > MAX_NOISE:
            raise ProtocolError("the VM's shell prints without end instead of starting the program")
        return False


def _unpacked(payload: bytes) -> bytes:
    """At most `MAX_JSON` bytes, whatever the payload would become."""
    unpack = zlib.decompressobj()
    try:
        text = unpack.decompress(payload, MAX_JSON)
    except zlib.error as error:
        raise ProtocolError(f"a compressed frame cannot be unpacked: {error}") from error
    if not unpack.eof or unpack.unused_data:
        raise ProtocolError(f"a compressed frame has more than {MAX_JSON} bytes, or is not whole")
    return text


def _object(payload: bytes) -> Mapping[str, object]:
    try:
        value = json.loads(payload, parse_constant=_no_number)
    except (UnicodeDecodeError, ValueError) as error:
        raise ProtocolError(f"a message is not JSON: {error}") from error
    except RecursionError as error:
        raise ProtocolError("a message is nested without end") from error
    if not isinstance(value, dict):
        raise ProtocolError("a message is not a JSON object")
    return value


def _no_number(name: str) -> object:
    # Python's own extension of JSON: what such a value would do to a sum or a calendar is nobody's to find out.
    raise ValueError(f"{name} is no number")
