"""Carrying one request to the management server: signature, one session, timeouts, and what went wrong on the way.

`cs.AIOCloudStack` makes the parameters, signs them and unwraps the answer. The session is ours, because its own knows
only how long a single read may take, follows redirects (a signed request would go wherever they point) and reads
answers of any size. Everything goes by POST: keys and signatures stay out of access logs, and aiohttp repeats a GET by
itself when a connection that was kept open turns out to be gone, which a changing call must never meet.

This module knows no command. It says whether a request can have been carried out, not what to do about it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Protocol
from urllib.parse import quote, urlsplit

import aiohttp
from cs import AIOCloudStack, CloudStackApiException, CloudStackException
from pydantic import JsonValue

from sysvm.cloudstack.errors import (
    AccessInvalid,
    CloudStackError,
    NotCloudStack,
    TimedOut,
    TLSFailed,
    Unavailable,
    from_answer,
)

INTEGRATION_PORT = 8096
"""`integration.api.port` as CloudStack proposes it: whoever reaches it is root, without any key."""

ANSWER_LIMIT_BYTES = 64 * 1024 * 1024
"""A page of 500 routers is 2 MB; more than this is no answer of CloudStack's, and must not fill the memory."""

SHORTEST_SECRET = 8
"""CloudStack makes keys of 86 characters; to look for a few letters in a text would only garble it."""

CONNECTIONS = 4
IDLE_SECONDS = 4.0
"""How long an unused connection is kept: shorter than servers and proxies do, for a change that is sent on one they
have just closed has an unknown outcome."""

Answer = Mapping[str, JsonValue]
"""What stands under the one key of an answer."""

Param = str | int | bool | Sequence[str] | Mapping[str, str] | None
"""Value of a parameter; None leaves it out, a mapping becomes `name[0].key=value`."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The two keys of a CloudStack user. Neither is shown by `repr`."""

    api_key: str = field(repr=False)
    secret_key: str = field(repr=False)

    def __post_init__(self) -> None:
        for name, value in (("apiKey", self.api_key), ("secretKey", self.secret_key)):
            if not value or not value.isascii() or not value.isprintable() or " " in value:
                raise AccessInvalid(f"{name} is empty, or holds characters that no key of CloudStack has")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where a management server is, who asks, and how much at once. Raises `AccessInvalid` for what cannot be used."""

    url: str
    credentials: Credentials
    ca_bundle: str | None = field(default=None, repr=False)
    """Certificates of CAs in PEM, instead of those of the system."""
    timeout: timedelta = timedelta(seconds=30)
    """For one request, connecting included."""
    requests_per_second: int = 5
    burst: int = 10
    trust_environment_proxy: bool = True

    def __post_init__(self) -> None:
        problem = url_problem(self.url)
        if problem is not None:
            raise AccessInvalid(problem)
        if self.ca_bundle is not None:
            self.ssl_context()

    def ssl_context(self) -> ssl.SSLContext:
        """Certificates and host names are always checked."""
        try:
            if self.ca_bundle is not None and not self.ca_bundle.strip():
                raise ValueError("it is empty")
            return ssl.create_default_context(cadata=self.ca_bundle)
        except (ssl.SSLError, ValueError) as error:
            raise AccessInvalid(
                f"the CA bundle holds no usable certificate in PEM: {error}",
                advice="Put the CA's certificate into the key that spec.api.caBundleRef names",
            ) from error


def url_problem(url: str) -> str | None:
    """Why this URL is refused, as a sentence; None if it can be used."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"the URL of the API cannot be read: {error}"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "the URL of the API must begin with https:// (or http://) and name a host"
    if parts.username is not None or parts.password is not None:
        return "the URL of the API must not hold a user or password: keys belong into the Secret"
    if parts.query or parts.fragment:
        return "the URL of the API must end with its path, such as /client/api"
    if port == INTEGRATION_PORT:
        return (
            f"port {INTEGRATION_PORT} is the integration port, which obeys everybody without a key and is never used: "
            "name the API's own URL, such as https://cloud.example.com/client/api, and close that port on the server"
        )
    return None


_SIGNATURE = re.compile(r"[A-Za-z0-9+/]{27}=|(?:[A-Za-z0-9]|%2[BbFf]){27}%3[Dd]")
"""An HMAC-SHA1 in base64, as it is and as a part of a URL."""


class Clock(Protocol):
    def __call__(self) -> datetime: ...


class LostAnswer(Exception):  # noqa: N818
    """The request may have reached the server, and no usable answer came back. Holds the error that a read gets."""

    def __init__(self, error: CloudStackError) -> None:
        super().__init__(str(error))
        self.error = error


