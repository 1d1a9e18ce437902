"""A lab of system VMs: made, started, broken, looked into and taken down.

Each VM is a Debian that boots its own systemd under systemd-nspawn, on an overlay over one shared root, in a network
namespace that is made anew at each boot. `Lab` works on the run folder and keeps nothing in memory that matters, so
any number of processes (the command line, a test, a demo) may hold one on the same folder.

What it cannot show: a powered-off VM loses its processes and its links at once but not its unsynced writes, for the
page cache is the host's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from ipaddress import IPv4Address
from pathlib import Path

from lab import boots, network, paths, preflight, relay
from lab.cgroups import CgroupTree, started_at
from lab.guest import EXEC_SECONDS, Entry, Guest
from lab.images import SYSTEM_VM, TOOLBOX, Images
from lab.limits import InotifyLimits
from lab.relay import Fault, Relay, RelayError, Traffic
from lab.spec import FABRIC, ROLE_COMMAND, SSH_PORT, VM, LayOut, RedundancyRole, Segment, VMSpec
from lab.state import LabState, MachineRecord, Phase
from lab.toolbox import Toolbox

Progress = Callable[[str], None]

BOOT_SECONDS = 90.0
ELECTION_SECONDS = 60.0
_ELECTION_POLL_SECONDS = 0.3
_ROLE_SECONDS = 10.0
_RELAY_SECONDS = 20
_STOP_SECONDS = 30.0
_POLL_SECONDS = 0.05
_MAKERS = 3
_POWER_OFF_SIGNAL = 4
"""Added to SIGRTMIN: what systemd takes for `poweroff`."""

# Arguments: the VM's name, its folder, then the cgroup folders its guest runs in. Ends when the guest powers off.
_RUN = r"""
name=$1; here=$2; shift 2
export SYSTEMD_NSPAWN_API_VFS_WRITABLE=network
while :; do
    sh "$here/wire.sh" || exit
    (
        self=$(exec sh -c 'echo "$PPID"')
        for dir in "$@"; do echo "$self" > "$dir/cgroup.procs" || exit; done
        exec systemd-nspawn --quiet --boot --settings=no --register=no --keep-unit --machine="$name" \
            --directory="$here/root" --network-namespace-path="/run/netns/$name" --resolv-conf=off --timezone=off \
            --link-journal=no --capability=all --console=pipe </dev/null
    )
    code=$?
    echo "$name: the guest ended with $code"
    [ "$code" = 133 ] || exit "$code"
