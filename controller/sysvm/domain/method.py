"""How a VM's difference is closed: an ordered list of small checkers, the first that has something to say decides.

Each says whether something is required, by which method, why for programs and why for people; that sentence is written
here once and shown in the plan, the SystemVM and the policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sysvm.api.base import format_time
from sysvm.api.policy import (
    AllowedMethod,
    HostPayloadRule,
    LivePatchOptions,
    LivePatchRoute,
    Method,
    PlannedFailover,
    Route,
)
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import ContentState, DriftKind, Identity, ObservedManagement
from sysvm.domain.drift import Drift, drift_of
from sysvm.domain.facts import ZONE_TYPES, Release, VMFacts
from sysvm.domain.gate import names_version_check, would_install
from sysvm.domain.host_payload import host_mismatch
from sysvm.domain.lifecycle import why_impossible
from sysvm.domain.rules import rules_lost
from sysvm.domain.running import failed_services
from sysvm.domain.versions import Verdict, compatibility


@dataclass(frozen=True, slots=True)
class Context:
    """What a checker may look at."""

    facts: VMFacts
    release: Release
    drift: Drift
    verdict: Verdict
    methods: tuple[AllowedMethod, ...]
    live_patch: LivePatchOptions
    heal: bool
    """Whether a VM that was at the release and no longer is may be put back."""
    excluded: str | None
    """Reason that the policy gives for leaving it alone; None: not excluded."""

    @property
    def may_fail_over(self) -> bool:
        """Whether a PRIMARY's keepalived may be restarted."""
        return self.live_patch.planned_failover is PlannedFailover.ALLOWED

    @property
    def management(self) -> ObservedManagement | None:
        """What the management server's books say; None: there is none, or it does not know the VM."""
        return self.facts.observed.management if self.facts.observed else None

    @property
    def goes_by_api(self) -> bool:
        """CloudStack's own live patch is what the policy wants for this VM."""
        route = self.live_patch.route
        return route is LivePatchRoute.API or (route is LivePatchRoute.AUTO and self.facts.gate_closed is True)

    @property
    def standing(self) -> str:
        """`is at 4.20.2 (8c1f03ab)`, or what differs: the predicate of a sentence about the VM."""
        at = f"at {self.release.version} ({self.release.short})"
        return f"is {at}" if self.drift.converged else f"is not {at}: {_figures(self)}"


@dataclass(frozen=True, slots=True)
class Finding:
    method: Method
    reason: Reason
    sentence: str
    undecided: bool = False
    """The VM must be looked at again before anything can be said."""
    route: Route | None = None
    """Of a live patch."""


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

Checker = Callable[[Context], Finding | None]

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


def needs_another_template(context: Context) -> Finding | None:
    """The template must be another, or a live patch cannot close what differs: by the first other method listed."""
    kinds, vm, release = context.drift.kinds, context.facts.vm, context.release
    required = DriftKind.TEMPLATE in kinds
    if not required and (context.verdict.supported or not kinds):
        return None
    observed, identity = context.facts.observed, context.facts.identity
    template = observed.template.version if observed and observed.template else "unknown"
    sentence = f"{vm} was started from template {template}, not {release.version}"
    if not required:
        why = context.verdict.message
        sentence = f"{vm} (template {template}) cannot be live-patched to {release.version}: {why}"
    listed = [method for method in map(Method, context.methods) if method in (Method.REBOOT, Method.RECREATE)]
    if not listed or identity is None:
        told = f"{sentence}; the policy lists neither Reboot nor Recreate"
        return Finding(Method.HOLD, Reason.METHOD_NOT_ALLOWED, told) if required else None
    impossible = why_impossible(listed[0], identity.type)
    if impossible is not None:
        return Finding(Method.HOLD, Reason.RECREATE_IMPOSSIBLE, f"{sentence}; {impossible}")
    refusal = _why_not_anew(context, identity)
    if refusal is not None:
        return Finding(Method.HOLD, refusal[0], f"{sentence}; {refusal[1]}")
    reason = Reason.TEMPLATE_OUTDATED if required else context.verdict.reason or Reason.NOT_COMPATIBLE
    return Finding(listed[0], reason, sentence)


