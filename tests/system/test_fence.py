"""Commands of the management server go on while a router is patched: none fails, no bag loses a key.

They are fired as the management server does it: one after the other for each router, each over an ssh connection of its
own, here every 50 ms at most. Every module that a command imports says which release it is of, and refuses the other.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import asyncssh
import pytest
from tests.system.test_live_patch import payload, target, told

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import releases
from sysvm.patching.live import LivePatcher
from sysvm.patching.results import JournalPhase, OperationReport, Order

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

NAME = "r-71-VM"
EVERY_SECONDS = 0.05
PATCHES = 3
BAGS = ("cmdline", "dhcpentry", "ips", "loadbalancer", "monitorservice", "vmdata", "forwardingrules")
MODULES = ("cs/CsHelper.py", "cs/CsFile.py", "cs/CsNetfilter.py", "merge.py", "cs_forwardingrules.py")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("fence"))
    try:
        made.up([VMSpec(name=NAME, type=SystemVMType.ROUTER, index=71, group="net-71")], release="old")
        yield made
    finally:
        made.down()


def release(number: int) -> releases.Release:
    """One whose modules do not go together with those of any other."""
    start = releases.old()
    folder = "opt/cloud/bin/"
    word = f"\nRELEASE = {number}\n".encode()
    change = {folder + name: start.scripts[folder + name] + word for name in MODULES}
    names = [name.removesuffix(".py").replace("/", ".") for name in MODULES]
    check = "".join(f"import {name}\nassert {name}.RELEASE == {number}, 'mixed: {name}'\n" for name in names)
    for name in ("configure.py", "update_config.py"):
        script = start.scripts[folder + name]
        at = script.index(b"\nimport ")
        # Late imports too, as a script has them that finds its modules while it works.
        change[folder + name] = script[:at] + b"\n" + check.encode() + script[at:]
    return start.derive(f"fence-{number}", change=change)


@dataclass
class Commands:
    """What was fired and what failed."""

    lab: Lab
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def lane(self, commands: Iterator[tuple[str, str]]) -> None:
        for name, command in commands:
            if self.stop.is_set():
                return
            began = time.monotonic()
            await self.fire(name, command)
            took = time.monotonic() - began
            self.slowest_seconds = max(self.slowest_seconds, took)
            await asyncio.sleep(max(0.0, EVERY_SECONDS - took))

    async def fire(self, name: str, command: str) -> None:
        vm = self.lab.vm(NAME)
        try:
            async with (
                asyncio.timeout(30),
                asyncssh.connect(
                    str(vm.relay_address),
                    vm.port,
                    username="root",
                    client_keys=[str(self.lab.private_key)],
                    known_hosts=asyncssh.import_known_hosts(self.lab.known_hosts()),
                    config=None,
                ) as connection,
            ):
                result = await connection.run(command)
        except (OSError, asyncssh.Error, TimeoutError) as error:
            self.failures.append(f"{name}: {type(error).__name__} {error}")
            return
        self.done[name] += 1
        said = f"{result.stdout}{result.stderr}"
        if result.exit_status != 0 or "Traceback" in said:
            self.failures.append(f"{name}: {result.exit_status} {said[-600:]}")


def address(number: int) -> str:
    return f"198.51.{100 + number // 250}.{number % 250}"


def pushes() -> Iterator[tuple[str, str]]:
    """What changes bags and what reads them, in turn, each push with one key more."""
    for number in itertools.count():
        push = json.dumps({"type": "forwardrules", address(number): []})
        path = f"/var/cache/cloud/forwarding_rules.json.{number}"
        yield (
            "update_config.py",
            f"echo '{push}' > {path} && /opt/cloud/bin/update_config.py forwarding_rules.json.{number}",
        )
        yield "configure.py", "cd /opt/cloud/bin && ./configure.py monitor_service.json"
        script = "<script>\\n/opt/cloud/bin/configure.py forwarding_rules.json\\n</script>\\n"
        path = f"/var/cache/cloud/VR-{number}.cfg"
        yield "vr_cfg.sh", f"printf '{script}' > {path} && /opt/cloud/bin/vr_cfg.sh -c {path}"


def looks() -> Iterator[tuple[str, str]]:
    while True:
        yield "checkrouter.sh", "/opt/cloud/bin/checkrouter.sh"


def keys(lab: Lab) -> dict[str, set[str]]:
    found = {}
    for bag in BAGS:
        text = lab.exec(NAME, ["cat", f"/etc/cloudstack/{bag}.json"], check=False).stdout
        found[bag] = set(json.loads(text)) if text else set()
    return found


@pytest.mark.timeout(300)
async def test_commands_fired_every_50_ms_during_patches_neither_fail_nor_lose_a_key(lab: Lab) -> None:
    before = keys(lab)
    commands = Commands(lab)
    reports: list[OperationReport] = []
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(commands.lane(pushes()))
        tasks.create_task(commands.lane(looks()))
        try:
            for number in range(1, PATCHES + 1):
                order = Order(
                    id=f"fence-{number}-{time.time_ns()}",
                    epoch=1,
                    keep_backups=1,
                    settle_seconds=0.5,
                    ignored_checks=(),
                    step_timeout_seconds=120,
                    vm_timeout_seconds=300,
                )
                wanted = payload(release(number))
                reports.append(await LivePatcher().patch(target(lab, NAME), wanted, order, lambda _: None))
        finally:
            commands.stop.set()
    for report in reports:
        said = {step.name: step.message for step in report.steps}
        print(report.id, report.phase, f"{time.monotonic() - began:.1f} s;", said.get("Fence"), ";", said.get("Switch"))
    print(f"{sum(commands.done.values())} commands {dict(commands.done)}, {len(commands.failures)} failed,", end=" ")
    print(f"slowest {commands.slowest_seconds:.2f} s, {PATCHES} patches in {time.monotonic() - began:.1f} s")
    for report in reports:
        assert report.phase is JournalPhase.COMMITTED, told(report)
    assert not commands.failures, commands.failures[:5]
    assert commands.done["update_config.py"] >= PATCHES, commands.done
    after = keys(lab)
    lost = {bag: before[bag] - after[bag] for bag in BAGS if before[bag] - after[bag]}
    assert not lost
    pushed = {address(number) for number in range(commands.done["update_config.py"])}
    assert pushed <= after["forwardingrules"], "every push is in its bag"
    log = lab.exec(NAME, "grep -c 'data bag' /var/log/cloud.log", check=False).stdout.strip()
    assert log in ("", "0"), "a bag could not be read"
    left = lab.exec(NAME, "nft list tables; ls /tmp/*-biglock.lock", check=False).stdout
    assert "sysvm_fence" not in left
    assert "biglock" not in left
