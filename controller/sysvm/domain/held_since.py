"""Members of a rollout that would be held if they were planned now.

A plan is made once, and its rollout may run for days. What let a VM be patched may end meanwhile: the zone's setting
names the version check, the command gate closes, the VM is migrated to a host with another payload or becomes PRIMARY.
And not all that a rollout does was planned: VMs are started anew and live-patched, take the place of others, or appear.
So the checkers that made the plan are asked again, of the newest facts, before anything is ordered. Whoever would be
held, or patched in another way, is left for the next rollout, whose plan says so.

Not asked again are those about the policy's own wishes (methods, drift.heal), which a rollout keeps as they were
signed, and those that the judges of calls ask right before a call.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sysvm.api.base import format_time
from sysvm.api.methods import HostPayloadRule, Method, Route
from sysvm.api.observed import ContentState
from sysvm.api.rollout import Rollout
from sysvm.domain.by_server import (
    is_at_the_release_and_gated,
    is_not_obeyed_for_certain,
    needs_another_template,
    needs_the_api_route,
    would_be_recreated,
)
from sysvm.domain.cloud import Snapshot
from sysvm.domain.drift import drift_of
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.findings import Checker, Context, Finding
from sysvm.domain.method import (
    does_not_run,
    has_obstacles,
    is_away,
    is_going_away,
    is_inconsistent,
    is_not_compatible,
    is_on_hold,
    needs_live_patch,
    would_be_undone_by_its_host,
    would_fail_over,
)
from sysvm.domain.versions import Verdict, compatibility

BY_API: tuple[Checker, ...] = (
    would_be_undone_by_its_host,
    does_not_run,
    is_not_compatible,
    has_obstacles,
    needs_the_api_route,
    is_not_obeyed_for_certain,
)
OVER_SSH: tuple[Checker, ...] = (*BY_API, is_at_the_release_and_gated, would_be_recreated, would_fail_over)
REBOOTED: tuple[Checker, ...] = (
    would_be_undone_by_its_host,
    does_not_run,
    needs_another_template,
    needs_the_api_route,
    is_not_obeyed_for_certain,
    is_at_the_release_and_gated,
    needs_live_patch,
)
"""In the order of `method.CHECKERS`: the first that speaks decides. Of a VM that is recreated it is asked where its
successor may be started (`held_recreations`)."""
UNTOUCHED: tuple[Checker, ...] = (is_going_away, is_on_hold, is_inconsistent, is_away)
"""What keeps a VM from every change."""

MISSED_SWEEPS = 3
LEAST_AGE = timedelta(minutes=10)
"""Sweeps that are closer together than they take must not stop anything."""


@dataclass(frozen=True, slots=True)
class HeldSince:
    """Asks for one rollout. Cheap: it is asked for every VM that waits, whenever one of them changed."""

    rollout: Rollout
    release: Release
    verdicts: dict[str | None, Verdict] = field(default_factory=dict)
    """By template version: there are few."""

    def why(self, facts: VMFacts, method: Method, route: Route | None) -> Finding | None:
        """What would be decided now instead of this; None: the same, or too little is known of the VM to say."""
        checkers = _asked(method, route)
        if not checkers or (checkers is OVER_SSH and self._is_plain(facts)):
            return None
        context = self._context(facts)
        if not context.drift.certain:
            return None
        found = next((found for checker in checkers if (found := checker(context)) is not None), None)
        return None if found is None or (found.method, found.route) == (method, route) else found

    def why_untouched(self, facts: VMFacts) -> Finding | None:
        """Why nothing at all is done to it now; None: it may be changed, or it only does not answer."""
        return next((found for checker in UNTOUCHED if (found := checker(self._context(facts))) is not None), None)

    def _context(self, facts: VMFacts) -> Context:
        kept, drift = self.rollout.spec.snapshot, drift_of(facts, self.release)
        verdict = self._verdict(facts)
        return Context(facts, self.release, drift, verdict, kept.methods, kept.live_patch, heal=True, excluded=None)

    def _is_plain(self, facts: VMFacts) -> bool:
        """None of the checkers can have anything to say."""
        observed = facts.observed
        if observed is None:
            return True
        management, content, host = observed.management, observed.content, observed.host_payload
        if management is not None and (management.gate_closed is not False or management.recreating_checks):
            return False
        held_by_host = self.rollout.spec.snapshot.live_patch.host_payload is not HostPayloadRule.WARN
        if held_by_host and host is not None and host.revision != self.release.scripts_revision:
            return False
        if content is not None and (content.obstacles or content.state is ContentState.MATCHES):
            return False
        if facts.role is not None and facts.actions:
            return False
        return self._verdict(facts).supported

    def _verdict(self, facts: VMFacts) -> Verdict:
        template = facts.observed.template if facts.observed is not None else None
        version = template.version if template is not None else None
        if version not in self.verdicts:
            self.verdicts[version] = compatibility(self.release.compatibility, version, self.release.version)
        return self.verdicts[version]


def _asked(method: Method, route: Route | None) -> tuple[Checker, ...]:
    if method is Method.LIVE_PATCH:
        return BY_API if route is Route.API else OVER_SSH
    return REBOOTED if method is Method.REBOOT else ()


def why_too_old(snapshot: Snapshot | None, interval: timedelta, now: datetime) -> str | None:
    """Why the last sweep says nothing about the cloud as it is now, as a sentence; None: it does, or there is none.

    `interval`: between two sweeps. Several are missed at once when the management server restarts.
    """
    if snapshot is None or now - snapshot.taken_at <= max(MISSED_SWEEPS * interval, LEAST_AGE):
        return None
    return f"the management server's lists were last read whole at {format_time(snapshot.taken_at)}"
