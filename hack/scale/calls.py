"""What asking a management server costs the operator: `python -m scale.calls [--calls 10000]`.

The server is another process on loopback, so that memory and processor time are those of the client alone. It answers
pages of 500 routers, jobs, errors, pages of HTML and broken connections in turn, as a bad day would.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import resource
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import click
from aiohttp import web

from sysvm.api.endpoint import Management
from sysvm.cloudstack import answers
from sysvm.cloudstack.client import Access, CloudStack, Credentials, MayChange
from sysvm.cloudstack.errors import CloudStackError
from sysvm.cloudstack.jobs import JobId

RECORDED = Path(__file__).resolve().parents[2] / "tests/data/cloudstack"
PAGE = 500


def _recorded(name: str) -> tuple[int, bytes]:
    loaded = json.loads((RECORDED / f"{name}.json").read_text())
    return loaded["http_status"], json.dumps(loaded["answer"]).encode()


def _serve(port_to: Connection) -> None:
    """The other process."""
    router = json.loads((RECORDED / "listRouters.json").read_text())["answer"]["listroutersresponse"]["router"][0]
    routers = [{**router, "id": f"{number:08d}-0000-4000-8000-000000000000"} for number in range(PAGE)]
    page = json.dumps({"listroutersresponse": {"count": PAGE, "router": routers}}).encode()
    by_command = {
        "listRouters": [(200, page)],
        "queryAsyncJobResult": [_recorded("queryAsyncJobResult.pending"), _recorded("job.after-ms-kill.0")],
        "listZones": [_recorded("listZones"), _recorded("error.wrongsecret"), (200, b"<html></html>")] * 13
        + [(0, b"")],
        "restartNetwork": [_recorded("restartNetwork.plain.submit"), _recorded("error.unknownnetwork"), (0, b"")],
    }
    turns = dict.fromkeys(by_command, 0)

    async def handle(request: web.Request) -> web.StreamResponse:
        command = str((await request.post())["command"])
        choices = by_command[command]
        status, body = choices[turns[command] % len(choices)]
        turns[command] += 1
        if status == 0 and request.transport is not None:
            request.transport.abort()
        return web.Response(status=status or 500, body=body, content_type="application/json")

    async def run() -> None:
        application = web.Application()
        application.router.add_post("/client/api", handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port_to.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


@dataclass(frozen=True)
class Moment:
    calls: int
    seconds: float
    processor_seconds: float
    rss_kib: int
    objects: int


def _moment(calls: int, begun: float) -> Moment:
    gc.collect()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    rss = pages * resource.getpagesize() // 1024
    return Moment(calls, time.monotonic() - begun, usage.ru_utime + usage.ru_stime, rss, len(gc.get_objects()))


async def _ask(client: CloudStack, number: int) -> None:
    try:
        if number % 20 == 0:
            async for entry in client.list_all("listRouters", "router", listall=True):
                answers.router(entry)
        elif number % 4 == 0:
            await client.submit("restartNetwork", id="a", cleanup=True)
        elif number % 4 == 1:
            await client.call("listZones")
        else:
            await client.job(JobId("a"))
    except CloudStackError:
        pass


async def _soak(port: int, calls: int) -> list[Moment]:
    access = Access(
        url=f"http://127.0.0.1:{port}/client/api",
        credentials=Credentials("a-key-for-soaking", "a-secret-for-soaking"),
        requests_per_second=100_000,
        burst=1000,
    )
    moments: list[Moment] = []
    async with CloudStack(access, may_change=MayChange.of(Management.FULL)) as client:
        begun = time.monotonic()
        for number in range(calls + 1):
            if number % max(1, calls // 10) == 0:
                moments.append(_moment(number, begun))
            await _ask(client, number)
    return moments


@click.command()
@click.option("--calls", default=10_000, show_default=True)
def main(calls: int) -> None:
    """Memory and processor time of the client over many calls, good and bad."""
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    server.start()
    try:
        moments = asyncio.run(_soak(here.recv(), calls))
    finally:
        server.terminate()
        server.join()
    click.echo("| calls | seconds | processor ms a call | RSS KiB | objects |\n|--:|--:|--:|--:|--:|")
    first = moments[0]
    for one in moments:
        each = 1000 * (one.processor_seconds - first.processor_seconds) / (one.calls - first.calls or 1)
        click.echo(f"| {one.calls:,} | {one.seconds:.1f} | {each:.2f} | {one.rss_kib:,} | {one.objects:,} |")


if __name__ == "__main__":
    main()
