"""The operator's half of proving the way in, against a real OpenSSH server."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.integration.openssh import OpenSSH, find_sshd, make_key, user
from tests.integration.scratch_vm import ScratchVM

from lab.content import payloads, releases
from reach import patch_order
from sysvm.api.endpoint import HostKeyPolicy, SystemVMType
from sysvm.api.reasons import Reason
from sysvm.patching.live import LivePatcher
from sysvm.patching.logins import rsa_works
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, SSHAccount, Target
from sysvm.patching.ssh import SSHTransport

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)

SSHD = "etc/ssh/sshd_config"
ORDER = patch_order(settle_seconds=0.2, step_timeout_seconds=40, vm_timeout_seconds=90)

Server = Callable[[str], tuple[OpenSSH, Target]]


@pytest.fixture
def server(tmp_path: Path) -> Server:
    def build(kind: str) -> tuple[OpenSSH, Target]:
        program = find_sshd()
        assert program is not None
        key = make_key(tmp_path, "id_rsa.cloud", kind)
        (tmp_path / "ssh").mkdir()
        made = OpenSSH(tmp_path / "ssh", [key], program, host_keys=[make_key(tmp_path, "host")])
        account = SSHAccount(
            user=user(),
            port=made.port,
            private_key=key.read_bytes(),
            host_key_policy=HostKeyPolicy.TRUST_ON_FIRST_USE,
            connections=1,
        )
        return made, Target(name="r-1-VM", type=SystemVMType.VPCROUTER, address="127.0.0.1", account=account)

    return build


def changed_sshd_config() -> Payload:
    start = releases.old()
    text = start.scripts[SSHD] + b"LoginGraceTime 41\n"
    return read_payload(payloads.build_scripts(start.derive("sshd", change={SSHD: text})), None)


@pytest.mark.parametrize(("kind", "accepted"), [("rsa", "+ssh-rsa"), ("rsa", "-ssh-rsa"), ("ed25519", "+ssh-rsa")])
async def test_whether_cloudstacks_own_signature_is_taken_is_found_out(
    server: Server, kind: str, accepted: str
) -> None:
    made, target = server(kind)
    with made.running(f"PubkeyAcceptedAlgorithms {accepted}"):
        assert await rsa_works(SSHTransport(), target) is (kind == "rsa" and accepted == "+ssh-rsa")


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
async def test_a_changed_sshd_config_is_kept_when_a_new_login_works(server: Server, tmp_path: Path, kind: str) -> None:
    """Also where the endpoint allows one connection only: the new login does not wait for the one that is held."""
    made, target = server(kind)
    vm = ScratchVM(tmp_path, "vpcrouter").lay_out(releases.old())
    with made.running("PubkeyAcceptedAlgorithms +ssh-rsa"):
        report = await LivePatcher(start=vm.start).patch(target, changed_sshd_config(), ORDER, lambda _: None)
    assert report.phase is JournalPhase.COMMITTED, report
    assert b"LoginGraceTime 41" in vm.read(SSHD)


async def test_a_changed_sshd_config_goes_when_no_new_login_works(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, target = server("ed25519")
    vm = ScratchVM(tmp_path, "vpcrouter").lay_out(releases.old())
    before = vm.manifest()
    patcher = LivePatcher(start=vm.start)
    impatient = dataclasses.replace(ORDER, step_timeout_seconds=8)

    def forget_the_key(report: object) -> None:
        (made.folder / "authorized_keys").write_text("")

    with made.running():
        report = await patcher.patch(target, changed_sshd_config(), impatient, forget_the_key)
    assert (report.phase, report.reason) == (JournalPhase.ROLLED_BACK, Reason.SERVICE_FAILED), report
    assert "no new login was proven" in report.message
    assert vm.manifest() == before
