"""The members of a rollout, each in exactly one bucket: the first of the four steps of every decision about it.

Buckets follow from stored objects alone. What happened to a VM is read from the last operation that its SystemVM tells;
who belongs to which wave, from the plan and from what the rollout's own status appended to it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from sysvm.api.methods import AllowedMethod, LivePatchRoute, Method, Route
from sysvm.api.names import system_vm_name
from sysvm.api.operation import OperationResult, OperationStatus
from sysvm.api.reasons import Reason
from sysvm.api.rollout import AppendedVM, GroupOperation, GroupPhase, Rollout
from sysvm.api.strategy import Retry
from sysvm.domain.calls import is_call
from sysvm.domain.drift import is_converged
from sysvm.domain.facts import VMFacts
from sysvm.domain.findings import Finding
from sysvm.domain.held_since import HeldSince
from sysvm.domain.planner import Plan, Wave, digest_with, is_for_the_group, routers_of


@dataclass(frozen=True, slots=True)
class Buckets:
    """VMs, each in exactly one bucket, in the order of the plan."""

    waiting: tuple[VMFacts, ...] = ()
    """Differ, and could be taken; also those whose next try is due."""
    retrying: tuple[VMFacts, ...] = ()
    """Their operation could not begin, and the time of the next try has not come."""
    in_work: tuple[VMFacts, ...] = ()
    done: tuple[VMFacts, ...] = ()
    """Their operation in this rollout succeeded, or they are at the revision anyway."""
    failed: tuple[VMFacts, ...] = ()
    """Their operation in this rollout did not succeed, and is not tried again."""
    returned: tuple[VMFacts, ...] = ()
    """Were patched in this rollout and then brought back to what they were."""
    skipped: tuple[VMFacts, ...] = ()
    """Unreachable, on hold, inconsistent or going away: taken after all if that ends while the rollout runs."""
    held: tuple[VMFacts, ...] = ()
    """Would be held, or patched in another way, if they were planned now: taken after all if that ends in time."""
    stuck: tuple[VMFacts, ...] = ()
    """Would be taken, but a peer that they must be able to rely on failed in this rollout: left for the next one."""
    missing: tuple[str, ...] = ()
    """SystemVM names that are no more, or are another VM (uid) now."""

    @property
    def size(self) -> int:
        return sum(len(bucket) for bucket in (*self._known, self.missing))

    @property
    def unfinished(self) -> tuple[VMFacts, ...]:
        """What keeps a wave from being worked off."""
        return (*self.waiting, *self.retrying, *self.in_work)

    @property
    def _known(self) -> tuple[tuple[VMFacts, ...], ...]:
        return (
            self.waiting,
            self.retrying,
            self.in_work,
            self.done,
            self.failed,
            self.returned,
            self.skipped,
            self.held,
            self.stuck,
        )


@dataclass(frozen=True, slots=True)
class WaveView(Buckets):
    """The members of one wave."""

    name: str = ""
    digest: str = ""
    """With those that appeared later."""
    appended: tuple[AppendedVM, ...] = ()
    successors: frozenset[str] = frozenset()
    """SystemVM names of those that took the place of a planned one."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class RolloutView(Buckets):
    """The members of a rollout, and the same wave by wave."""

    waves: tuple[WaveView, ...] = ()
    why_held: Mapping[str, Finding] = field(default_factory=dict)
    """SystemVM name -> what would be decided now, of each that is held."""


