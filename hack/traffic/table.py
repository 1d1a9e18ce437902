"""The measurements as a table: each kind of traffic of each scenario, ours beside CloudStack's. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lab.tenants import Tally
from traffic.measuring import Measurement
from traffic.scenarios import Scenario
from traffic.verdicts import is_broken

Result = tuple[Scenario, Measurement, Measurement | None]
"""A scenario, ours, CloudStack's (None: not asked for)."""

_HEAD = ("scenario", "kind", "sent", "lost", "failed", ">250ms", "gap ms", "sent", "lost", "failed", ">250ms", "gap ms")
_SUMS = 5


def cells(tally: Tally | None) -> tuple[str, ...]:
    """sent, lost, failed, slow, longest gap."""
    if tally is None:
        return ("-",) * _SUMS
    return (*map(str, (tally.sent, tally.lost, tally.failed, tally.slow)), f"{tally.longest_gap_ms:.0f}")


def sums(tallies: Iterable[Tally]) -> tuple[str, ...]:
    """The same over many; the longest gap is the longest of all."""
    tallies = tuple(tallies)
    totals = [sum(each) for each in zip(*((t.sent, t.lost, t.failed, t.slow) for t in tallies), strict=True)]
    return (*map(str, totals or [0] * 4), f"{max((t.longest_gap_ms for t in tallies), default=0):.0f}")


def rows(results: Sequence[Result]) -> list[tuple[str, ...]]:
    """One row a kind; `!` marks ours where a promise is broken."""
    found = []
    for scenario, ours, theirs in results:
        for tally in ours.tallies:
            other = next((each for each in theirs.tallies if each.kind is tally.kind), None) if theirs else None
            mark = " !" if is_broken(scenario, ours, tally) else ""
            found.append((scenario.name, f"{tally.kind}{mark}", *cells(tally), *cells(other)))
    return found


def text(results: Sequence[Result]) -> str:
    """For a terminal; the last lines are the sums of each scenario and of all."""
    body = rows(results)
    last = [(scenario.name, "all kinds", *sums(ours.tallies), *_other(theirs)) for scenario, ours, theirs in results]
    ours = [tally for _, each, _ in results for tally in each.tallies]
    theirs = [tally for _, _, each in results if each is not None for tally in each.tallies]
    last.append(("all", "all kinds", *sums(ours), *(sums(theirs) if theirs else ("-",) * _SUMS)))
    widths = [max(len(row[place]) for row in (_HEAD, *body, *last)) for place in range(len(_HEAD))]
    width = sum(widths[2 : 2 + _SUMS]) + 2 * (_SUMS - 1)
    over = " " * (widths[0] + widths[1] + 4) + "ours".center(width) + "  " + "CloudStack's".center(width)
    lines = [over.rstrip(), _line(_HEAD, widths)]
    before = ""
    for row in body:
        lines += [""] if before and row[0] != before else []
        before = row[0]
        lines.append(_line(row, widths))
    return "\n".join([*lines, "", *(_line(row, widths) for row in last)])


def markdown(results: Sequence[Result]) -> str:
    """For a document: one row a kind, the sums below each scenario."""
    found = [
        "| scenario | kind | ours: lost | failed | >250 ms | gap ms | CloudStack's: lost | failed | >250 ms | gap ms |"
    ]
    found.append("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for scenario, ours, theirs in results:
        block = rows([(scenario, ours, theirs)])
        block.append((f"**{scenario.name}**", "**all kinds**", *sums(ours.tallies), *_other(theirs)))
        found += ["| " + " | ".join((*row[:2], *row[3:7], *row[8:])) + " |" for row in block]
    return "\n".join(found)


def _other(theirs: Measurement | None) -> tuple[str, ...]:
    return sums(theirs.tallies) if theirs is not None else ("-",) * _SUMS


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
    return "  ".join((*left, *right)).rstrip()
