"""What a SystemVM says of itself: state in one word, conditions, plan entry."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sysvm.api.base import Condition
from sysvm.api.methods import Databags, Method, Route
from sysvm.api.operation import OperationResult, OperationStatus, StepResult
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.systemvm import Blocker, PlanEntry, PlannedAction, SystemVM, VMState
from sysvm.domain import conditions
from sysvm.domain.conditions import Wanted
from sysvm.domain.facts import Reach, Release, VMFacts, facts_of, is_partial, short, signature_contradicts_payload
from sysvm.domain.failure import failure_of
from sysvm.domain.host_payload import host_mismatch
from sysvm.domain.method import Decision
from sysvm.domain.pairs import Trouble
from sysvm.domain.rules import rules_lost


@dataclass(frozen=True, slots=True)
class VMTruth:
    state: VMState
    conditions: tuple[Condition, ...]


def system_vm_truth(
    vm: SystemVM,
    *,
    reach: Reach,
    release: Release | None,
    decision: Decision | None,
    now: datetime,
    pair_trouble: Trouble | None = None,
    absent: str | None = None,
) -> VMTruth:
    """State and conditions of a VM whose other status parts (observed, operation, ...) are already the new ones.

    `reach`: how the last try to reach it went (not the condition, which is written here). `decision` and `release` are
    None while no policy owns the VM or its release is not known. `pair_trouble`: see `VMFacts`. `absent`: why the
    object is there although the last sweep did not find its VM.
    """
    facts = replace(facts_of(vm, now=now), reach=reach, pair_trouble=pair_trouble)
    state, said = _state(facts, release, decision)
    if absent is not None and facts.away is not None and not facts.in_work:
        said = [conditions.unknown(READY, Reason.VM_GONE, absent)]
    said += [_reachable(facts), *_consistent(facts), *_template_outdated(facts, release, decision), *_view_stale(facts)]
    said += _host_differs(facts, release)
    return VMTruth(state, conditions.merged(vm.status.conditions, said, generation=vm.metadata.generation, now=now))


def _state(facts: VMFacts, release: Release | None, decision: Decision | None) -> tuple[VMState, list[Wanted]]:
    """The first that applies: what is happening, what is broken, what is not known, what is wanted."""
    if facts.in_work:
        return VMState.UPDATING, _working(Reason.IN_WORK, _work(facts))
    if facts.inconsistent:
        return VMState.FAILED, _stalled(Reason.INCONSISTENT, failure_of(facts))
    if facts.away:
        told = f"{facts.vm} {facts.away}: it is looked at when it runs and has an address"
        return VMState.UNKNOWN, [conditions.unknown(READY, Reason.VM_NOT_RUNNING, told)]
    if facts.unreachable:
        told = f"{facts.vm} cannot be reached: {facts.reach.message or facts.reach.reason}"
        needs_a_person = facts.reach.reason in NEEDS_A_PERSON
        return VMState.UNREACHABLE, (_stalled if needs_a_person else _working)(facts.reach.reason, told)
    if release is None or decision is None:
        told = f"no policy with a readable release selects {facts.vm}"
        return VMState.UNKNOWN, [conditions.unknown(READY, Reason.NO_POLICY, told)]
    if decision.undecided:
        return VMState.UNKNOWN, [
            conditions.unknown(READY, decision.reason, decision.message),
            conditions.true(ConditionType.RECONCILING, decision.reason, decision.message),
        ]
    if decision.converged:
        return VMState.CONVERGED, [conditions.true(READY, Reason.CONVERGED, decision.message)]
    if facts.result_at(release.revision) not in (None, OperationResult.SUCCEEDED):
        return VMState.FAILED, _stalled(Reason.VM_FAILED, failure_of(facts))
    if decision.reason in (Reason.SERVICES_FAILED, Reason.RULES_LOST, Reason.NO_SINGLE_PRIMARY):
        return VMState.FAILED, [conditions.false(READY, decision.reason, decision.message)]
    held = decision.method is Method.HOLD and decision.reason is not Reason.DRIFTED
    return VMState.HELD if held else VMState.OUTDATED, [conditions.false(READY, decision.reason, decision.message)]


READY = ConditionType.READY

NEEDS_A_PERSON = frozenset({Reason.HOST_KEY_CHANGED, Reason.HOST_KEY_UNKNOWN, Reason.HOST_NOT_TRUSTED})
"""Trying again does not help until somebody says which key is right."""


def _working(reason: Reason, told: str) -> list[Wanted]:
    return [conditions.false(READY, reason, told), conditions.true(ConditionType.RECONCILING, reason, told)]


def _stalled(reason: Reason, told: str) -> list[Wanted]:
    return [conditions.false(READY, reason, told), conditions.true(ConditionType.STALLED, reason, told)]


def _work(facts: VMFacts) -> str:
    order, operation = facts.order, facts.operation
    if order is None:
        return ""
    begun = operation is not None and operation.id == order.id and operation.step
    step = f"step {operation.step}{_so_far(operation)}" if begun and operation else "about to begin"
    return f"{order.method} to {short(order.revision)} ({order.id}): {step}"


def _so_far(operation: OperationStatus | None) -> str:
    """`, 34 of 90 MB` while the step in work sends content; else what it says it waits for."""
    step = (
        next((step for step in reversed(operation.steps) if step.name == operation.step), None) if operation else None
    )
    if step is None and operation is not None and not operation.steps:  # a call: its phase is the step
        return f", {operation.message[:256]}" if operation.message else ""
    if step is None or step.result is not StepResult.RUNNING:
        return ""
    if not step.bytes_total:
        return f", {step.message[:256]}" if step.message else ""
    digits = 0 if step.bytes_total >= 10_000_000 else 1
    return f", {(step.bytes or 0) / 1e6:.{digits}f} of {step.bytes_total / 1e6:.{digits}f} MB"


def _reachable(facts: VMFacts) -> Wanted:
    reach = facts.reach
    if facts.away:
        return conditions.unknown(ConditionType.REACHABLE, Reason.VM_NOT_RUNNING, f"{facts.vm} {facts.away}")
    if reach.reachable is None:
        return conditions.unknown(ConditionType.REACHABLE, reach.reason, reach.message)
    status = conditions.true if reach.reachable else conditions.false
    return status(ConditionType.REACHABLE, reach.reason, reach.message)


def _consistent(facts: VMFacts) -> list[Wanted]:
    """Whether what the VM says of itself holds together. While it is in work its signature is zeros by design."""
    if facts.inconsistent:
        return [conditions.false(ConditionType.CONSISTENT, Reason.INCONSISTENT, failure_of(facts))]
    if facts.observed is None or facts.in_work:
        return []
    if is_partial(facts.observed.signature):
        told = f"the signature of {facts.vm} is missing, empty or zeros: a patch was begun and never committed"
        return [conditions.false(ConditionType.CONSISTENT, Reason.PARTIAL_PATCH, told)]
    if signature_contradicts_payload(facts.observed):
        told = (
            f"the signature of {facts.vm} does not belong to its /usr/share/cloud/cloud-scripts.tgz: "
            "one of the two was changed by hand or by another tool"
        )
        return [conditions.false(ConditionType.CONSISTENT, Reason.SIGNATURE_MISMATCH, told)]
    if facts.rules_lost:
        told = f"{facts.vm} {rules_lost(facts)}"
        return [conditions.false(ConditionType.CONSISTENT, Reason.RULES_LOST, told)]
    if facts.pair_trouble:
        return [conditions.false(ConditionType.CONSISTENT, facts.pair_trouble.reason, facts.pair_trouble.sentence)]
    return [conditions.true(ConditionType.CONSISTENT, Reason.CONSISTENT)]


def _template_outdated(facts: VMFacts, release: Release | None, decision: Decision | None) -> list[Wanted]:
    if release is None or decision is None or Reason.TEMPLATE_OUTDATED not in decision.drift.notes:
        return []
    template = facts.observed.template if facts.observed else None
    version = template.version if template else "unknown"
    told = f"the template of {facts.vm} is {version}, older than {release.version}; live patch does not change it"
    return [conditions.true(ConditionType.TEMPLATE_OUTDATED, Reason.TEMPLATE_OUTDATED, told)]


def _host_differs(facts: VMFacts, release: Release | None) -> list[Wanted]:
    told = host_mismatch(facts, release) if release is not None else None
    return [conditions.true(ConditionType.HOST_PAYLOAD_MISMATCH, Reason.HOST_PAYLOAD_MISMATCH, told)] if told else []


def _view_stale(facts: VMFacts) -> list[Wanted]:
    """The server's books differ from the VM: told, because CloudStack's own version check fails then. Never a gate."""
    observed = facts.observed
    management = observed.management if observed is not None else None
    signature = observed.signature if observed is not None else None
    if management is None or management.scripts_version is None or signature is None or facts.in_work:
        return []
    if is_partial(signature) or signature.value.lower() == management.scripts_version:
        return []
    told = (
        f"the management server's books have scripts {short(management.scripts_version)} for {facts.vm} and it runs "
        f"{short(signature.value)}: its router_version_check.py fails until CloudStack starts or patches it itself"
    )
    return [conditions.true(ConditionType.MANAGEMENT_VIEW_STALE, Reason.MANAGEMENT_VIEW_STALE, told)]


RERUN = "Rerun"
AT_NEXT_COMMAND = "AtNextCommand"
"""The two words for a data bag in `status.plan.services`: configure.py is run, or the management server's next command
applies what changed."""


EVERY_SERVICE = PlannedAction(
    name="every enabled service",
    action="Restart",
    expected_loss="load-balanced connections are cut; DNS, DHCP and metadata pause",
)
"""What CloudStack's own live patch does, whatever files differ."""


def as_allowed(actions: Sequence[PlannedAction], databags: Databags) -> tuple[PlannedAction, ...]:
    """The actions with what this policy does about data bags."""
    if databags is Databags.NEEDED:
        return tuple(actions)
    later = {"action": AT_NEXT_COMMAND, "expected_loss": "none"}
    return tuple(action.model_copy(update=later) if action.action == RERUN else action for action in actions)


def plan_entry(
    policy: str,
    release: Release,
    decision: Decision,
    *,
    services: Sequence[PlannedAction] = (),
    blocked_by: Sequence[Blocker] = (),
) -> PlanEntry:
    """status.plan, bounded."""
    told = "; ".join((decision.message, *decision.warnings))
    return PlanEntry(
        policy=policy,
        revision=release.revision,
        drift=decision.kinds,
        method=decision.method,
        route=decision.route,
        reason=str(decision.reason),
        message=conditions.bounded(told),
        services=(EVERY_SERVICE,) if decision.route is Route.API else tuple(services)[:32],
        blocked_by=tuple(blocked_by)[:16],
    )
