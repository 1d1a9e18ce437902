"""Debian packages come before the switch, by the real dpkg in a scratch root, and never cost the VM its old Python.

Killed between any two changes or in the middle of dpkg, full of locks or of a package that cannot be installed: the
link that decides which Python scripts get is the old one until the switch, and again after every way back.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator

import pytest
from tests.remote import debian
from tests.remote.debian import ASIDE, OLD_SCRIPT, DebianVM, order, packages
from tests.remote.dpkg import CUT
from tests.remote.judging import Judge, count_changes, judge_of, killed_at, recover_by_next_session
from tests.remote.vm import NEW_SIGNATURE, OLD_SIGNATURE, VM, in_child, with_file
from tests.unit.patching.made_packages import netaddr_deb, small_deb

from sysvm.patching.remote import files, worker
from sysvm.patching.remote import packages as remote_packages
from sysvm.patching.remote.failures import Failure

NEW = {"python-is-python3": "installed", "python3-netaddr": "installed"}
OLD = {"python-is-python2": "installed"}


@pytest.fixture
def router(vm: VM) -> Iterator[DebianVM]:
    yield debian.lay_out(vm)


def python(vm: VM) -> str:
    return os.readlink(vm.root / "usr/bin/python")


def step(report: dict, name: str = "Packages") -> dict:
    (found,) = [one for one in report["steps"] if one["name"] == name]
    return found


def test_packages_are_installed_first_and_the_link_changes_with_the_switch(router):
    router.prepare(order())
    report = router.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert [one["name"] for one in report["steps"]][2:5] == ["Packages", "Fence", "Switch"]
    told = "installed python-is-python3 3.9.2-1, python3-netaddr 0.7.19-5; removed python-is-python2"
    assert step(report)["message"] == told
    assert packages(router) == NEW
    assert python(router) == "python3"
    assert not (router.root / ASIDE).exists()
    assert not list(router.root.rglob("*.deb"))


def test_a_patch_that_goes_back_puts_the_old_link_back_and_says_what_stays(router):
    judge = Judge(router)
    router.prepare(with_file(order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    report = router.run("op-1")
    assert (report["phase"], report["reason"]) == ("RolledBack", "ServiceFailed")
    assert "but for Debian packages, which stay: installed python-is-python3 3.9.2-1" in report["message"]
    recover_by_next_session(router)
    assert judge.verdict("went back") == "old"
    assert python(router) == "python2"
    assert packages(router) == NEW


def test_taken_back_by_hand_the_old_python_is_back(router):
    judge = Judge(router)
    router.prepare(order())
    router.run("op-1")
    worker.back(router.host(), router.store(), "op-1")
    assert python(router) == "python2"
    report = router.report("op-1")
    assert report["phase"] == "RolledBack"
    assert "which stay" in report["message"]
    recover_by_next_session(router)
    assert judge.verdict("taken back") == "old"


def test_after_a_way_back_the_next_patch_has_only_the_link_to_change(router):
    router.prepare(with_file(order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    router.run("op-1")
    recover_by_next_session(router)
    router.prepare(order("op-2", debs=[], remove=[], keep=[]))
    report = router.run("op-2")
    assert report["phase"] == "Committed", report["message"]
    assert python(router) == "python3"


# ------------------------------------------------------------------------------------------ refused, the tree untouched


def refused(vm: DebianVM, reason: str, made: dict) -> str:
    """The message of an operation that gave up with everything but packages as it was."""
    judge = Judge(vm)
    vm.prepare(made)
    report = vm.run(made["id"])
    assert (report["phase"], report["reason"]) == ("Abandoned", reason), report["message"]
    assert step(report)["failed"]
    recover_by_next_session(vm)
    assert judge.verdict(reason) == "old"
    return report["message"]


def test_a_package_that_cannot_be_installed_is_told_and_the_tree_stays_old(router):
    said = refused(router, "PackagesNeeded", order(netaddr=netaddr_deb("Conflicts: dpkg, python-is-python3\n")))
    assert "conflicts with python-is-python3" in said
    assert "python-is-python3 is installed" in said
    assert python(router) == "python2"


def test_what_a_package_wants_beside_is_told_and_only_what_scripts_import_decides(router):
    """As python3-netaddr wants ieee-data, which CloudStack does not bring."""
    router.prepare(order(netaddr=netaddr_deb("Depends: ieee-data (>= 2)\n")))
    report = router.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert "python3-netaddr 0.7.19-5 (without ieee-data, which dpkg misses); removed" in step(report)["message"]
    assert packages(router) == NEW


def test_a_deb_that_is_none_is_told_and_nothing_stays_diverted(router):
    assert "python-is-python2" not in refused(router, "PackagesNeeded", order(netaddr=b"noise\n"))
    assert python(router) == "python2"


def test_a_package_that_others_need_is_not_taken_from_them(router):
    deb = router.base / "other.deb"
    deb.write_bytes(small_deb("other", "1", words="Depends: python-is-python2\n"))
    subprocess.run(["dpkg", f"--root={router.root}", "--install", deb], check=True, capture_output=True)
    said = refused(router, "PackagesNeeded", order())
    assert "other depends on python-is-python2" in said
    assert packages(router) == {**OLD, "other": "installed"}


def test_while_another_program_has_the_lock_it_waits_and_then_gives_up(router):
    judge = Judge(router)
    router.prepare(order())
    # Until this process closes the file once, also after reading it; dpkg is a child, and meets the lock.
    with open(router.root / "var/lib/dpkg/lock-frontend", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        report = router.run("op-1")
    assert (report["phase"], report["reason"]) == ("Abandoned", "VMBusy"), report["message"]
    recover_by_next_session(router)
    assert judge.verdict("locked") == "old"
    assert packages(router) == OLD


@pytest.mark.parametrize("how", [b"open('/nowhere/oui.idx')\n", b"import sys\nsys.exit(0)\n"])
def test_a_module_of_a_package_that_fails_for_want_of_another_package_is_told(router, how):
    deb = small_deb("python3-netaddr", "0.7.19-5", content=how)
    said = refused(router, "PackagesNeeded", order(netaddr=deb))
    assert "configure.py needs the module netaddr, which fails" in said
    assert python(router) == "python2"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (b"#!/usr/bin/python\nimport what_nobody_has\n", "configure.py needs the module what_nobody_has"),
        (b"#!/usr/bin/python\nfrom cs import CsHelper\nfrom cs.CsNone import x\n", "there is no cs/CsNone.py"),
        (b"#!/usr/bin/python\nprint 'of Python 2'\n", "configure.py line 2 is no Python 3"),
        (b"#!/usr/bin/python7\n", "names no program that is there"),
        (b"import os\n", "names no program that is there"),
    ],
)
def test_scripts_of_the_release_that_could_not_run_here_never_arrive(router, script, said):
    assert said in refused(router, "PackagesNeeded", order(script=script))
    assert python(router) == "python2"


def let_netaddr_hide_a_module(vm: VM) -> None:
    interpreter = vm.root / "usr/bin/python2"
    there = f"[ -e {vm.root}/usr/lib/python3/dist-packages/netaddr ] && echo gone && exit 1\n"
    interpreter.write_text(interpreter.read_text().replace("shift 3\n", there + "shift 3\n"))


def test_if_the_scripts_of_before_can_no_longer_run_there_would_be_no_way_back(router):
    """Here the package brings a module that hides one of the old Python's; any other reason is the same."""
    let_netaddr_hide_a_module(router)
    said = refused(router, "InterpreterChange", order())
    assert "no way back" in said


