"""A release whose files nobody named: the operator dies at every write, and machines change between its lives.

Until the pin is in the cluster nothing was used, so what machines hold at the next life is the release; from then on it
is what was pinned, whatever they hold.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.integration.engine import objects
from tests.integration.engine.cluster import says, until
from tests.integration.engine.lives import lane
from tests.integration.engine.nursery import MACHINES
from tests.integration.engine.simulated_vms import Fleet

from lab.controlplane import ControlPlane
from sysvm.engine.resources import TEMPLATE
from sysvm.kube.client import Cluster
from sysvm.operator.killer import VARIABLE
from sysvm.patching.payload import read_payload

NAMES = ("ms-1", "ms-2")
REVISIONS = {word: read_payload(objects.scripts(word), None).revision for word in ("first", "second")}


def put(folder: Path, word: str, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "cloud-scripts.tgz").write_bytes(objects.scripts(word))


def template(namespace: str) -> objects.Manifest:
    made = objects.template(namespace, "servers", objects.scripts("first"))
    made["spec"]["payload"] = {
        "managementServer": {
            "addresses": list(NAMES),
            "keySecretRef": {"name": objects.SECRET, "key": objects.SECRET_KEY},
            "knownHostsRef": {"name": "ms-hosts", "key": "scripts.tgz"},
        }
    }
    return made


@pytest.mark.timeout(300)
async def test_a_release_is_what_was_pinned_and_nothing_is_used_before(
    control_plane: ControlPlane, crds: list[str], tmp_path: Path
) -> None:
    name = f"pinned-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    told: dict[str, str] = {}
    async with (
        await Cluster.connect(kubeconfig=control_plane.kubeconfig) as admin,
        lane(control_plane, admin, name, tmp_path / name) as here,
    ):
        await here.namespace.create(objects.config_map(name, "ms-hosts", b""))

        async def status() -> objects.Manifest:
            return (await here.namespace.get(TEMPLATE, "servers")).get("status") or {}

        async def ready() -> objects.Manifest | None:
            found = await here.namespace.get(TEMPLATE, "servers")
            return found["status"] if says(found) == ("True", "PayloadReady") else None

        for death in ("1:before", "1:after", "2:before", "2:after"):
            held = here.folder / death.replace(":", "-")
            put(held, "first")
            fleet = Fleet.of(here.folder / f"{death}.json", {}, seconds=0.1)
            await here.namespace.create(template(name))
            await here.nursery.start(fleet, **{VARIABLE: death, MACHINES: str(held)})
            assert await here.nursery.wait() == -9, here.nursery.story()
            pinned = (await status()).get("pinned")
            put(held, "second")
            await here.namespace.release_lease()
            await here.nursery.start(fleet, **{VARIABLE: "", MACHINES: str(held)})
            found = await until(ready, f"{death}: ready", story=here.picture)
            told[death] = next(word for word, revision in REVISIONS.items() if revision == found["revision"])
            assert told[death] == ("first" if pinned else "second"), death
            assert pinned in (None, found["pinned"]), death
            await here.nursery.kill()
            await here.namespace.clear()
            await here.namespace.release_lease()
    assert told == {"1:before": "second", "1:after": "second", "2:before": "second", "2:after": "first"}


@pytest.mark.timeout(120)
async def test_machines_that_disagree_hold_the_release_until_they_agree(
    control_plane: ControlPlane, crds: list[str], tmp_path: Path
) -> None:
    name = f"disagree-{os.getpid()}-{time.monotonic_ns() % 10**9}"
    async with (
        await Cluster.connect(kubeconfig=control_plane.kubeconfig) as admin,
        lane(control_plane, admin, name, tmp_path / name) as here,
    ):
        held = here.folder / "held"
        put(held, "first", NAMES[:1])
        put(held, "second", NAMES[1:])
        await here.namespace.create(objects.config_map(name, "ms-hosts", b""), template(name))
        await here.nursery.start(Fleet.of(here.folder / "fleet.json", {}, seconds=0.1), **{MACHINES: str(held)})

        async def answer() -> tuple[str, str] | None:
            found = says(await here.namespace.get(TEMPLATE, "servers"))
            return found if found[1] not in ("Pending", "") else None

        assert await until(answer, "refused", story=here.picture) == ("False", "HostsDisagree")
        found = await here.namespace.get(TEMPLATE, "servers")
        stalled = next(one for one in found["status"]["conditions"] if one["type"] == "Stalled")
        assert all(word in stalled["message"] for word in NAMES)
        assert "pinned" not in found["status"]
        put(held, "second")
        await here.namespace.annotate(TEMPLATE, "servers", "sysvm.io/requestedAt", "now")

        async def ready() -> bool:
            return says(await here.namespace.get(TEMPLATE, "servers")) == ("True", "PayloadReady")

        await until(ready, "agreed", story=here.picture)
        assert (await here.namespace.get(TEMPLATE, "servers"))["status"]["revision"] == REVISIONS["second"]
