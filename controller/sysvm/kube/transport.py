"""Carrying one request to the API server: login, timeouts, and what went wrong on the way.

The official asynchronous client does the HTTP, TLS and credentials. This module knows no verb of the API and no
object: it turns a request into an answer, or into the error that says what a caller can do about it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.exceptions import ApiException

from sysvm.kube.errors import Unauthorized, Unavailable, from_response
from sysvm.kube.login import Login
from sysvm.kube.objects import JsonPatch, Object, Resource

FIELD_MANAGER = "sysvm-operator"

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"  # JSON is YAML


class RequestObserver(Protocol):
    """Counts answers. ``status`` is the HTTP status, 0 when there was none; ``verb`` is RBAC's (``list``, ...)."""

    def answered(self, verb: str, resource: Resource, status: int, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """``connections`` bounds the requests in flight. Timeouts are in seconds; the request's includes connecting."""

    connections: int = 32
    request_timeout: float = 30.0
    connect_timeout: float = 5.0
    field_manager: str = FIELD_MANAGER
    user_agent: str = FIELD_MANAGER
    trust_environment_proxy: bool = True


@dataclass(frozen=True, slots=True)
class Request:
    """``verb`` is RBAC's, ``sentence`` is how errors name the request."""

    verb: str
    method: str
    resource: Resource
    path: str
    sentence: str
    query: Mapping[str, str] = field(default_factory=dict)
    body: Object | JsonPatch | None = None
    content_type: str = JSON

    @property
    def is_write(self) -> bool:
        return self.method != "GET"


class Transport:
    """A connection pool to one API server under one identity. Belongs to the event loop that first uses it."""

    def __init__(
        self,
        login: Login,
        configuration: Configuration,
        *,
        options: ClusterOptions,
        observer: RequestObserver | None = None,
    ) -> None:
        self._login = login
        self._options = options
        configuration.connection_pool_maxsize = options.connections
        configuration.client_session_kwargs = {"trust_env": options.trust_environment_proxy}
        self._api = ApiClient(configuration)
        self._api.user_agent = options.user_agent
        self._timeout = aiohttp.ClientTimeout(total=options.request_timeout, sock_connect=options.connect_timeout)
        self._observer = observer

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]  # the client is typed in part only

    async def send(self, request: Request) -> Object:
        """The answer, a JSON object. Sent once more with credentials read anew when those at hand are not accepted.

        Raises the classes of ``errors``.
        """
        await self._login.refresh()
        token = self._login.token
        try:
            return await self._send_once(request)
        except Unauthorized:
            if not await self._login.replace(token):
                raise
        return await self._send_once(request)

    async def _send_once(self, request: Request) -> Object:
        clock = asyncio.get_running_loop().time
        started = clock()
        status = 0
        try:
            status, body, retry_after = await self._exchange(request)
        except TimeoutError as error:  # also aiohttp's own, which derive from it
            raise Unavailable(
                f"no answer within {self._options.request_timeout:g} s ({str(error) or type(error).__name__})",
                request=request.sentence,
                outcome_unknown=request.is_write and not isinstance(error, aiohttp.ConnectionTimeoutError),
            ) from error
        except (aiohttp.ClientError, OSError, ApiException) as error:
            raise Unavailable(
                str(error) or type(error).__name__,
                request=request.sentence,
                outcome_unknown=request.is_write and not isinstance(error, aiohttp.ClientConnectorError),
            ) from error
        finally:
            if self._observer is not None:
                self._observer.answered(request.verb, request.resource, status, clock() - started)
        if not 200 <= status <= 299:
            raise from_response(
                status, body, request=request.sentence, retry_after=retry_after, is_write=request.is_write
            )
        return _decode(request, body)

    async def _exchange(self, request: Request) -> tuple[int, bytes, str | None]:
        path = f"{request.path}?{urlencode(request.query)}" if request.query else request.path
        headers = {"Accept": JSON}
        if request.is_write:
            headers["Content-Type"] = request.content_type
        method, url, header_params, body, _ = await self._api.param_serialize(
            request.method, path, header_params=headers, body=request.body, auth_settings=["BearerToken"]
        )
        response = await self._api.call_api(method, url, header_params, body, _request_timeout=self._timeout)
        content: bytes = await response.read()  # type: ignore[no-untyped-call]
        return int(response.status), content, response.headers.get("Retry-After")


def _decode(request: Request, body: bytes) -> Object:
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise Unavailable(
            f"the answer is not JSON but {body[:80]!r}", request=request.sentence, outcome_unknown=request.is_write
        ) from error
    if not isinstance(answer, dict):
        raise Unavailable("the answer is not a JSON object", request=request.sentence, outcome_unknown=request.is_write)
    return answer


def path_of(resource: Resource, namespace: str, name: str | None, subresource: str | None = None) -> str:
    """The URL path of a collection, an object or a subresource. Raises ValueError for a name without its namespace."""
    parts = ["apis", resource.group, resource.version] if resource.group else ["api", resource.version]
    if namespace and resource.namespaced:
        parts += ["namespaces", namespace]
    elif name and resource.namespaced:
        raise ValueError(f"{resource} {name}: a namespace is needed")
    parts.append(resource.plural)
    if name:
        parts.append(name)
    if subresource:
        parts.append(subresource)
    return "/" + "/".join(quote(part, safe="") for part in parts)


def sentence_of(verb: str, resource: Resource, namespace: str, name: str, subresource: str | None) -> str:
    """``patch widgets.example.io/status cloud/a``: how errors and observers name a request."""
    where = f"{resource}/{subresource}" if subresource else str(resource)
    return " ".join(part for part in (verb, where, "/".join(part for part in (namespace, name) if part)) if part)
