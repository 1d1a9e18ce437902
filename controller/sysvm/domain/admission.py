"""Admission: the one decision that hands out work, over all VMs and all running rollouts of an endpoint.

It is made in one place so that maxUnavailable, perHost, the pair rule and "the last of a zone" cannot be broken by two
rollouts. Four steps: classify, free the slots of what has finished, check the budgets, choose candidates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sysvm.api.endpoint import Management
from sysvm.api.rollout import Rollout
from sysvm.api.systemvm import Blocker, OperationOrder
from sysvm.domain.facts import VMFacts
from sysvm.domain.planner import Plan


@dataclass(frozen=True, slots=True)
class RunningRollout:
    """A rollout without a result, with its plan (decoded, digest checked)."""

    rollout: Rollout
    plan: Plan
    policy_suspended: bool = False
    superseded: bool = False
    """Its policy is gone or being deleted, or wants another revision. A rollout that is being deleted need not be told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointState:
    """Everything admission looks at."""

    endpoint: str
    management: Management
    epoch: int
    """leaseTransitions of the leader that decides."""
    vms: tuple[VMFacts, ...]
    """All VMs of the endpoint, selected or not: the others of a group count too."""
    rollouts: tuple[RunningRollout, ...]
    suspended: bool = False
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Admission:
    """One order to write into spec.operation of one SystemVM, with its resourceVersion; a conflict means decide again."""

    vm: VMFacts
    order: OperationOrder


@dataclass(frozen=True, slots=True)
class Admissions:
    """The outcome."""

    admitted: tuple[Admission, ...] = ()
    blocked: Mapping[str, tuple[Blocker, ...]] = field(default_factory=dict)
    """SystemVM name -> why it waits, for its plan.blockedBy; every waiting member that was not admitted has an entry."""
    look_at: frozenset[str] = frozenset()
    """SystemVM names whose last look is too old to decide: observe them now, nothing else will unblock the others."""


def admit(state: EndpointState) -> Admissions:
    """Who may begin now. Deterministic: the same state gives the same orders, with the same ids."""
    raise NotImplementedError
