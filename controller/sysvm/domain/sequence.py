"""Whether a policy may begin, when it is to wait for others.

What counts is not that another policy is Ready now, but that it is Ready at the release that this one brings: Git's
objects arrive one after the other, and a policy whose edit has not arrived yet is still Ready at what was before.

A policy of whose kind the cloud has no VM never is Ready. It is passed over, so that one order serves clouds with and
without redundant routers; but only then, never because its selector is wrong or nobody could look.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sysvm.api.base import ConditionStatus
from sysvm.api.policy import PatchPolicy, PolicyBlocker
from sysvm.api.reasons import ConditionType, Reason
from sysvm.domain import conditions
from sysvm.domain.conditions import bounded
from sysvm.domain.facts import Release
from sysvm.domain.no_vms import Listing, unexplained
from sysvm.domain.selection import select

STANDING = frozenset({Reason.POLICY_NOT_FOUND, Reason.POLICIES_IN_A_CIRCLE})
"""Nothing but an edit ends these."""


@dataclass(frozen=True, slots=True)
class _Order:
    """What a policy is compared with."""

    policies: Mapping[str, PatchPolicy]
    release: Release
    listings: Mapping[str, Listing]


def waits_for(
    policy: PatchPolicy,
    policies: Mapping[str, PatchPolicy],
    release: Release,
    listings: Mapping[str, Listing] | None = None,
) -> PolicyBlocker | None:
    """The first of `spec.after` that keeps a rollout of the policy from beginning. `policies`: all of the namespace.
    `listings`: endpoint name -> its VMs, of endpoints whose policies say `NoVMs`."""
    order = _Order(policies, release, listings or {})
    for ref in policy.spec.after:
        found = _circle(policy, ref.name, policies) or _not_yet(ref.name, order, (policy.metadata.name,))
        if found is not None:
            reason, told = found
            return PolicyBlocker(reason=str(reason), message=bounded(told, 512), ref=f"PatchPolicy/{ref.name}")
    return None


def _not_yet(name: str, order: _Order, path: tuple[str, ...]) -> tuple[Reason, str] | None:
    """`path`: the policies that wait for it, each for the next."""
    other, release = order.policies.get(name), order.release
    if other is None or other.metadata.deletion_timestamp is not None:
        return Reason.POLICY_NOT_FOUND, f"it is to begin after policy {name}, which does not exist"
    begin = f"it begins when policy {name} is Ready at {release.short}"
    ready = conditions.find(other.status.conditions, ConditionType.READY)
    if ready is None or ready.observed_generation != other.metadata.generation:
        return Reason.WAITS_FOR_POLICY, begin
    target = other.status.target
    if target is None or target.revision != release.revision:
        at = f"{other.spec.template_ref.name} ({target.revision[:8]})" if target else other.spec.template_ref.name
        return Reason.WAITS_FOR_POLICY, f"{begin}; it speaks of {at} now"
    if ready.status is ConditionStatus.TRUE:
        return None
    if ready.reason == Reason.NO_VMS:
        found = _not_passed(other, order, path)
        return (Reason.WAITS_FOR_POLICY, f"{begin}; it is {ready.reason}{found}") if found is not None else None
    return Reason.WAITS_FOR_POLICY, f"{begin}; it is {ready.reason}"


def _not_passed(other: PatchPolicy, order: _Order, path: tuple[str, ...]) -> str | None:
    """Why a policy without VMs still keeps others waiting, as the end of a sentence; None: it does not.

    What it says of itself may be older than the last sweep, so the VMs are asked. And it has no turn of its own:
    whoever comes after it comes after those that it names.
    """
    listing = order.listings.get(other.spec.endpoint_ref.name)
    if listing is None or not conditions.is_true(other.status.conditions, ConditionType.STALLED):
        return ""
    selection = select(other, tuple(order.policies.values()), listing.vms)
    if selection.vms or selection.conflicts:
        return ""
    why = unexplained(other.spec.selector, listing)
    if why is not None:
        return f": {why.message}"
    for ref in other.spec.after:
        if ref.name in path:
            return ", and waits in a circle"
        found = _not_yet(ref.name, order, (*path, other.metadata.name))
        if found is not None:
            return f", and {found[1]}"
    return None


def _circle(policy: PatchPolicy, first: str, policies: Mapping[str, PatchPolicy]) -> tuple[Reason, str] | None:
    """A way from the other policy back to this one, by what they wait for."""
    own = policy.metadata.name
    paths: list[tuple[str, ...]] = [(own, first)]
    seen = {first}
    while paths:
        path = paths.pop()
        if path[-1] == own:
            told = ", which is to begin after ".join(path[1:])
            return Reason.POLICIES_IN_A_CIRCLE, f"{own} is to begin after {told}: none of them ever begins"
        other = policies.get(path[-1])
        for ref in other.spec.after if other is not None else ():
            if ref.name == own or ref.name not in seen:
                seen.add(ref.name)
                paths.append((*path, ref.name))
    return None
