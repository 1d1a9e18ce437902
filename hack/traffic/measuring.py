"""One scenario, one way: fresh VMs, traffic through them, the change in its middle, what was lost.

Fresh each time, so that neither way finds what the other left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lab import Lab
from lab.spec import RedundancyRole
from lab.tenants import Run, Tally, Tenancy
from lab.tenants.tenancy import RATE
from traffic.scenarios import Scenario, Shape
from traffic.ways import Account, Change, Way

BEFORE_SECONDS = 2.0
AFTER_SECONDS = 3.0
LEAST_SECONDS = 10.0
_POLL_SECONDS = 0.05
_PRIORITY = -12
_CPU_GROUPS = Path("/sys/fs/cgroup/cpu")
_SHARES = 262144
"""The most there is; everything else of a machine has 1024 a group."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What tenants noticed of one change made one way."""

    way: str
    account: Account
    works: bool
    tallies: tuple[Tally, ...]
    patch_seconds: float
    late_ms: float


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """What is started in here, VMs included, goes before what else this machine has to do.

    System VMs and tenants have CPUs of their own; a machine that is busy with other things would show as loss. Both
    ways of patching are measured so, and what a patch does to its own VM still counts. Where the kernel groups
    processes by session a priority says nothing beyond its session, so a CPU cgroup is used where one can be made.
    """
    group = _CPU_GROUPS / f"sysvm-traffic-{os.getpid()}"
    before = os.getpriority(os.PRIO_PROCESS, 0)
    grouped = (_CPU_GROUPS / "cpu.shares").exists()
    mine = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    home = next((path for _, controllers, path in mine if "cpu" in controllers.split(",")), "/")
    try:
        if grouped:
            group.mkdir()
            (group / "cpu.shares").write_text(str(_SHARES))
            (group / "cgroup.procs").write_text("0")
        else:
            os.setpriority(os.PRIO_PROCESS, 0, min(before, _PRIORITY))
        yield
    finally:
        if grouped:
            (_CPU_GROUPS / home.strip("/") / "cgroup.procs").write_text("0")
            with contextlib.suppress(OSError):
                group.rmdir()
        os.setpriority(os.PRIO_PROCESS, 0, before)


def baseline(lab: Lab, number: int, *, seconds: float = LEAST_SECONDS, rate: float = RATE) -> tuple[Tally, ...]:
    """Traffic through a router and a storage VM to which nothing is done."""
    router, storage = Shape.ROUTER.specs(number) + Shape.STORAGE.specs(number + 1)
    lab.add(router, storage, release="old")
    try:
        tenancy = Tenancy(lab)
        tenancy.add(router.name)
        with tenancy.start(router.name, storage.name, rate=rate) as run:
            _until(run, seconds)
            return run.end().tallies
    finally:
        lab.remove(router.name)
        lab.remove(storage.name)


async def measure(
    lab: Lab, scenario: Scenario, way: Way, number: int, *, rate: float = RATE, say: Callable[[str], None] = print
) -> Measurement:
    """Makes fresh VMs from `number` on, measures, and takes them away again."""
    specs = scenario.shape.specs(number)
    change = Change.to(scenario.release(), build_seed=scenario.build_seed, may_fail_over=scenario.may_fail_over)
    await asyncio.to_thread(lambda: lab.add(*specs, release="old"))
    try:
        names = _backup_first(lab, [spec.name for spec in specs])
        losses = await way.plan(lab, names, change)
        tenancy = Tenancy(lab)
        if scenario.shape is not Shape.STORAGE:
            tenancy.add(names[0])
        with await asyncio.to_thread(lambda: tenancy.start(names[0], rate=rate)) as run:
            await asyncio.to_thread(_until, run, BEFORE_SECONDS)
            began = time.monotonic()
            account = await way.make(lab, names, change, scenario.ends)
            seconds = time.monotonic() - began
            await asyncio.to_thread(_until, run, max(LEAST_SECONDS, run.seconds + AFTER_SECONDS))
            found = await asyncio.to_thread(run.end)
        works = all(scenario.works(lab, name) for name in names)
        measured = Measurement(
            way=way.name,
            account=Account(
                ended=account.ended, as_wanted=account.as_wanted, losses=dict(losses), actions=account.actions
            ),
            works=works,
            tallies=found.tallies,
            patch_seconds=seconds,
            late_ms=found.late_ms,
        )
        lost = sum(tally.lost + tally.failed for tally in found.tallies)
        say(
            f"{scenario.name}, {way.name}: {account.ended} in {seconds:.1f} s, {lost} lost of"
            f" {sum(tally.sent for tally in found.tallies)}; probes at most {found.late_ms:.0f} ms late"
        )
        return measured
    finally:
        for spec in specs:
            await asyncio.to_thread(lab.remove, spec.name)


def _backup_first(lab: Lab, names: list[str]) -> list[str]:
    """BACKUP before PRIMARY; what is no pair as it is."""
    return sorted(names, key=lambda name: lab.role(name) is RedundancyRole.PRIMARY) if len(names) > 1 else names


def _until(run: Run, seconds: float) -> None:
    while run.seconds < seconds:
        time.sleep(_POLL_SECONDS)
