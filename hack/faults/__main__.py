"""`make faults`: every fault, the table, the sums; exit code 1 if a VM is neither old nor new.

FAULTS_SEEDS=N     trials a row and scene where chance decides (200)
FAULTS_ONLY=WORDS  only rows whose name has one of these, comma-separated; `vm` for those with real VMs
"""

from __future__ import annotations

import argparse
import os

from faults import running


def main() -> int:
    made = argparse.ArgumentParser(prog="faults", description="Fault trials on scratch and real system VMs.")
    made.add_argument("--seeds", type=int, default=int(os.environ.get("FAULTS_SEEDS") or 200))
    made.add_argument("--only", default=os.environ.get("FAULTS_ONLY") or "")
    made.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    made.add_argument("--at-most", type=int, help="do only so many trials of each row")
    made.add_argument("--list", action="store_true", help="names of the rows")
    asked = made.parse_args()
    rows = running.select(asked.only)
    if asked.list:
        print("\n".join(row.name for row in rows))
        return 0
    table = running.run(rows, seeds=asked.seeds, workers=asked.workers, at_most=asked.at_most)
    print(table.text([row.name for row in rows]))
    return 1 if table.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
