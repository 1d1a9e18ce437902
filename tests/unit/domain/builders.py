"""Builders for the objects that decisions take: every test says only what it is about."""

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from sysvm.api.base import Condition, ConditionStatus, ObjectMeta
from sysvm.api.endpoint import CloudStackEndpoint, CloudStackEndpointStatus, EndpointCounts, SystemVMType
from sysvm.api.observed import (
    ContentState,
    Observed,
    ObservedContent,
    ObservedService,
    ObservedTemplate,
    PairGateway,
    PairSample,
    Redundancy,
    RedundancyRole,
)
from sysvm.api.operation import OperationOrder, OperationResult, OperationStatus, OperationStep, StepResult
from sysvm.api.policy import PatchPolicy, PatchPolicySpec
from sysvm.api.reasons import Reason
from sysvm.api.rollout import Rollout, RolloutSpec
from sysvm.api.systemvm import Hold, Identity, SystemVM, SystemVMSpec, SystemVMStatus
from sysvm.api.template import DEFAULT_COMPATIBILITY, Signature, SystemVMTemplate
from sysvm.domain.facts import Reach, Release, VMFacts
from sysvm.domain.planner import Plan, plan

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
OLD, NEW, OTHER = "1a" * 20, "8c1f03ab" * 5, "77" * 20
OLD_SIGNATURE = Signature(algorithm="sha512", value="aa" * 64)
NEW_SIGNATURE = Signature(algorithm="sha512", value="bb" * 64)
ZEROS = Signature(algorithm="unknown", value="0" * 128)
ENDPOINT = "prod"


def ago(**kwargs: float) -> datetime:
    return NOW - timedelta(**kwargs)


def release(revision: str = NEW, version: str = "4.20.2", signature: Signature = NEW_SIGNATURE) -> Release:
    return Release(
        template_name="systemvm-4.20.2",
        version=version,
        revision=revision,
        signature=signature,
        compatibility=DEFAULT_COMPATIBILITY,
    )


def observed(
    *,
    at: datetime | None = None,
    files: ContentState = ContentState.DRIFTED,
    compared_with: str | None = NEW,
    signature: Signature | None = OLD_SIGNATURE,
    payload: str | None = None,
    version: str = "4.20.1",
    changed: int = 3,
    failed_services: tuple[str, ...] = (),
) -> Observed:
    at = at or ago(minutes=5)
    same = files is not ContentState.DRIFTED
    return Observed(
        at=at,
        template=ObservedTemplate(version=version),
        signature=signature,
        payload_checksum=payload,
        content=ObservedContent(
            state=files,
            revision=compared_with,
            changed=0 if same else changed,
            paths=() if same else ("etc/dnsmasq.conf", "opt/cloud/bin/configure.py"),
            observed_at=at,
        ),
        services=tuple(ObservedService(name=name, active="failed") for name in failed_services),
    )


def up_to_date(**kwargs: Any) -> Observed:
    return observed(**{"files": ContentState.MATCHES, "signature": NEW_SIGNATURE, **kwargs})


def redundancy(role: RedundancyRole, at: datetime | None = None) -> Redundancy:
    at = at or ago(seconds=5)
    samples = tuple(pair_sample(role, at - timedelta(seconds=5 * number)) for number in (2, 1, 0))
    return Redundancy(role=role, observed_at=at, samples=samples)


PRIMARY_MAC, BACKUP_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"


def pair_sample(role: RedundancyRole, at: datetime, **values: Any) -> PairSample:
    """A router of this role that knows its peer, and is in order but for `values`."""
    holds = role is RedundancyRole.PRIMARY
    gateway = PairGateway(
        address="10.1.1.1",
        held=holds,
        mac=PRIMARY_MAC if holds else BACKUP_MAC,
        answers=() if holds else (PRIMARY_MAC,),
    )
    sample = PairSample(
        at=at,
        keepalived=True,
        state=role,
        heartbeat=True,
        public_up=holds,
        conntrackd=True,
        flows=400 if holds else 2,
        replicated=2 if holds else 395,
        gateways=(gateway,),
    )
    return sample.model_copy(update=values)


def facts(name: str = "r-101-VM", **kwargs: Any) -> VMFacts:
    """A reachable single router at the old payload, compared with the new one."""
    identity = Identity(
        name=name,
        type=kwargs.pop("type", SystemVMType.ROUTER),
        zone=kwargs.pop("zone", "ams-1"),
        host=kwargs.pop("host", None),
        group=kwargs.pop("group", None),
        hypervisor=kwargs.pop("hypervisor", None),
        account=kwargs.pop("account", None),
        network=kwargs.pop("network", None),
        address="192.0.2.1",
    )
    role = kwargs.pop("role", None)
    values: dict[str, Any] = {
        "name": f"{ENDPOINT}-{name}".lower(),
        "uid": hashlib.sha256(name.encode()).hexdigest()[:12],
        "endpoint": ENDPOINT,
        "identity": identity,
        "moment": NOW,
        "observed": observed(),
        "content_fresh": True,
        "reach": Reach(True, Reason.REACHABLE),
        "redundancy": redundancy(role) if role else None,
    }
    return VMFacts(**{**values, **kwargs})


UNREACHABLE = Reach(False, Reason.SSH_TIMEOUT, "no answer within 10 s")
HOLD = Hold(reason="INC-77")
EPOCH = 7
"""Of the leader that decides."""


