"""Jobs: how they are submitted, told, done, failed and lost; and what they claim."""

from __future__ import annotations

import asyncio

import pytest
from tests.contract.asking import JOB_SECONDS, Answers, Live, Reply, Situation, situation

from lab.cloud import Patch


async def of_type(cloud: Live, kind: str) -> str:
    return str(
        (await cloud.pick("listSystemVms", "systemvm", lambda vm: vm["state"] == "Running", systemvmtype=kind))["id"]
    )


async def another(cloud: Live, gone: str) -> None:
    """Waits until the server has put another storage VM in the place of one that was destroyed."""
    async with asyncio.timeout(JOB_SECONDS):
        while True:
            listed = (await cloud.call("listSystemVms", systemvmtype="secondarystoragevm")).inner.get("systemvm", [])
            if any(vm["id"] != gone and vm["state"] == "Running" and vm.get("agentstate") == "Up" for vm in listed):
                return
            await asyncio.sleep(cloud.poll_seconds)


async def plain_router(cloud: Live) -> dict[str, str]:
    """The router of a network of its own: neither of a VPC nor one of a pair."""
    return await cloud.pick(
        "listRouters",
        "router",
        lambda r: r["state"] == "Running" and not r["isredundantrouter"] and "vpcid" not in r,
        listall="true",
    )


def job(reply: Reply) -> tuple[int, int]:
    assert (reply.status, reply.wrapper) == (200, "queryasyncjobresultresponse")
    return reply.inner["jobstatus"], reply.inner["jobresultcode"]


@situation("patchSystemVm.mockok.submit", changes=True)
async def submit(cloud: Live) -> Reply:
    return await cloud.call("patchSystemVm", id=await of_type(cloud, "secondarystoragevm"), forced="true")


@situation("error.badboolean", changes=True)
async def submit_odd(cloud: Live) -> Reply:
    return await cloud.call("patchSystemVm", id=await of_type(cloud, "secondarystoragevm"), forced="maybe")


@pytest.mark.parametrize("it", [submit, submit_odd], ids=lambda it: it.recorded)
async def test_a_submission_answers_with_the_id_of_a_job_and_nothing_else(answers: Answers, it: Situation) -> None:
    reply = await answers.ask(it)
    assert (reply.status, reply.wrapper, set(reply.inner)) == (200, "patchsystemvmresponse", {"jobid"})


@situation("queryAsyncJobResult.pending", changes=True)
async def pending(cloud: Live) -> Reply:
    submitted = await cloud.call("patchSystemVm", id=await of_type(cloud, "secondarystoragevm"), forced="true")
    return await cloud.call("queryAsyncJobResult", jobid=submitted.inner["jobid"])


async def test_a_pending_job_has_status_0_and_no_result(answers: Answers) -> None:
    reply = await answers.ask(pending)
    assert job(reply) == (0, 0)
    assert not {"jobresult", "jobresulttype", "completed"} & set(reply.inner)
    assert reply.inner["cmd"].endswith("PatchSystemVMCmd")
    assert not {"jobinstancetype", "jobinstanceid"} & set(reply.inner), "it does not say which VM it works on"


@situation("patchSystemVm.mockok.job", changes=True)
async def patched(cloud: Live) -> Reply:
    return await cloud.job("patchSystemVm", id=await of_type(cloud, "secondarystoragevm"), forced="true")


async def test_a_patch_succeeds_with_details_and_without_naming_the_vm(answers: Answers) -> None:
    reply = await answers.ask(patched)
    assert job(reply) == (1, 0)
    assert set(reply.inner["jobresult"]) == {"success", "details"}
    assert reply.inner["jobresult"]["success"] is True
    assert reply.inner["jobresult"]["details"].startswith("Successfully patched")
    assert "jobinstanceid" not in reply.inner


@situation("patchSystemVm.mockfail.job", arranged=True)
async def patch_fails(cloud: Live) -> Reply:
    cloud.world.faults.patch = Patch.FAILS
    return await cloud.job("patchSystemVm", id=await of_type(cloud, "secondarystoragevm"))


