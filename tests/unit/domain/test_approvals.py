"""An approval opens exactly what was looked at, and nothing else does."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.unit.domain.builders import NOW, ago, facts, plan_for, rollout

from sysvm.api.approval import RolloutApproval
from sysvm.api.reasons import Reason
from sysvm.api.rollout import BreakGlass, BreakGlassStatus, Rollout, RolloutStatus
from sysvm.domain.approvals import (
    BREAK_GLASS_LIMIT,
    WaveGate,
    approval_status,
    glass_broken_until,
    standing,
    wave_gate,
)

DIGEST = "sha256:" + "ab" * 32
OTHER_DIGEST = "sha256:" + "cd" * 32
DIGESTS = {"canary": OTHER_DIGEST, "rest": DIGEST}


def the_rollout() -> Rollout:
    return rollout(plan_for(facts()), created=ago(hours=1))


def approval(name: str = "a", *, made: datetime | None = None, **spec: Any) -> RolloutApproval:
    return RolloutApproval.model_validate(
        {
            "metadata": {"name": name, "creationTimestamp": made or ago(minutes=5), "generation": 1},
            "spec": {
                "rolloutRef": {"name": "routers-1"},
                "wave": "rest",
                "waveDigest": DIGEST,
                "decision": "Approved",
                "approver": "alice",
                **spec,
            },
        }
    )


def gate(*approvals: RolloutApproval, guarded: bool = True, now: datetime = NOW) -> WaveGate:
    return wave_gate(the_rollout(), "rest", DIGESTS, approvals, now, guarded=guarded)


def test_a_wave_waits_and_says_which_digest_must_be_approved() -> None:
    found = gate()
    assert not found.open
    assert found.reason is Reason.WAITING_FOR_APPROVAL
    assert DIGEST in found.message


def test_an_approval_of_the_digest_opens_the_wave() -> None:
    found = gate(approval())
    assert found.open
    assert not found.skip_soak
    assert found.until is None
    assert "approved by alice" in found.message


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"waveDigest": OTHER_DIGEST}, Reason.APPROVAL_VOID),
        ({"wave": "last"}, Reason.WAVE_NOT_FOUND),
        ({"expiresAt": NOW}, Reason.APPROVAL_EXPIRED),
    ],
)
def test_what_was_not_looked_at_is_not_approved(spec: dict[str, Any], reason: Reason) -> None:
    found = standing(approval(**spec), the_rollout(), DIGESTS, NOW, guarded=True)
    assert not found.counts
    assert found.reason is reason
    assert not gate(approval(**spec)).open


def test_an_approval_of_another_rollout_does_not_count() -> None:
    assert not gate(approval(rolloutRef={"name": "routers-2"})).open


def test_an_approval_that_was_there_before_its_rollout_was_never_about_it() -> None:
    early = approval(made=ago(hours=2))
    assert standing(early, the_rollout(), DIGESTS, NOW, guarded=True).reason is Reason.APPROVAL_VOID
    assert not gate(early).open


def test_nothing_counts_where_nothing_proves_the_approver() -> None:
    found = gate(approval(), guarded=False)
    assert not found.open
    assert "admissionPolicies.enabled" in found.message


def test_one_rejection_outweighs_every_approval_until_it_expires() -> None:
    rejected = approval("b", decision="Rejected", approver="bob", comment="CHG-9", expiresAt=NOW + timedelta(hours=1))
    found = gate(approval("a"), rejected, approval("c"))
    assert not found.open
    assert found.reason is Reason.REJECTED
    assert "bob" in found.message
    assert "CHG-9" in found.message
    assert found.until == NOW + timedelta(hours=1)
    assert gate(approval("a"), rejected, now=NOW + timedelta(hours=1)).open


def test_an_open_gate_says_when_it_closes_by_itself() -> None:
    soon, later = NOW + timedelta(minutes=1), NOW + timedelta(hours=1)
    assert gate(approval("a", expiresAt=soon), approval("b", expiresAt=later)).until == later
    assert gate(approval("a", expiresAt=soon), approval("b")).until is None
    assert not gate(approval("a", expiresAt=soon), now=soon).open


def test_the_soak_is_skipped_only_when_somebody_says_so() -> None:
    assert gate(approval("a"), approval("b", skipSoak=True)).skip_soak
    assert not gate(approval("a"), approval("b", skipSoak=True, waveDigest=OTHER_DIGEST)).skip_soak


def test_the_sentence_of_a_closed_gate_names_the_approval_that_does_not_count() -> None:
    found = gate(approval("mine", waveDigest=OTHER_DIGEST))
    assert "mine does not count" in found.message


def test_its_status_tells_a_void_one_from_one_that_is_early() -> None:
    def kinds(found_rollout: Rollout | None, **spec: Any) -> dict[str, str]:
        one = approval(**spec)
        found = standing(one, found_rollout, DIGESTS, NOW, guarded=True)
        status = approval_status(one, found, ended=False, requested=None, now=NOW)
        return {condition.type: condition.status for condition in status.conditions}

    assert kinds(the_rollout()) == {"Ready": "True"}
    assert kinds(the_rollout(), waveDigest=OTHER_DIGEST) == {"Ready": "False", "Stalled": "True"}
    assert kinds(None) == {"Ready": "False"}


class TestBreakGlass:
    def broken(self, *, until: datetime, since: datetime | None, reason: str = "INC-77") -> Rollout:
        the = the_rollout()
        seen = BreakGlassStatus(reason=reason, since=since) if since is not None else None
        return the.model_copy(
            update={
                "spec": the.spec.model_copy(update={"break_glass": BreakGlass(reason="INC-77", until=until)}),
                "status": RolloutStatus(break_glass=seen),
            }
        )

    def test_nothing_is_ignored_without_a_wish(self) -> None:
        assert glass_broken_until(the_rollout(), NOW, guarded=True) is None

    def test_the_wish_counts_once_its_beginning_is_stored(self) -> None:
        until = NOW + timedelta(hours=1)
        assert glass_broken_until(self.broken(until=until, since=None), NOW, guarded=True) is None
        assert glass_broken_until(self.broken(until=until, since=NOW), NOW, guarded=True) == until
        assert glass_broken_until(self.broken(until=until, since=NOW), until, guarded=True) is None

    def test_twelve_hours_are_the_most(self) -> None:
        broken = self.broken(until=NOW + timedelta(days=9), since=ago(hours=11))
        assert glass_broken_until(broken, NOW, guarded=True) == ago(hours=11) + BREAK_GLASS_LIMIT
        assert glass_broken_until(broken, NOW + timedelta(hours=1), guarded=True) is None

    def test_another_reason_begins_anew(self) -> None:
        broken = self.broken(until=NOW + timedelta(hours=1), since=NOW, reason="INC-76")
        assert glass_broken_until(broken, NOW, guarded=True) is None

    def test_it_does_not_count_where_nothing_proves_who_asked(self) -> None:
        broken = self.broken(until=NOW + timedelta(hours=1), since=NOW)
        assert glass_broken_until(broken, NOW, guarded=False) is None
