"""Rollouts over time: waves, soaks, budgets, retries and the way back, on stored objects and a clock of our own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysvm.api.endpoint import Management
from sysvm.api.methods import Method, Route
from sysvm.api.operation import OperationOrder, OperationResult, OperationStatus
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.rollout import AppendedVM, DesiredState, Rollout, RolloutPhase, RolloutResult, RolloutStatus, WavePhase
from sysvm.api.window import AtEnd
from sysvm.domain import conditions
from sysvm.domain.admission import Admissions, EndpointState, admit
from sysvm.domain.approvals import WaveGate
from sysvm.domain.calendar import Opening
from sysvm.domain.facts import VMFacts
from sysvm.domain.ledger import RunningRollout
from sysvm.domain.members import classify, wave_digests
from sysvm.domain.planner import Plan
from sysvm.domain.rollout import Live, outcome

from . import builders as b
from .kstatus import assert_contract, kstatus

SUCCEEDED, ROLLED_BACK, FAILED = OperationResult.SUCCEEDED, OperationResult.ROLLED_BACK, OperationResult.FAILED
CANARY = [{"name": "canary", "limit": 1, "soak": "1h"}, {"name": "rest"}]
GO = {"maxUnavailable": 100, "perHost": 100}


class World:
    """A rollout and its VMs. What is stored is what the cluster would hold; a restart forgets nothing."""

    def __init__(self, *vms: VMFacts, before: tuple[str, ...] = (), **strategy: Any) -> None:
        self.now = b.NOW
        self.vms: dict[str, VMFacts] = {facts.name: facts for facts in vms}
        chosen = {**GO, **strategy}
        self.plan: Plan = b.plan_for(*vms, strategy=chosen)
        self.rollout: Rollout = b.rollout(self.plan, strategy=chosen)
        snapshot = self.rollout.spec.snapshot
        approval = snapshot.approval.model_copy(update={"before": before})
        self.change(snapshot=snapshot.model_copy(update={"approval": approval}))
        self.live = Live()

    def change(self, **spec: Any) -> None:
        self.rollout = self.rollout.model_copy(update={"spec": self.rollout.spec.model_copy(update=spec)})

    def facts(self) -> dict[str, VMFacts]:
        return {name: replace(facts, moment=self.now) for name, facts in self.vms.items()}

    def report(self) -> RolloutStatus:
        """The rollout's own reconciler, once."""
        view = classify(self.rollout, self.plan, self.facts())
        status = outcome(self.rollout, self.plan, view, self.live, now=self.now)
        assert_contract(self.rollout.metadata.generation, status)
        self.rollout = self.rollout.model_copy(update={"status": status})
        return status

    def admit(self, *, carry_out: bool = True) -> Admissions:
        state = EndpointState(
            endpoint=b.ENDPOINT,
            now=self.now,
            management=Management.FULL,
            epoch=1,
            vms=tuple(self.facts().values()),
            rollouts=(RunningRollout(self.rollout, self.plan, self.live),),
        )
        decided = admit(state)
        for admission in decided.admitted if carry_out else ():
            self.vms[admission.vm.name] = replace(self.vms[admission.vm.name], order=admission.order)
        return decided

    def in_work(self) -> list[str]:
        return [name for name, facts in self.vms.items() if facts.in_work]

    def end(self, name: str, result: OperationResult = SUCCEEDED, reason: str = "") -> None:
        """The operation in work on a VM ends now, and the VM is looked at a second later."""
        facts = self.vms[name]
        order = facts.order
        assert order is not None
        went_forward = result is SUCCEEDED and not order.takes_back
        went_back = result is SUCCEEDED and order.takes_back
        seen = self.now + timedelta(seconds=1)
        old, new = b.observed(at=seen), b.up_to_date(at=seen)
        before = facts.observed
        now_seen = new if went_forward else old
        if not went_forward and not went_back and before is not None:
            now_seen = before.model_copy(update={"at": seen})
        self.vms[name] = replace(
            facts, operation=ended(order, self.now, result, reason), observed=now_seen, content_fresh=True
        )
        self.now += timedelta(seconds=2)

    def ends_uncalled(self, name: str, reason: Reason, step: str = "Preparing") -> None:
        """The management server was to reboot it, and its operation ends in a step of that."""
        self.end(name, FAILED, str(reason))
        facts = self.vms[name]
        assert facts.operation is not None
        told = "job j-9 (RestartNetworkCmd) runs since 2026-11-22T11:00:00Z; nothing was changed"
        call = {"method": Method.REBOOT, "step": step, "message": told}
        self.vms[name] = replace(facts, operation=facts.operation.model_copy(update=call))

    def round(self, result: Callable[[str], OperationResult] = lambda _: SUCCEEDED) -> RolloutStatus:
        """Report, admit, end everything, report."""
        self.report()
        self.admit()
        for name in self.in_work():
            self.end(name, result(name))
        return self.report()

    def phases(self) -> dict[str, str]:
        return {wave.name: str(wave.phase) for wave in self.rollout.status.waves}

    def says(self) -> str:
        ready = conditions.find(self.rollout.status.conditions, ConditionType.READY)
        return ready.reason if ready is not None else ""

    def reasons(self) -> Mapping[str, str]:
        return {name: found[0].reason for name, found in self.admit(carry_out=False).blocked.items()}


