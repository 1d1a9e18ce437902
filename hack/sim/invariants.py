"""What must hold at every step of every scenario, judged from what VMs and server saw and from nothing the engine says.

The rules are written down once more here, from the promises and not from the code: a shared mistake would hide itself.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sim.fleet import BAD, GOOD, LOST, Fleet, Machine, Operation
from sim.loop import now
from sim.server import Server
from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import RedundancyRole
from sysvm.engine.resources import APPROVAL, ENDPOINT, POLICY, ROLLOUT, SYSTEM_VM
from sysvm.kube.objects import Key, Object, Resource

_PER_ZONE = (SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY)
MayStart = Callable[[datetime], bool]


@dataclass
class Invariants:
    """Listens to a fleet and a server; `violations` are sentences."""

    fleet: Fleet
    server: Server
    may_start: MayStart = lambda moment: True
    """The calendar, as the scenario knows it without the engine's algebra."""
    epoch: Callable[[], int] = lambda: 0
    """Which life it is."""
    violations: list[str] = field(default_factory=list)
    checks: int = 0
    orders: dict[str, Object] = field(default_factory=dict)
    """By operation id: the order that a VM was given."""
    admitted: dict[str, int] = field(default_factory=dict)
    """By operation id: how many VMs had failed in its rollout then."""

    def __post_init__(self) -> None:
        self.fleet.began = self.began
        self.server.listen(self.saw)

    def _hold(self, holds: bool, sentence: str) -> None:
        self.checks += 1
        if not holds:
            self.violations.append(f"{now():%a %H:%M:%S} {sentence}")

    # A VM begins

    def began(self, machine: Machine, operation: Operation) -> None:
        moment = now()
        others = [other for other in self.fleet.machines.values() if other is not machine]
        busy = [other for other in others if other.in_work(moment)]
        order = self.orders.get(operation.id)
        self._hold(order is not None, f"{machine.name} works without an order")
        for other in busy:
            together = machine.group is not None and machine.group == other.group
            self._hold(not together, f"{machine.name} and {other.name} of group {machine.group} are in work at once")
        if machine.type in _PER_ZONE and machine.zone:
            twins = [other for other in others if other.type is machine.type and other.zone == machine.zone]
            back = operation.undoes is not None
            well = [
                other
                for other in twins
                if self._was_seen(other) and not other.in_work(moment) and not _broken(other, back=back)
            ]
            self._hold(bool(well) or not twins, f"{machine.name} is the last healthy one of zone {machine.zone}")
        if operation.undoes is not None:
            return
        if machine.role is RedundancyRole.PRIMARY:
            behind = [
                other.name
                for other in others
                if other.group == machine.group
                and other.role is RedundancyRole.BACKUP
                and other.revision != operation.revision
                and not self._is_held(other, moment)
            ]
            self._hold(not behind, f"{machine.name} is PRIMARY and goes before {', '.join(behind)}")
        done = [one for one in machine.operations if one.applied and one.outcome is GOOD]
        again = any(one.revision == operation.revision for one in done) and machine.revision == operation.revision
        self._hold(not again or machine.drifted, f"{machine.name} is patched again, to what it is")

    def _was_seen(self, machine: Machine) -> bool:
        """It answered at the last look: one that fell silent since then cannot be known before the next."""
        for vm in self.server.all(SYSTEM_VM):
            status = vm.get("status") or {}
            if (status.get("identity") or {}).get("name") == machine.name:
                return all(
                    condition["status"] != "False"
                    for condition in status.get("conditions", ())
                    if condition["type"] == "Reachable"
                )
        return False

    def _is_held(self, machine: Machine, moment: datetime) -> bool:
        """A person keeps it as it is, and has thereby decided about its pair, too."""
        for vm in self.server.all(SYSTEM_VM):
            identity = (vm.get("status") or {}).get("identity") or {}
            if identity.get("name") == machine.name:
                hold = vm["spec"].get("hold") or {}
                return bool(hold) and not _over(hold, moment)
        return False

    # An order is written

    def saw(self, resource: Resource, before: Object | None, after: Object | None) -> None:
        """A listener of the server."""
        if resource != SYSTEM_VM or after is None:
            return
        order, last = after["spec"].get("operation"), (before or {"spec": {}})["spec"].get("operation")
        if order is None:
            self._hold(
                last is None or _told(after) != last["id"], f"{after['metadata']['name']} loses what it works at"
            )
            return
        rollout = self.server.get(ROLLOUT, Key(after["metadata"]["namespace"], order["rollout"]))
        if order != last:
            self.orders[order["id"]] = order
            self._ordered(after, order, rollout)
        elif _told(after) == order["id"] != _told(before or {}) and order["epoch"] < self.epoch():
            self._may_be_given(after, order, rollout)  # what an earlier life ordered begins only in this one

    def _ordered(self, vm: Object, order: Mapping[str, Any], rollout: Object) -> None:
        self._may_be_given(vm, order, rollout)
        if not order.get("takesBack"):
            self._counted(rollout, rollout["spec"]["snapshot"]["strategy"], vm["metadata"]["name"])

    def _may_be_given(self, vm: Object, order: Mapping[str, Any], rollout: Object) -> None:
        name, moment = order["rollout"], now()
        self._hold(order["method"] in rollout["spec"]["snapshot"]["methods"], f"method {order['method']}: not allowed")
        if order.get("takesBack"):
            undone = self.orders.get(order["takesBack"], {})
            self._hold(undone.get("rollout") == name, f"{name} takes back what another rollout did to {order['id']}")
            return
        glass = "breakGlass" in rollout["spec"]
        self._hold(glass or self.may_start(moment), f"{name} orders outside of its calendar")
        self._hold(rollout["spec"].get("state", "Running") == "Running", f"{name} orders although it is not to run")
        self._hold("deletionTimestamp" not in rollout["metadata"], f"{name} orders while it is being deleted")
        policy = self.server.get(POLICY, Key(vm["metadata"]["namespace"], rollout["spec"]["policyRef"]["name"]))
        self._hold(not policy["spec"].get("suspend"), f"{name} orders although its policy is suspended")
        hold = vm["spec"].get("hold") or {}
        self._hold(not hold or _over(hold, moment), f"{vm['metadata']['name']} is on hold and gets work")
        endpoint = self.server.get(ENDPOINT, Key(vm["metadata"]["namespace"], vm["spec"]["endpointRef"]["name"]))
        self._hold(endpoint["spec"]["management"] == "Full", f"{vm['metadata']['name']} gets work under Observe")

    def _counted(self, rollout: Object, strategy: Mapping[str, Any], vm: str) -> None:
        name = rollout["metadata"]["name"]
        hosts: Counter[str] = Counter()
        work, failed = 0, 0
        for other in self.server.all(SYSTEM_VM):
            order, status = other["spec"].get("operation"), other.get("status", {})
            if not order:
                continue
            operation = status.get("operation") or {}
            is_open = operation.get("id") != order["id"] or not operation.get("result")
            if is_open:
                hosts[(status.get("identity") or {}).get("host", "")] += 1
            if order["rollout"] != name or order.get("takesBack"):
                continue
            work += is_open
            failed += not is_open and operation.get("result") != "Succeeded"
        applicable = self._applicable(rollout)
        limit = strategy.get("maxUnavailable", 1)
        slots = limit if isinstance(limit, int) else max(1, applicable * int(limit.rstrip("%")) // 100)
        self._hold(work + failed <= slots, f"{name}: {work} in work and {failed} failed, maxUnavailable is {limit}")
        for host, count in hosts.items():
            limit_of_host = strategy.get("perHost", 2)
            ours = host and (self._host(vm) == host)
            self._hold(not ours or count <= limit_of_host, f"{count} VMs of host {host} in work")
        budget = strategy.get("failureBudget") or {}
        total = _limit(budget.get("total"), applicable)
        if total is not None:
            self._hold(failed <= total, f"{name} orders after {failed} failures, {total} are allowed")

    def _applicable(self, rollout: Object) -> int:
        return sum(
            1
            for vm in self.server.all(SYSTEM_VM)
            if vm["spec"]["endpointRef"]["name"] == rollout["spec"]["endpointRef"]["name"]
        )

    def _host(self, vm: str) -> str | None:
        for other in self.server.all(SYSTEM_VM):
            if other["metadata"]["name"] == vm:
                host = ((other.get("status") or {}).get("identity") or {}).get("host")
                return str(host) if host else None
        return None

    # In the end

    def at_the_end(self) -> None:
        """Every rollout has ended or says what it waits for; every VM is wholly one revision."""
        for rollout in self.server.all(ROLLOUT):
            status = rollout.get("status") or {}
            ready: dict[str, Any] = next((c for c in status.get("conditions", ()) if c["type"] == "Ready"), {})
            told = "result" in status or bool(ready.get("message"))
            self._hold(told, f"{rollout['metadata']['name']} has not ended and does not say why")
        for machine in self.fleet.machines.values():
            machine.settle(now())
            self._hold(not machine.in_work(now()), f"{machine.name} is still in work")

    def approvals_named(self) -> int:
        """How many approvals there are; a scenario without any must not have needed one."""
        return sum(1 for _ in self.server.all(APPROVAL))


def _broken(machine: Machine, *, back: bool) -> bool:
    """It failed, or could not go back. One that was brought back on purpose is well, and on the way back so is one that
    is what it was: nothing new is tried then."""
    if not machine.operations:
        return False
    last = machine.operations[-1]
    return last.outcome is LOST or (last.outcome is BAD and last.undoes is None and not back)


def _told(vm: Object) -> str:
    """Id of the operation that the VM's status tells of, the last one that began."""
    return str(((vm.get("status") or {}).get("operation") or {}).get("id", ""))


def _over(hold: Mapping[str, Any], moment: datetime) -> bool:
    until = hold.get("until")
    return until is not None and datetime.fromisoformat(str(until)) <= moment


def _limit(value: int | str | None, applicable: int) -> int | None:
    if value is None or isinstance(value, int):
        return value
    return math.floor(applicable * int(value.rstrip("%")) / 100)
