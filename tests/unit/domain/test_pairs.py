"""The proof of one PRIMARY: one table of what may be wrong with a pair, and what is then said."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from sysvm.api.methods import LivePatchOptions, Method, PlannedFailover
from sysvm.api.observed import PairSample, RedundancyRole
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import PlannedAction
from sysvm.domain.facts import VMFacts
from sysvm.domain.method import decide
from sysvm.domain.pairs import FRESH, SAMPLES, Proof, Router, Trouble, one_primary, primary_now

from . import builders as b

PRIMARY, BACKUP = RedundancyRole.PRIMARY, RedundancyRole.BACKUP
LAST = b.ago(seconds=5)


def router(role: RedundancyRole, name: str, *, last: datetime = LAST, **values: Any) -> Router:
    """Three samples, 5 s apart; `values` are wrong in the one in the middle."""
    samples = [b.pair_sample(role, last - timedelta(seconds=5 * number)) for number in (2, 1, 0)]
    samples[1] = samples[1].model_copy(update=values)
    return Router(name, tuple(samples))


def gateway(role: RedundancyRole, **values: Any) -> dict[str, Any]:
    found = b.pair_sample(role, LAST).gateways[0]
    return {"gateways": (found.model_copy(update=values),)}


def judged(
    primary: dict[str, Any] | None = None, backup: dict[str, Any] | None = None, **kwargs: Any
) -> Proof | Trouble:
    routers = (router(PRIMARY, "r-1-VM", **(primary or {})), router(BACKUP, "r-2-VM", **(backup or {})))
    return one_primary(routers, now=kwargs.get("now", b.NOW))


def test_a_healthy_pair_is_proven_and_its_primary_named() -> None:
    assert judged() == Proof("r-1-VM", LAST)


LEFT_LOCK = {"conntrackd": False, "conntrackd_lock": "/run/lock/c.lock"}


@pytest.mark.parametrize(
    ("primary", "backup", "reason", "said"),
    [
        ({}, gateway(BACKUP, held=True), Reason.DUPLICATE_PRIMARY, "is on r-1-VM, r-2-VM"),
        (gateway(PRIMARY, held=False), {}, Reason.NO_SINGLE_PRIMARY, "on none of r-1-VM, r-2-VM"),
        ({}, gateway(BACKUP, answers=(b.PRIMARY_MAC, "02:00:00:00:00:07")), Reason.DUPLICATE_PRIMARY, "00:07 answers"),
        ({}, gateway(BACKUP, answers=("02:00:00:00:00:07",)), Reason.DUPLICATE_PRIMARY, "00:07 answers"),
        (gateway(PRIMARY, answers=("02:00:00:00:00:07",)), {}, Reason.DUPLICATE_PRIMARY, "network of r-1-VM"),
        ({}, gateway(BACKUP, answers=()), Reason.NO_SINGLE_PRIMARY, "nobody answers"),
        ({}, gateway(BACKUP, asked=False, answers=()), Reason.PAIR_NOT_SEEN, "nobody could be asked"),
        ({"public_up": False}, {}, Reason.NO_SINGLE_PRIMARY, "public interface is down"),
        ({}, {"public_up": True}, Reason.DUPLICATE_PRIMARY, "up on r-2-VM too"),
        ({"state": BACKUP}, {}, Reason.NO_SINGLE_PRIMARY, "redundant_state BACKUP"),
        ({}, {"state": RedundancyRole.FAULT}, Reason.NO_SINGLE_PRIMARY, "redundant_state FAULT"),
        ({}, {"state": None}, Reason.NO_SINGLE_PRIMARY, "redundant_state UNKNOWN"),
        ({"keepalived": False}, {}, Reason.NO_SINGLE_PRIMARY, "keepalived does not run, or has no gateway: r-1-VM"),
        ({}, {"gateways": ()}, Reason.NO_SINGLE_PRIMARY, "has no gateway: r-2-VM"),
        ({}, {"heartbeat": False}, Reason.NO_SINGLE_PRIMARY, "r-2-VM has not written its heartbeat"),
        ({"conntrackd": False}, {}, Reason.PAIR_NOT_SYNCED, "does not answer on r-1-VM"),
        ({}, LEFT_LOCK, Reason.PAIR_NOT_SYNCED, "r-2-VM: one that was killed has left its lock file /run/lock/c.lock"),
        ({"last": LAST - timedelta(seconds=15)}, {}, Reason.PAIR_NOT_SEEN, "not seen within 5 s"),
        ({"last": LAST - timedelta(seconds=5)}, {}, Reason.PAIR_NOT_SEEN, "not seen within 5 s"),
    ],
)
def test_one_wrong_fact_in_one_of_three_samples_is_no_proof(
    primary: dict[str, Any], backup: dict[str, Any], reason: Reason, said: str
) -> None:
    found = judged(primary, backup)
    assert isinstance(found, Trouble), found
    assert found.reason is reason
    assert said in found.sentence


def test_looks_a_little_apart_still_prove() -> None:
    assert isinstance(judged({"last": LAST - timedelta(seconds=4)}), Proof)


def test_one_look_is_no_proof_and_an_old_one_neither() -> None:
    short = Router("r-1-VM", (b.pair_sample(PRIMARY, LAST),))
    found = one_primary((short, router(BACKUP, "r-2-VM")), now=b.NOW)
    assert isinstance(found, Trouble)
    assert found.reason is Reason.PAIR_NOT_SEEN
    assert str(SAMPLES) in found.sentence
    late = judged(now=LAST + FRESH + timedelta(seconds=1))
    assert isinstance(late, Trouble)
    assert late.reason is Reason.PAIR_NOT_SEEN


def test_a_role_that_moved_while_it_was_looked_at_is_no_proof() -> None:
    """Every moment for itself is in order."""

    def moved(first: RedundancyRole, then: RedundancyRole, mac: str) -> tuple[PairSample, ...]:
        roles = (first, then, then)
        samples = [b.pair_sample(role, LAST - timedelta(seconds=5 * (2 - n))) for n, role in enumerate(roles)]
        return tuple(
            sample.model_copy(
                update={
                    "gateways": tuple(
                        each.model_copy(update={"mac": mac, "answers": () if each.held else (other(mac),)})
                        for each in sample.gateways
                    )
                }
            )
            for sample in samples
        )

    def other(mac: str) -> str:
        return b.BACKUP_MAC if mac == b.PRIMARY_MAC else b.PRIMARY_MAC

    found = one_primary(
        (
            Router("r-1-VM", moved(PRIMARY, BACKUP, b.PRIMARY_MAC)),
            Router("r-2-VM", moved(BACKUP, PRIMARY, b.BACKUP_MAC)),
        ),
        now=b.NOW,
    )
    assert isinstance(found, Trouble)
    assert "moved" in found.sentence


@pytest.mark.parametrize(("flows", "replicated", "synced"), [(40, 0, True), (4000, 3700, True), (4000, 3500, False)])
def test_a_backup_must_know_the_connections_but_not_the_last_few(flows: int, replicated: int, *, synced: bool) -> None:
    def counted(role: RedundancyRole, name: str, **counts: int) -> Router:
        samples = router(role, name).samples
        return Router(name, (*samples[:2], samples[2].model_copy(update=counts)))

    found = one_primary(
        (counted(PRIMARY, "r-1-VM", flows=flows), counted(BACKUP, "r-2-VM", replicated=replicated)), now=b.NOW
    )
    assert isinstance(found, Proof) is synced
    if isinstance(found, Trouble):
        assert found.reason is Reason.PAIR_NOT_SYNCED
        assert "3500 of the 4000" in found.sentence


def test_a_usual_look_judges_by_the_last_sample_and_says_nothing_of_who_was_never_sampled() -> None:
    assert primary_now((router(PRIMARY, "r-1-VM"), router(BACKUP, "r-2-VM"))) == "r-1-VM"
    assert primary_now((router(PRIMARY, "r-1-VM"), Router("r-2-VM", ()))) is None


def needs_failover(role: RedundancyRole) -> VMFacts:
    restart = PlannedAction(name="keepalived", action="Restart", expected_loss="a failover: a second")
    return b.facts(role=role, group="net", actions=(restart,))


def test_a_primary_whose_keepalived_must_restart_is_held_until_a_failover_is_allowed() -> None:
    held = decide(needs_failover(PRIMARY), b.release())
    assert (held.method, held.reason) == (Method.HOLD, Reason.FAILOVER_NOT_ALLOWED)
    assert "a failover: a second" in held.message
    assert "plannedFailover" in held.message
    assert (
        decide(
            needs_failover(PRIMARY), b.release(), live_patch=LivePatchOptions(planned_failover=PlannedFailover.ALLOWED)
        ).method
        is Method.LIVE_PATCH
    )


def test_a_backup_whose_keepalived_must_restart_is_patched() -> None:
    assert decide(needs_failover(BACKUP), b.release()).method is Method.LIVE_PATCH


def test_a_reload_of_keepalived_is_no_failover() -> None:
    facts = b.facts(role=PRIMARY, group="net", actions=(PlannedAction(name="keepalived", action="Reload"),))
    assert decide(facts, b.release()).method is Method.LIVE_PATCH
