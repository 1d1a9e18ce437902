"""A TCP wire between one operator and the API server, to be cut as a partition cuts it: nothing is refused and nothing
arrives, and what was sent meanwhile arrives when the wire is whole again, even if its sender is dead by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

_CHUNK = 65536


class Wire:
    """Carries every connection to `host:port` while it is whole."""

    def __init__(self, host: str, port: int) -> None:
        self._there = (host, port)
        self._whole = asyncio.Event()
        self._whole.set()
        self._carrying: set[asyncio.Task[None]] = set()
        self.held_bytes = 0
        """Sent toward the server while the wire was cut."""

    @classmethod
    @contextlib.asynccontextmanager
    async def before(cls, kubeconfig: Path, folder: Path) -> AsyncIterator[tuple[Wire, Path]]:
        """A wire to the server of that kubeconfig, and a kubeconfig of the same identity that goes through it."""
        config = yaml.safe_load(kubeconfig.read_text())
        (cluster,) = config["clusters"]
        server = urlsplit(cluster["cluster"]["server"])
        if server.hostname != "127.0.0.1" or server.port is None:
            pytest.skip(f"the API server is at {server.netloc}: its certificate would not fit a wire on this machine")
        wire = cls(server.hostname, server.port)
        listener = await asyncio.start_server(wire._accept, "127.0.0.1", 0)
        cluster["cluster"]["server"] = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        through = folder / "through-the-wire.yaml"
        through.write_text(yaml.safe_dump(config))
        try:
            yield wire, through
        finally:
            listener.close()
            for task in wire._carrying:
                task.cancel()
            await asyncio.gather(*wire._carrying, return_exceptions=True)

    def cut(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        with contextlib.closing(writer):
            await self._whole.wait()
            there_reader, there_writer = await asyncio.open_connection(*self._there)
            with contextlib.closing(there_writer), contextlib.suppress(OSError, ExceptionGroup):
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._carry(reader, there_writer, toward_server=True))
                    both.create_task(self._carry(there_reader, writer, toward_server=False))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, toward_server: bool) -> None:
        while chunk := await reader.read(_CHUNK):
            if toward_server and not self._whole.is_set():
                self.held_bytes += len(chunk)
            await self._whole.wait()
            writer.write(chunk)
            await writer.drain()
        await self._whole.wait()
        if writer.can_write_eof():
            writer.write_eof()
