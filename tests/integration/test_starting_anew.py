"""Reboot and Recreate against the stand-in management server: machine, judges and client, without a cluster.

Everything goes over HTTP. What a look over SSH would find is taken from the stand-in's machines.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.integration.driving import Driven, now, served
from tests.unit.domain.builders import facts, observed, redundancy

from lab.cloud import CHANGING, Answer, CutJob, VMState, World
from sysvm.api.endpoint import Management, SystemVMType
from sysvm.api.images import Images
from sysvm.api.methods import Method
from sysvm.api.observed import DataBags, RedundancyRole, RuleKind
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.domain import group_operation as machine
from sysvm.domain import lifecycle
from sysvm.domain.cloud import CloudVM
from sysvm.domain.facts import VMFacts
from sysvm.domain.group_operation import Limits
from sysvm.domain.lifecycle import aim_of, judge_of

LIMITS = Limits(step=timedelta(seconds=4), vm=timedelta(seconds=5))
IMAGES = Images.model_validate({"items": [{"hypervisor": "KVM", "name": "systemvm-kvm-4.20.2-x86_64"}]})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits three minutes here; the stand-in's steps take hundredths of a second."""
    monkeypatch.setattr(machine, "QUIET", timedelta(seconds=0.5))
    monkeypatch.setattr(machine, "EXPIRES", timedelta(seconds=0.1))
    monkeypatch.setattr(machine, "FIRST_POLL", timedelta(seconds=0.02))
    monkeypatch.setattr(machine, "LONGEST_POLL", timedelta(seconds=0.05))
    monkeypatch.setattr(lifecycle, "SETTLING", timedelta(seconds=0.5))


class Cloud(Driven):
    """One zone with two hosts, after an upgrade: what is started anew gets the new template."""

    def known(self, vms: tuple[CloudVM, ...]) -> tuple[VMFacts, ...]:
        """What looks over SSH would have found a moment ago."""
        found = []
        for vm in vms:
            inside = self.world.vms.get(vm.id)
            if inside is None or inside.state is not VMState.RUNNING:
                continue
            look = observed(at=now() + timedelta(seconds=1), version=inside.inside.template_version)
            held = DataBags(held=3, rules=dict.fromkeys(RuleKind, 0) | inside.inside.rules)
            seen = {"boot_id": f"boot-{inside.inside.boots}", "booted": True, "data_bags": held}
            look = look.model_copy(update=seen)
            role = RedundancyRole(inside.role) if inside.redundant else None
            known = facts(vm.name, type=vm.type, observed=look)
            found.append(replace(known, redundancy=redundancy(role)) if role is not None else known)
        return tuple(found)

    async def do(self, method: Method, name: str, *, restart_operator_at: GroupPhase | None = None) -> GroupOperation:
        """From the order to the result, as the driver does it."""
        vm = self.world.vm(name)
        listed = CloudVM(
            id=vm.id, name=vm.name, type=SystemVMType(vm.type), state="Running",  # type: ignore[arg-type]
            zone_id=vm.zone.id, zone=vm.zone.name, network_id=vm.network.id if vm.network else None,
            vpc_id=vm.vpc.id if vm.vpc else None,
        )  # fmt: skip
        aim = aim_of(method, listed, "group")
        assert aim is not None
        stored = machine.begun(aim.group, method, aim.call, listed, ["op-1"], now())
        judge = judge_of(stored, version="4.20.2", images=IMAGES)
        return await self.drive(stored, judge, LIMITS, self.known, restart_operator_at=restart_operator_at)


@contextlib.asynccontextmanager
async def cloud_of(management: Management = Management.FULL) -> AsyncIterator[Cloud]:
    world = World(version="4.21.0.0", template_version="4.20.1")
    zone = world.add_zone("ams-1")
    for name in ("kvm-1", "kvm-2"):
        world.add_host(zone, name)
    single, pair = world.add_network(zone, "single"), world.add_network(zone, "pair", redundant=True)
    vpc = world.add_vpc(zone, "vpc", redundant=True, tiers=3)
    for owner in (single, pair, vpc):
        world.add_routers(owner)
    world.add_ssvm(zone), world.add_cpvm(zone)
    for template in world.templates.values():
        template.created -= timedelta(days=90)
    world.upgrade("4.21.0.0", template_version="4.20.2")
    async with served(world, management) as (server, client):
        yield Cloud(world, server, client)


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with cloud_of() as cloud:
        yield cloud


