"""What the readers promise of any input whatever, as functions that a fuzzer, a property test and the corpus share.

Each takes bytes and raises `AssertionError` where a promise is broken; every exception that leaves a reader and is
none of its own kind breaks one too. Nothing here imports a fuzzer.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import posixpath
import struct
from collections.abc import Callable, Iterator

from sysvm.patching import archives, framing, package_files, protocol
from sysvm.patching.errors import PatchingError, PayloadError


def scripts_of_tar(plain: bytes) -> bool:
    """A gzip'ed tar that was packed faithfully: a mutation of the tar is not lost on a checksum. True: accepted."""
    return scripts(gzip.compress(plain, 1, mtime=0))


def scripts(packed: bytes) -> bool:
    """cloud-scripts.tgz."""
    try:
        listing, contents = archives.read_scripts(packed)
    except PayloadError as error:
        _is_a_sentence(error)
        return False
    _is_within(listing, archives.SCRIPTS_LIMITS, archives.SCRIPTS_ROOTS)
    for entry in listing.files:
        assert len(contents[entry.sha256]) == entry.size, entry
    assert set(contents) == {entry.sha256 for entry in listing.files}
    return True


def agent(packed: bytes) -> bool:
    """agent.zip. What was accepted can be sent: every file can be read again, and is what the listing says."""
    try:
        listing = archives.read_agent(packed)
    except PayloadError as error:
        _is_a_sentence(error)
        return False
    _is_within(listing, archives.AGENT_LIMITS, None)
    with contextlib.closing(archives.AgentReader(packed)) as reader:
        for entry in listing.files[:20]:
            if entry.size <= 1 << 20:
                digest = hashlib.sha256(b"".join(reader.read(entry.path)))
                assert digest.hexdigest() == entry.sha256, entry
    return True


def package(packed: bytes) -> bool:
    """cloudstack-common, as .deb or .rpm. What comes out is the payload's files and no others, within their limits."""
    sizes: dict[str, int] = {}

    @contextlib.contextmanager
    def sink(name: str) -> Iterator[_Counter]:
        assert name in (package_files.SCRIPTS, package_files.AGENT), name
        assert name not in sizes, name
        counter = _Counter()
        yield counter
        sizes[name] = counter.size

    try:
        found = package_files.copy_payload(packed, "the package", sink)
    except PayloadError as error:
        _is_a_sentence(error)
        return False
    assert found.package.name == package_files.PACKAGE
    assert sizes[package_files.SCRIPTS] <= archives.SCRIPTS_LIMITS.packed_bytes
    assert found.has_agent == (package_files.AGENT in sizes)
    return True


class _Counter:
    def __init__(self) -> None:
        self.size = 0

    def write(self, part: bytes, /) -> None:
        assert 0 < len(part) <= 1 << 20, len(part)
        self.size += len(part)


def wire(stream: bytes) -> bool:
    """What a VM says, cut at places that the first byte chooses. True: all of it was understood."""
    step = stream[0] + 1 if stream else 1
    decoder = framing.Decoder(expect_magic=bool(step % 2))
    try:
        for start in range(1, len(stream), step):
            for frame in decoder.feed(stream[start : start + step]):
                if isinstance(frame, framing.BytesFrame):
                    assert len(frame.content) <= framing.MAX_BYTES
                else:
                    _parses_or_says_why(frame.value)
        decoder.finish()
    except framing.ProtocolError as error:
        _is_a_sentence(error)
        return False
    return True


def message(payload: bytes) -> bool:
    """One message of a VM, as each kind of answer there is."""
    frame = framing.MAGIC + struct.pack(">cI", b"J", len(payload)) + payload
    return wire(b"\xfe" + frame)


_KINDS: tuple[type, ...] = (
    protocol.Hello,
    protocol.Response,
    protocol.Event,
    protocol.ProbeResult,
    protocol.DigestResult,
    protocol.BeginResult,
    protocol.BuildResult,
    protocol.RunResult,
)


def _parses_or_says_why(value: object) -> None:
    for kind in _KINDS:
        try:
            protocol.parse(kind, value)
        except framing.ProtocolError as error:
            _is_a_sentence(error)


def _is_a_sentence(error: PatchingError) -> None:
    text = str(error)
    assert text, "an error without a word"
    assert len(text) < 4096, f"an error of {len(text)} characters"


def _is_within(listing: archives.Listing, limits: archives.Limits, roots: tuple[str, ...] | None) -> None:
    assert len(listing.files) <= limits.entries
    assert sum(entry.size for entry in listing.files) <= limits.unpacked_bytes
    names = {entry.path for entry in listing.files}
    assert len(names) == len(listing.files)
    for path in [*names, *(folder.path for folder in listing.folders)]:
        assert path == posixpath.normpath(path), path
        assert not path.startswith(("/", "../")), path
        assert path not in (".", "..")
        assert path.isprintable(), repr(path)
        assert "\\" not in path, path
        assert len(path.encode()) <= limits.path_bytes
    for path in names:
        assert roots is None or any(path.startswith(f"{root}/") for root in roots), path
        assert not any(parent in names for parent in _parents(path)), path


def _parents(path: str) -> Iterator[str]:
    while path := posixpath.dirname(path):
        yield path


TARGETS: dict[str, Callable[[bytes], bool]] = {
    "tar": scripts_of_tar,
    "tgz": scripts,
    "zip": agent,
    "deb": package,
    "rpm": package,
    "wire": wire,
    "json": message,
}
