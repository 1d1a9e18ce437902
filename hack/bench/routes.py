"""What the way through hypervisor hosts costs: the same VMs, through two hosts and directly, in one run.

`python -m bench.routes --vms 50` makes routers behind two hosts and looks at and patches all of them at once by both
ways in turn (the second time in the other order), so that neither has the warmer machine. The direct way ends at the
same address of the VM, behind the same relay; what differs is the SSH connection inside of another. The processor time
is that of the operator's process alone, the lab's relay and the hosts' sshd not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

from bench.fleet import CONNECTIONS
from bench.measure import ContestFailed, idle_load, machine
from lab import Lab, SystemVMType, VMSpec
from lab.borrowed import borrowed
from lab.content import payloads, releases
from lab.hosts import Hosts
from reach import behind_host, login_of, target_of
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, Order, Target

WAYS = ("directly", "through hosts")
_BOOTED_AT_ONCE = 10
_ROW = "{:22}{:18}{:>9}{:>9}"

Work = Callable[[LivePatcher, Sequence[Target]], Awaitable[None]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=2, help="pairs of patches; looks are made three times as often")
    wanted = parser.parse_args()
    with borrowed() as lab:
        lab.up([])
        for host in ("kvm-1", "kvm-2"):
            Hosts(lab).add(host, release="new")
        indexes = range(2, 2 + wanted.vms)
        specs = [VMSpec(name=f"r-{n}-VM", type=SystemVMType.ROUTER, index=n, host=f"kvm-{1 + n % 2}") for n in indexes]
        for first in range(0, len(specs), _BOOTED_AT_ONCE):
            lab.add(*specs[first : first + _BOOTED_AT_ONCE], release="old")
        print(f"{machine()}; besides: {idle_load().cores:.2f} cores; {wanted.vms} routers behind 2 hosts")
        asyncio.run(_measure(lab, [spec.name for spec in specs], wanted.repeats))
    return 0


async def _measure(lab: Lab, names: Sequence[str], repeats: int) -> None:
    login = login_of(lab, connections=100)
    targets = {
        WAYS[0]: [_of_a_fleet(target_of(lab, name)) for name in names],
        WAYS[1]: [_of_a_fleet(behind_host(lab, name, login=login)) for name in names],
    }
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    patcher = LivePatcher()

    async def take(what: str, way: str, work: Work) -> None:
        cpu, began = time.process_time(), time.monotonic()
        await work(patcher, targets[way])
        seconds = time.monotonic() - began
        found.setdefault((what, way), []).append((seconds, time.process_time() - cpu))
        print(f"  {what} {way}: {seconds:.1f} s", flush=True)

    for number in range(3 * repeats):
        for way in WAYS if number % 2 else reversed(WAYS):
            await take("look", way, _look)
    wanted = [read_payload(payloads.build_scripts(each), None) for each in (releases.new(), releases.old())]
    for number in range(repeats):
        for turn, way in enumerate(WAYS if number % 2 else WAYS[::-1]):
            await take("patch", way, _patch(wanted[turn], f"routes-{number}-{turn}"))
    await patcher.close()
    print(_ROW.format("median", "way", "wall s", "CPU s"))
    for what in ("look", "patch"):
        medians = {}
        for way in WAYS:
            runs = found[what, way]
            medians[way] = [statistics.median(run[place] for run in runs) for place in (0, 1)]
            print(_ROW.format(f"{what} ({len(runs)} runs)", way, *(f"{median:.2f}" for median in medians[way])))
        ratios = (medians[WAYS[1]][place] / medians[WAYS[0]][place] for place in (0, 1))
        print(_ROW.format("", "ratio", *(f"{ratio:.2f}" for ratio in ratios)))


def _of_a_fleet(target: Target) -> Target:
    return dataclasses.replace(target, account=dataclasses.replace(target.account, connections=CONNECTIONS))


async def _look(patcher: LivePatcher, targets: Sequence[Target]) -> None:
    async with asyncio.TaskGroup() as group:
        for target in targets:
            group.create_task(patcher.observe(target, None))


def _patch(payload: Payload, name: str) -> Work:
    async def patch(patcher: LivePatcher, targets: Sequence[Target]) -> None:
        order = Order(name, 1, 1, 0.0, (), 300.0, 600.0)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(patcher.patch(target, payload, order, lambda _: None)) for target in targets]
        wrong = [report for task in running if (report := task.result()).phase is not JournalPhase.COMMITTED]
        if wrong:
            raise ContestFailed(f"{len(wrong)} VMs ended {wrong[0].phase}: {wrong[0].message}")

    return patch


if __name__ == "__main__":
    sys.exit(main())
