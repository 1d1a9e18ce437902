"""Telling a scenario: a loop, a world, its rules, and the log that comes out."""

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sim.fleet import Machine
from sim.invariants import Invariants, MayStart
from sim.loop import VirtualLoop
from sim.world import World

Story = Callable[[World], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """One story. `fleet` makes its VMs anew; `may_start` is its calendar in plain words."""

    name: str
    title: str
    fleet: Callable[[], Iterable[Machine]]
    story: Story
    may_start: MayStart = lambda moment: True
    guarded: bool = True
    scan: str = "15m"


@dataclass(frozen=True)
class Told:
    """How it went."""

    log: str
    violations: tuple[str, ...]
    checks: int
    writes: int
    revisions: dict[str, str]
    """VM -> revision in the end."""
    operations: dict[str, tuple[str, ...]]
    """VM -> how each of its operations ended."""


def tell(scenario: Scenario, *, kill_at: tuple[int, ...] = (), kill_after: bool = False) -> Told:
    """Runs the scenario; `kill_at`: the writes at which the first lives end."""
    random.seed(0)  # what backs off takes chance from there
    loop = VirtualLoop()
    try:
        with tempfile.TemporaryDirectory(prefix="sysvm-sim-") as cache:
            return loop.run_until_complete(_tell(scenario, Path(cache), kill_at, kill_after))
    finally:
        loop.close()


async def _tell(scenario: Scenario, cache: Path, kill_at: tuple[int, ...], kill_after: bool) -> Told:
    machines = {machine.name: machine for machine in scenario.fleet()}
    world = World(cache, machines, guarded=scenario.guarded, scan=scenario.scan, kill_at=kill_at, kill_after=kill_after)
    rules = Invariants(world.fleet, world.server, may_start=scenario.may_start, epoch=lambda: world.epoch)
    await world.run(scenario.story)
    rules.at_the_end()
    return Told(
        log=f"# {scenario.title}\n\n{world.narrator.text()}",
        violations=(*rules.violations, *world.failures),
        checks=rules.checks,
        writes=world.writes,
        revisions={name: machine.revision for name, machine in sorted(machines.items())},
        operations={
            name: tuple(str(one.outcome) for one in machine.operations) for name, machine in sorted(machines.items())
        },
    )


def in_loop(work: Awaitable[None]) -> None:
    """For tests that need a virtual clock and nothing else."""
    loop = VirtualLoop()
    try:
        loop.run_until_complete(asyncio.ensure_future(work, loop=loop))
    finally:
        loop.close()
