"""The Debian packages of a payload: which it has, which a VM lacks, and when they cannot be had or taken back."""

from __future__ import annotations

import random

import pytest
from tests.unit.patching.made_packages import debian_11_agent, small_deb
from tests.unit.patching.test_diff import OLD, PREVIOUS, fact, facts_of

from lab.content import payloads, releases
from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import ContentState
from sysvm.api.reasons import Reason
from sysvm.patching import packages, protocol
from sysvm.patching.diff import Difference, compare, digest_args
from sysvm.patching.errors import PayloadError
from sysvm.patching.payload import Payload, read_payload

ROUTER = SystemVMType.ROUTER
SCRIPTS = payloads.build_scripts(releases.old())
PAYLOAD = read_payload(SCRIPTS, debian_11_agent())
PYTHON = "/usr/bin/python"
NETADDR = ("python3-netaddr", "installed")
IS_3 = ("python-is-python3", "installed")
IS_2 = ("python-is-python2", "installed")


def state(name: str, status: str, *others: str) -> protocol.PackageFact:
    links = [PYTHON] if name.startswith("python-is-") else []
    return {"name": name, "status": status, "version": "1.0", "links": links, "others": list(others)}


def link(target: str | None) -> protocol.FileFact:
    kind = "absent" if target is None else "link"
    return {**fact(PYTHON, b""), "kind": kind, "link": target, "sha256": None}  # type: ignore[typeddict-item]


def found(
    *states: protocol.PackageFact,
    payload: Payload = PAYLOAD,
    debian: str | None = "11.9",
    python: protocol.FileFact | None = None,
    vm_type: SystemVMType = ROUTER,
) -> Difference:
    facts = facts_of(OLD, agent=True) | {PYTHON: python or link("python2")}
    return compare(payload, vm_type, PREVIOUS, facts, {}, debian_version=debian, states=states)


def reasons(difference: Difference) -> list[Reason]:
    return [obstacle.reason for obstacle in difference.obstacles]


# ------------------------------------------------------------------------------------------ what the payload has


def test_the_packages_of_agent_zip_are_known_by_release_version_and_digest() -> None:
    assert PAYLOAD.agent is not None
    python, netaddr = PAYLOAD.agent.debs
    assert (python.debian, str(python), python.problem) == ("11", "python-is-python3 3.9.2-1", "")
    assert (python.conflicts, dict(python.links)) == (("python-is-python2",), {PYTHON: "python3"})
    assert (str(netaddr), netaddr.conflicts, dict(netaddr.links)) == ("python3-netaddr 0.7.19-5", (), {})
    entry = PAYLOAD.agent.entries[netaddr.path]
    assert (netaddr.sha256, netaddr.size) == (entry.sha256, entry.size)
    assert PAYLOAD.described(netaddr.sha256) == (netaddr.size, netaddr.path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"file_name=x.deb\n", "cannot be read"),
        (b"[a\xff]\n", "cannot be read"),
        (b"[python3]\ndebian_os=11\nfile_name=../../etc/x.deb\n", "which is no .deb beside it"),
        (b"[python3]\ndebian_os=11\nfile_name=-x.deb\n", "which is no .deb beside it"),
        (b"[python3]\ndebian_os=bullseye\nfile_name=x.deb\n", "debian_os=bullseye"),
        (b"[python3]\nfile_name=x.deb\n", "it has to be a release such as 11"),
        (b"[--force-all]\ndebian_os=11\nfile_name=x.deb\n", "no name of one"),
        (b"[python3]\ndebian_os=11\nfile_name=x.deb\nconflicted_packages=libc6 -f\n", "package -f in"),
        (b"[a1]\ndebian_os=11\nfile_name=x.deb\n[b1]\npackage_name=a1\ndebian_os=11\nfile_name=y.deb\n", "twice"),
        (b"".join(b"[a%d]\ndebian_os=11\nfile_name=x.deb\n" % n for n in range(65)), "more than 64"),
        (b"# " + b"x" * 70_000, "more than 65536"),
    ],
)
def test_a_list_that_cannot_be_believed_makes_the_payload_unreadable(text: bytes, said: str) -> None:
    with pytest.raises(PayloadError) as caught:
        read_payload(SCRIPTS, debian_11_agent({"packages/packages.ini": text}))
    assert caught.value.reason is Reason.PAYLOAD_UNREADABLE
    assert said in str(caught.value)
    assert "packages/packages.ini" in str(caught.value)


NETADDR_DEB = "packages/python3-netaddr_0.7.19-5_all.deb"


@pytest.mark.parametrize(
    ("deb", "said"),
    [
        (None, f"agent.zip has no {NETADDR_DEB}"),
        (b"noise" * 100, "is not a Debian package"),
        (small_deb("another", "1.0"), "is the package another"),
        (small_deb("python3-netaddr", "1.0", links={"usr/bin/python3": "../../tmp/x"}), "brings links that lead out"),
        (b"!<arch>\n" + random.Random(1).randbytes(17 << 20), "the limit is 16777216"),
    ],
    ids=["missing", "noise", "another", "a link elsewhere", "large"],
)
def test_a_package_that_cannot_be_had_holds_only_the_vms_that_need_it(deb: bytes | None, said: str) -> None:
    payload = read_payload(SCRIPTS, debian_11_agent({NETADDR_DEB: deb}))
    held = found(payload=payload)
    assert reasons(held) == [Reason.PACKAGES_NEEDED]
    assert "needs the Debian packages python3-netaddr, " in held.obstacles[0].message
    assert said in held.obstacles[0].message
    assert held.obstacles[0].message.endswith("or recreate the VM")
    assert held.scripts_report.obstacles == held.obstacles
    assert not reasons(found(state(*NETADDR), payload=payload))
    assert not reasons(found(payload=payload, debian="12.5"))


