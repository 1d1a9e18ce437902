"""What is occupied at an endpoint, and whose: one lane a rollout, one ledger for all of them.

Admission fills it and keeps it up to date while it chooses; the rules of `admission_rules.py` only read it, and note
which VMs must be looked at.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sysvm.api.methods import Method, Route
from sysvm.api.rollout import Rollout
from sysvm.domain.budgets import Budget
from sysvm.domain.calls import is_call
from sysvm.domain.facts import VMFacts
from sysvm.domain.members import RolloutView, method_of, route_of
from sysvm.domain.planner import Plan, is_for_the_group
from sysvm.domain.rollout import NOTHING_NEW, Live


@dataclass(frozen=True, slots=True)
class RunningRollout:
    """A rollout without a result, with its plan (decoded, digest checked)."""

    rollout: Rollout
    plan: Plan
    live: Live = NOTHING_NEW
    """What it reads live; the same goes into `rollout.outcome`."""

    @property
    def superseded(self) -> bool:
        return self.live.superseded


@dataclass(frozen=True, slots=True)
class Lane:
    """One rollout's share of the endpoint."""

    running: RunningRollout
    view: RolloutView
    budget: Budget
    returning: tuple[VMFacts, ...] = ()
    """VMs that are to go back to what they were, in order, because its budget is spent."""

    @property
    def rollout(self) -> Rollout:
        return self.running.rollout

    @property
    def name(self) -> str:
        return self.running.rollout.metadata.name


@dataclass(slots=True)
class Ledger:
    """What is occupied, kept up to date while candidates are chosen."""

    by_group: Mapping[str, tuple[VMFacts, ...]]
    failed: frozenset[str]
    """SystemVM names that failed in a running rollout."""
    lanes: tuple[Lane, ...]
    in_work: set[str] = field(default_factory=set)
    hosts: Counter[str] = field(default_factory=Counter)
    holding: dict[str, set[str]] = field(default_factory=dict)
    """Rollout -> SystemVM names that count against its maxUnavailable."""
    look_at: set[str] = field(default_factory=set)
    together: dict[str, str] = field(default_factory=dict)
    """SystemVM name -> rollout that has one call made for its whole group."""
    calls: set[str] = field(default_factory=set)
    """Calls to the management server that are open."""

    def take(self, vm: VMFacts) -> None:
        self.in_work.add(vm.name)
        if vm.host:
            self.hosts[vm.host] += 1

    def peers(self, vm: VMFacts, group: str) -> tuple[VMFacts, ...]:
        return tuple(other for other in self.by_group.get(group, ()) if other.name != vm.name)


@dataclass(frozen=True, slots=True)
class Unit:
    """Who gets an order together: one VM, or all routers that CloudStack replaces or patches with one call."""

    method: Method
    route: Route | None
    vms: tuple[VMFacts, ...]

    @property
    def call(self) -> str:
        return call_for(self.vms[0])

    @property
    def is_call(self) -> bool:
        return is_call(self.method, self.route)

    @property
    def is_for_the_group(self) -> bool:
        return is_for_the_group(self.method, self.route)


def call_for(facts: VMFacts) -> str:
    """One name for all that the management server changes with the same call."""
    return facts.name if facts.is_zone_type else facts.group or facts.name


def way(lane: Lane, facts: VMFacts) -> tuple[Method, Route | None]:
    """What its rollout does next to it, and which way a live patch goes."""
    method = method_of(lane.rollout, lane.running.plan, facts) or Method.LIVE_PATCH
    return method, route_of(lane.rollout, lane.running.plan, facts)
