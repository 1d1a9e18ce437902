"""Routers beside those that serve: left over from a restart that failed, or running with the same gateway.

CloudStack leaves them behind and goes on as if nothing were there (CloudStack 4.21, recorded: a start that failed
within a restart with cleanup; `restartrequired` stays false). They are looked for around every call of ours, and in
every sweep, because others restart networks, too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sysvm.api.endpoint import SystemVMType
from sysvm.domain.cloud import CloudVM, CloudVMState, Snapshot

_SERVING = frozenset({SystemVMType.ROUTER, SystemVMType.VPCROUTER, SystemVMType.DHCPSRVR})
SENTENCES = 10
"""That a status names."""


def leftovers(vms: Iterable[CloudVM]) -> tuple[CloudVM, ...]:
    """Routers that do not run beside others of their group that do: what a failed restart leaves behind."""
    known = tuple(vms)
    if not any(vm.state is CloudVMState.RUNNING for vm in known):
        return ()
    return tuple(vm for vm in known if vm.state in (CloudVMState.STOPPED, CloudVMState.ERROR))


def duplicates(vms: Iterable[CloudVM]) -> tuple[CloudVM, ...]:
    """Routers of one network or VPC that run at once although they are no pair: two machines with one gateway. A
    dhcpsrvr has none, and in a basic zone each pod has its own."""
    running = tuple(vm for vm in vms if vm.state is CloudVMState.RUNNING and not vm.redundant)
    pods = {vm.pod for vm in running}
    if len(pods) == len(running) and all(vm.type is SystemVMType.DHCPSRVR for vm in running):
        return ()
    return running if len(running) > 1 else ()


def leftover_sentence(left: Sequence[CloudVM]) -> str:
    names = ", ".join(f"{vm.name} ({vm.state})" for vm in left)
    return f"{names} left over beside routers that run: a later restart with cleanup removes it, nothing else does"


def duplicate_sentence(twice: Sequence[CloudVM]) -> str:
    names = " and ".join(vm.name for vm in twice)
    return f"{names} run with the same gateway and are no redundant pair: tenants' traffic is at risk now"


@dataclass(frozen=True, slots=True)
class Beside:
    """What the sweeps of a cloud found, a sentence for each group."""

    told: tuple[str, ...] = ()
    """Duplicates first."""
    alarms: frozenset[str] = frozenset()
    """Duplicates that two sweeps in a row have found: while a network is restarted old and new stand beside each other
    for a moment, and nobody is woken for that."""


def found_beside(before: Snapshot | None, now: Snapshot) -> Beside:
    """`before`: the sweep before, None after a restart of the operator: then what is there is told without alarm, as
    it stood in the status before."""
    twice, left = _sentences(now)
    if before is None:
        return Beside((*twice, *left))
    twice_before, left_before = _sentences(before)
    again = tuple(told for told in twice if told in twice_before)
    return Beside((*again, *(told for told in left if told in left_before)), frozenset(again))


def _sentences(snapshot: Snapshot) -> tuple[list[str], list[str]]:
    groups: dict[str, list[CloudVM]] = {}
    for vm in snapshot.vms.values():
        owner = vm.vpc_id or vm.network_id
        if owner is not None and vm.type in _SERVING:
            groups.setdefault(owner, []).append(vm)
    several = [sorted(vms, key=lambda vm: vm.name) for _, vms in sorted(groups.items()) if len(vms) > 1]
    twice = [duplicate_sentence(found) for vms in several if (found := duplicates(vms))]
    left = [leftover_sentence(found) for vms in several if (found := leftovers(vms))]
    return twice, left
