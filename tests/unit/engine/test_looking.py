"""A VM that does not answer is told once, and not while we have it started anew; whose key is kept, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from tests.unit.domain import builders
from tests.unit.domain.builders import NOW

from sysvm.api.endpoint import CloudStackEndpoint, SystemVMType
from sysvm.api.methods import Method
from sysvm.api.operation import OperationResult, OperationStatus
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import HostKey, SystemVM
from sysvm.domain.host_keys import LATE_START, may_show_another_key
from sysvm.engine.board import Board
from sysvm.engine.looking import AFTER_OPERATION, BEING_STARTED, Looks
from sysvm.engine.notices import Notices
from sysvm.engine.stores import Stores
from sysvm.engine.work import Handle
from sysvm.kube.objects import Key
from sysvm.patching.errors import HostKeyRejected
from sysvm.patching.results import Observation, SeenHostKey, Target

KEY = Key("ns", "r-1-vm")


@dataclass
class Told:
    reasons: list[str] = field(default_factory=list)

    def event(self, about: object, type_: object, reason: str, *rest: object, **more: object) -> None:
        self.reasons.append(reason)


@dataclass
class OneLook:
    """A pool in which a look has always just failed."""

    def get(self, key: Key) -> Handle[None, Any]:
        error = HostKeyRejected("another key", fingerprint="SHA256:x")
        return Handle("look", error=error)

    def forget(self, key: Key) -> None:
        return


class Observer:
    def looked(self, **figures: object) -> None:
        return


def ordered(method: Method, *, ended: bool = False) -> SystemVM:
    vm = builders.system_vm("r-1-VM")
    order = builders.order(id="op-1").model_copy(update={"method": method})
    operation = OperationStatus(
        id="op-1", method=method, revision=order.revision, started_at=NOW,
        result=OperationResult.SUCCEEDED if ended else None,
    )  # fmt: skip
    spec, status = vm.spec, vm.status
    return vm.model_copy(
        update={
            "spec": spec.model_copy(update={"operation": order}),
            "status": status.model_copy(update={"operation": operation}),
        }
    )


@pytest.fixture
def endpoint() -> CloudStackEndpoint:
    spec = {"inventory": "Static", "systemVMs": [], "ssh": {"keySecretRef": {"name": "key", "key": "key"}}}
    return CloudStackEndpoint.model_validate({"metadata": {"name": "lab", "namespace": "ns"}, "spec": spec})


def looks(told: Told) -> Looks:
    return Looks(
        Stores(), Board(1), cast("Any", None), cast("Any", OneLook()), Notices(cast("Any", told)),
        cast("Any", Observer()),
    )  # fmt: skip


def look(looks: Looks, vm: SystemVM, endpoint: CloudStackEndpoint, seconds: int) -> None:
    assert looks.take_note(KEY, vm, endpoint, vm.status, NOW + timedelta(seconds=seconds)) is not None


@pytest.mark.parametrize("method", [Method.REBOOT, Method.RECREATE])
def test_a_vm_that_we_have_started_anew_may_be_silent_until_that_has_ended(
    method: Method, endpoint: CloudStackEndpoint
) -> None:
    told = Told()
    memory = looks(told)
    for seconds in (0, 5):
        look(memory, ordered(method), endpoint, seconds)
    assert told.reasons == []
    assert memory.memory(KEY, ordered(method), NOW).reach == BEING_STARTED, "nobody is told to accept a key"
    for seconds in (10, 15):
        look(memory, ordered(method, ended=True), endpoint, seconds)
    assert told.reasons == ["HostKeyChanged"]


def test_a_start_that_has_only_been_ordered_hides_nothing(endpoint: CloudStackEndpoint) -> None:
    told = Told()
    vm = ordered(Method.REBOOT)
    waits = vm.model_copy(update={"status": vm.status.model_copy(update={"operation": None})})
    memory = looks(told)
    for seconds in (0, 5):
        look(memory, waits, endpoint, seconds)
    assert told.reasons == ["HostKeyChanged"]


def test_another_key_in_the_middle_of_a_live_patch_is_told_once(endpoint: CloudStackEndpoint) -> None:
    told = Told()
    memory = looks(told)
    for seconds in (0, 5):
        look(memory, ordered(Method.LIVE_PATCH), endpoint, seconds)
    assert told.reasons == ["HostKeyChanged"]


# Whose key is kept


@dataclass
class Slow:
    """A pool in which a look ends when the test says so."""

    handle: Handle[None, Any] | None = None

    def get(self, key: Key) -> Handle[None, Any] | None:
        return self.handle

    def start(self, key: Key, purpose: str, work: Callable[..., Any]) -> Handle[None, Any]:
        self.handle = self.handle or Handle(purpose)
        return self.handle

    def forget(self, key: Key) -> None:
        self.handle = None


def shown(key: str) -> SeenHostKey:
    return SeenHostKey("ssh-ed25519", f"SHA256:{key}", f"ssh-ed25519 {key}")


def found(key: str, at: datetime) -> Observation:
    return Observation(
        at=at, host_key=shown(key), type=None, release="4.20.1", debian_version="12.9", signature="aa" * 64,
        payload_checksums={}, boot_id="boot-2", booted=True, services=(), redundancy=None, failing_health_checks=(),
        disk_available_bytes=1, memory_available_bytes=1, other_actors=(), unfinished=None, last_finished=None,
        highest_epoch=0, content=None, agent_content=None, actions=(),
    )  # fmt: skip


CALLED = NOW + timedelta(minutes=1)
FAILED = NOW + timedelta(minutes=31)


def rebooted(
    result: OperationResult | None, *, step: str = "Verifying", key: str = "old", seen: datetime = NOW
) -> SystemVM:
    """It was seen with `key`, and then its reboot was called."""
    vm = ordered(Method.REBOOT)
    assert vm.status.operation is not None
    operation = vm.status.operation.model_copy(
        update={"submitted_at": CALLED, "result": result, "step": step, "finished_at": FAILED if result else None}
    )
    known = HostKey(type="ssh-ed25519", fingerprint=f"SHA256:{key}", public_key=f"ssh-ed25519 {key}", seen_at=seen)
    status = vm.status.model_copy(update={"operation": operation, "host_key": known})
    return vm.model_copy(update={"status": status})


@dataclass
class Watched:
    """One VM whose looks end when the test says so."""

    endpoint: CloudStackEndpoint
    pool: Slow = field(default_factory=Slow)
    told: Told = field(default_factory=Told)

    def __post_init__(self) -> None:
        self.looks = Looks(
            Stores(), Board(1), cast("Any", None), cast("Any", self.pool), Notices(cast("Any", self.told)),
            cast("Any", Observer()),
        )  # fmt: skip

    def begin(self, vm: SystemVM, now: datetime) -> None:
        """As the reconciler does: who may show another key is asked for none."""
        known = vm.status.host_key
        pinned = known.public_key if known is not None and not may_show_another_key(vm.status, now) else None
        target = Target("r-1-VM", SystemVMType.ROUTER, "192.0.2.1", cast("Any", None), pinned)
        self.looks.begin_if_due(KEY, vm, self.endpoint, target, None, now)

    def end(self, vm: SystemVM, key: str, now: datetime) -> str | None:
        """The key that is known after the look has shown this one; None: what it found counts for nothing."""
        assert self.pool.handle is not None
        self.pool.handle.result = found(key, now)
        status = self.looks.take_note(KEY, vm, self.endpoint, vm.status, now)
        if status is None:
            return None
        assert status.host_key is not None
        return status.host_key.public_key.removeprefix("ssh-ed25519 ")


@pytest.mark.parametrize(
    ("vm", "now"),
    [
        (rebooted(None), CALLED + timedelta(minutes=1)),
        (rebooted(None, step="Unknown"), CALLED + timedelta(minutes=1)),
        (rebooted(OperationResult.FAILED), FAILED + LATE_START - timedelta(seconds=1)),
    ],
)
def test_the_key_of_a_vm_that_our_reboot_started_is_taken_once(
    vm: SystemVM, now: datetime, endpoint: CloudStackEndpoint
) -> None:
    watched = Watched(endpoint)
    watched.begin(vm, now)
    assert watched.end(vm, "new", now) == "new"
    known = HostKey(type="ssh-ed25519", fingerprint="SHA256:new", public_key="ssh-ed25519 new", seen_at=now)
    assert not may_show_another_key(vm.status.model_copy(update={"host_key": known}), now + timedelta(seconds=1))


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (rebooted(OperationResult.SUCCEEDED, key="new", seen=CALLED + timedelta(minutes=2)), FAILED + AFTER_OPERATION),
        (rebooted(OperationResult.SUCCEEDED), FAILED + AFTER_OPERATION),
        (rebooted(OperationResult.FAILED), FAILED + LATE_START),
        (rebooted(None, step="Preparing"), FAILED),
    ],
)
def test_a_look_that_asked_for_no_key_and_ends_when_one_is_required_is_taken_anew(
    then: SystemVM, now: datetime, endpoint: CloudStackEndpoint
) -> None:
    watched = Watched(endpoint)
    watched.begin(rebooted(None), CALLED)
    assert watched.end(then, "a stranger's", now) is None
    assert watched.looks.seconds_to_next(KEY, then, now) == pytest.approx(0.1)
    watched.begin(then, now)
    assert watched.pool.handle is not None, "the next one begins at once, and requires the key"
    assert watched.end(then, "a stranger's", now) is not None, "whom the handshake let in, for a person said so"


def test_a_look_that_asked_for_no_key_and_saw_the_old_one_counts(endpoint: CloudStackEndpoint) -> None:
    watched = Watched(endpoint)
    watched.begin(rebooted(None), CALLED)
    assert watched.end(rebooted(OperationResult.SUCCEEDED), "old", FAILED) == "old"


def test_another_key_long_after_a_reboot_was_given_up_is_a_strangers(endpoint: CloudStackEndpoint) -> None:
    watched, vm, now = Watched(endpoint), rebooted(OperationResult.FAILED), FAILED + LATE_START
    watched.begin(vm, now)
    assert watched.pool.handle is not None
    watched.pool.handle.error = HostKeyRejected("another key", fingerprint="SHA256:x")
    assert watched.looks.take_note(KEY, vm, endpoint, vm.status, now) is not None
    reach = watched.looks.memory(KEY, vm, now).reach
    assert (watched.told.reasons, reach and reach.reason) == (["HostKeyChanged"], Reason.HOST_KEY_CHANGED)


def test_the_first_key_of_a_vm_that_is_being_replaced_is_not_taken(endpoint: CloudStackEndpoint) -> None:
    watched, order = Watched(endpoint), ordered(Method.RECREATE)
    watched.begin(order, NOW)
    assert order.status.operation is not None
    called = order.status.operation.model_copy(update={"submitted_at": CALLED})
    vm = order.model_copy(update={"status": order.status.model_copy(update={"operation": called})})
    assert watched.end(vm, "its successor's", CALLED) is None
