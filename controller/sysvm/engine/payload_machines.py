"""Which hypervisor hosts a release that comes from them is asked of, and how they are logged in to."""

from collections.abc import Iterator
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
        asked: dict[str, Machine] = {}
        left_out: set[str] = set()
        for policy in self._stores.policies_using(key_of(template)):
            key = endpoint_of(policy)
            account = self._accounts.get(key)
            if not isinstance(account, SSHAccount):
                continue
            hosts = hosts_of(self._identities(policy, now), self._snapshot_of(key))
            left_out.update(hosts.left_out)
            for host in hosts.asked:
                login = account.jump_for(host.hypervisor)
                if login is None:
                    left_out.add(f"{host.name} (its endpoint has no route by way of it)")
                else:
                    asked[host.name] = Machine(HostPlace(host.name, host.address or host.name), login, host.hypervisor)
        return Machines(tuple(asked[name] for name in sorted(asked)), tuple(sorted(left_out)))

    def _identities(self, policy: PatchPolicy, now: datetime) -> Iterator[Identity]:
        key = endpoint_of(policy)
        endpoint = self._stores.endpoints.get(key)
        if endpoint is None or endpoint.spec.suspend:
            return
        facts = [facts_of(vm, now=now, scan=endpoint.spec.scan) for vm in self._stores.vms_of(key)]
        for selected in select(policy, self._stores.policies_of(key), facts).vms:
            if selected.identity is not None:
                yield selected.identity
