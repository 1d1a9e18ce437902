"""Somebody else patches the VM in the middle of ours: nothing is put over theirs, the files say how it ended."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import threading

import pytest
from tests.remote import systemd
from tests.remote.test_refusals import fake_process
from tests.remote.vm import (
    BODIES,
    NEW_FILES,
    NEW_SIGNATURE,
    NEW_TREE,
    OLD_SIGNATURE,
    OLD_TGZ,
    OLD_TREE,
    SIGNATURE,
    TGZ,
    make_order,
    sha256,
    write,
)

from sysvm.patching.remote import superseded, worker


def archive(tree: dict[str, bytes], files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as made:
        for name, content in [(f"opt/cloud/{path}", body) for path, body in tree.items()] + list(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o755
            made.addfile(member, io.BytesIO(content))
    return packed.getvalue()


OURS = archive(NEW_TREE, NEW_FILES)
THEIR_TREE = {**OLD_TREE, "bin/configure.py": b"import theirs\n", "bin/cs/CsHelper.py": b"their helper\n"}
THEIRS = archive(THEIR_TREE, {})


def order_with_archive() -> dict:
    BODIES[sha256(OURS)] = OURS
    return make_order(
        payload={"path": "/" + TGZ, "sha256": sha256(OURS), "size": len(OURS)}, signature=hashlib.md5(OURS).hexdigest()
    )


def overtaken(vm, order, act, at=("systemctl", "reload")) -> dict:
    """Carry `order` out; `act` happens once, in the middle of it."""
    vm.prepare(order)
    host = vm.host()
    run = host.run
    done: list[bool] = []

    def interfere(argv, *rest, **named):
        if tuple(argv[:2]) == at and not done:
            done.append(True)
            act()
        return run(argv, *rest, **named)

    host.run = interfere
    worker.run(host, vm.store(), order["id"])
    return vm.report(order["id"])


def lay(vm, tree: dict[str, bytes], tgz: bytes, *, signed: bool = True) -> None:
    for name, content in tree.items():
        write(vm.root / "opt/cloud" / name, content, 0o755, age=0)
    write(vm.root / TGZ, tgz, age=0)
    if signed:
        write(vm.root / SIGNATURE, hashlib.md5(tgz).hexdigest().encode() + b"\n", age=0)


def test_a_whole_patch_of_theirs_stays(vm):
    report = overtaken(vm, order_with_archive(), lambda: lay(vm, THEIR_TREE, THEIRS))
    assert (report["phase"], report["reason"]) == ("Abandoned", "SupersededExternally"), report["message"]
    assert (vm.root / "opt/cloud/bin/configure.py").read_bytes() == b"import theirs\n"
    assert vm.signature() == hashlib.md5(THEIRS).hexdigest()
    assert (vm.root / TGZ).read_bytes() == THEIRS
    assert vm.systemd()["cloud"] == "active"


def test_the_same_release_by_their_hand_is_the_release(vm):
    both = archive(NEW_TREE, {"root/marker": b"their build of the same files"})
    report = overtaken(vm, order_with_archive(), lambda: lay(vm, {}, both))
    assert (report["phase"], report["reason"]) == ("Committed", "SupersededExternally"), report["message"]
    assert vm.signature() == hashlib.md5(both).hexdigest()


def test_their_patch_that_died_half_way_is_mended_forward(vm):
    order = order_with_archive()

    def half() -> None:
        write(vm.root / "opt/cloud/bin/configure.py", b"import theirs\n", 0o755, age=0)
        write(vm.root / TGZ, THEIRS, age=0)

    report = overtaken(vm, order, half)
    assert (report["phase"], report["reason"]) == ("Committed", "SupersededExternally"), report["message"]
    for name, content in NEW_TREE.items():
        assert (vm.root / "opt/cloud" / name).read_bytes() == content
    assert vm.signature() == order["signature"]
    assert (vm.root / TGZ).read_bytes() == OURS


def test_what_cannot_be_mended_is_inconsistent(vm):
    # The archive of this order is not one: nothing can be taken out of it.
    def half() -> None:
        write(vm.root / "opt/cloud/bin/configure.py", b"import theirs\n", 0o755, age=0)
        write(vm.root / TGZ, THEIRS, age=0)

    report = overtaken(vm, make_order(), half)
    assert report["phase"] == "Inconsistent"
    assert set(vm.signature()) == {"0"}


def test_their_process_is_waited_for(vm, monkeypatch):
    monkeypatch.setattr(superseded, "STAGED_SECONDS", 0.1)

    def begin() -> None:
        fake_process(vm, 77, "/bin/bash", "/var/cache/cloud/patch-sysvms.sh")

        def end() -> None:
            lay(vm, THEIR_TREE, THEIRS)
            shutil.rmtree(vm.root / "proc/77")

        threading.Timer(0.6, end).start()

    report = overtaken(vm, order_with_archive(), begin)
    assert (report["phase"], report["reason"]) == ("Abandoned", "SupersededExternally"), report["message"]


def test_the_old_release_put_back_by_them_is_the_old_one(vm):
    order = make_order(files=[], folders=[], remove=[])

    def revert() -> None:
        live, old = vm.root / "opt/cloud", vm.root / "opt/.sysvm-op-1/trees/0/cloud"
        live.rename(vm.root / "opt/.away")
        shutil.copytree(old, live, symlinks=True)
        (vm.root / SIGNATURE).write_text(OLD_SIGNATURE + "\n")

    report = overtaken(vm, order, revert)
    assert (report["phase"], report["reason"]) == ("RolledBack", "VerifyFailed"), report["message"]
    assert (vm.root / "opt/cloud/bin/configure.py").read_bytes() == OLD_TREE["bin/configure.py"]
    assert vm.signature() == OLD_SIGNATURE


def test_their_patch_between_two_moves_of_ours_is_not_taken_for_theirs(vm):
    """Every file is as ordered in the end, but the signature and the archive speak of another release."""
    order = order_with_archive()

    def sign() -> None:
        write(vm.root / TGZ, THEIRS, age=0)
        write(vm.root / SIGNATURE, hashlib.md5(THEIRS).hexdigest().encode() + b"\n", age=0)

    report = overtaken(vm, order, sign)
    assert (report["phase"], report["reason"]) == ("Committed", "SupersededExternally"), report["message"]
    assert vm.signature() == order["signature"]
    assert (vm.root / TGZ).read_bytes() == OURS


def test_units_run_with_what_was_mended_before_the_last_word(vm):
    """haproxy was not acted on yet when the others broke off: it runs with their file until it is told of ours."""

    def half() -> None:
        write(vm.root / "etc/haproxy/haproxy.cfg", b"good theirs\n", age=0)
        write(vm.root / TGZ, THEIRS, age=0)
        systemd.systemctl(str(vm.root), ["restart", "haproxy"])

    report = overtaken(vm, order_with_archive(), half, at=("systemctl", "daemon-reload"))
    assert (report["phase"], report["reason"]) == ("Committed", "SupersededExternally"), report["message"]
    assert (
        (vm.root / "etc/haproxy/haproxy.cfg").read_text() == systemd.runs_with(str(vm.root), "haproxy") == "good new\n"
    )


@pytest.mark.parametrize("fresh", ["cloud-scripts.tgz", "patch-sysvms.sh"])
def test_a_copy_that_is_never_carried_out_only_delays_the_way_back(vm, monkeypatch, fresh):
    monkeypatch.setattr(superseded, "STAGED_SECONDS", 0.2)
    report = overtaken(
        vm, make_order(), lambda: write(vm.root / "var/cache/cloud" / fresh, b"x", age=0), ("systemctl", "start")
    )
    assert (report["phase"], report["reason"]) == ("RolledBack", "OtherActor"), report["message"]
    assert vm.signature() == OLD_SIGNATURE != NEW_SIGNATURE
    assert (vm.root / TGZ).read_bytes() == OLD_TGZ
