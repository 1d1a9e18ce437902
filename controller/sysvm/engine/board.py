"""What admission found out about VMs that only their own reconciler may write down: why they wait, whom to look at,
and whose order of a former leader still holds.

In memory only: a restarted operator decides admission again and fills it anew.
"""

from collections.abc import Iterable, Mapping

from sysvm.api.systemvm import Blocker, SystemVM
from sysvm.engine.stores import told_of_order
from sysvm.kube.objects import Key


class Board:
    """By SystemVM. `epoch`: of the leader that this process is."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._blockers: dict[Key, tuple[Blocker, ...]] = {}
        self._look_at: set[Key] = set()
        self._of: dict[Key, set[Key]] = {}
        self._confirmed: dict[Key, frozenset[str]] = {}

    def blockers(self, endpoint: Key, vm: Key) -> tuple[Blocker, ...] | None:
        """None: admission has not decided for this endpoint since the process began, so what is written stands."""
        return self._blockers.get(vm, ()) if endpoint in self._of else None

    def wants_look(self, vm: Key) -> bool:
        """Admission cannot decide before this VM was looked at again."""
        return vm in self._look_at

    def confirmed(self, endpoint: Key) -> frozenset[str]:
        return self._confirmed.get(endpoint, frozenset())

    def confirm(self, endpoint: Key, orders: frozenset[str]) -> bool:
        """These orders of a former leader are as they would be given now. True: one of them is new."""
        before = self.confirmed(endpoint)
        self._confirmed[endpoint] = orders
        return not orders <= before

    def may_begin(self, endpoint: Key, vm: SystemVM) -> bool:
        """Its order was handed out by this leader, or confirmed by it, or has begun."""
        order = vm.spec.operation
        if order is None or told_of_order(vm) is not None:
            return order is not None
        return order.epoch == self._epoch or order.id in self.confirmed(endpoint)

    def ask(self, vms: Iterable[Key]) -> None:
        """Somebody else than admission waits for a look at these."""
        self._look_at |= set(vms)

    def looked(self, vm: Key) -> None:
        self._look_at.discard(vm)

    def post(self, endpoint: Key, blocked: Mapping[str, tuple[Blocker, ...]], look_at: Iterable[str]) -> list[Key]:
        """Replaces what was known of the endpoint's VMs. Returns the VMs for which something is new."""
        namespace = endpoint.namespace
        blockers = {Key(namespace, name): why for name, why in blocked.items()}
        looks = {Key(namespace, name) for name in look_at}
        before = self._of.get(endpoint, set())
        changed = {vm for vm in before | blockers.keys() if self._blockers.get(vm, ()) != blockers.get(vm, ())}
        changed |= looks - self._look_at
        for vm in before - blockers.keys():
            self._blockers.pop(vm, None)
        self._blockers.update(blockers)
        self._look_at |= looks
        self._of[endpoint] = set(blockers)
        return sorted(changed)
