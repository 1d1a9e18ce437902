"""What must hold before a reboot or a recreation, and after it: by what is seen, not by what the server says."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.unit.domain.builders import NOW, ago, facts, observed, up_to_date

from sysvm.api.endpoint import SystemVMType
from sysvm.api.images import Images
from sysvm.api.methods import Method
from sysvm.api.observed import DataBags, Observed, RedundancyRole, RuleKind
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.domain import group_operation as machine
from sysvm.domain.beside import duplicates, leftovers
from sysvm.domain.calls import Call, Command, JobState, JobTold, Look, Looked, Standing, Submitted
from sysvm.domain.cloud import CloudHost, CloudVM, CloudVMState, CloudZone
from sysvm.domain.facts import Reach, VMFacts
from sysvm.domain.group_operation import Limits
from sysvm.domain.lifecycle import (
    RecreateRouters,
    RecreateSystemVM,
    aim_of,
    interruption,
    judge_of,
    why_impossible,
)
from sysvm.domain.room import HostRoom, Room
from sysvm.domain.rule_counts import ListedRules
from sysvm.domain.templates import CloudTemplate, CloudTemplates

LIMITS = Limits(step=timedelta(minutes=10), vm=timedelta(minutes=30))
ZONE = CloudZone(id="z-1", name="ams-1")
HOSTS = tuple(
    CloudHost(id=f"h-{number}", name=f"kvm-{number}", address=None, zone_id="z-1", hypervisor="KVM", arch="x86_64")
    for number in (1, 2)
)
IMAGES = Images.model_validate({"items": [{"hypervisor": "KVM", "name": "systemvm-kvm-4.20.2-x86_64"}]})
OLD_IMAGE, NEW_IMAGE = "systemvm-kvm-4.20.1-x86_64", "systemvm-kvm-4.20.2-x86_64"


def templates(name: str = NEW_IMAGE, *, ready: bool = True) -> CloudTemplates:
    """The server would start everything from this one."""
    found = [
        CloudTemplate(id=name, name=name, type="SYSTEM", hypervisor="KVM", arch="x86_64", zone_id="z-1", ready=ready)
    ]
    return CloudTemplates(taken_at=NOW, templates=tuple(found), router_names={("z-1", "kvm"): name})


def vm(name: str, **values: Any) -> CloudVM:
    type_ = {"s": SystemVMType.SECSTORAGE, "v": SystemVMType.CONSOLEPROXY, "r": SystemVMType.ROUTER}[name[0]]
    base: dict[str, Any] = {
        "id": f"id-{name}",
        "name": f"{name}-VM",
        "type": type_,
        "state": CloudVMState.RUNNING,
        "zone_id": "z-1",
        "zone": "ams-1",
        "host_id": "h-1",
        "host": "kvm-1",
        "hypervisor": "KVM",
        "arch": "x86_64",
        "network_id": "n-1" if name[0] == "r" else None,
        "agent_state": "Up" if name[0] != "r" else None,
    }
    return CloudVM(**{**base, **values})


def seen(cloud_vm: CloudVM, **values: Any) -> VMFacts:
    """What a look after the job finds on a VM from the declared template."""
    look = up_to_date(version="4.20.2", at=NOW + timedelta(minutes=1))
    look = look.model_copy(update={"boot_id": "boot-2", "booted": True})
    return facts(cloud_vm.name, type=cloud_vm.type, **{"observed": look, **values})


def in_boot(boot: str, at: datetime) -> Observed:
    return up_to_date(version="4.20.2", at=at).model_copy(update={"boot_id": boot, "booted": True})


def look(*vms: CloudVM, known: tuple[VMFacts, ...] | None = None, **values: Any) -> Look:
    base: dict[str, Any] = {
        "taken_at": NOW + timedelta(minutes=2),
        "vms": vms,
        "zone": ZONE,
        "hosts": HOSTS,
        "templates": templates(),
        "rules": ListedRules({}),
        "known": tuple(seen(each) for each in vms) if known is None else known,
    }
    return Look(**{**base, **values})


def called(method: Method, *vms: CloudVM, job: JobState = JobState.SUCCEEDED, text: str = "") -> GroupOperation:
    """The call was made for these VMs, and its job has ended at NOW."""
    aim = aim_of(method, vms[0], "n-1" if vms[0].type is SystemVMType.ROUTER else None)
    assert aim is not None
    before = [seen(each, observed=in_boot("boot-1", NOW + timedelta(minutes=1))) for each in vms]
    operation = machine.begun(aim.group, method, aim.call, vms[0], ["op-1"], NOW)
    judge = judge_of(operation, version="4.20.2", images=IMAGES)
    for event in (Looked(look(*vms, known=tuple(before))), Submitted("job-1"), JobTold(job, text)):
        operation = machine.apply(operation, event, judge, LIMITS, NOW)
    return operation


def verdict(operation: GroupOperation, after: Look) -> tuple[Standing, Reason | None]:
    found = judge_of(operation, version="4.20.2", images=IMAGES).after(operation, after)
    return found.standing, found.reason


# Which call


@pytest.mark.parametrize(
    ("method", "cloud_vm", "call", "group"),
    [
        (Method.REBOOT, vm("r-1"), Call(Command.REBOOT_ROUTER, "id-r-1"), "r-1-VM"),
        (Method.REBOOT, vm("s-1"), Call(Command.REBOOT_SYSTEM_VM, "id-s-1", ("forced",)), "s-1-VM"),
        (Method.RECREATE, vm("s-1"), Call(Command.DESTROY_SYSTEM_VM, "id-s-1"), "s-1-VM"),
        (Method.RECREATE, vm("v-1"), Call(Command.DESTROY_SYSTEM_VM, "id-v-1"), "v-1-VM"),
        (Method.RECREATE, vm("r-1"), Call(Command.RESTART_NETWORK, "n-1", ("cleanup",)), "group"),
        (
            Method.RECREATE,
            vm("r-1", type=SystemVMType.VPCROUTER, vpc_id="vpc-1"),
            Call(Command.RESTART_VPC, "vpc-1", ("cleanup",)),
            "group",
        ),
        (
            Method.RECREATE,  # without tiers it serves no network
            vm("r-1", type=SystemVMType.VPCROUTER, vpc_id="vpc-1", network_id=None),
            Call(Command.RESTART_VPC, "vpc-1", ("cleanup",)),
            "group",
        ),
        (
            Method.RECREATE,
            vm("r-1", type=SystemVMType.DHCPSRVR),
            Call(Command.RESTART_NETWORK, "n-1", ("cleanup",)),
            "group",
        ),
    ],
)
def test_each_type_has_its_call(method: Method, cloud_vm: CloudVM, call: Call, group: str) -> None:
    aim = aim_of(method, cloud_vm, "group")
    assert aim is not None
    assert (aim.call, aim.group) == (call, group)
    operation = machine.begun(aim.group, method, aim.call, cloud_vm, [], NOW)
    assert judge_of(operation, version=None, images=None).call(operation) == call, "the same after a restart"


@pytest.mark.parametrize("method", [Method.REBOOT, Method.RECREATE])
@pytest.mark.parametrize("type_", [SystemVMType.ILBVM, SystemVMType.ELBVM])
def test_a_load_balancer_vm_has_none(method: Method, type_: SystemVMType) -> None:
    assert aim_of(method, vm("r-1", type=type_), "group") is None
    told = why_impossible(method, type_)
    assert told is not None
    assert told.startswith(f"CloudStack has no call that does {method} with a VM of type {type_}: ")
    assert ("startInternalLoadBalancerVM" in told) == (type_ is SystemVMType.ILBVM), "what a person can do is named"


def test_a_live_patch_is_none_of_these_calls() -> None:
    assert aim_of(Method.LIVE_PATCH, vm("r-1"), "group") is None


# Before


def preparing(method: Method, cloud_vm: CloudVM) -> GroupOperation:
    aim = aim_of(method, cloud_vm, "n-1")
    assert aim is not None
    return machine.begun(aim.group, method, aim.call, cloud_vm, ["op-1"], NOW)


ALL = ((Method.REBOOT, "r-1"), (Method.RECREATE, "r-1"), (Method.RECREATE, "s-1"), (Method.REBOOT, "v-1"))
MAINTENANCE = (replace(HOSTS[0], resource_state="Maintenance"), HOSTS[1])


@pytest.mark.parametrize(("method", "name"), ALL)
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, None),
        ({"zone": replace(ZONE, enabled=False)}, Reason.ZONE_DISABLED),
        ({"zone": None}, Reason.ZONE_DISABLED),
        ({"hosts": MAINTENANCE}, Reason.HOST_NOT_READY),
        ({"hosts": (replace(HOSTS[0], state="Down"), HOSTS[1])}, Reason.HOST_NOT_READY),
        ({"hosts": ()}, Reason.HOST_NOT_READY),
        ({"templates": templates(OLD_IMAGE)}, Reason.WRONG_TEMPLATE_WOULD_BE_USED),
        ({"templates": None}, Reason.IMAGES_NOT_SEEN),
    ],
)
def test_nothing_is_called_before_everything_is_as_it_should_be(
    method: Method, name: str, values: dict[str, Any], reason: Reason | None
) -> None:
    operation = preparing(method, vm(name))
    found = judge_of(operation, version="4.20.2", images=IMAGES).before(operation, look(vm(name), **values))
    assert found.reason == reason
    assert (found.standing is Standing.HOLDS) == (reason is None)


def test_what_may_be_started_on_another_architecture_from_another_template_is_left_alone() -> None:
    arm = CloudHost(id="h-3", name="arm-1", address=None, zone_id="z-1", hypervisor="KVM", arch="aarch64")
    other = CloudTemplate(
        id="t-arm", name=OLD_IMAGE, type="SYSTEM", hypervisor="KVM", arch="aarch64", zone_id="z-1", ready=True
    )
    found = templates()
    mixed = replace(found, templates=(*found.templates, other))
    operation = called(Method.RECREATE, vm("s-1"))
    judge = judge_of(operation, version="4.20.2", images=IMAGES)
    before = judge.before(operation, look(vm("s-1"), hosts=(*HOSTS, arm), templates=mixed))
    assert (before.standing, before.reason) == (Standing.NOT_YET, Reason.IMAGE_NOT_DECLARED)


def test_a_router_takes_a_named_template_that_is_not_ready_and_is_left_alone() -> None:
    operation = preparing(Method.RECREATE, vm("r-1"))
    not_ready = look(vm("r-1"), templates=templates(ready=False))
    found = judge_of(operation, version="4.20.2", images=IMAGES).before(operation, not_ready)
    assert found.reason is Reason.IMAGE_NOT_READY


def test_the_images_are_not_asked_for_where_no_template_is_required() -> None:
    operation = preparing(Method.REBOOT, vm("r-1"))
    judge = judge_of(operation, version=None, images=None)
    assert judge.before(operation, look(vm("r-1"), templates=None)).standing is Standing.HOLDS


def test_two_routers_with_one_gateway_are_left_to_a_person() -> None:
    operation = preparing(Method.RECREATE, vm("r-1"))
    found = judge_of(operation, version=None, images=None).before(operation, look(vm("r-1"), vm("r-2")))
    assert (found.standing, found.reason) == (Standing.BROKEN, Reason.DUPLICATE_GATEWAY)


def test_a_stopped_left_over_of_an_earlier_try_does_not_stop_the_next_which_mends_it() -> None:
    operation = preparing(Method.RECREATE, vm("r-1"))
    left = vm("r-2", state=CloudVMState.STOPPED, host_id=None, host=None)
    found = judge_of(operation, version=None, images=None).before(operation, look(vm("r-1"), left))
    assert found.standing is Standing.HOLDS


def test_without_a_boot_to_compare_with_nothing_is_rebooted() -> None:
    operation = preparing(Method.REBOOT, vm("r-1"))
    never = seen(vm("r-1"), observed=observed())
    found = judge_of(operation, version=None, images=None).before(operation, look(vm("r-1"), known=(never,)))
    assert found.reason is Reason.NOT_OBSERVED


@pytest.mark.parametrize(("method", "name"), ALL)
def test_a_vm_that_is_gone_is_not_waited_for(method: Method, name: str) -> None:
    operation = preparing(method, vm(name))
    found = judge_of(operation, version=None, images=None).before(operation, look())
    assert found.standing is Standing.BROKEN


# After a recreation of routers

NEW = vm("r-2")
OLD = vm("r-1")
STOPPED = vm("r-2", state=CloudVMState.STOPPED)


@pytest.mark.parametrize(
    ("after", "standing", "reason"),
    [
        (look(NEW), Standing.HOLDS, None),
        (look(OLD), Standing.BROKEN, Reason.CLAIM_NOT_VERIFIED),
        (look(OLD, NEW), Standing.BROKEN, Reason.DUPLICATE_GATEWAY),
        (look(OLD, STOPPED), Standing.BROKEN, Reason.LEFTOVER_ROUTER),
        (look(), Standing.NOT_YET, Reason.VM_NOT_RUNNING),
        (look(NEW, known=()), Standing.NOT_YET, Reason.NOT_OBSERVED),
        (look(NEW, known=(seen(NEW, reach=Reach(False, Reason.SSH_TIMEOUT, "silent")),)), Standing.NOT_YET,
         Reason.NOT_OBSERVED),
        (look(NEW, known=(seen(NEW, observed=up_to_date(at=ago(minutes=1))),)), Standing.NOT_YET, Reason.NOT_OBSERVED),
    ],
)  # fmt: skip
def test_routers_are_replaced_when_the_new_ones_serve_and_the_old_are_gone(
    after: Look, standing: Standing, reason: Reason | None
) -> None:
    assert verdict(called(Method.RECREATE, OLD), after) == (standing, reason)


def changed_look(**changes: Any) -> VMFacts:
    known = seen(NEW)
    assert known.observed is not None
    return seen(NEW, observed=known.observed.model_copy(update=changes))


@pytest.mark.parametrize(
    ("known", "standing", "reason"),
    [
        (changed_look(booted=False), Standing.NOT_YET, Reason.NOT_OBSERVED),
        (changed_look(template=None), Standing.BROKEN, Reason.TEMPLATE_OUTDATED),
        (changed_look(template=observed(version="4.20.1").template), Standing.BROKEN, Reason.TEMPLATE_OUTDATED),
        (changed_look(services=observed(failed_services=("dnsmasq",)).services), Standing.NOT_YET,
         Reason.SERVICES_FAILED),
    ],
)  # fmt: skip
def test_a_new_router_counts_once_it_is_seen_to_be_what_was_declared(
    known: VMFacts, standing: Standing, reason: Reason
) -> None:
    assert verdict(called(Method.RECREATE, OLD), look(NEW, known=(known,))) == (standing, reason)


def test_what_the_server_still_clears_up_is_waited_for_a_minute() -> None:
    soon = look(OLD, STOPPED, taken_at=NOW + timedelta(seconds=20))
    assert verdict(called(Method.RECREATE, OLD), soon) == (Standing.NOT_YET, Reason.LEFTOVER_ROUTER)


def test_a_failed_start_names_the_router_that_is_left_over_at_once() -> None:
    """Recorded: job 530, the old router runs on, the failed one stays Stopped."""
    text = "Unable to create a deployment for VM instance"
    operation = called(Method.RECREATE, OLD, job=JobState.FAILED, text=text)
    judge = judge_of(operation, version="4.20.2", images=IMAGES)
    ended = machine.apply(operation, Looked(look(OLD, STOPPED, taken_at=NOW)), judge, LIMITS, NOW)
    assert ended.reason == Reason.LEFTOVER_ROUTER
    assert ended.message == (
        f"restartNetwork: {text}; r-2-VM (Stopped) left over beside routers that run: a later restart with cleanup "
        "removes it, nothing else does"
    )


def pair(*numbers: int, **roles: RedundancyRole) -> tuple[tuple[CloudVM, ...], tuple[VMFacts, ...]]:
    routers = tuple(vm(f"r-{number}", redundant=True) for number in numbers)
    return routers, tuple(
        replace(seen(each), redundancy=facts(each.name, role=roles[f"r{number}"]).redundancy)
        for each, number in zip(routers, numbers, strict=True)
    )


@pytest.mark.parametrize(
    ("roles", "standing", "reason"),
    [
        ({"r3": RedundancyRole.PRIMARY, "r4": RedundancyRole.BACKUP}, Standing.HOLDS, None),
        ({"r3": RedundancyRole.BACKUP, "r4": RedundancyRole.BACKUP}, Standing.NOT_YET, Reason.NO_SINGLE_PRIMARY),
        ({"r3": RedundancyRole.PRIMARY, "r4": RedundancyRole.PRIMARY}, Standing.NOT_YET, Reason.DUPLICATE_PRIMARY),
    ],
)
def test_a_new_pair_has_exactly_one_primary(
    roles: dict[str, RedundancyRole], standing: Standing, reason: Reason | None
) -> None:
    old = (vm("r-1", redundant=True), vm("r-2", redundant=True))
    routers, known = pair(3, 4, **roles)
    assert verdict(called(Method.RECREATE, *old), look(*routers, known=known)) == (standing, reason)


def test_half_a_pair_is_no_pair() -> None:
    old = (vm("r-1", redundant=True), vm("r-2", redundant=True))
    only = vm("r-3", redundant=True)
    assert verdict(called(Method.RECREATE, *old), look(only)) == (Standing.NOT_YET, Reason.VM_NOT_RUNNING)


# After a recreation of a system VM


@pytest.mark.parametrize(
    ("after", "standing", "reason"),
    [
        (look(vm("s-2")), Standing.HOLDS, None),
        (look(vm("s-9"), vm("s-2")), Standing.HOLDS, None),
        (look(vm("s-9")), Standing.NOT_YET, Reason.VM_NOT_RUNNING),
        (look(vm("s-1")), Standing.BROKEN, Reason.CLAIM_NOT_VERIFIED),
        (look(vm("s-2", agent_state=None)), Standing.NOT_YET, Reason.AGENT_NOT_UP),
        (look(vm("s-2", agent_state="Down")), Standing.NOT_YET, Reason.AGENT_NOT_UP),
        (look(vm("s-2", state=CloudVMState.STOPPED)), Standing.NOT_YET, Reason.VM_NOT_RUNNING),
        # Starts fail: it goes round, and another one comes up in the end.
        (look(vm("s-2", state=CloudVMState.ERROR), vm("s-3")), Standing.HOLDS, None),
    ],
)
def test_a_system_vm_is_recreated_when_another_one_works(
    after: Look, standing: Standing, reason: Reason | None
) -> None:
    assert verdict(called(Method.RECREATE, vm("s-1"), vm("s-9")), after) == (standing, reason)


def test_who_stays_beside_it_is_not_its_successor() -> None:
    operation = called(Method.RECREATE, vm("s-1"), vm("s-9"))
    assert RecreateSystemVM().changed(operation, look(vm("s-1"), vm("s-9"), vm("s-2"))) is False
    assert RecreateSystemVM().changed(operation, look(vm("s-9"))) is True


# A reboot


def booted(boot: str, name: str = "r-1", **values: Any) -> VMFacts:
    known = seen(vm(name))
    assert known.observed is not None
    return seen(vm(name), observed=known.observed.model_copy(update={"boot_id": boot, **values}))


@pytest.mark.parametrize(
    ("known", "standing", "reason"),
    [
        (booted("boot-2"), Standing.HOLDS, None),
        (booted("boot-1"), Standing.BROKEN, Reason.CLAIM_NOT_VERIFIED),
        (booted("boot-2", booted=False), Standing.NOT_YET, Reason.NOT_OBSERVED),
        (booted("boot-2", template=observed(version="4.20.1").template), Standing.BROKEN, Reason.TEMPLATE_OUTDATED),
    ],
)
def test_a_vm_is_rebooted_when_it_is_in_another_boot(known: VMFacts, standing: Standing, reason: Reason | None) -> None:
    assert verdict(called(Method.REBOOT, vm("r-1")), look(vm("r-1"), known=(known,))) == (standing, reason)


@pytest.mark.parametrize(
    ("boot_seen", "look_taken", "standing"),
    [
        (-9, 0.5, Standing.NOT_YET),
        (0, 0.5, Standing.NOT_YET),
        (0.25, 0.5, Standing.HOLDS),
        (0.25, 8, Standing.NOT_YET),
        (7.5, 8, Standing.HOLDS),
    ],
)
def test_the_boot_that_a_reboot_is_proven_by_was_seen_right_before_it(
    boot_seen: float, look_taken: float, standing: Standing
) -> None:
    """Minutes after the operation began. A start by high availability after that is taken for ours."""
    known = seen(vm("r-1"), observed=in_boot("boot-1", NOW + timedelta(minutes=boot_seen)))
    taken = look(vm("r-1"), known=(known,), taken_at=NOW + timedelta(minutes=look_taken))
    operation = preparing(Method.REBOOT, vm("r-1"))
    found = judge_of(operation, version="4.20.2", images=IMAGES).before(operation, taken)
    assert (found.standing, found.reason) == (standing, Reason.NOT_OBSERVED if standing is Standing.NOT_YET else None)


def test_whether_a_lost_reboot_was_done_is_told_by_the_boot() -> None:
    operation = called(Method.REBOOT, vm("r-1"))
    judge = judge_of(operation, version=None, images=None)
    assert judge.changed(operation, look(vm("r-1"), known=(booted("boot-1"),))) is False
    assert judge.changed(operation, look(vm("r-1"), known=(booted("boot-2"),))) is True
    assert judge.changed(operation, look(vm("r-1", state=CloudVMState.STOPPED))) is True
    silent = replace(booted("boot-1"), reach=Reach(False, Reason.SSH_TIMEOUT, "silent"))
    assert judge.changed(operation, look(vm("r-1"), known=(silent,))) is None, "it may be booting"


def test_whether_routers_were_replaced_is_told_by_ids() -> None:
    operation = called(Method.RECREATE, OLD)
    assert RecreateRouters().changed(operation, look(OLD)) is False
    assert RecreateRouters().changed(operation, look(OLD, STOPPED)) is True
    assert RecreateRouters().changed(operation, look(NEW)) is True


# Left-overs, duplicates, what tenants lose


def test_left_overs_are_those_beside_one_that_runs() -> None:
    assert leftovers([OLD, STOPPED]) == (STOPPED,)
    assert leftovers([STOPPED]) == (), "a network that nobody uses has a stopped router"


def test_duplicates_are_no_pair() -> None:
    assert duplicates([OLD, NEW]) == (OLD, NEW)
    assert duplicates([OLD, STOPPED]) == ()
    assert duplicates([replace(OLD, redundant=True), replace(NEW, redundant=True)]) == ()


def test_the_gap_of_an_only_system_vm_is_named() -> None:
    alone = interruption(Method.RECREATE, SystemVMType.CONSOLEPROXY, redundant=False, alone=True)
    assert "none serves the zone for 5 to 60 s" in alone
    among = interruption(Method.RECREATE, SystemVMType.CONSOLEPROXY, redundant=False, alone=False)
    assert "others go on serving" in among


# Room and rules


def test_a_recreation_waits_for_room_and_a_reboot_needs_none() -> None:
    full = Room({host.id: HostRoom(memory_bytes=0, cpu_mhz=9000) for host in HOSTS})
    found = {}
    for method, name in ALL:
        judge = judge_of(preparing(method, vm(name)), version="4.20.2", images=IMAGES)
        found[method, name] = judge.before(preparing(method, vm(name)), look(vm(name), room=full)).reason
    assert found == {each: (Reason.NO_CAPACITY if each[0] is Method.RECREATE else None) for each in ALL}, (
        "stop and start frees what it takes"
    )


def holding(cloud_vm: CloudVM, **rules: int) -> VMFacts:
    known = seen(cloud_vm)
    assert known.observed is not None
    bags = DataBags(held=3, rules=rules)
    return replace(known, observed=known.observed.model_copy(update={"data_bags": bags}))


def recreated(**rules: int) -> GroupOperation:
    """`rules`: what the old router held and the server listed."""
    operation = called(Method.RECREATE, vm("r-1"))
    return operation.model_copy(update={"rules_listed": rules, "rules_held": rules})


def test_a_router_without_its_rules_is_not_done_well() -> None:
    operation, new = recreated(Firewall=3), vm("r-2")
    judge = judge_of(operation, version="4.20.2", images=IMAGES)
    uncounted = judge.after(operation, look(new, known=(holding(new, Firewall=3),), rules=None))
    assert (uncounted.standing, uncounted.reason) == (Standing.NOT_YET, Reason.RULES_NOT_COMPARED)
    listed = ListedRules({RuleKind.FIREWALL: 3})
    assert judge.after(operation, look(new, known=(holding(new, Firewall=3),), rules=listed)).standing is Standing.HOLDS
    few = look(new, known=(holding(new, Firewall=1),), rules=listed)
    first = judge.after(operation, few)
    assert (first.standing, first.reason) == (Standing.NOT_YET, Reason.RULES_MISSING)
    again = operation.model_copy(update={"reason": Reason.RULES_MISSING})
    assert machine.counts_rules(again)
    lacking = judge.after(again, few)
    assert (lacking.standing, lacking.reason) == (Standing.BROKEN, Reason.RULES_MISSING)
    assert lacking.sentence == "r-2-VM has 1 firewall rules where 3 are listed"
    early = replace(few, taken_at=operation.since + timedelta(seconds=5))
    assert judge.after(again, early).standing is Standing.NOT_YET, "the server may still send them"


def test_a_rule_that_a_tenant_makes_between_look_and_list_is_no_loss() -> None:
    """Routers take longer than a minute to boot: the first count may be the only one."""
    operation, new = recreated(Firewall=3), vm("r-2")
    operation = operation.model_copy(update={"phase": GroupPhase.VERIFYING, "reason": Reason.RULES_NOT_COMPARED})
    judge = judge_of(operation, version="4.20.2", images=IMAGES)
    four = ListedRules({RuleKind.FIREWALL: 4})
    counted = look(new, known=(holding(new, Firewall=3),), rules=four)
    operation = machine.apply(operation, Looked(counted), judge, LIMITS, NOW)
    assert (operation.phase, operation.reason) == (GroupPhase.VERIFYING, Reason.RULES_MISSING)
    counted = look(new, known=(holding(new, Firewall=4),), rules=four)
    assert machine.apply(operation, Looked(counted), judge, LIMITS, NOW).result is OperationResult.SUCCEEDED


def test_rules_are_counted_right_before_the_call_and_once_all_else_is_right() -> None:
    old, new = vm("r-1"), vm("r-2")
    aim = aim_of(Method.RECREATE, old, "n-1")
    assert aim is not None
    operation = machine.begun(aim.group, Method.RECREATE, aim.call, old, ["op-1"], NOW)
    judge = judge_of(operation, version="4.20.2", images=IMAGES)
    assert machine.counts_rules(operation)
    before = look(old, known=(holding(old, Firewall=2, VpnUser=1),), rules=ListedRules({RuleKind.FIREWALL: 2}))
    operation = machine.apply(operation, Looked(before), judge, LIMITS, NOW)
    assert (operation.rules_listed, operation.rules_held) == ({"Firewall": 2}, {"Firewall": 2, "VpnUser": 1})
    for event in (Submitted("job-1"), JobTold(JobState.SUCCEEDED)):
        operation = machine.apply(operation, event, judge, LIMITS, NOW)
    assert not machine.counts_rules(operation), "it is not asked while routers come and go"
    uncounted = look(new, known=(holding(new, Firewall=2, VpnUser=1),), rules=None)
    operation = machine.apply(operation, Looked(uncounted), judge, LIMITS, NOW)
    assert (operation.reason, machine.counts_rules(operation)) == ("RulesNotCompared", True)
    assert machine.pause(operation, NOW + timedelta(minutes=5)) == machine.FIRST_POLL
    counted = replace(uncounted, rules=ListedRules({RuleKind.FIREWALL: 2}, ("listNetworkACLs: not allowed",)))
    done = machine.apply(operation, Looked(counted), judge, LIMITS, NOW)
    assert (str(done.result), done.reason, done.rules_listed, done.rules_held) == ("Succeeded", "", {}, {})
    assert done.message == "rules not compared with the server's: listNetworkACLs: not allowed"


@pytest.mark.parametrize(("method", "name"), ALL)
def test_nothing_is_begun_while_the_management_servers_run_several_releases(method: Method, name: str) -> None:
    operation = preparing(method, vm(name))
    judge = judge_of(
        operation, version="4.20.2", images=IMAGES, unsettled="the management servers run several releases"
    )
    assert judge.before(operation, look(vm(name))).reason is Reason.CLOUD_CHANGED


@pytest.mark.parametrize(("method", "name"), ALL)
def test_no_host_that_could_start_the_new_vm_keeps_another_payload(method: Method, name: str) -> None:
    """The old one runs on kvm-1; what takes its place may be started on kvm-2."""
    operation = preparing(method, vm(name))
    judge = judge_of(operation, version="4.20.2", images=IMAGES, other_payloads=("kvm-2",))
    found = judge.before(operation, look(vm(name)))
    assert found.reason is (Reason.HOST_PAYLOAD_MISMATCH if method is Method.RECREATE else None)
    down = (HOSTS[0], replace(HOSTS[1], state="Down"))
    assert judge.before(operation, look(vm(name), hosts=down)).standing is Standing.HOLDS, "nothing starts there"
