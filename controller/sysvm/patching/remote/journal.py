"""The journal of one operation: the only truth about how far it got.

One record a line, a CRC before it, every record on the disk before the next thing happens. The file is allocated with
zeros before anything of the VM changes, so that writing down a failure on a full disk needs no space. A last record
that was torn by a crash is as if it had never been written, which is why each record comes before or after its action
in such a way that its absence is safe.
"""

import errno
import json
import os
import time
import zlib

from . import files

SIZE = 512 * 1024
RESERVE = 64 * 1024
"""Kept for going back."""
RECORD_LIMIT = 6 * 1024
TELL_SECONDS = 2.0
"""A shorter wait is over before anybody has read of it."""
TELL_EVERY_SECONDS = 5

STAGING = "Staging"
BUILT = "Built"
SWITCHING = "Switching"
SWITCHED = "Switched"
SERVICES = "Services"
VERIFYING = "Verifying"
COMMITTING = "Committing"
COMMITTED = "Committed"
ROLLING_BACK = "RollingBack"
ROLLED_BACK = "RolledBack"
ABANDONED = "Abandoned"
INCONSISTENT = "Inconsistent"

UNTOUCHED = (STAGING, BUILT)
"""Nothing of the VM's own has changed."""
FINAL = (COMMITTED, ROLLED_BACK, ABANDONED, INCONSISTENT)


def encode(record):
    body = json.dumps(record, separators=(",", ":"), sort_keys=True).encode("ascii")
    return ("%08x " % (zlib.crc32(body) & 0xFFFFFFFF)).encode("ascii") + body + b"\n"


def decode(content):
    """(records, bytes that they take). Stops at the first line that is torn or not a record."""
    records = []
    used = 0
    while True:
        end = content.find(b"\n", used)
        if end < 0:
            break
        line = content[used:end]
        try:
            if int(line[:8], 16) != zlib.crc32(line[9:]) & 0xFFFFFFFF:
                break
            record = json.loads(line[9:].decode("ascii"))
        except ValueError:
            break
        records.append(record)
        used = end + 1
    return records, used


class Journal(object):
    """An open journal. One process writes, the one that holds the lock; any may read."""

    def __init__(self, path, descriptor, records, used, size):
        self.path = path
        self.records = records
        self._descriptor = descriptor
        self._used = used
        self._size = size

    @classmethod
    def create(cls, path, first):
        """Allocate it complete under another name: a journal that exists has its first record."""
        beside = path + ".new"
        files.unlink_if_there(beside)
        line = encode(first)
        files.write_new(beside, [line, b"\0" * (SIZE - len(line))], 0o600)
        files.rename(beside, path)
        files.sync_folder(os.path.dirname(path))
        return cls.open(path)

    @classmethod
    def open(cls, path):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            content = file.read()
        records, used = decode(content)
        return cls(path, descriptor, records, used, len(content))

    def close(self):
        os.close(self._descriptor)

    def add(self, kind, **values):
        """Append a record; it is on the disk when this returns. Raises OSError(ENOSPC) when it would not leave room
        for going back, which is then what happens."""
        record = dict(values, kind=kind, at=round(time.time(), 3))
        line = encode(record)
        if len(line) > RECORD_LIMIT:
            for key in ("message", "text"):
                if key in record:
                    record[key] = record[key][:1024]
            line = encode(record)
        back = self.phase in (ROLLING_BACK, INCONSISTENT) or values.get("phase") == ROLLING_BACK
        # Taking a commit back begins with a baseline, giving its space back with a word.
        reserve = 0 if back or kind in ("baseline", "forgotten") else RESERVE
        if self._used + len(line) > self._size - reserve:
            raise OSError(errno.ENOSPC, "the journal is full", self.path)
        files.write_at(self._descriptor, line, self._used)
        self._used += len(line)
        self.records.append(record)

    def enter(self, phase, reason=None, message="", **values):
        self.add("phase", phase=phase, reason=reason, message=message, **values)

    @property
    def phase(self):
        return phase_of(self.records)

    def baseline(self):
        """What the VM was like when the work began that is to be taken back; None if it never came to that."""
        found = [record["value"] for record in self.records if record["kind"] == "baseline"]
        return found[-1] if found else None


