"""CloudStack's own live patch in plan and admission: one call for all routers of a group, or none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sysvm.api.endpoint import Management, SystemVMType
from sysvm.api.methods import Method, Route
from sysvm.api.observed import ApiCommand, ApiPatchCall, ObservedHostPayload, ObservedManagement, RedundancyRole
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.domain.admission import Admissions, EndpointState, admit
from sysvm.domain.facts import VMFacts
from sysvm.domain.ledger import RunningRollout
from sysvm.domain.members import can_go_back, classify
from sysvm.domain.planner import Plan, plan

from . import builders as b

RELEASE = b.release().model_copy(update={"scripts_revision": b.NEW})
HOST = ObservedHostPayload(host="kvm-1", checksum=f"sha512:{'bb' * 64}", revision=b.NEW)
NAMES = ("r-1-VM", "r-2-VM")
GATED = "the management server sends no command to it"


def router(name: str, role: RedundancyRole, *, closed: bool = True, right: bool = False, **values: Any) -> VMFacts:
    """One of a pair."""
    call = ApiPatchCall(command=ApiCommand.RESTART_NETWORK, id="n1", name="blue", vms=NAMES)
    books = ObservedManagement(
        at=b.NOW, gate_closed=closed, gate=GATED if closed else "", recreating_checks=(), api_patch=call
    )
    observed = (b.up_to_date if right else b.observed)().model_copy(update={"management": books, "host_payload": HOST})
    return b.facts(name, role=role, group="blue", hypervisor="KVM", observed=observed, **values)


def pair(**values: Any) -> tuple[VMFacts, VMFacts]:
    return router("r-1-VM", RedundancyRole.PRIMARY, **values), router("r-2-VM", RedundancyRole.BACKUP, **values)


LEAVE = {"plannedFailover": "Allowed"}


def planned(
    *vms: VMFacts, fleet: tuple[VMFacts, ...] = (), excluded: dict[str, str] | None = None, **spec: Any
) -> Plan:
    options = {**LEAVE, **spec.pop("livePatch", {})}
    policy = b.policy_spec(livePatch=options, strategy={"maxUnavailable": 1}, **spec)
    return plan("routers", policy, RELEASE, vms, excluded=excluded or {}, fleet=fleet)


def entries(made: Plan) -> dict[str, tuple[Method, Route | None]]:
    return {entry.vm: (entry.method, entry.route) for entry in made.entries}


BY_API = (Method.LIVE_PATCH, Route.API)


def test_the_whole_pair_goes_with_one_call_also_who_needs_nothing() -> None:
    vms = (
        router("r-1-VM", RedundancyRole.PRIMARY),
        router("r-2-VM", RedundancyRole.BACKUP, closed=False, right=True),
    )
    made = planned(*vms)
    assert entries(made) == {"r-1-VM": BY_API, "r-2-VM": BY_API}
    assert "patched together with its group" in made.entry("prod-r-2-vm").message
    assert len(made.waves) == 1


@pytest.mark.parametrize(
    ("other", "kept", "reason"),
    [
        ({"hold": b.HOLD}, True, Reason.ON_HOLD),
        ({}, False, Reason.NO_POLICY),
    ],
)
def test_a_router_that_must_stay_keeps_its_peer_from_the_call(
    other: dict[str, Any],
    kept: bool,
    reason: Reason,
) -> None:
    first = router("r-1-VM", RedundancyRole.PRIMARY)
    second = router("r-2-VM", RedundancyRole.BACKUP, **other)
    made = planned(first, second) if kept else planned(first, fleet=(first, second))
    entry = made.entry("prod-r-1-vm")
    assert (entry.method, entry.route, entry.reason) == (Method.HOLD, None, reason)
    assert "CloudStack's own live patch changes all routers of group blue" in entry.message


# Admission


def admitted(*vms: VMFacts, made: Plan | None = None, **kwargs: Any) -> Admissions:
    made = made or planned(*[replace(facts, order=None, operation=None) for facts in vms])
    rollout = b.rollout(made, strategy={"maxUnavailable": 1, "perHost": 100}, live_patch=LEAVE)
    return admit(
        EndpointState(
            endpoint=b.ENDPOINT,
            now=b.NOW,
            management=Management.FULL,
            epoch=7,
            vms=vms,
            rollouts=(RunningRollout(rollout, made),),
            **kwargs,
        )
    )


def test_both_routers_get_their_order_at_once_and_in_no_order() -> None:
    outcome = admitted(*pair())
    assert sorted(each.vm.vm for each in outcome.admitted) == list(NAMES)
    for each in outcome.admitted:
        assert (each.order.method, each.order.route, each.order.deadline) == (*BY_API, None)


def test_a_process_that_ended_between_two_orders_gives_the_other_one() -> None:
    first, second = pair()
    order = next(each.order for each in admitted(first, second).admitted if each.vm.vm == "r-1-VM")
    made = planned(first, second)
    outcome = admitted(replace(first, order=order), second, made=made)
    assert [each.vm.vm for each in outcome.admitted] == ["r-2-VM"]


def test_who_needs_nothing_gets_its_order_with_its_peer_and_only_with_it() -> None:
    first = router("r-1-VM", RedundancyRole.PRIMARY)
    second = router("r-2-VM", RedundancyRole.BACKUP, closed=False, right=True)
    made = planned(first, second)
    given = {each.vm.vm: each.order for each in admitted(first, second, made=made).admitted}
    assert sorted(given) == list(NAMES)
    later = admitted(replace(first, order=given["r-1-VM"]), second, made=made)
    assert [each.vm.vm for each in later.admitted] == ["r-2-VM"], "a process ended between the two"
    for alone in (replace(first, hold=b.HOLD), ended(OperationResult.FAILED, str(Reason.CLAIM_NOT_VERIFIED))[0]):
        assert not admitted(alone, second, made=made).admitted
    assert not admitted(first, replace(second, hold=b.HOLD), made=made).admitted, "it must stay, so both do"
    given_it = replace(second, order=given["r-2-VM"])
    assert [each.vm.vm for each in admitted(first, given_it, made=made).admitted] == ["r-1-VM"], "not twice"


def test_a_pair_that_is_none_is_not_patched() -> None:
    vms = (router("r-1-VM", RedundancyRole.BACKUP), router("r-2-VM", RedundancyRole.BACKUP))
    outcome = admitted(*vms)
    assert not outcome.admitted
    assert {blockers[0].reason for blockers in outcome.blocked.values()} == {Reason.NO_SINGLE_PRIMARY}


def test_over_ssh_the_order_names_no_route_and_the_backup_goes_first() -> None:
    outcome = admitted(*pair(closed=False))
    (only,) = outcome.admitted
    assert (only.vm.vm, only.order.route) == ("r-2-VM", None)


# Afterwards


def test_a_gated_member_that_is_at_the_release_still_waits_for_its_call() -> None:
    vms = pair(right=True)
    made = planned(*vms)
    view = classify(b.rollout(made, live_patch=LEAVE), made, {facts.name: facts for facts in vms})
    assert [facts.vm for facts in view.waiting] == ["r-2-VM", "r-1-VM"]


def ended(result: OperationResult, reason: str = "", **change: object) -> tuple[VMFacts, ...]:
    """The pair after CloudStack's own patch."""
    by_api = b.operation(result).model_copy(update={"route": Route.API, "reason": reason, **change})
    return tuple(
        replace(facts, order=b.order(id=by_api.id).model_copy(update={"route": Route.API}), operation=by_api)
        for facts in pair(right=result is OperationResult.SUCCEEDED)
    )


