"""kopf as the informer, in a thread with a loop of its own: its events become calls on ours, and nothing else.

kopf lists, watches, reconnects and bookmarks better than a loop of our own would. It gets no handlers but `on.event`,
so it writes nothing: no annotations, no finalizers, no progress. Its loop is apart from ours so that a storm of
events delays neither a reconcile nor the lease, and so that its way of ending (it cancels every task that came after
it) ends only itself.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta

import kopf
from kopf._cogs.structs.bodies import RawBody
from kopf._cogs.structs.ephemera import AnyMemo
from kopf._core.reactor.inventory import ResourceMemories, ResourceMemory
from kubernetes.aio.client.configuration import Configuration

from sysvm.kube.client import PAGE_SIZE
from sysvm.kube.login import Login
from sysvm.kube.objects import Object, Resource

logger = logging.getLogger(__name__)

TOKEN_SECONDS = 600
"""Credentials are asked for again this often: a rotated token is found before the server refuses the old one."""

OnEvent = Callable[[Resource, str | None, Object], None]


class WatchThread:
    """Watches `resources` and hands every event to `on_event` on the loop that calls `start`.

    `login` keeps the token of `configuration` up to date; it must be a login of its own, because kopf asks from its
    thread. `run` ends when the thread does: with its error, or cleanly after `stop`.
    """

    def __init__(
        self,
        resources: Sequence[Resource],
        namespaces: Sequence[str],
        login: Login,
        configuration: Configuration,
        on_event: OnEvent,
    ) -> None:
        self._resources = resources
        self._namespaces = namespaces
        self._follow = login
        self._configuration = configuration
        self._on_event = on_event
        self._stop = threading.Event()
        self._ended: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Runs the watch until `stop`. Raises what ended it: a process without events must not look alive."""
        self._loop = asyncio.get_running_loop()
        thread = threading.Thread(target=self._main, name="kopf", daemon=True)
        thread.start()
        try:
            await asyncio.wrap_future(self._ended)
        finally:
            self._stop.set()
        if not self._stop.is_set():
            raise RuntimeError("the watch of the cluster ended by itself")

    def stop(self) -> None:
        self._stop.set()

    def _main(self) -> None:
        try:
            asyncio.run(
                kopf.operator(
                    registry=self._registry(),
                    settings=_settings(),
                    memories=_NoMemories(),
                    standalone=True,
                    clusterwide=not self._namespaces,
                    namespaces=list(self._namespaces),
                    stop_flag=self._stop,
                )
            )
        except BaseException as error:  # noqa: BLE001  # carried to the loop that waits for this thread
            self._ended.set_exception(error)
        else:
            if self._stop.is_set():
                self._ended.set_result(None)
            else:
                self._ended.set_exception(RuntimeError("the watch of the cluster ended by itself"))

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        for resource in self._resources:
            self._listen(registry, resource)
        return registry

    def _listen(self, registry: kopf.OperatorRegistry, resource: Resource) -> None:
        async def on_event(event: kopf.RawEvent, **_: object) -> None:
            loop = self._loop
            if loop is not None and not loop.is_closed():
                loop.call_soon_threadsafe(self._on_event, resource, event["type"], dict(event["object"]))

        kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id=resource.plural)(
            on_event
        )

    async def _login(self, **_: object) -> kopf.ConnectionInfo:
        await self._follow.refresh()
        config = self._configuration
        return kopf.ConnectionInfo(
            server=config.host,
            ca_path=config.ssl_ca_cert,
            insecure=not config.verify_ssl,
            token=str(config.api_key.get("BearerToken", "")).removeprefix("Bearer ").strip() or None,
            certificate_path=config.cert_file,
            private_key_path=config.key_file,
            expiration=datetime.now(UTC) + timedelta(seconds=TOKEN_SECONDS),
        )


class _NoMemories(ResourceMemories):
    """kopf keeps a record of every object for what handlers like daemons need. Ours need none, and ten thousand cost
    more memory than the objects."""

    async def recall(
        self,
        raw_body: RawBody,
        *,
        memobase: AnyMemo | None = None,
        noticed_by_listing: bool = False,
        ephemeral: bool = False,
    ) -> ResourceMemory:
        return await super().recall(raw_body, memobase=memobase, noticed_by_listing=noticed_by_listing, ephemeral=True)


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.watching.chunk_size = PAGE_SIZE
    settings.watching.server_timeout = 290
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.reconnect_backoff = 1.0
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = (1, 2, 4, 8, 15, 30)
    settings.queueing.idle_timeout = 0.1
    settings.queueing.exit_timeout = 1
    settings.queueing.error_delays = (1, 2, 4, 8, 16, 30)
    settings.persistence.finalizer = "sysvm.io/unused"
    return settings