def test_scripts_that_could_not_run_before_are_no_reason_to_give_up(router):
    (router.root / "opt/cloud/bin/configure.py").write_bytes(b"#!/usr/bin/python\nimport what_nobody_has\n")
    router.prepare(order())
    assert router.run("op-1")["phase"] == "Committed"


def test_imports_that_may_fail_or_are_not_made_at_once_are_no_reason_to_give_up(router):
    script = (
        b"#!/usr/bin/python\nfrom __future__ import print_function\ntry:\n    import simplejson_of_nobody\n"
        b"except ImportError:\n    pass\ndef late():\n    import what_nobody_has\nfrom . import cs\n"
    )
    router.prepare(order(script=script))
    assert router.run("op-1")["phase"] == "Committed"


# ------------------------------------------------------------------------------------------ killed


@pytest.fixture
def built(router: DebianVM) -> tuple[DebianVM, Judge]:
    return router, judge_of(router, order())


@pytest.mark.parametrize(("mode", "at_boot"), [("kill-before", True), ("kill-after", False)])
def test_killed_at_any_change_of_the_installation_the_vm_is_old_and_its_python_too(built, mode, at_boot):
    vm, judge = built
    names = count_changes(vm, lambda: vm.run("op-1"))
    ours = range(1, names.index("exchange") + 1)
    assert [name for name in names if name.startswith("dpkg")] == ["dpkg-divert", "dpkg", "dpkg", "dpkg-divert"]
    for number in ours:
        vm.reset()
        where = f"{mode} {number} {names[number - 1]}"
        assert killed_at(lambda: vm.run("op-1"), mode, number) == 137, where
        assert judge.settle_and_judge(where, at_boot=at_boot) == "old", where
        assert python(vm) == "python2", where
    print(f"\n{mode}: {len(ours)} points of {len(names)}")