def _why_not_anew(context: Context, identity: Identity) -> tuple[Reason, str] | None:
    """Why the management server would not start the VM from the declared image, by the last look at its templates. It
    is asked again right before the call."""
    release = context.release
    if identity.id is None:
        return Reason.RECREATE_IMPOSSIBLE, "no management server knows the VM: start it anew where it came from"
    if not release.images_declared:
        return Reason.IMAGE_NOT_DECLARED, f"add its image to spec.images of SystemVMTemplate {release.template_name}"
    hypervisor = (identity.hypervisor or "").casefold()
    rows = [
        row
        for row in release.images
        if (row.endpoint, row.zone) == (context.facts.endpoint, identity.zone)
        and row.hypervisor.casefold() == hypervisor
    ]
    if not rows:
        where = f"{identity.hypervisor or 'an unknown hypervisor'} in zone {identity.zone or 'unknown'}"
        return Reason.IMAGES_NOT_SEEN, f"no image for {where} was seen yet"
    users = "SSVM and CPVM" if identity.type in ZONE_TYPES else "routers"
    if any(users in row.used_by for row in rows):
        return None
    reason = Reason.WRONG_TEMPLATE_WOULD_BE_USED if any(row.ready for row in rows) else Reason.IMAGE_NOT_READY
    told = rows[0].message or f"CloudStack would start {users} in zone {identity.zone} from another template"
    return reason, told


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
        f"{_figures(context)}; drift.heal is Never",
    )


def needs_the_api_route(context: Context) -> Finding | None:
    """CloudStack's own live patch: where the policy asks for it, and where nothing else makes a router obey again."""
    if not context.goes_by_api:
        return None
    management, closed = context.management, context.facts.gate_closed is True
    if context.drift.converged and not closed:
        return None
    what = f"{context.facts.vm} {context.standing}"
    if closed and management is not None:
        what = f"{what}; {management.gate}"
    refusal = _why_not_by_api(context)
    if refusal is None:
        call = management.api_patch if management is not None else None
        named = f"{call.command} {call.name}" if call is not None else ""
        reason = Reason.MANAGEMENT_GATE_CLOSED if closed else _what_differs(context)
        return Finding(
            Method.LIVE_PATCH, reason, f"{what}; CloudStack's own live patch ({named}) closes that", route=Route.API
        )
    reason, why = refusal
    what = f"{what}; CloudStack's own live patch is not used: {why}"
    if closed and (start := _start_by_cloudstack(context)) is not None:
        return Finding(start, Reason.MANAGEMENT_GATE_CLOSED, what)
    if context.live_patch.route is LivePatchRoute.AUTO:
        reason = Reason.MANAGEMENT_GATE_CLOSED
    return Finding(Method.HOLD, reason, what)


def is_not_obeyed_for_certain(context: Context) -> Finding | None:
    """A guess would either restart every service for nothing, or leave a router that takes no command."""
    management = context.management
    if management is None or management.gate_closed is not None or context.live_patch.route is not LivePatchRoute.AUTO:
        return None
    return Finding(
        Method.HOLD,
        Reason.MANAGEMENT_GATE_UNKNOWN,
        f"{context.facts.vm} {context.standing}; {management.gate}; livePatch.route can say SSH or API",
    )


def is_at_the_release_and_gated(context: Context) -> Finding | None:
    """A live patch over SSH has done all it can."""
    management = context.management
    if not context.drift.converged or management is None:
        return None
    what = f"{context.facts.vm} {context.standing}; {management.gate}"
    if not management.gate_closed:
        return Finding(Method.HOLD, Reason.MANAGEMENT_GATE_UNKNOWN, what)
    return Finding(_start_by_cloudstack(context) or Method.HOLD, Reason.MANAGEMENT_GATE_CLOSED, what)


def would_be_recreated(context: Context) -> Finding | None:
    """After a patch over SSH CloudStack's version check fails, and this zone recreates routers for that."""
    management = context.management
    if management is None or not names_version_check(management):
        return None
    zone = context.facts.identity.zone if context.facts.identity else None
    return Finding(
        Method.HOLD,
        Reason.HEALTH_CHECK_WOULD_RECREATE,
        f"{context.facts.vm} {context.standing}; after a live patch over SSH its router_version_check.py fails, and "
        f"router.health.checks.failures.to.recreate.vr of zone {zone or 'unknown'} names that check: CloudStack would "
        "recreate the router; take the check out of the setting, or set livePatch.route to API",
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
        f"{facts.vm} is not at {context.release.version} ({context.release.short}): {_figures(context)}; it is PRIMARY "
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
        f"24 hours and is not there again: {_figures(context)}; find out who changes it",
    )


def needs_live_patch(context: Context) -> Finding:
    """Last: what is left differs and can be closed, if the policy lists the method."""
    sentence = f"{context.facts.vm} {context.standing}"
    if AllowedMethod.LIVE_PATCH not in context.methods:
        return Finding(Method.HOLD, Reason.METHOD_NOT_ALLOWED, f"{sentence}; the policy does not list LivePatch")
    return Finding(Method.LIVE_PATCH, _what_differs(context), sentence, route=Route.SSH)


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