def ended(order: OperationOrder, now: datetime, result: OperationResult, reason: str = "") -> OperationStatus:
    return OperationStatus(
        id=order.id,
        rollout=order.rollout,
        method=order.method,
        revision=order.revision,
        attempt=order.attempt,
        takes_back=order.takes_back,
        started_at=now - timedelta(minutes=1),
        finished_at=now,
        result=result,
        reason=reason,
        message="" if result is SUCCEEDED else "dnsmasq: bad option at line 3",
    )


def vms(count: int, **kwargs: Any) -> list[VMFacts]:
    return [b.facts(f"r-{number}-VM", **kwargs) for number in range(1, count + 1)]


ONE, TWO, THREE, FOUR = (f"prod-r-{number}-vm" for number in (1, 2, 3, 4))


# Waves and soaks


def test_the_next_wave_starts_when_this_one_has_soaked() -> None:
    world = World(*vms(3), waves=CANARY)
    status = world.round()
    assert world.phases() == {"canary": "Soaking", "rest": "Waiting"}
    assert (status.phase, world.says()) == (RolloutPhase.SOAKING, Reason.SOAKING)
    assert kstatus(world.rollout.metadata.generation, status) == "InProgress"
    assert "Reconciling" not in {condition.type for condition in status.conditions}
    assert world.reasons() == {TWO: Reason.WAITING_FOR_WAVE, THREE: Reason.WAITING_FOR_WAVE}
    assert status.next_action is not None
    assert status.next_action.at == status.waves[0].soak_until
    assert status.next_action.what == "start wave rest (2 VMs), if wave canary has stayed well"
    world.now += timedelta(minutes=59)
    world.report()
    assert world.phases()["canary"] == "Soaking"
    world.now += timedelta(minutes=2)
    world.report()
    assert world.phases()["canary"] == "Done"
    world.round()
    assert world.rollout.status.result is RolloutResult.SUCCEEDED


@pytest.mark.parametrize("how", [{"method": Method.REBOOT}, {"method": Method.RECREATE}, {"route": Route.API}])
def test_what_the_management_server_has_done_soaks_too(how: dict[str, Any]) -> None:
    world = World(*vms(2), waves=CANARY)
    world.report()
    world.admit()
    world.end(ONE)
    done = world.vms[ONE]
    assert done.operation is not None
    world.vms[ONE] = replace(done, operation=done.operation.model_copy(update=how))
    world.report()
    assert world.phases() == {"canary": "Soaking", "rest": "Waiting"}


