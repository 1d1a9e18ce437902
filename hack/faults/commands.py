"""Commands of the management server, fired on a schedule while a router is patched: none may fail, no bag lose a key.

One is due every 50 ms, whatever became of those before: who is late is counted as late. Of three, one writes data bags;
these follow one another, as the management server sends them to a router (two at once lose keys without anybody's
patch). The others look, beside them and each other. Each takes a new connection to sshd. Nine of ten go a short way
that two cores can keep up with: the connection is opened and sshd's greeting read (so that the hold of new connections
holds them, too), then a process that stands ready in the VM forks and runs the script under its own name. The tenth
goes through ssh as a whole.

Every module that a command imports says which release it is of, and refuses any other.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import asyncssh

from lab import Lab
from lab.content import releases

EVERY_SECONDS = 0.05
LANES = 3
"""The first writes bags, the others look."""
WHOLE = 10
"""Every so many go through ssh as a whole."""
BAGS = ("cmdline", "dhcpentry", "ips", "loadbalancer", "monitorservice", "vmdata", "forwardingrules")
MODULES = ("cs/CsHelper.py", "cs/CsFile.py", "cs/CsNetfilter.py", "merge.py", "cs_forwardingrules.py")
_BIN = "/opt/cloud/bin/"
_PAD = "x" * 200

# Runs in the VM. Modules of the standard library only are read before the fork.
_READY = r"""
import argparse, base64, collections, copy, ctypes, datetime, errno, fcntl, glob, hashlib, ipaddress, json, logging
import logging.handlers, os, pprint, random, re, runpy, shutil, signal, socket, string, subprocess, sys, syslog
import tempfile, threading, time, traceback, urllib.request, uuid
def called(words):
    # As `ps` shows a script that was started anew: that is how it is told from others.
    numbers = open("/proc/self/stat").read().rsplit(")", 1)[1].split()
    start, end = int(numbers[45]), int(numbers[46])
    name = b"\0".join(word.encode() for word in words) + b"\0"
    ctypes.memmove(start, (name + bytes(end - start))[:end - start - 1] + b"\0", end - start)
for line in sys.stdin:
    argv, lay = json.loads(line)
    if lay:
        with open(lay[0], "w") as file:
            file.write(lay[1])
    if not argv:
        sys.stdout.write("{}\n")
        sys.stdout.flush()
        continue
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 126
        try:
            os.setsid()
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.chdir(os.path.dirname(argv[0]))
            if not argv[0].endswith(".py"):
                os.execv(argv[0], argv)
            called(["/usr/bin/python"] + argv)
            sys.argv, sys.path[:0] = argv, [os.path.dirname(argv[0])]
            try:
                runpy.run_path(argv[0], run_name="__main__")
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        text = said.read().decode("utf-8", "replace")
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if hasattr(os, "waitstatus_to_exitcode") else 0
    sys.stdout.write(json.dumps({"code": code, "said": text[-600:]}) + "\n")
    sys.stdout.flush()
