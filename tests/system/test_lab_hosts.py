"""Hypervisor hosts of the lab: the only way to their VMs' control addresses, and keepers of a payload of their own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from lab import Fault, Lab, LabError, SystemVMType, VMSpec, preflight
from lab.content import payloads, releases
from lab.hosts import VMS_FOLDER, Hosts, HypervisorHost
from lab.spec import SSH_PORT

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

SAME = "169.254.9.9"
ONE = VMSpec(name="r-71-VM", type=SystemVMType.ROUTER, index=71, host="kvm-1", link_local=SAME, group="net-1")
OTHER = VMSpec(name="s-72-VM", type=SystemVMType.SECSTORAGE, index=72, host="kvm-2", link_local=SAME)
PLAIN = VMSpec(name="r-73-VM", type=SystemVMType.ROUTER, index=73, group="net-3")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([])
        for name in ("kvm-1", "kvm-2"):
            Hosts(made).add(name, release="old")
        made.add(ONE, OTHER, PLAIN, release="old")
        yield made
    finally:
        made.down()


@pytest.fixture
def hosts(lab: Lab) -> Hosts:
    return Hosts(lab)


async def hostname_behind(lab: Lab, host: HypervisorHost, address: str) -> str:
    """What answers on a link-local address behind a host, with every key checked."""
    keys = "".join(f"[{address}]:{SSH_PORT} {lab.vm(name).host_key}\n" for name in host.vms)
    async with (
        asyncssh.connect(
            str(host.address),
            host.port,
            username=host.user,
            client_keys=[str(Hosts(lab).private_key)],
            known_hosts=asyncssh.import_known_hosts(host.known_hosts_line),
            config=None,
            connect_timeout=10,
        ) as jump,
        asyncssh.connect(
            address,
            SSH_PORT,
            username="root",
            client_keys=[str(lab.private_key)],
            known_hosts=asyncssh.import_known_hosts(keys),
            tunnel=jump,
            config=None,
            connect_timeout=10,
        ) as vm,
    ):
        return str((await vm.run("hostname", check=True)).stdout).strip()


async def test_two_hosts_carry_the_same_address_and_each_leads_to_its_own_vm(lab: Lab, hosts: Hosts) -> None:
    assert await hostname_behind(lab, hosts.get("kvm-1"), SAME) == ONE.name
    assert await hostname_behind(lab, hosts.get("kvm-2"), SAME) == OTHER.name


def test_a_vm_behind_a_host_is_nowhere_else(lab: Lab, hosts: Hosts) -> None:
    ping = ["ip", "netns", "exec", "lab", "ping", "-c1", "-W1", SAME]
    with pytest.raises(Exception, match="ping"):
        lab.toolbox().run(ping)
    assert hosts.exec("kvm-1", ["ip", "-br", "link", "show", "cloud0"]).stdout.startswith("cloud0")
    assert hosts.get("kvm-1").vms == (ONE.name,)


def test_the_lab_itself_still_reaches_all_of_them(lab: Lab) -> None:
    for name in (ONE.name, OTHER.name, PLAIN.name):
        done = subprocess.run(
            lab.ssh_command(name, ["hostname"]), check=True, capture_output=True, text=True, timeout=30
        )
        assert done.stdout.strip() == name


def test_each_host_has_a_payload_and_a_name_of_its_own(lab: Lab, hosts: Hosts) -> None:
    new = releases.new()
    scripts = payloads.build_scripts(new)
    hosts.put_payload("kvm-2", scripts=scripts, agent=payloads.build_agent(new))
    told = {
        name: hosts.exec(name, ["md5sum", f"{VMS_FOLDER}/cloud-scripts.tgz"]).stdout.split()[0]
        for name in ("kvm-1", "kvm-2")
    }
    assert told == {
        "kvm-1": payloads.checksum(releases.old(), payloads.build_scripts(releases.old())),
        "kvm-2": hosts.get("kvm-2").payload_checksum(),
    }
    assert told["kvm-2"] != told["kvm-1"]
    assert sorted(each.name for each in hosts.get("kvm-1").vms_folder.iterdir()) == [
        "agent.zip",
        "cloud-scripts.tgz",
        "patch-sysvms.sh",
    ]
    assert hosts.exec("kvm-1", ["hostname"]).stdout.strip() == "kvm-1"
    assert hosts.exec("kvm-1", ["ls", "/root/.ssh"]).stdout.split() == ["id_rsa.cloud"]


async def test_a_host_whose_wire_is_broken_hides_its_vms_only(lab: Lab, hosts: Hosts) -> None:
    hosts.fault("kvm-1", Fault.REFUSE)
    try:
        with pytest.raises(OSError):
            await hostname_behind(lab, hosts.get("kvm-1"), SAME)
        assert await hostname_behind(lab, hosts.get("kvm-2"), SAME) == OTHER.name
    finally:
        hosts.fault("kvm-1", Fault.HEAL)
    assert await hostname_behind(lab, hosts.get("kvm-1"), SAME) == ONE.name


async def test_a_vm_that_moved_runs_on_and_answers_behind_the_other_host(lab: Lab, hosts: Hosts) -> None:
    spec = VMSpec(name="r-74-VM", type=SystemVMType.ROUTER, index=74, host="kvm-1", group="net-4")
    lab.add(spec, release="old")
    started = lab.exec(spec.name, "cat /proc/1/stat | cut -d' ' -f22").stdout
    hosts.move(spec.name, "kvm-2")
    vm = lab.vm(spec.name)
    assert vm.spec.host == "kvm-2"
    assert await hostname_behind(lab, hosts.get("kvm-2"), str(vm.control_address)) == spec.name
    assert lab.exec(spec.name, "cat /proc/1/stat | cut -d' ' -f22").stdout == started
    lab.reboot(spec.name)
    assert await hostname_behind(lab, hosts.get("kvm-2"), str(vm.control_address)) == spec.name
    with pytest.raises((OSError, asyncssh.Error)):
        await hostname_behind(lab, hosts.get("kvm-1"), str(vm.control_address))
    lab.remove(spec.name)


def test_a_host_that_is_not_there_is_named(hosts: Hosts) -> None:
    with pytest.raises(LabError, match="no host 'kvm-9'"):
        hosts.get("kvm-9")


def test_a_lab_that_is_down_has_no_process_of_a_host_left(tmp_path: Path) -> None:
    made = Lab(tmp_path)
    try:
        made.up([])
        Hosts(made).add("kvm-1")
    finally:
        made.down()
    assert not made.cgroups.pids()
    assert not made.cgroups.exists()
