"""Lives of the operator as a process of its own, in a namespace of its own, to be ended in every way there is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from tests.integration.engine import objects
from tests.integration.engine.cluster import Namespace
from tests.integration.engine.nursery import FLEET
from tests.integration.engine.simulated_vms import Fleet

from lab import chart
from lab.controlplane import ControlPlane
from sysvm.kube.client import Cluster

LEASE_SECONDS = 30
"""Of lives whose lease the test releases: long, so that a busy machine costs nobody the lead."""
ROOT = Path(__file__).resolve().parents[3]
_BIRTH_SECONDS = 120.0


@dataclass(frozen=True)
class Trial:
    """`at`: numbers and moments, for one life after the other. `again`: in turns for all; else the rest lives on."""

    at: tuple[str, ...]
    again: bool = False

    def __str__(self) -> str:
        return f"{'lives' if self.again else 'the first life'} killed at write {' and '.join(self.at)}"

    def death(self, life: int) -> str:
        """What the life of that number, from 0, dies of; empty: it lives on."""
        if self.again:
            return self.at[life % len(self.at)]
        return self.at[life] if life < len(self.at) else ""


UNDISTURBED = Trial(())


@dataclass
class Nursery:
    """One operator at a time. `environment`: what every life has (namespace, kubeconfig)."""

    process: asyncio.subprocess.Process
    environment: Mapping[str, str]
    log: Path
    pid: int = 0
    born: int = 0
    _end: asyncio.Task[int] | None = field(default=None, repr=False)

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, folder: Path, environment: Mapping[str, str]) -> AsyncIterator[Nursery]:
        folder.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join(str(ROOT / part) for part in ("controller", "hack", "."))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.integration.engine.nursery",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path},
        )
        nursery = cls(process, dict(environment), folder / "operator.log")
        try:
            yield nursery
        finally:
            if nursery.alive:
                await nursery.kill()
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()

    async def start(self, fleet: Fleet, **more: str) -> None:
        """A new life; the former one has ended."""
        assert not self.alive, "one at a time"
        assert self.process.stdin is not None
        environment = {**self.environment, FLEET: str(fleet.file), **more}
        self.process.stdin.write(json.dumps({"environment": environment, "log": str(self.log)}).encode() + b"\n")
        self.pid = (await self._answer())["pid"]
        self.born += 1
        self._end = asyncio.create_task(self._ended())

    @property
    def alive(self) -> bool:
        return self._end is not None and not self._end.done()

    async def kill(self) -> int:
        return await self._signal(signal.SIGKILL)

    async def stop(self) -> int:
        """SIGTERM, as a kubelet sends it."""
        return await self._signal(signal.SIGTERM)

    async def wait(self) -> int:
        """Its exit code; -9 if it was killed."""
        assert self._end is not None
        return await self._end

    async def _signal(self, number: signal.Signals) -> int:
        if self.alive:
            with contextlib.suppress(ProcessLookupError):  # it has died by itself, and nobody was told yet
                os.kill(self.pid, number)
        return await self.wait()

    async def _answer(self) -> dict[str, int]:
        assert self.process.stdout is not None
        async with asyncio.timeout(_BIRTH_SECONDS):
            answer: dict[str, int] = json.loads(await self.process.stdout.readline())
            return answer

    async def _ended(self) -> int:
        assert self.process.stdout is not None
        return int(json.loads(await self.process.stdout.readline())["status"])

    def story(self, lines: int = 60) -> str:
        """The end of the log, for a test that failed."""
        return "\n".join(self.log.read_text().splitlines()[-lines:]) if self.log.exists() else "no log"


@dataclass
class Lane:
    """A namespace with the chart's identity, the Secret, and an operator of its own."""

    namespace: Namespace
    nursery: Nursery
    folder: Path

    async def picture(self) -> str:
        """What there is, and what the operator said last: for a test that failed."""
        return f"{await self.namespace.picture()}\n{self.nursery.story()}"


@contextlib.asynccontextmanager
async def lane(control_plane: ControlPlane, admin: Cluster, name: str, folder: Path) -> AsyncIterator[Lane]:
    """A new namespace; its end is not waited for."""
    async with identity(control_plane, name) as (environment, kubeconfig):
        namespace = Namespace(admin, name)
        await namespace.create(objects.secret(name))
        more = {
            "KUBECONFIG": str(kubeconfig),
            "SYSVM_HTTP_HOST": "127.0.0.1",
            "SYSVM_HTTP_PORT": "0",
            "SYSVM_LEASE_SECONDS": str(LEASE_SECONDS),
            "SYSVM_CACHE_DIR": str(folder / "cache"),
            "SYSVM_LOG_FORMAT": "text",
        }
        async with Nursery.open(folder, {**environment, **more}) as nursery:
            yield Lane(namespace, nursery, folder)


@contextlib.asynccontextmanager
async def identity(control_plane: ControlPlane, namespace: str) -> AsyncIterator[tuple[dict[str, str], Path]]:
    """A namespace with the chart's account and permissions: the Deployment's environment, and a kubeconfig."""
    values = {
        "crds": {"enabled": False},
        "rbac": {"aggregate": False},
        "admissionPolicies": {"enabled": False},
        "watchNamespaces": [namespace],
    }
    rendered = await asyncio.to_thread(chart.render, "operator", namespace, values)
    kubeconfig = await asyncio.to_thread(chart.install_identity, control_plane, rendered)
    try:
        yield rendered.environment, kubeconfig
    finally:
        await asyncio.to_thread(chart.uninstall, control_plane, rendered)
        await asyncio.to_thread(control_plane.kubectl, "delete", "namespace", namespace, "--wait=false")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def ask(port: int, path: str) -> tuple[int, str]:
    """Status and body of a probe; 0 if nobody listens yet."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
            session.get(f"http://127.0.0.1:{port}{path}") as answer,
        ):
            return answer.status, await answer.text()
    except (aiohttp.ClientError, OSError):
        return 0, ""


async def writes(port: int) -> dict[str, float]:
    """Writes of a process by verb and kind. Its Lease is not among them."""
    _, text = await ask(port, "/metrics")
    found = re.findall(r'^sysvm_kube_writes_total\{kind="(\w+)",verb="(\w+)"\} (\S+)$', text, re.MULTILINE)
    return {f"{verb} {kind}": float(number) for kind, verb, number in found}