done
"""


class LabError(Exception):
    """The lab cannot do what was asked. The message says what state it is in and what to do."""


def _nobody(_line: str) -> None:
    """Says nothing."""


class Lab:
    """The system VMs of one run folder."""

    def __init__(
        self,
        run_dir: Path | None = None,
        *,
        cache_dir: Path | None = None,
        lay_out: LayOut | None = None,
        say: Progress = _nobody,
    ) -> None:
        """`lay_out` fills new VMs (default: what makes them CloudStack's); `say` gets one line for each step."""
        self.run_dir = (run_dir or paths.run_dir()).absolute()
        self._cache = (cache_dir or paths.cache_dir()).absolute()
        self._folder = self.run_dir / "machines"
        self._lay_out = lay_out
        self._say = say
        self.id = hashlib.sha256(os.fsencode(self._folder)).hexdigest()[:10]
        self.cgroups = CgroupTree(_tree_name(self.id))
        self.relay = Relay(self._folder / "relay.sock")
        self._images = Images(self._cache, say=say)
        self._limits = InotifyLimits(self._cache, alive=lambda lab: CgroupTree(_tree_name(lab)).exists())

    # -- the lab ---------------------------------------------------------------------------------------------------

    def up(self, specs: Iterable[VMSpec], *, release: str = "") -> None:
        """Makes the lab and its VMs and waits until all have booted.

        A lab of this folder that was never finished is taken down first. Raises LabError when one is up already,
        preflight.LabUnavailable when this machine cannot run one.
        """
        specs = tuple(specs)
        preflight.check()
        started = time.monotonic()
        state = LabState.load(self._state_file)
        if state is not None and state.phase is Phase.UP and self._toolbox_of(state) is not None:
            raise LabError(
                f"a lab is up in {self.run_dir} with {', '.join(state.machines) or 'no VMs'}: take it down first"
            )
        if self._folder.exists() or self.cgroups.exists():
            self._say("an unfinished lab is here: taking it down first")
            self.down()
        self._folder.mkdir(parents=True)
        with self._locked():
            self._make_lab()
        self.add(*specs, release=release)
        self._say(f"{_count(specs)} up ({time.monotonic() - started:.1f} s)")

    def prepare(self) -> None:
        """Builds the package roots if they are not there. Raises preflight.LabUnavailable."""
        preflight.check()
        self._images.get(TOOLBOX)
        self._images.get(SYSTEM_VM)

    def _make_lab(self) -> None:
        state = LabState()
        state.save(self._state_file)
        images = Images(self._cache, say=self._say, enter=self.cgroups.join("lab"))
        toolbox_root, disk = images.get(TOOLBOX), images.get(SYSTEM_VM)
        started = time.monotonic()
        state.disk = str(disk)
        self._limits.hold(self.id)
        log = self._folder / "lab.log"
        shared = (self.run_dir, self._cache)
        toolbox = Toolbox.start(
            toolbox_root, cgroups=self.cgroups, folder=self._folder / "toolbox", log=log, shared=shared
        )
        state.toolbox_pid, state.toolbox_started = toolbox.pid, started_at(toolbox.pid) or 0
        state.save(self._state_file)
        toolbox.run(["ip", "netns", "add", FABRIC])
        toolbox.run(["ip", "-n", FABRIC, "-batch", "-"], text="\n".join(network.fabric_lines()) + "\n")
        toolbox.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "sysvm-lab", "-f", self.private_key])
        state.slot = self._start_relay(toolbox, log)
        state.save(self._state_file)
        self._say(f"networks and relay on 127.77.{state.slot}.0/24 ({time.monotonic() - started:.1f} s)")

    def _start_relay(self, toolbox: Toolbox, log: Path) -> int:
        namespace = toolbox.path(Path("/run/netns") / FABRIC)
        argv: list[str | Path] = [sys.executable, "-I", relay.__file__, "--control", self._folder / "relay.sock"]
        pid = self.cgroups.launch("lab", [*argv, "--namespace", namespace, "--port", str(SSH_PORT)], log=log)
        end = time.monotonic() + _RELAY_SECONDS
        while True:
            try:
                return self.relay.slot()
            except RelayError as silent:
                if started_at(pid) is None or time.monotonic() > end:
                    raise LabError(f"the relay did not start ({silent}); see {log}") from silent
                time.sleep(_POLL_SECONDS)

    def down(self) -> list[str]:
        """Takes everything of this lab away, whatever state it is in. Returns what there was, for a person to read."""
        removed: list[str] = []
        started = time.monotonic()
        with contextlib.suppress(FileNotFoundError):
            names = sorted(each.name for each in (self._folder / "vms").iterdir())
            removed.append(f"{_count(names)} ({', '.join(names)})")
        if killed := self.cgroups.kill():
            # With its last process the lab's mount namespace goes, and with it every mount and network namespace.
            removed.append(f"{killed} processes with their mounts and network namespaces")
        if self.cgroups.remove():
            removed.append(f"cgroup {_tree_name(self.id)}")
        if self._folder.exists():
            subprocess.run(["rm", "-rf", "--one-file-system", "--", self._folder], check=True, timeout=300)
            removed.append(f"folder {self._folder}")
        with contextlib.suppress(OSError):
            self.run_dir.rmdir()
        if self._limits.release(self.id):
            removed.append("raised inotify limits (put back)")
        self._images.sweep()
        if removed:
            self._say(f"the lab is down ({time.monotonic() - started:.1f} s)")
        return removed

    @contextlib.contextmanager
    def changing(self) -> Iterator[tuple[LabState, Toolbox]]:
        """The lab's state to change, while no other process can; saved when the block ends well."""
        with self._locked():
            state, toolbox = self._open()
            yield state, toolbox
            state.save(self._state_file)

    def opened(self) -> tuple[LabState, Toolbox]:
        """The lab's state to read. Raises LabError when no lab is up."""
        return self._open()

    def toolbox(self) -> Toolbox:
        """The lab's mount namespace, for those who make more namespaces in it. Raises LabError when no lab is up."""
        return self._open()[1]

    def is_up(self) -> bool:
        state = LabState.load(self._state_file)
        return state is not None and self._toolbox_of(state) is not None

    # -- what a lab has --------------------------------------------------------------------------------------------

    @property
    def private_key(self) -> Path:
        """The key that root of every VM accepts, made for this run."""
        return self._folder / "id_ed25519"

    @property
    def public_key(self) -> str:
        """Its public line."""
        return self.private_key.with_suffix(".pub").read_text().strip()

    def known_hosts(self) -> str:
        """The VMs' host keys as an OpenSSH known_hosts file, under their relay addresses."""
        return "".join(f"[{vm.relay_address}]:{vm.port} {vm.host_key}\n" for vm in self.vms())

    def vms(self) -> list[VM]:
        state, toolbox = self._open()
        return [self._vm(state, toolbox, record) for record in state.machines.values()]

    def vm(self, name: str) -> VM:
        state, toolbox = self._open()
        return self._vm(state, toolbox, self._record(state, name))

    def release(self, name: str) -> str:
        """The release a VM was laid out with."""
        state, _ = self._open()
        return self._record(state, name).release

    def console(self, name: str) -> str:
        """What a VM wrote on its console."""
        return (self._vm_folder(name) / "console.log").read_text(errors="replace")

    # -- VMs -------------------------------------------------------------------------------------------------------

    def add(self, *specs: VMSpec, release: str = "") -> None:
        """Makes VMs, starts them and waits until they have booted. Raises LabError when a name or index is taken."""
        with self._locked():
            state, toolbox = self._open()
            state.phase = Phase.STARTING
            records = [self._enlist(state, toolbox, spec, release) for spec in specs]
            started = time.monotonic()
            with ThreadPoolExecutor(_MAKERS) as makers:
                list(makers.map(lambda record: self._make(state, toolbox, record), records))
            self._say(f"{_count(records)} laid out ({time.monotonic() - started:.1f} s)")
            for record in records:
                self._start(toolbox, record)
            state.phase = Phase.UP
            state.save(self._state_file)
        self._await_all([spec.name for spec in specs])
        for group in {spec.group for spec in specs if spec.redundant}:
            self.wait_elected(group)

    def _enlist(self, state: LabState, toolbox: Toolbox, spec: VMSpec, release: str) -> MachineRecord:
        taken = {record.spec.index: record.spec.name for record in state.machines.values()}
        if spec.name in state.machines or spec.index in taken:
            raise LabError(
                f"{spec.name} (index {spec.index}): name or index is taken by {taken.get(spec.index, spec.name)}"
            )
        if spec.network not in state.networks:
            number = 1 + max(state.networks.values(), default=0)
            state.networks[spec.network] = number
            toolbox.run(["ip", "-n", FABRIC, "-batch", "-"], text="\n".join(network.guest_lines(number)) + "\n")
        record = MachineRecord(spec, state.networks[spec.network], release)
        state.machines[spec.name] = record
        state.save(self._state_file)
        return record

    def _make(self, state: LabState, toolbox: Toolbox, record: MachineRecord) -> None:
        spec, folder = record.spec, self._vm_folder(record.spec.name)
        disk, root = folder / "disk", folder / "root"
        disk.mkdir(parents=True)
        root.mkdir()
        if spec.tmpfs_mib is not None:
            toolbox.run(["mount", "-t", "tmpfs", "-o", f"size={spec.tmpfs_mib}m", f"disk-{spec.index}", disk])
        toolbox.run(["mkdir", disk / "upper", disk / "work"])
        # Without redirect_dir a folder of the lower layer cannot be renamed or exchanged (EXDEV), as a real disk can.
        layers = f"lowerdir={state.disk},upperdir={disk}/upper,workdir={disk}/work,redirect_dir=on"
        toolbox.run(["mount", "-t", "overlay", "overlay", "-o", layers, root])
        key = folder / "ssh_host_ed25519_key"
        toolbox.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", spec.name, "-f", key])
        record.host_key = key.with_suffix(".pub").read_text().strip()
        vm = self._vm(state, toolbox, record)
        (vm.root / "etc/hostname").write_text(f"{spec.name}\n")
        (vm.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {spec.name}\n")
        self._filler()(vm.root, vm, release=record.release, authorized_key=self.public_key, host_key=key.read_text())
        self.write_wires(vm)
        place = toolbox.path(Path("/run/netns") / next(n.namespace for n in vm.nics if n.segment is Segment.CONTROL))
        self.relay.add(spec.name, spec.index, str(vm.control_address), namespace=place)

    def write_wires(self, vm: VM) -> None:
        """The programs that make a VM's links before a boot, and pull them."""
        folder = self._vm_folder(vm.name)
        (folder / "wire.sh").write_text(network.wire_script(vm.spec, vm.nics))
        (folder / "unwire.sh").write_text(network.unwire_script(vm.spec, vm.nics))

    def _filler(self) -> LayOut:
        if self._lay_out is not None:
            return self._lay_out
        from lab import content  # a VM that a test lays out needs none of it

        return content.lay_out

    def _start(self, toolbox: Toolbox, record: MachineRecord) -> None:
        name = record.spec.name
        guest = self.cgroups.create(f"{name}/guest")
        self.cgroups.launch(
            f"{name}/loop",
            [*toolbox.enter(), "sh", "-c", _RUN, "vm-loop", name, self._vm_folder(name), *guest],
            log=self._vm_folder(name) / "console.log",
        )

    def power_off(self, name: str) -> None:
        """Pulls the plug: the cables first, so that nobody hears a good-bye, then everything that runs."""
        state, toolbox = self._open()
        self._record(state, name)
        toolbox.run(["sh", self._vm_folder(name) / "unwire.sh"])
        self.cgroups.kill(name)

    def stop(self, name: str, *, timeout: float = _STOP_SECONDS) -> None:
        """Shuts a VM down as its own systemd does it, or pulls the plug after `timeout` seconds."""
        init = self._init(name)
        if init is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, signal.SIGRTMIN + _POWER_OFF_SIGNAL)
        end = time.monotonic() + timeout
        while self.cgroups.pids(f"{name}/loop") and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
        self.power_off(name)

    def power_on(self, name: str, *, wait: bool = True) -> None:
        """Starts a VM that is off, with the disk it had."""
        with self._locked():
            state, toolbox = self._open()
            record = self._record(state, name)
            if self.is_on(name):
                raise LabError(f"{name} is on already")
            self._start(toolbox, record)
        if wait:
            self.wait_booted(name)

    def reboot(self, name: str, *, wait: bool = True) -> None:
        """Restarts a VM from the inside. Its disk stays; addresses, rules and processes do not."""
        before = self._init(name)
        if before is None:
            raise LabError(f"{name} does not run, so it cannot reboot: power it on")
        self.exec(name, ["systemctl", "--no-block", "reboot"])
        end = time.monotonic() + _STOP_SECONDS
        while self._init(name) in (before, None):
            if time.monotonic() > end:
                raise LabError(
                    f"{name} did not go down for its reboot in {_STOP_SECONDS:.0f} s{self._last_words(name)}"
                )
            time.sleep(_POLL_SECONDS)
        if wait:
            self.wait_booted(name)

    def remove(self, name: str) -> None:
        """Takes one VM away, with its disk."""
        with self._locked():
            state, toolbox = self._open()
            self._record(state, name)
            self.power_off(name)
            self.cgroups.remove(name)
            self.relay.remove(name)
            folder = self._vm_folder(name)
            toolbox.run(["umount", folder / "root"])
            if state.machines[name].spec.tmpfs_mib is not None:
                toolbox.run(["umount", folder / "disk"])
            del state.machines[name]
            state.save(self._state_file)
            subprocess.run(["rm", "-rf", "--one-file-system", "--", folder], check=True, timeout=300)

    def is_on(self, name: str) -> bool:
        """Whether a VM has power: it runs, boots, or is between two boots."""
        return bool(self.cgroups.pids(f"{name}/loop"))

    def wait_booted(
        self, name: str, *, timeout: float = BOOT_SECONDS, given_up: threading.Event | None = None
    ) -> float:
        """Waits for this boot's BOOT_MARKER and for systemd to be done. Returns the seconds since PID 1 started.

        Failed units are no reason to wait for ever: `degraded` is booted. Raises LabError with the console's end.
        """
        given_up = given_up or threading.Event()
        end = time.monotonic() + timeout
        while time.monotonic() < end and not given_up.wait(_POLL_SECONDS):
            if not self.is_on(name):
                raise LabError(f"{name} went off while it booted{self._last_words(name)}")
            init = self._init(name)
            if init is not None and boots.is_marked(init) and boots.systemd_is_done(name, init):
                return boots.seconds_since(init)
        raise LabError(f"{name} has not booted in {timeout:.0f} s{self._last_words(name)}")

    def role(self, name: str) -> RedundancyRole:
        """What a redundant router says it is. UNKNOWN also when it is off or has nothing that could tell."""
        if not self.is_on(name):
            return RedundancyRole.UNKNOWN
        answer = self.exec(name, [ROLE_COMMAND], check=False, timeout=_ROLE_SECONDS).stdout
        words = re.findall(r"Status:\s*([A-Z]+)", answer)
        return RedundancyRole(words[0]) if words and words[0] in list(RedundancyRole) else RedundancyRole.UNKNOWN

    def wait_elected(self, group: str | None, *, timeout: float = ELECTION_SECONDS) -> None:
        """Waits until the pair of a group has one PRIMARY and the rest are BACKUP.

        A group without two redundant VMs, or whose VMs were laid out without ROLE_COMMAND, has nothing to wait for.
        Raises LabError with the roles.
        """
        members = [vm.name for vm in self.vms() if vm.spec.redundant and vm.spec.group == group]
        if len(members) < 2 or any(
            self.exec(name, ["test", "-x", ROLE_COMMAND], check=False).returncode for name in members
        ):
            return
        started = time.monotonic()
        wanted = sorted([RedundancyRole.PRIMARY, *[RedundancyRole.BACKUP] * (len(members) - 1)])
        while sorted(roles := [self.role(name) for name in members]) != wanted:
            if time.monotonic() - started > timeout:
                told = ", ".join(f"{name} {role}" for name, role in zip(members, roles, strict=True))
                raise LabError(f"the routers of {group} have not agreed on a PRIMARY in {timeout:.0f} s: {told}")
            time.sleep(_ELECTION_POLL_SECONDS)
        primary = members[roles.index(RedundancyRole.PRIMARY)]
        self._say(f"{primary} is PRIMARY of {group} ({time.monotonic() - started:.1f} s)")

    def _await_all(self, names: Sequence[str]) -> None:
        """Waits for VMs side by side; the first that fails, or an interrupt, ends the waiting for all."""
        given_up = threading.Event()

        def wait(name: str) -> None:
            self._say(f"{name} booted ({self.wait_booted(name, given_up=given_up):.1f} s)")

        with ThreadPoolExecutor(max(1, len(names))) as waiters:
            try:
                for done in as_completed([waiters.submit(wait, name) for name in names]):
                    done.result()
            except BaseException:
                given_up.set()
                raise

    # -- inside a VM -----------------------------------------------------------------------------------------------

    def guest(self, name: str) -> Guest:
        """The inside of a VM, on or off."""
        init = self._init(name)
        if init is not None:
            return Guest.running(name, init)
        state, toolbox = self._open()
        self._record(state, name)
        return Guest.off(name, toolbox.enter(), self._vm_folder(name) / "root")

    def exec(
        self,
        name: str,
        command: str | Sequence[str],
        *,
        check: bool = True,
        text: str | None = None,
        timeout: float = EXEC_SECONDS,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command in a VM through its namespaces (not over ssh): see `Guest.exec`."""
        return self.guest(name).exec(command, check=check, text=text, timeout=timeout)

    def read_bytes(self, name: str, path: str) -> bytes:
        return self.guest(name).read_bytes(path)

    def write_bytes(self, name: str, path: str, content: bytes) -> None:
        self.guest(name).write_bytes(path, content)

    def snapshot_tree(self, name: str, tops: Iterable[str], *, times: bool = False) -> dict[str, Entry]:
        return self.guest(name).snapshot_tree(tops, times=times)

    def ssh_command(self, name: str, command: Sequence[str] = ()) -> list[str]:
        """The host's command line that logs in to a VM over the relay, as an operator on this host would."""
        _, toolbox = self._open()
        vm = self.vm(name)
        known = self._folder / "known_hosts"
        partial = known.with_name(f"known_hosts.{os.getpid()}.{threading.get_ident()}")
        partial.write_text(self.known_hosts())
        partial.replace(known)
        options = {
            "UserKnownHostsFile": str(known),
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "BatchMode": "yes",
            "LogLevel": "ERROR",
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        login = ["ssh", *flags, "-i", str(self.private_key), "-p", str(vm.port), f"root@{vm.relay_address}"]
        return [*toolbox.enter(), f"TERM={os.environ.get('TERM', 'dumb')}", *login, *command]

    # -- the wire --------------------------------------------------------------------------------------------------

    def fault(self, name: str, fault: Fault | str, *, delay_seconds: float = 0.0) -> None:
        """Breaks or heals the wire between the host and a VM: see `Fault`."""
        self._record(self._open()[0], name)
        self.relay.fault(name, Fault(fault), delay_seconds=delay_seconds)

    def faults(self) -> dict[str, str]:
        return self.relay.faults()

    def traffic(self, name: str) -> Traffic:
        """What the wire to a VM has carried since the VM was made."""
        self._record(self._open()[0], name)
        return self.relay.traffic(name)

    # -- inner -----------------------------------------------------------------------------------------------------

    @property
    def _state_file(self) -> Path:
        return self._folder / "state.json"

    def _vm_folder(self, name: str) -> Path:
        return self._folder / "vms" / name

    def _open(self) -> tuple[LabState, Toolbox]:
        state = LabState.load(self._state_file)
        toolbox = None if state is None else self._toolbox_of(state)
        if state is None or toolbox is None:
            raise LabError(f"no lab is up in {self.run_dir}: bring one up first")
        return state, toolbox

    @staticmethod
    def _toolbox_of(state: LabState) -> Toolbox | None:
        if not state.toolbox_pid or started_at(state.toolbox_pid) != state.toolbox_started:
            return None
        return Toolbox(state.toolbox_pid)

    @staticmethod
    def _record(state: LabState, name: str) -> MachineRecord:
        try:
            return state.machines[name]
        except KeyError:
            raise LabError(f"there is no VM {name!r} in the lab; there are: {', '.join(state.machines)}") from None

    def _vm(self, state: LabState, toolbox: Toolbox, record: MachineRecord) -> VM:
        nics = network.nics_of(record.spec, network=record.network, hosts=state.hosts)
        control = next(nic.address for nic in nics if nic.segment is Segment.CONTROL)
        assert control is not None
        return VM(
            spec=record.spec,
            nics=nics,
            control_address=control.ip,
            relay_address=IPv4Address(network.relay_address(state.slot, record.spec.index)),
            host_key=record.host_key,
            root=toolbox.path(self._vm_folder(record.spec.name) / "root"),
        )

    def _init(self, name: str) -> int | None:
        return boots.init_of(self.cgroups.pids(f"{name}/loop"))

    def _last_words(self, name: str) -> str:
        lines = [line for line in self.console(name).splitlines() if line.strip()][-5:]
        return f"; its console ends: {' / '.join(lines)}" if lines else "; its console is empty"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process changes a lab at a time; the kernel lets go when that process dies."""
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def _tree_name(lab: str) -> str:
    return f"sysvm-lab-{lab}"


def _count(vms: Sequence[object]) -> str:
    return f"{len(vms)} VM" if len(vms) == 1 else f"{len(vms)} VMs"
