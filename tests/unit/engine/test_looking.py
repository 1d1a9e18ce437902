"""A VM that does not answer is told once, and not while we have it started anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import pytest
from tests.unit.domain import builders
from tests.unit.domain.builders import NOW

from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.methods import Method
from sysvm.api.operation import OperationResult, OperationStatus
from sysvm.api.systemvm import SystemVM
from sysvm.engine.board import Board
from sysvm.engine.looking import Looks
from sysvm.engine.notices import Notices
from sysvm.engine.stores import Stores
from sysvm.engine.work import Handle
from sysvm.kube.objects import Key
from sysvm.patching.errors import HostKeyRejected

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
        Stores(), Board(), cast("Any", None), cast("Any", OneLook()), Notices(cast("Any", told)),
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
    for seconds in (10, 15):
        look(memory, ordered(method, ended=True), endpoint, seconds)
    assert told.reasons == ["HostKeyChanged"]


def test_another_key_in_the_middle_of_a_live_patch_is_told_once(endpoint: CloudStackEndpoint) -> None:
    told = Told()
    memory = looks(told)
    for seconds in (0, 5):
        look(memory, ordered(Method.LIVE_PATCH), endpoint, seconds)
    assert told.reasons == ["HostKeyChanged"]
