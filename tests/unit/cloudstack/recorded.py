"""A server on loopback that answers what it is told to, for tests of the client: recorded answers, and every fault."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from sysvm.api.endpoint import Management
from sysvm.cloudstack import answers
from sysvm.cloudstack.client import CloudStack, MayChange
from sysvm.cloudstack.transport import Access, Answer, Credentials

ANSWERS = Path(__file__).resolve().parents[2] / "data/cloudstack"
API_KEY = "canary-api-key-5d1c7a0e4b"
SECRET_KEY = "canary-secret-key-93f0aa61"
FULL = MayChange.of(Management.FULL)

Reply = web.StreamResponse | Callable[[web.Request], Awaitable[web.StreamResponse]]

READERS: list[Callable[[Answer], object]] = [
    read
    for name, read in vars(answers).items()
    if inspect.isfunction(read) and read.__module__ == answers.__name__ and not name.startswith("_")
]
"""Everything that makes a value of an answer."""


@dataclass
class Seen:
    method: str
    query: dict[str, str]
    form: dict[str, str]
    peer: Any


@dataclass
class Server:
    """Replies in order; the last one for ever after. `seen` are the requests."""

    url: str = ""
    replies: deque[Reply] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)

    def says(self, *replies: Reply) -> None:
        self.replies = deque(replies)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        peer = request.transport.get_extra_info("peername") if request.transport is not None else None
        self.seen.append(Seen(request.method, dict(request.query), form, peer))
        reply = self.replies.popleft() if len(self.replies) > 1 else self.replies[0]
        return await reply(request) if callable(reply) else copy_of(reply)


def copy_of(reply: web.StreamResponse) -> web.Response:
    assert isinstance(reply, web.Response)
    headers = {name: value for name, value in reply.headers.items() if name not in ("Content-Length", "Content-Type")}
    kind = reply.headers.get("Content-Type", "application/octet-stream")
    return web.Response(body=reply.body, status=reply.status, headers={**headers, "Content-Type": kind})


def names(pattern: str) -> list[str]:
    return sorted(path.name.removesuffix(".json") for path in ANSWERS.glob(pattern))


def recording(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ANSWERS / f"{name}.json").read_text())
    return loaded


def inner(name: str) -> Any:
    """What stands under the one key of a recorded answer."""
    [value] = recording(name)["answer"].values()
    return value


def recorded(name: str, **headers: str) -> web.Response:
    loaded = recording(name)
    return answer(loaded["answer"], loaded["http_status"], **headers)


def answer(body: object, status: int = 200, **headers: str) -> web.Response:
    return web.Response(
        body=json.dumps(body).encode(),
        status=status,
        headers={"Content-Type": "application/json;charset=utf-8", **headers},
    )


async def cut(request: web.Request) -> web.StreamResponse:
    """The connection goes without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def silent(request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


@contextlib.asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    application = web.Application()
    application.router.add_route("*", "/client/api", server.handle)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    port = runner.addresses[0][1]
    server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/client/api"
    try:
        yield server
    finally:
        await runner.cleanup()


def access(url: str, **changes: Any) -> Access:
    return Access(
        **{
            "url": url,
            "credentials": Credentials(API_KEY, SECRET_KEY),
            "requests_per_second": 1000,
            "burst": 1000,
            "trust_environment_proxy": False,
            **changes,
        }
    )


def client(server: Server, *, may_change: MayChange | None = None, clock: Any = None, **changes: Any) -> CloudStack:
    extra = {} if clock is None else {"clock": clock}
    return CloudStack(access(server.url, **changes), may_change=may_change, chance=lambda: 0.0, **extra)