def test_who_took_the_place_of_a_recreated_vm_soaks_for_it() -> None:
    world = World(b.facts("r-1-VM", group="n-1"), b.facts("r-2-VM"), waves=CANARY)
    world.report()
    world.admit()
    del world.vms[ONE]
    new = b.facts("r-9-VM", group="n-1", observed=b.up_to_date())
    world.vms[new.name] = new
    world.report()
    assert world.phases() == {"canary": "Soaking", "rest": "Waiting"}
    world.vms[new.name] = replace(new, reach=b.UNREACHABLE)
    world.now += timedelta(hours=2)
    assert "r-9-VM cannot be reached" in world.report().waves[0].message
    world.vms[new.name] = new
    assert world.report().waves[0].phase is WavePhase.DONE


def test_admission_relies_only_on_what_is_stored() -> None:
    world = World(*vms(3), waves=CANARY)
    world.round()
    world.now += timedelta(hours=9)
    assert not world.admit().admitted, "the soak is over, but nobody has written it down yet"
    world.report()
    assert len(world.admit().admitted) == 2


def test_a_restart_in_a_soak_does_not_begin_it_anew() -> None:
    world = World(*vms(2), waves=CANARY)
    until = world.round().waves[0].soak_until
    for _ in range(5):
        world.now += timedelta(minutes=7)
        assert world.report().waves[0].soak_until == until


@pytest.mark.parametrize(
    ("ill", "told"),
    [
        ({"reach": b.UNREACHABLE}, "cannot be reached"),
        ({"observed": b.up_to_date(at=b.ago(hours=-1), failed_services=("haproxy",))}, "failed services (haproxy)"),
        ({"observed": b.observed(at=b.ago(hours=-1))}, "is not at the release any more"),
    ],
)
def test_a_soak_does_not_end_while_a_vm_is_not_well(ill: dict[str, Any], told: str) -> None:
    world = World(*vms(2), waves=CANARY)
    world.round()
    well = world.vms[ONE]
    world.vms[ONE] = replace(well, **ill)
    world.now += timedelta(hours=2)
    status = world.report()
    assert status.waves[0].phase is WavePhase.SOAKING
    assert told in status.waves[0].message
    assert told in next(each.message for each in status.blocked_by if each.reason == Reason.SOAKING)
    world.vms[ONE] = well
    assert world.report().waves[0].phase is WavePhase.DONE


def test_an_approval_may_skip_the_soak() -> None:
    world = World(*vms(2), waves=CANARY, before=("rest",))
    world.round()
    assert world.phases()["canary"] == "Soaking"
    world.live = Live(approvals={"rest": WaveGate(True, Reason.APPROVED, "", skip_soak=True)})
    world.report()
    assert world.phases()["canary"] == "Done"


def test_an_empty_wave_is_told_and_holds_nobody_up() -> None:
    waves = [{"name": "all", "limit": "100%"}, {"name": "none", "limit": 1, "soak": "9h"}, {"name": "rest"}]
    world = World(*vms(2), waves=waves)
    status = world.round()
    assert status.result is RolloutResult.SUCCEEDED
    assert "selects no VM" in status.waves[1].message


# The calendar and approvals


def closed(reason: Reason = Reason.OUTSIDE_WINDOW, **kwargs: Any) -> Opening:
    values: dict[str, Any] = {
        "open": False,
        "may_start": False,
        "closed_by": "window",
        "ref": "MaintenanceWindow/nights",
        "closes_at": None,
        "next_open": b.NOW + timedelta(hours=8),
        "at_end": AtEnd.FINISH,
        "message": "outside of its maintenance windows",
        "reason": reason,
    }
    return Opening(**{**values, **kwargs})


def opened(at_end: AtEnd = AtEnd.FINISH) -> Opening:
    return Opening(True, True, None, None, b.NOW + timedelta(minutes=20), None, at_end, "open")