@pytest.mark.parametrize(("network", "count"), [("single", 1), ("pair", 2), ("vpc", 2)])
async def test_the_routers_of_a_network_or_vpc_are_replaced_with_one_call(
    cloud: Cloud, network: str, count: int
) -> None:
    old = cloud.routers(network)
    ended = await cloud.do(Method.RECREATE, old[0])
    assert (ended.result, ended.message) == (OperationResult.SUCCEEDED, "")
    new = cloud.routers(network)
    assert len(new) == count
    assert not {*old} & {*new}
    assert sorted(vm.name for vm in ended.before) == sorted(old)
    assert {cloud.world.vm(name).inside.template_version for name in new} == {"4.20.2"}
    assert len(cloud.calls) == 1


@pytest.mark.parametrize("type_", ["secstorage", "consoleproxy"])
async def test_a_system_vm_is_destroyed_and_another_one_works(cloud: Cloud, type_: str) -> None:
    old = cloud.of_type(type_)
    ended = await cloud.do(Method.RECREATE, old)
    assert (ended.result, ended.message) == (OperationResult.SUCCEEDED, "")
    new = cloud.world.vm(cloud.of_type(type_))
    assert new.name != old
    assert (new.inside.template_version, new.agent_state) == ("4.20.2", "Up")
    assert cloud.calls == ["destroySystemVm"]


@pytest.mark.parametrize("kind", ["router", "secstorage"])
async def test_a_reboot_gives_the_same_vm_another_boot_and_the_current_template(cloud: Cloud, kind: str) -> None:
    name = cloud.routers("single")[0] if kind == "router" else cloud.of_type(kind)
    ended = await cloud.do(Method.REBOOT, name)
    assert (ended.result, ended.message) == (OperationResult.SUCCEEDED, "")
    assert cloud.world.vm(name).inside.template_version == "4.20.2"
    assert cloud.calls == ["rebootRouter" if kind == "router" else "rebootSystemVm"]


async def test_success_without_anything_done_is_not_believed(cloud: Cloud) -> None:
    cloud.world.faults.restart_does_nothing = True
    ended = await cloud.do(Method.RECREATE, cloud.routers("single")[0])
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.CLAIM_NOT_VERIFIED)


async def test_a_failed_start_leaves_the_old_router_serving_and_names_the_new_one(cloud: Cloud) -> None:
    cloud.world.faults.start_fails = 1
    (old,) = cloud.routers("single")
    ended = await cloud.do(Method.RECREATE, old)
    assert ended.reason == Reason.LEFTOVER_ROUTER
    (left,) = set(cloud.routers("single")) - {old}
    assert f"{left} (Stopped) left over" in ended.message
    assert cloud.world.vm(old).state is VMState.RUNNING
    assert cloud.calls == ["restartNetwork"], "nothing is deleted by us"
    again = await cloud.do(Method.RECREATE, old)
    assert again.result is OperationResult.SUCCEEDED, "a later one mends it"


@pytest.mark.parametrize("fault", ["keep_old_router", "second_router"])
async def test_two_routers_with_one_gateway_are_found_and_named(cloud: Cloud, fault: str) -> None:
    setattr(cloud.world.faults, fault, True)
    ended = await cloud.do(Method.RECREATE, cloud.routers("single")[0])
    assert ended.reason == Reason.DUPLICATE_GATEWAY
    assert all(name in ended.message for name in cloud.routers("single"))


async def test_a_system_vm_whose_starts_fail_is_waited_for(cloud: Cloud) -> None:
    cloud.world.faults.start_fails = 2
    ended = await cloud.do(Method.RECREATE, cloud.of_type("secstorage"))
    assert (ended.result, ended.message) == (OperationResult.SUCCEEDED, "")


async def test_a_job_cut_while_its_work_goes_on_is_found_to_have_worked(cloud: Cloud) -> None:
    cloud.world.faults.cut_job = CutJob.WORK_GOES_ON
    ended = await cloud.do(Method.RECREATE, cloud.routers("pair")[0])
    assert GroupPhase.UNKNOWN in cloud.began
    assert (ended.result, ended.message) == (OperationResult.SUCCEEDED, "")
    assert cloud.calls == ["restartNetwork"]


async def test_a_job_cut_before_it_did_anything_is_called_once_more_and_never_a_third_time(cloud: Cloud) -> None:
    cloud.world.faults.cut_job = CutJob.WORK_STOPS
    ended = await cloud.do(Method.RECREATE, cloud.of_type("consoleproxy"))
    assert ended.result is OperationResult.FAILED or len(cloud.calls) == 1
    assert 1 <= len(cloud.calls) <= machine.SUBMISSIONS


async def test_a_restart_of_the_management_server_in_the_middle_is_waited_out(cloud: Cloud) -> None:
    async def restart() -> None:
        while not cloud.calls:
            await asyncio.sleep(0.005)
        await cloud.server.restart(down_seconds=0.3, work_goes_on=True)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(restart())
        doing = tasks.create_task(cloud.do(Method.RECREATE, cloud.routers("single")[0]))
    assert (doing.result().result, cloud.calls) == (OperationResult.SUCCEEDED, ["restartNetwork"])


