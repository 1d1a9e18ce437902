"""What was true when a rollout was planned and no longer is: asked again before anything is ordered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.domain.kstatus import kstatus

from sysvm.api.base import ConditionStatus
from sysvm.api.endpoint import Management, SystemVMType
from sysvm.api.methods import AllowedMethod, LivePatchOptions, Method, Route
from sysvm.api.observed import (
    ApiCommand,
    ApiPatchCall,
    ObservedHostPayload,
    ObservedManagement,
    Obstacle,
    RedundancyRole,
)
from sysvm.api.operation import HistoryEntry, OperationOrder, OperationResult, OperationStatus
from sysvm.api.policy import LastRollout
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.rollout import AppendedVM, Rollout, RolloutResult, RolloutStatus, WaveStatus
from sysvm.api.systemvm import PlannedAction
from sysvm.domain import conditions
from sysvm.domain.admission import SWEPT_AGAIN, Admissions, EndpointState, admit
from sysvm.domain.cloud import CloudVM, CloudVMState, CloudZone, Snapshot
from sysvm.domain.cloud_changed import CloudFacts
from sysvm.domain.facts import VMFacts
from sysvm.domain.gate import as_swept
from sysvm.domain.held_since import why_too_old
from sysvm.domain.ledger import RunningRollout
from sysvm.domain.members import RolloutView, classify
from sysvm.domain.method import decide
from sysvm.domain.planner import Plan, plan
from sysvm.domain.rollout import NOTHING_NEW, Live, outcome
from sysvm.domain.starts import may_start

from . import builders as b

VERSION_CHECK = ("dns_check.py", "router_version_check.py")
RELEASE = b.release().model_copy(update={"scripts_revision": b.NEW})
RIGHT_HOST = ObservedHostPayload(host="kvm-1", checksum=f"sha512:{'bb' * 64}", revision=b.NEW)
OTHER_HOST = RIGHT_HOST.model_copy(update={"host": "kvm-2", "revision": b.OTHER})
NETWORK = ApiPatchCall(command=ApiCommand.RESTART_NETWORK, id="n1", name="blue", vms=("r-1-VM",))
CLOUD = CloudFacts(server_version="4.20.2.0")


def books(**values: Any) -> ObservedManagement:
    known: dict[str, Any] = {"gate_closed": False, "recreating_checks": (), "api_patch": NETWORK}
    return ObservedManagement(at=b.NOW, **{**known, **values})


def router(name: str = "r-1-VM", *, right: bool = False, **values: Any) -> VMFacts:
    """Known to the management server, its gate open, on a host with the release. `host_payload`, `obstacles`,
    `version`: of what was seen on it; what else `books` takes."""
    seen = (b.up_to_date if right else b.observed)(
        version=values.pop("version", "4.20.1"), failed_services=values.pop("failed_services", ())
    )
    host, obstacles = values.pop("host_payload", RIGHT_HOST), values.pop("obstacles", ())
    management = books(**{key: values.pop(key) for key in list(values) if key in ObservedManagement.model_fields})
    assert seen.content is not None
    seen = seen.model_copy(
        update={
            "management": management,
            "host_payload": host,
            "content": seen.content.model_copy(update={"obstacles": obstacles}),
        }
    )
    found = b.facts(name, observed=seen, hypervisor="KVM", **values)
    assert found.identity is not None
    return replace(found, identity=found.identity.model_copy(update={"id": f"id-{name}"}))


def planned(*vms: VMFacts, methods: tuple[str, ...] = ("LivePatch",), live_patch: Mapping[str, Any] = {}) -> Plan:
    spec = b.policy_spec(methods=list(methods), livePatch=live_patch, strategy={"maxUnavailable": 10, "perHost": 10})
    return plan("routers", spec, RELEASE, vms, excluded={}, cloud=CLOUD)


def running(
    made: Plan,
    methods: tuple[str, ...] = ("LivePatch",),
    live_patch: Mapping[str, Any] = {},
    status: RolloutStatus | None = None,
) -> Rollout:
    found = b.rollout(made, strategy={"maxUnavailable": 10, "perHost": 10}, live_patch=live_patch)
    snapshot = found.spec.snapshot.model_copy(update={"methods": tuple(map(AllowedMethod, methods))})
    spec = found.spec.model_copy(update={"snapshot": snapshot})
    return found.model_copy(update={"spec": spec, "status": status or RolloutStatus()})


def admitted(rollout: Rollout, made: Plan, *vms: VMFacts, live: Live = NOTHING_NEW) -> Admissions:
    return admit(
        EndpointState(
            endpoint=b.ENDPOINT, now=b.NOW, management=Management.FULL, epoch=b.EPOCH, vms=vms,
            rollouts=(RunningRollout(rollout, made, live),),
        )
    )  # fmt: skip


def orders(rollout: Rollout, made: Plan, *vms: VMFacts, live: Live = NOTHING_NEW) -> dict[str, tuple[Method, Any]]:
    return {
        each.vm.vm: (each.order.method, each.order.route)
        for each in admitted(rollout, made, *vms, live=live).admitted
    }  # fmt: skip


def waits_for(rollout: Rollout, made: Plan, *vms: VMFacts, live: Live = NOTHING_NEW) -> dict[str, str]:
    return {name: why[0].reason for name, why in admitted(rollout, made, *vms, live=live).blocked.items()}


def view_of(rollout: Rollout, made: Plan, *vms: VMFacts) -> RolloutView:
    return classify(rollout, made, {facts.name: facts for facts in vms})


def said(rollout: Rollout, made: Plan, *vms: VMFacts) -> RolloutStatus:
    return outcome(rollout, made, view_of(rollout, made, *vms), now=b.NOW)


def ended(
    vm: VMFacts, method: Method = Method.LIVE_PATCH, result: OperationResult = OperationResult.SUCCEEDED
) -> VMFacts:
    """Its operation of this rollout has ended, before it was looked at."""
    order = OperationOrder(
        id=f"op-{vm.name}", rollout="routers-1", method=method, revision=b.NEW, template="t", epoch=b.EPOCH
    )
    status = OperationStatus(
        id=order.id, rollout="routers-1", method=method, revision=b.NEW, result=result,
        started_at=b.ago(minutes=20), finished_at=b.ago(minutes=10),
    )  # fmt: skip
    return replace(vm, order=order, operation=status)


def started_by(method: Method, **values: Any) -> tuple[Plan, Rollout]:
    """A plan in which the server starts r-1-VM anew, and its rollout."""
    made = planned(router(**values))
    entry = made.entries[0].model_copy(update={"method": method, "route": None})
    made = made.model_copy(update={"entries": (entry,)})
    return made, running(made, ("LivePatch", str(method)))


SSH = (Method.LIVE_PATCH, None)


# The zone recreates what fails the version check


def test_a_setting_that_is_turned_on_after_planning_keeps_the_patch_from_being_ordered() -> None:
    made = planned(router())
    rollout, now = running(made), router(recreating_checks=VERSION_CHECK)
    assert orders(rollout, made, router()) == {"r-1-VM": SSH}
    assert orders(rollout, made, now) == {}
    assert waits_for(rollout, made, now) == {now.name: "HealthCheckWouldRecreate"}
    (blocker,) = admitted(rollout, made, now).blocked[now.name]
    assert "take the check out of the setting, or set livePatch.route to API" in blocker.message


def test_its_rollout_ends_and_does_not_say_that_it_succeeded() -> None:
    made = planned(router(), router("r-2-VM"))
    patched = ended(router("r-2-VM", right=True, recreating_checks=VERSION_CHECK))
    rollout = running(made)
    status = said(rollout, made, router(recreating_checks=VERSION_CHECK), patched)
    assert (status.phase, status.result, status.summary) == ("Done", RolloutResult.SUPERSEDED, "1/2")
    ready = conditions.find(status.conditions, ConditionType.READY)
    assert ready is not None
    assert (ready.status, ready.reason) == (ConditionStatus.FALSE, Reason.VMS_HELD)
    assert ready.message.startswith("1 of 2 VMs at 8c1f03ab; 1 held (r-1-VM: HealthCheckWouldRecreate)")
    assert kstatus(1, status) == "Failed"
    (wave,) = status.waves
    assert (wave.phase, wave.size, wave.done, wave.skipped) == ("Done", 2, 1, 1)


def test_while_others_are_in_work_it_is_told_who_is_held_and_taken_again_when_the_setting_is_off() -> None:
    made = planned(router(), router("r-2-VM"))
    busy = replace(ended(router("r-2-VM")), operation=None)
    rollout, held = running(made), router(recreating_checks=VERSION_CHECK)
    status = said(rollout, made, held, busy)
    assert status.result is None
    ready = conditions.find(status.conditions, ConditionType.READY)
    assert ready is not None
    assert "1 held (r-1-VM: HealthCheckWouldRecreate); in work: r-2-VM" in ready.message
    assert orders(rollout, made, router(), busy) == {"r-1-VM": SSH}


def test_when_the_setting_is_off_the_policy_plans_anew_by_itself() -> None:
    made = planned(router())
    status = said(running(made), made, router(recreating_checks=VERSION_CHECK))
    assert status.result is not None
    last = LastRollout(name="routers-1", number=1, revision=b.NEW, spec_digest="d1", result=status.result)
    assert may_start(last, b.NEW, "d1").allowed
    assert planned(router(recreating_checks=VERSION_CHECK)).is_empty, "nothing is planned while it is on"
    assert planned(router()).members == (router().name,)


def test_an_aborted_rollout_ends_aborted_also_where_its_vms_are_held() -> None:
    made = planned(router())
    rollout = b.rollout(made, state="Aborted")
    assert said(rollout, made, router(recreating_checks=VERSION_CHECK)).result is RolloutResult.ABORTED


@pytest.mark.parametrize("method", [Method.REBOOT, Method.RECREATE])
def test_a_vm_that_was_started_anew_with_an_older_payload_is_not_patched_over_ssh_there(method: Method) -> None:
    made, rollout = started_by(method)
    plain = ended(router(), method)
    named = ended(router(recreating_checks=VERSION_CHECK), method)
    assert orders(rollout, made, plain) == {"r-1-VM": SSH}
    assert orders(rollout, made, named) == {}
    assert waits_for(rollout, made, named) == {named.name: "HealthCheckWouldRecreate"}
    assert said(rollout, made, named).result is RolloutResult.SUPERSEDED


def test_what_came_up_with_an_older_payload_is_not_taken_for_what_somebody_changed() -> None:
    """Else the VM and its policy would say Drifted, and without drift.heal it would stay as it is for good."""
    for checks, reason in ((VERSION_CHECK, "HealthCheckWouldRecreate"), ((), "ScriptsOutdated")):
        came_up = ended(router(recreating_checks=checks), Method.REBOOT)
        assert not came_up.was_brought_to(b.NEW)
        assert decide(came_up, RELEASE).reason == reason
    assert decide(ended(router()), RELEASE).reason == Reason.DRIFTED, "as what a live patch had brought there"
    patched = ended(router()).operation
    assert patched is not None
    started = patched.model_copy(update={"method": Method.REBOOT})
    history = [
        HistoryEntry(
            id=str(number), revision=b.NEW, method=each.method, result="Succeeded", started_at=b.ago(hours=number)
        )
        for number, each in enumerate((patched, started, patched))
    ]
    assert replace(router(), history=tuple(history)).put_back_since(b.ago(days=1), b.NEW) == 0
    assert replace(router(), history=(history[0], history[2])).put_back_since(b.ago(days=1), b.NEW) == 1


def test_the_successor_of_a_recreated_router_is_not_patched_over_ssh_there() -> None:
    made, rollout = started_by(Method.RECREATE, group="n-1")
    new = router("r-2-VM", group="n-1", version="4.20.2", recreating_checks=VERSION_CHECK)
    assert orders(rollout, made, router("r-2-VM", group="n-1", version="4.20.2")) == {"r-2-VM": SSH}
    assert orders(rollout, made, new) == {}
    assert waits_for(rollout, made, new) == {new.name: "HealthCheckWouldRecreate"}
    assert said(rollout, made, new).result is RolloutResult.SUPERSEDED


def test_a_try_that_is_due_is_not_made_there() -> None:
    made = planned(router())
    rollout = b.rollout(made, strategy={"retry": {"limit": 3, "backoff": "1s", "reasons": ["SSHTimeout"]}})
    failed = ended(router(), result=OperationResult.FAILED)
    assert failed.operation is not None
    failed = replace(failed, operation=failed.operation.model_copy(update={"reason": "SSHTimeout", "attempt": 1}))
    assert [facts.vm for facts in view_of(rollout, made, failed).waiting] == ["r-1-VM"]
    held = replace(failed, observed=router(recreating_checks=VERSION_CHECK).observed)
    assert [facts.vm for facts in view_of(rollout, made, held).held] == ["r-1-VM"]


def test_a_patch_that_goes_back_is_not_kept_from_it() -> None:
    """Then the router is what the server's books say, and the check passes."""
    vms = (router(right=True), router("r-2-VM"))
    made = planned(router(), router("r-2-VM"))
    patched = ended(router(right=True, recreating_checks=VERSION_CHECK))
    failed = ended(router("r-2-VM", recreating_checks=VERSION_CHECK), result=OperationResult.ROLLED_BACK)
    rollout = b.rollout(made, strategy={"maxUnavailable": 10, "onBudgetSpent": "RollBack"})
    live = Live(cloud_too_old="the management server's lists were last read whole yesterday")
    (only,) = admitted(rollout, made, patched, failed, live=live).admitted
    assert (only.vm.vm, only.order.takes_back) == (vms[0].vm, patched.operation and patched.operation.id)


