"""A cloud that is another than the one that was planned for: told in facts, remembered, accepted in one word."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from sysvm.api.endpoint import Management
from sysvm.api.observed import ObservedHostPayload
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.rollout import CloudStatus, Rollout, RolloutStatus
from sysvm.domain import admission, gates
from sysvm.domain.admission import EndpointState
from sysvm.domain.cloud import CloudHost, CloudZone, Snapshot
from sysvm.domain.cloud_changed import CloudFacts, cloud_facts, cloud_status, differences, warnings, word_of
from sysvm.domain.facts import VMFacts, host_payloads
from sysvm.domain.ledger import RunningRollout
from sysvm.domain.members import classify, wave_digests
from sysvm.domain.planner import Plan
from sysvm.domain.rollout import Live, outcome

from .builders import ENDPOINT, NOW, ago, facts, observed, plan_for, rollout

PLANNED = CloudFacts(
    server_version="4.20.1.0",
    minimum_template_versions={"ams": "4.19.1", "fra": "4.20.1"},
    host_payloads={"h1": "aa" * 64, "h2": "aa" * 64},
)


def now_it_is(**facts_: Any) -> CloudFacts:
    return PLANNED.model_copy(update=facts_)


def planned(status: RolloutStatus | None = None, **spec: Any) -> tuple[Rollout, Plan]:
    the_plan = plan_for(facts()).model_copy(update={"cloud": PLANNED})
    made = rollout(the_plan)
    made = made.model_copy(update={"spec": made.spec.model_copy(update=spec)})
    return made.model_copy(update={"status": status or made.status}), the_plan


# What is a difference


def test_the_same_cloud_differs_in_nothing() -> None:
    assert differences(PLANNED, PLANNED) == ()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"server_version": "4.20.2.0"}, "the management server was 4.20.1.0 and is 4.20.2.0"),
        (
            {"minimum_template_versions": {"ams": "4.20.2", "fra": "4.20.1"}},
            "the lowest template version of zone ams was 4.19.1 and is 4.20.2",
        ),
        ({"host_payloads": {"h1": "bb" * 64}}, "the payload of hosts was aaaaaaaaaaaa and is bbbbbbbbbbbb"),
        ({"host_payloads": {"h9": "cc" * 64}}, "a host that came later has the payload cccccccccccc"),
    ],
)
def test_each_fact_that_differs_is_a_sentence(changed: dict[str, Any], sentence: str) -> None:
    assert differences(PLANNED, now_it_is(**changed)) == (sentence,)


@pytest.mark.parametrize(
    "changed",
    [
        {"host_payloads": {}},
        {"host_payloads": {"h1": "aa" * 64, "h9": "aa" * 64}},
        {"minimum_template_versions": {}},
        {"minimum_template_versions": {"ams": "4.19.1", "fra": "4.20.1", "new": "4.20.2"}},
        {"server_version": ""},
    ],
    ids=["hosts not looked at", "a host more", "settings that may not be read", "a zone more", "no version told"],
)
def test_what_is_not_known_or_only_new_is_no_difference(changed: dict[str, Any]) -> None:
    assert differences(PLANNED, now_it_is(**changed)) == ()


def test_hosts_that_get_the_same_payload_one_by_one_are_one_difference() -> None:
    first = differences(PLANNED, now_it_is(host_payloads={"h1": "bb" * 64, "h2": "aa" * 64}))
    both = differences(PLANNED, now_it_is(host_payloads={"h1": "bb" * 64, "h2": "bb" * 64}))
    assert word_of(first) == word_of(both)


def test_the_facts_are_those_of_the_last_sweep() -> None:
    zones = {
        "z1": CloudZone(id="z1", name="ams", min_template_version="4.19.1"),
        "z2": CloudZone(id="z2", name="fra"),
    }
    snapshot = Snapshot(taken_at=NOW, server_version="4.20.1.0", zones=zones, hosts={}, vms={}, networks={}, vpcs={})
    found = cloud_facts(snapshot, {"h1": "aa"})
    assert found == CloudFacts(
        server_version="4.20.1.0", minimum_template_versions={"ams": "4.19.1"}, host_payloads={"h1": "aa"}
    )
    assert cloud_facts(None, {}) is None


# What the rollout remembers


def test_nothing_is_said_while_nothing_ever_differed() -> None:
    assert cloud_status(planned()[0], PLANNED, PLANNED, now=NOW) is None


def test_a_difference_is_remembered_with_its_word() -> None:
    said = cloud_status(planned()[0], PLANNED, now_it_is(server_version="4.20.2.0"), now=NOW)
    assert said is not None
    assert said.changes == ("the management server was 4.20.1.0 and is 4.20.2.0",)
    assert said.word == word_of(said.changes)
    assert said.since == NOW


def changed() -> CloudStatus:
    said = cloud_status(planned()[0], PLANNED, now_it_is(server_version="4.20.2.0"), now=NOW)
    assert said is not None
    return said


def test_a_cloud_that_turns_back_is_still_for_a_person() -> None:
    made, _ = planned(RolloutStatus(cloud=changed()))
    said = cloud_status(made, PLANNED, PLANNED, now=NOW + timedelta(hours=1))
    assert said is not None
    assert said.changes == ()
    assert said.since == NOW
    blocked = gates.cloud_gate(made, said, unseen=False)
    assert blocked is not None
    assert "it changed, and is now what it was" in blocked.message


def test_a_cloud_that_nobody_sees_now_is_what_it_was_last() -> None:
    made, _ = planned(RolloutStatus(cloud=changed()))
    assert cloud_status(made, PLANNED, None, now=NOW) == changed()


MIXED = PLANNED.model_copy(update={"host_payloads": {"h1": "aa" * 64, "h2": "bb" * 64}})


def then(said: CloudStatus | None, **payloads: str) -> CloudStatus | None:
    """What the rollout says next, when its hosts differed at planning already."""
    made, _ = planned(RolloutStatus(cloud=said))
    current = MIXED.model_copy(update={"host_payloads": {host: one * 64 for host, one in payloads.items()}})
    return cloud_status(made, MIXED, current, now=NOW)


@pytest.mark.parametrize("left", [{"h2": "bb"}, {}], ids=["the last VM left it", "nobody looked at any"])
def test_what_was_accepted_of_a_host_stays_accepted_when_nobody_sees_it_any_more(left: dict[str, str]) -> None:
    changed = then(None, h1="bb", h2="bb")
    assert changed is not None
    assert changed.changes == ("the payload of hosts was aaaaaaaaaaaa and is bbbbbbbbbbbb",)
    assert then(changed, **left) == changed
    assert then(changed, h1="bb", **left) == changed, "and when it is seen again"


def test_a_host_that_was_seen_to_turn_back_is_for_a_person_again() -> None:
    changed = then(None, h1="bb", h2="bb")
    assert changed is not None
    back = then(changed, h1="aa", h2="bb")
    assert back is not None
    assert (back.changes, back.word) == ((), word_of(()))
    other = then(changed, h2="cc")
    assert other is not None
    assert other.word != changed.word, "another host changed while this one is not seen"
    assert len(other.changes) == 2


def test_a_host_that_came_later_and_is_not_seen_any_more_is_no_further_change() -> None:
    changed = then(None, h1="aa", h2="bb", h9="cc")
    assert changed is not None
    assert changed.changes == ("a host that came later has the payload cccccccccccc",)
    assert then(changed, h1="aa", h2="bb") == changed


# What follows


def test_nothing_starts_until_a_person_says_that_very_word() -> None:
    said = changed()
    for word, is_open in ((None, False), ("0" * 8, False), (said.word, True)):
        made, _ = planned(accept_cloud=word)
        assert (gates.cloud_gate(made, said, unseen=False) is None) is is_open


def test_the_sentence_says_what_changed_and_what_to_do() -> None:
    blocked = gates.cloud_gate(planned()[0], changed(), unseen=False)
    assert blocked is not None
    assert blocked.reason == Reason.CLOUD_CHANGED
    assert blocked.message == (
        "since rollout routers-1 was planned, the management server was 4.20.1.0 and is 4.20.2.0. To go on as planned "
        f"set its spec.acceptCloud to {changed().word}; to plan anew abort it and set spec.retryAt of the policy"
    )


def test_admission_hands_out_nothing_in_another_cloud() -> None:
    for live, count in ((Live(cloud=changed()), 0), (Live(cloud_unseen=True), 0), (Live(), 1)):
        made, the_plan = planned()
        decided = admission.admit(
            EndpointState(
                endpoint=ENDPOINT,
                now=NOW,
                management=Management.FULL,
                epoch=1,
                vms=(facts(),),
                rollouts=(RunningRollout(rollout=made, plan=the_plan, live=live),),
            )
        )
        assert len(decided.admitted) == count


def test_the_rollout_says_it_and_neither_reconciles_nor_stalls() -> None:
    made, the_plan = planned()
    status = outcome(made, the_plan, classify(made, the_plan, {facts().name: facts()}), Live(cloud=changed()), now=NOW)
    said = {one.type: one.reason for one in status.conditions}
    assert said == {
        ConditionType.READY: Reason.CLOUD_CHANGED,
        ConditionType.CLOUD_CHANGED: Reason.CLOUD_CHANGED,
    }
    assert status.cloud == changed()
    assert status.next_action is None


def test_before_the_first_sweep_of_a_restart_a_rollout_says_what_it_said() -> None:
    """Else every restart writes twice, and an operator that is ended at its first write does nothing else."""
    made, the_plan = planned()
    view = classify(made, the_plan, {facts().name: facts()})
    said = outcome(made, the_plan, view, Live(), now=NOW)
    again = made.model_copy(update={"status": said})
    assert outcome(again, the_plan, view, Live(cloud_unseen=True), now=NOW) == said


def test_approvals_of_before_are_void() -> None:
    """They name a digest; in another cloud, and after it was accepted, the waves have others."""
    made, the_plan = planned()
    later = made.model_copy(update={"status": RolloutStatus(cloud=changed())})
    accepted = later.model_copy(update={"spec": later.spec.model_copy(update={"accept_cloud": changed().word})})
    before, after, then = (wave_digests(one, the_plan)["rest"] for one in (made, later, accepted))
    assert before != after
    assert after == then, "what was approved while it waited still counts once it goes on"


def test_a_plan_of_a_static_inventory_has_the_digest_that_it_always_had() -> None:
    the_plan = plan_for(facts())
    assert b'"cloud":' not in the_plan.canonical()
    assert the_plan.model_copy(update={"cloud": PLANNED}).digest != the_plan.digest
    assert Plan.decode(the_plan.model_copy(update={"cloud": PLANNED}).encode()).cloud == PLANNED


# Before an upgrade


def host(name: str, version: str = "4.20.2.0", **values: Any) -> CloudHost:
    return CloudHost(id=name, name=name, address=None, zone_id="z1", version=version, **values)


def test_what_should_be_in_order_first_is_a_warning() -> None:
    hosts = [
        host("h1", state="Down"),
        host("h2", resource_state="Maintenance"),
        host("h3", "4.20.1.0"),
    ]
    snapshot = Snapshot(
        taken_at=NOW,
        server_version="4.20.2.0",
        zones={},
        hosts={one.id: one for one in hosts},
        vms={},
        networks={},
        vpcs={},
    )
    assert warnings(snapshot, {"h1": "aa", "h2": "bb"}) == (
        "hosts whose agents are not Up: h1",
        "hosts in maintenance: h2",
        "agents of hosts have different versions: 4.20.1.0, 4.20.2.0",
        "hosts have 2 different payloads",
    )


def test_a_cloud_in_order_warns_of_nothing() -> None:
    snapshot = Snapshot(
        taken_at=NOW, server_version="4.20.2.0", zones={}, hosts={"h1": host("h1")}, vms={}, networks={}, vpcs={}
    )
    assert warnings(snapshot, {"h1": "aa", "h2": "aa"}) == ()


# What hosts keep


def seen_on(host_name: str, revision: str | None, *, minutes: float = 5, checksum: str = "ab") -> VMFacts:
    """A look at a VM of this host."""
    found = observed(at=ago(minutes=minutes)).model_copy(
        update={"host_payload": ObservedHostPayload(host=host_name, checksum=checksum, revision=revision)}
    )
    return facts(host=host_name, observed=found)


def test_the_newest_look_says_what_a_host_keeps() -> None:
    looks = [seen_on("h1", "bb", minutes=1), seen_on("h1", "aa", minutes=9), seen_on("h2", "aa"), seen_on("h3", None)]
    assert host_payloads(looks) == {"h1": "bb", "h2": "aa"}


def test_another_algorithm_of_the_checksum_is_no_other_payload() -> None:
    """The checksum comes in that of the VM's signature, which a patch may change."""
    before, after = seen_on("h1", "aa", checksum="ab" * 16), seen_on("h1", "aa", checksum="cd" * 64)
    assert host_payloads([before]) == host_payloads([after])
