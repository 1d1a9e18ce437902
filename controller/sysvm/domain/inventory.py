"""From a snapshot of a cloud to the SystemVM objects of its endpoint: who there is, who is gone, who took whose place.

An object is given up only when two whole sweeps in a row did not find its VM, or one did not and a job of ours explains
it: a listing may miss what comes and goes while it is made. What a person wished of a VM (a hold, a priority) belongs
to its place in the cloud and not to its name, so it passes to the VM that takes that place, and waits for one as long
as the network, the VPC or the zone is there.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sysvm.api.endpoint import SystemVMType
from sysvm.api.names import system_vm_name
from sysvm.api.reasons import EventReason
from sysvm.api.systemvm import Identity
from sysvm.domain.cloud import CloudVM, CloudVMState, Snapshot
from sysvm.domain.facts import ZONE_TYPES

MISSING = "Missing"
"""State of a VM that the last sweep did not find and whose object is still there."""

SWEEPS_TO_FORGET = 2

_ENDING = frozenset({CloudVMState.DESTROYED, CloudVMState.EXPUNGING})
_THROUGH_HOST = frozenset({"kvm", "xenserver"})
"""Hypervisors whose system VMs have a link-local control address, which only their host reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A SystemVM object as it is stored."""

    name: str
    """Of the object."""
    identity: Identity | None
    """None: its own reconciler has not written it down yet."""
    predecessor: str | None = None
    """Name of the VM whose place it took, as the object says."""
    has_wishes: bool = False
    """A person's hold or priority."""
    in_work: bool = False
    deleting: bool = False
    missed: int = 0
    """Whole sweeps in a row before this one that did not find it."""


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A VM without an object."""

    name: str
    """Of the object to be made."""
    vm: CloudVM | None = None
    """None: a person lists it."""
    predecessor: Known | None = None
    """Whose place it took."""


@dataclass(frozen=True, slots=True)
class Heir:
    """A VM that has an object already, and took the place of one that is gone."""

    name: str
    predecessor: Known


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done, in this order, so that a wish is never lost between two writes."""

    newcomers: tuple[Newcomer, ...] = ()
    heirs: tuple[Heir, ...] = ()
    gone: tuple[Known, ...] = ()
    """To be given up."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Object name -> why it is kept although its VM was not found."""
    missed: Mapping[str, int] = field(default_factory=dict)
    """Object name of everyone who was not found -> sweeps in a row without it, this one included."""
    doubles: tuple[str, ...] = ()
    """VMs whose object name another VM of the cloud has."""


def address_of(vm: CloudVM) -> str | None:
    """Where its sshd listens: by type and hypervisor (CloudStack 4.21 systemvm/debian/opt/cloud/bin/setup/common.sh).

    On KVM and XenServer the control address, behind the host. Elsewhere an SSVM or CPVM listens in the pod's management
    network, and a router's control address lies in it.
    """
    if vm.type in ZONE_TYPES and (vm.hypervisor or "").casefold() not in _THROUGH_HOST:
        return vm.private_address or vm.control_address
    return vm.control_address


def group_of(vm: CloudVM) -> str | None:
    """Id of the VPC or network that it serves. None for SSVM and CPVM, which belong to their zone."""
    if vm.type in ZONE_TYPES:
        return None
    if vm.type is SystemVMType.VPCROUTER:
        return vm.vpc_id or vm.network_id
    return vm.network_id or vm.vpc_id


def identity_of(vm: CloudVM, predecessor: str | None = None) -> Identity:
    return Identity(
        id=vm.id,
        name=vm.name,
        type=vm.type,
        zone=vm.zone,
        pod=vm.pod,
        host=vm.host,
        group=group_of(vm),
        redundant=vm.redundant or None,
        hypervisor=vm.hypervisor,
        account=vm.account,
        domain=vm.domain,
        project=vm.project,
        network=vm.network,
        vpc=vm.vpc,
        address=address_of(vm),
        state=str(vm.state),
        template=vm.template_id,
        created=vm.created.replace(microsecond=0) if vm.created is not None else None,
        predecessor=predecessor,
    )


