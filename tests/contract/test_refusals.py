"""What the API refuses, how, and with which words: the client's error classes rest on it."""

from __future__ import annotations

import pytest
from tests.contract.asking import Answers, Live, Reply, Situation, at, situation

UNVERIFIED = "unable to verify user credentials and/or request signature"
NOBODY = "00000000-0000-4000-8000-000000000001"


@situation("error.badsignature")
async def bad_signature(cloud: Live) -> Reply:
    return await cloud.call("listZones", changed={"signature": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="})


@situation("error.unknownapikey")
async def unknown_key(cloud: Live) -> Reply:
    return await cloud.call("listZones", changed={"apikey": "nobody"})


@situation("error.nokey")
async def no_key(cloud: Live) -> Reply:
    return await cloud.call("listZones", signed=False)


@situation("error.expired")
async def expired(cloud: Live) -> Reply:
    return await cloud.call("listZones", expires=at(hours=-1))


@situation("error.expiresformat")
async def no_time(cloud: Live) -> Reply:
    return await cloud.call("listZones", expires="yesterday")


@pytest.mark.parametrize("it", [bad_signature, unknown_key, no_key, expired, no_time], ids=lambda it: it.recorded)
async def test_whoever_cannot_be_verified_gets_the_same_401(answers: Answers, it: Situation) -> None:
    reply = await answers.ask(it)
    assert reply.wrapper == "listzonesresponse"
    assert (reply.status, reply.inner) == (401, {"uuidList": [], "errorcode": 401, "errortext": UNVERIFIED})


@situation("error.unknowncommand")
async def unknown_command(cloud: Live) -> Reply:
    return await cloud.call("noSuchCommand")


async def test_an_unknown_command_looks_like_wrong_keys_but_for_its_wrapper(answers: Answers) -> None:
    reply = await answers.ask(unknown_command)
    assert (reply.wrapper, reply.error) == ("errorresponse", (401, 401, UNVERIFIED))


@situation("error.page")
async def page_alone(cloud: Live) -> Reply:
    return await cloud.call("listZones", page="1")


async def test_a_page_needs_a_size(answers: Answers) -> None:
    reply = await answers.ask(page_alone)
    assert reply.error == (431, 431, '"pagesize" parameter is required when "page" is specified')
    assert reply.inner["cserrorcode"] == 9999


@situation("error.pagesize")
async def huge_page(cloud: Live) -> Reply:
    return await cloud.call("listRouters", listall="true", page="1", pagesize="100000")


async def test_a_page_has_a_largest_size(answers: Answers) -> None:
    reply = await answers.ask(huge_page)
    assert reply.error[:2] == (431, 431)
    assert str(reply.error[2]).startswith("Page size can't exceed max allowed page size value: ")
    assert reply.inner["cserrorcode"] == 4350


@situation("listRouters.unknownid")
async def unknown_router(cloud: Live) -> Reply:
    return await cloud.call("listRouters", id=NOBODY)


@situation("error.unknownjob")
async def unknown_job(cloud: Live) -> Reply:
    return await cloud.call("queryAsyncJobResult", jobid=NOBODY)


@situation("patchSystemVm.unknownid", changes=True)
async def patch_nobody(cloud: Live) -> Reply:
    return await cloud.call("patchSystemVm", id=NOBODY)


@situation("patchSystemVm.badid", changes=True)
async def patch_no_uuid(cloud: Live) -> Reply:
    return await cloud.call("patchSystemVm", id="nosuch")


@situation("error.unknownnetwork", changes=True)
async def restart_nothing(cloud: Live) -> Reply:
    return await cloud.call("restartNetwork", id=NOBODY, livepatch="true")


@pytest.mark.parametrize(
    ("it", "command"),
    [
        (unknown_router, "listrouters"),
        (unknown_job, "queryasyncjobresult"),
        (patch_nobody, "patchsystemvm"),
        (patch_no_uuid, "patchsystemvm"),
        (restart_nothing, "restartnetwork"),
    ],
    ids=lambda it: it if isinstance(it, str) else it.recorded,
)
async def test_an_id_that_names_nothing_is_a_431_with_the_parameter_in_its_text(
    answers: Answers, it: Situation, command: str
) -> None:
    reply = await answers.ask(it)
    assert (reply.wrapper, reply.error[:2]) == (f"{command}response", (431, 431))
    assert str(reply.error[2]).startswith(
        f"Unable to execute API command {command} due to invalid value. Invalid parameter "
    )
    assert "entity does not exist" in str(reply.error[2])


@situation("error.missingparam", changes=True)
async def reboot_what(cloud: Live) -> Reply:
    return await cloud.call("rebootSystemVm")


@situation("error.missingparam.restartNetwork", changes=True)
async def restart_what(cloud: Live) -> Reply:
    return await cloud.call("restartNetwork")


@pytest.mark.parametrize(
    ("it", "command"),
    [(reboot_what, "rebootsystemvm"), (restart_what, "restartnetwork")],
    ids=lambda it: it if isinstance(it, str) else it.recorded,
)
async def test_a_missing_parameter_is_named(answers: Answers, it: Situation, command: str) -> None:
    reply = await answers.ask(it)
    assert reply.error == (431, 431, f"Unable to execute API command {command} due to missing parameter id")


@situation("error.emptyid", changes=True)
async def reboot_empty(cloud: Live) -> Reply:
    return await cloud.call("rebootSystemVm", id="")


async def test_an_empty_id_is_refused(answers: Answers) -> None:
    assert (await answers.ask(reboot_empty)).error == (431, 431, "Invalid value provided for API arg: id")


@situation("error.rebootsystemvm.router", changes=True)
async def reboot_router_as_system_vm(cloud: Live) -> Reply:
    router = await cloud.pick("listRouters", "router", listall="true")
    return await cloud.call("rebootSystemVm", id=router["id"])


async def test_a_router_is_no_system_vm_to_reboot(answers: Answers) -> None:
    reply = await answers.ask(reboot_router_as_system_vm)
    assert reply.error == (431, 431, "Unable to find a system vm of specified instanceId")


@situation("listTemplates.filter-system.error")
async def filter_system(cloud: Live) -> Reply:
    return await cloud.call("listTemplates", templatefilter="system")


async def test_there_is_no_template_filter_for_system_templates(answers: Answers) -> None:
    reply = await answers.ask(filter_system)
    assert reply.error[:2] == (431, 431)
    assert str(reply.error[2]).endswith("TemplateFilter.system")


@situation("error.user.listSystemVms")
async def user_lists(cloud: Live) -> Reply:
    return await cloud.call("listSystemVms", user="user")


@situation("error.user.listRouters")
async def user_lists_routers(cloud: Live) -> Reply:
    return await cloud.call("listRouters", user="user")


@situation("error.roadmin.patchSystemVm", changes=True)
async def auditor_patches(cloud: Live) -> Reply:
    return await cloud.call("patchSystemVm", user="readonly", id=NOBODY)


@pytest.mark.parametrize("it", [user_lists, user_lists_routers, auditor_patches], ids=lambda it: it.recorded)
async def test_a_role_without_the_permission_gets_432_in_a_wrapper_of_its_own(answers: Answers, it: Situation) -> None:
    reply = await answers.ask(it)
    assert (reply.wrapper, reply.error[:2]) == ("errorresponse", (432, 432))
    command = it.recorded.rsplit(".", 1)[1]
    assert str(reply.error[2]).startswith(
        f"The API [{command}] does not exist or is not available for the account for user id ["
    )


@situation("error.roadmin.listApis")
async def auditor_asks(cloud: Live) -> Reply:
    return await cloud.call("listApis", user="readonly", name="patchSystemVm")


async def test_list_apis_fails_for_one_that_the_role_lacks(answers: Answers) -> None:
    reply = await answers.ask(auditor_asks)
    words = "Api Discovery plugin was unable to find an api by that name or process any apis"
    assert reply.error == (530, 530, words)


@situation("error.throttled", arranged=True)
async def too_many(cloud: Live) -> Reply:
    cloud.world.faults.throttle = 1
    return await cloud.call("listZones")


async def test_too_many_requests_are_told_how_long_to_wait(answers: Answers) -> None:
    reply = await answers.ask(too_many)
    words = "The given user has reached his/her account api limit, please retry after [528] ms."
    assert (reply.wrapper, reply.error) == ("listzonesresponse", (429, 429, words))


@situation("upgradeRouterTemplate.two", changes=True)
async def two_scopes(cloud: Live) -> Reply:
    zone = await cloud.pick("listZones", "zone")
    router = await cloud.pick("listRouters", "router", listall="true")
    return await cloud.call("upgradeRouterTemplate", id=router["id"], zoneid=zone["id"])


async def test_an_upgrade_of_templates_has_one_scope(answers: Answers) -> None:
    reply = await answers.ask(two_scopes)
    assert reply.error[:2] == (431, 431)
    assert str(reply.error[2]).startswith("Multiple parameters not supported.")


@situation("getRouterHealthCheckResults", arranged=True)
async def health_of_a_new_router(cloud: Live) -> Reply:
    router = await cloud.pick("listRouters", "router", listall="true")
    return await cloud.call("getRouterHealthCheckResults", routerid=router["id"])


async def test_a_router_without_results_has_none_to_give(answers: Answers) -> None:
    reply = await answers.ask(health_of_a_new_router)
    assert reply.error[:2] == (530, 530)
    assert "No health check results found for the router." in str(reply.error[2])
