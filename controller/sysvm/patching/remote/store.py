"""What stays on the VM between sessions: lock, epoch, program, journals; backups beside their targets.

/var/lib/sysvm/lock                      flock; who holds it: pid, its start time, operation
/var/lib/sysvm/epoch                     highest leadership seen
/var/lib/sysvm/program/DIGEST/sysvm.pyz  the program for the worker, the boot unit and the console
/var/lib/sysvm/operations/ID/            order.json marks.json plan.json old.json journal | report.json
MOUNT/.../.sysvm-ID/                     content, new trees; after the switch the old ones: the backup
"""

import fcntl
import json
import os
import re
import sys
import time

from . import files, journal
from .failures import Failure

HOME = "/var/lib/sysvm"
UNIT = "/etc/systemd/system/sysvm-recover.service"
UNIT_LINK = "/etc/systemd/system/sysinit.target.wants/sysvm-recover.service"
REPORTS_KEPT = 200
BACKUP_SHARE = 0.1
"""Of a file system, for all backups on it."""
_ID = re.compile(r"^[a-z0-9-]{1,63}$")

UNIT_TEXT = """# Brings a live patch that was interrupted to its end before CloudStack's own boot scripts run.
# Written by the sysvm program; removed with the last backup. See: python3 {program} --status
[Unit]
Description=Finish or take back an interrupted live patch
DefaultDependencies=no
RequiresMountsFor={mounts}
After=local-fs.target
Before=cloud-preinit.service cloud-early-config.service cloud-postinit.service network-pre.target
ConditionPathExists={program}

[Service]
Type=oneshot
RemainAfterExit=yes
TimeoutStartSec=60
ExecStart=-{python} -I -B {program} --recover

[Install]
WantedBy=sysinit.target
"""


def check_id(text):
    if not isinstance(text, str) or not _ID.match(text):
        raise Failure("ProtocolError", "{0!r} is no operation id".format(text), False)
    return text


class Operation(object):
    """The folder of one operation."""

    def __init__(self, store, name):
        self.id = name
        self.folder = os.path.join(store.home, "operations", name)
        self.journal_path = os.path.join(self.folder, "journal")

    def path(self, name):
        return os.path.join(self.folder, name)

    def load(self, name):
        """A JSON document of this operation, None if it was never completed."""
        try:
            return json.loads(files.read_bytes(self.path(name)).decode("utf-8"))
        except FileNotFoundError:
            return None

    def save(self, name, value):
        files.replace_with(self.path(name), json.dumps(value, separators=(",", ":"), sort_keys=True).encode(), 0o600)

    def report(self):
        """From the journal while there is one, else the report that was kept of it; None: never began."""
        records = journal.read(self.journal_path)
        if records:
            return journal.fold(records)
        return self.load("report.json")

    def has_backup(self):
        """Its old files are still there, if it was committed."""
        records = journal.read(self.journal_path)
        return bool(records) and not journal.is_forgotten(records)

    def stages(self):
        """Real paths of the staging folders, which later hold the backup."""
        records = journal.read(self.journal_path)
        return list(records[0]["stages"]) if records else []


