"""Reboot and Recreate in a rollout: who is meant, who gets orders together, and who takes the place of whom."""

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.domain.builders import (
    ENDPOINT,
    HOLD,
    NEW,
    NOW,
    OLD,
    UNREACHABLE,
    ago,
    facts,
    observed,
    policy_spec,
    release,
    rollout,
    up_to_date,
)

from sysvm.api.endpoint import Management, SystemVMType
from sysvm.api.images import ImageStatus
from sysvm.api.methods import HostPayloadRule, Method
from sysvm.api.observed import RedundancyRole
from sysvm.api.operation import OperationOrder, OperationResult, OperationStatus
from sysvm.api.policy import PatchPolicySpec
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, Rollout, RolloutStatus
from sysvm.api.systemvm import DriftKind
from sysvm.domain.admission import EndpointState, admit
from sysvm.domain.cloud import CloudHost, CloudVM, CloudVMState, Snapshot
from sysvm.domain.drift import drift_of
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.held_recreations import held_recreations
from sysvm.domain.ledger import RunningRollout
from sysvm.domain.members import can_go_back, classify, successors_of
from sysvm.domain.method import decide
from sysvm.domain.planner import Plan, plan
from sysvm.domain.rollout import Live, outcome

READY = ImageStatus.model_validate(
    {"endpoint": ENDPOINT, "zone": "ams-1", "hypervisor": "KVM", "arch": "x86_64", "ready": True,
     "usedBy": "SSVM and CPVM, routers"}
)  # fmt: skip
REQUIRED = release().model_copy(update={"template_required": True, "images_declared": True, "images": (READY,)})
OUTDATED = up_to_date(version="4.20.1")
CURRENT = up_to_date(version="4.20.2")


def spec(*methods: str, **strategy: Any) -> PatchPolicySpec:
    return policy_spec(
        methods=list(methods), templateVersion="Require", strategy={"maxUnavailable": 10, "perHost": 10, **strategy}
    )


def router(name: str, group: str | None = "n-1", **values: Any) -> VMFacts:
    """At the release, but from an older template."""
    found = facts(name, group=group, **{"observed": OUTDATED, "hypervisor": "KVM", **values})
    assert found.identity is not None
    return replace(found, identity=found.identity.model_copy(update={"id": f"id-{name}"}))


def planned(*vms: VMFacts, methods: tuple[str, ...] = ("LivePatch", "Recreate"), **strategy: Any) -> Plan:
    return plan("routers", spec(*methods, **strategy), REQUIRED, vms, excluded={})


def running(the_plan: Plan, methods: tuple[str, ...] = ("LivePatch", "Recreate"), **values: Any) -> Rollout:
    found = rollout(the_plan, strategy={"maxUnavailable": values.pop("max_unavailable", 10), "perHost": 10})
    snapshot = found.spec.snapshot.model_copy(update={"methods": methods})
    found = found.model_copy(update={"spec": found.spec.model_copy(update={"snapshot": snapshot})})
    return found.model_copy(update={"status": RolloutStatus(**values)})


def orders(the_rollout: Rollout, the_plan: Plan, *vms: VMFacts) -> dict[str, Method]:
    state = EndpointState(
        endpoint=ENDPOINT, now=NOW, management=Management.FULL, epoch=7, vms=vms,
        rollouts=(RunningRollout(the_rollout, the_plan),),
    )  # fmt: skip
    return {each.vm.vm: each.order.method for each in admit(state).admitted}


def blockers(the_rollout: Rollout, the_plan: Plan, *vms: VMFacts) -> dict[str, str]:
    state = EndpointState(
        endpoint=ENDPOINT, now=NOW, management=Management.FULL, epoch=7, vms=vms,
        rollouts=(RunningRollout(the_rollout, the_plan),),
    )  # fmt: skip
    return {name: why[0].reason for name, why in admit(state).blocked.items()}


