"""Asynchronous jobs: submitted, worked on, done, failed, or lost with the server that ran them.

A job that was cut by a restart ends with jobstatus 2 and neither `jobresult` nor `jobresulttype`, which is what tells
it from one that failed (recorded from CloudStack 4.21).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from lab.cloud.background import Background
from lab.cloud.errors import ApiError
from lab.cloud.faults import CutJob
from lab.cloud.users import User
from lab.cloud.world import World

PENDING, SUCCEEDED, FAILED = 0, 1, 2
ACCOUNT_ID = "66de06a5-0000-4000-8000-000000000001"
DOMAIN_ID = "66ddeae5-0000-4000-8000-000000000001"

Work = Callable[["Job"], Awaitable[dict[str, object]]]


@dataclass(eq=False, kw_only=True)
class Job:
    """One job. `result` is `jobresult` as it will be told; None: none yet, or none ever."""

    id: str
    command: str
    java_class: str
    user: User
    created: datetime
    instance_type: str | None = None
    instance_id: str | None = None
    status: int = PENDING
    code: int = 0
    result: dict[str, object] | None = None
    completed: datetime | None = None
    task: asyncio.Task[None] | None = None

    def answer(self, server_id: str) -> dict[str, object]:
        """As queryAsyncJobResult and listAsyncJobs tell it."""
        told: dict[str, object] = {
            "accountid": ACCOUNT_ID,
            "account": self.user.name,
            "domainid": DOMAIN_ID,
            "domainpath": "ROOT",
            "userid": self.user.id,
            "cmd": self.java_class,
            "jobstatus": self.status,
            "jobprocstatus": 0,
            "jobresultcode": self.code,
        }
        if self.result is not None:
            told |= {"jobresulttype": "object", "jobresult": self.result}
        if self.instance_type is not None:
            told["jobinstancetype"] = self.instance_type
        # Recorded: networks and VPCs come with their type only.
        if self.instance_id is not None and self.instance_type in ("SystemVm", "DomainRouter"):
            told["jobinstanceid"] = self.instance_id
        if self.result is None:
            told |= {"managementserverid": server_id, "managementservername": "localhost"}
        told["created"] = stamp(self.created)
        if self.completed is not None:
            told["completed"] = stamp(self.completed)
        return told | {"jobid": self.id}


def stamp(moment: datetime) -> str:
    """A time as CloudStack writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S+0000")


class Jobs:
    """All jobs of a server, and the tasks that do their work."""

    def __init__(self, world: World, background: Background, *, pace: float) -> None:
        self._world = world
        self._background = background
        self._pace = pace
        self.all: dict[str, Job] = {}

    def pending(self) -> list[Job]:
        return [job for job in self.all.values() if job.status == PENDING]

    def submit(
        self,
        work: Work,
        *,
        command: str,
        java_class: str,
        user: User,
        instance_type: str | None = None,
        instance_id: str | None = None,
    ) -> Job:
        job = Job(
            id=self._world.new_id(),
            command=command,
            java_class=java_class,
            user=user,
            created=self._world.now(),
            instance_type=instance_type,
            instance_id=instance_id,
        )
        self.all[job.id] = job
        job.task = self._background.start(self._run(job, work), name=f"job {command} {job.id}")
        if self._world.faults.cut_job is not CutJob.NO and self._world.faults.concerns(command):
            self._background.start(self._cut_soon(job, self._world.faults.cut_job), name=f"cut {job.id}")
        return job

    async def _run(self, job: Job, work: Work) -> None:
        try:
            await asyncio.sleep(self._pace)
            result = await work(job)
            self._finish(job, SUCCEEDED, 0, result)
        except ApiError as refused:
            self._finish(job, FAILED, refused.code, {"errorcode": refused.code, "errortext": refused.text})

    async def _cut_soon(self, job: Job, how: CutJob) -> None:
        await asyncio.sleep(self._pace * 1.5)
        self.lose(job, stop=how is CutJob.WORK_STOPS)

    def _finish(self, job: Job, status: int, code: int, result: dict[str, object] | None) -> None:
        if job.status == PENDING:
            job.status, job.code, job.result, job.completed = status, code, result, self._world.now()
            if job.completed < job.created:
                job.completed = job.created

    def lose(self, job: Job, *, stop: bool) -> None:
        """The server forgets a job that it was working on; with `stop` the work ends where it is."""
        if job.status != PENDING:
            return
        self._finish(job, FAILED, 530, None)
        if stop and job.task is not None:
            job.task.cancel()

    def lose_all(self, *, stop: bool) -> None:
        """What a restart of the server does."""
        for job in self.pending():
            self.lose(job, stop=stop)
