"""What the program and its children take of a system VM's memory while it is patched, sampled from /proc of the VM.

`python -m faults.memory` makes a secondary storage VM and patches it twice: with an agent of real size, then with one
jar of 200 MiB. Exit codes: 0 measured, 3 this machine cannot run the lab.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass

from faults.machines import next_order, patcher
from lab import Lab, LabUnavailable, SystemVMType, VMSpec
from lab.borrowed import borrowed
from lab.cli import CANNOT_RUN
from lab.content import payloads, releases
from reach import target_of
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import OperationReport

LIMIT_MIB = 64

_SAMPLE = r"""
import glob, json, os, time
peak = {"session": 0, "worker": 0, "children": 0, "together": 0, "samples": 0, "cgroup": 0}
def read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
def kib(status, key):
    for line in status.decode("utf-8", "replace").splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    return 0
while not os.path.exists("/run/faults-stop"):
    ours, parents, status = {}, {}, {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        text = read("/proc/%s/status" % name)
        line = read("/proc/%s/cmdline" % name)
        status[name] = text
        parents[name] = str(kib(text, "PPid"))
        if line.startswith((b"python3\0", b"/usr/bin/python3")) and b"sysvm" in line:
            ours[name] = "session" if b"\0-c\0" in line else "worker"
    for name in list(parents):
        if name not in ours and parents[name] in ours:
            ours[name] = "children"
    together = 0
    for name, kind in ours.items():
        peak[kind] = max(peak[kind], kib(status[name], "VmHWM"))
        # Proportional: pages that two of them share count once. A child between fork and exec shares all of its.
        together += kib(read("/proc/%s/smaps_rollup" % name), "Pss:")
    peak["together"] = max(peak["together"], together)
    for path in glob.glob("/sys/fs/cgroup/**/sysvm-*.service/memory.peak", recursive=True):
        peak["cgroup"] = max(peak["cgroup"], int(read(path) or 0) // 1024)
    peak["samples"] += 1
    time.sleep(0.03)
print(json.dumps(peak))
"""


@dataclass(frozen=True)
class Peaks:
    """Highest memory of one patch, in KiB; `together` is the largest sum at one moment, shared pages counted once."""

    session: int
    worker: int
    children: int
    together: int
    samples: int
    cgroup: int


async def measure(lab: Lab, name: str, payload: Payload) -> tuple[Peaks, OperationReport, float]:
    """Patches `name` and samples it meanwhile."""
    await asyncio.to_thread(lab.exec, name, "rm -f /run/faults-stop")
    sampling = asyncio.create_task(asyncio.to_thread(lab.exec, name, ["python3", "-I", "-c", _SAMPLE], timeout=900))
    began = time.monotonic()
    try:
        report = await patcher().patch(target_of(lab, name), payload, next_order(), lambda _: None)
    finally:
        seconds = time.monotonic() - began
        await asyncio.to_thread(lab.exec, name, "touch /run/faults-stop")
        done = await sampling
    return Peaks(**json.loads(done.stdout)), report, seconds


def sized(scale: float, huge_mib: int = 0) -> Payload:
    """The new release with an agent of that scale (1: as large as the real one) and perhaps one huge jar more."""
    release = releases.new()
    if huge_mib:
        huge = random.Random(huge_mib).randbytes(huge_mib << 20)
        release = release.derive("huge", agent_add={"lib/huge.jar": huge})
    return read_payload(payloads.build_scripts(release), payloads.build_agent(release, scale=scale))


def main() -> int:
    argparse.ArgumentParser(prog="faults.memory", description=__doc__).parse_args()
    try:
        with borrowed() as lab:
            lab.up([VMSpec(name="s-205-VM", type=SystemVMType.SECSTORAGE, index=205)], release="old")
            for what, payload in (
                ("agent as large as the real one", sized(1.0)),
                ("one jar of 200 MiB", sized(0.02, 200)),
            ):
                peaks, report, seconds = asyncio.run(measure(lab, "s-205-VM", payload))
                end = f"{report.phase} {report.message}, sent {report.bytes_sent}, {seconds:.0f} s"
                print(f"{what}: {peaks}, {end}", flush=True)
    except LabUnavailable as lack:
        print(lack, file=sys.stderr)
        return CANNOT_RUN
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
