"""What is said of a job."""

from __future__ import annotations

from typing import Any

import pytest

from sysvm.cloudstack.jobs import JobId, JobStatus, classify

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
