"""Faults of real system VMs: wire, power, operators, disk, worker, CloudStack. Each trial patches a VM to the other of
two releases while something happens at a random moment; then it has to be wholly one of the two.

Which one it should be is not asked: after a fault both are right, and the operator is told which.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from faults import commands
from faults.table import End, Result, Table
from lab import Fault, Lab, SystemVMType, VMSpec
from lab.borrowed import borrowed
from lab.content import cloudstack_patch, payloads, releases
from lab.guest import Entry
from reach import patch_order, target_of
from sysvm.api.observed import ContentState
from sysvm.api.reasons import Reason
from sysvm.patching.dialling import SSHTimeouts
from sysvm.patching.errors import PatchingError
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import JournalPhase, OperationReport, Order
from sysvm.patching.ssh import SSHTransport

TREES = ("/opt/cloud", "/etc/apache2", "/root/health_checks", "/usr/share/cloud", "/usr/local/cloud/systemvm")
"""What a patch changes and no boot writes."""
SIGNATURE = "/var/cache/cloud/cloud-scripts-signature"
UNITS = ("apache2", "haproxy", "dnsmasq", "ssh", "cron", "rsyslog")
RECOVERY_SECONDS = 240.0
Shot = Mapping[str, Entry]
Say = Callable[[str], None]


@cache
def release_payload(name: str) -> Payload:
    release = releases.find(name)
    return read_payload(payloads.build_scripts(release), payloads.build_agent(release))


def patcher() -> LivePatcher:
    """One that notices a dead wire in seconds."""
    return LivePatcher(
        transport=SSHTransport(timeouts=SSHTimeouts(connect=5.0, keepalive_interval=1.0, keepalive_count=3))
    )


_orders = itertools.count(1)


def next_order(epoch: int = 1) -> Order:
    return patch_order(f"fault-{os.getpid()}-{next(_orders)}", epoch=epoch, keep_backups=0, settle_seconds=0.3)


def _ignore(_report: OperationReport) -> None:
    """Nobody watches."""


@dataclass
class Machine:
    """A VM that goes to and fro between two releases.

    Attributes:
        shots: what it looks like at each release, taken when nothing disturbed it.
        release: the one it is at.
        seconds: how long an undisturbed patch takes.
        alone: the last patch was seen to be built, so that the VM goes on alone.
        wanted: what it is brought to, if that is no release of the two.
        epoch: of the operator that leads now; the VM refuses any lower one.
    """

    lab: Lab
    name: str
    shots: dict[str, Shot] = field(default_factory=dict)
    release: str = "old"
    seconds: float = 5.0
    alone: asyncio.Event = field(default_factory=asyncio.Event)
    services: str = ""
    epoch: int = 1
    wanted: Payload | None = None

    @property
    def other(self) -> str:
        return "new" if self.release == "old" else "old"

    def next_epoch(self) -> int:
        """Somebody else leads from now on."""
        self.epoch += 1
        return self.epoch

    def shot(self) -> Shot:
        taken = self.lab.snapshot_tree(self.name, [*TREES, SIGNATURE])
        # A backup that waits for its removal is a second name of what did not change.
        return {path: replace(entry, nlink=0) for path, entry in taken.items() if "__pycache__" not in path}

    def active(self) -> str:
        return self.lab.exec(self.name, ["systemctl", "is-active", *UNITS], check=False).stdout

    async def patch(self, order: Order, release: str | None = None) -> OperationReport:
        self.alone.clear()
        payload = release_payload(release or self.other)
        return await patcher().patch(target_of(self.lab, self.name), payload, order, self._watch)

    def _watch(self, report: OperationReport) -> None:
        if report.step == "Build":
            self.alone.set()

    async def until(self, moment: float) -> None:
        """The first third of all moments lie before the VM works alone, the rest in the seconds after that."""
        if moment < 1 / 3:
            await asyncio.sleep(3 * moment * 0.7 * self.seconds)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.alone.wait(), self.seconds * 3)
        await asyncio.sleep((moment - 1 / 3) * 0.6 * self.seconds)

    async def learn(self) -> None:
        """There and back, undisturbed: what both releases look like on this VM."""
        self.shots[self.release] = await asyncio.to_thread(self.shot)
        for _ in range(2):
            began = time.monotonic()
            report = await self.patch(next_order())
            self.seconds = time.monotonic() - began
            if report.phase is not JournalPhase.COMMITTED:
                raise RuntimeError(f"{self.name} cannot be patched even undisturbed: {report.message}")
            self.release = self.other
            self.shots[self.release] = await asyncio.to_thread(self.shot)
        self.services = await asyncio.to_thread(self.active)

    async def judge(self, report: OperationReport | None) -> tuple[End, str]:
        """Compared byte for byte with both releases; its last word has to fit; the services must run."""
        now = await asyncio.to_thread(self.shot)
        differing = {
            release: sorted(path for path in now.keys() | shot.keys() if now.get(path) != shot.get(path))
            for release, shot in self.shots.items()
        }
        told = "no report" if report is None else f"{report.phase} {report.reason}: {report.message[:300]}"
        if report is not None and report.phase is JournalPhase.INCONSISTENT:
            return End.INCONSISTENT, told
        fits = [release for release, paths in differing.items() if not paths]
        if not fits:
            return End.NEITHER, f"{ {release: paths[:5] for release, paths in differing.items()} }; {told}"
        (found,) = fits
        services = await asyncio.to_thread(self.active)
        end = End.OLD if found == self.release else End.NEW
        self.release = found
        if services != self.services:
            return End.NEITHER, f"services {services.split()}, were {self.services.split()}; {told}"
        if report is not None and (report.phase is JournalPhase.COMMITTED) != (end is End.NEW):
            return End.NEITHER, f"the files are {end}, its last word is {told}"
        return end, told


Trial = Callable[[Machine, Order, float], Awaitable[OperationReport]]
"""Patches `machine` by `order`; its fault happens at a moment from 0 to 1 of the patch. Returns the last word."""


@contextlib.asynccontextmanager
async def patching(machine: Machine, order: Order) -> AsyncIterator[asyncio.Task[OperationReport]]:
    running = asyncio.create_task(machine.patch(order))
    try:
        yield running
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, PatchingError):
            await running


async def last_word(machine: Machine, order: Order, running: asyncio.Task[OperationReport] | None) -> OperationReport:
    """What becomes of it in the end: of this operator, else of one that starts anew with the same order."""
    if running is not None:
        with contextlib.suppress(PatchingError):
            return await running
    end = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            return await machine.patch(order)
        except PatchingError:
            if time.monotonic() > end:
                raise
            await asyncio.sleep(1.0)


async def cut(machine: Machine, order: Order, moment: float) -> OperationReport:
    async with patching(machine, order) as running:
        await machine.until(moment)
        await asyncio.to_thread(machine.lab.fault, machine.name, Fault.CUT)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(machine.lab.fault, machine.name, Fault.CUT)
        return await last_word(machine, order, running)


async def silence(machine: Machine, order: Order, moment: float) -> OperationReport:
    async with patching(machine, order) as running:
        await machine.until(moment)
        await asyncio.to_thread(machine.lab.fault, machine.name, Fault.SILENCE)
        await asyncio.sleep(5.0)
        await asyncio.to_thread(machine.lab.fault, machine.name, Fault.HEAL)
        return await last_word(machine, order, running)


async def operator_killed(machine: Machine, order: Order, moment: float) -> OperationReport:
    """The operator is a process of its own; the one that follows leads with the next epoch."""
    work = pickle.dumps((str(machine.lab.run_dir), machine.name, machine.other, order))
    process = subprocess.Popen([sys.executable, "-m", "faults.machines"], stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(work)
    process.stdin.close()
    # Its own start takes a second or two.
    await asyncio.sleep(2.0 + moment * machine.seconds)
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.wait)
    return await last_word(machine, replace(order, epoch=machine.next_epoch()), None)


async def power_off(machine: Machine, order: Order, moment: float) -> OperationReport:
    async with patching(machine, order) as running:
        await machine.until(moment)
        await asyncio.to_thread(machine.lab.power_off, machine.name)
        await asyncio.to_thread(machine.lab.power_on, machine.name)
        return await last_word(machine, order, running)


async def power_off_twice(machine: Machine, order: Order, moment: float) -> OperationReport:
    """Again while it boots and recovers."""
    async with patching(machine, order) as running:
        await machine.until(moment)
        await asyncio.to_thread(machine.lab.power_off, machine.name)
        await asyncio.to_thread(lambda: machine.lab.power_on(machine.name, wait=False))
        await asyncio.sleep(0.5 + 3 * moment)
        await asyncio.to_thread(machine.lab.power_off, machine.name)
        await asyncio.to_thread(machine.lab.power_on, machine.name)
        return await last_word(machine, order, running)


async def reboot(machine: Machine, order: Order, moment: float) -> OperationReport:
    async with patching(machine, order) as running:
        await machine.until(moment)
        await asyncio.to_thread(machine.lab.reboot, machine.name)
        return await last_word(machine, order, running)


async def worker_killed(machine: Machine, order: Order, moment: float) -> OperationReport:
    """systemd has to start it again: nobody else does before the operator's patience is over."""
    order = replace(order, settle_seconds=1.5)
    unit = f"sysvm-{order.id}.service"
    async with patching(machine, order) as running:
        await machine.until(0.4 + 0.6 * moment)
        await asyncio.to_thread(
            lambda: machine.lab.exec(machine.name, ["systemctl", "kill", "-s", "KILL", unit], check=False)
        )
        return await last_word(machine, order, running)


