"""The plan: complete, ordered, and the same to the byte."""

import gzip
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method
from sysvm.api.observed import RedundancyRole
from sysvm.api.rollout import AppendedVM
from sysvm.domain.facts import VMFacts
from sysvm.domain.planner import Plan, UnreadablePlanError, digest_with, plan

from . import builders as b

PRIMARY, BACKUP = RedundancyRole.PRIMARY, RedundancyRole.BACKUP

seen = st.sampled_from(
    [b.observed(), b.up_to_date(), b.observed(version="4.15.0"), b.observed(signature=b.ZEROS), None]
)
vms = st.lists(
    st.builds(
        lambda number, group, role, priority, what, hold: b.facts(
            f"r-{number}-VM", group=group, role=role, priority=priority, observed=what, hold=hold
        ),
        st.integers(1, 40),
        st.sampled_from([None, "a", "b", "é"]),
        st.sampled_from([None, *RedundancyRole]),
        st.sampled_from([1, 100, 100, 200]),
        seen,
        st.sampled_from([None, None, b.HOLD]),
    ),
    max_size=12,
    unique_by=lambda facts: facts.name,
)


@given(fleet=vms, random=st.randoms(use_true_random=False))
def test_the_order_of_the_input_changes_nothing(fleet: list[VMFacts], random: object) -> None:
    shuffled = list(fleet)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, two = b.plan_for(*fleet), b.plan_for(*shuffled)
    assert one.encode() == two.encode()
    assert one.digest == two.digest


@given(fleet=vms)
def test_what_is_encoded_is_decoded(fleet: list[VMFacts]) -> None:
    made = b.plan_for(*fleet)
    again = Plan.decode(made.encode(), made.digest)
    assert again == made
    assert again.digest == made.digest


@given(fleet=vms)
def test_groups_stay_together_with_the_backup_first_and_the_primary_last(fleet: list[VMFacts]) -> None:
    made = b.plan_for(*fleet)
    by_name = {facts.name: facts for facts in fleet}
    members = [by_name[name] for name in made.members]
    for group in {facts.group for facts in members if facts.group}:
        places = [place for place, facts in enumerate(members) if facts.group == group]
        assert places == list(range(places[0], places[0] + len(places)))
        roles = [members[place].role for place in places]
        assert [role is PRIMARY for role in roles] == sorted(role is PRIMARY for role in roles)
        assert [role is not BACKUP for role in roles] == sorted(role is not BACKUP for role in roles)
    assert {facts.name for facts in members} == {
        entry.name for entry in made.entries if entry.method is Method.LIVE_PATCH
    }


limits = st.lists(st.one_of(st.integers(1, 9), st.sampled_from(["1%", "10%", "34%", "100%"])), max_size=4)


def waves_of(limits: list[int | str]) -> dict[str, object]:
    """A strategy with so many limited waves and one that takes the rest."""
    return {"waves": [*({"name": f"w{place}", "limit": limit} for place, limit in enumerate(limits)), {"name": "rest"}]}


@given(fleet=vms, limits=limits)
def test_every_vm_that_gets_work_is_in_exactly_one_wave(fleet: list[VMFacts], limits: list[int | str]) -> None:
    made = b.plan_for(*fleet, strategy=waves_of(limits))
    assert made.members == b.plan_for(*fleet).members
    assert len(set(made.members)) == len(made.members)
    assert [wave.name for wave in made.waves] in ([], [*(f"w{place}" for place in range(len(limits))), "rest"])


@given(fleet=vms, limits=limits)
def test_routers_of_one_group_are_never_split_by_a_wave(fleet: list[VMFacts], limits: list[int | str]) -> None:
    made = b.plan_for(*fleet, strategy=waves_of(limits))
    for wave in made.waves:
        for group in {made.entry(name).group for name in wave.members} - {None}:
            everywhere = {entry.name for entry in made.entries if entry.group == group} & set(made.members)
            assert everywhere <= set(wave.members)


@given(fleet=vms, limits=limits)
def test_a_wave_stays_within_its_limit_unless_its_first_group_alone_is_larger(
    fleet: list[VMFacts], limits: list[int | str]
) -> None:
    made = b.plan_for(*fleet, strategy=waves_of(limits))
    for wave, limit in zip(made.waves, limits, strict=False):
        room = limit if isinstance(limit, int) else math.ceil(len(made.members) * int(limit[:-1]) / 100)
        alone = len({made.entry(name).group or name for name in wave.members}) == 1
        assert len(wave.members) <= room or (alone and "is not split" in wave.note)


