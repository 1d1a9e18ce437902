"""What is accepted as a payload, what identifies it, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import resource
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.content import hostile, payloads, releases
from sysvm.api.reasons import Reason
from sysvm.patching.archives import read_agent, read_scripts
from sysvm.patching.errors import PayloadError
from sysvm.patching.payload import EARLY_CONFIG, read_payload

UNSAFE = {
    "parent-path",
    "absolute-path",
    "symlink-out",
    "write-through-symlink",
    "hardlink-out",
    "device",
    "fifo",
    "setuid",
    "conflicting-duplicates",
    "file-for-folder",
    "newline-in-name",
    "runtime-file",
}
TOO_LARGE = {"bomb", "many-entries", "many-members", "lying-size"}


def reason_of(name: str) -> set[Reason]:
    if name in UNSAFE:
        return {Reason.PAYLOAD_UNSAFE}
    if name in TOO_LARGE:
        return {Reason.PAYLOAD_TOO_LARGE}
    if name == "non-utf8-name":  # zipfile itself refuses a name that says it is UTF-8 and is not
        return {Reason.PAYLOAD_UNSAFE, Reason.PAYLOAD_UNREADABLE}
    return {Reason.PAYLOAD_UNREADABLE}


def small_scripts(**files: bytes) -> bytes:
    """A payload of two files and these (`_` in a name stands for `/`)."""
    entries = {EARLY_CONFIG: b"md5sum x\n", "opt/cloud/bin/configure.py": b"pass\n"}
    entries |= {name.replace("__", "/"): content for name, content in files.items()}
    return tar(entries)


def tar(entries: dict[str, bytes], mode: int = 0o755, **fields: object) -> bytes:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, content in entries.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue())


def test_the_real_shape_is_read_with_its_duplicates_told() -> None:
    release = releases.new()
    packed = payloads.build_scripts(release)
    payload = read_payload(packed, payloads.build_agent(release))
    assert set(payload.scripts.entries) == set(release.scripts)
    assert len(payload.warnings) == 11
    assert "etc/logrotate.d/cloud is there 2 times" in " ".join(payload.warnings)
    assert not payload.scripts.entries["etc/logrotate.d/cloud"].executable, "the last entry counts"
    assert payload.signature == hashlib.md5(packed, usedforsecurity=False).hexdigest()
    assert payload.agent is not None
    assert payload.agent.entries["_run.sh"].executable
    for entry in payload.scripts.entries.values():
        assert hashlib.sha256(b"".join(payload.content(entry.sha256))).hexdigest() == entry.sha256
    jar = payload.agent.entries[releases.AGENT_JAR]
    assert hashlib.sha256(b"".join(payload.content(jar.sha256))).hexdigest() == jar.sha256
    assert b"".join(payload.content(payload.scripts_sha256)) == packed


def test_two_builds_of_the_same_files_are_one_revision_and_two_signatures() -> None:
    release = releases.new()
    first = read_payload(payloads.build_scripts(release), payloads.build_agent(release))
    second = read_payload(payloads.build_scripts(release, build_seed=7), payloads.build_agent(release, build_seed=7))
    assert first.revision == second.revision
    assert first.signature != second.signature


@pytest.mark.parametrize(
    "changed",
    [small_scripts(opt__cloud__bin__x=b""), tar({EARLY_CONFIG: b"md5sum x\n", "opt/cloud/bin/configure.py": b"no\n"})],
)
def test_another_file_is_another_revision(changed: bytes) -> None:
    assert read_payload(changed, None).revision != read_payload(small_scripts(), None).revision


def test_the_exec_bit_and_the_agent_belong_to_the_revision() -> None:
    files = {EARLY_CONFIG: b"md5sum x\n", "opt/cloud/bin/configure.py": b"pass\n"}
    with_agent = read_payload(tar(files), payloads.build_agent(releases.old()))
    revisions = {read_payload(tar(files, mode), None).revision for mode in (0o755, 0o644)}
    assert len({with_agent.revision, *revisions}) == 3


def test_owner_and_time_do_not_belong_to_the_revision() -> None:
    files = {EARLY_CONFIG: b"md5sum x\n"}
    assert (
        read_payload(tar(files, uid=7, mtime=1, uname="a"), None).revision
        == read_payload(tar(files, uid=0, mtime=2), None).revision
    )


@pytest.mark.parametrize(
    ("text", "algorithm"),
    [
        (b"newmd5=$(md5sum ${f} | awk '{print $1}')\n", "md5"),
        (b"# was md5sum before 4.22\nsum=$(sha512sum $f)\n", "sha512"),
        (b"md5file=/x\nsum=$(sha512sum $f)\n", "sha512"),
    ],
)
def test_the_payload_itself_says_how_its_signature_is_made(text: bytes, algorithm: str) -> None:
    packed = tar({EARLY_CONFIG: text})
    payload = read_payload(packed, None)
    assert payload.signature_algorithm == algorithm
    assert payload.signature == hashlib.new(algorithm, packed).hexdigest()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({EARLY_CONFIG: b"md5sum a; sha512sum b\n"}, "more than one"),
        ({EARLY_CONFIG: b"true\n"}, "no checksum command"),
        ({"opt/cloud/bin/configure.py": b""}, "has no opt/cloud/bin/setup/cloud-early-config"),
        ({"etc/motd": b"hello"}, "not a payload"),
        ({}, "not a payload"),
    ],
)
def test_an_archive_that_is_no_payload_is_refused(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(PayloadError, match=says) as caught:
        read_payload(tar(files), None)
    assert caught.value.reason is Reason.PAYLOAD_UNREADABLE


@pytest.mark.parametrize("name", sorted(hostile.SCRIPTS))
def test_hostile_scripts_are_refused(name: str) -> None:
    content = hostile.SCRIPTS[name]()
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(PayloadError) as caught:
        read_payload(content, None)
    assert caught.value.reason in reason_of(name), str(caught.value)
    assert str(caught.value).isprintable()
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "kilobytes"


@pytest.mark.parametrize("name", sorted(hostile.AGENT))
def test_hostile_agents_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    path.write_bytes(hostile.AGENT[name]())
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(PayloadError) as caught:
        read_payload(small_scripts(), path)
    assert caught.value.reason in reason_of(name), str(caught.value)
    assert str(caught.value).isprintable()
    assert time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "kilobytes"


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (small_scripts() + b"more", "behind the end of its gzip stream"),
        (gzip.compress(gzip.decompress(small_scripts()) + b"x" * 512), "behind its end"),
        (gzip.compress(gzip.decompress(small_scripts()).rstrip(b"\0").ljust(2048, b"\0")), "mark that ends"),
        (small_scripts(usr__bin__python3=b""), "usr/bin/python3 lies outside"),
        (small_scripts(opt=b"a file"), "opt is "),
        (small_scripts(var__lib__x=b""), "var/lib/x lies outside"),
        (small_scripts(etc__shadow=b""), "belongs to the running VM"),
    ],
)
def test_what_tar_would_forgive_is_refused(archive: bytes, says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        read_payload(archive, None)


def test_something_behind_the_end_of_agent_zip_is_refused() -> None:
    with pytest.raises(PayloadError, match="behind its end"):
        read_payload(small_scripts(), payloads.build_agent(releases.old()) + b"tail")


def test_a_missing_file_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(PayloadError, match=r"nothing\.tgz"):
        read_payload(tmp_path / "nothing.tgz", None)


_NAMES = st.one_of(
    st.text(alphabet="abc./\n\x00é\udcff~", min_size=1, max_size=12),
    st.sampled_from(["opt/cloud/bin/a", "etc/a", "./opt/cloud/b", "opt/cloud", "var/www/html/a/b"]),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(_NAMES, st.binary(max_size=40), st.sampled_from([b"0", b"5", b"1", b"2", b"3", b"6", b"7", b"S"])),
        max_size=6,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]),
)
def test_whatever_a_tar_names_only_plain_relative_files_come_out(
    members: list[tuple[str, bytes, bytes]], form: int
) -> None:
    plain = io.BytesIO()
    try:
        with tarfile.open(fileobj=plain, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as archive:
            for name, content, kind in members:
                info = tarfile.TarInfo(name)
                info.type, info.size, info.linkname = kind, len(content), "opt/x"
                archive.addfile(info, io.BytesIO(content))
    except ValueError:
        return
    try:
        listing, contents = read_scripts(gzip.compress(plain.getvalue()))
    except PayloadError as error:
        assert str(error).isprintable()
        return
    for entry in listing.files:
        assert not entry.path.startswith("/")
        assert not {"", ".", ".."} & set(entry.path.split("/"))
        assert entry.path.split("/")[0] in ("etc", "opt", "root", "var")
        assert len(contents[entry.sha256]) == entry.size


@given(st.data())
def test_a_damaged_tar_is_refused_or_read_never_worse(data: st.DataObject) -> None:
    plain = bytearray(gzip.decompress(small_scripts(etc__a=b"some text")))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(plain) - 1))
        plain[place] = data.draw(st.integers(0, 255))
    try:
        read_scripts(gzip.compress(bytes(plain)))
    except PayloadError as error:
        assert str(error).isprintable()


def _small_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("_run.sh", b"#!/bin/sh\n" * 9)
        archive.writestr("conf/agent.properties", b"a=b\n")
    return buffer.getvalue()


@given(st.data())
def test_a_damaged_zip_is_refused_or_read_never_worse(data: st.DataObject) -> None:
    packed = bytearray(_small_zip())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(packed) - 1))
        packed[place] = data.draw(st.integers(0, 255))
    try:
        listing = read_agent(bytes(packed))
    except PayloadError as error:
        assert str(error).isprintable()
        return
    assert all(not {"", ".", ".."} & set(entry.path.split("/")) for entry in listing.files)


def test_an_agent_that_goes_away_is_told_when_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    path.write_bytes(payloads.build_agent(releases.old()))
    payload = read_payload(small_scripts(), path)
    path.unlink()
    assert payload.agent is not None
    with pytest.raises(PayloadError, match="cannot be read any more"):
        b"".join(payload.content(payload.agent.entries["_run.sh"].sha256))
