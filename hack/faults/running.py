"""Trials spread over processes: each walks all of them and does its share."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from faults import kills, others, overtaken, refusals
from faults.rows import Row
from faults.scenes import Scenes
from faults.table import End, Result, Table

ROWS: tuple[Row, ...] = (*kills.ROWS, *refusals.ROWS, *others.ROWS, *overtaken.ROWS)
TRIAL_SECONDS = 120
Say = Callable[[str], None]


def chosen(names: Sequence[str], words: str) -> tuple[str, ...]:
    """Names that have one of the comma-separated words; all without words."""
    wanted = [word.strip().lower() for word in words.split(",") if word.strip()]
    return tuple(name for name in names if not wanted or any(word in name.lower() for word in wanted))


def select(words: str) -> tuple[Row, ...]:
    """The rows with scratch VMs among them."""
    names = chosen([row.name for row in ROWS], words)
    return tuple(row for row in ROWS if row.name in names)


def table_for(rows: Sequence[Row]) -> Table:
    return Table(
        loud=frozenset(row.name for row in rows if row.loud),
        foreign=frozenset(row.name for row in rows if row.foreign),
    )


class _Stuck(Exception):  # noqa: N818 - what it is
    """A trial that does not end is a failure of its own."""


def _stuck(_signal: int, _frame: FrameType | None) -> None:
    raise _Stuck


def results(
    rows: Sequence[Row], *, seeds: int, share: int = 0, shares: int = 1, at_most: int | None = None
) -> Iterator[Result]:
    """Does every `shares`-th trial. `at_most`: so many of each row, evenly spread, for a short run."""
    signal.signal(signal.SIGALRM, _stuck)
    scenes = Scenes()
    try:
        for row in rows:
            trials = list(row.trials(scenes, seeds))
            step = 1 if at_most is None else -(-len(trials) // at_most)
            for number, (where, trial) in list(enumerate(trials[::step]))[share::shares]:
                signal.alarm(TRIAL_SECONDS)
                try:
                    end, detail = trial(number)
                except Exception as error:  # noqa: BLE001 - whatever a trial dies of, its VM is not proven whole
                    end, detail = End.NEITHER, f"{type(error).__name__}: {error}"
                finally:
                    signal.alarm(0)
                yield Result(row.name, where, end, detail)
    finally:
        scenes.close()


def _work(rows: Sequence[Row], seeds: int, share: int, shares: int, at_most: int | None, told: object) -> None:
    for result in results(rows, seeds=seeds, share=share, shares=shares, at_most=at_most):
        told.put(result)  # type: ignore[attr-defined]
    told.put(None)  # type: ignore[attr-defined]


def run(
    rows: Sequence[Row], table: Table, *, seeds: int, workers: int, at_most: int | None = None, say: Say = print
) -> None:
    """All trials of the rows into `table`; says how far it is about every ten seconds, and every failure at once."""
    context = multiprocessing.get_context("fork")
    told = context.Queue(1000)
    processes = [
        context.Process(target=_work, args=(rows, seeds, share, workers, at_most, told), daemon=True)
        for share in range(workers)
    ]
    for process in processes:
        process.start()
    began = last = time.monotonic()
    left, count, failed = workers, 0, 0
    while left:
        result = told.get(timeout=TRIAL_SECONDS * 4)
        if result is None:
            left -= 1
            continue
        table.add(result)
        count += 1
        if len(table.failures) > failed:
            failed = len(table.failures)
            say(f"FAILED {result.fault}: {result.where}: {result.end}: {result.detail}")
        if time.monotonic() - last > 10:
            last = time.monotonic()
            say(f"... {count} trials, {failed} failed, {last - began:.0f} s, now: {result.fault}")
    for process in processes:
        process.join()
    say(f"{count} trials in {time.monotonic() - began:.0f} s by {workers} processes of {os.cpu_count()} CPUs")