def test_the_ssvms_of_a_zone_may_be_in_different_waves() -> None:
    ssvms = [b.facts(f"s-{number}-VM", type=SystemVMType.SECSTORAGE) for number in (1, 2, 3)]
    canary, rest = b.plan_for(*ssvms, strategy=waves_of([1])).waves
    assert (len(canary.members), len(rest.members)) == (1, 2)


def test_a_wave_that_selects_nothing_is_told() -> None:
    first, second, rest = b.plan_for(b.facts("r-1-VM"), b.facts("r-2-VM"), strategy=waves_of([2, "10%"])).waves
    assert (len(first.members), first.note) == (2, "")
    assert second.note == "wave w1 selects no VM: the waves before it take all"
    assert rest.members == ()


def test_ten_percent_of_five_vms_is_one_vm() -> None:
    canary, rest = b.plan_for(*(b.facts(f"r-{number}-VM") for number in range(5)), strategy=waves_of(["10%"])).waves
    assert (len(canary.members), len(rest.members)) == (1, 4)


def test_a_vm_that_appears_later_makes_another_wave_digest() -> None:
    (wave,) = b.plan_for(b.facts()).waves
    one, two = AppendedVM(name="r-7-vm", uid="u7"), AppendedVM(name="r-7-vm", uid="u8")
    assert digest_with(wave, ()) == wave.digest
    assert len({wave.digest, digest_with(wave, [one]), digest_with(wave, [two]), digest_with(wave, [one, two])}) == 4


def test_the_order_may_leave_priorities_out() -> None:
    made = b.plan_for(b.facts("r-2-VM"), b.facts("r-9-VM", priority=1), strategy={"order": ["name"]})
    assert made.members == ("prod-r-2-vm", "prod-r-9-vm")


def test_priority_then_name_decides_among_the_rest() -> None:
    made = b.plan_for(b.facts("r-3-VM"), b.facts("r-2-VM"), b.facts("r-9-VM", priority=1))
    assert made.members == ("prod-r-9-vm", "prod-r-2-vm", "prod-r-3-vm")
    assert [entry.vm for entry in made.entries] == ["r-2-VM", "r-3-VM", "r-9-VM"]


def test_everything_else_is_in_the_plan_but_gets_no_work() -> None:
    excluded = b.facts("r-4-VM")
    made = b.plan_for(
        b.facts("r-1-VM", observed=b.up_to_date()),
        b.facts("r-2-VM", hold=b.HOLD),
        b.facts("r-3-VM", content_fresh=False),
        excluded,
        b.facts("r-5-VM", reach=b.UNREACHABLE),
        excluded={excluded.name: ""},
    )
    assert made.is_empty
    assert not made.waves
    assert len(made.entries) == 5
    assert made.applicable == 3


def test_another_decision_is_another_wave_digest() -> None:
    one = b.plan_for(b.facts())
    two = b.plan_for(b.facts(observed=b.observed(changed=4)))
    assert one.members == two.members
    assert one.waves[0].digest != two.waves[0].digest


def test_the_only_ssvm_of_its_zone_is_named_as_such() -> None:
    alone = b.facts("s-1-VM", type=SystemVMType.SECSTORAGE)
    (entry,) = b.plan_for(alone).entries
    assert entry.warnings == ("s-1-VM is the only SSVM of zone ams-1: no other serves while it is patched",)
    other = b.facts("s-2-VM", type=SystemVMType.SECSTORAGE)
    pair = plan("routers", b.policy_spec(), b.release(), [alone], excluded={}, fleet=[alone, other])
    assert pair.entries[0].warnings == ()


def test_a_plan_that_was_touched_is_refused() -> None:
    made = b.plan_for(b.facts())
    good = made.encode()
    touched = gzip.compress(made.canonical().replace(b"r-101-VM", b"r-102-VM"), mtime=0)
    for data, digest in (
        (touched, made.digest),
        (good[:-9], made.digest),
        (b"rubbish", made.digest),
        (gzip.compress(b"{}"), None),
    ):
        with pytest.raises(UnreadablePlanError):
            Plan.decode(data, digest)
    with pytest.raises(KeyError):
        made.entry("nobody")
    assert made.entry("prod-r-101-vm").vm == "r-101-VM"
