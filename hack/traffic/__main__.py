"""`python -m traffic [SCENARIO...]`: brings a lab up, measures every scenario both ways, prints the table.

Exit codes: 0 every promise kept, 1 one broken, 3 this machine cannot run the lab.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from lab import Lab, LabUnavailable
from lab.borrowed import borrowed
from lab.tenants import Tally
from lab.tenants.tenancy import RATE
from sysvm.patching.results import JournalPhase
from traffic import measuring, table
from traffic.scenarios import SCENARIOS, Scenario, find
from traffic.table import Result
from traffic.verdicts import broken_promises
from traffic.ways import CloudStacks, Ours

CANNOT_RUN = 3
_FIRST_NUMBER = 10
_NUMBERS_EACH = 2
_EFFECTS = {
    (False, True): "in effect",
    (False, False): "NOT IN EFFECT",
    (True, True): "as before",
    (True, False): "NOT AS BEFORE",
}
"""By (it had to be rolled back, its check holds)."""


async def _measure_all(
    lab: Lab, scenarios: tuple[Scenario, ...], rate: float, *, only_ours: bool
) -> tuple[tuple[Tally, ...], list[Result]]:
    number = _FIRST_NUMBER
    base = await asyncio.to_thread(measuring.baseline, lab, number, rate=rate)
    print(
        f"baseline, nothing done: {sum(each.lost + each.failed for each in base)} lost of {sum(t.sent for t in base)}"
    )
    results: list[Result] = []
    for scenario in scenarios:
        print(f"-- {scenario.title}", flush=True)
        number += _NUMBERS_EACH
        ours = await measuring.measure(lab, scenario, Ours(), number, rate=rate, say=_say)
        theirs = None
        if not only_ours:
            number += _NUMBERS_EACH
            theirs = await measuring.measure(lab, scenario, CloudStacks(), number, rate=rate, say=_say)
        results.append((scenario, ours, theirs))
    return base, results


def _say(line: str) -> None:
    print(f"   {line}", flush=True)


def _notes(results: list[Result]) -> list[str]:
    found = []
    for scenario, *measured in results:
        for each in measured:
            if each is None:
                continue
            effect = _EFFECTS[scenario.ends is JournalPhase.ROLLED_BACK, each.works]
            acted = f"; {', '.join(each.account.actions)}" if each.account.actions else ""
            named = "; ".join(f"{unit}: {loss}" for unit, loss in each.account.losses.items())
            found.append(
                f"{scenario.name}, {each.way}: {each.account.ended} in {each.patch_seconds:.1f} s, {effect}{acted}"
                + (f"; plan named {named}" if named else "")
            )
            if each.way == Ours.name:
                found += [f"    {tally.kind}: {dict(tally.errors)}" for tally in each.tallies if tally.errors]
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[SCENARIO]...")
@click.option("--rate", default=RATE, show_default=True, help="Requests a second of each kind.")
@click.option("--only-ours", is_flag=True, help="Do not measure CloudStack's way beside ours.")
@click.option("--markdown", type=click.Path(dir_okay=False, path_type=Path), help="Write the table there as well.")
@click.option("--list", "show", is_flag=True, help="Name the scenarios and stop.")
def main(names: tuple[str, ...], rate: float, *, only_ours: bool, markdown: Path | None, show: bool) -> None:
    """Measure what patching costs tenants, ours beside CloudStack's, on real system VMs."""
    if show:
        for scenario in SCENARIOS:
            print(f"{scenario.name:16} {scenario.title}")
        return
    try:
        scenarios = find(names)
    except LookupError as problem:
        raise click.UsageError(str(problem)) from problem
    began = time.monotonic()
    with measuring.undisturbed(), borrowed() as lab:
        try:
            lab.up([], release="old")
            base, results = asyncio.run(_measure_all(lab, scenarios, rate, only_ours=only_ours))
        except LabUnavailable as lack:
            print(lack, file=sys.stderr)
            sys.exit(CANNOT_RUN)
    machine = f"{os.cpu_count()} cores, Linux {platform.release()}, {rate:.0f} requests a second of each kind"
    today = datetime.now(UTC).date()
    print(f"\n{today}, {machine}, {time.monotonic() - began:.0f} s\n")
    for note in _notes(results):
        print(note)
    if markdown is not None:
        markdown.write_text(f"{today}, {machine}.\n\n{table.markdown(results)}\n")
    broken = [line for scenario, ours, _ in results for line in broken_promises(scenario, ours)]
    broken += [
        f"baseline, so this machine is too busy to judge: {each.kind} lost {each.lost} of {each.sent} {each.errors}"
        for each in base
        if each.lost or each.failed
    ]
    print()
    print(table.text(results))
    for line in broken:
        print(f"BROKEN {line}", file=sys.stderr)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