def ordered(vm: VMFacts, method: Method, rollout_name: str = "routers-1") -> VMFacts:
    return replace(
        vm,
        order=OperationOrder(id=f"op-{vm.name}", rollout=rollout_name, method=method, revision=REQUIRED.revision,
                             template="t", epoch=7),
    )  # fmt: skip


def started(vm: VMFacts, method: Method, result: OperationResult = OperationResult.SUCCEEDED) -> VMFacts:
    status = OperationStatus(
        id=f"op-{vm.name}", rollout="routers-1", method=method, revision=REQUIRED.revision,
        started_at=ago(minutes=20), finished_at=ago(minutes=10), result=result,
    )  # fmt: skip
    return replace(ordered(vm, method), operation=status)


# Drift and method


def test_an_older_template_is_drift_only_where_the_policy_requires_the_releases() -> None:
    vm = router("r-1-VM")
    assert drift_of(vm, release()).converged
    found = drift_of(vm, REQUIRED)
    assert (found.kinds, found.converged) == (frozenset({DriftKind.TEMPLATE}), False)
    assert drift_of(router("r-1-VM", observed=CURRENT), REQUIRED).converged


def test_the_first_method_that_the_policy_lists_and_that_suffices_is_used() -> None:
    vm = router("r-1-VM")
    for methods, chosen in (
        (("LivePatch", "Recreate"), Method.RECREATE),
        (("LivePatch", "Reboot", "Recreate"), Method.REBOOT),
        (("Recreate", "Reboot"), Method.RECREATE),
    ):
        decision = decide(vm, REQUIRED, methods=spec(*methods).methods)
        assert (decision.method, decision.reason) == (chosen, Reason.TEMPLATE_OUTDATED)
    assert decide(vm, REQUIRED).reason is Reason.METHOD_NOT_ALLOWED


def test_one_entry_closes_template_and_files() -> None:
    decision = decide(router("r-1-VM", observed=observed()), REQUIRED, methods=spec("LivePatch", "Recreate").methods)
    assert decision.method is Method.RECREATE
    assert decision.kinds == (DriftKind.SCRIPTS, DriftKind.TEMPLATE)


def test_what_cannot_be_live_patched_is_recreated_where_that_is_listed() -> None:
    debian_10 = router("r-1-VM", observed=observed(version="4.15.2"))
    with_images = REQUIRED.model_copy(update={"template_required": False})
    decision = decide(debian_10, with_images, methods=spec("LivePatch", "Recreate").methods)
    assert (decision.method, decision.reason) == (Method.RECREATE, Reason.NOT_COMPATIBLE)
    assert decide(debian_10, release()).method is Method.HOLD


def test_a_load_balancer_vm_is_held_because_no_call_recreates_it() -> None:
    vm = router("r-1-VM", type=SystemVMType.ILBVM)
    decision = decide(vm, REQUIRED, methods=spec("Recreate").methods)
    assert (decision.method, decision.reason) == (Method.HOLD, Reason.RECREATE_IMPOSSIBLE)


def test_nothing_is_started_anew_from_another_image_than_the_declared_one() -> None:
    vm, methods = router("r-1-VM"), spec("Recreate").methods

    def reason(**changes: Any) -> Reason:
        return decide(vm, REQUIRED.model_copy(update=changes), methods=methods).reason

    not_used = READY.model_copy(update={"used_by": "SSVM and CPVM", "message": "set router.template.kvm"})
    assert reason() is Reason.TEMPLATE_OUTDATED
    assert reason(images_declared=False) is Reason.IMAGE_NOT_DECLARED
    assert reason(images=()) is Reason.IMAGES_NOT_SEEN
    assert reason(images=(READY.model_copy(update={"zone": "ams-2"}),)) is Reason.IMAGES_NOT_SEEN
    assert reason(images=(not_used,)) is Reason.WRONG_TEMPLATE_WOULD_BE_USED
    assert reason(images=(not_used.model_copy(update={"ready": False}),)) is Reason.IMAGE_NOT_READY
    told = decide(vm, REQUIRED.model_copy(update={"images": (not_used,)}), methods=methods)
    assert (told.method, "set router.template.kvm" in told.message) == (Method.HOLD, True)


