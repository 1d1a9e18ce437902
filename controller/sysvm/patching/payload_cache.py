"""The folder that payload files are kept in, under their own digest.

What was accepted once is kept, so that a restart of the operator or a second release with the same agent does not fetch
ninety megabytes again, and so that a file that changes behind a URL, in a mount or on a host cannot change under a
running rollout. A file gets its name only when it is whole.
"""

import asyncio
import hashlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from pydantic import BaseModel, ValidationError

from sysvm.api.base import Digest
from sysvm.api.reasons import Reason
from sysvm.patching.errors import PayloadError

SIZE_LIMIT_BYTES = 1 << 30
_PARTIAL = ".partial-"
_GIVEN_UP_SECONDS = 3600.0
"""Nothing has been written for so long: whoever it arrived for was killed."""
_CONTENTS = "contents-"
_STARTS_OF_HTML = (b"<!doctype html", b"<html")


class PackageContents(BaseModel):
    """Digests of the files that were in a package."""

    scripts: Digest
    agent: Digest | None = None


class _Hash(Protocol):
    def update(self, content: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


class Arrival:
    """A file on its way into the cache."""

    def __init__(self, stream: IO[bytes], digester: _Hash, algorithm: str, shown: str) -> None:
        self._stream = stream
        self._digester = digester
        self._algorithm = algorithm
        self._shown = shown
        self._size = 0
        self._start = b""

    def write(self, part: bytes, /) -> None:
        """Raises `PayloadError` once the file is larger than a payload can be."""
        self._size += len(part)
        if self._size > SIZE_LIMIT_BYTES:
            raise too_large(self._shown)
        if len(self._start) < 512:
            self._start += part[:512]
        self._digester.update(part)
        self._stream.write(part)

    @property
    def digest(self) -> str:
        """Of what was written, as alg:hex."""
        return f"{self._algorithm}:{self._digester.hexdigest()}"

    @property
    def is_html(self) -> bool:
        return self._start.lstrip().lower().startswith(_STARTS_OF_HTML)


@dataclass
class PayloadCache:
    """`folder`, holding `limit_bytes`. Above that, files go that nobody has asked for since this object was made, or
    that were forgotten, the longest unused first. Blocking."""

    folder: Path
    limit_bytes: int
    _wanted: set[str] = field(default_factory=set)

    def find(self, digest: str) -> Path | None:
        """The file, whole: a disk that was full or a hand that helped is found here."""
        self._wanted.add(_file_name(digest))
        path = self.folder / _file_name(digest)
        algorithm, _, expected = digest.partition(":")
        try:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
        except FileNotFoundError:
            return None
        if found != expected.lower():
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return path

    def path(self, digest: str) -> Path:
        """Where the file with this digest is, once it is there."""
        return self.folder / _file_name(digest)

    @contextmanager
    def arriving(self, shown: str, digest: str | None = None) -> Iterator[Arrival]:
        """A file that gets its name when the block is left without an error, and only if it has `digest`.

        Without one it is kept under its sha256. Raises `PayloadError` DigestMismatch with both digests.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        algorithm = digest.partition(":")[0] if digest is not None else "sha256"
        handle, name = tempfile.mkstemp(prefix=_PARTIAL, dir=self.folder)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                arrival = Arrival(stream, hashlib.new(algorithm, usedforsecurity=False), algorithm, shown)
                yield arrival
                stream.flush()
                os.fsync(stream.fileno())
            if digest is not None and arrival.digest != digest.lower():
                raise _mismatch(shown, arrival, digest)
            self._wanted.add(_file_name(arrival.digest))
            partial.replace(self.path(arrival.digest))
        finally:
            partial.unlink(missing_ok=True)

    @asynccontextmanager
    async def arriving_slowly(self, shown: str, digest: str | None = None) -> AsyncIterator[Arrival]:
        """`arriving` for who must not wait for the disk: syncing a file of ninety megabytes takes a while."""
        arrivals = self.arriving(shown, digest)
        arrival = await asyncio.to_thread(arrivals.__enter__)
        try:
            yield arrival
        except BaseException as error:
            await asyncio.to_thread(arrivals.__exit__, type(error), error, error.__traceback__)
            raise
        await asyncio.to_thread(arrivals.__exit__, None, None, None)

    def contents_of(self, package_digest: str) -> PackageContents | None:
        """What was found in a package when it was read; None: never read, or not to be understood."""
        self._wanted.add(_CONTENTS + _file_name(package_digest))
        try:
            return PackageContents.model_validate_json(
                (self.folder / (_CONTENTS + _file_name(package_digest))).read_bytes()
            )
        except (FileNotFoundError, ValidationError):
            return None

    def keep_contents(self, package_digest: str, contents: PackageContents) -> None:
        """To be called when the files themselves are kept: a restart in between reads the package again."""
        path = self.folder / (_CONTENTS + _file_name(package_digest))
        partial = path.with_name(f"{_PARTIAL}{path.name}")
        partial.write_text(contents.model_dump_json())
        partial.replace(path)

    def drop(self, digest: str) -> None:
        """The file is not needed any more: what was in it is kept."""
        self.forget(digest)
        self.path(digest).unlink(missing_ok=True)

    def forget(self, digest: str) -> None:
        """Nobody uses the file with this digest any more: it may go when the cache is full."""
        self._wanted.discard(_file_name(digest))

    def trim(self) -> None:
        kept: list[tuple[Path, os.stat_result]] = []
        for path in self.folder.iterdir():
            # What arrives meanwhile gets its name, or goes.
            with suppress(FileNotFoundError):
                status = path.stat()
                if path.name.startswith(_PARTIAL) and time.time() - status.st_mtime > _GIVEN_UP_SECONDS:
                    path.unlink()
                elif path.is_file():
                    kept.append((path, status))
        total = sum(status.st_size for _, status in kept)
        for path, status in sorted(kept, key=lambda item: item[1].st_mtime):
            if total <= self.limit_bytes:
                return
            if path.name in self._wanted or path.name.startswith(_PARTIAL):
                continue
            path.unlink(missing_ok=True)
            total -= status.st_size


def too_large(shown: str) -> PayloadError:
    return PayloadError(f"{shown} has more than {SIZE_LIMIT_BYTES} bytes", reason=Reason.PAYLOAD_TOO_LARGE)


def fetch_failed(message: str) -> PayloadError:
    return PayloadError(message, reason=Reason.PAYLOAD_FETCH_FAILED, retryable=True)


def not_found(message: str) -> PayloadError:
    return PayloadError(message, reason=Reason.PAYLOAD_NOT_FOUND, retryable=True)


def _mismatch(shown: str, arrival: Arrival, digest: str) -> PayloadError:
    why = (
        "it is an HTML page, so the server asks for a login or tells of an error"
        if arrival.is_html
        else "either the file was replaced, or the release names the wrong digest"
    )
    return PayloadError(
        f"{shown} has the digest {arrival.digest}, and {digest} is required: {why}", reason=Reason.DIGEST_MISMATCH
    )


def _file_name(digest: str) -> str:
    return digest.replace(":", "-")
