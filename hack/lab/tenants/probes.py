"""What asks all the time, and counts. A program: numbered requests of every kind at a fixed rate until stdin closes.

Rates do not wait for answers: a request that is late never delays the next one, so an outage costs as many requests as
it lasts. Each kind must be answered once before anything is counted; then `ready` is printed, and at the end one line
of JSON. Started by `tenancy`.

What would look like loss and is none: apache2 ends a connection after its hundredth request, and says so; it closes
idle ones when it reloads, and a client then repeats its request on a new one, as browsers and curl do. Such a request
is lost only if the new connection does not answer either.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, cast

from lab.tenants.inside import Namespaces
from lab.tenants.kinds import SLOW_SECONDS, TIMEOUT_SECONDS, Kind

_READY_SECONDS = 30.0
_READY_POLL_SECONDS = 0.2
_CATCH_UP_SECONDS = 0.05
_SO_BINDTODEVICE = 25
_LARGEST = 65536
_MAGIC = b"\x63\x82\x53\x63"

Ask = Callable[[int], Awaitable[None]]


class Wrong(Exception):  # noqa: N818 - says what came
    """An answer that is not the right one."""


@dataclass
class Count:
    """One kind's numbers while it runs."""

    kind: Kind
    began: float = 0.0
    answered: float = 0.0
    sent: int = 0
    lost: int = 0
    failed: int = 0
    slow: int = 0
    gap: float = 0.0
    slowest: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)

    def begin(self) -> None:
        self.began = self.answered = time.monotonic()

    def right(self, seconds: float) -> None:
        now = time.monotonic()
        self.gap = max(self.gap, now - self.answered)
        self.answered = now
        self.slowest = max(self.slowest, seconds)
        self.slow += seconds > SLOW_SECONDS

    def wrong(self, problem: Exception) -> None:
        if isinstance(problem, Wrong):
            self.failed += 1
        else:
            self.lost += 1
        name = str(problem) if isinstance(problem, Wrong) else type(problem).__name__
        self.errors[name] = self.errors.get(name, 0) + 1

    def result(self, stopped: float) -> dict[str, object]:
        gap = max(self.gap, stopped - self.answered)
        return {
            "kind": self.kind.value,
            "sent": self.sent,
            "lost": self.lost,
            "failed": self.failed,
            "slow": self.slow,
            "longest_gap_ms": round(gap * 1000, 1),
            "slowest_ms": round(self.slowest * 1000, 1),
            "errors": self.errors,
        }


