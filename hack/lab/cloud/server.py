"""The stand-in over HTTP: an aiohttp server on a loopback port, as short as it can be.

Everything a management server decides is elsewhere in this package; here a request becomes parameters, is verified,
dispatched, and its answer or refusal becomes a response, unless a fault says otherwise. While the server is "down" a
connection is reset, as it was recorded of a real one that restarts: never a 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from aiohttp import web

from lab.cloud import signing
from lab.cloud.background import Background
from lab.cloud.command import Context, check
from lab.cloud.commands import BY_NAME
from lab.cloud.errors import ApiError, not_available, throttled, unverified
from lab.cloud.faults import Answer, names_of
from lab.cloud.jobs import Jobs, stamp
from lab.cloud.lifecycle import Lifecycle
from lab.cloud.machines import InMemoryMachines, Machines
from lab.cloud.records import Call
from lab.cloud.world import World

PATH = "/client/api"
CONTROL_PATH = "/lab"
_JSON = "application/json"
Control = Callable[[dict[str, object]], Awaitable[dict[str, object]]]
_LOGIN_PAGE = "<!DOCTYPE html><html><head><title>CloudStack</title></head><body><div id='app'></div></body></html>"


class ManagementServer:
    """One management server over a world. Made by `cloud_server`; tests use it for what only a real one has to bear."""

    def __init__(self, world: World, machines: Machines, background: Background, *, pace: float) -> None:
        self.world = world
        self.url = ""
        self._background = background
        self._down = False
        self._id = str(uuid.UUID(int=0xC10D, version=4))
        self._started = stamp(world.now())
        self.jobs = Jobs(world, background, pace=pace)
        self.lifecycle = Lifecycle(world, machines, background, pace=pace)

    async def restart(self, *, down_seconds: float = 0.1, work_goes_on: bool = False) -> None:
        """The server process ends and comes back: its jobs are cut, and nobody answers for a while."""
        self.stop_answering()
        self.jobs.lose_all(stop=not work_goes_on)
        await asyncio.sleep(down_seconds)
        self._started = stamp(self.world.now())
        self._down = False

    def stop_answering(self) -> None:
        """From now on every connection is reset, until it is restarted."""
        self._down = True

    async def idle(self, *, timeout: float = 30.0) -> None:
        """Waits until no job runs. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while self.jobs.pending():
                await asyncio.sleep(0.005)

    # -- requests --------------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        parameters = dict(request.query)
        if request.method == "POST":
            parameters |= {name: str(value) for name, value in (await request.post()).items()}
        command = parameters.get("command", "")
        faults = self.world.faults
        if self._down:
            return _reset(request)
        if faults.concerns(command):
            if faults.delay_seconds:
                await asyncio.sleep(faults.delay_seconds)
            if faults.errors > 0:
                faults.errors -= 1
                return web.Response(status=faults.error_status, text="Service Temporarily Unavailable")
        status, body = self._answer(command, parameters)
        if faults.late_seconds and faults.concerns(command):
            await asyncio.sleep(faults.late_seconds)
        shape = faults.answer if faults.concerns(command) else Answer.TRUE
        if shape is Answer.HTML:
            return web.Response(status=200, text=_LOGIN_PAGE, content_type="text/html")
        if shape is Answer.EMPTY:
            return web.Response(status=200, content_type=_JSON)
        if shape is Answer.GARBAGE:
            return web.Response(status=200, text='["what", 4]', content_type=_JSON)
        content = json.dumps(body, separators=(",", ":")).encode()
        if shape is Answer.HALF:
            return await _half(request, status, content)
        date = format_datetime(self._now().astimezone(UTC), usegmt=True)
        return web.Response(status=status, body=content, content_type=_JSON, charset="utf-8", headers={"Date": date})

    def _answer(self, name: str, parameters: dict[str, str]) -> tuple[int, dict[str, object]]:
        command = BY_NAME.get(name.lower())
        wrapper = command.response_name if command else "errorresponse"
        world = self.world
        try:
            user = signing.verify(parameters, world.users, now=self._now())
            if command is None:
                raise unverified(in_command=False)
            if world.faults.throttle > 0 and world.faults.concerns(command.name):
                world.faults.throttle -= 1
                raise throttled(world.faults.throttle_milliseconds)
            if not user.may(command.name):
                raise not_available(command.name, user.id)
            context = Context(world, self.jobs, self.lifecycle, user, self._id, self._started)
            plain = {key: value for key, value in parameters.items() if key.lower() not in _ENVELOPE}
            world.calls.append(Call(command.name, dict(plain), user.name))
            check(command, plain, context)
            return 200, {wrapper: command.run(context, plain)}
        except ApiError as refused:
            return refused.code, {wrapper if refused.in_command else "errorresponse": refused.body()}

    def _now(self) -> datetime:
        return self.world.now() + timedelta(seconds=self.world.faults.clock_ahead_seconds)

    async def set_faults(self, values: dict[str, object]) -> dict[str, object]:
        """`POST /lab/faults` with switches as JSON (`Faults`), or {} to heal; `{"restart": seconds}` restarts."""
        switches = {name: value for name, value in values.items() if name != "restart"}
        seconds = float(str(values.get("restart", 0)))
        if "commands" in switches:
            switches["commands"] = [_as_told(name) for name in names_of(switches["commands"])]
        if not values:
            self.world.faults.heal()
        self.world.faults.set_from(switches)
        if "restart" in values:
            self._background.start(self.restart(down_seconds=seconds), name="restart of the server")
        return {}


