"""The client of the operator against whoever answers: the stand-in, or the server that CLOUDSTACK_URL names.

Recorded files cannot be asked, so they have no part here; `tests/unit/cloudstack` holds the client to them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from tests.contract.conftest import URL, small_cloud

from lab.cloud import Answer, CutJob, ManagementServer, management_server
from sysvm.api.endpoint import Management, SystemVMType
from sysvm.api.methods import Method
from sysvm.api.observed import RuleKind
from sysvm.api.rollout import GroupPhase
from sysvm.cloudstack import answers
from sysvm.cloudstack.client import Access, CloudStack, Credentials, MayChange
from sysvm.cloudstack.errors import (
    ChangeRefused,
    CloudStackError,
    ListChanged,
    NoSuchObject,
    NotAllowed,
    NotCloudStack,
    OutcomeUnknown,
    Throttled,
    Unauthorized,
    Unavailable,
)
from sysvm.cloudstack.jobs import Job, JobId, JobStatus
from sysvm.cloudstack.lifecycle import CloudJobs
from sysvm.cloudstack.preflight import Feature, missing_permissions
from sysvm.cloudstack.rules import listed_rules
from sysvm.domain import group_operation
from sysvm.domain.calls import Call, Command, Looked
from sysvm.domain.cloud import CloudVM
from sysvm.domain.room import DIRECT_PUBLIC_IP, PUBLIC_IP

NOWHERE = "00000000-0000-4000-8000-000000000001"
FULL = MayChange.of(Management.FULL)
JOB_SECONDS = 10.0


def access_to(url: str, key: str, secret: str) -> Access:
    return Access(url=url, credentials=Credentials(key, secret), requests_per_second=1000, burst=1000)


@pytest.fixture
async def server() -> AsyncIterator[ManagementServer | None]:
    """None: CLOUDSTACK_URL names a real one."""
    if URL:
        yield None
        return
    async with management_server(small_cloud()) as running:
        yield running


@pytest.fixture
def standing_in(server: ManagementServer | None) -> ManagementServer:
    if server is None:
        pytest.skip("CLOUDSTACK_URL names a real server, which takes no faults")
    return server


@pytest.fixture
def access(server: ManagementServer | None) -> Access:
    """Of a root admin."""
    if server is not None:
        return of_user(server, 0)
    keys = os.environ["CLOUDSTACK_KEY"], os.environ["CLOUDSTACK_SECRET"]
    return replace(access_to(URL, *keys), requests_per_second=5, burst=10)


def of_user(server: ManagementServer, number: int) -> Access:
    user = server.world.users[number]
    return access_to(server.url, user.api_key, user.secret)


async def routers(client: CloudStack) -> list[CloudVM]:
    return [
        answers.router(entry) async for entry in client.list_all("listRouters", "router", listall=True, projectid="-1")
    ]


async def a_network(client: CloudStack) -> str:
    return next(vm.network_id for vm in await routers(client) if vm.network_id and not vm.vpc_id)


async def end_of(client: CloudStack, job_id: JobId) -> Job:
    async with asyncio.timeout(JOB_SECONDS):
        while not (job := await client.job(job_id)).ended:
            await asyncio.sleep(0.01)
    return job


# What any server answers


async def test_every_list_can_be_read(access: Access) -> None:
    async with CloudStack(access) as client:
        assert answers.server_version(await client.call("listCapabilities"))[0] == "4"
        assert [answers.zone(entry) async for entry in client.list_all("listZones", "zone")]
        assert [answers.host(entry) async for entry in client.list_all("listHosts", "host", type="Routing")]
        assert [answers.system_vm(entry) async for entry in client.list_all("listSystemVms", "systemvm")]
        assert await routers(client)
        lists = {
            ("listInternalLoadBalancerVMs", "router"): answers.internal_load_balancer,
            ("listNetworks", "network"): answers.network,
            ("listVPCs", "vpc"): answers.vpc,
        }
        for (command, key), read in lists.items():
            async for entry in client.list_all(command, key, listall=True, projectid="-1"):
                assert read(entry)
        templates = client.list_all("listTemplates", "template", templatefilter="all", templatetype="SYSTEM")
        assert [answers.template(entry) async for entry in templates]
        found = [
            answers.setting(entry)
            async for entry in client.list_all(
                "listConfigurations", "configuration", name="minreq.sysvmtemplate.version"
            )
        ]
        assert "minreq.sysvmtemplate.version" in dict(found)


async def test_a_root_admin_lacks_nothing_for_what_changes_vms(access: Access) -> None:
    async with CloudStack(access) as client:
        found = await missing_permissions(
            client, [Feature.PATCH_BY_API, Feature.REBOOT, Feature.RECREATE, Feature.COMPARE]
        )
    assert found.complete


async def test_rules_of_a_network_and_of_a_vpc_are_counted(access: Access) -> None:
    """None of these lists was recorded: a real server is what proves their parameters and `count`."""
    async with CloudStack(access) as client:
        found = await routers(client)
        of_network = next(vm for vm in found if vm.type is SystemVMType.ROUTER)
        counted = await listed_rules(client, (of_network,))
        assert not counted.why_not
        assert set(counted.counts) == {
            RuleKind.FIREWALL, RuleKind.EGRESS, RuleKind.PORT_FORWARDING, RuleKind.LOAD_BALANCER, RuleKind.STATIC_NAT,
        }  # fmt: skip
        of_vpc = next((vm for vm in found if vm.type is SystemVMType.VPCROUTER and vm.network_id), None)
        if of_vpc is not None:
            counted = await listed_rules(client, (of_vpc,))
            assert not counted.why_not
            assert RuleKind.NETWORK_ACL in counted.counts


async def test_free_addresses_of_a_zone_are_told(access: Access) -> None:
    async with CloudStack(access) as client:
        [zone, *_] = [answers.zone(entry) async for entry in client.list_all("listZones", "zone")]
        answer = await client.call("listCapacity", zoneid=zone.id)
    rows = answer["capacity"]
    assert isinstance(rows, list)
    free = dict(answers.free_capacity(row) for row in rows if isinstance(row, dict))
    assert PUBLIC_IP in free or DIRECT_PUBLIC_IP in free


async def test_what_is_not_there_is_told(access: Access) -> None:
    async with CloudStack(access) as client:
        with pytest.raises(NoSuchObject):
            await client.call("listRouters", id=NOWHERE)
        job = await client.job(JobId(NOWHERE))
        assert job.status is JobStatus.UNKNOWN
        await client.running_jobs()


async def test_a_wrong_secret_is_refused(access: Access) -> None:
    wrong = replace(access, credentials=Credentials(access.credentials.api_key, "not-the-secret"))
    async with CloudStack(wrong) as client:
        with pytest.raises(Unauthorized):
            await client.call("listZones")


async def test_awkward_values_are_signed_as_the_server_does(access: Access) -> None:
    async with CloudStack(access) as client:
        for keyword in ("~", "a b+c", "*", "Zürich", "[0].x=y&z", "%7E"):
            await client.call("listRouters", keyword=keyword)


# What is said when the server changes, fails or lies


async def test_a_change_becomes_a_job_with_an_end(standing_in: ManagementServer) -> None:
    async with CloudStack(of_user(standing_in, 0), may_change=FULL) as client:
        before = {vm.id for vm in await routers(client)}
        job_id = await client.submit("restartNetwork", id=await a_network(client), cleanup=True)
        assert [job.id for job in await client.running_jobs()] == [job_id]
        assert (await end_of(client, job_id)).status is JobStatus.SUCCEEDED
        assert await client.running_jobs() == ()
        assert len({vm.id for vm in await routers(client)} - before) == 1


async def test_an_observer_changes_nothing(standing_in: ManagementServer) -> None:
    async with CloudStack(of_user(standing_in, 0)) as client:
        with pytest.raises(ChangeRefused):
            await client.submit("restartNetwork", id=await a_network(client), cleanup=True)
    assert {call.command for call in standing_in.world.calls} == {"listRouters"}


async def test_a_reader_is_told_what_it_lacks_before_and_when_it_tries(standing_in: ManagementServer) -> None:
    async with CloudStack(of_user(standing_in, 1), may_change=FULL) as client:
        found = await missing_permissions(client, [Feature.REBOOT])
        assert found.missing == {Feature.REBOOT: ("rebootSystemVm", "rebootRouter")}
        with pytest.raises(NotAllowed, match="restartNetwork"):
            await client.submit("restartNetwork", id=await a_network(client))


@pytest.mark.parametrize("goes_on", [CutJob.WORK_STOPS, CutJob.WORK_GOES_ON])
async def test_a_job_that_a_restart_cuts_is_unknown_whatever_was_done(
    standing_in: ManagementServer, goes_on: CutJob
) -> None:
    standing_in.world.faults.cut_job = goes_on
    async with CloudStack(of_user(standing_in, 0), may_change=FULL) as client:
        job_id = await client.submit("restartNetwork", id=await a_network(client), cleanup=True)
        assert (await end_of(client, job_id)).status is JobStatus.UNKNOWN


async def test_a_server_that_restarts_is_unavailable_and_answers_again(standing_in: ManagementServer) -> None:
    async with CloudStack(of_user(standing_in, 0)) as client:
        restarting = asyncio.create_task(standing_in.restart(down_seconds=3.0))
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await client.call("listZones")
        await restarting
        assert await client.call("listZones")


async def test_a_patch_whose_answer_was_lost_is_found_in_work_though_its_job_names_no_vm() -> None:
    """And whoever is to be patched next waits for it: it may be about that VM."""
    now = datetime.now(UTC)
    async with (
        management_server(small_cloud(), pace=JOB_SECONDS) as slow,
        CloudStack(of_user(slow, 0), may_change=FULL) as client,
    ):
        vms = [answers.system_vm(entry) async for entry in client.list_all("listSystemVms", "systemvm")]
        vms += await routers(client)
        patched, other, router = (
            next(vm for vm in vms if vm.type is type_)
            for type_ in (SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY, SystemVMType.ROUTER)
        )
        job_id = await client.submit("patchSystemVm", id=patched.id, forced=True)
        found: dict[str, list[str]] = {}
        for vm, phase in (
            (patched, GroupPhase.UNKNOWN),
            (other, GroupPhase.PREPARING),
            (router, GroupPhase.PREPARING),
        ):
            begun = group_operation.begun(
                vm.name, Method.LIVE_PATCH, Call(Command.PATCH_SYSTEM_VM, vm.id), vm, ["op-1"], now
            )
            looked = await CloudJobs(client, lambda: now).look(begun.model_copy(update={"phase": phase}))
            assert isinstance(looked, Looked)
            found[vm.name] = [job.id for job in looked.look.jobs]
        assert found == {patched.name: [job_id], other.name: [job_id], router.name: []}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer.HTML, NotCloudStack),
        (Answer.HALF, Unavailable),
        (Answer.EMPTY, NotCloudStack),
        (Answer.GARBAGE, NotCloudStack),
    ],
)
async def test_what_is_no_answer_fails_a_read_and_leaves_a_change_open(
    standing_in: ManagementServer, answer: Answer, error: type[CloudStackError]
) -> None:
    async with CloudStack(of_user(standing_in, 0), may_change=FULL) as client:
        network = await a_network(client)
        standing_in.world.faults.answer = answer
        with pytest.raises(error):
            await client.call("listZones")
        standing_in.world.calls.clear()
        with pytest.raises(OutcomeUnknown):
            await client.submit("restartNetwork", id=network, cleanup=True)
        standing_in.world.faults.heal()
        assert [call.command for call in standing_in.world.calls] == ["restartNetwork"], "it was carried out, once"
        assert [job.command for job in await client.running_jobs()] == ["RestartNetworkCmd"], "and can be found"
        await standing_in.idle()


async def test_half_a_list_is_no_list(standing_in: ManagementServer) -> None:
    standing_in.world.faults.half_lists = True
    async with CloudStack(of_user(standing_in, 0)) as client:
        with pytest.raises(ListChanged):
            await routers(client)


async def test_a_server_that_asks_for_patience_gets_it(standing_in: ManagementServer) -> None:
    faults = standing_in.world.faults
    faults.throttle, faults.throttle_milliseconds = 2, 30
    async with CloudStack(of_user(standing_in, 0)) as client:
        assert await client.call("listZones")
        faults.throttle, faults.throttle_milliseconds = 1, 60_000
        with pytest.raises(Throttled) as caught:
            await client.call("listZones")
    assert caught.value.retry_after_seconds == 60


async def test_a_request_that_expired_names_the_difference_of_the_clocks(standing_in: ManagementServer) -> None:
    async with CloudStack(of_user(standing_in, 0)) as client:
        standing_in.world.faults.clock_ahead_seconds = 1200
        with pytest.raises(Unauthorized, match=r"clock is (1199|1200|1201) s behind the server's"):
            await client.call("listZones")


async def test_a_change_that_is_held_up_by_a_server_with_a_slow_clock_expires_by_that_clock(
    standing_in: ManagementServer,
) -> None:
    """The operator's clock is 20 minutes ahead: by it alone a change would be good for 22."""
    standing_in.world.faults.clock_ahead_seconds = -1200
    async with CloudStack(of_user(standing_in, 0), may_change=FULL) as client:
        network = await a_network(client)
        standing_in.world.faults.clock_ahead_seconds = -1200 + 125
        with pytest.raises(Unauthorized):
            await client.submit("restartNetwork", id=network)


async def test_a_slow_server_is_given_its_time_and_no_more(standing_in: ManagementServer) -> None:
    standing_in.world.faults.delay_seconds = 0.3
    async with CloudStack(of_user(standing_in, 0)) as client:
        assert await client.call("listZones")
    async with CloudStack(replace(of_user(standing_in, 0), timeout=timedelta(seconds=0.1))) as client:
        with pytest.raises(Unavailable):
            await client.call("listZones")
