"""Who else works on this VM: CloudStack's own live patch, its commands, and what they left lying."""

import os
import re
import time

from . import files

BOOT_PAYLOADS = ("/var/cache/cloud/cloud-scripts.tgz", "/var/cache/cloud/agent.zip")
"""The next boot installs what lies here, whatever came since (CloudStack 4.21 cloud-early-config)."""
STAGED = BOOT_PAYLOADS + ("/var/cache/cloud/patch-sysvms.sh", "/var/cache/cloud/bkpup_live_patch")
"""CloudStack 4.21 patch-sysvms.sh: where it is staged and what it saves."""
STALE_SECONDS = 1800
SIGNATURE = "/var/cache/cloud/cloud-scripts-signature"
PAYLOAD = "/usr/share/cloud/cloud-scripts.tgz"
PATCHING = re.compile(r"^patch-sysvms\.sh$")
COMMANDS = re.compile(r"^(configure\.py|update_config\.py|vr_cfg\.sh|configure_router\.py|keystore-[a-z-]+)$")
"""Commands of the management server that are started by a relative path too."""
SCRIPTS = ("/opt/cloud/bin", "/root/monitorServices.py", "/root/health_checks/")
"""What runs from here reads its modules while we exchange them."""
STAYING = re.compile(r"^(passwd_server[a-z_]*(\.py)?|baremetal-vr(\.py)?)$")
"""Servers that live in `/opt/cloud/bin`; they keep what they have read."""
INTERPRETER = re.compile(r"^(python[0-9.]*|bash|sh|dash|env|perl)$")
SSHD = re.compile(r"^(.*/)?sshd(-session|-auth)?(:|$)")
OPENING = re.compile(r"\[accepted\]|\[net\]|\[preauth\]|\(startup\)")
"""A connection that is not logged in yet. `[priv]` alone stays for the life of a session of another user than root."""
LOGIN_SECONDS = 10.0
"""A connection that is not logged in after so long is no command of CloudStack's on its way: whoever only connects, a
probe of a port or a client that hangs, would keep a patch waiting until sshd shuts it out (LoginGraceTime, 120 s)."""
STARTING_SECONDS = 3.0
"""A session younger than this without a child has not started its command yet, or is about to close."""
_LISTENING, _SYN_RECEIVED = "0A", "03"
OURS = "sysvm_remote"
"""In the command of every session of this program's operator."""
NO_UNIT = ("ssh.service", "sshd.service", "cron.service")
"""Units whose children are commands of somebody else."""


class Process(object):
    def __init__(self, pid, parent, started, age, argv, unit):
        self.pid = pid
        self.parent = parent
        self.started = started
        self.age = age
        self.argv = argv
        self.unit = unit

    @property
    def key(self):
        return self.pid, self.started

    @property
    def text(self):
        return " ".join(self.argv)[:200]


def actors(host, now=None):
    """Every sign of another actor, as protocol.py's `Actor`."""
    now = time.time() if now is None else now
    found = []
    for path, age in staged(host, now):
        found.append({"kind": "file", "what": path, "age_seconds": round(age, 1), "blocking": age < STALE_SECONDS})
    for process in processes(host):
        patching = is_patching(process)
        if patching or is_command(process):
            row = {"kind": "process", "what": process.text, "age_seconds": round(process.age, 1), "blocking": patching}
            found.append(row)
    return found


def staged(host, now=None):
    """(path, age in seconds) of what a live patch of CloudStack's lies ready with, or left."""
    now = time.time() if now is None else now
    found = []
    for path in STAGED:
        try:
            found.append((path, max(0.0, now - os.lstat(host.at(path)).st_mtime)))
        except OSError:
            continue
    return found


def stale_payloads(host):
    """Paths that the next boot would install although nobody works on them any more."""
    if any(is_patching(process) for process in processes(host)):
        return []
    return [path for path, age in staged(host) if path in BOOT_PAYLOADS and age >= STALE_SECONDS]


def blocking(host):
    return [actor["what"] for actor in actors(host) if actor["blocking"]]


