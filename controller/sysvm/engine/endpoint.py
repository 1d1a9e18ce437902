"""CloudStackEndpoint: who belongs to it, can anybody log in, how many answer.

Objects come and go in an order in which no restart loses anything: a VM that took another's place has its hold and
priority before the other's object goes; each is one write with a name that follows from the VM's, so that whoever comes
next finds what is there and goes on.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from sysvm.api.base import API_VERSION, ENDPOINT_LABEL, PREDECESSOR_ANNOTATION, REQUESTED_AT_ANNOTATION, ObjectMeta
from sysvm.api.endpoint import CloudStackEndpoint, Inventory, Management
from sysvm.api.images import ImageMode, Images
from sysvm.api.methods import AllowedMethod, LivePatchRoute
from sysvm.api.policy import PatchPolicy
from sysvm.api.reasons import ConditionType, EventReason, Reason
from sysvm.api.systemvm import SystemVM, SystemVMSpec
from sysvm.cloudstack.preflight import Feature
from sysvm.cloudstack.transport import Access
from sysvm.domain import inventory
from sysvm.domain.cloud import Snapshot
from sysvm.domain.cloud_status import CloudFacts, stands_until_swept
from sysvm.domain.conditions import find
from sysvm.domain.facts import facts_of
from sysvm.domain.gate import suspected_recreation
from sysvm.domain.inventory import Delta, Heir, Known, Newcomer
from sysvm.domain.source_status import Problem, endpoint_status
from sysvm.engine.cloud import ManagedClouds
from sysvm.engine.credentials import Accounts, NoAccount
from sysvm.engine.inventory import Roster, doubles, listed
from sysvm.engine.notices import Notices, reference
from sysvm.engine.ports import Clock
from sysvm.engine.resources import ENDPOINT, SYSTEM_VM
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores, endpoint_of, key_of, open_order, template_of
from sysvm.kube.client import Cluster
from sysvm.kube.errors import AlreadyExists, Conflict, NotFound
from sysvm.kube.objects import Key, Object, owner_reference
from sysvm.kube.queue import Again

LOOK_SECONDS = 30.0
"""How often the Secret is read again: the operator may not watch Secrets."""
WRITES_AT_ONCE = 500
"""Objects made or removed before others get their turn, and before the process looks stuck."""
DEFAULT_PRIORITY = SystemVMSpec.model_fields["priority"].default


@dataclass(slots=True)
class _Memory:
    """What was last worked off for an endpoint: the same again would change nothing."""

    worked_off: object = None
    judged_at: datetime | None = None
    """Time of the snapshot that was judged last: VMs that it missed are counted once."""
    missed: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _Lined:
    """What came of bringing objects in line."""

    taken: tuple[str, ...] = ()
    """Names that belong to another endpoint."""
    double: tuple[str, ...] = ()
    unfinished: bool = False


class EndpointReconciler:
    """One key: one CloudStackEndpoint. Deleting it forgets its VMs (they are owned), never destroys one."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        accounts: Accounts,
        clouds: ManagedClouds,
        roster: Roster,
        notices: Notices,
        login_changed: Callable[[Key], None],
        wake_vm: Callable[[Key], None],
        wake_endpoint: Callable[[Key], None],
        cloud_changed: Callable[[Key], None],
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._accounts = accounts
        self._clouds = clouds
        self._roster = roster
        self._notices = notices
        self._login_changed = login_changed
        self._wake_vm = wake_vm
        self._wake_endpoint = wake_endpoint
        self._cloud_changed = cloud_changed
        self._clock = clock
        self._memories: dict[Key, _Memory] = {}
        self._alarmed: dict[Key, frozenset[str]] = {}

    async def reconcile(self, key: Key) -> Again | None:
        endpoint = self._stores.endpoints.get(key)
        if endpoint is None:
            await self._forget(key)
            return None
        if endpoint.metadata.deletion_timestamp is not None:
            return None
        now = self._clock()
        account, changed = await self._accounts.read(endpoint, now)
        problem = Problem(account.reason, account.message) if isinstance(account, NoAccount) else None
        if endpoint.spec.inventory is Inventory.CLOUDSTACK:
            problem = problem or await self._ask_cloud(key, endpoint, now)
        if changed:
            self._login_changed(key)
        memory = self._memories.setdefault(key, _Memory())
        state = (
            endpoint.metadata.resource_version,
            self._stores.vms_version(key),
            self._clouds.state(key),
            problem,
        )
        if memory.worked_off != state:
            lined = await self._bring_in_line(key, endpoint, memory)
            await self._report(key, endpoint, problem or _conflict(endpoint, lined))
            memory.worked_off = None if lined.unfinished else state
            if lined.unfinished:
                return Again(0.1)
        return Again(min(LOOK_SECONDS, max(1.0, self._until_sweep(key, endpoint, self._clock()))))

    async def _forget(self, key: Key) -> None:
        self._accounts.forget(key)
        self._roster.forget(key)
        self._memories.pop(key, None)
        self._alarmed.pop(key, None)
        await self._clouds.forget(key)
        for other, _ in list(self._clouds.swept()):
            if self._clouds.rival(other) == key:  # the cloud is another's now
                self._wake_endpoint(other)

    # The cloud

    async def _ask_cloud(self, key: Key, endpoint: CloudStackEndpoint, now: datetime) -> Problem | None:
        """Takes what a sweep brought, begins the next, and says what is wrong with the cloud or the way to it."""
        access = await self._accounts.read_access(endpoint, now)
        if not isinstance(access, Access):
            return Problem(access.reason, access.message)
        await self._clouds.follow(key, access, endpoint.spec.management)
        delta = self._clouds.take_note(key, endpoint.spec.scan.inventory, now)
        if delta is not None or self._clouds.snapshot(key) is None:
            self._settle_rivals(key, endpoint)
        if delta is not None:
            self._spread(key, delta)
            self._alarm(key, endpoint)
        requested = endpoint.metadata.annotations.get(REQUESTED_AT_ANNOTATION)
        if requested and requested != endpoint.status.last_handled_reconcile_at:
            self._clouds.sweep_now(key)
        if not endpoint.spec.suspend:
            self._clouds.sweep_if_due(key, self._features(key, endpoint), now)
        return self._cloud_problem(key, endpoint)

    def _alarm(self, key: Key, endpoint: CloudStackEndpoint) -> None:
        """Tells of each duplicate once, and again when it was gone in between."""
        alarms = self._clouds.beside(key).alarms
        for told in sorted(alarms - self._alarmed.get(key, frozenset())):
            self._notices.tell(ENDPOINT, endpoint.metadata, EventReason.DUPLICATE_GATEWAY, "Sweep", told, warning=True)
        self._alarmed[key] = alarms

    def _spread(self, key: Key, delta: Delta) -> None:
        """Wakes who reads what changed."""
        for vm in self._stores.vms_of(key):
            identity = vm.status.identity
            if delta.around or identity is None or identity.id is None or identity.id in delta.vms:
                self._wake_vm(Key(key.namespace, vm.metadata.name))
        if delta.around:
            self._cloud_changed(key)

    def _until_sweep(self, key: Key, endpoint: CloudStackEndpoint, now: datetime) -> float:
        if endpoint.spec.inventory is Inventory.STATIC or endpoint.spec.suspend:
            return LOOK_SECONDS
        return self._clouds.seconds_to_next(key, now)

    def _cloud_problem(self, key: Key, endpoint: CloudStackEndpoint) -> Problem | None:
        rival = self._clouds.rival(key)
        if rival is not None:
            return Problem(
                Reason.CONFLICT,
                f"{_has_vms(rival)} and is older: it keeps them, and {endpoint.metadata.name} neither looks at nor "
                "changes any; delete one of the two",
            )
        failure = self._clouds.failure(key)
        if failure is None:
            return None
        kept = "" if self._clouds.snapshot(key) is None else "; what the last whole sweep found stays"
        return Problem(failure.reason, f"{failure.message}{kept}", transient=failure.transient)

    def _features(self, key: Key, endpoint: CloudStackEndpoint) -> set[Feature]:
        wanted: set[Feature] = set()
        for policy in self._stores.policies_of(key):
            template = self._stores.templates.get(template_of(policy))
            wanted |= features_of(endpoint.spec.management, policy, template.spec.images if template else None)
        return wanted

    def _settle_rivals(self, key: Key, endpoint: CloudStackEndpoint) -> None:
        """Of two endpoints with VMs in common the older has the cloud: two would break each other's budgets."""
        rival = self._told_rival(endpoint)
        mine = next((found for other, found in self._clouds.swept() if other == key), None)
        if mine is None:
            self._clouds.yield_to(key, rival)
            return
        for other, theirs in list(self._clouds.swept()):
            them = self._stores.endpoints.get(other)
            if other == key or them is None or theirs.vms.keys().isdisjoint(mine.vms.keys()):
                continue
            if _age(them) < _age(endpoint):
                rival = other
            elif self._clouds.rival(other) is None:
                self._clouds.yield_to(other, key)
                self._wake_endpoint(other)
        self._clouds.yield_to(key, rival)

    def _told_rival(self, endpoint: CloudStackEndpoint) -> Key | None:
        """Who had the cloud before this process began, by what was written then, until it is swept again. Else a
        restart in which the younger is swept first would give it the cloud."""
        told = find(endpoint.status.conditions, ConditionType.READY)
        if told is None or told.reason != Reason.CONFLICT:
            return None
        swept = {other for other, _ in self._clouds.swept()}
        for them in self._stores.endpoints.values():
            other = key_of(them)
            older = them.spec.inventory is Inventory.CLOUDSTACK and _age(them) < _age(endpoint)
            if older and other not in swept and told.message.startswith(_has_vms(other)):
                return other
        return None

    # Objects

    async def _bring_in_line(self, key: Key, endpoint: CloudStackEndpoint, memory: _Memory) -> _Lined:
        """Makes and removes SystemVM objects."""
        if endpoint.spec.inventory is Inventory.STATIC:
            return await self._follow_list(key, endpoint)
        snapshot = self._clouds.snapshot(key)
        return _Lined() if snapshot is None else await self._follow_cloud(key, endpoint, snapshot, memory)

    async def _follow_list(self, key: Key, endpoint: CloudStackEndpoint) -> _Lined:
        wanted = listed(endpoint)
        taken = await self._create_all(key, endpoint, (Newcomer(name, None) for name in wanted))
        for vm in self._stores.vms_of(key):
            if vm.metadata.name not in wanted:
                await self._delete(vm)
        return _Lined(tuple(taken), tuple(doubles(endpoint)))

    async def _follow_cloud(
        self, key: Key, endpoint: CloudStackEndpoint, snapshot: Snapshot, memory: _Memory
    ) -> _Lined:
        missed = memory.missed or {}
        verdict = inventory.judge(
            key.name,
            snapshot,
            [_known(vm, missed.get(vm.metadata.name, 0)) for vm in self._stores.vms_of(key)],
            explained=self._clouds.explained(key),
            again=memory.judged_at == snapshot.taken_at,
        )
        memory.judged_at, memory.missed = snapshot.taken_at, dict(verdict.missed)
        for missing in self._roster.note_missing(key, verdict):
            self._wake_vm(missing)
        taken = await self._create_all(key, endpoint, verdict.newcomers[:WRITES_AT_ONCE])
        for heir in verdict.heirs:
            await self._bequeath(key, heir)
        unfinished = len(verdict.newcomers) > WRITES_AT_ONCE or len(verdict.gone) > WRITES_AT_ONCE
        for gone in verdict.gone[:WRITES_AT_ONCE]:
            vm = self._stores.system_vms.get(Key(key.namespace, gone.name))
            if vm is None:
                continue
            if not await self._delete(vm):
                unfinished = True
            else:
                name = gone.identity.name if gone.identity is not None else gone.name
                note = f"{name} is not in CloudStack any more"
                self._notices.tell(SYSTEM_VM, vm.metadata, EventReason.GONE, "Sweep", note)
        return _Lined(tuple(taken), verdict.doubles, unfinished)

    async def _create_all(self, key: Key, endpoint: CloudStackEndpoint, newcomers: Iterable[Newcomer]) -> list[str]:
        """Returns the names that belong to another endpoint."""
        taken: list[str] = []
        for newcomer in newcomers:
            known = self._stores.system_vms.get(Key(key.namespace, newcomer.name))
            if known is not None:
                if endpoint_of(known) != key:
                    taken.append(newcomer.name)
                continue
            if not await self._create(endpoint, newcomer):
                taken.append(newcomer.name)
        return taken

    async def _create(self, endpoint: CloudStackEndpoint, newcomer: Newcomer) -> bool:
        owner = owner_reference(reference(ENDPOINT, endpoint.metadata), block_owner_deletion=False)
        before = newcomer.predecessor
        namespace = endpoint.metadata.namespace
        metadata: Object = {
            "name": newcomer.name,
            "namespace": namespace,
            "labels": {ENDPOINT_LABEL: endpoint.metadata.name},
            "ownerReferences": [owner],
        }
        if before is not None and before.identity is not None:
            metadata["annotations"] = {PREDECESSOR_ANNOTATION: before.identity.name}
        spec = {"endpointRef": {"name": endpoint.metadata.name}, **self._wishes(namespace, before)}
        made: Object = {"apiVersion": API_VERSION, "kind": SYSTEM_VM.kind, "metadata": metadata, "spec": spec}
        try:
            answer = await self._cluster.create(SYSTEM_VM, made)
        except AlreadyExists:
            there = await self._cluster.get(SYSTEM_VM, namespace, newcomer.name)
            return bool(there["spec"]["endpointRef"]["name"] == endpoint.metadata.name)
        if before is not None and before.identity is not None and newcomer.vm is not None:
            note = f"{newcomer.vm.name} took the place of {before.identity.name}"
            self._tell_recreated(ObjectMeta.model_validate(answer["metadata"]), note, before)
        return True

    async def _bequeath(self, key: Key, heir: Heir) -> None:
        """Gives what a person wished of a VM to the one that took its place, which had its object before."""
        vm = self._stores.system_vms.get(Key(key.namespace, heir.name))
        before = heir.predecessor.identity
        if vm is None or before is None:
            return
        patch: Object = {"metadata": {"annotations": {PREDECESSOR_ANNOTATION: before.name}}}
        wishes = self._wishes(key.namespace, heir.predecessor)
        if vm.spec.hold is not None:
            wishes.pop("hold", None)
        if wishes:
            patch["spec"] = wishes
        try:
            await self._cluster.merge_patch(
                SYSTEM_VM, key.namespace, heir.name, patch, resource_version=vm.metadata.resource_version
            )
        except NotFound:
            return
        name = vm.status.identity.name if vm.status.identity is not None else heir.name
        self._tell_recreated(vm.metadata, f"{name} took the place of {before.name}", heir.predecessor)

    def _tell_recreated(self, metadata: ObjectMeta, note: str, before: Known) -> None:
        more = ", and has its hold or priority" if before.has_wishes else ""
        self._notices.tell(SYSTEM_VM, metadata, EventReason.RECREATED, "Sweep", f"{note}{more}")
        vm = self._stores.system_vms.get(Key(metadata.namespace, before.name))
        observed = vm.status.observed if vm is not None else None
        explained = before.identity is not None and before.identity.id in self._clouds.explained(
            Key(metadata.namespace, metadata.labels.get(ENDPOINT_LABEL, ""))
        )
        if observed is not None and observed.management is not None and not before.in_work and not explained:
            suspicion = suspected_recreation(observed.management)
            if suspicion is not None:
                told = f"{note}, and not by this operator: {suspicion}"
                self._notices.tell(SYSTEM_VM, metadata, EventReason.EXTERNAL_RECREATION, "Sweep", told, warning=True)

    def _wishes(self, namespace: str, before: Known | None) -> Object:
        """What a person wished of a VM, as fields of a spec."""
        vm = self._stores.system_vms.get(Key(namespace, before.name)) if before is not None else None
        if vm is None:
            return {}
        wishes: Object = {}
        if vm.spec.hold is not None:
            wishes["hold"] = vm.spec.hold.to_dict()
        if vm.spec.priority != DEFAULT_PRIORITY:
            wishes["priority"] = vm.spec.priority
        return wishes

    async def _delete(self, vm: SystemVM) -> bool:
        if vm.metadata.deletion_timestamp is not None:
            return False
        try:
            await self._cluster.delete(
                SYSTEM_VM,
                vm.metadata.namespace,
                vm.metadata.name,
                uid=vm.metadata.uid,
                resource_version=vm.metadata.resource_version,
            )
        except (NotFound, Conflict):  # somebody wished something of it meanwhile: it is judged again
            return False
        return True

    # Report

    async def _report(self, key: Key, endpoint: CloudStackEndpoint, problem: Problem | None) -> None:
        cloud = self._cloud_facts(key) if endpoint.spec.inventory is Inventory.CLOUDSTACK else None
        if cloud is not None and problem is None and stands_until_swept(endpoint, cloud):
            return
        now = self._clock()
        vms = [facts_of(vm, now=now, scan=endpoint.spec.scan) for vm in self._stores.vms_of(key)]
        status = endpoint_status(endpoint, vms, problem=problem, now=now, cloud=cloud)
        requested = endpoint.metadata.annotations.get(REQUESTED_AT_ANNOTATION)
        status = status.model_copy(update={"last_handled_reconcile_at": requested})
        written = await write_status(self._cluster, ENDPOINT, endpoint.metadata, endpoint.status, status)
        weak = find(status.conditions, ConditionType.LEGACY_ALGORITHMS)
        if written and weak is not None and find(endpoint.status.conditions, ConditionType.LEGACY_ALGORITHMS) is None:
            self._notices.tell(
                ENDPOINT, endpoint.metadata, EventReason.LEGACY_ALGORITHMS, "Connect", weak.message, warning=True
            )

    def _cloud_facts(self, key: Key) -> CloudFacts:
        failure, permissions = self._clouds.failure(key), self._clouds.permissions(key)
        return CloudFacts(
            snapshot=self._clouds.snapshot(key),
            failure=failure.reason if failure is not None else None,
            failure_message=failure.message if failure is not None else "",
            lacking=permissions.sentence() if permissions is not None else "",
            dispensable=permissions.warning() if permissions is not None else "",
            not_allowed=self._clouds.not_allowed(key),
            clocks=self._clouds.clocks(key),
            beside=self._clouds.beside(key).told,
        )