class Transport:
    """One connection pool to one management server. Belongs to the event loop in which it is opened."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None
        self._signer: AIOCloudStack | None = None
        self.clock_ahead: timedelta | None = None
        """How far the operator's clock is ahead of the server's, by the last answer; known to about a second."""

    async def open(self) -> None:
        seconds = self._access.timeout.total_seconds()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=self._access.ssl_context(), limit=CONNECTIONS, keepalive_timeout=IDLE_SECONDS
            ),
            timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, 10.0)),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=self._access.trust_environment_proxy,
            headers={"User-Agent": "sysvm-operator", "Accept": "application/json"},
            response_class=_BoundedResponse,
            middlewares=(self._look,),
        )
        self._signer = _Signer(
            self._access.url,
            self._access.credentials.api_key,
            self._access.credentials.secret_key,
            method="post",
            session=self._session,
            retry=0,
            fetch_result=False,
        )

    async def close(self) -> None:
        session, self._session, self._signer = self._session, None, None
        if session is not None:
            await session.close()

    async def exchange(self, command: str, params: Mapping[str, Param], expires: datetime) -> Answer:
        """What stands under the one key of the answer.

        Raises the class of `errors` for an error of CloudStack's form and for a request that never left; `LostAnswer`
        for everything after which the request may have been carried out.
        """
        if self._signer is None:
            raise Unavailable(
                "not sent: the client is closed, for the endpoint was changed or deleted",
                command=command,
                advice="The next request goes by the endpoint as it is now",
            )
        send = getattr(self._signer, command)
        try:
            answer: object = await send(
                **params, signatureVersion="3", expires=expires.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S%z")
            )
        except CloudStackApiException as error:
            raise self._refusal(command, error) from None
        except CloudStackException as error:
            raise LostAnswer(self._foreign(command, error)) from None
        except (_Redirected, _TooLarge) as error:
            raise LostAnswer(NotCloudStack(self._clean(str(error)), command=command)) from None
        except aiohttp.ClientError as error:
            raise self._broken(command, error) from None
        except TimeoutError:
            seconds = self._access.timeout.total_seconds()
            raise LostAnswer(TimedOut(f"no answer within {seconds:g} s", command=command)) from None
        except (LookupError, RecursionError) as error:  # of a charset, of what is nested without end
            raise LostAnswer(
                NotCloudStack(self._clean(f"the answer cannot be read: {error}"), command=command)
            ) from None
        except OSError as error:
            raise LostAnswer(Unavailable(self._clean(f"{type(error).__name__}: {error}"), command=command)) from None
        if not isinstance(answer, dict):
            raise LostAnswer(NotCloudStack("the answer is JSON, but none of CloudStack's", command=command))
        return answer

    def _refusal(self, command: str, error: CloudStackApiException) -> CloudStackError | LostAnswer:
        """An answer with another status than 200 and one key in it."""
        status = _status(error)
        body = error.error
        if not isinstance(body, dict) or "errorcode" not in body:
            return LostAnswer(self._foreign(command, error))
        cleaned = {**body, "errortext": self._clean(str(body.get("errortext") or ""))}
        return from_answer(command, status, cleaned, clock_ahead=self.clock_ahead)

    def _foreign(self, command: str, error: CloudStackException) -> CloudStackError:
        """Something that is not CloudStack's: a proxy's page, another program, nothing at all."""
        status = _status(error)
        if status in (502, 503, 504):
            return Unavailable("something before the management server answers for it", command=command, code=status)
        kind = error.response.headers.get("Content-Type", "no type") if error.response is not None else "no type"
        return NotCloudStack(
            self._clean(f"the answer is not one of CloudStack's API but {kind} with status {status}"), command=command
        )

    def _broken(self, command: str, error: aiohttp.ClientError) -> CloudStackError | LostAnswer:
        text = self._clean(str(error) or type(error).__name__)
        if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError):
            return TLSFailed(text, command=command)
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return TimedOut(text, command=command)
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL | aiohttp.ClientHttpProxyError):
            return Unavailable(text, command=command)
        if isinstance(error, aiohttp.ClientResponseError):  # no HTTP, or a content type that cannot be read
            return LostAnswer(NotCloudStack(text, command=command))
        if isinstance(error, aiohttp.ServerTimeoutError):
            return LostAnswer(TimedOut(text, command=command))
        return LostAnswer(Unavailable(f"the connection broke: {text}", command=command))

    def _clean(self, text: str) -> str:
        """A server of somebody else may answer with what it was sent."""
        for secret in (self._access.credentials.api_key, self._access.credentials.secret_key):
            if len(secret) < SHORTEST_SECRET:
                continue
            text = text.replace(secret, "[key]").replace(quote(secret, safe=""), "[key]")
        return _SIGNATURE.sub("[signature]", text)[:1000]

    async def _look(self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        response = await handler(request)
        date = response.headers.get("Date")
        if date is not None:
            self.clock_ahead = _clock_ahead(self._clock(), date) or self.clock_ahead
        if 300 <= response.status < 400:
            where = urlsplit(response.headers.get("Location", ""))
            response.close()
            raise _Redirected(f"the server redirects to {where.scheme}://{where.netloc}{where.path}")
        return response


class _Signer(AIOCloudStack):
    def _sign(self, data: dict[str, str]) -> None:
        """As `cs` does, but for `~`: the server signs with java.net.URLEncoder, which writes it as %7E.

        Names are sorted as sent, the whole text is signed in lower case (CloudStack 4.21 ApiServer.verifyRequest).
        """
        text = "&".join(f"{name}={quote(value, safe='*').replace('~', '%7E')}" for name, value in sorted(data.items()))
        digest = hmac.new((self.secret or "").encode(), text.lower().encode(), hashlib.sha1).digest()
        data["signature"] = base64.b64encode(digest).decode()


class _BoundedResponse(aiohttp.ClientResponse):
    async def read(self) -> bytes:
        if self._body is None:
            chunks: list[bytes] = []
            size = 0
            try:
                async for chunk in self.content.iter_any():
                    size += len(chunk)
                    if size > ANSWER_LIMIT_BYTES:
                        raise _TooLarge(f"the answer is larger than {ANSWER_LIMIT_BYTES // 2**20} MiB")
                    chunks.append(chunk)
            except BaseException:
                self.close()
                raise
            self._body = b"".join(chunks)
        return await super().read()


class _Redirected(Exception):  # noqa: N818
    pass


class _TooLarge(Exception):  # noqa: N818
    pass


def _status(error: CloudStackException) -> int:
    return int(error.response.status) if error.response is not None else 0


def _clock_ahead(now: datetime, date: str) -> timedelta | None:
    try:
        served = parsedate_to_datetime(date)
    except ValueError:
        return None
    return now - (served if served.tzinfo is not None else served.replace(tzinfo=UTC))
