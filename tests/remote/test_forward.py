"""A live patch that goes well, and what it leaves behind."""

import os
import stat

from tests.remote import systemd
from tests.remote.vm import (
    NEW_FILES,
    NEW_SIGNATURE,
    NEW_TGZ,
    NEW_TREE,
    OLD_TREE,
    TGZ,
    UNITS,
    entry,
    make_order,
    with_file,
)

from sysvm.patching.remote import files, worker


def test_a_committed_patch_has_every_file_of_the_order_and_the_new_signature(vm):
    vm.prepare(make_order())
    report = vm.run("op-1")

    assert (report["phase"], report["reason"]) == ("Committed", None), report["message"]
    for name, content in NEW_TREE.items():
        assert (vm.root / "opt/cloud" / name).read_bytes() == content
    for name, content in NEW_FILES.items():
        assert (vm.root / name).read_bytes() == content
    assert not (vm.root / "opt/cloud/bin/gone.py").exists()
    assert not (vm.root / "opt/cloud/bin/old_module").exists()
    assert not (vm.root / "etc/logrotate.d/removed").exists()
    assert (vm.root / "usr/lib/systemd/system/cloud.service").read_bytes() == b"[Service]\nnew\n"
    assert (vm.root / TGZ).read_bytes() == NEW_TGZ
    assert vm.signature() == NEW_SIGNATURE
    assert [step["name"] for step in report["steps"]] == [
        "Stage", "Build", "Fence", "Switch", "Services", "Verify", "Commit",
    ]  # fmt: skip
    assert all(step["done"] and not step["failed"] for step in report["steps"])


def test_live_owner_mode_attributes_and_runtime_files_stay(vm):
    live = vm.root / "etc/haproxy/haproxy.cfg"
    live.chmod(0o604)
    attributes = os.listxattr(live)
    runtime = (vm.root / "opt/cloud/conf/agent.properties").stat()
    vm.prepare(make_order())
    # Written by the VM between build and switch, the way editors write
    (vm.root / "opt/cloud/conf/agent.properties.x").write_bytes(b"newer\n")
    (vm.root / "opt/cloud/conf/agent.properties.x").rename(vm.root / "opt/cloud/conf/agent.properties")
    (vm.root / "opt/cloud/conf/cloud.jks").write_bytes(b"uploaded\n")

    assert vm.run("op-1")["phase"] == "Committed"

    assert stat.S_IMODE(live.stat().st_mode) == 0o604
    assert os.listxattr(live) == attributes
    assert (vm.root / "opt/cloud/conf/agent.properties").read_bytes() == b"newer\n"
    assert (vm.root / "opt/cloud/conf/cloud.jks").read_bytes() == b"uploaded\n"
    assert runtime.st_size


def test_unchanged_files_are_the_same_files_and_written_ones_are_at_least_a_second_newer(vm):
    tree = vm.root / "opt/cloud"
    os.utime(tree / "bin/configure.py", ns=(2 * 10**18, 2 * 10**18))
    unchanged = (tree / "templates/keepalived.conf.templ").stat()
    vm.prepare(make_order())

    assert vm.run("op-1")["phase"] == "Committed"

    now = (tree / "templates/keepalived.conf.templ").stat()
    assert (now.st_ino, now.st_mtime_ns) == (unchanged.st_ino, unchanged.st_mtime_ns)
    assert (tree / "bin/configure.py").stat().st_mtime_ns >= 2 * 10**18 + 10**9
    assert not list(tree.rglob("__pycache__"))
    # Two entries of the payload with the same bytes must not become two names of one file.
    assert (tree / "bin/cs/CsHelper.py").stat().st_ino != (tree / "bin/cs/CsAdded.py").stat().st_ino


def test_only_units_that_were_active_are_acted_on_and_least(vm):
    vm.prepare(make_order())
    report = vm.run("op-1")

    done = {unit: systemd.load(str(vm.root), unit)["done"] for unit in UNITS}
    assert done == {"haproxy": ["reload"], "cloud": ["stop", "start"], "dnsmasq": []}
    assert vm.systemd() == {"haproxy": "active", "cloud": "active", "dnsmasq": "inactive"}
    assert [(s["unit"], s["action"], s["ok"]) for s in report["services"]] == [
        ("cloud", "stop", True), ("haproxy", "reload", True), ("cloud", "start", True),
    ]  # fmt: skip


def test_only_the_content_that_the_vm_lacks_is_asked_for(vm):
    order = make_order()
    moved = entry("bin/renamed.py", OLD_TREE["bin/configure.py"])
    order["trees"][0]["files"].append(moved)
    session = vm.session()
    begun = session.do_begin(1, {"order": order})
    session.let_go()
    assert entry("x", OLD_TREE["bin/checkrouter.sh"])["sha256"] not in begun["missing"]
    assert entry("x", NEW_TREE["bin/configure.py"])["sha256"] in begun["missing"]
    assert len(begun["missing"]) == len(set(begun["missing"]))


def test_an_order_that_changes_nothing_commits_and_acts_on_no_file(vm):
    vm.prepare(make_order())
    vm.run("op-1")
    session = vm.session()
    begun = session.do_begin(1, {"order": make_order("op-2")})
    assert begun["missing"] == []
    built = session.do_build(2, {})
    session.let_go()
    assert built["changes"] == 0
    assert vm.run("op-2")["phase"] == "Committed"


def test_old_backups_are_removed_and_with_the_last_one_unit_and_program(vm):
    vm.prepare(make_order())
    vm.run("op-1")
    assert (vm.root / "opt/.sysvm-op-1").is_dir()
    assert (vm.root / "etc/systemd/system/sysinit.target.wants/sysvm-recover.service").is_symlink()

    vm.prepare(with_file(make_order("op-2", keep_backups=0), "/root/func.sh", b"newer functions\n"))
    assert vm.run("op-2")["phase"] == "Committed"

    assert not list((vm.root / "opt").glob(".sysvm-*"))
    assert not list((vm.root / "etc/systemd/system").rglob("sysvm-recover.service"))
    assert not (vm.root / "var/lib/sysvm/program").exists()
    assert vm.report("op-1")["phase"] == vm.report("op-2")["phase"] == "Committed"


def test_without_exchange_files_are_renamed_one_by_one_there_and_back(vm, monkeypatch):
    before = vm.state()

    def refuse(one, other):
        raise OSError(18, "Invalid cross-device link", one, None, other)

    monkeypatch.setattr(files, "exchange", refuse)
    vm.prepare(make_order())
    report = vm.run("op-1")
    assert report["phase"] == "Committed"
    assert any("one by one" in note for note in report["notes"])
    for name, content in NEW_TREE.items():
        assert (vm.root / "opt/cloud" / name).read_bytes() == content
    assert not (vm.root / "opt/cloud/bin/old_module").exists()

    worker.back(vm.host(), vm.store(), "op-1")
    assert vm.report("op-1")["phase"] == "RolledBack", vm.report("op-1")["message"]
    after = vm.state()
    for state in (before, after):
        # Folders that were emptied come back without their bytecode and with new attributes of the folder alone.
        for key in [key for key in state if "__pycache__" in key or key == "(names of one file)"]:
            del state[key]
    assert after == before


def test_a_committed_patch_can_be_taken_back_by_hand(vm):
    before = vm.state()
    vm.prepare(make_order())
    vm.run("op-1")
    worker.back(vm.host(), vm.store(), "op-1")

    report = vm.report("op-1")
    assert report["phase"] == "RolledBack", report["message"]
    assert vm.state() == before
    assert vm.systemd() == {"haproxy": "active", "cloud": "active", "dnsmasq": "inactive"}