async def same_order_twice(machine: Machine, order: Order, moment: float) -> OperationReport:
    async with patching(machine, order) as running:
        await machine.until(moment)
        other = await last_word(machine, order, None)
        mine = await last_word(machine, order, running)
        if other.phase is not mine.phase:
            raise RuntimeError(f"one was told {mine.phase}, the other {other.phase}")
        return mine


async def two_orders(machine: Machine, order: Order, moment: float) -> OperationReport:
    """Another operator orders the same release meanwhile: refused, or it comes after the first."""
    second = next_order(machine.epoch)
    async with patching(machine, order) as running:
        await machine.until(moment)
        with contextlib.suppress(PatchingError):
            await patcher().patch(target_of(machine.lab, machine.name), release_payload(machine.other), second, _ignore)
        first = await last_word(machine, order, running)
    if first.phase is JournalPhase.COMMITTED:
        return first
    report = await patcher().report(target_of(machine.lab, machine.name), second.id)
    return first if report is None else report


async def deposed(machine: Machine, order: Order, moment: float) -> OperationReport:
    """Another leader orders the same release meanwhile, and comes again until it is let in; the first, still there,
    must not get in again."""
    second = next_order(machine.next_epoch())
    async with patching(machine, order) as running:
        await machine.until(moment)
        theirs = await _let_in(machine, second)
        first = await last_word(machine, order, running)
    await _refuse_old_epoch(machine, order.epoch)
    return first if first.phase is JournalPhase.COMMITTED else theirs


