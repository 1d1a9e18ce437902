"""One table a checker: what is seen on the VM, and what is decided."""

from collections.abc import Set
from datetime import timedelta
from typing import Any

import pytest

from sysvm.api.endpoint import Scan
from sysvm.api.methods import Method
from sysvm.api.observed import ContentState, Obstacle
from sysvm.api.operation import HistoryEntry, OperationResult
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import DriftKind
from sysvm.api.template import Signature
from sysvm.domain.drift import drift_of
from sysvm.domain.facts import NEVER_TRIED, VMFacts, facts_of
from sysvm.domain.method import decide

from . import builders as b

SCRIPTS, CONTENT = {DriftKind.SCRIPTS}, {DriftKind.CONTENT}


@pytest.mark.parametrize(
    ("seen", "kinds", "notes", "converged"),
    [
        (b.up_to_date(), set(), {Reason.TEMPLATE_OUTDATED}, True),
        (b.up_to_date(version="4.20.2"), set(), set(), True),
        (b.up_to_date(signature=b.OLD_SIGNATURE, version="4.20.2"), set(), {Reason.SIGNATURE_ONLY}, True),
        (b.up_to_date(signature=b.ZEROS, version="4.20.2"), SCRIPTS, {Reason.PARTIAL_PATCH}, False),
        (b.up_to_date(signature=None, version="4.20.2"), SCRIPTS, {Reason.PARTIAL_PATCH}, False),
        (
            b.up_to_date(signature=Signature(algorithm="md5", value=""), version="4.20.2"),
            SCRIPTS,
            {Reason.PARTIAL_PATCH},
            False,
        ),
        (b.up_to_date(payload="sha512:" + "cc" * 64, version="4.20.2"), SCRIPTS, {Reason.SIGNATURE_MISMATCH}, False),
        (b.up_to_date(payload="sha512:" + "bb" * 64, version="4.20.2"), set(), set(), True),
        (b.observed(version="4.20.2"), SCRIPTS, set(), False),
        (b.observed(signature=b.NEW_SIGNATURE, version="4.20.2"), CONTENT, set(), False),
        (b.observed(files=ContentState.UNKNOWN, version="4.20.2"), set(), {Reason.NOT_COMPARED}, False),
        (b.up_to_date(compared_with=b.OTHER, version="4.20.2"), set(), {Reason.NOT_COMPARED}, False),
        (b.up_to_date(compared_with=None, version="4.20.2"), set(), {Reason.NOT_COMPARED}, False),
        (None, set(), {Reason.NOT_OBSERVED}, False),
    ],
)
def test_content_decides_and_the_signature_is_compared_with_it(
    seen: Any, kinds: Set[DriftKind], notes: Set[Reason], *, converged: bool
) -> None:
    drift = drift_of(b.facts(observed=seen), b.release())
    assert (drift.kinds, drift.notes, drift.converged) == (kinds, notes, converged)


def test_stale_content_is_unknown() -> None:
    drift = drift_of(b.facts(observed=b.up_to_date(), content_fresh=False), b.release())
    assert Reason.CONTENT_STALE in drift.notes
    assert not drift.converged


@pytest.mark.parametrize(("hours", "fresh"), [(1, True), (2, True), (2.1, False)])
def test_content_is_stale_after_twice_the_interval(hours: float, *, fresh: bool) -> None:
    vm = b.system_vm(observed=b.up_to_date(at=b.ago(hours=hours)))
    assert facts_of(vm, now=b.NOW, scan=Scan(content=timedelta(hours=1))).content_fresh is fresh


@pytest.mark.parametrize("result", list(OperationResult))
def test_a_comparison_from_before_a_change_says_nothing(result: OperationResult) -> None:
    changed = result in (OperationResult.SUCCEEDED, OperationResult.INCONSISTENT)
    before = b.facts(observed=b.observed(at=b.ago(minutes=10)), **b.done(result, ended=b.ago(minutes=10)))
    assert drift_of(before, b.release()).certain is not changed
    after = b.facts(observed=b.observed(at=b.ago(minutes=9)), **b.done(result, ended=b.ago(minutes=10)))
    assert drift_of(after, b.release()).certain


