"""How a VM's difference is closed: an ordered list of small checkers, the first that has something to say decides.

Each says whether something is required, by which method, why for programs and why for people; that sentence is written
here once and shown in the plan, the SystemVM and the policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sysvm.api.base import format_time
from sysvm.api.methods import AllowedMethod, HostPayloadRule, LivePatchOptions, Method, Route
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import DriftKind
from sysvm.domain.by_server import (
    is_at_the_release_and_gated,
    is_not_obeyed_for_certain,
    needs_another_template,
    needs_the_api_route,
    of_the_api_route,
    of_the_books,
    would_be_recreated,
)
from sysvm.domain.drift import Drift, drift_of
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.findings import Checker, Context, Finding, figures, what_differs
from sysvm.domain.host_payload import host_mismatch
from sysvm.domain.rules import rules_lost
from sysvm.domain.running import failed_services
from sysvm.domain.versions import compatibility


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one VM and why."""

    method: Method
    """LivePatch, Hold (something should be done and is not), None (nothing to do, or not known yet)."""
    reason: Reason
    message: str
    drift: Drift
    warnings: tuple[str, ...] = ()
    undecided: bool = False
    """Not known yet: the VM must be observed, or compared with this release."""
    route: Route | None = None
    """Of a live patch: over SSH, or by CloudStack's own."""

    @property
    def kinds(self) -> tuple[DriftKind, ...]:
        """The drift in a fixed order, for statuses and plans."""
        return tuple(kind for kind in DriftKind if kind in self.drift.kinds)

    @property
    def converged(self) -> bool:
        return self.method is Method.NONE and self.drift.converged


HEALS = 3
"""So often a VM is put back within `HEAL_PERIOD` before it is held."""
HEAL_PERIOD = timedelta(hours=24)


KEEPALIVED_RESTART = ("keepalived", "Restart")
"""Unit and action, as a plan names them."""


def decide(
    facts: VMFacts,
    release: Release,
    *,
    methods: Sequence[AllowedMethod] = (AllowedMethod.LIVE_PATCH,),
    heal: bool = False,
    excluded: str | None = None,
    live_patch: LivePatchOptions = LivePatchOptions(),  # noqa: B008  # frozen
) -> Decision:
    """The decision for one VM. `excluded`: the reason (perhaps empty) if the policy leaves it alone."""
    drift = drift_of(facts, release)
    template = facts.observed.template.version if facts.observed and facts.observed.template else None
    verdict = compatibility(release.compatibility, template, release.version)
    context = Context(facts, release, drift, verdict, tuple(methods), live_patch, heal, excluded)
    finding = next(found for checker in CHECKERS if (found := checker(context)) is not None)
    return Decision(
        method=finding.method,
        reason=finding.reason,
        message=finding.sentence,
        drift=drift,
        warnings=_warnings(context, finding) if finding.method is Method.LIVE_PATCH else (),
        undecided=finding.undecided,
        route=finding.route,
    )


def is_excluded(context: Context) -> Finding | None:
    """A policy may name VMs that it leaves alone."""
    if context.excluded is None:
        return None
    why = f": {context.excluded}" if context.excluded else ""
    return Finding(Method.HOLD, Reason.EXCLUDED, f"{context.facts.vm} is excluded by the policy{why}")


def is_going_away(context: Context) -> Finding | None:
    if not context.facts.deleting:
        return None
    return Finding(Method.HOLD, Reason.DELETING, f"{context.facts.vm} is being removed from the inventory")


def is_on_hold(context: Context) -> Finding | None:
    """A person's wish goes before everything that we know."""
    hold = context.facts.hold
    if hold is None:
        return None
    until = f" until {format_time(hold.until)}" if hold.until else ""
    return Finding(Method.HOLD, Reason.ON_HOLD, f"{context.facts.vm} is on hold{until}: {hold.reason}")


def is_inconsistent(context: Context) -> Finding | None:
    """After a failed rollback nothing automatic touches the VM again."""
    if not context.facts.inconsistent:
        return None
    return Finding(
        Method.HOLD,
        Reason.INCONSISTENT,
        f"{context.facts.vm} is neither old nor new after a failed rollback: a person must repair it, "
        "then the next look finds it",
    )


