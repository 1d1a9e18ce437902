"""The driver of calls: what is not written is not done, and what was heard is not forgotten."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from tests.unit.domain import builders

from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, GroupPhase, GroupVM, Rollout, RolloutStatus
from sysvm.domain.calls import Call, Event, Job, Look, Looked, NotMade, Refused, Submitted
from sysvm.domain.cloud import CloudVM, CloudVMState, Snapshot
from sysvm.engine.board import Board
from sysvm.engine.books import Books
from sysvm.engine.group_operation import Advanced, GroupOperations
from sysvm.engine.notices import Notices
from sysvm.engine.resources import ENDPOINT, ROLLOUT, SYSTEM_VM
from sysvm.engine.stores import Stores, endpoint_of
from sysvm.engine.work import Handle, Pool
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Key, Object, Resource

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
VM = CloudVM(
    id="id-1", name="r-1-VM", type=SystemVMType.ROUTER, state=CloudVMState.RUNNING, zone_id="z", zone="ams-1",
    network_id="n-1",
)  # fmt: skip


@dataclass
class Steps:
    """A pool whose pieces of work end when the test says so."""

    handles: dict[Key, Handle[None, Event]] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    work: Callable[..., Any] | None = None
    """What was started last."""

    def get(self, key: Key) -> Handle[None, Event] | None:
        return self.handles.get(key)

    def start(self, key: Key, purpose: str, work: Callable[..., Any]) -> Handle[None, Event]:
        self.started.append(purpose)
        self.work = work
        return self.handles.setdefault(key, Handle(purpose))

    def forget(self, key: Key) -> None:
        if key in self.handles and self.handles[key].done:
            del self.handles[key]


class Clouds:
    def __init__(self) -> None:
        self.called: list[str] = []
        self.reachable = True

    async def submit(self, call: Call) -> Event:
        self.called.append(str(call))
        return Submitted("job-1")

    def jobs(self, endpoint: Key) -> object | None:
        return self if self.reachable else None

    def explain(self, endpoint: Key, vm_ids: object) -> None:
        return

    def note(self, endpoint: Key, vms: object, at: datetime) -> None:
        return

    async def look(self, operation: GroupOperation) -> None:
        return

    async def job(self, job_id: str) -> None:
        return


class Recorder:
    def event(self, *args: object, **kwargs: object) -> None:
        return


@dataclass
class Driver:
    """One rollout with one open order to recreate r-1-VM, and what is stored of it."""

    stores: Stores = field(default_factory=Stores)
    steps: Steps = field(default_factory=Steps)
    clouds: Clouds = field(default_factory=Clouds)
    withdrawn: bool = False
    """The order, on the server; this process has not seen it yet."""
    now: datetime = NOW
    again: timedelta | None = None

    async def leads(self) -> bool:
        return True

    async def get(self, kind: Resource, namespace: str, name: str) -> Object:
        """Of the server: what is stored."""
        if kind == SYSTEM_VM:
            vm = self.stores.system_vms.get(Key("ns", name))
            assert vm is not None
            return (vm if not self.withdrawn else builders.system_vm("r-1-VM")).to_dict()
        return {ROLLOUT: self.rollout, ENDPOINT: builders.endpoint()}[kind].to_dict()

    def __post_init__(self) -> None:
        self.board = Board(builders.EPOCH)
        self.rollout = builders.rollout(builders.plan_for(builders.facts()))
        vm = builders.system_vm("r-1-VM").to_dict()
        vm["metadata"] |= {"namespace": "ns", "resourceVersion": "1"}
        vm["status"]["identity"] |= {"group": "n-1", "id": "id-1"}
        vm["spec"]["operation"] = builders.order(id="op-1").model_copy(update={"method": Method.RECREATE}).to_dict()
        self.stores.system_vms.put({"apiVersion": SYSTEM_VM.api_version, "kind": "SystemVM", **vm})
        self.store()
        snapshot = Snapshot(
            taken_at=NOW, server_version="4.21", zones={}, hosts={}, vms={"id-1": VM}, networks={}, vpcs={}
        )
        self.driver = GroupOperations(
            cast("Cluster", self), self.stores, cast("Any", self.clouds), lambda key: snapshot, self.board,
            cast("Pool[None, Event]", self.steps), Notices(cast("Any", Recorder())), lambda key: None,
            self.leads, Books(self.stores, lambda key: snapshot), cast("Any", None), lambda: self.now,
        )  # fmt: skip

    def store(self, *operations: GroupOperation) -> None:
        metadata = self.rollout.metadata.model_copy(update={"namespace": "ns", "resource_version": "1"})
        status = RolloutStatus(group_operations=operations)
        self.rollout = self.rollout.model_copy(update={"metadata": metadata, "status": status})
        self.stores.rollouts.forget(Key("ns", "routers-1"), self.rollout.metadata.uid)
        self.stores.rollouts.put({"apiVersion": ROLLOUT.api_version, "kind": "Rollout", **self.rollout.to_dict()})

    def reconcile(self, *, while_written: Callable[[], None] = lambda: None) -> GroupOperation:
        """As the rollout's reconciler does: compute, write, begin."""
        before: Rollout = self.rollout
        advanced = self.driver.advance(before, self.now)
        while_written()
        self.store(*advanced.operations)
        self.driver.begin(before, advanced, self.now)
        self.again = advanced.again
        (operation,) = advanced.operations
        return operation

    def hears(self, event: Event) -> None:
        (handle,) = self.steps.handles.values()
        handle.result = event

    def submitting(self) -> GroupOperation:
        operation = self.reconcile().model_copy(
            update={"phase": GroupPhase.SUBMITTING, "submissions": 1, "submitted_at": NOW}
        )
        self.steps.handles.clear()
        self.store(operation)
        return operation

    def submits(self) -> None:
        """Everything is ready, Submitting is written, and the call has its turn."""
        preparing = self.reconcile()
        self.steps.handles.clear()
        self.store(preparing)
        before = self.rollout
        submitting = preparing.model_copy(
            update={"phase": GroupPhase.SUBMITTING, "submissions": 1, "submitted_at": NOW}
        )
        self.store(submitting)
        self.driver.begin(before, Advanced((submitting,), None, frozenset()), NOW)


