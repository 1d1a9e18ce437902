"""VMs behind hypervisor hosts: real OpenSSH servers in both parts."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.openssh import GREETING, OpenSSH, find_sshd, free_port, make_key, silent_host, user

from sysvm.api.endpoint import HostKeyPolicy, SystemVMType
from sysvm.api.reasons import Reason
from sysvm.patching.dialling import SSHTimeouts
from sysvm.patching.errors import HostKeyRejected, HostUnreachable, PatchingError, Unreachable
from sysvm.patching.results import HostLogin, HostPlace, SSHAccount, Target, Through
from sysvm.patching.ssh import SSHTransport

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)


@dataclasses.dataclass
class Located:
    """Where a VM is said to run: first here, then, if it is asked again, there."""

    first: HostPlace | None
    then: HostPlace | None = None
    asked: list[bool] = dataclasses.field(default_factory=list)

    async def __call__(self, *, again: bool) -> HostPlace | None:
        self.asked.append(again)
        return self.then if again and self.then is not None else self.first


@dataclasses.dataclass
class Cloud:
    """Two hosts and a VM; which host leads to it is only a matter of what the hosts allow."""

    folder: Path
    hosts: dict[str, OpenSSH]
    vm: OpenSSH
    host_key: Path
    vm_key: Path

    def place(self, name: str) -> HostPlace:
        # Any address of the loopback, so that each host has its own beside its own port.
        return HostPlace(name, "127.0.0.1")

    def login(self, name: str = "kvm-1", **changes: object) -> HostLogin:
        host = self.hosts[name]
        login = HostLogin(
            user=user(),
            port=host.port,
            private_key=self.host_key.read_bytes(),
            known_hosts=f"[127.0.0.1]:{host.port} {host.public_host_key()}\n",
        )
        return dataclasses.replace(login, **changes)  # type: ignore[arg-type]

    def target(self, located: Located | None = None, login: HostLogin | None = None, **changes: object) -> Target:
        account = SSHAccount(
            user=user(),
            port=self.vm.port,
            private_key=self.vm_key.read_bytes(),
            host_key_policy=HostKeyPolicy.TRUST_ON_FIRST_USE,
            pool="test",
        )
        through = Through(login or self.login(), located or Located(self.place("kvm-1")), "KVM")
        target = Target("r-1-VM", SystemVMType.ROUTER, "127.0.0.1", account, through=through)
        return dataclasses.replace(target, **changes)  # type: ignore[arg-type]

    def log_of(self, name: str) -> str:
        return (self.hosts[name].folder / "sshd.log").read_text()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    program = find_sshd()
    assert program is not None
    vm_key, host_key = make_key(tmp_path, "id_rsa.cloud"), make_key(tmp_path, "host_key")

    def server(name: str, key: Path) -> OpenSSH:
        folder = tmp_path / name
        folder.mkdir()
        return OpenSSH(folder, [key], program, host_keys=[make_key(folder, "ssh_host")])

    yield Cloud(
        tmp_path,
        {name: server(name, host_key) for name in ("kvm-1", "kvm-2")},
        server("vm", vm_key),
        host_key,
        vm_key,
    )


def logins(cloud: Cloud, name: str) -> int:
    return cloud.log_of(name).count("Accepted publickey")


async def test_vms_share_the_connection_of_their_host_and_keep_their_own_host_keys(cloud: Cloud) -> None:
    transport = SSHTransport()
    with cloud.hosts["kvm-1"].running("LogLevel VERBOSE"), cloud.vm.running():

        async def greet() -> str:
            async with transport.connect(cloud.target()) as connection:
                assert connection.host_key.public_key == cloud.vm.public_host_key()
                assert connection.hop is not None
                assert connection.hop.place.name == "kvm-1"
                return str((await connection.ssh.run("echo in", check=True)).stdout)

        assert await asyncio.gather(*(greet() for _ in range(12))) == ["in\n"] * 12
        assert logins(cloud, "kvm-1") == 1
        await transport.close()


async def test_a_changed_host_key_of_a_vm_is_rejected_behind_a_host_too(cloud: Cloud) -> None:
    other = " ".join(Path(f"{make_key(cloud.folder, 'other')}.pub").read_text().split()[:2])
    with cloud.hosts["kvm-1"].running(), cloud.vm.running("LogLevel VERBOSE"):
        with pytest.raises(HostKeyRejected) as caught:
            async with SSHTransport().connect(cloud.target(pinned_host_key=other)):
                pass
        assert caught.value.reason is Reason.HOST_KEY_CHANGED
        assert "publickey" not in (cloud.vm.folder / "sshd.log").read_text()


@pytest.mark.parametrize("listed", ["", "[127.0.0.1]:{port} {other}\n"])
async def test_a_host_that_known_hosts_does_not_have_is_sent_nothing(cloud: Cloud, listed: str) -> None:
    other = " ".join(Path(f"{make_key(cloud.folder, 'other')}.pub").read_text().split()[:2])
    host = cloud.hosts["kvm-1"]
    login = cloud.login(known_hosts=listed.format(port=host.port, other=other))
    with host.running("LogLevel DEBUG1"), cloud.vm.running():
        with pytest.raises(HostUnreachable) as caught:
            async with SSHTransport().connect(cloud.target(login=login)):
                pass
        assert caught.value.reason is Reason.HOST_NOT_TRUSTED
        assert not caught.value.retryable
        for word in ("r-1-VM", "kvm-1", "known_hosts", "SHA256:"):
            assert word in str(caught.value)
        assert "userauth" not in cloud.log_of("kvm-1")


async def test_known_hosts_may_list_a_host_by_its_name(cloud: Cloud) -> None:
    host = cloud.hosts["kvm-1"]
    login = cloud.login(known_hosts=f"[kvm-1]:{host.port} {host.public_host_key()}\n")
    transport = SSHTransport()
    with host.running(), cloud.vm.running():
        async with transport.connect(cloud.target(login=login)) as connection:
            assert connection.host_key.public_key == cloud.vm.public_host_key()
        await transport.close()


async def test_a_key_that_the_host_refuses_is_the_hosts_trouble(cloud: Cloud) -> None:
    login = cloud.login(private_key=make_key(cloud.folder, "stranger").read_bytes())
    with cloud.hosts["kvm-1"].running(), pytest.raises(HostUnreachable) as caught:
        async with SSHTransport().connect(cloud.target(login=login)):
            pass
    assert caught.value.reason is Reason.HOST_REFUSES
    assert "jump.keySecretRef" in str(caught.value)


async def test_a_host_that_forwards_nothing_is_the_hosts_trouble(cloud: Cloud) -> None:
    with (
        cloud.hosts["kvm-1"].running("AllowTcpForwarding no"),
        cloud.vm.running(),
        pytest.raises(HostUnreachable) as caught,
    ):
        async with SSHTransport().connect(cloud.target()):
            pass
    assert caught.value.reason is Reason.HOST_REFUSES
    assert "AllowTcpForwarding" in str(caught.value)


async def test_a_vm_that_does_not_listen_is_the_vms_trouble(cloud: Cloud) -> None:
    with cloud.hosts["kvm-1"].running(), pytest.raises(Unreachable) as caught:
        async with SSHTransport().connect(cloud.target()):
            pass
    assert not isinstance(caught.value, HostUnreachable)
    assert caught.value.reason is Reason.SSH_UNREACHABLE
    for word in ("r-1-VM", "behind hypervisor host kvm-1", "refused"):
        assert word in str(caught.value)


async def test_a_vm_that_is_silent_is_the_vms_trouble_and_holds_up_no_other(cloud: Cloud) -> None:
    transport = SSHTransport(timeouts=SSHTimeouts(connect=2.0), handshakes=1)
    with cloud.hosts["kvm-1"].running(), cloud.vm.running():
        async with silent_host() as port:
            silent = cloud.target()
            silent = dataclasses.replace(silent, account=dataclasses.replace(silent.account, port=port))

            async def fails() -> Unreachable:
                with pytest.raises(Unreachable) as caught:
                    async with transport.connect(silent):
                        pass
                return caught.value

            waiting = [asyncio.create_task(fails()) for _ in range(3)]
            await asyncio.sleep(0.2)
            began = time.monotonic()
            async with transport.connect(cloud.target()):
                assert not any(task.done() for task in waiting), "it waited for the silent ones"
                assert time.monotonic() - began < 2.0
            failures = await asyncio.gather(*waiting)
        assert {failure.reason for failure in failures} == {Reason.SSH_TIMEOUT}
        await transport.close()


async def test_a_vm_that_greets_and_lets_nobody_in_is_given_up_behind_its_host_too(cloud: Cloud) -> None:
    transport = SSHTransport(timeouts=SSHTimeouts(login=3.0))
    with cloud.hosts["kvm-1"].running():
        async with silent_host(GREETING) as port:
            mute = cloud.target()
            mute = dataclasses.replace(mute, account=dataclasses.replace(mute.account, port=port))
            with pytest.raises(Unreachable, match="answered, but let nobody in within 3 s") as caught:
                async with asyncio.timeout(25), transport.connect(mute):
                    pass
        assert not isinstance(caught.value, HostUnreachable)
        assert caught.value.reason is Reason.SSH_TIMEOUT
        assert "r-1-VM" in str(caught.value)
        assert "behind hypervisor host kvm-1" in str(caught.value)
        await transport.close()


async def test_a_host_that_greets_and_lets_nobody_in_is_its_own_trouble(cloud: Cloud) -> None:
    transport = SSHTransport(timeouts=SSHTimeouts(login=1.0))
    async with silent_host(GREETING) as port:
        with pytest.raises(HostUnreachable, match=r"kvm-1.* answered, but let nobody in within 1 s") as caught:
            async with transport.connect(cloud.target(login=cloud.login(port=port))):
                pass
    assert caught.value.reason is Reason.HOST_UNREACHABLE
    await transport.close()


async def test_a_host_that_is_down_is_asked_once_for_all_and_stops_nobody_behind_another(cloud: Cloud) -> None:
    transport = SSHTransport(timeouts=SSHTimeouts(connect=2.0))
    async with silent_host() as port:
        down = cloud.login(port=port)

        async def fails() -> HostUnreachable:
            with pytest.raises(HostUnreachable) as caught:
                async with transport.connect(cloud.target(login=down)):
                    pass
            return caught.value

        with cloud.hosts["kvm-1"].running(), cloud.vm.running():
            began = time.monotonic()
            waiting = [asyncio.create_task(fails()) for _ in range(20)]
            await asyncio.sleep(0.2)
            async with transport.connect(cloud.target()):
                assert not any(task.done() for task in waiting)
            failures = await asyncio.gather(*waiting)
            assert time.monotonic() - began < 2 * 2.0, "each of them waited for the host anew"
    assert {failure.reason for failure in failures} == {Reason.HOST_UNREACHABLE}
    assert all("r-1-VM" in str(failure) and "kvm-1" in str(failure) for failure in failures)
    await transport.close()


async def test_a_dead_connection_is_made_anew(cloud: Cloud) -> None:
    transport = SSHTransport()
    with cloud.hosts["kvm-1"].running("LogLevel VERBOSE") as host, cloud.vm.running():
        async with transport.connect(cloud.target()):
            host.stop_sessions()
        async with transport.connect(cloud.target()) as connection:
            assert (await connection.ssh.run("echo in", check=True)).stdout == "in\n"
        assert logins(cloud, "kvm-1") == 2
        await transport.close()


async def test_an_idle_connection_is_closed_and_one_in_use_is_not(cloud: Cloud) -> None:
    transport = SSHTransport()
    transport.jumps.idle_seconds = 0.2
    with cloud.hosts["kvm-1"].running("LogLevel VERBOSE"), cloud.vm.running():
        async with transport.connect(cloud.target()):
            async with transport.connect(cloud.target()) as second:
                pass
            await asyncio.sleep(0.5)
            assert second.hop is not None
            assert not second.hop.ssh.is_closed()
        async with asyncio.timeout(10):
            while not second.hop.ssh.is_closed():
                await asyncio.sleep(0.05)
        async with transport.connect(cloud.target()):
            assert logins(cloud, "kvm-1") == 2
        await transport.close()


async def test_a_vm_that_moved_is_found_behind_its_new_host(cloud: Cloud) -> None:
    """The old host is up and the VM is not behind it: it may not even try (PermitOpen), as with another's address."""
    transport = SSHTransport()
    old, new = cloud.hosts["kvm-1"], cloud.hosts["kvm-2"]
    new.port = free_port()
    known = "".join(f"[127.0.0.1]:{host.port} {host.public_host_key()}\n" for host in (old, new))
    with old.running("PermitOpen 127.0.0.1:1"), cloud.vm.running(), _listening_at("127.0.0.2", old.port, new):
        located = Located(HostPlace("kvm-1", "127.0.0.1"), HostPlace("kvm-2", "127.0.0.2"))
        login = cloud.login(known_hosts=f"{known}[kvm-2]:{old.port} {new.public_host_key()}\n")
        async with transport.connect(cloud.target(located, login)) as connection:
            assert connection.hop is not None
            assert connection.hop.place.name == "kvm-2"
        assert located.asked == [False, True]
        await transport.close()