# What else may end after planning

GATED = "the management server sends no command to it"
KEEPALIVED = (PlannedAction(name="keepalived", action="Restart", expected_loss="a failover"),)
OBSTACLE = (Obstacle(reason="PackagesRemain", message="a package cannot be removed"),)


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({"recreating_checks": VERSION_CHECK}, Reason.HEALTH_CHECK_WOULD_RECREATE),
        ({"gate_closed": True, "gate": GATED}, Reason.MANAGEMENT_GATE_CLOSED),
        ({"gate_closed": True, "gate": GATED, "api_patch": None}, Reason.MANAGEMENT_GATE_CLOSED),
        ({"gate_closed": None, "gate": "not known"}, Reason.MANAGEMENT_GATE_UNKNOWN),
        ({"gate_closed": True, "gate": GATED, "right": True}, Reason.MANAGEMENT_GATE_CLOSED),
        ({"host_payload": OTHER_HOST}, Reason.HOST_PAYLOAD_MISMATCH),
        ({"obstacles": OBSTACLE}, Reason.NOT_COMPATIBLE),
        ({"right": True, "failed_services": ("dnsmasq",)}, Reason.SERVICES_FAILED),
        ({"version": "4.15.2"}, Reason.NOT_COMPATIBLE),
        ({"version": "?"}, Reason.VERSION_UNKNOWN),
    ],
)
def test_what_would_be_held_or_done_otherwise_now_is_not_patched_over_ssh(now: dict[str, Any], reason: Reason) -> None:
    made = planned(router())
    rollout, vm = running(made), router(**now)
    assert orders(rollout, made, router()) == {"r-1-VM": SSH}
    assert orders(rollout, made, vm) == {}
    assert waits_for(rollout, made, vm) == {vm.name: reason}
    assert said(rollout, made, vm).result is RolloutResult.SUPERSEDED


