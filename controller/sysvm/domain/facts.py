"""What decisions are made of: one VM and one release as plain values, taken at one moment.

Decisions never read a `SystemVM` object themselves: the questions that several of them ask (is it in work, does it
answer, did it fail in this rollout) are answered here once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.base import ApiModel, Condition, ConditionStatus
from sysvm.api.endpoint import Scan, SystemVMType
from sysvm.api.images import ImageStatus
from sysvm.api.methods import Method
from sysvm.api.observed import Observed, Redundancy, RedundancyRole
from sysvm.api.operation import HistoryEntry, OperationOrder, OperationResult, OperationStatus
from sysvm.api.policy import PatchPolicySpec, TemplateVersionRule
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.systemvm import Hold, Identity, PlannedAction, SystemVM
from sysvm.api.template import CompatibilityRow, Signature, SystemVMTemplate
from sysvm.domain.pairs import Trouble

ZONE_TYPES = frozenset({SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY})
"""Types of which every zone needs a healthy one."""


class Release(ApiModel):
    """What a SystemVMTemplate asks of a VM, once its payload was read. Part of the plan, so it can be serialised."""

    template_name: str
    """Name of the SystemVMTemplate."""
    version: str
    """Template version, such as 4.20.2."""
    revision: str
    """Digest of the normalised payload."""
    scripts_revision: str | None = None
    """Digest of the scripts alone, which hypervisor hosts are compared by."""
    signature: Signature
    """What the signature file of an up-to-date VM holds."""
    compatibility: tuple[CompatibilityRow, ...]
    """First match wins."""
    has_agent: bool = False
    """The payload has an agent.zip."""
    template_required: bool = False
    """The policy wants VMs started from this template version, not only patched to its payload."""
    images_declared: bool = False
    """The release names images to start VMs from."""
    images: tuple[ImageStatus, ...] = ()
    """What was found of them in each zone."""

    @property
    def short(self) -> str:
        """The revision as people see it."""
        return short(self.revision)


def short(revision: str) -> str:
    """The first eight characters of a revision, as people see it."""
    return revision[:8]


def release_of(template: SystemVMTemplate, spec: PatchPolicySpec | None = None) -> Release | None:
    """The release as a policy wants it, or None while its payload was never read."""
    status, files = template.status, template.spec.payload.files
    if status.revision is None or status.signature is None:
        return None
    return Release(
        template_name=template.metadata.name,
        version=template.spec.version,
        revision=status.revision,
        scripts_revision=status.scripts_revision,
        signature=status.signature,
        compatibility=template.spec.live_patch.compatibility,
        has_agent=status.agent_files is not None or (files is not None and files.agent is not None),
        images_declared=template.spec.images is not None,
        images=status.images or (),
        template_required=spec is not None and spec.template_version is TemplateVersionRule.REQUIRE,
    )


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether the VM answered when it was last tried."""

    reachable: bool | None
    """None: never tried."""
    reason: Reason
    message: str = ""


NEVER_TRIED = Reach(None, Reason.NOT_OBSERVED, "no look at it has ended yet")


