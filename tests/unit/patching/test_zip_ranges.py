"""A range of a zip is its file, packed: whoever has the same zip can send it as it lies there."""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from pathlib import Path

import pytest

from lab.content import payloads, releases
from sysvm.patching.host_sending import HostSending
from sysvm.patching.payload import read_payload
from sysvm.patching.results import HostFile, HostFiles
from sysvm.patching.zip_ranges import zip_ranges


def made(*, stored: bool = False, comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name in ("agent.jar", "./conf/agent.properties", "empty"):
            info = zipfile.ZipInfo(name)
            info.compress_type = archive.compression
            info.extra = b"\x99\x99\x04\x00abcd"
            archive.writestr(info, name.encode() * (0 if name == "empty" else 500))
        archive.comment = comment
    return buffer.getvalue()


@pytest.mark.parametrize("stored", [True, False])
def test_the_bytes_of_a_range_are_the_file(tmp_path: Path, *, stored: bool) -> None:
    content = made(stored=stored, comment=b"more at the end")
    (tmp_path / "agent.zip").write_bytes(content)
    for source in (content, tmp_path / "agent.zip"):
        found = zip_ranges(source)
        assert found.sha256 == hashlib.sha256(content).hexdigest()
        assert set(found.members) == {"agent.jar", "conf/agent.properties", "empty"}
        each = found.members["agent.jar"]
        packed = content[each.offset : each.offset + each.length]
        assert (packed if stored else zlib.decompress(packed, -zlib.MAX_WBITS)) == b"agent.jar" * 500
        assert each.encoding == ("identity" if stored else "deflate")


def test_what_is_packed_in_another_way_is_left_to_the_operator() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("agent.jar", b"x" * 1000)
    assert not zip_ranges(buffer.getvalue()).members


# What a host is asked for

NEW = releases.new()
SCRIPTS, AGENT = payloads.build_scripts(NEW), payloads.build_agent(NEW)


def held(scripts: bytes = SCRIPTS, agent: bytes | None = AGENT) -> HostFiles:
    def file(name: str, content: bytes) -> HostFile:
        return HostFile(f"/vms/{name}", len(content), hashlib.sha256(content).hexdigest())

    return HostFiles(file("cloud-scripts.tgz", scripts), file("agent.zip", agent) if agent is not None else None, {})


async def test_a_host_with_the_release_is_asked_for_the_archive_and_the_members_and_for_no_script() -> None:
    payload = read_payload(SCRIPTS, AGENT)
    assert payload.agent is not None
    jar = payload.agent.entries[releases.AGENT_JAR].sha256
    script = payload.scripts.entries["opt/cloud/bin/configure.py"].sha256
    files = held()
    parcel = await HostSending().parcel(
        payload, files, files.scripts.sha256, [jar, script, files.scripts.sha256, "merged"]
    )
    assert [item["sha256"] for item in parcel.items] == [files.scripts.sha256, jar]
    assert parcel.archive == files.scripts.sha256
    (first, second) = parcel.lines.splitlines()
    assert first == f"1 {len(SCRIPTS)} /vms/cloud-scripts.tgz"
    start, length, path = second.split()
    packed = AGENT[int(start) - 1 : int(start) - 1 + int(length)]
    assert path == "/vms/agent.zip"
    assert hashlib.sha256(zlib.decompress(packed, -zlib.MAX_WBITS)).hexdigest() == jar


@pytest.mark.parametrize("agent", [None, payloads.build_agent(NEW, build_seed=3)])
async def test_a_host_with_another_agent_zip_is_asked_for_nothing_of_it(agent: bytes | None) -> None:
    payload = read_payload(SCRIPTS, AGENT)
    assert payload.agent is not None
    jar = payload.agent.entries[releases.AGENT_JAR].sha256
    parcel = await HostSending().parcel(payload, held(agent=agent), "", [jar])
    assert (parcel.items, parcel.size, parcel.archive) == ((), 0, None)
