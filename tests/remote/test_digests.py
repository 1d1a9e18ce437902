"""What a scan may believe without reading, and what makes it read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path

import pytest
from tests.remote.vm import VM, make_order

from sysvm.patching.remote import digests, files, look
from sysvm.patching.remote.digests import BELIEVED_SECONDS, NAME, Known, load

NOW = time.time() + 3600
DAY = 24 * 3600
ARGS = {"paths": ["/root/func.sh"], "roots": ["/opt/cloud"], "exclude": []}


@pytest.fixture
def home(vm: VM) -> Path:
    """The folder that the first patch makes."""
    folder = vm.root / "var/lib/sysvm"
    folder.mkdir(mode=0o700)
    return folder


def scan(vm: VM, *, now: float = NOW, draw: float = 0.5) -> tuple[dict[str, str | None], int]:
    """Digests by path, and how many bytes were read for them."""
    known = Known(str(vm.root / "var/lib/sysvm"), now, lambda: draw)
    found = look.digest(vm.host(), ARGS["paths"], ARGS["roots"], ARGS["exclude"], known)
    return {fact["path"]: fact["sha256"] for fact in found["facts"]}, found["read_bytes"]


def truth(vm: VM) -> dict[str, str | None]:
    found = look.digest(vm.host(), ARGS["paths"], ARGS["roots"], ARGS["exclude"], digests.Read())
    return {fact["path"]: fact["sha256"] for fact in found["facts"]}


def test_a_second_scan_reads_nothing_and_says_the_same(vm, home):
    first, read = scan(vm)
    assert read == sum(len((vm.root / path[1:]).read_bytes()) for path, digest in first.items() if digest)
    before = (home / NAME).stat()
    assert scan(vm, now=NOW + 60) == (first, 0)
    assert first == truth(vm)
    assert (home / NAME).stat().st_ino == before.st_ino, "written although nothing was new"
    assert before.st_mode & 0o777 == 0o600


def test_a_vm_that_no_patch_has_touched_is_not_written_to(vm):
    before = sorted(vm.root.rglob("*"))
    assert scan(vm)[1] > 0
    assert scan(vm)[1] > 0
    assert sorted(vm.root.rglob("*")) == before


@pytest.mark.parametrize("kept_times", [True, False])
def test_an_edit_of_the_same_length_is_seen_even_if_the_times_were_put_back(vm, home, kept_times):
    scan(vm)
    path = vm.root / "opt/cloud/bin/configure.py"
    times = path.stat()
    path.write_bytes(path.read_bytes().replace(b"old", b"bad"))
    if kept_times:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    found, read = scan(vm)
    assert found == truth(vm)
    assert read == times.st_size


def test_another_file_in_its_place_is_seen(vm, home):
    scan(vm)
    path = vm.root / "root/func.sh"
    times, other = path.stat(), vm.root / "root/other"
    other.write_bytes(b"x" * times.st_size)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(path)
    assert scan(vm)[0] == truth(vm)


def test_a_file_that_was_just_changed_is_read_again_by_the_next_scan(vm, home):
    """Two edits within one tick of the clock leave the same times."""
    now = time.time()
    path = vm.root / "root/func.sh"
    path.write_bytes(path.read_bytes())
    scan(vm, now=now)
    assert "/root/func.sh" not in load(str(home / NAME))


def test_no_digest_is_believed_for_ever(vm, home):
    """Bits that rot change no time: each file is read again within the time that was drawn for it."""
    first, all_bytes = scan(vm, draw=0.999)
    path = str(home / NAME)
    entries = load(path)
    entries["/root/func.sh"][5] = "0" * 64
    body = json.dumps(entries, separators=(",", ":"), sort_keys=True).encode()
    (home / NAME).write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert scan(vm, now=NOW + 13 * DAY)[0]["/root/func.sh"] == "0" * 64, "the entry was not believed at all"
    assert scan(vm, now=NOW + BELIEVED_SECONDS) == (first, all_bytes)


def test_a_share_of_the_files_is_read_again_every_day(vm, home):
    drawn = iter(number / 100 for number in range(1, 100))
    known = Known(str(home), NOW, lambda: next(drawn) % 1)
    look.digest(vm.host(), ARGS["paths"], ARGS["roots"], ARGS["exclude"], known)
    until = sorted(entry[7] for entry in load(str(home / NAME)).values())
    assert len(set(until)) == len(until)
    assert until[0] > NOW
    assert until[-1] <= NOW + BELIEVED_SECONDS


def test_a_clock_that_was_put_back_is_not_believed(vm, home):
    first, all_bytes = scan(vm)
    assert scan(vm, now=NOW - 60) == (first, all_bytes)


@pytest.mark.parametrize("damage", ["cut", "bit", "garbage", "no-list", "short-entry", "empty", "huge"])
def test_a_damaged_memory_is_not_used_and_is_replaced(vm, home, damage):
    first, all_bytes = scan(vm)
    content = (home / NAME).read_bytes()
    bodies = {
        "cut": content[: len(content) // 2],
        "bit": content[:-20] + bytes([content[-20] ^ 1]) + content[-19:],
        "garbage": os.urandom(500),
        "no-list": signed(b"[1, 2]"),
        "short-entry": signed(b'{"/root/func.sh": [1, 2, 3]}'),
        "empty": b"",
        "huge": b"\0" * (digests.MAX_BYTES + 1),
    }
    (home / NAME).write_bytes(bodies[damage])
    assert scan(vm) == (first, all_bytes)
    assert scan(vm) == (first, 0)


def signed(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
@pytest.mark.parametrize("planted", ["owner", "mode", "link", "pipe"])
def test_a_memory_that_somebody_else_could_have_written_is_not_used(vm, home, planted):
    scan(vm)
    path = home / NAME
    if planted == "owner":
        os.chown(path, 1000, 1000)
    elif planted == "mode":
        path.chmod(0o620)
    elif planted == "link":
        path.rename(vm.root / "tmp/digests")
        path.symlink_to(vm.root / "tmp/digests")
    else:
        path.unlink()
        os.mkfifo(path)
    assert load(str(path)) == {}
    assert scan(vm)[1] > 0
    assert scan(vm)[1] == 0
    assert path.is_file()
    assert not path.is_symlink()


def test_a_disk_without_space_costs_the_memory_and_not_the_scan(vm, home):
    files.FAULTS.arm("disk-full:1")
    first, _ = scan(vm)
    files.FAULTS.mode = None
    assert first == truth(vm)
    assert list(home.iterdir()) == []


def test_two_scans_at_once_do_not_write_into_each_other(vm, home):
    holder = os.open(home, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        assert scan(vm)[0] == truth(vm)
        assert list(home.iterdir()) == []
    finally:
        os.close(holder)
    scan(vm)
    assert [path.name for path in home.iterdir()] == [NAME]


def test_it_holds_nothing_but_what_the_last_scan_saw(vm, home):
    scan(vm)
    (vm.root / "root/func.sh").unlink()
    scan(vm)
    assert "/root/func.sh" not in load(str(home / NAME))


def test_a_patch_reads_every_byte_whatever_is_remembered(vm):
    """The order's own check of a file is not fooled by what a scan believes, and after it the scan knows the new."""
    order = make_order()
    vm.prepare(order)
    assert vm.run("op-1")["phase"] == "Committed"
    session = vm.session()
    args = {**ARGS, "known": True}
    first = session.do_digest(1, args)
    assert first["facts"] == look.digest(vm.host(), **ARGS, digests=digests.Read())["facts"]
    full = session.do_digest(2, ARGS)
    assert full["read_bytes"] == sum(fact["size"] for fact in full["facts"] if fact["kind"] == "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may take its priority back")
def test_a_scan_runs_behind_everything_else(vm, monkeypatch):
    seen: list[tuple[int, bool]] = []
    disk: list[bool] = []
    monkeypatch.setattr(files, "set_disk_priority", disk.append)

    def checksum(path: str, algorithm: str) -> str:
        seen.append((os.getpriority(os.PRIO_PROCESS, 0), disk[-1]))
        return "0" * 64

    before = os.getpriority(os.PRIO_PROCESS, 0)
    monkeypatch.setattr(files, "checksum", checksum)
    vm.session().do_digest(1, {**ARGS, "known": True})
    assert set(seen) == {(19, True)}
    assert disk == [True, False]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
