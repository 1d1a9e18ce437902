"""SSH to system VMs: by which way, within which limits, and what it means when it does not work.

One connection is one conversation; it is opened for it and closed after it, because addresses of system VMs are used
again and an idle connection would hide that. Only the connections to hypervisor hosts are shared (`jumps`). Never is
there a connection whose host key was not checked.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import asyncssh

from sysvm.api.endpoint import SSHAlgorithms
from sysvm.api.reasons import Reason
from sysvm.patching.dialling import OFFERS, Dialler, Door, LoginTimeoutError, SSHTimeouts
from sysvm.patching.errors import HostKeyRejected, HostUnreachable, PatchingError, Unreachable
from sysvm.patching.host_keys import HostKeyChecker, described, seen_key, vm_checker
from sysvm.patching.jumps import Hop, Jumps
from sysvm.patching.keys import load_private_key
from sysvm.patching.results import HostPlace, SeenHostKey, SSHAccount, Target, Through

_FORWARDING_OFF = (
    "the sshd of its hypervisor host lets nobody through to it: AllowTcpForwarding and PermitOpen of the host's "
    "sshd_config, or permitopen in its authorized_keys, must allow it"
)


@dataclass(frozen=True, slots=True)
class Connection:
    """A login on one VM whose host key was checked."""

    ssh: asyncssh.SSHClientConnection
    host_key: SeenHostKey
    hop: Hop | None = None
    """The hypervisor host that it passes through."""


@dataclass
class SSHTransport:
    """Opens connections within the limits of their endpoint."""

    timeouts: SSHTimeouts = field(default_factory=SSHTimeouts)
    handshakes: int = 8

    def __post_init__(self) -> None:
        self._dialler = Dialler(self.timeouts, self.handshakes)
        self.jumps = Jumps(self._dialler)
        self._pools: dict[str, tuple[int, asyncio.Semaphore]] = {}

    @contextlib.asynccontextmanager
    async def connect(
        self,
        target: Target,
        *,
        beside: bool = False,
        long: bool = False,
        moved: bool = False,
        signatures: tuple[str, ...] = (),
    ) -> AsyncIterator[Connection]:
        """A connection to the VM, closed at the end. Raises `Unreachable`, `HostUnreachable` where its hypervisor host
        is the trouble, `HostKeyRejected`, `KeyUnreadable`.

        `beside`: a short one in addition to one that is held, which must not wait for that one to end. `long`: it will
        take minutes. `moved`: the VM was reached before and is not any more, so it is looked for anew. `signatures`:
        the only algorithms that the login may be signed with.
        """
        account = target.account
        options = await self._dialler.options(account.user, account.private_key, account.algorithms)
        if signatures:
            options = asyncssh.SSHClientConnectionOptions(options=options, signature_algs=list(signatures))
        async with contextlib.AsyncExitStack() as stack:
            if target.through is not None:
                connection = await self._pass_through(stack, target, target.through, options, beside, long, moved)
            else:
                await self._queue(stack, account, beside=beside)
                connection = await self._open(target, options, None)
            stack.push_async_callback(self._dialler.close, connection.ssh)
            yield connection

    async def close(self) -> None:
        """Closes the shared connections to hypervisor hosts."""
        await self.jumps.close()

    async def has_rsa_key(self, account: SSHAccount) -> bool:
        """Whether the account's key is RSA: then CloudStack's management server signs with `ssh-rsa`."""
        key = await asyncio.to_thread(load_private_key, account.private_key)
        return key.get_algorithm() == "ssh-rsa"

    async def _pass_through(
        self,
        stack: contextlib.AsyncExitStack,
        target: Target,
        through: Through,
        options: asyncssh.SSHClientConnectionOptions,
        beside: bool,
        long: bool,
        moved: bool,
    ) -> Connection:
        """Through the host that the VM runs on. If it is not found there, it is asked once more where it is: VMs
        migrate, and behind the old host nobody or somebody else has its address."""
        try:
            place = await through.locate(again=moved)
        except PatchingError as error:
            raise HostUnreachable(
                f"{target.name} is reached through its hypervisor host, and nobody can say which one that is now: "
                f"{error}",
                reason=Reason.HOST_UNKNOWN,
            ) from error
        if place is None:
            raise HostUnreachable(
                f"{target.name} is reached through its hypervisor host, and it is not known which one that is: it may "
                "be stopped, or its inventory does not name its host.",
                reason=Reason.HOST_UNKNOWN,
            )
        try:
            return await self._pass(stack, target, through, place, options, beside, long)
        except Unreachable as error:
            try:
                there = await through.locate(again=True)
            except PatchingError:
                raise error from None
            if there is None or there == place:
                raise
        return await self._pass(stack, target, through, there, options, beside, long)

    async def _pass(
        self,
        stack: contextlib.AsyncExitStack,
        target: Target,
        through: Through,
        place: HostPlace,
        options: asyncssh.SSHClientConnectionOptions,
        beside: bool,
        long: bool,
    ) -> Connection:
        async with contextlib.AsyncExitStack() as held:
            if not beside:
                await held.enter_async_context(self.jumps.slot(place, through.login, long=long))
            await self._queue(held, target.account, beside=beside)
            connection = await self._over(held, target, through, place, options)
            await stack.enter_async_context(held.pop_all())
            return connection

    async def _over(
        self,
        stack: contextlib.AsyncExitStack,
        target: Target,
        through: Through,
        place: HostPlace,
        options: asyncssh.SSHClientConnectionOptions,
    ) -> Connection:
        """A shared connection may have died unnoticed: then it is made anew, once."""
        for last in (False, True):
            async with contextlib.AsyncExitStack() as held:
                try:
                    hop = await held.enter_async_context(self.jumps.to(place, through.login))
                except HostUnreachable as error:
                    raise _because_of_its_host(target, str(error), error) from error
                try:
                    connection = await self._open(target, options, hop)
                except Unreachable as error:
                    if isinstance(error, HostKeyRejected) or await self.jumps.is_alive(hop):
                        raise
                    if last:
                        told = HostUnreachable(f"the connection to {hop.name} was lost")
                        raise _because_of_its_host(target, str(told), told) from error
                    continue
                await stack.enter_async_context(held.pop_all())
                return connection
        raise AssertionError("the second time raises or returns")

    async def _queue(self, stack: contextlib.AsyncExitStack, account: SSHAccount, *, beside: bool) -> None:
        if not beside:
            await stack.enter_async_context(self._pool(account))

    def _pool(self, account: SSHAccount) -> asyncio.Semaphore:
        limit, pool = self._pools.get(account.pool, (0, None))
        if pool is None or limit != account.connections:
            pool = asyncio.Semaphore(account.connections)
            self._pools[account.pool] = (account.connections, pool)
        return pool

    async def _open(self, target: Target, options: asyncssh.SSHClientConnectionOptions, hop: Hop | None) -> Connection:
        checker = vm_checker(target, OFFERS[target.account.algorithms].host_keys)
        door = Door(target.address, target.account.port, hop.ssh if hop is not None else None)
        try:
            ssh = await self._dial(target, door, options, checker)
        except (OSError, asyncssh.Error) as error:
            raise self._explain(target, hop, checker, error) from error
        shown = ssh.get_server_host_key()
        if shown is None:
            await self._dialler.close(ssh)
            raise Unreachable(f"{_place(target, hop)} showed no host key, so it is not known who it is.")
        return Connection(ssh, seen_key(shown), hop)

    async def _dial(
        self, target: Target, door: Door, options: asyncssh.SSHClientConnectionOptions, checker: HostKeyChecker
    ) -> asyncssh.SSHClientConnection:
        try:
            return await self._dialler.dial(door, options, checker)
        except asyncssh.PermissionDenied:
            if target.account.algorithms is not SSHAlgorithms.LEGACY:
                raise
        # An old sshd names SHA-2 among the signatures that it knows, and then takes none of them.
        with_sha1 = asyncssh.SSHClientConnectionOptions(options=options, signature_algs=["ssh-rsa"])
        return await self._dialler.dial(door, with_sha1, checker)

    def _explain(self, target: Target, hop: Hop | None, checker: HostKeyChecker, error: Exception) -> Unreachable:
        """A failure to connect as a reason and a sentence with the next step."""
        place = _place(target, hop)
        if checker.rejected is not None:
            told = checker.explain(seen_key(checker.rejected))
            if isinstance(told, Unreachable):
                return told
        if isinstance(error, asyncssh.ChannelOpenError):
            return _not_let_through(target, place, error)
        if isinstance(error, asyncssh.PermissionDenied):
            return Unreachable(
                f"{place} does not accept the SSH key for user {target.account.user}: check that the endpoint's key is "
                f"the one of this cloud (id_rsa.cloud).{_switch(target, 'takes RSA signatures with SHA-1 only')}",
                reason=Reason.SSH_AUTHENTICATION_FAILED,
                retryable=False,
            )
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return HostKeyRejected(
                f"The host key of {place} is not acceptable: {error.reason}.", fingerprint="", reason=checker.reason
            )
        if isinstance(error, LoginTimeoutError):
            return Unreachable(
                f"{place} answered, but let nobody in within {self.timeouts.login:g} s: its sshd hangs or lacks memory "
                "or processes, or another program has its port.",
                reason=Reason.SSH_TIMEOUT,
            )
        if isinstance(error, TimeoutError) or (
            isinstance(error, asyncssh.ConnectionLost) and "timeout" in error.reason.lower()
        ):
            return Unreachable(
                f"{place} did not answer within {self.timeouts.connect:g} s: the VM may be down, hang, or a firewall "
                "drops the packets.",
                reason=Reason.SSH_TIMEOUT,
            )
        if isinstance(error, socket.gaierror):
            return Unreachable(f"The name {target.address} of {target.name} cannot be resolved: check the address.")
        if isinstance(error, ConnectionRefusedError):
            return Unreachable(
                f"{place} refuses the connection: the VM is up but no sshd listens on port {target.account.port}."
            )
        reset = isinstance(error, ConnectionResetError) and checker.greeted  # how an sshd leaves, if it is quick
        if isinstance(error, OSError) and not reset:
            return Unreachable(f"{place} cannot be reached: {error.strerror or error}.")
        if isinstance(error, asyncssh.KeyExchangeFailed):
            return Unreachable(
                f"{place} and this operator have no SSH algorithm in common: {error.reason}."
                f"{_switch(target, 'is of an old template that has SHA-1 only')}"
            )
        detail = error.reason if isinstance(error, asyncssh.Error) else str(error)
        told_ = f"{place} ended the connection before the login: {detail or type(error).__name__}."
        if checker.greeted:
            # What an sshd does that has none of the kinds of host key that were asked for; it gives no reason.
            told_ += _switch(target, "has none but RSA host keys with SHA-1")
        return Unreachable(told_)


def _because_of_its_host(target: Target, why: str, error: HostUnreachable) -> HostUnreachable:
    return HostUnreachable(
        f"{target.name} cannot be reached because of its host: {why}.", reason=error.reason, retryable=error.retryable
    )


def _not_let_through(target: Target, place: str, error: asyncssh.ChannelOpenError) -> Unreachable:
    """The host answered for the VM (OpenSSH: `Connect failed: No route to host`), or refused to try."""
    if error.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
        return HostUnreachable(
            f"{place} cannot be reached because of its host: {_FORWARDING_OFF}.",
            reason=Reason.HOST_REFUSES,
            retryable=False,
        )
    said = error.reason.removeprefix("Connect failed: ")
    if "timed out" in said.lower():
        return Unreachable(f"{place} did not answer its host: {said}.", reason=Reason.SSH_TIMEOUT)
    return Unreachable(f"{place} cannot be reached from its host: {said}. Is the VM up, and does it run there?")


def _switch(target: Target, where: str) -> str:
    """The way out for an old VM; empty where it is taken already."""
    if target.account.algorithms is SSHAlgorithms.LEGACY:
        return ""
    return f" If the VM {where}, set spec.ssh.algorithms of its CloudStackEndpoint to Legacy, and recreate it soon."


def _place(target: Target, hop: Hop | None) -> str:
    if hop is None:
        return described(target)
    return f"{target.name} ({target.address} port {target.account.port} behind hypervisor host {hop.place.name})"
