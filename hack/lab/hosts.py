"""Hypervisor hosts: the only machines that reach their VMs' control addresses, and the ones that keep the payload.

On KVM a system VM listens on a link-local address behind its host's bridge, so whoever wants to reach it jumps through
that host, and CloudStack's agent there sends it the payload of *that host's* package. A host of the lab is a network
namespace with such a bridge, a mount namespace with its own /usr/share/cloudstack-common and /root, and a real sshd in
both, reached through the lab's relay. There is no libvirt: VMs are started by `lab.machines`.

In tests::

    lab.up([])
    hosts = Hosts(lab)
    hosts.add("kvm-1")               # before the VMs that run on it
    lab.add(VMSpec(name="r-7-VM", type=SystemVMType.ROUTER, index=7, host="kvm-1"), release="old")
    host = hosts.get("kvm-1")        # host.address, .port, .user, .known_hosts_line, .vms_folder, .vms
    hosts.private_key                # logs in to every host
    lab.vm("r-7-VM").control_address # from there only
    hosts.put_payload("kvm-1", scripts=payloads.build_scripts(release), agent=payloads.build_agent(release))
    hosts.fault("kvm-1", Fault.CUT)  # its wire, as a VM's
    hosts.move("r-7-VM", "kvm-2")    # a migration: the control NIC hangs on another bridge, the guest runs on
"""

from __future__ import annotations

import hashlib
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from pathlib import Path

from lab import network
from lab.machines import Lab, LabError
from lab.relay import Fault, Traffic
from lab.spec import Segment
from lab.state import HostRecord, LabState
from lab.toolbox import Toolbox

PORT = 2222
"""Where the hosts' sshd are reached on the loopback; inside, they listen on 22."""

VMS_FOLDER = "/usr/share/cloudstack-common/vms"
"""Where a host keeps the payload (CloudStack 4.21 LibvirtComputingResource.BASEPATH)."""

LARGEST_HOST = 99
_START_SECONDS = 15.0
_SSHD = """\
Port 22
ListenAddress 127.0.0.1
HostKey {folder}/ssh_host_ed25519_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
UseDNS no
PasswordAuthentication no
PermitRootLogin yes
AllowTcpForwarding yes
MaxStartups 1000
MaxSessions 1000
LogLevel ERROR
Subsystem sftp internal-sftp
"""
# Arguments: the host's name, its folder.
_RUN = r"""
set -eu
name=$1; here=$2
mkdir -p /usr/share/cloudstack-common /run/sshd
mount --bind "$here/common" /usr/share/cloudstack-common
mount --bind "$here/root" /root
hostname "$name"
exec /usr/sbin/sshd -D -e -f "$here/sshd_config"
"""


@dataclass(frozen=True, kw_only=True)
class HypervisorHost:
    """One host of a lab that is up.

    `address`:`port` is where its sshd is reached from this machine. `host_key` is the public part. `vms_folder` is its
    VMS_FOLDER as this process can reach it, `vms` the names of the VMs that it carries now.
    """

    name: str
    address: IPv4Address
    host_key: str
    vms_folder: Path
    vms: tuple[str, ...]
    port: int = PORT
    user: str = "root"

    @property
    def known_hosts_line(self) -> str:
        """Its line in an OpenSSH known_hosts file, with the newline."""
        return f"[{self.address}]:{self.port} {self.host_key}\n"

    def payload_checksum(self, algorithm: str = "md5") -> str:
        """Of its cloud-scripts.tgz, as CloudStack computes a signature. Raises FileNotFoundError."""
        content = (self.vms_folder / "cloud-scripts.tgz").read_bytes()
        return hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()


