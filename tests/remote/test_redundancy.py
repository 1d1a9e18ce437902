"""What a router of a pair is, by facts: read from a scratch VM, and asked of a real guest network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.remote import systemd
from tests.remote.vm import FakeHost, write

from sysvm.patching import protocol
from sysvm.patching.remote import redundancy
from sysvm.patching.remote.host import Outcome

KEEPALIVED = b"""
! written by a script
vrrp_instance inside_network {
    interface eth0
    advert_int 2
    virtual_ipaddress {
        10.1.1.1/24 brd + dev eth0
        10.1.2.1/24 brd + dev eth3
    }
    # virtual_ipaddress { 9.9.9.9 }
}
"""
ADDRESSES = "2: eth0    inet 10.1.1.5/24 brd 10.1.1.255 scope global eth0\\ valid\n"
HELD = "2: eth0    inet 10.1.1.1/24 scope global secondary eth0\n5: eth3    inet 10.1.2.1/24 scope global eth3\n"
LINKS = (
    "2: eth0@if6: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1500\\    link/ether 02:4c:01:00:00:00 brd ff:ff:ff:ff:ff:ff\n"
    "4: eth2: <{0}> mtu 1500\\    link/ether 02:4c:01:00:00:02 brd ff:ff:ff:ff:ff:ff\n"
    "5: eth3: <BROADCAST,UP> mtu 1500\\    link/ether 02:4c:01:00:00:03 brd ff:ff:ff:ff:ff:ff\n"
)
STATS = """cache internal:
current active connections:\t          41
connections created:\t\t          99\tfailed:\t           0

cache external:
current active connections:\t          37

traffic processed:
"""


class PairHost(FakeHost):
    """A router whose kernel and conntrackd are texts."""

    addresses = ADDRESSES
    public = "BROADCAST,MULTICAST"
    statistics: str | None = STATS

    def run(self, argv, timeout, folder="/", merged=True):
        if argv[0] == "ip":
            text = self.addresses if "addr" in argv else LINKS.replace("{0}", self.public)
            return Outcome(argv, 0, text)
        if argv[0] == "conntrackd":
            return Outcome(argv, 1 if self.statistics is None else 0, self.statistics or "can't connect")
        return super().run(argv, timeout, folder, merged)


@pytest.fixture
def host(vm, monkeypatch) -> PairHost:
    write(vm.root / "etc/keepalived/keepalived.conf", KEEPALIVED)
    write(vm.root / "ramdisk/rrouter/keepalived.ts", b"1\n", age=3)
    bag = {"eth0": [{"nw_type": "guest"}], "eth2": [{"nw_type": "public", "add": True}], "id": "ips"}
    write(vm.root / "etc/cloudstack/ips.json", json.dumps(bag).encode())
    write(vm.root / "etc/cloudstack/cmdline.json", b'{"config": {"redundant_state": "BACKUP"}, "id": "cmdline"}')
    for unit in ("keepalived", "conntrackd"):
        systemd.install(str(vm.root), unit, active=True)
    answers = {"10.1.1.1": ["02:aa:00:00:00:00"], "10.1.2.1": ["02:aa:00:00:00:03"]}
    monkeypatch.setattr(redundancy, "who_has", lambda asked: {(a, d): answers[a] for a, d, _ in asked})
    return PairHost(str(vm.root))


def test_a_backup_is_told_by_every_fact(host):
    said = redundancy.facts(host)
    assert protocol.parse(protocol.RedundancyState, said)
    (one,) = said["samples"]
    assert [(each["address"], each["held"], each["mac"]) for each in one["gateways"]] == [
        ("10.1.1.1", False, "02:4c:01:00:00:00"),
        ("10.1.2.1", False, "02:4c:01:00:00:03"),
    ]
    assert (one["redundant_state"], one["public_up"]) == ("BACKUP", False)
    assert (one["flows"], one["replicated_flows"]) == (41, 37)
    assert 2 <= one["heartbeat_age_seconds"] < 60
    assert redundancy.role_of(one) == ("BACKUP", None)
    assert redundancy.settings(host) == (2.0, [("10.1.1.1", "eth0"), ("10.1.2.1", "eth3")])


def test_a_primary_holds_all_gateways_and_nobody_else_answers(host, monkeypatch):
    host.addresses, host.public = ADDRESSES + HELD, "BROADCAST,UP"
    write(Path(host.root) / "etc/cloudstack/cmdline.json", b'{"config": {"redundant_state": "PRIMARY"}}')
    monkeypatch.setattr(redundancy, "who_has", lambda asked: {(a, d): [] for a, d, _ in asked})
    assert redundancy.role_of(redundancy.sample(host)) == ("PRIMARY", None)
    assert redundancy.holds_gateway(host)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"keepalived_active": False}, "not active"),
        ({"gateways": []}, "no gateway"),
        ({"redundant_state": "PRIMARY"}, "redundant_state says PRIMARY"),
        ({"redundant_state": None}, "redundant_state says None"),
        ({"public_up": True}, "public interface is up"),
        ({"heartbeat_age_seconds": 10.5}, "heartbeat"),
        ({"heartbeat_age_seconds": None}, "heartbeat"),
        ({"conntrackd_active": False}, "conntrackd"),
    ],
)
def test_one_fact_that_contradicts_leaves_no_role(host, wrong, said):
    role, why = redundancy.role_of(dict(redundancy.sample(host), **wrong))
    assert role is None
    assert said in why


@pytest.mark.parametrize(("answers", "said"), [([], "nobody"), (["02:aa", "02:bb"], "02:aa, 02:bb")])
def test_a_backup_hears_exactly_one_primary(host, answers, said):
    one = redundancy.sample(host)
    one["gateways"][1]["answers"] = answers
    role, why = redundancy.role_of(one)
    assert role is None
    assert f"{said} answers for the gateway 10.1.2.1" in why


def test_some_gateways_here_and_some_there_is_no_role(host):
    host.addresses = ADDRESSES + HELD.splitlines(keepends=True)[0]
    assert "some of its gateways" in redundancy.role_of(redundancy.sample(host))[1]


def test_what_cannot_be_read_is_not_guessed(host):
    root = Path(host.root)
    write(root / "etc/cloudstack/ips.json", b'{"eth2": [{"nw_ty')
    write(root / "etc/cloudstack/cmdline.json", b"")
    (root / "ramdisk/rrouter/keepalived.ts").unlink()
    host.statistics = None
    one = redundancy.sample(host)
    assert protocol.parse(protocol.RedundancySample, dict(one, age_seconds=0.0))
    assert (one["public_up"], one["redundant_state"], one["heartbeat_age_seconds"]) == (None, None, None)
    assert (one["conntrackd_active"], one["flows"], one["conntrackd_lock"]) == (False, None, None)


def test_a_conntrackd_that_cannot_start_names_the_lock_file_in_its_way(host):
    host.statistics = None
    root = Path(host.root)
    write(root / "etc/conntrackd/conntrackd.conf", b"General {\n    LockFile /run/lock/conntrackd.lock\n}\n")
    write(root / "run/lock/conntrackd.lock", b"")
    one = redundancy.sample(host)
    assert one["conntrackd_lock"] == "/run/lock/conntrackd.lock"
    assert "left its lock file /run/lock/conntrackd.lock" in redundancy.role_of(one)[1]


def test_samples_are_taken_apart_and_bounded(host, monkeypatch):
    waited = []
    monkeypatch.setattr(PairHost, "wait", lambda self, seconds: waited.append(seconds))
    said = redundancy.facts(host, samples=99, pause_seconds=99)
    assert len(said["samples"]) == redundancy.MAX_SAMPLES
    due = [number * redundancy.MAX_PAUSE_SECONDS for number in range(redundancy.MAX_SAMPLES)]
    assert waited == pytest.approx(due, abs=5.0), "by the clock: no time passes here, so each wait is to its own moment"
    assert [one["age_seconds"] for one in said["samples"]] == sorted(
        (one["age_seconds"] for one in said["samples"]), reverse=True
    )


# ------------------------------------------------------------------------------------ a real guest network

NETWORK = """
set -e
ip link set lo up
echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore
ip link add br0 type bridge
ip link set br0 up
for name in asker one two; do
  ip link add $name type veth peer name p$name
  ip link set p$name master br0 up
  ip link set $name up
