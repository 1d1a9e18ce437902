"""The SSH transport against a real OpenSSH server on loopback."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_IGNORE
from asyncssh.packet import SSHPacketLogger
from tests.integration.openssh import GREETING, OpenSSH, find_sshd, free_port, make_key, silent_host, user

from sysvm.api.endpoint import HostKeyPolicy, SystemVMType
from sysvm.api.reasons import Reason
from sysvm.patching.dialling import SSHTimeouts
from sysvm.patching.errors import HostKeyRejected, Unreachable
from sysvm.patching.framing import ProtocolError
from sysvm.patching.keys import KeyUnreadable, load_private_key
from sysvm.patching.results import SSHAccount, Target
from sysvm.patching.session import open_session
from sysvm.patching.ssh import SSHTransport

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)


@pytest.fixture
def cloud_key(tmp_path: Path) -> Path:
    return make_key(tmp_path, "id_rsa.cloud", "ecdsa", form="PEM")


@pytest.fixture
def server(tmp_path: Path, cloud_key: Path) -> Iterator[OpenSSH]:
    program = find_sshd()
    assert program is not None
    yield OpenSSH(tmp_path, [cloud_key], program, host_keys=[make_key(tmp_path, "host_ed25519")])


def target(port: int, key: Path, **changes: object) -> Target:
    account = {
        "user": user(),
        "port": port,
        "private_key": key.read_bytes(),
        "host_key_policy": HostKeyPolicy.TRUST_ON_FIRST_USE,
        "pool": "test",
    }
    names = ("pinned_host_key", "accepted_fingerprint", "name")
    account.update({name: value for name, value in changes.items() if name not in names})
    rest = {name: value for name, value in changes.items() if name in names}
    return Target(
        **{"name": "r-1-VM", "type": SystemVMType.ROUTER, "address": "127.0.0.1", **rest},  # type: ignore[arg-type]
        account=SSHAccount(**account),  # type: ignore[arg-type]
    )


async def test_first_contact_learns_the_host_key_and_later_ones_require_it(server: OpenSSH, cloud_key: Path) -> None:
    transport = SSHTransport()
    with server.running():
        async with transport.connect(target(server.port, cloud_key)) as first:
            assert (await first.ssh.run("echo in", check=True)).stdout == "in\n"
        assert first.host_key.public_key == server.public_host_key()
        assert first.host_key.fingerprint.startswith("SHA256:")
        pinned = target(server.port, cloud_key, pinned_host_key=first.host_key.public_key)
        async with transport.connect(pinned) as second:
            assert second.host_key == first.host_key


async def test_a_changed_host_key_is_rejected_before_anything_is_sent(
    server: OpenSSH, cloud_key: Path, tmp_path: Path
) -> None:
    old = server.public_host_key()
    server.host_keys = [make_key(tmp_path, "host_new")]
    with server.running("LogLevel VERBOSE"), pytest.raises(HostKeyRejected) as caught:
        async with SSHTransport().connect(target(server.port, cloud_key, pinned_host_key=old)):
            pass
    new = asyncssh.import_public_key(server.public_host_key()).get_fingerprint()
    assert caught.value.reason is Reason.HOST_KEY_CHANGED
    assert caught.value.fingerprint == new
    assert not caught.value.retryable
    for word in (new, asyncssh.import_public_key(old).get_fingerprint(), "spec.acceptHostKey"):
        assert word in str(caught.value)
    assert "publickey" not in (tmp_path / "sshd.log").read_text()


async def test_a_host_key_that_a_person_accepted_is_taken_in_place_of_the_old(
    server: OpenSSH, cloud_key: Path, tmp_path: Path
) -> None:
    old = server.public_host_key()
    server.host_keys = [make_key(tmp_path, "host_new")]
    fingerprint = asyncssh.import_public_key(server.public_host_key()).get_fingerprint()
    with server.running():
        accepted = target(server.port, cloud_key, pinned_host_key=old, accepted_fingerprint=fingerprint)
        async with SSHTransport().connect(accepted) as connection:
            assert connection.host_key.public_key == server.public_host_key()


async def test_a_second_host_key_beside_the_known_one_changes_nothing(
    server: OpenSSH, cloud_key: Path, tmp_path: Path
) -> None:
    server.host_keys = [make_key(tmp_path, "host_rsa", "rsa")]
    known = server.public_host_key()
    server.host_keys = [make_key(tmp_path, "host_more"), *server.host_keys]
    with server.running():
        async with SSHTransport().connect(target(server.port, cloud_key, pinned_host_key=known)) as connection:
            assert connection.host_key.public_key == known


async def test_strict_accepts_only_what_known_hosts_lists(server: OpenSSH, cloud_key: Path, tmp_path: Path) -> None:
    other = " ".join(Path(f"{make_key(tmp_path, 'other')}.pub").read_text().split()[:2])
    place = f"[127.0.0.1]:{server.port}"
    strict = {"host_key_policy": HostKeyPolicy.STRICT}
    with server.running():
        transport = SSHTransport()
        right = target(server.port, cloud_key, known_hosts=f"{place} {server.public_host_key()}\n", **strict)
        async with transport.connect(right) as connection:
            assert connection.host_key.public_key == server.public_host_key()
        wrong = target(server.port, cloud_key, known_hosts=f"{place} {other}\n", **strict)
        with pytest.raises(HostKeyRejected) as changed:
            async with transport.connect(wrong):
                pass
        assert changed.value.reason is Reason.HOST_KEY_CHANGED
        nobody = target(server.port, cloud_key, known_hosts=f"[127.0.0.9]:{server.port} {other}\n", **strict)
        with pytest.raises(HostKeyRejected) as unknown:
            async with transport.connect(nobody):
                pass
        assert unknown.value.reason is Reason.HOST_KEY_UNKNOWN
        with pytest.raises(KeyUnreadable) as missing:
            async with transport.connect(target(server.port, cloud_key, **strict)):
                pass
        assert missing.value.reason is Reason.KNOWN_HOSTS_MISSING


@pytest.mark.parametrize(("kind", "form"), [("rsa", "PEM"), ("rsa", ""), ("ecdsa", "PEM"), ("ed25519", "")])
async def test_every_kind_of_cloud_key_logs_in(tmp_path: Path, server: OpenSSH, kind: str, form: str) -> None:
    key = make_key(tmp_path, f"key-{kind}-{form}", kind, form=form)
    server.authorized = [key]
    with server.running():
        async with SSHTransport().connect(target(server.port, key)) as connection:
            assert (await connection.ssh.run("true")).exit_status == 0


async def test_a_key_that_the_vm_does_not_know_is_an_authentication_failure(server: OpenSSH, tmp_path: Path) -> None:
    stranger = make_key(tmp_path, "stranger")
    with server.running(), pytest.raises(Unreachable) as caught:
        async with SSHTransport().connect(target(server.port, stranger)):
            pass
    assert caught.value.reason is Reason.SSH_AUTHENTICATION_FAILED
    assert f"127.0.0.1 port {server.port}" in str(caught.value)


async def test_a_closed_port_is_told_from_a_silent_host(cloud_key: Path) -> None:
    transport = SSHTransport(timeouts=SSHTimeouts(connect=1.0, login=1.0))
    with pytest.raises(Unreachable, match="refuses the connection") as refused:
        async with transport.connect(target(free_port(), cloud_key)):
            pass
    assert refused.value.reason is Reason.SSH_UNREACHABLE
    async with silent_host() as port:
        with pytest.raises(Unreachable, match="did not answer within 1 s") as silent:
            async with transport.connect(target(port, cloud_key)):
                pass
    assert silent.value.reason is Reason.SSH_TIMEOUT
    assert silent.value.retryable


async def test_an_sshd_that_greets_and_lets_nobody_in_is_given_up_and_told(server: OpenSSH, cloud_key: Path) -> None:
    """Of those who greet, two at once would hold up all others for ever, or for as long as an sshd likes."""
    transport = SSHTransport(timeouts=SSHTimeouts(connect=30.0, login=3.0), handshakes=2)
    async with asyncio.timeout(25), silent_host(GREETING) as port:
        waiting = [asyncio.create_task(_fails(transport, target(port, cloud_key))) for _ in range(2)]
        await asyncio.sleep(0.2)
        with server.running():
            async with transport.connect(target(server.port, cloud_key)):
                pass
        failures = [await task for task in waiting]
    for failure in failures:
        assert "answered, but let nobody in within 3 s" in str(failure)
        assert (failure.reason, failure.retryable) == (Reason.SSH_TIMEOUT, True)


@pytest.mark.parametrize("address", ["no-such-host.invalid", "a..b", f"{'x' * 80}.example"])
async def test_a_name_that_nobody_knows_is_told(cloud_key: Path, address: str) -> None:
    failure = await _fails(SSHTransport(), dataclasses.replace(target(free_port(), cloud_key), address=address))
    assert failure.reason is Reason.SSH_UNREACHABLE
    assert "cannot be resolved" in str(failure)


async def test_silent_hosts_do_not_delay_the_others(server: OpenSSH, cloud_key: Path) -> None:
    transport = SSHTransport(timeouts=SSHTimeouts(connect=3.0), handshakes=1)
    with server.running():
        async with silent_host() as port:
            waiting = [asyncio.create_task(_fails(transport, target(port, cloud_key))) for _ in range(4)]
            async with asyncio.timeout(2), transport.connect(target(server.port, cloud_key)):
                assert not any(task.done() for task in waiting)
            assert {(await task).reason for task in waiting} == {Reason.SSH_TIMEOUT}


async def _fails(transport: SSHTransport, vm: Target) -> Unreachable:
    with pytest.raises(Unreachable) as caught:
        async with transport.connect(vm):
            pass
    return caught.value


async def test_a_host_that_closes_at_once_is_tried_again_and_told(cloud_key: Path) -> None:
    asked = 0

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.close()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with listener:
        failure = await _fails(SSHTransport(), target(listener.sockets[0].getsockname()[1], cloud_key))
    assert failure.reason is Reason.SSH_UNREACHABLE
    assert "before the login" in str(failure)
    assert asked == 3


async def test_no_more_connections_than_the_endpoint_allows(server: OpenSSH, cloud_key: Path) -> None:
    transport = SSHTransport()
    limited = target(server.port, cloud_key, connections=2)
    now = most = 0

    async def connect() -> None:
        nonlocal now, most
        async with transport.connect(limited) as connection:
            now += 1
            most = max(most, now)
            await connection.ssh.run("true")
            now -= 1

    with server.running():
        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(connect())
    assert most == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [(b"not a key", "cannot be read"), (b"", "cannot be read"), (None, "passphrase"), (b"public", "public key")],
)
def test_an_unusable_private_key_says_why_and_shows_nothing(tmp_path: Path, text: bytes | None, says: str) -> None:
    if text is None:
        text = make_key(tmp_path, "locked", passphrase="secret words").read_bytes()
    if text == b"public":
        text = Path(f"{make_key(tmp_path, 'open')}.pub").read_bytes()
    with pytest.raises(KeyUnreadable, match=says) as caught:
        load_private_key(text)
    assert caught.value.reason is Reason.CREDENTIALS_UNREADABLE
    for line in text.decode(errors="replace").split():
        assert len(line) < 20 or line not in str(caught.value)


async def test_a_cut_during_a_transfer_is_a_lost_connection(server: OpenSSH, cloud_key: Path) -> None:
    """The program is replaced by one that says hello and then only listens."""
    start = (
        "python3 -c 'import os,struct,sys\n"
        'f=b"{\\"program\\":\\"wanted\\"}"\n'
        'os.write(1,b"motd of the day\\n\\0SYSVM/1\\n"+struct.pack(">cI",b"J",len(f))+f)\n'
        'n=struct.unpack(">I",os.read(0,4))[0]\n'
        "while n: n-=len(os.read(0,n))\n"
        'h=b"{\\"hello\\":\\"sysvm\\",\\"version\\":1,\\"program\\":\\"x\\",\\"python\\":\\"3\\"}"\n'
        'os.write(1,struct.pack(">cI",b"J",len(h))+h)\n'
        "while os.read(0,65536): pass'"
    )

    async def endless() -> object:
        while True:
            yield b"x" * 65536
            await asyncio.sleep(0)

    with server.running():
        async with SSHTransport().connect(target(server.port, cloud_key)) as connection:
            with pytest.raises(Unreachable) as caught:
                async with open_session(connection.ssh, "r-1-VM", start) as session:
                    asyncio.get_running_loop().call_later(0.5, server.stop_sessions)
                    await session.request("stage", {"items": []}, dict, timeout=20, content=endless())  # type: ignore[arg-type]
    assert caught.value.reason is Reason.CONNECTION_LOST


async def test_nothing_is_sent_beside_the_data(
    server: OpenSSH, cloud_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncssh has no option for it: if this fails after an upgrade, look at `_send_no_padding`."""
    kinds: list[int] = []
    log = SSHPacketLogger.log_sent_packet

    def noting(self: object, kind: int, *args: object) -> None:
        kinds.append(kind)
        log(self, kind, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(SSHPacketLogger, "log_sent_packet", noting)
    with server.running():
        async with SSHTransport().connect(target(server.port, cloud_key)) as connection:
            assert MSG_IGNORE in kinds, "asyncssh sends no padding any more: take away what leaves it out"
            kinds.clear()
            done = await connection.ssh.run("sha256sum", input=b"x" * 1_000_000, encoding=None)
            assert isinstance(done.stdout, bytes)
            assert done.stdout.split()[0].decode() == hashlib.sha256(b"x" * 1_000_000).hexdigest()
    assert kinds.count(MSG_CHANNEL_DATA) > 20
    assert MSG_IGNORE not in kinds


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("exec no-such-python3", Reason.NOT_A_SYSTEM_VM),
        ("echo This is a coffee machine", Reason.PROTOCOL_ERROR),
        ("cat /dev/zero", Reason.PROTOCOL_ERROR),
    ],
)
async def test_a_machine_that_answers_with_something_else_is_told(
    server: OpenSSH, cloud_key: Path, start: str, reason: Reason
) -> None:
    with server.running():
        async with SSHTransport().connect(target(server.port, cloud_key)) as connection:
            with pytest.raises(ProtocolError) as caught:
                async with open_session(connection.ssh, "r-1-VM", start):
                    pass
    assert caught.value.reason is reason
    assert "r-1-VM" in str(caught.value)


async def test_neither_key_nor_address_of_a_vm_is_logged(
    server: OpenSSH, cloud_key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with server.running():
        vm = target(server.port, cloud_key)
        async with SSHTransport().connect(vm):
            pass
    assert "asyncssh" not in {record.name for record in caplog.records}
    assert "PRIVATE" not in repr(vm)
