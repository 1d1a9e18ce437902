"""The program as it travels: packed, started by one shell command, spoken to in frames; on many Pythons."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.remote import systemd
from tests.remote.vm import BODIES, NEW_SIGNATURE, OLD_SIGNATURE, make_order, with_file

from sysvm.patching import framing, order_words, protocol
from sysvm.patching.bundle import bundle, command
from sysvm.patching.remote import files

ROOT = Path(__file__).parents[2]
PYTHONS = sorted(Path("/root/.pyenv/versions").glob("3.*/bin/python3")) if os.access("/root/.pyenv", os.R_OK) else []
WANTED = ("3.6.", "3.7.", "3.9.", "3.13.")
INTERPRETERS = [str(p) for p in PYTHONS if p.parts[-3].startswith(WANTED)] or [sys.executable]


class Client:
    """The operator's end, blocking, without SSH."""

    def __init__(self, vm, python: str = sys.executable) -> None:
        tools = vm.base / "tools"
        if not tools.exists():
            tools.mkdir()
            for name in ("systemctl", "systemd-run", "journalctl"):
                script = f'#!/bin/sh\nexec {sys.executable} {systemd.__file__} {vm.root} {name} "$@"\n'
                (tools / name).write_text(script if name != "journalctl" else "#!/bin/sh\necho last words\n")
                (tools / name).chmod(0o755)
            (tools / "validate").write_text("#!/bin/sh\nexit 0\n")
            (tools / "validate").chmod(0o755)
        self.process = subprocess.Popen(
            shlex.split(command("--root", str(vm.root), python=python)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin"},
        )
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert stdin is not None and stdout is not None and stderr is not None
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.decoder = framing.Decoder()
        self.waiting: list[framing.Frame] = []
        self.events: list[protocol.Event] = []
        self.number = 0
        self.found = protocol.parse(protocol.Found, self.frame().value)["program"]
        if self.found == "wanted":
            self.write(bundle().preamble())
        self.hello = protocol.parse(protocol.Hello, self.frame().value)

    def write(self, content: bytes) -> None:
        self.stdin.write(content)
        self.stdin.flush()

    def frame(self):
        while not self.waiting:
            chunk = os.read(self.stdout.fileno(), 65536)
            assert chunk, self.stderr.read().decode()
            self.waiting += self.decoder.feed(chunk)
        return self.waiting.pop(0)

    def ask(self, verb: str, args: dict, content: Sequence[bytes] = ()):
        self.number += 1
        self.write(framing.encode_json({"id": self.number, "verb": verb, "args": args}))
        for body in content:
            for frame in framing.encode_bytes(body):
                self.write(frame)
        while True:
            value = self.frame().value
            if "report" in value:
                self.events.append(protocol.parse(protocol.Event, value))
                continue
            answer = protocol.parse(protocol.Response, value)
            assert answer["id"] == self.number
            return answer

    def get(self, kind, verb: str, args: dict, content: Sequence[bytes] = ()):
        answer = self.ask(verb, args, content)
        assert "error" not in answer, answer["error"]
        return protocol.parse(kind, answer["result"])

    def prepare(self, order: dict) -> None:
        begun = self.get(protocol.BeginResult, "begin", {"order": protocol.parse(order_words.Order, order)})
        bodies = [BODIES[digest] for digest in begun["missing"]]
        items = [
            {"sha256": digest, "size": len(body), "encoding": "identity", "wire_size": len(body)}
            for digest, body in zip(begun["missing"], bodies, strict=True)
        ]
        assert self.get(protocol.StageResult, "stage", {"items": items}, bodies)["missing"] == []
        self.get(protocol.BuildResult, "build", {})

    def close(self) -> None:
        self.stdin.close()
        assert self.process.wait(10) == 0, self.stderr.read().decode()
        self.stdout.close()
        self.stderr.close()


@pytest.fixture
def client(vm):
    clients = []

    def connect(python: str = sys.executable) -> Client:
        clients.append(Client(vm, python))
        return clients[-1]

    yield connect
    for one in clients:
        if one.process.poll() is None:
            one.close()


@pytest.mark.parametrize("python", INTERPRETERS)
def test_a_whole_patch_and_the_way_back_over_the_wire(vm, client, python):
    before = vm.state()
    one = client(python)
    assert one.hello["program"] == bundle().digest
    one.prepare(make_order())
    report = one.get(protocol.RunResult, "run", {"id": "op-1"})["report"]
    assert report["phase"] == "Committed", report
    assert vm.signature() == NEW_SIGNATURE
    assert report["bytes_received"] > 0
    back = one.get(protocol.RunResult, "back", {"id": "op-1", "epoch": 3})["report"]
    assert back["phase"] == "RolledBack", back
    one.close()
    assert vm.state() == before


@pytest.mark.skipif(sys.platform != "linux", reason="system VMs are Linux")
def test_the_oldest_python_is_not_here_but_the_source_is_held_to_it():
    """Python 3.5 itself is not on this machine; syntax and library are checked by vermin."""
    vermin = shutil.which("vermin", path=str(Path(sys.executable).parent))
    if vermin is None:
        pytest.skip("vermin is not installed")
    folder = ROOT / "controller/sysvm/patching/remote"
    done = subprocess.run([vermin, "-t=3.5-", "--no-tips", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_cut_session_leaves_the_patch_to_finish_by_itself(vm, client):
    one = client()
    one.prepare(make_order(settle_seconds=0.5))
    one.number += 1
    one.write(framing.encode_json({"id": one.number, "verb": "run", "args": {"id": "op-1"}}))
    assert "report" in one.frame().value
    one.process.kill()
    one.process.wait()
    two = client()
    report = two.get(protocol.RunResult, "attach", {"id": "op-1"})["report"]
    assert report["phase"] == "Committed"
    assert two.get(protocol.ReportResult, "report", {"id": "op-1"})["report"] == report
    assert two.get(protocol.ReportResult, "report", {"id": "op-x"})["report"] is None


def test_progress_is_told_while_it_goes_on(vm, client):
    one = client()
    one.prepare(make_order(settle_seconds=0.6))
    report = one.get(protocol.RunResult, "run", {"id": "op-1"})["report"]
    phases = [event["report"]["phase"] for event in one.events]
    assert phases
    assert any(event["report"]["alive"] for event in one.events)
    assert report["finished_at"] is not None


def test_a_worker_that_is_killed_is_brought_to_its_end_by_the_next_session(vm, client):
    before = vm.state()
    one = client()
    one.prepare(make_order(settle_seconds=30))
    one.number += 1
    one.write(framing.encode_json({"id": one.number, "verb": "run", "args": {"id": "op-1"}}))
    while one.frame().value["report"]["phase"] not in ("Services", "Verifying"):
        pass
    pid, name = vm.store().holder()
    assert name == "op-1"
    os.kill(pid, 9)
    two = client()
    deadline = time.monotonic() + 10
    while vm.store().alive("op-1"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    begun = two.get(protocol.BeginResult, "begin", {"order": make_order()})
    assert begun["state"] == "finished"
    assert (begun["report"]["phase"], begun["report"]["reason"]) == ("RolledBack", "Interrupted")
    two.close()
    assert vm.signature() == OLD_SIGNATURE
    assert vm.state() == before
    assert vm.systemd()["cloud"] == "active"


def test_a_limit_that_systemd_refuses_is_left_out_and_told(vm, client):
    (vm.root / ".systemd/no-memory-max").touch()
    one = client()
    one.prepare(make_order())
    report = one.get(protocol.RunResult, "run", {"id": "op-1"})["report"]
    assert report["phase"] == "Committed"
    assert any("MemoryMax" in note for note in report["notes"])


def test_errors_say_what_failed_and_the_session_goes_on(vm, client):
    one = client()
    for verb, args, reason in [
        ("build", {}, "ProtocolError"),
        ("dance", {}, "ProtocolError"),
        ("digest", {}, "ProtocolError"),
        ("attach", {"id": "op-9"}, "ProtocolError"),
        ("begin", {"order": make_order(vm_type="consoleproxy")}, "TypeMismatch"),
        ("read", {"path": "/opt"}, "ProtocolError"),
    ]:
        answer = one.ask(verb, args)
        assert answer["error"]["reason"] == reason
        assert answer["error"]["changed"] is False
    body = b"x" * 10
    item = {"sha256": "a" * 64, "size": 10, "encoding": "identity", "wire_size": 10}
    assert one.ask("stage", {"items": [item]}, [body])["error"]["reason"] == "ProtocolError"
    assert one.ask("bye", {})["result"] == {}


# ------------------------------------------------------------------------------------ looking


def test_a_probe_tells_facts_and_changes_nothing(vm, client):
    before = vm.state(folder_times=True)
    one = client()
    asked = {"units": ["haproxy", "dnsmasq.service", "nothing"], "paths": ["/opt/cloud", "/var/cache/cloud/missing"]}
    probe = one.get(protocol.ProbeResult, "probe", asked)
    assert (probe["type"], probe["name"], probe["release"]) == ("router", "r-4-VM", "4.20.1")
    assert (probe["debian_version"], probe["signature"]) == ("12.5", OLD_SIGNATURE)
    assert probe["payload_checksums"]["md5"] == OLD_SIGNATURE
    assert len(probe["payload_checksums"]["sha512"]) == 128
    assert probe["booted"]
    assert probe["boot_id"] == "0c1a-boot"
    assert [(u["unit"], u["active"]) for u in probe["units"]] == [
        ("haproxy", "active"), ("dnsmasq.service", "inactive"), ("nothing", "inactive"),
    ]  # fmt: skip
    assert all(disk["available_bytes"] > 0 for disk in probe["disks"])
    assert probe["memory_available_bytes"] == 300000 * 1024
    assert probe["redundancy"] is None
    assert probe["journal"] == {"highest_epoch": 0, "unfinished": None, "last_finished": None, "backups": []}
    assert probe["abilities"]["systemd_run"]
    assert vm.state(folder_times=True) == before
    assert not (vm.root / "var/lib/sysvm").exists()


def test_a_probe_counts_the_data_bags_that_the_management_server_filled(vm, client):
    asked: dict[str, list[str]] = {"units": [], "paths": []}
    one = client()
    assert one.get(protocol.ProbeResult, "probe", asked)["data_bags"] == 0
    folder = vm.root / "etc/cloudstack"
    folder.mkdir()
    for name, text in {
        "cmdline.json": '{"id": "cmdline", "config": {"type": "router"}}',
        "ips.json": '{"id": "ips", "eth0": [{"public_ip": "10.1.1.1"}]}',
        "firewallrules.json": '{"id": "firewallrules", "0": {"purpose": "Firewall"}}',
        "vmdata.json": "x" * 70000,
        "loadbalancer.json": '{"id": "loadbalancer"}',
        "dhcpentry.json": '{"id": "dhcpentry", "entries": []}',
        "staticroutes.json": '{"id": "staticr',
        "vpnuserlist.json": "[1]",
        "other.txt": '{"id": "x", "y": 1}',
    }.items():
        (folder / name).write_text(text)
    (folder / "monitorservice.json").symlink_to("firewallrules.json")
    assert one.get(protocol.ProbeResult, "probe", asked)["data_bags"] == 2, "firewallrules, vmdata"


def test_a_probe_counts_the_rules_of_tenants_by_kind(vm, client):
    asked: dict[str, list[str]] = {"units": [], "paths": []}
    one = client()
    kinds = ("Egress", "Firewall", "LoadBalancer", "NetworkACL", "PortForwarding", "StaticNat", "VpnUser")
    assert one.get(protocol.ProbeResult, "probe", asked)["rules"] == dict.fromkeys(kinds, 0)
    folder = vm.root / "etc/cloudstack"
    folder.mkdir()
    bags: dict[str, dict] = {
        "firewallrules": {
            "0": {"traffic_type": "Egress", "type": "System"},
            "4": {"traffic_type": "Egress"},
            "5": {"traffic_type": "Ingress"},
            "6": {"traffic_type": "Ingress"},
        },
        "forwardingrules": {
            "192.0.2.1": [{"type": "staticnat", "public_ip": "192.0.2.1"}],
            "192.0.2.2": {"f1": {"type": "forward"}, "f2": {"type": "forward"}, "f3": {"type": "forward"}},
        },
        "loadbalancer": {"config": [{"add_rules": ["192.0.2.2:80:0.0.0.0/0", "192.0.2.2:443:,"]}]},
        "networkacl": {
            "eth2": {"ingress_rules": [{}, {}], "egress_rules": [{}]},
            "eth3": {"ingress_rules": [{}], "egress_rules": []},
            "eth4": {"ingress_rules": [{}], "egress_rules": [], "private_gateway_acl": True},
        },
        "vpnuserlist": {"alice": {"password": "x"}},
    }
    for name, bag in bags.items():
        (folder / (name + ".json")).write_text(json.dumps(dict(bag, id=name)))
    found = one.get(protocol.ProbeResult, "probe", asked)["rules"]
    assert found == dict(zip(kinds, (1, 2, 2, 4, 3, 1, 1), strict=True))
    (folder / "firewallrules.json").write_text("{" + " " * (1024 * 1024) + "}")
    (folder / "networkacl.json").write_text('{"eth2": [1]}')
    (folder / "loadbalancer.json").write_text('{"config')
    found = one.get(protocol.ProbeResult, "probe", asked)["rules"]
    assert sorted(found) == ["PortForwarding", "StaticNat", "VpnUser"], "what cannot be counted is not told as none"


def test_a_probe_knows_the_role_the_checks_and_the_journal(vm, client):
    with (vm.root / "var/cache/cloud/cmdline").open("a") as file:
        file.write("redundant_router=true")
    (vm.root / "etc/cloudstack").mkdir()
    (vm.root / "etc/cloudstack/cmdline.json").write_text('{"config": {"redundant_state": "BACKUP", "type": "router"}}')
    (vm.root / "root/basic_monitor_results.json").write_text(
        '{"basic": {"dns_check.py": {"success": "false"}, "router_version_check.py": {"success": "false"},'
        ' "gateways_check.py": {"success": "true"}, "lastRun": {"end": "now"}}}'
    )
    vm.prepare(with_file(make_order(), "/etc/haproxy/haproxy.cfg", b"broken\n"))
    vm.run("op-1")
    vm.prepare(make_order("op-2"))
    probe = client().get(protocol.ProbeResult, "probe", {"units": [], "paths": []})
    assert probe["redundancy"]["role"] == "PRIMARY"
    (sample,) = probe["redundancy"]["samples"]
    assert sample["redundant_state"] == "BACKUP"
    assert not sample["keepalived_active"]
    assert probe["failing_checks"] == ["dns_check.py"]
    assert probe["journal"]["unfinished"]["id"] == "op-2"
    assert probe["journal"]["last_finished"]["phase"] == "RolledBack"
    assert probe["journal"]["highest_epoch"] == 3


def test_digests_list_what_is_there_and_skip_bytecode(vm, client):
    one = client()
    args = {"paths": ["/root/func.sh", "/root/missing", "/lib"], "roots": ["/opt/cloud"], "exclude": ["*/conf/*"]}
    result = one.get(protocol.DigestResult, "digest", args)
    facts = {fact["path"]: fact for fact in result["facts"]}
    assert facts["/root/missing"]["kind"] == "absent"
    assert facts["/lib"]["link"] == "usr/lib"
    assert facts["/root/func.sh"]["sha256"] == files.checksum(str(vm.root / "root/func.sh"), "sha256")
    assert facts["/opt/cloud/bin/current"]["kind"] == "link"
    assert not [path for path in facts if "__pycache__" in path or "agent.properties" in path]
    assert not result["truncated"]
    read = one.get(protocol.ReadResult, "read", {"path": "/root/func.sh"})
    assert read["size"] == len(one.frame().content)
    assert one.get(protocol.ReadResult, "read", {"path": "/root/missing"})["size"] == -1


# ------------------------------------------------------------------------------------ console


def test_a_person_at_the_console_sees_and_takes_back(vm, client):
    before = vm.state()
    one = client()
    one.prepare(make_order())
    one.get(protocol.RunResult, "run", {"id": "op-1"})
    one.close()
    program = vm.root / f"var/lib/sysvm/program/{bundle().digest}/sysvm.pyz"
    assert program.resolve() == (vm.root / "var/lib/sysvm/program/current/sysvm.pyz").resolve()

    def console(*arguments: str) -> subprocess.CompletedProcess:
        argv = [sys.executable, str(program), "--root", str(vm.root), *arguments]
        tools = {"PATH": f"{vm.base / 'tools'}:/usr/bin:/bin"}
        return subprocess.run(argv, capture_output=True, text=True, env=tools, check=False)

    status = console("--status")
    assert status.returncode == 0
    assert "op-1: Committed, backup kept" in status.stdout
    assert console("--back", "op-7").returncode == 1
    back = console("--back", "op-1")
    assert back.returncode == 0, back.stderr
    assert "RolledBack" in back.stdout
    assert vm.state() == before
