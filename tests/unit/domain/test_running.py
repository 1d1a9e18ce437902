"""Ready speaks of services and of the pair, too, not of files alone."""

from datetime import timedelta

import pytest

from sysvm.api.methods import Method
from sysvm.api.observed import RedundancyRole
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.systemvm import DriftKind
from sysvm.domain.conditions import find
from sysvm.domain.facts import VMFacts
from sysvm.domain.method import decide
from sysvm.domain.policy_status import policy_status
from sysvm.domain.running import PAIR_WINDOW, failed_services, in_pairs, must_look_again

from . import builders as b
from .test_policy_status import situation

PRIMARY, BACKUP = RedundancyRole.PRIMARY, RedundancyRole.BACKUP


def pair(first: RedundancyRole, second: RedundancyRole, apart: timedelta = timedelta(0)) -> tuple[VMFacts, VMFacts]:
    at = b.ago(minutes=5)
    one = b.facts("r-1-VM", group="net", observed=b.up_to_date(), redundancy=b.redundancy(first, at))
    two = b.facts("r-2-VM", group="net", observed=b.up_to_date(), redundancy=b.redundancy(second, at - apart))
    return one, two


def test_a_vm_with_every_file_right_and_a_failed_service_is_not_converged() -> None:
    vm = b.facts(observed=b.up_to_date(failed_services=("dnsmasq", "apache2")))
    decision = decide(vm, b.release())
    assert failed_services(vm) == ("apache2", "dnsmasq")
    assert not decision.converged
    assert (decision.method, decision.reason) == (Method.HOLD, Reason.SERVICES_FAILED)
    assert decision.kinds == (DriftKind.SERVICES,)
    assert "apache2, dnsmasq" in decision.message


def test_a_failed_service_does_not_keep_an_old_vm_from_being_patched() -> None:
    decision = decide(b.facts(observed=b.observed(failed_services=("dnsmasq",))), b.release())
    assert decision.method is Method.LIVE_PATCH


def test_a_policy_with_a_failed_service_is_not_ready_and_says_which() -> None:
    status = policy_status(situation(b.facts(observed=b.up_to_date(failed_services=("haproxy",)))), now=b.NOW)
    ready = find(status.conditions, ConditionType.READY)
    assert ready is not None
    assert (ready.status, ready.reason) == ("False", str(Reason.DRIFTED))
    assert "haproxy" in ready.message
    assert status.counts is not None
    assert status.counts.drifted == 1


@pytest.mark.parametrize(
    ("role", "reason", "said"),
    [
        (PRIMARY, Reason.DUPLICATE_PRIMARY, "the guest gateway is on r-1-VM, r-2-VM"),
        (BACKUP, Reason.NO_SINGLE_PRIMARY, "the guest gateway is on none of r-1-VM, r-2-VM"),
    ],
)
def test_a_pair_without_exactly_one_primary_is_not_converged(role: RedundancyRole, reason: Reason, said: str) -> None:
    for vm in in_pairs(pair(role, role)):
        decision = decide(vm, b.release())
        assert decision.reason is reason
        assert said in decision.message


def test_a_pair_with_one_primary_is_converged() -> None:
    assert all(decide(vm, b.release()).converged for vm in in_pairs(pair(PRIMARY, BACKUP)))


def test_roles_seen_far_apart_prove_nothing_and_the_older_is_looked_at_again() -> None:
    newer, older = pair(PRIMARY, PRIMARY, apart=PAIR_WINDOW + timedelta(seconds=1))
    assert all(vm.pair_trouble is None for vm in in_pairs((newer, older)))
    assert must_look_again(older, [newer, older])
    assert not must_look_again(newer, [newer, older])


def test_a_healthy_pair_is_not_looked_at_again_however_far_apart_it_was_seen() -> None:
    newer, older = pair(PRIMARY, BACKUP, apart=timedelta(hours=1))
    assert not must_look_again(older, [newer])


def test_a_pair_in_work_is_not_judged() -> None:
    one, two = pair(BACKUP, BACKUP)
    working = b.facts("r-1-VM", group="net", redundancy=one.redundancy, order=b.order())
    assert all(vm.pair_trouble is None for vm in in_pairs((working, two)))
