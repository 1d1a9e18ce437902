"""Templates of a cloud: read as the server chooses among them, registered once, armed only as a person was shown."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path

import pytest

from lab.cloud import CHANGING, Template, World, Zone, cloud_server
from lab.spec import SystemVMType as LabType
from sysvm.api.endpoint import Management, SystemVMType
from sysvm.api.images import Image, Images
from sysvm.cloudstack import answers
from sysvm.cloudstack.client import CloudStack, MayChange
from sysvm.cloudstack.errors import ChangeRefused
from sysvm.cloudstack.templates import carry_out, read_templates, register
from sysvm.cloudstack.transport import Access, Credentials
from sysvm.domain.cloud import CloudHost, CloudVM, CloudVMState, CloudZone, Snapshot
from sysvm.domain.templates import CloudTemplates, Place, chosen, image_statuses, places, promotion, wrong_template

NAME = "systemvm-kvm-4.20.2-x86_64"
CHECKSUM = "ab" * 64
ITEM = Image.model_validate(
    {"hypervisor": "KVM", "name": NAME, "url": "https://images.example/a.qcow2.bz2", "checksum": f"sha512:{CHECKSUM}"}
)
IMAGES = Images(items=(ITEM,))
MORNING = datetime(2026, 11, 22, 8, 0, tzinfo=UTC)
RECORDED = Path(__file__).resolve().parents[2] / "data" / "cloudstack"


@dataclass
class Cloud:
    world: World
    client: CloudStack
    ams: Zone
    fra: Zone

    def snapshot(self) -> Snapshot:
        """What a sweep would bring."""
        return Snapshot(
            taken_at=MORNING,
            server_version="4.21.0.0",
            zones={zone.id: CloudZone(id=zone.id, name=zone.name) for zone in self.world.zones.values()},
            hosts={
                host.id: CloudHost(
                    id=host.id,
                    name=host.name,
                    address=host.address,
                    zone_id=host.zone.id,
                    hypervisor=host.hypervisor,
                    arch=host.arch,
                )
                for host in self.world.hosts.values()
            },
            vms={
                vm.id: CloudVM(
                    id=vm.id,
                    name=vm.name,
                    type=SystemVMType(vm.type.value),
                    state=CloudVMState.RUNNING,
                    zone_id=vm.zone.id,
                    zone=vm.zone.name,
                    host_id=vm.host.id if vm.host else None,
                    hypervisor=vm.hypervisor,
                    template_id=vm.template.id,
                )
                for vm in self.world.vms.values()
            },
            networks={},
            vpcs={},
        )

    async def read(self) -> CloudTemplates:
        return await read_templates(self.client, self.snapshot(), {NAME}, lambda: MORNING)

    def add(
        self, name: str = NAME, *, kind: str = "SYSTEM", ready: list[Zone] | None = None, hours: int = 1
    ) -> Template:
        made = self.world.add_template(name, version="4.20.2", kind=kind, ready=ready)
        made.created = MORNING + timedelta(hours=hours)
        return made

    def place(self, type_: SystemVMType, zone: Zone) -> Place:
        return Place(type_, zone.id, zone.name, "KVM", "x86_64")


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async for made in _cloud(Management.FULL):
        yield made


async def _cloud(management: Management) -> AsyncIterator[Cloud]:
    world = World()
    ams, fra = world.add_zone("ams"), world.add_zone("fra")
    for zone, name in ((ams, "kvm-1"), (ams, "kvm-2"), (fra, "kvm-3")):
        world.add_host(zone, name)
    world.add_ssvm(ams)
    world.add_routers(world.add_network(ams, "net-1"))
    for template in world.templates.values():
        template.created = MORNING
    admin = world.users[0]
    async with cloud_server(world) as url:
        access = Access(
            url=url, credentials=Credentials(admin.api_key, admin.secret), requests_per_second=500, burst=500
        )
        async with CloudStack(access, may_change=MayChange.of(management)) as client:
            yield Cloud(world, client, ams, fra)


SSVM, ROUTER = SystemVMType.SECSTORAGE, SystemVMType.ROUTER


def changes(cloud: Cloud) -> list[str]:
    return [call.command for call in cloud.world.calls if call.command in CHANGING]


def test_a_recorded_template_is_read() -> None:
    answer = json.loads((RECORDED / "listTemplates.all.SYSTEM.json").read_text())["answer"]
    found = answers.template(answer["listtemplatesresponse"]["template"][0])
    assert (found.name, found.type, found.ready, found.arch) == (
        "SystemVM Template (simulator)",
        "SYSTEM",
        True,
        "x86_64",
    )
    assert found.created == datetime(2026, 11, 22, 15, 35, 46, tzinfo=UTC)


async def test_what_is_read_changes_nothing(cloud: Cloud) -> None:
    await cloud.read()
    assert changes(cloud) == []


@pytest.mark.parametrize(("newest", "router_name"), list(product(["SYSTEM", "ROUTING"], [NAME, None])))
async def test_it_is_what_the_server_itself_would_take(cloud: Cloud, newest: str, router_name: str | None) -> None:
    cloud.add(kind="SYSTEM", hours=1)
    cloud.add(kind=newest, hours=2)
    cloud.add("systemvm-kvm-4.19.1", kind="SYSTEM", hours=3, ready=[cloud.fra])
    if router_name:
        cloud.ams.settings["router.template.kvm"] = router_name
    seen = await cloud.read()
    for type_, zone in product((SSVM, ROUTER), (cloud.ams, cloud.fra)):
        server = cloud.world.template_for(LabType(type_.value), zone, hypervisor="KVM", arch="x86_64")
        choice = chosen(cloud.place(type_, zone), seen)
        assert choice.template is not None
        assert choice.template.id == server.id, f"{type_} in {zone.name}"


async def test_another_template_that_would_be_taken_is_named_with_the_way_out(cloud: Cloud) -> None:
    cloud.add(kind="ROUTING")
    seen = await cloud.read()
    found = wrong_template(cloud.place(ROUTER, cloud.ams), IMAGES, seen)
    assert found is not None
    assert found.reason == "WrongTemplateWouldBeUsed"
    assert found.message.startswith(
        "router in zone ams on KVM x86_64 would be started from SystemVM Template (KVM) (SYSTEM,"
    )
    assert found.message.endswith(f"set router.template.kvm of zone ams to {NAME}")


async def test_a_template_that_is_ready_in_one_zone_only_is_not_taken_for_the_other(cloud: Cloud) -> None:
    cloud.add(ready=[cloud.ams])
    seen = await cloud.read()
    assert wrong_template(cloud.place(SSVM, cloud.ams), IMAGES, seen) is None
    found = wrong_template(cloud.place(SSVM, cloud.fra), IMAGES, seen)
    assert found is not None
    assert found.reason == "WrongTemplateWouldBeUsed"
    rows = image_statuses("prod", IMAGES, places(cloud.snapshot()), seen)
    assert [(row.zone, row.ready, row.used_by) for row in rows] == [("ams", True, "SSVM and CPVM"), ("fra", False, "")]
    assert rows[1].message == f"{NAME} is not downloaded in zone fra: 30% Downloaded"


async def test_a_router_would_not_come_up_from_a_template_that_is_not_ready(cloud: Cloud) -> None:
    cloud.add(kind="ROUTING", ready=[cloud.ams])
    cloud.world.settings["router.template.kvm"] = NAME
    seen = await cloud.read()
    assert wrong_template(cloud.place(ROUTER, cloud.ams), IMAGES, seen) is None
    found = wrong_template(cloud.place(ROUTER, cloud.fra), IMAGES, seen)
    assert found is not None
    assert found.reason == "ImageNotReady"


async def test_a_template_that_was_deleted_is_told(cloud: Cloud) -> None:
    del cloud.world.templates[cloud.add().id]
    rows = image_statuses("prod", IMAGES, places(cloud.snapshot()), await cloud.read())
    assert {row.message for row in rows} == {
        f"{NAME} is not registered in zone ams, or was deleted",
        f"{NAME} is not registered in zone fra, or was deleted",
    }


async def test_a_template_of_the_name_with_another_checksum_is_not_the_declared_one(cloud: Cloud) -> None:
    cloud.add().checksum = "{SHA-512}" + "cd" * 64
    rows = image_statuses("prod", IMAGES, places(cloud.snapshot()), await cloud.read())
    assert [row.ready for row in rows] == [False, False]
    assert rows[0].message == f"{NAME} in zone ams has another checksum: it was made from another file"


async def test_an_image_is_registered_once_as_routing(cloud: Cloud) -> None:
    await register(cloud.client, ITEM, "4.20.2", [cloud.snapshot().zones[cloud.ams.id]])
    (call,) = [call for call in cloud.world.calls if call.command == "registerTemplate"]
    assert {
        key: call.parameters.get(key) for key in ("name", "isrouting", "format", "arch", "checksum", "ostypeid")
    } == {
        "name": NAME,
        "isrouting": "true",
        "format": "QCOW2",
        "arch": "x86_64",
        "checksum": f"{{SHA-512}}{CHECKSUM}",
        "ostypeid": "d12",
    }
    seen = await cloud.read()
    assert {one.type for one in seen.templates if one.name == NAME} == {"ROUTING"}
    assert changes(cloud) == ["registerTemplate"]


async def test_registering_arms_nothing(cloud: Cloud) -> None:
    before = {type_: chosen(cloud.place(type_, cloud.ams), await cloud.read()) for type_ in (SSVM, ROUTER)}
    await register(cloud.client, ITEM, "4.20.2", list(cloud.snapshot().zones.values()))
    for template in cloud.world.templates.values():
        template.ready_in = set(cloud.world.zones)
    assert before == {type_: chosen(cloud.place(type_, cloud.ams), await cloud.read()) for type_ in (SSVM, ROUTER)}


async def test_an_endpoint_that_observes_registers_nothing() -> None:
    async for cloud in _cloud(Management.OBSERVE):
        with pytest.raises(ChangeRefused):
            await register(cloud.client, ITEM, "4.20.2", list(cloud.snapshot().zones.values()))
        assert changes(cloud) == []


async def test_a_promotion_names_every_call_and_every_vm_that_it_arms(cloud: Cloud) -> None:
    made = cloud.add(kind="ROUTING", hours=5)
    found = promotion(IMAGES, cloud.snapshot(), await cloud.read())
    assert found is not None
    assert [change.sentence for change in found.changes] == [
        f"make template {NAME} ({made.id}) SYSTEM",
        f"set router.template.kvm of zone ams to {NAME}",
        f"set router.template.kvm of zone fra to {NAME}",
    ]
    assert found.vms == tuple(sorted(vm.name for vm in cloud.world.vms.values()))


async def test_carried_out_it_makes_the_server_take_the_image_everywhere(cloud: Cloud) -> None:
    cloud.add(kind="ROUTING", hours=5)
    found = promotion(IMAGES, cloud.snapshot(), await cloud.read())
    assert found is not None
    await carry_out(cloud.client, found.changes)
    seen = await cloud.read()
    assert [wrong_template(place, IMAGES, seen) for place in places(cloud.snapshot())] == [None] * 4
    assert promotion(IMAGES, cloud.snapshot(), seen) is None


async def test_nothing_is_promoted_before_every_zone_has_it(cloud: Cloud) -> None:
    cloud.add(kind="ROUTING", ready=[cloud.ams], hours=5)
    assert promotion(IMAGES, cloud.snapshot(), await cloud.read()) is None


async def test_another_vm_makes_another_word(cloud: Cloud) -> None:
    cloud.add(kind="ROUTING", hours=5)
    before = promotion(IMAGES, cloud.snapshot(), await cloud.read())
    cloud.world.add_cpvm(cloud.ams)
    after = promotion(IMAGES, cloud.snapshot(), await cloud.read())
    assert before is not None
    assert after is not None
    assert before.word != after.word
