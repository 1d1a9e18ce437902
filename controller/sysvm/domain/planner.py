"""The plan of a rollout: every VM of a policy with its decision and the order of those that get work.

A pure function, canonical to the byte: the same VMs in any order give the same JSON, the same digest and the same gzip,
so that a restart makes the same ConfigMap again and an approval can sign it.
"""

import gzip
import hashlib
import json
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Annotated

from pydantic import Field, ValidationError

from sysvm.api.base import ApiModel
from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method, Route
from sysvm.api.observed import RedundancyRole
from sysvm.api.policy import Heal, PatchPolicySpec
from sysvm.api.reasons import Reason
from sysvm.api.rollout import AppendedVM
from sysvm.api.strategy import OrderKey, WaveSpec
from sysvm.api.systemvm import DriftKind
from sysvm.domain.cloud_changed import CloudFacts
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.lifecycle import ROUTER_TYPES, interruption
from sysvm.domain.limits import rounded_up
from sysvm.domain.method import Decision, decide

SIZE_LIMIT_BYTES = 64 * 1024 * 1024
"""Of a plan's JSON; 10,000 VMs are a few MiB."""

_ROLE_ORDER = {RedundancyRole.BACKUP: 0, RedundancyRole.PRIMARY: 2}
_ZONE_TYPE_NAMES = {SystemVMType.SECSTORAGE: "SSVM", SystemVMType.CONSOLEPROXY: "CPVM"}


class PlannedVM(ApiModel):
    """One VM in the plan."""

    name: str
    """Name of the SystemVM."""
    uid: str
    vm: str
    """Name in CloudStack."""
    group: str | None = None
    drift: tuple[DriftKind, ...] = ()
    method: Method
    route: Route | None = None
    """Of a live patch."""
    reason: str
    message: str = ""
    warnings: tuple[str, ...] = ()


class Wave(ApiModel):
    """A slice of the rollout."""

    name: str
    members: tuple[str, ...]
    """SystemVM names in the order of work: groups together, BACKUP first, then priority and name."""
    digest: Annotated[str, Field(pattern="^sha256:[a-f0-9]{64}$")]
    """Of its members' entries in order: another member or another decision is another wave."""
    note: str = ""
    """What a person should know of it, such as that it selects no VM."""