def test_a_router_that_people_brought_themselves_has_nobody_to_recreate_it() -> None:
    decision = decide(facts("r-1-VM", observed=OUTDATED), REQUIRED, methods=spec("Recreate").methods)
    assert (decision.method, decision.reason) == (Method.HOLD, Reason.RECREATE_IMPOSSIBLE)


# Plan


def test_routers_of_a_network_are_recreated_together_or_not_at_all() -> None:
    old, new = router("r-1-VM"), router("r-2-VM", observed=CURRENT)
    assert {entry.vm: entry.method for entry in planned(old, new).entries} == {
        "r-1-VM": Method.RECREATE,
        "r-2-VM": Method.RECREATE,
    }
    held = planned(old, replace(new, hold=HOLD))
    assert {entry.vm: (entry.method, entry.reason) for entry in held.entries} == {
        "r-1-VM": (Method.HOLD, "OnHold"),
        "r-2-VM": (Method.HOLD, "OnHold"),
    }
    assert held.is_empty


def test_a_router_whose_peer_belongs_to_nobody_is_not_recreated() -> None:
    mine, other = router("r-1-VM"), router("r-2-VM")
    found = plan("routers", spec("Recreate"), REQUIRED, [mine], excluded={}, fleet=[mine, other])
    entry = found.entries[0]
    assert (entry.method, entry.reason) == (Method.HOLD, "NoPolicy")
    assert entry.message == "Recreate replaces all routers of group n-1, and r-2-VM is not selected by this policy"


def test_a_router_that_does_not_answer_is_recreated_with_its_peer() -> None:
    found = planned(router("r-1-VM"), router("r-2-VM", reach=UNREACHABLE))
    assert [entry.method for entry in found.entries] == [Method.RECREATE, Method.RECREATE]


def test_the_system_vms_of_a_zone_are_recreated_one_by_one() -> None:
    ssvm = router("s-1-VM", group=None, type=SystemVMType.SECSTORAGE)
    current = router("s-2-VM", group=None, type=SystemVMType.SECSTORAGE, observed=CURRENT)
    assert planned(ssvm, current).members == (ssvm.name,)


def test_the_plan_says_what_tenants_lose() -> None:
    entry = planned(router("r-1-VM")).entries[0]
    (warning,) = entry.warnings
    assert warning.startswith("r-1-VM: another router takes its place: forwarding stops for about 10 s")
    pair = planned(router("r-1-VM", role=RedundancyRole.PRIMARY), router("r-2-VM", role=RedundancyRole.BACKUP))
    assert "the gateway moves at least once" in pair.entries[0].warnings[0]


# Admission


def test_the_routers_of_a_network_get_their_orders_at_once() -> None:
    vms = (router("r-1-VM"), router("r-2-VM"), router("r-3-VM", group="n-2"))
    the_plan = planned(*vms)
    assert orders(running(the_plan), the_plan, *vms) == dict.fromkeys(("r-1-VM", "r-2-VM", "r-3-VM"), Method.RECREATE)


def test_a_router_from_the_right_template_gets_its_order_with_its_peer_and_only_with_it() -> None:
    old, new = router("r-1-VM"), router("r-2-VM", observed=CURRENT)
    the_plan = planned(old, new)
    both = dict.fromkeys(("r-1-VM", "r-2-VM"), Method.RECREATE)
    assert orders(running(the_plan), the_plan, old, new) == both
    assert orders(running(the_plan), the_plan, old, replace(new, reach=UNREACHABLE)) == both
    assert orders(running(the_plan), the_plan, ordered(old, Method.RECREATE), new) == {"r-2-VM": Method.RECREATE}
    assert orders(running(the_plan), the_plan, replace(old, hold=HOLD), new) == {}
    replaced = router("r-7-VM", observed=CURRENT), router("r-8-VM", observed=CURRENT)
    assert orders(running(the_plan), the_plan, ordered(old, Method.RECREATE), *replaced) == {}, "successors have theirs"


