"""What is said of a job, and when it is asked for again."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sysvm.cloudstack.jobs import JobId, JobStatus, classify, free_slots, next_poll, settled

NOW = datetime(2026, 11, 22, 15, 40, tzinfo=UTC)
JOB = JobId("551c44da-33f3-4115-97cb-6fce6af951af")


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"jobstatus": 0}, JobStatus.PENDING),
        ({"jobstatus": 0, "jobresultcode": 0, "jobresult": {}}, JobStatus.PENDING),
        ({"jobstatus": 1, "jobresultcode": 0, "jobresult": {"success": True}}, JobStatus.SUCCEEDED),
        ({"jobstatus": 1, "jobresultcode": 0}, JobStatus.UNKNOWN),
        ({"jobstatus": 1, "jobresultcode": 0, "jobresult": {"errorcode": 530}}, JobStatus.FAILED),
        ({"jobstatus": 1, "jobresultcode": 530, "jobresult": {"success": True}}, JobStatus.FAILED),
        ({"jobstatus": 2, "jobresultcode": 530, "jobresult": {"errorcode": 530, "errortext": "x"}}, JobStatus.FAILED),
        ({"jobstatus": 2, "jobresultcode": 530, "jobresult": "text"}, JobStatus.FAILED),
        ({"jobstatus": 2, "jobresultcode": 530}, JobStatus.UNKNOWN),
        ({"jobstatus": 2, "jobresultcode": 530, "jobresult": None}, JobStatus.UNKNOWN),
        ({"jobstatus": 3, "jobresult": {}}, JobStatus.UNKNOWN),
        ({"jobstatus": -1, "jobresult": {}}, JobStatus.UNKNOWN),
        ({"jobstatus": "1", "jobresult": {}}, JobStatus.UNKNOWN),
        ({"jobstatus": True, "jobresult": {}}, JobStatus.UNKNOWN),
        ({}, JobStatus.UNKNOWN),
    ],
)
def test_only_a_whole_answer_is_a_success_or_a_failure(answer: dict[str, Any], status: JobStatus) -> None:
    job = classify(JOB, answer)
    assert job.status is status
    assert (job.result is not None) == (status is JobStatus.SUCCEEDED)
    assert bool(job.error_text) == (status in (JobStatus.FAILED, JobStatus.UNKNOWN))


def test_the_first_questions_come_quickly_and_the_later_ones_every_half_minute() -> None:
    asked = [timedelta(0)]
    while asked[-1] < timedelta(minutes=10):
        asked.append(asked[-1] + next_poll(NOW, NOW + asked[-1]))
    waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert waits[0] == timedelta(seconds=2)
    assert waits == sorted(waits)
    assert max(waits) == timedelta(seconds=30)
    assert len(asked) <= 50


def test_a_clock_that_went_back_asks_again_soon() -> None:
    assert next_poll(NOW, NOW - timedelta(hours=1)) == timedelta(seconds=2)


def test_a_call_without_an_answer_is_settled_after_three_minutes() -> None:
    assert not settled(NOW, NOW + timedelta(minutes=2, seconds=59))
    assert settled(NOW, NOW + timedelta(minutes=3))


def test_unknown_jobs_take_slots_and_more_than_the_limit_is_no_negative_number() -> None:
    assert [free_slots(4, in_work) for in_work in (0, 3, 4, 9)] == [4, 1, 0, 0]
