"""What is measured, and how: the same three numbers for everybody."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.fleet import Fleet


class ContestFailed(Exception):  # noqa: N818 - says what happened
    """A contestant did not do its job: its time would mean nothing."""


@dataclass(frozen=True)
class Sample:
    """One run of one contestant. `cpu_seconds`: of its processes on the controller, `vm_seconds`: of everything on the
    VMs; bytes: TCP payload. All summed."""

    seconds: float
    cpu_seconds: float
    sent_bytes: int
    received_bytes: int
    connections: int
    vm_seconds: float = 0.0


def median(samples: Sequence[Sample]) -> Sample:
    """Each number's own median."""

    def middle(name: str) -> float:
        return float(statistics.median(getattr(sample, name) for sample in samples))

    return Sample(
        middle("seconds"),
        middle("cpu_seconds"),
        round(middle("sent_bytes")),
        round(middle("received_bytes")),
        round(middle("connections")),
        middle("vm_seconds"),
    )


def run(fleet: Fleet, argv: Sequence[str | Path], *, env: dict[str, str] | None = None, log: Path) -> Sample:
    """A rival: its whole process tree. Raises ContestFailed with the end of what it said."""
    before, vms = fleet.traffic(), fleet.vm_seconds()
    cpu, began = _children_cpu(), time.monotonic()
    with log.open("wb") as out:
        code = subprocess.call(
            [str(word) for word in argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={
                "PATH": os.environ["PATH"],
                "HOME": os.environ.get("HOME", "/root"),
                "LC_ALL": "C.UTF-8",
                **(env or {}),
            },
        )
    seconds, cpu = time.monotonic() - began, _children_cpu() - cpu
    if code != 0:
        raise ContestFailed(f"{argv[0]} ended with {code}:\n{log.read_text(errors='replace')[-3000:]}")
    wire = fleet.traffic() - before
    vm_seconds = fleet.vm_seconds() - vms
    return Sample(seconds, cpu, wire.sent_bytes, wire.received_bytes, wire.connections, vm_seconds)


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system


@dataclass(frozen=True)
class Load:
    """What the machine did besides, in cores, while nothing of ours ran."""

    cores: float


def idle_load(seconds: float = 3.0) -> Load:
    def busy() -> int:
        fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(fields) - fields[3] - fields[4]

    before = busy()
    time.sleep(seconds)
    return Load((busy() - before) / os.sysconf("SC_CLK_TCK") / seconds)


def machine() -> str:
    """A sentence: processors, memory, kernel."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, Linux {platform.release().split('-')[0]}"


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
    """One line for each run, so that a person sees where it is."""
    print(f"  {what} ...", end="", flush=True)
    began = time.monotonic()
    try:
        yield
    finally:
        print(f" {time.monotonic() - began:.1f} s", flush=True)
