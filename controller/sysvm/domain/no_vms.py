"""Why a policy has no VM: the cloud has none of that kind, or a word of the selector is wrong, or nobody knows yet.

The three look alike, an empty selection, and lead elsewhere. A cloud without redundant routers is in order as it is,
and the policies that follow may begin. A misspelt zone or a failed sweep must not let them: the VMs that should have
been first are there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, islice

from sysvm.api.base import ConditionStatus
from sysvm.api.endpoint import CloudStackEndpoint, Inventory, SystemVMType
from sysvm.api.policy import RedundancyKind, Selector
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.systemvm import Identity
from sysvm.domain.cloud import Snapshot
from sysvm.domain.conditions import find
from sysvm.domain.facts import VMFacts
from sysvm.domain.selection import NAMED, matches

FRESH_FOR = timedelta(minutes=10)
"""A sweep counts at least so long, else twice the endpoint's interval: a large cloud is swept for a while."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The VMs of one endpoint, and whether these are all."""

    vms: Sequence[VMFacts] = ()
    complete: bool = True
    """This process knows which VMs there are, and of which type each is."""
    doubt: str | None = None
    """Why there may be others by now, as a sentence; None: there are none."""
    unread: frozenset[SystemVMType] = frozenset()
    """Types that the role may not list."""


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Why it is not because the cloud has none of that kind, as a sentence."""

    message: str
    passes: bool = False
    """By itself. Else a person must do something."""


def listing_of(
    endpoint: CloudStackEndpoint,
    vms: Sequence[VMFacts],
    snapshot: Snapshot | None,
    *,
    complete: bool,
    now: datetime,
) -> Listing:
    """`snapshot`: the last sweep; None of a Static inventory. `complete`: all VMs that are listed have objects that say
    of which type they are."""
    return Listing(
        vms,
        complete=complete and endpoint.status.counts is not None,
        doubt=_doubt(endpoint, snapshot, now),
        unread=snapshot.unread if snapshot is not None else frozenset(),
    )


def _doubt(endpoint: CloudStackEndpoint, snapshot: Snapshot | None, now: datetime) -> str | None:
    if endpoint.spec.inventory is Inventory.STATIC:
        return None
    reachable = find(endpoint.status.conditions, ConditionType.REACHABLE)
    if (
        reachable is not None
        and reachable.status is ConditionStatus.FALSE
        and reachable.reason != Reason.VMS_UNREACHABLE  # of these the sweep told
    ):
        return f"it is not reachable: {reachable.message}"
    if snapshot is None or now - snapshot.taken_at > max(FRESH_FOR, 2 * endpoint.spec.scan.inventory):
        return "its last sweep is too long ago"
    return None


def unexplained(selector: Selector, listing: Listing) -> Unexplained | None:
    """Of a selector that selects nothing. None: the cloud has other VMs, and none of this kind."""
    if not listing.complete:
        return Unexplained("it was not looked at", passes=True)
    if listing.doubt is not None:
        return Unexplained(listing.doubt, passes=True)
    if unread := sorted(listing.unread.intersection(selector.types or SystemVMType)):
        return Unexplained(f"the role may not list {', '.join(unread)}")
    if not listing.vms:
        return Unexplained("it has none at all")
    identities = [facts.identity for facts in listing.vms if facts.identity is not None]
    if unknown := _unknown_words(selector, identities):
        return Unexplained(f"none of its VMs has {', '.join(unknown)}")
    if untold := _untold(selector, listing.vms):
        return Unexplained(f"{untold.vm} may be of a pair and was not looked at", passes=True)
    return None


def _unknown_words(selector: Selector, identities: Sequence[Identity]) -> list[str]:
    """The first that no VM has, be the rest of the selector as it is. Types and redundancy have no wrong words: the
    schema knows them all."""
    exact = (
        ("zone", selector.zones, {identity.zone for identity in identities}),
        ("hypervisor", selector.hypervisors, {identity.hypervisor for identity in identities}),
        ("account", selector.accounts, {identity.account for identity in identities}),
        ("network", selector.networks, {identity.network for identity in identities}),
    )
    words = (f"{what} {word}" for what, wanted, known in exact for word in wanted if word not in known)
    patterns = ((name, Selector(names=(name,))) for name in selector.names)
    names = (f"name {name}" for name, only in patterns if not any(matches(only, each) for each in identities))
    return list(islice(chain(words, names), NAMED))


def _untold(selector: Selector, vms: Iterable[VMFacts]) -> VMFacts | None:
    """A VM of which neither the management server nor a look has said whether it is one of a pair. One that does not
    answer is not waited for."""
    if selector.redundancy is not RedundancyKind.REDUNDANT:
        return None
    return next(
        (
            facts
            for facts in vms
            if facts.observed is None
            and facts.away is None
            and not facts.unreachable
            and facts.identity is not None
            and facts.identity.redundant is None
            and matches(selector, facts.identity)
        ),
        None,
    )
