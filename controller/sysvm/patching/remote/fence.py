"""Nobody else's command runs while files are exchanged.

CloudStack takes no lock for what it does on a VM: each of its commands is a new ssh. So the VM must be quiet at the
moment of the switch, and stay so: for at most a second new connections to sshd are dropped in the kernel, which lets
them in again by itself when the time is up, also if this program dies; the other end asks again after one second.
Connections that exist are not touched. The lock of CloudStack's older shell scripts is taken in their own way.
"""

import os
import re
import time

from . import actors, files
from .failures import Failure
from .journal import Wait

QUIET_SECONDS = 120.0
LOCK_SECONDS = 30.0
HOLD_SECONDS = 1
CLOSING_SECONDS = 0.6
"""Within a hold, how long commands that have begun may take to end; the rest of it is for the switch."""
PAUSE_SECONDS = 2.0
"""Between two holds: whoever was held has asked again by then."""
LONG_COMMAND_SECONDS = 5.0
"""A command older than this will not end within a hold: nobody is held for it."""
STRADDLING_SECONDS = 10.0
POLL_SECONDS = 0.02
SCRIPT_NAME = re.compile(r"[\w-]+\.(?:py|sh)\b|keystore-[a-z-]+")
LOCK_FOLDER = "/tmp"
LOCK_NAME = re.compile(r"^([0-9]+)-([0-9]+)-biglock\.lock$")
TABLE = "sysvm_fence"
SAVED_RULES = ("/etc/iptables/rules.v4", "/etc/iptables/rules.v6", "/etc/iptables/rules.nftables")
DEFAULT_PORT = 22


class Fence(object):
    """Closed from the end of the step Fence to the end of the switch; `open` may be called at any time, and again."""

    def __init__(self, host, journal):
        self.host = host
        self.journal = journal
        self.lock = BigLock(host)
        self.hold = SynHold(host)
        self.waited_for = set()
        self.waited_seconds = 0.0

    def close(self, deadline):
        """Returns a sentence. Raises `Failure` VMBusy: nothing is held then."""
        began = time.monotonic()
        # The record first: whoever finds it removes the lock, which CloudStack's scripts would wait for until a boot.
        self.journal.add("fence", lock=self.lock.path)
        self.lock.take(deadline)
        locked = time.monotonic() - began
        self.quiet(deadline)
        text = "CloudStack's commands were waited for {0:.1f} s".format(self.waited_seconds)
        if self.waited_for:
            text += " (" + ", ".join(sorted(self.waited_for)[:5]) + ")"
        if locked >= 0.1:
            text += ", its lock {0:.1f} s".format(locked)
        idle = actors.never_logged_in(self.host)
        if idle:
            text += "; {0} connections to sshd that do not log in were not waited for".format(idle)
        return text + "; " + self.hold.sentence()

    def quiet(self, deadline, seconds=None):
        """Nothing of CloudStack's runs, and nothing new can begin. Raises `Failure` VMBusy."""
        self.hold.end()
        began = time.monotonic()
        end = began + min(QUIET_SECONDS if seconds is None else seconds, deadline.left())
        wait = Wait(self.journal, "CloudStack's commands to end", end - began)
        while True:
            wait.goes_on()
            busy = self.pause(end)
            if not busy or not any(process.age > LONG_COMMAND_SECONDS for process in busy):
                self.hold.begin()
                if self.ended(min(CLOSING_SECONDS, max(0.0, end - time.monotonic()))):
                    break
                self.hold.end()
            if time.monotonic() >= end:
                self.open()
                told = "; ".join(process.text for process in busy[:3]) or "new ones began all the time"
                raise Failure("VMBusy", "CloudStack's commands did not end within the time: " + told)
        self.waited_seconds += time.monotonic() - began

    def pause(self, end):
        """Without a hold: until nothing runs, for a while. What still runs then."""
        stop = min(end, time.monotonic() + PAUSE_SECONDS)
        while True:
            busy = self.look()
            if not busy or time.monotonic() >= stop:
                return busy
            self.host.wait(5 * POLL_SECONDS)

    def ended(self, seconds):
        """Whether nothing runs at two looks: a connection that sshd is just about to accept shows at the second."""
        end = time.monotonic() + seconds
        quiet = 0
        while True:
            quiet = 0 if self.look() or actors.arriving(self.host, self.hold.ports) else quiet + 1
            if quiet == 2:
                return True
            if time.monotonic() >= end:
                return False
            self.host.wait(POLL_SECONDS if not quiet else 2 * POLL_SECONDS)

    def look(self):
        busy = actors.busy(self.host)
        for process in busy:
            if actors.is_command(process):
                names = SCRIPT_NAME.findall(" ".join(process.argv[:4]))
                self.waited_for.add(names[0] if names else os.path.basename(process.argv[0]))
        return busy

    def open(self):
        """What began while the files were exchanged is waited for by `straddled`."""
        self.hold.end()
        self.lock.release()

    def straddled(self):
        """Wait for commands that began before the new files were all in place. They are few or none."""
        begun = actors.commands(self.host)
        end = time.monotonic() + STRADDLING_SECONDS
        while begun and time.monotonic() < end:
            self.host.wait(5 * POLL_SECONDS)
            running = actors.commands(self.host)
            begun = dict((key, process) for key, process in begun.items() if key in running)
        if begun:
            text = "began before the switch and still runs: " + "; ".join(one.text for one in begun.values())
            self.journal.add("note", text=text[:500])


# ------------------------------------------------------------------------------------------ biglock


