"""What a closed gate, an unknown one and the zone's health checks decide about a VM, and what its policy says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.domain.kstatus import kstatus

from sysvm.api.base import ConditionStatus
from sysvm.api.methods import AllowedMethod, LivePatchOptions, Method, Route
from sysvm.api.observed import ApiCommand, ApiPatchCall, ObservedHostPayload, ObservedManagement
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.systemvm import SystemVM
from sysvm.domain import conditions
from sysvm.domain.facts import Reach, VMFacts, facts_of
from sysvm.domain.method import Decision, decide
from sysvm.domain.planner import decide_all
from sysvm.domain.policy_status import PolicySituation, policy_status
from sysvm.domain.selection import Selection
from sysvm.domain.system_vm_status import plan_entry, system_vm_truth

from . import builders as b

CLOSED = (
    "the management server sends no command to r-101-VM: 4.19.1 as minreq.sysvmtemplate.version would open the gate"
)
UNKNOWN = "whether the management server sends commands to r-101-VM is not known: nobody looked"
NETWORK = ApiPatchCall(command=ApiCommand.RESTART_NETWORK, id="n1", name="blue", vms=("r-101-VM",))
PAIR = NETWORK.model_copy(update={"vms": ("r-101-VM", "r-102-VM")})
TIERS = ApiPatchCall(command=ApiCommand.RESTART_VPC, id="v1", name="shop", patches=3, vms=("r-101-VM",))
IMPOSSIBLE: dict[str, Any] = {"api_patch": None, "api_patch_refused": "VPC shop has no tier"}


def books(closed: bool | None, **values: Any) -> ObservedManagement:
    gate = {True: CLOSED, False: "", None: UNKNOWN}[closed]
    known: dict[str, Any] = {"at": b.NOW, "api_patch": NETWORK, "recreating_checks": ()}
    return ObservedManagement(**{**known, "gate_closed": closed, "gate": gate, **values})


RELEASE = b.release().model_copy(update={"scripts_revision": b.NEW})
HOST = ObservedHostPayload(host="kvm-1", checksum=f"sha512:{'bb' * 64}", revision=b.NEW)


def seen(closed: bool | None, *, right: bool, host: ObservedHostPayload | None = HOST, **values: Any) -> VMFacts:
    observed = b.up_to_date() if right else b.observed()
    known = {"management": books(closed, **values), "host_payload": host}
    return b.facts(observed=observed.model_copy(update=known), hypervisor="KVM")


def decided(vm: VMFacts, route: str = "Auto", **options: Any) -> Decision:
    return decide(vm, RELEASE, live_patch=LivePatchOptions.model_validate({"route": route, **options}))


HOLD, PATCH, NONE = Method.HOLD, Method.LIVE_PATCH, Method.NONE
SSH, API = Route.SSH, Route.API
OUTDATED, GATED, UNCLEAR = Reason.SCRIPTS_OUTDATED, Reason.MANAGEMENT_GATE_CLOSED, Reason.MANAGEMENT_GATE_UNKNOWN


@pytest.mark.parametrize(
    ("closed", "route", "right", "expected"),
    [
        (False, "Auto", False, (PATCH, OUTDATED, SSH)),
        (False, "SSH", False, (PATCH, OUTDATED, SSH)),
        (False, "API", False, (PATCH, OUTDATED, API)),
        (False, "Auto", True, (NONE, Reason.UP_TO_DATE, None)),
        (False, "SSH", True, (NONE, Reason.UP_TO_DATE, None)),
        (False, "API", True, (NONE, Reason.UP_TO_DATE, None)),
        (True, "Auto", False, (PATCH, GATED, API)),
        (True, "SSH", False, (PATCH, OUTDATED, SSH)),
        (True, "API", False, (PATCH, GATED, API)),
        (True, "Auto", True, (PATCH, GATED, API)),
        (True, "SSH", True, (HOLD, GATED, None)),
        (True, "API", True, (PATCH, GATED, API)),
        (None, "Auto", False, (HOLD, UNCLEAR, None)),
        (None, "SSH", False, (PATCH, OUTDATED, SSH)),
        (None, "API", False, (PATCH, OUTDATED, API)),
        (None, "Auto", True, (HOLD, UNCLEAR, None)),
        (None, "SSH", True, (HOLD, UNCLEAR, None)),
        (None, "API", True, (HOLD, UNCLEAR, None)),
    ],
)
def test_gate_and_route_decide_how_a_vm_is_patched(
    closed: bool | None,
    route: str,
    right: bool,
    expected: tuple[Method, Reason, Route | None],
) -> None:
    found = decided(seen(closed, right=right), route)
    assert (found.method, found.reason, found.route) == expected
    assert found.converged is (found.method is NONE)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize(
    ("values", "reason", "said"),
    [
        (IMPOSSIBLE, Reason.API_PATCH_IMPOSSIBLE, "VPC shop has no tier"),
        ({"api_patch": TIERS}, Reason.TOO_MANY_API_PATCHES, "once for each of its 3 tiers"),
        ({"host": None}, Reason.API_PATCH_IMPOSSIBLE, "nobody saw it"),
        ({"api_patch": PAIR}, Reason.FAILOVER_NOT_ALLOWED, "r-101-VM and r-102-VM one right after the other"),
    ],
)
def test_where_the_api_route_cannot_work_a_gated_router_is_held(
    values: dict[str, Any],
    reason: Reason,
    said: str,
    right: bool,
) -> None:
    by_itself = decided(seen(True, right=right, **values))
    assert (by_itself.method, by_itself.reason) == (HOLD, GATED)
    forced = decided(seen(True, right=right, **values), "API")
    assert (forced.method, forced.reason) == (HOLD, reason)
    for each in (by_itself, forced):
        assert said in each.message
        assert "would open the gate" in each.message


@pytest.mark.parametrize("methods", [("LivePatch", "Reboot"), ("Recreate", "LivePatch", "Reboot")])
@pytest.mark.parametrize("route", ["Auto", "API"])
def test_else_the_server_starts_the_router_itself_if_that_is_allowed(methods: tuple[str, ...], route: str) -> None:
    found = decide(
        seen(True, right=True, **IMPOSSIBLE),
        RELEASE,
        methods=tuple(map(AllowedMethod, methods)),
        live_patch=LivePatchOptions.model_validate({"route": route}),
    )
    expected = next(each for each in methods if each != "LivePatch")
    assert (found.method, found.reason) == (Method(expected), GATED)


def test_after_a_patch_over_ssh_a_start_by_the_server_opens_the_gate() -> None:
    methods = (AllowedMethod.LIVE_PATCH, AllowedMethod.REBOOT)
    options = LivePatchOptions.model_validate({"route": "SSH"})
    assert decide(seen(True, right=False), RELEASE, methods=methods, live_patch=options).route is SSH
    found = decide(seen(True, right=True), RELEASE, methods=methods, live_patch=options)
    assert (found.method, found.reason) == (Method.REBOOT, GATED)


@pytest.mark.parametrize("rule", ["Require", "Warn"])
def test_the_api_route_is_never_taken_where_the_host_holds_another_payload(rule: str) -> None:
    other = HOST.model_copy(update={"revision": b.OLD})
    found = decided(seen(True, right=True, host=other), "API", hostPayload=rule)
    assert (found.method, found.reason) == (HOLD, Reason.HOST_PAYLOAD_MISMATCH)


@pytest.mark.parametrize(("own", "route"), [("bb" * 64, API), ("aa" * 64, None), (None, None)])
def test_on_vmware_the_server_installs_its_own_payload(own: str | None, route: Route | None) -> None:
    vm = seen(True, right=True, host=None, server_scripts_version=own)
    assert vm.identity is not None
    there = replace(vm, identity=vm.identity.model_copy(update={"hypervisor": "VMware"}))
    assert decided(there, "API").route is route


def test_leave_makes_the_api_route_possible() -> None:
    assert decided(seen(True, right=True, api_patch=TIERS), maxApiPatchesPerRouter=3).route is API
    assert decided(seen(True, right=True, api_patch=PAIR), plannedFailover="Allowed").route is API


def test_a_policy_without_live_patch_never_asks_for_one() -> None:
    found = decide(seen(True, right=False), RELEASE, methods=())
    assert (found.method, found.reason) == (HOLD, GATED)
    assert "does not list LivePatch" in found.message


def test_the_api_route_names_what_it_costs_before_it_happens() -> None:
    call = PAIR.model_copy(update={"patches": 2})
    found = decided(seen(True, right=True, api_patch=call), plannedFailover="Allowed")
    told = " ".join(found.warnings)
    assert "restarts every enabled service of r-101-VM and r-102-VM, 2 times" in told
    assert "one right after the other: their gateway may move" in told
    assert "only when each has a backup to go back to" in told
    entry = plan_entry("routers", b.release(), found)
    assert (entry.method, entry.route) == (PATCH, API)
    assert "load-balanced connections are cut" in entry.message


def test_a_static_endpoint_has_no_api_route_and_no_gate() -> None:
    assert decided(b.facts()).route is SSH
    found = decided(b.facts(), "API")
    assert (found.method, found.reason) == (HOLD, Reason.API_PATCH_IMPOSSIBLE)


# The zone's health checks


@pytest.mark.parametrize("route", ["Auto", "SSH"])
def test_ssh_is_refused_where_cloudstack_would_recreate_the_router_for_it(route: str) -> None:
    found = decided(seen(False, right=False, recreating_checks=("dns_check.py", "router_version_check.py")), route)
    assert (found.method, found.reason) == (HOLD, Reason.HEALTH_CHECK_WOULD_RECREATE)
    assert "zone ams-1 names that check" in found.message


def test_the_api_route_keeps_the_books_and_is_not_refused_for_it() -> None:
    checks = ("router_version_check.py",)
    assert decided(seen(False, right=False, recreating_checks=checks), "API").route is API
    assert decided(seen(True, right=False, recreating_checks=checks)).route is API
    assert decided(seen(False, right=True, recreating_checks=checks)).method is NONE


@pytest.mark.parametrize(
    ("checks", "said"),
    [
        (("dns_check.py",), "recreates routers of its zone after a failure of dns_check.py"),
        (None, "cannot be read"),
        ((), ""),
    ],
)
def test_other_checks_are_a_warning(checks: tuple[str, ...] | None, said: str) -> None:
    found = decided(seen(False, right=False, recreating_checks=checks))
    assert found.route is SSH
    assert (said in " ".join(found.warnings)) if said else not found.warnings


# Whatever the cloud is

CALLS = st.sampled_from([NETWORK, PAIR, TIERS, None])
CHECKS = st.sampled_from([(), ("dns_check.py",), ("router_version_check.py",), None])


@given(
    closed=st.sampled_from([True, False, None]),
    right=st.booleans(),
    call=CALLS,
    checks=CHECKS,
    host=st.sampled_from([HOST, HOST.model_copy(update={"revision": b.OLD}), None]),
    route=st.sampled_from(["Auto", "SSH", "API"]),
    leave=st.sampled_from(["Never", "Allowed"]),
    most=st.integers(min_value=1, max_value=4),
    rule=st.sampled_from(["Require", "Warn"]),
    methods=st.sets(st.sampled_from(list(AllowedMethod))),
)
def test_no_route_is_taken_that_the_policy_or_the_cloud_forbids(
    closed: bool | None,
    right: bool,
    call: ApiPatchCall | None,
    checks: tuple[str, ...] | None,
    host: ObservedHostPayload | None,
    route: str,
    leave: str,
    most: int,
    rule: str,
    methods: set[AllowedMethod],
) -> None:
    options = {"route": route, "plannedFailover": leave, "maxApiPatchesPerRouter": most, "hostPayload": rule}
    vm = seen(closed, right=right, host=host, api_patch=call, recreating_checks=checks)
    found = decide(vm, RELEASE, methods=tuple(sorted(methods)), live_patch=LivePatchOptions.model_validate(options))
    if found.converged:
        assert closed is False
        assert right
    if found.method is PATCH:
        assert AllowedMethod.LIVE_PATCH in methods
        assert found.route is not None
    if found.route is API:
        assert route == "API" or (route == "Auto" and closed)
        assert call is not None
        assert call.patches <= most
        assert len(call.vms) == 1 or leave == "Allowed"
        assert host == HOST
    if found.route is SSH:
        assert route != "API"
        assert not right
        assert route == "SSH" or closed is False
        assert "router_version_check.py" not in (checks or ())
    if found.method not in (PATCH, HOLD, NONE):
        assert closed
        assert AllowedMethod(found.method) in methods


# What a SystemVM and its policy say


def system_vm(scripts: str | None, **kwargs: Any) -> SystemVM:
    observed = b.up_to_date().model_copy(update={"management": books(False, scripts_version=scripts)})
    return b.system_vm(observed=observed, **kwargs)


@pytest.mark.parametrize(("scripts", "stale"), [("aa" * 64, True), ("bb" * 64, False), (None, False)])
def test_books_that_differ_are_told_and_hold_nothing(scripts: str | None, *, stale: bool) -> None:
    vm = system_vm(scripts)
    decision = decide(facts_of(vm, now=b.NOW), b.release())
    truth = system_vm_truth(vm, reach=Reach(True, Reason.REACHABLE), release=b.release(), decision=decision, now=b.NOW)
    assert conditions.is_true(truth.conditions, ConditionType.MANAGEMENT_VIEW_STALE) is stale
    assert conditions.is_true(truth.conditions, ConditionType.READY)


def policy_says(*vms: VMFacts, **spec: Any) -> tuple[Any, Any]:
    policy = b.policy(**spec)
    decisions = decide_all(policy.spec, b.release(), vms, excluded={})
    situation = PolicySituation(
        policy=policy,
        endpoint=b.endpoint(),
        template=b.template(),
        selection=Selection(vms=tuple(vms), excluded={}, conflicts=()),
        decisions=decisions,
    )
    status = policy_status(situation, now=b.NOW)
    return policy, status


@pytest.mark.parametrize(("closed", "reason"), [(True, GATED), (None, UNCLEAR)])
def test_a_policy_is_not_ready_while_a_members_gate_is_not_open(closed: bool | None, reason: Reason) -> None:
    policy, status = policy_says(
        seen(closed, right=True), b.facts("r-9-VM", observed=b.up_to_date()), livePatch={"route": "SSH"}
    )
    ready = conditions.find(status.conditions, ConditionType.READY)
    assert ready is not None
    assert (ready.status, ready.reason) == (ConditionStatus.FALSE, reason)
    assert ready.message.startswith("r-101-VM is at 4.20.2")
    assert kstatus(policy.metadata.generation, status) == "InProgress"
    assert not conditions.is_true(status.conditions, ConditionType.STALLED)
    assert status.counts is not None
    assert (status.counts.converged, status.counts.held) == (1, 1)


def test_a_tolerated_silence_hides_no_closed_gate() -> None:
    observed = b.up_to_date().model_copy(update={"management": books(True)})
    silent = b.facts(observed=observed, reach=b.UNREACHABLE)
    _, status = policy_says(silent, readiness={"maxUnreachable": 1})
    ready = conditions.find(status.conditions, ConditionType.READY)
    assert ready is not None
    assert (ready.status, ready.reason) == (ConditionStatus.FALSE, GATED)
