"""The VMs that an endpoint names, as the objects and targets they become."""

from collections.abc import Mapping
from dataclasses import dataclass

from sysvm.api.endpoint import CloudStackEndpoint, StaticSystemVM
from sysvm.api.names import system_vm_name
from sysvm.api.systemvm import Identity, SystemVM
from sysvm.patching.results import HostPlace, SSHAccount, Target, Through


def listed(endpoint: CloudStackEndpoint) -> dict[str, StaticSystemVM]:
    """Name of the SystemVM object -> entry. Of two with one name the first counts; `doubles` names the others."""
    found: dict[str, StaticSystemVM] = {}
    for entry in endpoint.spec.system_vms:
        found.setdefault(system_vm_name(endpoint.metadata.name, entry.name), entry)
    return found


def doubles(endpoint: CloudStackEndpoint) -> list[str]:
    """Entries whose object name another entry already has: they differ in upper and lower case only."""
    names = [system_vm_name(endpoint.metadata.name, entry.name) for entry in endpoint.spec.system_vms]
    return [
        entry.name for position, entry in enumerate(endpoint.spec.system_vms) if names[position] in names[:position]
    ]


def identity_of(entry: StaticSystemVM) -> Identity:
    return Identity(
        name=entry.name,
        type=entry.type,
        zone=entry.zone,
        host=entry.host,
        group=entry.group,
        hypervisor=entry.hypervisor,
        account=entry.account,
        network=entry.network,
        address=entry.address,
    )


def target_of(vm: SystemVM, entry: StaticSystemVM, account: SSHAccount) -> Target:
    """Where and how to reach it, and which host key it must show."""
    pinned = vm.status.host_key
    jump = account.jump_for(entry.hypervisor)
    return Target(
        name=entry.name,
        type=entry.type,
        address=entry.address,
        account=account,
        pinned_host_key=pinned.public_key if pinned is not None else None,
        accepted_fingerprint=vm.spec.accept_host_key,
        through=Through(jump, _Listed(entry.host), entry.hypervisor) if jump is not None else None,
    )


@dataclass(frozen=True, slots=True)
class _Listed:
    """Where a VM of a Static inventory runs: a person keeps the list, and nobody else can be asked."""

    host: str | None

    async def __call__(self, *, again: bool) -> HostPlace | None:
        return HostPlace(self.host, self.host) if self.host is not None else None


def entry_for(endpoint: CloudStackEndpoint | None, name: str) -> StaticSystemVM | None:
    """The entry behind a SystemVM object; None if the endpoint is gone or no longer lists it."""
    if endpoint is None:
        return None
    entries: Mapping[str, StaticSystemVM] = listed(endpoint)
    return entries.get(name)
