"""The plan ConfigMaps: immutable, made before the rollout that they belong to, read back by name and digest."""

import base64
import binascii

from sysvm.api.base import POLICY_LABEL
from sysvm.api.policy import PatchPolicy
from sysvm.api.rollout import Rollout
from sysvm.domain.planner import Plan, UnreadablePlanError
from sysvm.engine.notices import reference
from sysvm.engine.resources import CONFIG_MAP, POLICY, ROLLOUT
from sysvm.engine.stores import key_of
from sysvm.kube.client import Cluster
from sysvm.kube.errors import AlreadyExists, NotFound
from sysvm.kube.objects import Key, Object, owner_reference

DATA_KEY = "plan.json.gz"


class PlanMissing(Exception):  # noqa: N818  # what it says, as its siblings do
    """The ConfigMap is not there, or is not the plan that the rollout names."""


class Plans:
    """Plans of rollouts, decoded once."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._decoded: dict[Key, Plan] = {}

    def forget(self, rollout: Key) -> None:
        self._decoded.pop(rollout, None)

    async def of(self, rollout: Rollout) -> Plan:
        """The plan that the rollout names. Raises `PlanMissing`, and `KubeError` when the cluster does not answer.

        The first reading makes the ConfigMap go with its rollout, if it does not yet.
        """
        key = key_of(rollout)
        known = self._decoded.get(key)
        if known is not None and known.digest == rollout.spec.plan_ref.digest:
            return known
        config_map = await self._get(key.namespace, rollout.spec.plan_ref.name)
        plan = _decoded(config_map, rollout.spec.plan_ref.digest)
        await self._adopt(rollout, config_map)
        self._decoded[key] = plan
        return plan

    async def store(self, policy: PatchPolicy, name: str, plan: Plan) -> Plan:
        """Makes the ConfigMap. One that is there already was made by a process that ended right after: it counts.

        It belongs to the policy until its rollout is first seen, so a crash leaves nothing behind for ever.
        """
        metadata = policy.metadata
        try:
            await self._cluster.create(
                CONFIG_MAP,
                {
                    "metadata": {
                        "name": name,
                        "namespace": metadata.namespace,
                        "labels": {POLICY_LABEL: metadata.name},
                        "ownerReferences": [
                            owner_reference(reference(POLICY, metadata), controller=False, block_owner_deletion=False)
                        ],
                    },
                    "immutable": True,
                    "binaryData": {DATA_KEY: base64.b64encode(plan.encode()).decode()},
                },
            )
        except AlreadyExists:
            return _decoded(await self._get(metadata.namespace, name), None)
        return plan

    async def drop(self, namespace: str, name: str) -> None:
        """Removes a plan whose rollout was never made."""
        try:
            await self._cluster.delete(CONFIG_MAP, namespace, name)
        except NotFound:
            return

    async def _adopt(self, rollout: Rollout, config_map: Object) -> None:
        owner = owner_reference(reference(ROLLOUT, rollout.metadata), block_owner_deletion=False)
        if (config_map["metadata"].get("ownerReferences") or []) == [owner]:
            return
        name, namespace = rollout.spec.plan_ref.name, rollout.metadata.namespace
        try:
            await self._cluster.merge_patch(CONFIG_MAP, namespace, name, {"metadata": {"ownerReferences": [owner]}})
        except NotFound:
            return

    async def _get(self, namespace: str, name: str) -> Object:
        try:
            return await self._cluster.get(CONFIG_MAP, namespace, name)
        except NotFound as error:
            raise PlanMissing(f"the plan ConfigMap {name} does not exist any more") from error


def _decoded(config_map: Object, digest: str | None) -> Plan:
    encoded = (config_map.get("binaryData") or {}).get(DATA_KEY, "")
    try:
        return Plan.decode(base64.b64decode(encoded, validate=True), digest)
    except (UnreadablePlanError, binascii.Error) as error:
        name = config_map["metadata"]["name"]
        raise PlanMissing(f"ConfigMap {name} does not hold the plan that was decided: {error}") from error