done
ip link set asker address 02:00:00:00:00:0a
ip link set one address 02:00:00:00:00:01
ip link set two address 02:00:00:00:00:02
ip addr add 10.9.9.1/24 dev one
ip addr add 10.9.9.2/24 dev one
ip addr add 10.9.9.2/24 dev two
exec "$@"
"""
ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from sysvm.patching.remote import redundancy
mac = "02:00:00:00:00:0a"
asked = [("10.9.9.%d" % n, "asker", mac) for n in (1, 2, 3)] + [("10.9.9.1", "nothing", None)]
asked.append(("10.9.9.1", "one", "02:00:00:00:00:01"))
found = redundancy.who_has(asked)
print(json.dumps([found[(address, device)] for address, device, _ in asked]))
print(open("/proc/net/arp").read().count("asker"))
"""


@pytest.mark.skipif(os.getuid() != 0, reason="a network of its own needs root")
def test_the_guest_network_is_asked_who_has_the_gateway():
    folder = str(Path(redundancy.__file__).parents[3])
    if subprocess.run(["unshare", "-n", "ip", "link", "add", "br0", "type", "bridge"], check=False).returncode:
        pytest.skip("no network namespaces with bridges here")
    began = time.monotonic()
    done = subprocess.run(
        ["unshare", "-n", "sh", "-c", NETWORK, "sh", sys.executable, "-c", ASK, folder],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    answers, learned = done.stdout.splitlines()
    one, two = "02:00:00:00:00:01", "02:00:00:00:00:02"
    assert json.loads(answers) == [[one], [one, two], [], None, []], "the last: its own address, that no other has"
    assert learned == "0", "a probe enters no table"
    assert time.monotonic() - began < 30
