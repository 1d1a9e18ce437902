"""Admission: the rules hold in every fleet, and whoever waits is told why."""

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysvm.api.endpoint import Management, SystemVMType
from sysvm.api.methods import Method
from sysvm.api.observed import ContentState, RedundancyRole
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.domain.admission import Admissions, EndpointState, admit
from sysvm.domain.facts import ZONE_TYPES, VMFacts
from sysvm.domain.ledger import RunningRollout
from sysvm.domain.limits import rounded_down
from sysvm.domain.members import classify
from sysvm.domain.rollout import Live

from . import builders as b

PRIMARY, BACKUP = RedundancyRole.PRIMARY, RedundancyRole.BACKUP
WAITING = b.facts  # reachable, compared, outdated


def endpoint_state(*vms: VMFacts, rollouts: tuple[RunningRollout, ...] = (), **kwargs: Any) -> EndpointState:
    values: dict[str, Any] = {"now": b.NOW, "management": Management.FULL, "epoch": b.EPOCH, **kwargs}
    return EndpointState(endpoint=b.ENDPOINT, vms=vms, rollouts=rollouts, **values)


LIVE = ("suspended", "superseded", "opening", "approvals", "cloud_unseen")


def running(*vms: VMFacts, name: str = "routers-1", **kwargs: Any) -> RunningRollout:
    """A rollout whose plan was made before anything began."""
    fresh = [
        replace(
            facts,
            order=None,
            operation=None,
            reach=b.facts().reach,
            hold=None,
            observed=b.observed(),
            content_fresh=True,
        )
        for facts in vms
    ]
    made = b.plan_for(*fresh, policy_name=kwargs.pop("policy_name", "routers"))
    live = Live(**{key: kwargs.pop(key) for key in LIVE if key in kwargs})
    return RunningRollout(b.rollout(made, name, **kwargs), made, live)


def decided(*vms: VMFacts, others: tuple[VMFacts, ...] = (), **kwargs: Any) -> Admissions:
    """One rollout over `vms`; `others` are not in it."""
    strategy = {"maxUnavailable": 10, "perHost": 100, **kwargs.pop("strategy", {})}
    state: dict[str, Any] = {key: kwargs.pop(key) for key in ("management", "deleting") if key in kwargs}
    if "endpoint_suspended" in kwargs:
        state["suspended"] = kwargs.pop("endpoint_suspended")
    return admit(endpoint_state(*vms, *others, rollouts=(running(*vms, strategy=strategy, **kwargs),), **state))


def names(outcome: Admissions) -> list[str]:
    return [admission.vm.vm for admission in outcome.admitted]


def reasons(outcome: Admissions) -> dict[str, str]:
    return {name.removeprefix("prod-"): blockers[0].reason for name, blockers in outcome.blocked.items()}


def failed(**kwargs: Any) -> dict[str, Any]:
    return b.done(OperationResult.ROLLED_BACK, **kwargs)


def at_work(**kwargs: Any) -> dict[str, Any]:
    return {"order": b.order(**kwargs)}


# Orders of a former leader that were never begun


def left_standing(name: str = "r-101-VM", **kwargs: Any) -> VMFacts:
    """As the leader before this one ordered it, and then died."""
    (before,) = decided(b.facts(name, **kwargs)).admitted
    return b.facts(name, order=before.order.model_copy(update={"epoch": b.EPOCH - 1}), **kwargs)


def test_an_order_that_would_be_given_again_word_for_word_may_begin() -> None:
    vm = left_standing()
    outcome = decided(vm)
    assert vm.order is not None
    assert (outcome.confirmed, outcome.admitted, outcome.withdrawn) == (frozenset({vm.order.id}), (), ())


def test_so_is_the_next_try_of_a_vm_that_failed() -> None:
    """Its id, which names the journal on the VM, is not the one of the try before."""
    retry = {"retry": {"limit": 3, "backoff": "1s", "reasons": ["SSHTimeout"]}}
    ended = b.operation(OperationResult.FAILED, id="first").model_copy(update={"reason": "SSHTimeout"})
    failed_once = b.facts(order=b.order(id="first"), operation=ended)
    (second,) = decided(failed_once, strategy=retry).admitted
    vm = replace(failed_once, order=second.order.model_copy(update={"epoch": b.EPOCH - 1}))
    assert second.order.attempt == 2
    assert decided(vm, strategy=retry).confirmed == {second.order.id}
    (again,) = decided(replace(vm, order=None), strategy=retry).admitted
    assert again.order == second.order, "also once it was withdrawn"


