"""What the operator believes the cluster holds, and which work follows from a change.

One table says who has to look again when an object of a kind changed. It is the only place that knows the direction in
which facts travel: endpoint and release toward VMs, VMs toward rollouts and policies, everything toward admission.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

from sysvm.api.approval import RolloutApproval
from sysvm.api.base import ConditionStatus
from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.operation import OperationOrder, OperationStatus
from sysvm.api.policy import PatchPolicy
from sysvm.api.reasons import ConditionType
from sysvm.api.rollout import Rollout
from sysvm.api.systemvm import SystemVM
from sysvm.api.template import SystemVMTemplate
from sysvm.api.window import Effect, MaintenanceWindow
from sysvm.domain.conditions import find
from sysvm.domain.facts import reach_of
from sysvm.engine import resources
from sysvm.engine.sharing import Sharing
from sysvm.kube.cache import Change, Store, strip
from sysvm.kube.objects import Key, Object

T = TypeVar("T")

BY_ENDPOINT = "endpoint"
BY_POLICY = "policy"
BY_GROUP = "group"
BY_TEMPLATE = "template"
BY_ROLLOUT = "rollout"
BY_WINDOW = "window"
BY_AFTER = "after"

BATCH_SECONDS = 0.2
"""Counting reconcilers wait this long, so that a burst of changes is counted once."""


class Role(StrEnum):
    """Which reconciler a piece of work is for."""

    ENDPOINT = "endpoint"
    TEMPLATE = "template"
    POLICY = "policy"
    SYSTEM_VM = "systemvm"
    ROLLOUT = "rollout"
    APPROVAL = "approval"
    WINDOW = "window"
    ADMISSION = "admission"


class Job(NamedTuple):
    """One key of the work queue. Admission has the key of its endpoint."""

    role: Role
    key: Key

    def __str__(self) -> str:
        return f"{self.role} {self.key}"


Enqueue = Callable[[Job, float], None]
"""Adds a job to the queue, to run after so many seconds (0: now)."""


def _value(namespace: str, name: str) -> str:
    """Names are unique in a namespace only, so an index value carries it."""
    return f"{namespace}/{name}"


def _group(vm: SystemVM) -> list[str]:
    identity = vm.status.identity
    if identity is None or identity.group is None:
        return []
    return [f"{vm.metadata.namespace}/{vm.spec.endpoint_ref.name}/{identity.group}"]


def _ordering(vm: SystemVM) -> list[str]:
    """The rollout whose order is open: few of ten thousand, and asked for at every step of a call."""
    order = open_order(vm)
    return [_value(vm.metadata.namespace, order.rollout)] if order is not None else []


class Stores:
    """The caches of all kinds."""

    def __init__(self) -> None:
        sharing = Sharing()
        self.endpoints: Store[CloudStackEndpoint] = Store(resources.ENDPOINT, _read(CloudStackEndpoint.model_validate))
        self.templates: Store[SystemVMTemplate] = Store(resources.TEMPLATE, _read(SystemVMTemplate.model_validate))
        self.policies: Store[PatchPolicy] = Store(
            resources.POLICY,
            _read(PatchPolicy.model_validate),
            indices={
                BY_ENDPOINT: lambda policy: [_value(policy.metadata.namespace, policy.spec.endpoint_ref.name)],
                BY_TEMPLATE: lambda policy: [_value(policy.metadata.namespace, policy.spec.template_ref.name)],
                BY_WINDOW: lambda policy: [
                    _value(policy.metadata.namespace, ref.name) for ref in policy.spec.window_refs
                ],
                BY_AFTER: lambda policy: [_value(policy.metadata.namespace, ref.name) for ref in policy.spec.after],
            },
        )
        self.system_vms: Store[SystemVM] = Store(
            resources.SYSTEM_VM,
            _read(lambda obj: sharing.small(SystemVM.model_validate(obj))),
            indices={
                BY_ENDPOINT: lambda vm: [_value(vm.metadata.namespace, vm.spec.endpoint_ref.name)],
                BY_GROUP: _group,
                BY_ROLLOUT: _ordering,
            },
        )
        self.rollouts: Store[Rollout] = Store(
            resources.ROLLOUT,
            _read(Rollout.model_validate),
            indices={
                BY_ENDPOINT: lambda rollout: [_value(rollout.metadata.namespace, rollout.spec.endpoint_ref.name)],
                BY_POLICY: lambda rollout: [_value(rollout.metadata.namespace, rollout.spec.policy_ref.name)],
            },
        )

        self.approvals: Store[RolloutApproval] = Store(
            resources.APPROVAL,
            _read(RolloutApproval.model_validate),
            indices={
                BY_ROLLOUT: lambda approval: [_value(approval.metadata.namespace, approval.spec.rollout_ref.name)],
            },
        )
        self.windows: Store[MaintenanceWindow] = Store(resources.WINDOW, _read(MaintenanceWindow.model_validate))

        self._vms_versions: Counter[Key] = Counter()
        self.system_vms.subscribe(self._count_version)

    def vms_version(self, endpoint: Key) -> int:
        """Another one, whenever a VM of the endpoint came, went, or is counted or named otherwise."""
        return self._vms_versions[endpoint]

    def _count_version(self, change: Change[SystemVM]) -> None:
        if _counts_otherwise(change):
            vm = (change.new or change.old).value  # type: ignore[union-attr]
            self._vms_versions[endpoint_of(vm)] += 1

    @property
    def all(self) -> tuple[Store[Any], ...]:
        return (
            self.endpoints,
            self.templates,
            self.policies,
            self.system_vms,
            self.rollouts,
            self.approvals,
            self.windows,
        )

    def vms_of(self, endpoint: Key) -> list[SystemVM]:
        return self.system_vms.values(index=BY_ENDPOINT, value=str(endpoint))

    def group_of(self, vm: SystemVM) -> list[SystemVM]:
        """The other VMs of its group."""
        return [
            other
            for value in _group(vm)
            for other in self.system_vms.values(index=BY_GROUP, value=value)
            if other.metadata.name != vm.metadata.name
        ]

    def ordered_by(self, rollout: Key) -> list[SystemVM]:
        """Those whose order from this rollout is open."""
        return self.system_vms.values(index=BY_ROLLOUT, value=str(rollout))

    def policies_of(self, endpoint: Key) -> list[PatchPolicy]:
        return self.policies.values(index=BY_ENDPOINT, value=str(endpoint))

    def policies_using(self, template: Key) -> list[PatchPolicy]:
        return self.policies.values(index=BY_TEMPLATE, value=str(template))

    def rollouts_of(self, policy: Key) -> list[Rollout]:
        return self.rollouts.values(index=BY_POLICY, value=str(policy))

    def rollouts_on(self, endpoint: Key) -> list[Rollout]:
        return self.rollouts.values(index=BY_ENDPOINT, value=str(endpoint))

    def approvals_of(self, rollout: Key) -> list[RolloutApproval]:
        return self.approvals.values(index=BY_ROLLOUT, value=str(rollout))

    def connect(self, enqueue: Enqueue) -> None:
        """From now on every change makes work, by the table below."""
        self.endpoints.subscribe(lambda change: _all(enqueue, self._after_endpoint(change)))
        self.templates.subscribe(lambda change: _all(enqueue, self._after_template(change.key)))
        self.policies.subscribe(lambda change: _all(enqueue, self._after_policy(change)))
        self.system_vms.subscribe(lambda change: _all(enqueue, self._after_system_vm(change)))
        self.rollouts.subscribe(lambda change: _all(enqueue, self._after_rollout(change)))
        self.approvals.subscribe(lambda change: _all(enqueue, self._after_approval(change)))
        self.windows.subscribe(lambda change: _all(enqueue, self._after_window(change)))

    def around_cloud(self, endpoint: Key) -> Iterable[tuple[Job, float]]:
        """Who looks again when a sweep found the cloud changed."""
        yield Job(Role.ADMISSION, endpoint), BATCH_SECONDS
        for policy in self.policies_of(endpoint):
            yield Job(Role.POLICY, key_of(policy)), BATCH_SECONDS
            yield Job(Role.TEMPLATE, template_of(policy)), BATCH_SECONDS
        for rollout in self.rollouts_on(endpoint):
            if rollout.status.result is None:
                yield Job(Role.ROLLOUT, key_of(rollout)), BATCH_SECONDS

    def _after_endpoint(self, change: Change[CloudStackEndpoint]) -> Iterable[tuple[Job, float]]:
        key = change.key
        yield Job(Role.ENDPOINT, key), 0
        if _only_status(change):
            # Counts change with every VM that is looked at: only the sentences that policies repeat concern others.
            if change.old is not None and change.new is not None and _says_other(change.old.value, change.new.value):
                for policy in self.policies_of(key):
                    yield Job(Role.POLICY, key_of(policy)), BATCH_SECONDS
            return
        yield Job(Role.ADMISSION, key), BATCH_SECONDS
        for vm in self.vms_of(key):
            yield Job(Role.SYSTEM_VM, key_of(vm)), 0
        for policy in self.policies_of(key):
            yield Job(Role.POLICY, key_of(policy)), BATCH_SECONDS
            yield Job(Role.TEMPLATE, template_of(policy)), BATCH_SECONDS

    def _after_template(self, key: Key) -> Iterable[tuple[Job, float]]:
        yield Job(Role.TEMPLATE, key), 0
        for policy in self.policies_using(key):
            yield from self._around_policy(policy)

    def _after_policy(self, change: Change[PatchPolicy]) -> Iterable[tuple[Job, float]]:
        yield Job(Role.POLICY, change.key), 0
        for waiting in self._waiting_for(change.key):
            yield Job(Role.POLICY, waiting), BATCH_SECONDS
        if _only_status(change):  # nobody else decides by the status of a policy
            return
        for entry in (change.old, change.new):
            if entry is not None:
                yield from self._around_policy(entry.value)

    def _waiting_for(self, policy: Key) -> list[Key]:
        """All that come after it: a policy without VMs is passed over, and has no change to tell of."""
        found: dict[Key, None] = {}
        rest = [policy]
        while rest:
            for waiting in self.policies.values(index=BY_AFTER, value=str(rest.pop())):
                if (key := key_of(waiting)) not in found:
                    found[key] = None
                    rest.append(key)
        return list(found)

    def _around_policy(self, policy: PatchPolicy) -> Iterable[tuple[Job, float]]:
        endpoint = endpoint_of(policy)
        yield Job(Role.POLICY, key_of(policy)), BATCH_SECONDS
        yield Job(Role.TEMPLATE, template_of(policy)), BATCH_SECONDS
        yield Job(Role.ADMISSION, endpoint), BATCH_SECONDS
        for other in self.policies_of(endpoint):
            yield Job(Role.POLICY, key_of(other)), BATCH_SECONDS
        for vm in self.vms_of(endpoint):
            yield Job(Role.SYSTEM_VM, key_of(vm)), 0

    def _after_system_vm(self, change: Change[SystemVM]) -> Iterable[tuple[Job, float]]:
        yield Job(Role.SYSTEM_VM, change.key), 0
        vm = (change.new or change.old).value  # type: ignore[union-attr]  # a change has at least one side
        endpoint = endpoint_of(vm)
        if _counts_otherwise(change):
            yield Job(Role.ENDPOINT, endpoint), BATCH_SECONDS
        for policy in self.policies_of(endpoint):
            yield Job(Role.POLICY, key_of(policy)), BATCH_SECONDS
        for rollout in self.rollouts_on(endpoint):
            if rollout.status.result is None:
                yield Job(Role.ADMISSION, endpoint), BATCH_SECONDS
            if rollout.status.result is None or rollout.metadata.finalizers:
                yield Job(Role.ROLLOUT, key_of(rollout)), BATCH_SECONDS

    def _after_rollout(self, change: Change[Rollout]) -> Iterable[tuple[Job, float]]:
        yield Job(Role.ROLLOUT, change.key), 0
        rollout = (change.new or change.old).value  # type: ignore[union-attr]
        yield Job(Role.POLICY, Key(change.key.namespace, rollout.spec.policy_ref.name)), BATCH_SECONDS
        yield Job(Role.ADMISSION, endpoint_of(rollout)), BATCH_SECONDS
        for approval in self.approvals_of(change.key):
            yield Job(Role.APPROVAL, key_of(approval)), BATCH_SECONDS

    def _after_approval(self, change: Change[RolloutApproval]) -> Iterable[tuple[Job, float]]:
        yield Job(Role.APPROVAL, change.key), 0
        for entry in (change.old, change.new):
            if entry is None:
                continue
            rollout = self.rollouts.get(Key(change.key.namespace, entry.value.spec.rollout_ref.name))
            if rollout is not None:
                yield Job(Role.ROLLOUT, key_of(rollout)), 0
                yield Job(Role.ADMISSION, endpoint_of(rollout)), 0

    def _after_window(self, change: Change[MaintenanceWindow]) -> Iterable[tuple[Job, float]]:
        yield Job(Role.WINDOW, change.key), 0
        for entry in (change.old, change.new):
            if entry is not None:
                yield from self.around_window(entry.value)

    def around_window(self, window: MaintenanceWindow) -> Iterable[tuple[Job, float]]:
        """Who looks again when a window changed or an edge of it passed. A freeze may be about any policy."""
        key = key_of(window)
        policies = self.policies.values(index=BY_WINDOW, value=str(key))
        if window.spec.effect is Effect.DENY:
            policies = self.policies.values(key.namespace)
        for policy in policies:
            yield Job(Role.POLICY, key_of(policy)), BATCH_SECONDS
            yield Job(Role.ADMISSION, endpoint_of(policy)), BATCH_SECONDS
            for rollout in self.rollouts_of(key_of(policy)):
                if rollout.status.result is None:
                    yield Job(Role.ROLLOUT, key_of(rollout)), BATCH_SECONDS


def key_of(
    obj: CloudStackEndpoint | SystemVMTemplate | PatchPolicy | SystemVM | Rollout | RolloutApproval | MaintenanceWindow,
) -> Key:
    return Key(obj.metadata.namespace, obj.metadata.name)


def endpoint_of(obj: PatchPolicy | SystemVM | Rollout) -> Key:
    return Key(obj.metadata.namespace, obj.spec.endpoint_ref.name)


def template_of(policy: PatchPolicy) -> Key:
    return Key(policy.metadata.namespace, policy.spec.template_ref.name)


def _only_status(change: Change[CloudStackEndpoint] | Change[PatchPolicy]) -> bool:
    """Neither the spec nor the life of the object changed: the server counts both in its generation."""
    if change.old is None or change.new is None or change.is_recreation:
        return False
    old, new = change.old.value.metadata, change.new.value.metadata
    return (old.generation, old.deletion_timestamp) == (new.generation, new.deletion_timestamp)


def _says_other(old: CloudStackEndpoint, new: CloudStackEndpoint) -> bool:
    """Whether what policies read of an endpoint's status changed: why nobody reaches it, were its VMs ever counted."""
    return (old.status.counts is None, _trouble(old)) != (new.status.counts is None, _trouble(new))


