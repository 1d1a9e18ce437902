"""/healthz, /readyz and /metrics: what a kubelet and Prometheus ask.

A standby is alive and ready: it does its job, which is to wait. Alive means that the loop turns and no key has been
waiting or in work for longer than any honest reconcile takes; ready means that the caches hold a whole list, or that
another process leads.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

Probe = Callable[[], str | None]
"""None when all is well, else the sentence to answer with."""


class ProbeServer:
    """Use as an asynchronous context manager. `port` is the one it listens on, also when a free one was asked for."""

    def __init__(self, host: str, port: int, *, alive: Probe, ready: Probe, registry: CollectorRegistry) -> None:
        self._host, self.port = host, port
        self._alive, self._ready, self._registry = alive, ready, registry
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> "ProbeServer":
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self.port)
        await site.start()
        addresses = self._runner.addresses
        self.port = int(addresses[0][1]) if addresses else self.port
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return self._answer(self._alive())

    async def _readyz(self, _: web.Request) -> web.Response:
        return self._answer(self._ready())

    @staticmethod
    def _answer(trouble: str | None) -> web.Response:
        return web.Response(text="ok\n") if trouble is None else web.Response(status=503, text=f"{trouble}\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
