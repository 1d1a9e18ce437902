"""The agent of an SSVM is exchanged: it is up again when it is connected; a release whose agent is not goes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from tests.system.test_live_patch import patch, payload, told

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import releases
from lab.management import agent_port
from sysvm.api.reasons import Reason
from sysvm.patching.results import JournalPhase, OperationReport

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

NAME = "s-81-VM"
HOME = "/usr/local/cloud/systemvm"
PROPERTIES = f"{HOME}/conf/agent.properties"


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("agent"))
    try:
        made.up([VMSpec(name=NAME, type=SystemVMType.SECSTORAGE, index=81)], release="old")
        yield made
    finally:
        made.down()


def release(name: str, jar: bytes, properties: bytes = b"") -> releases.Release:
    start = releases.old()
    text = start.agent["conf/agent.properties"] + properties
    return start.derive(name, agent_change={releases.AGENT_JAR: jar, "conf/agent.properties": text})


def connections(lab: Lab) -> int:
    return lab.exec(NAME, "ss -Htn state established dst :8250").stdout.count("172.20.0.1")


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def acted(report: OperationReport) -> dict[str, str]:
    return {service.name: service.action for service in report.services}


@pytest.mark.timeout(300)
async def test_an_agent_that_had_no_connection_need_not_have_one_afterwards(lab: Lab) -> None:
    assert connections(lab) == 0
    report = await patch(lab, NAME, payload(release("agent-1", b"the first")), 1)
    assert report.phase is JournalPhase.COMMITTED, told(report)
    assert "connected" not in report.message


@pytest.mark.timeout(300)
async def test_the_new_agent_is_connected_and_its_new_settings_are_beside_those_of_the_vm(lab: Lab) -> None:
    before = lab.read_bytes(NAME, PROPERTIES)
    assert b"workers=5" in before
    more = b"ssl.handshake.timeout=30\nworkers=99\ninstance=Dropped\n# a comment\n"
    with agent_port(lab) as seen:
        until(lambda: connections(lab) == 1)
        report = await patch(lab, NAME, payload(release("agent-2", b"the second", more)), 2)
        assert report.phase is JournalPhase.COMMITTED, told(report)
        assert acted(report)["cloud"] == "Start", told(report)
        assert "the agent was connected to the management server" in report.message
        assert connections(lab) == 1
        assert seen == ["172.20.1.81"] * 2
    assert lab.read_bytes(NAME, PROPERTIES) == before + b"ssl.handshake.timeout=30\n"
    assert lab.read_bytes(NAME, f"{HOME}/{releases.AGENT_JAR}") == b"the second"


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("jar", "said"), [(b"exits", "it did not stay alive"), (b"silent", "no connection")])
async def test_an_agent_that_dies_or_never_connects_goes_back_to_the_old_one(lab: Lab, jar: bytes, said: str) -> None:
    before = lab.snapshot_tree(NAME, [HOME, "/opt/cloud", "/etc"])
    number = {b"exits": 3, b"silent": 4}[jar]
    with agent_port(lab):
        until(lambda: connections(lab) == 1)
        wanted = payload(release(f"agent-{number}", jar, f"only.in.{number}=1\n".encode()))
        report = await patch(lab, NAME, wanted, number, step_timeout_seconds=15)
        assert report.phase is JournalPhase.ROLLED_BACK, told(report)
        assert report.reason is Reason.SERVICE_FAILED
        assert said in report.message
        assert connections(lab) == 1
        assert lab.exec(NAME, ["systemctl", "is-active", "cloud"]).stdout.strip() == "active"
    now = lab.snapshot_tree(NAME, [HOME, "/opt/cloud", "/etc"])
    assert {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)} == set()
