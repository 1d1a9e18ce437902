"""CloudStack's own live patch against the stand-in management server: books, gate, call, claim; without a cluster.

Everything goes over HTTP, and the gate is judged from real sweeps. What a look over SSH would find is taken from the
stand-in's machines: their files are those of the release exactly if their signature is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from tests.integration.driving import Driven, now, served
from tests.unit.domain import builders as b

from lab.cloud import CHANGING, CutJob, Patch, VMState, World
from sysvm.api.endpoint import Management
from sysvm.api.methods import Method
from sysvm.api.observed import ApiPatchCall, ObservedHostPayload, RedundancyRole
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.api.template import Signature
from sysvm.cloudstack.inventory import sweep
from sysvm.domain import api_patch as api_patches
from sysvm.domain import group_operation as machine
from sysvm.domain.api_patch import ApiPatch, aim_of
from sysvm.domain.cloud import CloudVM, Snapshot
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.gate import (
    Gate,
    PayloadOrigin,
    ServerPayload,
    Witness,
    api_patch,
    gate_of,
    management_of,
    routers_in,
    server_payload,
)
from sysvm.domain.group_operation import Limits

LIMITS = Limits(step=timedelta(seconds=3), vm=timedelta(seconds=3))
NEW = "4.21.0.0-SNAPSHOT"
"""As the recorded server calls itself; of its routers it notes the release without the suffix."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits a quarter of an hour here; the stand-in's steps take hundredths of a second."""
    monkeypatch.setattr(machine, "QUIET", timedelta(seconds=0.4))
    monkeypatch.setattr(machine, "EXPIRES", timedelta(seconds=0))
    monkeypatch.setattr(machine, "FIRST_POLL", timedelta(seconds=0.02))
    monkeypatch.setattr(machine, "LONGEST_POLL", timedelta(seconds=0.05))
    monkeypatch.setattr(api_patches, "SETTLING", timedelta(seconds=0.4))
    monkeypatch.setattr(api_patches, "LONGEST_PATCH", timedelta(seconds=0.8))


class Cloud(Driven):
    """After an upgrade of the server and its hosts: every router is below the minimum, and its books are old."""

    @property
    def release(self) -> Release:
        signature = Signature(algorithm="md5", value=self.world.payload)
        return b.release(signature=signature).model_copy(update={"scripts_revision": b.NEW})

    async def swept(self) -> Snapshot:
        return (await sweep(self.client, now)).snapshot

    def known_of_server(self, snapshot: Snapshot) -> ServerPayload:
        witnesses = [
            Witness(
                host=host.name,
                version=snapshot.hosts[host.id].version,
                checksum=host.payload,
                holds_release=host.payload == self.world.payload,
            )
            for host in self.world.hosts.values()
        ]
        signature = self.release.signature.value
        return server_payload(PayloadOrigin.PACKAGE, signature, witnesses, server_version=snapshot.server_version)

    async def gate(self, name: str) -> Gate:
        """As the policy's reconciler would see it after the next sweep."""
        snapshot = await self.swept()
        vm = next(each for each in snapshot.vms.values() if each.name == name)
        return gate_of(vm, snapshot.zones[vm.zone_id], self.known_of_server(snapshot))

    def known(self, vms: tuple[CloudVM, ...], snapshot: Snapshot) -> tuple[VMFacts, ...]:
        """What looks over SSH would have found a moment ago."""
        found = []
        for vm in vms:
            real = self.world.vms.get(vm.id)
            if real is None or real.host is None or real.state is not VMState.RUNNING:
                continue
            at = now() + timedelta(seconds=1)
            right = real.inside.signature == self.world.payload
            signature = Signature(algorithm="md5", value=real.inside.signature)
            lies = ObservedHostPayload(
                host=real.host.name,
                checksum=f"md5:{real.host.payload}",
                revision=b.NEW if real.host.payload == self.world.payload else b.OLD,
            )
            look = (b.up_to_date if right else b.observed)(at=at, signature=signature)
            books = management_of(
                snapshot.vms[vm.id], snapshot, self.known_of_server(snapshot), routers_in(snapshot), at=at
            )
            look = look.model_copy(update={"host_payload": lies, "management": books})
            known = b.facts(vm.name, type=vm.type, observed=look, hypervisor="KVM")
            role = RedundancyRole(real.role) if real.redundant else None
            found.append(replace(known, redundancy=b.redundancy(role)) if role is not None else known)
        return tuple(found)

    async def patch(self, name: str, *, restart_operator_at: GroupPhase | None = None) -> GroupOperation:
        """From the order to the result, as the driver does it."""
        snapshot = await self.swept()
        vm = next(each for each in snapshot.vms.values() if each.name == name)
        call = api_patch(vm, snapshot, routers_in(snapshot))
        assert isinstance(call, ApiPatchCall), call
        aim = aim_of(call, vm.name, vm.vpc_id or vm.network_id)
        stored = machine.begun(aim.group, Method.LIVE_PATCH, aim.call, vm, ["op-1"], now())
        judge = ApiPatch(
            release=self.release,
            server=self.known_of_server(snapshot),
            server_version=snapshot.server_version,
            zones=snapshot.zones,
        )
        return await self.drive(
            stored, judge, LIMITS, lambda vms: self.known(vms, snapshot), restart_operator_at=restart_operator_at
        )


