"""What the server tells of a job in work, as it was recorded, and whether the look at a group sees it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from tests.unit.cloudstack.recorded import Server, answer, client, inner, names, recorded

from sysvm.api.endpoint import SystemVMType
from sysvm.api.methods import Method
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.cloudstack.lifecycle import CloudJobs
from sysvm.domain.calls import Command, Job, Looked
from sysvm.domain.jobs_at_work import UNNAMED

NOW = datetime(2026, 11, 22, 16, 0, tzinfo=UTC)
PENDING = inner("queryAsyncJobResult.pending")
STORAGE_VM = inner("listSystemVms")["systemvm"][0]["id"]


def lost_patch() -> GroupOperation:
    return GroupOperation(
        group="s-1-VM", method=Method.LIVE_PATCH, command=str(Command.PATCH_SYSTEM_VM), target=STORAGE_VM,
        vm_type=SystemVMType.SECSTORAGE, zone_id="z", phase=GroupPhase.UNKNOWN, since=NOW, started_at=NOW,
    )  # fmt: skip


async def test_a_patch_whose_answer_was_lost_is_seen_in_work_though_its_job_names_no_vm(server: Server) -> None:
    assert "jobinstanceid" not in PENDING
    server.says(recorded("listSystemVms"), answer({"listasyncjobsresponse": {"count": 1, "asyncjobs": [PENDING]}}))
    async with client(server) as cloud:
        looked = await CloudJobs(cloud, lambda: NOW).look(lost_patch())
    assert [seen.form["command"] for seen in server.seen] == ["listSystemVms", "listAsyncJobs"]
    assert isinstance(looked, Looked)
    assert looked.look.jobs == (
        Job(
            id=PENDING["jobid"],
            command="PatchSystemVMCmd",
            created=datetime(2026, 11, 22, 15, 42, 30, tzinfo=UTC),
        ),
    )


@pytest.mark.parametrize("name", names("*.job.json"))
def test_a_recorded_job_names_what_it_works_on_unless_the_table_says_otherwise(name: str) -> None:
    said = inner(name)
    command = said["cmd"].rpartition(".")[2]
    if not command.startswith("CreateVPC"):  # no VM yet
        assert ("jobinstanceid" in said) is (command not in UNNAMED)
