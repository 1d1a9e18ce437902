"""Releases from machines of the cloud, over SSH: real OpenSSH servers that hold payloads, and one that is cut."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.openssh import OpenSSH, find_sshd, make_key, user
from tests.unit.patching import made_packages as made

from sysvm.api.reasons import Reason
from sysvm.patching.dialling import Dialler, SSHTimeouts
from sysvm.patching.errors import PayloadError
from sysvm.patching.host_source import Machine, MachineSource, SSHMachines
from sysvm.patching.hosts import HostPayloads
from sysvm.patching.jumps import Jumps
from sysvm.patching.results import HostLogin, HostPlace
from sysvm.patching.sources import PayloadSources

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)


@dataclass
class Cloud:
    """Machines with sshd and a folder of their own; `HostPayloads.folder` is one path, so each has its own reader."""

    folder: Path
    servers: dict[str, OpenSSH]
    machines: list[Machine]
    source: MachineSource

    def holds(self, name: str, scripts: bytes, agent: bytes | None = None) -> None:
        vms = self.folder / name
        vms.mkdir(exist_ok=True)
        (vms / "cloud-scripts.tgz").write_bytes(scripts)
        (vms / "agent.zip").unlink(missing_ok=True)
        if agent is not None:
            (vms / "agent.zip").write_bytes(agent)


class _EachWithItsFolder:
    """On one machine, `/usr/share/cloudstack-common/vms` cannot be three folders."""

    def __init__(self, jumps: Jumps, folder: Path) -> None:
        self._jumps, self._folder = jumps, folder
        self._readers: dict[str, SSHMachines] = {}

    def _of(self, machine: Machine) -> SSHMachines:
        if machine.name not in self._readers:
            payloads = HostPayloads(self._jumps)
            payloads.folder = str(self._folder / machine.name)
            self._readers[machine.name] = SSHMachines(payloads)
        return self._readers[machine.name]

    files = property(lambda self: lambda machine: self._of(machine).files(machine))
    read = property(lambda self: lambda machine, file: self._of(machine).read(machine, file))


@pytest_asyncio.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    program = find_sshd()
    assert program is not None
    key = make_key(tmp_path, "ms")
    servers, machines = {}, []
    for name in ("ms-1", "ms-2", "ms-3"):
        (tmp_path / f"{name}.d").mkdir()
        server = OpenSSH(tmp_path / f"{name}.d", [key], program, host_keys=[make_key(tmp_path / f"{name}.d", "host")])
        known = f"[127.0.0.1]:{server.port} {server.public_host_key()}\n"
        login = HostLogin(user(), server.port, key.read_bytes(), known)
        servers[name] = server
        machines.append(Machine(HostPlace(name, "127.0.0.1"), login))
    jumps = Jumps(Dialler(SSHTimeouts(connect=5.0), 8), rest_seconds=0.1)
    sources = PayloadSources(cache=tmp_path / "cache", mounted=tmp_path)
    found = Cloud(tmp_path, servers, machines, MachineSource(_EachWithItsFolder(jumps, tmp_path), sources))
    with servers["ms-1"].running(), servers["ms-2"].running():
        yield found
        await jumps.close()


async def test_machines_are_asked_and_one_of_them_is_read(cloud: Cloud) -> None:
    for name in ("ms-1", "ms-2"):
        cloud.holds(name, made.scripts(), made.agent())
    held = await cloud.source.ask(cloud.machines[:2])
    assert [each.machine.name for each in held] == ["ms-1", "ms-2"]
    assert {each.files.scripts.sha256 for each in held if each.files} == {hashlib.sha256(made.scripts()).hexdigest()}
    paths = await cloud.source.fetch(held)
    assert paths.agent is not None
    assert (paths.scripts.read_bytes(), paths.agent.read_bytes()) == (made.scripts(), made.agent())


async def test_a_machine_without_a_payload_says_so(cloud: Cloud) -> None:
    cloud.holds("ms-1", made.scripts())
    held = await cloud.source.ask(cloud.machines[:2])
    assert [each.files is None for each in held] == [False, True]


async def test_two_builds_are_read_as_one_revision(cloud: Cloud) -> None:
    cloud.holds("ms-1", made.scripts())
    cloud.holds("ms-2", gzip.compress(gzip.decompress(made.scripts()), 1, mtime=7))
    first, second = await cloud.source.ask(cloud.machines[:2])
    paths = [await cloud.source.fetch([each]) for each in (first, second)]
    assert paths[0].scripts != paths[1].scripts
    assert len({await cloud.source.revision(each) for each in paths}) == 1


async def test_a_machine_that_is_down_is_named(cloud: Cloud) -> None:
    cloud.holds("ms-1", made.scripts())
    with pytest.raises(PayloadError, match="1 of 2 machines cannot be asked") as caught:
        await cloud.source.ask([cloud.machines[0], cloud.machines[2]])
    assert "ms-3" in str(caught.value)
    assert caught.value.reason is Reason.HOST_UNREACHABLE
    assert caught.value.retryable


async def test_a_machine_that_shows_another_host_key_is_sent_nothing(cloud: Cloud) -> None:
    stranger = cloud.machines[1]
    wrong = HostLogin(
        stranger.login.user, cloud.machines[0].login.port, stranger.login.private_key, stranger.login.known_hosts
    )
    with pytest.raises(PayloadError) as caught:
        await cloud.source.ask([Machine(HostPlace("ms-x", "127.0.0.1"), wrong)])
    assert caught.value.reason is Reason.HOST_NOT_TRUSTED
    assert not caught.value.retryable


async def test_a_file_that_changes_after_it_was_asked_for_is_not_taken(cloud: Cloud) -> None:
    cloud.holds("ms-1", made.scripts())
    held = await cloud.source.ask(cloud.machines[:1])
    other = bytearray(made.scripts())
    other[-1] ^= 1
    (cloud.folder / "ms-1" / "cloud-scripts.tgz").write_bytes(bytes(other))
    with pytest.raises(PayloadError) as caught:
        await cloud.source.fetch(held)
    assert caught.value.reason is Reason.DIGEST_MISMATCH
    assert not list(cloud.source.sources.cache.iterdir())