@dataclass(frozen=True, slots=True, kw_only=True)
class VMFacts:
    """One VM at one moment."""

    name: str
    """Name of the SystemVM object."""
    uid: str
    endpoint: str
    identity: Identity | None
    moment: datetime
    """When these facts were true: what ends by itself has ended or not."""
    deleting: bool = False
    hold: Hold | None = None
    """A person's hold that is active now."""
    priority: int = 100
    observed: Observed | None = None
    content_fresh: bool = False
    """The files were compared within twice the endpoint's content interval."""
    redundancy: Redundancy | None = None
    order: OperationOrder | None = None
    """spec.operation: what admission handed out last."""
    operation: OperationStatus | None = None
    """status.operation: the operation in work, or the last one."""
    history: tuple[HistoryEntry, ...] = ()
    reach: Reach = NEVER_TRIED
    actions: tuple[PlannedAction, ...] = ()
    """What a live patch would do to its services, as the last comparison of its files found."""
    pair_trouble: Trouble | None = None
    """What is wrong with the roles of its pair (`running.in_pairs`)."""

    @property
    def vm(self) -> str:
        """Name in CloudStack, which sentences use."""
        return self.identity.name if self.identity else self.name

    @property
    def in_work(self) -> bool:
        """An order is open: handed out, and its result not yet known."""
        if self.order is None:
            return False
        return self.operation is None or self.operation.id != self.order.id or self.operation.result is None

    @property
    def away(self) -> str | None:
        """Why it can neither be looked at nor changed now, as the end of a sentence that begins with its name: by what
        CloudStack says of it. None: nothing is known against it."""
        if self.identity is None or self.identity.state is None:
            return None
        if self.identity.state != "Running":
            return f"is {self.identity.state} in CloudStack"
        return "has no address in CloudStack" if self.identity.address is None else None

    @property
    def reachable(self) -> bool:
        return self.reach.reachable is True and self.away is None

    @property
    def unreachable(self) -> bool:
        """It was tried and did not answer; a VM that was never tried is neither reachable nor unreachable."""
        return self.reach.reachable is False and self.away is None

    @property
    def role(self) -> RedundancyRole | None:
        return self.redundancy.role if self.redundancy else None

    @property
    def has_gateway(self) -> bool:
        """It was last seen with an address that keepalived moves: a restart of keepalived is a failover."""
        last = self.redundancy.samples[-1:] if self.redundancy else ()
        return any(gateway.held for sample in last for gateway in sample.gateways)

    @property
    def rules_lost(self) -> bool:
        """It rebooted by itself, and the management server has not sent its rules since."""
        bags = self.observed.data_bags if self.observed else None
        return bags is not None and bags.lost

    @property
    def gate_closed(self) -> bool | None:
        """Whether the management server refuses to send it commands; None: not known. Without a server: False."""
        management = self.observed.management if self.observed else None
        return management.gate_closed if management is not None else False

    @property
    def host(self) -> str | None:
        return self.identity.host if self.identity else None

    @property
    def is_zone_type(self) -> bool:
        return self.identity is not None and self.identity.type in ZONE_TYPES

    @property
    def zone_group(self) -> str | None:
        """`secstorage@zone`: the VMs that serve a zone together; None for routers. No zone counts as one zone."""
        identity = self.identity
        if identity is None or identity.type not in ZONE_TYPES:
            return None
        return f"{identity.type}@{identity.zone or ''}"

    @property
    def group(self) -> str | None:
        """VMs of one group are never in work together: the given group, else the SSVMs or CPVMs of the zone."""
        identity = self.identity
        return (identity.group or self.zone_group) if identity is not None else None

    @property
    def groups(self) -> frozenset[str]:
        """Every group it belongs to: an SSVM with a group of its own still is one of its zone's SSVMs."""
        identity = self.identity
        if identity is None:
            return frozenset()
        zone_group = self.zone_group
        given = (identity.group,) if identity.group else ()
        return frozenset((*given, zone_group)) if zone_group else frozenset(given)

    def operation_in(self, rollout: str) -> OperationStatus | None:
        """The last operation, if it has ended, belonged to this rollout and nothing newer was ordered."""
        if self.operation is None or self.operation.rollout != rollout or self.in_work:
            return None
        return self.operation if self.operation.result is not None else None

    def was_started_anew(self, rollout: str) -> bool:
        """The last operation of this rollout on it was a reboot that succeeded, by the management server."""
        operation = self.operation_in(rollout)
        return (
            operation is not None
            and operation.result is OperationResult.SUCCEEDED
            and operation.method in (Method.REBOOT, Method.RECREATE)
        )

    def result_at(self, revision: str) -> OperationResult | None:
        """How the last operation ended, if it was for this revision and nothing newer was ordered."""
        if self.operation is None or self.operation.revision != revision or self.in_work:
            return None
        return self.operation.result

    def was_brought_to(self, revision: str) -> bool:
        """The last operation that succeeded here was a live patch to this revision, and not one that took such a one
        back."""
        last: list[OperationStatus | HistoryEntry] = [self.operation] if self.operation is not None else []
        succeeded = (past for past in (*last, *self.history) if past.result is OperationResult.SUCCEEDED)
        return next((_brings_to(revision, past) for past in succeeded), False)

    def put_back_since(self, moment: datetime, revision: str) -> int:
        """How often an operation since `moment` brought it to a revision that it had been brought to just before."""
        count, was_there = 0, False
        for past in reversed(self.history):
            if past.result is not OperationResult.SUCCEEDED:
                continue
            is_there = _brings_to(revision, past)
            count += is_there and was_there and past.started_at >= moment
            was_there = is_there
        return count

    def looked_at_after_operation(self) -> bool:
        """The last look is newer than the end of the last operation. Times are whole seconds: equal is not newer."""
        ended = self.operation.finished_at if self.operation else None
        return self.observed is not None and (ended is None or self.observed.at > ended)

    @property
    def inconsistent(self) -> bool:
        """The last operation left it neither old nor new, and no later look found a signature that was never ours: then
        a person, or CloudStack at a boot, installed a whole payload."""
        if self.operation is None or self.operation.result is not OperationResult.INCONSISTENT or self.in_work:
            return False
        repaired = (
            self.observed is not None
            and self.looked_at_after_operation()
            and not is_partial(self.observed.signature)
            and not signature_contradicts_payload(self.observed)
        )
        return not repaired

    @property
    def ailment(self) -> str | None:
        """Why it could not take over from a peer, as the end of a sentence that begins with its name; None: healthy."""
        if self.inconsistent:
            return "is inconsistent after a failed rollback"
        if self.deleting:
            return "is being removed"
        if self.away:
            return self.away
        if not self.reachable:
            return "cannot be reached" if self.unreachable else "was never reached"
        if self.observed is None:
            return "was never looked at"
        if self.role is RedundancyRole.FAULT:
            return "reports FAULT as its redundancy role"
        broken = sorted(service.name for service in self.observed.services if service.active == "failed")
        return f"has failed services ({', '.join(broken[:5])})" if broken else None

    @property
    def healthy(self) -> bool:
        return self.ailment is None


