"""Whether a policy may begin, when it is to wait for others.

What counts is not that another policy is Ready now, but that it is Ready at the release that this one brings: Git's
objects arrive one after the other, and a policy whose edit has not arrived yet is still Ready at what was before.
"""

from collections.abc import Mapping

from sysvm.api.base import ConditionStatus
from sysvm.api.policy import PatchPolicy, PolicyBlocker
from sysvm.api.reasons import ConditionType, Reason
from sysvm.domain import conditions
from sysvm.domain.conditions import bounded
from sysvm.domain.facts import Release

STANDING = frozenset({Reason.POLICY_NOT_FOUND, Reason.POLICIES_IN_A_CIRCLE})
"""Nothing but an edit ends these."""


def waits_for(policy: PatchPolicy, policies: Mapping[str, PatchPolicy], release: Release) -> PolicyBlocker | None:
    """The first of `spec.after` that keeps a rollout of the policy from beginning. `policies`: all of the namespace."""
    for ref in policy.spec.after:
        found = _circle(policy, ref.name, policies) or _not_yet(ref.name, policies.get(ref.name), release)
        if found is not None:
            reason, told = found
            return PolicyBlocker(reason=str(reason), message=bounded(told, 512), ref=f"PatchPolicy/{ref.name}")
    return None


def _not_yet(name: str, other: PatchPolicy | None, release: Release) -> tuple[Reason, str] | None:
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
    if ready.status is not ConditionStatus.TRUE:
        return Reason.WAITS_FOR_POLICY, f"{begin}; it is {ready.reason}"
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
