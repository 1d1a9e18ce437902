"""How the product's patcher reaches a VM of the lab, and what it is ordered there.

Apart from the lab, which knows only the product's API.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from lab import Lab
from lab.hosts import Hosts
from lab.spec import SSH_PORT
from sysvm.api.endpoint import HostKeyPolicy, SystemVMType
from sysvm.patching.results import HostLogin, HostPlace, Order, SSHAccount, Target, Through


def target_of(lab: Lab, name: str, *, pool: str = "lab") -> Target:
    """The VM through the lab's relay, with its key and the host keys that the lab made. Raises what `Lab.vm` raises."""
    vm = lab.vm(name)
    account = SSHAccount(
        user="root",
        port=vm.port,
        private_key=lab.private_key.read_bytes(),
        host_key_policy=HostKeyPolicy.STRICT,
        known_hosts=lab.known_hosts(),
        pool=pool,
    )
    return Target(name=name, type=SystemVMType(vm.spec.type), address=str(vm.relay_address), account=account)


@dataclass
class Inventory:
    """Says on which hypervisor host a VM of the lab runs. `known` is what it says until it is asked again, as after a
    migration that the last sweep has not seen."""

    lab: Lab
    name: str
    known: str | None = None
    asked: list[bool] = field(default_factory=list)

    async def __call__(self, *, again: bool) -> HostPlace | None:
        self.asked.append(again)
        if again or self.known is None:
            self.known = self.lab.vm(self.name).spec.host
        host = Hosts(self.lab).get(self.known)
        return HostPlace(host.name, str(host.address))


def login_of(lab: Lab, *, known_hosts: str | None = None, connections: int = 4) -> HostLogin:
    """What logs in on every hypervisor host of the lab."""
    hosts = Hosts(lab)
    any_host = hosts.all()[0]
    return HostLogin(
        user=any_host.user,
        port=any_host.port,
        private_key=hosts.private_key.read_bytes(),
        known_hosts=hosts.known_hosts() if known_hosts is None else known_hosts,
        connections=connections,
    )


def behind_host(lab: Lab, name: str, *, login: HostLogin | None = None, pool: str = "lab") -> Target:
    """The VM at its link-local address behind its hypervisor host, known by its own name."""
    vm = lab.vm(name)
    account = SSHAccount(
        user="root",
        port=SSH_PORT,
        private_key=lab.private_key.read_bytes(),
        host_key_policy=HostKeyPolicy.STRICT,
        known_hosts=f"[{name}]:{SSH_PORT} {vm.host_key}\n",
        pool=pool,
    )
    return Target(
        name=name,
        type=SystemVMType(vm.spec.type),
        address=str(vm.control_address),
        account=account,
        through=Through(login or login_of(lab), Inventory(lab, name), "KVM"),
    )


_USUAL = Order(
    id="op-1",
    epoch=1,
    keep_backups=1,
    settle_seconds=2.0,
    ignored_checks=(),
    step_timeout_seconds=120,
    vm_timeout_seconds=300,
)


def patch_order(name: str = _USUAL.id, **otherwise: Any) -> Order:
    """One live patch, in which services are watched for two seconds; `otherwise`: fields of `Order`."""
    return replace(_USUAL, id=name, **otherwise)
