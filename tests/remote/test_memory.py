"""The program, its worker and their children patch a VM within 64 MiB, whatever the payload weighs.

Under a limit of the kernel's, the session in the same group as the worker, which is stricter than on a VM: there each
has a group of its own.
"""

from __future__ import annotations

import os
import random
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.remote.test_session import Client
from tests.remote.vm import BODIES, VM, make_order, sha256, with_file

from sysvm.patching import protocol

LIMIT = 64 << 20
GROUPS = Path("/sys/fs/cgroup/memory")
pytestmark = pytest.mark.skipif(
    not os.access(GROUPS / "cgroup.procs", os.W_OK) or not (GROUPS / "memory.limit_in_bytes").exists(),
    reason="needs root and the memory controller of cgroup v1",
)


@pytest.fixture
def group() -> Iterator[Path]:
    made = GROUPS / f"sysvm-test-{uuid.uuid4().hex[:8]}"
    made.mkdir()
    (made / "memory.limit_in_bytes").write_text(str(LIMIT))
    yield made
    made.rmdir()


@pytest.mark.timeout(240)
def test_a_payload_of_200_mb_streams_through_64_mib(group: Path, tmp_path: Path) -> None:
    # On a disk: what lies in memory would count, and a VM's files do not lie there.
    vm = VM(tmp_path).lay_out()
    huge = random.Random(200).randbytes(200 << 20)
    order = with_file(make_order(timeout_seconds=200, step_timeout_seconds=150), "/root/huge", huge)
    python = tmp_path / "limited"
    python.write_text(f'#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    client = Client(vm, str(python))
    try:
        client.prepare(order)
        report = client.get(protocol.RunResult, "run", {"id": "op-1"})["report"]
    finally:
        client.close()
        del BODIES[sha256(huge)]
    assert report["phase"] == "Committed", report
    assert (vm.root / "root/huge").stat().st_size == len(huge)
    assert "oom_kill 0" in (group / "memory.oom_control").read_text()
    program = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    print(f"peak {int((group / 'memory.max_usage_in_bytes').read_text()) >> 20} MiB with the page cache,", end=" ")
    print(f"limit met {(group / 'memory.failcnt').read_text().strip()} times, left {int(program['rss']) >> 20} MiB")
