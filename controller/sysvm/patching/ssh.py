"""SSH to system VMs: who may be talked to, with which key, and what it means when it does not work.

One connection is one conversation; it is opened for it and closed after it, because addresses of system VMs are used
again and an idle connection would hide that. Nothing of the operator's own surroundings leaks in: no configuration
file, no agent, no default keys, and never a connection whose host key was not checked.
"""

import asyncio
import contextlib
import hashlib
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

import asyncssh
from asyncssh.packet import SSHPacketLogger

from sysvm.api.endpoint import HostKeyPolicy, SSHAlgorithms
from sysvm.api.reasons import Reason
from sysvm.patching.errors import HostKeyRejected, PatchingError, Unreachable
from sysvm.patching.results import SeenHostKey, SSHAccount, Target


@dataclass(frozen=True, slots=True)
class _Offer:
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
_OFFERS = {
    SSHAlgorithms.MODERN: _Offer(_KEY_EXCHANGES, _CIPHERS, _MACS, _HOST_KEY_ALGORITHMS),
    # Last of each list, so that a VM that has anything newer gets it. CBC, DSS and group 1 are for no template.
    SSHAlgorithms.LEGACY: _Offer(
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


@dataclass(frozen=True, slots=True)
class SSHTimeouts:
    """Seconds. A peer that is silent for `keepalive_interval * keepalive_count` counts as lost."""

    connect: float = 10.0
    login: float = 15.0
    keepalive_interval: float = 15.0
    keepalive_count: int = 3
    close: float = 3.0


class KeyUnreadable(PatchingError):  # noqa: N818 - says what the key is, as its siblings in errors.py do
    """The private key or the known_hosts text of an endpoint cannot be used. No VM was contacted."""

    reason = Reason.CREDENTIALS_UNREADABLE
    retryable = False


def load_private_key(text: bytes) -> asyncssh.SSHKey:
    """A private key in PEM or OpenSSH format. Raises `KeyUnreadable`; its sentence never holds any of the key."""
    try:
        return asyncssh.import_private_key(text)
    except asyncssh.KeyEncryptionError as error:
        raise KeyUnreadable(_PASSPHRASE) from error
    except asyncssh.KeyImportError as error:
        if "passphrase" in str(error).lower():
            raise KeyUnreadable(_PASSPHRASE) from error
        if _is_public(text):
            raise KeyUnreadable(
                "The SSH key is a public key; the private one is needed (id_rsa.cloud of a hypervisor host)."
            ) from error
        raise KeyUnreadable(
            "The SSH key cannot be read: it must be a private key in PEM or OpenSSH format (id_rsa.cloud of a "
            "hypervisor host), whole and without anything around it."
        ) from error


_PASSPHRASE = "The SSH key is protected by a passphrase; CloudStack's key has none: store it without one."


def _is_public(text: bytes) -> bool:
    try:
        asyncssh.import_public_key(text)
    except asyncssh.KeyImportError:
        return False
    return True


def load_known_hosts(text: str) -> asyncssh.SSHKnownHosts:
    """known_hosts text. Raises `KeyUnreadable`, which names the line and quotes none: it may be any ConfigMap's."""
    try:
        return asyncssh.import_known_hosts(text)
    except ValueError:
        number = next((at for at, line in enumerate(text.splitlines(), start=1) if not _is_known_hosts(line)), 1)
    raise KeyUnreadable(f"Line {number} of the known_hosts text cannot be read.")


def _is_known_hosts(line: str) -> bool:
    try:
        asyncssh.import_known_hosts(line)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Connection:
    """A login on one VM whose host key was checked."""

    ssh: asyncssh.SSHClientConnection
    host_key: SeenHostKey


@dataclass
class SSHTransport:
    """Opens connections within the limits of their endpoint.

    `handshakes` at once: key exchange is processor time of the event loop, so more of them would only delay the rest.
    """

    timeouts: SSHTimeouts = field(default_factory=SSHTimeouts)
    handshakes: int = 8

    def __post_init__(self) -> None:
        # Its informational messages name every host and user of every connection.
        logging.getLogger("asyncssh").setLevel(logging.WARNING)
        self._handshakes = asyncio.Semaphore(self.handshakes)
        self._pools: dict[str, tuple[int, asyncio.Semaphore]] = {}
        self._options: dict[tuple[str, str, SSHAlgorithms], asyncssh.SSHClientConnectionOptions] = {}

    @contextlib.asynccontextmanager
    async def connect(
        self, target: Target, *, beside: bool = False, signatures: tuple[str, ...] = ()
    ) -> AsyncIterator[Connection]:
        """A connection to the VM, closed at the end. Raises `Unreachable`, `HostKeyRejected`, `KeyUnreadable`.

        `beside`: a short one in addition to one that is held, which must not wait for that one to end. `signatures`:
        the only algorithms that the login may be signed with.
        """
        options = await self._account_options(target.account)
        if signatures:
            options = asyncssh.SSHClientConnectionOptions(options=options, signature_algs=list(signatures))
        async with contextlib.nullcontext() if beside else self._pool(target.account):
            connection = await self._open(target, options)
            try:
                yield connection
            finally:
                await self._close(connection.ssh)

    async def has_rsa_key(self, account: SSHAccount) -> bool:
        """Whether the account's key is RSA: then CloudStack's management server signs with `ssh-rsa`."""
        key = await asyncio.to_thread(load_private_key, account.private_key)
        return key.get_algorithm() == "ssh-rsa"

    def _pool(self, account: SSHAccount) -> asyncio.Semaphore:
        limit, pool = self._pools.get(account.pool, (0, None))
        if pool is None or limit != account.connections:
            pool = asyncio.Semaphore(account.connections)
            self._pools[account.pool] = (account.connections, pool)
        return pool

    async def _account_options(self, account: SSHAccount) -> asyncssh.SSHClientConnectionOptions:
        name = (account.user, hashlib.sha256(account.private_key).hexdigest(), account.algorithms)
        if name not in self._options:
            # An RSA key is checked for consistency when it is read: a tenth of a second that the loop would miss.
            key = await asyncio.to_thread(load_private_key, account.private_key)
            while len(self._options) >= _KNOWN_KEYS:
                self._options.pop(next(iter(self._options)))
            self._options[name] = self._build_options(account.user, key, _OFFERS[account.algorithms])
        return self._options[name]

    def _build_options(self, user: str, key: asyncssh.SSHKey, offer: _Offer) -> asyncssh.SSHClientConnectionOptions:
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
            known_hosts=_nobody(),
            kex_algs=_supported("kex_algs", offer.key_exchanges),
            encryption_algs=list(offer.ciphers),
            mac_algs=_supported("mac_algs", offer.macs),
            signature_algs=list(offer.host_keys),
            compression_algs=None,
            connect_timeout=self.timeouts.connect,
            login_timeout=self.timeouts.login,
            keepalive_interval=self.timeouts.keepalive_interval,
            keepalive_count_max=self.timeouts.keepalive_count,
        )

    async def _open(self, target: Target, options: asyncssh.SSHClientConnectionOptions) -> Connection:
        checker = _checker(target)
        for attempt in range(1, _TRIES + 1):
            try:
                ssh = await self._shake_hands(target, options, checker)
            except (OSError, asyncssh.Error) as error:
                failure = self._explain(target, checker, error)
                if isinstance(error, asyncssh.PermissionDenied) and attempt < _TRIES and _may_sign_with_sha1(target):
                    # An old sshd names SHA-2 among the signatures that it knows, and then takes none of them.
                    options = asyncssh.SSHClientConnectionOptions(options=options, signature_algs=["ssh-rsa"])
                    continue
                if attempt == _TRIES or not _was_turned_away(error) or checker.rejected is not None:
                    raise failure from error
                # sshd drops connections at random while too many log in at once (MaxStartups).
                await asyncio.sleep(random.uniform(0.2, 0.6) * attempt)
                continue
            shown = ssh.get_server_host_key()
            if shown is None:
                await self._close(ssh)
                raise Unreachable(f"{_place(target)} showed no host key, so it is not known who it is.")
            _send_no_padding(ssh)
            return Connection(ssh, _seen(shown))
        raise AssertionError("the last attempt raises or returns")

    async def _shake_hands(
        self, target: Target, options: asyncssh.SSHClientConnectionOptions, checker: "_HostKeyChecker"
    ) -> asyncssh.SSHClientConnection:
        sock = await self._knock(target)
        try:
            await self._handshakes.acquire()
        except BaseException:
            sock.close()
            raise
        try:
            return await asyncssh.connect(
                target.address,
                target.account.port,
                sock=sock,
                # Not taken from `options`: without it ~/.ssh/config is read here, its ProxyJump and User included.
                config=None,
                tunnel=None,
                options=options,
                known_hosts=checker.known_hosts,
                server_host_key_algs=checker.algorithms,
                client_factory=lambda: _Client(checker),
            )
        finally:
            self._handshakes.release()

    async def _knock(self, target: Target) -> socket.socket:
        """A TCP connection on which the other end has begun to speak: silent hosts hold up nobody's handshake."""
        loop = asyncio.get_running_loop()
        failure = OSError(f"{target.address} has no address")
        async with asyncio.timeout(self.timeouts.connect):
            try:
                found = await loop.getaddrinfo(target.address, target.account.port, type=socket.SOCK_STREAM)
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

    async def _close(self, ssh: asyncssh.SSHClientConnection) -> None:
        ssh.close()
        try:
            async with asyncio.timeout(self.timeouts.close):
                await ssh.wait_closed()
        except (TimeoutError, OSError, asyncssh.Error):
            ssh.abort()
        except asyncio.CancelledError:
            ssh.abort()
            raise

    def _explain(self, target: Target, checker: "_HostKeyChecker", error: Exception) -> Unreachable:
        """A failure to connect as a reason and a sentence with the next step."""
        place = _place(target)
        if checker.rejected is not None:
            return checker.explain(target, _seen(checker.rejected))
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
        told = f"{place} ended the connection before the login: {detail or type(error).__name__}."
        if checker.greeted:
            # What an sshd does that has none of the kinds of host key that were asked for; it gives no reason.
            told += _switch(target, "has none but RSA host keys with SHA-1")
        return Unreachable(told)


@dataclass
class _HostKeyChecker:
    """Decides about one host key; `rejected` remembers the one that was turned down."""

    known_hosts: asyncssh.SSHKnownHosts
    algorithms: list[str]
    accepts: Callable[[asyncssh.SSHKey], bool]
    explain: Callable[[Target, SeenHostKey], HostKeyRejected]
    reason: Reason
    rejected: asyncssh.SSHKey | None = None
    greeted: bool = False
    """The other end said that it speaks SSH."""

    def judge(self, key: asyncssh.SSHKey) -> bool:
        accepted = self.accepts(key)
        if not accepted:
            self.rejected = key
        return accepted


class _Client(asyncssh.SSHClient):
    """Asks the checker inside the handshake, before any credential is sent."""

    def __init__(self, checker: _HostKeyChecker) -> None:
        self._checker = checker
        self._conn: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._conn = conn

    def connection_lost(self, exc: Exception | None) -> None:
        if self._conn is not None:
            self._checker.greeted = self._conn.get_extra_info("server_version") is not None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return self._checker.judge(key)


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


def _checker(target: Target) -> _HostKeyChecker:
    if target.account.host_key_policy is HostKeyPolicy.STRICT:
        return _strict(target)
    if target.pinned_host_key is None:
        return _HostKeyChecker(
            _nobody(), list(_offered(target)), lambda _: True, _changed("nothing"), Reason.HOST_KEY_UNKNOWN
        )
    return _pinned(target, target.pinned_host_key)


def _pinned(target: Target, pinned_text: str) -> _HostKeyChecker:
    try:
        pinned = asyncssh.import_public_key(pinned_text)
    except asyncssh.KeyImportError as error:
        raise KeyUnreadable(
            f"The host key kept for {target.name} cannot be read, so nobody can be recognised by it: "
            "accept the VM's key anew with spec.acceptHostKey.",
            reason=Reason.HOST_KEY_UNKNOWN,
        ) from error

    def accepts(key: asyncssh.SSHKey) -> bool:
        return bool(key == pinned) or key.get_fingerprint() == target.accepted_fingerprint

    # The kept type first, so that a VM with several keys shows the one that is known.
    first = _algorithms_of(pinned, _offered(target))
    algorithms = first + [algorithm for algorithm in _offered(target) if algorithm not in first]
    return _HostKeyChecker(_nobody(), algorithms, accepts, _changed(pinned.get_fingerprint()), Reason.HOST_KEY_CHANGED)


def _strict(target: Target) -> _HostKeyChecker:
    if not target.account.known_hosts:
        raise KeyUnreadable(
            f"Host keys are Strict and no known_hosts text is there, so {target.name} cannot be recognised.",
            reason=Reason.KNOWN_HOSTS_MISSING,
        )
    known = load_known_hosts(target.account.known_hosts)
    port = target.account.port
    listed = known.match(target.address, target.address, port if port != 22 else None)
    keys = [key for key in listed[0] if key is not None]
    if keys or listed[1]:
        required = ", ".join(key.get_fingerprint() for key in keys) or "one signed by a listed authority"
        offered = _offered(target)
        first = [algorithm for key in keys for algorithm in _algorithms_of(key, offered)]
        certificates = [f"{name}-cert-v01@openssh.com" for name in offered] if listed[1] else []
        rest = [algorithm for algorithm in offered if algorithm not in first]
        return _HostKeyChecker(
            known,
            list(dict.fromkeys(certificates + first + rest)),
            lambda _: False,
            _changed(required, listed=True),
            Reason.HOST_KEY_CHANGED,
        )
    return _HostKeyChecker(known, list(_offered(target)), lambda _: False, _unknown, Reason.HOST_KEY_UNKNOWN)


def _changed(required: str, *, listed: bool = False) -> Callable[[Target, SeenHostKey], HostKeyRejected]:
    def explain(target: Target, seen: SeenHostKey) -> HostKeyRejected:
        remedy = (
            "replace its line in known_hosts"
            if listed
            else f"set spec.acceptHostKey of the SystemVM to {seen.fingerprint}"
        )
        return HostKeyRejected(
            f"{_place(target)} showed the host key {seen.fingerprint} ({seen.type}), but {required} is required. "
            f"Nothing was sent to it. If the VM was recreated, {remedy}; if not, somebody else answers at this "
            "address.",
            fingerprint=seen.fingerprint,
            reason=Reason.HOST_KEY_CHANGED,
        )

    return explain


def _unknown(target: Target, seen: SeenHostKey) -> HostKeyRejected:
    return HostKeyRejected(
        f"{_place(target)} showed the host key {seen.fingerprint} ({seen.type}), and known_hosts has no line for it. "
        "Nothing was sent to it. If the key is right, add a line for "
        f"[{target.address}]:{target.account.port} to known_hosts.",
        fingerprint=seen.fingerprint,
        reason=Reason.HOST_KEY_UNKNOWN,
    )


def _may_sign_with_sha1(target: Target) -> bool:
    return target.account.algorithms is SSHAlgorithms.LEGACY


def _switch(target: Target, where: str) -> str:
    """The way out for an old VM; empty where it is taken already."""
    if target.account.algorithms is SSHAlgorithms.LEGACY:
        return ""
    return f" If the VM {where}, set spec.ssh.algorithms of its CloudStackEndpoint to Legacy, and recreate it soon."


def _place(target: Target) -> str:
    return f"{target.name} ({target.address} port {target.account.port})"


def _seen(key: asyncssh.SSHKey) -> SeenHostKey:
    return SeenHostKey(
        type=key.get_algorithm(),
        fingerprint=key.get_fingerprint(),
        public_key=key.export_public_key("openssh").decode("ascii").strip(),
    )


def _offered(target: Target) -> tuple[str, ...]:
    return _OFFERS[target.account.algorithms].host_keys


def _algorithms_of(key: asyncssh.SSHKey, offered: tuple[str, ...]) -> list[str]:
    """How a key of this type may sign. RSA keys are asked for SHA-1 last, and only if it is offered."""
    algorithm = key.get_algorithm()
    names = ["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"] if algorithm == "ssh-rsa" else [algorithm]
    return [name for name in names if name in offered]


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
def _nobody() -> asyncssh.SSHKnownHosts:
    """A strict list without an entry: every host key goes to the checker. None would switch checking off."""
    return asyncssh.import_known_hosts("")


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