def _start_by_cloudstack(context: Context) -> Method | None:
    """The listed method by which the server starts the router itself, and so notes what runs on it."""
    identity = context.facts.identity
    listed = (method for method in map(Method, context.methods) if method in (Method.REBOOT, Method.RECREATE))
    return next((each for each in listed if identity and why_impossible(each, identity.type) is None), None)


def _what_differs(context: Context) -> Reason:
    if context.drift.converged:
        return Reason.UP_TO_DATE
    for note in (Reason.PARTIAL_PATCH, Reason.SIGNATURE_MISMATCH):
        if note in context.drift.notes:
            return note
    return Reason.CONTENT_DRIFTED if DriftKind.CONTENT in context.drift.kinds else Reason.SCRIPTS_OUTDATED


def _why_not_by_api(context: Context) -> tuple[Reason, str] | None:
    """Why CloudStack's own live patch must not or cannot be used, as the end of a sentence."""
    management, options = context.management, context.live_patch
    if AllowedMethod.LIVE_PATCH not in context.methods:
        return Reason.METHOD_NOT_ALLOWED, "the policy does not list LivePatch"
    if management is None:
        return Reason.API_PATCH_IMPOSSIBLE, "no management server knows the VM"
    call = management.api_patch
    if call is None:
        return Reason.API_PATCH_IMPOSSIBLE, management.api_patch_refused
    if call.patches > options.max_api_patches_per_router:
        why = (
            f"{call.command} patches every router of VPC {call.name} once for each of its {call.patches} tiers, and "
            f"livePatch.maxApiPatchesPerRouter is {options.max_api_patches_per_router}"
        )
        return Reason.TOO_MANY_API_PATCHES, why
    installs = would_install(context.facts, context.release)
    if installs.checksum is None:
        return Reason.HOST_PAYLOAD_MISMATCH if installs.known else Reason.API_PATCH_IMPOSSIBLE, installs.why_not
    if len(call.vms) > 1 and not context.may_fail_over:
        why = (
            f"{call.command} patches {' and '.join(call.vms)} one right after the other and restarts keepalived on "
            "each: set livePatch.plannedFailover to Allowed if tenants may feel that"
        )
        return Reason.FAILOVER_NOT_ALLOWED, why
    return None


def _figures(context: Context) -> str:
    """What differs, in numbers, with the first paths."""
    observed = context.facts.observed
    content = observed.content if observed else None
    parts = []
    if Reason.PARTIAL_PATCH in context.drift.notes:
        parts.append("its signature is empty or zeros, a patch was begun and never committed")
    elif Reason.SIGNATURE_MISMATCH in context.drift.notes:
        parts.append("its signature does not belong to its own payload")
    if content is not None:
        counted = (
            (content.changed, "changed"),
            (content.missing, "missing"),
            (content.extra, "left over from an older payload"),
        )
        figures = ", ".join(f"{count} {what}" for count, what in counted if count)
        paths = ", ".join(content.paths[:3])
        more = ", ..." if len(content.paths) > 3 else ""
        if figures:
            parts.append(f"files {figures}" + (f" ({paths}{more})" if paths else ""))
        elif content.state is ContentState.MATCHES:
            parts.append("all files match")
    return "; ".join(parts) or "its files differ"


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
    found += _of_the_api_route(management) if finding.route is Route.API else _of_the_books(context, management)
    return tuple(found)


def _of_the_api_route(management: ObservedManagement) -> list[str]:
    """What CloudStack's own live patch does beside patching (CloudStack 4.21 patch-sysvms.sh, VpcManagerImpl.java)."""
    call = management.api_patch
    if call is None:
        return []
    names, times = " and ".join(call.vms), f", {call.patches} times" if call.patches > 1 else ""
    restarts = (
        f"{call.command} restarts every enabled service of {names}{times}: load-balanced connections are cut, DNS, "
        "DHCP and metadata pause; the operator makes no backup and cannot take it back"
    )
    if len(call.vms) == 1:
        return [restarts]
    return [restarts, f"{names} are patched one right after the other: their gateway may move, or pause"]


def _of_the_books(context: Context, management: ObservedManagement) -> list[str]:
    """What a live patch over SSH leaves behind in the management server."""
    vm = context.facts.vm
    told = []
    if management.gate_closed is not False:
        told.append(f"{management.gate}; a live patch over SSH does not change that")
    if management.recreating_checks:
        checks = ", ".join(management.recreating_checks[:5])
        told.append(f"{vm}: CloudStack recreates routers of its zone after a failure of {checks}")
    elif management.recreating_checks is None and context.facts.identity and context.facts.identity.type.is_router:
        told.append(f"{vm}: whether CloudStack recreates routers whose health checks fail cannot be read")
    return told
