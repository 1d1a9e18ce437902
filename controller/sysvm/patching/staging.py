"""What travels to the VM, in which order and how packed.

Text is compressed, because a patch is mostly text and the line to a hypervisor may be thin; jars and images are sent as
they are. Contents go in batches, so that a cut costs one content and not the whole payload. All is packed before the
first byte is sent, because people are told how much it is.
"""

import asyncio
import itertools
import posixpath
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass

from sysvm.patching import framing, protocol
from sysvm.patching.payload import Contents, Payload

_BATCH_BYTES = 8 << 20
_BATCH_ITEMS = 200
_PIECES_A_TURN = 4
_COMPRESSED_BELOW_BYTES = 4 << 20
_WORTH_IT = 0.95
_PACKED_ALREADY = frozenset({".jar", ".tgz", ".gz", ".zip", ".png", ".jpg", ".gif", ".woff", ".woff2", ".deb"})


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One content and how it travels. `wire` None: it is read from the payload while it is sent."""

    item: protocol.StageItem
    wire: bytes | None


@dataclass
class Transfer:
    """How far the contents of one order have travelled, in bytes as they travel."""

    batches: list[list[Outgoing]]
    sent_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(outgoing.item["wire_size"] for batch in self.batches for outgoing in batch)

    def requests(
        self, payload: Payload, told: Callable[[], None]
    ) -> Iterator[tuple[Mapping[str, object], AsyncIterator[bytes]]]:
        """The arguments of one `stage` after the other, each with its bytes. `told`: see `counted`."""
        for batch in self.batches:
            stage: protocol.StageArgs = {"items": [content.item for content in batch]}
            yield {**stage}, self.counted(content_of(payload, batch), told)

    async def counted(self, pieces: AsyncIterator[bytes], told: Callable[[], None]) -> AsyncIterator[bytes]:
        """The same pieces; `told` is called after each that the connection has taken."""
        async for piece in pieces:
            yield piece
            self.sent_bytes += len(piece)
            told()


def batches(payload: Payload, merged: Mapping[str, bytes], missing: tuple[str, ...]) -> Iterator[list[Outgoing]]:
    """The contents that the VM lacks. Raises `ProtocolError` if it asks for one that no file of the order has."""
    batch: list[Outgoing] = []
    size = 0
    with payload.contents() as contents:
        for digest in missing:
            outgoing = _pack(contents, merged, digest)
            if batch and (size + outgoing.item["wire_size"] > _BATCH_BYTES or len(batch) >= _BATCH_ITEMS):
                yield batch
                batch, size = [], 0
            batch.append(outgoing)
            size += outgoing.item["wire_size"]
    if batch:
        yield batch


async def content_of(payload: Payload, batch: list[Outgoing]) -> AsyncIterator[bytes]:
    """The bytes of a batch, item after item; files of agent.zip are read in a thread."""
    with payload.contents() as contents:
        for outgoing in batch:
            if outgoing.wire is not None:
                yield outgoing.wire
                continue
            pieces = contents.read(outgoing.item["sha256"])
            while piece := await asyncio.to_thread(_some, pieces):
                yield piece


def _some(pieces: Iterator[bytes]) -> bytes:
    """Several pieces at once: a change of threads costs as much as sending one."""
    return b"".join(itertools.islice(pieces, _PIECES_A_TURN))


def _pack(contents: Contents, merged: Mapping[str, bytes], digest: str) -> Outgoing:
    if digest in merged:
        return _compressed(digest, merged[digest])
    try:
        size, name = contents.payload.described(digest)
    except KeyError as error:
        raise framing.ProtocolError(f"the VM asks for content {digest}, which no file of its order has") from error
    if size > _COMPRESSED_BELOW_BYTES or posixpath.splitext(name)[1] in _PACKED_ALREADY:
        return Outgoing({"sha256": digest, "size": size, "encoding": "identity", "wire_size": size}, None)
    return _compressed(digest, b"".join(contents.read(digest)))


def _compressed(digest: str, content: bytes) -> Outgoing:
    packed = zlib.compress(content, 6)
    if len(packed) > len(content) * _WORTH_IT:
        return Outgoing(
            {"sha256": digest, "size": len(content), "encoding": "identity", "wire_size": len(content)}, content
        )
    return Outgoing({"sha256": digest, "size": len(content), "encoding": "zlib", "wire_size": len(packed)}, packed)
