"""Jobs of the management server, as values: what an answer says of one. No I/O, no clock.

Nobody waits for a job. Who wants a change stores the intent with what there is now, lets the client submit, stores the
id of the job, and comes back through the work queue (`sysvm.domain.group_operation` is that state machine). So a
restart of the operator finds one of these, and each has one way on:

* no intent: nothing was sent. Decide anew.
* an intent without an id: the operator ended between the two writes, or the call ended in `OutcomeUnknown`. The change
  may have been made: compare with what there was and look in the client's `running_jobs`; submit again only when
  nothing changed, no job works on it, and the request would no longer be accepted (`client.CHANGE_EXPIRES`).
* an intent with an id: ask for the job. `PENDING`: come back. `SUCCEEDED`, `FAILED`: what the server claims; success is
  verified before it is believed. `UNKNOWN`: a restart of the server cut the job, or the server has forgotten it
  (`job.expire.minutes`): the state is read again and decides.

A job that a server's restart cut has `jobstatus` 2, code 530 and neither `jobresult` nor `jobresulttype` (seen on
CloudStack 4.21); waiting for its result would never end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import NewType

from pydantic import JsonValue

JobId = NewType("JobId", str)
"""UUID of a job, as the server gave it."""


class JobStatus(StrEnum):
    PENDING = "Pending"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    UNKNOWN = "Unknown"
    """Lost, expired, cut or cancelled: whether the change was made is to be read from the state."""


class _Code(IntEnum):
    """`jobstatus` on the wire (CloudStack 4.21 JobInfo.java)."""

    IN_PROGRESS = 0
    SUCCEEDED = 1
    FAILED = 2
    CANCELLED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What the server says of one job.

    `error_code` and `error_text` belong to FAILED and UNKNOWN; `result` to SUCCEEDED, and is what the server claims.
    """

    id: JobId
    status: JobStatus
    result: Mapping[str, JsonValue] | None = None
    error_code: int = 0
    error_text: str = ""
    command: str = ""
    """Class of the command without its package: RestartNetworkCmd."""
    instance_type: str | None = None
    """What it works on: SystemVm, DomainRouter, Network, Vpc; not told by every command."""
    instance_id: str | None = None
    created: datetime | None = None
    completed: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.status is not JobStatus.PENDING


def classify(job_id: JobId, answer: Mapping[str, JsonValue]) -> Job:
    """The job of a `queryAsyncJobResult` answer, or of one entry of `listAsyncJobs`.

    Total: whatever the answer holds, there is a verdict, and what fits no other is UNKNOWN.
    """
    status, error_code, error_text = _verdict(answer)
    result = answer.get("jobresult")
    return Job(
        id=job_id,
        status=status,
        result=result if status is JobStatus.SUCCEEDED and isinstance(result, dict) else None,
        error_code=error_code,
        error_text=error_text,
        command=_text(answer.get("cmd")).rpartition(".")[2],
        instance_type=_text(answer.get("jobinstancetype")) or None,
        instance_id=_text(answer.get("jobinstanceid")) or None,
        created=_time(answer.get("created")),
        completed=_time(answer.get("completed")),
    )


def says_its_status(entry: Mapping[str, JsonValue]) -> bool:
    """Whether an entry of a list tells if the job runs: one that does not may not be taken for ended."""
    code = entry.get("jobstatus")
    return isinstance(code, int) and not isinstance(code, bool) and code in set(_Code)


def forgotten(job_id: JobId, server_text: str) -> Job:
    """The job that the server says it does not know (431)."""
    return Job(
        id=job_id,
        status=JobStatus.UNKNOWN,
        error_code=431,
        error_text=f"the server does not know this job (any more): {server_text}",
    )


def _verdict(answer: Mapping[str, JsonValue]) -> tuple[JobStatus, int, str]:
    code = answer.get("jobstatus")
    result = answer.get("jobresult")
    result_code = _number(answer.get("jobresultcode"))
    if isinstance(code, bool) or not isinstance(code, int):
        return JobStatus.UNKNOWN, result_code, "the answer has no jobstatus"
    if code == _Code.IN_PROGRESS:
        return JobStatus.PENDING, 0, ""
    if result is None:
        return JobStatus.UNKNOWN, result_code, "the job ended without a result: a restart of the server cut it"
    failure = result if isinstance(result, dict) and "errorcode" in result else None
    if code == _Code.SUCCEEDED and failure is None and result_code == 0:
        return JobStatus.SUCCEEDED, 0, ""
    if code in (_Code.SUCCEEDED, _Code.FAILED):
        number = _number(failure.get("errorcode")) if failure is not None else 0
        text = _text(failure.get("errortext")) if failure is not None else ""
        return JobStatus.FAILED, number or result_code, text or "the server gave no reason"
    return JobStatus.UNKNOWN, result_code, f"the job has the unknown status {code}"


def _number(value: JsonValue) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else ""


def _time(value: JsonValue) -> datetime | None:
    """CloudStack writes 2026-11-22T15:42:30+0000."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