async def test_a_patch_that_fails_is_a_530_with_the_words_of_the_host(answers: Answers) -> None:
    reply = await answers.ask(patch_fails)
    assert job(reply) == (2, 530)
    assert reply.inner["jobresulttype"] == "object"
    assert reply.inner["jobresult"]["errorcode"] == 530
    assert "due to Failed to copy scripts to system VM" in reply.inner["jobresult"]["errortext"]


@situation("patchSystemVm.routerid.job", changes=True)
async def patch_router(cloud: Live) -> Reply:
    return await cloud.job("patchSystemVm", id=(await plain_router(cloud))["id"])


async def test_a_router_is_accepted_for_patching_and_the_job_fails(answers: Answers) -> None:
    reply = await answers.ask(patch_router)
    assert job(reply) == (2, 431)
    assert "patchSystemVm API can be used to patch CPVM / SSVM only." in reply.inner["jobresult"]["errortext"]


@situation("patchSystemVm.stopped.job", changes=True)
async def patch_stopped(cloud: Live) -> Reply:
    proxy = await of_type(cloud, "consoleproxy")
    await cloud.job("stopSystemVm", id=proxy)
    try:
        return await cloud.job("patchSystemVm", id=proxy)
    finally:
        await cloud.job("startSystemVm", id=proxy)


async def test_a_stopped_system_vm_is_not_patched(answers: Answers) -> None:
    reply = await answers.ask(patch_stopped)
    assert job(reply) == (2, 530)
    assert "as it is not in Running state." in reply.inner["jobresult"]["errortext"]


@situation("patchSystemVm.vmdestroyedmeanwhile", changes=True)
async def destroyed_meanwhile(cloud: Live) -> Reply:
    storage = await of_type(cloud, "secondarystoragevm")
    submitted = await cloud.call("patchSystemVm", id=storage, forced="true")
    destroyed = await cloud.job("destroySystemVm", id=storage)
    assert job(destroyed) == (1, 0)
    await another(cloud, storage)
    return await cloud.finished(submitted.inner["jobid"])


async def test_nothing_keeps_a_vm_from_being_destroyed_while_it_is_patched(answers: Answers) -> None:
    """What becomes of the patch is the host's affair: a simulated one had done it, a real one has lost its VM."""
    assert job(await answers.ask(destroyed_meanwhile)) in [(1, 0), (2, 530)]


@situation("job.after-ms-kill.0", arranged=True)
async def cut_patch(cloud: Live) -> Reply:
    submitted = await cloud.call("patchSystemVm", id=await of_type(cloud, "secondarystoragevm"))
    await cloud.server.restart(down_seconds=0)
    return await cloud.call("queryAsyncJobResult", jobid=submitted.inner["jobid"])


@situation("job.after-ms-kill.1", arranged=True)
async def cut_restart(cloud: Live) -> Reply:
    router = await plain_router(cloud)
    submitted = await cloud.call("restartNetwork", id=router["guestnetworkid"])
    await cloud.server.restart(down_seconds=0)
    return await cloud.call("queryAsyncJobResult", jobid=submitted.inner["jobid"])


@pytest.mark.parametrize("it", [cut_patch, cut_restart], ids=lambda it: it.recorded)
async def test_a_job_that_a_restart_cut_failed_without_any_result(answers: Answers, it: Situation) -> None:
    reply = await answers.ask(it)
    assert job(reply) == (2, 530)
    assert not {"jobresult", "jobresulttype"} & set(reply.inner)
    assert reply.inner["completed"]


@situation("rebootRouter.job", changes=True)
async def reboot(cloud: Live) -> Reply:
    return await cloud.job("rebootRouter", id=(await plain_router(cloud))["id"])


@situation("stopRouter.job", changes=True)
async def stop(cloud: Live) -> Reply:
    router = await plain_router(cloud)
    try:
        return await cloud.job("stopRouter", id=router["id"])
    finally:
        await cloud.job("startRouter", id=router["id"])


