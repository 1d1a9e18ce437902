"""A backup before somebody else changes the VM: made or not made, and whatever they did is undone."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.remote import systemd
from tests.remote.judging import count_changes, killed_at, recover_by_next_session
from tests.remote.vm import NEW_FILES, NEW_TGZ, NEW_TREE, SIGNATURE, TGZ, VM, make_order, service, sha256, write

from sysvm.patching.remote import files, worker
from sysvm.patching.remote.failures import Failure

AGENT = "usr/local/cloud/systemvm"
AGENT_FILES = {
    "agent.jar": b"an old jar\n",
    "conf/agent.properties": b"guid=written by the server\n",
    "certs/deep/realhostip.keystore": b"old keys\n",
}
HAPROXY = "etc/haproxy/haproxy.cfg"
RUNTIME = {"/" + HAPROXY: sha256(NEW_FILES[HAPROXY])}
PATHS = sorted("/" + path for path in NEW_FILES if not path.startswith("lib/") and path != HAPROXY)
TREES = [{"path": "/opt/cloud", "copied": ["*"]}, {"path": "/" + AGENT, "copied": ["conf/*", "certs/*"]}]


def order(name: str = "op-9", **more: object) -> dict:
    services = [service("haproxy", "restart"), service("cloud", "stop-start"), service("dnsmasq", "restart")]
    made = make_order(name, services=services, **more)
    return {**made, "trees": [], "files": [], "remove": [], "payload": None}


def keep(vm: VM, name: str = "op-9", *, paths: list[str] = PATHS, trees: list[dict] = TREES, **more: object) -> dict:
    session = vm.session()
    return session.do_keep(1, {"order": order(name, **more), "paths": paths, "runtime": RUNTIME, "trees": trees})[
        "report"
    ]


def back(vm: VM, name: str = "op-9") -> dict:
    host = vm.host()
    worker.back(host, vm.store().__class__(host), name)
    return vm.report(name)


def replace_as_tar_does(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    write(path, content, age=0)


def patch_as_cloudstack_does(vm: VM, *, until: str = "") -> None:
    """In the order of CloudStack 4.21 patch-sysvms.sh; `until`: where it was cut."""
    root = vm.root
    write(root / "var/cache/cloud/agent.zip", b"zipped", age=0)
    write(root / "var/cache/cloud/cloud-scripts.tgz", NEW_TGZ, age=0)
    write(root / "var/cache/cloud/patch-sysvms.sh", b"#!/bin/bash\n", age=0)
    shutil.rmtree(root / AGENT, ignore_errors=True)
    if until == "agent gone":
        return
    write(root / AGENT / "agent.jar", b"a new jar\n", age=0)
    write(root / AGENT / "conf/agent.properties", b"guid=GUID\n", age=0)
    for path, content in NEW_TREE.items():
        replace_as_tar_does(root / "opt/cloud" / path, content)
    if until == "half unpacked":
        return
    for path, content in NEW_FILES.items():
        replace_as_tar_does(root / path, content)
    (root / SIGNATURE).write_text("f" * 32 + "\n")
    systemd.install(str(root), "haproxy", active=False)
    for name in ("cloud-scripts.tgz", "agent.zip", "patch-sysvms.sh"):
        (root / "var/cache/cloud" / name).unlink()
    replace_as_tar_does(root / TGZ, NEW_TGZ)


@pytest.fixture
def vm(vm: VM) -> VM:
    for name, content in AGENT_FILES.items():
        write(vm.root / AGENT / name, content)
    # The other spelling of a path through a link is the archive's own affair.
    vm.all_paths = [*PATHS, "/usr/lib/systemd/system/cloud.service"]  # type: ignore[attr-defined]
    return vm


def kept(vm: VM, **more: Any) -> dict:
    return keep(vm, paths=vm.all_paths, **more)  # type: ignore[attr-defined]


def assert_as_before(vm: VM, before: dict, services: dict[str, str], where: str = "") -> None:
    now = vm.state()
    differing = [key for key in now.keys() | before.keys() if now.get(key) != before.get(key)]
    ours = ("sysvm-recover", ".sysvm-", "names of one file")
    assert not [key for key in differing if not any(word in key for word in ours)], (where, differing)
    assert vm.systemd() == services, where


def test_a_backup_changes_nothing_and_is_told_as_one(vm: VM) -> None:
    before, services = vm.state(), vm.systemd()
    report = kept(vm)
    assert (report["phase"], report["id"]) == ("Committed", "op-9")
    assert_as_before(vm, before, services)
    assert [operation.id for operation, _ in vm.store().backups()] == ["op-9"]


@pytest.mark.parametrize("until", ["", "agent gone", "half unpacked"])
def test_whatever_a_patch_of_others_did_is_undone(vm: VM, until: str) -> None:
    before, services = vm.state(), vm.systemd()
    kept(vm)
    patch_as_cloudstack_does(vm, until=until)
    report = back(vm)
    assert report["phase"] == "RolledBack", report
    assert_as_before(vm, before, services)
    acted = {action["unit"] for action in report["services"] if action["restoring"]}
    assert acted == {"haproxy", "cloud"}, "dnsmasq did not run before"


def test_writing_in_a_file_does_not_reach_its_backup(vm: VM) -> None:
    before, services = vm.state(), vm.systemd()
    kept(vm)
    for name in ("root/func.sh", "opt/cloud/bin/configure.py", AGENT + "/conf/agent.properties", SIGNATURE):
        with open(vm.root / name, "ab") as file:
            file.write(b"more\n")
    assert back(vm)["phase"] == "RolledBack"
    assert_as_before(vm, before, services)


def test_what_the_server_wrote_after_their_patch_stays(vm: VM) -> None:
    kept(vm)
    patch_as_cloudstack_does(vm)
    (vm.root / HAPROXY).write_bytes(b"good rules of a tenant, newer than the backup\n")
    assert back(vm)["phase"] == "RolledBack"
    assert (vm.root / HAPROXY).read_bytes() == b"good rules of a tenant, newer than the backup\n"
    assert vm.systemd()["haproxy"] == "active"


def test_a_tree_that_others_made_goes(vm: VM) -> None:
    shutil.rmtree(vm.root / AGENT)
    kept(vm)
    patch_as_cloudstack_does(vm)
    assert back(vm)["phase"] == "RolledBack"
    assert not (vm.root / AGENT).exists()


def test_asked_twice_it_is_made_once_and_the_first_counts(vm: VM) -> None:
    before, services = vm.state(), vm.systemd()
    kept(vm)
    patch_as_cloudstack_does(vm)
    assert kept(vm)["phase"] == "Committed"
    assert back(vm)["phase"] == "RolledBack"
    assert_as_before(vm, before, services)


def test_it_is_taken_back_once(vm: VM) -> None:
    kept(vm)
    back(vm)
    with pytest.raises(Failure, match="taken back already"):
        back(vm)


def test_a_backup_that_is_gone_is_told_before_anything_changes(vm: VM) -> None:
    kept(vm)
    patch_as_cloudstack_does(vm)
    stage = next((vm.root / "opt").glob(".sysvm-op-9"))
    (stage / "trees/0/cloud/bin/configure.py").write_bytes(b"not what it was")
    there = vm.state()
    with pytest.raises(Failure, match="its backup is gone"):
        back(vm)
    assert vm.state() == there


def test_without_space_for_the_others_nothing_is_begun(vm: VM) -> None:
    before = vm.state()
    with pytest.raises(Failure) as caught:
        kept(vm, reserve_bytes=1 << 60)
    assert caught.value.reason == "DiskFull"
    assert vm.state() == before
    assert not vm.store().operations()


@pytest.mark.parametrize(
    "change",
    [
        {"paths": ["/etc/../etc/passwd"]},
        {"paths": ["/opt/cloud/bin/x"]},
        {"paths": ["/etc"]},
        {"runtime": {"/etc/x": "no digest"}},
        {"runtime": {"/etc/../x": "0" * 64}},
        {"trees": [{"path": "/", "copied": []}]},
        {"trees": [{"path": "/opt/cloud", "copied": [7]}]},
    ],
)
def test_an_order_that_is_none_is_refused(vm: VM, change: dict) -> None:
    with pytest.raises(Failure, match="refused"):
        vm.session().do_keep(1, {"order": order(), "paths": PATHS, "runtime": RUNTIME, "trees": TREES, **change})


def test_a_backup_of_a_leader_that_was_replaced_is_refused(vm: VM) -> None:
    kept(vm, epoch=7)
    with pytest.raises(Failure) as caught:
        keep(vm, "op-10", epoch=6)
    assert caught.value.reason == "EpochRefused"


def test_killed_at_any_change_it_is_made_or_not_and_the_vm_is_as_it_was(vm: VM) -> None:
    before, services = vm.state(), vm.systemd()
    vm.keep()
    names = count_changes(vm, lambda: kept(vm))
    assert len(names) > 60
    made = []
    for number in range(1, len(names) + 1):
        vm.reset()
        mode = ("kill-before", "kill-after")[number % 2]
        where = f"{mode} {number} {names[number - 1]}"
        assert killed_at(lambda: kept(vm), mode, number) == 137, where
        recover_by_next_session(vm) if number % 3 else vm.recover()
        assert_as_before(vm, before, services, where)
        made.append(bool(vm.store().backups()))
        if number % 7 == 0:
            assert kept(vm)["phase"] == "Committed", where
            patch_as_cloudstack_does(vm)
            assert back(vm)["phase"] == "RolledBack", where
            assert_as_before(vm, before, services, where)
    assert made == sorted(made), "once made, it stays"
    assert {True, False} == set(made)


@pytest.mark.parametrize("exchanges", [True, False])
def test_killed_at_any_change_on_the_way_back_the_vm_is_what_it_was(
    vm: VM, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:
        monkeypatch.setattr(files, "exchange", _refuse)
    before, services = vm.state(), vm.systemd()
    kept(vm)
    patch_as_cloudstack_does(vm)
    vm.keep()
    names = count_changes(vm, lambda: back(vm))
    assert vm.report("op-9")["phase"] == "RolledBack"
    for number in range(1, len(names) + 1):
        vm.reset()
        mode = ("kill-before", "kill-after")[number // 2 % 2]
        where = f"{mode} {number} {names[number - 1]}"
        assert killed_at(lambda: back(vm), mode, number) == 137, where
        vm.recover() if number % 3 == 0 else recover_by_next_session(vm)
        report = vm.report("op-9")
        if report["phase"] == "Committed":
            assert back(vm)["phase"] == "RolledBack", where
        else:
            assert report["phase"] == "RolledBack", (where, report)
        # A boot starts the units itself, later.
        at_boot = number % 3 == 0 and report["phase"] == "RolledBack"
        assert_as_before(vm, before, vm.systemd() if at_boot else services, where)


def _refuse(one: str, other: str) -> None:
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), one, None, other)


def test_on_a_full_disk_the_way_back_is_open(vm: VM) -> None:
    before, services = vm.state(), vm.systemd()
    kept(vm)
    patch_as_cloudstack_does(vm)
    files.FAULTS.arm("disk-full:1")
    assert back(vm)["phase"] == "RolledBack"
    files.FAULTS.mode = None
    assert_as_before(vm, before, services)


def test_a_disk_that_fills_up_meanwhile_leaves_no_half_backup(vm: VM) -> None:
    before, services = vm.state(), vm.systemd()
    vm.keep()
    names = count_changes(vm, lambda: kept(vm))
    for number in range(1, len(names) + 1, 5):
        vm.reset()
        files.FAULTS.arm(f"disk-full:{number}")
        try:
            kept(vm)
        except (Failure, OSError):
            pass
        files.FAULTS.mode = None
        recover_by_next_session(vm)
        assert_as_before(vm, before, services, names[number - 1])
        for _, report in vm.store().operations():
            assert report["phase"] in ("Abandoned", "Committed")
