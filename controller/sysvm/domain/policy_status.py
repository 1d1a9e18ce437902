"""What a PatchPolicy says: the one table from situation to conditions, counts, progress and methods.

Ready speaks of the applicable VMs; the message counts the rest. Conditions follow the kstatus contract: Reconciling and
Stalled are there only when true and never together, and every condition carries the generation it speaks of.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sysvm.api.base import ConditionStatus
from sysvm.api.endpoint import CloudStackEndpoint, Management
from sysvm.api.methods import Method
from sysvm.api.operation import OperationResult
from sysvm.api.policy import (
    LastRollout,
    PatchPolicy,
    PatchPolicyStatus,
    PolicyBlocker,
    PolicyCounts,
    PolicyTarget,
    Progress,
)
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.rollout import Rollout, WavePhase
from sysvm.api.template import SystemVMTemplate
from sysvm.domain import conditions, gates
from sysvm.domain.conditions import Wanted
from sysvm.domain.facts import Release, VMFacts, release_of
from sysvm.domain.failure import failures_of
from sysvm.domain.method import Decision
from sysvm.domain.no_vms import Listing, unexplained
from sysvm.domain.planner import is_applicable
from sysvm.domain.selection import Selection
from sysvm.domain.sequence import STANDING
from sysvm.domain.starts import may_start, spec_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicySituation:
    """Everything the status is made of."""

    policy: PatchPolicy
    endpoint: CloudStackEndpoint | None
    template: SystemVMTemplate | None
    selection: Selection
    decisions: Mapping[str, Decision]
    """SystemVM name -> decision (`planner.decide_all`); empty while the release is not known."""
    rollout: Rollout | None = None
    """The one that lastRollout names, if it is there."""
    last_rollout: LastRollout | None = None
    """What goes into the status; with it failures are told from news (`rollout.may_start`)."""
    waits: PolicyBlocker | None = None
    """What keeps another rollout from beginning (`sequence.waits_for`)."""
    listing: Listing = field(default_factory=Listing)
    """All VMs of the endpoint; asked only of a policy that selects none of them."""


def policy_status(situation: PolicySituation, *, now: datetime) -> PatchPolicyStatus:
    """The whole status but lastHandledReconcileAt, which is kept. Only the policy's own reconciler writes it."""
    policy, generation = situation.policy, situation.policy.metadata.generation
    release = release_of(situation.template, policy.spec) if situation.template else None
    sorted_ = _sorted(situation, release)
    said = [*_row(situation, sorted_, release).conditions(), _accepted(situation.selection)]
    counts = sorted_.counts()
    running = _running(situation)
    waits = (situation.waits,) if _waits(situation, sorted_) and situation.waits is not None else ()
    return PatchPolicyStatus(
        observed_generation=generation,
        conditions=conditions.merged(policy.status.conditions, said, generation=generation, now=now),
        last_handled_reconcile_at=policy.status.last_handled_reconcile_at,
        target=_target(release),
        counts=counts,
        methods=dict(
            sorted(Counter(str(d.method) for d in situation.decisions.values() if d.method in _NEEDED).items())
        ),
        last_rollout=situation.last_rollout,
        progress=_progress(situation, counts),
        blocked_by=running.status.blocked_by if running is not None else waits,
        next_action=running.status.next_action if running is not None else None,
    )


def _progress(situation: PolicySituation, counts: PolicyCounts) -> Progress:
    rollout = _running(situation)
    waves = rollout.status.waves if rollout is not None else ()
    return Progress(
        wave=next((wave.name for wave in waves if wave.phase is not WavePhase.DONE), None),
        done=counts.converged,
        of=counts.applicable,
        summary=f"{counts.converged}/{counts.applicable}",
        eta=rollout.status.eta if rollout is not None else None,
    )


DRIFT = frozenset(
    {Reason.DRIFTED, Reason.SERVICES_FAILED, Reason.RULES_LOST, Reason.NO_SINGLE_PRIMARY, Reason.HEAL_LOOP}
)
"""A VM that was at the release and well, and no longer is."""

_NEEDED = (Method.LIVE_PATCH, Method.REBOOT, Method.RECREATE, Method.HOLD)


