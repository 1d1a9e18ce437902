"""One SSH login: from a TCP connection, direct or inside of another SSH connection, to a connection that may be used.

Nothing of the operator's own surroundings leaks in: no configuration file, no agent, no default keys. What it means
that a login fails is said by those who know whom they called: `ssh` for VMs, `jumps` for hypervisor hosts.
"""

import asyncio
import contextlib
import hashlib
import logging
import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import asyncssh
from asyncssh.packet import SSHPacketLogger

from sysvm.api.endpoint import SSHAlgorithms
from sysvm.patching.host_keys import CheckingClient, HostKeyChecker, nobody
from sysvm.patching.keys import load_private_key


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client may agree to, best first."""

    key_exchanges: tuple[str, ...]
    ciphers: tuple[str, ...]
    macs: tuple[str, ...]
    host_keys: tuple[str, ...]
    """Also what the operator's own key signs with."""


_KEY_EXCHANGES = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group14-sha256",
)
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes256-ctr", "aes128-ctr")
"""GCM first: half the processor time of the default, and nothing that needs strict key exchange (CVE-2023-48795)."""
_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "umac-128-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
    "umac-128@openssh.com",
)
"""For the CTR ciphers. The default of asyncssh has SHA-1 and 64 bit ones."""
_HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)
OFFERS = {
    SSHAlgorithms.MODERN: Offer(_KEY_EXCHANGES, _CIPHERS, _MACS, _HOST_KEY_ALGORITHMS),
    # Last of each list, so that a VM that has anything newer gets it. CBC, DSS and group 1 are for no template.
    SSHAlgorithms.LEGACY: Offer(
        (*_KEY_EXCHANGES, "diffie-hellman-group-exchange-sha256", "diffie-hellman-group14-sha1"),
        _CIPHERS,
        (*_MACS, "hmac-sha1-etm@openssh.com", "hmac-sha1"),
        (*_HOST_KEY_ALGORITHMS, "ssh-rsa"),
    ),
}
_MSG_IGNORE = 2
_EMPTY_STRING = bytes(4)
_TRIES = 3
_KNOWN_KEYS = 32


class LoginTimeoutError(TimeoutError):
    """The other end spoke, and let nobody in within the time for a login."""


@dataclass(frozen=True, slots=True)
class SSHTimeouts:
    """Seconds. A peer that is silent for `keepalive_interval * keepalive_count` counts as lost."""

    connect: float = 10.0
    """From the first packet to the first byte of the other end."""
    login: float = 15.0
    """From there to a connection that may be used: an sshd that greets and then says nothing holds up nobody longer."""
    keepalive_interval: float = 15.0
    keepalive_count: int = 3
    close: float = 3.0


@dataclass(frozen=True, slots=True)
class Door:
    """Where an sshd listens. `over`: seen from the other end of this connection."""

    address: str
    port: int
    over: asyncssh.SSHClientConnection | None = None