@pytest.mark.parametrize(
    "reason", [Reason.OUTSIDE_WINDOW, Reason.FROZEN, Reason.WINDOW_CUTOFF, Reason.WINDOW_NOT_FOUND]
)
def test_nothing_starts_while_the_calendar_is_closed(reason: Reason) -> None:
    world = World(*vms(2))
    world.live = Live(opening=closed(reason))
    status = world.report()
    decided = world.admit()
    assert not decided.admitted
    assert decided.next_change == b.NOW + timedelta(hours=8)
    assert set(world.reasons().values()) == {reason}
    assert world.says() == reason
    assert {condition.type for condition in status.conditions} == {"Ready", "WaitingForWindow"}
    assert status.blocked_by[0].ref == "MaintenanceWindow/nights"
    assert status.next_action is not None
    assert (status.next_action.at, status.next_action.what) == (b.NOW + timedelta(hours=8), "start wave rest (2 VMs)")


def test_a_window_that_closes_stops_nothing_that_is_in_work() -> None:
    world = World(*vms(2), maxUnavailable=1)
    world.report()
    world.live = Live(opening=opened())
    world.admit()
    world.live = Live(opening=closed())
    status = world.report()
    assert "Reconciling" in {condition.type for condition in status.conditions}
    world.end(ONE)
    world.report()
    assert not world.admit().admitted
    assert world.rollout.status.result is None


def test_only_a_window_that_says_so_ends_what_is_in_work() -> None:
    for at_end, deadline in ((AtEnd.FINISH, None), (AtEnd.ROLL_BACK, b.NOW + timedelta(minutes=20))):
        world = World(*vms(1))
        world.live = Live(opening=opened(at_end))
        world.report()
        (admission,) = world.admit().admitted
        assert admission.order.deadline == deadline


def test_a_wave_that_needs_an_approval_waits_for_it() -> None:
    world = World(*vms(2), waves=CANARY, before=("canary",))
    status = world.report()
    assert not world.admit().admitted
    assert world.reasons()[ONE] == Reason.WAITING_FOR_APPROVAL
    assert {condition.type for condition in status.conditions} == {"Ready", "WaitingForApproval"}
    assert status.next_action is not None
    assert status.next_action.what == "start wave canary (1 VMs) once it is approved"
    world.live = Live(approvals={"canary": WaveGate(False, Reason.REJECTED, "bob rejected it")})
    world.report()
    assert (world.says(), world.admit().admitted) == (Reason.REJECTED, ())
    world.live = Live(approvals={"canary": WaveGate(True, Reason.APPROVED, "alice")})
    world.report()
    assert len(world.admit().admitted) == 1


# VMs that appear later


def test_a_vm_that_appears_later_joins_the_last_wave_and_voids_its_approval() -> None:
    world = World(*vms(2), waves=CANARY)
    world.report()
    digests = wave_digests(world.rollout, world.plan)
    late = b.facts("r-9-VM")
    world.vms[late.name] = late
    world.live = Live(newcomers=(AppendedVM(name=late.name, uid=late.uid),))
    status = world.report()
    after = wave_digests(world.rollout, world.plan)
    assert after["canary"] == digests["canary"]
    assert after["rest"] != digests["rest"]
    assert status.waves[-1].digest == after["rest"]
    assert world.report().waves[-1].digest == after["rest"]
    world.round()
    world.now += timedelta(hours=2)
    world.round()
    assert world.rollout.status.result is RolloutResult.SUCCEEDED
    assert world.rollout.status.summary == "3/3"


def test_more_than_sixty_four_newcomers_wait_for_the_next_rollout() -> None:
    world = World(*vms(1))
    world.live = Live(newcomers=tuple(AppendedVM(name=f"prod-r-{n}-vm", uid=f"u{n}") for n in range(100, 170)))
    (rest,) = world.report().waves
    assert len(rest.appended) == 64
    assert "6 more VMs appeared" in rest.message


# Budgets