def objects_of(endpoint: str, snapshot: Snapshot) -> tuple[dict[str, CloudVM], tuple[str, ...]]:
    """Object name -> VM, and the VMs whose name differs from another's in upper and lower case only."""
    found: dict[str, CloudVM] = {}
    doubles: list[str] = []
    for vm in sorted(snapshot.vms.values(), key=lambda vm: (vm.created or datetime.max.replace(tzinfo=UTC), vm.id)):
        name = system_vm_name(endpoint, vm.name)
        if name in found:
            doubles.append(vm.name)
        else:
            found[name] = vm
    return found, tuple(doubles)


def judge(
    endpoint: str,
    snapshot: Snapshot,
    known: Iterable[Known],
    *,
    explained: Collection[str] = (),
    again: bool = False,
) -> Verdict:
    """`explained`: ids of VMs that a job of ours destroyed. `again`: this snapshot was judged before, nothing counts.

    The snapshot is whole, `unread` types apart: `cloudstack.inventory.sweep` gives no other.
    """
    wanted, doubles = objects_of(endpoint, snapshot)
    objects = {each.name: each for each in known}
    gone = [each for name, each in objects.items() if not _is_there(each, wanted.get(name))]
    missed = {each.name: each.missed + _counts(each, snapshot, again=again) for each in gone}
    fresh = [(name, vm) for name, vm in wanted.items() if name not in objects and vm.state not in _ENDING]
    present = [(name, wanted[name]) for name, each in objects.items() if _is_there(each, wanted.get(name))]
    before = {objects[name].predecessor: name for name, _ in present}
    taken = {each.name: before[vm] for each in gone if (vm := _vm_name(each)) in before}
    heirs = _places_taken(
        [each for each in gone if each.name not in taken],
        [*fresh, *((name, vm) for name, vm in present if objects[name].predecessor is None)],
    )
    # A wish that came after the place was taken is passed on, too.
    heirs |= {
        heir: objects[name] for name, heir in taken.items() if objects[name].has_wishes and not objects[heir].has_wishes
    }
    newcomers = tuple(Newcomer(name, vm, heirs.get(name)) for name, vm in fresh)
    kept: dict[str, str] = {}
    given_up: list[Known] = []
    followed = {*taken, *(each.name for each in heirs.values())}
    for each in gone:
        why = _why_kept(each, snapshot, missed[each.name], explained, has_heir=each.name in followed)
        if why is None:
            given_up.append(each)
        else:
            kept[each.name] = why
    return Verdict(
        newcomers=newcomers,
        heirs=tuple(Heir(name, heirs[name]) for name, _ in present if name in heirs),
        gone=tuple(given_up),
        missing=kept,
        missed=missed,
        doubles=doubles,
    )


def _vm_name(known: Known) -> str:
    return known.identity.name if known.identity is not None else known.name


def _is_there(known: Known, vm: CloudVM | None) -> bool:
    """The VM of that name may be another one: a cloud that was set up anew begins to count anew."""
    if vm is None:
        return False
    return known.identity is None or known.identity.id is None or known.identity.id == vm.id


def _is_unread(known: Known, snapshot: Snapshot) -> bool:
    """Whether the sweep cannot tell that it is gone: its type, or that of one whose type is not known, was not read."""
    identity = known.identity
    return bool(snapshot.unread) if identity is None else identity.type in snapshot.unread


def _counts(known: Known, snapshot: Snapshot, *, again: bool) -> int:
    """1 if this sweep without it is one more."""
    return 0 if _is_unread(known, snapshot) or (again and known.missed) else 1


def _why_kept(
    known: Known, snapshot: Snapshot, missed: int, explained: Collection[str], *, has_heir: bool
) -> str | None:
    """None: it is given up."""
    name = _vm_name(known)
    if known.deleting:
        return f"{name} is being removed"
    if known.in_work:
        return f"{name} is not in CloudStack's lists any more; the operation on it is followed to its end"
    if _is_unread(known, snapshot):
        return f"{name} was not looked for: the role of this account may no longer list VMs of its type"
    by_us = known.identity is not None and known.identity.id in explained
    if missed < SWEEPS_TO_FORGET and not by_us:
        return f"the last sweep did not find {name}; it is forgotten if the next one does not find it either"
    if known.has_wishes and not has_heir and _place_is_left(known, snapshot):
        return (
            f"{name} is not in CloudStack any more; its hold or priority is kept here for the VM that takes its place: "
            "delete this object to give it up"
        )
    return None


