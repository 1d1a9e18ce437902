"""A release from the hypervisor host to its VM by the host itself, over real OpenSSH servers; with its own key only."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncssh
import pytest
import pytest_asyncio
from tests.integration.openssh import OpenSSH, find_sshd, make_key, user
from tests.integration.test_host_payload import Behind, another_build
from tests.integration.test_live_patch import ORDER, make_bench, payload_of

from lab.content import payloads, releases
from sysvm.patching.host_sending import HostSending
from sysvm.patching.results import HostLogin, JournalPhase, OperationReport

pytestmark = [
    pytest.mark.skipif(
        find_sshd() is None,
        reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)",
    ),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client: install openssh-client"),
]

SCRIPTS, AGENT = payloads.build_scripts(releases.new()), payloads.build_agent(releases.new())


@pytest_asyncio.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    """An SSVM behind a host that holds the release, and whose `id_rsa.cloud` the VM accepts."""
    bench = make_bench(tmp_path, "secstorage", agent=True)
    folder = tmp_path / "kvm-1"
    folder.mkdir()
    key = make_key(tmp_path, "kvm")
    host = OpenSSH(folder, [key], bench.server.program, host_keys=[make_key(folder, "ssh_host")])
    known = f"[127.0.0.1]:{host.port} {host.public_host_key()}\n"
    login = HostLogin(user=user(), port=host.port, private_key=key.read_bytes(), known_hosts=known)
    bench.patcher.hosts.folder = str(folder / "vms")
    root = bench.vm.root
    take = f"{sys.executable} -I -B {root}/var/lib/sysvm/program/current/sysvm.pyz --root {root} arrive "
    bench.patcher.sending = HostSending(key_file=str(bench.key), worth_bytes=1, take=take)
    made = Behind(bench, host, login, folder / "vms")
    made.keeps(SCRIPTS, AGENT)
    with bench.server.running(), host.running(f"SetEnv PATH={os.environ['PATH']}"):
        yield made
        await bench.patcher.close()


async def patch(behind: Behind) -> OperationReport:
    payload = payload_of(releases.new(), agent=True)
    report = await behind.bench.patcher.patch(behind.target, payload, ORDER, lambda _: None)
    assert report.phase is JournalPhase.COMMITTED, report
    for path, content in releases.new().scripts.items():
        if path.startswith("opt/cloud/"):
            assert behind.bench.vm.read(path) == content, path
    jar = f"usr/local/cloud/systemvm/{releases.AGENT_JAR}"
    assert behind.bench.vm.read(jar) == releases.new().agent[releases.AGENT_JAR]
    assert behind.bench.vm.signature == payload.signature
    return report


def staged(report: OperationReport) -> str:
    return next(step.message for step in report.steps if step.name == "Stage")


def sent(report: OperationReport) -> int:
    count = next(step.bytes_sent for step in report.steps if step.name == "Stage")
    assert count is not None
    return count


async def test_what_the_host_holds_it_sends_and_the_operator_sends_the_order(behind: Behind) -> None:
    report = await patch(behind)
    assert "bytes from hypervisor host kvm-1" in staged(report)
    assert "; 0 contents, 0 bytes" in staged(report)
    assert sent(report) < 40_000, "what is expected is said, and nothing else"


@pytest.mark.parametrize("why", ["no key", "a key that the VM refuses"])
async def test_without_a_login_of_the_host_the_operator_sends_all(behind: Behind, tmp_path: Path, why: str) -> None:
    key = tmp_path / "nowhere" if why == "no key" else make_key(tmp_path, "other")
    behind.bench.patcher.sending = dataclasses.replace(_sending(behind), key_file=str(key))
    report = await patch(behind)
    told = "that its user" if why == "no key" else "Permission denied"
    assert told in staged(report)
    assert "sent 0 contents itself" in staged(report)
    assert sent(report) > 90_000


async def test_of_another_agent_zip_nothing_is_sent_and_of_the_hosts_own_scripts_all(behind: Behind) -> None:
    theirs = another_build(SCRIPTS)
    behind.keeps(theirs, payloads.build_agent(releases.new(), build_seed=4))
    payload = payload_of(releases.new(), agent=True)
    report = await behind.bench.patcher.patch(behind.target, payload, ORDER, lambda _: None)
    assert report.phase is JournalPhase.COMMITTED, report
    assert f"{len(theirs)} bytes from hypervisor host kvm-1" in staged(report)
    assert behind.bench.vm.read("usr/share/cloud/cloud-scripts.tgz") == theirs


async def test_a_program_that_takes_nothing_is_a_detour_and_no_failure(behind: Behind) -> None:
    behind.bench.patcher.sending = dataclasses.replace(_sending(behind), take="false ")
    report = await patch(behind)
    assert "sent 0 contents itself and no more (status 1" in staged(report)


async def test_a_vm_that_talks_without_end_fills_nobodys_memory(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said = asyncssh.SSHClientConnection.run, []

    async def heard(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        done = await run(self, *args, **kwargs)
        said.append(len(done.stdout or "") + len(done.stderr or ""))
        return done

    monkeypatch.setattr(asyncssh.SSHClientConnection, "run", heard)
    talk = "yes | head -c 5000000; yes words | head -c 5000000 >&2; exit 3; "
    behind.bench.patcher.sending = dataclasses.replace(_sending(behind), take=talk)
    report = await patch(behind)
    assert "sent 0 contents itself and no more (status 3, words" in staged(report)
    assert max(said) < 4096


async def test_a_file_that_is_replaced_in_the_middle_is_not_believed(behind: Behind) -> None:
    payload = payload_of(releases.new(), agent=True)
    sending = _sending(behind)

    class Replaced(HostSending):
        async def send(self, *args, **kwargs):  # type: ignore[no-untyped-def]
            behind.keeps(SCRIPTS, bytes(len(AGENT)))
            return await super().send(*args, **kwargs)

    behind.bench.patcher.sending = Replaced(key_file=sending.key_file, worth_bytes=1, take=sending.take)
    report = await behind.bench.patcher.patch(behind.target, payload, ORDER, lambda _: None)
    assert report.phase is JournalPhase.COMMITTED, report
    jar = f"usr/local/cloud/systemvm/{releases.AGENT_JAR}"
    assert behind.bench.vm.read(jar) == releases.new().agent[releases.AGENT_JAR]
    assert "itself and no more" in staged(report)


def _sending(behind: Behind) -> HostSending:
    assert behind.bench.patcher.sending is not None
    return behind.bench.patcher.sending