def test_a_router_that_became_primary_is_not_made_to_fail_over() -> None:
    def pair(first: RedundancyRole, second: RedundancyRole) -> tuple[VMFacts, VMFacts]:
        return tuple(  # type: ignore[return-value]
            router(name, role=role, group="n-1", actions=KEEPALIVED)
            for name, role in (("r-1-VM", first), ("r-2-VM", second))
        )

    before = pair(RedundancyRole.BACKUP, RedundancyRole.PRIMARY)
    made = planned(*before)
    assert made.members == (before[0].name,)
    rollout = running(made)
    assert orders(rollout, made, *before) == {"r-1-VM": SSH}
    after = pair(RedundancyRole.PRIMARY, RedundancyRole.BACKUP)
    assert orders(rollout, made, *after) == {}
    assert waits_for(rollout, made, *after) == {after[0].name: "FailoverNotAllowed"}
    leave = {"plannedFailover": "Allowed"}
    assert view_of(running(made, live_patch=leave), made, *after).held == ()


@pytest.mark.parametrize(
    ("options", "now"),
    [
        ({"route": "SSH"}, {"gate_closed": True, "gate": GATED}),
        ({"route": "SSH"}, {"gate_closed": None, "gate": "not known"}),
        ({"hostPayload": "Warn"}, {"host_payload": OTHER_HOST}),
    ],
)
def test_what_the_policy_allows_goes_on(options: dict[str, Any], now: dict[str, Any]) -> None:
    made = planned(router(), live_patch=options)
    assert orders(running(made, live_patch=options), made, router(**now)) == {"r-1-VM": SSH}