class Plan(ApiModel):
    """What was decided."""

    policy: str
    endpoint: str
    release: Release
    applicable: int
    """VMs that percentages count: selected, not excluded, not on hold."""
    entries: tuple[PlannedVM, ...]
    """Every selected VM, by name."""
    waves: tuple[Wave, ...]
    cloud: CloudFacts | None = None
    """What was true of the cloud then; None of a Static inventory."""
    warnings: tuple[str, ...] = ()
    """What should be put in order before anything is touched."""

    @property
    def members(self) -> tuple[str, ...]:
        """SystemVM names that get work, in order."""
        return tuple(name for wave in self.waves for name in wave.members)

    @property
    def is_empty(self) -> bool:
        """Nothing to do: no rollout is needed."""
        return not self.members

    @cached_property
    def planned(self) -> Mapping[str, PlannedVM]:
        """SystemVM name -> entry."""
        return {entry.name: entry for entry in self.entries}

    def entry(self, name: str) -> PlannedVM:
        """The entry of a SystemVM. Raises KeyError."""
        found = next((entry for entry in self.entries if entry.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def canonical(self) -> bytes:
        """JSON with sorted keys, no spaces, UTF-8. A plan without warnings has no field for them."""
        said = self.to_dict()
        return _canonical(said if self.warnings else {name: said[name] for name in said if name != "warnings"})

    @property
    def digest(self) -> str:
        """`sha256:...` of the canonical JSON."""
        return _sha256(self.canonical())

    def encode(self) -> bytes:
        """gzip of the canonical JSON, the same bytes every time: goes into the ConfigMap's binaryData."""
        return gzip.compress(self.canonical(), compresslevel=9, mtime=0)

    @classmethod
    def decode(cls, data: bytes, digest: str | None = None) -> "Plan":
        """The inverse. Raises UnreadablePlanError, also if the digest is given and differs."""
        inflater = zlib.decompressobj(wbits=31)
        try:
            text = inflater.decompress(data, SIZE_LIMIT_BYTES)
        except zlib.error as error:
            raise UnreadablePlanError(f"the plan is not gzip: {error}") from error
        if not inflater.eof:
            raise UnreadablePlanError("the plan is cut off or too large")
        if digest is not None and _sha256(text) != digest:
            raise UnreadablePlanError(f"the plan is not the one that was signed: {_sha256(text)}, not {digest}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise UnreadablePlanError(f"the plan cannot be read: {error}") from error


class UnreadablePlanError(ValueError):
    """The bytes are no plan, or not the one that was signed."""


def decide_all(
    spec: PatchPolicySpec, release: Release, vms: Iterable[VMFacts], *, excluded: Mapping[str, str]
) -> dict[str, Decision]:
    """SystemVM name -> decision, for all VMs of a policy (`selection.select`)."""
    return {
        facts.name: decide(
            facts,
            release,
            methods=spec.methods,
            heal=spec.drift.heal is Heal.AUTOMATIC,
            excluded=excluded.get(facts.name),
            live_patch=spec.live_patch,
        )
        for facts in vms
    }


def plan(
    policy_name: str,
    spec: PatchPolicySpec,
    release: Release,
    vms: Sequence[VMFacts],
    *,
    excluded: Mapping[str, str],
    fleet: Iterable[VMFacts] = (),
    cloud: CloudFacts | None = None,
    warnings: tuple[str, ...] = (),
) -> Plan:
    """The plan for the VMs of a policy (`selection.select`).

    `fleet`: all VMs of the endpoint, for the warning that an SSVM or CPVM is the only one of its zone. VMs that are
    undecided get no work: a rollout made before all of them were looked at leaves them for the next one. Only one that
    does not answer goes with its group, if it answers while the rollout runs: else its PRIMARY would go before it.
    """
    by_name = {facts.name: facts for facts in vms}
    decisions = decide_all(spec, release, vms, excluded=excluded)
    siblings: dict[str, set[str]] = {}
    for facts in (*fleet, *vms):
        if facts.zone_group:
            siblings.setdefault(facts.zone_group, set()).add(facts.name)
    entries = {
        name: _planned(by_name[name], decision, alone=len(siblings.get(by_name[name].zone_group or "", ())) == 1)
        for name, decision in sorted(decisions.items())
    }
    for how in _TOGETHER:
        entries |= _changed_together(how, by_name, entries, fleet)
    entries |= _with_their_groups(by_name, entries)
    members = in_order((by_name[name] for name, entry in entries.items() if entry.method.is_work), spec.strategy.order)
    return Plan(
        policy=policy_name,
        endpoint=spec.endpoint_ref.name,
        release=release,
        applicable=sum(is_applicable(facts, excluded) for facts in vms),
        entries=tuple(entries.values()),
        waves=_waves(spec.strategy.waves, members, entries) if members else (),
        cloud=cloud,
        warnings=warnings,
    )


def _with_their_groups(by_name: Mapping[str, VMFacts], entries: Mapping[str, PlannedVM]) -> dict[str, PlannedVM]:
    """VMs that do not answer, of groups whose other VMs get work."""

    def group_of(name: str) -> str | None:
        identity = by_name[name].identity
        return identity.group if identity is not None else None

    silent = {
        name: entry
        for name, entry in entries.items()
        if by_name[name].unreachable and entry.reason == by_name[name].reach.reason
    }
    if not silent:
        return {}
    working = {group_of(name): entry for name, entry in entries.items() if entry.method.is_work}
    working.pop(None, None)
    return {
        name: entry.model_copy(
            update={
                "method": working[group_of(name)].method,
                "route": working[group_of(name)].route,
                "message": f"{entry.message}; it goes with its group if it answers while the rollout runs",
            }
        )
        for name, entry in silent.items()
        if group_of(name) in working
    }


@dataclass(frozen=True, slots=True)
class _Together:
    """A method by which CloudStack changes all routers of a network or VPC with one call."""

    method: Method
    route: Route | None
    does: str
    """What it does with them: a predicate."""
    done: str

    def is_meant(self, entry: PlannedVM) -> bool:
        return entry.method is self.method and entry.route is self.route


_TOGETHER = (
    _Together(Method.RECREATE, None, "Recreate replaces", "replaced"),
    _Together(Method.LIVE_PATCH, Route.API, "CloudStack's own live patch changes", "patched"),
)


def _changed_together(
    how: _Together, by_name: Mapping[str, VMFacts], entries: Mapping[str, PlannedVM], fleet: Iterable[VMFacts]
) -> dict[str, PlannedVM]:
    """All routers of the group must be meant, or none is touched."""
    meant = {routers_of(facts) for name, facts in by_name.items() if how.is_meant(entries[name])} - {None}
    if not meant:
        return {}
    groups: dict[str, dict[str, VMFacts]] = {}
    for facts in (*fleet, *by_name.values()):
        group = routers_of(facts)
        if group in meant and group is not None:
            groups.setdefault(group, {})[facts.name] = facts
    changed: dict[str, PlannedVM] = {}
    for group, members in groups.items():
        stays = (_must_stay(members[name], entries.get(name)) for name in sorted(members))
        why_not = next((found for found in stays if found is not None), None)
        for name, entry in ((name, entries[name]) for name in members if name in entries):
            if why_not is not None and entry.method.is_work:
                message = f"{how.does} all routers of group {group}, and {why_not[1]}"
                held = {
                    "method": Method.HOLD, "route": None, "reason": str(why_not[0]), "message": message, "warnings": ()
                }  # fmt: skip
                changed[name] = entry.model_copy(update=held)
            elif why_not is None and not how.is_meant(entry):
                message = f"{entry.message}; it is {how.done} together with its group {group}"
                update = {"method": how.method, "route": how.route, "message": message}
                changed[name] = entry.model_copy(update=update)
    return changed


def is_for_the_group(method: Method, route: Route | None) -> bool:
    """One call changes all routers of the network or VPC."""
    return method is Method.RECREATE or route is Route.API


def routers_of(facts: VMFacts) -> str | None:
    """The group that CloudStack changes as a whole; None for a VM that is changed alone."""
    return facts.identity.group if facts.identity is not None and facts.identity.type in ROUTER_TYPES else None


def _must_stay(facts: VMFacts, entry: PlannedVM | None) -> tuple[Reason, str] | None:
    """Why a router must not be changed with its group."""
    if entry is None:
        return Reason.NO_POLICY, f"{facts.vm} is not selected by this policy"
    if entry.method is Method.HOLD and not (facts.unreachable and entry.reason == facts.reach.reason):
        return Reason(entry.reason), entry.message
    return None


def _waves(specs: Sequence[WaveSpec], members: Sequence[VMFacts], entries: Mapping[str, PlannedVM]) -> tuple[Wave, ...]:
    """Each takes whole groups, in order, as long as they fit into its limit, at least one. The last has no limit."""
    waiting = deque(_units(members))
    waves: list[Wave] = []
    for spec in specs:
        room = len(members) if spec.limit is None else rounded_up(spec.limit, len(members))
        taken: list[PlannedVM] = []
        while waiting and (not taken or len(taken) + len(waiting[0]) <= room):
            taken += [entries[facts.name] for facts in waiting.popleft()]
        waves.append(_wave(spec.name, taken, _note(spec, taken, room)))
    return tuple(waves)


def _units(members: Iterable[VMFacts]) -> Iterable[tuple[VMFacts, ...]]:
    """What a wave takes whole: the routers of a group. The SSVMs of a zone are only kept from being in work at once."""
    for _, unit in groupby(members, key=lambda facts: (facts.identity and facts.identity.group) or (facts.name,)):
        yield tuple(unit)


def _note(spec: WaveSpec, taken: Sequence[PlannedVM], room: int) -> str:
    if not taken:
        return f"wave {spec.name} selects no VM: the waves before it take all"
    if len(taken) > room:
        group = taken[0].group
        return f"wave {spec.name} has {len(taken)} VMs, more than its limit {spec.limit}: group {group} is not split"
    return ""


def is_applicable(facts: VMFacts, excluded: Mapping[str, str]) -> bool:
    """Whether Ready speaks of the VM and percentages count it: Running, not excluded, not on hold, not going away."""
    return facts.name not in excluded and facts.hold is None and not facts.deleting and facts.away is None


DEFAULT_ORDER = (OrderKey.PRIORITY, OrderKey.NAME)


def in_order(vms: Iterable[VMFacts], order: Sequence[OrderKey] = DEFAULT_ORDER) -> tuple[VMFacts, ...]:
    """The order of work: groups together at the place of their first VM; inside, BACKUP first and PRIMARY last; then
    the keys of `order`. The name decides last in any case, so that there is one order."""

    def rank(facts: VMFacts) -> tuple[int, str]:
        # A name is never equal, so what stands after it would decide nothing.
        return (facts.priority if order[0] is OrderKey.PRIORITY else 0), facts.name

    members = sorted(vms, key=rank)
    place: dict[str, tuple[int, str]] = {}
    for facts in members:
        place.setdefault(facts.group or facts.name, rank(facts))

    def key(facts: VMFacts) -> tuple[tuple[int, str], int, tuple[int, str]]:
        role = _ROLE_ORDER.get(facts.role, 1) if facts.role else 1
        return place[facts.group or facts.name], role, rank(facts)

    return tuple(sorted(members, key=key))


def _planned(facts: VMFacts, decision: Decision, *, alone: bool) -> PlannedVM:
    warnings = decision.warnings
    if decision.method in (Method.REBOOT, Method.RECREATE) and facts.identity is not None:
        loss = interruption(decision.method, facts.identity.type, redundant=facts.role is not None, alone=alone)
        warnings = (*warnings, f"{facts.vm}: {loss}")
    if alone and decision.method is Method.LIVE_PATCH and facts.identity is not None:
        what = _ZONE_TYPE_NAMES[facts.identity.type]
        zone = f"zone {facts.identity.zone}" if facts.identity.zone else "its zone"
        warnings = (*warnings, f"{facts.vm} is the only {what} of {zone}: no other serves while it is patched")
    return PlannedVM(
        name=facts.name,
        uid=facts.uid,
        vm=facts.vm,
        group=facts.group,
        drift=decision.kinds,
        method=decision.method,
        route=decision.route,
        reason=str(decision.reason),
        message=decision.message,
        warnings=warnings,
    )


def _wave(name: str, members: Sequence[PlannedVM], note: str) -> Wave:
    return Wave(
        name=name,
        members=tuple(entry.name for entry in members),
        digest=_sha256(_canonical([entry.to_dict() for entry in members])),
        note=note,
    )


def digest_with(wave: Wave, appended: Sequence[AppendedVM], cloud: str = "") -> str:
    """The digest of a wave together with VMs that appeared after the plan was made and with the word for what changed
    in the cloud since; without any, that of the plan."""
    more: dict[str, object] = {"appended": [[vm.name, vm.uid] for vm in appended]} if appended else {}
    if cloud:
        more["cloud"] = cloud
    return _sha256(_canonical({"wave": wave.digest, **more})) if more else wave.digest


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