# The VMs, each in one bucket


@dataclass(frozen=True, slots=True)
class _Sorted:
    """The selected VMs, each counted once."""

    converged: tuple[VMFacts, ...] = ()
    in_work: tuple[VMFacts, ...] = ()
    inconsistent: tuple[VMFacts, ...] = ()
    failed: tuple[VMFacts, ...] = ()
    waiting: tuple[VMFacts, ...] = ()
    undecided: tuple[VMFacts, ...] = ()
    unreachable: tuple[VMFacts, ...] = ()
    drifted: tuple[VMFacts, ...] = ()
    held: tuple[VMFacts, ...] = ()
    """Applicable, but no allowed method closes the difference."""
    on_hold: tuple[VMFacts, ...] = ()
    excluded: tuple[VMFacts, ...] = ()
    away: tuple[VMFacts, ...] = ()
    """Stopped, on their way, or without an address, as CloudStack has it."""
    total: int = 0
    applicable: int = 0

    def counts(self) -> PolicyCounts:
        return PolicyCounts(
            total=self.total,
            applicable=self.applicable,
            converged=len(self.converged),
            waiting=len(self.waiting) + len(self.undecided),
            updating=len(self.in_work),
            held=len(self.held) + len(self.on_hold),
            failed=len(self.failed) + len(self.inconsistent),
            unreachable=len(self.unreachable),
            drifted=len(self.drifted),
        )

    def rest(self) -> str:
        """`4 held, 2 excluded`: everything that a sentence about Ready does not speak of."""
        return ", ".join(
            f"{len(bucket)} {what}"
            for bucket, what in (
                (self.waiting, "waiting"),
                (self.undecided, "not compared yet"),
                (self.in_work, "in work"),
                ((*self.failed, *self.inconsistent), "failed"),
                (self.unreachable, "unreachable"),
                (self.drifted, "drifted"),
                (self.held, "held"),
                (self.on_hold, "on hold"),
                (self.excluded, "excluded"),
                (self.away, "not running"),
            )
            if bucket
        )


def _sorted(situation: PolicySituation, release: Release | None) -> _Sorted:
    buckets: dict[str, list[VMFacts]] = {}
    excluded = situation.selection.excluded
    for facts in situation.selection.vms:
        buckets.setdefault(_bucket(facts, situation.decisions.get(facts.name), release, excluded), []).append(facts)
    return _Sorted(
        **{bucket: tuple(vms) for bucket, vms in buckets.items()},
        total=len(situation.selection.vms),
        applicable=sum(is_applicable(facts, excluded) for facts in situation.selection.vms),
    )


def _bucket(facts: VMFacts, decision: Decision | None, release: Release | None, excluded: Mapping[str, str]) -> str:
    if facts.in_work:
        return "in_work"
    if facts.name in excluded:
        return "excluded"
    if facts.inconsistent:
        return "inconsistent"
    if facts.hold or facts.deleting:
        return "on_hold"
    if facts.away:
        return "away"
    if facts.unreachable:
        return "unreachable"
    if decision is None or release is None or decision.undecided:
        return "undecided"
    if decision.converged:
        return "converged"
    if facts.result_at(release.revision) not in (None, OperationResult.SUCCEEDED):
        return "failed"
    if decision.method.is_work:
        return "waiting"
    return "drifted" if decision.reason in DRIFT else "held"


