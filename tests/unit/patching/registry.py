"""A small OCI registry behind TLS, by the distribution specification: tokens, manifests, blobs, and a blob server."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
USER, PASSWORD = "reader", "s3cret"


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


class Registry:
    """`wants`: `nothing`, `token` (anybody gets one), `login` (a token for the login only) or `basic`."""

    def __init__(self) -> None:
        self.address = ""
        self.elsewhere = ""
        self.wants = "token"
        self.redirects = False
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.realm_scheme = "https"
        self.asked: list[tuple[str, str | None]] = []
        """Paths with the Authorization header that came along."""

    def push(self, repository: str, tag: str, *files: bytes) -> str:
        """As `oras push` does. Returns the manifest's digest."""
        layers = [
            {"mediaType": "application/octet-stream", "digest": sha256(file), "size": len(file),
             "annotations": {"org.opencontainers.image.title": f"file-{number}"}}
            for number, file in enumerate(files)
        ]  # fmt: skip
        manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers}).encode()
        self.blobs |= {f"{repository}@{sha256(file)}": file for file in files}
        self.manifests[f"{repository}:{tag}"] = self.manifests[f"{repository}@{sha256(manifest)}"] = manifest
        return sha256(manifest)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        sent = request.headers.get("Authorization")
        self.asked.append((request.path, sent))
        if request.path == "/token":
            return self._token(request, sent)
        if request.path.startswith("/elsewhere/"):
            return web.Response(body=self.blobs[request.path.removeprefix("/elsewhere/")])
        if not self._may(sent):
            return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401, headers=self._challenge())
        repository, kind, name = request.path.removeprefix("/v2/").rsplit("/", 2)
        key = f"{repository}{'@' if name.startswith('sha256:') else ':'}{name}"
        if kind == "manifests":
            assert MANIFEST in request.headers["Accept"]
            found = self.manifests.get(key)
        else:
            found = self.blobs.get(key)
            if found is not None and self.redirects:
                raise web.HTTPTemporaryRedirect(f"https://{self.elsewhere}/elsewhere/{key}")
        if found is None:
            return web.json_response({"errors": [{"code": "BLOB_UNKNOWN"}]}, status=404)
        return web.Response(body=found)

    def _token(self, request: web.Request, sent: str | None) -> web.Response:
        assert request.query["service"] == "a registry"
        if self.wants == "login" and sent != _basic():
            return web.json_response({}, status=401)
        return web.json_response({"token": f"for {request.query['scope']}"})

    def _may(self, sent: str | None) -> bool:
        if self.wants == "nothing":
            return True
        if self.wants == "basic":
            return sent == _basic()
        return sent is not None and sent.startswith("Bearer for repository:") and sent.endswith(":pull")

    def _challenge(self) -> dict[str, str]:
        if self.wants == "basic":
            return {"WWW-Authenticate": 'Basic realm="a registry"'}
        realm = f"{self.realm_scheme}://{self.address}/token"
        return {"WWW-Authenticate": f'Bearer realm="{realm}",service="a registry",scope="repository:cloud/agent:pull"'}


def _basic() -> str:
    return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def docker_config(registry: str, **entry: str) -> bytes:
    return json.dumps({"auths": {registry: entry}}).encode()


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[tuple[Registry, ssl.SSLContext]]:
    """The registry on 127.0.0.1, its blob server on another port, and a context that trusts them."""
    certificate, key = _certificate(folder)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate, key)
    trusting = ssl.create_default_context(cafile=str(certificate))
    registry = Registry()
    app = web.Application()
    app.router.add_get("/{any:.*}", registry.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    for _ in range(2):
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=serving).start()
    registry.address, registry.elsewhere = (f"127.0.0.1:{address[1]}" for address in runner.addresses)
    try:
        yield registry, trusting
    finally:
        await runner.cleanup()


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a registry")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "registry.crt", folder / "registry.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