_ENVELOPE = frozenset({"command", "apikey", "signature", "signatureversion", "expires", "response"})


def _as_told(name: str) -> str:
    """A command's name as requests carry it. Raises ValueError: a fault of no command would do nothing."""
    command = BY_NAME.get(name.lower())
    if command is None:
        raise ValueError(f"no command {name!r}; there are {', '.join(sorted(each.name for each in BY_NAME.values()))}")
    return command.name


def _controlled(control: Control) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            return web.json_response(await control(await request.json()))
        except (ValueError, LookupError) as problem:
            return web.json_response({"error": str(problem)}, status=400)

    return handle


def _reset(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _half(request: web.Request, status: int, content: bytes) -> web.StreamResponse:
    response = web.StreamResponse(status=status, headers={"Content-Length": str(len(content))})
    response.content_type = _JSON
    await response.prepare(request)
    await response.write(content[: len(content) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


@contextlib.asynccontextmanager
async def management_server(
    world: World,
    *,
    machines: Machines | None = None,
    pace: float = 0.01,
    port: int = 0,
    host: str = "127.0.0.1",
    role_interval: float = 0.0,
    controls: Mapping[str, Control] | None = None,
) -> AsyncIterator[ManagementServer]:
    """Serves a world on a loopback port until the block ends; jobs that run then are stopped.

    `pace` is the length of a short step in seconds (a job's start, a stop); without `machines` nothing is real.
    `role_interval` seconds pass between two looks at redundancy roles (CloudStack: 30); 0: only after changes.
    `controls` answer `POST /lab/<name>` beside the faults: JSON in, JSON out, ValueError or LookupError is a 400.
    """
    async with asyncio.TaskGroup() as tasks:
        background = Background(tasks)
        server = ManagementServer(world, machines or InMemoryMachines(world, pace=pace), background, pace=pace)
        app = web.Application()
        app.router.add_get(PATH, server.handle)
        app.router.add_post(PATH, server.handle)
        for name, control in ({"faults": server.set_faults} | dict(controls or {})).items():
            app.router.add_post(f"{CONTROL_PATH}/{name}", _controlled(control))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        listener = socket.create_server((host, port))
        listener.setblocking(False)
        await web.SockSite(runner, listener).start()
        server.url = f"http://{host}:{listener.getsockname()[1]}{PATH}"
        if role_interval:
            background.start(_watch_roles(server, role_interval), name="redundancy roles")
        try:
            yield server
        finally:
            await runner.cleanup()
            background.stop()


@contextlib.asynccontextmanager
async def cloud_server(world: World, *, machines: Machines | None = None, pace: float = 0.01) -> AsyncIterator[str]:
    """`management_server` for those who need no more than its URL."""
    async with management_server(world, machines=machines, pace=pace) as server:
        yield server.url


async def _watch_roles(server: ManagementServer, interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        await server.lifecycle.refresh_roles(list(server.world.vms.values()))