def test_what_a_host_that_may_differ_hides_is_asked_too() -> None:
    options = {"hostPayload": "Warn"}
    made = planned(router(), live_patch=options)
    vm = router(host_payload=OTHER_HOST, recreating_checks=VERSION_CHECK)
    assert waits_for(running(made, live_patch=options), made, vm) == {vm.name: "HealthCheckWouldRecreate"}


def test_a_network_that_became_a_pair_is_not_patched_by_cloudstack_without_leave() -> None:
    made = planned(router(), live_patch={"route": "API"})
    rollout = running(made, live_patch={"route": "API"})
    assert orders(rollout, made, router()) == {"r-1-VM": (Method.LIVE_PATCH, Route.API)}
    now = router(api_patch=NETWORK.model_copy(update={"vms": ("r-1-VM", "r-2-VM")}))
    assert orders(rollout, made, now) == {}
    assert waits_for(rollout, made, now) == {now.name: "FailoverNotAllowed"}


def test_a_vm_is_not_rebooted_onto_a_host_with_another_payload() -> None:
    made, rollout = started_by(Method.REBOOT)
    now = router(host_payload=OTHER_HOST, gate_closed=True, gate=GATED, api_patch=None)
    assert waits_for(rollout, made, now) == {now.name: "HostPayloadMismatch"}


