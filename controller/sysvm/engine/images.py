"""The images of a release in the clouds that use it: looked at beside the reconcilers, registered and promoted where a
person asked for it.

Registering and promoting need no stored intent. A template is registered only after all zones were listed by its name,
so a restart finds the one that a lost call made; a promotion is done only while its word is the one that a person gave,
and a part of it that was carried out makes another word. Right before each change the Lease and both objects are read
from the server: a cache may not know yet that somebody has taken the power away.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from sysvm.api.endpoint import CloudStackEndpoint, Inventory, Management
from sysvm.api.images import Image, ImageMode, Images
from sysvm.api.template import SystemVMTemplate
from sysvm.cloudstack.errors import CloudStackError
from sysvm.domain.cloud import CloudZone, Snapshot
from sysvm.domain.image_status import ImagesSeen, NotAskedYet
from sysvm.domain.templates import CloudTemplates, image_statuses, places, promotion, undeclared, unused, zones_of
from sysvm.engine.group_operation import Leads
from sysvm.engine.ports import Clock, CloudImages, Clouds, SnapshotOf
from sysvm.engine.resources import ENDPOINT, TEMPLATE
from sysvm.engine.stores import Stores, endpoint_of, key_of
from sysvm.engine.work import Pool
from sysvm.kube.client import Cluster
from sysvm.kube.errors import KubeError
from sysvm.kube.objects import Key

INTERVAL = timedelta(minutes=5)
"""A template that is being downloaded is ready some minutes later; nothing else changes by itself."""


class ImageWatch:
    """One look at the clouds of a release at a time."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        clouds: Clouds,
        snapshot_of: SnapshotOf,
        leads: Leads,
        looks: Pool[None, ImagesSeen],
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._clouds = clouds
        self._snapshot_of = snapshot_of
        self._leads = leads
        self._looks = looks
        self._clock = clock
        self._seen: dict[Key, tuple[str, ImagesSeen, datetime]] = {}

    def forget(self, template: Key) -> None:
        """The release is gone."""
        self._seen.pop(template, None)
        self._looks.forget(template)

    def look(self, template: SystemVMTemplate) -> tuple[ImagesSeen | NotAskedYet | None, float | None]:
        """What was seen last, and after how many seconds to come again. Starts a look when one is due; the pool tells
        when it ends."""
        key = key_of(template)
        endpoints = self._endpoints(template)
        if template.spec.images is None or not endpoints:
            self._seen.pop(key, None)
            # A sweep of a cloud wakes this release. Until the first one after a restart what was told of it stands.
            told = template.status.images and template.spec.images is not None and self._is_cloud_unseen(template)
            return (NotAskedYet() if told else None), None
        # Another wish, another policy or another power of an endpoint is looked at now, not at the end of the interval.
        purpose = ", ".join(
            [str(template.metadata.generation), *(f"{key_of(one)}@{one.metadata.generation}" for one in endpoints)]
        )
        handle = self._looks.get(key)
        if handle is not None and handle.result is not None:
            self._seen[key] = (handle.purpose, handle.result, self._clock())
            self._looks.forget(key)
        known = self._seen.get(key)
        if known is not None and known[0] == purpose:
            wait = (known[2] + INTERVAL - self._clock()).total_seconds()
            if wait > 0:
                return known[1], wait
        images = template.spec.images
        self._looks.start(key, purpose, lambda _: self._visit(template, images, endpoints))
        return known[1] if known is not None else NotAskedYet(), None

    def _endpoints(self, template: SystemVMTemplate) -> list[CloudStackEndpoint]:
        """Of the policies that name this release, those whose cloud was swept."""
        return [endpoint for endpoint in self._named(template) if self._snapshot_of(key_of(endpoint)) is not None]

    def _is_cloud_unseen(self, template: SystemVMTemplate) -> bool:
        """Whether a policy uses it in a cloud that this process knows nothing of."""
        return any(endpoint.spec.inventory is Inventory.CLOUDSTACK for endpoint in self._named(template))

    def _named(self, template: SystemVMTemplate) -> list[CloudStackEndpoint]:
        """The endpoints of the policies that name this release."""
        keys = sorted({endpoint_of(policy) for policy in self._stores.policies_using(key_of(template))})
        found = (self._stores.endpoints.get(key) for key in keys)
        return [endpoint for endpoint in found if endpoint is not None]

    async def _visit(
        self, template: SystemVMTemplate, images: Images, endpoints: list[CloudStackEndpoint]
    ) -> ImagesSeen:
        visits = [await self._visit_one(template, images, endpoint) for endpoint in endpoints]
        return ImagesSeen(
            rows=tuple(row for one in visits for row in one.rows),
            undeclared=tuple(each for one in visits for each in one.undeclared),
            unused=tuple(each for one in visits for each in one.unused),
            promotion=next((one.promotion for one in visits if one.promotion is not None), None),
            problems=tuple(each for one in visits for each in one.problems),
        )

    async def _visit_one(self, template: SystemVMTemplate, images: Images, endpoint: CloudStackEndpoint) -> ImagesSeen:
        """One cloud: looked at, changed as far as people asked for it, and looked at again."""
        name, key = endpoint.metadata.name, key_of(endpoint)
        cloud, snapshot = self._clouds.images(key), self._snapshot_of(key)
        if cloud is None or snapshot is None:
            return ImagesSeen(problems=(f"the cloud of endpoint {name} cannot be asked now",))
        names = {image.name for image in images.items}
        problems: list[str] = []
        try:
            found = await cloud.read(snapshot, names)
        except CloudStackError as error:
            return ImagesSeen(problems=(f"endpoint {name}: {error}",))
        for wish in _wishes(template.spec.version, images, snapshot, found):
            refusal = await self._why_not(template, endpoint)
            if refusal is not None:
                problems.append(f"{wish.sentence}: {refusal}")
                continue
            try:
                await wish.carry_out(cloud)
            except CloudStackError as error:
                problems.append(f"{wish.sentence}: endpoint {name}: {error}")
            try:
                # After a refusal too: a part of it may be done, and what is left has another word.
                found = await cloud.read(snapshot, names)
            except CloudStackError as error:
                problems.append(f"endpoint {name}: {error}")
                break
        needed = places(snapshot)
        declared = [
            item for one in self._stores.templates.values() if one.spec.images for item in one.spec.images.items
        ]
        return ImagesSeen(
            rows=image_statuses(name, images, needed, found),
            undeclared=tuple(f"{name}: {kind}" for kind in undeclared(images, needed)),
            unused=tuple(f"{name}/{each}" for each in unused(snapshot, found, declared)),
            promotion=promotion(images, snapshot, found),
            problems=tuple(problems),
        )

    async def _why_not(self, template: SystemVMTemplate, endpoint: CloudStackEndpoint) -> str | None:
        """Why the cloud must not be changed now, by the objects as the server has them; None: it may be."""
        if endpoint.spec.management is not Management.FULL:
            return f"endpoint {endpoint.metadata.name} has management {endpoint.spec.management}"
        try:
            for resource, obj in ((TEMPLATE, template), (ENDPOINT, endpoint)):
                now = (await self._cluster.get(resource, *key_of(obj)))["metadata"]
                if (now.get("uid"), now.get("generation")) != (obj.metadata.uid, obj.metadata.generation):
                    return f"{resource.kind} {obj.metadata.name} was edited in this moment"
            if not await self._leads():
                return "another process leads"
        except KubeError as error:
            return f"the API server cannot be asked: {error.message}"
        return None


@dataclass(frozen=True, slots=True)
class _Wish:
    """One thing that people asked for and that is not so yet."""

    sentence: str
    carry_out: Callable[[CloudImages], Awaitable[None]]


def _wishes(version: str, images: Images, snapshot: Snapshot, found: CloudTemplates) -> Iterator[_Wish]:
    """Images to be registered, because no zone has them; else the promotion, if its word was given."""
    needed = places(snapshot)
    there = {one.name for one in found.templates}
    if images.mode is ImageMode.REGISTER:
        for image in images.items:
            zones = zones_of(needed, image, snapshot.zones)
            if image.name not in there and zones:
                yield _Wish(f"{image.name} is not registered", _registering(image, version, zones))
    wanted = promotion(images, snapshot, found)
    if wanted is not None and images.accept_promotion == wanted.word:
        changes = wanted.changes
        yield _Wish("the images are not promoted", lambda cloud: cloud.carry_out(changes))


def _registering(image: Image, version: str, zones: tuple[CloudZone, ...]) -> Callable[[CloudImages], Awaitable[None]]:
    return lambda cloud: cloud.register(image, version, zones)
