"""What can go wrong with one VM. Every error says which VM, what state it is in now, and what a person can do."""

from sysvm.api.reasons import Reason


class PatchingError(Exception):
    """Base of every error of this layer.

    `reason` is the word for programs, `str(error)` the sentence for people, `retryable` whether the same call may
    succeed later without anybody doing anything.
    """

    reason: Reason = Reason.PROTOCOL_ERROR
    retryable: bool = True

    def __init__(self, message: str, *, reason: Reason | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        if reason is not None:
            self.reason = reason
        if retryable is not None:
            self.retryable = retryable


class Unreachable(PatchingError):  # noqa: N818  # says what the VM is
    """No SSH session could be had, or it was lost: refused, silent, authentication, host key."""

    reason = Reason.SSH_UNREACHABLE


class HostKeyRejected(Unreachable):
    """The VM showed another host key than the one that is required. Nothing was sent to it."""

    reason = Reason.HOST_KEY_CHANGED
    retryable = False

    def __init__(self, message: str, *, fingerprint: str, reason: Reason | None = None) -> None:
        super().__init__(message, reason=reason)
        self.fingerprint = fingerprint


class HostUnreachable(Unreachable):
    """The hypervisor host that the VM is reached through is the trouble, not the VM: it does not answer, shows another
    host key, refuses the login, or nobody knows which one it is. Nothing was sent to the VM."""

    reason = Reason.HOST_UNREACHABLE


class Refused(PatchingError):  # noqa: N818  # says what happened
    """The VM was reached and nothing was changed on it: lock held, old epoch, no space, another actor, wrong type."""

    reason = Reason.VM_BUSY


class PayloadError(PatchingError):
    """The payload cannot be used. No VM was touched."""

    reason = Reason.PAYLOAD_UNREADABLE
    retryable = False
