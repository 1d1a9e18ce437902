"""What answers tenants and the outside: members of the load balancer, and a host beyond the routers. A program.

Every answer carries the number of its request, so that a late or foreign one is never taken for the right one. Prints
`ready` when all of its sockets listen. Started by `tenancy`.
"""

import asyncio
import contextlib
import json
import socket
import sys
from typing import cast

from lab.tenants.inside import Namespaces

_BACKLOG = 1024
_LONGEST_LINE = 4096


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """HTTP/1.1 with keep-alive: `GET /NUMBER` is answered with that number."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            number = head.split(b" ", 2)[1].lstrip(b"/")
            last = b"connection: close" in head.lower()
            lines = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(number)]
            lines += [b"Connection: close"] if last else []
            writer.write(b"\r\n".join([*lines, b"", number]))
            await writer.drain()
            if last:
                break
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, IndexError):
        pass
    finally:
        writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Gives back what it gets."""
    try:
        while data := await reader.read(_LONGEST_LINE):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


class Echo(asyncio.DatagramProtocol):
    """The same for datagrams."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No instance of that class before Python 3.12, though it does all that one does.
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._transport.sendto(data, addr)


async def main() -> None:
    """Arguments: the folder of namespaces, JSON [[namespace, kind, port], ...]; kinds: web, echo, udp."""
    namespaces = Namespaces(sys.argv[1])
    async with contextlib.AsyncExitStack() as stack:
        for name, kind, port in json.loads(sys.argv[2]):
            if kind == "udp":
                bound = await namespaces.udp(name)
                bound.bind(("0.0.0.0", port))
                await asyncio.get_running_loop().create_datagram_endpoint(Echo, sock=bound)
                continue
            listener = await namespaces.tcp(name)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("0.0.0.0", port))
            serve = web if kind == "web" else echo
            server = await asyncio.start_server(serve, sock=listener, backlog=_BACKLOG)
            await stack.enter_async_context(server)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
