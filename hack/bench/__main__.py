"""The command: a lab of its own, every case, the page."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench import cases, report, rivals
from bench.cases import Case
from bench.fleet import Fleet, fleet
from bench.measure import ContestFailed, idle_load
from lab import LabUnavailable, preflight


def main() -> int:
    made = argparse.ArgumentParser(prog="bench", description=__doc__)
    made.add_argument("--vms", type=int, default=20, help="routers of cases a and d")
    made.add_argument("--storage", type=int, default=8, help="secondary storage VMs of cases b and c")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--cases", default="abcde", help="which of a, b, c, d, e")
    made.add_argument("--serial-vms", type=int, default=5, help="VMs for the contestant that takes one after the other")
    made.add_argument("--scale", type=float, default=1.0, help="share of the real agent's size; 1 is 90 MB")
    made.add_argument("--jar-bytes", type=int, default=400_000, help="size of the jar of case c")
    made.add_argument("--dir", type=Path, help="run folder (default: a temporary one)")
    made.add_argument("--out", type=Path, help="write the tables here too")
    options = made.parse_args()
    if (missing := preflight.missing()) is not None:
        print(f"bench: {missing}", file=sys.stderr)
        return 2
    if set(options.cases) & set("ade"):
        rivals.find_ansible()
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-lab-") as scratch:
            page, failed = _run(options, options.dir or Path(scratch) / "lab")
    except LabUnavailable as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    print("\n" + page)
    print(f"all of it took {time.monotonic() - began:.0f} s")
    for line in failed:
        print(f"bench: {line}", file=sys.stderr)
    return 1 if failed else 0


def _run(options: argparse.Namespace, run_dir: Path) -> tuple[str, list[str]]:
    """The page, and what went wrong."""
    idle = idle_load()
    routers = options.vms if set(options.cases) & set("ade") else 0
    storage = options.storage if set(options.cases) & set("bc") else 0
    done: dict[str, Case] = {}
    failed: list[str] = []
    words = f"make bench VMS={options.vms} REPEATS={options.repeats}"
    page = ""
    with tempfile.TemporaryDirectory(prefix="bench-agent-") as scratch, fleet(run_dir, routers, storage) as everything:
        print("building a full agent", flush=True)
        scripts, agent = cases.write_agent(Path(scratch), options.scale)
        first = everything.of(vm for vm in everything.vms if vm.name.startswith("r-"))
        second = everything.of(vm for vm in everything.vms if vm.name.startswith("s-"))
        for key in options.cases:
            try:
                done[key] = _case(key, options, first, second, scripts, agent)
            except ContestFailed as failure:
                # What was measured before it is still worth reading.
                failed.append(f"case {key}: {failure}")
            page = report.page(done, command=words, idle_cores=idle.cores)
            if options.out is not None:
                options.out.write_text(page)
    return page, failed


def _case(key: str, options: argparse.Namespace, routers: Fleet, storage: Fleet, scripts: Path, agent: Path) -> Case:
    match key:
        case "a":
            return cases.ten_file_change(routers, options.repeats, serial_vms=options.serial_vms, agent=agent)
        case "b":
            return cases.full_agent(storage, options.repeats, agent, scripts)
        case "c":
            return cases.changed_jar(storage, options.repeats, options.jar_bytes)
        case "d":
            return cases.nothing_to_do(routers, options.repeats)
        case "e":
            return cases.ten_file_change(routers.of(routers.vms[:1]), options.repeats, serial_vms=1, agent=agent)
        case other:
            raise SystemExit(f"no case {other!r}: a, b, c, d, e")


if __name__ == "__main__":
    sys.exit(main())
