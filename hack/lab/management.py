"""The port on which a management server waits for its agents, for those who want the lab's SSVMs and CPVMs connected.

Without it the lab's agents run and try again and again, as they do while a management server is down.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from lab import network
from lab.content.bootline import SOFTWARE_PORT
from lab.machines import Lab
from lab.spec import FABRIC

_CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def agent_port(lab: Lab) -> Iterator[list[str]]:
    """Listens on the lab's private wire. The list has the addresses of the agents that ever connected, in order."""
    namespace = lab.toolbox().path(Path("/run/netns") / FABRIC)
    listener = _listen(namespace)
    seen: list[str] = []
    open_connections: list[socket.socket] = []
    threading.Thread(target=_accept, args=(listener, seen, open_connections), daemon=True).start()
    try:
        yield seen
    finally:
        # Wakes the accepting thread, which ends with it.
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in open_connections:
            connection.close()


def _accept(listener: socket.socket, seen: list[str], connections: list[socket.socket]) -> None:
    while True:
        try:
            connection, address = listener.accept()
        except OSError:
            return
        connections.append(connection)
        seen.append(str(address[0]))


def _listen(namespace: Path) -> socket.socket:
    """A socket of the lab's namespace; a thread of its own enters it, and sockets stay where they were made."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def enter() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            with namespace.open("rb") as file:
                if libc.setns(file.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(namespace))
            made.append(socket.create_server((str(network.PRIVATE_GATEWAY.ip), SOFTWARE_PORT)))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]
