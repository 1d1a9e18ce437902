"""What the management server, or the way to it, said: one class for each thing a caller or a person can do about it.

The server's own sentence is kept word for word, because it names the object or the parameter; a second sentence says
what to do. Codes are CloudStack's, which are also the HTTP status of its answers (CloudStack 4.21 ApiErrorCode.java).
No error holds a key, a secret or a signature: texts are cleaned before they come here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from pydantic import JsonValue

from sysvm.api.reasons import Reason

CLOCK_TOLERANCE = timedelta(seconds=60)
"""A difference of clocks worth telling: requests carry a time after which the server refuses them."""


class CloudStackError(Exception):
    """Base of every error of this layer.

    `str(error)` is what happened and what to do. `reason` is the word for programs, `code` CloudStack's number (0 when
    none came), `server_text` the server's own sentence, `retryable` whether the same call may succeed later without
    anybody doing anything, `retry_after_seconds` when the server wants to be asked again, if it said so.
    """

    reason: Reason = Reason.API_ERROR
    retryable: bool = False
    advice: str = ""

    def __init__(
        self,
        what: str,
        *,
        command: str = "",
        code: int = 0,
        cs_code: int = 0,
        server_text: str = "",
        advice: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.command = command
        self.code = code
        self.cs_code = cs_code
        """`cserrorcode`: the number of the exception inside the server, 9999 or 0 for most."""
        self.server_text = server_text
        self.retry_after_seconds = retry_after_seconds
        if advice is not None:
            self.advice = advice

    def __str__(self) -> str:
        asked = f"{self.command}: " if self.command else ""
        code = f" ({self.code})" if self.code else ""
        return f"{asked}{self.what.rstrip('.')}{code}" + (f". {self.advice}" if self.advice else "")


class Unauthorized(CloudStackError):  # noqa: N818
    """401: wrong key, wrong secret, request expired, user disabled, or a command that the server does not know.

    The server says the same sentence to all of them. 511: the user must confirm with a second factor.
    """

    reason = Reason.UNAUTHORIZED
    advice = (
        "Check apiKey and secretKey in the Secret, that the user is enabled, and that the server knows this command"
    )


class ClocksDiffer(Unauthorized):
    """401 of a server whose clock differs by more than `CLOCK_TOLERANCE`: the request had most likely expired.

    Reads live longer than changes, so that sweeps may pass where every change is refused.
    """


class NotAllowed(CloudStackError):  # noqa: N818
    """432, 531: the role of the user may not call this command, or the account may not touch this object."""

    reason = Reason.MISSING_PERMISSIONS
    advice = "Allow this command in the role of the operator's user; the page on permissions lists them by feature"


class BadParameter(CloudStackError):  # noqa: N818
    """430, 431: an id that is not there (any more), a parameter missing or wrong. Sending it again is of no use."""

    advice = "The command or its parameters do not fit what there is on the server"


class NoSuchObject(BadParameter):
    """431: the server knows no object of the id that was given: it is gone, or was never there."""

    advice = "What it names is gone: look again"


class Throttled(CloudStackError):  # noqa: N818
    """429: more requests than `api.throttling` grants. `retry_after_seconds` is what the server named."""

    reason = Reason.API_UNREACHABLE
    retryable = True
    advice = "Lower spec.api.limits.requestsPerSecond of the endpoint, or raise api.throttling.max on the server"


class Unavailable(CloudStackError):  # noqa: N818
    """No connection, a broken one, or 502, 503, 504: the server is down, starting, or not reachable."""

    reason = Reason.API_UNREACHABLE
    retryable = True
    advice = "Check that the management server runs and that the cluster reaches the URL of the endpoint"


class TimedOut(Unavailable):
    """No complete answer within the endpoint's timeout."""

    advice = "Raise spec.api.timeout of the endpoint if the server is slow, or look at its load"


class TLSFailed(CloudStackError):  # noqa: N818
    """The server's certificate was not accepted, or it does not speak TLS there."""

    reason = Reason.TLS_FAILED
    advice = "Set spec.api.caBundleRef to the CA that signed the certificate, and use the name that it is made for"


