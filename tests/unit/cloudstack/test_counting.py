"""What is asked of a management server can be counted, and costs no more than it must."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest
from tests.unit.cloudstack.recorded import FULL, Server, access, answer, cut, recorded

from sysvm.cloudstack.client import CloudStack
from sysvm.cloudstack.errors import CloudStackError
from sysvm.telemetry.metrics import Metrics


async def test_every_request_is_counted_by_command_and_code(server: Server) -> None:
    metrics = Metrics()
    server.says(recorded("listZones"), cut, recorded("listZones"), recorded("error.wrongsecret"), cut)
    async with CloudStack(access(server.url), may_change=FULL, observer=metrics, chance=lambda: 0.0) as cloud:
        await cloud.call("listZones")
        await cloud.call("listZones")
        with pytest.raises(CloudStackError):
            await cloud.call("listZones")
        with pytest.raises(CloudStackError):
            await cloud.submit("restartNetwork", id="a")
    said = generate_latest(metrics.registry).decode()
    assert 'sysvm_cloudstack_requests_total{code="200",command="listZones"} 2.0' in said
    assert 'sysvm_cloudstack_requests_total{code="0",command="listZones"} 1.0' in said
    assert 'sysvm_cloudstack_requests_total{code="401",command="listZones"} 1.0' in said
    assert 'sysvm_cloudstack_requests_total{code="0",command="restartNetwork"} 1.0' in said
    assert 'sysvm_cloudstack_request_seconds_count{command="listZones"} 4.0' in said


async def test_a_client_keeps_one_connection_for_what_it_asks_in_turn(server: Server) -> None:
    server.says(answer({"listzonesresponse": {}}))
    async with CloudStack(access(server.url)) as cloud:
        for _ in range(20):
            await cloud.call("listZones")
    assert len({seen.peer for seen in server.seen}) == 1