async def handed_over(machine: Machine, order: Order, moment: float) -> OperationReport:
    """The next leader goes on with the very operation, by its id; then the first one tries a new one."""
    newer = machine.next_epoch()
    async with patching(machine, order) as running:
        await machine.until(moment)
        theirs = await last_word(machine, replace(order, epoch=newer), None)
        mine = await last_word(machine, order, running)
    if theirs.phase is not mine.phase:
        raise RuntimeError(f"one was told {mine.phase}, the other {theirs.phase}")
    # What the new leader ordered by this id may have ended before it came: its own order is what the VM knows it by.
    after = await _let_in(machine, next_order(newer))
    await _refuse_old_epoch(machine, order.epoch)
    return mine if mine.phase is JournalPhase.COMMITTED else after


async def _let_in(machine: Machine, order: Order) -> OperationReport:
    """As an operator does: again until the VM is free."""
    end = time.monotonic() + RECOVERY_SECONDS
    while True:
        try:
            payload = release_payload(machine.other)
            return await patcher().patch(target_of(machine.lab, machine.name), payload, order, _ignore)
        except PatchingError as refused:
            if time.monotonic() > end or not refused.retryable:
                raise
        await asyncio.sleep(0.3)


async def _refuse_old_epoch(machine: Machine, epoch: int) -> None:
    try:
        report = await machine.patch(next_order(epoch))
    except PatchingError as refused:
        if refused.reason is Reason.EPOCH_REFUSED:
            return
        raise
    raise RuntimeError(f"epoch {epoch} was let in after {machine.epoch}: {report.phase}")