def test_what_cloudstack_patched_is_done_and_can_go_back() -> None:
    vms = ended(OperationResult.SUCCEEDED)
    made = planned(*pair())
    view = classify(b.rollout(made, live_patch=LEAVE), made, {facts.name: facts for facts in vms})
    assert len(view.done) == 2
    assert can_go_back("routers-1", view.done) == view.done


def test_who_needed_no_call_has_no_backup_and_does_not_go_back() -> None:
    assert can_go_back("routers-1", ended(OperationResult.SUCCEEDED, str(Reason.UP_TO_DATE))) == ()


@pytest.mark.parametrize(
    ("reason", "change", "goes"),
    [
        (Reason.CLAIM_NOT_VERIFIED, {}, True),
        (Reason.RULES_MISSING, {}, True),
        (Reason.JOB_FAILED, {}, True),
        (Reason.JOB_RUNNING, {}, False),
        (Reason.CLAIM_NOT_VERIFIED, {"route": None}, False),
        (Reason.CLAIM_NOT_VERIFIED, {"takes_back": "op-0"}, False),
        (Reason.CLAIM_NOT_VERIFIED, {"method": Method.REBOOT}, False),
    ],
)
def test_a_patch_of_cloudstacks_that_was_not_verified_goes_back_and_one_that_was_not_made_does_not(
    reason: Reason, change: dict[str, object], *, goes: bool
) -> None:
    vms = ended(OperationResult.FAILED, str(reason), **change)
    assert bool(can_go_back("routers-1", vms)) is goes


def test_an_ssvm_goes_alone() -> None:
    call = ApiPatchCall(command=ApiCommand.PATCH_SYSTEM_VM, id="s1", name="s-1-VM", vms=("s-1-VM",))
    books = ObservedManagement(at=b.NOW, gate_closed=False, api_patch=call)
    observed = b.observed().model_copy(update={"management": books, "host_payload": HOST})
    ssvm = b.facts("s-1-VM", type=SystemVMType.SECSTORAGE, hypervisor="KVM", observed=observed)
    made = planned(ssvm, livePatch={"route": "API"})
    assert entries(made) == {"s-1-VM": BY_API}
    (only,) = admitted(ssvm, made=made).admitted
    assert only.order.route is Route.API