@contextlib.asynccontextmanager
async def cloud_of(management: Management = Management.FULL, *, hosts: bool = True) -> AsyncIterator[Cloud]:
    world = World(version="4.20.1.0", template_version="4.20.1")
    zone = world.add_zone("ams-1")
    for name in ("kvm-1", "kvm-2"):
        world.add_host(zone, name, version="4.20.1.0")
    for owner in (
        world.add_network(zone, "single"),
        world.add_network(zone, "pair", redundant=True),
        world.add_network(zone, "shared", kind="Shared"),
        world.add_vpc(zone, "vpc", redundant=True, tiers=2),
        world.add_vpc(zone, "wide", tiers=3),
        world.add_vpc(zone, "bare", tiers=0),
    ):
        world.add_routers(owner)
    world.add_ssvm(zone), world.add_cpvm(zone)
    world.upgrade(NEW, template_version="4.20.2", hosts=hosts)
    async with served(world, management) as (server, client):
        yield Cloud(world, server, client)


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with cloud_of() as cloud:
        yield cloud


# The gate


async def test_an_upgrade_closes_the_gate_of_every_router_and_a_start_by_the_server_opens_it(cloud: Cloud) -> None:
    (name,) = cloud.routers("single")
    gate = await cloud.gate(name)
    assert (gate.closed, gate.opened_by) == (True, "4.20.1")
    # What the operator says would open it does, and for a router that nobody patched, too.
    cloud.world.settings["minreq.sysvmtemplate.version"] = "4.20.1"
    assert (await cloud.gate(name)).closed is False
    assert (await cloud.gate(cloud.routers("pair")[0])).closed is False
    assert cloud.world.vm(name).inside.signature != cloud.world.payload


async def test_a_patch_over_ssh_leaves_the_gate_closed(cloud: Cloud) -> None:
    (name,) = cloud.routers("single")
    cloud.world.vm(name).inside.signature = cloud.world.payload
    assert (await cloud.gate(name)).closed is True


async def test_without_hosts_that_agree_the_gate_is_unknown() -> None:
    async with cloud_of(hosts=False) as cloud:
        gate = await cloud.gate(cloud.routers("single")[0])
        assert gate.closed is None
        assert "kvm-1 has another payload than the release" in gate.sentence


# One call


@pytest.mark.parametrize(
    ("network", "command", "patches"),
    [
        ("single", "restartNetwork", 1),
        ("pair", "restartNetwork", 1),
        ("shared", "restartNetwork", 1),
        ("vpc", "restartVPC", 2),
    ],
)
async def test_one_call_patches_all_routers_and_opens_their_gates(
    cloud: Cloud, network: str, command: str, patches: int
) -> None:
    names = cloud.routers(network)
    ended = await cloud.patch(names[0])
    assert (ended.result, ended.message) == (OperationResult.SUCCEEDED, "")
    assert cloud.calls == [command]
    for name in names:
        assert cloud.world.vm(name).inside.patches == patches
        assert (await cloud.gate(name)).closed is False


@pytest.mark.parametrize("type_", ["secstorage", "consoleproxy"])
async def test_an_ssvm_or_cpvm_is_patched_alone_and_forced(cloud: Cloud, type_: str) -> None:
    ended = await cloud.patch(cloud.of_type(type_))
    assert ended.result is OperationResult.SUCCEEDED
    (call,) = [each for each in cloud.world.calls if each.command in CHANGING]
    assert (call.command, call.parameters["forced"]) == ("patchSystemVm", "true")