INCONSISTENT = b.done(OperationResult.INCONSISTENT)
HISTORY = HistoryEntry(
    id="op-0", revision=b.NEW, method=Method.LIVE_PATCH, result=OperationResult.SUCCEEDED, started_at=b.ago(days=1)
)
LATER = HistoryEntry(
    id="op-9", revision=b.OTHER, method=Method.LIVE_PATCH, result=OperationResult.SUCCEEDED, started_at=b.ago(hours=1)
)


@pytest.mark.parametrize(
    ("vm", "method", "reason", "undecided"),
    [
        (b.facts(deleting=True), Method.HOLD, Reason.DELETING, False),
        (b.facts(hold=b.HOLD), Method.HOLD, Reason.ON_HOLD, False),
        (b.facts(observed=b.observed(signature=b.ZEROS), **INCONSISTENT), Method.HOLD, Reason.INCONSISTENT, False),
        (b.facts(reach=b.UNREACHABLE), Method.HOLD, Reason.SSH_TIMEOUT, False),
        (b.facts(observed=None, reach=NEVER_TRIED), Method.NONE, Reason.NOT_OBSERVED, True),
        (b.facts(observed=b.observed(files=ContentState.UNKNOWN)), Method.NONE, Reason.NOT_COMPARED, True),
        (b.facts(content_fresh=False), Method.NONE, Reason.CONTENT_STALE, True),
        (b.facts(observed=b.up_to_date()), Method.NONE, Reason.UP_TO_DATE, False),
        (b.facts(observed=b.up_to_date(version="4.9.0")), Method.NONE, Reason.UP_TO_DATE, False),
        (b.facts(observed=b.up_to_date(signature=b.OLD_SIGNATURE)), Method.NONE, Reason.SIGNATURE_ONLY, False),
        (b.facts(observed=b.observed(version="4.15.0")), Method.HOLD, Reason.NOT_COMPATIBLE, False),
        (b.facts(observed=b.observed(version="?")), Method.HOLD, Reason.VERSION_UNKNOWN, False),
        (b.facts(observed=b.observed(signature=b.NEW_SIGNATURE)), Method.HOLD, Reason.DRIFTED, False),
        (b.facts(history=(HISTORY,)), Method.HOLD, Reason.DRIFTED, False),
        (b.facts(history=(LATER, HISTORY)), Method.LIVE_PATCH, Reason.SCRIPTS_OUTDATED, False),
        (b.facts(), Method.LIVE_PATCH, Reason.SCRIPTS_OUTDATED, False),
        (b.facts(observed=b.observed(signature=b.ZEROS)), Method.LIVE_PATCH, Reason.PARTIAL_PATCH, False),
        (b.facts(observed=b.observed(payload="cc")), Method.LIVE_PATCH, Reason.SIGNATURE_MISMATCH, False),
    ],
)
def test_the_first_checker_with_something_to_say_decides(
    vm: VMFacts, method: Method, reason: Reason, *, undecided: bool
) -> None:
    decision = decide(vm, b.release())
    assert (decision.method, decision.reason, decision.undecided) == (method, reason, undecided)
    assert "r-101-VM" in decision.message


def test_an_exclusion_goes_before_everything() -> None:
    decision = decide(b.facts(hold=b.HOLD), b.release(), excluded="CHG-881")
    assert (decision.method, decision.reason) == (Method.HOLD, Reason.EXCLUDED)
    assert decision.message.endswith("CHG-881")


def test_a_method_that_is_not_listed_is_never_used() -> None:
    decision = decide(b.facts(), b.release(), methods=())
    assert (decision.method, decision.reason) == (Method.HOLD, Reason.METHOD_NOT_ALLOWED)


def test_healing_puts_back_what_was_at_the_release() -> None:
    decision = decide(b.facts(observed=b.observed(signature=b.NEW_SIGNATURE)), b.release(), heal=True)
    assert (decision.method, decision.reason) == (Method.LIVE_PATCH, Reason.CONTENT_DRIFTED)


def test_the_sentence_carries_the_figures_and_the_warnings_of_the_table() -> None:
    decision = decide(b.facts(observed=b.observed(version="4.16.0")), b.release())
    assert "3 changed" in decision.message
    assert "etc/dnsmasq.conf" in decision.message
    assert "4.20.2 (8c1f03ab)" in decision.message
    assert decision.warnings == (
        "r-101-VM: Debian packages that Debian 11 lacks are installed before, and stay after a roll back",
    )


