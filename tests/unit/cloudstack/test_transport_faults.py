"""Whatever comes instead of an answer has a class, a sentence, and does no harm."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web
from tests.unit.cloudstack.recorded import (
    FULL,
    Reply,
    Server,
    access,
    answer,
    client,
    cut,
    inner,
    recorded,
    silent,
)

from sysvm.cloudstack import transport
from sysvm.cloudstack.client import CloudStack
from sysvm.cloudstack.errors import (
    CloudStackError,
    NotCloudStack,
    OutcomeUnknown,
    Throttled,
    TimedOut,
    Unauthorized,
    Unavailable,
)

PAGE = "<!DOCTYPE html><html><head><title>CloudStack</title></head></html>"


def page(status: int = 200) -> web.Response:
    return web.Response(text=PAGE, status=status, content_type="text/html")


async def half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100", "Content-Type": "application/json"})
    await response.prepare(request)
    await response.write(b'{"listzonesresponse": {"cou')
    assert request.transport is not None
    request.transport.close()
    return response


async def dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.02)
    return response


def raw(body: bytes, content_type: str = "application/json") -> web.Response:
    return web.Response(body=body, headers={"Content-Type": content_type})


NO_ANSWERS: list[tuple[str, Reply, type[CloudStackError]]] = [
    ("a page", page(), NotCloudStack),
    ("a page not found", page(404), NotCloudStack),
    ("a page of a proxy that wants a login", page(401), NotCloudStack),
    ("a proxy without a server behind it", page(502), Unavailable),
    ("a proxy with a server that is too slow", page(504), Unavailable),
    ("a proxy that has taken the server out", page(503), Unavailable),
    ("nothing", raw(b""), NotCloudStack),
    ("half of it", half, Unavailable),
    ("a broken connection", cut, Unavailable),
    ("silence", silent, TimedOut),
    ("a drip", dripping, TimedOut),
    ("a list", answer(["what", 4]), NotCloudStack),
    ("two keys", answer({"a": {}, "b": {}}), NotCloudStack),
    ("another program", answer({"status": "UP"}), NotCloudStack),
    ("an error of another program", answer({"message": "no"}, 400), NotCloudStack),
    ("no JSON", raw(b"{"), NotCloudStack),
    ("no UTF-8", raw(b'{"a": "\xff"}'), NotCloudStack),
    ("a type in capitals", raw(b"{}", "Text/HTML"), NotCloudStack),
    ("a charset that is none", raw(b'{"a": 1}', "application/json; charset=base64"), NotCloudStack),
    ("a nesting without end", raw(b"[" * 100_000), NotCloudStack),
]


@pytest.mark.parametrize(("reply", "expected"), [case[1:] for case in NO_ANSWERS], ids=[case[0] for case in NO_ANSWERS])
async def test_a_read_says_what_came_instead(server: Server, reply: Reply, expected: type[CloudStackError]) -> None:
    server.says(reply)
    async with client(server, timeout=timedelta(seconds=0.3)) as cloud:
        with pytest.raises(CloudStackError) as caught:
            await cloud.call("listZones")
    assert type(caught.value) is expected
    assert caught.value.advice in str(caught.value)
    assert caught.value.command == "listZones"


@pytest.mark.parametrize("reply", [case[1] for case in NO_ANSWERS], ids=[case[0] for case in NO_ANSWERS])
async def test_a_change_is_sent_once_and_its_outcome_is_unknown(server: Server, reply: Reply) -> None:
    server.says(reply)
    async with client(server, may_change=FULL, timeout=timedelta(seconds=0.3)) as cloud:
        with pytest.raises(OutcomeUnknown) as caught:
            await cloud.submit("restartNetwork", id="a", cleanup=True)
    assert len(server.seen) == 1
    assert not caught.value.retryable


async def test_an_answer_without_a_job_leaves_the_outcome_of_a_change_unknown(server: Server) -> None:
    server.says(answer({"restartnetworkresponse": {}}))
    async with client(server, may_change=FULL) as cloud:
        with pytest.raises(OutcomeUnknown):
            await cloud.submit("restartNetwork", id="a")


@pytest.mark.parametrize("may_change", [None, FULL], ids=["read", "change"])
async def test_a_server_that_is_not_there_was_not_asked_to_change_anything(may_change: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with CloudStack(access(f"http://127.0.0.1:{port}/client/api"), may_change=may_change) as cloud:
        with pytest.raises(Unavailable) as caught:
            await (cloud.change("restartNetwork", id="a") if may_change else cloud.call("listZones"))
    assert type(caught.value) is Unavailable
    assert caught.value.retryable


async def test_a_name_that_does_not_resolve_is_unavailable() -> None:
    async with CloudStack(access("http://nowhere.invalid/client/api")) as cloud:
        with pytest.raises(Unavailable):
            await cloud.call("listZones")


async def test_a_refused_change_was_not_carried_out(server: Server) -> None:
    server.says(recorded("error.unknownnetwork"))
    async with client(server, may_change=FULL) as cloud:
        with pytest.raises(CloudStackError) as caught:
            await cloud.submit("restartNetwork", id="a")
    assert not isinstance(caught.value, OutcomeUnknown)
    assert len(server.seen) == 1


async def test_a_read_is_tried_again_on_a_broken_connection(server: Server) -> None:
    server.says(cut, cut, recorded("listZones"))
    async with client(server) as cloud:
        assert await cloud.call("listZones") == inner("listZones")
    assert len(server.seen) == 3


async def test_a_read_is_given_up_after_three_broken_connections(server: Server) -> None:
    server.says(cut)
    async with client(server) as cloud:
        with pytest.raises(Unavailable):
            await cloud.call("listZones")
    assert len(server.seen) == 3


@pytest.mark.parametrize("reply", [page(), silent, recorded("error.wrongsecret"), page(503)])
async def test_nothing_else_is_asked_twice(server: Server, reply: Reply) -> None:
    server.says(reply)
    async with client(server, timeout=timedelta(seconds=0.2)) as cloud:
        with pytest.raises(CloudStackError):
            await cloud.call("listZones")
    assert len(server.seen) == 1


async def test_a_throttled_read_waits_as_long_as_the_server_asks(server: Server) -> None:
    server.says(recorded("error.throttled"), recorded("listZones"))
    time = asyncio.get_running_loop().time
    async with client(server) as cloud:
        started = time()
        assert await cloud.call("listZones") == inner("listZones")
    assert time() - started >= 0.528
    assert len(server.seen) == 2


async def test_a_long_patience_is_handed_to_the_work_queue(server: Server) -> None:
    text = "The given user has reached his/her account api limit, please retry after [45000] ms."
    server.says(answer({"listzonesresponse": {"errorcode": 429, "errortext": text}}, 429))
    async with client(server, may_change=FULL) as cloud:
        with pytest.raises(Throttled) as caught:
            await cloud.call("listZones")
        assert caught.value.retry_after_seconds == 45.0
        async with asyncio.timeout(5):
            with pytest.raises(Throttled, match=r"not sent: the server said before .* 4\d s more"):
                await cloud.call("listZones")
            with pytest.raises(Throttled, match="not sent: "):
                await cloud.submit("restartNetwork", id="a")
    assert len(server.seen) == 1, "and until then nobody waits, nor asks"


async def test_a_client_that_was_closed_sends_nothing_and_says_so(server: Server) -> None:
    server.says(recorded("listZones"))
    cloud = client(server, may_change=FULL)
    await cloud.open()
    await cloud.close()
    with pytest.raises(Unavailable, match="not sent: the client is closed"):
        await cloud.call("listZones")
    with pytest.raises(Unavailable, match="not sent: the client is closed"):
        await cloud.submit("restartNetwork", id="a")
    assert server.seen == []


async def test_a_client_that_is_closed_under_a_request_leaves_its_outcome_open(server: Server) -> None:
    server.says(silent)
    cloud = client(server, may_change=FULL)
    await cloud.open()
    async with asyncio.TaskGroup() as tasks:
        change = tasks.create_task(_outcome(cloud.submit("restartNetwork", id="a")))
        read = tasks.create_task(_outcome(cloud.call("listZones")))
        async with asyncio.timeout(30):
            while len(server.seen) < 2:
                await asyncio.sleep(0.01)
        await cloud.close()
    assert (type(change.result()), type(read.result())) == (OutcomeUnknown, Unavailable)


async def _outcome(request: Awaitable[object]) -> CloudStackError:
    with pytest.raises(CloudStackError) as caught:
        await request
    return caught.value


async def test_a_throttled_change_is_not_repeated(server: Server) -> None:
    server.says(recorded("error.throttled"))
    async with client(server, may_change=FULL) as cloud:
        with pytest.raises(Throttled):
            await cloud.submit("restartNetwork", id="a")
    assert len(server.seen) == 1


async def test_a_signed_request_does_not_follow_a_redirect(server: Server) -> None:
    elsewhere = server.url.replace("127.0.0.1", "localhost")
    server.says(web.Response(status=307, headers={"Location": f"{elsewhere}?token=abc"}))
    async with client(server) as cloud:
        with pytest.raises(NotCloudStack, match="redirects to http://localhost") as caught:
            await cloud.call("listZones")
    assert len(server.seen) == 1
    assert "token" not in str(caught.value)


async def test_an_answer_without_end_does_not_fill_the_memory(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_LIMIT_BYTES", 2**20)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 65536)
        return response

    server.says(endless)
    async with client(server, timeout=timedelta(seconds=30)) as cloud:
        with pytest.raises(NotCloudStack, match="larger than 1 MiB"):
            await cloud.call("listZones")


NOW = datetime(2026, 11, 22, 15, 40, tzinfo=UTC)


@pytest.mark.parametrize(
    ("ahead", "sentence"),
    [
        (timedelta(minutes=-20), "The operator's clock is 1200 s behind the server's"),
        (timedelta(hours=2), "The operator's clock is 7200 s ahead of the server's"),
        (timedelta(seconds=20), "Check apiKey and secretKey"),
    ],
)
async def test_refused_keys_name_the_difference_of_the_clocks_when_it_is_large(
    server: Server, ahead: timedelta, sentence: str
) -> None:
    server.says(recorded("error.expired", Date=format_datetime(NOW - ahead, usegmt=True)))
    async with client(server, clock=lambda: NOW) as cloud:
        with pytest.raises(Unauthorized, match=sentence):
            await cloud.call("listZones")


@pytest.mark.parametrize("date", ["yesterday", "", "Sun, 99 Nov 2026 15:40:00 GMT"])
async def test_a_date_that_is_none_says_nothing(server: Server, date: str) -> None:
    server.says(recorded("error.expired", Date=date))
    async with client(server) as cloud:
        with pytest.raises(Unauthorized, match="Check apiKey"):
            await cloud.call("listZones")


@contextlib.asynccontextmanager
async def speaking(answer_bytes: bytes) -> AsyncIterator[str]:
    """Something on a port that is no HTTP server."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer_bytes)
        writer.close()

    listener = await asyncio.start_server(talk, "127.0.0.1", 0)
    async with listener:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/client/api"


async def test_a_port_that_speaks_something_else_is_not_cloudstack() -> None:
    async with speaking(b"SSH-2.0-OpenSSH_9.2\r\n") as url, CloudStack(access(url)) as cloud:
        with pytest.raises(NotCloudStack):
            await cloud.call("listZones")