def test_a_vm_is_not_rebooted_that_needs_no_start_any_more() -> None:
    """Its template was required, or its gate was closed, and something else has mended that."""
    made, rollout = started_by(Method.REBOOT)
    gated = router(gate_closed=True, gate=GATED, api_patch=None)
    assert orders(rollout, made, gated) == {"r-1-VM": (Method.REBOOT, None)}
    assert orders(rollout, made, router()) == {}
    assert waits_for(rollout, made, router()) == {router().name: "ScriptsOutdated"}


def test_a_peer_that_did_not_answer_when_it_was_planned_is_decided_about_when_it_does() -> None:
    first = router(role=RedundancyRole.BACKUP, group="n-1")
    silent = router("r-2-VM", role=RedundancyRole.PRIMARY, group="n-1", reach=b.UNREACHABLE)
    made = planned(first, silent)
    assert made.entry(silent.name).method is Method.LIVE_PATCH
    answers = router("r-2-VM", role=RedundancyRole.PRIMARY, group="n-1", recreating_checks=VERSION_CHECK)
    view = view_of(running(made), made, ended(first), answers)
    assert view.why_held[silent.name].reason is Reason.HEALTH_CHECK_WOULD_RECREATE


def test_a_gated_vm_that_appeared_later_is_left_to_a_plan_that_says_how() -> None:
    made = planned(router())
    late = router("r-9-VM", gate_closed=True, gate=GATED)
    wave = WaveStatus(name="rest", digest=made.waves[0].digest, appended=(AppendedVM(name=late.name, uid=late.uid),))
    rollout = running(made, status=RolloutStatus(waves=(wave,)))
    assert orders(rollout, made, router(), late) == {"r-1-VM": SSH}
    assert waits_for(rollout, made, router(), late) == {late.name: "ManagementGateClosed"}


def test_of_a_vm_that_must_be_looked_at_nothing_is_said_before() -> None:
    made = planned(router())
    stale = replace(router(recreating_checks=VERSION_CHECK), content_fresh=False)
    assert [facts.vm for facts in view_of(running(made), made, stale).waiting] == ["r-1-VM"]
    assert orders(running(made), made, stale) == {}
    assert admitted(running(made), made, stale).look_at == {stale.name}


