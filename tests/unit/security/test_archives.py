"""Archives that were made to break the reader: refused with a sentence, in bounded time and memory."""

from __future__ import annotations

import contextlib
import gzip
import io
import resource
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typing_extensions import Buffer

from fuzz import promises
from sysvm.api.reasons import Reason
from sysvm.patching.archives import AgentReader, read_agent, read_scripts
from sysvm.patching.errors import PayloadError

SECONDS = 60.0
"""Of processor time, on a machine that does much else; what is refused late takes hours."""
MEMORY_KIB = 300 << 10
BLOCK = 512


@pytest.fixture
def bounded() -> Iterator[None]:
    """Neither much time nor much memory, whatever the input."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    yield
    assert time.process_time() - started < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY_KIB


# ------------------------------------------------------------------------------------------ tar, block by block


def octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def base256(number: int, width: int) -> bytes:
    lead = b"\xff" if number < 0 else b"\x80"
    return lead + (number % (1 << (8 * (width - 1)))).to_bytes(width - 1, "big")


def header(
    name: bytes = b"etc/x",
    *,
    kind: bytes = b"0",
    size: bytes = octal(0, 12),
    mode: int = 0o644,
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
) -> bytes:
    """One tar header as written, nothing judged: the checksum is right."""
    fields = name[:100].ljust(100, b"\0") + octal(mode, 8) + octal(0, 8) + octal(0, 8) + size + octal(0, 12)
    rest = (
        kind + link[:100].ljust(100, b"\0") + magic + bytes(32 + 32 + 16) + prefix[:155].ljust(155, b"\0") + bytes(12)
    )
    total = sum(fields) + sum(rest) + 8 * 32
    return fields + b"%06o\0 " % total + rest


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % BLOCK)


def member(content: bytes = b"x", **fields: object) -> bytes:
    return header(size=octal(len(content), 12), **fields) + padded(content)  # type: ignore[arg-type]


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return member(records, name=b"PaxHeaders/x", kind=kind)


def record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


END = bytes(2 * BLOCK)
ANY = (Reason.PAYLOAD_UNSAFE, Reason.PAYLOAD_UNREADABLE, Reason.PAYLOAD_TOO_LARGE)


def refused(plain: bytes, *reasons: Reason) -> str:
    with pytest.raises(PayloadError) as caught:
        read_scripts(gzip.compress(plain, 1))
    assert caught.value.reason in (reasons or (Reason.PAYLOAD_UNSAFE, Reason.PAYLOAD_UNREADABLE)), caught.value
    return str(caught.value)


def test_the_blocks_of_these_tests_are_a_tar_that_is_read() -> None:
    listing, contents = read_scripts(gzip.compress(pax(record(b"path", b"etc/long")) + member(b"abc") + END))
    assert [entry.path for entry in listing.files] == ["etc/long"]
    assert list(contents.values()) == [b"abc"]


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_an_extended_header_of_megabytes_is_refused_before_it_is_searched(kind: bytes) -> None:
    """The search for its parts takes the square of its length in some releases of Python (CVE-2024-6232)."""
    assert "header" in refused(pax(b"1" * (12 << 20), kind) + member() + END, Reason.PAYLOAD_TOO_LARGE)


@pytest.mark.usefixtures("bounded")
def test_words_for_all_members_are_few() -> None:
    """Each member gets a copy of them, so that many of them are many times many."""
    words = [b"".join(record(b"%d-%d" % (turn, number), b"") for number in range(300)) for turn in range(40)]
    plain = b"".join(pax(some, b"g") + member() for some in words)
    refused(plain + END, Reason.PAYLOAD_TOO_LARGE)


@pytest.mark.usefixtures("bounded")
def test_words_of_single_members_are_neither_kept_nor_many() -> None:
    words = b"".join(record(b"k%d" % number, b"") for number in range(280))
    some, many = (b"".join(pax(words) + member(name=b"etc/%d" % at) for at in range(count)) for count in (250, 4_000))
    listing, _ = read_scripts(gzip.compress(some + END, 1))
    assert len(listing.files) == 250
    refused(many + END, Reason.PAYLOAD_TOO_LARGE)


def test_a_payload_with_an_extended_header_for_each_of_its_entries_is_read() -> None:
    words = record(b"mtime", b"1.5") + record(b"LIBARCHIVE.creationtime", b"1.5")
    plain = b"".join(pax(words) + member(b"", name=b"etc/%d" % number) for number in range(5_000))
    listing, _ = read_scripts(gzip.compress(plain + END, 1))
    assert len(listing.files) == 5_000


@pytest.mark.usefixtures("bounded")
def test_digits_without_end_in_many_headers_cost_little() -> None:
    digits = pax(record(b"a", b"1" * 3_900))
    plain = b"".join(digits + member(name=b"etc/%d" % number) for number in range(2_000))
    refused(plain + END, Reason.PAYLOAD_TOO_LARGE)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_headers_upon_headers_end(kind: bytes) -> None:
    refused(member(b"8 a=bcd\n" if kind in b"xg" else b"etc/x\0", kind=kind) * 5_000 + member() + END)


@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S", b"5", b"7", b"Z", b"M", b"D"])
@pytest.mark.parametrize("size", [base256(-512, 12), base256(1 << 62, 12), b"77777777777\0", b"9" * 12])
def test_a_size_that_cannot_be(kind: bytes, size: bytes) -> None:
    refused(member() + header(kind=kind, size=size) + member() + END, *ANY)


@pytest.mark.parametrize("size", [b"-512", b"99999999999999999999", b"nan", b"1" * 3000, b""])
def test_a_size_in_an_extended_header_that_cannot_be(size: bytes) -> None:
    plain = pax(record(b"size", size)) + member() + END
    try:
        listing, _ = read_scripts(gzip.compress(plain))
    except PayloadError:
        return
    assert [entry.size for entry in listing.files] == [1]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"4", b"6", b"S", b"Z"])
def test_nothing_but_files_and_folders(kind: bytes) -> None:
    refused(member() + header(b"etc/y", kind=kind, link=b"etc/x") + END)


@pytest.mark.parametrize(
    "words",
    [
        record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0"),
        record(b"GNU.sparse.map", b"0,1,2") + record(b"GNU.sparse.size", b"9"),
        record(b"GNU.sparse.size", b"-9") + record(b"GNU.sparse.numblocks", b"1"),
        record(b"GNU.sparse.map", b"1" * 2000),
    ],
)
def test_a_sparse_file_of_any_version(words: bytes) -> None:
    refused(pax(words) + member(b"1\n0\n1\n") + END, *ANY)


@pytest.mark.parametrize(
    "path", [b"../etc/x", b"/etc/x", b"etc/../../x", b"usr/bin/x", b"etc/a\nb", b"etc/\xff", b"tmp"]
)
def test_a_path_in_an_extended_header_is_judged_like_any_other(path: bytes) -> None:
    refused(pax(record(b"path", path)) + member() + END)
    refused(member(path + b"\0", kind=b"L") + member() + END)


# ------------------------------------------------------------------------------------------ zip, byte by byte


def zip_of(files: dict[str, bytes], **info: object) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            for key, value in info.items():
                setattr(entry, key, value)
            archive.writestr(entry, content)
    return packed.getvalue()


def central(packed: bytes, number: int = 0) -> int:
    """Where a record of the central directory begins."""
    at = struct.unpack_from("<L", packed, len(packed) - 6)[0]
    for _ in range(number):
        lengths = struct.unpack_from("<HHH", packed, at + 28)
        at += 46 + sum(lengths)
    return int(at)


def changed(packed: bytes, at: int, form: str, value: int) -> bytes:
    bent = bytearray(packed)
    struct.pack_into(form, bent, at, value)
    return bytes(bent)


TWO = zip_of({"_run.sh": b"one" * 50, "conf/b": b"two" * 50})


def sent(packed: bytes, path: str) -> bytes:
    with contextlib.closing(AgentReader(packed)) as reader:
        return b"".join(reader.read(path))


def refused_zip(packed: bytes) -> str:
    with pytest.raises(PayloadError) as caught:
        read_agent(packed)
    return str(caught.value)


def test_members_that_share_their_bytes_are_refused() -> None:
    """One stream under many names is how a small archive becomes a large tree."""
    first = zip_of({"a": b"x" * 1000, "b": b"x" * 1000})
    bent = changed(first, central(first, 1) + 42, "<L", 0)  # b begins where a begins
    name = bent.replace(b"b", b"a")  # the local name is compared, so both are called the same
    assert "same bytes" in refused_zip(name)


def test_a_member_that_begins_behind_the_end() -> None:
    refused_zip(changed(TWO, central(TWO, 1) + 42, "<L", len(TWO) - 10))
    refused_zip(changed(TWO, central(TWO, 1) + 42, "<L", 0xFFFFFFF0))


@pytest.mark.parametrize("flag", [0x1, 0x20, 0x40, 0x2000])
def test_an_encrypted_or_patched_member(flag: int) -> None:
    bent = changed(changed(TWO, central(TWO) + 8, "<H", flag), 6, "<H", flag)
    if flag == 0x2000:  # masked names: the rest is what it was
        promises.agent(bent)
    else:
        refused_zip(bent)


def test_a_wrong_checksum_size_or_method() -> None:
    refused_zip(changed(TWO, central(TWO) + 16, "<L", 1))
    refused_zip(changed(TWO, central(TWO) + 24, "<L", 149))
    refused_zip(changed(TWO, central(TWO) + 20, "<L", 3))
    for method in (6, 9, 12, 14, 93):
        refused_zip(changed(TWO, central(TWO) + 10, "<H", method))


def test_a_name_that_ends_in_the_middle() -> None:
    """zipfile reads `a` where another program may read `a\\0/../b`."""
    two = zip_of({"_run.sh": b"1", "conf/Xtail": b"2"})
    assert "control" in refused_zip(two.replace(b"X", b"\0"))


def test_a_member_with_a_data_descriptor_is_read_and_can_be_sent() -> None:
    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.sent = b""

        def writable(self) -> bool:
            return True

        def write(self, content: Buffer) -> int:
            self.sent += bytes(content)
            return len(bytes(content))

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_run.sh", b"#!/bin/sh\n")
    assert [entry.size for entry in read_agent(pipe.sent).files] == [10]
    assert sent(pipe.sent, "_run.sh") == b"#!/bin/sh\n"


def test_a_member_whose_name_begins_with_a_dot_can_be_sent() -> None:
    packed = zip_of({"_run.sh": b"first", "./_run.sh": b"the last entry counts", "./conf/a": b"a"})
    listing = read_agent(packed)
    assert [entry.path for entry in listing.files] == ["_run.sh", "conf/a"]
    assert sent(packed, "_run.sh") == b"the last entry counts"
    assert sent(packed, "conf/a") == b"a"


@pytest.mark.usefixtures("bounded")
def test_a_directory_of_a_million_members_is_refused_before_it_is_read() -> None:
    packed = zip_of({"_run.sh": b""})
    at = central(packed)
    one = packed[at : len(packed) - 22]
    many = packed[:at] + one * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 65535, 65535, len(one) * 1_000_000, at, 0)
    assert "entries" in refused_zip(many + end)


# ------------------------------------------------------------------------------------------ at random

names = st.sampled_from(
    [
        b"etc/x",
        b"etc/x/y",
        b"opt/cloud/bin/a",
        b"root/.ssh/k",
        b"./etc/x",
        b"etc//x",
        b"../x",
        b"/etc/x",
        b"etc",
        b"",
        b".",
    ]
) | st.binary(max_size=120)
kinds = st.sampled_from(
    [b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"X", b"Z"]
)
SPARSE = (b"map", b"size", b"name", b"major", b"minor", b"numblocks", b"realsize")
sizes = st.none() | st.sampled_from([0, 1, 511, 512, 513, -1, -512, 1 << 33, 1 << 70])
words = st.lists(
    st.builds(
        record,
        st.sampled_from(b"path size linkpath mtime hdrcharset".split() + [b"GNU.sparse." + word for word in SPARSE])
        | st.binary(max_size=8),
        names | st.sampled_from([b"1", b"0", b"-1", b"1,2", b"BINARY", b"nan"]),
    ),
    max_size=4,
).map(b"".join)


@st.composite
def tar_member(draw: st.DrawFn) -> bytes:
    if draw(st.booleans()):
        extra = pax(draw(words), draw(st.sampled_from([b"x", b"g", b"X"])))
    else:
        extra = member(draw(names) + b"\0", kind=draw(st.sampled_from([b"L", b"K"]))) if draw(st.booleans()) else b""
    content = draw(st.binary(max_size=600))
    claimed = draw(sizes)
    size = octal(len(content), 12) if claimed is None else base256(claimed, 12)
    return (
        extra
        + header(
            draw(names),
            kind=draw(kinds),
            size=size,
            mode=draw(st.sampled_from([0o644, 0o755, 0o4755, 0o7777])),
            link=draw(names),
            magic=draw(st.sampled_from([b"ustar\x0000", b"ustar  \0", bytes(8)])),
            prefix=draw(st.just(b"") | names),
        )
        + padded(content)
    )


@settings(deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(tar_member(), max_size=6).map(b"".join), st.sampled_from([END, b"", bytes(BLOCK), END + b"tail"]))
def test_any_tar_is_listed_or_refused_with_a_sentence(plain: bytes, end: bytes) -> None:
    promises.scripts_of_tar(plain + end)


@settings(deadline=2000)
@given(st.lists(st.binary(max_size=300), max_size=4), st.binary(max_size=20), st.integers(0, 400))
def test_any_gzip_is_read_or_refused_with_a_sentence(parts: list[bytes], tail: bytes, cut: int) -> None:
    packed = b"".join(gzip.compress(part) for part in parts) + tail
    promises.scripts(packed)
    promises.scripts(packed[:cut])


@st.composite
def zips(draw: st.DrawFn) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", strict_timestamps=False) as archive:
        for name in draw(
            st.lists(st.sampled_from(["_run.sh", "a", "a/b", "./a", "../a", "/a", "a\\b", "ä", "a/"]), max_size=5)
        ):
            info = zipfile.ZipInfo(name)
            info.compress_type = draw(st.sampled_from([0, 8, 12, 14]))
            info.external_attr = draw(st.sampled_from([0, 0o100644, 0o120777, 0o104755, 0o060600, 0o040755])) << 16
            info.extra = draw(
                st.sampled_from([b"", b"\1\0\x10\0" + bytes(16), b"\1\0\xff\xff", b"\x75\x70\5\0\1abcd", b"\0"])
            )
            archive.writestr(info, draw(st.binary(max_size=200) | st.just(bytes(5000))))
        archive.comment = draw(st.binary(max_size=30))
    bent = bytearray(packed.getvalue())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(bent) - 1))
        bent[at : at + 1] = draw(st.binary(max_size=4))
    return bytes(bent)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@settings(deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(zips())
@example(zip_of({"_run.sh": b"x"}) + b"PK\5\6" + bytes(18))
def test_any_zip_is_listed_or_refused_with_a_sentence(packed: bytes) -> None:
    promises.agent(packed)


def test_a_promise_that_is_broken_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The property itself is proven able to fail."""

    def anything(*_: object) -> object:
        raise zlib.error("not ours")

    monkeypatch.setattr("sysvm.patching.archives.read_agent", anything)
    with pytest.raises(zlib.error):
        promises.agent(b"")
    check: Callable[[str], str] = lambda path: path  # noqa: E731
    monkeypatch.setattr("sysvm.patching.archives.Tally.judge_path", lambda self, name: check(name))
    with pytest.raises(AssertionError):
        promises.scripts_of_tar(member(name=b"etc/../x") + END)
    assert tarfile.BLOCKSIZE == BLOCK