def is_away(context: Context) -> Finding | None:
    """What CloudStack says does not run cannot be looked at, and what is on its way must not be touched."""
    away = context.facts.away
    if away is None:
        return None
    reason = Reason.NO_ADDRESS if away.startswith("has no address") else Reason.VM_NOT_RUNNING
    return Finding(Method.HOLD, reason, f"{context.facts.vm} {away}")


def is_unreachable(context: Context) -> Finding | None:
    facts = context.facts
    if not facts.unreachable:
        return None
    why = f": {facts.reach.message}" if facts.reach.message else ""
    return Finding(Method.HOLD, facts.reach.reason, f"{facts.vm} cannot be reached{why}")


def is_not_known_yet(context: Context) -> Finding | None:
    """Nothing is decided on a guess: neither a patch, nor that none is needed."""
    notes, vm, release = context.drift.notes, context.facts.vm, context.release
    sentences = {
        Reason.NOT_OBSERVED: f"{vm} was never looked at",
        Reason.NOT_COMPARED: f"the files of {vm} were not yet compared with {release.version} ({release.short})",
        Reason.CONTENT_STALE: f"the files of {vm} were last compared too long ago",
    }
    reason = next((reason for reason in sentences if reason in notes), None)
    return None if reason is None else Finding(Method.NONE, reason, sentences[reason], undecided=True)


def would_be_undone_by_its_host(context: Context) -> Finding | None:
    """Also where the VM is at the release: somebody must upgrade the host, or the next stop and start is drift."""
    mismatch = host_mismatch(context.facts, context.release)
    if mismatch is None or context.live_patch.host_payload is HostPayloadRule.WARN:
        return None
    return Finding(
        Method.HOLD,
        Reason.HOST_PAYLOAD_MISMATCH,
        f"{mismatch}; upgrade cloudstack-common on the host, or set livePatch.hostPayload to Warn",
    )


def is_up_to_date(context: Context) -> Finding | None:
    """Nothing to do. Another build of the same files is up to date: content decides. A router that takes no command
    is not, whatever its files are."""
    if not context.drift.converged or context.facts.gate_closed is not False:
        return None
    vm, release = context.facts.vm, context.release
    if Reason.SIGNATURE_ONLY in context.drift.notes:
        return Finding(
            Method.NONE,
            Reason.SIGNATURE_ONLY,
            f"every file of {vm} is that of {release.version} ({release.short}), from another build of the payload",
        )
    return Finding(Method.NONE, Reason.UP_TO_DATE, f"{vm} is at {release.version} ({release.short})")


def does_not_run(context: Context) -> Finding | None:
    """Every file is right and something does not run: patching again would not help, so a person is told."""
    if context.drift.kinds != {DriftKind.SERVICES}:
        return None
    vm, at = context.facts.vm, f"{context.release.version} ({context.release.short})"
    failed = failed_services(context.facts)
    if failed:
        named = ", ".join(failed[:5])
        sentence = f"{vm} is at {at}, but services have failed: {named}; look at systemctl status there"
        return Finding(Method.HOLD, Reason.SERVICES_FAILED, sentence)
    if context.facts.rules_lost:
        return Finding(Method.HOLD, Reason.RULES_LOST, f"{vm} is at {at}, but {rules_lost(context.facts)}")
    trouble = context.facts.pair_trouble
    if trouble is None:
        return None
    return Finding(Method.HOLD, trouble.reason, f"{vm} is at {at}, but {trouble.sentence}")


def is_not_compatible(context: Context) -> Finding | None:
    """The template decides what a live patch can install; a version that cannot be read is no licence."""
    if context.verdict.supported:
        return None
    observed = context.facts.observed
    template = f" (template {observed.template.version})" if observed and observed.template else ""
    return Finding(
        Method.HOLD,
        context.verdict.reason or Reason.NOT_COMPATIBLE,
        f"{context.facts.vm}{template} cannot be live-patched to {context.release.version}: {context.verdict.message}",
    )


