"""What a checker of a VM's method may look at, what it says, and the words for what differs."""

from collections.abc import Callable
from dataclasses import dataclass

from sysvm.api.methods import AllowedMethod, LivePatchOptions, LivePatchRoute, Method, PlannedFailover, Route
from sysvm.api.observed import ContentState, ObservedManagement
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import DriftKind
from sysvm.domain.drift import Drift
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.versions import Verdict


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
        return f"is {at}" if self.drift.converged else f"is not {at}: {figures(self)}"


@dataclass(frozen=True, slots=True)
class Finding:
    method: Method
    reason: Reason
    sentence: str
    undecided: bool = False
    """The VM must be looked at again before anything can be said."""
    route: Route | None = None
    """Of a live patch."""


Checker = Callable[[Context], Finding | None]


def what_differs(context: Context) -> Reason:
    if context.drift.converged:
        return Reason.UP_TO_DATE
    for note in (Reason.PARTIAL_PATCH, Reason.SIGNATURE_MISMATCH):
        if note in context.drift.notes:
            return note
    return Reason.CONTENT_DRIFTED if DriftKind.CONTENT in context.drift.kinds else Reason.SCRIPTS_OUTDATED


def figures(context: Context) -> str:
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
        differing = ", ".join(f"{count} {what}" for count, what in counted if count)
        paths = ", ".join(content.paths[:3])
        more = ", ..." if len(content.paths) > 3 else ""
        if differing:
            parts.append(f"files {differing}" + (f" ({paths}{more})" if paths else ""))
        elif content.state is ContentState.MATCHES:
            parts.append("all files match")
    return "; ".join(parts) or "its files differ"