def classify(rollout: Rollout, plan: Plan, vms: Mapping[str, VMFacts]) -> RolloutView:
    """Sorts the members of the plan, and those that appeared later. `vms`: SystemVM name -> facts, of the endpoint."""
    planned = plan.planned
    successors = _told_of_failures(rollout, successors_of(rollout, plan, vms))
    held_since, why_held = HeldSince(rollout, plan.release), dict[str, Finding]()

    def bucket_of(facts: VMFacts) -> str:
        bucket = _bucket(rollout, plan, facts)
        if bucket == "waiting" and (why := _why_held(rollout, plan, facts, held_since)) is not None:
            why_held[facts.name] = why
            return "held"
        return bucket

    waves = tuple(
        _wave_view(rollout, wave, [(name, planned[name].uid) for name in wave.members], vms, successors, bucket_of)
        for wave in plan.waves
    )
    waves = tuple(_with_peers_held(rollout, plan, wave, held_since, why_held) for wave in waves)
    waves = tuple(_with_who_goes_along(rollout, plan, wave) for wave in waves)
    failed = [facts for wave in waves for facts in wave.failed]
    if failed:
        waves = tuple(_without_stuck(wave, failed, vms) for wave in waves)
    return RolloutView(
        **{
            bucket: tuple(member for wave in waves for member in getattr(wave, bucket))
            for bucket in (*BUCKETS, "missing")
        },
        waves=waves,
        why_held=why_held,
    )


def _with_peers_held(
    rollout: Rollout, plan: Plan, wave: WaveView, held_since: HeldSince, why_held: dict[str, Finding]
) -> WaveView:
    """One call changes all routers of a group: who must not be changed keeps the others from it, as in the plan."""
    stays: dict[str, Finding] = {}
    name = rollout.metadata.name
    at_rest = (facts for facts in wave.done if _cannot_be_touched(facts) and not has_begun(name, facts))
    for facts in (*wave.held, *wave.skipped, *at_rest):
        why = why_held.get(facts.name) or held_since.why_untouched(facts)
        if why is not None and facts.group is not None and not facts.is_zone_type:
            stays.setdefault(facts.group, why)

    def keeps(facts: VMFacts) -> Finding | None:
        why = stays.get(facts.group or "")
        method = method_of(rollout, plan, facts)
        return why if method is not None and is_for_the_group(method, route_of(rollout, plan, facts)) else None

    kept = {facts.name: why for facts in wave.waiting if stays and (why := keeps(facts)) is not None}
    if not kept:
        return wave
    for facts in wave.waiting:
        if facts.name in kept:
            told = f"one call changes all routers of group {facts.group}, and {kept[facts.name].sentence}"
            why_held[facts.name] = replace(kept[facts.name], sentence=told)
    return replace(
        wave,
        waiting=tuple(facts for facts in wave.waiting if facts.name not in kept),
        held=(*wave.held, *(facts for facts in wave.waiting if facts.name in kept)),
    )


def successors_of(rollout: Rollout, plan: Plan, vms: Mapping[str, VMFacts]) -> dict[str, VMFacts]:
    """Planned VMs that are no more -> the VM of the same group that the plan has never heard of.

    A recreated VM has another name and another id: what the plan and its approvals said of a router of a network, or of
    a system VM of a zone, they say of the one that took its place.
    """
    planned = plan.planned
    gone: dict[str, list[str]] = defaultdict(list)
    for name in plan.members:
        facts, entry = vms.get(name), planned[name]
        if (facts is None or facts.uid != entry.uid) and entry.group is not None:
            gone[entry.group].append(name)
    if not gone:
        return {}
    known = planned.keys() | {vm.name for wave in rollout.status.waves for vm in wave.appended}
    new: dict[str, list[VMFacts]] = defaultdict(list)
    for name in sorted(vms):
        facts = vms[name]
        if name not in known and facts.group in gone:
            new[facts.group].append(facts)
    return {
        name: successor
        for group, names in gone.items()
        for name, successor in zip(sorted(names), new[group], strict=False)
    }


def _told_of_failures(rollout: Rollout, successors: dict[str, VMFacts]) -> dict[str, VMFacts]:
    """Who knew how a call ended may have gone with it: its successors tell what the rollout remembers of it."""
    failed = {vm.name: op for op in rollout.status.group_operations if _has_failed(op) for vm in op.before}
    if not failed:
        return successors
    told: dict[str, VMFacts] = {}
    for name, facts in successors.items():
        operation = next((op for vm, op in failed.items() if system_vm_name(facts.endpoint, vm) == name), None)
        told[name] = facts if operation is None else replace(facts, operation=_as_told(rollout, operation))
    return told