def test_by_default_the_first_failure_ends_the_rollout() -> None:
    world = World(*vms(3), maxUnavailable=1)
    status = world.round(lambda _: ROLLED_BACK)
    assert (status.result, world.says()) == (RolloutResult.FAILED, Reason.VM_FAILED)
    assert status.budget is not None
    assert (status.budget.failures_allowed, status.budget.failures_used) == (0, 1)


@pytest.mark.parametrize(
    ("budget", "bad", "goes_on"),
    [
        ({"perWave": 2}, 1, True),
        ({"perWave": 2}, 2, False),
        ({"perWave": "50%"}, 4, True),
        ({"perWave": "50%"}, 5, False),
        ({"perWave": 9, "total": 4}, 3, True),
        ({"perWave": 9, "total": 4}, 4, False),
        ({"perWave": 9, "consecutive": 3}, 2, True),
        ({"perWave": 9, "consecutive": 3}, 3, False),
    ],
)
def test_a_budget_lets_so_many_fail_and_no_more(budget: dict[str, Any], bad: int, *, goes_on: bool) -> None:
    world = World(*vms(10), failureBudget=budget, maxUnavailable="100%")
    world.report()
    world.admit()
    for name in world.in_work()[:bad]:
        world.end(name, ROLLED_BACK)
    status = world.report()
    spent = conditions.find(status.conditions, ConditionType.BUDGET_SPENT)
    assert (spent is None) is goes_on
    for name in world.in_work():
        world.end(name)
    status = world.report()
    assert status.result is RolloutResult.FAILED, "a rollout in which a VM failed did not succeed"
    assert status.budget is not None
    assert status.budget.failures_used == bad


def test_who_relies_on_a_failed_peer_is_left_and_keeps_no_rollout_from_ending() -> None:
    world = World(b.facts("r-1-VM", group="a"), b.facts("r-2-VM", group="a"), *vms(4)[2:], failureBudget={"perWave": 2})
    world.report()
    world.admit()
    world.end(ONE, ROLLED_BACK)
    for name in world.in_work():
        world.end(name)
    assert world.reasons()[TWO] == Reason.PEER_UNHEALTHY
    status = world.report()
    assert status.result is RolloutResult.FAILED
    assert status.waves[0].skipped == 1


def test_failures_with_a_success_between_them_are_not_consecutive() -> None:
    world = World(*vms(6), failureBudget={"perWave": 6, "consecutive": 2}, maxUnavailable=6)
    world.report()
    world.admit()
    for number, name in enumerate(world.in_work()):
        world.end(name, ROLLED_BACK if number % 2 else SUCCEEDED)
    assert conditions.find(world.report().conditions, ConditionType.BUDGET_SPENT) is None


def test_a_spent_budget_stays_spent() -> None:
    world = World(*vms(4), maxUnavailable=2)
    world.report()
    world.admit()
    world.end(ONE, ROLLED_BACK)
    world.report()
    del world.vms[ONE]
    world.end(TWO)
    assert not world.admit().admitted
    assert world.report().result is RolloutResult.FAILED


def test_failed_vms_go_on_holding_their_place_until_nothing_can_proceed() -> None:
    world = World(*vms(5), failureBudget={"perWave": "80%"}, maxUnavailable=2)
    world.report()
    world.admit()
    world.end(ONE, ROLLED_BACK)
    world.report()
    assert not world.admit().admitted, "one failed, one in work: both places are taken"
    world.end(TWO, ROLLED_BACK)
    status = world.report()
    spent = conditions.find(status.conditions, ConditionType.BUDGET_SPENT)
    assert spent is not None
    assert "can never proceed: 2 failed VMs hold all 2 places of maxUnavailable 2" in spent.message
    assert status.result is RolloutResult.FAILED


