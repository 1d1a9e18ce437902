"""A router that rebooted by itself is known by its data bags, and a start by CloudStack is not taken for one."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from sysvm.api.methods import Method
from sysvm.api.observed import DataBags, Observed
from sysvm.api.operation import OperationResult, OperationStatus
from sysvm.api.reasons import Reason
from sysvm.domain.method import decide
from sysvm.domain.rules import PROGRAMMING, data_bags, forgotten_if_stopped, next_look

from . import builders as b

T0 = b.ago(hours=1)
GRACE = PROGRAMMING.total_seconds()


def reboot(result: OperationResult | None, **kwargs: Any) -> OperationStatus:
    return b.operation(result, **kwargs).model_copy(update={"method": Method.REBOOT})


def looked(
    *looks: tuple[str, bool, int | None], pause: float = GRACE, operation: OperationStatus | None = None
) -> DataBags | None:
    """What is known after looks (boot, booted, bags held) so many seconds apart. `operation`: at the last look."""
    old: Observed | None = None
    for number, (boot, booted, held) in enumerate(looks):
        at = T0 + timedelta(seconds=pause * number)
        ours = operation if number == len(looks) - 1 else None
        bags = data_bags(old, held=held, boot_id=boot, booted=booted, at=at, operation=ours)
        old = b.up_to_date(at=at).model_copy(update={"boot_id": boot, "booted": booted, "data_bags": bags})
    return old.data_bags if old is not None else None


BEFORE = ("boot-1", True, 6)
AFTER = ("boot-2", True, 0)


@pytest.mark.parametrize(
    ("looks", "lost"),
    [
        pytest.param([AFTER], False, id="never seen with bags"),
        pytest.param([BEFORE, ("boot-1", True, 0)], False, id="no reboot: somebody deleted the rules"),
        pytest.param([BEFORE, AFTER], False, id="one look is no proof"),
        pytest.param([BEFORE, AFTER, AFTER], True, id="two looks of the same boot"),
        pytest.param([BEFORE, ("boot-2", False, 0), ("boot-2", False, 0)], False, id="it still boots"),
        pytest.param([BEFORE, ("boot-2", False, 0), AFTER], False, id="the time counts from the end of the boot"),
        pytest.param([BEFORE, ("boot-2", False, 0), AFTER, AFTER], True, id="... and a look in the boot loses nothing"),
        pytest.param([BEFORE, AFTER, ("boot-2", True, 6)], False, id="programmed in time"),
        pytest.param([BEFORE, AFTER, ("boot-2", True, 5)], False, id="... without the last rule of a kind"),
        pytest.param([BEFORE, AFTER, ("boot-3", True, 0)], False, id="another boot, another five minutes"),
        pytest.param([BEFORE, AFTER, ("boot-3", True, 0), ("boot-3", True, 0)], True, id="... and then lost"),
        pytest.param([BEFORE, ("boot-2", True, 2), ("boot-2", True, 2)], True, id="a rule that was added since"),
        pytest.param([BEFORE, AFTER, AFTER, ("boot-2", True, 5)], True, id="lost, and rules were added one by one"),
        pytest.param([BEFORE, AFTER, AFTER, ("boot-2", True, 6)], False, id="lost, and sent again"),
        pytest.param([BEFORE, AFTER, AFTER, ("boot-3", False, 0)], True, id="lost, and it boots once more"),
        pytest.param([BEFORE, AFTER, AFTER, ("boot-3", True, 6)], False, id="lost, and started by CloudStack"),
        pytest.param([("boot-1", True, 0), AFTER, AFTER], False, id="none to lose"),
        pytest.param([("boot-1", True, 1), ("boot-2", True, 1), ("boot-2", True, 1)], False, id="a DHCP server, well"),
        pytest.param([("boot-1", True, 1), AFTER, AFTER], True, id="a load balancer that lost its one bag"),
        pytest.param([("boot-1", True, None), ("boot-2", True, None)], False, id="an SSVM"),
    ],
)
def test_rules_are_lost_when_a_boot_took_them_and_nobody_sent_them(
    looks: list[tuple[str, bool, int | None]], *, lost: bool
) -> None:
    bags = looked(*looks)
    assert (bags is not None and bags.lost) is lost


def test_two_looks_in_a_moment_are_no_proof_and_the_next_one_is_at_the_end_of_the_grace() -> None:
    bags = looked(BEFORE, AFTER, AFTER, pause=GRACE / 2)
    assert bags is not None
    assert not bags.lost
    assert next_look(bags) == T0 + timedelta(seconds=GRACE / 2) + PROGRAMMING
    assert next_look(looked(BEFORE, AFTER, AFTER)) is None
    assert next_look(looked(BEFORE)) is None


@pytest.mark.parametrize(
    ("operation", "compared"),
    [
        (None, True),
        (reboot(None), False),
        (reboot(OperationResult.SUCCEEDED, ended=T0 + timedelta(seconds=1)), False),
        (reboot(OperationResult.SUCCEEDED, ended=T0 - timedelta(seconds=1)), True),
        (b.operation(None), True),
    ],
    ids=["none", "our reboot runs", "our reboot ended since", "our reboot was long ago", "our live patch"],
)
def test_a_start_that_the_operator_ordered_is_the_servers(operation: OperationStatus | None, *, compared: bool) -> None:
    bags = looked(BEFORE, AFTER, operation=operation)
    assert bags is not None
    assert (bags.before is not None) is compared


def test_what_was_before_is_forgotten_when_cloudstack_stops_the_vm() -> None:
    observed = b.up_to_date().model_copy(update={"data_bags": looked(BEFORE, AFTER, AFTER)})
    for state in (None, "Running", "Migrating", "Missing"):
        assert forgotten_if_stopped(observed, state) is observed
    stopped = forgotten_if_stopped(observed, "Stopping")
    assert stopped is not None
    assert stopped.data_bags is None
    assert forgotten_if_stopped(None, "Stopped") is None


def test_a_router_without_its_rules_is_not_converged_and_nothing_is_done_to_it() -> None:
    good = b.facts(observed=b.up_to_date(version="4.20.2"))
    assert decide(good, b.release()).converged
    lost = b.up_to_date(version="4.20.2").model_copy(update={"data_bags": looked(BEFORE, AFTER, AFTER)})
    decision = decide(replace(good, observed=lost), b.release())
    assert (decision.converged, decision.method, decision.reason) == (False, Method.HOLD, Reason.RULES_LOST)
    assert "0 data bags, 6 before" in decision.message
    assert "restart its network or VPC in CloudStack without cleanup" in decision.message