def test_after_a_crash_between_the_orders_of_a_group_the_others_get_theirs() -> None:
    first, second = router("r-1-VM"), router("r-2-VM")
    the_plan = planned(first, second)
    found = orders(running(the_plan), the_plan, ordered(first, Method.RECREATE), second)
    assert found == {"r-2-VM": Method.RECREATE}


def test_a_group_is_not_split_by_max_unavailable_and_waits_while_others_hold_slots() -> None:
    pair = (router("r-1-VM"), router("r-2-VM"))
    the_plan = planned(*pair)
    assert len(orders(running(the_plan, max_unavailable=1), the_plan, *pair)) == 2
    single = router("r-3-VM", group="n-2")
    three = planned(single, *pair)
    busy = ordered(single, Method.RECREATE)
    assert orders(running(three, max_unavailable=2), three, busy, *pair) == {}
    assert set(blockers(running(three, max_unavailable=2), three, busy, *pair).values()) == {"WaitingForSlot"}


def test_never_two_of_a_pair_are_rebooted_at_once_and_the_backup_goes_first() -> None:
    primary = router("r-1-VM", role=RedundancyRole.PRIMARY)
    backup = router("r-2-VM", role=RedundancyRole.BACKUP)
    methods = ("LivePatch", "Reboot")
    the_plan = planned(primary, backup, methods=methods)
    assert orders(running(the_plan, methods), the_plan, primary, backup) == {"r-2-VM": Method.REBOOT}
    in_work = ordered(backup, Method.REBOOT)
    assert orders(running(the_plan, methods), the_plan, primary, in_work) == {}


def test_system_vms_of_a_zone_are_recreated_one_at_a_time_with_another_up() -> None:
    both = [router(f"s-{number}-VM", group=None, type=SystemVMType.SECSTORAGE) for number in (1, 2)]
    the_plan = planned(*both)
    assert orders(running(the_plan), the_plan, *both) == {"s-1-VM": Method.RECREATE}
    silent = replace(both[1], reach=UNREACHABLE)
    # Who does not answer goes first: the other one serves meanwhile.
    assert orders(running(the_plan), the_plan, both[0], silent) == {"s-2-VM": Method.RECREATE}
    assert blockers(running(the_plan), the_plan, both[0], silent)[both[0].name] == "LastOfZone"


def test_a_member_that_has_been_put_on_hold_keeps_its_group_from_being_replaced() -> None:
    first, second = router("r-1-VM"), router("r-2-VM")
    the_plan = planned(first, second)
    assert "r-2-VM" not in orders(running(the_plan), the_plan, first, replace(second, hold=HOLD))


# What comes after


def test_a_successor_is_the_member_whose_group_it_is_of() -> None:
    old = (router("r-1-VM"), router("r-2-VM"))
    the_plan = planned(*old)
    new = (router("r-7-VM", observed=CURRENT), router("r-8-VM", observed=CURRENT))
    other = router("r-9-VM", group="n-9", observed=CURRENT)
    vms = {vm.name: vm for vm in (*new, other)}
    found = successors_of(running(the_plan), the_plan, vms)
    assert {name: vm.vm for name, vm in found.items()} == {old[0].name: "r-7-VM", old[1].name: "r-8-VM"}
    view = classify(running(the_plan), the_plan, vms)
    assert [vm.vm for vm in view.done] == ["r-7-VM", "r-8-VM"]
    assert view.missing == ()


