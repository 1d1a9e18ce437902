"""CloudStackEndpoint: who belongs to it, can anybody log in, how many answer."""

from collections.abc import Callable

from sysvm.api.base import API_VERSION, ENDPOINT_LABEL, REQUESTED_AT_ANNOTATION
from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.reasons import ConditionType, EventReason, Reason
from sysvm.domain.conditions import find
from sysvm.domain.facts import facts_of
from sysvm.domain.source_status import Problem, endpoint_status
from sysvm.engine.credentials import Accounts, NoAccount
from sysvm.engine.inventory import doubles, listed
from sysvm.engine.notices import Notices, reference
from sysvm.engine.ports import Clock
from sysvm.engine.resources import ENDPOINT, SYSTEM_VM
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores, endpoint_of
from sysvm.kube.client import Cluster
from sysvm.kube.errors import AlreadyExists, NotFound
from sysvm.kube.objects import Key, owner_reference
from sysvm.kube.queue import Again

LOOK_SECONDS = 30.0
"""How often the Secret is read again: the operator may not watch Secrets."""


class EndpointReconciler:
    """One key: one CloudStackEndpoint. Deleting it forgets its VMs (they are owned), never destroys one."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        accounts: Accounts,
        notices: Notices,
        login_changed: Callable[[Key], None],
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._accounts = accounts
        self._notices = notices
        self._login_changed = login_changed
        self._clock = clock

    async def reconcile(self, key: Key) -> Again | None:
        endpoint = self._stores.endpoints.get(key)
        if endpoint is None:
            self._accounts.forget(key)
            return None
        if endpoint.metadata.deletion_timestamp is not None:
            return None
        account, changed = await self._accounts.read(endpoint, self._clock())
        taken = await self._bring_in_line(key, endpoint)
        await self._report(key, endpoint, _problem(endpoint, account, taken))
        if changed:
            self._login_changed(key)
        return Again(LOOK_SECONDS)

    async def _bring_in_line(self, key: Key, endpoint: CloudStackEndpoint) -> list[str]:
        """Makes and removes SystemVM objects. Returns the names that belong to another endpoint.

        Each object is one write with a name that follows from the spec: a restart finds what is there and goes on.
        """
        wanted = listed(endpoint)
        taken: list[str] = []
        for name in wanted:
            known = self._stores.system_vms.get(Key(key.namespace, name))
            if known is not None:
                if endpoint_of(known) != key:
                    taken.append(name)
                continue
            if not await self._create(endpoint, name):
                taken.append(name)
        for vm in self._stores.vms_of(key):
            if vm.metadata.name not in wanted and vm.metadata.deletion_timestamp is None:
                try:
                    await self._cluster.delete(SYSTEM_VM, key.namespace, vm.metadata.name, uid=vm.metadata.uid)
                except NotFound:
                    continue
        return taken

    async def _create(self, endpoint: CloudStackEndpoint, name: str) -> bool:
        owner = owner_reference(reference(ENDPOINT, endpoint.metadata), block_owner_deletion=False)
        try:
            await self._cluster.create(
                SYSTEM_VM,
                {
                    "apiVersion": API_VERSION,
                    "kind": SYSTEM_VM.kind,
                    "metadata": {
                        "name": name,
                        "namespace": endpoint.metadata.namespace,
                        "labels": {ENDPOINT_LABEL: endpoint.metadata.name},
                        "ownerReferences": [owner],
                    },
                    "spec": {"endpointRef": {"name": endpoint.metadata.name}},
                },
            )
        except AlreadyExists:
            there = await self._cluster.get(SYSTEM_VM, endpoint.metadata.namespace, name)
            return bool(there["spec"]["endpointRef"]["name"] == endpoint.metadata.name)
        return True

    async def _report(self, key: Key, endpoint: CloudStackEndpoint, problem: Problem | None) -> None:
        now = self._clock()
        vms = [facts_of(vm, now=now, scan=endpoint.spec.scan) for vm in self._stores.vms_of(key)]
        status = endpoint_status(endpoint, vms, problem=problem, now=now)
        requested = endpoint.metadata.annotations.get(REQUESTED_AT_ANNOTATION)
        status = status.model_copy(update={"last_handled_reconcile_at": requested})
        written = await write_status(self._cluster, ENDPOINT, endpoint.metadata, endpoint.status, status)
        weak = find(status.conditions, ConditionType.LEGACY_ALGORITHMS)
        if written and weak is not None and find(endpoint.status.conditions, ConditionType.LEGACY_ALGORITHMS) is None:
            self._notices.tell(
                ENDPOINT, endpoint.metadata, EventReason.LEGACY_ALGORITHMS, "Connect", weak.message, warning=True
            )


def _problem(endpoint: CloudStackEndpoint, account: object, taken: list[str]) -> Problem | None:
    if isinstance(account, NoAccount):
        return Problem(account.reason, account.message)
    double = doubles(endpoint)
    if double:
        return Problem(
            Reason.NAME_CONFLICT,
            f"{', '.join(double[:10])}: another entry of systemVMs has the same name in lower case; rename one",
        )
    if taken:
        return Problem(
            Reason.NAME_CONFLICT,
            f"SystemVM {', '.join(taken[:10])} belongs to another endpoint; rename one of the endpoints",
        )
    return None
