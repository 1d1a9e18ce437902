"""Keys that people give: read once, refused with a sentence that never holds any of the key."""

import asyncssh

from sysvm.api.reasons import Reason
from sysvm.patching.errors import PatchingError


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
