"""PatchPolicy: compare what VMs run with the release, begin a rollout when that is allowed, say how far it is.

Beginning a rollout is three writes, each from stored objects alone, so a process that ends between two of them is
continued by the next:

1. `status.lastRollout` names the rollout (number, revision, digest of the spec), without a uid. A restart that finds a
   name without a uid and no Rollout makes plan and Rollout.
2. The plan ConfigMap, immutable, under a name that follows from the rollout's. One that is there is used as it is.
3. The Rollout. Its uid then goes into lastRollout: from now on a Rollout that is missing was deleted by somebody, and
   its revision is not rolled out again by itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sysvm.api.base import API_VERSION, ENDPOINT_LABEL, POLICY_LABEL, REQUESTED_AT_ANNOTATION, NameRef
from sysvm.api.endpoint import CloudStackEndpoint, Management
from sysvm.api.names import plan_name, rollout_name
from sysvm.api.policy import LastRollout, PatchPolicy, PolicyBlocker
from sysvm.api.reasons import ConditionType, EventReason, Reason
from sysvm.api.rollout import PlanRef, PolicySnapshot, Rollout, RolloutCause, RolloutSpec
from sysvm.api.template import SystemVMTemplate
from sysvm.domain.cloud import Snapshot
from sysvm.domain.cloud_changed import cloud_facts, warnings
from sysvm.domain.conditions import find
from sysvm.domain.facts import Release, VMFacts, host_payloads, release_of
from sysvm.domain.method import Decision
from sysvm.domain.no_vms import Listing
from sysvm.domain.planner import Plan, decide_all, plan
from sysvm.domain.policy_status import PolicySituation, policy_status
from sysvm.domain.selection import Selection, select
from sysvm.domain.sequence import waits_for
from sysvm.domain.starts import Start, finished_to_prune, may_start, spec_digest
from sysvm.engine.inventory import Roster
from sysvm.engine.listings import Listings
from sysvm.engine.notices import Notices, reference
from sysvm.engine.plans import PlanMissing, Plans
from sysvm.engine.ports import Clock, SnapshotOf, no_cloud
from sysvm.engine.resources import POLICY, ROLLOUT
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores, endpoint_of, key_of, template_of
from sysvm.kube.client import Cluster
from sysvm.kube.errors import AlreadyExists, NotFound
from sysvm.kube.objects import Key, owner_reference
from sysvm.kube.queue import Again

DOUBT_SECONDS = 30.0
"""A policy without VMs is explained again so often while it is not known whether all VMs are listed."""


@dataclass(frozen=True, slots=True)
class _Sight:
    """Everything a policy's reconcile looks at, taken at one moment."""

    policy: PatchPolicy
    endpoint: CloudStackEndpoint | None
    template: SystemVMTemplate | None
    release: Release | None
    fleet: list[VMFacts]
    """All VMs of the endpoint: a group has members that the policy does not select."""
    selection: Selection
    decisions: dict[str, Decision]
    last: LastRollout | None
    rollout: Rollout | None
    listings: Mapping[str, Listing]
    """Endpoint name -> its VMs, where a policy without VMs is to be explained."""
    waits: PolicyBlocker | None = None
    """Why another rollout must not begin yet, by spec.after."""
    snapshot: Snapshot | None = None
    """The last sweep of the cloud; None of a Static inventory, and before the first one."""


