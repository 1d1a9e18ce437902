"""Fixtures that several tiers share: one real API server a session, a namespace a test.

Imports of the client and of the lab stay inside the fixtures: a unit test pays for nothing that it does not use.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

    from lab.controlplane import ControlPlane

CRDS = Path(__file__).resolve().parents[1] / "crds"


SYSTEM = "tests/system/"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The marker follows from the fixture, so that ``-m 'not apiserver'`` leaves none out. Beside other processes, what
    takes longest begins first."""
    for item in items:
        if _needs_server(item):
            item.add_marker(pytest.mark.apiserver)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(SYSTEM))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Real machines one after the other in one process, and in the others everything else, a file at a time."""
    from xdist.scheduler import LoadScopeScheduling

    class SystemApart(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return SYSTEM if nodeid.startswith(SYSTEM) else nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return SystemApart(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Programs are compiled before the first test, not within its time limit; the fixture says what cannot be had."""
    if session.config.option.collectonly or not any(_needs_server(item) for item in session.items):
        return
    from lab.controlplane import Tool, Unavailable, binaries

    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            tools = [Tool.KUBECTL, Tool.HELM] if binaries.external_kubeconfig() else list(Tool)
            binaries.find(tools)
        except Unavailable:
            pass


def _needs_server(item: pytest.Item) -> bool:
    return "control_plane" in getattr(item, "fixturenames", ())


@pytest.fixture(scope="session")
def control_plane() -> Iterator[ControlPlane]:
    """A real API server for the whole session, or the cluster that SYSVM_KUBECONFIG names."""
    from lab.controlplane import Unavailable, disposable

    with contextlib.ExitStack() as session:
        try:
            server = session.enter_context(disposable())
        except Unavailable as missing:
            pytest.skip(str(missing))
        yield server


@pytest.fixture
def namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test alone; its end is not waited for."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:40].strip("-")
    name = f"{words}-{uuid.uuid4().hex[:8]}"
    control_plane.kubectl("create", "namespace", name)
    yield name
    control_plane.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def crds(control_plane: ControlPlane) -> list[str]:
    """The generated CRDs, served; returns their names (``systemvms.sysvm.io``)."""
    import yaml

    from lab import chart

    found = [yaml.safe_load(path.read_text()) for path in sorted(CRDS.glob("*.yaml"))]
    assert found, f"{CRDS} has no CRDs: generate them first"
    chart.apply_crds(control_plane, found)
    return [item["metadata"]["name"] for item in found]
