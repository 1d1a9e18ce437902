"""Where payload files come from, and the folder they are kept in under their own digest.

The digest that Git holds decides what is accepted, not the transport. What was accepted once is kept under its digest,
so that a restart of the operator or a second release with the same agent does not fetch ninety megabytes again, and so
that a file that changes behind a URL or a mount cannot change under a running rollout.
"""

import asyncio
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

import aiohttp

from sysvm.api.reasons import Reason
from sysvm.api.template import FileSource, PayloadFile
from sysvm.patching.errors import PayloadError

SIZE_LIMIT_BYTES = 1 << 30
_CHUNK_BYTES = 1 << 18
_REDIRECTS = 5
_TIMEOUT = aiohttp.ClientTimeout(total=900, connect=15, sock_read=60)
_PARTIAL = ".partial-"


class _Hash(Protocol):
    def update(self, content: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass
class PayloadSources:
    """Fetches payload files and keeps them in `cache`.

    `mounted` is the folder below which `mounted` sources lie. Files that nobody asked for since this object was made
    go, oldest first, once the cache holds more than `cache_bytes`.
    """

    cache: Path
    mounted: Path
    cache_bytes: int = 4 << 30
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    _handed_out: set[str] = field(default_factory=set)

    async def fetch(self, file: PayloadFile, *, content: bytes | None = None) -> Path:
        """The file of the cache that has the digest asked for.

        `content` is what the ConfigMap holds, for that source. Raises `PayloadError`: DigestMismatch with both digests,
        PayloadNotFound, PayloadTooLarge, or PayloadFetchFailed, which is worth another try.
        """
        async with self._locks.setdefault(file.digest, asyncio.Lock()):
            self._handed_out.add(_file_name(file.digest))
            try:
                return await self._fetch(file, content)
            except OSError as error:
                raise _failed(f"{self.cache} cannot keep the file: {error.strerror or error}") from error

    async def _fetch(self, file: PayloadFile, content: bytes | None) -> Path:
        place = self.cache / _file_name(file.digest)
        if await asyncio.to_thread(_holds, place, file.digest):
            return place
        source = file.source
        if source.http is not None:
            await self._download(source.http.url, file.digest, place)
        elif source.mounted is not None:
            await asyncio.to_thread(self._copy, source.mounted.path, file.digest, place)
        elif content is not None:
            await asyncio.to_thread(_keep, content, file.digest, place, _described(source))
        else:
            raise PayloadError(f"{_described(source)} is not there", reason=Reason.PAYLOAD_NOT_FOUND, retryable=True)
        await asyncio.to_thread(self._trim)
        return place

    def forget(self, digest: str) -> None:
        """Nobody uses the file with this digest any more: it may go when the cache is full."""
        self._handed_out.discard(_file_name(digest))

    async def _download(self, url: str, digest: str, place: Path) -> None:
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False, trust_env=True) as session,
                session.get(url, max_redirects=_REDIRECTS, headers={"Accept-Encoding": "identity"}) as answer,
            ):
                if answer.status != 200:
                    raise _refused_by_server(url, answer.status)
                if answer.content_length is not None and answer.content_length > SIZE_LIMIT_BYTES:
                    raise _too_large(url)
                with _arriving(place, digest, url) as (stream, digester):
                    size = 0
                    async for part in answer.content.iter_chunked(_CHUNK_BYTES):
                        size += len(part)
                        if size > SIZE_LIMIT_BYTES:
                            raise _too_large(url)
                        digester.update(part)
                        await asyncio.to_thread(stream.write, part)
        except aiohttp.TooManyRedirects as error:
            raise _failed(f"{url} redirects more than {_REDIRECTS} times") from error
        except aiohttp.ClientError as error:
            raise _failed(f"{url} cannot be fetched: {error or type(error).__name__}") from error
        except TimeoutError as error:
            raise _failed(f"{url} did not answer in time") from error

    def _copy(self, relative: str, digest: str, place: Path) -> None:
        shown = f"{self.mounted}/{relative}"
        try:
            top = self.mounted.resolve(strict=True)
            path = (top / relative).resolve(strict=True)
            if not path.is_relative_to(top):
                raise PayloadError(f"{shown} leads out of {self.mounted}", reason=Reason.PAYLOAD_UNSAFE)
            # Opening a pipe would wait for a writer for ever.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as origin:
                status = os.fstat(origin.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise PayloadError(f"{shown} is no plain file", reason=Reason.PAYLOAD_UNREADABLE)
                if status.st_size > SIZE_LIMIT_BYTES:
                    raise _too_large(shown)
                with _arriving(place, digest, shown) as (stream, digester):
                    while part := origin.read(_CHUNK_BYTES):
                        digester.update(part)
                        stream.write(part)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise PayloadError(
                f"{shown} does not exist: mount a volume that holds it, or correct the path",
                reason=Reason.PAYLOAD_NOT_FOUND,
                retryable=True,
            ) from error
        except OSError as error:
            raise _failed(f"{shown} cannot be read: {error.strerror}") from error

    def _trim(self) -> None:
        kept = [(path, path.stat()) for path in self.cache.iterdir() if path.is_file()]
        total = sum(status.st_size for _, status in kept)
        for path, status in sorted(kept, key=lambda item: item[1].st_mtime):
            if total <= self.cache_bytes:
                return
            if path.name in self._handed_out or path.name.startswith(_PARTIAL):
                continue
            path.unlink(missing_ok=True)
            total -= status.st_size


def _file_name(digest: str) -> str:
    return digest.replace(":", "-")


def _described(source: FileSource) -> str:
    reference = source.config_map_ref
    return f"ConfigMap {reference.name}, key {reference.key}" if reference is not None else "the source"


@contextmanager
def _arriving(place: Path, digest: str, shown: str) -> Iterator[tuple[IO[bytes], _Hash]]:
    """A temporary file that gets its name in the cache only if what was written has the digest."""
    place.parent.mkdir(parents=True, exist_ok=True)
    algorithm, _, expected = digest.partition(":")
    digester = hashlib.new(algorithm, usedforsecurity=False)
    handle, name = tempfile.mkstemp(prefix=_PARTIAL, dir=place.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream, digester
            stream.flush()
            os.fsync(stream.fileno())
        found = digester.hexdigest()
        if found != expected.lower():
            raise PayloadError(
                f"{shown} has the digest {algorithm}:{found}, and {digest} is required: either the file was replaced, "
                "or the release names the wrong digest",
                reason=Reason.DIGEST_MISMATCH,
            )
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def _keep(content: bytes, digest: str, place: Path, shown: str) -> None:
    with _arriving(place, digest, shown) as (stream, digester):
        digester.update(content)
        stream.write(content)


def _holds(place: Path, digest: str) -> bool:
    """Whether the cache has the file, whole: a disk that was full or a hand that helped is found here."""
    algorithm, _, expected = digest.partition(":")
    try:
        with place.open("rb") as stream:
            found = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except FileNotFoundError:
        return False
    if found != expected.lower():
        place.unlink(missing_ok=True)
        return False
    os.utime(place)
    return True


def _failed(message: str) -> PayloadError:
    return PayloadError(message, reason=Reason.PAYLOAD_FETCH_FAILED, retryable=True)


def _too_large(shown: str) -> PayloadError:
    return PayloadError(f"{shown} has more than {SIZE_LIMIT_BYTES} bytes", reason=Reason.PAYLOAD_TOO_LARGE)


def _refused_by_server(url: str, status: int) -> PayloadError:
    if status in (404, 410):
        return PayloadError(f"{url} does not exist (HTTP {status})", reason=Reason.PAYLOAD_NOT_FOUND, retryable=True)
    return _failed(f"{url} answered with HTTP {status}")