class Wait(object):
    """Something that may take long. It is written down once it does, so that a look shows what is waited for."""

    def __init__(self, journal, what, seconds):
        """`what` ends a sentence that begins with "waiting for"; `seconds`: at most."""
        self._journal = journal
        self._what = what
        self._seconds = seconds
        self._began = time.monotonic()
        self._told = False

    def goes_on(self):
        """To be called again and again while it lasts."""
        lasted = time.monotonic() - self._began
        if lasted >= TELL_SECONDS and not self._told:
            self._told = True
            self._journal.add("wait", what=self._what, seconds=round(self._seconds), lasted=round(lasted, 3))


def waiting(records, now):
    """What an operation waits for now, as a sentence; None if its last record is of no wait, or of one that is new.

    The seconds are told in steps: whoever mirrors the sentence writes it down again each time that it changes.
    """
    last = records[-1] if records else {"kind": None}
    if last["kind"] == "wait":
        what, lasted = last["what"], now - last["at"] + last["lasted"]
    elif last["kind"] == "unit" and last["state"] == "start" and last.get("seconds"):
        what, lasted = "the {0} of {1}".format(last["action"], last["unit"]), now - last["at"]
    else:
        return None
    if lasted < TELL_SECONDS:
        return None
    # A clock that was set meanwhile makes no wait longer than it can be.
    told = int(min(lasted, last["seconds"]) // TELL_EVERY_SECONDS * TELL_EVERY_SECONDS)
    limit = "{0:.0f} s".format(last["seconds"])
    return "waiting for {0}, {1}".format(what, "{0} s of {1}".format(told, limit) if told else "at most " + limit)


def read(path):
    """Records of a journal that somebody else may be writing; None if there is none."""
    try:
        with open(path, "rb") as file:
            return decode(file.read())[0]
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_forgotten(records):
    """Its backup is being given back, so there is no way back any more."""
    return any(record["kind"] == "forgotten" for record in records or [])


def phase_of(records):
    for record in reversed(records):
        if record["kind"] == "phase":
            return record["phase"]
    return STAGING


def fold(records):
    """The report of an operation from its records alone, without `alive`."""
    first = records[0]
    report = {
        "id": first["id"],
        "epoch": first["epoch"],
        "revision": first["revision"],
        "phase": STAGING,
        "alive": False,
        "step": "Stage",
        "steps": [],
        "services": [],
        "bytes_received": 0,
        "reason": None,
        "message": "",
        "notes": [],
        "started_at": first["at"],
        "finished_at": None,
    }
    started = {}
    steps = {}
    for record in records:
        kind = record["kind"]
        if kind == "phase":
            report["phase"] = record["phase"]
            if record.get("reason"):
                report["reason"] = record["reason"]
            if record.get("message"):
                report["message"] = record["message"]
            report["finished_at"] = record["at"] if record["phase"] in FINAL else None
        elif kind == "received":
            report["bytes_received"] += record["bytes"]
        elif kind == "step":
            _fold_step(report, steps, started, record)
        elif kind == "unit" and record["state"] == "done":
            report["services"].append(
                {
                    "unit": record["unit"],
                    "action": record["action"],
                    "ok": record["ok"],
                    "unavailable_seconds": record.get("gap"),
                    "slowest_seconds": record.get("slowest"),
                    "restoring": record["back"],
                }
            )
        elif kind == "note":
            report["notes"].append(record["text"])
        elif kind == "login":
            report["awaiting"] = "login" if record["state"] == "await" else None
    if report["phase"] != SERVICES:
        report.pop("awaiting", None)
    return report


def _fold_step(report, steps, started, record):
    name = record["name"]
    step = steps.get(name)
    if step is None:
        step = {"name": name, "done": False, "failed": False, "seconds": 0.0, "message": ""}
        steps[name] = step
        report["steps"].append(step)
    if record["state"] == "start":
        started[name] = record["at"]
        # The step that failed stays the one to show while the way back is gone.
        if not any(other["failed"] for other in report["steps"]):
            report["step"] = name
        return
    step["seconds"] = round(max(0.0, record["at"] - started.get(name, record["at"])), 3)
    step["done"] = record["state"] == "done"
    step["failed"] = record["state"] == "failed"
    step["message"] = record.get("message", "")
    if step["failed"]:
        report["step"] = name
