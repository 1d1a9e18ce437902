"""`python -m sim`: golden logs, random worlds, sums."""

import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click

from sim.chance import Finding, try_seed
from sim.scenarios import SCENARIOS, by_name
from sim.telling import tell

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "sim" / "golden"
CHUNK = 8


@click.command()
@click.argument("names", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="Name the scenarios and do nothing.")
@click.option("--write", is_flag=True, help="Write the golden logs anew; read the difference before you commit it.")
@click.option("--worlds", default=1000, show_default=True, help="Random worlds, each told twice.")
@click.option("--seed", default=0, show_default=True, help="The first random world.")
@click.option("--processes", default=2, show_default=True)
def main(names: tuple[str, ...], listing: bool, write: bool, worlds: int, seed: int, processes: int) -> None:
    """Whole rollouts on virtual time.

    With NAMES: tells these scenarios. Without: compares all of them with tests/sim/golden, then checks the promises in
    random worlds with the operator killed at any write. Exit code 1 if a log differs or a promise is broken.
    """
    logging.getLogger("sysvm").addHandler(logging.NullHandler())
    if listing:
        for scenario in SCENARIOS:
            click.echo(f"{scenario.name:20} {scenario.title}")
        return
    if names and not write:
        for name in names:
            told = tell(by_name(name))
            click.echo(told.log)
            for sentence in told.violations:
                click.echo(f"BROKEN: {sentence}")
        return
    begun = time.monotonic()
    differing, steps, broken = _golden(names, write=write)
    if write:
        return
    findings, more = _worlds(range(seed, seed + worlds), processes)
    for finding in findings:
        click.echo(f"world {finding.seed}, killed at writes {finding.kills or 'none'}:")
        for sentence in finding.sentences[:5]:
            click.echo(f"  {sentence}")
    click.echo(
        f"{len(SCENARIOS)} scenarios ({differing} differ from their log), {worlds} random worlds, "
        f"{steps + more} steps checked, {broken + len(findings)} violations, {time.monotonic() - begun:.0f} s"
    )
    sys.exit(1 if differing or broken or findings else 0)


def _golden(names: tuple[str, ...], *, write: bool) -> tuple[int, int, int]:
    differing = steps = broken = 0
    for scenario in SCENARIOS:
        if names and scenario.name not in names:
            continue
        told = tell(scenario)
        steps += told.checks
        broken += len(told.violations)
        for sentence in told.violations:
            click.echo(f"{scenario.name}: {sentence}")
        place = GOLDEN / f"{scenario.name}.log"
        if write:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(told.log)
        elif not place.exists() or place.read_text() != told.log:
            differing += 1
            click.echo(f"{scenario.name}: the log differs from {place.name}; python -m sim {scenario.name} shows it")
    return differing, steps, broken


def _worlds(seeds: range, processes: int) -> tuple[list[Finding], int]:
    findings: list[Finding] = []
    steps = 0
    begun = said = time.monotonic()
    with ProcessPoolExecutor(processes) as pool:
        for number, (found, more) in enumerate(pool.map(try_seed, seeds, chunksize=CHUNK), 1):
            findings += found
            steps += more
            if time.monotonic() - said > 20:
                said = time.monotonic()
                rate = number / (said - begun)
                click.echo(
                    f"  {number} of {len(seeds)} worlds, {len(findings)} findings, {len(seeds) / rate:.0f} s in all"
                )
    return findings, steps