def test_killed_at_any_change_and_started_again_the_patch_ends_new(built):
    """systemd starts the unit once more, and the phase says that nothing was switched."""
    vm, judge = built
    names = count_changes(vm, lambda: vm.run("op-1"))
    first = names.index("dpkg-divert")
    for number in range(first, first + 9):
        vm.reset()
        assert killed_at(lambda: vm.run("op-1"), "kill-after", number) == 137
        report = vm.run("op-1")
        assert report["phase"] == "Committed", (number, report["message"])
        assert judge.verdict(f"again after {number}") == "new"
        assert packages(vm) == NEW


def test_killed_right_after_dpkg_it_is_still_known_that_there_would_be_no_way_back(router):
    let_netaddr_hide_a_module(router)
    router.prepare(order())
    router.keep()
    names = count_changes(router, lambda: router.run("op-1"))
    router.reset()
    last = max(number for number, name in enumerate(names, 1) if name == "dpkg")
    assert killed_at(lambda: router.run("op-1"), "kill-after", last) == 137
    report = router.run("op-1")
    assert (report["phase"], report["reason"]) == ("Abandoned", "InterpreterChange"), report["message"]


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.12, 0.16, 0.25])
def test_killed_in_the_middle_of_dpkg_the_vm_is_old_and_the_next_patch_mends_the_package(router, seconds):
    judge = Judge(router)
    router.prepare(order())
    (router.root / CUT).write_text(str(seconds))
    assert in_child(lambda: router.run("op-1")) == 137
    (router.root / CUT).unlink()
    assert judge.settle_and_judge(f"{seconds} s", at_boot=seconds in (0.02, 0.08)) == "old"
    assert python(router) == "python2"
    router.prepare(order("op-2"))
    report = router.run("op-2")
    assert report["phase"] == "Committed", report["message"]
    assert packages(router) == NEW
    assert python(router) == "python3"


@pytest.mark.parametrize("at_boot", [False, True])
def test_what_a_cut_dpkg_had_begun_beside_a_diverted_link_goes_too(built, at_boot):
    """dpkg looks for it under the name without the diversion, so nobody else would ever take it away."""
    vm, judge = built
    names = count_changes(vm, lambda: vm.run("op-1"))
    vm.reset()
    killed_at(lambda: vm.run("op-1"), "kill-after", names.index("dpkg-divert") + 1)
    for ending in (".dpkg-new", ".dpkg-tmp"):
        (vm.root / (ASIDE + ending)).symlink_to("python3")
    assert judge.settle_and_judge("half unpacked", at_boot=at_boot) == "old"


def test_what_a_cut_left_is_told_with_the_end_of_the_operation(built):
    vm, _ = built
    names = count_changes(vm, lambda: vm.run("op-1"))
    vm.reset()
    second = [number for number, name in enumerate(names, 1) if name == "dpkg"][1]
    killed_at(lambda: vm.run("op-1"), "kill-after", second)
    recover_by_next_session(vm)
    said = vm.report("op-1")["message"]
    assert said.endswith("python-is-python3 is installed, python3-netaddr is installed")
    assert vm.signature() == OLD_SIGNATURE


