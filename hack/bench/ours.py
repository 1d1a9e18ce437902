"""The operator's own code, as it runs in the operator: one process that is up before there is work.

Started by `cases` as `python -m bench.ours`, so that its processor time and nobody else's is counted. It reads a job
(JSON) from its standard input, gets ready (imports, key, payload: once a process or a release in the operator), says
`ready`, begins at the next line, and answers with JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from bench.fleet import CONNECTIONS, Fleet
from bench.measure import ContestFailed, Sample


class Job(TypedDict):
    verb: str
    """patch, look or stage."""
    id: str
    key: str
    known_hosts: str
    scripts: str | None
    agent: str | None
    targets: list[tuple[str, str, int, str]]
    """Name, address, port, type of each."""


class Answer(TypedDict):
    seconds: float
    cpu_seconds: float
    sizes: dict[str, int]
    """Bytes of the conversation by part, of one VM in the middle."""
    steps: dict[str, float]
    """Seconds by step, median over the VMs."""


@dataclass(frozen=True)
class Ours:
    """A run of ours."""

    sample: Sample
    sizes: dict[str, int] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)


def run(fleet: Fleet, verb: str, name: str, *, scripts: Path | None = None, agent: Path | None = None) -> Ours:
    """Raises ContestFailed when a VM does not end as it should."""
    job: Job = {
        "verb": verb,
        "id": name,
        "key": str(fleet.lab.private_key),
        "known_hosts": fleet.known_hosts,
        "scripts": str(scripts) if scripts else None,
        "agent": str(agent) if agent else None,
        "targets": [(vm.name, fleet.address(vm), vm.port, vm.spec.type.value) for vm in fleet.vms],
    }
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [*fleet.inside(), sys.executable, "-m", "bench.ours"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{root}/hack:{root}/controller"},
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(job) + "\n")
        child.stdin.flush()
        if child.stdout.readline() != "ready\n":
            raise ContestFailed(f"ours did not get ready for {verb}")
        before, vms = fleet.traffic(), fleet.vm_seconds()
        child.stdin.write("go\n")
        child.stdin.flush()
        line = child.stdout.readline()
    if child.returncode != 0 or not line:
        raise ContestFailed(f"ours failed at {verb}")
    answer: Answer = json.loads(line)
    wire = fleet.traffic() - before
    sample = Sample(
        answer["seconds"],
        answer["cpu_seconds"],
        wire.sent_bytes,
        wire.received_bytes,
        wire.connections,
        fleet.vm_seconds() - vms,
    )
    return Ours(sample, answer["sizes"], answer["steps"])


# ------------------------------------------------------------------------------------------ the process


def main() -> None:
    job: Job = json.loads(sys.stdin.readline())
    asyncio.run(_Worker(job).work())


class _Worker:
    def __init__(self, job: Job) -> None:
        from sysvm.api.endpoint import HostKeyPolicy, SystemVMType
        from sysvm.patching.bundle import bundle
        from sysvm.patching.live import LivePatcher
        from sysvm.patching.payload import read_payload
        from sysvm.patching.results import Order, SSHAccount, Target

        bundle()
        key = Path(job["key"]).read_bytes()
        self.verb = job["verb"]
        self.patcher = LivePatcher()
        self.targets = [
            Target(
                name=name,
                type=SystemVMType(kind),
                address=address,
                account=SSHAccount(
                    user="root",
                    port=port,
                    private_key=key,
                    host_key_policy=HostKeyPolicy.STRICT,
                    known_hosts=job["known_hosts"],
                    connections=CONNECTIONS,
                    pool="bench",
                ),
            )
            for name, address, port, kind in job["targets"]
        ]
        agent = Path(job["agent"]) if job["agent"] else None
        self.payload = read_payload(Path(job["scripts"]), agent) if job["scripts"] else None
        self.order = Order(
            id=job["id"],
            epoch=1,
            keep_backups=1,
            settle_seconds=0.0,
            ignored_checks=(),
            step_timeout_seconds=600,
            vm_timeout_seconds=1800,
        )
        self.sizes: dict[str, int] = {}
        self.steps: dict[str, float] = {}

    async def work(self) -> None:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        verbs = {"patch": self.patch, "look": self.look, "stage": self.stage}
        cpu, began = time.process_time(), time.monotonic()
        seconds = await verbs[self.verb]()
        answer: Answer = {
            "seconds": time.monotonic() - began if seconds is None else seconds,
            "cpu_seconds": time.process_time() - cpu,
            "sizes": self.sizes,
            "steps": self.steps,
        }
        print(json.dumps(answer), flush=True)

    async def patch(self) -> None:
        """The whole live patch of every VM."""
        from sysvm.patching.results import JournalPhase, OperationReport

        payload = self.payload
        assert payload is not None

        def nobody(_: OperationReport) -> None:
            pass

        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.patcher.patch(target, payload, self.order, nobody)) for target in self.targets
            ]
        reports = [task.result() for task in tasks]
        wrong = [report for report in reports if report.phase is not JournalPhase.COMMITTED]
        if wrong:
            raise ContestFailed(f"{len(wrong)} VMs ended {wrong[0].phase}: {wrong[0].message}")
        for number, step in enumerate(reports[0].steps):
            found = sorted(report.steps[number].seconds for report in reports)
            self.steps[step.name] = found[len(found) // 2]
            if step.bytes_sent is not None:
                self.sizes[step.name] = step.bytes_sent

    async def look(self) -> None:
        """The signature probe: no payload to compare with."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.patcher.observe(target, None)) for target in self.targets]
        if any(task.result().signature is None for task in tasks):
            raise ContestFailed("a VM has no signature")

    async def stage(self) -> float:
        """The transfer alone: everything up to it first, on all VMs, and nothing of it is kept."""
        ready = asyncio.Barrier(len(self.targets))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._stage(target, ready)) for target in self.targets]
        spans = [task.result() for task in tasks]
        return max(end for _, end in spans) - min(start for start, _ in spans)

    async def _stage(self, target: Any, ready: asyncio.Barrier) -> tuple[float, float]:
        from sysvm.patching import protocol
        from sysvm.patching.observing import compare_files, probe_vm
        from sysvm.patching.orders import archive_of, order_for_vm
        from sysvm.patching.staging import Transfer, batches

        payload = self.payload
        assert payload is not None
        async with self.patcher.conversation(target) as (_, session):
            look = await probe_vm(session, target.type)
            look = await compare_files(session, look, payload, target.type, self.patcher.previous_payloads)
            assert look.difference is not None
            order = order_for_vm(self.order, target, payload, look, archive_of(payload))
            begin: protocol.BeginArgs = {"order": order}
            begun = await session.request("begin", {**begin}, protocol.BeginResult, timeout=120)
            await ready.wait()
            began = time.monotonic()
            before = session.bytes_sent
            transfer = Transfer(list(batches(payload, look.difference.contents, tuple(begun["missing"]))))
            requests = transfer.requests(payload, lambda: None)
            await session.request_all("stage", requests, protocol.StageResult, timeout=1200)
            ended = time.monotonic()
            self.sizes["Stage"] = session.bytes_sent - before
            abandon: protocol.AbandonArgs = {"id": self.order.id}
            await session.request("abandon", {**abandon}, protocol.Bye, timeout=120)
        return began, ended


if __name__ == "__main__":
    main()