@pytest.mark.parametrize("reason", [Reason.JOB_RUNNING, Reason.ZONE_DISABLED, Reason.HOST_PAYLOAD_MISMATCH])
def test_a_call_that_could_not_be_made_uses_up_no_budget_and_keeps_no_place(reason: Reason) -> None:
    """By default the first failure would end it. Nothing was changed, and the others are no worse for it."""
    world = World(*vms(3), maxUnavailable=1)
    world.report()
    world.admit()
    world.ends_uncalled(ONE, reason)
    status = world.report()
    assert (status.result, status.waves[0].failed) == (None, 1)
    assert status.budget is not None
    assert (status.budget.failures_used, status.budget.slots_used) == (0, 0)
    assert [admission.vm.name for admission in world.admit().admitted] == [TWO], "it goes on with the others"
    world.end(TWO)
    status = world.round()
    assert (status.result, status.summary) == (RolloutResult.FAILED, "2/3")
    assert "r-1-VM failed in step Preparing: job j-9 (RestartNetworkCmd) runs" in status.conditions[0].message


def test_a_call_that_was_made_uses_up_the_budget_whatever_the_reason() -> None:
    world = World(*vms(3), maxUnavailable=1)
    world.report()
    world.admit()
    world.ends_uncalled(ONE, Reason.JOB_RUNNING, step="Verifying")
    status = world.report()
    assert (status.result, world.says()) == (RolloutResult.FAILED, Reason.VM_FAILED)
    assert conditions.find(status.conditions, ConditionType.BUDGET_SPENT) is not None


# The way back


def rolling_back(**strategy: Any) -> World:
    """Two waves; in the second one VM was patched, one failed, and one is still in work."""
    world = World(
        *vms(4), waves=[{"name": "canary", "limit": 1}, {"name": "rest"}], onBudgetSpent="RollBack", **strategy
    )
    world.round()
    world.report()
    world.admit()
    world.end(TWO)
    world.end(THREE, ROLLED_BACK)
    return world


def test_what_is_in_work_is_finished_before_anything_goes_back() -> None:
    world = rolling_back()
    assert world.report().phase is RolloutPhase.RUNNING
    assert not world.admit().admitted
    assert world.reasons()[TWO] == Reason.ROLLING_BACK


def test_the_vms_of_the_wave_go_back_and_those_of_earlier_waves_stay() -> None:
    world = rolling_back()
    world.report()
    world.end(FOUR)
    assert world.report().phase is RolloutPhase.ROLLING_BACK
    forward = {name: world.vms[name].operation for name in (TWO, FOUR)}
    back = world.admit().admitted
    assert {admission.vm.name for admission in back} == {TWO, FOUR}
    for admission in back:
        operation = forward[admission.vm.name]
        assert operation is not None
        assert admission.order.takes_back == operation.id != admission.order.id
    for name in (TWO, FOUR):
        world.end(name)
        status = world.report()
    assert (status.result, world.says()) == (RolloutResult.ROLLED_BACK, Reason.ROLLED_BACK)
    assert [wave.returned for wave in status.waves] == [0, 2]
    assert [wave.done for wave in status.waves] == [1, 0]
    assert not world.admit().admitted


def test_a_vm_that_cannot_go_back_is_told() -> None:
    world = rolling_back()
    world.end(FOUR)
    world.report()
    world.admit()
    world.end(TWO, FAILED, "OperationRepeated")
    world.end(FOUR)
    assert (world.report().result, world.says()) == (RolloutResult.FAILED, Reason.ROLLBACK_FAILED)


@pytest.mark.parametrize("state", [DesiredState.ABORTED, DesiredState.PAUSED])
def test_people_can_stop_the_way_back(state: DesiredState) -> None:
    world = rolling_back()
    world.end(FOUR)
    world.change(state=state)
    status = world.report()
    assert not world.admit().admitted
    assert (status.result is RolloutResult.FAILED) is (state is DesiredState.ABORTED)


