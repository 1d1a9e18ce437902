"""One size: so many VMs on endpoints of 500, an operator process, and what it used."""

import base64
import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from lab import chart
from lab.controlplane import ControlPlane
from scale.instant import DONE
from sim.payloads import archive

PER_ENDPOINT = 500
IDLE_SECONDS = 60.0
PATIENCE_SECONDS = 1800.0
_TICK = os.sysconf("SC_CLK_TCK")
PROFILE = "SYSVM_SCALE_PROFILE"
"""Names a file for cProfile: then the figures are wrong and the shares of the main thread's functions are told."""


@dataclass(frozen=True)
class Figures:
    """What one size cost. Seconds, bytes, and counts of writes to the API server."""

    vms: int
    first_seconds: float
    """From an empty namespace until every VM was looked at and every policy had counted them."""
    first_writes: float
    start_seconds: float
    """From the start of a new process over objects that are there until it had decided about every policy anew."""
    rss: int
    """Of that process, a minute after."""
    idle_share: float
    """Of one processor, in a minute without looks."""
    idle_writes: float
    rollout_vms: int
    rollout_seconds: float
    rollout_writes: float
    busy_cpu: float
    """Processor seconds of that rollout."""
    status_bytes: int
    """The largest status of a policy or rollout."""


class PatienceError(Exception):
    """Something did not happen in time."""


@cache
def _private_key() -> str:
    import asyncssh

    return asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()


@dataclass
class Operator:
    """One process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def rss(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        return int(found.group(1)) * 1024 if found else 0

    @property
    def cpu(self) -> float:
        """Seconds so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICK

    @property
    def writes(self) -> float:
        return self._sum("sysvm_kube_writes_total")

    @property
    def looks(self) -> float:
        return self._sum("sysvm_looks_total")

    def _sum(self, name: str) -> float:
        lines = re.findall(rf"^{name}\{{[^}}]*\}} (\S+)$", self.metrics(), re.MULTILINE)
        return sum(float(number) for number in lines)

    def metrics(self) -> str:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
                return str(answer.read().decode())
        except (URLError, OSError):
            return ""

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)


@dataclass
class Cloud:
    """A namespace with endpoints, a release, and a policy for each endpoint."""

    server: ControlPlane
    namespace: str
    folder: Path
    vms: int
    environment: Mapping[str, str] = field(default_factory=dict)
    kubeconfig: Path = Path()

    @property
    def parts(self) -> list[int]:
        """VMs of each endpoint."""
        whole, rest = divmod(self.vms, PER_ENDPOINT)
        return [PER_ENDPOINT] * whole + ([rest] if rest else [])

    def make(self) -> None:
        values = {
            "crds": {"enabled": True},
            "rbac": {"aggregate": False},
            "admissionPolicies": {"enabled": False},
            "watchNamespaces": [self.namespace],
        }
        rendered = chart.render("scale", self.namespace, values)
        self.kubeconfig = chart.install_identity(self.server, rendered)
        self.environment = rendered.environment
        content = archive("scale")
        objects: list[dict[str, Any]] = [
            self._object("v1", "Secret", "key", stringData={"id": _private_key()}),
            self._object("v1", "ConfigMap", "new", binaryData={"scripts.tgz": base64.b64encode(content).decode()}),
            self._object(
                "sysvm.io/v1alpha1",
                "SystemVMTemplate",
                "new",
                spec={
                    "version": "4.20.2",
                    "payload": {
                        "files": {
                            "scripts": {
                                "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
                                "source": {"configMapRef": {"name": "new", "key": "scripts.tgz"}},
                            }
                        }
                    },
                },
            ),
        ]
        for number, count in enumerate(self.parts):
            objects.append(self._endpoint(number, count, "Observe"))
            objects.append(
                self._object(
                    "sysvm.io/v1alpha1",
                    "PatchPolicy",
                    f"p{number}",
                    spec={
                        "endpointRef": {"name": f"e{number}"},
                        "templateRef": {"name": "new"},
                        "strategy": {"maxUnavailable": 20, "perHost": 20},
                    },
                )
            )
        self.server.apply(objects)

    def _endpoint(self, number: int, count: int, management: str) -> dict[str, Any]:
        listed = [
            {
                "name": f"r-{number * PER_ENDPOINT + n}-VM",
                "type": "router",
                "address": "192.0.2.1",
                "host": f"h{n % 50}",
            }
            for n in range(count)
        ]
        return self._object(
            "sysvm.io/v1alpha1",
            "CloudStackEndpoint",
            f"e{number}",
            spec={
                "inventory": "Static",
                "management": management,
                "systemVMs": listed,
                "ssh": {"keySecretRef": {"name": "key", "key": "id"}},
                "scan": {"interval": "24h", "content": "24h"},
            },
        )

    def open_first(self) -> None:
        """Lets the operator change the VMs of the first endpoint."""
        self.server.apply([self._endpoint(0, self.parts[0], "Full")])

    def ask_all(self, word: str) -> None:
        """Asks every policy for a reconcile."""
        self.server.kubectl(
            "annotate", "patchpolicies", "--all", f"--namespace={self.namespace}", "--overwrite",
            f"sysvm.io/requestedAt={word}",
        )  # fmt: skip

    def policies(self) -> list[dict[str, Any]]:
        said = self.server.kubectl("get", "patchpolicies", f"--namespace={self.namespace}", "-o", "json")
        found: list[dict[str, Any]] = json.loads(said)["items"]
        return found

    def rollouts(self) -> list[dict[str, Any]]:
        said = self.server.kubectl("get", "rollouts", f"--namespace={self.namespace}", "-o", "json")
        found: list[dict[str, Any]] = json.loads(said)["items"]
        return found

    def has_counted(self) -> bool:
        """Every policy knows all its VMs, and each was compared."""
        found = [policy.get("status", {}).get("counts") or {} for policy in self.policies()]
        seen: int = sum(counts.get("waiting", 0) + counts.get("converged", 0) for counts in found)
        return seen == self.vms

    @contextlib.contextmanager
    def operator(self) -> Iterator[Operator]:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
        environment = {
            **os.environ,
            **self.environment,
            "KUBECONFIG": str(self.kubeconfig),
            "SYSVM_HTTP_HOST": "127.0.0.1",
            "SYSVM_HTTP_PORT": str(port),
            "SYSVM_LOG_FORMAT": "text",
            "SYSVM_CACHE_DIR": str(self.folder / "cache"),
            DONE: str(self.folder / "done"),
        }
        with (self.folder / "operator.log").open("ab") as log:
            profile = ["-m", "cProfile", "-o", os.environ[PROFILE]] if PROFILE in os.environ else []
            command = [sys.executable, *profile, "-m", "scale.instant"]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        operator = Operator(process, port, self.folder / "operator.log")
        try:
            yield operator
        finally:
            operator.end()

    def _object(self, version: str, kind: str, name: str, **more: Any) -> dict[str, Any]:
        metadata = {"name": name, "namespace": self.namespace}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}


