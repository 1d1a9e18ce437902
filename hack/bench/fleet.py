"""The VMs of a run, and the files by which ssh, Ansible and the operator's code reach the same ones."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processors import Processors
from lab import Lab, SystemVMType, VMSpec
from lab.borrowed import tidy_end
from lab.relay import Traffic
from lab.spec import FABRIC, SSH_PORT, VM, Segment
from lab.state import LabState

CIPHER = "aes128-gcm@openssh.com"
"""The operator's first choice; every contestant is held to it."""
CONNECTIONS = 50
"""Of each contestant at once: xargs -P, Ansible's forks, the endpoint's connections."""


@dataclass(frozen=True)
class Fleet:
    """Some VMs of a lab that is up. `direct`: they are reached inside the lab's network, without the relay."""

    lab: Lab
    vms: tuple[VM, ...]
    work: Path
    processors: Processors
    direct: bool = False

    def address(self, vm: VM) -> str:
        return str(vm.control_address if self.direct else vm.relay_address)

    @property
    def addresses(self) -> list[str]:
        return [self.address(vm) for vm in self.vms]

    def inside(self) -> list[str]:
        """What a command starts with to run where the VMs are reached."""
        if not self.direct:
            return []
        state = LabState.load(self.lab.run_dir / "machines" / "state.json")
        assert state is not None
        return ["nsenter", f"--net=/proc/{state.toolbox_pid}/root/run/netns/{FABRIC}"]

    def traffic(self) -> Traffic:
        """Sum over these VMs since the lab is up."""
        each = [self.lab.traffic(vm.name) for vm in self.vms]
        return Traffic(
            sum(one.sent_bytes for one in each),
            sum(one.received_bytes for one in each),
            sum(one.connections for one in each),
        )

    def vm_seconds(self) -> float:
        """Processor time of these VMs since the fleet is up."""
        return self.processors.seconds(vm.name for vm in self.vms)

    @property
    def known_hosts(self) -> str:
        return "".join(f"[{self.address(vm)}]:{vm.port} {vm.host_key}\n" for vm in self.vms)

    def ssh_config(self) -> Path:
        """For every rival: keys, strict host keys, the operator's cipher, nothing of the person who runs this."""
        place = self.work / ("direct" if self.direct else "relayed")
        place.mkdir(parents=True, exist_ok=True)
        (place / "known_hosts").write_text(self.known_hosts)
        config = place / "ssh_config"
        config.write_text(
            f"User root\nPort {SSH_PORT}\nIdentityFile {self.lab.private_key}\nIdentitiesOnly yes\n"
            f"UserKnownHostsFile {place}/known_hosts\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
            f"BatchMode yes\nLogLevel ERROR\nCiphers {CIPHER}\nPreferredAuthentications publickey\n"
            "ControlMaster no\nConnectTimeout 30\n"
        )
        return config

    def inventory(self) -> Path:
        hosts = {vm.name: {"ansible_host": self.address(vm), "guest_address": _guest_address(vm)} for vm in self.vms}
        place = self.work / "inventory.json"
        place.write_text(json.dumps({"all": {"hosts": hosts}}))
        return place

    def of(self, vms: Iterable[VM], *, direct: bool = False) -> Fleet:
        return Fleet(self.lab, tuple(vms), self.work, self.processors, direct)


def _guest_address(vm: VM) -> str:
    address = vm.nic(Segment.GUEST).address
    return str(address.ip) if address is not None else ""


@contextmanager
def fleet(run_dir: Path, routers: int, storage: int) -> Iterator[Fleet]:
    """Routers and secondary storage VMs at the old release; everything is taken away at the end."""
    lab = Lab(run_dir, say=lambda line: print(f"    {line}", flush=True))
    specs = [VMSpec(name=f"r-{n}-VM", type=SystemVMType.ROUTER, index=n) for n in range(2, 2 + routers)]
    specs += [VMSpec(name=f"s-{n}-VM", type=SystemVMType.SECSTORAGE, index=n) for n in range(200, 200 + storage)]
    work = run_dir / "bench"
    with tidy_end(), contextlib.ExitStack() as after:
        try:
            lab.up(specs, release="old")
            work.mkdir(parents=True, exist_ok=True)
            processors = Processors(lab.cgroups, [spec.name for spec in specs])
            after.callback(processors.close)
            yield Fleet(lab, tuple(lab.vms()), work, processors)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            lab.down()