@pytest.mark.parametrize("answer", [Answer.HALF, Answer.EMPTY, Answer.HTML])
async def test_a_call_whose_answer_is_lost_is_found_by_looking(cloud: Cloud, answer: Answer) -> None:
    cloud.world.faults.answer, cloud.world.faults.commands = answer, {"restartNetwork"}
    ended = await cloud.do(Method.RECREATE, cloud.routers("single")[0])
    assert GroupPhase.UNKNOWN in cloud.began
    assert (ended.result, cloud.calls) == (OperationResult.SUCCEEDED, ["restartNetwork"])


@pytest.mark.parametrize("phase", [GroupPhase.PREPARING, GroupPhase.SUBMITTING, GroupPhase.RUNNING])
async def test_an_operator_that_ends_in_any_phase_leaves_one_call(cloud: Cloud, phase: GroupPhase) -> None:
    ended = await cloud.do(Method.RECREATE, cloud.routers("pair")[0], restart_operator_at=phase)
    assert (ended.result, cloud.calls) == (OperationResult.SUCCEEDED, ["restartNetwork"])


async def test_a_throttled_call_was_not_made_and_is_made_later(cloud: Cloud) -> None:
    cloud.world.faults.throttle, cloud.world.faults.throttle_milliseconds = 1, 20
    cloud.world.faults.commands = {"rebootRouter"}
    ended = await cloud.do(Method.REBOOT, cloud.routers("single")[0])
    assert ended.result is OperationResult.SUCCEEDED


async def test_a_host_in_maintenance_stops_it_before_the_call(cloud: Cloud) -> None:
    name = cloud.routers("single")[0]
    host = cloud.world.vm(name).host
    assert host is not None
    host.resource_state = "Maintenance"
    ended = await cloud.do(Method.RECREATE, name)
    assert (ended.reason, cloud.calls) == (Reason.HOST_NOT_READY, [])
    assert ended.message == f"host {host.name} of {name} is Up, Maintenance; nothing was changed"


async def test_a_disabled_zone_stops_it_before_the_call(cloud: Cloud) -> None:
    next(iter(cloud.world.zones.values())).enabled = False
    ended = await cloud.do(Method.RECREATE, cloud.of_type("secstorage"))
    assert (ended.reason, cloud.calls) == (Reason.ZONE_DISABLED, [])


async def test_a_template_that_is_not_the_declared_one_stops_it_before_the_call(cloud: Cloud) -> None:
    newest = cloud.world.upgrade("4.22.0.0", template_version="4.22.0")
    assert newest is not None
    newest.created += timedelta(seconds=1)
    ended = await cloud.do(Method.RECREATE, cloud.of_type("secstorage"))
    assert (ended.reason, cloud.calls) == (Reason.WRONG_TEMPLATE_WOULD_BE_USED, [])
    assert "would be started from systemvm-kvm-4.22.0-x86_64" in ended.message


async def test_a_vm_that_migrates_is_waited_for(cloud: Cloud) -> None:
    vm = cloud.world.vm(cloud.routers("single")[0])
    vm.state = VMState.MIGRATING

    async def arrive() -> None:
        await asyncio.sleep(0.3)
        assert cloud.calls == []
        vm.state = VMState.RUNNING

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(arrive())
        doing = tasks.create_task(cloud.do(Method.RECREATE, vm.name))
    assert doing.result().result is OperationResult.SUCCEEDED


async def test_observing_endpoints_let_no_call_out() -> None:
    async with cloud_of(Management.OBSERVE) as cloud:
        ended = await cloud.do(Method.RECREATE, cloud.routers("single")[0])
        assert (ended.reason, cloud.calls) == (Reason.OBSERVE_ONLY, [])


RULES = {"Firewall": 3, "Egress": 1, "PortForwarding": 2, "StaticNat": 1, "LoadBalancer": 2}


@pytest.mark.parametrize("method", [Method.RECREATE, Method.REBOOT])
@pytest.mark.parametrize("network", ["single", "pair"])
async def test_a_router_that_has_its_rules_again_is_done_and_one_that_lacks_one_is_not(
    cloud: Cloud, network: str, method: Method
) -> None:
    cloud.world.add_rules(next(each for each in cloud.world.networks.values() if each.name == network), **RULES)
    ended = await cloud.do(method, cloud.routers(network)[0])
    assert (ended.result, ended.message) == (OperationResult.SUCCEEDED, "")
    cloud.world.faults.lose_rules = 1
    ended = await cloud.do(method, cloud.routers(network)[0])
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.RULES_MISSING)
    assert "has 2 firewall rules where 3 are listed, 0 egress rules where 1 are listed" in ended.message
    assert "1 load balancer rules where 2 are listed" in ended.message


