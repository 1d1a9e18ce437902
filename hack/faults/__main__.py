"""`make faults`: every fault, the table, the sums; exit code 1 if a VM is neither old nor new.

FAULTS_SEEDS=N     trials of each piece of work where chance decides (60)
FAULTS_VM_SEEDS=N  trials of each fault on each real VM (2; 0 for none)
FAULTS_ONLY=WORDS  only rows whose name has one of these, comma-separated; `vm:` for those with real VMs
"""

from __future__ import annotations

import argparse
import os

from faults import machines, running
from lab import preflight


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    made = argparse.ArgumentParser(prog="faults", description="Fault trials on scratch and real system VMs.")
    made.add_argument("--seeds", type=int, default=int(os.environ.get("FAULTS_SEEDS") or 60))
    made.add_argument("--vm-seeds", type=int, default=int(os.environ.get("FAULTS_VM_SEEDS") or 2))
    made.add_argument("--only", default=os.environ.get("FAULTS_ONLY") or "")
    made.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    made.add_argument("--at-most", type=int, help="do only so many trials of each row with scratch VMs")
    made.add_argument("--list", action="store_true", help="names of the rows")
    asked = made.parse_args()
    rows = running.select(asked.only)
    names = running.chosen(machines.NAMES, asked.only)
    if asked.list:
        print("\n".join([*(row.name for row in rows), *names]))
        return 0
    if not rows and not names:
        print(f"no row has {asked.only!r} in its name; --list shows them")
        return 2
    table = running.table_for(running.ROWS)
    if rows:
        running.run(rows, table, seeds=asked.seeds, workers=asked.workers, at_most=asked.at_most, say=_say)
    if names and asked.vm_seeds:
        lacking = preflight.missing()
        if lacking is None:
            table.loud |= machines.WITH_CLOUDSTACK
            table.foreign |= machines.WITH_CLOUDSTACK
            machines.run_all(names, asked.vm_seeds, table, _say)
        else:
            _say(f"no trials on real VMs: {lacking}")
    print(table.text([row.name for row in running.ROWS] + list(machines.NAMES)))
    return 1 if table.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