class NotCloudStack(CloudStackError):  # noqa: N818
    """The answer is not one of CloudStack's API: HTML, a redirect, other JSON. Most likely a wrong URL."""

    reason = Reason.NOT_CLOUDSTACK
    advice = "Check the URL of the endpoint: it ends in /client/api"


class AnswerInvalid(CloudStackError):  # noqa: N818
    """An answer of CloudStack's form in which something that decides is missing or has a wrong type."""

    advice = "The server may be of a release that this operator does not know; report the path that is named"


class ListChanged(CloudStackError):  # noqa: N818
    """Objects came or went while the pages of a list were read, so that one may be missing. List again."""

    retryable = True
    advice = "It is listed again by itself"


class ServerError(CloudStackError):
    """530 to 537: the server tried and failed; capacity (533, 535), resource unavailable (534), in use (536), ...

    Also any other code that has no class of its own.
    """

    retryable = True
    advice = "Look for the text in the management server's log"


class OutcomeUnknown(CloudStackError):  # noqa: N818
    """A changing call was sent and no usable answer came: it may or may not have been carried out.

    Never sent again by itself: the caller compares the state with the one before, and looks for a job.
    """

    reason = Reason.OUTCOME_UNKNOWN
    advice = "The state is read again before anything else is done"


class ChangeRefused(CloudStackError):  # noqa: N818
    """A changing call on an endpoint with `management: Observe`. Nothing was sent."""

    reason = Reason.OBSERVE_ONLY
    advice = "Set management: Full on the endpoint to let the operator change VMs"


class AccessInvalid(CloudStackError):  # noqa: N818
    """The URL, the CA bundle or the keys cannot be used. Nothing was sent."""

    reason = Reason.INVALID_SPEC


_CLASSES: Mapping[int, type[CloudStackError]] = {
    401: Unauthorized,
    429: Throttled,
    430: BadParameter,
    431: BadParameter,
    432: NotAllowed,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
    511: Unauthorized,
    531: NotAllowed,
}

NOT_BEGUN = frozenset(range(532, 538))
"""Limits, capacity, resources and conflicts (CloudStack 4.21 ApiErrorCode.java): told before a command becomes a job.
Any other failure of the server leaves open whether it did."""

_GONE = re.compile(r"entity does not exist|Unable to find UUID for id|Unable to find .* with specified id")
"""CloudStack 4.21 ParamProcessWorker.java and the exceptions of commands, as recorded."""

_RETRY_MS = re.compile(r"retry after \[(\d{1,7})\] ?ms")


def from_answer(
    command: str,
    status: int,
    error: Mapping[str, JsonValue],
    *,
    clock_ahead: timedelta | None = None,
) -> CloudStackError:
    """The error for an answer with an `errorcode`, or the `jobresult` of a failed job.

    `clock_ahead` is how far the operator's clock is ahead of the server's, if it is known.
    """
    code = error.get("errorcode")
    number = code if isinstance(code, int) and not isinstance(code, bool) else status
    cs_code = error.get("cserrorcode")
    text = str(error.get("errortext") or "") or f"HTTP {status} without a text"
    kind = _CLASSES.get(number, ServerError)
    if kind is BadParameter and _GONE.search(text):
        kind = NoSuchObject
    retry_after = _RETRY_MS.search(text) if kind is Throttled else None
    advice = None
    if kind is Unauthorized and (differ := clocks_differ(clock_ahead)):
        kind, advice = ClocksDiffer, f"{differ}. {Unauthorized.advice}"
    return kind(
        text,
        command=command,
        code=number,
        cs_code=cs_code if isinstance(cs_code, int) and not isinstance(cs_code, bool) else 0,
        server_text=text,
        advice=advice,
        retry_after_seconds=int(retry_after[1]) / 1000 if retry_after else None,
    )


def clocks_differ(ahead: timedelta | None) -> str:
    """By how much, as a sentence without a full stop; empty: by little, or nobody knows.

    `ahead` is how far the operator's clock is ahead of the server's.
    """
    if ahead is None or abs(ahead) <= CLOCK_TOLERANCE:
        return ""
    side = "ahead of" if ahead > timedelta(0) else "behind"
    return (
        f"The operator's clock is {abs(ahead).total_seconds():.0f} s {side} the server's: correct it, requests expire"
    )
