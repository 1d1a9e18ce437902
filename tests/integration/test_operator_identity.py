"""The operator as a process, with the account, permissions and settings that the chart gives it."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.conftest import OperatorIdentity

from lab import chart
from lab.controlplane import ControlPlane
from lab.operator import OperatorProcess

WITHIN_SECONDS = 60.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def operator(operator_identity: OperatorIdentity, port: int, tmp_path: Path) -> Iterator[OperatorProcess]:
    """One that watches its own namespace."""
    environment = {**operator_identity.environment, "SYSVM_HTTP_PORT": str(port)}
    process = OperatorProcess.start(
        tmp_path / "operator", operator_identity.kubeconfig, environment, command=operator_identity.command
    )
    yield process
    process.kill()


@pytest.fixture
def operator_of_all(
    control_plane: ControlPlane, crds: list[str], namespace: str, port: int, tmp_path: Path
) -> Iterator[OperatorProcess]:
    """One with the chart's default values: it watches all namespaces."""
    # The guard of spec.operation would reach into the namespaces of other tests; tests/chart has it.
    values = {"crds": {"enabled": False}, "admissionPolicies": {"enabled": False}}
    rendered = chart.render("operator", namespace, values)
    kubeconfig = chart.install_identity(control_plane, rendered)
    environment = {**rendered.environment, "SYSVM_HTTP_PORT": str(port)}
    process = OperatorProcess.start(tmp_path / "operator", kubeconfig, environment, command=rendered.command)
    yield process
    process.kill()
    chart.uninstall(control_plane, rendered)


def holders(control_plane: ControlPlane, namespace: str) -> list[str]:
    leases = json.loads(control_plane.kubectl("get", "leases", f"--namespace={namespace}", "-o", "json"))
    return [lease["spec"].get("holderIdentity") or "" for lease in leases["items"]]


def wait_until(holds: Callable[[], bool], operator: OperatorProcess) -> None:
    deadline = time.monotonic() + WITHIN_SECONDS
    while not holds():
        assert operator.alive(), f"it ended:\n{operator.log.read_text()}"
        assert time.monotonic() < deadline, f"not within {WITHIN_SECONDS:.0f} s:\n{operator.log.read_text()}"
        time.sleep(0.1)


def sees_a_vm(control_plane: ControlPlane, operator: OperatorProcess, namespace: str, port: int) -> None:
    """It leads, makes a SystemVM for the one that an endpoint lists, and says how that one is."""
    wait_until(lambda: answers(f"http://127.0.0.1:{port}/readyz"), operator)
    assert answers(f"http://127.0.0.1:{port}/healthz")
    assert answers(f"http://127.0.0.1:{port}/metrics")
    endpoint = {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "CloudStackEndpoint",
        "metadata": {"name": "here", "namespace": namespace},
        "spec": {
            "inventory": "Static",
            "systemVMs": [{"name": "r-1-VM", "type": "router", "address": "127.0.0.1"}],
            "ssh": {"port": free_port(), "keySecretRef": {"name": "none", "key": "none"}},
        },
    }
    control_plane.apply([endpoint])
    reason = ("-o", "jsonpath={.status.conditions[?(@.type=='Ready')].reason}")
    get = ("get", "systemvm", "here-r-1-vm", f"--namespace={namespace}", *reason)
    wait_until(lambda: control_plane.try_kubectl(*get).stdout not in ("", "Pending"), operator)
    assert len(holders(control_plane, namespace)) == 1
    assert "orbidden" not in operator.log.read_text()


def test_the_permissions_in_one_namespace_are_enough(
    control_plane: ControlPlane, operator: OperatorProcess, namespace: str, port: int
) -> None:
    sees_a_vm(control_plane, operator, namespace, port)


def test_the_permissions_of_the_default_values_are_enough(
    control_plane: ControlPlane, operator_of_all: OperatorProcess, namespace: str, port: int
) -> None:
    sees_a_vm(control_plane, operator_of_all, namespace, port)


def test_a_request_to_end_is_obeyed_and_the_lease_let_go(
    control_plane: ControlPlane, operator: OperatorProcess, namespace: str
) -> None:
    wait_until(lambda: any(holders(control_plane, namespace)), operator)
    assert operator.stop(grace_seconds=30), f"it had to be killed:\n{operator.log.read_text()}"
    assert holders(control_plane, namespace) == [""]
