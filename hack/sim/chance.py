"""Random worlds: any fleet, any policy, anything that people and clouds do, and the operator killed at any write.

A seed is a world to the letter, so that what was found can be told again. Where nothing fails by itself and nobody
acts, a world with kills must end exactly as the one without.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from sim.fleet import BAD, GOOD, LOST, Machine
from sim.scenarios import BACKUP, PRIMARY, approve, begin
from sim.telling import Scenario, Told, tell
from sim.world import World
from sysvm.api.endpoint import SystemVMType
from sysvm.engine.resources import ROLLOUT, SYSTEM_VM, WINDOW
from sysvm.kube.errors import KubeError

TEN_MINUTES = 60
"""So many at most until everything has ended, or waits for something that nobody does."""
MENDED = 12
"""By then somebody has seen to the VMs that do not answer."""


@dataclass(frozen=True)
class Finding:
    """What was wrong with one seed."""

    seed: int
    kills: tuple[int, ...]
    sentences: tuple[str, ...]


def world_of(seed: int) -> tuple[Scenario, bool]:
    """The scenario of a seed, and whether its end is the same however often the operator dies."""
    chance = random.Random(seed)
    calm = chance.random() < 0.4
    fleet_seed, spec = chance.random(), _policy(chance, calm=calm)
    acts = [] if calm else [(chance.uniform(0, 4000), chance.choice(_ACTS)) for _ in range(chance.randrange(4))]
    acts.sort(key=lambda act: act[0])
    windowed = not calm and chance.random() < 0.3

    async def story(world: World) -> None:
        spec_now = dict(spec)
        if windowed:
            schedule = {"rrule": "FREQ=HOURLY", "start": "00:00", "duration": "20m", "timeZone": "UTC"}
            daily = {**schedule, "rrule": "FREQ=DAILY", "start": "13:00", "duration": "2h"}
            world.apply(WINDOW, "daily", {"effect": "Allow", "schedule": daily, "cutoff": "5m"})
            spec_now["windowRefs"] = [{"name": "daily"}]
        begin(world, **spec_now)
        told = 0.0
        for at, act in acts:
            await world.wait(seconds=at - told)
            told = at
            act(world, random.Random(seed + int(at)))
        await world.wait(minutes=5)
        for ten in range(TEN_MINUTES):
            if _is_over(world):
                break
            if ten == MENDED:
                for machine in world.machines.values():
                    machine.reachable = True
            for wave in _waiting_for_approval(world):
                approve(world, wave, f"yes-{wave}-{world.epoch}-{len(world.narrator.lines)}")
            await world.wait(minutes=10)

    scenario = Scenario(
        f"chance-{seed}",
        f"Chance {seed}",
        lambda: _fleet(random.Random(fleet_seed), calm=calm),
        story,
        may_start=(lambda moment: moment.hour in (13, 14)) if windowed else (lambda moment: True),
        scan="1h",
    )
    return scenario, calm


def try_seed(seed: int) -> tuple[list[Finding], int]:
    """A world once undisturbed and once with deaths. Returns what was wrong, and how many rules were checked."""
    scenario, calm = world_of(seed)
    findings: list[Finding] = []
    first, steps = _told(scenario, seed, (), False, findings)
    chance = random.Random(seed * 7 + 1)
    if first is None:
        return findings, steps
    kills = tuple(chance.randrange(1, max(2, first.writes)) for _ in range(chance.randrange(1, 4)))
    again, more = _told(scenario, seed, kills, chance.random() < 0.5, findings)
    if again is not None and calm and again.revisions != first.revisions:
        sentence = f"it ends otherwise after kills: {again.revisions}, not {first.revisions}"
        findings.append(Finding(seed, kills, (sentence,)))
    if again is not None and calm and again.operations != first.operations:
        sentence = f"VMs had other operations after kills: {again.operations}, not {first.operations}"
        findings.append(Finding(seed, kills, (sentence,)))
    return findings, steps + more


def _told(
    scenario: Scenario, seed: int, kills: tuple[int, ...], after: bool, findings: list[Finding]
) -> tuple[Told | None, int]:
    try:
        told = tell(replace(scenario), kill_at=kills, kill_after=after)
    except (TimeoutError, RuntimeError, KubeError, ExceptionGroup) as error:
        findings.append(Finding(seed, kills, (f"{type(error).__name__}: {error}",)))
        return None, 0
    if told.violations:
        findings.append(Finding(seed, kills, told.violations))
    return told, told.checks


def _fleet(chance: random.Random, *, calm: bool) -> list[Machine]:
    made: list[Machine] = []
    number = 1
    for group in range(chance.randrange(3)):
        made.append(Machine(f"r-{number}-VM", group=f"net{group}", host=f"h{chance.randrange(3)}", role=PRIMARY))
        made.append(Machine(f"r-{number + 1}-VM", group=f"net{group}", host=f"h{chance.randrange(3)}", role=BACKUP))
        number += 2
    for _ in range(chance.randrange(1, 5)):
        made.append(Machine(f"r-{number}-VM", host=f"h{chance.randrange(3)}"))
        number += 1
    for zone in range(chance.randrange(3)):
        for _ in range(chance.randrange(1, 3)):
            type_ = SystemVMType.SECSTORAGE
            made.append(Machine(f"s-{number}-VM", type=type_, zone=f"z{zone}", host=f"h{chance.randrange(3)}"))
            number += 1
    for machine in made:
        machine.seconds = chance.choice((5.0, 40.0, 200.0))
        if not calm and chance.random() < 0.15:
            machine.outcomes = (chance.choice((BAD, BAD, LOST)), GOOD)
        if not calm and chance.random() < 0.1:
            machine.reachable = False
        if chance.random() < 0.1:
            machine.busy_until = chance.uniform(0, 500)
    return made


def _policy(chance: random.Random, *, calm: bool) -> dict[str, Any]:
    strategy: dict[str, Any] = {
        "maxUnavailable": chance.choice((1, 2, 5, "30%", "100%")),
        "perHost": chance.choice((1, 2, 10)),
    }
    spec: dict[str, Any] = {"strategy": strategy}
    if chance.random() < 0.5:
        names = ["canary", "middle", "rest"][: chance.randrange(2, 4)]
        strategy["waves"] = [
            *({"name": name, "limit": chance.choice((1, 2, "25%")), "soak": "5m"} for name in names[:-1]),
            {"name": names[-1]},
        ]
        if not calm and chance.random() < 0.4:
            spec["approval"] = {"before": [names[-1]]}
    if chance.random() < 0.4:
        strategy["failureBudget"] = {"perWave": 2, "total": 2, "consecutive": 2}
    if not calm and chance.random() < 0.3:
        strategy["onBudgetSpent"] = "RollBack"
    strategy["retry"] = {"limit": chance.randrange(3), "backoff": "30s"}
    return spec


def _is_over(world: World) -> bool:
    rollouts = list(world.server.all(ROLLOUT))
    return bool(rollouts) and all("result" in rollout["status"] for rollout in rollouts)


def _waiting_for_approval(world: World) -> list[str]:
    found: list[str] = []
    for rollout in world.rollouts()[-1:]:
        if "result" in rollout["status"]:
            continue
        for condition in rollout["status"].get("conditions", ()):
            if condition["reason"] == "WaitingForApproval":
                waiting = [wave for wave in rollout["status"]["waves"] if wave.get("phase") == "Waiting"]
                found += [wave["name"] for wave in waiting[:1]]
                break
    return found


# What people and clouds do


def _pause(world: World, chance: random.Random) -> None:
    for rollout in world.rollouts()[-1:]:
        if rollout["spec"].get("state", "Running") == "Running" and "result" not in rollout["status"]:
            world.apply(ROLLOUT, rollout["metadata"]["name"], {"state": "Paused"})


def _resume(world: World, chance: random.Random) -> None:
    for rollout in world.rollouts()[-1:]:
        if rollout["spec"].get("state") == "Paused":
            world.apply(ROLLOUT, rollout["metadata"]["name"], {"state": "Running"})


def _abort(world: World, chance: random.Random) -> None:
    for rollout in world.rollouts()[-1:]:
        if "result" not in rollout["status"]:
            world.apply(ROLLOUT, rollout["metadata"]["name"], {"state": "Aborted"})


def _supersede(world: World, chance: random.Random) -> None:
    try:
        world.release("newer")
    except KubeError:
        return
    world.policy(template="newer")


def _delete(world: World, chance: random.Random) -> None:
    for rollout in world.rollouts()[-1:]:
        world.delete(ROLLOUT, rollout["metadata"]["name"])


def _hide(world: World, chance: random.Random) -> None:
    chance.choice(sorted(world.machines.values(), key=lambda machine: machine.name)).reachable = False


def _reboot(world: World, chance: random.Random) -> None:
    from sim.loop import now

    chance.choice(sorted(world.machines.values(), key=lambda machine: machine.name)).reboot(now())


def _hold(world: World, chance: random.Random) -> None:
    vms = [vm["metadata"]["name"] for vm in world.server.all(SYSTEM_VM)]
    if vms:
        world.apply(SYSTEM_VM, chance.choice(vms), {"hold": {"reason": "chance", "until": world.at(hours=1)}})


def _appear(world: World, chance: random.Random) -> None:
    name = f"r-{chance.randrange(50, 99)}-VM"
    world.machines.setdefault(name, Machine(name, host="h0"))
    world.endpoint()


def _kill(world: World, chance: random.Random) -> None:
    world.kill()


def _suspend(world: World, chance: random.Random) -> None:
    world.policy(suspend=True)


def _unsuspend(world: World, chance: random.Random) -> None:
    world.policy(suspend=False)


_ACTS: tuple[Callable[[World, random.Random], None], ...] = (
    _pause,
    _resume,
    _resume,
    _abort,
    _supersede,
    _delete,
    _hide,
    _reboot,
    _hold,
    _appear,
    _kill,
    _suspend,
    _unsuspend,
)