async def test_the_rules_of_all_tiers_of_a_vpc_are_counted(cloud: Cloud) -> None:
    (vpc,) = cloud.world.vpcs.values()
    for tier in cloud.world.tiers(vpc):
        cloud.world.add_rules(tier, PortForwarding=2, LoadBalancer=1, NetworkACL=4, StaticNat=1)
    ended = await cloud.do(Method.RECREATE, cloud.routers("vpc")[0])
    assert (ended.result, ended.message) == (OperationResult.SUCCEEDED, "")
    cloud.world.faults.lose_rules = 1
    ended = await cloud.do(Method.RECREATE, cloud.routers("vpc")[0])
    assert ended.reason == Reason.RULES_MISSING
    assert "11 network ACL items where 12 are listed" in ended.message


async def test_a_list_that_the_role_may_not_read_is_told_and_its_rules_are_compared_with_those_of_before(
    cloud: Cloud,
) -> None:
    cloud.world.add_rules(next(each for each in cloud.world.networks.values() if each.name == "single"), **RULES)
    user = cloud.world.users[0]
    user.lacks = frozenset({"listFirewallRules"})
    ended = await cloud.do(Method.RECREATE, cloud.routers("single")[0])
    assert ended.result is OperationResult.SUCCEEDED
    assert "rules not compared with the server's: listFirewallRules" in ended.message
    cloud.world.faults.lose_rules = 1
    ended = await cloud.do(Method.RECREATE, cloud.routers("single")[0])
    assert "2 firewall rules where 3 were held before" in ended.message


@pytest.mark.parametrize("kind", ["router", "secstorage"])
async def test_a_zone_without_room_keeps_what_it_has(cloud: Cloud, kind: str) -> None:
    name = cloud.routers("single")[0] if kind == "router" else cloud.of_type(kind)
    for host in cloud.world.hosts.values():
        host.memory_allocated_bytes = 8 * 1024**3 - 300 * 1024**2
    ended = await cloud.do(Method.RECREATE, name)
    assert (ended.reason, cloud.calls) == (Reason.NO_CAPACITY, [])
    assert f"no room in zone ams-1 for another VM like {name}: it needs 512 MiB" in ended.message
    assert ended.message.endswith("kvm-1 has 300 MiB and 32000 MHz free, kvm-2 has 300 MiB and 32000 MHz free; "
                                  "nothing was changed")  # fmt: skip


async def test_the_last_public_address_is_not_gambled_with(cloud: Cloud) -> None:
    (zone,) = cloud.world.zones.values()
    zone.free_addresses["VIRTUAL_NETWORK_PUBLIC_IP"] = 0
    ended = await cloud.do(Method.RECREATE, cloud.of_type("consoleproxy"))
    assert (ended.reason, cloud.calls) == (Reason.NO_CAPACITY, [])
    assert "no public address is free" in ended.message
    again = await cloud.do(Method.RECREATE, cloud.routers("single")[0])
    assert again.result is OperationResult.SUCCEEDED, "a router takes over the addresses of its network"


COUNTING = {
    "listFirewallRules", "listEgressFirewallRules", "listPortForwardingRules", "listLoadBalancerRules",
    "listNetworkACLs", "listPublicIpAddresses", "listNetworks", "listCapacity",
}  # fmt: skip


@pytest.mark.parametrize(
    ("what", "before", "counts"), [("single", 12, 10), ("pair", 12, 10), ("vpc", 18, 22), ("secstorage", 8, 1)]
)
async def test_what_is_compared_costs_few_questions_a_group(cloud: Cloud, what: str, before: int, counts: int) -> None:
    """A network is counted with five before the call and five after it, a VPC with two and three a tier, whatever
    tenants have. `before`: all that is asked until the call is made."""
    for network in cloud.world.networks.values():
        cloud.world.add_rules(network, **{kind: 40 * count for kind, count in RULES.items()}, NetworkACL=50)
    name = cloud.of_type(what) if what == "secstorage" else cloud.routers(what)[0]
    ended = await cloud.do(Method.RECREATE, name)
    assert ended.result is OperationResult.SUCCEEDED
    asked = [call.command for call in cloud.world.calls]
    assert next(number for number, command in enumerate(asked) if command in CHANGING) == before
    counting = [call for call in cloud.world.calls if call.command in COUNTING]
    assert len(counting) == counts
    assert all(call.parameters["pagesize"] == "1" for call in counting if "Rules" in call.command)
