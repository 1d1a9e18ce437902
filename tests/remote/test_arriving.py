"""Contents that a hypervisor host sends beside the session: whole and as ordered, or not there at all."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from tests.remote.test_session import Client
from tests.remote.vm import BODIES, NEW_FILES, NEW_TGZ, NEW_TREE, VM, make_order, send, sha256

from sysvm.patching import protocol
from sysvm.patching.remote import arriving
from sysvm.patching.remote.failures import Failure
from sysvm.patching.remote.wire import MAX_BYTES


def item(content: bytes, encoding: str = "identity") -> dict:
    return {
        "sha256": sha256(content),
        "size": len(content),
        "encoding": encoding,
        "wire_size": len(wire(content, encoding)),
    }


def wire(content: bytes, encoding: str = "identity") -> bytes:
    if encoding == "zlib":
        return zlib.compress(content)
    if encoding == "deflate":
        packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        return packer.compress(content) + packer.flush()
    return content


@contextmanager
def begun(vm: VM, order: dict | None = None) -> Iterator[tuple]:
    session = vm.session()
    answer = session.do_begin(1, {"order": order or make_order()})
    yield session, answer["missing"]
    session.let_go()


def expect(session, items: list[dict], archive: str | None = None) -> None:
    session.do_expect(2, {"items": items, "archive": archive})


def host_sends(vm: VM, content: bytes, *, closes: bool = True) -> int:
    reading, writing = os.pipe()

    def write() -> None:
        left = content
        while left:
            left = left[os.write(writing, left) :]
        if closes:
            os.close(writing)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return arriving.arrive(vm.store(), "op-1", reading)
    finally:
        os.close(reading)
        thread.join()


def still_missing(session) -> list[str]:
    return session.do_stage(3, {"items": []})["missing"]


def test_what_a_host_sends_need_not_be_sent_again_and_the_patch_is_the_same(vm: VM) -> None:
    with begun(vm) as (session, missing):
        encodings = ("identity", "zlib", "deflate")
        items = [item(BODIES[digest], encodings[number % 3]) for number, digest in enumerate(missing)]
        expect(session, items)
        sent = b"".join(wire(BODIES[one["sha256"]], one["encoding"]) for one in items)
        assert host_sends(vm, sent) == 0
        assert still_missing(session) == []
        session.do_build(4, {})
    assert vm.run("op-1")["phase"] == "Committed"
    assert (vm.root / "opt/cloud/bin/configure.py").read_bytes() == NEW_TREE["bin/configure.py"]


def test_files_are_taken_out_of_the_archive_that_a_host_sends(vm: VM) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in {**{f"opt/cloud/{k}": v for k, v in NEW_TREE.items()}, **NEW_FILES}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    tgz = gzip.compress(packed.getvalue())
    order = {
        **make_order(),
        "payload": {"path": "/usr/share/cloud/cloud-scripts.tgz", "sha256": sha256(tgz), "size": len(tgz)},
    }
    with begun(vm, order) as (session, missing):
        assert len(missing) > 3
        expect(session, [item(tgz)], sha256(tgz))
        assert host_sends(vm, tgz) == 0
        assert still_missing(session) == []
        session.do_build(4, {})
    assert vm.run("op-1")["phase"] == "Committed"


def test_what_arrives_damaged_is_missing_and_the_rest_is_there(vm: VM) -> None:
    with begun(vm) as (session, missing):
        items = [item(BODIES[digest]) for digest in missing]
        expect(session, items)
        bodies = [BODIES[digest] for digest in missing]
        bodies[1] = bytes(len(bodies[1]))
        assert host_sends(vm, b"".join(bodies)) == 1
        assert still_missing(session) == [missing[1]]
        send(session, still_missing(session))
        session.do_build(4, {})
    assert vm.run("op-1")["phase"] == "Committed"


@pytest.mark.parametrize("sent", [0, 3])
def test_a_host_that_stops_in_the_middle_costs_only_what_it_did_not_send(vm: VM, sent: int) -> None:
    with begun(vm) as (session, missing):
        expect(session, [item(BODIES[digest]) for digest in missing])
        whole = b"".join(BODIES[digest] for digest in missing[:sent])
        with pytest.raises(OSError, match="stopped sending"):
            host_sends(vm, whole + b"x")
        assert still_missing(session) == missing[sent:]
        send(session, still_missing(session))
        session.do_build(4, {})
    assert vm.run("op-1")["phase"] == "Committed"


def test_a_host_that_falls_silent_is_given_up(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "SILENT_SECONDS", 0.2)
    with begun(vm) as (session, missing):
        expect(session, [item(BODIES[missing[0]])])
        with pytest.raises(OSError, match="stopped sending"):
            host_sends(vm, b"x", closes=False)
        assert still_missing(session) == missing


def test_a_content_that_unpacks_without_end_is_refused(vm: VM) -> None:
    with begun(vm) as (session, missing):
        bomb = zlib.compress(bytes(50 << 20))
        ordered = {**item(BODIES[missing[0]], "zlib"), "wire_size": len(bomb)}
        expect(session, [ordered])
        assert host_sends(vm, bomb) == 1
        assert still_missing(session) == missing


@pytest.mark.parametrize("beyond", [1, 100, 240])
@pytest.mark.parametrize("encoding", ["zlib", "deflate"])
def test_a_content_that_ends_in_a_repetition_arrives_whole(encoding: str, beyond: int) -> None:
    """All of it is read when the last piece is full, and the rest of the repetition is still in zlib."""
    content = bytes(MAX_BYTES + beyond)
    checked = arriving.Checked([wire(content, encoding)], item(content, encoding))
    assert b"".join(checked) == content
    checked.verify()


def test_what_follows_the_end_of_a_content_is_not_collected() -> None:
    content = b"content"
    packed = wire(content, "deflate")

    def frames() -> Iterator[bytes]:
        yield packed
        for _ in range(200):
            yield bytes(MAX_BYTES)

    tracemalloc.start()
    try:
        checked = arriving.Checked(frames(), item(content, "deflate"))
        assert b"".join(checked) == content
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 * MAX_BYTES


def test_what_was_not_ordered_is_not_expected(vm: VM) -> None:
    with begun(vm) as (session, missing):
        for wrong in (
            item(b"anything"),
            {**item(BODIES[missing[0]]), "size": 7},
            item(BODIES[missing[0]]) | {"encoding": "xz"},
        ):
            with pytest.raises(Failure, match="was not ordered"):
                expect(session, [wrong])
        with pytest.raises(Failure, match="was not ordered"):
            expect(session, [], "0" * 64)


def test_nothing_arrives_for_an_operation_that_expects_nothing(vm: VM) -> None:
    with begun(vm), pytest.raises(Failure, match="nothing is expected"):
        host_sends(vm, b"")
    with begun(vm) as (session, missing):
        expect(session, [item(BODIES[missing[0]])])
    with pytest.raises(Failure, match="nothing is expected"):
        host_sends(vm, b"")


def test_what_is_built_is_not_built_while_contents_arrive(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arriving, "GONE_SECONDS", 0.3)
    with begun(vm) as (session, missing):
        expect(session, [item(BODIES[missing[0]])])
        reading, writing = os.pipe()
        thread = threading.Thread(target=_arrive_quietly, args=(vm, reading))
        thread.start()
        os.write(writing, b"x")
        time.sleep(0.2)
        with pytest.raises(Failure, match="still arriving"):
            session.do_build(4, {})
        os.close(writing)
        thread.join()
        os.close(reading)
        send(session, missing)
        session.do_build(5, {})


def _arrive_quietly(vm: VM, reading: int) -> None:
    with pytest.raises(OSError, match="stopped sending"):
        arriving.arrive(vm.store(), "op-1", reading)


def test_as_a_process_of_its_own_beside_a_session_over_the_wire(vm: VM) -> None:
    client = Client(vm)
    begun = client.get(protocol.BeginResult, "begin", {"order": make_order()})
    items = [item(BODIES[digest], "deflate") for digest in begun["missing"]]
    client.get(dict, "expect", {"items": items, "archive": None})
    program = vm.root / "var/lib/sysvm/program/current/sysvm.pyz"

    done = subprocess.run(
        [sys.executable, "-I", "-B", program, "--root", vm.root, "arrive", "op-1"],
        input=b"".join(wire(BODIES[digest], "deflate") for digest in begun["missing"]),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert client.get(protocol.StageResult, "stage", {"items": []})["missing"] == []
    client.get(protocol.BuildResult, "build", {})
    report = client.get(protocol.RunResult, "run", {"id": "op-1"})["report"]
    assert report["phase"] == "Committed", report
    client.close()
    assert (vm.root / "usr/share/cloud/cloud-scripts.tgz").read_bytes() == NEW_TGZ
