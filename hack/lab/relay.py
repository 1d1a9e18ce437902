"""The wire between the host and the VMs' sshd (and that of the lab's hypervisor hosts), with faults on demand.

System VMs listen on a link-local address inside the lab's network namespace, and the host gets no interface for the
lab's sake. So one process of the host accepts on a loopback address for each VM, all on the one port 3922, and carries
the bytes to a socket made inside the namespace. Being in the middle it can also break the wire in the ways wires break,
for one VM at a time, and count what was really sent.

What it cannot do is refuse in a VM's name: a connection to a VM that is off is accepted, then reset.

Run as a program by `lab.machines`; standard library only. `Relay` is the client. The two speak one JSON line each way
over a Unix socket.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import enum
import errno
import json
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

_CLONE_NEWNET = 0x40000000
_CONNECT_SECONDS = 5.0
_CONTROL_SECONDS = 10.0
_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)
SLOTS = range(256)
CLAIM_HOST = 254
"""A relay claims a slot by listening on the VM port of this last byte: two labs never share loopback addresses."""


class Fault(enum.StrEnum):
    """What can happen to a VM's wire. CUT is a moment, the others last until HEAL."""

    CUT = "cut"
    """Reset every open connection; new ones are carried."""
    SILENCE = "silence"
    """Open connections stand still and go on after HEAL; new ones are accepted, never answered, and reset at HEAL."""
    REFUSE = "refuse"
    """Nobody listens: new connections are refused. Open ones go on."""
    DELAY = "delay"
    """Every chunk arrives later, each way."""
    HEAL = "heal"


@dataclass(frozen=True)
class Traffic:
    """What a VM's wire carried: payload bytes of TCP toward the VM and from it, and connections accepted."""

    sent_bytes: int
    received_bytes: int
    connections: int

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(
            self.sent_bytes - earlier.sent_bytes,
            self.received_bytes - earlier.received_bytes,
            self.connections - earlier.connections,
        )


class RelayError(Exception):
    """The relay is gone or refused a request. The message says which."""


class Relay:
    """Talks to a running relay. Every call is one short connection, so any process of the lab may hold one of these."""

    def __init__(self, control: Path) -> None:
        self._control = control

    def add(
        self,
        name: str,
        index: int,
        target: str,
        *,
        namespace: Path | None = None,
        target_port: int | None = None,
        port: int | None = None,
    ) -> str:
        """Listens for a machine; `target` is its address in the lab's namespace, or in `namespace`.

        The ports are the VMs' one unless given: `target_port` there, `port` here. Returns the loopback address.
        """
        optional = {"namespace": namespace and str(namespace), "target_port": target_port, "port": port}
        given = {key: value for key, value in optional.items() if value is not None}
        return str(self._ask(do="add", name=name, index=index, target=target, **given)["address"])

    def remove(self, name: str) -> None:
        self._ask(do="remove", name=name)

    def fault(self, name: str, fault: Fault, *, delay_seconds: float = 0.0) -> None:
        self._ask(do="fault", name=name, fault=fault.value, delay_seconds=delay_seconds)

    def traffic(self, name: str) -> Traffic:
        answer = self._ask(do="traffic", name=name)
        return Traffic(int(answer["sent"]), int(answer["received"]), int(answer["connections"]))

    def slot(self) -> int:
        return int(self._ask(do="slot")["slot"])

    def faults(self) -> dict[str, str]:
        """The lasting fault of each VM, by name; absent where the wire is whole."""
        return cast("dict[str, str]", self._ask(do="faults")["faults"])

    def _ask(self, **request: object) -> dict[str, Any]:
        try:
            # The path of a Unix socket is at most 107 bytes; a folder's descriptor is short wherever the folder lies.
            folder = os.open(self._control.parent, os.O_PATH | os.O_DIRECTORY)
            try:
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.settimeout(_CONTROL_SECONDS)
                    connection.connect(f"/proc/self/fd/{folder}/{self._control.name}")
                    connection.sendall(json.dumps(request).encode() + b"\n")
                    with connection.makefile("rb") as reader:
                        line = reader.readline()
            finally:
                os.close(folder)
        except OSError as problem:
            raise RelayError(f"the lab's relay does not answer at {self._control}: {problem}") from problem
        answer = cast("dict[str, Any]", json.loads(line or b'{"error": "it closed the connection"}'))
        if "error" in answer:
            raise RelayError(f"the lab's relay: {answer['error']}")
        return answer


