"""What the management server does to a VM, or would do: its live patch, a start from another template, a recreation.

Checkers of `method.py`, and words of its warnings. Apart from the others because they look at the server's books: the
VM itself may be as it should be and still need something.
"""

from sysvm.api.methods import AllowedMethod, LivePatchRoute, Method, Route
from sysvm.api.observed import ObservedManagement
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import DriftKind, Identity
from sysvm.domain.facts import ZONE_TYPES
from sysvm.domain.findings import Context, Finding, what_differs
from sysvm.domain.gate import names_version_check, would_install
from sysvm.domain.lifecycle import why_impossible


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
        reason = Reason.MANAGEMENT_GATE_CLOSED if closed else what_differs(context)
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


def _start_by_cloudstack(context: Context) -> Method | None:
    """The listed method by which the server starts the router itself, and so notes what runs on it."""
    identity = context.facts.identity
    listed = (method for method in map(Method, context.methods) if method in (Method.REBOOT, Method.RECREATE))
    return next((each for each in listed if identity and why_impossible(each, identity.type) is None), None)


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


def of_the_api_route(management: ObservedManagement) -> list[str]:
    """What CloudStack's own live patch does beside patching (CloudStack 4.21 patch-sysvms.sh, VpcManagerImpl.java)."""
    call = management.api_patch
    if call is None:
        return []
    names, times = " and ".join(call.vms), f", {call.patches} times" if call.patches > 1 else ""
    restarts = (
        f"{call.command} restarts every enabled service of {names}{times}: load-balanced connections are cut, DNS, "
        "DHCP and metadata pause; the call is made only when each has a backup to go back to"
    )
    if len(call.vms) == 1:
        return [restarts]
    return [restarts, f"{names} are patched one right after the other: their gateway may move, or pause"]


def of_the_books(context: Context, management: ObservedManagement) -> list[str]:
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
