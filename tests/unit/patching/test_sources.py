"""Where payload files come from: the digest decides, nothing escapes, nothing stays half."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from tests.unit.patching import made_packages as made

from sysvm.api.payload import PackageSource, PayloadFile
from sysvm.api.reasons import Reason
from sysvm.patching import payload_cache
from sysvm.patching.errors import PayloadError
from sysvm.patching.sources import PayloadSources

CONTENT = b"a payload" * 1000


def digest(content: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}"


def file(source: dict[str, object], content: bytes = CONTENT, algorithm: str = "sha256") -> PayloadFile:
    return PayloadFile.model_validate({"digest": digest(content, algorithm), "source": source})


@pytest.fixture
def store(tmp_path: Path) -> PayloadSources:
    (tmp_path / "payloads").mkdir()
    return PayloadSources(cache=tmp_path / "cache", mounted=tmp_path / "payloads")


class Site:
    """A web server whose answers a test decides."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[str] = []
        self.content = CONTENT
        self.status = 200
        self.headers: dict[str, str] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if request.path == "/loop":
            raise web.HTTPFound("/loop")
        if request.path == "/cut":
            response = web.StreamResponse(headers={"Content-Length": "100000"})
            await response.prepare(request)
            await response.write(CONTENT)
            assert request.transport is not None
            request.transport.abort()
            return response
        return web.Response(body=self.content, status=self.status, headers=self.headers)


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()
    app = web.Application()
    app.router.add_get("/{any:.*}", made.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "md5"])
async def test_a_url_is_fetched_once_and_kept(store: PayloadSources, site: Site, algorithm: str) -> None:
    wanted = file({"http": {"url": f"{site.url}/x.tgz"}}, algorithm=algorithm)
    first = await store.fetch(wanted)
    assert first.read_bytes() == CONTENT
    assert await store.fetch(wanted) == first
    assert len(site.asked) == 1


async def test_a_kept_file_that_was_damaged_is_fetched_again(store: PayloadSources, site: Site) -> None:
    wanted = file({"http": {"url": f"{site.url}/x.tgz"}})
    (await store.fetch(wanted)).write_bytes(b"half")
    assert (await store.fetch(wanted)).read_bytes() == CONTENT


async def test_a_wrong_digest_is_told_with_both(store: PayloadSources, site: Site) -> None:
    wanted = file({"http": {"url": f"{site.url}/x.tgz"}})
    site.content = b"something else"
    with pytest.raises(PayloadError) as caught:
        await store.fetch(wanted)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert not caught.value.retryable
    assert digest(b"something else") in str(caught.value)
    assert wanted.digest in str(caught.value)
    assert not list(store.cache.iterdir()), "nothing stays of what was refused"


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/x", 404, Reason.PAYLOAD_NOT_FOUND),
        ("/x", 500, Reason.PAYLOAD_FETCH_FAILED),
        ("/loop", 200, Reason.PAYLOAD_FETCH_FAILED),
        ("/cut", 200, Reason.PAYLOAD_FETCH_FAILED),
    ],
)
async def test_a_server_that_does_not_deliver_is_asked_again_later(
    store: PayloadSources, site: Site, path: str, status: int, reason: Reason
) -> None:
    site.status = status
    with pytest.raises(PayloadError) as caught:
        await store.fetch(file({"http": {"url": f"{site.url}{path}"}}))
    assert caught.value.reason is reason
    assert caught.value.retryable
    assert site.url in str(caught.value)


async def test_nobody_listening_is_a_failed_fetch(store: PayloadSources) -> None:
    with pytest.raises(PayloadError) as caught:
        await store.fetch(file({"http": {"url": "http://127.0.0.1:9/x"}}))
    assert caught.value.reason is Reason.PAYLOAD_FETCH_FAILED


async def test_a_file_without_end_is_cut_off(
    store: PayloadSources, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload_cache, "SIZE_LIMIT_BYTES", 100)
    with pytest.raises(PayloadError) as caught:
        await store.fetch(file({"http": {"url": f"{site.url}/x"}}))
    assert caught.value.reason is Reason.PAYLOAD_TOO_LARGE


async def test_what_a_server_calls_compressed_is_taken_as_it_is(store: PayloadSources, site: Site) -> None:
    site.headers = {"Content-Encoding": "gzip"}
    assert (await store.fetch(file({"http": {"url": f"{site.url}/x.tgz"}}))).read_bytes() == CONTENT


async def test_a_mounted_file_is_copied_so_that_it_cannot_change(store: PayloadSources) -> None:
    (store.mounted / "a").mkdir()
    (store.mounted / "a/x.tgz").write_bytes(CONTENT)
    kept = await store.fetch(file({"mounted": {"path": "a/x.tgz"}}))
    (store.mounted / "a/x.tgz").write_bytes(b"changed")
    assert kept.read_bytes() == CONTENT