@dataclass(eq=False)
class _Wire:
    """One VM: its listener, its open connections and the state of its wire."""

    name: str
    address: str
    port: int
    target: tuple[str, int]
    namespace: Path
    server: asyncio.Server | None = None
    fault: Fault | None = None
    delay_seconds: float = 0.0
    whole: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    received: int = 0
    connections: int = 0
    open: set[asyncio.Task[None]] = field(default_factory=set)
    stillborn: set[asyncio.Task[None]] = field(default_factory=set)


class _Server:
    def __init__(self, namespace: Path, port: int, slot: int, claim: socket.socket) -> None:
        self._namespace = namespace
        self._port = port
        self._slot = slot
        self._claim = claim
        self._wires: dict[str, _Wire] = {}
        self._rooms: dict[Path, ThreadPoolExecutor] = {}

    async def _socket_inside(self, namespace: Path) -> socket.socket:
        """A socket of a network namespace: its one thread lives in there, and sockets stay where they were made."""
        if namespace not in self._rooms:
            self._rooms[namespace] = ThreadPoolExecutor(
                1, thread_name_prefix="lab-netns", initializer=_enter, initargs=(namespace,)
            )
        return await asyncio.get_running_loop().run_in_executor(self._rooms[namespace], _inside_socket)

    async def serve(self, control: Path) -> None:
        probe = await self._socket_inside(self._namespace)
        probe.close()
        os.chdir(control.parent)
        server = await asyncio.start_unix_server(self._control, control.name)
        async with server:
            await server.serve_forever()

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_CONTROL_SECONDS):
                request = json.loads(await reader.readline())
                try:
                    answer = await self._do(request)
                except (KeyError, ValueError, OSError) as problem:
                    answer = {"error": f"{request.get('do')} {request.get('name', '')}: {problem!r}"}
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (TimeoutError, ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    async def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        match request["do"]:
            case "add":
                return await self._add(request)
            case "remove":
                wire = self._wires.pop(request["name"], None)
                if wire is not None:
                    await self._close(wire)
                    self._cut(wire)
                return {}
            case "fault":
                await self._fault(
                    self._wires[request["name"]], Fault(request["fault"]), float(request["delay_seconds"])
                )
                return {}
            case "faults":
                return {"faults": {wire.name: wire.fault for wire in self._wires.values() if wire.fault is not None}}
            case "traffic":
                wire = self._wires[request["name"]]
                return {"sent": wire.sent, "received": wire.received, "connections": wire.connections}
            case "slot":
                return {"slot": self._slot}
            case other:
                raise ValueError(f"unknown request {other!r}")

    async def _add(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request["name"]
        if name not in self._wires:
            wire = _Wire(
                name,
                f"127.77.{self._slot}.{int(request['index'])}",
                int(request.get("port", self._port)),
                (request["target"], int(request.get("target_port", self._port))),
                Path(request.get("namespace", self._namespace)),
            )
            wire.whole.set()
            await self._listen(wire)
            self._wires[name] = wire
        return {"address": self._wires[name].address}

    async def _fault(self, wire: _Wire, fault: Fault, delay_seconds: float) -> None:
        if fault is Fault.CUT:
            self._cut(wire)
            return
        wire.delay_seconds = delay_seconds if fault is Fault.DELAY else 0.0
        wire.fault = None if fault is Fault.HEAL else fault
        if fault is Fault.REFUSE:
            await self._close(wire)
        elif wire.server is None:
            await self._listen(wire)
        if fault is Fault.SILENCE:
            wire.whole.clear()
        else:
            wire.whole.set()
            for task in wire.stillborn:
                task.cancel()

    async def _listen(self, wire: _Wire) -> None:
        listener = socket.create_server((wire.address, wire.port), backlog=200)
        listener.setblocking(False)
        wire.server = await asyncio.start_server(lambda r, w: self._accepted(wire, r, w), sock=listener, limit=_CHUNK)

    @staticmethod
    async def _close(wire: _Wire) -> None:
        if wire.server is not None:
            wire.server.close()
            wire.server = None

    @staticmethod
    def _cut(wire: _Wire) -> None:
        for task in wire.open:
            task.cancel()

    async def _accepted(self, wire: _Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        wire.connections += 1
        wire.open.add(task)
        client = writer.get_extra_info("socket")
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if wire.fault is Fault.SILENCE:
                wire.stillborn.add(task)
                await asyncio.Event().wait()
            await self._carry(wire, reader, writer)
        except asyncio.CancelledError:
            # This task is the connection: cancelled by a fault, it ends here and resets the client below.
            _reset(writer)
        except (OSError, TimeoutError):
            _reset(writer)
        finally:
            wire.open.discard(task)
            wire.stillborn.discard(task)
            writer.close()

    async def _carry(self, wire: _Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_SECONDS):
            inner = await self._socket_inside(wire.namespace)
            try:
                await loop.sock_connect(inner, wire.target)
            except BaseException:
                inner.close()
                raise
        vm_reader, vm_writer = await asyncio.open_connection(sock=inner, limit=_CHUNK)
        broken = False
        try:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(wire, reader, vm_writer, toward_vm=True))
                    group.create_task(self._pump(wire, vm_reader, writer, toward_vm=False))
            except* OSError:
                # Raised anew below: what is raised in here would come out as a group.
                broken = True
            if broken:
                raise ConnectionResetError(errno.ECONNRESET, f"a connection to {wire.name} broke")
        except BaseException:
            _reset(vm_writer)
            raise
        finally:
            vm_writer.close()

    async def _pump(
        self, wire: _Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, toward_vm: bool
    ) -> None:
        """One direction, in order. A delay holds chunks in a bounded line, so it costs time and not throughput."""
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def read() -> None:
            while True:
                chunk = await reader.read(_CHUNK)
                await line.put((time.monotonic() + wire.delay_seconds, chunk))
                if not chunk:
                    return

        async def write() -> None:
            while True:
                due, chunk = await line.get()
                if (early := due - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                await wire.whole.wait()
                if not chunk:
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    return
                writer.write(chunk)
                if toward_vm:
                    wire.sent += len(chunk)
                else:
                    wire.received += len(chunk)
                await writer.drain()

        async with asyncio.TaskGroup() as group:
            group.create_task(read())
            group.create_task(write())


def _enter(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns", str(path))


def _inside_socket() -> socket.socket:
    inner = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    inner.setblocking(False)
    inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return inner


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with a RST, dropping what was not sent yet."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()


def _claim_slot(port: int) -> tuple[int, socket.socket]:
    for slot in SLOTS:
        with contextlib.suppress(OSError):
            return slot, socket.create_server((f"127.77.{slot}.{CLAIM_HOST}", port))
    raise SystemExit("all 256 slots of 127.77.0.0/16 are taken by other labs: take one down")


def main() -> None:
    parser = argparse.ArgumentParser(description="The lab's relay; started by the lab itself.")
    parser.add_argument("--control", type=Path, required=True, help="the Unix socket to answer on")
    parser.add_argument("--namespace", type=Path, required=True, help="the network namespace of the lab's wires")
    parser.add_argument("--port", type=int, required=True, help="the VMs' port, here and there")
    arguments = parser.parse_args()
    slot, claim = _claim_slot(arguments.port)
    asyncio.run(_Server(arguments.namespace, arguments.port, slot, claim).serve(arguments.control))


if __name__ == "__main__":
    main()
