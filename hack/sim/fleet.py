"""System VMs as values: what an operation does to one, and when, however often the operator dies meanwhile.

A VM knows nothing of the operator. It takes an order, carries it out alone, remembers how it ended, and answers whoever
asks. That it really does is proven in tests/remote and tests/system; here it is taken for granted and cheap.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sim.loop import now
from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import ContentState, PairGateway, PairSample, RedundancyRole
from sysvm.api.reasons import Reason
from sysvm.engine.ports import Progress
from sysvm.patching.errors import Refused, Unreachable
from sysvm.patching.payload import Payload
from sysvm.patching.results import (
    ContentReport,
    JournalPhase,
    Observation,
    OperationReport,
    Order,
    PlannedServiceAction,
    SeenHostKey,
    ServiceReport,
    ServiceState,
    StepReport,
    Target,
)

LOOK_SECONDS = 1.0
SAMPLE_SECONDS = 5.0
OLD_SIGNATURE = "01" * 16
OUTPUT = "haproxy: [ALERT] cannot bind socket"
GOOD = JournalPhase.COMMITTED
BAD = JournalPhase.ROLLED_BACK
LOST = JournalPhase.INCONSISTENT

_PHASES = ((0.0, JournalPhase.STAGING, "Stage"), (0.5, JournalPhase.SWITCHING, "Switch"))


@dataclass
class Operation:
    """One order as the VM carries it out."""

    id: str
    revision: str
    signature: str
    begun: datetime
    ends: datetime
    outcome: JournalPhase
    before: tuple[str, str]
    """Revision and signature that it began with."""
    undoes: "Operation | None" = None
    applied: bool = False


@dataclass
class Machine:
    """One VM, and how it will behave."""

    name: str
    type: SystemVMType = SystemVMType.ROUTER
    group: str | None = None
    host: str | None = None
    zone: str | None = None
    role: RedundancyRole | None = None
    seconds: float = 40.0
    """What an operation takes."""
    outcomes: tuple[JournalPhase, ...] = (GOOD,)
    """Of its first, second, ... operation; the last one repeats."""
    busy_until: float = 0.0
    """Seconds on the clock: until then CloudStack is at work on it, and it refuses orders."""
    revision: str = "old"
    signature: str = OLD_SIGNATURE
    reachable: bool = True
    drifted: bool = False
    highest_epoch: int = 0
    operations: list[Operation] = field(default_factory=list)
    looks: int = 0

    def settle(self, moment: datetime) -> None:
        """What has ended by now has its effect."""
        for one in self.operations:
            if one.applied or one.ends > moment:
                continue
            one.applied = True
            if one.undoes is not None and one.outcome is BAD:
                self.revision, self.signature = one.undoes.before
            elif one.outcome is GOOD:
                self.revision, self.signature, self.drifted = one.revision, one.signature, False
            elif one.outcome is LOST:
                self.signature = "0" * 32

    def in_work(self, moment: datetime) -> bool:
        return any(one.begun <= moment < one.ends for one in self.operations)

    def reboot(self, moment: datetime) -> None:
        """An operation in work is brought back at boot."""
        for one in self.operations:
            if one.ends > moment:
                one.ends, one.outcome = moment, BAD


OnOrder = Callable[[Machine, Operation], None]


@dataclass
class Fleet:
    """All VMs. `began` is told of every operation that a VM begins."""

    machines: dict[str, Machine]
    began: OnOrder = lambda machine, operation: None

    def begin(self, machine: Machine, payload: Payload, order: Order) -> None:
        """Raises `Refused`."""
        moment = now()
        machine.settle(moment)
        if any(one.id == order.id for one in machine.operations):
            return
        if order.epoch < machine.highest_epoch:
            raise Refused(f"{machine.name}: old epoch", reason=Reason.EPOCH_REFUSED, retryable=False)
        machine.highest_epoch = order.epoch
        if asyncio.get_running_loop().time() < machine.busy_until:
            raise Refused(f"{machine.name}: CloudStack is at work on it", reason=Reason.VM_BUSY, retryable=True)
        if machine.in_work(moment):
            raise Refused(f"{machine.name}: in work for another", reason=Reason.LOCK_HELD, retryable=True)
        forward = [one for one in machine.operations if one.undoes is None]
        outcome = machine.outcomes[min(len(forward), len(machine.outcomes) - 1)]
        ends = moment + timedelta(seconds=machine.seconds)
        before = machine.revision, machine.signature
        operation = Operation(order.id, payload.revision, payload.signature, moment, ends, outcome, before)
        machine.operations.append(operation)
        self.began(machine, operation)

    def begin_back(self, machine: Machine, order: Order, operation_id: str) -> None:
        """Raises `Refused`."""
        moment = now()
        machine.settle(moment)
        if any(one.id == order.id for one in machine.operations):
            return
        undone = next((one for one in machine.operations if one.id == operation_id), None)
        if undone is None or undone.outcome is not GOOD:
            raise Refused(
                f"{machine.name} has nothing to go back from", reason=Reason.OPERATION_REPEATED, retryable=False
            )
        machine.highest_epoch = max(machine.highest_epoch, order.epoch)
        ends = moment + timedelta(seconds=machine.seconds)
        before = machine.revision, machine.signature
        operation = Operation(order.id, undone.before[0], undone.before[1], moment, ends, BAD, before, undone)
        machine.operations.append(operation)
        self.began(machine, operation)


@dataclass
class SimulatedVMs:
    """`engine.ports.SystemVMs` of one life of the operator; a dead life waits for ever."""

    fleet: Fleet
    dead: bool = False

    async def observe(self, target: Target, payload: Payload | None, *, samples: int = 1) -> Observation:
        machine = await self._reach(target)
        seen: list[PairSample] = []
        for number in range(samples if machine.role is not None else 0):
            await asyncio.sleep(SAMPLE_SECONDS if number else 0)
            seen.append(self._sample(machine))
        await asyncio.sleep(LOOK_SECONDS)
        await self._alive()
        moment = now()
        machine.settle(moment)
        machine.looks += 1
        content = None
        if payload is not None:
            same = machine.revision == payload.revision and not machine.drifted
            content = ContentReport(
                revision=payload.revision,
                state=ContentState.MATCHES if same else ContentState.DRIFTED,
                changed=0 if same else 1,
                paths=() if same else ("/opt/cloud/bin/patched.sh",),
            )
        return Observation(
            at=moment.replace(microsecond=0),
            host_key=SeenHostKey("ssh-ed25519", f"SHA256:{'a' * 43}", "ssh-ed25519 AAAA"),
            type=target.type,
            release="4.20.1",
            debian_version="12.9",
            signature=machine.signature,
            payload_checksums={"md5": machine.signature},
            boot_id="b1",
            booted=True,
            services=(ServiceState("haproxy", "loaded", "active", "running", True, 77, 0),),
            redundancy=machine.role,
            pair_samples=tuple(seen),
            failing_health_checks=(),
            disk_available_bytes=1 << 30,
            memory_available_bytes=1 << 30,
            other_actors=(),
            unfinished=None,
            last_finished=None,
            highest_epoch=machine.highest_epoch,
            content=content,
            agent_content=None,
            actions=(PlannedServiceAction("haproxy", "Reload", "none"),) if content and content.changed else (),
        )

    async def patch(self, target: Target, payload: Payload, order: Order, progress: Progress) -> OperationReport:
        machine = await self._reach(target)
        self.fleet.begin(machine, payload, order)
        return await self._follow(machine, order, progress)

    async def take_back(self, target: Target, order: Order, operation_id: str, progress: Progress) -> OperationReport:
        machine = await self._reach(target)
        self.fleet.begin_back(machine, order, operation_id)
        return await self._follow(machine, order, progress)

    async def back_up(self, target: Target, payload: Payload, order: Order) -> OperationReport:
        raise NotImplementedError("no management server is asked here")

    async def _follow(self, machine: Machine, order: Order, progress: Progress) -> OperationReport:
        told: JournalPhase | None = None
        while True:
            await self._alive()
            operation = next(one for one in machine.operations if one.id == order.id)
            report = _report(machine, operation)
            if report.phase.is_final:
                return report
            if report.phase is not told:
                told = report.phase
                progress(report)
            left = (operation.ends - now()).total_seconds()
            await asyncio.sleep(min(left, machine.seconds / 2) + 0.001)

    async def report(self, target: Target, operation_id: str) -> OperationReport | None:
        machine = await self._reach(target)
        found = next((one for one in machine.operations if one.id == operation_id), None)
        return None if found is None else _report(machine, found)

    def _sample(self, machine: Machine) -> PairSample:
        """What a router of a pair that works sees of itself."""
        primaries = [
            other
            for other in self.fleet.machines.values()
            if other.group == machine.group and other.role is RedundancyRole.PRIMARY and other is not machine
        ]
        held = machine.role is RedundancyRole.PRIMARY
        gateway = PairGateway(
            address="10.1.1.1", held=held, mac=_mac(machine), answers=tuple(_mac(other) for other in primaries[:4])
        )
        return PairSample(
            at=now(),
            keepalived=True,
            state=machine.role,
            heartbeat=True,
            public_up=held,
            conntrackd=True,
            flows=100 if held else 0,
            replicated=0 if held else 100,
            gateways=(gateway,),
        )

    async def _reach(self, target: Target) -> Machine:
        await asyncio.sleep(0.05)
        await self._alive()
        machine = self.fleet.machines[target.name]
        if not machine.reachable:
            raise Unreachable(f"{target.name} does not answer", reason=Reason.SSH_UNREACHABLE)
        return machine

    async def _alive(self) -> None:
        if self.dead:
            await asyncio.Event().wait()


def _mac(machine: Machine) -> str:
    return "02:00:" + ":".join(f"{byte:02x}" for byte in machine.name.encode().ljust(4, b"0")[-4:])


def _report(machine: Machine, operation: Operation) -> OperationReport:
    moment = now()
    machine.settle(moment)
    if moment < operation.ends:
        share = (moment - operation.begun) / (operation.ends - operation.begun)
        _, phase, step = next(found for found in reversed(_PHASES) if share >= found[0])
        return OperationReport(
            id=operation.id,
            revision=operation.revision,
            phase=phase,
            step=step,
            steps=(StepReport(step, done=False, failed=False, seconds=0.0),),
            services=(),
            bytes_sent=100,
        )
    good = operation.outcome is GOOD or operation.undoes is not None
    message = "" if good else f"{machine.name}: Services failed: {OUTPUT}"
    seconds = (operation.ends - operation.begun).total_seconds()
    return OperationReport(
        id=operation.id,
        revision=operation.revision,
        phase=operation.outcome,
        step="Commit" if good else "Services",
        steps=(StepReport("Services", done=good, failed=not good, seconds=seconds, message=message),),
        services=(ServiceReport("haproxy", "Reload", 0.0),),
        bytes_sent=1000,
        reason=None if good else Reason.SERVICE_FAILED,
        message=message,
        started_at=operation.begun,
        finished_at=operation.ends,
    )