@dataclass
class Dialler:
    """Logs in, at most `handshakes` at once: key exchange is processor time of the event loop, so more of them would
    only delay the rest."""

    timeouts: SSHTimeouts = field(default_factory=SSHTimeouts)
    handshakes: int = 8

    def __post_init__(self) -> None:
        # Its informational messages name every host and user of every connection.
        logging.getLogger("asyncssh").setLevel(logging.WARNING)
        self._handshakes = asyncio.Semaphore(self.handshakes)
        self._options: dict[tuple[str, str, SSHAlgorithms], asyncssh.SSHClientConnectionOptions] = {}

    async def options(
        self, user: str, private_key: bytes, algorithms: SSHAlgorithms = SSHAlgorithms.MODERN
    ) -> asyncssh.SSHClientConnectionOptions:
        """Everything about a login but the place and its host key. Raises `KeyUnreadable`."""
        name = (user, hashlib.sha256(private_key).hexdigest(), algorithms)
        if name not in self._options:
            # An RSA key is checked for consistency when it is read: a tenth of a second that the loop would miss.
            key = await asyncio.to_thread(load_private_key, private_key)
            while len(self._options) >= _KNOWN_KEYS:
                self._options.pop(next(iter(self._options)))
            self._options[name] = self._build_options(user, key, OFFERS[algorithms])
        return self._options[name]

    async def dial(
        self, door: Door, options: asyncssh.SSHClientConnectionOptions, checker: HostKeyChecker
    ) -> asyncssh.SSHClientConnection:
        """A login on the machine whose host key the checker accepts. Raises `asyncssh.Error` or `OSError`, of which
        `LoginTimeoutError` is one."""
        for attempt in range(1, _TRIES + 1):
            try:
                ssh = await self._shake_hands(door, options, checker)
            except (OSError, asyncssh.Error) as error:
                if attempt == _TRIES or not _was_turned_away(error) or checker.rejected is not None:
                    raise
                # sshd drops connections at random while too many log in at once (MaxStartups).
                await asyncio.sleep(random.uniform(0.2, 0.6) * attempt)
            else:
                _send_no_padding(ssh)
                return ssh
        raise AssertionError("the last attempt raises or returns")

    async def close(self, ssh: asyncssh.SSHClientConnection) -> None:
        ssh.close()
        try:
            async with asyncio.timeout(self.timeouts.close):
                await ssh.wait_closed()
        except (TimeoutError, OSError, asyncssh.Error):
            ssh.abort()
        except asyncio.CancelledError:
            ssh.abort()
            raise

    def _build_options(self, user: str, key: asyncssh.SSHKey, offer: Offer) -> asyncssh.SSHClientConnectionOptions:
        return asyncssh.SSHClientConnectionOptions(
            config=None,
            username=user,
            client_keys=[key],
            agent_path=None,
            password=None,
            preferred_auth="publickey",
            public_key_auth=True,
            gss_host=None,
            x509_trusted_certs=None,
            known_hosts=nobody(),
            kex_algs=_supported("kex_algs", offer.key_exchanges),
            encryption_algs=list(offer.ciphers),
            mac_algs=_supported("mac_algs", offer.macs),
            signature_algs=list(offer.host_keys),
            compression_algs=None,
            # The login is timed where it is begun: these two would end it as a connection that was lost.
            connect_timeout=None,
            login_timeout=0,
            keepalive_interval=self.timeouts.keepalive_interval,
            keepalive_count_max=self.timeouts.keepalive_count,
        )

    async def _shake_hands(
        self, door: Door, options: asyncssh.SSHClientConnectionOptions, checker: HostKeyChecker
    ) -> asyncssh.SSHClientConnection:
        """First of all the other end must begin to speak: silent ones hold up nobody's handshake."""
        sock: socket.socket | None = None
        tunnel: _Tunnel | None = None
        abandon: Callable[[], None]
        if door.over is not None:
            tunnel = await self._knock_inside(door, door.over)
            abandon = tunnel.abort
        else:
            sock = await self._knock(door)
            abandon = sock.close
        try:
            await self._handshakes.acquire()
        except BaseException:
            abandon()
            raise
        try:
            async with asyncio.timeout(self.timeouts.login):
                return await asyncssh.connect(
                    door.address,
                    door.port,
                    sock=sock,
                    # Not taken from `options`: without it ~/.ssh/config is read here, its ProxyJump and User included.
                    config=None,
                    tunnel=tunnel,
                    options=options,
                    known_hosts=checker.known_hosts,
                    server_host_key_algs=checker.algorithms,
                    client_factory=lambda: CheckingClient(checker),
                )
        except TimeoutError as error:
            abandon()
            raise LoginTimeoutError from error
        except BaseException:
            abandon()
            raise
        finally:
            self._handshakes.release()

    async def _knock(self, door: Door) -> socket.socket:
        loop = asyncio.get_running_loop()
        failure = OSError(f"{door.address} has no address")
        async with asyncio.timeout(self.timeouts.connect):
            try:
                found = await loop.getaddrinfo(door.address, door.port, type=socket.SOCK_STREAM)
            except UnicodeError as error:  # a name with an empty or endless label never gets as far as a resolver
                raise socket.gaierror(socket.EAI_NONAME, "not a host name") from error
            for family, kind, protocol, _, place in found:
                sock = socket.socket(family, kind, protocol)
                try:
                    sock.setblocking(False)
                    await loop.sock_connect(sock, place)
                    await _readable(sock)
                except OSError as error:
                    sock.close()
                    failure = error
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
        raise failure

    async def _knock_inside(self, door: Door, over: asyncssh.SSHClientConnection) -> "_Tunnel":
        tunnel = _Tunnel()
        try:
            async with asyncio.timeout(self.timeouts.connect):
                await tunnel.open(over, door)
        except BaseException:
            tunnel.abort()
            raise
        return tunnel