def test_an_order_begins_an_operation_that_looks_first() -> None:
    driver = Driver()
    operation = driver.reconcile()
    assert (operation.phase, operation.group, operation.command, operation.orders) == (
        GroupPhase.PREPARING, "n-1", "restartNetwork", ("op-1",),
    )  # fmt: skip
    assert driver.steps.started == ["Preparing 0 "]


def test_an_order_of_a_former_leader_waits_until_admission_has_confirmed_it() -> None:
    driver = Driver()
    vm = driver.stores.system_vms.get(Key("ns", "prod-r-1-vm"))
    assert vm is not None
    assert vm.spec.operation is not None
    former = vm.spec.operation.model_copy(update={"epoch": builders.EPOCH - 1})
    old = vm.model_copy(update={"spec": vm.spec.model_copy(update={"operation": former})})
    newer = old.to_dict() | {"metadata": old.metadata.to_dict() | {"resourceVersion": "2"}}
    driver.stores.system_vms.put({"apiVersion": SYSTEM_VM.api_version, "kind": "SystemVM", **newer})
    assert driver.driver.advance(driver.rollout, NOW).operations == ()
    assert driver.board.confirm(endpoint_of(vm), frozenset({former.id}))
    assert not driver.board.confirm(endpoint_of(vm), frozenset({former.id})), "nothing new"
    assert driver.reconcile().orders == (former.id,)


def test_submitting_that_is_found_is_not_made_again() -> None:
    driver = Driver()
    driver.submitting()
    driver.steps.started.clear()
    assert driver.reconcile().phase is GroupPhase.UNKNOWN
    assert driver.steps.started == ["Unknown 1 "], "it looks"


def test_an_answer_that_comes_while_the_status_is_written_is_not_forgotten() -> None:
    driver = Driver()
    driver.submitting()
    driver.steps.start(Key("ns", "routers-1/n-1"), "Submitting 1 ", lambda: None)
    assert driver.reconcile(while_written=lambda: driver.hears(Submitted("job-1"))).phase is GroupPhase.SUBMITTING
    running = driver.reconcile()
    assert (running.phase, running.job_id) == (GroupPhase.RUNNING, "job-1")


def test_a_look_that_waited_too_long_for_the_cluster_is_taken_again() -> None:
    driver = Driver()
    driver.reconcile()
    driver.hears(Looked(Look(taken_at=datetime(2026, 11, 22, 11, 59, tzinfo=UTC), vms=(VM,))))
    assert driver.reconcile().phase is GroupPhase.PREPARING


