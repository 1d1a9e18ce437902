"""Frames on two file descriptors. The operator's side of the same words is sysvm/patching/framing.py."""

import json
import os
import struct
import zlib

VERSION = 1
MAGIC = b"\x00SYSVM/1\n"
MAX_JSON = 8 * 1024 * 1024
MAX_BYTES = 256 * 1024
PACKED_FROM = 4 * 1024
"""Bytes of an answer from which on it travels compressed: facts of many files are a sixth then."""
_HEADER = struct.Struct(">cI")


class Closed(Exception):  # noqa: N818 - an end, not always an error
    """The other end has gone, or it does not speak this language. The session is over."""


class Wire(object):
    def __init__(self, source, sink, opened=False):
        self.source = source
        self.sink = sink
        self.opened = opened

    def open(self):
        """Once; whoever asked for the program may have done it."""
        if not self.opened:
            self._write(MAGIC)
        self.opened = True

    def send(self, message):
        payload = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogateescape")
        if len(payload) > MAX_JSON:
            raise Closed("a message of {0} bytes is too long".format(len(payload)))
        kind = b"J"
        if len(payload) >= PACKED_FROM:
            kind, payload = b"Z", zlib.compress(payload, 1)
        self._write(_HEADER.pack(kind, len(payload)) + payload)

    def send_bytes(self, content):
        for start in range(0, len(content), MAX_BYTES):
            chunk = content[start : start + MAX_BYTES]
            self._write(_HEADER.pack(b"B", len(chunk)) + chunk)

    def receive(self):
        """The next JSON frame, None at the end of the input."""
        header = self._read(_HEADER.size, True)
        if header is None:
            return None
        payload = self._payload(header, b"J", MAX_JSON)
        try:
            value = json.loads(payload.decode("utf-8"))
        except ValueError as error:
            raise Closed("a message is not JSON: {0}".format(error))
        if not isinstance(value, dict):
            raise Closed("a message is not an object")
        return value

    def receive_bytes(self):
        """The next byte frame."""
        return self._payload(self._read(_HEADER.size, False), b"B", MAX_BYTES)

    def _payload(self, header, wanted, limit):
        kind, length = _HEADER.unpack(header)
        if kind != wanted or length > limit:
            raise Closed("a frame {0!r} of {1} bytes where {2!r} was due".format(kind, length, wanted))
        return self._read(length, False)

    def _read(self, length, end_is_fine):
        parts = []
        missing = length
        while missing:
            chunk = os.read(self.source, min(missing, 1024 * 1024))
            if not chunk:
                if end_is_fine and missing == length:
                    return None
                raise Closed("the input ended inside a message")
            parts.append(chunk)
            missing -= len(chunk)
        return b"".join(parts)

    def _write(self, content):
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(self.sink, view) :]
        except OSError as error:
            raise Closed("the output is gone: {0}".format(error))