@pytest.mark.parametrize(
    ("why", "kwargs"),
    [
        (Reason.OBSERVE_ONLY, {"management": Management.OBSERVE}),
        (Reason.SUSPENDED, {"endpoint_suspended": True}),
        (Reason.DELETING, {"deleting": True}),
    ],
)
def test_an_order_that_would_not_be_given_now_is_withdrawn(why: Reason, kwargs: dict[str, Any]) -> None:
    vm = left_standing()
    outcome = decided(vm, **kwargs)
    assert [facts.name for facts in outcome.withdrawn] == [vm.name]
    assert (outcome.confirmed, outcome.admitted, reasons(outcome)) == (frozenset(), (), {"r-101-vm": why})


def test_before_the_first_sweep_it_is_only_withdrawn_where_people_have_stopped_it() -> None:
    vm = left_standing()
    undecided = decided(vm, cloud_unseen=True)
    assert (undecided.confirmed, undecided.admitted, undecided.withdrawn) == (frozenset(), (), ())
    assert decided(vm, cloud_unseen=True, management=Management.OBSERVE).withdrawn == (vm,)
    assert decided(vm, cloud_unseen=True, suspended="policy routers is suspended").withdrawn == (vm,)


def test_so_is_one_whose_rollout_is_no_more() -> None:
    vm = left_standing()
    outcome = admit(endpoint_state(vm))
    assert (outcome.withdrawn, outcome.admitted) == ((vm,), ())


def test_an_order_for_something_else_is_given_anew() -> None:
    vm = left_standing()
    assert vm.order is not None
    other = replace(vm, order=vm.order.model_copy(update={"deadline": b.NOW}))
    (admitted,) = (outcome := decided(other)).admitted
    assert (outcome.confirmed, outcome.withdrawn) == (frozenset(), ())
    assert (admitted.order.id, admitted.order.deadline, admitted.order.epoch) == (vm.order.id, None, b.EPOCH)


def test_what_has_begun_goes_on_whatever_would_be_decided_now() -> None:
    vm = left_standing()
    assert vm.order is not None
    vm = replace(vm, operation=b.operation(None, id=vm.order.id))
    outcome = decided(vm, management=Management.OBSERVE)
    assert (outcome.confirmed, outcome.withdrawn, outcome.admitted) == (frozenset(), (), ())


def test_so_does_a_call_that_the_rollout_tells_of_and_the_vm_does_not_yet() -> None:
    vm = left_standing()
    assert vm.order is not None
    order = vm.order.model_copy(update={"method": Method.RECREATE})
    vm = replace(vm, order=order)
    assert decided(vm, management=Management.OBSERVE).withdrawn == (vm,)
    told = endpoint_state(vm, management=Management.OBSERVE, called_for=frozenset({order.id}))
    assert admit(told).withdrawn == ()


def test_no_more_begin_than_would_be_given() -> None:
    """The budget has become smaller while nobody led."""
    vms = [left_standing(f"r-{n}-VM") for n in range(4)]
    outcome = decided(*vms, strategy={"maxUnavailable": 1})
    assert (len(outcome.confirmed), len(outcome.withdrawn), outcome.admitted) == (1, 3, ())


# One rule after the other


def test_an_order_says_everything_and_is_the_same_when_decided_again() -> None:
    one, two = decided(b.facts()), decided(b.facts())
    assert one == two
    (admission,) = one.admitted
    assert admission.order.rollout == "routers-1"
    assert admission.order.revision == b.NEW
    assert admission.order.template == "systemvm-4.20.2"
    assert (admission.order.attempt, admission.order.epoch) == (1, b.EPOCH)
    again = decided(
        b.facts(
            order=b.order("routers-0", id="op-0"), operation=b.operation(OperationResult.FAILED, "routers-0", id="op-0")
        )
    )
    assert again.admitted[0].order.id == admission.order.id


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"management": Management.OBSERVE}, Reason.OBSERVE_ONLY),
        ({"endpoint_suspended": True}, Reason.SUSPENDED),
        ({"deleting": True}, Reason.DELETING),
        ({"suspended": "policy routers is suspended"}, Reason.SUSPENDED),
        ({"superseded": True}, Reason.SUPERSEDED),
        ({"state": "Paused"}, Reason.PAUSED),
        ({"state": "Aborted"}, Reason.ABORTED),
        ({"metadata": {"deletionTimestamp": b.NOW}}, Reason.DELETING),
    ],
)
def test_a_closed_gate_admits_nothing_and_says_so(kwargs: dict[str, Any], reason: Reason) -> None:
    outcome = decided(b.facts(), **kwargs)
    assert not outcome.admitted
    assert reasons(outcome) == {"r-101-vm": reason}