def _trouble(endpoint: CloudStackEndpoint) -> str | None:
    reachable = find(endpoint.status.conditions, ConditionType.REACHABLE)
    return reachable.message if reachable is not None and reachable.status is ConditionStatus.FALSE else None


def _counts_otherwise(change: Change[SystemVM]) -> bool:
    """Whether its endpoint counts or names it in another way: it came, goes, or answers otherwise."""
    if change.old is None or change.new is None or change.is_recreation:
        return True
    old, new = change.old.value, change.new.value
    return (
        old.metadata.deletion_timestamp != new.metadata.deletion_timestamp
        or old.status.identity != new.status.identity
        or reach_of(old.status.conditions) != reach_of(new.status.conditions)
        or open_order(old) != open_order(new)
    )


def open_order(vm: SystemVM) -> OperationOrder | None:
    """The order that no result answers yet."""
    told = told_of_order(vm)
    return None if told is not None and told.result is not None else vm.spec.operation


def told_of_order(vm: SystemVM) -> OperationStatus | None:
    """What the status tells of the VM's order; None: it has none, or one that nobody has begun."""
    order, operation = vm.spec.operation, vm.status.operation
    return operation if order is not None and operation is not None and operation.id == order.id else None


def _all(enqueue: Enqueue, jobs: Iterable[tuple[Job, float]]) -> None:
    for job, delay in jobs:
        enqueue(job, delay)


def _read(validate: Callable[[Object], T]) -> Callable[[Object], T]:
    return lambda obj: validate(strip(obj))
