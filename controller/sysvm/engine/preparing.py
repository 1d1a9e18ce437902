"""From an order in `SystemVM.spec.operation` to everything that it takes to carry it out over SSH.

A patch, its way back and the backup before CloudStack's own patch need the same: where the VM is, how to log in, what
the release holds, and the limits that were signed with the rollout.
"""

from dataclasses import dataclass

from sysvm.api.methods import Databags, HostPayloadRule, LivePatchOptions, PlannedFailover
from sysvm.api.operation import OperationOrder
from sysvm.api.policy import Checks
from sysvm.api.strategy import Timeouts
from sysvm.api.systemvm import SystemVM
from sysvm.engine.credentials import Accounts
from sysvm.engine.inventory import Roster, target_of
from sysvm.engine.operations import Work
from sysvm.engine.payloads import Payloads
from sysvm.engine.ports import Clock
from sysvm.engine.stores import Stores, endpoint_of
from sysvm.kube.objects import Key
from sysvm.patching.results import Order, SSHAccount


@dataclass(frozen=True, slots=True)
class Preparing:
    """Changes nothing and waits for nothing."""

    stores: Stores
    accounts: Accounts
    roster: Roster
    payloads: Payloads
    clock: Clock

    def work(self, vm: SystemVM, order: OperationOrder) -> Work | None:
        """None: it cannot be reached now, because the endpoint, its list or its login is missing."""
        namespace = vm.metadata.namespace
        place = self.roster.place_of(vm, to_change=True)
        account = self.accounts.get(endpoint_of(vm))
        if place is None or not isinstance(account, SSHAccount):
            return None
        target = target_of(vm, place, account)
        if target is None:
            return None
        template = self.stores.templates.get(Key(namespace, order.template))
        payload = self.payloads.get(template)
        if payload is None and template is not None and order.takes_back is None:
            return None
        rollout = self.stores.rollouts.get(Key(namespace, order.rollout))
        if rollout is not None:
            snapshot = rollout.spec.snapshot
            options, checks, timeouts = snapshot.live_patch, snapshot.checks, snapshot.strategy.timeouts
        else:  # force-removed: the VM has the order, or it begins with the defaults
            options, checks, timeouts = LivePatchOptions(), Checks(), Timeouts()
        return Work(
            target=target,
            payload=payload,
            order=Order(
                id=order.id,
                epoch=order.epoch,
                keep_backups=options.keep_backups,
                settle_seconds=checks.settle.total_seconds(),
                ignored_checks=checks.ignore,
                step_timeout_seconds=timeouts.step.total_seconds(),
                vm_timeout_seconds=self._seconds_left(order, timeouts),
                apply_databags=options.databags is Databags.NEEDED,
                may_fail_over=options.planned_failover is PlannedFailover.ALLOWED,
                same_as_host=options.host_payload is HostPayloadRule.REQUIRE,
            ),
            takes_back=order.takes_back,
        )

    def _seconds_left(self, order: OperationOrder, timeouts: Timeouts) -> float:
        """For the whole operation; at the deadline of its window the VM goes back by itself."""
        longest = timeouts.vm.total_seconds()
        if order.deadline is None:
            return longest
        return max(1.0, min(longest, (order.deadline - self.clock()).total_seconds()))