async def full_disk(machine: Machine, order: Order, moment: float) -> OperationReport:
    fill = "for size in 64k 512; do dd if=/dev/zero of=/root/filler.$size bs=$size; done 2>/dev/null"
    async with patching(machine, order) as running:
        await machine.until(moment)
        try:
            await asyncio.to_thread(lambda: machine.lab.exec(machine.name, fill, check=False, timeout=120))
            with contextlib.suppress(PatchingError):
                await running
        finally:
            await asyncio.to_thread(lambda: machine.lab.exec(machine.name, "rm -f /root/filler.*"))
        return await last_word(machine, order, None)


FAULTS: dict[str, Trial] = {
    "vm: ssh is reset": cut,
    "vm: ssh falls silent": silence,
    "vm: the operator is killed": operator_killed,
    "vm: the power goes": power_off,
    "vm: the power goes, and again during recovery": power_off_twice,
    "vm: it is rebooted": reboot,
    "vm: the worker is killed": worker_killed,
    "vm: one order by two operators": same_order_twice,
    "vm: two orders by two operators": two_orders,
    "vm: two operators of different epochs": deposed,
    "vm: one operation handed to the next leader": handed_over,
    "vm: the disk becomes full": full_disk,
}


async def trials(machine: Machine, faults: Mapping[str, Trial], seeds: int, tell: Callable[[Result], None]) -> None:
    """All faults in turn, so that a run that is cut short has met each."""
    for seed in range(seeds):
        for name, fault in faults.items():
            moment = random.Random(f"{machine.name} {name} {seed}").random()
            order = next_order(machine.epoch)
            where = f"{machine.name}, seed {seed}, moment {moment:.2f}"
            began = time.monotonic()
            try:
                report = await fault(machine, order, moment)
                end, detail = await machine.judge(report)
            except Exception as error:  # noqa: BLE001 - a trial that dies has not shown that its VM is whole
                end, detail = End.NEITHER, f"{type(error).__name__}: {error}"
                with contextlib.suppress(Exception):
                    _, more = await machine.judge(None)
                    detail += f"; then {more}"
            tell(Result(name, f"{where}, took {time.monotonic() - began:.0f} s", end, detail))


def specs() -> tuple[VMSpec, ...]:
    return (
        VMSpec(name="r-201-VM", type=SystemVMType.ROUTER, index=201, group="net-201", tmpfs_mib=400),
        VMSpec(name="s-202-VM", type=SystemVMType.SECSTORAGE, index=202, tmpfs_mib=400),
    )


Meeting = Callable[[Machine, Order, int], Awaitable[tuple[OperationReport | None, str]]]
"""CloudStack and ours on one VM, by a seed. Returns our last word and where it was."""


async def at_any_moment(machine: Machine, order: Order, seed: int) -> tuple[OperationReport | None, str]:
    """CloudStack's own live patch to a third release begins at a random moment of ours."""
    moment = random.Random(f"cloudstack {seed}").random()
    theirs = payloads.build_scripts(releases.mended())
    async with patching(machine, order) as running:
        await machine.until(moment)
        await asyncio.to_thread(lambda: cloudstack_patch.patch(machine.lab, machine.name, scripts=theirs, agent=None))
        return await last_word(machine, order, running), f"moment {moment:.2f}"


PHASES = ("Switching", "Switched", "Services", "Verifying", "Committing", "Committed")