@pytest.mark.parametrize("change", [{"hold": b.HOLD}, {"reach": b.UNREACHABLE}, {"deleting": True}])
def test_a_hold_counts_also_for_who_was_started_anew(change: dict[str, Any]) -> None:
    made = planned(router())
    came_up = replace(ended(router(), Method.REBOOT), observed=b.observed())
    rollout = running(made, ("LivePatch", "Reboot"))
    assert [facts.vm for facts in view_of(rollout, made, came_up).waiting] == ["r-1-VM"]
    assert [facts.vm for facts in view_of(rollout, made, replace(came_up, **change)).skipped] == ["r-1-VM"]
    assert orders(rollout, made, replace(came_up, **change)) == {}


@given(
    closed=st.sampled_from([False, True, None]),
    checks=st.sampled_from([(), VERSION_CHECK, ("dns_check.py",), None]),
    host=st.sampled_from([RIGHT_HOST, OTHER_HOST, None]),
    obstacles=st.sampled_from([(), OBSTACLE]),
    version=st.sampled_from(["4.20.1", "4.15.2", "?"]),
    right=st.booleans(),
    failed=st.sampled_from([(), ("dnsmasq",)]),
    call=st.sampled_from([NETWORK, None]),
    route=st.sampled_from(["Auto", "SSH", "API"]),
    rule=st.sampled_from(["Require", "Warn"]),
    role=st.sampled_from([None, RedundancyRole.PRIMARY]),
)
def test_nothing_is_ordered_that_would_not_be_planned_now(
    closed: bool | None, checks: Any, host: Any, obstacles: Any, version: str, right: bool, failed: Any, call: Any,
    route: str, rule: str, role: Any,
) -> None:  # fmt: skip
    options = {"route": route, "hostPayload": rule}
    made = planned(router(role=role), live_patch=options)
    actions = KEEPALIVED if role else ()
    vm = router(
        gate_closed=closed, gate="" if closed is False else GATED, recreating_checks=checks, host_payload=host,
        obstacles=obstacles, version=version, right=right, failed_services=failed, api_patch=call, role=role,
        actions=actions,
    )  # fmt: skip
    for method, way in orders(running(made, live_patch=options), made, vm).values():
        now = decide(vm, RELEASE, live_patch=LivePatchOptions.model_validate(options))
        assert (now.method, now.route) == (method, way or Route.SSH)


# How old what is known may be


def swept(minutes: float, *, checks: tuple[str, ...] | None = ()) -> Snapshot:
    vm = CloudVM(
        id="id-r-1-VM", name="r-1-VM", type=SystemVMType.ROUTER, state=CloudVMState.RUNNING, zone_id="z1", zone="ams-1"
    )
    return Snapshot(
        taken_at=b.ago(minutes=minutes), server_version="4.20.2.0", hosts={}, vms={vm.id: vm}, networks={}, vpcs={},
        zones={"z1": CloudZone(id="z1", name="ams-1", recreating_checks=checks)},
    )  # fmt: skip


def test_the_last_sweep_counts_and_not_what_a_status_says_of_an_earlier_one() -> None:
    (on,) = as_swept([router()], swept(0, checks=VERSION_CHECK))
    made = planned(router())
    assert orders(running(made), made, on) == {}
    (off,) = as_swept([router(recreating_checks=VERSION_CHECK)], swept(0))
    assert orders(running(made), made, off) == {"r-1-VM": SSH}


@pytest.mark.parametrize("vm", [router(), b.facts(), replace(router(), identity=None), router("r-7-VM")])
def test_without_a_sweep_that_tells_more_facts_stay_as_they_are(vm: VMFacts) -> None:
    assert list(as_swept([vm], None)) == [vm]
    assert list(as_swept([vm], swept(0))) == [vm]


@pytest.mark.parametrize(
    ("minutes", "interval", "old"),
    [(9, 0.2, False), (11, 0.2, True), (14, 5, False), (16, 5, True), (170, 60, False), (181, 60, True)],
)
def test_a_sweep_is_too_old_after_three_that_are_missing_and_ten_minutes(
    minutes: float, interval: float, old: bool
) -> None:
    told = why_too_old(swept(minutes), timedelta(minutes=interval), b.NOW)
    assert (told is not None) is old
    assert why_too_old(None, timedelta(minutes=interval), b.NOW) is None


