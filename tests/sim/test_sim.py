"""Whole rollouts on virtual time: their logs are as reviewed, and no promise is broken on the way."""

import pytest

from sim.chance import try_seed
from sim.cli import GOLDEN
from sim.scenarios import SCENARIOS
from sim.telling import Scenario, tell

LATE_WRITES = (3, 11, 25, 40, 60)
WORLDS = 12


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: str(scenario.name))
def test_the_log_is_the_one_that_was_reviewed(scenario: Scenario) -> None:
    told = tell(scenario)
    assert told.violations == ()
    assert told.log == (GOLDEN / f"{scenario.name}.log").read_text(), "python -m sim --write, and read the difference"


def test_every_log_has_its_scenario() -> None:
    assert {place.stem for place in GOLDEN.glob("*.log")} == {scenario.name for scenario in SCENARIOS}


@pytest.mark.parametrize("name", ["plain", "pair", "canary", "storage", "cloud-changed", "in-order", "without-pairs"])
@pytest.mark.parametrize("after", [False, True], ids=["before-the-write", "after-the-write"])
def test_an_operator_that_dies_again_and_again_changes_nothing(name: str, after: bool) -> None:
    scenario = next(one for one in SCENARIOS if one.name == name)
    alive, dying = tell(scenario), tell(scenario, kill_at=LATE_WRITES, kill_after=after)
    assert dying.violations == ()
    assert dying.revisions == alive.revisions
    assert dying.operations == alive.operations


@pytest.mark.parametrize("seed", range(WORLDS))
def test_no_promise_is_broken_in_a_random_world(seed: int) -> None:
    findings, steps = try_seed(seed)
    assert findings == []
    assert steps > 0