def test_an_inconsistent_vm_is_left_alone_until_a_whole_payload_was_installed_by_others() -> None:
    early = b.observed(at=b.ago(minutes=11))
    assert b.facts(observed=early, **INCONSISTENT).inconsistent
    assert b.facts(observed=b.observed(signature=b.ZEROS), **INCONSISTENT).inconsistent
    repaired = b.facts(observed=b.observed(payload="sha512:" + "aa" * 64), **INCONSISTENT)
    assert not repaired.inconsistent
    assert decide(repaired, b.release()).method is Method.LIVE_PATCH


def test_a_hold_ends_by_itself() -> None:
    vm = b.system_vm(spec={"hold": {"reason": "x", "until": b.ago(seconds=1)}})
    assert facts_of(vm, now=b.NOW).hold is None
    assert facts_of(vm, now=b.ago(minutes=1)).hold is not None


@pytest.mark.parametrize(
    ("the_order", "the_operation", "in_work"),
    [
        (None, None, False),
        (b.order(id="op-2"), None, True),
        (b.order(id="op-2"), b.operation(OperationResult.SUCCEEDED, id="op-1"), True),
        (b.order(id="op-2"), b.operation(None, id="op-2"), True),
        (b.order(id="op-2"), b.operation(OperationResult.FAILED, id="op-2"), False),
        (None, b.operation(OperationResult.FAILED, id="op-2"), False),
    ],
)
def test_an_order_is_open_until_its_own_result_is_known(the_order: Any, the_operation: Any, *, in_work: bool) -> None:
    assert b.facts(order=the_order, operation=the_operation).in_work is in_work


def past(*results: str | None, hours: float = 1) -> tuple[HistoryEntry, ...]:
    """Operations at one revision each, oldest first, so many hours apart; `None` is one that was rolled back."""
    entries = [
        HistoryEntry(
            id=f"op-{number}",
            revision=revision or b.NEW,
            method="LivePatch",
            result=OperationResult.SUCCEEDED if revision else OperationResult.ROLLED_BACK,
            started_at=b.ago(hours=hours * (len(results) - number)),
        )
        for number, revision in enumerate(results)
    ]
    return tuple(reversed(entries))


DRIFTED = b.observed(signature=b.NEW_SIGNATURE)


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        ((), Reason.CONTENT_DRIFTED),
        (past(b.NEW, b.NEW, b.NEW), Reason.CONTENT_DRIFTED),
        (past(b.NEW, b.NEW, b.NEW, b.NEW), Reason.HEAL_LOOP),
        (past(b.NEW, b.NEW, None, b.NEW, b.NEW), Reason.HEAL_LOOP),
        (past(b.NEW, b.OTHER, b.NEW, b.OTHER, b.NEW), Reason.CONTENT_DRIFTED),
        (past(b.NEW, b.NEW, b.NEW, b.NEW, hours=11), Reason.CONTENT_DRIFTED),
    ],
)
def test_a_vm_is_put_back_but_not_fought_over(history: tuple[HistoryEntry, ...], reason: Reason) -> None:
    decision = decide(b.facts(history=history, observed=DRIFTED), b.release(), heal=True)
    assert decision.reason == reason
    assert decision.method is (Method.HOLD if reason is Reason.HEAL_LOOP else Method.LIVE_PATCH)


def test_a_vm_that_was_taken_back_has_not_drifted() -> None:
    taken = past(b.NEW)[0].model_copy(update={"takes_back": "op-0"})
    vm = b.facts(history=(taken, *past(b.NEW)))
    assert not decide(vm, b.release()).drift.was_at_release


@pytest.mark.parametrize("reason", ["ManagementPortRuleChanged", "PackagesNeeded", "SomethingOfTomorrow"])
def test_an_obstacle_that_the_comparison_found_holds_the_vm(reason: str) -> None:
    seen = b.observed(version="4.20.2")
    assert seen.content is not None
    content = seen.content.model_copy(update={"obstacles": (Obstacle(reason=reason, message="it would lock you out"),)})
    facts = b.facts(observed=seen.model_copy(update={"content": content}))
    decision = decide(facts, b.release())
    assert decision.method is Method.HOLD
    assert decision.reason is (Reason.NOT_COMPATIBLE if reason == "SomethingOfTomorrow" else Reason(reason))
    assert decision.message == "r-101-VM cannot be live-patched to 4.20.2: it would lock you out"