def _place_is_left(known: Known, snapshot: Snapshot) -> bool:
    """Whether there may be a successor: the network, VPC or zone is still there."""
    identity = known.identity
    if identity is None:
        return False
    if identity.type in ZONE_TYPES:
        return any(zone.name == identity.zone for zone in snapshot.zones.values())
    return identity.group is not None and (identity.group in snapshot.networks or identity.group in snapshot.vpcs)


def _place(identity_type: SystemVMType, group: str | None, zone: str | None) -> tuple[str, str] | None:
    if identity_type in ZONE_TYPES:
        return str(identity_type), zone or ""
    return (str(identity_type), group) if group is not None else None


def _places_taken(gone: Sequence[Known], arrived: Iterable[tuple[str, CloudVM]]) -> dict[str, Known]:
    """Object name of a VM -> the one whose place it took: same type, same network, VPC or zone, made later.

    Of several, those with wishes are followed first, and by the oldest newcomer.
    """
    free: dict[tuple[str, str], list[tuple[str, CloudVM]]] = {}
    for name, vm in sorted(arrived, key=lambda each: (each[1].created or _EPOCH, each[0])):
        place = _place(vm.type, group_of(vm), vm.zone)
        if place is not None:
            free.setdefault(place, []).append((name, vm))
    taken: dict[str, Known] = {}
    for known in sorted(gone, key=lambda each: (not each.has_wishes, each.name)):
        identity = known.identity
        place = _place(identity.type, identity.group, identity.zone) if identity is not None else None
        if identity is None or place is None:
            continue
        candidates = free.get(place, [])
        later = next((each for each in candidates if (each[1].created or _LATE) > (identity.created or _EPOCH)), None)
        if later is not None:
            candidates.remove(later)
            taken[later[0]] = known
    return taken


_EPOCH = datetime.min.replace(tzinfo=UTC)
_LATE = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Delta:
    """What differs between two sweeps: most of a cloud does not, and costs nothing."""

    vms: frozenset[str]
    """Ids of VMs that came, went, or are told otherwise."""
    around: bool
    """The server, a zone or a host is told otherwise: that concerns all VMs."""


def delta_of(before: Snapshot | None, after: Snapshot) -> Delta:
    if before is None:
        return Delta(frozenset(after.vms), around=True)
    changed = {vm_id for vm_id, vm in after.vms.items() if before.vms.get(vm_id) != vm}
    around = (before.server_version, before.zones, before.hosts) != (after.server_version, after.zones, after.hosts)
    return Delta(frozenset(changed | (before.vms.keys() - after.vms.keys())), around)


@dataclass(frozen=True, slots=True)
class News:
    """What people are told of a VM."""

    reason: EventReason
    sentence: str
    warning: bool = False


def news(old: Identity | None, new: Identity, *, ours: bool) -> tuple[News, ...]:
    """What happened to a VM between two sweeps. `ours`: an operation of ours works on it, which tells its own story."""
    if old is None or old.id != new.id or old.id is None or ours:
        return ()
    found: list[News] = []
    state = str(new.state)
    if old.state != new.state and state != MISSING:
        stopped = state in (CloudVMState.STOPPED, CloudVMState.ERROR)
        told = f"{new.name} is {state} in CloudStack, it was {old.state}"
        found.append(News(EventReason.STATE_CHANGED, told, warning=stopped))
    if old.host and new.host and old.host != new.host:
        told = f"{new.name} runs on {new.host}, it ran on {old.host}: migrated, or started anew there"
        found.append(News(EventReason.MIGRATED, told))
    if old.template and new.template and old.template != new.template:
        told = f"CloudStack would start {new.name} from another template next: {new.template} instead of {old.template}"
        found.append(News(EventReason.NEXT_TEMPLATE_CHANGED, told, warning=True))
    return tuple(found)
