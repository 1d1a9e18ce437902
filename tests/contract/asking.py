"""One question, three who may answer: a recorded file, the lab's stand-in, a real management server.

A `Situation` has the name of the file that was recorded of it and knows how to bring it about on a live server. The
requests are signed here and not by the client library or the stand-in, so that neither can agree with itself.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import aiohttp
import pytest

RECORDED = Path(__file__).resolve().parents[1] / "data" / "cloudstack"
JOB_SECONDS = 900.0


@dataclass(frozen=True)
class Reply:
    """An answer: HTTP status, the one key around it, and what is under that key."""

    status: int
    wrapper: str
    inner: dict[str, Any]

    @classmethod
    def of(cls, status: int, body: dict[str, Any]) -> Reply:
        ((wrapper, inner),) = body.items()
        return cls(status, wrapper, inner)

    @property
    def error(self) -> tuple[int, int, str | None]:
        """HTTP status, error code, text."""
        return self.status, self.inner["errorcode"], self.inner["errortext"]


@dataclass(frozen=True)
class Keys:
    key: str
    secret: str


@dataclass
class Live:
    """A server that answers now. `users` may lack roles, `world` is there when it is the stand-in."""

    url: str
    session: aiohttp.ClientSession
    users: dict[str, Keys]
    world: Any = None
    server: Any = None
    poll_seconds: float = 2.0
    jobs: dict[str, str] = field(default_factory=dict)

    async def call(
        self,
        command: str | None,
        *,
        user: str = "admin",
        changed: dict[str, str] | None = None,
        post: bool = False,
        signed: bool = True,
        expires: str | None = None,
        **parameters: str,
    ) -> Reply:
        """One request. `changed` replaces parameters after signing; `expires` turns signature version 3 on."""
        if user not in self.users:
            pytest.skip(f"no keys of the role {user}: give CLOUDSTACK_{user.upper()}_KEY and _SECRET")
        keys = self.users[user]
        sent = {"response": "json", **parameters} | ({"command": command} if command else {})
        if expires is not None:
            sent |= {"signatureVersion": "3", "expires": expires}
        if signed:
            sent["apikey"] = keys.key
            sent["signature"] = _signature(sent, keys.secret)
        sent |= changed or {}
        request = self.session.post(self.url, data=sent) if post else self.session.get(self.url, params=sent)
        async with request as response:
            assert response.content_type == "application/json", f"{self.url} is no API: {response.content_type}"
            return Reply.of(response.status, json.loads(await response.text()))

    async def job(self, command: str, **parameters: Any) -> Reply:
        """Submits and polls until the job ends: the answer of queryAsyncJobResult then."""
        submitted = await self.call(command, **parameters)
        assert submitted.status == 200, submitted
        return await self.finished(submitted.inner["jobid"])

    async def finished(self, job: str) -> Reply:
        async with asyncio.timeout(JOB_SECONDS):
            while True:
                reply = await self.call("queryAsyncJobResult", jobid=job)
                if reply.inner["jobstatus"]:
                    return reply
                await asyncio.sleep(self.poll_seconds)

    async def pick(
        self, command: str, key: str, which: Callable[[dict[str, Any]], bool] = lambda _: True, **parameters: Any
    ) -> dict[str, Any]:
        """The first of a list that fits; the test is skipped where this cloud has none."""
        listed = (await self.call(command, **parameters)).inner.get(key, [])
        for each in listed:
            if which(each):
                return dict(each)
        pytest.skip(f"this cloud has nothing that fits among its {len(listed)} of {command}")


def _signature(parameters: dict[str, str], secret: str) -> str:
    line = "&".join(f"{name}={quote(parameters[name], safe='*').replace('~', '%7E')}" for name in sorted(parameters))
    return base64.b64encode(hmac.new(secret.encode(), line.lower().encode(), hashlib.sha1).digest()).decode()


def at(**ahead: float) -> str:
    """A moment so far ahead, as `expires` wants it."""
    return (datetime.now(UTC) + timedelta(**ahead)).strftime("%Y-%m-%dT%H:%M:%S+0000")


@dataclass(frozen=True)
class Situation:
    """`recorded` names the file. `changes`: it changes the cloud. `arranged`: only the stand-in can be made to."""

    recorded: str
    provoke: Callable[[Live], Awaitable[Reply]]
    changes: bool = False
    arranged: bool = False


def situation(
    recorded: str, *, changes: bool = False, arranged: bool = False
) -> Callable[[Callable[[Live], Awaitable[Reply]]], Situation]:
    def made(provoke: Callable[[Live], Awaitable[Reply]]) -> Situation:
        return Situation(recorded, provoke, changes, arranged)

    return made


class Answers(Protocol):
    """Who is asked."""

    async def ask(self, it: Situation) -> Reply: ...


class RecordedAnswers:
    """The files that a running CloudStack 4.21 server with simulated hypervisors wrote."""

    async def ask(self, it: Situation) -> Reply:
        return recorded(it.recorded)


def recorded(name: str) -> Reply:
    whole = json.loads((RECORDED / f"{name}.json").read_text())
    return Reply.of(whole["http_status"], whole["answer"])


class LiveAnswers:
    """A server; changing calls only where they are allowed."""

    def __init__(self, live: Live, *, may_change: bool) -> None:
        self._live = live
        self._may_change = may_change

    async def ask(self, it: Situation) -> Reply:
        if it.arranged and self._live.world is None:
            pytest.skip("this cannot be arranged on a real server")
        if it.changes and not self._may_change:
            pytest.skip("this changes the cloud: set ALLOW_CHANGES=1")
        return await it.provoke(self._live)