@pytest.mark.parametrize(
    ("limit", "of", "count"), [(1, 9, 1), (3, 9, 3), ("5%", 19, 1), ("5%", 812, 40), ("100%", 7, 7), ("1%", 0, 1)]
)
def test_a_percentage_is_rounded_down_and_at_least_one(limit: int | str, of: int, count: int) -> None:
    assert rounded_down(limit, of) == count


def test_max_unavailable_counts_the_vms_in_work() -> None:
    outcome = decided(
        b.facts("r-1-VM", **at_work()), b.facts("r-2-VM"), b.facts("r-3-VM"), strategy={"maxUnavailable": 2}
    )
    assert names(outcome) == ["r-2-VM"]
    assert reasons(outcome) == {"r-3-vm": Reason.WAITING_FOR_SLOT}


def test_per_host_counts_over_all_rollouts() -> None:
    others = (b.facts("r-9-VM", host="rack-3", **at_work(rollout="other-1")),)
    outcome = decided(
        b.facts("r-1-VM", host="rack-3"),
        b.facts("r-2-VM", host="rack-3"),
        b.facts("r-3-VM"),
        others=others,
        strategy={"perHost": 2},
    )
    assert names(outcome) == ["r-1-VM", "r-3-VM"]
    assert reasons(outcome) == {"r-2-vm": Reason.WAITING_FOR_HOST}


def test_one_failed_vm_stops_its_rollout_and_no_other() -> None:
    bad, waiting, elsewhere = b.facts("r-1-VM", **failed()), b.facts("r-2-VM"), b.facts("r-3-VM")
    outcome = admit(
        endpoint_state(
            bad,
            waiting,
            elsewhere,
            rollouts=(running(bad, waiting), running(elsewhere, name="other-1", policy_name="other")),
        )
    )
    assert names(outcome) == ["r-3-VM"]
    assert reasons(outcome) == {"r-2-vm": Reason.VM_FAILED}
    assert "dnsmasq: bad option at line 3" in outcome.blocked["prod-r-2-vm"][0].message


def test_a_failure_of_an_earlier_rollout_does_not_stop_this_one() -> None:
    assert names(decided(b.facts(**failed(rollout="routers-0", revision=b.OTHER)))) == ["r-101-VM"]


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (at_work(rollout="other-1"), Reason.WAITING_FOR_GROUP),
        ({"reach": b.UNREACHABLE}, Reason.PEER_UNHEALTHY),
        ({"observed": None}, Reason.PEER_UNHEALTHY),
        ({"observed": b.up_to_date(failed_services=("haproxy",))}, Reason.PEER_UNHEALTHY),
        (
            {"observed": b.observed(signature=b.ZEROS), **b.done(OperationResult.INCONSISTENT, rollout="x")},
            Reason.PEER_UNHEALTHY,
        ),
        ({"observed": b.up_to_date()}, None),
        ({"observed": b.up_to_date(), "hold": b.HOLD}, None),
    ],
)
def test_a_peer_that_could_not_take_over_keeps_the_others_from_work(
    peer: dict[str, Any], reason: Reason | None
) -> None:
    outcome = decided(b.facts("r-1-VM", group="edge"), others=(b.facts("r-2-VM", group="edge", **peer),))
    assert reasons(outcome) == ({} if reason is None else {"r-1-vm": reason})
    assert names(outcome) == (["r-1-VM"] if reason is None else [])


def test_a_single_ssvm_is_patched_but_never_the_last_healthy_of_several() -> None:
    ssvm = SystemVMType.SECSTORAGE
    assert names(decided(b.facts("s-1-VM", type=ssvm))) == ["s-1-VM"]
    ill = b.facts("s-2-VM", type=ssvm, reach=b.UNREACHABLE)
    outcome = decided(b.facts("s-1-VM", type=ssvm), others=(ill,))
    assert reasons(outcome) == {"s-1-vm": Reason.LAST_OF_ZONE}
    assert names(decided(b.facts("s-1-VM", type=ssvm), others=(replace(ill, reach=b.facts().reach),))) == ["s-1-VM"]
    elsewhere = b.facts("s-3-VM", type=ssvm, zone="ams-2", reach=b.UNREACHABLE)
    assert names(decided(b.facts("s-1-VM", type=ssvm), others=(elsewhere,))) == ["s-1-VM"]


