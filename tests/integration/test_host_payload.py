"""The payload that a hypervisor host keeps: read on the way to its VMs, and left on them where it is the release."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.openssh import OpenSSH, find_sshd, make_key, user
from tests.integration.test_live_patch import ORDER, Bench, make_bench, payload_of

from lab.content import payloads, releases
from sysvm.api.observed import ContentState
from sysvm.api.reasons import Reason
from sysvm.patching.errors import HostUnreachable, PatchingError, PayloadError, Refused, Unreachable
from sysvm.patching.hosts import HostPayloads, read_file
from sysvm.patching.payload import scripts_revision
from sysvm.patching.results import HostFile, HostLogin, HostPlace, JournalPhase, Target, Through

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)

KVM = HostPlace("kvm-1", "127.0.0.1")


def another_build(packed: bytes) -> bytes:
    """The same files from another distribution's packaging."""
    return gzip.compress(gzip.decompress(packed), 1, mtime=1)


@dataclasses.dataclass
class Behind:
    """A VM behind a host that keeps a payload."""

    bench: Bench
    host: OpenSSH
    login: HostLogin
    vms: Path

    @property
    def target(self) -> Target:
        async def located(*, again: bool) -> HostPlace:
            return KVM

        return dataclasses.replace(self.bench.target, through=Through(self.login, located, "KVM"))

    @property
    def payloads(self) -> HostPayloads:
        return self.bench.patcher.hosts

    def keeps(self, scripts: bytes, agent: bytes | None = None) -> None:
        self.vms.mkdir(exist_ok=True)
        for name, content in (("cloud-scripts.tgz", scripts), ("agent.zip", agent)):
            if content is not None:
                (self.vms / f".{name}").write_bytes(content)
                (self.vms / f".{name}").replace(self.vms / name)

    @property
    def reads(self) -> int:
        """How often the host read an archive to its end."""
        log = self.vms.parent / "sums.log"
        return len(log.read_text().splitlines()) if log.exists() else 0


@pytest_asyncio.fixture
async def behind(tmp_path: Path) -> AsyncIterator[Behind]:
    bench = make_bench(tmp_path)
    folder = tmp_path / "kvm-1"
    tools = folder / "bin"
    tools.mkdir(parents=True)
    (tools / "sha512sum").write_text(f'#!/bin/sh\necho read >> {folder}/sums.log\nexec /usr/bin/sha512sum "$@"\n')
    (tools / "sha512sum").chmod(0o755)
    key = make_key(tmp_path, "kvm")
    host = OpenSSH(folder, [key], bench.server.program, host_keys=[make_key(folder, "ssh_host")])
    known = f"[127.0.0.1]:{host.port} {host.public_host_key()}\n"
    login = HostLogin(user=user(), port=host.port, private_key=key.read_bytes(), known_hosts=known)
    bench.patcher.hosts.folder = str(folder / "vms")
    with bench.server.running(), host.running(f"SetEnv PATH={tools}:{os.environ['PATH']}"):
        yield Behind(bench, host, login, folder / "vms")
        await bench.patcher.close()


async def test_a_host_reads_its_archives_only_when_they_have_changed(behind: Behind) -> None:
    packed, agent = payloads.build_scripts(releases.new()), payloads.build_agent(releases.new())
    behind.keeps(packed, agent)
    first = await behind.payloads.files(KVM, behind.login, "KVM", max_age_seconds=0.0)
    assert first is not None
    assert first.checksums == {"md5": hashlib.md5(packed).hexdigest(), "sha512": hashlib.sha512(packed).hexdigest()}
    assert (first.scripts.size, first.scripts.sha256) == (len(packed), hashlib.sha256(packed).hexdigest())
    assert first.agent is not None
    assert (first.agent.size, first.agent.sha256) == (len(agent), hashlib.sha256(agent).hexdigest())
    for _ in range(3):
        assert await behind.payloads.files(KVM, behind.login, "KVM", max_age_seconds=0.0) == first
    assert behind.reads == 1
    behind.keeps(another_build(packed))
    assert await behind.payloads.files(KVM, behind.login, "KVM", max_age_seconds=60.0) == first, "it was asked just now"
    second = await behind.payloads.files(KVM, behind.login, "KVM", max_age_seconds=0.0)
    assert second is not None
    assert second.checksums != first.checksums
    assert second.agent == first.agent
    assert behind.reads == 2


async def test_two_builds_of_the_same_files_are_one_revision(behind: Behind) -> None:
    packed = payloads.build_scripts(releases.new())
    behind.keeps(another_build(packed))
    found = await behind.payloads.payload(KVM, behind.login, "KVM", max_age_seconds=0.0)
    assert found is not None
    assert found.host == "kvm-1"
    assert found.scripts_revision == payload_of(releases.new()).scripts_revision
    assert found.files.checksums["sha512"] != hashlib.sha512(packed).hexdigest()
    assert found.scripts_revision == scripts_revision(payload_of(releases.new(), agent=True).scripts.entries)


async def test_a_host_without_a_payload_or_with_a_broken_one_says_so(behind: Behind) -> None:
    assert await behind.payloads.files(KVM, behind.login, "KVM", max_age_seconds=0.0) is None
    behind.keeps(b"cut in the middle")
    assert await behind.payloads.files(KVM, behind.login, "XenServer", max_age_seconds=0.0) is None, "kept elsewhere"
    found = await behind.payloads.payload(KVM, behind.login, "KVM", max_age_seconds=0.0)
    assert found is not None
    assert found.scripts_revision is None


