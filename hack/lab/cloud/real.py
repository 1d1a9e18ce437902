"""The stand-in's effects on the lab's real system VMs, done the way CloudStack's host agent does them.

A start copies the payload of the VM's *host* while the VM's own boot waits for it; a live patch copies the same three
files and runs CloudStack's script (re-created: `lab.content.cloudstack_patch`) over ssh from that host; a new disk is
one of the template's release, as if nothing had ever been started from it. What the VM then says of itself is asked
for in the same way, and believed.

What is not CloudStack's: the templates are releases of `lab.content`, a router serves one tier whatever its VPC has,
and its rules come from a unit in the VM that plays the server's part after each boot.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from lab import content, spec
from lab.cloud.machines import NOT_PATCHING, PATCHED, MachineError, Patched, Told
from lab.cloud.records import AGENT_TYPES, VM, Host
from lab.cloud.world import World
from lab.content import bootline, layout, payloads
from lab.content.layout import AGENT_HOME, CACHE, LAB_SETTINGS, PUSHES
from lab.content.releases import Release
from lab.content.tree import Tree
from lab.guest import GuestError
from lab.hosts import VMS_FOLDER, Hosts
from lab.machines import Lab, LabError
from lab.spec import SSH_PORT, RedundancyRole, Segment, SystemVMType, VMSpec

FILES = ("agent.zip", "cloud-scripts.tgz", "patch-sysvms.sh")
"""The payload in the order in which it is copied (CloudStack 4.21 ServerResource.systemVmPatchFiles)."""

_BOOT_WAIT_SECONDS = 60
_SSH_UP_SECONDS = 60.0
_PATCH_SECONDS = 600.0
_COPIES = 3
_FIRST_INDEX, _LAST_INDEX = 10, 240
_SSH_OPTIONS = (
    *("-i", "/root/.ssh/id_rsa.cloud", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
    *("-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
)
_KEYSTORE_FILES = ("cloud.jks", "cloud.key", "cloud.crt", "cloud.ca.crt", "cloud.csr")


def new_disk(root: Path, vm: spec.VM, *, release: str, authorized_key: str, host_key: str) -> None:
    """A disk of a template nobody has started: no agent yet, and a boot that waits for the host's payload."""
    content.lay_out(root, vm, release=release, authorized_key=authorized_key, host_key=host_key)
    tree = Tree(root)
    shutil.rmtree(tree.path(AGENT_HOME), ignore_errors=True)
    tree.write(LAB_SETTINGS, f"PAYLOAD_WAIT_SECONDS={_BOOT_WAIT_SECONDS}\n")