def test_a_rollout_is_not_over_before_it_is_known_who_took_the_place_of_whom() -> None:
    """The object of a VM that is no more goes with the next sweep, and meanwhile nobody answers there."""
    old = router("r-1-VM", observed=observed(version="4.20.1"))
    assert old.identity is not None
    the_plan, expunging = planned(old), old.identity.model_copy(update={"state": "Expunging"})
    for change in ({}, {"reach": UNREACHABLE}, {"identity": expunging}):
        replaced = replace(started(old, Method.RECREATE), **change)
        view = classify(running(the_plan), the_plan, {replaced.name: replaced})
        assert view.waiting == (replaced,), change
        assert orders(running(the_plan), the_plan, replaced) == ({} if change else {"r-1-VM": Method.LIVE_PATCH})
    rebooted = replace(started(old, Method.REBOOT), reach=UNREACHABLE)
    assert classify(running(the_plan), the_plan, {rebooted.name: rebooted}).skipped == (rebooted,)


def test_a_successor_from_an_older_payload_is_live_patched_at_once_and_never_recreated_again() -> None:
    old = router("r-1-VM")
    the_plan = planned(old)
    for template in ("4.20.2", "4.20.1"):
        new = router("r-7-VM", observed=observed(version=template))
        assert orders(running(the_plan), the_plan, new) == {"r-7-VM": Method.LIVE_PATCH}


def test_without_live_patch_a_successor_is_left_as_it_came() -> None:
    old, new = router("r-1-VM"), router("r-7-VM", observed=observed(version="4.20.2"))
    the_plan = planned(old, methods=("Recreate",))
    assert orders(running(the_plan, ("Recreate",)), the_plan, new) == {}


def test_a_rebooted_vm_from_an_older_payload_is_live_patched_and_never_rebooted_again() -> None:
    methods = ("LivePatch", "Reboot")
    vm = router("r-1-VM")
    the_plan = planned(vm, methods=methods)
    rebooted = started(replace(vm, observed=observed(version="4.20.2")), Method.REBOOT)
    assert orders(running(the_plan, methods), the_plan, rebooted) == {"r-1-VM": Method.LIVE_PATCH}
    patched = started(replace(vm, observed=CURRENT), Method.LIVE_PATCH)
    assert [each.vm for each in classify(running(the_plan, methods), the_plan, {vm.name: patched}).done] == ["r-1-VM"]


def test_a_failed_reboot_is_not_tried_with_another_method() -> None:
    methods = ("LivePatch", "Reboot")
    vm = router("r-1-VM")
    the_plan = planned(vm, methods=methods)
    failed = started(vm, Method.REBOOT, OperationResult.FAILED)
    assert [each.vm for each in classify(running(the_plan, methods), the_plan, {vm.name: failed}).failed] == ["r-1-VM"]


def failed_group(*names: str) -> GroupOperation:
    return GroupOperation.model_validate(
        {
            "group": "n-1",
            "method": "Recreate",
            "command": "restartNetwork",
            "target": "n-1",
            "vmType": "router",
            "zoneId": "z-1",
            "phase": "Done",
            "orders": ["op-1"],
            "since": NOW,
            "startedAt": ago(minutes=5),
            "finishedAt": NOW,
            "before": [{"id": f"id-{name}", "name": name} for name in names],
            "result": "Failed",
            "reason": "LeftoverRouter",
            "message": "r-8-VM (Stopped) left over",
        }
    )


KEPT = {"kvm-1": NEW, "kvm-2": OLD}


