"""The request signature, checked from CloudStack's rules and without the client library that makes it.

Names sorted as sent, values URL-encoded as Java does, the whole line in lower case, HMAC-SHA1, base64 (CloudStack 4.21
ApiServer.verifyRequest). Everything that is wrong gets the same 401.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from datetime import datetime
from urllib.parse import quote

from lab.cloud.errors import unverified
from lab.cloud.users import User

_FORMATS = ("%Y-%m-%dT%H:%M:%S%z",)


def verify(parameters: Mapping[str, str], users: Iterable[User], *, now: datetime) -> User:
    """The user who signed. Raises ApiError 401: no key, unknown key, wrong signature, expired, user disabled."""
    lowered = {name.lower(): value for name, value in parameters.items()}
    key, sent = lowered.get("apikey"), lowered.get("signature")
    user = next((each for each in users if each.api_key == key and each.enabled), None)
    if user is None or sent is None:
        raise unverified()
    if lowered.get("signatureversion") == "3" and not _valid_until(lowered.get("expires", ""), now):
        raise unverified()
    if not hmac.compare_digest(sent.encode(), signature(parameters, user.secret).encode()):
        raise unverified()
    return user


def signature(parameters: Mapping[str, str], secret: str) -> str:
    """What a request with these parameters must carry as `signature`; one that is already there is left out."""
    names = sorted(name for name in parameters if name.lower() != "signature")
    line = "&".join(f"{name}={_encoded(parameters[name])}" for name in names).lower()
    return base64.b64encode(hmac.new(secret.encode(), line.encode(), hashlib.sha1).digest()).decode()


def _encoded(value: str) -> str:
    return quote(value, safe="*").replace("~", "%7E")


def _valid_until(expires: str, now: datetime) -> bool:
    for form in _FORMATS:
        try:
            return datetime.strptime(expires, form) >= now  # noqa: DTZ007 - the format has a zone
        except ValueError:
            continue
    return False