class Store(object):
    def __init__(self, host):
        self.host = host
        self.home = host.resolve(HOME)
        self._lock = None

    # -------------------------------------------------------------------------------------- lock

    def take_lock(self, name, wait=0.0):
        """Hold the VM's lock for operation `name`. Raises `LockHeld` with the holder."""
        files.make_folders(self.home, 0o700)
        descriptor = os.open(os.path.join(self.home, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                os.close(descriptor)
                pid, what = self.holder() or (0, "unknown")
                raise Failure("LockHeld", "process {0} on the VM works on operation {1}".format(pid, what))
        self._lock = descriptor
        # Not synced and not counted: it only says whose the lock is, the lock itself is the kernel's. On a full disk
        # it may stay empty.
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, "{0} {1} {2}\n".format(os.getpid(), _started(os.getpid()), name).encode(), 0)
        except OSError:
            pass

    def release_lock(self):
        if self._lock is not None:
            try:
                os.ftruncate(self._lock, 0)
            except OSError:
                pass
            os.close(self._lock)
            self._lock = None

    def holder(self):
        """(pid, operation) of the living holder of the lock, without touching the lock; None: nobody."""
        words = (files.read_text(os.path.join(self.home, "lock")) or "").split()
        if len(words) != 3 or not words[0].isdigit() or _started(int(words[0])) != words[1]:
            return None
        return int(words[0]), words[2]

    def alive(self, name):
        holder = self.holder()
        return holder is not None and holder[1] == name

    # -------------------------------------------------------------------------------------- epoch

    def highest_epoch(self):
        text = (files.read_text(os.path.join(self.home, "epoch")) or "").strip()
        return int(text) if text.isdigit() else 0

    def check_epoch(self, epoch):
        highest = self.highest_epoch()
        if epoch < highest:
            text = "epoch {0} is over: this VM has already been told of {1}; another operator leads now"
            raise Failure("EpochRefused", text.format(epoch, highest), False)

    def raise_epoch(self, epoch):
        if epoch <= self.highest_epoch():
            return
        path = os.path.join(self.home, "epoch")
        text = "{0:020}\n".format(epoch).encode()
        if not files.exists(path):
            files.replace_with(path, text, 0o600)
            return
        # In its place, because a full disk must not keep a new leader from taking a patch back. Of one length, so that
        # a write cut in its middle leaves the old number: both begin with the same zeros.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            files.write_at(descriptor, text, 0)
        finally:
            os.close(descriptor)

    # -------------------------------------------------------------------------------------- operations

    def operation(self, name):
        return Operation(self, check_id(name))

    def operations(self):
        """(operation, report), newest first."""
        found = []
        try:
            names = os.listdir(os.path.join(self.home, "operations"))
        except FileNotFoundError:
            return []
        for name in names:
            if _ID.match(name):
                operation = Operation(self, name)
                report = operation.report()
                if report:
                    found.append((operation, report))
        return sorted(found, key=lambda pair: pair[1]["started_at"], reverse=True)

    def unfinished(self):
        return [pair for pair in self.operations() if pair[1]["phase"] not in journal.FINAL]

    def report(self, operation):
        report = operation.report()
        if report:
            report["alive"] = self.alive(operation.id)
            waiting = report["alive"] and journal.waiting(journal.read(operation.journal_path) or [], time.time())
            open_steps = [step for step in report["steps"] if not step["done"] and not step["failed"]]
            if waiting and open_steps:
                open_steps[-1]["message"] = waiting
        return report

    def backups(self):
        """Committed operations whose old files are still there, newest first."""
        return [
            (operation, report)
            for operation, report in self.operations()
            if report["phase"] == journal.COMMITTED and operation.has_backup()
        ]

    # -------------------------------------------------------------------------------------- program, boot unit

    def program_path(self, digest):
        return os.path.join(self.home, "program", digest, "sysvm.pyz")

    def current_program(self):
        """Digest of the program that the console and the boot unit start, None if there is none."""
        current = os.path.join(self.home, "program", "current")
        digest = os.readlink(current) if os.path.islink(current) else None
        return digest if digest and files.exists(self.program_path(digest)) else None

    def install_program(self, digest, content, stages):
        """Program first, then the unit that names it, then the link that starts it: a boot in between finds a unit
        only with its program, and no link no unit. The program of an unfinished operation is never removed."""
        path = self.program_path(digest)
        if not files.exists(path):
            files.make_folders(os.path.dirname(path), 0o700)
            files.replace_with(path, content, 0o600)
        current = os.path.join(self.home, "program", "current")
        if self.current_program() != digest:
            files.unlink_if_there(current + ".new")
            files.symlink(digest, current + ".new")
            files.rename(current + ".new", current)
        mounts = " ".join(sorted(set([HOME] + [self.host.name(os.path.dirname(stage)) for stage in stages])))
        text = UNIT_TEXT.format(program=self.host.name(path), mounts=mounts, python=sys.executable)
        unit = self.host.at(UNIT)
        if files.read_text(unit) != text:
            files.make_folders(os.path.dirname(unit), 0o755)
            files.replace_with(unit, text.encode(), 0o644)
        link = self.host.at(UNIT_LINK)
        if not os.path.islink(link):
            files.make_folders(os.path.dirname(link), 0o755)
            files.symlink(UNIT, link)
            files.sync_folder(os.path.dirname(link))

    def remove_program_if_unused(self):
        """Link, unit, program, in the reverse order of their making; nothing to do while a journal is left."""
        if any(files.exists(operation.journal_path) for operation, _ in self.operations()):
            return
        files.unlink_if_there(self.host.at(UNIT_LINK))
        files.unlink_if_there(self.host.at(UNIT))
        files.unlink_if_there(self.host.at(UNIT) + ".new")
        files.remove_tree(os.path.join(self.home, "program"))

    # -------------------------------------------------------------------------------------- sweeping

    def sweep(self):
        """Remove what ended operations left: repeated until it gets through, each step may be the last of a killed
        process. The journal goes last, because it knows the staging folders."""
        for operation, report in self.operations():
            ended = report["phase"] in (journal.ROLLED_BACK, journal.ABANDONED)
            if ended or (report["phase"] == journal.COMMITTED and not operation.has_backup()):
                self.forget(operation, report)
        self._sweep_begun()
        for operation, _ in self.operations()[REPORTS_KEPT:]:
            if not files.exists(operation.journal_path):
                files.remove_tree(operation.folder)
        self.remove_program_if_unused()

    def _sweep_begun(self):
        """Folders of operations that were killed before their journal existed: nothing but an order."""
        home = os.path.join(self.home, "operations")
        for name in os.listdir(home) if os.path.isdir(home) else []:
            if _ID.match(name) and not Operation(self, name).report():
                files.remove_tree(os.path.join(home, name))

    def forget(self, operation, report):
        """Give back all space of an ended operation, keep its report.

        Needs none before it has given some back. A kill in between: the journal goes last, and the next sweep repeats
        it; that of a committed one says first that its backup is no more, perhaps partly removed.
        """
        records = journal.read(operation.journal_path)
        if not records:
            return
        if report["phase"] == journal.COMMITTED and not journal.is_forgotten(records):
            writing = journal.Journal.open(operation.journal_path)
            try:
                writing.add("forgotten")
            finally:
                writing.close()
        for stage in operation.stages():
            files.remove_tree(stage)
        if report["phase"] in (journal.ROLLED_BACK, journal.ABANDONED):
            restore_times((operation.load("plan.json") or {}).get("times", []))
            restore_times(records[0].get("times", []))
        for name in ("plan.json", "old.json", "marks.json", "order.json", "expected.json", "arriving"):
            files.unlink_if_there(operation.path(name))
        operation.save("report.json", report)
        files.unlink_if_there(operation.journal_path)

    def prune(self, keep):
        """Remove all but the newest `keep` backups, and those that take more than a tenth of their file system; the
        newest is never too large, because it is the way back."""
        held = {}
        for number, (operation, report) in enumerate(self.backups()):
            too_large = False
            for stage in operation.stages():
                mount = self.host.mount_of(stage)[0]
                held[mount] = held.get(mount, 0) + files.held(stage)
                size = os.statvfs(mount)
                too_large = too_large or held[mount] > BACKUP_SHARE * size.f_blocks * size.f_frsize
            if number >= keep or (number > 0 and too_large):
                self.forget(operation, report)


def times_of(folders):
    """What `restore_times` wants to know, of those that are there."""
    rows = []
    for folder in sorted(folders):
        if os.path.isdir(folder):
            found = os.stat(folder)
            rows.append([folder, found.st_atime_ns, found.st_mtime_ns])
    return rows


def restore_times(times):
    """Folders that only held what was renamed get the times back that they had (best effort: they carry no content)."""
    for path, atime_ns, mtime_ns in times:
        try:
            files.set_times(path, atime_ns, mtime_ns)
        except OSError:
            pass


def _started(pid):
    """Start time of a living process in clock ticks, "-" if there is none: tells a pid from its next owner."""
    try:
        with open("/proc/{0}/stat".format(pid), "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[19].decode()
    except (OSError, IndexError):
        return "-"
