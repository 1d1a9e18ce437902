"""`python -m tests.integration.engine.nursery`: operators with simulated VMs, one after the other, born quickly.

A test that kills the operator a hundred times would spend its time on imports. This process imports once and forks an
operator for every line that it reads: `{"environment": {...}, "log": path}`. It answers with two lines: `{"pid": n}`,
and `{"status": n}` once that process has ended (as `os.waitstatus_to_exitcode` has it: -9 was killed).
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from pathlib import Path

from tests.integration.engine.simulated_vms import Fleet, SimulatedVMs

from sysvm.operator.app import App
from sysvm.operator.main import until_told
from sysvm.operator.settings import Settings
from sysvm.telemetry import logs

FLEET = "SYSVM_TEST_FLEET"


def live(environment: dict[str, str]) -> None:
    """One life of the operator."""
    os.environ.update(environment)
    settings = Settings.from_environment()
    logs.configure(settings.log_level, settings.log_format)
    asyncio.run(until_told(App(settings, SimulatedVMs(Fleet(Path(environment[FLEET]))))))


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
