"""cloudstack-common as it is published: the payload comes out of every kind of package, and a bent one is refused."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import struct
import tracemalloc
from collections.abc import Iterator

import pytest
import rpm_rs
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.patching import made_packages as made

from sysvm.api.reasons import Reason
from sysvm.patching import package_files
from sysvm.patching.archives import Limits
from sysvm.patching.errors import PayloadError
from sysvm.patching.package_files import PackageContents, copy_payload
from sysvm.patching.payload import read_payload

KINDS = [*(("deb", packer) for packer in made.DEB_PACKERS), *(("rpm", packer) for packer in made.RPM_PACKERS)]


def package(kind: str, packer: str, *, with_agent: bool = True) -> bytes:
    return (made.deb if kind == "deb" else made.rpm)(packer, with_agent=with_agent)


def read(packed: bytes) -> tuple[PackageContents, dict[str, bytes]]:
    out: dict[str, io.BytesIO] = {}

    @contextlib.contextmanager
    def sink(name: str) -> Iterator[io.BytesIO]:
        out[name] = io.BytesIO()
        yield out[name]

    found = copy_payload(packed, "the package", sink)
    return found, {name: stream.getvalue() for name, stream in out.items()}


def refusal(packed: bytes) -> PayloadError:
    with pytest.raises(PayloadError) as caught:
        read(packed)
    assert not caught.value.retryable
    return caught.value


@pytest.mark.parametrize(("kind", "packer"), KINDS)
def test_the_payload_comes_out_of_every_kind_of_package_as_it_went_in(kind: str, packer: str) -> None:
    found, files = read(package(kind, packer))
    assert found.package.name == "cloudstack-common"
    assert found.package.version.startswith("4.20.2.0")
    assert found.has_agent
    assert files == {"cloud-scripts.tgz": made.scripts(), "agent.zip": made.agent()}


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_a_release_from_a_package_is_the_release_from_its_files(kind: str) -> None:
    _, files = read(package(kind, "xz"))
    from_package = read_payload(files["cloud-scripts.tgz"], files["agent.zip"])
    assert from_package.revision == read_payload(made.scripts(), made.agent()).revision


@pytest.mark.parametrize(("kind", "packer"), [("deb", "xz"), ("rpm", "zstd")])
def test_a_package_without_an_agent_is_a_payload_for_routers(kind: str, packer: str) -> None:
    found, files = read(package(kind, packer, with_agent=False))
    assert not found.has_agent
    assert list(files) == ["cloud-scripts.tgz"]


@pytest.mark.parametrize("make", [made.deb, made.rpm])
def test_another_package_is_refused_by_its_name(make: object) -> None:
    error = refusal(make(name="cloudstack-agent"))  # type: ignore[operator]
    assert error.reason is Reason.PAYLOAD_UNREADABLE
    assert "cloudstack-agent 4.20.2.0" in str(error)
    assert "cloudstack-common" in str(error)


@pytest.mark.parametrize("make", [made.deb_of, made.rpm_of])
def test_a_package_without_the_folder_is_refused_with_the_path(make: object) -> None:
    error = refusal(make({"etc/a": b"a"}))  # type: ignore[operator]
    assert "usr/share/cloudstack-common/vms/cloud-scripts.tgz" in str(error)
    assert error.reason is Reason.PAYLOAD_UNREADABLE


@pytest.mark.parametrize("make", [made.deb_of, made.rpm_of])
def test_a_link_in_place_of_the_payload_is_refused(make: object) -> None:
    error = refusal(make({"etc/a": b"a"}, links={f"{made.VMS}/cloud-scripts.tgz": "/etc/shadow"}))  # type: ignore[operator]
    assert error.reason is Reason.PAYLOAD_UNSAFE
    assert "a link" in str(error)


def test_links_elsewhere_in_the_package_do_no_harm() -> None:
    links = {"usr/share/aaa": "/etc/shadow", f"{made.VMS}/other": "../../../.."}
    for packed in (made.deb_of(made.files(), links=links), made.rpm_of(made.files(), links=links)):
        assert read(packed)[1]["cloud-scripts.tgz"] == made.scripts()


@pytest.mark.parametrize(
    ("packed", "says"),
    [
        (b"<!DOCTYPE html><html>please log in</html>", "HTML"),
        (b"", "neither a .deb nor an .rpm"),
        (gzip.compress(b"x", mtime=0), "payload.files"),
        (b"PK\x03\x04", "agent.zip"),
        (b"!<thin>\n/etc/shadow", "neither"),
        (b"!<arch>\n", "no Debian package"),
        (b"\xed\xab\xee\xdb" + bytes(300), "where a header must be"),
    ],
)
def test_something_else_than_a_package_is_told_by_what_it_looks_like(packed: bytes, says: str) -> None:
    error = refusal(packed)
    assert error.reason is Reason.PAYLOAD_UNREADABLE
    assert says in str(error)


@pytest.mark.parametrize(("kind", "packer"), KINDS)
def test_a_package_that_was_cut_is_never_taken_for_a_whole_one(kind: str, packer: str) -> None:
    whole = package(kind, packer)
    for share in (0.02, 0.3, 0.9, 0.99):
        try:
            _, files = read(whole[: int(len(whole) * share)])
        except PayloadError as error:
            assert error.reason is Reason.PAYLOAD_UNREADABLE, str(error)
        else:
            # Behind the files there is padding of the outer archive only.
            assert files == {"cloud-scripts.tgz": made.scripts(), "agent.zip": made.agent()}


def rpm_parts(packed: bytes) -> tuple[bytes, bytes]:
    """Headers and payload."""
    at = rpm_rs.PackageMetadata.from_bytes(packed).package_segment_offsets().payload
    return packed[:at], packed[at:]


def test_an_rpm_that_names_no_compressor_or_one_that_is_not_known_says_so() -> None:
    head, payload = rpm_parts(made.rpm("gzip"))
    plain = gzip.decompress(payload)
    assert "names the payload compressor gzip, and its files do not begin" in str(refusal(head + bz2.compress(plain)))
    unnamed = head.replace(struct.pack(">I", 1125), struct.pack(">I", 9125))
    assert "names no payload compressor" in str(refusal(unnamed + bz2.compress(plain)))
    assert read(unnamed + payload)[1]["cloud-scripts.tgz"] == made.scripts(), "how it begins is enough"


def test_a_file_larger_than_a_payload_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        package_files._WANTED, f"{made.VMS}/cloud-scripts.tgz", ("cloud-scripts.tgz", len(made.scripts()) - 1)
    )
    for packed in (made.deb(), made.rpm()):
        assert refusal(packed).reason is Reason.PAYLOAD_TOO_LARGE


def test_a_package_with_more_entries_than_any_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = package_files.PACKAGE_LIMITS
    monkeypatch.setattr(package_files, "PACKAGE_LIMITS", Limits(limits.packed_bytes, limits.unpacked_bytes, 3))
    for packed in (made.deb(), made.rpm()):
        assert "more than 3 entries" in str(refusal(packed))


@pytest.mark.parametrize("packer", ["gzip", "xz", "zstd"])
def test_a_bomb_costs_neither_memory_nor_more_than_the_limit(packer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = package_files.PACKAGE_LIMITS
    monkeypatch.setattr(package_files, "PACKAGE_LIMITS", Limits(limits.packed_bytes, 4 << 20, limits.entries))
    # The window that xz itself asks for, by the level that each kind is packed with.
    windows = {made.deb_of: 8 << 20, made.rpm_of: 64 << 20} if packer == "xz" else {}
    for make in (made.deb_of, made.rpm_of):
        bomb = make({"usr/share/big": bytes(24 << 20)}, packer)
        tracemalloc.start()
        try:
            error = refusal(bomb)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert error.reason is Reason.PAYLOAD_TOO_LARGE, str(error)
        assert peak < windows.get(make, 0) + (12 << 20)


def test_a_window_that_asks_for_gigabytes_is_refused() -> None:
    head, payload = rpm_parts(made.rpm("xz"))
    plain = lzma.decompress(payload)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
    error = refusal(head + lzma.compress(plain, filters=filters))
    assert "cannot be unpacked" in str(error)


def test_a_header_with_a_million_tags_is_refused() -> None:
    lead = b"\xed\xab\xee\xdb" + bytes(92)
    for count, size in ((1 << 31, 8), (8, 1 << 31)):
        error = refusal(lead + b"\x8e\xad\xe8\x01" + bytes(4) + struct.pack(">II", count, size) + bytes(1000))
        assert error.reason is Reason.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize(
    "member",
    [
        b"#1/999999999    0           0     0     100644  5         `\n",  # a name of a gigabyte
        b"//              0           0     0     100644  999999999 `\n",  # a table of names
        b"debian-binary   0           0     0     100644  -60       `\n",  # a way back to itself
        b"/12             0           0     0     100644  4         `\n",
    ],
)
def test_an_outer_archive_that_is_bent_is_refused(member: bytes) -> None:
    assert refusal(b"!<arch>\n" + member + b"2.0\n").reason is Reason.PAYLOAD_UNREADABLE


@pytest.mark.parametrize(("kind", "packer"), KINDS)
@given(data=st.data())
def test_a_damaged_package_is_refused_or_read_never_worse(kind: str, packer: str, data: st.DataObject) -> None:
    packed = bytearray(_small(kind, packer))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(packed) - 1))
        packed[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del packed[data.draw(st.integers(0, len(packed) - 1)) :]
    try:
        read(bytes(packed))
    except PayloadError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 1000


@pytest.mark.parametrize("packer", ["gzip", "v4 gzip"])
@given(data=st.data())
def test_a_damaged_cpio_is_refused_or_read_never_worse(packer: str, data: st.DataObject) -> None:
    """Packed faithfully, so that the damage reaches the reader of files."""
    head, payload = rpm_parts(_small("rpm", packer))
    plain = bytearray(gzip.decompress(payload))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(plain) - 1))
        plain[place] = data.draw(st.sampled_from([*b"0123456789abcdefF", 0, 255]))
    try:
        read(head + gzip.compress(bytes(plain), 1))
    except PayloadError as error:
        assert str(error).isprintable()


def _small(kind: str, packer: str) -> bytes:
    content = {f"{made.VMS}/cloud-scripts.tgz": b"small", "usr/share/zzz": b"last\n"}
    key = (kind, packer)
    if key not in _SMALL:
        _SMALL[key] = (made.deb_of if kind == "deb" else made.rpm_of)(content, packer)
    return _SMALL[key]


_SMALL: dict[tuple[str, str], bytes] = {}
