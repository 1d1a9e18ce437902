"""A release from real hypervisor hosts, put on a real system VM behind one of them."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import payloads, releases
from lab.hosts import Hosts
from reach import behind_host, login_of, patch_order
from sysvm.api.observed import ContentState
from sysvm.api.reasons import Reason
from sysvm.api.template import SystemVMTemplate
from sysvm.engine.payload_fetch import Machines, PayloadFetcher
from sysvm.kube.client import Cluster
from sysvm.patching.errors import PayloadError
from sysvm.patching.host_source import Machine, MachineSource, SSHMachines
from sysvm.patching.live import LivePatcher
from sysvm.patching.results import HostPlace, JournalPhase
from sysvm.patching.sources import PayloadSources

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.timeout(300),
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

VM = VMSpec(name="r-81-VM", type=SystemVMType.ROUTER, index=81, host="kvm-1", group="net-1")
HOSTS = ("kvm-1", "kvm-2")
ORDER = patch_order(same_as_host=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([])
        for name in HOSTS:
            Hosts(made).add(name, release="new")
        made.add(VM, release="old")
        yield made
    finally:
        made.down()


def template() -> SystemVMTemplate:
    metadata = {"name": "from-hosts", "namespace": "ns", "uid": "u"}
    return SystemVMTemplate.model_validate(
        {"metadata": metadata, "spec": {"version": "4.20.2", "payload": {"host": {}}}}
    )


def fetcher(patcher: LivePatcher, folder: Path) -> PayloadFetcher:
    sources = PayloadSources(cache=folder, mounted=folder)
    machines = MachineSource(SSHMachines(patcher.hosts), sources)
    return PayloadFetcher(cast("Cluster", None), sources, machines, lambda: datetime.now(UTC))


def machines(lab: Lab) -> Machines:
    login = login_of(lab)
    hosts = [Hosts(lab).get(name) for name in HOSTS]
    return Machines(tuple(Machine(HostPlace(host.name, str(host.address)), login, "KVM") for host in hosts))


async def test_hosts_that_disagree_give_no_release_and_their_vm_stays_as_it_is(lab: Lab, tmp_path: Path) -> None:
    patcher, hosts = LivePatcher(), Hosts(lab)
    before = lab.snapshot_tree(VM.name, ["/opt/cloud", "/var/cache/cloud"])
    old, new = releases.old(), releases.new()
    hosts.put_payload("kvm-2", scripts=payloads.build_scripts(old), agent=payloads.build_agent(old))
    try:
        with pytest.raises(PayloadError) as caught:
            await fetcher(patcher, tmp_path).fetch(template(), machines(lab))
    finally:
        hosts.put_payload("kvm-2", scripts=payloads.build_scripts(new), agent=payloads.build_agent(new))
        await patcher.close()
    assert caught.value.reason is Reason.HOSTS_DISAGREE
    for word in ("kvm-1", "kvm-2", "sha256:"):
        assert word in str(caught.value)
    assert lab.snapshot_tree(VM.name, ["/opt/cloud", "/var/cache/cloud"]) == before


async def test_what_two_hosts_hold_in_two_builds_is_one_release_and_goes_on_the_vm(lab: Lab, tmp_path: Path) -> None:
    patcher, hosts = LivePatcher(), Hosts(lab)
    another_build = gzip.compress(gzip.decompress(payloads.build_scripts(releases.new())), 1, mtime=1)
    hosts.put_payload("kvm-2", scripts=another_build, agent=payloads.build_agent(releases.new()))
    try:
        fetched = await fetcher(patcher, tmp_path).fetch(template(), machines(lab))
        assert fetched.pinned is not None
        assert fetched.pinned.machines == 2
        assert "another build of the same files" in " ".join(fetched.warnings)
        report = await patcher.patch(behind_host(lab, VM.name), fetched.payload, ORDER, lambda _: None)
        assert report.phase is JournalPhase.COMMITTED, report
        after = await patcher.observe(behind_host(lab, VM.name), fetched.payload)
    finally:
        await patcher.close()
    assert after.content is not None
    assert after.content.state is ContentState.MATCHES
    assert after.signature == hosts.get("kvm-1").payload_checksum(fetched.payload.signature_algorithm)