class PolicyReconciler:
    """One key: one PatchPolicy."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        roster: Roster,
        plans: Plans,
        notices: Notices,
        clock: Clock,
        *,
        snapshot_of: SnapshotOf = no_cloud,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._listings = Listings(stores, roster, snapshot_of)
        self._plans = plans
        self._notices = notices
        self._clock = clock
        self._snapshot_of = snapshot_of

    async def reconcile(self, key: Key) -> Again | None:
        policy = self._stores.policies.get(key)
        if policy is None or policy.metadata.deletion_timestamp is not None:
            return None
        now = self._clock()
        sight = await self._look(policy, now)
        announced = self._announce(sight)
        if announced is not sight.last and announced is not None and announced.result == Reason.NOT_NEEDED:
            await self._plans.drop(key.namespace, plan_name(announced.name))
        if not await self._report(sight, announced, now):
            return Again(0.1)
        if announced is not None and _is_only_announced(announced):
            return Again(0) if await self._make(sight, announced) else Again(1)
        await self._prune(key, policy)
        in_doubt = any(not one.complete or one.doubt is not None for one in sight.listings.values())
        return Again(DOUBT_SECONDS) if in_doubt else None

    # Observe

    async def _look(self, policy: PatchPolicy, now: datetime) -> _Sight:
        endpoint = self._stores.endpoints.get(endpoint_of(policy))
        template = self._stores.templates.get(template_of(policy))
        release = release_of(template, policy.spec) if template is not None else None
        facts = self._listings.facts(endpoint, now) if endpoint is not None else []
        selection = select(policy, self._stores.policies_of(endpoint_of(policy)), facts)
        last = policy.status.last_rollout
        rollout = await self._rollout(policy, last)
        decisions = (
            decide_all(policy.spec, release, selection.vms, excluded=selection.excluded) if release is not None else {}
        )
        others = {other.metadata.name: other for other in self._stores.policies.values(policy.metadata.namespace)}
        empty = {} if selection.vms else {policy.metadata.name: policy}
        if policy.spec.after:
            empty |= {name: other for name, other in others.items() if _says_no_vms(other)}
        listings = self._of_endpoints({endpoint_of(one) for one in empty.values()}, {endpoint_of(policy): facts}, now)
        return _Sight(
            policy,
            endpoint,
            template,
            release,
            facts,
            selection,
            decisions,
            _followed(last, rollout),
            rollout,
            listings,
            waits_for(policy, others, release, listings) if release is not None else None,
            self._snapshot_of(endpoint_of(policy)),
        )

    def _of_endpoints(
        self, keys: Iterable[Key], known: Mapping[Key, Sequence[VMFacts]], now: datetime
    ) -> dict[str, Listing]:
        found: dict[str, Listing] = {}
        for key in keys:
            if (endpoint := self._stores.endpoints.get(key)) is not None:
                facts = known[key] if key in known else self._listings.facts(endpoint, now)
                found[key.name] = self._listings.listing(endpoint, facts, now)
        return found

    async def _rollout(self, policy: PatchPolicy, last: LastRollout | None) -> Rollout | None:
        """The last rollout. One that the cache lacks is asked for: missing means deleted, and that is remembered."""
        if last is None:
            return None
        key = Key(policy.metadata.namespace, last.name)
        known = self._stores.rollouts.get(key)
        if known is not None or last.result:
            return known
        try:
            return Rollout.model_validate(await self._cluster.get(ROLLOUT, *key))
        except NotFound:
            return None

    # Decide

    def _announce(self, sight: _Sight) -> LastRollout | None:
        """The last rollout, or the next one if it may begin now."""
        policy, endpoint, release, last = sight.policy, sight.endpoint, sight.release, sight.last
        if endpoint is None or release is None or sight.template is None:
            return last
        if last is not None and _is_only_announced(last):
            if last.revision == release.revision and (
                self._is_undecided(sight) or not self._plan(sight, release).is_empty
            ):
                return last
            return last.model_copy(update={"result": str(Reason.NOT_NEEDED)})
        if endpoint.spec.management is not Management.FULL or endpoint.spec.suspend or policy.spec.suspend:
            return last
        if sight.template.metadata.deletion_timestamp is not None:
            return last
        digest = spec_digest(policy.spec)
        start = may_start(last, release.revision, digest)
        if not start.allowed or sight.waits is not None or self._is_undecided(sight):
            return last
        if self._plan(sight, release).is_empty:
            return last
        number = last.number + 1 if last is not None else 1
        return LastRollout(
            name=rollout_name(policy.metadata.name, release.revision, number),
            number=number,
            revision=release.revision,
            spec_digest=digest,
            cause=str(self._cause(sight, release, start)),
        )

    def _cause(self, sight: _Sight, release: Release, start: Start) -> RolloutCause:
        """Drift, if every VM that gets work was at the release before."""
        members = self._plan(sight, release).members
        if start.cause is RolloutCause.NEW_REVISION and all(
            sight.decisions[name].drift.was_at_release for name in members
        ):
            return RolloutCause.DRIFT
        return start.cause

    def _is_undecided(self, sight: _Sight) -> bool:
        """A VM that is listed and has no object yet, or answers and was not yet compared: a plan without it would be a
        plan of half the truth."""
        if sight.endpoint is not None and self._listings.is_incomplete(sight.endpoint):
            return True
        reachable = {vm.name for vm in sight.selection.vms if not vm.unreachable}
        return any(sight.decisions[name].undecided for name in reachable if name in sight.decisions)

    @staticmethod
    def _plan(sight: _Sight, release: Release) -> Plan:
        policy, payloads = sight.policy, host_payloads(sight.fleet)
        return plan(
            policy.metadata.name,
            policy.spec,
            release,
            sight.selection.vms,
            excluded=sight.selection.excluded,
            fleet=sight.fleet,
            cloud=cloud_facts(sight.snapshot, payloads),
            warnings=warnings(sight.snapshot, payloads) if sight.snapshot is not None else (),
        )

    # Act

    async def _make(self, sight: _Sight, announced: LastRollout) -> bool:
        """Plan, then Rollout. False: not now, because not all VMs were looked at."""
        policy, release = sight.policy, sight.release
        if release is None or self._is_undecided(sight):
            return False
        made = self._plan(sight, release)
        if made.is_empty:
            return False
        try:
            stored = await self._plans.store(policy, plan_name(announced.name), made)
        except PlanMissing:  # it went between our create and our get
            return False
        await self._create(policy, announced, stored)
        return True

    async def _create(self, policy: PatchPolicy, announced: LastRollout, stored: Plan) -> None:
        spec = RolloutSpec(
            policy_ref=NameRef(name=policy.metadata.name),
            endpoint_ref=policy.spec.endpoint_ref,
            template_ref=NameRef(name=stored.release.template_name),
            revision=announced.revision,
            number=announced.number,
            plan_ref=PlanRef(name=plan_name(announced.name), digest=stored.digest),
            snapshot=PolicySnapshot(
                methods=policy.spec.methods,
                live_patch=policy.spec.live_patch,
                strategy=policy.spec.strategy,
                checks=policy.spec.checks,
                approval=policy.spec.approval,
            ),
            cause=RolloutCause(announced.cause),
        )
        try:
            await self._cluster.create(
                ROLLOUT,
                {
                    "apiVersion": API_VERSION,
                    "kind": ROLLOUT.kind,
                    "metadata": {
                        "name": announced.name,
                        "namespace": policy.metadata.namespace,
                        "labels": {
                            POLICY_LABEL: policy.metadata.name,
                            ENDPOINT_LABEL: policy.spec.endpoint_ref.name,
                        },
                        "ownerReferences": [
                            owner_reference(reference(POLICY, policy.metadata), block_owner_deletion=False)
                        ],
                    },
                    "spec": spec.to_dict(),
                },
            )
        except AlreadyExists:
            return
        note = (
            f"rollout {announced.name} to {stored.release.version} ({stored.release.short}): {len(stored.members)} VMs"
        )
        if stored.warnings:
            note = f"{note}; {'; '.join(stored.warnings)}"
        self._notices.tell(POLICY, policy.metadata, EventReason.ROLLOUT_STARTED, "Plan", note, rollout=announced.name)

    async def _prune(self, key: Key, policy: PatchPolicy) -> None:
        for rollout in finished_to_prune(self._stores.rollouts_of(key), policy.spec.history_limit):
            if rollout.metadata.deletion_timestamp is None:
                try:
                    await self._cluster.delete(ROLLOUT, *key_of(rollout), uid=rollout.metadata.uid)
                except NotFound:
                    continue

    # Report

    async def _report(self, sight: _Sight, last: LastRollout | None, now: datetime) -> bool:
        policy = sight.policy
        situation = PolicySituation(
            policy=policy,
            endpoint=sight.endpoint,
            template=sight.template,
            selection=sight.selection,
            decisions=sight.decisions,
            rollout=sight.rollout,
            last_rollout=last,
            waits=sight.waits,
            listing=sight.listings.get(policy.spec.endpoint_ref.name, Listing()),
        )
        status = policy_status(situation, now=now).model_copy(
            update={
                "last_rollout": last,
                "last_handled_reconcile_at": policy.metadata.annotations.get(REQUESTED_AT_ANNOTATION),
            }
        )
        return await write_status(self._cluster, POLICY, policy.metadata, policy.status, status)


def _says_no_vms(policy: PatchPolicy) -> bool:
    ready = find(policy.status.conditions, ConditionType.READY)
    return ready is not None and ready.reason == Reason.NO_VMS


def _is_only_announced(last: LastRollout) -> bool:
    """Named in the status, and its Rollout was not made yet."""
    return not last.uid and not last.result


def _followed(last: LastRollout | None, rollout: Rollout | None) -> LastRollout | None:
    """What lastRollout says after a look at the rollout itself."""
    if last is None or last.result:
        return last
    if rollout is not None:
        result = str(rollout.status.result) if rollout.status.result is not None else ""
        return last.model_copy(update={"uid": rollout.metadata.uid, "result": result})
    if last.uid:
        return last.model_copy(update={"result": str(Reason.ROLLOUT_DELETED)})
    return last
