"""Whatever a server answers, the typed layer gives a value or one of its own errors, and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.cloudstack.recorded import ANSWERS, FULL, READERS, Server, client, recording

from sysvm.cloudstack import answers
from sysvm.cloudstack.client import CloudStack
from sysvm.cloudstack.errors import AnswerInvalid, CloudStackError
from sysvm.cloudstack.jobs import Job, JobId, classify
from sysvm.cloudstack.preflight import Feature, missing_permissions
from sysvm.cloudstack.transport import Answer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:3]):
            found += places(inner, (*path, index))
    return found


async def _list(cloud: CloudStack, command: str, key: str, read: Callable[[Answer], object]) -> None:
    async for entry in cloud.list_all(command, key):
        read(entry)


Use = Callable[[CloudStack], Awaitable[object]]

USES: dict[str, Use] = {
    "listCapabilities": lambda cloud: cloud.call("listCapabilities"),
    "listRouters": lambda cloud: _list(cloud, "listRouters", "router", answers.router),
    "listSystemVms": lambda cloud: _list(cloud, "listSystemVms", "systemvm", answers.system_vm),
    "listHosts": lambda cloud: _list(cloud, "listHosts", "host", answers.host),
    "listZones": lambda cloud: _list(cloud, "listZones", "zone", answers.zone),
    "listVPCs": lambda cloud: _list(cloud, "listVPCs", "vpc", answers.vpc),
    "listTemplates": lambda cloud: _list(cloud, "listTemplates", "template", answers.template),
    "queryAsyncJobResult": lambda cloud: cloud.job(JobId("a")),
    "listAsyncJobs": lambda cloud: cloud.running_jobs(),
    "restartNetwork": lambda cloud: cloud.submit("restartNetwork", id="a"),
    "patchSystemVm": lambda cloud: cloud.change("patchSystemVm", id="a"),
    "listApis": lambda cloud: missing_permissions(cloud, [Feature.REBOOT]),
}
"""The typed layer over each command that was recorded."""

NAMES = {
    use: sorted(
        path.name.removesuffix(".json")
        for path in ANSWERS.glob("*.json")
        if not path.name.startswith("timeline")
        and recording(path.name.removesuffix(".json")).get("request", {}).get("command") == use
    )
    for use in USES
}


@pytest.fixture
async def cloud(server: Server) -> AsyncIterator[CloudStack]:
    async with client(server, may_change=FULL) as opened:
        yield opened


QUIETLY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Use, int, Any]:
    """A command, and a recorded answer to it with a few places removed or replaced."""
    use = draw(st.sampled_from(sorted(USES)))
    loaded = recording(draw(st.sampled_from(NAMES[use])))
    body: Any = copy.deepcopy(loaded["answer"])
    for _ in range(draw(st.integers(0, 4))):
        depth = draw(st.integers(1, 6))
        path = draw(st.sampled_from([path for path in places(body) if len(path) == depth] or [()]))
        if not path:
            body = draw(JSON)
            continue
        parent = body
        for step in path[:-1]:
            parent = parent[step]
        if draw(st.booleans()):
            del parent[path[-1]]
        else:
            parent[path[-1]] = draw(JSON)
    status = draw(st.sampled_from([loaded["http_status"]] * 24 + [200, 401, 404, 431, 500, 503, 530]))
    return USES[use], status, body


@QUIETLY
@given(mutated())
async def test_a_mutated_answer_gives_a_value_or_an_error_of_ours(
    server: Server, cloud: CloudStack, case: tuple[Use, int, Any]
) -> None:
    use, status, body = case
    server.says(
        web.Response(body=json.dumps(body).encode(), status=status, headers={"Content-Type": "application/json"})
    )
    try:
        await use(cloud)
    except CloudStackError as error:
        assert str(error)
        assert error.reason
    assert server.seen


CONTENT_TYPES = ["application/json", "text/javascript; charset=utf-16", "", "x", "application/json; charset=\u00e9"]


@QUIETLY
@given(st.sampled_from(sorted(USES)), st.data())
async def test_damaged_bytes_give_an_error_of_ours(
    server: Server, cloud: CloudStack, command: str, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(NAMES[command]))
    body = bytearray(json.dumps(recording(name)["answer"]).encode())
    for _ in range(data.draw(st.integers(1, 5))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    kind = data.draw(st.sampled_from(CONTENT_TYPES))
    status = data.draw(st.sampled_from([200, 201, 204, 304, 400, 403, 431, 599]))
    server.says(web.Response(body=bytes(body), status=status, headers={"Content-Type": kind}))
    try:
        await USES[command](cloud)
    except CloudStackError as error:
        assert str(error)


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@given(entry=st.dictionaries(st.sampled_from(["id", "name", "state", "zoneid", "nic", "tags", "network"]), JSON))
def test_any_entry_gives_a_value_or_an_error_of_ours(read: Callable[[Answer], object], entry: dict[str, Any]) -> None:
    try:
        read(entry)
    except AnswerInvalid as error:
        assert str(error)


@given(st.dictionaries(st.sampled_from(["jobstatus", "jobresult", "jobresultcode", "cmd", "created"]), JSON))
def test_any_answer_about_a_job_has_a_verdict(said: dict[str, Any]) -> None:
    assert isinstance(classify(JobId("a"), said), Job)