class Probes:
    """All kinds of one run."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self._stop = asyncio.Event()
        self._longs: list[asyncio.Task[None]] = []
        self.late = 0.0
        """The longest that a request was sent after its time: what this machine, and not the network, did."""

    # -- asking once -------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _connected(self, place: str, address: tuple[str, int]) -> AsyncIterator[socket.socket]:
        made = await self._namespaces.tcp(place)
        try:
            await asyncio.get_running_loop().sock_connect(made, address)
            yield made
        finally:
            made.close()

    def echo_new(self, place: str, address: tuple[str, int]) -> Ask:
        async def ask(number: int) -> None:
            async with self._connected(place, address) as made:
                await _converse(made, struct.pack("!Q", number))

        return ask

    def http_new(self, place: str, address: tuple[str, int], path: str) -> Ask:
        """`path` is asked for; empty: the number, which the answer must repeat."""

        async def ask(number: int) -> None:
            loop = asyncio.get_running_loop()
            async with self._connected(place, address) as made:
                wanted = path or f"/{number}"
                await loop.sock_sendall(
                    made, f"GET {wanted} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n".encode()
                )
                answer = b""
                while data := await loop.sock_recv(made, _LARGEST):
                    answer += data
            head, found, body = answer.partition(b"\r\n\r\n")
            if not found:
                raise ConnectionResetError
            _check_status(head)
            if not path and body != b"%d" % number:
                raise Wrong("another's answer")

        return ask

    def dns_new(self, place: str, address: tuple[str, int], name: str) -> Ask:
        async def ask(number: int) -> None:
            loop = asyncio.get_running_loop()
            made = await self._namespaces.udp(place)
            try:
                made.connect(address)
                await loop.sock_sendall(made, _question(number, name))
                _check_dns(await loop.sock_recv(made, _LARGEST), number)
            finally:
                made.close()

        return ask

    def dns_tcp(self, place: str, address: tuple[str, int], name: str) -> Ask:
        async def ask(number: int) -> None:
            loop = asyncio.get_running_loop()
            question = _question(number, name)
            async with self._connected(place, address) as made:
                await loop.sock_sendall(made, struct.pack("!H", len(question)) + question)
                size = struct.unpack("!H", await _exactly(made, 2))[0]
                _check_dns(await _exactly(made, size), number)

        return ask

    # -- one socket for all ------------------------------------------------------------------------------------------

    async def datagrams(
        self, place: str, address: tuple[str, int], make: Callable[[int], bytes], check: Callable[[bytes, int], None]
    ) -> Ask:
        """One source port; the number is in the first two bytes (DNS) or all of the datagram."""
        made = await self._namespaces.udp(place)
        made.connect(address)
        waiting = await _Waiting.on(made, lambda data: struct.unpack("!H", data[:2])[0])

        async def ask(number: int) -> None:
            check(await waiting.ask(number & 0xFFFF, make(number)), number)

        return ask

    async def dhcp(self, place: str, server: str, mac: str, address: str) -> tuple[Ask, Ask]:
        """(DISCOVER as a new machine, REQUEST as one that renews) of the tenant at `address`."""
        made = await self._namespaces.make(place, _dhcp_socket)
        waiting = await _Waiting.on(made, lambda data: struct.unpack("!I", data[4:8])[0])
        hardware = bytes.fromhex(mac.replace(":", ""))
        wanted = IPv4Address(address).packed

        async def discover(number: int) -> None:
            packet = _dhcp(number, 0x8000, bytes(4), hardware, 1)
            _check_dhcp(await waiting.ask(number, packet, ("255.255.255.255", 67)), 2, wanted)

        async def renew(number: int) -> None:
            key = number | 0x80000000
            packet = _dhcp(key, 0, wanted, hardware, 3)
            _check_dhcp(await waiting.ask(key, packet, (server, 67)), 5, wanted)

        return discover, renew

    # -- one connection for all --------------------------------------------------------------------------------------

    def long(self, place: str, address: tuple[str, int], http: bool) -> Ask:
        """Numbered requests in a row on one connection, answered in order; a broken one loses what is under way."""
        state = _Long(self._namespaces, place, address, http)
        self._longs.append(asyncio.get_running_loop().create_task(state.keep()))
        return state.ask

    def keep_alive(self, place: str, address: tuple[str, int], path: str) -> Ask:
        """One request after the other on one connection to an HTTP server that ends connections as it likes."""
        state = _KeepAlive(self._namespaces, place, address, path)
        return state.ask

    # -- running -----------------------------------------------------------------------------------------------------

    async def ready(self, kind: Kind, ask: Ask) -> None:
        """Waits until a kind is answered once. Raises RuntimeError with its last problem."""
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await ask(0)
                return
            except (OSError, Wrong, TimeoutError) as problem:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"{kind} has no answer in {_READY_SECONDS:.0f} s: {problem!r}") from problem
            await asyncio.sleep(_READY_POLL_SECONDS)

    async def run(self, count: Count, ask: Ask, rate: float, offset: float) -> None:
        """Asks `rate` times a second until stopped, then waits for what is under way."""
        async with asyncio.TaskGroup() as group:
            due = time.monotonic() + offset
            count.begin()
            while not self._stop.is_set():
                early = due - time.monotonic()
                if early > 0:
                    await asyncio.sleep(early)
                else:
                    self.late = max(self.late, -early)
                    # What a busy machine has kept us from sending is not sent all at once: that would be a flood.
                    due = max(due, time.monotonic() - _CATCH_UP_SECONDS)
                    await asyncio.sleep(0)
                count.sent += 1
                group.create_task(self._one(count, ask, count.sent))
                due += 1 / rate

    @staticmethod
    async def _one(count: Count, ask: Ask, number: int) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await ask(number)
        except (OSError, Wrong, TimeoutError) as problem:
            count.wrong(problem)
        else:
            count.right(time.monotonic() - began)

    async def until_told(self) -> float:
        """Returns the moment at which stdin was closed."""
        await asyncio.to_thread(sys.stdin.read)
        self._stop.set()
        return time.monotonic()

    async def close(self) -> None:
        for task in self._longs:
            task.cancel()
        await asyncio.gather(*self._longs, return_exceptions=True)


class _Waiting(asyncio.DatagramProtocol):
    """Answers by their number."""

    def __init__(self, number_of: Callable[[bytes], int]) -> None:
        self._number_of = number_of
        self._open: dict[int, asyncio.Future[bytes]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def on(cls, made: socket.socket, number_of: Callable[[bytes], int]) -> _Waiting:
        _, waiting = await asyncio.get_running_loop().create_datagram_endpoint(lambda: cls(number_of), sock=made)
        return waiting

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # No instance of that class before Python 3.12, though it does all that one does.
        self._transport = cast("asyncio.DatagramTransport", transport)

    async def ask(self, number: int, data: bytes, to: tuple[str, int] | None = None) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._open[number] = answer
        assert self._transport is not None
        self._transport.sendto(data, to)
        try:
            return await answer
        finally:
            self._open.pop(number, None)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        with contextlib.suppress(struct.error):
            answer = self._open.get(self._number_of(data))
            if answer is not None and not answer.done():
                answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        """An ICMP error names no request: the time limit counts it."""


class _Long:
    """One connection that is made again when it breaks. What is under way then, or comes before it is back, is lost."""

    def __init__(self, namespaces: Namespaces, place: str, address: tuple[str, int], http: bool) -> None:
        self._namespaces, self._place, self._address, self._http = namespaces, place, address, http
        self._writer: asyncio.StreamWriter | None = None
        self._under_way: collections.deque[tuple[int, asyncio.Future[None]]] = collections.deque()

    async def ask(self, number: int) -> None:
        if self._writer is None or self._writer.is_closing():
            raise ConnectionError
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._under_way.append((number, answer))
        if self._http:
            self._writer.write(f"GET /{number} HTTP/1.1\r\nHost: lab\r\n\r\n".encode())
        else:
            self._writer.write(struct.pack("!Q", number))
        await answer

    async def keep(self) -> None:
        """Connects again and again, at most fifty times a second."""
        while True:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                await self._connection()
            self._writer = None
            for _, answer in self._under_way:
                if not answer.done():
                    answer.set_exception(ConnectionResetError())
            self._under_way.clear()
            await asyncio.sleep(0.02)

    async def _connection(self) -> None:
        made = await self._namespaces.tcp(self._place)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await asyncio.get_running_loop().sock_connect(made, self._address)
        except BaseException:
            made.close()
            raise
        reader, writer = await asyncio.open_connection(sock=made)
        self._writer = writer
        try:
            while True:
                if self._http:
                    head = await reader.readuntil(b"\r\n\r\n")
                    number = int(await reader.readexactly(_content_length(head)))
                else:
                    number = struct.unpack("!Q", await reader.readexactly(8))[0]
                expected, answer = self._under_way.popleft()
                if answer.done():
                    continue
                if number == expected:
                    answer.set_result(None)
                else:
                    answer.set_exception(Wrong("another's answer"))
        finally:
            writer.close()


class _KeepAlive:
    """A connection that the server may end between two answers."""

    def __init__(self, namespaces: Namespaces, place: str, address: tuple[str, int], path: str) -> None:
        self._namespaces, self._place, self._address = namespaces, place, address
        self._request = f"GET {path} HTTP/1.1\r\nHost: lab\r\n\r\n".encode()
        self._turn = asyncio.Lock()
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, number: int) -> None:
        async with self._turn:
            used = self._open is not None
            try:
                await self._once()
            except (OSError, asyncio.IncompleteReadError) as problem:
                if not used:
                    raise ConnectionResetError from problem
                try:
                    await self._once()
                except asyncio.IncompleteReadError as again:
                    raise ConnectionResetError from again

    async def _once(self) -> None:
        whole = False
        try:
            if self._open is None:
                made = await self._namespaces.tcp(self._place)
                try:
                    await asyncio.get_running_loop().sock_connect(made, self._address)
                except BaseException:
                    made.close()
                    raise
                self._open = await asyncio.open_connection(sock=made)
            reader, writer = self._open
            writer.write(self._request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_content_length(head))
            whole = b"connection: close" not in head.lower()
        finally:
            if not whole and self._open is not None:
                self._open[1].close()
                self._open = None
        _check_status(head)


# -- wire formats ------------------------------------------------------------------------------------------------------


async def _exactly(made: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        data = await asyncio.get_running_loop().sock_recv(made, size - len(found))
        if not data:
            raise ConnectionResetError
        found += data
    return found


async def _converse(made: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(made, data)
    if await _exactly(made, len(data)) != data:
        raise Wrong("another's answer")


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise Wrong("no length")


def _check_status(head: bytes) -> None:
    status = head.split(b" ", 2)[1:2]
    if status != [b"200"]:
        raise Wrong(f"HTTP {b''.join(status).decode('ascii', 'replace')}")


def _question(number: int, name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return struct.pack("!HHHHHH", number & 0xFFFF, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def _check_dns(data: bytes, number: int) -> None:
    found, flags, _, answers = struct.unpack("!HHHH", data[:8])
    if found != number & 0xFFFF:
        raise Wrong("another's answer")
    if flags & 0xF or not answers:
        raise Wrong(f"DNS code {flags & 0xF} with {answers} answers")


def _check_echo(data: bytes, number: int) -> None:
    if data != _datagram(number):
        raise Wrong("another's answer")


def _datagram(number: int) -> bytes:
    return struct.pack("!HQ", number & 0xFFFF, number)


def _dhcp_socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    made.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, b"eth0")
    made.bind(("0.0.0.0", 68))
    return made


def _dhcp(xid: int, flags: int, client: bytes, hardware: bytes, kind: int) -> bytes:
    head = struct.pack("!BBBBIHH", 1, 1, 6, 0, xid, 0, flags) + client + bytes(12) + hardware.ljust(16, b"\0")
    return head + bytes(192) + _MAGIC + bytes([53, 1, kind, 255])


def _check_dhcp(data: bytes, kind: int, address: bytes) -> None:
    found = data.find(b"\x35\x01", 240)
    if found < 0 or data[found + 2] != kind:
        raise Wrong(f"DHCP message {data[found + 2] if found >= 0 else 'without a type'}")
    if data[16:20] != address:
        raise Wrong("another address")


# -- the program -------------------------------------------------------------------------------------------------------


async def _asks(probes: Probes, wanted: list[dict[str, Any]]) -> dict[Kind, Ask]:
    """What to ask for each kind; each item has `kind`, `place`, `address`, `port` and what the kind needs besides."""
    found: dict[Kind, Ask] = {}
    for item in wanted:
        kind, place, address = Kind(item["kind"]), str(item["place"]), (str(item["address"]), int(item["port"]))
        match kind:
            case Kind.NAT_TCP_NEW:
                found[kind] = probes.echo_new(place, address)
            case Kind.NAT_TCP_LONG:
                found[kind] = probes.long(place, address, http=False)
            case Kind.NAT_UDP:
                found[kind] = await probes.datagrams(place, address, _datagram, _check_echo)
            case Kind.DNS_SAME_PORT:
                name = str(item["name"])
                found[kind] = await probes.datagrams(place, address, _asker(name), _check_dns)
            case Kind.DNS_NEW_PORT:
                found[kind] = probes.dns_new(place, address, str(item["name"]))
            case Kind.DNS_TCP:
                found[kind] = probes.dns_tcp(place, address, str(item["name"]))
            case Kind.DHCP_DISCOVER:
                discover, renew = await probes.dhcp(place, address[0], str(item["mac"]), str(item["own"]))
                found[kind], found[Kind.DHCP_RENEW] = discover, renew
            case Kind.DHCP_RENEW:
                pass
            case Kind.HTTP_NEW:
                found[kind] = probes.http_new(place, address, "")
            case Kind.HTTP_LONG:
                found[kind] = probes.long(place, address, http=True)
            case Kind.METADATA | Kind.STORAGE_NEW:
                found[kind] = probes.http_new(place, address, str(item["path"]))
            case Kind.STORAGE_LONG:
                found[kind] = probes.keep_alive(place, address, str(item["path"]))
    return found


def _asker(name: str) -> Callable[[int], bytes]:
    return lambda number: _question(number, name)


async def _run(arguments: Mapping[str, Any]) -> dict[str, object]:
    probes = Probes(Namespaces(str(arguments["namespaces"])))
    try:
        asks = await _asks(probes, list(arguments["kinds"]))
        for kind, ask in asks.items():
            await probes.ready(kind, ask)
        # In one write, also where stdout is unbuffered: the reader takes what comes first.
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        counts = [Count(kind) for kind in asks]
        rate = float(arguments["rate"])
        async with asyncio.TaskGroup() as group:
            told = group.create_task(probes.until_told())
            for place, (count, ask) in enumerate(zip(counts, asks.values(), strict=True)):
                # Spread over one period, so that kinds do not come in bursts.
                group.create_task(probes.run(count, ask, rate, place / len(counts) / rate))
        stopped = told.result()
    finally:
        await probes.close()
    return {"tallies": [count.result(stopped) for count in counts], "late_ms": round(probes.late * 1000, 1)}


def main() -> None:
    """One argument: JSON with `namespaces` (a folder), `rate` (a second, each kind) and `kinds`."""
    print(json.dumps(asyncio.run(_run(json.loads(sys.argv[1])))), flush=True)


if __name__ == "__main__":
    main()
