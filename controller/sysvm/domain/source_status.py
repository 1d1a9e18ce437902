"""What a CloudStackEndpoint and a SystemVMTemplate say: whether they can be worked with, and what a person must do."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.endpoint import CloudStackEndpoint, CloudStackEndpointStatus
from sysvm.api.reasons import Reason
from sysvm.api.template import Signature, SystemVMTemplate, SystemVMTemplateStatus
from sysvm.domain.facts import VMFacts


@dataclass(frozen=True, slots=True)
class Problem:
    """What stands in the way."""

    reason: Reason
    message: str
    transient: bool = False
    """It may pass by itself (a server that does not answer): Reconciling instead of Stalled."""


@dataclass(frozen=True, slots=True)
class PayloadFound:
    """What was read from a payload that is whole, verified and safe."""

    revision: str
    signature: Signature
    files: int
    size_bytes: int
    warnings: tuple[str, ...] = ()


def endpoint_status(
    endpoint: CloudStackEndpoint, vms: Sequence[VMFacts], *, problem: Problem | None, now: datetime
) -> CloudStackEndpointStatus:
    """`problem`: what keeps the operator from looking at any VM (Secret missing, key unreadable, a name taken)."""
    raise NotImplementedError


def template_status(
    template: SystemVMTemplate, outcome: PayloadFound | Problem | None, *, now: datetime
) -> SystemVMTemplateStatus:
    """`outcome`: None while the payload is being fetched. What was once found is kept beside a later problem."""
    raise NotImplementedError