_Opened = tuple[asyncssh.SSHTCPChannel[bytes], asyncssh.SSHTCPSession[bytes]]


class _Tunnel(asyncssh.SSHTCPSession[bytes]):
    """A TCP connection that the other end of an SSH connection made. Keeps what arrives until somebody takes over."""

    def __init__(self) -> None:
        self._channel: asyncssh.SSHTCPChannel[bytes] | None = None
        self._session: asyncssh.SSHTCPSession[bytes] | None = None
        self._arrived = asyncio.Event()
        self._kept = bytearray()
        self._ended = False
        self._error: Exception | None = None

    async def open(self, over: asyncssh.SSHClientConnection, door: Door) -> None:
        """Returns with the first byte. Raises `OSError` or `asyncssh.Error`."""
        opening = asyncio.get_running_loop().create_task(
            over.create_connection(lambda: self, door.address, door.port), name=f"tunnel to {door.address}"
        )
        try:
            # A channel whose opening is cancelled would stay open for ever if the other end confirms it later.
            await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._came_late)
            raise
        await self._arrived.wait()
        if not self._kept:
            raise self._error or asyncssh.ConnectionLost("closed before a word was said")

    def abort(self) -> None:
        if self._channel is not None:
            self._channel.abort()

    async def create_connection(
        self, session_factory: Callable[[], asyncssh.SSHTCPSession[bytes]], remote_host: str, remote_port: int
    ) -> _Opened:
        """What asyncssh asks of a tunnel: the connection is open already, so it is only handed over."""
        if self._channel is None:
            raise asyncssh.ConnectionLost("the tunnel was never opened")
        session = session_factory()
        self._session = session
        session.connection_made(self._channel)
        if self._kept:
            session.data_received(bytes(self._kept), None)
            self._kept.clear()
        if self._ended:
            session.connection_lost(self._error)
        return self._channel, session

    def _came_late(self, opening: "asyncio.Task[_Opened]") -> None:
        if opening.cancelled() or opening.exception() is not None:
            return
        self.abort()

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self._session is not None:
            self._session.data_received(data, datatype)
            return
        self._kept += data
        self._arrived.set()

    def eof_received(self) -> bool:
        if self._session is not None:
            return bool(self._session.eof_received())
        self._end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._session is not None:
            self._session.connection_lost(exc)
        self._end(exc)

    def _end(self, error: Exception | None) -> None:
        self._ended = True
        self._error = self._error or error
        self._arrived.set()


async def _readable(sock: socket.socket) -> None:
    """Until the first byte, or the end, has arrived."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Future[None] = loop.create_future()

    def on_readable() -> None:
        if not arrived.done():
            arrived.set_result(None)

    loop.add_reader(sock, on_readable)
    try:
        await arrived
    finally:
        loop.remove_reader(sock)


def _was_turned_away(error: Exception) -> bool:
    """Closed before a word was exchanged: worth another try. A timeout is not: it has cost enough."""
    if isinstance(error, asyncssh.ConnectionLost):
        return "timeout" not in error.reason.lower()
    return isinstance(error, ConnectionResetError)


def _send_no_padding(ssh: asyncssh.SSHClientConnection) -> None:
    """Leaves out the empty SSH_MSG_IGNORE that asyncssh sends ahead of every packet.

    It hides the chaining of CBC ciphers (RFC 4251, 9.3.1), none of which is in `_CIPHERS`; for the others it is a
    second encryption and a second system call for each packet. asyncssh has no option for it. `send_packet` is the one
    method through which everything passes, the padding included; a test holds that against the version in the lock.
    """
    send = ssh.send_packet

    def send_packet(kind: int, *args: bytes, handler: SSHPacketLogger | None = None) -> None:
        if kind != _MSG_IGNORE or args != (_EMPTY_STRING,):
            send(kind, *args, handler=handler)

    ssh.send_packet = send_packet  # type: ignore[assignment, method-assign]


@cache
def _supported(kind: Literal["kex_algs", "mac_algs"], names: tuple[str, ...]) -> list[str]:
    """What this build of asyncssh has of the names: it refuses those that it does not know (ML-KEM and UMAC need
    libraries that may be missing)."""
    supported = []
    for name in names:
        with contextlib.suppress(ValueError):
            asyncssh.SSHClientConnectionOptions(config=None, agent_path=None, client_keys=None, **{kind: [name]})
            supported.append(name)
    return supported