class Hosts:
    """The hypervisor hosts of a lab. Like `Lab` it keeps nothing in memory that matters."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    @property
    def _folder(self) -> Path:
        return self._lab.private_key.parent / "hosts"

    @property
    def private_key(self) -> Path:
        """The key that root of every host accepts, made for this run."""
        return self._folder / "id_ed25519"

    def all(self) -> list[HypervisorHost]:
        state, _ = self._lab.opened()
        return [self._host(state, record) for record in state.hosts.values()]

    def get(self, name: str) -> HypervisorHost:
        """Raises LabError when there is no such host."""
        state, _ = self._lab.opened()
        return self._host(state, self._record(state, name))

    def known_hosts(self) -> str:
        """The host keys of all as an OpenSSH known_hosts file."""
        return "".join(host.known_hosts_line for host in self.all())

    def add(self, name: str, *, release: str = "") -> HypervisorHost:
        """Makes a host with the payload of a release (its name or version; empty: old) and waits for its sshd."""
        from lab.content import payloads, releases

        with self._lab.changing() as (state, toolbox):
            if name in state.hosts or name in state.machines:
                raise LabError(f"there is a {name} in the lab already")
            index = 1 + max((host.index for host in state.hosts.values()), default=0)
            if index > LARGEST_HOST:
                raise LabError(f"a lab has at most {LARGEST_HOST} hypervisor hosts")
            chosen = releases.find(release)
            self._lay_out(toolbox, name)
            self.put_payload(name, scripts=payloads.build_scripts(chosen), agent=payloads.build_agent(chosen))
            public = (self._folder / name / "ssh_host_ed25519_key.pub").read_text().strip()
            record = HostRecord(name, index, public)
            self._start(toolbox, record)
            state.hosts[name] = record
            host = self._host(state, record)
        self._await_banner(host)
        return host

    def _lay_out(self, toolbox: Toolbox, name: str) -> None:
        folder = self._folder / name
        (folder / "common" / "vms").mkdir(parents=True)
        (folder / "root" / ".ssh").mkdir(parents=True, mode=0o700)
        keygen: list[str | Path] = ["ssh-keygen", "-q", "-t", "ed25519", "-N", ""]
        if not self.private_key.exists():
            toolbox.run([*keygen, "-C", "lab-hosts", "-f", self.private_key])
        toolbox.run([*keygen, "-C", name, "-f", folder / "ssh_host_ed25519_key"])
        (folder / "authorized_keys").write_text(self.private_key.with_suffix(".pub").read_text())
        (folder / "sshd_config").write_text(_SSHD.format(folder=folder))
        # What CloudStack's server gives each host, for a person who logs in from there.
        cloud_key = folder / "root" / ".ssh" / "id_rsa.cloud"
        cloud_key.write_bytes(self._lab.private_key.read_bytes())
        cloud_key.chmod(0o600)

    def _start(self, toolbox: Toolbox, record: HostRecord) -> None:
        namespace = network.host_namespace(record.name)
        toolbox.run(["ip", "netns", "add", namespace])
        toolbox.run(["ip", "-n", namespace, "-batch", "-"], text="\n".join(network.host_lines()) + "\n")
        folder = self._folder / record.name
        inside = ["nsenter", f"--net=/run/netns/{namespace}", "unshare", "--mount", "--uts", "--propagation", "private"]
        self._lab.cgroups.launch(
            f"hosts/{record.name}",
            [*toolbox.enter(), *inside, "sh", "-c", _RUN, "host", record.name, folder],
            log=folder / "sshd.log",
        )
        self._lab.relay.add(
            record.name,
            record.index,
            "127.0.0.1",
            namespace=toolbox.path(Path("/run/netns") / namespace),
            target_port=22,
            port=PORT,
        )

    def _await_banner(self, host: HypervisorHost) -> None:
        end = time.monotonic() + _START_SECONDS
        while True:
            try:
                with socket.create_connection((str(host.address), host.port), timeout=1) as connection:
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            if time.monotonic() > end:
                log = (self._folder / host.name / "sshd.log").read_text(errors="replace").strip()
                raise LabError(f"{host.name} does not answer on {host.address}:{host.port}; its sshd said: {log}")
            time.sleep(0.05)

    def put_payload(self, name: str, *, scripts: bytes, agent: bytes | None) -> None:
        """What an upgrade of a host's package does: other files in its VMS_FOLDER, each replaced as a whole."""
        from lab.content import cloudstack_patch

        files = {
            "cloud-scripts.tgz": scripts,
            "agent.zip": agent,
            "patch-sysvms.sh": cloudstack_patch.SCRIPT.read_bytes(),
        }
        folder = self._folder / name / "common" / "vms"
        for file, content in files.items():
            if content is None:
                (folder / file).unlink(missing_ok=True)
                continue
            partial = folder / f".{file}.partial"
            partial.write_bytes(content)
            partial.chmod(0o644)
            partial.replace(folder / file)

    def exec(self, name: str, command: Sequence[str], *, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs a command on a host through its namespaces, not over ssh. Its exit code is the caller's affair."""
        state, toolbox = self._lab.opened()
        self._record(state, name)
        sshd = min(self._lab.cgroups.pids(f"hosts/{name}"), default=None)
        if sshd is None:
            raise LabError(f"{name} is off")
        # The mount namespace is sshd's own; the toolbox's prefix sets the clean environment.
        enter = ["nsenter", "-t", str(sshd), "-m", "-n", "-u", "-r", "-w", "--", *toolbox.enter()[7:]]
        return subprocess.run(
            [*enter, *command], check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout
        )

    def fault(self, name: str, fault: Fault | str, *, delay_seconds: float = 0.0) -> None:
        """Breaks or heals the wire between this machine and a host."""
        self._record(self._lab.opened()[0], name)
        self._lab.relay.fault(name, Fault(fault), delay_seconds=delay_seconds)

    def traffic(self, name: str) -> Traffic:
        """What the wire to a host has carried since the host was made."""
        return self._lab.relay.traffic(name)

    def move(self, vm: str, host: str) -> None:
        """Migrates a running VM: from one moment to the next its control address is reached from another host only."""
        with self._lab.changing() as (state, toolbox):
            target = self._record(state, host)
            record = state.machines[vm]
            source = record.spec.host
            self._record(state, source)
            before = self._lab.vm(vm).nic(Segment.CONTROL)
            record.spec = replace(record.spec, host=target.name)
            control = next(
                nic
                for nic in network.nics_of(record.spec, network=record.network, hosts=state.hosts)
                if nic.segment is Segment.CONTROL
            )
            link = network.host_link(record.spec, control)
            if self._lab.is_on(vm):
                toolbox.run(["ip", "-n", before.namespace, "link", "set", link, "netns", control.namespace])
                toolbox.run(["ip", "-n", control.namespace, "link", "set", link, "master", control.bridge, "up"])
            self._lab.relay.remove(vm)
        moved = self._lab.vm(vm)
        self._lab.write_wires(moved)
        place = self._lab.toolbox().path(Path("/run/netns") / control.namespace)
        self._lab.relay.add(vm, moved.spec.index, str(moved.control_address), namespace=place)

    def _host(self, state: LabState, record: HostRecord) -> HypervisorHost:
        return HypervisorHost(
            name=record.name,
            address=network.relay_address(state.slot, record.index),
            host_key=" ".join(record.host_key.split()[:2]),
            vms_folder=self._folder / record.name / "common" / "vms",
            vms=tuple(name for name, machine in state.machines.items() if machine.spec.host == record.name),
        )

    @staticmethod
    def _record(state: LabState, name: str) -> HostRecord:
        try:
            return state.hosts[name]
        except KeyError:
            raise LabError(f"there is no host {name!r} in the lab; there are: {', '.join(state.hosts)}") from None