OLD_SWEEP = Live(cloud_too_old="the management server's lists were last read whole at 2026-11-22T11:00:00Z")


def test_a_router_waits_for_a_sweep_that_is_not_too_old_and_is_asked_for_again() -> None:
    made = planned(router())
    found = admitted(running(made), made, router(), live=OLD_SWEEP)
    assert found.admitted == ()
    (blocker,) = found.blocked[router().name]
    assert blocker.reason == Reason.ENDPOINT_UNREACHABLE
    assert blocker.message.endswith("is not known: the management server's lists were last read whole at "
                                    "2026-11-22T11:00:00Z")  # fmt: skip
    assert found.next_change == b.NOW + SWEPT_AGAIN
    assert admitted(running(made), made, router()).next_change is None
    status = outcome(
        running(made), made, view_of(running(made), made, router()),
        replace(OLD_SWEEP, held_back={router().name: blocker}), now=b.NOW,
    )  # fmt: skip
    assert (status.result, status.blocked_by[0].reason) == (None, "EndpointUnreachable")


def test_who_cannot_be_recreated_for_a_check_does_not_wait_for_a_sweep() -> None:
    ssvm = router("s-1-VM", type=SystemVMType.SECSTORAGE)
    made = planned(ssvm)
    assert orders(running(made), made, ssvm, live=OLD_SWEEP) == {"s-1-VM": SSH}
    listed = planned(router()).model_copy(update={"cloud": None})  # by people: no server knows them
    assert orders(running(listed), listed, router(), live=OLD_SWEEP) == {"r-1-VM": SSH}


def test_a_router_whose_books_were_not_read_is_looked_at_first() -> None:
    made = planned(router())
    vm = router()
    assert vm.observed is not None
    unread = replace(vm, observed=vm.observed.model_copy(update={"management": None}))
    found = admitted(running(made), made, unread)
    assert (list(found.admitted), found.look_at) == ([], frozenset({unread.name}))
    assert found.blocked[unread.name][0].reason == Reason.NOT_OBSERVED


# One call for a group


def two(**second: Any) -> tuple[VMFacts, VMFacts]:
    call = NETWORK.model_copy(update={"vms": ("r-1-VM", "r-2-VM")})
    pair: dict[str, Any] = {"group": "blue", "api_patch": call}
    return (
        router("r-1-VM", role=RedundancyRole.PRIMARY, **pair),
        router("r-2-VM", role=RedundancyRole.BACKUP, **{**pair, **second}),
    )


BOTH_BY_API = {"route": "API", "plannedFailover": "Allowed"}


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"host_payload": OTHER_HOST}, "HostPayloadMismatch"),
        ({"hold": b.HOLD}, "OnHold"),
        ({"deleting": True}, "Deleting"),
        ({"reach": b.UNREACHABLE}, None),
    ],
)
def test_who_must_not_be_changed_keeps_its_peer_from_their_call(second: dict[str, Any], reason: str | None) -> None:
    vms = two()
    made = planned(*vms, live_patch=BOTH_BY_API)
    rollout = running(made, live_patch=BOTH_BY_API)
    assert orders(rollout, made, *vms) == dict.fromkeys(("r-1-VM", "r-2-VM"), (Method.LIVE_PATCH, Route.API))
    now = two(**second)
    view = view_of(rollout, made, *now)
    if reason is None:  # it may answer while the call waits for it
        assert "r-1-VM" in [facts.vm for facts in view.waiting]
        return
    assert orders(rollout, made, *now) == {}
    assert view.why_held[now[0].name].reason == reason
    assert "changes all routers of group blue, and " in view.why_held[now[0].name].sentence
    assert said(rollout, made, *now).result is RolloutResult.SUPERSEDED


def test_over_ssh_a_peer_that_must_not_be_changed_keeps_nobody() -> None:
    before = two()
    made = planned(*before)
    only = view_of(running(made), made, *two(host_payload=OTHER_HOST))
    assert ([facts.vm for facts in only.waiting], [facts.vm for facts in only.held]) == (["r-1-VM"], ["r-2-VM"])