def wait_until(holds: Callable[[], bool], what: str, operator: Operator, *, every: float = 0.5) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    while not holds():
        if operator.process.poll() is not None:
            said = operator.log.read_text()[-3000:]
            raise PatienceError(f"the operator ended with {operator.process.returncode} while waiting: {what}\n{said}")
        if time.monotonic() - begun > PATIENCE_SECONDS:
            raise PatienceError(f"not within {PATIENCE_SECONDS:.0f} s: {what}")
        time.sleep(every)
    return time.monotonic() - begun


def measure(server: ControlPlane, folder: Path, vms: int, say: Callable[[str], None]) -> Figures:
    """All figures of one size."""
    folder.mkdir(parents=True, exist_ok=True)
    cloud = Cloud(server, f"scale-{vms}", folder, vms)
    cloud.make()
    with cloud.operator() as operator:
        first = wait_until(cloud.has_counted, "all VMs seen", operator, every=1.0)
        first_writes = operator.writes
        say(f"{vms}: all seen after {first:.0f} s")
    begun = time.monotonic()
    cloud.ask_all("again")
    with cloud.operator() as operator:

        def decided() -> bool:
            return all(policy.get("status", {}).get("lastHandledReconcileAt") == "again" for policy in cloud.policies())

        wait_until(decided, "decided after the start", operator)
        started = time.monotonic() - begun
        say(f"{vms}: decided {started:.1f} s after the start")
        wait_until(lambda: operator.looks >= vms, "looked at all once more", operator, every=1.0)
        _settle(operator)
        cpu, writes, at = operator.cpu, operator.writes, time.monotonic()
        time.sleep(IDLE_SECONDS)
        idle = (operator.cpu - cpu) / (time.monotonic() - at)
        idle_writes, rss = operator.writes - writes, operator.rss
        say(f"{vms}: {rss / 2**20:.0f} MiB, {idle * 100:.2f} % of a processor when idle")
        cpu, writes, at = operator.cpu, operator.writes, time.monotonic()
        cloud.open_first()
        wait_until(lambda: any("result" in one.get("status", {}) for one in cloud.rollouts()), "rolled out", operator)
        rollout, rollout_writes, busy = time.monotonic() - at, operator.writes - writes, operator.cpu - cpu
        say(f"{vms}: {cloud.parts[0]} of them rolled out in {rollout:.0f} s")
    statuses = [len(json.dumps(one.get("status", {}))) for one in (*cloud.policies(), *cloud.rollouts())]
    return Figures(
        vms=vms,
        first_seconds=first,
        first_writes=first_writes,
        start_seconds=started,
        rss=rss,
        idle_share=idle,
        idle_writes=idle_writes,
        rollout_vms=cloud.parts[0],
        rollout_seconds=rollout,
        rollout_writes=rollout_writes,
        busy_cpu=busy,
        status_bytes=max(statuses),
    )


def _settle(operator: Operator) -> None:
    """Until nothing was written for five seconds."""
    last, since = operator.writes, time.monotonic()
    begun = since
    while time.monotonic() - since < 5:
        if time.monotonic() - begun > PATIENCE_SECONDS:
            raise PatienceError("it never stops writing")
        time.sleep(0.5)
        if (writes := operator.writes) != last:
            last, since = writes, time.monotonic()
