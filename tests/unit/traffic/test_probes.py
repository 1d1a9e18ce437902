"""The probes see what a tenant would see: answers, refusals, resets, wrong answers, silence.

Against servers on loopback, in the namespace that the test is in.
"""

from __future__ import annotations

import asyncio
import socket
import struct

import pytest

from lab.tenants.inside import Namespaces
from lab.tenants.kinds import Kind
from lab.tenants.probes import Count, Probes, Wrong
from lab.tenants.servers import echo, web


class Here(Namespaces):
    """Sockets of the test's own namespace."""

    def __init__(self) -> None:
        super().__init__("")

    async def make(self, name: str, make: object) -> socket.socket:
        assert callable(make)
        made = make()
        assert isinstance(made, socket.socket)
        return made


def port_of(server: asyncio.Server) -> tuple[str, int]:
    host, port = server.sockets[0].getsockname()
    return host, port


async def test_numbered_answers_come_back_over_new_and_long_connections() -> None:
    probes = Probes(Here())
    async with (
        await asyncio.start_server(web, "127.0.0.1") as pages,
        await asyncio.start_server(echo, "127.0.0.1") as e,
    ):
        try:
            await probes.echo_new("", port_of(e))(7)
            await probes.http_new("", port_of(pages), "")(8)
            for http, server in ((False, e), (True, pages)):
                ask = probes.long("", port_of(server), http)
                await probes.ready(Kind.HTTP_LONG, ask)
                await asyncio.gather(*(ask(number) for number in range(20)))
        finally:
            await probes.close()


async def test_a_refused_connection_is_lost_and_a_foreign_number_is_wrong() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(struct.pack("!Q", 999))
        writer.close()

    probes, count = Probes(Here()), Count(Kind.NAT_TCP_NEW)
    server = await asyncio.start_server(deaf, "127.0.0.1")
    address = port_of(server)
    async with server:
        with pytest.raises(Wrong, match="another's answer"):
            await probes.echo_new("", address)(1)
        await probes._one(count, probes.echo_new("", address), 1)
    await probes._one(count, probes.echo_new("", address), 2)
    assert (count.failed, count.lost) == (1, 1)
    assert count.errors == {"another's answer": 1, "ConnectionRefusedError": 1}


async def test_silence_is_lost_after_a_second() -> None:
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.1", 0))
    probes, count = Probes(Here()), Count(Kind.DNS_NEW_PORT)
    try:
        await probes._one(count, probes.dns_new("", silent.getsockname(), "a.test"), 1)
    finally:
        silent.close()
    assert (count.lost, count.errors) == (1, {"TimeoutError": 1})


async def test_a_long_connection_that_is_reset_loses_what_is_under_way_and_comes_back() -> None:
    connections = 0

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await echo(reader, writer)
        else:
            await reader.readexactly(8)
            writer.transport.abort()

    probes = Probes(Here())
    async with await asyncio.start_server(once, "127.0.0.1") as server:
        ask = probes.long("", port_of(server), http=False)
        try:
            async with asyncio.timeout(5):
                with pytest.raises(ConnectionResetError):
                    while True:
                        try:
                            await ask(1)
                        except ConnectionResetError:
                            raise
                        except ConnectionError:
                            await asyncio.sleep(0.01)
                await probes.ready(Kind.NAT_TCP_LONG, ask)
        finally:
            await probes.close()
    assert connections == 2


async def test_an_http_client_repeats_its_request_when_the_server_ends_an_idle_connection() -> None:
    connections = 0

    async def short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(short, "127.0.0.1") as server:
        ask = Probes(Here()).keep_alive("", port_of(server), "/")
        for number in range(3):
            await ask(number)
    assert connections == 3


def test_the_longest_gap_counts_to_the_end_of_the_run() -> None:
    count = Count(Kind.METADATA, began=100.0, answered=103.0, gap=0.5)
    assert count.result(110.0)["longest_gap_ms"] == 7000.0