async def in_the_switch(machine: Machine, order: Order, seed: int) -> tuple[OperationReport | None, str]:
    """It begins when the journal names a phase, within the next 60 ms: a process in the VM waits for that."""
    lab, name = machine.lab, machine.name
    phase = PHASES[seed % len(PHASES)]
    late = random.Random(f"switch {seed}").random() * 0.06
    for path, content in (
        ("/root/theirs/cloud-scripts.tgz", payloads.build_scripts(releases.mended())),
        ("/root/theirs/patch-sysvms.sh", cloudstack_patch.SCRIPT.read_bytes()),
    ):
        await asyncio.to_thread(lab.write_bytes, name, path, content)
    waiting = _WHEN.format(order=order.id, phase=phase, late=late)
    async with patching(machine, order) as running:
        # A patch that takes longer than ours has to end, too, before anything is judged.
        theirs = asyncio.create_task(asyncio.to_thread(lab.exec, name, ["python3", "-I", "-c", waiting], timeout=200))
        done = await theirs
        report = await last_word(machine, order, running)
    return report, f"{late * 1000:.0f} ms after {phase}, theirs said {done.stdout.strip()[-80:]!r}"


_WHEN = r"""
import os, subprocess, sys, time
end = time.monotonic() + 60
journal, words = "/var/lib/sysvm/operations/{order}/journal", b'"phase":"{phase}"'
while time.monotonic() < end:
    try:
        with open(journal, "rb") as file:
            if words in file.read():
                break
    except OSError:
        pass
    time.sleep(0.002)
else:
    sys.exit("the journal never said so")
time.sleep({late})
cache = "/var/cache/cloud/"
for name in ("cloud-scripts.tgz", "patch-sysvms.sh"):
    os.rename("/root/theirs/" + name, cache + name)
os.chmod(cache + "patch-sysvms.sh", 0o755)
done = subprocess.run([cache + "patch-sysvms.sh"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/root")
print(done.returncode, done.stdout.decode("utf-8", "replace")[-200:])
"""


async def at_boot(machine: Machine, order: Order, seed: int) -> tuple[OperationReport | None, str]:
    """The power goes, and the host sends a third release at the start: the boot installs it after our recovery."""
    lab, name = machine.lab, machine.name
    moment = random.Random(f"boot {seed}").random()
    theirs = payloads.build_scripts(releases.mended())
    async with patching(machine, order) as running:
        await machine.until(moment)
        await asyncio.to_thread(lab.power_off, name)
        await asyncio.to_thread(lab.write_bytes, name, "/var/cache/cloud/cloud-scripts.tgz", theirs)
        await asyncio.to_thread(lab.power_on, name)
        return await last_word(machine, order, running), f"moment {moment:.2f}"


PATCHES = 3


async def under_commands(machine: Machine, order: Order, _seed: int) -> tuple[OperationReport | None, str]:
    """The management server goes on while the router is patched three times, each time to modules that go together
    with no others."""
    lab, name = machine.lab, machine.name
    before = await asyncio.to_thread(commands.keys, lab, name)
    firing = commands.Commands(lab, name)
    report: OperationReport | None = None
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(firing.fire())
        try:
            for number in range(1, PATCHES + 1):
                release = commands.release(number)
                machine.wanted = read_payload(payloads.build_scripts(release), payloads.build_agent(release))
                each = replace(order, id=f"{order.id}-{number}", settle_seconds=0.5)
                report = await patcher().patch(target_of(lab, name), machine.wanted, each, _ignore)
                if report.phase is not JournalPhase.COMMITTED:
                    break
        finally:
            firing.stop.set()
    gone = await asyncio.to_thread(commands.lost, lab, name, before, firing)
    if firing.failures or gone:
        raise RuntimeError(f"{firing.text()}; {firing.failures[:3]}; {gone}")
    return report, firing.text()


