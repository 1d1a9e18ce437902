"""Writing a status: only what changed, only onto the version it was decided from."""

from typing import Any

from sysvm.api.base import ApiModel, ObjectMeta
from sysvm.kube.client import Cluster
from sysvm.kube.errors import Conflict, NotFound
from sysvm.kube.objects import Resource, merge_patch_between


async def write_status(
    cluster: Cluster, resource: Resource, metadata: ObjectMeta, old: ApiModel, new: ApiModel
) -> bool:
    """Brings the status subresource from `old` to `new`; nothing is sent when they are equal.

    Returns whether the status in the cluster is now `new`. False: somebody wrote in between or the object is gone; the
    current object is in the cache then and the reconciler should look again.
    """
    if old == new:  # most of the time, and a tenth of what the rest costs
        return True
    before: dict[str, Any] = old.to_dict()
    patch = merge_patch_between(before, new.to_dict())
    if not patch:
        return True
    try:
        await cluster.merge_patch(
            resource,
            metadata.namespace,
            metadata.name,
            {"status": patch},
            subresource="status",
            resource_version=metadata.resource_version,
        )
    except NotFound:
        return False
    except Conflict:
        try:
            await cluster.get(resource, metadata.namespace, metadata.name)
        except NotFound:
            pass
        return False
    return True
