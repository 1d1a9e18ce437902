"""The way through hypervisor hosts: one shared SSH connection to each, kept as long as somebody uses it.

On KVM and XenServer only the host that runs a system VM reaches it, at an address that means something on that host
alone. A host with fifty VMs must not be logged in to fifty times, its sshd would turn most away; so its connection is
shared, closed a while after the last use, and made anew when it is dead. A host in trouble is asked once for all that
wait for it and then left alone for a moment: it holds up nobody who goes another way.
"""

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import asyncssh

from sysvm.api.endpoint import SSHAlgorithms
from sysvm.api.reasons import Reason
from sysvm.patching.dialling import OFFERS, Dialler, Door, LoginTimeoutError, SSHTimeouts
from sysvm.patching.errors import HostUnreachable
from sysvm.patching.host_keys import HostKeyChecker, hypervisor_checker, seen_key
from sysvm.patching.keys import KeyUnreadable
from sysvm.patching.results import HostLogin, HostPlace

_PING = "exit 0"
_COMMANDS_AT_ONCE = 4
"""Of the ten sessions that an sshd grants a connection (MaxSessions); tunnels do not count there."""
_SENDINGS_AT_ONCE = 3
"""The same, for what takes minutes."""


@dataclass
class _Shared:
    """What is known of one host."""

    connecting: asyncio.Lock = field(default_factory=asyncio.Lock)
    ssh: asyncssh.SSHClientConnection | None = None
    users: int = 0
    failure: HostUnreachable | None = None
    failed_at: float = 0.0
    closing: asyncio.TimerHandle | None = None
    slots: "_Slots | None" = None
    commands: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_COMMANDS_AT_ONCE))
    sendings: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_SENDINGS_AT_ONCE))


class _Slots:
    """How many VMs of one host are spoken with at once. Work takes minutes, so one slot is kept for what is short."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._all = asyncio.Semaphore(limit)
        self._long = asyncio.Semaphore(max(1, limit - 1))

    @contextlib.asynccontextmanager
    async def taken(self, *, long: bool) -> AsyncIterator[None]:
        async with self._long if long else contextlib.nullcontext(), self._all:
            yield


@dataclass(frozen=True, slots=True)
class Hop:
    """A hypervisor host that is logged in to, for as long as it is borrowed."""

    place: HostPlace
    login: HostLogin
    ssh: asyncssh.SSHClientConnection
    commands: asyncio.Semaphore
    """To be held while a command runs on the host."""
    sendings: asyncio.Semaphore
    """To be held while the host sends files to a VM."""

    @property
    def name(self) -> str:
        return f"{self.place.kind} {self.place.told(self.login.port)}"


_Name = tuple[HostPlace, int, str, str]


@dataclass
class Jumps:
    """Connections to hypervisor hosts. `idle_seconds` after its last use one is closed; `rest_seconds` long a host
    that could not be logged in to is not tried again."""

    dialler: Dialler
    idle_seconds: float = 60.0
    rest_seconds: float = 5.0
    ping_seconds: float = 5.0

    def __post_init__(self) -> None:
        self._shared: dict[_Name, _Shared] = {}

    @contextlib.asynccontextmanager
    async def slot(self, place: HostPlace, login: HostLogin, *, long: bool) -> AsyncIterator[None]:
        """Waits until less than `login.connections` VMs of the host are spoken with. `long`: it will take minutes."""
        async with self._used(place, login) as shared:
            if shared.slots is None or shared.slots.limit != login.connections:
                shared.slots = _Slots(login.connections)
            async with shared.slots.taken(long=long):
                yield

    @contextlib.asynccontextmanager
    async def to(self, place: HostPlace, login: HostLogin) -> AsyncIterator[Hop]:
        """The host's connection, made if there is none. Raises `HostUnreachable` and `KeyUnreadable`."""
        async with self._used(place, login) as shared:
            yield Hop(place, login, await self._connected(shared, place, login), shared.commands, shared.sendings)

    @contextlib.asynccontextmanager
    async def _used(self, place: HostPlace, login: HostLogin) -> AsyncIterator[_Shared]:
        shared = self._shared.setdefault(_name(place, login), _Shared())
        shared.users += 1
        if shared.closing is not None:
            shared.closing.cancel()
            shared.closing = None
        try:
            yield shared
        finally:
            shared.users -= 1
            if not shared.users:
                shared.closing = asyncio.get_running_loop().call_later(self.idle_seconds, self._forget, place, login)

    async def is_alive(self, hop: Hop) -> bool:
        """Whether the host still answers; a connection on which it does not is given up, for everybody."""
        if hop.ssh.is_closed():
            return False
        try:
            async with asyncio.timeout(self.ping_seconds):
                await hop.ssh.run(_PING)
        except asyncssh.ChannelOpenError as error:
            if not hop.ssh.is_closed() and error.code != asyncssh.OPEN_CONNECT_FAILED:
                return True  # it answered, only no more sessions are to be had
        except (TimeoutError, OSError, asyncssh.Error):
            pass
        else:
            return True
        hop.ssh.abort()
        return False

    async def close(self) -> None:
        """Closes all connections: what goes through them is cut."""
        hosts = list(self._shared.values())
        self._shared.clear()
        async with asyncio.TaskGroup() as group:
            for shared in hosts:
                if shared.closing is not None:
                    shared.closing.cancel()
                if shared.ssh is not None:
                    group.create_task(self.dialler.close(shared.ssh))

    async def _connected(self, shared: _Shared, place: HostPlace, login: HostLogin) -> asyncssh.SSHClientConnection:
        clock = asyncio.get_running_loop().time
        async with shared.connecting:
            if shared.ssh is not None and not shared.ssh.is_closed():
                return shared.ssh
            if shared.failure is not None and clock() - shared.failed_at < self.rest_seconds:
                raise HostUnreachable(
                    str(shared.failure), reason=shared.failure.reason, retryable=shared.failure.retryable
                )
            shared.ssh = shared.failure = None
            try:
                shared.ssh = await self._log_in(place, login)
            except HostUnreachable as error:
                shared.failure, shared.failed_at = error, clock()
                raise
            return shared.ssh

    async def _log_in(self, place: HostPlace, login: HostLogin) -> asyncssh.SSHClientConnection:
        """One login for all. Tells the host's trouble from a VM's."""
        checker = hypervisor_checker(place, login, OFFERS[SSHAlgorithms.MODERN].host_keys)
        try:
            options = await self.dialler.options(login.user, login.private_key)
        except KeyUnreadable as error:
            raise KeyUnreadable(f"{error} It is the key for {place.kind} {place.name}.") from error
        try:
            return await self.dialler.dial(Door(place.address, login.port), options, checker)
        except (OSError, asyncssh.Error) as error:
            raise _explain(place, login, checker, error, self.dialler.timeouts) from error

    def _forget(self, place: HostPlace, login: HostLogin) -> None:
        """Nobody has used it for long."""
        shared = self._shared.get(_name(place, login))
        if shared is None or shared.users:
            return
        del self._shared[_name(place, login)]
        if shared.ssh is not None:
            shared.ssh.close()
            asyncio.get_running_loop().call_later(self.dialler.timeouts.close, shared.ssh.abort)