def features_of(management: Management, policy: PatchPolicy, images: Images | None) -> set[Feature]:
    """What the role must be able to do for a policy and the images of its release; to change only if that may be."""
    wanted = {Feature.ADOPT} if images is not None else set()
    if management is not Management.FULL:
        return wanted
    if images is not None and images.mode is ImageMode.REGISTER:
        wanted.add(Feature.REGISTER)
    if images is not None and images.accept_promotion is not None:
        wanted.add(Feature.PROMOTE)
    if AllowedMethod.REBOOT in policy.spec.methods:
        wanted.add(Feature.REBOOT)
    if AllowedMethod.RECREATE in policy.spec.methods:
        wanted.add(Feature.RECREATE)
    if AllowedMethod.LIVE_PATCH in policy.spec.methods and policy.spec.live_patch.route is LivePatchRoute.AUTO:
        wanted.add(Feature.FALL_BACK_TO_API)
    if policy.spec.live_patch.route is LivePatchRoute.API:
        wanted.add(Feature.PATCH_BY_API)
    if wanted & {Feature.REBOOT, Feature.RECREATE, Feature.PATCH_BY_API, Feature.FALL_BACK_TO_API}:
        wanted.add(Feature.COMPARE)
    return wanted


def _known(vm: SystemVM, missed: int) -> Known:
    return Known(
        name=vm.metadata.name,
        identity=vm.status.identity,
        predecessor=vm.metadata.annotations.get(PREDECESSOR_ANNOTATION),
        has_wishes=vm.spec.hold is not None or vm.spec.priority != DEFAULT_PRIORITY,
        in_work=open_order(vm) is not None,
        deleting=vm.metadata.deletion_timestamp is not None,
        missed=missed,
    )


def _has_vms(rival: Key) -> str:
    return f"endpoint {rival.name} in namespace {rival.namespace} has VMs of the same cloud"


def _age(endpoint: CloudStackEndpoint) -> tuple[datetime, str, str]:
    metadata = endpoint.metadata
    return metadata.creation_timestamp or datetime.max.replace(tzinfo=UTC), metadata.namespace, metadata.name


def _conflict(endpoint: CloudStackEndpoint, lined: _Lined) -> Problem | None:
    if lined.double:
        where = "systemVMs" if endpoint.spec.inventory is Inventory.STATIC else "CloudStack's list"
        return Problem(
            Reason.NAME_CONFLICT,
            f"{', '.join(lined.double[:10])}: another entry of {where} has the same name in lower case; rename one",
        )
    if lined.taken:
        return Problem(
            Reason.NAME_CONFLICT,
            f"SystemVM {', '.join(lined.taken[:10])} belongs to another endpoint; rename one of the endpoints",
        )
    return None
