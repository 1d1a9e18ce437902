"""The management server's API as the operator uses it: reads that may be repeated, changes that are sent once.

A read is tried again when the connection breaks or the server asks for patience; nothing else is repeated here, for
what takes longer comes back through the work queue. A change needs the power to change, which exists only for an
endpoint with `management: Full`, goes out once, and ends in one of three ways: an answer, an error that says it was not
carried out, or `OutcomeUnknown`. Every request waits its turn under the endpoint's rate.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Protocol, Self, cast

from pydantic import JsonValue

from sysvm.api.endpoint import Management
from sysvm.cloudstack.commands import CHANGES, READS
from sysvm.cloudstack.errors import (
    CLOCK_TOLERANCE,
    NOT_BEGUN,
    AnswerInvalid,
    BadParameter,
    ChangeRefused,
    CloudStackError,
    ListChanged,
    NotCloudStack,
    OutcomeUnknown,
    ServerError,
    Throttled,
    TimedOut,
    Unavailable,
)
from sysvm.cloudstack.jobs import Job, JobId, classify, forgotten, says_its_status
from sysvm.cloudstack.rate import LONGEST_PATIENCE_SECONDS, Rate
from sysvm.cloudstack.transport import CONNECTIONS, Access, Answer, Clock, Credentials, LostAnswer, Param, Transport

PAGE_SIZE = 500
"""`default.page.size`; where a server allows less, it says so and less is asked for."""

READ_EXPIRES = timedelta(minutes=10)
CHANGE_EXPIRES = timedelta(minutes=2)
"""So long after it is asked for, and by the server's clock, a changing call may begin. Shorter than `QUIET` of
`sysvm.domain.group_operation`: a copy that is held up on the way cannot arrive after the outcome was judged."""

READ_TRIES = 3

_PAGE_LIMIT = re.compile(r"page size value: (\d{1,6})")


@dataclass(frozen=True, slots=True)
class MayChange:
    """The power to change a cloud. Only `of` gives it, and only to an endpoint that says so."""

    management: Management

    def __post_init__(self) -> None:
        if self.management is not Management.FULL:
            raise ValueError("an endpoint with management: Observe gives no power to change")

    @classmethod
    def of(cls, management: Management) -> MayChange | None:
        return cls(management) if management is Management.FULL else None


class ApiObserver(Protocol):
    """Counts requests. `code` is CloudStack's number, 200 for success, 0 without an answer. Must not raise or wait."""

    def cloud_asked(self, command: str, code: int, seconds: float) -> None: ...


