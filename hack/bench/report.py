"""The page: numbers, ratios and verdicts of one run, in Markdown."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from bench import cases
from bench.cases import OURS, Case
from bench.measure import Sample, machine


@dataclass(frozen=True)
class Target:
    """A promise: ours against `rival`, at least (speed) or at most (bytes, time) `limit` times."""

    case: str
    rival: str
    limit: float
    by: str = "seconds"
    at_most: bool = False


TARGETS = (
    Target("a", cases.ANSIBLE, 8),
    Target("a", cases.LOOP, 1),
    Target("a", cases.BARE, 0.7),
    Target("a", cases.SERIAL, 20),
    Target("b", cases.RAW, 1.3, at_most=True),
    Target("d", cases.ANSIBLE, 20),
    Target("d", cases.GUARDED, 20),
)


def page(done: dict[str, Case], *, command: str, idle_cores: float) -> str:
    """All tables of a run."""
    day = dt.datetime.now(dt.UTC).date()
    lines = [f"{day}, {machine()}; besides the benchmark {idle_cores:.2f} cores were busy. Command: `{command}`.", ""]
    for key, case in done.items():
        lines += [f"### {case.title}", "", *_table(case), ""]
        lines += [line for target in TARGETS if target.case == key for line in _verdict(case, target)]
        if key == "c":
            lines += _jar_verdict(case)
        lines += ["", *_details(case), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _table(case: Case) -> list[str]:
    lines = [
        "| contestant | wall s (spread) | operator CPU s | CPU s of a VM | KB to it | from it | logins | wall / ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, samples in case.rows.items():
        middle, vms = case.middle(name), case.vms_of.get(name, case.vms)
        scaled = "" if vms == case.vms else f" ({vms} VMs)"
        between = cases.spread(samples)
        lines.append(
            f"| {name}{scaled} | {middle.seconds:.2f}{f' ({between})' if between else ''} | {middle.cpu_seconds:.2f} | "
            f"{middle.vm_seconds / vms:.2f} | "
            f"{_bytes(middle, vms)} | {middle.connections / vms:.1f} | {cases.ratio(case, name):.2f} |"
        )
    return lines


def _bytes(sample: Sample, vms: int) -> str:
    if not sample.sent_bytes:
        return "- | -"
    return f"{sample.sent_bytes / vms / 1000:,.0f} | {sample.received_bytes / vms / 1000:,.0f}"


def _verdict(case: Case, target: Target) -> list[str]:
    if target.rival not in case.rows:
        return []
    found = cases.ratio(case, target.rival)
    if target.at_most:
        found = 1 / found
        kept, words = found <= target.limit, f"{found:.2f} times the time of {target.rival} (at most {target.limit:g})"
    else:
        kept, words = found >= target.limit, f"{found:.2f} times as fast as {target.rival} (at least {target.limit:g})"
    return [f"- {'kept' if kept else '**missed**'}: {words}"]


def _jar_verdict(case: Case) -> list[str]:
    limit = case.limit_bytes
    sent = case.middle(OURS).sent_bytes / case.vms
    word = "kept" if sent <= limit else "**missed**"
    return [f"- {word}: {sent:,.0f} bytes to a VM (at most {limit:,.0f}: 1.1 times the jar and 64 KiB)"]


def _details(case: Case) -> list[str]:
    lines = []
    if case.steps:
        lines.append("Ours by step, median of the VMs: " + _listed({k: f"{v:.2f} s" for k, v in case.steps.items()}))
    if len(case.sizes) > 1:
        parts = {"the program" if k == "Connect" else k: v for k, v in case.sizes.items()}
        lines.append("Bytes to a VM by part: " + _listed({k: f"{v:,}" for k, v in parts.items()}))
    return [*lines, *case.notes]


def _listed(parts: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in parts.items()) + "."