@pytest.mark.parametrize(
    ("it", "state"), [(reboot, "Running"), (stop, "Stopped")], ids=lambda it: it if isinstance(it, str) else it.recorded
)
async def test_a_router_is_told_with_the_job_that_did_it(answers: Answers, it: Situation, state: str) -> None:
    reply = await answers.ask(it)
    assert job(reply) == (1, 0)
    router = reply.inner["jobresult"]["router"]
    assert (reply.inner["jobinstancetype"], reply.inner["jobinstanceid"]) == ("DomainRouter", router["id"])
    assert router["state"] == state
    assert ("hostname" in router) == ("linklocalip" in router) == (state == "Running")
    assert router["jobid"] == reply.inner["jobid"]


@situation("stopSystemVm.job", changes=True)
async def stop_system_vm(cloud: Live) -> Reply:
    proxy = await of_type(cloud, "consoleproxy")
    try:
        return await cloud.job("stopSystemVm", id=proxy)
    finally:
        await cloud.job("startSystemVm", id=proxy)


async def test_a_stopped_system_vm_has_no_host_and_no_address(answers: Answers) -> None:
    reply = await answers.ask(stop_system_vm)
    vm = reply.inner["jobresult"]["systemvm"]
    assert vm["state"] == "Stopped"
    assert not {"hostid", "hostname", "linklocalip", "privateip", "agentstate"} & set(vm)
    assert vm["hypervisor"]


@situation("rebootSystemVm.forced.job", changes=True)
async def reboot_system_vm(cloud: Live) -> Reply:
    return await cloud.job("rebootSystemVm", id=await of_type(cloud, "consoleproxy"), forced="true")


async def test_a_rebooted_system_vm_runs(answers: Answers) -> None:
    reply = await answers.ask(reboot_system_vm)
    assert job(reply) == (1, 0)
    assert reply.inner["jobresult"]["systemvm"]["state"] == "Running"
    assert reply.inner["jobinstancetype"] == "SystemVm"


@situation("destroySystemVm.ssvm.job", changes=True)
async def destroy(cloud: Live) -> Reply:
    storage = await of_type(cloud, "secondarystoragevm")
    reply = await cloud.job("destroySystemVm", id=storage)
    await another(cloud, storage)
    return reply


async def test_a_destroyed_system_vm_is_told_as_it_was(answers: Answers) -> None:
    reply = await answers.ask(destroy)
    assert job(reply) == (1, 0)
    assert reply.inner["jobresult"]["systemvm"]["state"] == "Running"


@situation("destroySystemVm.again", changes=True)
async def destroy_again(cloud: Live) -> Reply:
    storage = await of_type(cloud, "secondarystoragevm")
    await cloud.job("destroySystemVm", id=storage)
    for _ in range(60):
        reply = await cloud.call("destroySystemVm", id=storage)
        if reply.status != 200:
            break
        await asyncio.sleep(cloud.poll_seconds)
    await another(cloud, storage)
    return reply


async def test_what_was_destroyed_cannot_be_destroyed_again(answers: Answers) -> None:
    reply = await answers.ask(destroy_again)
    assert reply.error[:2] == (431, 431)
    assert str(reply.error[2]).startswith("Unable to find UUID for id [")


@situation("upgradeRouterTemplate.notrequired", changes=True)
async def nothing_due(cloud: Live) -> Reply:
    return await cloud.call("upgradeRouterTemplate", id=(await plain_router(cloud))["id"])


@situation("upgradeRouterTemplate.needed", arranged=True)
async def one_due(cloud: Live) -> Reply:
    router = await plain_router(cloud)
    cloud.world.vms[router["id"]].template_version = "4.9.2"
    return await cloud.call("upgradeRouterTemplate", id=router["id"])


async def test_an_upgrade_of_templates_answers_with_the_jobs_it_started(answers: Answers) -> None:
    assert (await answers.ask(nothing_due)).inner == {}
    reply = await answers.ask(one_due)
    assert reply.inner["count"] == 1
    assert set(reply.inner["asyncjobs"][0]) == {"jobid"}
