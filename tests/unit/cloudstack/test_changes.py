"""What only looks never changes a cloud, and what changes is sent once, by POST, and expires soon."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web
from tests.unit.cloudstack.recorded import FULL, Server, answer, client, cut, recorded

from sysvm.api.endpoint import Management
from sysvm.cloudstack.client import CHANGE_EXPIRES, READ_EXPIRES, MayChange
from sysvm.cloudstack.commands import CHANGES, READS
from sysvm.cloudstack.errors import (
    CLOCK_TOLERANCE,
    BadParameter,
    ChangeRefused,
    CloudStackError,
    OutcomeUnknown,
    ServerError,
    TimedOut,
)
from sysvm.cloudstack.lifecycle import CloudJobs
from sysvm.domain.calls import Call, Command, NotMade
from sysvm.domain.group_operation import QUIET

NOW = datetime(2026, 11, 22, 15, 40, tzinfo=UTC)


def test_observing_gives_no_power_to_change() -> None:
    assert MayChange.of(Management.OBSERVE) is None
    with pytest.raises(ValueError, match="no power"):
        MayChange(Management.OBSERVE)


@pytest.mark.parametrize("command", sorted(CHANGES))
async def test_without_the_power_no_change_leaves_the_process(server: Server, command: str) -> None:
    server.says(answer({}))
    async with client(server) as cloud:
        with pytest.raises(ChangeRefused, match="management: Observe"):
            await cloud.submit(command, id="a")
        with pytest.raises(ChangeRefused):
            await cloud.change(command, id="a")
        with pytest.raises(ValueError, match="only read"):
            await cloud.call(command, id="a")
    assert server.seen == []


async def test_a_client_that_gave_up_its_power_sends_no_change_any_more(server: Server) -> None:
    server.says(answer({"restartnetworkresponse": {"jobid": "j"}}))
    async with client(server, may_change=FULL) as cloud:
        await cloud.submit("restartNetwork", id="a")
        cloud.give_up_power()
        with pytest.raises(ChangeRefused):
            await cloud.submit("restartNetwork", id="a")
        await cloud.call("listZones")
    assert [seen.form["command"] for seen in server.seen] == ["restartNetwork", "listZones"]


async def test_a_change_that_waits_its_turn_while_the_power_is_given_up_is_not_sent(server: Server) -> None:
    server.says(answer({"restartnetworkresponse": {"jobid": "j"}}))
    async with client(server, may_change=FULL, requests_per_second=5, burst=1) as cloud:
        await cloud.submit("restartNetwork", id="a")
        waiting = asyncio.create_task(cloud.submit("restartNetwork", id="a"))
        await asyncio.sleep(0.02)
        cloud.give_up_power()
        with pytest.raises(ChangeRefused):
            await waiting
    assert len(server.seen) == 1


@pytest.mark.parametrize("command", ["destroyVirtualMachine", "listAndSwitchSamlAccount", "deleteZone", "getUserKeys"])
async def test_a_command_that_nobody_thought_of_is_not_sent(server: Server, command: str) -> None:
    server.says(answer({}))
    async with client(server, may_change=FULL) as cloud:
        with pytest.raises(ValueError, match="not one of the commands"):
            await cloud.call(command)
        with pytest.raises(ValueError, match="not one of the commands"):
            await cloud.change(command)
    assert server.seen == []


def test_a_command_reads_or_changes() -> None:
    assert not READS & CHANGES


async def test_a_submitted_change_gives_its_job(server: Server) -> None:
    server.says(recorded("restartNetwork.cleanup.submit"))
    async with client(server, may_change=FULL) as cloud:
        job_id = await cloud.submit("restartNetwork", id="a", cleanup=True, livepatch=False, makeredundant=None)
    assert job_id
    form = server.seen[0].form
    assert (form["id"], form["cleanup"], form["livepatch"]) == ("a", "true", "false")
    assert "makeredundant" not in form


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (500, OutcomeUnknown),
        (503, OutcomeUnknown),
        (504, OutcomeUnknown),
        (530, OutcomeUnknown),
        (599, OutcomeUnknown),
        (533, ServerError),
        (431, BadParameter),
    ],
)
async def test_a_server_that_fails_inside_leaves_open_whether_it_queued_the_job(
    server: Server, code: int, expected: type[CloudStackError]
) -> None:
    server.says(answer({"restartnetworkresponse": {"errorcode": code, "errortext": "no"}}, code))
    async with client(server, may_change=FULL) as cloud:
        with pytest.raises(CloudStackError) as caught:
            await cloud.submit("restartNetwork", id="a")
    assert type(caught.value) is expected
    assert len(server.seen) == 1


def expires_of(server: Server) -> datetime:
    return datetime.strptime(server.seen[-1].form["expires"], "%Y-%m-%dT%H:%M:%S%z")


async def test_a_read_expires_after_ten_minutes_and_a_change_after_two(server: Server) -> None:
    server.says(answer({"restartnetworkresponse": {"jobid": "j"}}))
    async with client(server, may_change=FULL, clock=lambda: NOW) as cloud:
        await cloud.call("listZones")
        assert expires_of(server) == NOW + timedelta(minutes=10)
    async with client(server, may_change=FULL, clock=lambda: NOW) as cloud:
        await cloud.submit("restartNetwork", id="a")
        assert expires_of(server) == NOW + CHANGE_EXPIRES
    assert all(seen.form["signatureVersion"] == "3" for seen in server.seen)
    assert CHANGE_EXPIRES < QUIET, "nothing may begin after an unknown outcome was judged"


async def test_a_clock_that_is_ahead_does_not_lengthen_the_life_of_a_change(server: Server) -> None:
    served = format_datetime(NOW - timedelta(minutes=30), usegmt=True)
    server.says(answer({"restartnetworkresponse": {"jobid": "j"}}, Date=served))
    async with client(server, may_change=FULL, clock=lambda: NOW) as cloud:
        await cloud.call("listZones")
        await cloud.submit("restartNetwork", id="a")
        assert expires_of(server) == NOW - timedelta(minutes=30) + CHANGE_EXPIRES
        await cloud.call("listZones")
        assert expires_of(server) == NOW - timedelta(minutes=30) + READ_EXPIRES


async def test_a_request_whose_turn_comes_too_late_is_not_sent_and_no_key_is_called_wrong(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("READ_EXPIRES", "CHANGE_EXPIRES"):
        monkeypatch.setattr(f"sysvm.cloudstack.client.{name}", CLOCK_TOLERANCE + timedelta(seconds=0.2))
    server.says(answer({"listzonesresponse": {}}))
    async with client(server, may_change=FULL, requests_per_second=2, burst=1) as cloud:
        await cloud.call("listZones")
        with pytest.raises(TimedOut, match=r"not sent: .*\. Raise spec\.api\.limits\.requestsPerSecond"):
            await cloud.call("listZones")
        told = await CloudJobs(cloud, lambda: NOW).submit(Call(Command.REBOOT_ROUTER, "a"))
    assert isinstance(told, NotMade), "the operation makes its call when it is its turn"
    assert len(server.seen) == 1


async def test_keys_and_signatures_are_never_in_a_url(server: Server) -> None:
    server.says(answer({"restartnetworkresponse": {"jobid": "j"}}))
    async with client(server, may_change=FULL) as cloud:
        await cloud.call("listZones")
        await cloud.submit("restartNetwork", id="a")
    assert [(seen.method, seen.query) for seen in server.seen] == [("POST", {}), ("POST", {})]


async def test_a_cancelled_change_stays_cancelled(server: Server) -> None:
    arrived = asyncio.Event()

    async def never(request: web.Request) -> web.StreamResponse:
        arrived.set()
        await asyncio.Event().wait()
        raise AssertionError

    server.says(never)
    async with client(server, may_change=FULL) as cloud:
        task = asyncio.create_task(cloud.submit("restartNetwork", id="a"))
        await arrived.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_kept_connection_that_breaks_does_not_send_a_change_twice(server: Server) -> None:
    server.says(answer({"listzonesresponse": {}}), cut)
    async with client(server, may_change=FULL) as cloud:
        await cloud.call("listZones")
        with pytest.raises(OutcomeUnknown):
            await cloud.submit("restartNetwork", id="a")
    assert [seen.form["command"] for seen in server.seen] == ["listZones", "restartNetwork"]
    assert server.seen[0].peer == server.seen[1].peer, "on the same connection"
