"""What the daily comparison of all files costs a VM: processor seconds there, bytes read, with and without a memory.

`python -m bench.scan` makes a router and a secondary storage VM with an agent of real size, patches both, and looks at
them again and again. Counted is the program on the VM with all that it starts, its interpreter included; not sshd.
Exit codes: 0 measured, 3 this machine cannot run the lab.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import time
from collections.abc import Sequence

from lab import Lab, LabUnavailable, SystemVMType, VMSpec
from lab.borrowed import borrowed
from lab.cli import CANNOT_RUN
from lab.content import payloads, releases
from reach import target_of
from sysvm.patching.bundle import command
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, Order

TIMES = "/run/scan-times"
MEMORY = "/var/lib/sysvm/digests"
SETTLED_SECONDS = 3.0
"""What a patch has just written is not remembered yet."""
CASES = ("look without comparing", "compare, nothing remembered", "compare, all remembered")
_ROW = "{:8}{:32}{:>10}{:>10}{:>10}"


def main() -> int:
    made = argparse.ArgumentParser(prog="bench.scan", description=__doc__)
    made.add_argument("--repeats", type=int, default=7, help="looks of each kind at each VM (7)")
    repeats: int = made.parse_args().repeats
    specs = [
        VMSpec(name="r-61-VM", type=SystemVMType.ROUTER, index=61),
        VMSpec(name="s-62-VM", type=SystemVMType.SECSTORAGE, index=62),
    ]
    try:
        with borrowed() as lab:
            lab.up(specs, release="old")
            payload = read_payload(
                payloads.build_scripts(releases.new()), payloads.build_agent(releases.new(), scale=1.0)
            )
            print(_ROW.format("VM", f"median of {repeats}", "CPU s", "least", "wall s"), flush=True)
            for spec in specs:
                asyncio.run(_measure(lab, spec.name, payload, repeats))
    except LabUnavailable as lack:
        print(lack, file=sys.stderr)
        return CANNOT_RUN
    return 0


async def _measure(lab: Lab, name: str, payload: Payload, repeats: int) -> None:
    target = target_of(lab, name)
    order = Order(f"scan-{name.lower()}", 1, 1, 0.0, (), 300.0, 600.0)
    report = await LivePatcher().patch(target, payload, order, lambda _: None)
    if report.phase is not JournalPhase.COMMITTED:
        raise RuntimeError(f"{name} was not patched: {report.message}")
    await asyncio.sleep(SETTLED_SECONDS)
    # The shell's own count of what its children used.
    watching = LivePatcher(start=f"( {command()} ); times >> {TIMES}")
    for case in CASES:
        seconds: list[float] = []
        walls: list[float] = []
        if case == CASES[2]:
            await watching.observe(target, payload)
        for _ in range(repeats):
            lab.exec(name, ["rm", "-f", TIMES, *([MEMORY] if case == CASES[1] else [])])
            began = time.monotonic()
            await watching.observe(target, None if case == CASES[0] else payload)
            walls.append(time.monotonic() - began)
            seconds.append(await _children(lab, name))
        row = (f"{statistics.median(seconds):.3f}", f"{min(seconds):.3f}", f"{statistics.median(walls):.2f}")
        print(_ROW.format(name, case, *row), flush=True)


async def _children(lab: Lab, name: str) -> float:
    """User and system seconds of the last line that `times` wrote; it comes after the connection's end."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        said = lab.exec(name, ["cat", TIMES], check=False).stdout.splitlines()
        if len(said) >= 2:
            return _seconds(said[-1].split())
        await asyncio.sleep(0.05)
    raise RuntimeError(f"the shell on {name} did not say what its children used")


def _seconds(words: Sequence[str]) -> float:
    found = [re.fullmatch(r"(\d+)m([\d.]+)s", word) for word in words]
    return sum(int(one[1]) * 60 + float(one[2]) for one in found if one)


if __name__ == "__main__":
    sys.exit(main())
