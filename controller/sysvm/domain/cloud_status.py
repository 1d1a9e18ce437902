"""What an endpoint says of its cloud: may the operator ask it, which release runs there, what it had to do without."""

from dataclasses import dataclass

from sysvm.api.base import ConditionStatus
from sysvm.api.endpoint import CloudStackEndpoint, CloudStackEndpointStatus, ZoneTemplateVersion
from sysvm.api.reasons import ConditionType, Reason
from sysvm.domain import conditions
from sysvm.domain.beside import SENTENCES
from sysvm.domain.cloud import Snapshot, several_releases
from sysvm.domain.conditions import Wanted

DENIED = frozenset({Reason.UNAUTHORIZED, Reason.MISSING_PERMISSIONS})
"""Reasons of a failed sweep that speak of the user and not of the server."""
NAMED = 10


@dataclass(frozen=True, slots=True)
class CloudFacts:
    """One cloud at one moment."""

    snapshot: Snapshot | None
    failure: Reason | None = None
    """Why the last sweep brought nothing; None: it did, or none has ended."""
    failure_message: str = ""
    lacking: str = ""
    """Which permissions the role lacks, as a sentence; empty: none, as far as is known."""
    dispensable: str = ""
    """The same of permissions that can be done without."""
    not_allowed: tuple[str, ...] = ()
    """Lists that the sweep had to do without."""
    clocks: str = ""
    """By how much the operator's clock differs from the server's, as a sentence; empty: by little."""
    beside: tuple[str, ...] = ()
    """Routers left over or twice, a sentence each."""


def told_before(endpoint: CloudStackEndpoint, facts: CloudFacts) -> CloudStackEndpointStatus | None:
    """What a former process told of the cloud of this spec: it stands until this one has a sweep. A restart that wrote
    that nothing is known, and then the same again, would write at every restart, and an operator that is ended again
    and again would do nothing else. None: it told nothing, or this one knows better."""
    status = endpoint.status
    same = status.observed_generation == endpoint.metadata.generation
    return status if facts.snapshot is None and same and status.management_server_version is not None else None


def stands_until_swept(endpoint: CloudStackEndpoint, facts: CloudFacts) -> bool:
    """Whether there is nothing to report before the first sweep of this process has ended, in whatever way."""
    ended = facts.failure is not None or endpoint.spec.suspend
    return not ended and told_before(endpoint, facts) is not None


def authorized(facts: CloudFacts, before: CloudStackEndpointStatus | None = None) -> list[Wanted]:
    """The condition Authorized; nothing before the server has said a word, but what was told `before`."""
    if facts.failure in DENIED and facts.failure is not None:
        return [conditions.false(ConditionType.AUTHORIZED, facts.failure, facts.failure_message)]
    if facts.lacking:
        return [conditions.false(ConditionType.AUTHORIZED, Reason.MISSING_PERMISSIONS, facts.lacking)]
    if facts.snapshot is None:
        known = conditions.find(before.conditions, ConditionType.AUTHORIZED) if before is not None else None
        if known is None or known.status is not ConditionStatus.TRUE:
            return []
        return [conditions.true(ConditionType.AUTHORIZED, Reason.AUTHORIZED, known.message)]
    told = [f"not read: {', '.join(facts.not_allowed)}"] if facts.not_allowed else []
    told += [facts.dispensable] if facts.dispensable else []
    return [conditions.true(ConditionType.AUTHORIZED, Reason.AUTHORIZED, "; ".join(told))]


def minimum_versions(snapshot: Snapshot) -> tuple[ZoneTemplateVersion, ...]:
    """By name of the zone; of two zones of one name (which CloudStack refuses) the first."""
    found: dict[str, ZoneTemplateVersion] = {}
    for zone in sorted(snapshot.zones.values(), key=lambda zone: (zone.name, zone.id)):
        if zone.min_template_version:
            told = ZoneTemplateVersion(zone=zone.name, version=zone.min_template_version[:64])
            found.setdefault(zone.name, told)
    return tuple(found.values())[:128]


def notes(facts: CloudFacts) -> str:
    """What a person should know of the cloud although nothing is wrong with the endpoint; empty: nothing."""
    snapshot = facts.snapshot
    if snapshot is None:
        return ""
    more = len(facts.beside) - SENTENCES
    said = [facts.clocks] if facts.clocks else []
    said += [*facts.beside[:SENTENCES], *([f"and {more} such groups more"] if more > 0 else [])]
    if (differing := several_releases(snapshot.servers.values())) is not None:
        said.append(differing)
    disabled = sorted(zone.name for zone in snapshot.zones.values() if not zone.enabled)
    if disabled:
        said.append(f"disabled in CloudStack, so that nothing is deployed there: zone {_named(disabled)}")
    unset = sorted(zone.name for zone in snapshot.zones.values() if not zone.min_template_version)
    if unset:
        said.append(f"minreq.sysvmtemplate.version is not known of zone {_named(unset)}")
    return "; ".join(said)


def _named(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
