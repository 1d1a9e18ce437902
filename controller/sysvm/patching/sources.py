"""Where payload files come from: a URL, a registry, a mount, a ConfigMap, or the package that holds them.

The digest that Git holds decides what is accepted, not the transport. Machines of the cloud, whose files Git does not
name, are in `host_source`; all of them end in the same cache.
"""

import asyncio
import os
import ssl
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sysvm.api.payload import OciSource, PackageSource, PayloadFile
from sysvm.api.reasons import Reason
from sysvm.patching import oci, package_files
from sysvm.patching.downloads import download, http_session
from sysvm.patching.errors import PayloadError
from sysvm.patching.payload_cache import (
    SIZE_LIMIT_BYTES,
    Arrival,
    PackageContents,
    PayloadCache,
    fetch_failed,
    not_found,
    too_large,
)

_PIECE_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class PayloadPaths:
    """The files of a payload in the cache."""

    scripts: Path
    agent: Path | None


@dataclass
class PayloadSources:
    """Fetches payload files and keeps them in `cache`: `cache_bytes`, or what is in use where that is more.

    The volume that the chart gives has room for that and for what arrives meanwhile; keep the two in step.

    `mounted` is the folder below which `mounted` sources lie; `tls` says whom to trust instead of the machine's own.
    """

    cache: Path
    mounted: Path
    cache_bytes: int = 1 << 30
    tls: ssl.SSLContext | None = None
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = PayloadCache(self.cache, self.cache_bytes)

    async def fetch(
        self, file: PayloadFile, *, content: bytes | None = None, login: oci.RegistryLogin | None = None
    ) -> Path:
        """The file of the cache that has the digest asked for.

        `content` is what the ConfigMap holds, and `login` who asks the registry, for those sources. Raises
        `PayloadError`: DigestMismatch with both digests, PayloadNotFound, PayloadTooLarge, or PayloadFetchFailed, which
        mostly is worth another try.
        """
        async with self.held(file.digest):
            return await self._file(file, content, login)

    async def fetch_package(self, package: PackageSource) -> PayloadPaths:
        """The files of cloudstack-common. Raises `PayloadError` as `fetch` does, and for what is no such package.

        The package itself is kept only until it was read: what a restart in between finds is read again.
        """
        async with self.held(package.digest):
            return await self._known(package.digest) or await self._read(package)

    @asynccontextmanager
    async def held(self, digest: str) -> AsyncIterator[None]:
        """One fetch of a digest at a time; an error of the folder is one of the payload."""
        async with self._locks.setdefault(digest, asyncio.Lock()):
            try:
                yield
            except OSError as error:
                raise fetch_failed(f"{self.cache} cannot keep the file: {error.strerror or error}") from error

    def forget(self, digest: str) -> None:
        """Nobody uses the file with this digest any more: it may go when the cache is full."""
        self.kept.forget(digest)

    async def _file(self, file: PayloadFile, content: bytes | None, login: oci.RegistryLogin | None) -> Path:
        place = await asyncio.to_thread(self.kept.find, file.digest)
        if place is not None:
            return place
        source, digest = file.source, file.digest
        if source.http is not None:
            await self._download(source.http.url, digest)
        elif source.oci is not None:
            await self._pull(source.oci, digest, login)
        elif source.mounted is not None:
            await asyncio.to_thread(self._copy, source.mounted.path, digest)
        elif source.config_map_ref is not None:
            shown = f"ConfigMap {source.config_map_ref.name}, key {source.config_map_ref.key}"
            if content is None:
                raise not_found(f"{shown} is not there")
            await asyncio.to_thread(self._keep, content, digest, shown)
        else:
            raise PayloadError("the release names no source", reason=Reason.PAYLOAD_NOT_FOUND)
        await asyncio.to_thread(self.kept.trim)
        return self.kept.path(digest)

    async def _known(self, package_digest: str) -> PayloadPaths | None:
        """The files of a package that was read before, also by a former process."""
        contents = await asyncio.to_thread(self.kept.contents_of, package_digest)
        if contents is None:
            return None
        scripts = await asyncio.to_thread(self.kept.find, contents.scripts)
        if scripts is None or contents.agent is None:
            return PayloadPaths(scripts, None) if scripts is not None else None
        agent = await asyncio.to_thread(self.kept.find, contents.agent)
        return PayloadPaths(scripts, agent) if agent is not None else None

    async def _read(self, package: PackageSource) -> PayloadPaths:
        path = await asyncio.to_thread(self.kept.find, package.digest)
        if path is None:
            await self._download(package.url, package.digest)
            path = self.kept.path(package.digest)
        found = await asyncio.to_thread(self._unpack, path, package)
        await asyncio.to_thread(self.kept.trim)
        agent = self.kept.path(found.agent) if found.agent is not None else None
        return PayloadPaths(self.kept.path(found.scripts), agent)

    def _unpack(self, path: Path, package: PackageSource) -> PackageContents:
        digests: dict[str, str] = {}

        @contextmanager
        def sink(name: str) -> Iterator[Arrival]:
            with self.kept.arriving(f"{name} of {package.url}") as arrival:
                yield arrival
            digests[name] = arrival.digest

        package_files.copy_payload(path, package.url, sink)
        found = PackageContents(scripts=digests[package_files.SCRIPTS], agent=digests.get(package_files.AGENT))
        self.kept.keep_contents(package.digest, found)
        self.kept.drop(package.digest)
        return found

    async def _download(self, url: str, digest: str) -> None:
        async with http_session(self.tls) as session, self.kept.arriving_slowly(url, digest) as arrival:
            await download(session, url, arrival)

    async def _pull(self, source: OciSource, digest: str, login: oci.RegistryLogin | None) -> None:
        reference = oci.OciReference.parse(source.ref)
        async with http_session(self.tls) as session, self.kept.arriving_slowly(reference.shown, digest) as arrival:
            await oci.pull(session, reference, digest, login, arrival)

    def _keep(self, content: bytes, digest: str, shown: str) -> None:
        with self.kept.arriving(shown, digest) as arrival:
            arrival.write(content)

    def _copy(self, relative: str, digest: str) -> None:
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
                    raise too_large(shown)
                with self.kept.arriving(shown, digest) as arrival:
                    while part := origin.read(_PIECE_BYTES):
                        arrival.write(part)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise not_found(f"{shown} does not exist: mount a volume that holds it, or correct the path") from error
        except OSError as error:
            raise fetch_failed(f"{shown} cannot be read: {error.strerror}") from error
