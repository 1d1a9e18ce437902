"""Some trials of `make faults` on a real system VM in every test run; the long table is in docs/faults.md."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from faults import machines
from faults.table import End, Result
from lab import Lab, SystemVMType, VMSpec, preflight
from sysvm.patching.results import JournalPhase

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([VMSpec(name="s-211-VM", type=SystemVMType.SECSTORAGE, index=211)], release="old")
        yield made
    finally:
        made.down()


@pytest.mark.timeout(600)
async def test_a_real_vm_is_old_or_new_whatever_happens(lab: Lab) -> None:
    machine = machines.Machine(lab, "s-211-VM")
    await machine.learn()
    chosen = (
        "vm: ssh is reset",
        "vm: the power goes",
        "vm: one order by two operators",
        "vm: two operators of different epochs",
    )
    ends: list[Result] = []
    await machines.trials(machine, {name: machines.FAULTS[name] for name in chosen}, 1, ends.append)
    assert len(ends) == len(chosen)
    for each in ends:
        assert each.end in (End.OLD, End.NEW), each

    await _systemd_starts_a_killed_worker_again(machine)


@pytest.mark.timeout(300)
async def test_cloudstacks_patch_that_begins_in_our_switch_leaves_theirs_or_ours(lab: Lab) -> None:
    told = await machines.meet("vm: CloudStack's patch begins in the switch", lab, 212, 0)
    assert told.end in (End.OLD, End.NEW, End.THEIRS), told


async def _systemd_starts_a_killed_worker_again(machine: machines.Machine) -> None:
    """Nobody else is there: no session is open while it goes back."""
    lab, name = machine.lab, machine.name
    order = replace(machines.next_order(machine.epoch), settle_seconds=60.0)
    running = asyncio.create_task(machine.patch(order))
    unit = f"sysvm-{order.id}.service"
    pid = await _until(lambda: _main_pid(lab, name, unit) if _phase(lab, name, order.id) == "Services" else None)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    lab.exec(name, ["kill", "-KILL", pid])
    phase = await _until(lambda: word if (word := _phase(lab, name, order.id)) in ("RolledBack", "Committed") else None)
    assert phase == JournalPhase.ROLLED_BACK
    end, detail = await machine.judge(None)
    assert end is End.OLD, detail


def _main_pid(lab: Lab, name: str, unit: str) -> str | None:
    pid = lab.exec(name, ["systemctl", "show", "-p", "MainPID", "--value", unit], check=False).stdout.strip()
    return pid if pid not in ("", "0") else None


def _phase(lab: Lab, name: str, operation: str) -> str:
    """As a person at the console asks."""
    said = lab.exec(name, "python3 -I -B /var/lib/sysvm/program/current/sysvm.pyz --status", check=False).stdout
    lines = [line for line in said.splitlines() if line.startswith(f"{operation}:")]
    if lines:
        return lines[0].split()[1].rstrip(",")
    # The program goes with the last backup; the report stays.
    kept = lab.exec(name, f"cat /var/lib/sysvm/operations/{operation}/report.json", check=False).stdout
    return "RolledBack" if '"phase":"RolledBack"' in kept.replace(" ", "") else ""


async def _until(ask: Callable[[], str | None], seconds: float = 90.0) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = await asyncio.to_thread(ask)
        if found:
            return found
        await asyncio.sleep(0.1)
    raise AssertionError("it did not come to that in time")