def _has_failed(operation: GroupOperation) -> bool:
    return operation.result not in (None, OperationResult.SUCCEEDED)


def _as_told(rollout: Rollout, operation: GroupOperation) -> OperationStatus:
    return OperationStatus(
        id=operation.orders[0] if operation.orders else operation.group,
        rollout=rollout.metadata.name,
        method=operation.method,
        revision=rollout.spec.revision,
        step="Verify",
        started_at=operation.started_at,
        finished_at=operation.finished_at,
        result=operation.result,
        reason=operation.reason,
        message=operation.message,
    )


def _with_who_goes_along(rollout: Rollout, plan: Plan, wave: WaveView) -> WaveView:
    """One call changes all routers of a group, and is made only when all have their order: who needs nothing gets one
    with those who do."""

    def changed_with(facts: VMFacts) -> str | None:
        entry = plan.planned.get(facts.name)
        meant = entry is not None and entry.uid == facts.uid and is_for_the_group(entry.method, entry.route)
        return routers_of(facts) if meant else None

    def may_go(facts: VMFacts) -> bool:
        unasked = facts.unreachable and method_of(rollout, plan, facts) is not Method.RECREATE
        return not (has_begun(rollout.metadata.name, facts) or _cannot_be_touched(facts) or unasked)

    if not wave.done:
        return wave
    taken = (facts for facts in wave.in_work if facts.order is not None and facts.order.takes_back is None)
    groups = {changed_with(facts) for facts in (*wave.waiting, *taken)} - {None}
    if not groups:
        return wave
    along = {facts.name for facts in wave.done if changed_with(facts) in groups and may_go(facts)}
    return replace(
        wave,
        waiting=(*wave.waiting, *(facts for facts in wave.done if facts.name in along)),
        done=tuple(facts for facts in wave.done if facts.name not in along),
    )


def _without_stuck(wave: WaveView, failed: Sequence[VMFacts], vms: Mapping[str, VMFacts]) -> WaveView:
    """Admission leaves a VM alone whose peer failed. In its own rollout that does not change any more, so it must not
    keep the rollout from ending."""
    groups = {facts.identity.group for facts in failed if facts.identity is not None and facts.identity.group}
    zones = {facts.zone_group for facts in failed if facts.zone_group}
    names = {facts.name for facts in failed}
    lost = {
        zone
        for zone in zones
        if sum(other.zone_group == zone and other.name not in names for other in vms.values()) <= 1
    }

    def is_stuck(facts: VMFacts) -> bool:
        return (facts.identity is not None and facts.identity.group in groups) or facts.zone_group in lost

    stuck = tuple(facts for facts in wave.waiting if is_stuck(facts))
    return replace(wave, waiting=tuple(facts for facts in wave.waiting if not is_stuck(facts)), stuck=stuck)


BUCKETS = ("waiting", "retrying", "in_work", "done", "failed", "returned", "skipped", "held", "stuck")


def _wave_view(
    rollout: Rollout,
    wave: Wave,
    planned: list[tuple[str, str]],
    vms: Mapping[str, VMFacts],
    successors: Mapping[str, VMFacts],
    bucket_of: Callable[[VMFacts], str],
) -> WaveView:
    appended = appended_to(rollout, wave.name)
    buckets: dict[str, list[VMFacts]] = {bucket: [] for bucket in BUCKETS}
    missing: list[str] = []
    came: set[str] = set()
    for name, uid in (*planned, *((vm.name, vm.uid) for vm in appended)):
        facts = vms.get(name)
        if facts is None or facts.uid != uid:
            facts = successors.get(name)
            came |= {facts.name} if facts is not None else set()
        if facts is None:
            missing.append(name)
        else:
            buckets[bucket_of(facts)].append(facts)
    return WaveView(
        **{bucket: tuple(members) for bucket, members in buckets.items()},
        missing=tuple(missing),
        name=wave.name,
        digest=digest_with(wave, appended, cloud_word(rollout)),
        appended=appended,
        successors=frozenset(came),
        note=wave.note,
    )


