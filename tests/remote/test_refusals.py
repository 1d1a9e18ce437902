"""What the program refuses, before anything of the VM is changed."""

import time
import zlib

import pytest
from tests.remote.vm import NEW_TREE, entry, make_order, send, sha256, with_file, write

from sysvm.patching.remote import fence, journal, worker
from sysvm.patching.remote.failures import Failure


@pytest.fixture
def refused(vm):
    def check(order, reason, words="", *, retryable=None):
        before = vm.state()
        with pytest.raises(Failure) as caught:
            vm.prepare(order)
        assert caught.value.reason == reason, caught.value.message
        assert words in caught.value.message
        if retryable is not None:
            assert caught.value.retryable is retryable
        assert vm.state() == before
        return caught.value

    return check


def test_an_older_leader(vm, refused):
    vm.prepare(make_order("op-1", epoch=7))
    vm.run("op-1")
    refused(make_order("op-2", epoch=6), "EpochRefused", "7", retryable=False)
    session = vm.session()
    assert session.do_begin(1, {"order": make_order("op-3", epoch=7)})["state"] == "staging"
    session.let_go()


def test_an_id_that_has_ended_is_answered_with_its_end_and_not_done_again(vm):
    vm.prepare(make_order())
    vm.run("op-1")
    state = vm.state()
    begun = vm.session().do_begin(1, {"order": make_order()})
    assert begun["state"] == "finished"
    assert begun["report"]["phase"] == "Committed"
    assert vm.state() == state


def test_an_order_whose_leader_was_replaced_before_it_ran(vm):
    before = vm.texts()
    vm.prepare(make_order(epoch=3))
    vm.store().raise_epoch(4)
    report = vm.run("op-1")
    assert (report["phase"], report["reason"]) == ("Abandoned", "EpochRefused")
    assert vm.texts() == before


def test_a_lock_that_is_held_names_its_holder(vm, refused):
    other = vm.store()
    other.take_lock("op-9")
    refused(make_order(), "LockHeld", "op-9")
    other.release_lock()
    vm.prepare(make_order())


def test_the_same_order_finds_itself_running(vm):
    vm.prepare(make_order())
    worker = vm.store()
    worker.take_lock("op-1")
    begun = vm.session().do_begin(1, {"order": make_order()})
    assert begun["state"] == "running"
    assert begun["report"]["alive"]
    worker.release_lock()


def test_another_type_of_vm(refused):
    refused(make_order(vm_type="secstorage"), "TypeMismatch", retryable=False)


def test_a_machine_that_is_no_system_vm(vm, refused):
    (vm.root / "var/cache/cloud/cmdline").unlink()
    refused(make_order(), "NotASystemVM")


def test_a_vm_that_still_boots(vm, refused):
    (vm.root / "var/cache/cloud/boot_up_done").unlink()
    refused(make_order(), "VMBusy", "boot_up_done", retryable=True)


def test_too_little_space_inodes_or_memory(refused):
    assert "MiB" in refused(make_order(reserve_bytes=1 << 50), "DiskFull").message
    refused(make_order(reserve_inodes=1 << 50), "DiskFull", "inodes")
    refused(make_order(min_memory_bytes=1 << 40), "MemoryLow")


@pytest.mark.parametrize("name", ["cloud-scripts.tgz", "agent.zip", "patch-sysvms.sh"])
def test_cloudstacks_own_patch_is_under_way(vm, refused, name):
    write(vm.root / "var/cache/cloud" / name, b"x", age=10)
    refused(make_order(), "OtherActor", name)
    # Stale for more than half an hour: told by a probe, no reason to refuse.
    write(vm.root / "var/cache/cloud" / name, b"x", age=3600)
    vm.prepare(make_order())


def tree(file, *remove):
    return {"path": "/opt/cloud", "files": [file], "folders": [], "remove": list(remove), "runtime": []}


def fake_process(vm, pid, *argv):
    write(vm.root / f"proc/{pid}/cmdline", b"\0".join(word.encode() for word in argv) + b"\0")
    write(vm.root / f"proc/{pid}/stat", f"{pid} (sh) S {' '.join(['1'] * 18)} 490000 0 0".encode())