def test_given_up_by_the_operator_after_a_cut_nothing_stays_diverted(built):
    vm, judge = built
    names = count_changes(vm, lambda: vm.run("op-1"))
    vm.reset()
    killed_at(lambda: vm.run("op-1"), "kill-after", names.index("dpkg-divert") + 1)
    session = vm.session()
    session.do_begin(1, {"order": order()})
    session.do_abandon(2, {})
    session.let_go()
    assert judge.verdict("given up") == "old"


@pytest.mark.parametrize("last_divert", [False, True])
def test_ordered_anew_after_a_cut_nothing_stays_diverted_and_what_was_installed_is_told(built, last_divert):
    """All was installed by then, so the order that follows speaks of the link alone."""
    vm, _ = built
    names = count_changes(vm, lambda: vm.run("op-1"))
    diverts = [number for number, name in enumerate(names, 1) if name == "dpkg-divert"]
    vm.reset()
    cut = diverts[-1] if last_divert else diverts[-1] - 1
    assert killed_at(lambda: vm.run("op-1"), "kill-after", cut) == 137
    assert packages(vm) == NEW
    broken = with_file(order(debs=[], remove=[], keep=[]), "/etc/haproxy/haproxy.cfg", b"broken\n")
    vm.prepare(broken)
    report = vm.run("op-1")
    assert not (vm.root / ASIDE).is_symlink()
    assert (vm.root / "var/lib/dpkg/diversions").read_bytes() == b""
    assert report["phase"] == "RolledBack"
    assert "which stay: python-is-python3 is installed, python3-netaddr is installed" in report["message"]


def test_a_full_disk_at_any_change_of_the_installation_leaves_the_old(built):
    vm, judge = built
    names = count_changes(vm, lambda: vm.run("op-1"))
    for number in range(names.index("dpkg-divert"), names.index("exchange") + 1):
        vm.reset()
        files.FAULTS.arm(f"no-space:{number}")
        try:
            vm.run("op-1")
        except OSError:
            pass
        finally:
            files.FAULTS.mode = None
        recover_by_next_session(vm)
        if vm.signature() != NEW_SIGNATURE:
            assert judge.verdict(f"no space at {number} {names[number - 1]}") == "old"


# ------------------------------------------------------------------------------------------ what is told, what is asked


def test_the_vm_tells_what_dpkg_knows_and_what_a_package_owns(router):
    names = ["python-is-python2", "python-is-python3", "--help", "python3-netaddr"]
    (fact,) = remote_packages.facts(router.host(), names)
    assert (fact["name"], fact["status"], fact["version"]) == ("python-is-python2", "installed", "2.7.18-9")
    assert (fact["links"], fact["others"]) == (["/usr/bin/python"], [])
    router.prepare(order())
    router.run("op-1")
    facts = {one["name"]: one for one in remote_packages.facts(router.host(), names)}
    assert facts["python3-netaddr"]["others"] == ["/usr/lib/python3/dist-packages/netaddr/__init__.py"]
    assert facts["python-is-python3"]["status"] == "installed"


def test_a_vm_without_dpkg_has_no_packages(vm):
    assert remote_packages.facts(vm.host(), ["python3-netaddr"]) == []
    session = vm.session()
    asked: dict[str, list[str]] = {"paths": [], "roots": [], "exclude": []}
    assert "packages" not in session.do_digest(1, asked)
    assert session.do_digest(1, {**asked, "packages": ["python3-netaddr"]})["packages"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"debs": [{"name": "--force-all", "version": "1", "sha256": "0" * 64, "size": 1}]},
        {"debs": [{"name": "a1", "version": "1 2", "sha256": "0" * 64, "size": 1}]},
        {"debs": [{"name": "a1", "version": "1", "sha256": "../x", "size": 1}]},
        {"remove": ["python-is-python2", "python-is-python2"]},
        {"keep": ["/etc/passwd"]},
        {"keep": ["/usr/bin/../../etc/passwd"]},
        {"imports": ["configure.py"]},
        {"timeout_seconds": -1},
    ],
)
def test_an_order_for_packages_that_is_none_is_refused(router, wrong):
    with pytest.raises(Failure) as caught:
        router.prepare(order(**wrong))
    assert caught.value.reason == "ProtocolError"
    assert (router.root / "opt/cloud/bin/configure.py").read_bytes() == OLD_SCRIPT
