"""RolloutApproval: one person's word on one wave of one rollout, bound to exactly what that wave contains.

It is an object of its own, and immutable, so that the audit log, Git and `kubectl get` all show who said what, when,
about which VMs. The operator only ever writes its status.
"""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import ApiModel, LongText, NameRef, ObjectMeta, ObservedStatus, Time, matching, rule

_WAVE_DIGEST = "^sha256:[a-f0-9]{64}$"


class Verdict(StrEnum):
    """Rejected outweighs every Approved of the same wave until it is deleted or has expired."""

    APPROVED = "Approved"
    REJECTED = "Rejected"


class RolloutApprovalSpec(ApiModel):
    """What is approved. It cannot be edited: delete it and make another."""

    rollout_ref: NameRef
    """Rollout that the wave belongs to."""
    wave: Annotated[str, Field(min_length=1, max_length=63)]
    """Name of the wave."""
    wave_digest: Annotated[
        str,
        Field(max_length=71, pattern=_WAVE_DIGEST),
        matching(_WAVE_DIGEST, "must be the wave's digest from the rollout's status.waves: sha256: and 64 digits"),
    ]
    """Digest of the wave, from status.waves of the rollout. When the wave's members or what is done with them change,
    the approval is void."""
    decision: Verdict
    """Approved opens the wave. Rejected keeps it closed, whatever others approved."""
    approver: Annotated[str, Field(min_length=1, max_length=253)]
    """User name of the person who decides; the chart's admission policy lets nobody use another's name."""
    skip_soak: bool = False
    """true: the wave need not wait until the one before it has soaked."""
    comment: LongText = ""
    """Why, for those who read it later."""
    expires_at: Time | None = None
    """From then on it opens nothing more; VMs in work are finished."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule("self == oldSelf", "an approval cannot be edited: delete it and make another"),
    )


class RolloutApprovalStatus(ObservedStatus):
    """Whether it counts."""


class RolloutApproval(ApiModel):
    """Opens one wave of a rollout, or keeps it closed."""

    metadata: ObjectMeta
    spec: RolloutApprovalSpec
    """What is approved. It cannot be edited: delete it and make another."""
    status: RolloutApprovalStatus = RolloutApprovalStatus()
    """Whether it counts. Written by the operator only."""