async def test_a_mounted_path_cannot_leave_its_folder(store: PayloadSources, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    (store.mounted / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(PayloadError) as caught:
        await store.fetch(file({"mounted": {"path": "link"}}))
    assert caught.value.reason is Reason.PAYLOAD_UNSAFE


async def test_a_pipe_or_nothing_at_a_mounted_path_is_told(store: PayloadSources) -> None:
    os.mkfifo(store.mounted / "pipe")
    with pytest.raises(PayloadError, match="no plain file"):
        await store.fetch(file({"mounted": {"path": "pipe"}}))
    with pytest.raises(PayloadError) as missing:
        await store.fetch(file({"mounted": {"path": "nothing"}}))
    assert missing.value.reason is Reason.PAYLOAD_NOT_FOUND


async def test_a_config_map_is_taken_by_its_bytes(store: PayloadSources) -> None:
    wanted = file({"configMapRef": {"name": "old", "key": "x.tgz"}})
    with pytest.raises(PayloadError, match=r"ConfigMap old, key x\.tgz") as missing:
        await store.fetch(wanted)
    assert missing.value.reason is Reason.PAYLOAD_NOT_FOUND
    assert (await store.fetch(wanted, content=CONTENT)).read_bytes() == CONTENT


async def test_a_cache_that_cannot_be_written_is_told(store: PayloadSources) -> None:
    store.cache.write_text("a file where the folder must be")
    with pytest.raises(PayloadError, match="cannot keep") as caught:
        await store.fetch(file({"configMapRef": {"name": "c", "key": "k"}}), content=CONTENT)
    assert caught.value.reason is Reason.PAYLOAD_FETCH_FAILED


async def test_the_cache_stays_small_and_keeps_what_is_used(store: PayloadSources) -> None:
    store.kept.limit_bytes = 250
    files = [file({"configMapRef": {"name": "c", "key": "k"}}, bytes([n]) * 100) for n in range(4)]
    for number, wanted in enumerate(files):
        place = await store.fetch(wanted, content=bytes([number]) * 100)
        os.utime(place, (number, number))
    assert len(list(store.cache.iterdir())) == 4, "all are in use"
    for wanted in files[:2]:
        store.forget(wanted.digest)
    last = file({"configMapRef": {"name": "c", "key": "k"}}, b"last")
    await store.fetch(last, content=b"last")
    left = {path.name for path in store.cache.iterdir()}
    assert files[0].digest.replace(":", "-") not in left
    assert files[3].digest.replace(":", "-") in left


async def test_what_was_arriving_when_the_operator_was_killed_does_not_fill_the_volume(store: PayloadSources) -> None:
    store.cache.mkdir(parents=True, exist_ok=True)
    left, arriving = store.cache / ".partial-left", store.cache / ".partial-arriving"
    for path, age_seconds in ((left, 7200.0), (arriving, 600.0)):
        path.write_bytes(b"half a payload")
        then = path.stat().st_mtime - age_seconds
        os.utime(path, (then, then))
    store.kept.trim()
    assert (left.exists(), arriving.exists()) == (False, True)


def package(packed: bytes, url: str) -> PackageSource:
    return PackageSource.model_validate({"url": url, "digest": digest(packed)})


@pytest.mark.parametrize("make", [made.deb, made.rpm])
async def test_the_payload_of_a_package_is_fetched_once_also_by_the_next_process(
    store: PayloadSources, site: Site, make: Callable[[], bytes]
) -> None:
    site.content = make()
    wanted = package(site.content, f"{site.url}/cloudstack-common")
    paths = await store.fetch_package(wanted)
    assert paths.agent is not None
    assert (paths.scripts.read_bytes(), paths.agent.read_bytes()) == (made.scripts(), made.agent())
    sizes = {path.stat().st_size for path in store.cache.iterdir()}
    assert len(site.content) not in sizes, "the package itself is not kept"
    next_process = PayloadSources(cache=store.cache, mounted=store.mounted)
    assert await next_process.fetch_package(wanted) == paths
    assert len(site.asked) == 1


async def test_a_package_is_read_again_if_one_of_its_files_was_damaged(store: PayloadSources, site: Site) -> None:
    site.content = made.deb()
    wanted = package(site.content, f"{site.url}/x.deb")
    (await store.fetch_package(wanted)).scripts.write_bytes(b"half")
    assert (await store.fetch_package(wanted)).scripts.read_bytes() == made.scripts()
    assert len(site.asked) == 2


async def test_a_process_that_ends_while_a_package_is_read_costs_no_second_download(
    store: PayloadSources, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.content = made.deb()
    wanted = package(site.content, f"{site.url}/x.deb")

    def end(*_: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched, pytest.raises(asyncio.CancelledError):
        patched.setattr(store.kept, "keep_contents", end)
        await store.fetch_package(wanted)
    next_process = PayloadSources(cache=store.cache, mounted=store.mounted)
    assert (await next_process.fetch_package(wanted)).scripts.read_bytes() == made.scripts()
    assert len(site.asked) == 1


async def test_the_digest_of_a_package_is_proven_before_it_is_read(
    store: PayloadSources, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sysvm.patching.package_files.copy_payload", lambda *_: pytest.fail("was read"))
    site.content = made.deb()
    with pytest.raises(PayloadError) as caught:
        await store.fetch_package(package(b"another", f"{site.url}/x.deb"))
    assert caught.value.reason is Reason.DIGEST_MISMATCH


async def test_a_package_that_is_none_leaves_nothing_half(store: PayloadSources, site: Site) -> None:
    site.content = made.deb(name="cloudstack-agent")
    with pytest.raises(PayloadError, match="cloudstack-agent") as caught:
        await store.fetch_package(package(site.content, f"{site.url}/x.deb"))
    assert caught.value.reason is Reason.PAYLOAD_UNREADABLE
    assert [path.name for path in store.cache.iterdir()] == [digest(site.content).replace(":", "-")]


async def test_an_html_page_in_place_of_a_file_is_called_one(store: PayloadSources, site: Site) -> None:
    site.content = b"\n<!DOCTYPE html><html>log in</html>"
    with pytest.raises(PayloadError, match="an HTML page") as caught:
        await store.fetch(file({"http": {"url": f"{site.url}/x.tgz"}}))
    assert caught.value.reason is Reason.DIGEST_MISMATCH