# The table


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of the table."""

    ready: bool
    reason: Reason
    message: str
    reconciling: bool = False
    stalled: bool = False

    def conditions(self) -> list[Wanted]:
        said = [(conditions.true if self.ready else conditions.false)(ConditionType.READY, self.reason, self.message)]
        if self.reconciling:
            said.append(conditions.true(ConditionType.RECONCILING, self.reason, self.message))
        if self.stalled:
            said.append(conditions.true(ConditionType.STALLED, self.reason, self.message))
        return said


@dataclass(frozen=True, slots=True)
class _Context:
    situation: PolicySituation
    vms: _Sorted
    release: Release | None

    @property
    def at(self) -> str:
        """`806 at 8c1f03ab; 4 held`."""
        revision = self.release.short if self.release else "the release"
        told = f"{len(self.vms.converged)} at {revision}"
        return f"{told}; {rest}" if (rest := self.vms.rest()) else told


def _row(situation: PolicySituation, vms: _Sorted, release: Release | None) -> _Row:
    context = _Context(situation, vms, release)
    return next(row for rule in TABLE if (row := rule(context)) is not None)


def _suspended(context: _Context) -> _Row | None:
    policy, endpoint = context.situation.policy, context.situation.endpoint
    if policy.spec.suspend:
        return _Row(ready=False, reason=Reason.SUSPENDED, message=f"suspended by spec.suspend: {context.at}")
    if endpoint is not None and endpoint.spec.suspend:
        told = f"endpoint {endpoint.metadata.name} is suspended: {context.at}"
        return _Row(ready=False, reason=Reason.SUSPENDED, message=told)
    return None


def _in_work(context: _Context) -> _Row | None:
    """Whatever else is wrong: while a VM is in work nothing is stalled."""
    if not context.vms.in_work:
        return None
    told = f"{context.at} ({_named(context.vms.in_work)})"
    if failed := _first_failure(context):
        told = f"{failed}; {told}"
    return _Row(ready=False, reason=Reason.ROLLING_OUT, message=told, reconciling=True)


def _nothing_to_refer_to(context: _Context) -> _Row | None:
    """The spec refers to what is not there, or cannot ever become ready by itself."""
    spec, template = context.situation.policy.spec, context.situation.template
    if context.situation.endpoint is None:
        told = f"there is no CloudStackEndpoint {spec.endpoint_ref.name}"
        return _Row(ready=False, reason=Reason.ENDPOINT_NOT_FOUND, message=told, stalled=True)
    if template is None:
        told = f"there is no SystemVMTemplate {spec.template_ref.name}"
        return _Row(ready=False, reason=Reason.TEMPLATE_NOT_FOUND, message=told, stalled=True)
    if conditions.is_true(template.status.conditions, ConditionType.STALLED):
        return _template_row(template, stalled=True)
    if context.release is None:
        return _template_row(template, stalled=False)
    return None


def _template_row(template: SystemVMTemplate, *, stalled: bool) -> _Row:
    ready = conditions.find(template.status.conditions, ConditionType.READY)
    why = f": {ready.message}" if ready and ready.message else ""
    return _Row(
        ready=False,
        reason=Reason.TEMPLATE_NOT_READY,
        message=f"SystemVMTemplate {template.metadata.name} is not ready{why}",
        reconciling=not stalled,
        stalled=stalled,
    )


def _nothing_selected(context: _Context) -> _Row | None:
    if context.vms.total:
        return None
    if context.situation.selection.conflicts:
        return _conflict(context)
    before = _said_of_nothing(context.situation.policy)
    if before is not None and not context.situation.listing.complete:
        return before
    spec = context.situation.policy.spec
    told = f"the selector matches no VM of endpoint {spec.endpoint_ref.name}"
    why = unexplained(spec.selector, context.situation.listing)
    passes = why is not None and why.passes
    told += " yet: " if passes else ": "
    told += why.message if why is not None else "it has none of this kind"
    return _Row(ready=False, reason=Reason.NO_VMS, message=told, reconciling=passes, stalled=not passes)


def _said_of_nothing(policy: PatchPolicy) -> _Row | None:
    """What it said before: that stands until a process that began looks through the cloud. Else every restart would
    take it back and say it again."""
    ready = conditions.find(policy.status.conditions, ConditionType.READY)
    stalled = conditions.find(policy.status.conditions, ConditionType.STALLED)
    if ready is None or stalled is None or ready.observed_generation != policy.metadata.generation:
        return None
    if ready.reason != Reason.NO_VMS:
        return None
    return _Row(ready=False, reason=Reason.NO_VMS, message=ready.message, stalled=True)


def _rollback_failed(context: _Context) -> _Row | None:
    if not context.vms.inconsistent:
        return None
    told = f"{failures_of(context.vms.inconsistent)}; {context.at}"
    return _Row(ready=False, reason=Reason.ROLLBACK_FAILED, message=told, stalled=True)


def _failed(context: _Context) -> _Row | None:
    """A VM failed, or the last rollout of this revision ended before its end: no new one begins by itself."""
    last = context.situation.last_rollout
    if last is None or context.release is None or last.revision != context.release.revision:
        return None
    start = may_start(last, context.release.revision, spec_digest(context.situation.policy.spec))
    if start.allowed or start.running or not (context.vms.failed or context.vms.waiting):
        return None
    failure = _first_failure(context)
    if failure:
        return _Row(ready=False, reason=Reason.VM_FAILED, message=f"{failure}; {context.at}", stalled=True)
    return _Row(ready=False, reason=start.reason, message=f"{start.message}; {context.at}", stalled=True)


def _first_failure(context: _Context) -> str:
    return failures_of((*context.vms.inconsistent, *context.vms.failed))


def _observe_only(context: _Context) -> _Row | None:
    endpoint = context.situation.endpoint
    pending = len(context.vms.waiting) + len(context.vms.failed)
    if endpoint is None or endpoint.spec.management is not Management.OBSERVE or not pending:
        return None
    told = f"endpoint {endpoint.metadata.name} has management Observe, nothing is changed: {context.at}"
    return _Row(ready=False, reason=Reason.OBSERVE_ONLY, message=told)


def _endpoint_unreachable(context: _Context) -> _Row | None:
    endpoint = context.situation.endpoint
    reachable = conditions.find(endpoint.status.conditions, ConditionType.REACHABLE) if endpoint else None
    if endpoint is None or reachable is None or reachable.status is not ConditionStatus.FALSE:
        return None
    told = f"endpoint {endpoint.metadata.name} is not reachable: {reachable.message}"
    return _Row(ready=False, reason=Reason.ENDPOINT_UNREACHABLE, message=told, reconciling=True)


def _not_compared(context: _Context) -> _Row | None:
    if not context.vms.undecided:
        return None
    told = f"{len(context.vms.undecided)} VMs must be looked at and compared first: {context.at}"
    return _Row(ready=False, reason=Reason.NOT_OBSERVED, message=told, reconciling=True)


def _waits(situation: PolicySituation, vms: _Sorted) -> bool:
    return situation.waits is not None and _running(situation) is None and bool(vms.waiting or vms.failed)


def _after_another(context: _Context) -> _Row | None:
    """There is something to do, and spec.after says not yet."""
    waits = context.situation.waits
    if waits is None or not _waits(context.situation, context.vms):
        return None
    reason = Reason(waits.reason)
    return _Row(ready=False, reason=reason, message=f"{waits.message}: {context.at}", stalled=reason in STANDING)


def _rolling_out(context: _Context) -> _Row | None:
    """Until the rollout has ended, also while it soaks: its own word is repeated, so that the two never disagree."""
    rollout = _running(context.situation)
    if rollout is None and not (context.vms.waiting or context.vms.failed):
        return None
    ready = conditions.find(rollout.status.conditions, ConditionType.READY) if rollout is not None else None
    if ready is not None and ready.reason in gates.WAITING:
        return _Row(ready=False, reason=Reason(ready.reason), message=f"{ready.message}; {context.at}")
    failed = _first_failure(context)
    told = f"{failed}; {context.at}" if failed else context.at
    reason = Reason.ROLLING_OUT
    if ready is not None and ready.reason in _SAYS_MORE:
        reason, told = Reason(ready.reason), f"{ready.message}; {context.at}"
    return _Row(ready=False, reason=reason, message=told, reconciling=True)


_SAYS_MORE = (Reason.ROLLING_BACK, Reason.RETRYING)


def _running(situation: PolicySituation) -> Rollout | None:
    """The rollout that has not ended yet."""
    rollout = situation.rollout
    return rollout if rollout is not None and rollout.status.result is None else None


def _vms_unreachable(context: _Context) -> _Row | None:
    limit = context.situation.policy.spec.readiness.max_unreachable
    if len(context.vms.unreachable) <= limit:
        return None
    told = f"{_named(context.vms.unreachable)} cannot be reached: {context.at}"
    return _Row(ready=False, reason=Reason.VMS_UNREACHABLE, message=told, reconciling=True)


def _conflict(context: _Context) -> _Row | None:
    if not context.situation.selection.conflicts:
        return None
    told = f"{context.situation.selection.conflict_sentence}; {context.at}"
    return _Row(ready=False, reason=Reason.CONFLICT, message=told, stalled=True)


def _drifted(context: _Context) -> _Row | None:
    """Reported, not healed; or put back so often that a person must find out who undoes it."""
    if not context.vms.drifted:
        return None
    decisions = [context.situation.decisions[facts.name] for facts in context.vms.drifted]
    fought = next((decision for decision in decisions if decision.reason is Reason.HEAL_LOOP), None)
    if fought is not None:
        told = f"{fought.message}; {context.at}"
        return _Row(ready=False, reason=Reason.HEAL_LOOP, message=told, stalled=True)
    first = decisions[0].message
    return _Row(ready=False, reason=Reason.DRIFTED, message=f"{first}; {context.at}")


def _gated(context: _Context) -> _Row | None:
    """A router that takes no command from the management server, or may take none, whatever its files are."""
    gated = [facts for facts in (*context.vms.held, *context.vms.unreachable) if facts.gate_closed is not False]
    closed = [facts for facts in gated if facts.gate_closed]
    if not gated:
        return None
    named, reason = (closed, Reason.MANAGEMENT_GATE_CLOSED) if closed else (gated, Reason.MANAGEMENT_GATE_UNKNOWN)
    more = f"; the same of {_named(named[1:])}" if named[1:] else ""
    told = f"{context.situation.decisions[named[0].name].message}{more}; {context.at}"
    return _Row(ready=False, reason=reason, message=told)


def _hosts_differ(context: _Context) -> _Row | None:
    """Hypervisor hosts that keep another payload than the release would undo it."""
    decisions = context.situation.decisions
    found = [facts for facts in context.vms.held if decisions[facts.name].reason is Reason.HOST_PAYLOAD_MISMATCH]
    if not found:
        return None
    more = f"; the same of {_named(found[1:])}" if found[1:] else ""
    told = f"{decisions[found[0].name].message}{more}; {context.at}"
    return _Row(ready=False, reason=Reason.HOST_PAYLOAD_MISMATCH, message=told)


def _held(context: _Context) -> _Row | None:
    """Applicable VMs that no allowed method brings there, or nothing left to speak of."""
    if context.vms.held:
        first = context.situation.decisions[context.vms.held[0].name].message
        return _Row(ready=False, reason=Reason.VMS_HELD, message=f"{first}; {context.at}")
    if not context.vms.applicable:
        return _Row(ready=False, reason=Reason.VMS_HELD, message=f"no VM is applicable: {context.at}")
    return None


def _converged(context: _Context) -> _Row:
    return _Row(ready=True, reason=Reason.CONVERGED, message=context.at)


Rule = Callable[[_Context], _Row | None]

TABLE: tuple[Rule, ...] = (
    _suspended,
    _in_work,
    _nothing_to_refer_to,
    _nothing_selected,
    _rollback_failed,
    _failed,
    _endpoint_unreachable,
    _observe_only,
    _after_another,
    _rolling_out,
    _not_compared,
    _vms_unreachable,
    _conflict,
    _drifted,
    _gated,
    _hosts_differ,
    _held,
    _converged,
)
"""The first that applies. A line with Stalled stands below the line of VMs in work; Ready=True is what is left."""


# The rest of the status


def _accepted(selection: Selection) -> Wanted:
    if selection.conflicts:
        return conditions.false(ConditionType.ACCEPTED, Reason.CONFLICT, selection.conflict_sentence)
    return conditions.true(ConditionType.ACCEPTED, Reason.ACCEPTED)


def _target(release: Release | None) -> PolicyTarget | None:
    if release is None:
        return None
    return PolicyTarget(revision=release.revision, template_version=release.version, signature=release.signature)


def _named(vms: Sequence[VMFacts]) -> str:
    names = ", ".join(facts.vm for facts in vms[:10])
    return names + (f" and {len(vms) - 10} more" if len(vms) > 10 else "")
