"""Which hypervisor hosts a release that comes from them is asked of, and how they are logged in to."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime

from sysvm.api.policy import PatchPolicy
from sysvm.api.systemvm import Identity
from sysvm.api.template import SystemVMTemplate
from sysvm.domain.facts import facts_of
from sysvm.domain.payload_hosts import hosts_of
from sysvm.domain.selection import select
from sysvm.engine.credentials import Accounts
from sysvm.engine.payload_fetch import Machines
from sysvm.engine.ports import Clock, SnapshotOf
from sysvm.engine.stores import Stores, endpoint_of, key_of
from sysvm.patching.host_source import Machine
from sysvm.patching.results import HostPlace, SSHAccount

_At = tuple[str, str]
"""Name of a host, and of the endpoint by whose VMs it is known."""


class SelectedHosts:
    """The hosts of the VMs that policies select for a release."""

    def __init__(self, stores: Stores, accounts: Accounts, snapshot_of: SnapshotOf, clock: Clock) -> None:
        self._stores = stores
        self._accounts = accounts
        self._snapshot_of = snapshot_of
        self._clock = clock

    def __call__(self, template: SystemVMTemplate) -> Machines:
        """As they are known now. Endpoints that are suspended, or that nobody can log in for, have none."""
        if template.spec.payload.host is None:
            return Machines(())
        now = self._clock()
        asked: dict[_At, Machine] = {}
        left_out: dict[_At, str] = {}
        for policy in self._stores.policies_using(key_of(template)):
            key = endpoint_of(policy)
            account = self._accounts.get(key)
            if not isinstance(account, SSHAccount):
                continue
            hosts = hosts_of(self._identities(policy, now), self._snapshot_of(key))
            left_out.update({(name, key.name): why for name, why in hosts.left_out})
            for host in hosts.asked:
                login = account.jump_for(host.hypervisor)
                if login is None:
                    left_out[host.name, key.name] = "its endpoint has no route by way of it"
                else:
                    place = HostPlace(host.name, host.address or host.name)
                    asked[host.name, key.name] = Machine(place, login, host.hypervisor)
        return _named_apart(asked, left_out)

    def _identities(self, policy: PatchPolicy, now: datetime) -> Iterator[Identity]:
        key = endpoint_of(policy)
        endpoint = self._stores.endpoints.get(key)
        if endpoint is None or endpoint.spec.suspend:
            return
        facts = [facts_of(vm, now=now, scan=endpoint.spec.scan) for vm in self._stores.vms_of(key)]
        for selected in select(policy, self._stores.policies_of(key), facts).vms:
            if selected.identity is not None:
                yield selected.identity


def _named_apart(asked: Mapping[_At, Machine], left_out: Mapping[_At, str]) -> Machines:
    """Two clouds may each have a kvm-1: both are asked, and named by their endpoints. A host that two endpoints reach
    in one and the same way is one machine."""
    machines = {machine: at for at, machine in sorted(asked.items())}
    times = Counter(name for name, _ in {*machines.values(), *left_out})

    def known_as(at: _At) -> str | None:
        name, endpoint = at
        return f"{endpoint}/{name}" if times[name] > 1 else None

    return Machines(
        tuple(replace(machine, known_as=known_as(at)) for machine, at in machines.items()),
        tuple(f"{known_as(at) or at[0]} ({why})" for at, why in sorted(left_out.items())),
    )