def is_patching(process):
    return any(PATCHING.match(os.path.basename(word)) for word in process.argv[:3])


def is_command(process):
    """Something of CloudStack's that must have ended before files are exchanged under it."""
    argv = process.argv
    name = os.path.basename(argv[0])
    if name == "scp":
        return "-t" in argv and argv[-1].startswith("/var/cache/cloud")
    if not INTERPRETER.match(name):
        words = argv[:1]
    else:
        words = argv[:4]
    if any(STAYING.match(os.path.basename(word)) for word in words):
        return False
    if process.parent == 1 and process.unit and process.unit not in NO_UNIT:
        # The main process of a unit: it stays, and whoever changes its files acts on the unit.
        return False
    if is_patching(process) or any(COMMANDS.match(os.path.basename(word)) for word in words):
        return True
    return any(script in word for word in words for script in SCRIPTS)


def busy(host):
    """Processes that must have ended before files are exchanged, logins that are about to become one included."""
    everything = list(processes(host))
    sshd = set(process.pid for process in everything if SSHD.match(process.argv[0]))
    at_work = set(process.parent for process in everything if process.pid not in sshd)
    found = []
    for process in everything:
        young = process.age < STARTING_SECONDS
        if process.pid in sshd:
            # From the accepted connection to the started command, whatever it calls itself on that way.
            opening = is_opening(process) and process.age < LOGIN_SECONDS
            if opening or (young and process.parent in sshd and process.pid not in at_work):
                found.append(process)
        elif is_command(process):
            found.append(process)
        elif young and process.parent in sshd and OURS not in " ".join(process.argv):
            # A shell that is about to start what it was given: not yet what it will be.
            found.append(process)
    return found


def is_opening(process):
    return SSHD.match(process.argv[0]) is not None and OPENING.search(process.argv[0]) is not None


def never_logged_in(host):
    """How many connections are open to sshd for longer than a login takes; none of them is `busy`."""
    return sum(1 for process in processes(host) if is_opening(process) and process.age >= LOGIN_SECONDS)


def arriving(host, ports):
    """Connections to these ports that the kernel has and sshd has not accepted yet."""
    for table in ("net/tcp", "net/tcp6"):
        for line in (host.proc(table) or "").splitlines()[1:]:
            words = line.split()
            if len(words) < 5 or int(words[1].rpartition(":")[2], 16) not in ports:
                continue
            if words[3] == _SYN_RECEIVED or (words[3] == _LISTENING and int(words[4].partition(":")[2], 16)):
                return True
    return False


def commands(host):
    """{(pid, start): Process} of the commands that run now, logins not among them."""
    return dict((process.key, process) for process in processes(host) if is_command(process))


def processes(host):
    """Every process of the VM but this one."""
    folder = (host.root if host.scratch else "") + "/proc"
    uptime = float((host.proc("uptime") or "0").split()[0])
    try:
        ticks = os.sysconf("SC_CLK_TCK")
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        if not name.isdigit() or int(name) == os.getpid():
            continue
        argv = [word for word in (host.proc(name + "/cmdline") or "").split("\0") if word]
        if not argv:
            continue
        try:
            words = (host.proc(name + "/stat") or "").rsplit(")", 1)[1].split()
            parent, started = int(words[1]), int(words[19]) / float(ticks)
        except (IndexError, ValueError):
            parent, started = 0, uptime
        unit = os.path.basename((host.proc(name + "/cgroup") or "").strip().split("\n")[-1])
        unit = unit if unit.endswith(".service") else ""
        yield Process(int(name), parent, started, max(0.0, uptime - started), argv, unit)


# ------------------------------------------------------------------------------------------ compare and swap


def marks(host):
    """What everybody who patches a VM changes. Without inodes: what has the same bytes and time is the same."""
    return dict((path, mark(host, path)) for path in (SIGNATURE, PAYLOAD))


def mark(host, path):
    facts = files.facts_of(host.at(path))
    return dict((key, facts.get(key)) for key in ("kind", "sha256", "mtime_ns", "size"))
