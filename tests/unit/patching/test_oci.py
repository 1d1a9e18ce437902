"""Files out of an OCI registry: by digest, over TLS, with the login shown to those who may see it and nobody else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from tests.unit.patching import registry as made
from tests.unit.patching.registry import Registry, sha256

from sysvm.api.payload import PayloadFile
from sysvm.api.reasons import Reason
from sysvm.patching.errors import PayloadError
from sysvm.patching.oci import OciReference, RegistryLogin, login_for
from sysvm.patching.sources import PayloadSources

AGENT = b"an agent" * 1000
LOGIN = RegistryLogin(made.USER, made.PASSWORD)


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncIterator[tuple[Registry, PayloadSources]]:
    async with made.running(tmp_path) as (registry, trusting):
        registry.push("cloud/agent", "4.20.2", AGENT)
        yield registry, PayloadSources(cache=tmp_path / "cache", mounted=tmp_path, tls=trusting)


def file(registry: Registry, suffix: str = "", digest: str = "") -> PayloadFile:
    source = {"oci": {"ref": f"{registry.address}/cloud/agent{suffix}"}}
    return PayloadFile.model_validate({"digest": digest or sha256(AGENT), "source": source})


@pytest.mark.parametrize("suffix", ["", ":4.20.2", "digest", ":4.20.2+digest"])
async def test_a_file_is_pulled_by_digest_tag_or_both(bench: tuple[Registry, PayloadSources], suffix: str) -> None:
    registry, sources = bench
    manifest = registry.push("cloud/agent", "4.20.2", AGENT)
    suffix = suffix.replace("+", "").replace("digest", f"@{manifest}")
    assert (await sources.fetch(file(registry, suffix))).read_bytes() == AGENT
    asked = len(registry.asked)
    assert (await sources.fetch(file(registry, suffix))).read_bytes() == AGENT
    assert len(registry.asked) == asked, "the second time it is kept"


@pytest.mark.parametrize("wants", ["nothing", "token", "login", "basic"])
async def test_every_way_to_log_in_that_registries_have(bench: tuple[Registry, PayloadSources], wants: str) -> None:
    registry, sources = bench
    registry.wants = wants
    login = LOGIN if wants in ("login", "basic") else None
    assert (await sources.fetch(file(registry), login=login)).read_bytes() == AGENT


@pytest.mark.parametrize("wants", ["login", "basic"])
@pytest.mark.parametrize("login", [None, RegistryLogin("reader", "wrong")])
async def test_a_login_that_is_missing_or_wrong_is_told_by_its_user(
    bench: tuple[Registry, PayloadSources], wants: str, login: RegistryLogin | None
) -> None:
    registry, sources = bench
    registry.wants = wants
    with pytest.raises(PayloadError) as caught:
        await sources.fetch(file(registry), login=login)
    assert caught.value.reason is Reason.PAYLOAD_FETCH_FAILED
    assert not caught.value.retryable
    assert "credentialsSecretRef" in str(caught.value)
    assert "wrong" not in str(caught.value)
    assert len(registry.asked) <= 3, "a wrong password is not tried again and again"


async def test_a_login_is_not_sent_on_to_where_a_blob_really_is(bench: tuple[Registry, PayloadSources]) -> None:
    registry, sources = bench
    registry.wants, registry.redirects = "basic", True
    assert (await sources.fetch(file(registry), login=LOGIN)).read_bytes() == AGENT
    path, sent = registry.asked[-1]
    assert path.startswith("/elsewhere/")
    assert sent is None


async def test_a_token_is_asked_for_over_https_only(bench: tuple[Registry, PayloadSources]) -> None:
    registry, sources = bench
    registry.wants, registry.realm_scheme = "login", "http"
    with pytest.raises(PayloadError, match="only https is trusted"):
        await sources.fetch(file(registry), login=LOGIN)
    assert all(sent is None for _, sent in registry.asked)


async def test_a_registry_that_cannot_prove_who_it_is_gets_no_word(
    bench: tuple[Registry, PayloadSources], tmp_path: Path
) -> None:
    registry, _ = bench
    with pytest.raises(PayloadError, match="certificate") as caught:
        await PayloadSources(cache=tmp_path / "other", mounted=tmp_path).fetch(file(registry), login=LOGIN)
    assert caught.value.reason is Reason.PAYLOAD_FETCH_FAILED
    assert not registry.asked


async def test_a_file_that_is_not_there_is_told(bench: tuple[Registry, PayloadSources]) -> None:
    registry, sources = bench
    with pytest.raises(PayloadError) as caught:
        await sources.fetch(file(registry, digest=sha256(b"another")))
    assert caught.value.reason is Reason.PAYLOAD_NOT_FOUND
    with pytest.raises(PayloadError) as caught:
        await sources.fetch(file(registry, ":4.99"))
    assert caught.value.reason is Reason.PAYLOAD_NOT_FOUND


async def test_an_artifact_without_the_file_says_what_it_has(bench: tuple[Registry, PayloadSources]) -> None:
    registry, sources = bench
    with pytest.raises(PayloadError) as caught:
        await sources.fetch(file(registry, ":4.20.2", digest=sha256(b"another")))
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    for word in (sha256(b"another"), sha256(AGENT), "file-0"):
        assert word in str(caught.value)


async def test_a_blob_that_is_not_what_its_digest_says_is_refused(bench: tuple[Registry, PayloadSources]) -> None:
    registry, sources = bench
    registry.blobs[f"cloud/agent@{sha256(AGENT)}"] = b"something else"
    with pytest.raises(PayloadError) as caught:
        await sources.fetch(file(registry))
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert not list(sources.cache.iterdir())


async def test_a_manifest_that_is_not_what_the_reference_says_is_refused(
    bench: tuple[Registry, PayloadSources],
) -> None:
    registry, sources = bench
    digest = registry.push("cloud/agent", "4.20.2", AGENT)
    registry.manifests[f"cloud/agent@{digest}"] = b"{}"
    with pytest.raises(PayloadError) as caught:
        await sources.fetch(file(registry, f"@{digest}"))
    assert caught.value.reason is Reason.DIGEST_MISMATCH


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"layers": [{"digest": "../../x"}]}'])
async def test_something_that_is_no_manifest_is_refused(bench: tuple[Registry, PayloadSources], content: bytes) -> None:
    registry, sources = bench
    registry.manifests["cloud/agent:4.20.2"] = content
    with pytest.raises(PayloadError, match="no manifest"):
        await sources.fetch(file(registry, ":4.20.2"))


async def test_an_index_is_not_guessed_from(bench: tuple[Registry, PayloadSources]) -> None:
    registry, sources = bench
    registry.manifests["cloud/agent:4.20.2"] = b'{"manifests": [{"digest": "' + sha256(b"").encode() + b'"}]}'
    with pytest.raises(PayloadError, match="name one by its digest"):
        await sources.fetch(file(registry, ":4.20.2"))


async def test_another_digest_than_sha256_needs_a_tag(bench: tuple[Registry, PayloadSources]) -> None:
    registry, sources = bench
    digest = f"sha512:{hashlib.sha512(AGENT).hexdigest()}"
    with pytest.raises(PayloadError, match="by sha256 only"):
        await sources.fetch(file(registry, digest=digest))
    assert (await sources.fetch(file(registry, ":4.20.2", digest=digest))).read_bytes() == AGENT


REFERENCE = OciReference.parse("registry.example.com:5000/a/b:1")


def test_a_reference_is_taken_apart() -> None:
    assert OciReference("registry.example.com:5000", "a/b", "1", None) == REFERENCE
    assert OciReference.parse(f"r.io/a@{sha256(b'')}").digest == sha256(b"")


@pytest.mark.parametrize("name", ["registry.example.com:5000", "https://registry.example.com:5000/v1/"])
@pytest.mark.parametrize(
    "entry", [{"auth": base64.b64encode(b"me:a:b").decode()}, {"username": "me", "password": "a:b"}]
)
def test_a_docker_config_gives_the_login(name: str, entry: dict[str, str]) -> None:
    assert login_for(REFERENCE, made.docker_config(name, **entry), "Secret r") == RegistryLogin("me", "a:b")
    assert "a:b" not in repr(RegistryLogin("me", "a:b"))


def test_a_docker_config_for_another_registry_gives_none() -> None:
    assert login_for(REFERENCE, made.docker_config("registry.example.com", auth="x"), "Secret r") is None


@pytest.mark.parametrize(
    "config",
    [b"", b"[]", made.docker_config("registry.example.com:5000", auth="hunter2!"),
     made.docker_config("registry.example.com:5000", username="hunter2")],
)  # fmt: skip
def test_a_docker_config_that_makes_no_sense_is_told_without_quoting_it(config: bytes) -> None:
    with pytest.raises(PayloadError, match="Secret r") as caught:
        login_for(REFERENCE, config, "Secret r")
    assert caught.value.reason is Reason.CREDENTIALS_UNREADABLE
    assert "hunter2" not in str(caught.value)