def test_a_process_of_cloudstacks_patch(vm, refused):
    fake_process(vm, 77, "/bin/bash", "/var/cache/cloud/patch-sysvms.sh")
    refused(make_order(), "OtherActor", "patch-sysvms.sh")


def test_a_command_of_cloudstack_that_does_not_end(vm, monkeypatch):
    monkeypatch.setattr(fence, "QUIET_SECONDS", 0.1)
    vm.prepare(make_order())
    before = vm.texts()
    fake_process(vm, 78, "python3", "/opt/cloud/bin/configure.py", "cmd_line.json")
    report = vm.run("op-1")
    assert (report["phase"], report["reason"]) == ("Abandoned", "VMBusy")
    assert vm.texts() == before


@pytest.mark.parametrize("path", ["opt/cloud/bin/configure.py", "root/func.sh", "etc/logrotate.d/removed"])
def test_a_file_that_changed_between_build_and_switch(vm, path):
    order = with_file(make_order(), "/root/func.sh", b"newer\n")
    vm.prepare(order)
    (vm.root / path).write_bytes(b"edited by somebody\n")
    report = vm.run("op-1")
    assert (report["phase"], report["reason"]) == ("Abandoned", "OtherActor")
    assert path in report["message"]
    assert (vm.root / path).read_bytes() == b"edited by somebody\n"


def test_a_file_that_came_into_a_tree_between_build_and_switch(vm):
    vm.prepare(make_order())
    write(vm.root / "opt/cloud/bin/came.py", b"x")
    assert vm.run("op-1")["reason"] == "OtherActor"
    assert (vm.root / "opt/cloud/bin/came.py").exists()


def test_a_merged_file_whose_base_changed(vm, refused):
    order = make_order()
    order["files"][0]["expect"] = sha256(b"another text")
    refused(order, "OtherActor", "haproxy.cfg")


def test_content_that_arrives_damaged_or_was_not_ordered(vm):
    session = vm.session()
    begun = session.do_begin(1, {"order": make_order()})
    digest = begun["missing"][0]
    item = {"sha256": digest, "size": 5, "encoding": "identity", "wire_size": 5}
    session.wire.frames = [b"wrong"]
    with pytest.raises(Failure, match="not ordered"):
        session.do_stage(2, {"items": [item]})
    size = session.content.size(digest)
    session.wire.frames = [b"x" * size]
    with pytest.raises(Failure, match="damaged"):
        session.do_stage(3, {"items": [{**item, "size": size, "wire_size": size}]})
    assert digest in session.content.missing()
    send(session, begun["missing"])
    assert session.content.missing() == []
    session.let_go()


def test_compressed_content_is_unpacked_and_bounded(vm):
    bomb = b"\0" * 5_000_000
    small = NEW_TREE["bin/configure.py"]
    session = vm.session()
    begun = session.do_begin(1, {"order": make_order()})
    assert sha256(small) in begun["missing"]
    for body in (bomb, small):
        packed = zlib.compress(body)
        session.wire.frames = [packed]
        item = {"sha256": sha256(small), "size": len(small), "encoding": "zlib", "wire_size": len(packed)}
        if body is bomb:
            with pytest.raises(Failure, match="longer than it says"):
                session.do_stage(2, {"items": [item]})
        else:
            assert sha256(small) not in session.do_stage(3, {"items": [item]})["missing"]
    session.let_go()


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../etc"},
        {"epoch": -1},
        {"remove": ["/etc/../root"]},
        {"remove": ["/etc"]},
        {"remove": ["/var/lib/sysvm/lock"]},
        {"remove": ["/opt/cloud/bin"]},
        {"files": [entry("/var/cache/cloud/cloud-scripts-signature", b"x")]},
        {"files": [entry("relative", b"x")]},
        {"files": [entry("/root/a", b"x"), entry("/root/a", b"y")]},
        {"files": [entry("/root/a", b"x", sha256="zz")]},
        {"files": [entry("/root/a", b"x", link="/b")]},
        {"signature": "0" * 32},
        {"signature": "short"},
        {"services": [{"unit": "-x", "action": "restart", "validators": [], "serving": [], "timeout_seconds": 1}]},
        {"services": [{"unit": "x", "action": "mask", "validators": [], "serving": [], "timeout_seconds": 1}]},
        {"trees": [tree(entry("../x", b"x"))]},
        {"trees": [tree(entry("a/b", b"x"), "a")]},
    ],
    ids=str,
)
def test_an_order_that_makes_no_sense(refused, change):
    refused(make_order(**change), "ProtocolError", retryable=False)