def pair(backup: dict[str, Any] | None = None, primary: dict[str, Any] | None = None) -> tuple[VMFacts, VMFacts]:
    return (
        b.facts("r-1-VM", group="edge", **{"role": PRIMARY, **(primary or {})}),
        b.facts("r-2-VM", group="edge", **{"role": BACKUP, **(backup or {})}),
    )


def test_the_backup_goes_first() -> None:
    outcome = decided(*pair())
    assert names(outcome) == ["r-2-VM"]
    assert reasons(outcome) == {"r-1-vm": Reason.WAITING_FOR_GROUP}


def test_the_primary_waits_even_if_the_backup_has_no_slot() -> None:
    outcome = decided(*pair(), b.facts("r-0-VM", **at_work()), strategy={"maxUnavailable": 1})
    assert not outcome.admitted
    assert reasons(outcome) == {"r-1-vm": Reason.BACKUP_FIRST, "r-2-vm": Reason.WAITING_FOR_SLOT}


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        ((PRIMARY, PRIMARY), Reason.DUPLICATE_PRIMARY),
        ((BACKUP, BACKUP), Reason.NO_SINGLE_PRIMARY),
        ((PRIMARY, RedundancyRole.UNKNOWN), Reason.NO_SINGLE_PRIMARY),
        ((PRIMARY, None), Reason.PAIR_NOT_SEEN),
    ],
)
def test_without_exactly_one_primary_neither_goes(
    roles: tuple[RedundancyRole, RedundancyRole | None], reason: Reason
) -> None:
    outcome = decided(*pair(backup={"role": roles[1]}, primary={"role": roles[0]}))
    assert set(reasons(outcome).values()) == {reason}
    assert outcome.look_at == {"prod-r-1-vm", "prod-r-2-vm"}


def test_a_proof_that_is_minutes_old_is_taken_again_before_anything_begins() -> None:
    """Of both, because only what is seen together proves anything."""
    old = b.ago(minutes=5)
    outcome = decided(
        *pair(primary={"redundancy": b.redundancy(PRIMARY, old)}, backup={"redundancy": b.redundancy(BACKUP, old)})
    )
    assert reasons(outcome) == {"r-1-vm": Reason.BACKUP_FIRST, "r-2-vm": Reason.PAIR_NOT_SEEN}
    assert outcome.look_at == {"prod-r-1-vm", "prod-r-2-vm"}


def test_a_pair_that_waits_for_a_slot_is_not_looked_at_all_the_time() -> None:
    old = b.ago(minutes=5)
    waiting = pair(primary={"redundancy": b.redundancy(PRIMARY, old)}, backup={"redundancy": b.redundancy(BACKUP, old)})
    outcome = decided(*waiting, b.facts("r-0-VM", **at_work()), strategy={"maxUnavailable": 1})
    assert reasons(outcome)["r-2-vm"] == Reason.WAITING_FOR_SLOT
    assert not outcome.look_at


ENDED = b.ago(seconds=40)
LATER = b.ago(seconds=20)


@pytest.mark.parametrize(
    ("primary_seen", "backup_seen", "backup_now", "goes", "look_at"),
    [
        (LATER, LATER, b.up_to_date(at=LATER), True, set()),
        (ENDED, LATER, b.up_to_date(at=LATER), False, {"prod-r-1-vm"}),
        (LATER, ENDED, b.up_to_date(at=LATER), False, {"prod-r-2-vm"}),
        (LATER, LATER, b.up_to_date(at=ENDED), False, {"prod-r-2-vm"}),
        (LATER, LATER, b.observed(at=LATER), False, {"prod-r-2-vm"}),
        (LATER, LATER, b.observed(at=LATER, files=ContentState.UNKNOWN), False, {"prod-r-2-vm"}),
    ],
)
def test_the_primary_goes_only_after_the_patched_backup_was_seen_whole(
    primary_seen: Any, backup_seen: Any, backup_now: Any, look_at: set[str], *, goes: bool
) -> None:
    first, second = pair(
        primary={"redundancy": b.redundancy(PRIMARY, primary_seen), "observed": b.observed(at=primary_seen)},
        backup={"redundancy": b.redundancy(BACKUP, backup_seen), "observed": backup_now, **b.done(ended=ENDED)},
    )
    outcome = decided(first, second)
    assert names(outcome) == (["r-1-VM"] if goes else [])
    assert outcome.look_at == look_at


