"""Files behind URLs, in pieces, and what it means when they do not come."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp

from sysvm.patching.errors import PayloadError
from sysvm.patching.payload_cache import SIZE_LIMIT_BYTES, Arrival, fetch_failed, not_found, too_large

_PIECE_BYTES = 1 << 18
_REDIRECTS = 5
_TIMEOUT = aiohttp.ClientTimeout(total=900, connect=15, sock_read=60)


@asynccontextmanager
async def http_session(tls: ssl.SSLContext | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """For one file. Takes what comes as it is: a server that calls a .tgz compressed must not have it unpacked.

    `tls`: whom to trust; without it those whom the machine trusts.
    """
    connector = aiohttp.TCPConnector(ssl=tls if tls is not None else True)
    async with aiohttp.ClientSession(
        timeout=_TIMEOUT, auto_decompress=False, trust_env=True, connector=connector
    ) as session:
        yield session


@asynccontextmanager
async def get(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """The answer, whatever its status; a failure to get one is a `PayloadError`, also while it is read."""
    try:
        async with session.get(
            url, max_redirects=_REDIRECTS, headers={"Accept-Encoding": "identity", **(headers or {})}
        ) as answer:
            yield answer
    except aiohttp.TooManyRedirects as error:
        raise fetch_failed(f"{url} redirects more than {_REDIRECTS} times") from error
    except aiohttp.ClientError as error:
        raise fetch_failed(f"{url} cannot be fetched: {error or type(error).__name__}") from error
    except TimeoutError as error:
        raise fetch_failed(f"{url} did not answer in time") from error


async def download(session: aiohttp.ClientSession, url: str, arrival: Arrival) -> None:
    """The file behind a URL. Raises `PayloadError`."""
    async with get(session, url) as answer:
        if answer.status != 200:
            raise refused(url, answer.status)
        await copy(answer, url, arrival)


async def copy(answer: aiohttp.ClientResponse, url: str, arrival: Arrival) -> None:
    if answer.content_length is not None and answer.content_length > SIZE_LIMIT_BYTES:
        raise too_large(url)
    async for part in answer.content.iter_chunked(_PIECE_BYTES):
        await asyncio.to_thread(arrival.write, part)


def refused(url: str, status: int) -> PayloadError:
    """What a status other than 200 means."""
    if status in (404, 410):
        return not_found(f"{url} does not exist (HTTP {status})")
    return fetch_failed(f"{url} answered with HTTP {status}")