@pytest.mark.parametrize("seconds", [59, 61])
async def test_a_call_whose_turn_comes_late_is_looked_at_again(seconds: int) -> None:
    """What it relies on may be another by then; and a lost call is judged by when it may have left."""
    driver = Driver()
    driver.submits()
    driver.now = NOW + timedelta(seconds=seconds)
    assert driver.steps.work is not None
    event = await driver.steps.work(None)
    if seconds < 60:
        assert (event, driver.clouds.called) == (Submitted("job-1"), ["restartNetwork id=n-1 cleanup=true"])
    else:
        assert (type(event), driver.clouds.called) == (NotMade, [])


async def test_no_call_leaves_for_an_order_that_was_taken_back_meanwhile() -> None:
    """Admission withdraws in the VM, an operation is begun in the rollout: no version of an object holds both."""
    driver = Driver()
    driver.submits()
    driver.withdrawn = True
    assert driver.steps.work is not None
    event = await driver.steps.work(None)
    assert isinstance(event, Refused)
    assert (event.reason, driver.clouds.called) == (Reason.INTERRUPTED, [])


def test_a_failure_that_is_remembered_gives_way_to_a_new_operation_on_its_group() -> None:
    """Two of one group would be refused by the API server, for ever."""
    driver = Driver()
    ended = driver.reconcile().model_copy(
        update={
            "phase": GroupPhase.DONE,
            "orders": ("op-0",),
            "result": OperationResult.FAILED,
            "before": (GroupVM(id="id-0", name="r-0-VM"),),
        }
    )
    driver.steps.handles.clear()
    driver.store(ended)
    assert driver.reconcile().orders == ("op-1",)


@pytest.mark.parametrize(("job", "called"), [("j-ours", True), ("j-strange", False)])
def test_a_job_of_another_of_our_operations_keeps_no_call_waiting(job: str, *, called: bool) -> None:
    """A restart of a network does not say of which; the operation that began it does, in whatever rollout."""
    driver = Driver()
    preparing = driver.reconcile()
    at_work = preparing.model_copy(
        update={"group": "n-2", "target": "n-2", "orders": (), "phase": GroupPhase.RUNNING, "job_id": "j-ours"}
    )
    metadata = driver.rollout.metadata.model_copy(update={"name": "routers-2", "uid": "uid-2"})
    status = RolloutStatus(group_operations=(at_work,))
    other = driver.rollout.model_copy(update={"metadata": metadata, "status": status})
    driver.stores.rollouts.put({"apiVersion": ROLLOUT.api_version, "kind": "Rollout", **other.to_dict()})
    driver.hears(Looked(Look(taken_at=NOW, vms=(VM,), jobs=(Job(id=job, command="RestartNetworkCmd"),))))
    heard = driver.reconcile()
    if called:
        assert heard.reason != "JobRunning"
    else:
        assert (heard.reason, heard.message) == ("JobRunning", "job j-strange (RestartNetworkCmd) runs")


@pytest.mark.parametrize(
    "phase",
    [
        GroupPhase.PREPARING,
        GroupPhase.SUBMITTING,
        GroupPhase.RUNNING,
        GroupPhase.UNKNOWN,
        GroupPhase.VERIFYING,
    ],
)
def test_without_a_way_to_the_server_every_phase_ends_and_is_not_asked_for_without_a_pause(phase: GroupPhase) -> None:
    """Its endpoint is gone, another keeps the cloud, or no sweep succeeds."""
    driver = Driver()
    driver.store(driver.submitting().model_copy(update={"phase": phase, "job_id": "job-1", "since": NOW}))
    driver.steps.started.clear()
    driver.clouds.reachable = False
    operation = driver.reconcile()
    for _ in range(400):
        if operation.phase is GroupPhase.DONE:
            break
        assert driver.again is not None
        driver.now += driver.again
        operation = driver.reconcile()
    assert (operation.result, driver.steps.started) == (OperationResult.FAILED, [])
    assert operation.message
    assert driver.now - NOW < timedelta(minutes=31)


def test_looks_that_the_cluster_makes_history_of_do_not_hold_it_for_ever() -> None:
    driver = Driver()
    operation = driver.reconcile()
    for _ in range(100):
        driver.steps.handles.clear()
        driver.steps.start(Key("ns", "routers-1/n-1"), f"Preparing {operation.submissions} ", lambda: None)
        driver.hears(Looked(Look(taken_at=driver.now - timedelta(seconds=16), vms=(VM,))))
        operation = driver.reconcile()
        driver.now += timedelta(seconds=16)
        if operation.phase is GroupPhase.DONE:
            break
    assert (operation.result, operation.reason) == (OperationResult.FAILED, "TimedOut")
    assert operation.message.endswith("nothing was changed")
