"""A key that fails and fails is heard of: who reads the log learns which, how often and where."""

from __future__ import annotations

import asyncio
import logging

import pytest

from sysvm.engine.stores import Job, Role
from sysvm.kube.errors import Conflict, Forbidden, KubeError, Unavailable
from sysvm.kube.objects import Key
from sysvm.kube.queue import Again, WorkQueue
from sysvm.telemetry.failures import SILENCE_SECONDS, ToldFailures
from sysvm.telemetry.metrics import Metrics

POLICY = Job(Role.POLICY, Key("cloud", "routers"))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "sysvm.reconcile"]


@pytest.mark.looptime
async def test_a_defect_in_a_reconcile_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    queue: WorkQueue[Job] = WorkQueue("engine", observer=ToldFailures(metrics))

    async def reconcile(job: Job) -> Again | None:
        raise AttributeError("no such field")

    queue.add(POLICY)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(queue.run(reconcile, workers=1))
        await asyncio.sleep(3)
        queue.stop()
    assert len(lines(caplog)) >= 3
    assert all(
        line.startswith("policy cloud/routers: AttributeError: no such field (failure ") for line in lines(caplog)
    )
    places = [record.exc_info for record in caplog.records if record.name == "sysvm.reconcile"]
    assert places[0] is not None
    assert not any(places[1:]), "the place is told once"
    assert metrics.registry.get_sample_value("sysvm_reconcile_failures_total", {"role": "policy"}) == len(places)


def test_a_server_that_does_not_answer_is_one_line_for_all(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    told = ToldFailures(Metrics(), lambda: now)
    for number in range(1000):
        told.failed("engine", Job(Role.SYSTEM_VM, Key("cloud", f"r-{number}-vm")), Unavailable("refused"), 1, 0.5)
    assert len(lines(caplog)) == 1
    now += SILENCE_SECONDS
    told.failed("engine", POLICY, Unavailable("refused"), 9, 120.0)
    assert lines(caplog)[1:] == [
        "policy cloud/routers, and maybe others: refused (failure 9 in a row, again in 120.0 s)"
    ]


@pytest.mark.parametrize(
    ("error", "failures", "is_told"),
    [(Conflict("again"), 1, False), (Conflict("again"), 3, True), (Forbidden("no"), 1, True)],
)
def test_a_race_that_was_lost_once_is_no_news(
    error: KubeError, failures: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ToldFailures(Metrics()).failed("engine", POLICY, error, failures, 0.5)
    assert bool(lines(caplog)) is is_told
