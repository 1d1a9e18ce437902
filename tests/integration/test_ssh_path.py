"""What goes over the wire before anybody is trusted: the offers of the client, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh
import pytest
from tests.integration.openssh import OpenSSH, find_sshd, make_key, user

from sysvm.api.endpoint import HostKeyPolicy, SSHAlgorithms, SystemVMType
from sysvm.api.reasons import Reason
from sysvm.patching.errors import HostKeyRejected, Unreachable
from sysvm.patching.results import SSHAccount, Target
from sysvm.patching.ssh import SSHTransport

OLD = ("sha1", "md5", "cbc", "arcfour", "ssh-dss", "group1-", "group-exchange", "3des", "rc4", "umac-64", "-96")
FIELDS = (
    "key exchange",
    "host key",
    "cipher to the VM",
    "cipher from the VM",
    "MAC to the VM",
    "MAC from the VM",
    "compression to the VM",
    "compression from the VM",
)


def target(port: int, key: bytes, **changes: object) -> Target:
    account = SSHAccount(
        user=user(), port=port, private_key=key, host_key_policy=HostKeyPolicy.TRUST_ON_FIRST_USE, pool="test"
    )
    return Target(name="r-1-VM", type=SystemVMType.ROUTER, address="127.0.0.1", account=account, **changes)  # type: ignore[arg-type]


def legacy(to: Target) -> Target:
    return dataclasses.replace(to, account=dataclasses.replace(to.account, algorithms=SSHAlgorithms.LEGACY))


@pytest.fixture
def cloud_key(tmp_path: Path) -> bytes:
    return make_key(tmp_path, "id_rsa.cloud", "rsa", form="PEM").read_bytes()


# ------------------------------------------------------------------------------------------ what is offered


@dataclass
class Listener:
    """Greets like a server, and keeps the first packet of whoever comes."""

    port: int = 0
    offers: dict[str, list[str]] = field(default_factory=dict)
    heard: asyncio.Event = field(default_factory=asyncio.Event)


@contextlib.asynccontextmanager
async def listener() -> AsyncIterator[Listener]:
    found = Listener()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        await reader.readline()
        length, padding = struct.unpack(">IB", await reader.readexactly(5))
        packet = await reader.readexactly(length - 1)
        assert packet[0] == 20, "the first packet is no KEXINIT"
        at, payload = 17, packet[: len(packet) - padding]
        for name in FIELDS:
            (size,) = struct.unpack_from(">I", payload, at)
            found.offers[name] = payload[at + 4 : at + 4 + size].decode().split(",")
            at += 4 + size
        found.heard.set()
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    async with server:
        yield found


async def test_only_modern_algorithms_are_offered(cloud_key: bytes) -> None:
    async with listener() as server:
        with pytest.raises(Unreachable):
            async with SSHTransport().connect(target(server.port, cloud_key)):
                pass
        await asyncio.wait_for(server.heard.wait(), 10)
    for name in FIELDS:
        assert server.offers[name], name
        assert not [one for one in server.offers[name] if any(word in one for word in OLD)], name
    assert "ssh-rsa" not in server.offers["host key"]
    assert server.offers["compression to the VM"] == server.offers["compression from the VM"] == ["none"]
    assert not [one for one in server.offers["cipher to the VM"] if "gcm" not in one and "ctr" not in one]


@pytest.mark.parametrize("pinned", ["rsa", "ed25519"])
async def test_a_kept_key_of_any_kind_brings_no_old_algorithm_back(
    tmp_path: Path, cloud_key: bytes, pinned: str
) -> None:
    kept = Path(f"{make_key(tmp_path, 'kept', pinned)}.pub").read_text()
    async with listener() as server:
        with pytest.raises(Unreachable):
            async with SSHTransport().connect(target(server.port, cloud_key, pinned_host_key=kept)):
                pass
    assert "ssh-rsa" not in server.offers["host key"]
    assert server.offers["host key"][0] == ("rsa-sha2-512" if pinned == "rsa" else "ssh-ed25519")


# ------------------------------------------------------------------------------------------ what is sent to a stranger


@dataclass
class Ears:
    """An asyncssh server that keeps what a client asks of it."""

    port: int = 0
    begun: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)


@contextlib.asynccontextmanager
async def ears(host_key: asyncssh.SSHKey, *accepted: str, **options: object) -> AsyncIterator[Ears]:
    found = Ears()

    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            found.begun.append(username)
            return True

        def public_key_auth_supported(self) -> bool:
            return True

        def password_auth_supported(self) -> bool:
            return True

        def kbdint_auth_supported(self) -> bool:
            return True

        def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
            found.keys.append(key.get_fingerprint())
            return key.get_fingerprint() in accepted

        def validate_password(self, username: str, password: str) -> bool:
            found.passwords.append(password)
            return False

    server = await asyncssh.listen("127.0.0.1", 0, server_factory=Server, server_host_keys=[host_key], **options)
    found.port = server.get_port()
    async with server:
        yield found


async def test_a_stranger_learns_neither_user_nor_key(cloud_key: bytes) -> None:
    """The host key is judged inside the key exchange: no service is asked for, so no name and no key leave."""
    known = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    async with ears(asyncssh.generate_private_key("ssh-ed25519")) as server:
        with pytest.raises(HostKeyRejected) as caught:
            async with SSHTransport().connect(target(server.port, cloud_key, pinned_host_key=known)):
                pass
    assert (server.begun, server.keys, server.passwords) == ([], [], [])
    assert caught.value.reason is Reason.HOST_KEY_CHANGED
    assert f"spec.acceptHostKey of the SystemVM to {caught.value.fingerprint}" in str(caught.value)


async def test_no_key_but_the_clouds_is_ever_shown(
    tmp_path: Path, cloud_key: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the agent's keys nor those of the home folder, nor what its configuration says, nor a password."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    for kind in ("rsa", "ed25519", "ecdsa"):
        make_key(home / ".ssh", f"id_{kind}", kind)
    own = make_key(tmp_path, "agents", "ed25519")
    (home / ".ssh/config").write_text(
        "Host *\n  User somebody-else\n  IdentityFile ~/.ssh/id_ed25519\n  ProxyJump nowhere\n"
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SSH_PASSWORD", "canary")
    asked: list[bytes] = []

    async def agent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1))
        writer.close()

    place = f"/tmp/sysvm-agent-{os.getpid()}"
    listening = await asyncio.start_unix_server(agent, place)
    monkeypatch.setenv("SSH_AUTH_SOCK", place)
    assert own.exists()
    try:
        async with ears(asyncssh.generate_private_key("ssh-ed25519")) as server:
            with pytest.raises(Unreachable) as caught:
                async with SSHTransport().connect(target(server.port, cloud_key)):
                    pass
    finally:
        listening.close()
        os.unlink(place)
    assert caught.value.reason is Reason.SSH_AUTHENTICATION_FAILED
    assert set(server.keys) == {asyncssh.import_private_key(cloud_key).get_fingerprint()}
    assert set(server.begun) == {user()}
    assert server.passwords == []
    assert asked == []


async def test_an_rsa_key_never_signs_with_sha1(cloud_key: bytes) -> None:
    """A server that takes nothing else is not logged in to, and the sentence says so."""
    fingerprint = asyncssh.import_private_key(cloud_key).get_fingerprint()
    host = asyncssh.generate_private_key("ssh-ed25519")
    async with ears(host, fingerprint, signature_algs=["ssh-rsa"]) as server:
        with pytest.raises(Unreachable):
            async with SSHTransport().connect(target(server.port, cloud_key)):
                pass
    async with (
        ears(host, fingerprint, signature_algs=["rsa-sha2-256"]) as server,
        SSHTransport().connect(target(server.port, cloud_key)),
    ):
        pass


# ------------------------------------------------------------------------------------------ old VMs

# What OpenSSH 7.4 offers by default, as far as the server here still knows it.
DEBIAN_9 = """\
KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256,diffie-hellman-group14-sha1
Ciphers chacha20-poly1305@openssh.com,aes128-ctr,aes192-ctr,aes256-ctr,aes128-gcm@openssh.com,aes256-gcm@openssh.com
MACs umac-64-etm@openssh.com,hmac-sha2-256-etm@openssh.com,hmac-sha1-etm@openssh.com,umac-64@openssh.com,hmac-sha1
HostKeyAlgorithms rsa-sha2-512,rsa-sha2-256
""".splitlines()


@pytest.fixture
def old_server(tmp_path: Path, cloud_key: bytes) -> OpenSSH:
    program = find_sshd()
    if program is None:
        pytest.skip("no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)")
    folder = tmp_path / "ssh"
    folder.mkdir()
    return OpenSSH(folder, [tmp_path / "id_rsa.cloud"], program, host_keys=[make_key(folder, "host_rsa", "rsa")])


async def test_a_vm_of_debian_9_or_10_is_reached_without_an_old_algorithm(
    old_server: OpenSSH, cloud_key: bytes
) -> None:
    with old_server.running(*DEBIAN_9):
        async with SSHTransport().connect(target(old_server.port, cloud_key)) as connection:
            assert (await connection.ssh.run("echo in", check=True)).stdout == "in\n"
            spoken = {connection.ssh.get_extra_info(name) for name in ("send_cipher", "recv_cipher", "send_mac")}
            assert "aes128-gcm@openssh.com" in spoken


async def test_a_vm_without_gcm_is_reached_with_ctr_and_sha2(old_server: OpenSSH, cloud_key: bytes) -> None:
    with old_server.running("Ciphers aes128-ctr,aes256-ctr", "MACs hmac-sha1,hmac-sha2-256"):
        async with SSHTransport().connect(target(old_server.port, cloud_key)) as connection:
            assert connection.ssh.get_extra_info("send_mac") == "hmac-sha2-256"


SWITCH = "set spec.ssh.algorithms of its CloudStackEndpoint to Legacy"
OLD_SERVERS = {
    "key exchange": ("KexAlgorithms diffie-hellman-group14-sha1",),
    "message digest": ("Ciphers aes128-ctr", "MACs hmac-sha1"),
    "host key": ("HostKeyAlgorithms ssh-rsa",),
    "login": ("PubkeyAcceptedAlgorithms ssh-rsa",),
    "all of it": (
        "KexAlgorithms diffie-hellman-group14-sha1",
        "Ciphers aes128-ctr",
        "MACs hmac-sha1",
        "HostKeyAlgorithms ssh-rsa",
        "PubkeyAcceptedAlgorithms ssh-rsa",
    ),
}


@pytest.mark.parametrize("has_only_sha1_for", OLD_SERVERS)
async def test_a_vm_that_has_sha1_only_is_left_alone_and_the_sentence_names_the_switch(
    old_server: OpenSSH, cloud_key: bytes, has_only_sha1_for: str
) -> None:
    with old_server.running(*OLD_SERVERS[has_only_sha1_for]), pytest.raises(Unreachable) as caught:
        async with SSHTransport().connect(target(old_server.port, cloud_key)):
            pass
    assert SWITCH in str(caught.value)
    told = {"login": "does not accept the SSH key", "host key": "ended the connection before the login"}
    assert told.get(has_only_sha1_for, "no SSH algorithm in common") in str(caught.value)


@pytest.mark.parametrize("pinned", [False, True], ids=["first contact", "known key"])
@pytest.mark.parametrize("has_only_sha1_for", OLD_SERVERS)
async def test_the_switch_lets_such_a_vm_be_reached(
    old_server: OpenSSH, cloud_key: bytes, has_only_sha1_for: str, pinned: bool
) -> None:
    known = Path(f"{old_server.host_keys[0]}.pub").read_text() if pinned else None
    to = legacy(target(old_server.port, cloud_key, pinned_host_key=known))
    with old_server.running(*OLD_SERVERS[has_only_sha1_for]):
        async with SSHTransport().connect(to) as connection:
            assert (await connection.ssh.run("echo in", check=True)).stdout == "in\n"


async def test_the_switch_does_not_excuse_a_changed_host_key(old_server: OpenSSH, cloud_key: bytes) -> None:
    other = asyncssh.generate_private_key("ssh-rsa").export_public_key().decode()
    to = legacy(target(old_server.port, cloud_key, pinned_host_key=other))
    with old_server.running(*OLD_SERVERS["all of it"]), pytest.raises(HostKeyRejected):
        async with SSHTransport().connect(to):
            pass


async def test_one_process_speaks_to_both_kinds_of_endpoints(old_server: OpenSSH, cloud_key: bytes) -> None:
    """What is allowed for one endpoint is not for another with the same key."""
    transport = SSHTransport()
    modern = target(old_server.port, cloud_key)
    with old_server.running(*OLD_SERVERS["all of it"]):
        async with transport.connect(legacy(modern)):
            pass
        with pytest.raises(Unreachable, match=SWITCH):
            async with transport.connect(modern):
                pass


async def test_with_the_switch_whatever_is_newer_still_comes_first(cloud_key: bytes) -> None:
    async with listener() as server:
        with pytest.raises(Unreachable):
            async with SSHTransport().connect(target(server.port, cloud_key)):
                pass
        modern = {name: list(server.offers[name]) for name in FIELDS}
        server.heard.clear()
        with pytest.raises(Unreachable):
            async with SSHTransport().connect(legacy(target(server.port, cloud_key))):
                pass
    never = ("md5", "cbc", "arcfour", "ssh-dss", "group1-", "3des", "rc4", "umac-64", "-96")
    added = set()
    for name in FIELDS:
        extension = {"ext-info-c", "kex-strict-c-v00@openssh.com"}
        old, new = ([one for one in offered if one not in extension] for offered in (modern[name], server.offers[name]))
        assert new[: len(old)] == old, name
        assert not [one for one in new if any(word in one for word in never)], name
        added |= set(new) - set(old)
    assert added == {
        "diffie-hellman-group-exchange-sha256",
        "diffie-hellman-group14-sha1",
        "hmac-sha1",
        "hmac-sha1-etm@openssh.com",
        "ssh-rsa",
    }


async def test_with_the_switch_a_modern_vm_is_spoken_to_as_before(old_server: OpenSSH, cloud_key: bytes) -> None:
    with old_server.running():
        async with SSHTransport().connect(legacy(target(old_server.port, cloud_key))) as connection:
            assert connection.ssh.get_extra_info("send_cipher") == "aes128-gcm@openssh.com"
            assert "sha1" not in str(connection.ssh.get_extra_info("kex_alg"))
