"""Files that `oras push` has put into an OCI registry: layers of an artifact, pulled by their digest.

Written against the OCI distribution specification 1.1, of which pulling needs three requests: a token, a manifest, a
blob. Only https is spoken: a login travels with it.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode

import aiohttp
from pydantic import BaseModel, Field, ValidationError

from sysvm.api.reasons import Reason
from sysvm.patching.downloads import copy, get, refused
from sysvm.patching.errors import PayloadError
from sysvm.patching.payload_cache import Arrival, fetch_failed

_MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
_MANIFEST_BYTES = 4 << 20
_TOKEN_BYTES = 1 << 20
_TITLE = "org.opencontainers.image.title"
_CHALLENGE = re.compile(r"^(?P<scheme>[A-Za-z]+)\s*(?P<words>.*)$", re.DOTALL)
_WORD = re.compile(r'([A-Za-z]+)="([^"]*)"')
_REFERENCE = re.compile(
    r"(?P<registry>[^/]+)/(?P<repository>[^:@]+)(:(?P<tag>[^@]+))?(@(?P<digest>sha256:[a-f0-9]{64}))?"
)


@dataclass(frozen=True, slots=True)
class RegistryLogin:
    """Who asks a registry."""

    user: str
    password: str = field(repr=False)

    @property
    def header(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True, slots=True)
class OciReference:
    """`registry/repository[:tag][@sha256:...]`."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> "OciReference":
        """`text` as the schema lets it through. Raises `PayloadError` for any other."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise PayloadError(f"{text} is no reference to an OCI artifact", reason=Reason.PAYLOAD_NOT_FOUND)
        return cls(match["registry"], match["repository"], match["tag"], match["digest"])

    @property
    def shown(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.registry}/{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")

    def url(self, kind: str, name: str) -> str:
        return f"https://{self.registry}/v2/{self.repository}/{kind}/{name}"


def login_for(reference: OciReference, docker_config: bytes, shown: str) -> RegistryLogin | None:
    """What a `.dockerconfigjson` says of the registry; None if it does not name it.

    `shown`: the Secret, for the sentence. Raises `PayloadError` CredentialsUnreadable; it never quotes the Secret.
    """
    try:
        config = _DockerConfig.model_validate_json(docker_config)
    except ValidationError as error:
        raise _unreadable(shown, "is not what kubernetes.io/dockerconfigjson holds") from error
    for name, entry in config.auths.items():
        host = name.removeprefix("https://").removeprefix("http://").partition("/")[0]
        if host != reference.registry:
            continue
        if entry.auth:
            try:
                user, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError) as error:
                raise _unreadable(shown, f"holds an auth for {host} that is not base64 of user:password") from error
            if colon:
                return RegistryLogin(user, password)
        if entry.username and entry.password:
            return RegistryLogin(entry.username, entry.password)
        raise _unreadable(shown, f"names {host} without user and password")
    return None


def _unreadable(shown: str, what: str) -> PayloadError:
    return PayloadError(f"{shown} {what}", reason=Reason.CREDENTIALS_UNREADABLE)


async def pull(
    session: aiohttp.ClientSession, reference: OciReference, digest: str, login: RegistryLogin | None, arrival: Arrival
) -> None:
    """The layer that is the file with `digest`. Raises `PayloadError`."""
    registry = _Registry(session, reference, login)
    if reference.tag or reference.digest:
        layer = _layer(await registry.manifest(), digest, reference)
    elif digest.startswith("sha256:"):
        layer = digest
    else:
        raise PayloadError(
            f"{reference.shown} has neither tag nor digest, and a registry finds files by sha256 only: give the file's "
            "digest as sha256, or name the artifact",
            reason=Reason.PAYLOAD_NOT_FOUND,
        )
    await registry.blob(layer, arrival)


class _Registry:
    """One repository, asked by one login."""

    def __init__(self, session: aiohttp.ClientSession, reference: OciReference, login: RegistryLogin | None) -> None:
        self._session = session
        self._reference = reference
        self._login = login
        self._authorization: str | None = None

    async def manifest(self) -> "_Manifest":
        url = self._reference.url("manifests", self._reference.digest or self._reference.tag or "")
        async with self._get(url, {"Accept": ", ".join(_MANIFESTS)}) as answer:
            content = await _whole(answer, _MANIFEST_BYTES, url)
        found = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if self._reference.digest not in (None, found):
            raise PayloadError(
                f"{url} has the digest {found}, and {self._reference.digest} is required",
                reason=Reason.DIGEST_MISMATCH,
            )
        try:
            manifest = _Manifest.model_validate_json(content)
        except ValidationError as error:
            raise PayloadError(f"{url} is no manifest of an OCI artifact") from error
        if manifest.manifests:
            raise PayloadError(
                f"{self._reference.shown} is an index of {len(manifest.manifests)} artifacts: name one by its digest"
            )
        return manifest

    async def blob(self, digest: str, arrival: Arrival) -> None:
        url = self._reference.url("blobs", digest)
        async with self._get(url, {}) as answer:
            await copy(answer, url, arrival)

    @asynccontextmanager
    async def _get(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._ask(url, headers) as answer:
            if answer.status != 401 or self._authorization is not None:
                yield self._accepted(answer, url)
                return
            challenge = answer.headers.get("WWW-Authenticate", "")
        self._authorization = await self._authorize(challenge, url)
        async with self._ask(url, headers) as answer:
            yield self._accepted(answer, url)

    @asynccontextmanager
    async def _ask(self, url: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        # aiohttp takes the header off when it is sent on to another server, as registries do for blobs.
        authorization = {"Authorization": self._authorization} if self._authorization is not None else {}
        async with get(self._session, url, {**headers, **authorization}) as answer:
            yield answer

    def _accepted(self, answer: aiohttp.ClientResponse, url: str) -> aiohttp.ClientResponse:
        if answer.status in (401, 403):
            who = f"user {self._login.user}" if self._login is not None else "somebody without a login"
            raise PayloadError(
                f"{self._reference.registry} does not give {self._reference.shown} to {who} (HTTP {answer.status}): "
                "check source.oci.credentialsSecretRef",
                reason=Reason.PAYLOAD_FETCH_FAILED,
            )
        if answer.status != 200:
            raise refused(url, answer.status)
        return answer

    async def _authorize(self, challenge: str, url: str) -> str:
        """What to answer a challenge with: the login itself, or a token that the login, or anybody, gets."""
        match = _CHALLENGE.match(challenge)
        scheme = match["scheme"].lower() if match is not None else ""
        words = dict(_WORD.findall(match["words"])) if match is not None else {}
        if scheme == "basic" and self._login is not None:
            return self._login.header
        if scheme != "bearer":
            # Asked once more without a word, the registry says itself that it wants a login.
            return ""
        realm = words.get("realm", "")
        if not realm.startswith("https://"):
            raise fetch_failed(f"{url} asks for a token from {realm or 'nowhere'}: only https is trusted with a login")
        return f"Bearer {await self._token(realm, words)}"

    async def _token(self, realm: str, words: Mapping[str, str]) -> str:
        scope = words.get("scope") or f"repository:{self._reference.repository}:pull"
        query = urlencode({"scope": scope} | ({"service": words["service"]} if "service" in words else {}))
        asked = f"{realm}{'&' if '?' in realm else '?'}{query}"
        headers = {"Authorization": self._login.header} if self._login is not None else {}
        async with get(self._session, asked, headers) as answer:
            content = await _whole(self._accepted(answer, realm), _TOKEN_BYTES, realm)
        try:
            token = _Token.model_validate_json(content)
        except ValidationError as error:
            raise fetch_failed(f"{realm} answered with something that is no token") from error
        if not (token.token or token.access_token):
            raise fetch_failed(f"{realm} answered without a token")
        return token.token or token.access_token


def _layer(manifest: "_Manifest", digest: str, reference: OciReference) -> str:
    layers = [layer.digest for layer in manifest.layers]
    if digest in layers:
        return digest
    if not digest.startswith("sha256:") and len(layers) == 1:
        return layers[0]
    named = ", ".join(f"{layer.annotations.get(_TITLE, 'a layer')} {layer.digest}" for layer in manifest.layers[:5])
    raise PayloadError(
        f"{reference.shown} has no layer {digest}; it has {named or 'none'}", reason=Reason.DIGEST_MISMATCH
    )


async def _whole(answer: aiohttp.ClientResponse, limit_bytes: int, url: str) -> bytes:
    content = await answer.content.read(limit_bytes)
    while part := await answer.content.read(limit_bytes):
        content += part
        if len(content) > limit_bytes:
            raise PayloadError(f"{url} answered with more than {limit_bytes} bytes", reason=Reason.PAYLOAD_TOO_LARGE)
    return content


class _Auth(BaseModel):
    auth: str = ""
    username: str = ""
    password: str = ""


class _DockerConfig(BaseModel):
    auths: dict[str, _Auth]


class _Token(BaseModel):
    token: str = ""
    access_token: str = ""


class _Descriptor(BaseModel):
    digest: str = Field(pattern="^sha(256:[a-f0-9]{64}|512:[a-f0-9]{128})$")
    annotations: dict[str, str] = {}


class _Manifest(BaseModel):
    layers: list[_Descriptor] = []
    manifests: list[_Descriptor] = []
