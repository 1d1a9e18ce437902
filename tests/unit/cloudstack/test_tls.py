"""Certificates and host names are always checked, and nothing is sent to a server that has not passed."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.unit.cloudstack.recorded import FULL, access, inner, recorded, serving

from sysvm.cloudstack.client import CloudStack
from sysvm.cloudstack.errors import CloudStackError, OutcomeUnknown, TLSFailed

DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def serve(self, folder: Path, *, address: str = "127.0.0.1", valid_days: int = 30) -> ssl.SSLContext:
        key = ec.generate_private_key(ec.SECP256R1())
        end = dt.datetime.now(dt.UTC) + valid_days * DAY
        certificate = (
            _builder("cloud", key.public_key(), self.certificate.subject, end)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        chain = folder / "server.pem"
        chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        return context


def _builder(
    name: str, key: ec.EllipticCurvePublicKey, issuer: x509.Name | None, end: dt.datetime
) -> x509.CertificateBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - 60 * DAY)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


@pytest.fixture
def authority() -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder("authority", key.public_key(), None, dt.datetime.now(dt.UTC) + 30 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, certificate)


async def test_a_certificate_of_the_bundle_is_accepted(authority: Authority, tmp_path: Path) -> None:
    async with serving(authority.serve(tmp_path)) as server:
        server.says(recorded("listZones"))
        async with CloudStack(access(server.url, ca_bundle=authority.pem)) as cloud:
            assert await cloud.call("listZones") == inner("listZones")


@pytest.mark.parametrize(
    ("bundled", "address", "valid_days", "why"),
    [
        (False, "127.0.0.1", 30, "verify"),
        (True, "192.0.2.1", 30, "IP address mismatch|not valid for"),
        (True, "127.0.0.1", -1, "expired"),
    ],
    ids=["unknown authority", "another name", "expired"],
)
async def test_a_certificate_that_does_not_fit_gets_nothing_sent(
    authority: Authority, tmp_path: Path, bundled: bool, address: str, valid_days: int, why: str
) -> None:
    async with serving(authority.serve(tmp_path, address=address, valid_days=valid_days)) as server:
        server.says(recorded("listZones"))
        bundle = authority.pem if bundled else None
        async with CloudStack(access(server.url, ca_bundle=bundle), may_change=FULL) as cloud:
            with pytest.raises(TLSFailed, match=why):
                await cloud.call("listZones")
            with pytest.raises(TLSFailed):
                await cloud.submit("restartNetwork", id="a")
    assert server.seen == []


async def test_https_to_a_port_without_tls_is_said() -> None:
    async with serving() as server:
        server.says(recorded("listZones"))
        async with CloudStack(access(server.url.replace("http:", "https:")), may_change=FULL) as cloud:
            with pytest.raises(TLSFailed):
                await cloud.call("listZones")
            with pytest.raises(TLSFailed):
                await cloud.submit("restartNetwork", id="a")
    assert server.seen == []


async def test_http_to_a_port_with_tls_is_an_error_and_no_crash(authority: Authority, tmp_path: Path) -> None:
    async with (
        serving(authority.serve(tmp_path)) as server,
        CloudStack(access(server.url.replace("https:", "http:")), may_change=FULL) as cloud,
    ):
        with pytest.raises(CloudStackError):
            await cloud.call("listZones")
        with pytest.raises(OutcomeUnknown):
            await cloud.submit("restartNetwork", id="a")
