"""Whether the machine that answers is the one that was meant, asked inside the handshake before any credential is sent.

VMs are trusted on first use or by known_hosts; hypervisor hosts by known_hosts only, for everything that is said to
their VMs passes through them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import asyncssh

from sysvm.api.endpoint import HostKeyPolicy
from sysvm.api.reasons import Reason
from sysvm.patching.errors import HostKeyRejected, HostUnreachable, PatchingError
from sysvm.patching.keys import KeyUnreadable, load_known_hosts
from sysvm.patching.results import HostLogin, HostPlace, SeenHostKey, Target

Listed = tuple[Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey], Sequence[asyncssh.SSHKey]]
"""What known_hosts has for one place: trusted keys, trusted authorities, revoked keys."""


@dataclass
class HostKeyChecker:
    """Decides about one host key; `rejected` remembers the one that was turned down."""

    known_hosts: asyncssh.SSHKnownHosts | Listed
    algorithms: list[str]
    accepts: Callable[[asyncssh.SSHKey], bool]
    explain: Callable[[SeenHostKey], PatchingError]
    reason: Reason
    rejected: asyncssh.SSHKey | None = None
    greeted: bool = False
    """The other end said that it speaks SSH."""

    def judge(self, key: asyncssh.SSHKey) -> bool:
        accepted = self.accepts(key)
        if not accepted:
            self.rejected = key
        return accepted


class CheckingClient(asyncssh.SSHClient):
    """Asks the checker about every key that known_hosts does not settle."""

    def __init__(self, checker: HostKeyChecker) -> None:
        self._checker = checker
        self._conn: asyncssh.SSHClientConnection | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self._conn = conn

    def connection_lost(self, exc: Exception | None) -> None:
        if self._conn is not None:
            self._checker.greeted = self._conn.get_extra_info("server_version") is not None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return self._checker.judge(key)


def vm_checker(target: Target, offered: Sequence[str]) -> HostKeyChecker:
    """For a VM. `offered`: algorithms of host keys, best first. Raises `KeyUnreadable`."""
    if target.account.host_key_policy is HostKeyPolicy.STRICT:
        return _strict(target, offered)
    if target.pinned_host_key is None:
        return HostKeyChecker(
            nobody(), list(offered), lambda _: True, _changed(target, "nothing"), Reason.HOST_KEY_UNKNOWN
        )
    return _pinned(target, target.pinned_host_key, offered)


def hypervisor_checker(place: HostPlace, login: HostLogin, offered: Sequence[str]) -> HostKeyChecker:
    """For a hypervisor host: known_hosts, by its name or its address. Raises `KeyUnreadable`."""
    listed = _listed(login.known_hosts, place.name, place.address, login.port)

    def explain(seen: SeenHostKey) -> HostUnreachable:
        known = "another key" if listed[0] or listed[1] else "no line"
        return HostUnreachable(
            f"{place.kind} {place.told(login.port)} showed the host key {seen.fingerprint} ({seen.type}), and "
            f"the known_hosts of {login.field_name}.knownHostsRef has {known} for it; nothing was sent to it. If the "
            f"key is right, put it under {place.name} or {place.address} there; if not, somebody else answers at this "
            "address",
            reason=Reason.HOST_NOT_TRUSTED,
            retryable=False,
        )

    return HostKeyChecker(listed, _asked_for(listed, offered), lambda _: False, explain, Reason.HOST_NOT_TRUSTED)


def seen_key(key: asyncssh.SSHKey) -> SeenHostKey:
    return SeenHostKey(
        type=key.get_algorithm(),
        fingerprint=key.get_fingerprint(),
        public_key=key.export_public_key("openssh").decode("ascii").strip(),
    )


def described(target: Target) -> str:
    """The VM and where it was sought."""
    return f"{target.name} ({target.address} port {target.account.port})"


@cache
def nobody() -> asyncssh.SSHKnownHosts:
    """A strict list without an entry: every host key goes to the checker. None would switch checking off."""
    return asyncssh.import_known_hosts("")


def _pinned(target: Target, pinned_text: str, offered: Sequence[str]) -> HostKeyChecker:
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
    first = _algorithms_of(pinned, offered)
    algorithms = first + [algorithm for algorithm in offered if algorithm not in first]
    explain = _changed(target, pinned.get_fingerprint())
    return HostKeyChecker(nobody(), algorithms, accepts, explain, Reason.HOST_KEY_CHANGED)


def _strict(target: Target, offered: Sequence[str]) -> HostKeyChecker:
    if not target.account.known_hosts:
        raise KeyUnreadable(
            f"Host keys are Strict and no known_hosts text is there, so {target.name} cannot be recognised.",
            reason=Reason.KNOWN_HOSTS_MISSING,
        )
    # By its name too: behind hypervisor hosts the same address may be many VMs.
    listed = _listed(target.account.known_hosts, target.name, target.address, target.account.port)
    if listed[0] or listed[1]:
        required = ", ".join(key.get_fingerprint() for key in listed[0]) or "one signed by a listed authority"
        explain = _changed(target, required, listed=True)
        return HostKeyChecker(listed, _asked_for(listed, offered), lambda _: False, explain, Reason.HOST_KEY_CHANGED)
    return HostKeyChecker(listed, list(offered), lambda _: False, _unknown(target), Reason.HOST_KEY_UNKNOWN)


def _listed(known_hosts: str, name: str, address: str, port: int) -> Listed:
    keys, authorities, revoked, *_ = load_known_hosts(known_hosts).match(name, address, port if port != 22 else None)
    return keys, authorities, revoked


def _asked_for(listed: Listed, offered: Sequence[str]) -> list[str]:
    """The algorithms to ask for: those of the listed keys first."""
    first = [algorithm for key in listed[0] for algorithm in _algorithms_of(key, offered)]
    certificates = [f"{name}-cert-v01@openssh.com" for name in offered] if listed[1] else []
    return list(dict.fromkeys([*certificates, *first, *offered]))


def _changed(target: Target, required: str, *, listed: bool = False) -> Callable[[SeenHostKey], HostKeyRejected]:
    def explain(seen: SeenHostKey) -> HostKeyRejected:
        remedy = (
            "replace its line in known_hosts"
            if listed
            else f"set spec.acceptHostKey of the SystemVM to {seen.fingerprint}"
        )
        return HostKeyRejected(
            f"{described(target)} showed the host key {seen.fingerprint} ({seen.type}), but {required} is required. "
            f"Nothing was sent to it. If the VM was recreated, {remedy}; if not, somebody else answers at this "
            "address.",
            fingerprint=seen.fingerprint,
            reason=Reason.HOST_KEY_CHANGED,
        )

    return explain


def _unknown(target: Target) -> Callable[[SeenHostKey], HostKeyRejected]:
    def explain(seen: SeenHostKey) -> HostKeyRejected:
        return HostKeyRejected(
            f"{described(target)} showed the host key {seen.fingerprint} ({seen.type}), and known_hosts has no line "
            "for it. Nothing was sent to it. If the key is right, add a line for "
            f"[{target.address}]:{target.account.port} to known_hosts.",
            fingerprint=seen.fingerprint,
            reason=Reason.HOST_KEY_UNKNOWN,
        )

    return explain


def _algorithms_of(key: asyncssh.SSHKey, offered: Sequence[str]) -> list[str]:
    """How a key of this type may sign. RSA keys are asked for SHA-1 last, and only if it is offered."""
    algorithm = key.get_algorithm()
    names = ["rsa-sha2-512", "rsa-sha2-256", "ssh-rsa"] if algorithm == "ssh-rsa" else [algorithm]
    return [name for name in names if name in offered]