def test_a_folder_in_the_place_of_a_file(vm, refused):
    (vm.root / "root/func.sh").unlink()
    (vm.root / "root/func.sh").mkdir()
    before = vm.texts()
    with pytest.raises(Failure) as caught:
        vm.prepare(make_order())
    assert caught.value.reason == "BuildFailed"
    assert vm.texts() == before


def test_a_link_is_replaced_and_never_written_through(vm):
    write(vm.root / "root/elsewhere", b"not ours\n")
    (vm.root / "etc/haproxy/haproxy.cfg").unlink()
    (vm.root / "etc/haproxy/haproxy.cfg").symlink_to("/root/elsewhere")
    before = vm.state()
    vm.prepare(make_order())
    assert vm.run("op-1")["phase"] == "Committed"
    assert (vm.root / "root/elsewhere").read_bytes() == b"not ours\n"
    assert (vm.root / "etc/haproxy/haproxy.cfg").read_bytes() == b"good new\n"
    worker.back(vm.host(), vm.store(), "op-1")
    assert vm.state() == before


# ------------------------------------------------------------------------------------ journal, staging


def test_a_torn_last_record_is_as_if_it_had_not_been_written(vm):
    vm.prepare(make_order())
    path = vm.root / "var/lib/sysvm/operations/op-1/journal"
    content = path.read_bytes()
    records, used = journal.decode(content)
    line = journal.encode({"kind": "phase", "phase": "Committed", "at": time.time()})
    for cut in (1, 9, len(line) // 2, len(line) - 1):
        path.write_bytes(content[:used] + line[:cut] + b"\0" * 5000)
        assert journal.read(str(path)) == records
    path.write_bytes(content[:used] + line.replace(b"Committed", b"Committex") + b"\0" * 5000)
    assert journal.phase_of(journal.read(str(path))) == "Built"


def test_a_journal_that_is_full_still_has_room_for_going_back(vm, monkeypatch):
    monkeypatch.setattr(journal, "SIZE", 7000)
    monkeypatch.setattr(journal, "RESERVE", 4500)
    before = vm.texts()
    vm.prepare(make_order())
    report = vm.run("op-1")
    assert (report["phase"], report["reason"]) == ("RolledBack", "DiskFull"), report["message"]
    assert vm.texts() == before


def test_staged_content_is_resumed_by_the_next_session(vm):
    session = vm.session()
    begun = session.do_begin(1, {"order": make_order()})
    send(session, begun["missing"][:3])
    session.let_go()
    again = vm.session()
    resumed = again.do_begin(1, {"order": make_order()})
    assert resumed["state"] == "staging"
    assert sorted(resumed["missing"]) == sorted(begun["missing"][3:])
    send(again, resumed["missing"])
    again.do_build(2, {})
    again.let_go()
    assert vm.run("op-1")["phase"] == "Committed"


def test_another_operations_staging_is_given_up_and_given_back(vm):
    before = vm.state()
    session = vm.session()
    session.do_begin(1, {"order": make_order("op-1")})
    session.let_go()
    second = vm.session()
    begun = second.do_begin(1, {"order": make_order("op-2")})
    assert begun["recovered"]["phase"] == "Abandoned"
    assert not (vm.root / "opt/.sysvm-op-1").exists()
    second.do_abandon(2, {"id": "op-2"})
    assert vm.state() == before
