"""What a test against the real API server needs: a client, and the operator's identity as the chart gives it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from kubernetes.aio.client import ApiClient

    from lab.controlplane import ControlPlane


@dataclass(frozen=True)
class OperatorIdentity:
    """Who the operator is in one test: an account with the chart's permissions in that test's namespace alone.

    Attributes:
        namespace: its own, with its Lease, and the only one that it watches.
        service_account: name of the account.
        kubeconfig: with a token of that account.
        environment: of the rendered Deployment.
        command: of the rendered Deployment.
    """

    namespace: str
    service_account: str
    kubeconfig: Path
    environment: Mapping[str, str]
    command: tuple[str, ...]


@pytest_asyncio.fixture
async def kube_client(control_plane: ControlPlane, tmp_path: Path) -> AsyncIterator[ApiClient]:
    """A ``kubernetes.aio`` client of an administrator."""
    async for client in _client(control_plane.kubeconfig, tmp_path):
        yield client


@pytest_asyncio.fixture
async def operator_client(operator_identity: OperatorIdentity, tmp_path: Path) -> AsyncIterator[ApiClient]:
    """A ``kubernetes.aio`` client that may do what the operator may."""
    async for client in _client(operator_identity.kubeconfig, tmp_path):
        yield client


async def _client(kubeconfig: Path, scratch: Path) -> AsyncIterator[ApiClient]:
    from kubernetes.aio import config

    async with await config.new_client_from_config(  # type: ignore[no-untyped-call]  # the client is typed in part only
        str(kubeconfig), temp_file_path=str(scratch)
    ) as client:
        yield client


@pytest.fixture
def operator_identity(control_plane: ControlPlane, crds: list[str], namespace: str) -> Iterator[OperatorIdentity]:
    """The chart's account and RBAC, scoped to the test's namespace."""
    from lab import chart

    # A test plays admission now and then, and a policy takes half a second to take effect: tests/chart has it.
    values = {
        "crds": {"enabled": False},
        "rbac": {"aggregate": False},
        "admissionPolicies": {"enabled": False},
        "watchNamespaces": [namespace],
    }
    rendered = chart.render("operator", namespace, values)
    kubeconfig = chart.install_identity(control_plane, rendered)
    yield OperatorIdentity(
        namespace=namespace,
        service_account=rendered.service_account,
        kubeconfig=kubeconfig,
        environment=rendered.environment,
        command=rendered.command,
    )
    chart.uninstall(control_plane, rendered)
