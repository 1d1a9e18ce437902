"""The stories: one thing that happens to a rollout each, small enough to be read as a log."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from sim.fleet import BAD, GOOD, LOST, Machine
from sim.telling import Scenario, Story
from sim.world import NAMESPACE, World
from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import RedundancyRole
from sysvm.engine.resources import APPROVAL, POLICY, ROLLOUT, SYSTEM_VM, WINDOW
from sysvm.kube.objects import Key

PRIMARY, BACKUP = RedundancyRole.PRIMARY, RedundancyRole.BACKUP


def routers(count: int = 4, *, hosts: int = 2, **more: Any) -> Iterator[Machine]:
    """r-1-VM and on, single routers spread over hosts."""
    for number in range(1, count + 1):
        yield Machine(f"r-{number}-VM", host=f"h{number % hosts + 1}", **more)


def pair(first: int = 1, group: str = "net1") -> Iterator[Machine]:
    """A PRIMARY and its BACKUP."""
    yield Machine(f"r-{first}-VM", group=group, host="h1", role=PRIMARY)
    yield Machine(f"r-{first + 1}-VM", group=group, host="h2", role=BACKUP)


def storage(count: int = 2, zone: str = "ams", type_: SystemVMType = SystemVMType.SECSTORAGE) -> Iterator[Machine]:
    letter = "s" if type_ is SystemVMType.SECSTORAGE else "v"
    for number in range(1, count + 1):
        yield Machine(f"{letter}-{number}-VM", type=type_, zone=zone, host=f"h{number}")


def waves(*names: str, soak: str = "10m", limit: int | str = 1) -> list[dict[str, Any]]:
    """All but the last take `limit` and soak."""
    made: list[dict[str, Any]] = [{"name": name, "limit": limit, "soak": soak} for name in names[:-1]]
    return [*made, {"name": names[-1]}]


def begin(world: World, **spec: Any) -> None:
    """Endpoint, release and policy at once."""
    world.endpoint()
    world.release("new")
    world.policy(**spec)


def to_the_end(spec: Mapping[str, Any] | None = None, **after: float) -> Story:
    """Nothing happens but the rollout, and then so much time (`minutes=1`)."""

    async def story(world: World) -> None:
        begin(world, **(spec or {}))
        await world.until(world.has_ended)
        if after:
            await world.wait(**after)

    return story


async def begun(world: World, seconds: float = 60, **spec: Any) -> str:
    """The name of the rollout, so long after it was made."""
    begin(world, **spec)
    await world.until(lambda: bool(world.rollouts()))
    await world.wait(seconds=seconds)
    return str(world.rollouts()[0]["metadata"]["name"])


def with_outcomes(machines: Iterator[Machine], **outcomes: tuple[Any, ...]) -> list[Machine]:
    """`r3=(BAD,)` is r-3-VM."""
    made = list(machines)
    for machine in made:
        key = machine.name.replace("-", "").removesuffix("VM")
        machine.outcomes = outcomes.get(key, machine.outcomes)
    return made


# Failure


async def retry_at(world: World) -> None:
    begin(world)
    await world.until(world.has_ended)
    await world.wait(hours=1)
    world.policy(retryAt=world.at())
    await world.until(lambda: world.has_ended(number=2))
    await world.wait(minutes=1)


async def mended(world: World, **spec: Any) -> None:
    begin(world, **spec)
    await world.until(world.has_ended)
    world.release("mended")
    world.policy(template="mended")
    await world.until(lambda: world.has_ended(number=2))
    await world.wait(minutes=1)


# What people do


async def paused(world: World) -> None:
    name = await begun(world)
    world.narrator.say("operations", "pauses the rollout")
    world.apply(ROLLOUT, name, {"state": "Paused"})
    await world.wait(hours=1)
    world.narrator.say("operations", "resumes it")
    world.apply(ROLLOUT, name, {"state": "Running"})
    await world.until(world.has_ended)


async def aborted(world: World) -> None:
    name = await begun(world)
    world.narrator.say("operations", "aborts the rollout")
    world.apply(ROLLOUT, name, {"state": "Aborted"})
    await world.until(world.has_ended)
    await world.wait(hours=2)


async def deleted(world: World) -> None:
    name = await begun(world)
    world.narrator.say("operations", "deletes the rollout")
    world.delete(ROLLOUT, name)
    await world.until(lambda: not world.rollouts())
    await world.wait(hours=2)


async def policy_deleted(world: World) -> None:
    await begun(world)
    world.narrator.say("operations", "deletes the policy")
    world.delete(POLICY, "routers")
    await world.until(lambda: not world.rollouts())
    await world.wait(minutes=10)


async def superseded(world: World) -> None:
    await begun(world)
    world.narrator.say("operations", "declares another release")
    world.release("newer")
    world.policy(template="newer")
    await world.until(lambda: world.has_ended(number=2))
    await world.wait(minutes=1)


async def suspended(world: World) -> None:
    await begun(world)
    world.narrator.say("operations", "suspends the policy")
    world.policy(suspend=True)
    await world.wait(hours=3)
    world.narrator.say("operations", "lets it go on")
    world.policy(suspend=False)
    await world.until(world.has_ended)


async def edited(world: World) -> None:
    await begun(world, 20)
    world.narrator.say("operations", "edits the policy: 4 at once")
    world.policy(strategy={"maxUnavailable": 4})
    await world.until(world.has_ended)


async def observed_only(world: World) -> None:
    world.endpoint(management="Observe")
    world.release("new")
    world.policy()
    await world.wait(hours=1)
    world.narrator.say("operations", "allows changes")
    world.endpoint(management="Full")
    await world.until(world.has_ended)


async def held(world: World) -> None:
    world.endpoint()
    await world.wait(seconds=30)
    world.narrator.say("operations", "holds r-2-VM for two hours")
    world.apply(SYSTEM_VM, "prod-r-2-vm", {"hold": {"reason": "CHG-1", "until": world.at(hours=2)}})
    world.release("new")
    world.policy()
    await world.until(world.has_ended)
    await world.until(lambda: world.has_ended(number=2))
    await world.wait(minutes=1)


# The calendar


NIGHT = {"rrule": "FREQ=DAILY", "start": "22:00", "duration": "4h", "timeZone": "Europe/Amsterdam"}


def at_night(moment: datetime) -> bool:
    """22:00 to 02:00 in Amsterdam in winter."""
    return moment.hour >= 21 or moment.hour < 1


async def windowed(world: World) -> None:
    world.apply(WINDOW, "nights", {"effect": "Allow", "schedule": NIGHT})
    begin(world, windowRefs=[{"name": "nights"}])
    await world.until(world.has_ended)


async def window_too_short(world: World) -> None:
    schedule = {**NIGHT, "duration": "3m"}
    world.apply(WINDOW, "short", {"effect": "Allow", "schedule": schedule, "cutoff": "1m"})
    begin(world, windowRefs=[{"name": "short"}])
    await world.until(world.has_ended, hours=24 * 7)


async def frozen(world: World) -> None:
    await begun(world)
    world.narrator.say("operations", "freezes everything for six hours")
    interval = {"from": world.at(), "to": world.at(hours=6)}
    world.apply(WINDOW, "freeze", {"effect": "Deny", "interval": interval, "reason": "election night"})
    await world.until(world.has_ended)


async def no_window(world: World) -> None:
    begin(world, windowRefs=[{"name": "missing"}])
    await world.wait(hours=2)
    world.narrator.say("operations", "makes the window")
    world.apply(WINDOW, "missing", {"effect": "Allow", "schedule": NIGHT})
    await world.until(world.has_ended)


async def glass(world: World) -> None:
    world.apply(WINDOW, "nights", {"effect": "Allow", "schedule": NIGHT})
    name = await begun(world, 1800, windowRefs=[{"name": "nights"}])
    world.narrator.say("operations", "breaks the glass: INC-77")
    world.apply(ROLLOUT, name, {"breakGlass": {"reason": "INC-77", "until": world.at(hours=1)}})
    await world.until(world.has_ended)


# Approvals


def digest_of(world: World, wave: str) -> str:
    found = world.rollouts()[-1]["status"]["waves"]
    return str(next(one["digest"] for one in found if one["name"] == wave))


def approve(world: World, wave: str, name: str = "yes", **spec: Any) -> None:
    rollout = world.rollouts()[-1]["metadata"]["name"]
    world.narrator.say(spec.get("approver", "alice"), f"{spec.get('decision', 'Approved').lower()} wave {wave}")
    world.apply(
        APPROVAL,
        name,
        {
            "rolloutRef": {"name": rollout},
            "wave": wave,
            "waveDigest": digest_of(world, wave),
            "decision": "Approved",
            "approver": "alice",
            **spec,
        },
    )


STAGES = {"waves": waves("canary", "rest", soak="10m"), "maxUnavailable": 2}


async def approved(world: World) -> None:
    begin(world, strategy=STAGES, approval={"before": ["rest"]})
    await world.wait(hours=1)
    approve(world, "rest")
    await world.until(world.has_ended)


async def rejected(world: World) -> None:
    begin(world, strategy=STAGES, approval={"before": ["rest"]})
    await world.wait(hours=1)
    approve(world, "rest", "no", decision="Rejected", approver="bob", comment="CHG-9 is missing")
    approve(world, "rest")
    await world.wait(hours=1)
    world.narrator.say("bob", "takes it back")
    world.delete(APPROVAL, "no")
    await world.until(world.has_ended)


async def soak_skipped(world: World) -> None:
    stages = {"waves": waves("canary", "rest", soak="6h"), "maxUnavailable": 2}
    begin(world, strategy=stages, approval={"before": ["rest"]})
    await world.wait(hours=1)
    approve(world, "rest", skipSoak=True)
    await world.until(world.has_ended)


async def unguarded(world: World) -> None:
    begin(world, strategy=STAGES, approval={"before": ["rest"]})
    await world.wait(hours=1)
    approve(world, "rest")
    await world.wait(hours=5)


async def newcomer(world: World) -> None:
    begin(world, strategy=STAGES, approval={"before": ["rest"]})
    await world.wait(hours=1)
    approve(world, "rest")
    world.narrator.say("operations", "adds r-9-VM to the endpoint")
    world.machines["r-9-VM"] = Machine("r-9-VM", host="h1")
    world.endpoint()
    await world.wait(hours=1)
    approve(world, "rest", "again")
    await world.until(world.has_ended)
    await world.wait(hours=1)


# What the cloud does


async def upgraded(world: World) -> None:
    world.management_server("4.20.1.0", ams="4.19.1")
    begin(world, strategy=STAGES, approval={"before": ["rest"]})
    await world.wait(minutes=5)
    approve(world, "rest")
    world.narrator.say("cloud", "the management server is upgraded to 4.20.2.0")
    world.management_server("4.20.2.0", ams="4.20.1")
    await world.wait(hours=2)
    rollout = world.rollouts()[0]
    world.narrator.say("operations", "accepts what changed")
    world.apply(ROLLOUT, rollout["metadata"]["name"], {"acceptCloud": rollout["status"]["cloud"]["word"]})
    await world.wait(minutes=30)
    approve(world, "rest", "again")
    await world.until(world.has_ended)


async def unreachable(world: World) -> None:
    await begun(world, 10, strategy={"retry": {"limit": 2, "backoff": "1m", "reasons": ["SSHUnreachable"]}})
    world.narrator.say("cloud", "r-3-VM stops answering")
    world.machines["r-3-VM"].reachable = False
    await world.wait(minutes=3)
    world.narrator.say("cloud", "r-3-VM answers again")
    world.machines["r-3-VM"].reachable = True
    await world.until(world.has_ended)
    await world.wait(minutes=1)


async def unreachable_before(world: World) -> None:
    world.machines["r-3-VM"].reachable = False
    begin(world)
    await world.until(world.has_ended)
    await world.wait(hours=1)
    world.narrator.say("cloud", "r-3-VM answers again")
    world.machines["r-3-VM"].reachable = True
    await world.until(lambda: world.has_ended(number=2))
    await world.wait(minutes=1)


async def failover(world: World) -> None:
    begin(world)
    await world.until(lambda: bool(world.machines["r-2-VM"].operations))
    world.narrator.say("cloud", "keepalived fails over")
    world.machines["r-1-VM"].role, world.machines["r-2-VM"].role = BACKUP, PRIMARY
    await world.until(world.has_ended)


async def two_primaries(world: World) -> None:
    world.machines["r-2-VM"].role = PRIMARY
    begin(world)
    await world.wait(hours=1)
    world.narrator.say("cloud", "r-2-VM is BACKUP again")
    world.machines["r-2-VM"].role = BACKUP
    await world.until(world.has_ended)


async def reboots(world: World) -> None:
    begin(world, strategy={"maxUnavailable": 2})
    await world.until(lambda: bool(world.machines["r-2-VM"].operations))
    await world.wait(seconds=10)
    world.narrator.say("cloud", "r-2-VM reboots in the middle")
    world.machines["r-2-VM"].reboot(_now())
    await world.until(world.has_ended)
    await world.wait(minutes=1)


async def drifts(world: World) -> None:
    begin(world, drift={"heal": "Automatic"})
    await world.until(world.has_ended)
    await world.wait(minutes=1)
    world.narrator.say("somebody", "edits files on r-2-VM")
    world.machines["r-2-VM"].drifted = True
    world.server.patch(
        SYSTEM_VM, _key("prod-r-2-vm"), {"metadata": {"annotations": {"sysvm.io/requestedAt": world.at()}}}
    )
    await world.until(lambda: world.has_ended(number=2))
    await world.wait(minutes=1)


async def drifts_unhealed(world: World) -> None:
    begin(world)
    await world.until(world.has_ended)
    await world.wait(minutes=1)
    world.narrator.say("somebody", "edits files on r-2-VM")
    world.machines["r-2-VM"].drifted = True
    world.server.patch(
        SYSTEM_VM, _key("prod-r-2-vm"), {"metadata": {"annotations": {"sysvm.io/requestedAt": world.at()}}}
    )
    await world.wait(hours=2)


async def leaves(world: World) -> None:
    await begun(world, 20)
    world.narrator.say("operations", "takes r-4-VM off the endpoint's list")
    del world.machines["r-4-VM"]
    world.endpoint()
    await world.until(world.has_ended)


async def two_policies(world: World) -> None:
    world.endpoint()
    world.release("new")
    world.policy("all", strategy={"maxUnavailable": 1})
    await world.wait(seconds=1)
    world.policy("some", selector={"names": ["r-1-VM"]})
    await world.until(lambda: world.has_ended("all"))
    await world.wait(minutes=1)


async def two_rollouts(world: World) -> None:
    world.endpoint()
    world.release("new")
    world.policy("first", selector={"names": ["r-1-VM", "r-3-VM"]}, strategy={"maxUnavailable": 2})
    world.policy("second", selector={"names": ["r-2-VM", "r-4-VM"]}, strategy={"maxUnavailable": 2})
    await world.until(lambda: world.has_ended("first") and world.has_ended("second"))


ROUTERS = {"types": ["router"]}
ORDER: Mapping[str, dict[str, Any]] = {
    "load-balancers": {"selector": {"types": ["ilbvm", "elbvm"]}, "after": [{"name": "single-routers"}]},
    "single-routers": {"selector": {**ROUTERS, "redundancy": "Single"}, "after": [{"name": "redundant-routers"}]},
    "redundant-routers": {"selector": {**ROUTERS, "redundancy": "Redundant"}, "after": [{"name": "system-vms"}]},
    "system-vms": {"selector": {"types": ["secstorage", "consoleproxy"]}},
}
"""The set of policies of docs/upgrade.md, the last one first."""


async def ordered(world: World, *names: str) -> None:
    """These of the set, the last one made first."""
    world.endpoint()
    world.release("new")
    for name in ORDER:
        if name in names:
            world.policy(name, strategy={"maxUnavailable": 5}, **ORDER[name])
            await world.wait(minutes=1)
    await world.until(lambda: world.has_ended("single-routers"))
    await world.wait(minutes=1)


async def in_order(world: World) -> None:
    await ordered(world, "single-routers", "redundant-routers", "system-vms")


async def without_pairs(world: World) -> None:
    """The whole set, where two of four policies have no VM; until the first load balancer comes."""
    await ordered(world, *ORDER)
    world.narrator.say("operations", "puts b-7-VM, a load balancer, on the endpoint's list")
    world.machines["b-7-VM"] = Machine("b-7-VM", type=SystemVMType.ILBVM, host="h1")
    world.endpoint()
    await world.until(lambda: world.has_ended("load-balancers"))
    await world.wait(minutes=1)


async def operator_dies(world: World) -> None:
    begin(world)
    await world.until(lambda: bool(world.machines["r-2-VM"].operations))
    await world.wait(seconds=5)
    world.narrator.say("somebody", "kills the operator")
    world.kill()
    await world.until(world.has_ended)


async def stopped_before_it_began(world: World) -> None:
    """An order stands, nobody has begun it, and a person takes the time while nobody leads to change his mind."""
    begin(world)
    await world.until(lambda: world.stands("prod-r-2-vm"))
    world.narrator.say("somebody", "kills the operator")
    world.kill()
    world.narrator.say("operations", "allows no changes any more")
    world.endpoint(management="Observe")
    await world.wait(hours=1)
    world.narrator.say("operations", "allows changes")
    world.endpoint(management="Full")
    await world.until(lambda: world.stands("prod-r-3-vm"))
    world.narrator.say("somebody", "kills the operator")
    world.kill()
    await world.until(world.has_ended)


def _now() -> datetime:
    from sim.loop import now

    return now()


def _key(name: str) -> Key:
    return Key(NAMESPACE, name)


def fails(*names: str, count: int = 4, outcome: Any = BAD) -> list[Machine]:
    return with_outcomes(routers(count), **dict.fromkeys(names, (outcome,)))


def busy() -> Iterator[Machine]:
    for machine in routers(3):
        if machine.name == "r-2-VM":
            machine.busy_until = 1200.0
        yield machine


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("plain", "Four routers, one after the other", routers, to_the_end(minutes=1)),
    Scenario(
        "canary",
        "A canary, a second one, then the rest",
        lambda: routers(6),
        to_the_end(
            {"strategy": {"waves": waves("canary", "tenth", "rest", soak="30m"), "maxUnavailable": 2}}, minutes=1
        ),
    ),
    Scenario(
        "per-host",
        "Two hosts, one VM each at a time",
        lambda: routers(6),
        to_the_end({"strategy": {"maxUnavailable": 6, "perHost": 1}}),
    ),
    Scenario("pair", "A redundant pair: BACKUP first", pair, to_the_end(minutes=1)),
    Scenario(
        "pairs-and-singles",
        "Two pairs and two singles",
        lambda: [*pair(), *pair(3, "net2"), *_more()],
        to_the_end({"strategy": {"maxUnavailable": 6, "perHost": 1}}),
    ),
    Scenario(
        "storage",
        "Two storage VMs of a zone, never both",
        storage,
        to_the_end({"strategy": {"maxUnavailable": 10, "perHost": 10}}),
    ),
    Scenario("single-storage", "The only storage VM of its zone", lambda: storage(1), to_the_end(minutes=1)),
    Scenario("first-failure", "The first failure ends it", lambda: fails("r2"), to_the_end(hours=2)),
    Scenario(
        "within-budget",
        "Failures within the budget",
        lambda: fails("r2", "r4", count=6),
        to_the_end(
            {"strategy": {"maxUnavailable": 3, "failureBudget": {"total": 2, "perWave": 2, "consecutive": 2}}},
            minutes=1,
        ),
    ),
    Scenario(
        "consecutive",
        "Two failures in a row",
        lambda: fails("r2", "r3", count=6),
        to_the_end({"strategy": {"maxUnavailable": 4, "failureBudget": {"total": 5, "perWave": 5, "consecutive": 1}}}),
    ),
    Scenario(
        "roll-back",
        "The budget is spent and the wave goes back",
        lambda: fails("r3"),
        to_the_end({"strategy": {"maxUnavailable": 2, "onBudgetSpent": "RollBack"}}, minutes=5),
    ),
    Scenario(
        "retried",
        "A busy VM is tried again",
        busy,
        to_the_end({"strategy": {"retry": {"limit": 2, "backoff": "1m", "reasons": ["VMBusy"]}}}),
    ),
    Scenario("inconsistent", "A VM that could not go back", lambda: fails("r2", outcome=LOST), to_the_end(hours=1)),
    Scenario(
        "retry-at", "retryAt tries a failed release again", lambda: with_outcomes(routers(3), r2=(BAD, GOOD)), retry_at
    ),
    Scenario(
        "mended", "A mended release after a broken one", lambda: with_outcomes(routers(3), r1=(BAD, GOOD)), mended
    ),
    Scenario(
        "mended-after-roll-back",
        "A mended release after one whose wave went back",
        lambda: with_outcomes(routers(3), r2=(BAD, GOOD)),
        lambda world: mended(world, strategy={"maxUnavailable": 1, "onBudgetSpent": "RollBack"}),
    ),
    Scenario("paused", "Paused and resumed", routers, paused),
    Scenario("aborted", "Aborted for good", routers, aborted),
    Scenario("deleted", "The rollout is deleted in the middle", routers, deleted),
    Scenario("policy-deleted", "The policy is deleted in the middle", routers, policy_deleted),
    Scenario("superseded", "Another release in the middle", routers, superseded),
    Scenario("suspended", "The policy is suspended in the middle", routers, suspended),
    Scenario("edited", "An edit in the middle counts for the next rollout", routers, edited),
    Scenario("observe", "An endpoint that only observes", lambda: routers(2), observed_only),
    Scenario("held", "A held VM is taken when its hold ends", lambda: routers(3), held),
    Scenario(
        "excluded",
        "An excluded VM is left alone",
        lambda: routers(3),
        to_the_end({"selector": {"exclude": [{"name": "r-2-VM", "reason": "CHG-2"}]}}, hours=1),
    ),
    Scenario("window", "Work begins when the window opens", routers, windowed, may_start=at_night),
    Scenario("short-window", "A window too short for all", lambda: routers(4), window_too_short, may_start=at_night),
    Scenario("freeze", "A freeze in the middle", routers, frozen),
    Scenario("window-missing", "A window that is not there", lambda: routers(2), no_window, may_start=at_night),
    Scenario("break-glass", "The glass is broken at noon", routers, glass, may_start=at_night),
    Scenario("approved", "The rest waits for an approval", routers, approved),
    Scenario("rejected", "A rejection outweighs an approval", routers, rejected),
    Scenario("soak-skipped", "An approval that skips the soak", routers, soak_skipped),
    Scenario("unguarded", "Approvals without admission policies", routers, unguarded, guarded=False),
    Scenario("newcomer", "A VM that appears voids the approval", routers, newcomer),
    Scenario("unreachable", "A VM stops answering and is tried again", routers, unreachable),
    Scenario("unreachable-before", "A VM that did not answer is taken later", routers, unreachable_before),
    Scenario("failover", "The pair fails over in the middle", pair, failover),
    Scenario("two-primaries", "A pair with two PRIMARY is left alone", pair, two_primaries),
    Scenario("reboot", "A VM reboots in the middle of its patch", routers, reboots),
    Scenario("drift-healed", "Drift is healed", lambda: routers(3), drifts),
    Scenario("drift-told", "Drift is told", lambda: routers(3), drifts_unhealed),
    Scenario("leaves", "A VM leaves in the middle", routers, leaves),
    Scenario("two-policies", "Two policies want one VM", lambda: routers(3), two_policies),
    Scenario("two-rollouts", "Two rollouts share pairs", lambda: [*pair(), *pair(3, "net2")], two_rollouts),
    Scenario("cloud-changed", "The management server is upgraded in the middle", routers, upgraded),
    Scenario(
        "in-order",
        "System VMs, then pairs, then single routers",
        lambda: [*storage(2), *storage(1, type_=SystemVMType.CONSOLEPROXY), *pair(), *_more()],
        in_order,
    ),
    Scenario(
        "without-pairs",
        "The same order where there are no pairs and no load balancers",
        lambda: [*storage(2), *storage(1, type_=SystemVMType.CONSOLEPROXY), *_more()],
        without_pairs,
    ),
    Scenario("operator-dies", "The operator dies in the middle", routers, operator_dies),
    Scenario("order-stands", "The operator dies between order and work", routers, stopped_before_it_began),
)


def _more() -> Iterator[Machine]:
    yield Machine("r-5-VM", host="h1")
    yield Machine("r-6-VM", host="h2")


def by_name(name: str) -> Scenario:
    """Raises KeyError."""
    found = {scenario.name: scenario for scenario in SCENARIOS}
    return found[name]