def test_the_way_back_keeps_to_the_calendar_and_to_max_unavailable() -> None:
    world = rolling_back()
    world.end(FOUR)
    world.live = Live(opening=closed())
    world.report()
    assert not world.admit().admitted
    assert world.says() == Reason.OUTSIDE_WINDOW
    world.live = Live()
    strategy = world.rollout.spec.snapshot.strategy.model_copy(update={"max_unavailable": 1})
    world.change(snapshot=world.rollout.spec.snapshot.model_copy(update={"strategy": strategy}))
    world.report()
    assert len(world.admit().admitted) == 1


# Never a silent wait


def test_a_rollout_that_a_rule_holds_back_says_which() -> None:
    ill = b.facts("r-9-VM", group="a", reach=b.UNREACHABLE)
    world = World(b.facts("r-1-VM", group="a"), b.facts("r-2-VM"))
    world.vms[ill.name] = ill
    world.round()
    held = {name: found[0] for name, found in world.admit(carry_out=False).blocked.items()}
    world.live = Live(held_back=held)
    status = world.report()
    assert (status.result, world.says()) == (None, Reason.PEER_UNHEALTHY)
    assert status.blocked_by[0].ref == f"SystemVM/{ONE}"
    assert "r-9-VM of the same group (a) cannot be reached" in status.conditions[0].message


# Retries


def test_what_could_not_begin_is_tried_again_after_a_wait() -> None:
    world = World(*vms(2), maxUnavailable=1, retry={"limit": 2, "backoff": "30s"})
    for attempt, wait in ((1, 30), (2, 60)):
        world.report()
        (admission,) = world.admit().admitted
        assert (admission.vm.name, admission.order.attempt) == (ONE, attempt)
        began = world.now
        world.end(ONE, FAILED, "VMBusy")
        status = world.report()
        assert (status.result, world.says()) == (None, Reason.RETRYING)
        assert status.next_action is not None
        assert status.next_action.at == began + timedelta(seconds=wait)
        assert not world.admit().admitted, "it keeps its place meanwhile"
        world.now = began + timedelta(seconds=wait)
    world.report()
    world.admit()
    world.end(ONE, FAILED, "VMBusy")
    assert world.report().result is RolloutResult.FAILED


@pytest.mark.parametrize(
    ("result", "reason", "again"),
    [
        (FAILED, "LockHeld", True),
        (FAILED, "DiskFull", False),
        (ROLLED_BACK, "OtherActor", False),
        (OperationResult.INCONSISTENT, "LockHeld", False),
    ],
)
def test_only_what_changed_nothing_and_passes_by_itself_is_tried_again(
    result: OperationResult, reason: str, *, again: bool
) -> None:
    world = World(*vms(1), retry={"limit": 1})
    world.report()
    world.admit()
    world.end(ONE, result, reason)
    assert (world.report().result is None) is again


@pytest.mark.parametrize(
    ("reason", "step", "again"),
    [
        (Reason.JOB_RUNNING, "Preparing", True),
        (Reason.HOST_NOT_READY, "Preparing", True),
        (Reason.NO_CAPACITY, "Preparing", True),
        (Reason.CLOUD_CHANGED, "Preparing", True),
        (Reason.DUPLICATE_GATEWAY, "Preparing", False),  # for a person
        (Reason.JOB_RUNNING, "Verifying", False),  # the call was made, and something moves all the same
    ],
)
def test_a_call_is_tried_again_only_if_it_was_not_made(reason: Reason, step: str, *, again: bool) -> None:
    world = World(*vms(1), retry={"limit": 1, "backoff": "30s"})
    world.report()
    world.admit()
    world.ends_uncalled(ONE, reason, step)
    assert (world.report().result is None) is again
    world.now += timedelta(seconds=30)
    world.report()
    assert [admission.order.attempt for admission in world.admit().admitted] == ([2] if again else [])


# What was edited meanwhile


def test_an_edit_of_the_policy_is_told_and_counts_for_the_next_rollout() -> None:
    world = World(*vms(2))
    world.live = Live(edited=("strategy",))
    status = world.report()
    changed = conditions.find(status.conditions, ConditionType.POLICY_CHANGED)
    assert changed is not None
    assert "(strategy)" in changed.message