class BigLock(object):
    """CloudStack 4.21 func.sh getLockFile: `/tmp/<nanoseconds>-<pid>-biglock.lock`, the first by name holds it."""

    def __init__(self, host):
        self.host = host
        name = "{0}-{1}-biglock.lock".format(int(time.time() * 1000000000), os.getpid())
        self.path = os.path.join(host.resolve(LOCK_FOLDER), name)

    def take(self, deadline):
        """Raises `Failure` VMBusy after 30 s. Where there is no /tmp, nobody can hold it."""
        folder, name = os.path.split(self.path)
        if not os.path.isdir(folder):
            return
        files.write_new(self.path, ["{0}\n".format(os.getpid()).encode()], 0o644)
        end = time.monotonic() + min(LOCK_SECONDS, deadline.left())
        while True:
            holder = self.before(folder, name)
            if holder is None:
                return
            if time.monotonic() >= end:
                self.release()
                raise Failure("VMBusy", "a script of CloudStack's keeps its lock: " + holder)
            self.host.wait(0.1)

    def before(self, folder, mine):
        """Name of a lock that comes before ours and whose process lives; a dead one keeps nobody."""
        for name in sorted(os.listdir(folder)):
            match = LOCK_NAME.match(name)
            if name == mine:
                return None
            if match and self.host.proc(match.group(2) + "/stat") is not None:
                return name
        return None

    def release(self):
        files.unlink_if_there(self.path)


# ------------------------------------------------------------------------------------------ new connections


class SynHold(object):
    """New connections to sshd are dropped while the element of a set lives, which the kernel ends by itself.

    In a table of its own, so that no rule of CloudStack's is touched and everything goes with one command.
    """

    RULES = (
        "add table inet {table}; "
        "add set inet {table} ports {{ type inet_service; flags timeout; }}; "
        "add chain inet {table} input {{ type filter hook input priority -200; policy accept; }}; "
        "flush chain inet {table} input; "
        "add rule inet {table} input tcp flags & (fin | syn | rst | ack) == syn tcp dport @ports counter drop; "
        "add element inet {table} ports {{ {ports} }}"
    )

    def __init__(self, host):
        self.host = host
        self.ports = ports_of_sshd(host)
        self.why_not = None if host.filters_packets() else "nft is missing"
        self.since = None

    def begin(self):
        if self.why_not is not None:
            return
        ports = ", ".join("{0} timeout {1}s".format(port, HOLD_SECONDS) for port in self.ports)
        began = time.monotonic()
        done = self.host.run(["nft", self.RULES.format(table=TABLE, ports=ports)], 10.0)
        if done.ok:
            self.since = began
        else:
            self.why_not = done.output.strip().split("\n")[0][:200] or "nft failed"
            remove_table(self.host)

    def renew(self):
        """Another second from now, for what takes longer than one. A refusal only means that the hold ends earlier."""
        if self.since is None:
            return
        ports = ", ".join("{0} timeout {1}s".format(port, HOLD_SECONDS) for port in self.ports)
        text = "flush set inet {table} ports; add element inet {table} ports {{ {ports} }}"
        self.host.run(["nft", text.format(table=TABLE, ports=ports)], 10.0)

    def end(self):
        if self.since is None:
            return
        remove_table(self.host)
        self.since = None

    @property
    def seconds(self):
        return 0.0 if self.since is None else time.monotonic() - self.since

    def sentence(self):
        if self.why_not is None:
            return "new ssh connections are held for at most {0} s".format(HOLD_SECONDS)
        return "new ssh connections are not held ({0})".format(self.why_not)


def ports_of_sshd(host):
    """CloudStack 4.21 sshd_config: `Port 3922`, on the control interface."""
    ports = []
    for line in (host.text("/etc/ssh/sshd_config") or "").splitlines():
        words = line.split()
        if len(words) > 1 and words[0].lower() == "port" and words[1].isdigit():
            ports.append(int(words[1]))
        elif words and words[0].lower() == "match":
            break
    return sorted(set(ports)) or [DEFAULT_PORT]


def remove_table(host):
    host.run(["nft", "delete table inet " + TABLE], 10.0)


# ------------------------------------------------------------------------------------------ what a crash left


def clean(host, records):
    """Remove the lock and the table of an operation that was killed, and the table from rules that were saved
    meanwhile. May be called any number of times. Returns notes."""
    locks = set(record["lock"] for record in records if record["kind"] == "fence")
    for path in locks:
        files.unlink_if_there(path)
    if not locks:
        return []
    if host.filters_packets():
        remove_table(host)
    return clean_saved(host)


def clean_saved(host):
    """CloudStack's commands save all live rules (CloudStack 4.21 CsNetfilter.py): ours must not be among them."""
    notes = []
    for path in SAVED_RULES:
        real = host.at(path)
        text = files.read_text(real)
        if text is None or TABLE not in text:
            continue
        found = os.stat(real)
        files.replace_with(real, without_table(text).encode("utf-8"), found.st_mode & 0o7777)
        files.set_owner(real, found.st_uid, found.st_gid)
        notes.append("{0} had been saved with the fence's own table in it, which was taken out".format(path))
    return notes


def without_table(text):
    """The rules without the block of our table."""
    kept = []
    inside = False
    for line in text.splitlines(True):
        if not inside and re.match(r"^\s*table\s+inet\s+{0}\b".format(TABLE), line):
            inside = True
        if not inside and TABLE not in line:
            kept.append(line)
        if inside and line.rstrip() == "}":
            inside = False
    return "".join(kept)