def test_a_pair_whose_roles_changed_hands_still_ends() -> None:
    """The BACKUP took over when it was patched: the one that is left is the BACKUP now, and goes."""
    first, second = pair(
        primary={"redundancy": b.redundancy(BACKUP, LATER), "observed": b.observed(at=LATER)},
        backup={"redundancy": b.redundancy(PRIMARY, LATER), "observed": b.up_to_date(at=LATER), **b.done(ended=ENDED)},
    )
    assert names(decided(first, second)) == ["r-1-VM"]


def test_a_backup_on_hold_does_not_keep_the_primary_for_ever() -> None:
    first, second = pair(backup={"hold": b.HOLD})
    assert names(decided(first, second)) == ["r-1-VM"]


def test_a_vm_whose_files_are_not_known_any_more_is_looked_at_first() -> None:
    outcome = decided(b.facts(content_fresh=False))
    assert reasons(outcome) == {"r-101-vm": Reason.NOT_OBSERVED}
    assert outcome.look_at == {"prod-r-101-vm"}


def test_a_vm_in_work_for_an_older_rollout_is_not_ordered_twice_and_holds_a_slot() -> None:
    busy, other = b.facts("r-1-VM", **at_work(rollout="routers-0", id="op-0")), b.facts("r-2-VM")
    old = running(busy, other, name="routers-0", superseded=True, created=b.ago(hours=3))
    outcome = admit(endpoint_state(busy, other, rollouts=(running(busy, other), old)))
    assert not outcome.admitted
    assert reasons(outcome) == {"r-1-vm": Reason.IN_WORK, "r-2-vm": Reason.WAITING_FOR_SLOT}


# Every fleet

zone_type = st.sampled_from(sorted(ZONE_TYPES))


@st.composite
def fleets(draw: st.DrawFn) -> list[VMFacts]:
    found = []
    for number in range(draw(st.integers(1, 14))):
        kind = draw(st.sampled_from([SystemVMType.ROUTER] * 3 + sorted(ZONE_TYPES)))
        router = kind is SystemVMType.ROUTER
        group = draw(st.sampled_from(["a", "b", "c", None])) if router else None
        past = draw(
            st.sampled_from(
                [{}] * 6
                + [at_work(rollout=name) for name in ("routers-1", "other-1", "old-1")]
                + [b.done(rollout=name, ended=ENDED) for name in ("routers-1", "other-1")]
                + [failed(rollout="old-1"), b.done(OperationResult.INCONSISTENT, rollout="old-1")]
                + ([failed(rollout="routers-1")] if draw(st.integers(0, 5)) == 0 else [])
            )
        )
        found.append(
            b.facts(
                f"r-{number}-VM",
                type=kind,
                zone=draw(st.sampled_from(["ams-1", "ams-2", None])),
                group=group,
                host=draw(st.sampled_from(["rack-1", "rack-2", None])),
                role=draw(st.sampled_from([PRIMARY, BACKUP, BACKUP, None])) if group else None,
                priority=draw(st.sampled_from([100, 100, 5])),
                hold=draw(st.sampled_from([None] * 5 + [b.HOLD])),
                reach=draw(st.sampled_from([b.facts().reach] * 6 + [b.UNREACHABLE])),
                observed=draw(st.sampled_from([b.observed()] * 3 + [b.up_to_date(), b.observed(at=ENDED)])),
                **past,
            )
        )
    return found


limits = st.sampled_from([1, 2, 5, "20%", "100%"])


