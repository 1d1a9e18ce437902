"""The images of a release, looked after beside the reconcilers: people's wishes in objects, against the stand-in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, cast

from lab.cloud import CHANGING, World, cloud_server
from sysvm.api.base import ConditionStatus
from sysvm.api.endpoint import Management
from sysvm.api.images import ImageStatus
from sysvm.api.reasons import Reason
from sysvm.api.template import SystemVMTemplate
from sysvm.cloudstack.client import CloudStack, MayChange
from sysvm.cloudstack.templates import CloudImages
from sysvm.cloudstack.transport import Access, Credentials
from sysvm.domain.cloud import Snapshot
from sysvm.domain.image_status import ImagesSeen, NotAskedYet, image_conditions, with_images
from sysvm.domain.source_status import template_status
from sysvm.engine.images import INTERVAL, ImageWatch
from sysvm.engine.stores import Stores
from sysvm.engine.work import Pool
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Key, Object, Resource

from .test_templates import CHECKSUM, MORNING, NAME, Cloud

KEY, ENDPOINT = Key("ns", "systemvm-4.20.2"), Key("ns", "prod")
IMAGE = {
    "hypervisor": "KVM",
    "name": NAME,
    "url": "https://images.example/a.qcow2.bz2",
    "checksum": f"sha512:{CHECKSUM}",
}


class Objects:
    """What the API server has now."""

    def __init__(self) -> None:
        self.now: dict[tuple[str, str], Object] = {}

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        return self.now[resource.kind, name]


class Here:
    """The one cloud there is."""

    def __init__(self, images: CloudImages) -> None:
        self._images = images

    def images(self, endpoint: Key) -> CloudImages | None:
        return self._images


class Scene:
    """A release, a policy and an endpoint over a stand-in cloud of two zones."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.stores, self.objects = Stores(), Objects()
        self.moment, self.leads = MORNING + timedelta(hours=9), True
        self._generation = 0
        self.endpoint()
        spec = {"endpointRef": {"name": "prod"}, "templateRef": {"name": KEY.name}}
        self._put(self.stores.policies, "PatchPolicy", "routers", spec)

    def endpoint(self, management: str = "Full", **more: Any) -> None:
        vms = [{"name": "r-1-VM", "type": "router", "address": "192.0.2.1"}]
        ssh = {"keySecretRef": {"name": "a", "key": "b"}}
        spec = {"inventory": "Static", "management": management, "systemVMs": vms, "ssh": ssh, **more}
        self._put(self.stores.endpoints, "CloudStackEndpoint", "prod", spec)

    def release(self, **images: Any) -> SystemVMTemplate:
        source = {"mounted": {"path": "a.tgz"}}
        files = {"scripts": {"digest": f"sha256:{'a' * 64}", "source": source}}
        spec: dict[str, Any] = {"version": "4.20.2", "payload": {"files": files}}
        if images.get("items", [IMAGE]):
            spec["images"] = {"items": [IMAGE], **images}
        self._put(self.stores.templates, "SystemVMTemplate", KEY.name, spec)
        found = self.stores.templates.get(KEY)
        assert found is not None
        return found

    def _put(self, store: Any, kind: str, name: str, spec: dict[str, Any]) -> None:
        self._generation += 1
        metadata = {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}",
            "generation": self._generation,
            "resourceVersion": str(self._generation),
        }
        obj = {"apiVersion": "sysvm.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}
        self.objects.now[kind, name] = obj
        store.put(obj)

    def calls(self) -> list[str]:
        return [call.command for call in self.cloud.world.calls if call.command in CHANGING]

    async def look(self, watch: ImageWatch, pool: Pool[None, ImagesSeen], template: SystemVMTemplate) -> ImagesSeen:
        """Until the look that is due has ended."""
        seen, _ = watch.look(template)
        while pool.running:
            await pool.drain(10)
        seen, _ = watch.look(template)
        assert isinstance(seen, ImagesSeen)
        return seen


@asynccontextmanager
async def scene() -> AsyncIterator[tuple[Scene, ImageWatch, Pool[None, ImagesSeen]]]:
    world = World()
    ams, fra = world.add_zone("ams"), world.add_zone("fra")
    for zone, name in ((ams, "kvm-1"), (fra, "kvm-2")):
        world.add_host(zone, name)
    world.add_ssvm(ams)
    for template in world.templates.values():
        template.created = MORNING
    admin = world.users[0]
    async with cloud_server(world) as url:
        access = Access(
            url=url, credentials=Credentials(admin.api_key, admin.secret), requests_per_second=500, burst=500
        )
        async with CloudStack(access, may_change=MayChange.of(Management.FULL)) as client:
            made = Scene(Cloud(world, client, ams, fra))
            pool: Pool[None, ImagesSeen] = Pool(1, lambda key, end: None)

            async def leads() -> bool:
                return made.leads

            def clock() -> datetime:
                return made.moment

            def snapshot(endpoint: Key) -> Snapshot:
                return made.cloud.snapshot()

            clouds = cast("Any", Here(CloudImages(client, clock)))
            cluster = cast("Cluster", made.objects)
            async with pool:
                yield made, ImageWatch(cluster, made.stores, clouds, snapshot, leads, pool, clock), pool


async def test_a_release_without_images_asks_no_cloud() -> None:
    async with scene() as (made, watch, _):
        assert watch.look(made.release(items=[])) == (None, None)
        assert not made.cloud.world.calls


async def test_what_was_told_stands_until_a_restart_has_swept_the_cloud() -> None:
    async with scene() as (made, _, pool):
        template = made.release()
        made.endpoint(inventory="CloudStack", api={"url": "http://x", "credentialsSecretRef": {"name": "k"}})
        cluster, nobody = cast("Cluster", made.objects), cast("Any", None)
        watch = ImageWatch(cluster, made.stores, nobody, lambda _: None, nobody, pool, lambda: made.moment)
        assert watch.look(template) == (None, None), "nothing was told yet"
        row = {"endpoint": "prod", "zone": "ams", "hypervisor": "KVM", "arch": "x86_64", "ready": True, "usedBy": ""}
        status = template.status.model_copy(update={"images": (ImageStatus.model_validate(row),)})
        told, wait = watch.look(template.model_copy(update={"status": status}))
        assert isinstance(told, NotAskedYet)
        assert wait is None


async def test_adopt_looks_and_never_registers() -> None:
    async with scene() as (made, watch, pool):
        seen = await made.look(watch, pool, made.release(mode="Adopt"))
        assert [row.ready for row in seen.rows] == [False, False]
        assert made.calls() == []
        (said,) = image_conditions((), seen)
        assert (said.status, said.reason) == (ConditionStatus.FALSE, Reason.IMAGE_NOT_READY)


async def test_register_registers_once_whatever_happens_to_the_operator() -> None:
    async with scene() as (made, watch, pool):
        template = made.release(mode="Register")
        await made.look(watch, pool, template)
        watch.forget(KEY)  # what a restart does
        await made.look(watch, pool, template)
        made.moment += INTERVAL
        await made.look(watch, pool, template)
        assert made.calls() == ["registerTemplate"]


async def test_an_endpoint_that_observes_is_never_changed() -> None:
    async with scene() as (made, watch, pool):
        made.endpoint("Observe")
        seen = await made.look(watch, pool, made.release(mode="Register"))
        assert made.calls() == []
        assert seen.problems == (f"{NAME} is not registered: endpoint prod has management Observe",)


async def test_a_process_that_does_not_lead_any_more_changes_nothing() -> None:
    async with scene() as (made, watch, pool):
        made.leads = False
        seen = await made.look(watch, pool, made.release(mode="Register"))
        assert made.calls() == []
        assert seen.problems == (f"{NAME} is not registered: another process leads",)


async def test_a_wish_that_was_taken_back_in_this_moment_is_not_carried_out() -> None:
    """The cache does not know it yet; the server does."""
    async with scene() as (made, watch, pool):
        template = made.release(mode="Register")
        made.objects.now["CloudStackEndpoint", "prod"]["metadata"] = {"uid": "uid-prod", "generation": 99}
        seen = await made.look(watch, pool, template)
        assert made.calls() == []
        assert "CloudStackEndpoint prod was edited in this moment" in seen.problems[0]


async def test_nothing_is_promoted_without_exactly_its_word() -> None:
    async with scene() as (made, watch, pool):
        made.cloud.add(kind="ROUTING", hours=5)
        seen = await made.look(watch, pool, made.release(acceptPromotion="0" * 8))
        assert seen.promotion is not None
        assert made.calls() == []
        assert seen.promotion.status().system_vms == len(made.cloud.world.vms)
        seen = await made.look(watch, pool, made.release(acceptPromotion=seen.promotion.word))
        assert made.calls() == ["updateTemplate", "updateConfiguration", "updateConfiguration"]
        assert seen.promotion is None
        assert {row.used_by for row in seen.rows} == {"SSVM and CPVM, routers"}


async def test_a_promotion_that_is_refused_leaves_what_was_seen_and_says_why() -> None:
    async with scene() as (made, watch, pool):
        made.cloud.add(kind="ROUTING", hours=5)
        seen = await made.look(watch, pool, made.release())
        assert seen.promotion is not None
        made.cloud.world.users[0].lacks = frozenset({"updateConfiguration"})
        after = await made.look(watch, pool, made.release(acceptPromotion=seen.promotion.word))
        assert [row.used_by for row in after.rows] == ["SSVM and CPVM", "SSVM and CPVM"], "a part of it is done"
        assert after.promotion is not None
        assert after.promotion.word != seen.promotion.word
        (told,) = after.problems
        assert told.startswith("the images are not promoted: endpoint prod: ")


async def test_an_image_that_is_refused_does_not_keep_the_others_from_being_registered() -> None:
    async with scene() as (made, watch, pool):
        made.cloud.world.add_host(made.cloud.fra, "arm-1", arch="aarch64")
        made.cloud.world.users[0].lacks = frozenset({"registerTemplate"})
        arm = {**IMAGE, "arch": "aarch64", "name": "systemvm-kvm-4.20.2-aarch64"}
        seen = await made.look(watch, pool, made.release(mode="Register", items=[IMAGE, arm]))
        assert [told.split(":")[0] for told in seen.problems] == [
            f"{NAME} is not registered",
            "systemvm-kvm-4.20.2-aarch64 is not registered",
        ]
        assert len(seen.rows) == 3


async def test_a_template_that_nothing_uses_is_named_and_left() -> None:
    async with scene() as (made, watch, pool):
        made.cloud.add("systemvm-kvm-4.17.2-x86_64", hours=-24)
        made.cloud.add(hours=1)
        made.cloud.world.settings["router.template.kvm"] = NAME
        seen = await made.look(watch, pool, made.release())
        assert seen.unused == ("prod/systemvm-kvm-4.17.2-x86_64",), "the SSVM refers to the one that it runs"
        assert made.calls() == []


async def test_a_kind_of_host_without_an_image_is_told() -> None:
    async with scene() as (made, watch, pool):
        made.cloud.add(hours=1)
        made.cloud.world.add_host(made.cloud.fra, "arm-1", arch="aarch64")
        (said,) = image_conditions((), await made.look(watch, pool, made.release()))
        assert (said.reason, said.message) == (
            Reason.IMAGE_NOT_DECLARED,
            "no image is declared for prod: fra KVM aarch64",
        )


async def test_a_cloud_that_does_not_answer_is_told_and_asked_again() -> None:
    async with scene() as (made, watch, pool):
        made.cloud.world.users[0].enabled = False
        template = made.release()
        seen = await made.look(watch, pool, template)
        (said,) = image_conditions((), seen)
        assert (said.status, said.reason) == (ConditionStatus.UNKNOWN, Reason.IMAGES_NOT_SEEN)
        assert said.message.startswith("endpoint prod: ")
        made.cloud.world.users[0].enabled = True
        made.moment += INTERVAL
        assert (await made.look(watch, pool, template)).problems == ()


async def test_what_is_stored_stands_until_the_clouds_were_asked() -> None:
    async with scene() as (made, watch, pool):
        made.cloud.add(kind="ROUTING", hours=5)
        template = made.release()
        status = template_status(template, None, now=MORNING, images=await made.look(watch, pool, template))
        watch.forget(KEY)
        seen, _ = watch.look(template)
        assert isinstance(seen, NotAskedYet)
        assert with_images(status, seen) == status
        again = template.model_copy(update={"status": status})
        assert template_status(again, None, now=MORNING, images=seen) == status


async def test_images_that_are_taken_off_the_release_leave_nothing_behind() -> None:
    async with scene() as (made, watch, pool):
        template = made.release()
        status = template_status(template, None, now=MORNING, images=await made.look(watch, pool, template))
        again = made.release(items=[]).model_copy(update={"status": status})
        gone = template_status(again, None, now=MORNING, images=None)
        assert (gone.images, gone.unused, gone.promotion) == (None, None, None)
        assert "ImagesReady" not in {condition.type for condition in gone.conditions}