class LabMachines:
    """`Machines` over a lab that is up and whose hosts are there; VMs of the world and of the lab share their names."""

    def __init__(self, lab: Lab, world: World) -> None:
        self._lab = lab
        self._fresh = Lab(lab.run_dir, lay_out=new_disk)
        self._hosts = Hosts(lab)
        self._world = world
        self._indices: dict[str, int] = {}

    # -- what was there before -------------------------------------------------------------------------------------

    async def adopt(self, vms: Iterable[VM], *, release: str = "") -> None:
        """Boots VMs that the world says run, all at once, at a release; the world then knows what they say."""
        vms = list(vms)
        specs = [self._spec(vm) for vm in vms]
        await asyncio.to_thread(self._lab.add, *specs, release=release)
        for vm in vms:
            # From now on a boot finds a host that sends a payload.
            waits = f"PAYLOAD_WAIT_SECONDS={_BOOT_WAIT_SECONDS}\n"
            await asyncio.to_thread(self._lab.write_bytes, vm.name, LAB_SETTINGS, waits.encode())
            self._learn_addresses(vm)
            told = await self._ask(vm)
            vm.inside.boots = 1
            self._remember(vm, told)
            if vm.type in AGENT_TYPES:
                vm.agent_state = "Up"
            self._world.told(vm, told.template_version, told.signature)
        for vm_id, role in (await self.roles([vm for vm in vms if vm.redundant])).items():
            self._world.vms[vm_id].role = role

    def install_packages(self, release: Release, *, hosts: Iterable[Host] | None = None) -> None:
        """What an upgrade of cloudstack-common on hypervisor hosts does; all of them unless some are named."""
        scripts, agent = payloads.build_scripts(release), payloads.build_agent(release)
        for host in self._world.hosts.values() if hosts is None else hosts:
            self._hosts.put_payload(host.name, scripts=scripts, agent=agent)
            host.payload, host.version = payloads.checksum(release, scripts), f"{release.version}.0"

    # -- Machines --------------------------------------------------------------------------------------------------

    async def start(self, vm: VM, *, new_disk: bool) -> Told:
        host = self._host_of(vm)
        try:
            await self._boot(vm, host, from_template=new_disk)
            self._learn_addresses(vm)
            told = await self._ask(vm)
            if vm.type in AGENT_TYPES:
                await asyncio.to_thread(self._certify, vm)
            elif not vm.redundant:
                await asyncio.to_thread(self._announce, vm)
        except (LabError, GuestError, subprocess.TimeoutExpired) as problem:
            raise MachineError(str(problem)) from problem
        self._remember(vm, told)
        vm.inside.boots += 1
        return told

    async def _boot(self, vm: VM, host: str, *, from_template: bool) -> None:
        exists = vm.name in {each.name for each in await asyncio.to_thread(self._lab.vms)}
        if from_template and exists:
            await asyncio.to_thread(self._lab.remove, vm.name)
            exists = False
        if exists and vm.type in AGENT_TYPES:
            # Its boot waits for nothing, because signature and stored payload agree: the copy is there before the
            # boot cleans up, which stores it for the next one.
            for file in FILES:
                content = (self._hosts.get(host).vms_folder / file).read_bytes()
                await asyncio.to_thread(self._lab.write_bytes, vm.name, f"{CACHE}/{file}", content)
            await asyncio.to_thread(self._lab.power_on, vm.name)
            return
        async with asyncio.TaskGroup() as both:
            if exists:
                if self._lab.vm(vm.name).spec.host != host:
                    await asyncio.to_thread(self._hosts.move, vm.name, host)
                both.create_task(asyncio.to_thread(self._lab.power_on, vm.name))
            else:
                made = self._spec(vm)
                both.create_task(asyncio.to_thread(self._fresh.add, made, release=vm.template.version))
            both.create_task(self._send_when_up(vm, host))

    async def _send_when_up(self, vm: VM, host: str) -> None:
        """Polls the port and copies (CloudStack 4.21 LibvirtStartCommandWrapper)."""
        end = time.monotonic() + _SSH_UP_SECONDS
        while True:
            try:
                address = str((await asyncio.to_thread(self._lab.vm, vm.name)).control_address)
                done = await self._copy(host, address)
                if done.returncode == 0:
                    return
                problem = done.stderr.strip()
            except (LabError, subprocess.TimeoutExpired) as not_yet:
                problem = str(not_yet)
            if time.monotonic() > end:
                raise MachineError(f"Failed to scp files to system VM. Patching of systemVM failed due to: {problem}")
            await asyncio.sleep(0.2)

    async def stop(self, vm: VM) -> None:
        await self._done(lambda name: self._lab.stop(name), vm.name)

    async def remove(self, vm: VM) -> None:
        if vm.name in self._indices:
            await self._done(self._lab.remove, vm.name)
            del self._indices[vm.name]

    async def reboot(self, vm: VM) -> None:
        await self._done(lambda name: self._lab.reboot(name), vm.name)
        vm.inside.boots += 1

    async def patch(self, vm: VM, *, forced: bool) -> Patched:
        """Checksums first, then three files, then the script, whose last word is the new signature."""
        host = self._host_of(vm)
        address = vm.control_address or ""
        try:
            told = await self._ask(vm)
        except MachineError as problem:
            return Patched(False, str(problem), None)
        if not forced and told.signature == self._hosts.get(host).payload_checksum():
            return Patched(True, NOT_PATCHING.format(name=vm.name), told)
        for _ in range(_COPIES):
            copied = await self._copy(host, address)
            if copied.returncode == 0:
                break
        else:
            return Patched(False, f"Failed to scp files to system VM due to, {copied.stderr.strip()}", told)
        script = f"{CACHE}/patch-sysvms.sh"
        done = await self._ssh(host, address, f"chmod 755 {script} && {script}", timeout=_PATCH_SECONDS)
        vm.inside.patches += 1
        output = (done.stdout + done.stderr).replace("\n", " ")
        if done.returncode != 0:
            return Patched(False, output.strip(), told)
        parts = output.split(":")
        # Anything else on either stream, and the server keeps the signature it had (mended in 4.20.2 and 4.22).
        signature = parts[1].strip() if len(parts) == 2 else told.signature
        told = Told(told.template_version, signature)
        self._remember(vm, told)
        return Patched(True, PATCHED, told)

    async def program(self, vm: VM) -> None:
        """Sends a router what the server has of it: all its rules, and which versions it should have."""
        try:
            await asyncio.to_thread(self._write_versions, vm)
            await self._ssh(
                self._host_of(vm),
                vm.control_address or "",
                "systemctl restart lab-management-push.service",
                timeout=120,
            )
        except (LabError, GuestError, subprocess.TimeoutExpired) as problem:
            raise MachineError(str(problem)) from problem
        vm.inside.programmed += 1

    async def roles(self, vms: Iterable[VM]) -> Mapping[str, RedundancyRole]:
        found: dict[str, RedundancyRole] = {}
        for vm in vms:
            if vm.name in self._indices:
                found[vm.id] = await asyncio.to_thread(self._lab.role, vm.name)
        return found

    # -- inner -----------------------------------------------------------------------------------------------------

    @staticmethod
    async def _done(act: Callable[[str], None], name: str) -> None:
        try:
            await asyncio.to_thread(act, name)
        except (LabError, GuestError, subprocess.SubprocessError) as problem:
            raise MachineError(str(problem)) from problem

    def _host_of(self, vm: VM) -> str:
        if vm.host is None:
            raise MachineError(f"{vm.name} has no host")
        return vm.host.name

    def _spec(self, vm: VM) -> VMSpec:
        """Where and as what a VM of the world is made in the lab."""
        host = self._host_of(vm)
        if vm.name not in self._indices:
            free = set(range(_FIRST_INDEX, _LAST_INDEX)) - set(self._indices.values())
            self._indices[vm.name] = min(free)
        tier_of = vm.vpc or (vm.network.vpc if vm.network else None)
        group = tier_of.name if tier_of else vm.network.name if vm.network else None
        owners = [each.name for each in self._world.networks.values()] + [
            each.name for each in self._world.vpcs.values()
        ]
        keeps = vm.type in (SystemVMType.ROUTER, SystemVMType.VPCROUTER) and not vm.redundant and group is not None
        return VMSpec(
            name=vm.name,
            type=vm.type,
            index=self._indices[vm.name],
            group=group,
            redundant=vm.redundant,
            priority=vm.priority,
            host=host,
            link_local=self._link_local(vm, host),
            public_address=f"198.18.4.{1 + owners.index(group)}" if keeps and group else None,
        )

    def _link_local(self, vm: VM, host: str) -> str:
        """The lowest free one of the host: two hosts hand out the same ones, as KVM hosts do."""
        state, _ = self._lab.opened()
        planned = {each.control_address for each in self._world.vms.values() if each.host is vm.host and each is not vm}
        taken = {m.spec.link_local for m in state.machines.values() if m.spec.host == host} | planned
        vm.control_address = next(a for n in range(2, 250) if (a := f"169.254.7.{n}") not in taken)
        return vm.control_address

    def _learn_addresses(self, vm: VM) -> None:
        made = self._lab.vm(vm.name)
        vm.control_address = str(made.control_address)
        by_segment = {nic.segment: bootline.held_address(nic) for nic in made.nics}
        for segment, name in (
            (Segment.PRIVATE, "private_address"),
            (Segment.PUBLIC, "public_address"),
            (Segment.GUEST, "guest_address"),
        ):
            address = by_segment.get(segment)
            setattr(vm, name, str(address.ip) if address else None)
        if vm.network is not None and vm.guest_address is not None:
            vm.network.number = int(vm.guest_address.split(".")[2])

    async def _ask(self, vm: VM) -> Told:
        """The release line and the signature, by CloudStack's own script on the VM."""
        done = await self._ssh(
            self._host_of(vm), vm.control_address or "", "/opt/cloud/bin/get_template_version.sh", timeout=300
        )
        line, _, signature = done.stdout.strip().partition("&")
        if done.returncode != 0 or not signature:
            raise MachineError(f"{vm.name} does not tell its version: {(done.stderr or done.stdout).strip()}")
        return Told(line.split()[2], signature)

    @staticmethod
    def _remember(vm: VM, told: Told) -> None:
        if vm.host is not None and told.signature != vm.inside.signature:
            vm.inside.agent_version = vm.host.version
        vm.inside.template_version, vm.inside.signature = told.template_version, told.signature
        vm.inside.payload = told.signature

    async def _copy(self, host: str, address: str) -> subprocess.CompletedProcess[str]:
        files = [f"{VMS_FOLDER}/{file}" for file in FILES]
        argv = ["scp", "-q", *_SSH_OPTIONS, "-P", str(SSH_PORT), *files, f"root@{address}:{CACHE}/"]
        return await self._on_host(host, argv, timeout=180)

    async def _ssh(self, host: str, address: str, command: str, *, timeout: float) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", *_SSH_OPTIONS, "-p", str(SSH_PORT), f"root@{address}", command]
        return await self._on_host(host, argv, timeout=timeout)

    async def _on_host(self, host: str, argv: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(self._hosts.exec, host, argv, timeout=timeout)

    def _announce(self, vm: VM) -> None:
        """A router that is alone tells its neighbours where its addresses are now (CloudStack 4.21 CsAddress.py)."""
        for nic in self._lab.vm(vm.name).nics:
            if nic.segment in (Segment.GUEST, Segment.PUBLIC) and nic.address is not None:
                words = ["arping", "-c", "1", "-U", "-I", nic.name, str(nic.address.ip)]
                self._lab.exec(vm.name, words, check=False)

    def _certify(self, vm: VM) -> None:
        """What the server does once an agent is there: a keystore, an identity (CloudStack 4.21 CAManager)."""
        for name in _KEYSTORE_FILES:
            if name == "cloud.jks" or not self._has(vm, f"{AGENT_HOME}/conf/{name}"):
                self._lab.write_bytes(vm.name, f"{AGENT_HOME}/conf/{name}", f"{vm.name} {name}\n".encode() * 40)
        path = f"{AGENT_HOME}/conf/agent.properties"
        text = self._lab.read_bytes(vm.name, path).decode()
        added = [line for line in (f"guid={vm.name}-guid", "keystore.passphrase=lab-keystore") if line not in text]
        if added:
            self._lab.write_bytes(vm.name, path, (text + "".join(f"{line}\n" for line in added)).encode())
            self._lab.exec(vm.name, ["systemctl", "restart", "cloud"])

    def _has(self, vm: VM, path: str) -> bool:
        return self._lab.exec(vm.name, ["test", "-e", path], check=False).returncode == 0

    def _write_versions(self, vm: VM) -> None:
        """The monitor push carries what the database has, which router_version_check.py compares the VM with."""
        found = self._lab.exec(vm.name, f"ls {PUSHES}/*monitor_service.json", check=False).stdout.split()
        if not found:
            return
        push = json.loads(self._lab.read_bytes(vm.name, found[0]))
        push["config"]["health_checks_data"]["routerVersion"] = {
            "templateVersion": self._lab.read_bytes(vm.name, layout.RELEASE_FILE).decode().strip(),
            "scriptsVersion": vm.scripts_version or "",
        }
        self._lab.write_bytes(vm.name, found[0], bootline.as_json(push))
