"""Whose host key is believed after our own call."""

from datetime import datetime, timedelta

import pytest
from tests.unit.domain import builders
from tests.unit.domain.builders import NOW
from tests.unit.domain.test_group_operation import LIMITS, RUNNING, after, begun, look, router

from sysvm.api.methods import Method
from sysvm.api.operation import OperationResult, OperationStatus
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.api.systemvm import HostKey
from sysvm.domain import group_operation as machine
from sysvm.domain.calls import (
    Call,
    Command,
    Event,
    JobState,
    JobTold,
    Look,
    Looked,
    NoAnswer,
    NotMade,
    Refused,
    Submitted,
)
from sysvm.domain.host_keys import LATE_START, goes_unseen, new_key_since
from sysvm.engine import operations

REBOOTING = machine.begun(
    "r-1-VM", Method.REBOOT, Call(Command.REBOOT_ROUTER, "id-1"), router(1), ["op-1"], NOW
)  # fmt: skip


def mirrored(operation: GroupOperation) -> OperationStatus:
    """As the VM's own status keeps it: all that is left once the rollout has forgotten the call."""
    order = builders.order(id="op-1").model_copy(update={"method": operation.method})
    return operations.of_group(operations.begun(order, NOW), operation)


def key_since(operation: GroupOperation, now: datetime = NOW) -> datetime | None:
    return new_key_since(mirrored(operation), now)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ((), False),
        ((Looked(look(router(1))),), False),
        ((Looked(look(router(1))), Submitted("job-1")), False),
        ((Looked(look(router(1))), NoAnswer("cut")), True),
        ((Looked(look(router(1))), Submitted("job-1"), JobTold(JobState.LOST)), True),
        ((Looked(look(router(1))), Submitted("job-1"), JobTold(JobState.SUCCEEDED)), True),
        ((Looked(look(router(1))), Submitted("job-1"), JobTold(JobState.SUCCEEDED), Looked(look(router(2)))), False),
    ],
)
def test_another_host_key_is_expected_while_the_start_of_a_reboot_is_waited_for(
    events: tuple[Event, ...], *, expected: bool
) -> None:
    assert key_since(after(REBOOTING, *events)) == (NOW if expected else None)


def test_a_vm_that_comes_up_after_its_reboot_was_given_up_may_show_another_key_for_an_hour() -> None:
    waited = after(REBOOTING, Looked(look(router(1))), Submitted("job-1"), JobTold(JobState.SUCCEEDED))
    ended = NOW + LIMITS.vm
    failed = after(waited, Looked(look(router(1))), now=ended)
    assert (failed.result, failed.before) == (OperationResult.FAILED, ())
    assert key_since(failed, ended + LATE_START - timedelta(seconds=1)) == NOW
    assert key_since(failed, ended + LATE_START) is None


@pytest.mark.parametrize(
    "failed",
    [
        after(REBOOTING, Refused(Reason.ON_HOLD, "held")),
        after(REBOOTING, Looked(look(router(1))), Refused(Reason.API_ERROR, "431")),
        after(
            after(REBOOTING, Looked(look(router(1))), NotMade("no leader")),
            Looked(look(router(1))),
            now=NOW + LIMITS.step,
        ),
    ],
)
def test_a_reboot_that_was_not_called_explains_no_other_key(failed: GroupOperation) -> None:
    assert failed.result is OperationResult.FAILED
    assert key_since(failed) is None


def test_a_reboot_that_was_found_to_have_changed_nothing_explains_no_other_key() -> None:
    quiet = machine.EXPIRES + machine.QUIET
    lost = after(REBOOTING, Looked(look(router(1))), NoAnswer("cut"))
    once_more = after(lost, Looked(look(router(1))), now=NOW + quiet)
    assert (once_more.phase, key_since(once_more)) == (GroupPhase.PREPARING, None)
    twice = after(once_more, Looked(look(router(1))), NoAnswer("cut"), now=NOW + quiet)
    failed = after(twice, Looked(look(router(1))), now=NOW + 2 * quiet)
    assert (failed.reason, key_since(failed)) == (Reason.JOB_LOST, None)


@pytest.mark.parametrize("seen", [look(router(1)), look(router(1), router(2)), look(router(2))])
@pytest.mark.parametrize("told", [JobState.SUCCEEDED, JobState.FAILED, JobState.LOST])
def test_no_vm_that_is_recreated_may_show_another_key(told: JobState, seen: Look) -> None:
    """Who takes its place is another VM, and may have its address."""
    waited = after(RUNNING, JobTold(told))
    failed = after(waited, Looked(seen), now=NOW + LIMITS.vm)
    assert [key_since(waited), key_since(failed, NOW + LIMITS.vm)] == [None, None]


@pytest.mark.parametrize(
    ("method", "called", "ended", "known", "expected"),
    [
        (Method.RECREATE, True, False, False, True),
        (Method.RECREATE, True, False, True, False),
        (Method.RECREATE, False, False, False, False),
        (Method.RECREATE, True, True, False, False),
        (Method.REBOOT, True, False, False, False),
    ],
)
def test_a_vm_that_never_showed_a_key_is_not_asked_for_its_first_while_it_is_replaced(
    method: Method, *, called: bool, ended: bool, known: bool, expected: bool
) -> None:
    operation = RUNNING if called else begun()
    result = OperationResult.FAILED if ended else None
    mirror = mirrored(operation.model_copy(update={"method": method, "result": result}))
    key = HostKey(type="ssh-ed25519", fingerprint="SHA256:x", public_key="ssh-ed25519 x", seen_at=NOW)
    status = builders.system_vm("r-1-VM", operation=mirror, host_key=key if known else None).status
    assert goes_unseen(status) is expected
