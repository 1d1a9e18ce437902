"""Sockets inside another network namespace, for the tenants' programs.

The namespace of a socket is that of the thread that makes it, for the socket's whole life. So each namespace gets one
thread that has entered it and does nothing but make sockets; the event loop uses them as if they were its own.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_CLONE_NEWNET = 0x40000000


class Namespaces:
    """The namespaces of a program's machines, entered when first asked for."""

    def __init__(self, folder: str) -> None:
        """`folder` holds a namespace file for each name (`/run/netns` as this process can reach it)."""
        self._folder = folder
        self._threads: dict[str, ThreadPoolExecutor] = {}

    async def make(self, name: str, make: Callable[[], socket.socket]) -> socket.socket:
        """What `make` makes, in the namespace."""
        if name not in self._threads:
            self._threads[name] = ThreadPoolExecutor(1, initializer=_enter, initargs=(f"{self._folder}/{name}",))
        return await asyncio.get_running_loop().run_in_executor(self._threads[name], make)

    async def tcp(self, name: str) -> socket.socket:
        return await self.make(name, _tcp)

    async def udp(self, name: str) -> socket.socket:
        return await self.make(name, _udp)


def _enter(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)


def _tcp() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _udp() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    return made