@pytest.mark.parametrize(
    ("payloads", "second", "rule", "held"),
    [
        (KEPT, {}, HostPayloadRule.REQUIRE, True),
        ({"kvm-1": NEW}, {}, HostPayloadRule.REQUIRE, False),  # nobody has seen kvm-2
        (KEPT, {"state": "Down"}, HostPayloadRule.REQUIRE, False),
        (KEPT, {"hypervisor": "VMware"}, HostPayloadRule.REQUIRE, False),
        (KEPT, {"zone_id": "z2"}, HostPayloadRule.REQUIRE, False),
        (KEPT, {}, HostPayloadRule.WARN, False),
    ],
)
def test_a_recreation_waits_for_a_host_with_another_payload_and_spends_nothing(
    payloads: dict[str, str], second: dict[str, Any], rule: HostPayloadRule, held: bool
) -> None:
    """Its new VM may be started on kvm-2."""
    vm = router("r-1-VM")
    the_plan = plan("routers", spec("Recreate"), REQUIRED.model_copy(update={"scripts_revision": NEW}), [vm],
                    excluded={})  # fmt: skip
    the_rollout = running(the_plan, methods=("Recreate",))
    options = the_rollout.spec.snapshot.live_patch.model_copy(update={"host_payload": rule})
    snapshot = the_rollout.spec.snapshot.model_copy(update={"live_patch": options})
    the_rollout = the_rollout.model_copy(update={"spec": the_rollout.spec.model_copy(update={"snapshot": snapshot})})
    hosts = [
        CloudHost(id="h1", name="kvm-1", address=None, zone_id="z1", hypervisor="KVM"),
        CloudHost(**{"id": "h2", "name": "kvm-2", "address": None, "zone_id": "z1", "hypervisor": "KVM", **second}),
    ]
    cloud_vm = CloudVM(
        id="id-r-1-VM", name="r-1-VM", type=SystemVMType.ROUTER, state=CloudVMState.RUNNING, zone_id="z1",
        zone="ams-1", host_id="h1", hypervisor="KVM",
    )  # fmt: skip
    cloud = Snapshot(
        taken_at=NOW, server_version="4.21.0.0", zones={}, hosts={host.id: host for host in hosts},
        vms={cloud_vm.id: cloud_vm}, networks={}, vpcs={},
    )  # fmt: skip
    live = Live(held_recreations=held_recreations(the_rollout, the_plan, {vm.name: vm}, cloud, payloads))
    state = EndpointState(
        endpoint=ENDPOINT, now=NOW, management=Management.FULL, epoch=7, vms=(vm,),
        rollouts=(RunningRollout(the_rollout, the_plan, live),),
    )  # fmt: skip
    decided = admit(state)
    assert [each.order.method for each in decided.admitted] == ([] if held else [Method.RECREATE])
    if held:
        (why,) = decided.blocked[vm.name]
        assert (why.reason, "may be started on kvm-2" in why.message) == (Reason.HOST_PAYLOAD_MISMATCH, True)
        view = classify(the_rollout, the_plan, {vm.name: vm})
        told = outcome(the_rollout, the_plan, view, replace(live, held_back={vm.name: why}), now=NOW)
        assert (told.result, told.budget.failures_used if told.budget else None) == (None, 0)
        assert [each.reason for each in told.blocked_by] == [Reason.HOST_PAYLOAD_MISMATCH]


def test_a_failure_is_told_by_who_came_in_the_place_of_those_who_knew_it() -> None:
    the_plan = planned(router("r-1-VM"))
    new = router("r-7-VM", observed=CURRENT)
    the_rollout = running(the_plan, group_operations=(failed_group("r-1-VM"),))
    view = classify(the_rollout, the_plan, {new.name: new})
    assert [vm.vm for vm in view.failed] == ["r-7-VM"]
    assert view.failed[0].operation is not None
    assert view.failed[0].operation.message == "r-8-VM (Stopped) left over"


def test_what_was_started_anew_cannot_go_back_and_is_not_asked_to() -> None:
    assert can_go_back("routers-1", [started(router("r-1-VM"), Method.REBOOT)]) == ()


def test_a_plan_reads_the_same_after_it_was_stored() -> None:
    the_plan = planned(router("r-1-VM"))
    again = Plan.decode(the_plan.encode(), the_plan.digest)
    assert again.planned["prod-r-1-vm"].method is Method.RECREATE
    assert isinstance(again.release, Release)
    assert again.release.template_required