class CloudStack:
    """One management server under one user: open it once, use it for everything, close it."""

    def __init__(
        self,
        access: Access,
        *,
        may_change: MayChange | None = None,
        observer: ApiObserver | None = None,
        clock: Clock = lambda: datetime.now(UTC),
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._url = access.url
        self._may_change = may_change
        self._observer = observer
        self._clock = clock
        self._chance = chance
        self._transport = Transport(access, clock)
        self._rate = Rate(access.requests_per_second, access.burst)
        self._requests_in_flight = asyncio.Semaphore(CONNECTIONS)

    def __repr__(self) -> str:
        return f"<CloudStack {self._url}>"

    async def open(self) -> None:
        await self._transport.open()

    async def close(self) -> None:
        await self._transport.close()

    def give_up_power(self) -> None:
        """From now on no change leaves: another client asks this server, or the endpoint says `management: Observe`.

        A change that is on its way stays on its way.
        """
        self._may_change = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def clock_ahead(self) -> timedelta | None:
        """How far the operator's clock is ahead of the server's, by the last answer; None before the first."""
        return self._transport.clock_ahead

    async def call(self, command: str, **params: Param) -> Answer:
        """The answer to a read, without its wrapping. Raises the classes of `errors`."""
        if command not in READS:
            raise ValueError(f"{command} is not one of the commands that only read")
        for attempt in range(1, READ_TRIES + 1):
            try:
                return await self._once(command, params, READ_EXPIRES)
            except LostAnswer as lost:
                error = lost.error
            except Throttled as throttled:
                error = throttled
            wait = self._patience(error, attempt)
            if wait is None:
                raise error
            await asyncio.sleep(wait)
        raise AssertionError("the last try raises or returns")

    async def list_all(self, command: str, key: str, *, exact: bool = True, **params: Param) -> AsyncIterator[Answer]:
        """The entries of a list, page by page; `key` is the name of the array (`router`, `systemvm`, ...).

        An empty list is `{}` and a page past the end has a count and no array (seen on CloudStack 4.21). Raises
        `ListChanged` when the count changes between two pages, an entry comes twice, or (unless `exact` is False) fewer
        come than were counted, for then one may have been missed: begin again. An entry that goes while another comes
        at the same moment cannot be noticed, so nothing may be given up because of a single listing.
        """
        page_size = PAGE_SIZE
        expected: int | None = None
        seen: set[str] = set()
        page = 0
        while expected is None or len(seen) < expected:
            page += 1
            try:
                answer = await self.call(command, **params, page=page, pagesize=page_size)
            except BadParameter as error:
                limit = _PAGE_LIMIT.search(error.server_text)
                if page > 1 or limit is None or not 0 < int(limit[1]) < page_size:
                    raise
                page_size, page = int(limit[1]), 0
                continue
            entries = _entries(command, key, answer)
            count = _count(command, answer, len(entries))
            if expected is not None and count != expected:
                raise ListChanged(f"there were {expected} entries, now there are {count}", command=command)
            expected = count
            if not entries and len(seen) < count and exact:
                raise ListChanged(f"the list ended after {len(seen)} of {count} entries", command=command)
            if not entries:
                return
            for entry in entries:
                identity = _identity(entry)
                if identity in seen:
                    raise ListChanged(f"the entry {identity} came twice", command=command)
                seen.add(identity)
                yield entry

    async def change(self, command: str, **params: Param) -> Answer:
        """The answer to a command that changes something, sent once.

        Raises `ChangeRefused` without the power to change (nothing was sent), the class for the server's error (it was
        not carried out), or `OutcomeUnknown`.
        """
        if command not in CHANGES:
            raise ValueError(f"{command} is not one of the commands that change something")
        self._check_power(command)
        try:
            return await self._once(command, params, CHANGE_EXPIRES)
        except LostAnswer as lost:
            raise OutcomeUnknown(f"no usable answer came: {lost.error.what}", command=command) from lost.error
        except Unavailable as error:
            if error.code == 0:
                raise  # no connection, or no turn: nothing was sent
            # 502, 503, 504 in CloudStack's form: who stands before the server may say so after it was asked.
            raise OutcomeUnknown(
                f"no usable answer came: {error.what}",
                command=command,
                code=error.code,
                server_text=error.server_text,
            ) from error

    async def submit(self, command: str, **params: Param) -> JobId:
        """Like `change`, for a command that becomes a job. Store the intent before, the id after: `jobs` says why.

        A failure inside of the server (530, or a number of nobody's) leaves open whether the job was queued before:
        `OutcomeUnknown`.
        """
        try:
            answer = await self.change(command, **params)
        except ServerError as error:
            if error.code in NOT_BEGUN:
                raise
            raise OutcomeUnknown(
                f"the server failed: {error.what}", command=command, code=error.code, server_text=error.server_text
            ) from error
        job_id = answer.get("jobid")
        if not isinstance(job_id, str) or not job_id:
            raise OutcomeUnknown("the answer holds no jobid", command=command)
        return JobId(job_id)

    async def job(self, job_id: JobId) -> Job:
        """What the server says of a job now. A job that it does not know is one of status Unknown, not an error."""
        try:
            answer = await self.call("queryAsyncJobResult", jobid=job_id)
        except BadParameter as error:
            return forgotten(job_id, error.server_text)
        return classify(job_id, answer)

    async def running_jobs(self) -> tuple[Job, ...]:
        """Jobs of the operator's user, and of all accounts that it may see, that have not ended."""
        found: list[Job] = []
        async for entry in self.list_all("listAsyncJobs", "asyncjobs", listall=True):
            job_id = entry.get("jobid")
            if not isinstance(job_id, str):
                raise AnswerInvalid("an entry of listAsyncJobs has no jobid", command="listAsyncJobs")
            if not says_its_status(entry):
                raise AnswerInvalid(f"job {job_id} of listAsyncJobs has no known jobstatus", command="listAsyncJobs")
            job = classify(JobId(job_id), entry)
            if not job.ended:
                found.append(job)
        return tuple(found)

    def _check_power(self, command: str) -> None:
        if self._may_change is None:
            raise ChangeRefused("not sent: the endpoint has management: Observe", command=command)

    def _expires(self, lifetime: timedelta) -> datetime:
        """By the server's clock, if ours is ahead: what is held up must not be accepted later than `lifetime` from now.

        A server with `enforce.post.requests.and.timestamps` refuses what expires too far ahead, besides.
        """
        ahead = max(self.clock_ahead or timedelta(0), timedelta(0))
        return self._clock() - ahead + lifetime

    async def _once(self, command: str, params: dict[str, Param], lifetime: timedelta) -> Answer:
        time = asyncio.get_running_loop().time
        asked, expires = time(), self._expires(lifetime)
        await self._rate.turn()
        async with self._requests_in_flight:
            if command in CHANGES:
                self._check_power(command)  # it may have been given up meanwhile
            started = time()
            if timedelta(seconds=started - asked) > lifetime - CLOCK_TOLERANCE:
                # A server whose clock is ahead, as far as is tolerated, would call it expired, and the keys wrong.
                raise TimedOut(
                    f"not sent: its turn came only after {started - asked:.0f} s",
                    command=command,
                    advice="Raise spec.api.limits.requestsPerSecond of the endpoint, or look at the server's load",
                )
            code = 0
            try:
                answer = await self._transport.exchange(command, params, expires)
                code = 200
            except CloudStackError as error:
                code = error.code
                if isinstance(error, Throttled):
                    self._rate.pause(error.retry_after_seconds or 1.0)
                raise
            finally:
                if self._observer is not None:
                    self._observer.cloud_asked(command, code, time() - started)
        return answer

    def _patience(self, error: CloudStackError, attempt: int) -> float | None:
        """How long to wait before a read is sent again; None: it is not."""
        if attempt == READ_TRIES or isinstance(error, TimedOut | NotCloudStack):
            return None
        if isinstance(error, Throttled):
            asked = error.retry_after_seconds or 1.0
            return asked if asked <= LONGEST_PATIENCE_SECONDS else None
        if isinstance(error, Unavailable) and error.code == 0:
            return float(0.25 * 2.0**attempt * (1.0 + self._chance()))
        return None


def _entries(command: str, key: str, answer: Answer) -> list[Answer]:
    entries = answer.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnswerInvalid(f"{key} is not a list of objects", command=command)
    return cast("list[Answer]", entries)


def _identity(entry: Answer) -> str:
    """What is the same on two pages only for one entry. A template is listed once a zone, a setting has only a name."""
    return " ".join(str(entry.get(name)) for name in ("id", "zoneid", "jobid", "name") if name in entry)


def _count(command: str, answer: Answer, entries: int) -> int:
    count: JsonValue = answer.get("count", entries)
    if isinstance(count, bool) or not isinstance(count, int):
        raise AnswerInvalid("count is not a number", command=command)
    return max(count, entries) if entries else count


__all__ = ["Access", "ApiObserver", "CloudStack", "Credentials", "MayChange"]