async def test_a_vpc_with_too_many_tiers_or_none_is_never_asked_for(cloud: Cloud) -> None:
    ended = await cloud.patch(cloud.routers("wide")[0])
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.TOO_MANY_API_PATCHES)
    snapshot = await cloud.swept()
    bare = next(vm for vm in snapshot.vms.values() if vm.name == cloud.routers("bare")[0])
    assert "patches nothing there and reports success" in str(api_patch(bare, snapshot, routers_in(snapshot)))
    assert not cloud.calls


async def test_a_host_with_another_payload_is_never_asked_to_patch() -> None:
    async with cloud_of(hosts=False) as cloud:
        ended = await cloud.patch(cloud.routers("single")[0])
        assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.HOST_PAYLOAD_MISMATCH)
        assert not cloud.calls


async def test_an_endpoint_that_observes_never_sends_the_call() -> None:
    async with cloud_of(Management.OBSERVE) as cloud:
        ended = await cloud.patch(cloud.routers("single")[0])
        assert ended.result is OperationResult.FAILED
        assert not cloud.calls


# Claims


@pytest.mark.parametrize("fault", [Patch.NOTHING, Patch.FAILS])
@pytest.mark.parametrize("network", ["single", "pair"])
async def test_success_with_nothing_done_is_not_believed(cloud: Cloud, fault: Patch, network: str) -> None:
    cloud.world.faults.patch = fault
    ended = await cloud.patch(cloud.routers(network)[0])
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.CLAIM_NOT_VERIFIED)
    assert "its files are not those of the release" in ended.message
    assert ended.job_failure == ""
    assert len(cloud.calls) == 1


async def test_of_a_pair_both_must_have_been_patched(cloud: Cloud) -> None:
    cloud.world.faults.patch = Patch.FIRST_ONLY
    first, second = cloud.routers("pair")
    ended = await cloud.patch(first)
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.CLAIM_NOT_VERIFIED)
    assert second in ended.message
    assert cloud.world.vm(first).inside.patches == 1


async def test_a_patch_that_the_server_forgets_to_note_leaves_the_gate_closed_and_says_so(cloud: Cloud) -> None:
    """As CloudStack 4.19.2, 4.19.3, 4.20.1 and 4.21.0 do."""
    (name,) = cloud.routers("single")
    vm = cloud.world.vm(name)
    written = vm.scripts_version

    async def forget() -> None:
        while True:
            vm.scripts_version = written
            await asyncio.sleep(0.001)

    forgetting = asyncio.create_task(forget())
    ended = await cloud.patch(name)
    forgetting.cancel()
    assert vm.inside.signature == cloud.world.payload
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.CLAIM_NOT_VERIFIED)
    assert f"the management server sends no command to {name}" in ended.message


async def test_what_the_host_says_about_an_ssvm_reaches_people(cloud: Cloud) -> None:
    cloud.world.faults.patch = Patch.FAILS
    ended = await cloud.patch(cloud.of_type("secstorage"))
    assert ended.result is OperationResult.FAILED
    assert "Failed to copy scripts to system VM" in ended.message


# Lost jobs


@pytest.mark.parametrize("network", ["single", "pair"])
async def test_a_cut_job_whose_work_went_on_is_found_out_and_not_repeated(cloud: Cloud, network: str) -> None:
    cloud.world.faults.cut_job = CutJob.WORK_GOES_ON
    ended = await cloud.patch(cloud.routers(network)[0])
    assert ended.result is OperationResult.SUCCEEDED
    assert GroupPhase.UNKNOWN in cloud.began
    assert len(cloud.calls) == 1


async def test_a_cut_job_whose_work_stopped_is_made_again_once_and_only_after_the_longest_patch(cloud: Cloud) -> None:
    cloud.world.faults.cut_job = CutJob.WORK_STOPS
    asked = now()
    ended = await cloud.patch(cloud.routers("single")[0])
    assert (ended.result, ended.reason) == (OperationResult.FAILED, Reason.JOB_LOST)
    assert len(cloud.calls) == machine.SUBMISSIONS
    assert now() - asked >= api_patches.LONGEST_PATCH


@pytest.mark.parametrize(
    "phase", [GroupPhase.PREPARING, GroupPhase.SUBMITTING, GroupPhase.RUNNING, GroupPhase.VERIFYING]
)
async def test_an_operator_that_dies_at_any_point_makes_one_call(cloud: Cloud, phase: GroupPhase) -> None:
    ended = await cloud.patch(cloud.routers("pair")[0], restart_operator_at=phase)
    assert ended.result is OperationResult.SUCCEEDED
    assert cloud.calls == ["restartNetwork"]
