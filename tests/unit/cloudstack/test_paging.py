"""Lists come whole or not at all, however the server cuts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from tests.unit.cloudstack.recorded import Server, answer, client, inner, recorded

from sysvm.cloudstack.client import CloudStack
from sysvm.cloudstack.errors import AnswerInvalid, BadParameter, ListChanged, Unauthorized


def pages_of(entries: Callable[[int], list[dict[str, Any]]], *, limit: int = 500, count: int | None = None) -> Any:
    """A server with paging as recorded; `entries(page)` is the list as it is when that page is asked for."""

    async def reply(request: web.Request) -> web.StreamResponse:
        form = await request.post()
        page, size = int(str(form["page"])), int(str(form["pagesize"]))
        if size > limit:
            text = f"Page size can't exceed max allowed page size value: {limit}"
            return answer({"listroutersresponse": {"errorcode": 431, "errortext": text}}, 431)
        everything = entries(page)
        if not everything:
            return answer({"listroutersresponse": {}})
        some = everything[(page - 1) * size : page * size]
        body: dict[str, Any] = {"count": len(everything) if count is None else count}
        return answer({"listroutersresponse": {**body, "router": some} if some else body})

    return reply


def routers(number: int) -> list[dict[str, Any]]:
    return [{"id": str(index), "name": f"r-{index}-VM"} for index in range(number)]


async def listed(cloud: CloudStack, **params: Any) -> list[str]:
    return [str(entry["id"]) async for entry in cloud.list_all("listRouters", "router", listall=True, **params)]


@pytest.mark.parametrize("number", [0, 1, 499, 500, 501, 1000, 1234])
async def test_every_entry_comes_once(server: Server, number: int) -> None:
    server.says(pages_of(lambda page: routers(number)))
    async with client(server) as cloud:
        assert await listed(cloud) == [str(index) for index in range(number)]
    assert len(server.seen) == max(1, -(-number // 500)), "no page is asked for in vain"


async def test_a_server_that_grants_smaller_pages_is_asked_for_those(server: Server) -> None:
    server.says(pages_of(lambda page: routers(250), limit=100))
    async with client(server) as cloud:
        assert len(await listed(cloud)) == 250
    assert [seen.form["pagesize"] for seen in server.seen] == ["500", "100", "100", "100"]


async def test_another_bad_parameter_is_no_matter_of_pages(server: Server) -> None:
    server.says(recorded("listRouters.unknownid"))
    async with client(server) as cloud:
        with pytest.raises(BadParameter):
            await listed(cloud, id="00000000-0000-4000-8000-000000000001")
    assert len(server.seen) == 1


@pytest.mark.parametrize("name", ["listRouters.empty", "listSystemVms.empty"])
async def test_an_empty_list_is_an_object_without_anything(server: Server, name: str) -> None:
    assert inner(name) == {}
    server.says(recorded(name))
    async with client(server) as cloud:
        assert await listed(cloud) == []


async def test_a_page_past_the_end_has_a_count_and_no_list(server: Server) -> None:
    assert inner("ok.pastpage") == {"count": 2}
    server.says(recorded("ok.pastpage"))
    async with client(server) as cloud:
        with pytest.raises(ListChanged, match="after 0 of 2"):
            await listed(cloud)


async def test_a_vm_that_goes_between_two_pages_hides_no_other(server: Server) -> None:
    """One entry less on page 2: the first of it slid onto page 1, and would have been missed."""
    server.says(pages_of(lambda page: routers(1000) if page == 1 else routers(1000)[1:]))
    async with client(server) as cloud:
        with pytest.raises(ListChanged, match="there were 1000 entries, now there are 999"):
            await listed(cloud)


async def test_a_vm_that_comes_at_the_front_is_noticed(server: Server) -> None:
    new = {"id": "new", "name": "r-new-VM"}
    server.says(pages_of(lambda page: routers(1000) if page == 1 else [new, *routers(999)]))
    async with client(server) as cloud:
        with pytest.raises(ListChanged, match="came twice"):
            await listed(cloud)


async def test_a_list_that_ends_too_early_is_not_taken_for_whole(server: Server) -> None:
    server.says(pages_of(lambda page: routers(600), count=700))
    async with client(server) as cloud:
        with pytest.raises(ListChanged, match="after 600 of 700"):
            await listed(cloud)


async def test_a_list_that_nothing_depends_on_may_end_early(server: Server) -> None:
    server.says(pages_of(lambda page: routers(600), count=700))
    async with client(server) as cloud:
        assert len(await listed(cloud, exact=False)) == 600


async def test_a_failed_page_fails_the_list(server: Server) -> None:
    whole = pages_of(lambda page: routers(1000))
    server.says(whole, recorded("error.wrongsecret"))
    async with client(server) as cloud:
        with pytest.raises(Unauthorized):
            await listed(cloud)


async def test_one_template_in_two_zones_is_no_entry_that_came_twice(server: Server) -> None:
    templates = [{"id": "t", "zoneid": zone, "name": "systemvm"} for zone in ("a", "b")]
    server.says(answer({"listtemplatesresponse": {"count": 2, "template": templates}}))
    async with client(server) as cloud:
        found = [entry async for entry in cloud.list_all("listTemplates", "template", templatefilter="all")]
    assert found == templates


@pytest.mark.parametrize("body", [{"router": "x"}, {"count": 1, "router": ["x"]}, {"count": "1", "router": [{}]}])
async def test_a_list_of_another_form_is_refused(server: Server, body: dict[str, Any]) -> None:
    server.says(answer({"listroutersresponse": body}))
    async with client(server) as cloud:
        with pytest.raises(AnswerInvalid):
            await listed(cloud)


async def test_jobs_that_run_are_listed_and_those_that_ended_are_not(server: Server) -> None:
    pending, done = inner("queryAsyncJobResult.pending"), inner("restartVPC.cleanup.job")
    server.says(answer({"listasyncjobsresponse": {"count": 2, "asyncjobs": [pending, done]}}))
    async with client(server) as cloud:
        [job] = await cloud.running_jobs()
    assert job.id == pending["jobid"]
    assert job.command == "PatchSystemVMCmd"


@pytest.mark.parametrize("status", [None, "0", True, 9])
async def test_a_job_whose_status_nobody_understands_is_not_taken_for_ended(server: Server, status: object) -> None:
    entry = {**inner("queryAsyncJobResult.pending"), "jobstatus": status}
    server.says(answer({"listasyncjobsresponse": {"count": 1, "asyncjobs": [entry]}}))
    async with client(server) as cloud:
        with pytest.raises(AnswerInvalid, match="no known jobstatus"):
            await cloud.running_jobs()
