"""`python -m tests.integration.engine.nursery`: operators with simulated VMs, one after the other, born quickly.

A test that kills the operator a hundred times would spend its time on imports. This process imports once and forks an
operator for every line that it reads: `{"environment": {...}, "log": path}`. It answers with two lines: `{"pid": n}`,
and `{"status": n}` once that process has ended (as `os.waitstatus_to_exitcode` has it: -9 was killed).
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from tests.integration.engine.simulated_vms import Fleet, SimulatedVMs

from sysvm.domain import api_patch, group_operation
from sysvm.engine import system_vm
from sysvm.operator.app import App
from sysvm.operator.main import until_told
from sysvm.operator.settings import Settings
from sysvm.patching.host_source import Machine
from sysvm.patching.results import HostFile, HostFiles
from sysvm.telemetry import logs

FLEET = "SYSVM_TEST_FLEET"
MACHINES = "SYSVM_TEST_MACHINES"
"""Folder with a folder for each machine that holds a payload."""
QUIET = "SYSVM_TEST_QUIET_SECONDS"
"""How long nothing may move before an unknown call is judged, instead of three minutes."""

SUBMISSIONS = "SYSVM_TEST_SUBMISSIONS"
"""How often a call may be made: a story whose lives die again and again may die more than once right before it."""

GRACE = "SYSVM_TEST_ORPHAN_SECONDS"
"""How long the object of a VM in work outlives its endpoint, instead of ten minutes."""


class FolderMachines:
    """Machines whose files lie in folders of this one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def files(self, machine: Machine) -> HostFiles | None:
        path = self._folder / machine.name / "cloud-scripts.tgz"
        if not path.exists():
            return None
        content = path.read_bytes()
        return HostFiles(HostFile(str(path), len(content), hashlib.sha256(content).hexdigest()), None, {})

    async def read(self, machine: Machine, file: HostFile) -> AsyncIterator[bytes]:
        yield Path(file.path).read_bytes()


def live(environment: dict[str, str]) -> None:
    """One life of the operator."""
    os.environ.update(environment)
    if QUIET in environment:
        group_operation.QUIET = group_operation.EXPIRES = timedelta(seconds=float(environment[QUIET]))
        api_patch.LONGEST_PATCH = group_operation.LONGEST_WORK = group_operation.QUIET
    if SUBMISSIONS in environment:
        group_operation.SUBMISSIONS = int(environment[SUBMISSIONS])
    if GRACE in environment:
        system_vm.ORPHAN_GRACE = timedelta(seconds=float(environment[GRACE]))
    settings = Settings.from_environment()
    logs.configure(settings.log_level, settings.log_format)
    machines = FolderMachines(Path(environment[MACHINES])) if MACHINES in environment else None
    asyncio.run(until_told(App(settings, SimulatedVMs(Fleet(Path(environment[FLEET]))), machines)))


def main() -> None:
    gc.freeze()
    for line in sys.stdin:
        wish = json.loads(line)
        child = os.fork()
        if child == 0:
            log = os.open(wish["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            live(wish["environment"])
            os._exit(0)
        print(json.dumps({"pid": child}), flush=True)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
