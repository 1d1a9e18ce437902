"""What a CloudStackEndpoint and a SystemVMTemplate say: whether they can be worked with, and what a person must do."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.endpoint import CloudStackEndpoint, CloudStackEndpointStatus, EndpointCounts, SSHAlgorithms
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.template import PinnedPayload, Signature, SystemVMTemplate, SystemVMTemplateStatus
from sysvm.domain import conditions
from sysvm.domain.cloud_status import CloudFacts, authorized, minimum_versions, notes, told_before
from sysvm.domain.conditions import Wanted, bounded
from sysvm.domain.facts import VMFacts, short
from sysvm.domain.image_status import Images, image_conditions, with_images


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
    agent_files: int | None = None
    pinned: PinnedPayload | None = None
    """What the status is to hold of machines that named no digest; None: nothing new."""
    scripts_revision: str | None = None


def endpoint_status(
    endpoint: CloudStackEndpoint,
    vms: Sequence[VMFacts],
    *,
    problem: Problem | None,
    now: datetime,
    cloud: CloudFacts | None = None,
) -> CloudStackEndpointStatus:
    """`problem`: what keeps the operator from looking at any VM (Secret missing, key unreadable, a name taken, nobody
    answers for the cloud). `cloud`: None for a Static inventory."""
    unreachable = [facts for facts in vms if facts.unreachable]
    snapshot = cloud.snapshot if cloud is not None else None
    before = told_before(endpoint, cloud) if cloud is not None else None
    version = snapshot.server_version[:64] if snapshot is not None else before and before.management_server_version
    minimum = minimum_versions(snapshot) if snapshot is not None else (before and before.minimum_template_version) or ()
    return CloudStackEndpointStatus(
        observed_generation=endpoint.metadata.generation,
        conditions=conditions.merged(
            endpoint.status.conditions,
            [
                *_endpoint_says(endpoint, vms, unreachable, problem, cloud),
                *(authorized(cloud, before) if cloud is not None else ()),
                *_weakened(endpoint),
            ],
            generation=endpoint.metadata.generation,
            now=now,
        ),
        last_handled_reconcile_at=endpoint.status.last_handled_reconcile_at,
        counts=EndpointCounts(system_vms=len(vms), unreachable=len(unreachable)),
        management_server_version=version,
        minimum_template_version=minimum,
    )


def _endpoint_says(
    endpoint: CloudStackEndpoint,
    vms: Sequence[VMFacts],
    unreachable: Sequence[VMFacts],
    problem: Problem | None,
    cloud: CloudFacts | None,
) -> list[Wanted]:
    if endpoint.spec.suspend:
        told = "spec.suspend is true: VMs are neither looked at nor changed"
        return [
            conditions.false(ConditionType.READY, Reason.SUSPENDED, told),
            conditions.unknown(ConditionType.REACHABLE, Reason.SUSPENDED, told),
        ]
    if problem is not None:
        return [
            conditions.false(ConditionType.READY, problem.reason, problem.message),
            conditions.false(ConditionType.REACHABLE, problem.reason, problem.message),
            _hindered(problem),
        ]
    untried = sum(facts.reach.reachable is None and facts.away is None for facts in vms)
    away = sum(facts.away is not None for facts in vms)
    if vms and len(unreachable) == len(vms):
        told = f"none of {len(vms)} VMs answers: {_why_unreachable(unreachable)}"
        return [
            conditions.false(ConditionType.READY, Reason.VMS_UNREACHABLE, told),
            conditions.false(ConditionType.REACHABLE, Reason.VMS_UNREACHABLE, told),
            conditions.true(ConditionType.RECONCILING, Reason.VMS_UNREACHABLE, told),
        ]
    swept = cloud is not None and cloud.snapshot is not None
    if untried or (not vms and not swept):
        told = f"{untried} of {len(vms)} VMs were not looked at yet" if vms else "its VMs are being listed"
        return [
            conditions.unknown(ConditionType.READY, Reason.DISCOVERING, told),
            conditions.unknown(ConditionType.REACHABLE, Reason.DISCOVERING, told),
            conditions.true(ConditionType.RECONCILING, Reason.DISCOVERING, told),
        ]
    told = f"{len(vms) - len(unreachable) - away} of {len(vms)} VMs answer"
    if unreachable:
        told = f"{told}; not {_why_unreachable(unreachable)}"
    if away:
        told = f"{told}; {away} cannot be looked at now: stopped, on their way, or without an address"
    if cloud is not None and (more := notes(cloud)):
        told = f"{told}; {more}"
    return [
        conditions.true(ConditionType.READY, Reason.REACHABLE, told),
        conditions.true(ConditionType.REACHABLE, Reason.REACHABLE, told),
    ]


def _weakened(endpoint: CloudStackEndpoint) -> list[Wanted]:
    if endpoint.spec.ssh.algorithms is not SSHAlgorithms.LEGACY:
        return []
    told = (
        f"spec.ssh.algorithms of {endpoint.metadata.name} is Legacy: VMs that know nothing newer are talked to with "
        "SHA-1; set it back to Modern when they are recreated from a newer template"
    )
    return [conditions.true(ConditionType.LEGACY_ALGORITHMS, Reason.LEGACY_ALGORITHMS, told)]


def _why_unreachable(unreachable: Sequence[VMFacts]) -> str:
    ordered = sorted(unreachable, key=lambda facts: facts.name)
    named = ", ".join(f"{facts.vm} ({facts.reach.reason})" for facts in ordered[:10])
    return named + (f" and {len(ordered) - 10} more" if len(ordered) > 10 else "")


def _hindered(problem: Problem) -> Wanted:
    type_ = ConditionType.RECONCILING if problem.transient else ConditionType.STALLED
    return conditions.true(type_, problem.reason, problem.message)


def template_status(
    template: SystemVMTemplate, outcome: PayloadFound | Problem | None, *, now: datetime, images: Images = None
) -> SystemVMTemplateStatus:
    """`outcome`: None while the payload is being fetched. What was once found is kept beside a later problem."""
    status = with_images(template.status, images)
    if isinstance(outcome, PayloadFound):
        status = status.model_copy(
            update={
                "revision": outcome.revision,
                "scripts_revision": outcome.scripts_revision,
                "signature": outcome.signature,
                "files": outcome.files,
                "agent_files": outcome.agent_files,
                "pinned": outcome.pinned or status.pinned,
                "size_bytes": outcome.size_bytes,
                "warnings": tuple(bounded(warning, 253) for warning in outcome.warnings[:16]),
            }
        )
    generation = template.metadata.generation
    wanted = [*_template_says(template, outcome), *image_conditions(status.conditions, images)]
    said = conditions.merged(status.conditions, wanted, generation=generation, now=now)
    return status.model_copy(update={"observed_generation": generation, "conditions": said})


def _template_says(template: SystemVMTemplate, outcome: PayloadFound | Problem | None) -> list[Wanted]:
    if isinstance(outcome, PayloadFound):
        told = (
            f"{template.spec.version} is {short(outcome.revision)}: {outcome.files} files, {outcome.size_bytes} bytes"
        )
        return [conditions.true(ConditionType.READY, Reason.PAYLOAD_READY, told)]
    if outcome is None:
        told = "the payload is being fetched and read"
        return [
            conditions.false(ConditionType.READY, Reason.PENDING, told),
            conditions.true(ConditionType.RECONCILING, Reason.PENDING, told),
        ]
    return [conditions.false(ConditionType.READY, outcome.reason, outcome.message), _hindered(outcome)]