"""


def release(number: int) -> releases.Release:
    """One whose modules do not go together with those of any other."""
    start = releases.old()
    folder = "opt/cloud/bin/"
    word = f"\nRELEASE = {number}\n".encode()
    change = {folder + name: start.scripts[folder + name] + word for name in MODULES}
    names = [name.removesuffix(".py").replace("/", ".") for name in MODULES]
    check = "".join(f"import {name}\nassert {name}.RELEASE == {number}, 'mixed: {name}'\n" for name in names)
    for name in ("configure.py", "update_config.py", "filesystem_writable_check.py"):
        script = start.scripts[folder + name]
        at = script.index(b"\nimport ")
        # Late imports too, as a script has them that finds its modules while it works.
        change[folder + name] = script[:at] + b"\n" + check.encode() + script[at:]
    return start.derive(f"commands-{number}", change=change)


def address(number: int) -> str:
    """The key that the `number`-th push adds to its bag."""
    return f"198.{51 + number // 62500}.{number // 250 % 250}.{number % 250}"


@dataclass(frozen=True)
class Command:
    """`name` of the script; what is laid ready for it (path and text); its words."""

    name: str
    argv: tuple[str, ...]
    lay: tuple[str, str] | None = None


def pushes() -> Iterator[Command]:
    """What changes bags and what reads them, in turn, each push with one key more."""
    for number in itertools.count():
        push = json.dumps({"type": "forwardrules", address(number): []})
        name = f"forwarding_rules.json.{number}"
        yield Command("update_config.py", (_BIN + "update_config.py", name), (f"/var/cache/cloud/{name}", push))
        yield Command("configure.py", (_BIN + "configure.py", "monitor_service.json"))
        path = f"/var/cache/cloud/VR-{number}.cfg"
        script = f"<script>\n{_BIN}configure.py forwarding_rules.json\n</script>\n"
        yield Command("vr_cfg.sh", (_BIN + "vr_cfg.sh", "-c", path), (path, script))


def looks() -> Iterator[Command]:
    """What only reads: one of them imports the modules that a patch exchanges."""
    while True:
        for name in ("filesystem_writable_check.py", "checkrouter.sh", "get_template_version.sh"):
            yield Command(name, (_BIN + name,))


@dataclass
class Commands:
    """Fires at one router until stopped; what was done, what failed, how late.

    Attributes:
        done: by script.
        failures: name, exit code and last words, or what became of the connection.
        longest_delay: seconds from when a command was due until it was begun.
        slowest: seconds from its connection to its end.
    """

    lab: Lab
    name: str
    every_seconds: float = EVERY_SECONDS
    done: Counter[str] = field(default_factory=Counter)
    whole: int = 0
    failures: list[str] = field(default_factory=list)
    longest_delay: float = 0.0
    slowest: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def rate(self) -> float:
        """Commands a second."""
        return sum(self.done.values()) / max(0.001, self.ended - self.began)

    def text(self) -> str:
        """For people."""
        total = sum(self.done.values())
        return (
            f"{total} commands, {self.rate:.1f}/s of {1 / self.every_seconds:.0f}/s due, {self.whole} through ssh "
            f"as a whole, {len(self.failures)} failed, longest delay {self.longest_delay:.2f} s, "
            f"slowest {self.slowest:.2f} s"
        )

    async def fire(self) -> None:
        """Until `stop`; keeps to the schedule as well as the machine can."""
        self.began = time.monotonic()
        async with asyncio.TaskGroup() as lanes:
            for number in range(LANES):
                lanes.create_task(self._lane(looks() if number else pushes(), number * self.every_seconds))
        self.ended = time.monotonic()

    async def _lane(self, commands: Iterator[Command], late: float) -> None:
        ready = await asyncio.create_subprocess_exec(
            *self.lab.guest(self.name).command(["python3", "-I", "-c", _READY, _PAD]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            for number, command in enumerate(commands):
                due = self.began + late + number * LANES * self.every_seconds
                if self.stop.is_set():
                    return
                if (early := due - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                await self._one(ready, command, due, number % WHOLE == WHOLE - 1)
        finally:
            # Killing the way in would leave the process in the VM: it ends with what it reads.
            assert ready.stdin is not None
            ready.stdin.close()
            await ready.wait()

    async def _one(self, ready: asyncio.subprocess.Process, command: Command, due: float, whole: bool) -> None:
        began = time.monotonic()
        self.longest_delay = max(self.longest_delay, began - due)
        try:
            async with asyncio.timeout(30):
                code, said = await (self._through_ssh if whole else self._short)(ready, command)
        except (OSError, asyncssh.Error, TimeoutError, ValueError) as error:
            self.failures.append(f"{command.name}: {type(error).__name__} {error}")
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.done[command.name] += 1
        self.whole += whole
        if code != 0 or "Traceback" in said:
            self.failures.append(f"{command.name}: {code} {said[-600:]}")

    async def _short(self, ready: asyncio.subprocess.Process, command: Command) -> tuple[int, str]:
        vm = self.lab.vm(self.name)
        reader, writer = await asyncio.open_connection(str(vm.relay_address), vm.port)
        try:
            if not (await reader.readline()).startswith(b"SSH-2.0"):
                raise OSError("sshd does not greet")
            answer = await _asked(ready, command.argv, command.lay)
            # vr_cfg.sh has emptied the connection table, and an end without an entry there is dropped: sshd would wait
            # two minutes. Words that it does not understand make the connection known again, and sshd ends it.
            writer.write(b"SSH-2.0-commands\r\n" + b"x" * 256)
            await reader.read()
        finally:
            writer.close()
        return answer["code"], answer["said"]

    async def _through_ssh(self, ready: asyncio.subprocess.Process, command: Command) -> tuple[int, str]:
        vm = self.lab.vm(self.name)
        await _asked(ready, (), command.lay)
        async with asyncssh.connect(
            str(vm.relay_address),
            vm.port,
            username="root",
            client_keys=[str(self.lab.private_key)],
            known_hosts=asyncssh.import_known_hosts(self.lab.known_hosts()),
            config=None,
        ) as connection:
            result = await connection.run(f"cd {_BIN} && {' '.join(command.argv)}")
        return result.exit_status or 0, f"{result.stdout!s}{result.stderr!s}"


async def _asked(
    ready: asyncio.subprocess.Process, argv: tuple[str, ...], lay: tuple[str, str] | None
) -> dict[str, Any]:
    assert ready.stdin is not None
    assert ready.stdout is not None
    ready.stdin.write(json.dumps([argv, lay]).encode() + b"\n")
    answer: dict[str, Any] = json.loads(await ready.stdout.readline())
    return answer


def keys(lab: Lab, name: str) -> dict[str, set[str]]:
    """What each bag of a router has."""
    found = {}
    for bag in BAGS:
        text = lab.exec(name, ["cat", f"/etc/cloudstack/{bag}.json"], check=False).stdout
        found[bag] = set(json.loads(text)) if text else set()
    return found


def lost(lab: Lab, name: str, before: dict[str, set[str]], commands: Commands) -> list[str]:
    """What bags lack that they had, or that was pushed into them; what the log says of bags that could not be read."""
    after = keys(lab, name)
    gone = [f"{bag}: {sorted(before[bag] - after[bag])[:5]}" for bag in BAGS if before[bag] - after[bag]]
    pushed = {address(number) for number in range(commands.done["update_config.py"])}
    gone += (
        [f"never arrived: {sorted(pushed - after['forwardingrules'])[:5]}"] if pushed - after["forwardingrules"] else []
    )
    unread = lab.exec(name, "grep -c 'data bag' /var/log/cloud.log", check=False).stdout.strip()
    return gone + ([f"{unread} times a bag could not be read"] if unread not in ("", "0") else [])
