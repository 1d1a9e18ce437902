"""The whole operator and a VM behind a hypervisor host: SSH through a real sshd, a folder in the part of the VM."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.engine import objects
from tests.integration.engine.cluster import Namespace, condition, says, until
from tests.integration.engine.lives import identity
from tests.integration.engine.objects import Manifest
from tests.integration.openssh import OpenSSH, find_sshd, make_key, user
from tests.integration.test_host_payload import another_build
from tests.integration.test_live_patch import Bench, make_bench

from lab.content import payloads, releases
from lab.controlplane import ControlPlane
from sysvm.engine.resources import POLICY, SYSTEM_VM
from sysvm.kube.client import Cluster
from sysvm.operator.app import App
from sysvm.operator.settings import Settings
from sysvm.patching.live import LivePatcher

pytestmark = pytest.mark.skipif(
    find_sshd() is None, reason="no OpenSSH server: install openssh-server, or make the lab's roots once (make demo)"
)


@dataclass
class Scene:
    namespace: Namespace
    bench: Bench
    host: OpenSSH
    vms: Path

    async def vm(self) -> Manifest:
        return await self.namespace.get(SYSTEM_VM, "behind-r-1-vm")

    async def policy(self) -> Manifest:
        return await self.namespace.get(POLICY, "routers")

    def keeps(self, scripts: bytes) -> None:
        self.vms.mkdir(exist_ok=True)
        (self.vms / ".new").write_bytes(scripts)
        (self.vms / ".new").replace(self.vms / "cloud-scripts.tgz")


@pytest_asyncio.fixture
async def scene(control_plane: ControlPlane, crds: list[str], tmp_path: Path) -> AsyncIterator[Scene]:
    bench = make_bench(tmp_path)
    folder = tmp_path / "kvm-1"
    folder.mkdir()
    host_key = make_key(tmp_path, "kvm")
    host = OpenSSH(folder, [host_key], bench.server.program, host_keys=[make_key(folder, "ssh_host")])
    name = f"routes-{os.getpid()}"
    async with AsyncExitStack() as stack:
        environment, kubeconfig = await stack.enter_async_context(identity(control_plane, name))
        admin = await stack.enter_async_context(await Cluster.connect(kubeconfig=control_plane.kubeconfig))
        namespace = Namespace(admin, name)
        known_hosts = f"[127.0.0.1]:{host.port} {host.public_host_key()}\n"
        await namespace.create(
            objects.secret(name, **{objects.SECRET_KEY: bench.key.read_text()}),
            objects.secret(name, "kvm", id_ed25519=host_key.read_text()),
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "kvm", "namespace": name},
                "data": {"known_hosts": known_hosts},
            },
            objects.config_map(name, "new", payloads.build_scripts(releases.new())),
        )
        stack.enter_context(bench.server.running())
        more = {
            "KUBECONFIG": str(kubeconfig),
            "SYSVM_HTTP_HOST": "127.0.0.1",
            "SYSVM_HTTP_PORT": "0",
            "SYSVM_LEASE_SECONDS": "300",
            "SYSVM_CACHE_DIR": str(tmp_path / "cache"),
        }
        patcher = LivePatcher(start=bench.vm.start, host_payload_seconds=1.0)
        patcher.hosts.folder = str(folder / "vms")
        app = App(Settings.from_environment({**environment, **more}), patcher)
        running = asyncio.create_task(app.run())
        yield Scene(namespace, bench, host, folder / "vms")
        app.stop()
        await running


@pytest.mark.timeout(240)
async def test_a_vm_behind_a_host_is_held_until_its_host_has_the_release_and_then_brought_there(scene: Scene) -> None:
    here = scene.namespace
    jump = {
        "user": user(),
        "port": scene.host.port,
        "keySecretRef": {"name": "kvm", "key": "id_ed25519"},
        "knownHostsRef": {"name": "kvm", "key": "known_hosts"},
    }
    ssh = {
        "user": user(),
        "port": scene.bench.server.port,
        "keySecretRef": {"name": objects.SECRET, "key": objects.SECRET_KEY},
        "routes": [{"hypervisors": ["KVM"], "via": "Host", "jump": jump}, {"via": "Direct"}],
    }
    new = payloads.build_scripts(releases.new())
    theirs = another_build(new)
    vm = {
        "name": "r-1-VM",
        "type": scene.bench.vm.type,
        "address": "127.0.0.1",
        "host": "127.0.0.1",
        "hypervisor": "KVM",
    }
    before = scene.bench.vm.manifest()
    await here.create(
        objects.endpoint(here.name, "behind", [vm], ssh=ssh),
        objects.template(here.name, "new", new),
        objects.policy(here.name, "routers", "behind", "new"),
    )

    async def unreachable() -> bool:
        return says(await scene.vm(), "Reachable") == ("False", "HostUnreachable")

    async def found() -> Manifest | None:
        return await here.find(SYSTEM_VM, "behind-r-1-vm")

    await until(found, "the VM has its object")
    await until(unreachable, "the host is down, and that is said", story=here.picture)
    said = condition(await scene.vm(), "Reachable")["message"]
    assert "r-1-VM" in said
    assert "127.0.0.1" in said

    scene.keeps(payloads.build_scripts(releases.old()))
    with scene.host.running():

        async def held() -> bool:
            return says(await scene.policy()) == ("False", "HostPayloadMismatch")

        await until(held, "the policy waits for the host", story=here.picture)
        status = (await scene.vm())["status"]
        assert status["state"] == "Held"
        assert status["plan"]["reason"] == "HostPayloadMismatch"
        assert says(await scene.vm(), "HostPayloadMismatch") == ("True", "HostPayloadMismatch")
        assert status["observed"]["hostPayload"]["host"] == "127.0.0.1"
        assert scene.bench.vm.manifest() == before

        scene.keeps(theirs)

        async def converged() -> bool:
            return says(await scene.policy()) == ("True", "Converged")

        await until(converged, "the VM is at the release", within=120.0, story=here.picture)
        vm_now = await scene.vm()
        assert vm_now["status"]["state"] == "Converged"
        assert vm_now["status"]["plan"]["reason"] == "UpToDate"
        assert not condition(vm_now, "HostPayloadMismatch")
        assert scene.bench.vm.signature == vm_now["status"]["observed"]["signature"]["value"]
        assert vm_now["status"]["observed"]["hostPayload"]["checksum"].endswith(scene.bench.vm.signature)
        assert scene.bench.vm.read("usr/share/cloud/cloud-scripts.tgz") == theirs