def has_obstacles(context: Context) -> Finding | None:
    """What the comparison of files found that must not be done to a VM that runs."""
    observed = context.facts.observed
    obstacles = observed.content.obstacles if observed and observed.content else ()
    for obstacle in obstacles:
        sentence = f"{context.facts.vm} cannot be live-patched to {context.release.version}: {obstacle.message}"
        try:
            return Finding(Method.HOLD, Reason(obstacle.reason), sentence)
        except ValueError:  # written by a newer version
            return Finding(Method.HOLD, Reason.NOT_COMPATIBLE, sentence)
    return None


def is_drifted_without_leave_to_heal(context: Context) -> Finding | None:
    """Somebody changed a VM that was at the release: that is reported, and put back only where the policy says so."""
    if not context.drift.was_at_release or context.heal:
        return None
    return Finding(
        Method.HOLD,
        Reason.DRIFTED,
        f"{context.facts.vm} was at {context.release.version} ({context.release.short}) and no longer is: "
        f"{figures(context)}; drift.heal is Never",
    )


def would_fail_over(context: Context) -> Finding | None:
    """A restart of keepalived on the PRIMARY moves the gateway to its peer: only with leave."""
    facts = context.facts
    if context.may_fail_over or not facts.has_gateway:
        return None
    loss = next((each.expected_loss for each in facts.actions if (each.name, each.action) == KEEPALIVED_RESTART), None)
    if loss is None:
        return None
    return Finding(
        Method.HOLD,
        Reason.FAILOVER_NOT_ALLOWED,
        f"{facts.vm} is not at {context.release.version} ({context.release.short}): {figures(context)}; it is PRIMARY "
        f"and its keepalived must be restarted ({loss}): set livePatch.plannedFailover to Allowed, or let it become "
        "BACKUP first",
    )


def is_put_back_again_and_again(context: Context) -> Finding | None:
    """Somebody changes what is put back: going on would be a fight, and tenants would feel it."""
    if not context.drift.was_at_release:
        return None
    since = context.facts.moment - HEAL_PERIOD
    count = context.facts.put_back_since(since, context.release.revision)
    if count < HEALS:
        return None
    return Finding(
        Method.HOLD,
        Reason.HEAL_LOOP,
        f"{context.facts.vm} was put back to {context.release.version} ({context.release.short}) {count} times in "
        f"24 hours and is not there again: {figures(context)}; find out who changes it",
    )


def needs_live_patch(context: Context) -> Finding:
    """Last: what is left differs and can be closed, if the policy lists the method."""
    sentence = f"{context.facts.vm} {context.standing}"
    if AllowedMethod.LIVE_PATCH not in context.methods:
        return Finding(Method.HOLD, Reason.METHOD_NOT_ALLOWED, f"{sentence}; the policy does not list LivePatch")
    return Finding(Method.LIVE_PATCH, what_differs(context), sentence, route=Route.SSH)


CHECKERS: tuple[Checker, ...] = (
    is_excluded,
    is_going_away,
    is_on_hold,
    is_inconsistent,
    is_away,
    is_unreachable,
    is_not_known_yet,
    would_be_undone_by_its_host,
    is_up_to_date,
    does_not_run,
    needs_another_template,
    is_not_compatible,
    has_obstacles,
    is_drifted_without_leave_to_heal,
    is_put_back_again_and_again,
    needs_the_api_route,
    is_not_obeyed_for_certain,
    is_at_the_release_and_gated,
    would_be_recreated,
    would_fail_over,
    needs_live_patch,
)
"""In this order. The last one always has an answer."""


def _warnings(context: Context, finding: Finding) -> tuple[str, ...]:
    vm = context.facts.vm
    found = [f"{vm}: {context.verdict.warning}"] if context.verdict.warning else []
    if (mismatch := host_mismatch(context.facts, context.release)) is not None:
        found.append(mismatch)
    if Reason.SIGNATURE_MISMATCH in context.drift.notes:
        found.append(f"{vm}: its signature does not belong to its own payload: somebody changed one of the two")
    management = context.management
    if management is None:
        return tuple(found)
    found += of_the_api_route(management) if finding.route is Route.API else of_the_books(context, management)
    return tuple(found)
