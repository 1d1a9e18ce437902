"""What is compared with what. Each repeat runs every contestant once, so that a busy moment hits all of them."""

from __future__ import annotations

import itertools
import os
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench import ours, rivals
from bench.change import Change, one_jar, ten_files, write
from bench.fleet import Fleet
from bench.measure import Sample, median, told
from lab.content import payloads, releases

_NUMBERS = itertools.count(int.from_bytes(os.urandom(2), "big"))


@dataclass
class Case:
    """One table: a row a contestant. `vms` by contestant where it is not the same for all."""

    title: str
    vms: int
    rows: dict[str, list[Sample]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    vms_of: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    limit_bytes: float = 0.0

    def add(self, name: str, sample: Sample) -> None:
        self.rows.setdefault(name, []).append(sample)

    def middle(self, name: str) -> Sample:
        return median(self.rows[name])

    def take(self, name: str, run: Callable[[], Sample]) -> None:
        with told(name):
            self.add(name, run())

    def take_ours(self, name: str, run: Callable[[], ours.Ours]) -> None:
        with told(name):
            done = run()
        self.add(name, done.sample)
        self.sizes, self.steps = done.sizes, done.steps


OURS = "sysvm-operator"
ANSIBLE = "Ansible playbook"
GUARDED = "Ansible, asks for the signature first"
LOOP = "ssh/scp loop, same guarantees"
BARE = "ssh loop, bare copy"
SERIAL = "one VM after the other, whole payload"
RAW = "raw OpenSSH"
RAW_SAFE = "raw OpenSSH, digest and sync"
SIGNATURE_LOOP = "ssh loop, `cat` of the signature"


def ten_file_change(fleet: Fleet, repeats: int, *, serial_vms: int, agent: Path) -> Case:
    """Case a."""
    title = f"a. A 10-file change on {len(fleet.vms)} routers"
    if len(fleet.vms) == 1:
        title = "e. The same 10-file change on one router alone"
    case = Case(title, len(fleet.vms))
    some = fleet.of(fleet.vms[:serial_vms])
    for repeat in range(repeats):
        print(f"{case.title}: {repeat + 1} of {repeats}", flush=True)
        with _new_change() as change:
            case.take_ours(OURS, lambda: ours.run(fleet, "patch", _id(), scripts=change.scripts))
        with _new_change() as change:
            case.take(ANSIBLE, lambda: rivals.ansible(fleet, change))
        with _new_change() as change:
            case.take(LOOP, lambda: rivals.equal_loop(fleet, change))
        with _new_change() as change:
            case.take(BARE, lambda: rivals.bare_loop(fleet, change))
        if repeat == 0 and serial_vms:
            with _new_change() as change:
                case.take(SERIAL, lambda: rivals.one_by_one(some, change, agent))
            case.vms_of[SERIAL] = len(some.vms)
    return case


def full_agent(fleet: Fleet, repeats: int, agent: Path, scripts: Path) -> Case:
    """Case b: inside the lab's network, because the relay would be the slowest part."""
    direct = fleet.of(fleet.vms, direct=True)
    size = agent.stat().st_size
    case = Case(f"b. A full agent of {size / 1e6:.0f} MB to {len(fleet.vms)} SSVMs, transfer alone", len(fleet.vms))
    for repeat in range(repeats):
        print(f"{case.title}: {repeat + 1} of {repeats}", flush=True)
        case.take_ours(OURS, lambda: ours.run(direct, "stage", _id(), scripts=scripts, agent=agent))
        case.take(RAW, lambda: rivals.raw_copy(direct, agent))
        case.take(RAW_SAFE, lambda: rivals.raw_copy(direct, agent, safe=True))
    return case


def changed_jar(fleet: Fleet, repeats: int, size_bytes: int) -> Case:
    """Case c: a whole live patch, of which one jar travels."""
    case = Case(f"c. One changed jar of {size_bytes:,} bytes on {len(fleet.vms)} SSVMs", len(fleet.vms))
    case.limit_bytes = 1.1 * size_bytes + 65536
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for repeat in range(repeats):
            print(f"{case.title}: {repeat + 1} of {repeats}", flush=True)
            release, _ = one_jar(next(_NUMBERS), size_bytes)
            scripts, agent = Path(folder, "scripts.tgz"), Path(folder, "agent.zip")
            scripts.write_bytes(payloads.build_scripts(release))
            agent.write_bytes(payloads.build_agent(release))
            case.take_ours(OURS, partial(ours.run, fleet, "patch", _id(), scripts=scripts, agent=agent))
    return case


def nothing_to_do(fleet: Fleet, repeats: int) -> Case:
    """Case d: the VMs are at the release already."""
    case = Case(f"d. Nothing to do on {len(fleet.vms)} routers", len(fleet.vms))
    with _new_change() as change:
        with told("preparing"):
            ours.run(fleet, "patch", _id(), scripts=change.scripts)
        for repeat in range(repeats):
            print(f"{case.title}: {repeat + 1} of {repeats}", flush=True)
            case.take_ours(OURS, lambda: ours.run(fleet, "look", _id()))
            case.take(ANSIBLE, lambda: rivals.ansible(fleet, change))
            case.take(GUARDED, lambda: rivals.ansible(fleet, change, guarded=True))
            case.take(SIGNATURE_LOOP, lambda: rivals.signature_loop(fleet))
    return case


def write_agent(folder: Path, scale: float) -> tuple[Path, Path]:
    """(scripts, agent) whose agent differs from what the VMs have in every jar."""
    release = releases.old()
    scripts, agent = folder / "scripts.tgz", folder / "agent.zip"
    scripts.write_bytes(payloads.build_scripts(release))
    agent.write_bytes(payloads.build_agent(release, scale=scale))
    return scripts, agent


class _new_change:  # noqa: N801 - reads as the statement it is used in
    """A change that no VM has seen, on disk for as long as it is needed."""

    def __enter__(self) -> Change:
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        return write(ten_files(next(_NUMBERS)), Path(self._folder.name) / "change")

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()


def _id() -> str:
    return f"bench-{secrets.token_hex(6)}"


def ratio(case: Case, name: str, *, by: str = "seconds", at: int | None = None) -> float:
    """How often ours fits into the other's, each per VM."""
    mine, other = getattr(case.middle(OURS), by), getattr(case.middle(name), by)
    scale = case.vms / case.vms_of.get(name, at or case.vms)
    return float(other * scale / mine) if mine else float("inf")


def spread(samples: list[Sample]) -> str:
    values = [sample.seconds for sample in samples]
    if len(values) < 2:
        return ""
    return f"{min(values):.1f} to {max(values):.1f}"
