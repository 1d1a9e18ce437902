"""Missing permissions are named by feature before they are needed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from aiohttp import web
from tests.unit.cloudstack.recorded import Server, answer, client, recorded, recording

from sysvm.cloudstack.commands import CHANGES, READS
from sysvm.cloudstack.errors import ServerError, Unauthorized
from sysvm.cloudstack.preflight import COMMANDS, OPTIONAL, Feature, missing_permissions
from sysvm.cloudstack.transport import Answer, Param


@dataclass
class Role:
    """A user who may call everything but what is denied."""

    denied: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    async def call(self, command: str, **params: Param) -> Answer:
        assert command == "listApis"
        name = str(params["name"])
        self.asked.append(name)
        if name in self.denied:
            text = recording("error.roadmin.listApis")["answer"]["listapisresponse"]["errortext"]
            raise ServerError(text, command=command, code=530, server_text=text)
        return {"count": 1, "api": [{"name": name, "isasync": True}]}


async def test_nothing_is_missing_for_a_root_admin() -> None:
    found = await missing_permissions(Role(), list(Feature))
    assert found.complete
    assert found.sentence() == ""


async def test_a_reader_may_observe_and_is_told_what_it_lacks_for_the_rest() -> None:
    role = Role(CHANGES)
    found = await missing_permissions(role, [Feature.RECREATE, Feature.REBOOT])
    assert found.may_observe
    assert found.missing == {
        Feature.REBOOT: ("rebootSystemVm", "rebootRouter"),
        Feature.RECREATE: ("destroySystemVm", "restartNetwork", "restartVPC"),
    }
    assert found.sentence() == (
        "The role of the operator's user lacks rebootSystemVm, rebootRouter (Reboot); "
        "destroySystemVm, restartNetwork, restartVPC (Recreate)"
    )
    assert len(role.asked) == len(set(role.asked)), "each command is asked for once"


async def test_what_can_be_done_without_is_a_warning_and_no_fault() -> None:
    role = Role(frozenset({"patchSystemVm", "listFirewallRules", "listCapacity"}))
    found = await missing_permissions(role, [Feature.REBOOT, Feature.FALL_BACK_TO_API, Feature.COMPARE])
    assert found.sentence() == ""
    assert found.warning() == (
        "The role of the operator's user lacks patchSystemVm (live patch by the API where a gate is closed); "
        "listFirewallRules, listCapacity (room before a call, rules after it)"
    )


async def test_only_what_is_used_is_asked_for() -> None:
    role = Role(CHANGES)
    assert (await missing_permissions(role, [])).complete
    assert set(role.asked) == set(COMMANDS[Feature.OBSERVE])


@pytest.mark.parametrize("command", COMMANDS[Feature.OBSERVE])
async def test_without_a_list_a_cloud_cannot_be_observed_unless_it_can_be_done_without(command: str) -> None:
    found = await missing_permissions(Role(frozenset({command})), [])
    assert not found.complete
    assert command in found.sentence()
    assert found.may_observe == (command in OPTIONAL)


async def test_the_recorded_answers_say_yes_and_no(server: Server) -> None:
    async def reply(request: web.Request) -> web.StreamResponse:
        name = str((await request.post())["name"])
        if name == "patchSystemVm":
            return recorded("listApis.patchSystemVm")
        return recorded("error.roadmin.listApis")

    server.says(reply)
    async with client(server) as cloud:
        found = await missing_permissions(cloud, [Feature.PATCH_BY_API])
    lacking = set(COMMANDS[Feature.PATCH_BY_API]) - {"patchSystemVm"}
    assert set(found.missing[Feature.PATCH_BY_API]) == lacking


async def test_a_role_without_list_apis_is_not_taken_for_one_that_may_nothing(server: Server) -> None:
    server.says(recorded("error.user.listRouters"))
    async with client(server) as cloud:
        found = await missing_permissions(cloud, [Feature.REBOOT])
    assert found.unknown
    assert not found.complete
    assert found.may_observe
    assert "listApis" in found.sentence()


async def test_another_failure_is_no_missing_permission(server: Server) -> None:
    server.says(answer({"listapisresponse": {"errorcode": 530, "errortext": "database is gone"}}, 530))
    async with client(server) as cloud:
        with pytest.raises(ServerError):
            await missing_permissions(cloud, [])
    server.says(recorded("error.wrongsecret"))
    async with client(server) as cloud:
        with pytest.raises(Unauthorized):
            await missing_permissions(cloud, [])


def test_every_command_that_a_feature_needs_may_be_sent() -> None:
    for commands in COMMANDS.values():
        assert set(commands) <= READS | CHANGES
    assert {command for commands in COMMANDS.values() for command in commands} >= CHANGES
