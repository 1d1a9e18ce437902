"""What the API server, or the way to it, said: one class for each thing a caller can do about it.

``NotFound``, ``AlreadyExists`` and ``Conflict`` are ordinary turns of level-triggered work (look again and decide
again); ``Forbidden``, ``Unauthorized`` and ``Invalid`` need a person or a release of ours; ``Unavailable`` passes. The
message is the server's own sentence, because it names the field or the permission.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Cause:
    """One line of ``Status.details.causes``: which field, and what is wrong with it."""

    reason: str
    message: str
    field: str


class KubeError(Exception):
    """The base of this layer. ``status`` is the HTTP status, 0 when there was no answer."""

    def __init__(
        self,
        message: str,
        *,
        request: str = "",
        status: int = 0,
        reason: str = "",
        causes: tuple[Cause, ...] = (),
        retry_after_seconds: float | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        """The server's sentence."""
        self.request = request
        """What was asked, e.g. ``patch configmaps cloud/settings``."""
        self.status = status
        self.reason = reason
        """The machine-readable reason of the server's Status, e.g. ``AlreadyExists``."""
        self.causes = causes
        self.retry_after_seconds = retry_after_seconds
        """When the server wants to be asked again, if it said so."""
        self.outcome_unknown = outcome_unknown
        """True for a write that may have been carried out although no answer came."""

    def __str__(self) -> str:
        return f"{self.request}: {self.message}" if self.request else self.message


class NotFound(KubeError):  # noqa: N818
    """The object, its namespace or its kind is not there (404)."""


class Conflict(KubeError):  # noqa: N818
    """Somebody wrote in between, a precondition does not hold, or another applier owns a field (409)."""


class AlreadyExists(Conflict):
    """An object of this name is there (409)."""


class Expired(KubeError):  # noqa: N818
    """The resourceVersion or continue token is too old (410): list again from the start."""


class Forbidden(KubeError):  # noqa: N818
    """Not permitted, by RBAC or by an admission policy (403)."""


class Unauthorized(KubeError):  # noqa: N818
    """The credentials are not accepted, also after they were read again (401)."""


class Invalid(KubeError):  # noqa: N818
    """The server refuses the object or the request as it is (400, 413, 415, 422): sending it again is of no use."""


class Unavailable(KubeError):  # noqa: N818
    """No answer, not in time, or the server is overloaded or failing (408, 429, 5xx): try again later."""


class LoginFailed(KubeError):  # noqa: N818
    """No usable kubeconfig or service account."""


def from_response(
    status: int, body: bytes, *, request: str, retry_after: str | None = None, is_write: bool = False
) -> KubeError:
    """The error for an answer that is not 2xx. ``retry_after`` is the header's value, in seconds."""
    answer = _status_object(body)
    message = str(answer.get("message") or "") or body[:300].decode(errors="replace").strip() or f"HTTP {status}"
    reason = str(answer.get("reason") or "")
    details = answer.get("details")
    details = details if isinstance(details, dict) else {}
    causes = tuple(
        Cause(
            reason=str(cause.get("reason") or ""),
            message=str(cause.get("message") or ""),
            field=str(cause.get("field") or ""),
        )
        for cause in details.get("causes") or ()
        if isinstance(cause, dict)
    )
    return _class_for(status, reason)(
        message,
        request=request,
        status=status,
        reason=reason,
        causes=causes,
        retry_after_seconds=_seconds(retry_after, details.get("retryAfterSeconds")),
        outcome_unknown=is_write and status in (408, 500, 502, 504),
    )


def _class_for(status: int, reason: str) -> type[KubeError]:
    if status == 409:
        return AlreadyExists if reason == "AlreadyExists" else Conflict
    by_status: Mapping[int, type[KubeError]] = {
        401: Unauthorized,
        403: Forbidden,
        404: NotFound,
        408: Unavailable,
        410: Expired,
        429: Unavailable,
    }
    if status in by_status:
        return by_status[status]
    return Unavailable if status >= 500 else Invalid


def _status_object(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:  # a proxy's page, not the API server's Status
        return {}
    return answer if isinstance(answer, dict) and answer.get("kind") == "Status" else {}


def _seconds(header: str | None, detail: object) -> float | None:
    if isinstance(detail, int | float) and detail > 0:
        return float(detail)
    if header is not None and header.strip().isdigit():
        return float(header)
    return None