def _name(place: HostPlace, login: HostLogin) -> _Name:
    """A connection is shared by those who would log in alike and trust alike."""
    credentials = hashlib.sha256(login.private_key + b"\0" + login.known_hosts.encode()).hexdigest()
    return place, login.port, login.user, credentials


def _explain(
    place: HostPlace, login: HostLogin, checker: HostKeyChecker, error: Exception, timeouts: SSHTimeouts
) -> HostUnreachable:
    """Why a hypervisor host cannot be logged in to: the end of a sentence that begins with the VM."""
    name = f"{place.kind} {place.told(login.port)}"
    if checker.rejected is not None:
        told = checker.explain(seen_key(checker.rejected))
        return HostUnreachable(str(told), reason=told.reason, retryable=told.retryable)
    if isinstance(error, asyncssh.PermissionDenied):
        return HostUnreachable(
            f"{name} does not accept the SSH key for user {login.user}: check {login.field_name}.keySecretRef and the "
            "host's authorized_keys",
            reason=Reason.HOST_REFUSES,
            retryable=False,
        )
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return HostUnreachable(
            f"the host key of {name} is not acceptable: {error.reason}",
            reason=Reason.HOST_NOT_TRUSTED,
            retryable=False,
        )
    if isinstance(error, LoginTimeoutError):
        return HostUnreachable(
            f"{name} answered, but let nobody in within {timeouts.login:g} s: its sshd hangs or lacks memory"
        )
    if isinstance(error, TimeoutError) or "timeout" in str(error).lower():
        return HostUnreachable(
            f"{name} did not answer within {timeouts.connect:g} s: it may be down, or a firewall is between"
        )
    if isinstance(error, socket.gaierror):
        return HostUnreachable(f"the name {place.address} of {name} cannot be resolved")
    if isinstance(error, ConnectionRefusedError):
        return HostUnreachable(f"{name} refuses the connection: no sshd listens there")
    if isinstance(error, OSError) and not checker.greeted:
        return HostUnreachable(f"{name} cannot be reached: {error.strerror or error}")
    detail = error.reason if isinstance(error, asyncssh.Error) else str(error)
    return HostUnreachable(f"{name} ended the connection before the login: {detail or type(error).__name__}")
