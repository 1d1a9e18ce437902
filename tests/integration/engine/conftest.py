"""One operator with simulated VMs for all journeys of a module, and a corner of its cluster for each."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from tests.integration.engine import objects
from tests.integration.engine.cluster import Namespace
from tests.integration.engine.journey import Journey, World
from tests.integration.engine.lives import identity
from tests.integration.engine.simulated_vms import Fleet, SimulatedVMs

from lab.controlplane import ControlPlane
from sysvm.kube.client import Cluster
from sysvm.operator.app import App
from sysvm.operator.settings import Settings

_numbers = itertools.count(1)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(
    control_plane: ControlPlane,
    crds: list[str],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> AsyncIterator[World]:
    """The operator in this loop, with the chart's identity. It lives as long as the module, and its environment is also
    what the module's `ENVIRONMENT` says."""
    folder: Path = tmp_path_factory.mktemp("journeys")
    name = f"journeys-{os.getpid()}-{next(_numbers)}"
    async with AsyncExitStack() as stack:
        environment, kubeconfig = await stack.enter_async_context(identity(control_plane, name))
        admin = await stack.enter_async_context(await Cluster.connect(kubeconfig=control_plane.kubeconfig))
        namespace = Namespace(admin, name)
        await namespace.create(
            objects.secret(name),
            *(objects.config_map(name, word, objects.scripts(word)) for word in ("first", "second")),
        )
        more = {
            "KUBECONFIG": str(kubeconfig),
            "SYSVM_HTTP_HOST": "127.0.0.1",
            "SYSVM_HTTP_PORT": "0",
            "SYSVM_LEASE_SECONDS": "300",
            "SYSVM_CACHE_DIR": str(folder / "cache"),
            **getattr(request.module, "ENVIRONMENT", {}),
        }
        fleet = Fleet.of(folder / "fleet.json", {})
        app = App(Settings.from_environment({**environment, **more}), SimulatedVMs(fleet))
        running = asyncio.create_task(app.run())
        yield World(namespace, fleet, control_plane, running)
        app.stop()
        await running


@pytest_asyncio.fixture(loop_scope="module")
async def journey(world: World) -> AsyncIterator[Journey]:
    """Names and VMs of one test alone."""
    here = Journey(world, f"j{next(_numbers)}")
    yield here
    await here.leave()
