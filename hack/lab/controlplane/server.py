"""etcd, kube-apiserver and four controllers as plain processes on loopback, or a cluster that somebody else runs.

A started server belongs to its run folder: state, certificates, logs and process records lie there, so that any
later command can use it or end it, also after the one that started it was killed. Starting twice gives the running
one. Nothing is kept between two lives: a lab's objects are made again from manifests.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.controlplane import binaries, pki, processes
from lab.controlplane.binaries import Progress, Tool, Unavailable, say

FIELD_MANAGER = "sysvm-lab"

_ETCD, _API_SERVER, _CONTROLLERS = "etcd", "kube-apiserver", "kube-controller-manager"
_STATE = "control-plane.json"
_KUBECONFIG = "kubeconfig"
_SERVICE_RANGE = "10.0.0.0/24"
_SERVICE_ADDRESS = "10.0.0.1"

_READY_SECONDS = 120.0
_POLL_SECONDS = 0.05
_REQUEST_SECONDS = 5.0
_KUBECTL_SECONDS = 120.0
_STOP_SECONDS = 15.0
_ATTEMPTS = 3

# Without these a deleted namespace stays in Terminating, ownerReferences collect nothing, and a namespace has no
# default ServiceAccount.
_CONTROLLER_NAMES = (
    "namespace-controller",
    "garbage-collector-controller",
    "serviceaccount-controller",
    "root-ca-certificate-publisher-controller",
)

# A little CPU for a third of the memory. A GOMEMLIMIT near the working set would make it collect without end.
_GO_RUNTIME = {"GOGC": "50"}


class ControlPlaneError(Exception):
    """The server could not be started or does not answer; the message has the end of its log."""


class KubectlError(Exception):
    """kubectl ended with an error; the message is what it said."""

    def __init__(self, arguments: Sequence[str], result: subprocess.CompletedProcess[str]) -> None:
        self.stderr = result.stderr.strip()
        self.returncode = result.returncode
        super().__init__(f"kubectl {' '.join(arguments)}: {self.stderr or f'exit code {result.returncode}'}")


@dataclass(frozen=True)
class ControlPlane:
    """A Kubernetes API to work against.

    Attributes:
        run_dir: folder of this server's files; of no interest to a client.
        url: of the API server.
        kubeconfig: of an administrator.
        kubectl_path: a kubectl that fits the server.
        external: it is somebody's cluster (``SYSVM_KUBECONFIG``), which ``stop`` leaves alone.
    """

    run_dir: Path
    url: str
    kubeconfig: Path
    kubectl_path: Path
    external: bool

    @classmethod
    def start(cls, run_dir: Path, *, progress: Progress = say) -> ControlPlane:
        """The server of ``run_dir``: the one that runs already, or a new and empty one.

        Raises:
            Unavailable: this machine has no such programs and cannot build them.
            ControlPlaneError: it did not become ready.
        """
        run_dir = run_dir.absolute()
        external = binaries.external_kubeconfig()
        running = cls.attach(run_dir)
        if running is not None and running.external == (external is not None):
            return running
        cls.stop(run_dir)
        if external is not None:
            return cls._adopt(run_dir, external, progress)
        if sys.platform != "linux":
            raise Unavailable(
                "The lab's own API server needs Linux: set SYSVM_KUBECONFIG to the kubeconfig of a cluster."
            )
        tools = binaries.find([*binaries.SERVER, Tool.KUBECTL], progress=progress)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return cls._launch(run_dir, tools)
            except _PortTakenError:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    @classmethod
    def attach(cls, run_dir: Path) -> ControlPlane | None:
        """The server of ``run_dir`` if it is up and answers, else None."""
        run_dir = run_dir.absolute()
        try:
            state = json.loads((run_dir / _STATE).read_text())
        except FileNotFoundError:
            return None
        found = cls(
            run_dir=run_dir,
            url=state["url"],
            kubeconfig=Path(state["kubeconfig"]),
            kubectl_path=Path(state["kubectl"]),
            external=state["external"],
        )
        if found.external:
            return found if binaries.external_kubeconfig() == found.kubeconfig else None
        processes_alive = all(
            (p := processes.load(run_dir, name)) is not None and p.alive()
            for name in (_ETCD, _API_SERVER, _CONTROLLERS)
        )
        return found if processes_alive and found._ready() else None

    @staticmethod
    def stop(run_dir: Path) -> None:
        """End what runs there, also what a killed parent left, and remove its files. Logs of the last life go too."""
        run_dir = run_dir.absolute()
        _stop_processes(run_dir)
        for entry in ("etcd", "pki", "kubeconfigs", "kubectl-cache"):
            shutil.rmtree(run_dir / entry, ignore_errors=True)
        for file in (_STATE, _KUBECONFIG, *(f"{name}.log" for name in (_ETCD, _API_SERVER, _CONTROLLERS))):
            (run_dir / file).unlink(missing_ok=True)
        if run_dir.is_dir() and not any(run_dir.iterdir()):
            run_dir.rmdir()

    # --- use ---

    def kubectl(
        self,
        *arguments: str,
        user: str | None = None,
        kubeconfig: Path | None = None,
        stdin: str | None = None,
        timeout_seconds: float = _KUBECTL_SECONDS,
    ) -> str:
        """What kubectl prints: as the administrator, as ``user`` (impersonated), or with another ``kubeconfig``.

        Raises:
            KubectlError: it failed, or took longer than ``timeout_seconds``.
        """
        result = self.try_kubectl(
            *arguments, user=user, kubeconfig=kubeconfig, stdin=stdin, timeout_seconds=timeout_seconds
        )
        if result.returncode != 0:
            raise KubectlError(arguments, result)
        return result.stdout

    def try_kubectl(
        self,
        *arguments: str,
        user: str | None = None,
        kubeconfig: Path | None = None,
        stdin: str | None = None,
        timeout_seconds: float = _KUBECTL_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """As ``kubectl``, but a failure is an answer (``auth can-i``, a refused object)."""
        command = self.kubectl_command(*arguments, user=user, kubeconfig=kubeconfig)
        try:
            return subprocess.run(
                command,
                input=stdin,
                env=self._kubectl_environment(),
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout_seconds,
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(command, 124, "", f"no end after {timeout_seconds:.0f} s")

    def run_kubectl(self, arguments: Sequence[str]) -> int:
        """kubectl for a person: its input and output are the terminal's. Returns its exit code."""
        return subprocess.run(self.kubectl_command(*arguments), env=self._kubectl_environment(), check=False).returncode

    def kubectl_command(self, *arguments: str, user: str | None = None, kubeconfig: Path | None = None) -> list[str]:
        """The command line behind ``kubectl``."""
        command = [
            str(self.kubectl_path),
            f"--kubeconfig={kubeconfig or self.kubeconfig}",
            f"--cache-dir={self.run_dir / 'kubectl-cache'}",
        ]
        if user is not None:
            command.append(f"--as={user}")
        return [*command, *arguments]

    def apply(self, objects: Iterable[Mapping[str, Any]], *, kubeconfig: Path | None = None) -> str:
        """Server-side apply of manifests, all in one request to kubectl; returns a line an object.

        Raises:
            KubectlError: the server refused one (the others may be applied).
        """
        bundle = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        return self.kubectl(
            "apply",
            "--server-side",
            f"--field-manager={FIELD_MANAGER}",
            "--force-conflicts",
            "-f",
            "-",
            stdin=bundle,
            kubeconfig=kubeconfig,
        )

    def kubeconfig_for(self, service_account: str, namespace: str, *, duration: str = "168h") -> Path:
        """A kubeconfig that speaks as that ServiceAccount and nothing more, by a token of the TokenRequest API.

        The token dies with the ServiceAccount, or after ``duration`` (a cluster may grant less).

        Raises:
            KubectlError: there is no such ServiceAccount.
        """
        token = self.kubectl(
            "create", "token", service_account, f"--namespace={namespace}", f"--duration={duration}"
        ).strip()
        config = self._flattened()
        config["users"] = [{"name": service_account, "user": {"token": token}}]
        context = config["contexts"][0]
        context["context"] |= {"user": service_account, "namespace": namespace}
        folder = self.run_dir / "kubeconfigs"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _write_private(folder / f"{namespace}.{service_account}", json.dumps(config, indent=1))

    # --- within ---

    @classmethod
    def _adopt(cls, run_dir: Path, kubeconfig: Path, progress: Progress) -> ControlPlane:
        tools = binaries.find([Tool.KUBECTL], progress=progress)
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = cls(run_dir=run_dir, url="", kubeconfig=kubeconfig, kubectl_path=tools[Tool.KUBECTL], external=True)
        try:
            found.kubectl("get", "--raw=/readyz", timeout_seconds=30)
        except KubectlError as error:
            raise Unavailable(
                f"The cluster of SYSVM_KUBECONFIG ({kubeconfig}) does not answer: {error.stderr}"
            ) from error
        adopted = replace(found, url=found._flattened()["clusters"][0]["cluster"]["server"])
        _save(adopted)
        return adopted

    @classmethod
    def _launch(cls, run_dir: Path, tools: Mapping[Tool, Path]) -> ControlPlane:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        keys = pki.create(run_dir / "pki", service_address=_SERVICE_ADDRESS)
        client_port, peer_port, api_port = _free_ports(3)
        new = cls(
            run_dir=run_dir,
            url=f"https://127.0.0.1:{api_port}",
            kubeconfig=run_dir / _KUBECONFIG,
            kubectl_path=tools[Tool.KUBECTL],
            external=False,
        )
        _write_private(new.kubeconfig, json.dumps(_admin_kubeconfig(new.url, keys), indent=1))
        try:
            new._start(_ETCD, [tools[Tool.ETCD], *_etcd_flags(run_dir, client_port, peer_port)])
            new._start(
                _API_SERVER, [tools[Tool.KUBE_APISERVER], *_api_server_flags(new.url, api_port, client_port, keys)]
            )
            new._await_ready(_ETCD, _API_SERVER)
            new._start(_CONTROLLERS, [tools[Tool.KUBE_CONTROLLER_MANAGER], *_controller_flags(new.kubeconfig, keys)])
            _save(new)
            return new
        except BaseException:
            _stop_processes(run_dir)
            raise

    def _start(self, name: str, argv: Sequence[str | Path]) -> None:
        processes.start(self.run_dir, name, argv, environment=_GO_RUNTIME, log=self.run_dir / f"{name}.log")

    def _await_ready(self, *names: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not self._ready():
            for name in names:
                process = processes.load(self.run_dir, name)
                if process is None or not process.alive():
                    raise self._failure(name, "ended")
            if time.monotonic() > deadline:
                raise self._failure(_API_SERVER, f"was not ready after {_READY_SECONDS:.0f} s")
            time.sleep(_POLL_SECONDS)

    def _failure(self, name: str, what: str) -> ControlPlaneError:
        log = self.run_dir / f"{name}.log"
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        kind = _PortTakenError if "address already in use" in end else ControlPlaneError
        return kind(f"{name} {what}. The end of {log}:\n{end}")

    def _ready(self) -> bool:
        """Whether /readyz says so; it needs no credentials, only a server that is ours."""
        try:
            context = ssl.create_default_context(cafile=str(self.run_dir / "pki" / "ca.crt"))
            with urllib.request.urlopen(f"{self.url}/readyz", context=context, timeout=_REQUEST_SECONDS) as answer:
                return bool(answer.status == 200)
        except OSError:  # refused, not yet serving, 500 while hooks run (HTTPError), no such file
            return False

    def _flattened(self) -> dict[str, Any]:
        view: dict[str, Any] = json.loads(
            self.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json")
        )
        return view

    def _kubectl_environment(self) -> dict[str, str]:
        """A person's kuberc would change what a command means."""
        return {key: value for key, value in os.environ.items() if key != "KUBECONFIG"} | {"KUBECTL_KUBERC": "false"}


class _PortTakenError(ControlPlaneError):
    """Somebody took a port between our choice and the server's bind: another attempt helps."""


def _save(server: ControlPlane) -> None:
    state = {
        "url": server.url,
        "kubeconfig": str(server.kubeconfig),
        "kubectl": str(server.kubectl_path),
        "external": server.external,
    }
    _write_private(server.run_dir / _STATE, json.dumps(state))


def _stop_processes(run_dir: Path) -> None:
    for name in (_CONTROLLERS, _API_SERVER, _ETCD):
        processes.stop(run_dir, name, grace_seconds=_STOP_SECONDS)


def _etcd_flags(run_dir: Path, client_port: int, peer_port: int) -> list[str]:
    client, peer = f"http://127.0.0.1:{client_port}", f"http://127.0.0.1:{peer_port}"
    return [
        "--name=lab",
        f"--data-dir={run_dir / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=lab={peer}",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _api_server_flags(url: str, port: int, etcd_port: int, keys: pki.Pki) -> list[str]:
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={keys.server.certificate}",
        f"--tls-private-key-file={keys.server.key}",
        f"--client-ca-file={keys.authority}",
        f"--service-account-key-file={keys.service_account_key}",
        f"--service-account-signing-key-file={keys.service_account_key}",
        f"--service-account-issuer={url}",
        f"--service-cluster-ip-range={_SERVICE_RANGE}",
        "--authorization-mode=RBAC",
        "--endpoint-reconciler-type=none",
        # As OpenShift has it: who changes an owner needs delete, and to block its deletion is a permission of its own.
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
        # It would refuse pods until a token controller runs; no pod runs here.
        "--disable-admission-plugins=ServiceAccount",
    ]


def _controller_flags(kubeconfig: Path, keys: pki.Pki) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--controllers={','.join(_CONTROLLER_NAMES)}",
        f"--root-ca-file={keys.authority}",
        "--leader-elect=false",
        "--secure-port=0",
    ]


def _admin_kubeconfig(url: str, keys: pki.Pki) -> dict[str, Any]:
    def encoded(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [
            {"name": "lab", "cluster": {"server": url, "certificate-authority-data": encoded(keys.authority)}}
        ],
        "users": [
            {
                "name": "admin",
                "user": {
                    "client-certificate-data": encoded(keys.admin.certificate),
                    "client-key-data": encoded(keys.admin.key),
                },
            }
        ],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin", "namespace": "default"}}],
    }


def _free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held until the last is chosen, so that they differ."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


def _write_private(path: Path, content: str) -> Path:
    draft = path.with_name(f".{path.name}.tmp")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    return draft.replace(path)