@contextlib.contextmanager
def _listening_at(address: str, port: int, server: OpenSSH) -> Iterator[None]:
    """All hosts of a route have one port, so the second one gets another address of the loopback."""
    server.port = port
    with server.running(address=address):
        yield


async def test_a_vm_whose_host_nobody_knows_is_told_so(cloud: Cloud) -> None:
    with pytest.raises(HostUnreachable) as caught:
        async with SSHTransport().connect(cloud.target(Located(None))):
            pass
    assert caught.value.reason is Reason.HOST_UNKNOWN
    assert "r-1-VM" in str(caught.value)


async def test_a_cloud_that_cannot_be_asked_is_worth_another_try(cloud: Cloud) -> None:
    async def silent(*, again: bool) -> HostPlace | None:
        raise PatchingError("the management server does not answer")

    target = cloud.target()
    target = dataclasses.replace(target, through=Through(cloud.login(), silent))
    with pytest.raises(HostUnreachable) as caught:
        async with SSHTransport().connect(target):
            pass
    assert caught.value.reason is Reason.HOST_UNKNOWN
    assert caught.value.retryable
    assert "the management server does not answer" in str(caught.value)


async def test_work_leaves_one_place_for_looks(cloud: Cloud) -> None:
    transport = SSHTransport()
    login = cloud.login(connections=2)
    with cloud.hosts["kvm-1"].running(), cloud.vm.running():
        async with transport.connect(cloud.target(login=login), long=True):
            second = asyncio.create_task(_held(transport, cloud.target(login=login)))
            async with asyncio.timeout(10), transport.connect(cloud.target(login=login)):
                pass
            await asyncio.sleep(0.2)
            assert not second.done()
        async with asyncio.timeout(10):
            await second
        await transport.close()


async def _held(transport: SSHTransport, target: Target) -> None:
    async with transport.connect(target, long=True):
        pass


async def test_a_late_answer_of_a_slow_vm_leaves_no_channel_open(cloud: Cloud) -> None:
    """The VM's machine accepts the connection only after the operator gave up."""
    transport = SSHTransport(timeouts=SSHTimeouts(connect=0.5))
    with cloud.hosts["kvm-1"].running(), cloud.vm.running():
        async with transport.jumps.to(cloud.place("kvm-1"), cloud.login()) as hop:
            for _ in range(20):
                with contextlib.suppress(TimeoutError, Unreachable):
                    async with asyncio.timeout(0.002), transport.connect(cloud.target()):
                        pass
            async with asyncio.timeout(10):
                while hop.ssh._channels:
                    await asyncio.sleep(0.05)
        await transport.close()
