"""`make fuzz`: every target for its share of SECONDS, one line each; what was found is kept in the corpus.

The corpus in the tree (tests/unit/security/corpus/TARGET) is small and replayed by a plain test. A run starts from it,
works in a folder of its own, and copies only an input that broke a promise back.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from fuzz.promises import TARGETS

CORPUS = Path(__file__).resolve().parents[2] / "tests/unit/security/corpus"
_LONGEST_INPUT_BYTES = {"tar": 16384, "tgz": 4096, "zip": 8192, "deb": 32768, "rpm": 16384, "wire": 8192, "json": 4096}
_RSS_LIMIT_MIB = 1024
_SLOWEST_SECONDS = 10


def main() -> int:
    seconds = int(os.environ.get("SECONDS_PER_TARGET", "60"))
    broken = 0
    print(f"{datetime.now(UTC):%Y-%m-%d}, Python {sys.version.split()[0]}, {seconds} s a target")
    print(f"{'target':8}{'executions':>12}{'seconds':>9}{'coverage':>10}{'corpus':>8}  broken promises")
    for name in sys.argv[1:] or list(TARGETS):
        with tempfile.TemporaryDirectory(prefix=f"sysvm-fuzz-{name}-") as work:
            broken += _run(name, seconds, Path(work))
    return 1 if broken else 0


def _run(name: str, seconds: int, work: Path) -> int:
    kept, found = work / "corpus", work / "found"
    kept.mkdir()
    found.mkdir()
    seeds = CORPUS / name
    seeds.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "fuzz", name, str(kept), str(seeds)),
            *(f"-max_total_time={seconds}", f"-max_len={_LONGEST_INPUT_BYTES[name]}", f"-artifact_prefix={found}/"),
            *(f"-rss_limit_mb={_RSS_LIMIT_MIB}", f"-timeout={_SLOWEST_SECONDS}", "-print_final_stats=1"),
        ],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + 300,
    )
    took = time.monotonic() - started
    executions = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    coverage = re.findall(r"cov: (\d+)", done.stderr)
    inputs = sorted(found.iterdir())
    for path in inputs:
        shutil.copy(path, seeds / path.name)
    shown = executions.group(1) if executions else "?"
    print(
        f"{name:8}{shown:>12}{took:>9.0f}{coverage[-1] if coverage else '?':>10}{len(list(kept.iterdir())):>8}"
        f"  {', '.join(path.name for path in inputs) or 'none'}",
        flush=True,
    )
    if inputs or done.returncode:
        print(done.stderr[-3000:])
    return len(inputs) + (1 if done.returncode and not inputs else 0)


if __name__ == "__main__":
    sys.exit(main())
