"""Archives that a careful reader must refuse, each made of a good payload and one thing that is wrong with it.

``SCRIPTS`` and ``AGENT`` map a name to a function that makes the bytes; the names say what is wrong. What each file
claims to be is tested beside the builder, so that a reader that accepts one cannot be excused by a harmless file.
"""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache, partial

from lab.content import payloads, releases

BOMB_BYTES = 4 * 2**30
"""What the decompression bomb of the scripts unpacks to; the one of the agent unpacks to a quarter of it."""

MANY_ENTRIES = 1_000_000
MANY_MEMBERS = 200_000

Maker = Callable[[], bytes]


@cache
def _good_scripts() -> bytes:
    return payloads.build_scripts(releases.new())


@cache
def _good_agent() -> bytes:
    return payloads.build_agent(releases.new())


def _truncated(whole: Maker) -> bytes:
    content = whole()
    return content[: len(content) * 2 // 3]


def _garbage() -> bytes:
    return bytes(range(256)) * 64


# -- cloud-scripts.tgz ------------------------------------------------------------------------------------------------


def _entry(
    name: str,
    content: bytes = b"",
    *,
    kind: bytes = tarfile.REGTYPE,
    mode: int = 0o755,
    target: str = "",
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, target, len(content)
    return info, content


def _with_entries(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A good payload that goes on with these entries."""
    plain = io.BytesIO(gzip.decompress(_good_scripts()))
    with tarfile.open(fileobj=plain, mode="a", format=tarfile.GNU_FORMAT) as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


def _appended(*arguments: tuple[tarfile.TarInfo, bytes]) -> Maker:
    return partial(_with_entries, *arguments)


def _device() -> bytes:
    info, content = _entry("opt/cloud/bin/device", kind=tarfile.CHRTYPE, mode=0o666)
    info.devmajor, info.devminor = 1, 3
    return _with_entries((info, content))


def _without_early_config() -> bytes:
    """A payload in which nothing says how its signature is computed."""
    return payloads.build_scripts(releases.new().derive("mute", remove=["opt/cloud/bin/setup/cloud-early-config"]))


def _packed_run(run: bytes) -> bytes:
    """Packed bytes of ``run`` that may stand anywhere in a deflate stream, any number of times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(run) + packer.flush(zlib.Z_FULL_FLUSH)


def _repeated(head: bytes, run: bytes, times: int, tail: bytes) -> tuple[bytes, int, int]:
    """(raw deflate stream, CRC, size) of ``head``, ``run`` again and again, and ``tail``; each is packed once."""
    crc = zlib.crc32(head)
    for _ in range(times):
        crc = zlib.crc32(run, crc)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    end = packer.compress(tail) + packer.flush()
    stream = _packed_run(head) + _packed_run(run) * times + end
    return stream, zlib.crc32(tail, crc), len(head) + len(run) * times + len(tail)


def _gzip(stream: bytes, crc: int, size: int) -> bytes:
    return b"\x1f\x8b\x08\0\0\0\0\0\x02\xff" + stream + struct.pack("<II", crc, size % 2**32)


def _open_end() -> bytes:
    """A good payload up to where the next entry would begin."""
    good = gzip.decompress(_good_scripts()).rstrip(b"\0")
    return good + bytes(-len(good) % 512)


def _scripts_bomb() -> bytes:
    """A good payload that ends with one file of zeros."""
    header = tarfile.TarInfo("opt/cloud/bin/zeros")
    header.size = BOMB_BYTES
    run = bytes(16 * 2**20)
    return _gzip(*_repeated(_open_end() + header.tobuf(tarfile.GNU_FORMAT), run, BOMB_BYTES // len(run), bytes(1024)))


def _many_entries() -> bytes:
    """A million headers of empty files; the names repeat, the packed size is small."""
    names = 4000
    block = b"".join(tarfile.TarInfo(f"opt/cloud/bin/{n}").tobuf(tarfile.GNU_FORMAT) for n in range(names))
    return _gzip(*_repeated(b"", block, MANY_ENTRIES // names, bytes(1024)))


def _lying_size() -> bytes:
    """A header that promises more than there is."""
    header = tarfile.TarInfo("opt/cloud/bin/promise")
    header.size = 2**33
    return gzip.compress(_open_end() + header.tobuf(tarfile.GNU_FORMAT) + b"short", mtime=0)


def _non_utf8_name() -> bytes:
    info = tarfile.TarInfo("opt/cloud/bin/" + b"\xff\xfe\x80.sh".decode("utf-8", "surrogateescape"))
    block = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    return gzip.compress(_open_end() + block + bytes(1024), mtime=0)


SCRIPTS: dict[str, Maker] = {
    "empty": bytes,
    "truncated": partial(_truncated, _good_scripts),
    "garbage": _garbage,
    "garbage-in-gzip": lambda: gzip.compress(_garbage(), mtime=0),
    "no-early-config": _without_early_config,
    "parent-path": _appended(_entry("opt/cloud/../../../etc/cron.d/evil", b"* * * * * root true\n")),
    "absolute-path": _appended(_entry("/etc/cron.d/evil", b"* * * * * root true\n")),
    "symlink-out": _appended(_entry("opt/cloud/bin/out", kind=tarfile.SYMTYPE, target="/etc/shadow")),
    "write-through-symlink": _appended(
        _entry("opt/cloud/out", kind=tarfile.SYMTYPE, target="../../../../etc"),
        _entry("opt/cloud/out/evil", b"written through a link\n"),
    ),
    "hardlink-out": _appended(_entry("opt/cloud/bin/out", kind=tarfile.LNKTYPE, target="../../../etc/shadow")),
    "device": _device,
    "fifo": _appended(_entry("opt/cloud/bin/pipe", kind=tarfile.FIFOTYPE)),
    "setuid": _appended(_entry("opt/cloud/bin/root", b"#!/bin/sh\n", mode=0o4755)),
    "bomb": _scripts_bomb,
    "many-entries": _many_entries,
    "lying-size": _lying_size,
    "conflicting-duplicates": _appended(
        _entry("opt/cloud/bin/both", b"a file\n"), _entry("opt/cloud/bin/both", kind=tarfile.DIRTYPE)
    ),
    "file-for-folder": _appended(_entry("opt/cloud/bin/cs", b"a file where modules lie\n")),
    "non-utf8-name": _non_utf8_name,
    "newline-in-name": _appended(_entry("opt/cloud/bin/two\nlines", b"")),
    "runtime-file": _appended(_entry("root/.ssh/authorized_keys", b"ssh-ed25519 AAAA evil\n")),
}
"""Hostile ``cloud-scripts.tgz`` by what is wrong with them."""


# -- agent.zip --------------------------------------------------------------------------------------------------------


def _with_members(*members: tuple[str, bytes, int]) -> bytes:
    """A good agent.zip that goes on with these (name, content, Unix mode)."""
    buffer = io.BytesIO(_good_agent())
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, content, mode in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename = name  # the constructor would clean it
            info.create_system, info.external_attr = 3, mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def _added(*members: tuple[str, bytes, int]) -> Maker:
    return partial(_with_members, *members)


_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_DEFLATED = 8


def _raw_zip(name: bytes, packed: bytes, crc: int, size: int, *, flags: int = 0) -> bytes:
    """A zip of one member whose packed bytes are given."""
    local = _LOCAL.pack(b"PK\3\4", 20, flags, _DEFLATED, 0, 33, crc, len(packed), size, len(name), 0) + name
    central = (
        _CENTRAL.pack(
            b"PK\1\2", 0x314, 20, flags, _DEFLATED, 0, 33, crc, len(packed), size, len(name), 0, 0, 0, 0, 0o644 << 16, 0
        )
        + name
    )
    end = _END.pack(b"PK\5\6", 0, 0, 1, 1, len(central), len(local) + len(packed), 0)
    return local + packed + central + end


def _agent_bomb() -> bytes:
    """One member of zeros."""
    run = bytes(16 * 2**20)
    return _raw_zip(b"zeros.jar", *_repeated(b"", run, BOMB_BYTES // 4 // len(run), b""))


def _many_members() -> bytes:
    """Many names for one empty member, more than the short form of the format can count."""
    local = _LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, 33, 0, 0, 0, 1, 0) + b"x"
    fields = (b"PK\1\2", 0x314, 20, 0, 0, 0, 33, 0, 0, 0, 7, 0, 0, 0, 0, 0o644 << 16, 0)
    record = _CENTRAL.pack(*fields)
    central = b"".join(record + b"%07d" % n for n in range(MANY_MEMBERS))
    start = len(local)
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 0x314, 45, 0, 0, MANY_MEMBERS, MANY_MEMBERS, len(central), start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + len(central), 1)
    end = _END.pack(b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return local + central + end64 + locator + end


def _encrypted() -> bytes:
    return _raw_zip(b"secret.jar", b"\0" * 32, 0, 20, flags=1)


def _zip_non_utf8() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(b"x") + packer.flush()
    return _raw_zip(b"\xff\xfe\x80.jar", packed, zlib.crc32(b"x"), 1, flags=0x800)  # says that it is UTF-8


def _corrupt_member() -> bytes:
    """Good to list, but the packed bytes of a jar are not what the checksum says."""
    content = bytearray(_good_agent())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        info = archive.getinfo(releases.AGENT_JAR)
    middle = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    content[middle] ^= 0xFF
    return bytes(content)


AGENT: dict[str, Maker] = {
    "empty": bytes,
    "truncated": partial(_truncated, _good_agent),
    "garbage": _garbage,
    "corrupt-member": _corrupt_member,
    "parent-path": _added(("../../../etc/cron.d/evil", b"* * * * * root true\n", 0o644)),
    "absolute-path": _added(("/etc/cron.d/evil", b"* * * * * root true\n", 0o644)),
    "symlink-out": _added(("out", b"/etc/shadow", 0o120777)),
    "write-through-symlink": _added(("out", b"../../../../etc", 0o120777), ("out/evil", b"through a link\n", 0o644)),
    "device": _added(("device", b"", 0o020666)),
    "setuid": _added(("root.sh", b"#!/bin/sh\n", 0o104755)),
    "bomb": _agent_bomb,
    "many-members": _many_members,
    "conflicting-duplicates": _added(("both", b"a file\n", 0o100644), ("both/", b"", 0o40755)),
    "file-for-folder": _added(("conf", b"a file where properties lie\n", 0o100644)),
    "encrypted": _encrypted,
    "non-utf8-name": _zip_non_utf8,
}
"""Hostile ``agent.zip`` by what is wrong with them."""
