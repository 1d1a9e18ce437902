"""restartNetwork and restartVPC: what they do, what they claim, and where the two differ."""

from __future__ import annotations

import pytest
from tests.contract.asking import Answers, Live, Reply, Situation, situation
from tests.contract.test_jobs import job, plain_router

from lab.cloud import Patch


async def the_network(cloud: Live) -> str:
    return str((await plain_router(cloud))["guestnetworkid"])


async def the_vpc(cloud: Live, *, redundant: bool = False, tiers: bool = True) -> dict[str, str]:
    return await cloud.pick(
        "listVPCs",
        "vpc",
        lambda vpc: vpc["redundantvpcrouter"] is redundant and bool(vpc["network"]) is tiers,
        listall="true",
    )


def restart(name: str, **parameters: str) -> Situation:
    async def provoke(cloud: Live) -> Reply:
        return await cloud.job("restartNetwork", id=await the_network(cloud), **parameters)

    return Situation(f"restartNetwork.{name}.job", provoke, changes=True)


def restart_vpc(name: str, *, redundant: bool = False, tiers: bool = True, **parameters: str) -> Situation:
    async def provoke(cloud: Live) -> Reply:
        vpc = await the_vpc(cloud, redundant=redundant, tiers=tiers)
        return await cloud.job("restartVPC", id=vpc["id"], **parameters)

    return Situation(f"restartVPC.{name}.job", provoke, changes=True)


@situation("restartNetwork.livepatch.patchfails.job", arranged=True)
async def patch_fails_in_network(cloud: Live) -> Reply:
    cloud.world.faults.patch = Patch.FAILS
    return await cloud.job("restartNetwork", id=await the_network(cloud), livepatch="true")


@situation("restartVPC.livepatch.patchfails.job", arranged=True)
async def patch_fails_in_vpc(cloud: Live) -> Reply:
    cloud.world.faults.patch = Patch.FAILS
    return await cloud.job("restartVPC", id=(await the_vpc(cloud))["id"], livepatch="true")


@pytest.mark.parametrize(
    "it",
    [
        restart("plain"),
        restart("livepatch.ok", livepatch="true"),
        restart("cleanup", cleanup="true"),
        restart("cleanup_livepatch", cleanup="true", livepatch="true"),
        patch_fails_in_network,
        restart_vpc("plain"),
        restart_vpc("livepatch.ok", livepatch="true"),
        restart_vpc("livepatch.notiers", livepatch="true", tiers=False),
        restart_vpc("cleanup", cleanup="true"),
        restart_vpc("redundant.cleanup", redundant=True, cleanup="true"),
        patch_fails_in_vpc,
    ],
    ids=lambda it: it.recorded,
)
async def test_a_restart_claims_success_and_nothing_else_whatever_its_patch_did(
    answers: Answers, it: Situation
) -> None:
    reply = await answers.ask(it)
    assert job(reply) == (1, 0)
    assert reply.inner["jobresult"] == {"success": True}
    assert reply.inner["jobinstancetype"] == ("Vpc" if it.recorded.startswith("restartVPC") else "Network")
    assert "jobinstanceid" not in reply.inner


@situation("restartNetwork.tier.cleanup.job", changes=True)
async def cleanup_of_a_tier(cloud: Live) -> Reply:
    tier = (await the_vpc(cloud))["network"][0]
    return await cloud.job("restartNetwork", id=tier["id"], cleanup="true")  # type: ignore[index]


async def test_a_tier_is_not_cleaned_up_alone(answers: Answers) -> None:
    reply = await answers.ask(cleanup_of_a_tier)
    assert job(reply) == (2, 431)
    words = "Cannot restart a VPC tier with cleanup, please restart the whole VPC."
    assert reply.inner["jobresult"] == {"errorcode": 431, "errortext": words}


@situation("restartNetwork.cleanup.startfails.job", arranged=True)
async def start_fails(cloud: Live) -> Reply:
    cloud.world.faults.start_fails = 1
    return await cloud.job("restartNetwork", id=await the_network(cloud), cleanup="true")


@situation("rebootRouter.startfails.job", arranged=True)
async def start_fails_after_stop(cloud: Live) -> Reply:
    router = await plain_router(cloud)
    cloud.world.faults.start_fails = 1
    return await cloud.job("rebootRouter", id=router["id"])


@pytest.mark.parametrize("it", [start_fails, start_fails_after_stop], ids=lambda it: it.recorded)
async def test_a_router_that_cannot_be_started_fails_the_job_and_is_named(answers: Answers, it: Situation) -> None:
    reply = await answers.ask(it)
    assert job(reply) == (2, 530)
    text = reply.inner["jobresult"]["errortext"]
    assert text.startswith('Unable to create a deployment for VM instance {"id":')
    assert '"state":"Starting","type":"DomainRouter","uuid":"' in text


@situation("restartNetwork.livepatch.routerstopped.job", changes=True)
async def livepatch_of_a_stopped_router(cloud: Live) -> Reply:
    router = await plain_router(cloud)
    await cloud.job("stopRouter", id=router["id"])
    return await cloud.job("restartNetwork", id=router["guestnetworkid"], livepatch="true")


async def test_a_livepatch_starts_a_stopped_router(answers: Answers) -> None:
    reply = await answers.ask(livepatch_of_a_stopped_router)
    assert job(reply) == (1, 0)
    assert reply.inner["jobresult"] == {"success": True}