# ------------------------------------------------------------------------------------------ what a VM lacks


@pytest.mark.parametrize("vm_type", list(SystemVMType))
def test_every_type_gets_what_its_debian_lacks_and_nothing_else(vm_type: SystemVMType) -> None:
    whole = found(vm_type=vm_type)
    assert [str(deb) for deb in whole.packages.install] == ["python-is-python3 3.9.2-1", "python3-netaddr 0.7.19-5"]
    assert not reasons(whole)
    assert [deb.name for deb in found(state(*NETADDR), vm_type=vm_type).packages.install] == ["python-is-python3"]


@pytest.mark.parametrize("debian", ["12.5", "10.13", "bookworm/sid", "", None])
def test_a_vm_of_another_debian_needs_none_and_is_asked_for_none(debian: str | None) -> None:
    difference = found(debian=debian)
    assert difference.packages == packages.Packages()
    args = digest_args(PAYLOAD, ROUTER, PREVIOUS, debian_version=debian)
    assert "packages" not in args
    assert PYTHON not in args["paths"]


def test_the_vm_is_asked_for_the_packages_their_conflicts_and_their_links() -> None:
    args = digest_args(PAYLOAD, ROUTER, PREVIOUS, debian_version="11.9")
    assert args["packages"] == ["python-is-python2", "python-is-python3", "python3-netaddr"]
    assert PYTHON in args["paths"]


def test_what_is_there_is_neither_installed_nor_drift() -> None:
    done = found(state(*IS_3), state(*NETADDR), state("python-is-python2", "config-files"), python=link("python3"))
    assert done.packages == packages.Packages()
    assert done.scripts_report.state is ContentState.MATCHES


def test_a_package_that_is_missing_is_drift_though_every_file_is_right() -> None:
    difference = found(state(*IS_3), python=link("python3"))
    assert not difference.scripts
    assert difference.scripts_report.state is ContentState.DRIFTED
    assert [(name, action.value) for name, action in difference.package_actions] == [
        ("python3-netaddr 0.7.19-5", "Install")
    ]


def test_one_that_dpkg_left_half_way_is_installed_once_more() -> None:
    assert [deb.name for deb in found(state(*IS_3), state("python3-netaddr", "half-installed")).packages.install] == [
        "python3-netaddr"
    ]


def test_the_link_of_the_interpreter_changes_with_the_switch_and_is_kept_from_dpkg() -> None:
    difference = found(state(*IS_2))
    assert difference.packages.remove == ("python-is-python2",)
    assert difference.packages.keep == (PYTHON,)
    (change,) = [change for change in difference.scripts if change.path == PYTHON]
    assert change.entry is not None
    assert (change.entry["link"], change.entry["sha256"]) == ("python3", None)
    assert difference.single_files() == [change.entry]
    assert difference.package_actions[0] == ("python-is-python2", "Remove")


def test_after_a_roll_back_only_the_link_is_left_to_change() -> None:
    difference = found(state(*IS_3), state(*NETADDR), python=link("python2"))
    assert (difference.packages.install, difference.packages.remove, difference.packages.keep) == ((), (), ())
    assert [change.path for change in difference.scripts] == [PYTHON]


@pytest.mark.parametrize(
    ("states", "python", "said"),
    [
        ([state(*IS_2, "/usr/lib/python2/thing.py")], link("python2"), "with it /usr/lib/python2/thing.py"),
        ([], {**link(None), "kind": "file"}, "/usr/bin/python is no link"),
    ],
)
def test_a_change_of_the_interpreter_that_cannot_be_undone_holds_the_vm(
    states: list[protocol.PackageFact], python: protocol.FileFact, said: str
) -> None:
    held = found(*states, python=python)
    assert reasons(held) == [Reason.INTERPRETER_CHANGE]
    assert said in held.obstacles[0].message
    assert held.obstacles[0].message.endswith("recreate the VM")


# ------------------------------------------------------------------------------------------ scripts alone


def scripts_only(*, interpreter: bytes = b"#!/usr/bin/python\n", since_4_20: bool = True) -> Payload:
    start = releases.old()
    text = interpreter + start.scripts["opt/cloud/bin/configure.py"].partition(b"\n")[2]
    removed = [] if since_4_20 else ["opt/cloud/bin/cs_bgppeers.py"]
    release = start.derive("alone", change={"opt/cloud/bin/configure.py": text}, remove=removed)
    return read_payload(payloads.build_scripts(release), None)


def test_scripts_without_an_agent_archive_still_need_their_interpreter() -> None:
    def lacks(payload: Payload, debian: str, *states: protocol.PackageFact) -> list[Reason]:
        known = {one["name"]: one for one in states}
        return [found.reason for found in packages.packages_for(payload, debian, known, {}).obstacles]

    assert lacks(scripts_only(), "11.7") == [Reason.PACKAGES_NEEDED]
    assert lacks(scripts_only(), "11.7", state(*IS_3)) == []
    assert lacks(scripts_only(), "12.1") == []
    assert lacks(scripts_only(interpreter=b"#!/usr/bin/python3\n"), "11.7") == []
    assert lacks(scripts_only(since_4_20=False), "11.7") == [], "scripts before 4.20 run with what the template has"
    assert packages.packages_for(scripts_only(), "11.7", {IS_3[0]: state(*IS_3)}, {}).links == {PYTHON: "python3"}