def _bucket(rollout: Rollout, plan: Plan, facts: VMFacts) -> str:
    name = rollout.metadata.name
    if facts.order is not None and facts.order.rollout == name and facts.in_work:
        return "in_work"
    operation = facts.operation_in(name)
    if operation is not None and operation.result is OperationResult.SUCCEEDED:
        if operation.takes_back:
            return "returned"
        if not _must_still_be_patched(rollout, plan, facts):
            return "done"
        if _was_replaced(rollout, facts):
            return "waiting"
        return "skipped" if _cannot_be_touched(facts) or facts.unreachable else "waiting"
    if operation is not None:
        retry = rollout.spec.snapshot.strategy.retry
        again = retry_at(retry, operation)
        if again is None:
            return "failed"
        if facts.moment < again:
            return "retrying"
        if facts.unreachable:
            return "retrying" if facts.moment < gives_up_at(retry, operation) else "failed"
        return "skipped" if _cannot_be_touched(facts) else "waiting"
    if is_converged(facts, plan.release) and not facts.gate_closed:
        return "done"
    if _cannot_be_touched(facts):
        return "skipped"
    method = method_of(rollout, plan, facts)
    if facts.unreachable and method is not Method.RECREATE:
        return "skipped"
    return "waiting" if method is not None else "done"


def _cannot_be_touched(facts: VMFacts) -> bool:
    return facts.hold is not None or facts.away is not None or facts.inconsistent or facts.deleting


def _was_replaced(rollout: Rollout, facts: VMFacts) -> bool:
    """The management server has made another in its place. Its object goes with the next sweep, and the other one is
    the member then: until that is known the rollout is not over."""
    operation = facts.operation_in(rollout.metadata.name)
    if operation is None or operation.method is not Method.RECREATE:
        return False
    return operation.result is OperationResult.SUCCEEDED


def _why_held(rollout: Rollout, plan: Plan, facts: VMFacts, held_since: HeldSince) -> Finding | None:
    if _was_replaced(rollout, facts) and not facts.reachable:
        return None
    method, route = _way(rollout, plan, facts)
    return held_since.why(facts, method or Method.LIVE_PATCH, route)


def method_of(rollout: Rollout, plan: Plan, facts: VMFacts) -> Method | None:
    """What this rollout does next to a VM that is not converged; None: nothing that its policy lists."""
    return _way(rollout, plan, facts)[0]


def route_of(rollout: Rollout, plan: Plan, facts: VMFacts) -> Route | None:
    """The way of that live patch; None: it is none."""
    return _way(rollout, plan, facts)[1]


def _way(rollout: Rollout, plan: Plan, facts: VMFacts) -> tuple[Method | None, Route | None]:
    """As the plan has it; a VM that the plan does not know is live-patched as the policy forces it.

    So is what was started anew: it came up with its host's payload. If that is another than the release, it is
    live-patched, once and at once: nothing is rebooted or recreated twice in a rollout.
    """
    entry = plan.planned.get(facts.name)
    if entry is not None and entry.uid == facts.uid and not facts.was_started_anew(rollout.metadata.name):
        return entry.method, (entry.route or Route.SSH) if entry.method is Method.LIVE_PATCH else None
    kept = rollout.spec.snapshot
    if AllowedMethod.LIVE_PATCH not in kept.methods:
        return None, None
    return Method.LIVE_PATCH, Route.API if kept.live_patch.route is LivePatchRoute.API else Route.SSH


def _must_still_be_patched(rollout: Rollout, plan: Plan, facts: VMFacts) -> bool:
    """It was started anew in this rollout and is not at the release yet, or that is not known yet."""
    if not facts.was_started_anew(rollout.metadata.name) or is_converged(facts, plan.release):
        return False
    return method_of(rollout, plan, facts) is not None