def order(rollout: str = "routers-1", *, id: str = "op-1", revision: str = NEW, attempt: int = 1) -> OperationOrder:  # noqa: A002
    return OperationOrder(
        id=id, rollout=rollout, method="LivePatch", revision=revision, template="t", attempt=attempt, epoch=EPOCH
    )


def operation(
    result: OperationResult | None,
    rollout: str = "routers-1",
    *,
    id: str = "op-1",  # noqa: A002
    revision: str = NEW,
    ended: datetime | None = None,
    output: str = "dnsmasq: bad option at line 3",
) -> OperationStatus:
    failed = result not in (None, OperationResult.SUCCEEDED)
    return OperationStatus(
        id=id,
        rollout=rollout,
        method="LivePatch",
        revision=revision,
        step="Services",
        started_at=ago(minutes=12),
        finished_at=None if result is None else ended or ago(minutes=10),
        result=result,
        message="the VM is what it was before" if failed else "",
        steps=(OperationStep(name="Services", result=StepResult.FAILED, message=output),) if failed else (),
    )


def done(result: OperationResult = OperationResult.SUCCEEDED, **kwargs: Any) -> dict[str, Any]:
    """Keywords for `facts`: its order has ended."""
    status = operation(result, **kwargs)
    return {"order": order(status.rollout, id=status.id, revision=status.revision), "operation": status}


def policy_spec(**kwargs: Any) -> PatchPolicySpec:
    return PatchPolicySpec.model_validate(
        {"endpointRef": {"name": ENDPOINT}, "templateRef": {"name": "systemvm-4.20.2"}, **kwargs}
    )


def policy(name: str = "routers", *, created: datetime | None = None, generation: int = 3, **spec: Any) -> PatchPolicy:
    return PatchPolicy(
        metadata=ObjectMeta(name=name, generation=generation, creation_timestamp=created or ago(days=1)),
        spec=policy_spec(**spec),
    )


def rollout(the_plan: Plan, name: str = "routers-1", *, created: datetime | None = None, **kwargs: Any) -> Rollout:
    strategy = kwargs.pop("strategy", {})
    metadata = {"name": name, "uid": f"uid-{name}", "generation": 1, "creationTimestamp": created or ago(hours=1)}
    spec = {
        "policyRef": {"name": the_plan.policy},
        "endpointRef": {"name": ENDPOINT},
        "templateRef": {"name": the_plan.release.template_name},
        "revision": the_plan.release.revision,
        "number": 1,
        "planRef": {"name": f"{name}-plan", "digest": the_plan.digest},
        "snapshot": {
            "methods": ["LivePatch"],
            "livePatch": kwargs.pop("live_patch", {}),
            "strategy": strategy,
            "checks": {},
        },
        "state": kwargs.pop("state", "Running"),
    }
    return Rollout(
        metadata=ObjectMeta.model_validate({**metadata, **kwargs.pop("metadata", {})}),
        spec=RolloutSpec.model_validate(spec),
        **kwargs,
    )


def plan_for(*vms: VMFacts, policy_name: str = "routers", **kwargs: Any) -> Plan:
    spec = policy_spec(strategy=kwargs.pop("strategy", {}))
    return plan(policy_name, spec, kwargs.pop("release", release()), vms, excluded=kwargs.pop("excluded", {}))


def condition(type_: str, status: str, reason: str, message: str = "") -> Condition:
    return Condition(
        type=type_, status=ConditionStatus(status), reason=reason, message=message, last_transition_time=ago(days=1)
    )


def endpoint(*, conditions: tuple[Condition, ...] = (), **spec: Any) -> CloudStackEndpoint:
    return CloudStackEndpoint.model_validate(
        {
            "metadata": {"name": ENDPOINT, "generation": 2},
            "spec": {
                "inventory": "Static",
                "management": "Full",
                "ssh": {"keySecretRef": {"name": "cs-ssh", "key": "id"}},
                **spec,
            },
        }
    ).model_copy(
        update={"status": CloudStackEndpointStatus(conditions=conditions, counts=EndpointCounts(system_vms=4))}
    )


def template(*, ready: bool = True, conditions: tuple[Condition, ...] = ()) -> SystemVMTemplate:
    status: dict[str, Any] = {"revision": NEW, "signature": NEW_SIGNATURE} if ready else {}
    return SystemVMTemplate.model_validate(
        {
            "metadata": {"name": "systemvm-4.20.2", "generation": 1},
            "spec": {
                "version": "4.20.2",
                "payload": {
                    "files": {
                        "scripts": {"digest": "md5:" + "a" * 32, "source": {"mounted": {"path": "cloud-scripts.tgz"}}}
                    }
                },
            },
            "status": {**status, "conditions": conditions},
        }
    )


def system_vm(
    name: str = "r-101-VM", *, generation: int = 5, spec: dict[str, Any] | None = None, **status: Any
) -> SystemVM:
    base: dict[str, Any] = {
        "identity": Identity(name=name, type=SystemVMType.ROUTER, address="192.0.2.1"),
        "observed": observed(),
    }
    return SystemVM(
        metadata=ObjectMeta(name=f"{ENDPOINT}-{name}".lower(), uid="u1", generation=generation),
        spec=SystemVMSpec.model_validate({"endpointRef": {"name": ENDPOINT}, **(spec or {})}),
        status=SystemVMStatus(**{**base, **status}),
    )