@given(
    fleet=fleets(),
    limit=limits,
    per_host=st.integers(1, 3),
    cut=st.integers(0, 14),
    random=st.randoms(use_true_random=False),
)
def test_no_fleet_breaks_a_rule(fleet: list[VMFacts], limit: int | str, per_host: int, cut: int, random: Any) -> None:
    strategy = {"maxUnavailable": limit, "perHost": per_host}
    lanes = tuple(
        running(*part, name=name, strategy=strategy, policy_name=name[:-2])
        for part, name in ((fleet[:cut], "routers-1"), (fleet[cut:], "other-1"))
        if part
    )
    state = endpoint_state(*fleet, rollouts=lanes)
    outcome = admit(state)

    shuffled = list(fleet)
    random.shuffle(shuffled)
    assert admit(replace(state, vms=tuple(shuffled), rollouts=lanes[::-1])) == outcome

    new = {admission.vm.name for admission in outcome.admitted}
    assert len(new) == len(outcome.admitted)
    before = {facts.name for facts in fleet if facts.in_work}
    after = before | new
    by_name = {facts.name: facts for facts in fleet}
    assert not new & before
    for name in new:
        assert by_name[name].reachable
        assert by_name[name].hold is None
        assert not by_name[name].inconsistent
        assert name not in outcome.blocked

    for group in {facts.identity.group for facts in fleet if facts.identity and facts.identity.group}:
        members = [facts for facts in fleet if facts.identity and facts.identity.group == group]
        fresh = [facts for facts in members if facts.name in new]
        assert len(fresh) <= 1
        if not fresh:
            continue
        others = [facts for facts in members if facts is not fresh[0]]
        assert not any(facts.name in before or facts.unreachable or facts.inconsistent for facts in others)
        if any(facts.role for facts in members):
            assert [facts.role for facts in members].count(PRIMARY) == 1
            if fresh[0].role is PRIMARY:
                assert not _waiting(lanes, by_name) & {facts.name for facts in others}

    for kind in ZONE_TYPES:
        for zone in ("ams-1", "ams-2", None):
            members = [f for f in fleet if f.identity and (f.identity.type, f.identity.zone) == (kind, zone)]
            fresh = [facts for facts in members if facts.name in new]
            assert len(fresh) <= 1
            if fresh and len(members) > 1:
                assert any(facts.healthy and facts.name not in after for facts in members)

    hosts_before = Counter(by_name[name].host for name in before)
    for host, count in Counter(by_name[name].host for name in after).items():
        assert host is None or count <= max(per_host, hosts_before[host])

    for lane in lanes:
        view = classify(lane.rollout, lane.plan, by_name)
        own = {entry.name for entry in lane.plan.entries}
        used = (own & after) | {facts.name for facts in view.failed}
        had = (own & before) | {facts.name for facts in view.failed}
        assert len(used) <= max(rounded_down(limit, lane.plan.applicable), len(had))
        if view.failed:
            assert not own & new
        assert {facts.name for facts in view.waiting} - new <= set(outcome.blocked)


def _waiting(lanes: tuple[RunningRollout, ...], vms: dict[str, VMFacts]) -> set[str]:
    return {facts.name for lane in lanes for facts in classify(lane.rollout, lane.plan, vms).waiting}


@given(roles=st.lists(st.sampled_from(["pair", "single", "ssvm"]), min_size=1, max_size=5), limit=limits)
def test_a_healthy_fleet_ends_patched_with_every_primary_after_its_backup(roles: list[str], limit: int | str) -> None:
    """Admit, let everything succeed, look again, until nothing is left."""
    fleet: dict[str, VMFacts] = {}
    for number, kind in enumerate(roles):
        made = {
            "pair": [
                b.facts(f"r-{number}p-VM", group=f"g{number}", role=PRIMARY),
                b.facts(f"r-{number}b-VM", group=f"g{number}", role=BACKUP),
            ],
            "single": [b.facts(f"r-{number}-VM")],
            "ssvm": [b.facts(f"s-{number}-VM", type=SystemVMType.SECSTORAGE)],
        }[kind]
        fleet.update({facts.name: facts for facts in made})
    lane = running(*fleet.values(), strategy={"maxUnavailable": limit, "perHost": 2})
    moment, order = b.NOW, []
    for _ in range(4 * len(fleet)):
        outcome = admit(endpoint_state(*fleet.values(), rollouts=(lane,)))
        for admission in outcome.admitted:
            order.append(admission.vm.name)
            ended = b.operation(OperationResult.SUCCEEDED, id=admission.order.id, ended=moment)
            fleet[admission.vm.name] = replace(admission.vm, order=admission.order, operation=ended)
        moment += timedelta(seconds=2)
        for name, facts in fleet.items():
            seen = b.up_to_date(at=moment) if facts.operation else b.observed(at=moment)
            pair = b.redundancy(facts.role, moment) if facts.role else None
            fleet[name] = replace(facts, observed=seen, redundancy=pair)
    assert sorted(order) == sorted(fleet)
    for name in order:
        if name.endswith("p-vm"):
            assert order.index(name.replace("p-vm", "b-vm")) < order.index(name)
    assert not classify(lane.rollout, lane.plan, fleet).waiting