def retry_at(retry: Retry, operation: OperationStatus) -> datetime | None:
    """When an operation that failed may be tried again; None: never. The wait doubles with every try.

    Only what ended as Failed: then nothing on the VM was changed. Of a call to the management server, only one that
    was not made.
    """
    if operation.result is not OperationResult.FAILED or operation.takes_back or operation.finished_at is None:
        return None
    if is_call(operation.method, operation.route) and not never_called(operation):
        return None
    if operation.attempt > retry.limit or operation.reason not in {str(reason) for reason in retry.reasons}:
        return None
    doubled: int = 2 ** (operation.attempt - 1)
    return operation.finished_at + retry.backoff * doubled


def never_called(operation: OperationStatus) -> bool:
    """It ended before the management server was asked for anything: the VM is what it was, and the release has shown
    nothing."""
    failed = operation.result is OperationResult.FAILED and operation.step == GroupPhase.PREPARING
    return failed and is_call(operation.method, operation.route)


def gives_up_at(retry: Retry, operation: OperationStatus) -> datetime:
    """When the last try would be due if every further one failed at once: so long a VM that does not answer is waited
    for, because an order that cannot reach it would only be counted."""
    ended = operation.finished_at or operation.started_at
    waits: int = 2**retry.limit - 2 ** (operation.attempt - 1)
    return ended + retry.backoff * waits


def has_begun(rollout: str, facts: VMFacts) -> bool:
    """Whether this rollout has given it an order."""
    return (facts.order is not None and facts.order.rollout == rollout) or facts.operation_in(rollout) is not None


def changed_here(rollout: str, wave: WaveView) -> tuple[VMFacts, ...]:
    """VMs of a wave that this rollout has patched, whoever carried it out, or had started anew, and those that took the
    place of recreated ones: what the wave soaks for."""
    found = []
    for facts in wave.done:
        operation = facts.operation_in(rollout)
        changed = operation is not None and operation.result is OperationResult.SUCCEEDED and not operation.takes_back
        if changed or facts.name in wave.successors:
            found.append(facts)
    return tuple(found)


_MADE_AND_NOT_WELL = frozenset({Reason.CLAIM_NOT_VERIFIED, Reason.JOB_FAILED, Reason.RULES_MISSING})
"""Of a call: it was made, and what it left is not what was asked for. Other reasons are found before a call, too."""


def can_go_back(rollout: str, vms: Iterable[VMFacts]) -> tuple[VMFacts, ...]:
    """Those of `vms` that this rollout has changed by a patch and that have a backup of before: the management server
    is not asked to patch a VM without one, and one whose patch could not be verified may be half old."""
    found = []
    for facts in vms:
        operation = facts.operation_in(rollout)
        if operation is None or operation.takes_back or operation.method is not Method.LIVE_PATCH:
            continue
        unverified = operation.route is Route.API and operation.reason in _MADE_AND_NOT_WELL
        if operation.reason == Reason.UP_TO_DATE:
            continue  # the call was needless: it was not made, and nobody took a backup
        if operation.result is OperationResult.SUCCEEDED or unverified:
            found.append(facts)
    return tuple(found)


def appended_to(rollout: Rollout, wave: str) -> tuple[AppendedVM, ...]:
    """What the rollout's status added to a wave of its plan."""
    return next((status.appended for status in rollout.status.waves if status.name == wave), ())


def wave_digests(rollout: Rollout, plan: Plan) -> dict[str, str]:
    """Wave -> digest of what would be done in it now: what an approval must name."""
    word = cloud_word(rollout)
    return {wave.name: digest_with(wave, appended_to(rollout, wave.name), word) for wave in plan.waves}


def cloud_word(rollout: Rollout) -> str:
    """Stands for what is other in its cloud than when it was planned; empty while nothing ever was. Who approved a
    wave before did not speak of that cloud."""
    return rollout.status.cloud.word if rollout.status.cloud is not None else ""
