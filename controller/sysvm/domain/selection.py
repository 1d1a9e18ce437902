"""Which VMs a policy speaks of, and whose VM it is when two policies want it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from sysvm.api.policy import PatchPolicy, RedundancyKind, Selector
from sysvm.api.systemvm import Identity
from sysvm.domain.facts import VMFacts

NAMED = 10
"""VMs that a sentence names before it only counts."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A VM that the policy wants and an older one keeps."""

    vm: str
    """Name in CloudStack."""
    owner: str
    """Name of the older policy."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The VMs of one policy."""

    vms: tuple[VMFacts, ...]
    """Its own, excluded ones included, by name."""
    excluded: dict[str, str]
    """SystemVM name -> reason that the policy gives (perhaps empty)."""
    conflicts: tuple[Conflict, ...]
    """Wanted, but another's: skipped."""

    @property
    def conflict_sentence(self) -> str:
        """Names up to ten VMs; empty without a conflict."""
        if not self.conflicts:
            return ""
        named = ", ".join(f"{conflict.vm} ({conflict.owner})" for conflict in self.conflicts[:NAMED])
        rest = len(self.conflicts) - NAMED
        more = f" and {rest} more" if rest > 0 else ""
        count = len(self.conflicts)
        what = "VM belongs" if count == 1 else "VMs belong"
        return f"skipped, {count} {what} to an older policy: {named}{more}"


def matches(selector: Selector, identity: Identity) -> bool:
    """Whether every list of the selector fits; exclusions are not looked at. Names know * and ? and nothing else."""
    return (
        (not selector.types or identity.type in selector.types)
        and (not selector.zones or identity.zone in selector.zones)
        and (not selector.hypervisors or identity.hypervisor in selector.hypervisors)
        and (not selector.accounts or identity.account in selector.accounts)
        and (not selector.networks or identity.network in selector.networks)
        and (not selector.names or any(_pattern(name).fullmatch(identity.name) for name in selector.names))
    )


def fits_redundancy(selector: Selector, facts: VMFacts) -> bool:
    """Whether it is the kind of router that the selector asks for. The management server's word goes first: a look
    shows a pair only while keepalived is set up."""
    if selector.redundancy is None:
        return True
    told = facts.identity.redundant if facts.identity is not None else None
    redundant = told if told is not None else facts.redundancy is not None
    return redundant == (selector.redundancy is RedundancyKind.REDUNDANT)


def exclusion(selector: Selector, facts: VMFacts) -> str | None:
    """The reason that the policy gives for leaving the VM alone now (perhaps empty), None if it does not."""
    return next(
        (
            excluded.reason
            for excluded in selector.exclude
            if excluded.name == facts.vm and (excluded.until is None or excluded.until > facts.moment)
        ),
        None,
    )


def owner_of(facts: VMFacts, policies: Iterable[PatchPolicy]) -> PatchPolicy | None:
    """The policy that decides about the VM: the oldest that selects it (creationTimestamp, then name).

    A policy that excludes the VM leaves it to others; it is the owner only if no other wants it. Policies that are
    being deleted own nothing.
    """
    wanting = [policy for policy in policies if _wants(policy, facts)]
    return min(
        wanting,
        key=lambda policy: (exclusion(policy.spec.selector, facts) is not None, *_age(policy)),
        default=None,
    )


def select(policy: PatchPolicy, policies: Sequence[PatchPolicy], vms: Iterable[VMFacts]) -> Selection:
    """The VMs of the policy's endpoint that are its own. `policies`: all of the namespace, itself included or not."""
    others = [other for other in policies if other.metadata.name != policy.metadata.name]
    own: list[VMFacts] = []
    excluded: dict[str, str] = {}
    conflicts: list[Conflict] = []
    for facts in sorted(vms, key=lambda facts: facts.name):
        if facts.identity is None or not _wants(policy, facts):
            continue
        owner = owner_of(facts, [policy, *others])
        reason = exclusion(policy.spec.selector, facts)
        if owner is not None and owner.metadata.name != policy.metadata.name:
            if reason is None:
                conflicts.append(Conflict(facts.vm, owner.metadata.name))
            continue
        own.append(facts)
        if reason is not None:
            excluded[facts.name] = reason
    return Selection(tuple(own), excluded, tuple(conflicts))


def _wants(policy: PatchPolicy, facts: VMFacts) -> bool:
    return (
        policy.metadata.deletion_timestamp is None
        and policy.spec.endpoint_ref.name == facts.endpoint
        and facts.identity is not None
        and matches(policy.spec.selector, facts.identity)
        and fits_redundancy(policy.spec.selector, facts)
    )


def _age(policy: PatchPolicy) -> tuple[datetime, str]:
    """Oldest first; an object that the server has not stamped yet is the newest."""
    return policy.metadata.creation_timestamp or datetime.max.replace(tzinfo=UTC), policy.metadata.name


@lru_cache(maxsize=1024)
def _pattern(name: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in name), re.DOTALL)