@pytest.mark.parametrize("breaks", [OpenSSH.stop_sessions, OpenSSH.stop_commands], ids=["connection", "command"])
async def test_a_file_is_read_on_where_it_was_cut(
    behind: Behind, tmp_path: Path, breaks: Callable[[OpenSSH], None]
) -> None:
    content = os.urandom(24 << 20)
    (tmp_path / "big").write_bytes(content)
    file = HostFile(str(tmp_path / "big"), len(content), hashlib.sha256(content).hexdigest())
    digest, seen, cuts = hashlib.sha256(), 0, 0
    async for piece in read_file(behind.payloads.jumps, KVM, behind.login, file):
        digest.update(piece)
        seen += len(piece)
        if seen > (cuts + 1) * (8 << 20) and cuts < 2:
            cuts += 1
            breaks(behind.host)
    assert (cuts, seen, digest.hexdigest()) == (2, len(content), file.sha256)
    rest = b"".join(
        [piece async for piece in read_file(behind.payloads.jumps, KVM, behind.login, file, offset=1 << 20)]
    )
    assert rest == content[1 << 20 :]


async def test_a_file_that_is_shorter_than_it_was_said_to_be_is_told(behind: Behind, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x" * 10)
    with pytest.raises(PayloadError) as caught:
        [
            piece
            async for piece in read_file(
                behind.payloads.jumps, KVM, behind.login, HostFile(str(tmp_path / "short"), 20, "")
            )
        ]
    assert "10 of 20 bytes" in str(caught.value)
    assert caught.value.retryable


async def test_a_look_tells_what_the_host_keeps(behind: Behind) -> None:
    behind.keeps(payloads.build_scripts(releases.old()))
    seen = await behind.bench.patcher.observe(behind.target, payload_of(releases.new()))
    assert seen.host_payload is not None
    assert seen.host_payload.scripts_revision == payload_of(releases.old()).scripts_revision
    assert (await behind.bench.patcher.observe(behind.bench.target, None)).host_payload is None, "no host is on the way"


async def test_the_hosts_build_of_the_release_stays_on_the_vm(behind: Behind) -> None:
    theirs = another_build(payloads.build_scripts(releases.new()))
    behind.keeps(theirs)
    payload, patcher, vm = payload_of(releases.new()), behind.bench.patcher, behind.bench.vm
    order = dataclasses.replace(ORDER, same_as_host=True)
    report = await patcher.patch(behind.target, payload, order, behind.bench.seen.append)
    assert report.phase is JournalPhase.COMMITTED, report.message
    assert vm.read("usr/share/cloud/cloud-scripts.tgz") == theirs
    algorithm = payload.signature_algorithm
    assert vm.signature == hashlib.new(algorithm, theirs).hexdigest() != payload.signature
    after = await patcher.observe(behind.target, payload)
    assert after.content is not None
    assert after.content.state is ContentState.MATCHES


async def test_a_vm_that_its_host_would_take_back_is_not_patched_unless_told_to(behind: Behind) -> None:
    behind.keeps(payloads.build_scripts(releases.old()))
    payload, patcher, vm = payload_of(releases.new()), behind.bench.patcher, behind.bench.vm
    before = vm.manifest()
    with pytest.raises(Refused) as caught:
        order = dataclasses.replace(ORDER, same_as_host=True)
        await patcher.patch(behind.target, payload, order, behind.bench.seen.append)
    assert caught.value.reason is Reason.HOST_PAYLOAD_MISMATCH
    assert "kvm-1" in str(caught.value)
    assert vm.manifest() == before
    report = await patcher.patch(
        behind.target, payload, dataclasses.replace(ORDER, id="op-2"), behind.bench.seen.append
    )
    assert report.phase is JournalPhase.COMMITTED, report.message
    assert vm.signature == payload.signature


async def test_another_vm_at_the_address_is_not_looked_at_and_not_patched(behind: Behind) -> None:
    patcher, vm = behind.bench.patcher, behind.bench.vm
    vm.write("var/cache/cloud/cmdline", b"template=domP name=r-2-VM type=vpcrouter eth0ip=127.0.0.1\n")
    before = vm.manifest()
    for attempt in (
        patcher.observe(behind.target, None),
        patcher.patch(behind.target, payload_of(releases.new()), ORDER, behind.bench.seen.append),
    ):
        with pytest.raises(PatchingError) as caught:
            await attempt
        assert isinstance(caught.value, Unreachable)
        assert caught.value.reason is Reason.WRONG_VM
        assert "r-1-VM" in str(caught.value)
        assert "r-2-VM answers" in str(caught.value)
    assert vm.manifest() == before


async def test_a_login_that_may_do_nothing_but_pass_through_and_read_is_enough(behind: Behind) -> None:
    """What docs/routes.md says to write into authorized_keys."""
    public = Path(f"{behind.host.authorized[0]}.pub")
    port = behind.bench.server.port
    public.write_text(f'restrict,port-forwarding,permitopen="*:{port}" {public.read_text()}')
    (behind.host.folder / "authorized_keys").write_text(public.read_text())
    behind.keeps(payloads.build_scripts(releases.new()))
    seen = await behind.bench.patcher.observe(behind.target, payload_of(releases.new()))
    assert seen.host_payload is not None
    assert seen.host_payload.scripts_revision == payload_of(releases.new()).scripts_revision
    elsewhere = dataclasses.replace(behind.target.account, port=behind.host.port)
    with pytest.raises(HostUnreachable) as caught:
        await behind.bench.patcher.observe(dataclasses.replace(behind.target, account=elsewhere), None)
    assert caught.value.reason is Reason.HOST_REFUSES