def _brings_to(revision: str, past: OperationStatus | HistoryEntry) -> bool:
    """A start by the management server brings what the host keeps, whatever its rollout is for."""
    return past.revision == revision and past.method is Method.LIVE_PATCH and not past.takes_back


def is_partial(signature: Signature | None) -> bool:
    """A signature of zeros, an empty one or none at all: a patch began here and was never committed, ours or another's.

    Zeros are written before the first change and replaced last; CloudStack's boot takes them for a mismatch and heals.
    """
    return signature is None or not signature.value.strip().strip("0")


def signature_contradicts_payload(observed: Observed) -> bool:
    """The signature file does not name the tgz in /usr/share/cloud: edited by hand, or one of the two was replaced."""
    if observed.signature is None or not observed.payload_checksum:
        return False
    return observed.signature.value.lower() != observed.payload_checksum.rpartition(":")[2].lower()


def reach_of(conditions: tuple[Condition, ...]) -> Reach:
    """What the condition Reachable says."""
    condition = next((found for found in conditions if found.type == ConditionType.REACHABLE), None)
    if condition is None or condition.status is ConditionStatus.UNKNOWN:
        return NEVER_TRIED
    reachable = condition.status is ConditionStatus.TRUE
    try:
        reason = Reason(condition.reason)
    except ValueError:  # written by a newer version
        reason = Reason.REACHABLE if reachable else Reason.SSH_UNREACHABLE
    return Reach(reachable, reason, condition.message)


def host_payloads(vms: Iterable[VMFacts]) -> dict[str, str]:
    """Hypervisor host -> revision of the scripts that it keeps, by the newest look at one of its VMs.

    By content: the checksum comes in the algorithm of the VM that was looked at, and two VMs of a host may differ in
    that.
    """
    newest: dict[str, tuple[datetime, str]] = {}
    for facts in vms:
        found = facts.observed.host_payload if facts.observed is not None else None
        if facts.observed is None or found is None or found.revision is None:
            continue
        seen = (facts.observed.at, found.revision)
        newest[found.host] = max(newest.get(found.host, seen), seen)
    return {host: revision for host, (_, revision) in newest.items()}


def facts_of(vm: SystemVM, *, now: datetime, scan: Scan | None = None) -> VMFacts:
    """The facts of one SystemVM at `now`. `scan` is its endpoint's; it says when a comparison of files is stale."""
    status = vm.status
    hold = vm.spec.hold
    content = status.observed.content if status.observed else None
    compared_at = content.observed_at if content else None
    return VMFacts(
        name=vm.metadata.name,
        uid=vm.metadata.uid,
        endpoint=vm.spec.endpoint_ref.name,
        identity=status.identity,
        moment=now,
        deleting=vm.metadata.deletion_timestamp is not None,
        hold=hold if hold and (hold.until is None or hold.until > now) else None,
        priority=vm.spec.priority,
        observed=status.observed,
        content_fresh=compared_at is not None and now - compared_at <= 2 * (scan or Scan()).content,
        redundancy=status.redundancy,
        actions=status.plan.services if status.plan else (),
        order=vm.spec.operation,
        operation=status.operation,
        history=status.history,
        reach=reach_of(status.conditions),
    )
