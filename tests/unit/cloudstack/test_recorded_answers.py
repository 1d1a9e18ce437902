"""Every error and every job that was recorded of a real server becomes what the client promises."""

from __future__ import annotations

import pytest
from tests.unit.cloudstack.recorded import Server, client, inner, names, recorded, recording

from sysvm.api.reasons import Reason
from sysvm.cloudstack.errors import (
    BadParameter,
    CloudStackError,
    NoSuchObject,
    NotAllowed,
    ServerError,
    Throttled,
    Unauthorized,
)
from sysvm.cloudstack.jobs import JobId, JobStatus, classify

NO_ERRORS = {"error.badboolean", "error.expiresZ"}
"""Recorded to see an error, and the server gave none."""

CLASSES: dict[str, type[CloudStackError]] = {
    "error.badsignature": Unauthorized,
    "error.emptyid": BadParameter,
    "error.expired": Unauthorized,
    "error.expiresformat": Unauthorized,
    "error.missingparam": BadParameter,
    "error.missingparam.restartNetwork": BadParameter,
    "error.nokey": Unauthorized,
    "error.page": BadParameter,
    "error.pagesize": BadParameter,
    "error.rebootsystemvm.router": BadParameter,
    "error.roadmin.listApis": ServerError,
    "error.roadmin.patchSystemVm": NotAllowed,
    "error.throttled": Throttled,
    "error.unknownapikey": Unauthorized,
    "error.unknowncommand": Unauthorized,
    "error.unknownjob": NoSuchObject,
    "error.unknownnetwork": NoSuchObject,
    "error.user.listRouters": NotAllowed,
    "error.user.listSystemVms": NotAllowed,
    "error.user.patchSystemVm": NotAllowed,
    "error.wrongsecret": Unauthorized,
}


def test_every_recorded_error_is_known_here() -> None:
    assert set(names("error.*.json")) == {*CLASSES, *NO_ERRORS}


@pytest.mark.parametrize("name", sorted(CLASSES))
async def test_a_recorded_error_becomes_its_class_with_the_servers_text(server: Server, name: str) -> None:
    server.says(recorded(name))
    async with client(server) as cloud:
        with pytest.raises(CLASSES[name]) as caught:
            await cloud.call("listZones")
    error = caught.value
    assert type(error) is CLASSES[name]
    assert error.code == recording(name)["http_status"]
    assert error.server_text == inner(name)["errortext"]
    assert error.server_text.rstrip(".") in str(error)
    assert error.advice in str(error)
    assert error.advice


@pytest.mark.parametrize("name", sorted(NO_ERRORS))
async def test_what_the_server_let_pass_is_an_answer(server: Server, name: str) -> None:
    server.says(recorded(name))
    async with client(server) as cloud:
        assert await cloud.call("listZones") == inner(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("error.wrongsecret", Reason.UNAUTHORIZED),
        ("error.user.listRouters", Reason.MISSING_PERMISSIONS),
        ("error.throttled", Reason.API_UNREACHABLE),
        ("error.unknownnetwork", Reason.API_ERROR),
    ],
)
async def test_an_error_says_the_reason_of_a_condition(server: Server, name: str, reason: Reason) -> None:
    server.says(recorded(name))
    async with client(server) as cloud:
        with pytest.raises(CloudStackError) as caught:
            await cloud.call("listZones")
    assert caught.value.reason is reason


@pytest.mark.parametrize("name", names("job.*.json"))
async def test_a_job_that_a_restart_cut_is_unknown_and_not_failed(server: Server, name: str) -> None:
    server.says(recorded(name))
    async with client(server) as cloud:
        job = await cloud.job(JobId("a"))
    assert job.status is JobStatus.UNKNOWN
    assert job.ended
    assert job.error_code == 530
    assert "restart" in job.error_text


async def test_a_job_that_the_server_has_forgotten_is_unknown(server: Server) -> None:
    server.says(recorded("error.unknownjob"))
    async with client(server) as cloud:
        job = await cloud.job(JobId("00000000-0000-4000-8000-000000000001"))
    assert job.status is JobStatus.UNKNOWN
    assert "does not know this job" in job.error_text


@pytest.mark.parametrize(
    "name", ["listRouters.unknownid", "patchSystemVm.unknownid", "patchSystemVm.destroyedid", "destroySystemVm.again"]
)
async def test_an_id_that_is_gone_is_told_from_other_bad_parameters(server: Server, name: str) -> None:
    server.says(recorded(name))
    async with client(server) as cloud:
        with pytest.raises(NoSuchObject):
            await cloud.call("listRouters", id="a")


async def test_a_job_in_work_is_pending(server: Server) -> None:
    server.says(recorded("queryAsyncJobResult.pending"))
    async with client(server) as cloud:
        job = await cloud.job(JobId("26e72c6d-7147-4907-8a80-6c0f648ade03"))
    assert job.status is JobStatus.PENDING
    assert not job.ended
    assert job.command == "PatchSystemVMCmd"
    assert job.created is not None
    assert job.completed is None


@pytest.mark.parametrize("name", names("*.job.json"))
async def test_the_end_of_a_recorded_job_is_what_the_server_said(server: Server, name: str) -> None:
    said = inner(name)
    server.says(recorded(name))
    async with client(server) as cloud:
        job = await cloud.job(JobId(said["jobid"]))
    assert job == classify(JobId(said["jobid"]), said)
    assert job.completed is not None
    if said["jobstatus"] == 1:
        assert job.status is JobStatus.SUCCEEDED
        assert job.result == said["jobresult"]
        assert (job.error_code, job.error_text) == (0, "")
    else:
        assert job.status is JobStatus.FAILED
        assert job.result is None
        assert (job.error_code, job.error_text) == (said["jobresult"]["errorcode"], said["jobresult"]["errortext"])


@pytest.mark.parametrize("name", names("*.submit.json"))
def test_every_recorded_submission_holds_a_job(name: str) -> None:
    assert set(inner(name)) == {"jobid"}


async def test_no_running_jobs_is_an_empty_object_on_the_wire(server: Server) -> None:
    server.says(recorded("listAsyncJobs"))
    async with client(server) as cloud:
        assert await cloud.running_jobs() == ()
    assert server.seen[0].form["listall"] == "true"
