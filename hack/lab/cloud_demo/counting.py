"""What was asked of the management server, beside what CloudStack's own way of doing the same would have asked.

The stand-in writes down every request that it let in. What CloudStack itself would need is counted, not measured: the
fewest calls with which a person's script could do it (`own_way`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lab.cloud.process import CloudProcess
from lab.cloud_demo.traffic import Asking

HOW_COUNTED = """\
Calls: all that the server let in meanwhile, sweeps of the whole cloud included; changing: those that change something.
CloudStack's own way is counted, not measured: the fewest calls of a script that does the same with its live patch or
restart. One list of each kind (system VMs, routers, load balancers) before and after; a patchSystemVm or
destroySystemVm for each SSVM and CPVM, a restartNetwork for each network, a restartVPC for each VPC; each job asked
for once. It cannot patch a load balancer VM, and compares no file afterwards."""
LISTS = 6
SYSTEM_TYPES = ("secstorage", "consoleproxy")
BALANCERS = ("ilbvm", "elbvm")


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Requests that the server let in, in one phase."""

    commands: Mapping[str, int]
    changing: tuple[Mapping[str, str], ...]
    """Command and parameters of each that changes something, in their order."""

    @property
    def total(self) -> int:
        return sum(self.commands.values())

    def told(self) -> str:
        """`12 (listRouters 3, ...)`, the most frequent first."""
        most = Counter(self.commands).most_common()
        return f"{self.total} ({', '.join(f'{name} {count}' for name, count in most)})" if most else "0"


class CallRecord:
    """Reads the server's record from where it was read last."""

    def __init__(self, cloud: CloudProcess) -> None:
        self._cloud = cloud
        self._next = 0

    def since_last(self) -> Calls:
        told: dict[str, Any] = self._cloud.tell("calls", {"since": self._next})
        self._next = int(told["next"])
        return Calls(commands=dict(told["commands"]), changing=tuple(told["changing"]))


@dataclass(frozen=True, kw_only=True)
class OwnWay:
    """The fewest calls of CloudStack's own way, and for how many VMs it has one."""

    changing: int
    total: int
    vms: int


def own_way(vms: Iterable[Mapping[str, Any]]) -> OwnWay:
    """For VMs by `status.identity` of their SystemVMs: a call a system VM, network or VPC, and a poll of each job."""
    reachable = [vm for vm in vms if vm["type"] not in BALANCERS]
    alone = [vm for vm in reachable if vm["type"] in SYSTEM_TYPES]
    groups = {vm["group"] for vm in reachable if vm["type"] not in SYSTEM_TYPES}
    changing = len(alone) + len(groups)
    return OwnWay(changing=changing, total=2 * changing + LISTS, vms=len(reachable))


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A row of the table at the end. `through`: the networks and VPCs whose loss belongs to it."""

    title: str
    vms: int
    seconds: float
    calls: Calls
    own: OwnWay | None
    tenants: Asking | None
    through: tuple[str, ...]

    def cells(self) -> tuple[str, ...]:
        noticed = self.tenants.noticed(self.through) if self.tenants else None
        return (
            self.title,
            str(self.vms),
            f"{self.seconds:.0f}",
            str(self.calls.total),
            f"{self.calls.total / self.vms:.1f}",
            str(len(self.calls.changing)),
            f"{self.own.total}, {self.own.changing} changing, for {self.own.vms}" if self.own and self.own.vms else "-",
            f"{noticed.lost + noticed.failed} of {noticed.sent:,}" if noticed else "-",
            f"{noticed.longest_gap_ms:.0f} ms" if noticed else "-",
        )


HEAD = ("phase", "VMs", "s", "calls", "a VM", "changing", "CloudStack's own way", "lost", "longest gap")


def table(phases: Sequence[Phase]) -> str:
    """All phases, below each other."""
    rows = [HEAD, *(phase.cells() for phase in phases)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