async def meet(fault: str, lab: Lab, index: int, seed: int) -> Result:
    """On a VM of this trial alone: nobody else could say afterwards what it was before."""
    name = f"r-{index}-VM"
    await asyncio.to_thread(
        lambda: lab.add(VMSpec(name=name, type=SystemVMType.ROUTER, index=index, group=f"net-{index}"), release="old")
    )
    try:
        machine = Machine(lab, name)
        machine.shots["old"] = await asyncio.to_thread(machine.shot)
        # The journal stays readable after the end.
        order = replace(next_order(), settle_seconds=2.0, keep_backups=1)
        try:
            report, where = await MEETINGS[fault](machine, order, seed)
            told = f"{report.phase} {report.reason}: {report.message[:300]}" if report else ""
        except PatchingError as refused:
            report, where, told = None, "", f"refused: {refused}"
        end = await _whose(machine, report)
    except Exception as error:  # noqa: BLE001 - a trial that dies has not shown that its VM is whole
        where, end, told = "", End.NEITHER, f"{type(error).__name__}: {error}"
    finally:
        await asyncio.to_thread(lab.remove, name)
    return Result(fault, f"seed {seed}, {where}", end, told)


async def _whose(machine: Machine, report: OperationReport | None) -> End:
    if report is not None and report.phase is JournalPhase.INCONSISTENT:
        return End.INCONSISTENT
    for payload, end in (
        (release_payload("mended"), End.THEIRS),
        (machine.wanted or release_payload("new"), End.NEW),
    ):
        seen = await patcher().observe(target_of(machine.lab, machine.name), payload)
        whole = seen.content is not None and seen.content.state is ContentState.MATCHES
        if whole and seen.signature == payload.signature:
            return end
    if machine.wanted is not None:
        # Commands write beside the payload's files; a patch that never found a quiet moment changed none of these.
        seen = await patcher().observe(target_of(machine.lab, machine.name), release_payload("old"))
        same = seen.content is not None and seen.content.state is ContentState.MATCHES
        same &= seen.signature == release_payload("old").signature
    else:
        same = await asyncio.to_thread(machine.shot) == machine.shots["old"]
    return End.OLD if same else End.NEITHER


async def run(lab: Lab, faults: Mapping[str, Trial], seeds: int, tell: Callable[[Result], None], say: Say) -> None:
    """Every VM of the lab beside the others."""

    async def one(name: str) -> None:
        machine = Machine(lab, name)
        await machine.learn()
        say(f"{name}: an undisturbed patch takes {machine.seconds:.1f} s")
        await trials(machine, faults, seeds, tell)

    async with asyncio.TaskGroup() as group:
        for vm in lab.vms():
            group.create_task(one(vm.name))


MEETINGS: dict[str, Meeting] = {
    "vm: CloudStack patches at the same moment": at_any_moment,
    "vm: CloudStack's patch begins in the switch": in_the_switch,
    "vm: the power goes, CloudStack patches at boot": at_boot,
    "vm: a management command every 50 ms": under_commands,
}
WITH_CLOUDSTACK = frozenset(name for name in MEETINGS if "CloudStack" in name)
NAMES = (*FAULTS, *MEETINGS)


def run_all(wanted: Sequence[str], seeds: int, table: Table, say: Say) -> None:
    """Those of NAMES that are wanted, in a lab of their own that is taken down afterwards."""

    def tell(result: Result) -> None:
        table.add(result)
        failed = "" if table.allows(result) else "FAILED "
        say(f"{failed}{result.fault}: {result.where}: {result.end}: {result.detail}")

    with borrowed(say) as lab:
        alone = {name: FAULTS[name] for name in wanted if name in FAULTS}
        lab.up(specs() if alone else (), release="old")
        if alone:
            asyncio.run(run(lab, alone, seeds, tell, say))
        for seed in range(seeds):
            for name in (name for name in wanted if name in MEETINGS):
                tell(asyncio.run(meet(name, lab, _CLOUDSTACK_INDEX + seed % 10, seed)))


_CLOUDSTACK_INDEX = 221


def operator_process() -> None:
    """An operator in a process of its own, to be killed: reads who, what and whither on its standard input."""
    run_dir, name, release, order = pickle.loads(sys.stdin.buffer.read())
    machine = Machine(Lab(Path(run_dir)), name)
    asyncio.run(machine.patch(order, release))


if __name__ == "__main__":
    operator_process()
