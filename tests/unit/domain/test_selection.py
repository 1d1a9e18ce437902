"""Which VMs a policy speaks of, and whose they are."""

import pytest

from sysvm.api.endpoint import SystemVMType
from sysvm.api.policy import Selector
from sysvm.domain.selection import matches, owner_of, select

from . import builders as b


@pytest.mark.parametrize(
    ("selector", "hit"),
    [
        ({}, True),
        ({"types": ["router"]}, True),
        ({"types": ["vpcrouter", "secstorage"]}, False),
        ({"zones": ["ams-1"]}, True),
        ({"zones": ["ams-2"]}, False),
        ({"names": ["r-101-VM"]}, True),
        ({"names": ["r-1*"]}, True),
        ({"names": ["r-10?-VM"]}, True),
        ({"names": ["r-10?"]}, False),
        ({"names": ["R-1*"]}, False),
        ({"names": ["r-1[0-9]1-VM"]}, False),
        ({"names": ["r.101.VM"]}, False),
        ({"hypervisors": ["KVM"]}, True),
        ({"hypervisors": ["VMware"]}, False),
        ({"accounts": ["acme", "other"]}, True),
        ({"accounts": ["acm*"]}, False),
        ({"networks": ["guest-7"]}, True),
        ({"networks": ["guest-8"], "accounts": ["acme"]}, False),
        ({"names": ["*"], "zones": ["ams-2"]}, False),
        ({"names": ["x", "*-VM"], "types": ["router"]}, True),
    ],
)
def test_every_given_list_must_match(selector: dict[str, list[str]], *, hit: bool) -> None:
    identity = b.facts(hypervisor="KVM", account="acme", network="guest-7").identity
    assert identity is not None
    assert matches(Selector.model_validate(selector), identity) is hit


def test_the_oldest_policy_keeps_the_vm_and_the_newer_skips_only_that_one() -> None:
    older = b.policy("zz", created=b.ago(days=2), selector={"names": ["r-101-VM"]})
    newer = b.policy("aa", created=b.ago(days=1))
    vms = [b.facts("r-102-VM"), b.facts("r-101-VM")]
    mine = select(newer, [older, newer], vms)
    assert [facts.vm for facts in mine.vms] == ["r-102-VM"]
    assert [(conflict.vm, conflict.owner) for conflict in mine.conflicts] == [("r-101-VM", "zz")]
    assert "r-101-VM (zz)" in mine.conflict_sentence
    theirs = select(older, [older, newer], vms)
    assert [facts.vm for facts in theirs.vms] == ["r-101-VM"]
    assert not theirs.conflicts
    assert not theirs.conflict_sentence


def test_of_two_policies_of_one_moment_the_name_decides() -> None:
    one, two = b.policy("one"), b.policy("two")
    assert owner_of(b.facts(), [two, one]) is one


def test_an_exclusion_ends_by_itself() -> None:
    vm = b.facts()
    for until, excluded in ((b.ago(minutes=-1), {vm.name: "CHG-1"}), (b.NOW, {})):
        mine = b.policy(selector={"exclude": [{"name": vm.vm, "reason": "CHG-1", "until": until}]})
        assert select(mine, [], [vm]).excluded == excluded


def test_a_policy_that_excludes_a_vm_leaves_it_to_others() -> None:
    older = b.policy("all", created=b.ago(days=2), selector={"exclude": [{"name": "r-101-VM", "reason": "CHG-1"}]})
    newer = b.policy("one", selector={"names": ["r-101-VM"]})
    vm = b.facts()
    assert select(older, [], [vm]).excluded == {vm.name: "CHG-1"}
    assert select(older, [newer], [vm]).vms == ()
    mine = select(newer, [older], [vm])
    assert mine.vms == (vm,)
    assert not mine.conflicts


def test_other_endpoints_deleted_policies_and_vms_without_identity_do_not_count() -> None:
    gone = b.policy("gone", created=b.ago(days=9))
    gone = gone.model_copy(update={"metadata": gone.metadata.model_copy(update={"deletion_timestamp": b.NOW})})
    elsewhere = b.policy("elsewhere", created=b.ago(days=9), endpointRef={"name": "other"})
    mine = b.policy("mine")
    selection = select(mine, [gone, elsewhere], [b.facts(), b.facts("r-2-VM", identity=None)])
    assert [facts.vm for facts in selection.vms] == ["r-101-VM"]
    assert not selection.conflicts


def test_the_conflict_names_ten_vms_and_counts_the_rest() -> None:
    vms = [b.facts(f"r-{number}-VM") for number in range(100, 113)]
    selection = select(b.policy("newer"), [b.policy("old", created=b.ago(days=9))], vms)
    assert selection.conflict_sentence.count("(old)") == 10
    assert selection.conflict_sentence.endswith("and 3 more")
    assert selection.vms == ()


def test_types_are_cloudstacks() -> None:
    identity = b.facts(type=SystemVMType.SECSTORAGE).identity
    assert identity is not None
    assert matches(Selector(types=(SystemVMType.SECSTORAGE,)), identity)