def test_a_rollout_that_is_superseded_finishes_what_is_in_work() -> None:
    world = World(*vms(2), maxUnavailable=1)
    world.report()
    world.admit()
    world.live = Live(superseded=True)
    assert world.report().result is None
    world.end(ONE)
    assert world.report().result is RolloutResult.SUPERSEDED
    assert not world.admit().admitted


def test_the_time_of_the_end_follows_from_the_pace() -> None:
    world = World(*vms(5), maxUnavailable=1)
    world.report()
    world.admit()
    started = world.now - timedelta(minutes=1)
    world.end(ONE)
    status = world.report()
    assert status.eta is not None
    assert status.eta == started + timedelta(minutes=5)
    world.now += timedelta(seconds=30)
    assert world.report().eta == status.eta, "it moves only when a VM has ended"


# Whatever happens


strategies = st.fixed_dictionaries(
    {
        "waves": st.sampled_from(
            [
                [{"name": "rest"}],
                [{"name": "a", "limit": 1}, {"name": "rest"}],
                [{"name": "a", "limit": 1, "soak": "10m"}, {"name": "b", "limit": "50%"}, {"name": "c", "soak": "5m"}],
            ]
        ),
        "maxUnavailable": st.sampled_from([1, 2, "40%"]),
        "failureBudget": st.sampled_from(
            [{}, {"perWave": "60%"}, {"perWave": "90%", "total": 3}, {"perWave": "90%", "consecutive": 2}]
        ),
        "onBudgetSpent": st.sampled_from(["Pause", "RollBack"]),
        "retry": st.sampled_from([{"limit": 0}, {"limit": 2, "backoff": "1m"}]),
    }
)
ENDINGS = [(SUCCEEDED, "")] * 5 + [(ROLLED_BACK, "VerifyFailed"), (FAILED, "VMBusy"), (FAILED, "DiskFull")]
fleets = st.lists(st.sampled_from([None, None, "a", "b"]), min_size=1, max_size=8)


@given(groups=fleets, strategy=strategies, seed=st.integers(0, 2**32))
def test_every_rollout_ends_and_never_breaks_a_promise_on_its_way(
    groups: list[str | None], strategy: dict[str, Any], seed: int
) -> None:
    chance = Random(seed)
    world = World(*(b.facts(f"r-{number}-VM", group=group) for number, group in enumerate(groups)), **strategy)
    wave_of = {name: place for place, wave in enumerate(world.plan.waves) for name in wave.members}
    for _ in range(200):
        before = world.rollout.status
        status = world.report()
        if status.result is not None:
            break
        if chance.random() < 0.1:  # the process ended before the write: decide again
            world.rollout = world.rollout.model_copy(update={"status": before})
            continue
        done_waves = [wave.phase is WavePhase.DONE for wave in status.waves]
        for admission in world.admit().admitted:
            assert all(done_waves[: wave_of[admission.vm.name]]), "a wave began before the one before it was done"
            if admission.order.takes_back is None:
                assert conditions.find(status.conditions, ConditionType.BUDGET_SPENT) is None
        busy = [world.vms[name] for name in world.in_work()]
        named = [facts.group for facts in busy if facts.group]
        assert len(named) == len(set(named)), "two of one group"
        assert status.budget is not None
        assert len(busy) <= status.budget.slots
        for name in world.in_work():
            if chance.random() < 0.6:
                world.end(name, *chance.choice(ENDINGS))
        world.now += timedelta(minutes=chance.randint(0, 6))
    else:
        pytest.fail(f"it never ends: {world.says()} {world.rollout.status.next_action} {world.reasons()}")
    assert not world.in_work()
    if status.result is RolloutResult.SUCCEEDED:
        assert status.summary == f"{len(groups)}/{len(groups)}"
    if status.result is RolloutResult.ROLLED_BACK:
        assert sum(wave.returned for wave in status.waves)
