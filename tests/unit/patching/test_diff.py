"""What a payload means for one VM: changes, owners, merges and service actions."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.content import payloads, releases
from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import ContentState
from sysvm.patching import order_words, protocol
from sysvm.patching.archives import FileEntry
from sysvm.patching.boot import parse_boot_arguments
from sysvm.patching.diff import AGENT_TREE, Difference, Previous, compare, contents_to_read, digest_args
from sysvm.patching.merge import merge_sshd_config
from sysvm.patching.ownership import ActionKind, Owner, known_paths, rule_for
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.services import SERVICES, UnitAction, order_for, units_of

ROUTER = SystemVMType.ROUTER
SSVM = SystemVMType.SECSTORAGE
OLD = read_payload(payloads.build_scripts(releases.old()), payloads.build_agent(releases.old()))
NEW = read_payload(payloads.build_scripts(releases.new()), payloads.build_agent(releases.new()))
PREVIOUS = Previous(OLD.scripts.entries)


def fact(path: str, content: bytes | str | None, *, mode: int = 0o755, kind: str = "file") -> protocol.FileFact:
    """`content` as a string is a digest."""
    digest = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else content
    return {
        "path": path,
        "kind": kind,  # type: ignore[typeddict-item]
        "mode": mode,
        "uid": 0,
        "gid": 0,
        "size": 1,
        "mtime": 1.0,
        "sha256": digest,
        "link": None,
    }


def facts_of(payload: Payload, *, agent: bool = False) -> dict[str, protocol.FileFact]:
    """A VM that has exactly this payload."""
    facts = {f"/{name}": _as_is(f"/{name}", entry) for name, entry in payload.scripts.entries.items()}
    if agent and payload.agent is not None:
        facts |= {f"{AGENT_TREE}/{n}": _as_is(f"{AGENT_TREE}/{n}", e) for n, e in payload.agent.entries.items()}
    return facts


def _as_is(path: str, entry: FileEntry) -> protocol.FileFact:
    return fact(path, entry.sha256, mode=0o755 if entry.executable else 0o644)


def difference(
    payload: Payload, facts: dict[str, protocol.FileFact], vm_type: SystemVMType = ROUTER, **texts: bytes
) -> Difference:
    contents = {f"/{name.replace('__', '/')}": text for name, text in texts.items()}
    return compare(payload, vm_type, PREVIOUS, facts, contents)


@pytest.mark.parametrize("vm_type", list(SystemVMType))
def test_a_vm_that_has_the_payload_matches_whatever_its_type(vm_type: SystemVMType) -> None:
    found = difference(OLD, facts_of(OLD, agent=True), vm_type)
    assert found.scripts_report.state is ContentState.MATCHES
    assert (found.agent_report is not None) is vm_type.runs_agent
    assert not found.trees()
    assert not found.single_files()
    assert not found.unit_actions(["apache2", "ssh", "cloud"])


def test_the_next_release_is_one_tree_one_file_and_one_reload() -> None:
    found = difference(NEW, facts_of(OLD))
    (tree,) = found.trees()
    assert tree["path"] == "/opt/cloud"
    assert "bin/cs/CsFacts.py" in {entry["path"] for entry in tree["files"]}
    assert tree["remove"] == ["bin/set_redundant.py"]
    assert "/etc/apache2/conf-enabled/security.conf" in {entry["path"] for entry in found.single_files()}
    assert found.unit_actions(["apache2", "haproxy", "dnsmasq", "ssh"]) == {"apache2": UnitAction.RELOAD}
    report = found.scripts_report
    assert (report.missing, report.extra) == (1, 1)
    assert len(report.paths) == min(10, report.changed + 2)


def test_every_change_says_what_it_expects_to_find() -> None:
    found = difference(NEW, facts_of(OLD))
    for change in found.scripts:
        if change.entry is None:
            continue
        live = OLD.scripts.entries.get(change.path[1:])
        assert change.entry["expect"] == (live.sha256 if live is not None else None)


def test_a_file_that_the_vm_writes_is_left_alone_and_one_that_it_lacks_is_made() -> None:
    facts = facts_of(OLD)
    facts["/etc/haproxy/haproxy.cfg"] = fact("/etc/haproxy/haproxy.cfg", b"listen web\n")
    assert not difference(OLD, facts).scripts
    facts["/etc/haproxy/haproxy.cfg"] = fact("/etc/haproxy/haproxy.cfg", None, kind="absent")
    assert [change.path for change in difference(OLD, facts).scripts] == ["/etc/haproxy/haproxy.cfg"]


def test_an_edited_file_is_kept_and_said_unless_it_is_still_the_packaged_text() -> None:
    path = "/etc/ppp/options.xl2tpd"
    changed = releases.old().derive("ppp", change={path[1:]: b"ms-dns 9.9.9.9\n"})
    payload = read_payload(payloads.build_scripts(changed), None)
    untouched = difference(payload, facts_of(OLD))
    assert [change.path for change in untouched.scripts] == [path]
    facts = facts_of(OLD)
    facts[path] = fact(path, b"ms-dns 10.1.1.1\nfrom the vm\n")
    edited = difference(payload, facts)
    assert edited.kept == (path,)
    assert not edited.scripts


def test_the_sshd_config_of_a_vm_is_merged_and_then_matches() -> None:
    path = "etc/ssh/sshd_config"
    live = OLD.script_text(path) + b"ListenAddress 169.254.0.9\n"
    changed = releases.old().derive("ssh", change={path: OLD.script_text(path) + b"LoginGraceTime 31\n"})
    payload = read_payload(payloads.build_scripts(changed), None)
    facts = facts_of(OLD)
    facts[f"/{path}"] = fact(f"/{path}", live)
    assert contents_to_read(payload, ROUTER, PREVIOUS, facts) == [f"/{path}"]
    found = compare(payload, ROUTER, PREVIOUS, facts, {f"/{path}": live})
    (entry,) = found.single_files()
    text = found.contents[str(entry["sha256"])]
    assert b"ListenAddress 169.254.0.9" in text
    assert b"LoginGraceTime 31" in text
    assert entry["expect"] == hashlib.sha256(live).hexdigest()
    assert found.unit_actions(["ssh"]) == {"ssh": UnitAction.RELOAD}
    facts[f"/{path}"] = fact(f"/{path}", text)
    assert not compare(payload, ROUTER, Previous(payload.scripts.entries), facts, {f"/{path}": text}).scripts


def test_a_lost_exec_bit_of_a_script_is_a_change_and_of_a_unit_is_not() -> None:
    facts = facts_of(OLD)
    for path in ("/opt/cloud/bin/configure.py", "/etc/systemd/system/cloud.service"):
        facts[path] = {**facts[path], "mode": 0o644}
    assert [change.path for change in difference(OLD, facts).scripts] == ["/opt/cloud/bin/configure.py"]


def test_a_link_where_a_file_must_be_is_a_change() -> None:
    path = "/etc/apache2/conf-enabled/security.conf"
    facts = facts_of(OLD)
    facts[path] = fact(path, None, kind="link")
    (entry,) = difference(OLD, facts).single_files()
    assert entry["path"] == path
    assert "expect" not in entry


def test_an_unreadable_old_payload_takes_nothing_away() -> None:
    found = compare(NEW, ROUTER, Previous(), facts_of(OLD), {})
    assert found.scripts_report.extra == 0


def test_what_the_agent_rotates_itself_is_not_asked_of_it() -> None:
    facts = facts_of(OLD, agent=True)
    facts["/etc/logrotate.d/cloud"] = fact("/etc/logrotate.d/cloud", None, kind="absent")
    assert not difference(OLD, facts, SSVM).scripts
    assert difference(OLD, facts, ROUTER).scripts


def test_jars_that_the_new_agent_lacks_go_and_its_configuration_stays() -> None:
    facts = facts_of(OLD, agent=True)
    facts[f"{AGENT_TREE}/old-1.jar"] = fact(f"{AGENT_TREE}/old-1.jar", b"jar")
    facts[f"{AGENT_TREE}/conf/agent.properties"] = fact(f"{AGENT_TREE}/conf/agent.properties", b"guid=1")
    facts[f"{AGENT_TREE}/cloud.log"] = fact(f"{AGENT_TREE}/cloud.log", b"log")
    found = difference(OLD, facts, SSVM)
    (tree,) = found.trees()
    assert tree["remove"] == ["old-1.jar"]
    assert not tree["files"]
    assert "conf/*" in tree["runtime"]
    assert found.unit_actions(["apache2", "cloud"]) == {"cloud": UnitAction.STOP_START}


def test_a_new_folder_comes_with_all_folders_above_it() -> None:
    release = releases.old().derive("deep", add={"etc/cloud-x/a/b.conf": b"1", "opt/cloud/new/deep/c.py": b"2"})
    found = difference(read_payload(payloads.build_scripts(release), None), facts_of(OLD))
    assert [folder["path"] for folder in found.single_folders()] == ["/etc/cloud-x", "/etc/cloud-x/a"]
    assert [folder["path"] for folder in found.trees()[0]["folders"]] == ["new", "new/deep"]


def test_the_order_fits_the_protocol() -> None:
    found = difference(NEW, facts_of(OLD, agent=True), SSVM)
    for tree in found.trees():
        protocol.parse(order_words.TreeOrder, tree)
    for entry in found.single_files():
        protocol.parse(order_words.FileEntry, entry)
    protocol.parse(protocol.DigestArgs, digest_args(NEW, SSVM, PREVIOUS))
    boot = parse_boot_arguments(b"type=router eth0ip=10.1.1.1 guestgw=10.1.1.254 eth1ip=169.254.3.4")
    for unit in units_of(boot, ROUTER):
        protocol.parse(order_words.ServiceOrder, order_for(unit, UnitAction.RELOAD, boot, ROUTER, 30.0))


def test_the_table_knows_every_file_of_the_real_payload() -> None:
    assert set(OLD.scripts.entries) <= known_paths()
    for path in OLD.scripts.entries:
        assert not rule_for(path, ROUTER).ignored


def test_every_unit_that_a_file_asks_for_is_in_the_table_of_services() -> None:
    units = {service.unit: service for service in SERVICES}
    for vm_type in SystemVMType:
        for path in known_paths():
            rule = rule_for(path, vm_type)
            if rule.unit is not None and vm_type in units[rule.unit].types and rule.action is ActionKind.RELOAD:
                assert units[rule.unit].reload, f"{path} wants a reload of {rule.unit}"


@pytest.mark.parametrize(
    ("path", "owner", "action"),
    [
        ("opt/cloud/bin/new_tool.py", Owner.PACKAGE, ActionKind.NEXT_USE),
        ("opt/cloud/bin/setup/new.sh", Owner.PACKAGE, ActionKind.NEXT_BOOT),
        ("etc/systemd/system/new.service", Owner.PACKAGE, ActionKind.DAEMON_RELOAD),
        ("etc/dnsmasq.d/cloud.conf", Owner.RUNTIME, ActionKind.NONE),
        ("etc/anything", Owner.PACKAGE, ActionKind.NEXT_BOOT),
        ("etc/ssh/sshd_config", Owner.EDITED, ActionKind.RELOAD),
    ],
)
def test_files_of_releases_to_come_have_a_rule(path: str, owner: Owner, action: ActionKind) -> None:
    rule = rule_for(path, ROUTER)
    assert (rule.owner, rule.action) == (owner, action)


def test_a_password_server_is_asked_for_by_its_instance() -> None:
    boot = parse_boot_arguments(b"type=router eth0ip=10.1.1.2 guestgw=10.1.1.1 redundant_router=true")
    units = units_of(boot, ROUTER)
    assert "cloud-password-server@10.1.1.1,10.1.1.2" in units
    changed = releases.old().derive("pw", change={"opt/cloud/bin/passwd_server_ip.py": b"#!/usr/bin/python3\n"})
    found = difference(read_payload(payloads.build_scripts(changed), None), facts_of(OLD))
    asked = found.unit_actions(["cloud-password-server@10.1.1.1,10.1.1.2.service", "ssh"])
    assert list(asked.values()) == [UnitAction.RESTART]


PACKAGED = (
    b"Port 3922\n#ListenAddress 0.0.0.0\nPubkeyAuthentication yes\nUsePAM yes\nMatch User cloud\nListenAddress x\n"
)


def test_merged_lines_stand_where_they_work() -> None:
    live = b"Port 3922\nListenAddress 10.0.0.1\nPubkeyAuthentication yes\nPubkeyAcceptedAlgorithms=+ssh-rsa\n"
    assert merge_sshd_config(live, PACKAGED).splitlines() == [
        b"Port 3922",
        b"#ListenAddress 0.0.0.0",
        b"ListenAddress 10.0.0.1",
        b"PubkeyAuthentication yes",
        b"PubkeyAcceptedAlgorithms=+ssh-rsa",
        b"UsePAM yes",
        b"Match User cloud",
        b"ListenAddress x",
    ]


def test_where_the_vm_has_put_its_lines_is_no_difference() -> None:
    written_over = PACKAGED.replace(b"#ListenAddress 0.0.0.0", b"ListenAddress 10.0.0.1")
    assert merge_sshd_config(written_over, PACKAGED) == written_over
    at_the_end = b"Port 3922\nPubkeyAuthentication yes\nUsePAM yes\nListenAddress 10.0.0.1\n"
    packaged = b"Port 3922\n#ListenAddress ::\nPubkeyAuthentication yes\nUsePAM yes\n"
    assert merge_sshd_config(at_the_end, packaged) == at_the_end
    assert merge_sshd_config(at_the_end, packaged + b"LoginGraceTime 9\n") != at_the_end


_LINES = st.lists(
    st.sampled_from(
        [
            b"Port 3922",
            b"ListenAddress 10.0.0.1",
            b"listenaddress 10.0.0.2",
            b"#ListenAddress 0.0.0.0",
            b"PubkeyAcceptedAlgorithms=+ssh-rsa",
            b"PubkeyAuthentication yes",
            b"Match User x",
            b"",
            b"UsePAM yes",
        ]
    ),
    max_size=8,
)


@given(_LINES, _LINES, st.booleans())
def test_a_merge_keeps_what_is_the_vms_and_comes_to_rest(live: list[bytes], new: list[bytes], ending: bool) -> None:
    text = b"\n".join(new) + (b"\n" if ending else b"")
    once = merge_sshd_config(b"\n".join(live), text)
    assert merge_sshd_config(once, text) == once
    own = [line for line in _before_match(live) if line.lower().startswith((b"listen", b"pubkeyaccepted"))]
    for line in own:
        assert line in _before_match(once.splitlines())
    assert _packaged_lines(once) == _packaged_lines(text)


def _packaged_lines(text: bytes) -> list[bytes]:
    own = (b"listen", b"#listen", b"pubkeyaccepted")
    return [line for line in text.splitlines() if not line.lower().startswith(own)]


def _before_match(lines: list[bytes]) -> list[bytes]:
    for number, line in enumerate(lines):
        if line.startswith(b"Match"):
            return lines[:number]
    return lines


CONNTRACKD = "opt/cloud/templates/conntrackd.conf.templ"


def _paired(live: bytes) -> tuple[Payload, dict[str, protocol.FileFact], dict[str, bytes]]:
    """A new template of conntrackd, and a router that runs with `live`."""
    old = releases.old().scripts[CONNTRACKD]
    release = releases.old().derive("conntrackd", change={CONNTRACKD: old.replace(b"HashLimit 65536", b"HashLimit 9")})
    payload = read_payload(payloads.build_scripts(release), None)
    facts = facts_of(OLD) | {"/etc/conntrackd/conntrackd.conf": fact("/etc/conntrackd/conntrackd.conf", live)}
    return payload, facts, {f"/{CONNTRACKD}": old, "/etc/conntrackd/conntrackd.conf": live}


def test_on_a_router_of_a_pair_a_new_template_of_conntrackd_takes_effect_at_once() -> None:
    """Else the next command of the management server would restart keepalived, too."""
    live = releases.old().scripts[CONNTRACKD].replace(b"[LINK_IP]", b"10.1.1.5")
    payload, facts, texts = _paired(live)
    assert set(contents_to_read(payload, ROUTER, PREVIOUS, facts)) == set(texts)
    found = compare(payload, ROUTER, PREVIOUS, facts, texts)
    assert {change.path for change in found.scripts} == {f"/{CONNTRACKD}", "/etc/conntrackd/conntrackd.conf"}
    made = live.replace(b"HashLimit 65536", b"HashLimit 9")
    assert list(found.contents.values()) == [made]
    assert found.unit_actions(["conntrackd", "keepalived"]) == {"conntrackd": UnitAction.RESTART}


def test_a_template_whose_configuration_was_changed_by_hand_is_kept() -> None:
    payload, facts, texts = _paired(b"Sync {\n}\n")
    found = compare(payload, ROUTER, PREVIOUS, facts, texts)
    assert found.kept == (f"/{CONNTRACKD}",)
    assert not found.scripts


def test_a_router_that_is_alone_gets_the_template_and_nothing_restarts() -> None:
    payload, facts, _ = _paired(b"")
    del facts["/etc/conntrackd/conntrackd.conf"]
    assert not contents_to_read(payload, ROUTER, PREVIOUS, facts)
    found = compare(payload, ROUTER, PREVIOUS, facts, {})
    assert [change.path for change in found.scripts] == [f"/{CONNTRACKD}"]
    assert not found.unit_actions(["conntrackd", "keepalived"])


def test_a_changed_unit_of_keepalived_asks_for_a_restart() -> None:
    release = releases.old().derive("unit", add={"etc/systemd/system/keepalived.service.d/lab.conf": b"[Service]\n"})
    found = difference(read_payload(payloads.build_scripts(release), None), facts_of(OLD))
    assert found.unit_actions(["keepalived"], can_hold=True) == {"keepalived": UnitAction.RESTART}
