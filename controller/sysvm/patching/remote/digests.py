"""Digests of files: read now, or known because nobody has touched the file since it was read.

The daily scan compares every file of a release with the VM, 90 MB of jars where an agent runs. A router's processor and
disk belong to its tenants, so a scan reads only what may have changed and remembers the rest in one file of its own.

A digest is believed while size, both times, inode and device are what they were. The time of the last change (ctime) is
the kernel's: whoever edits a file and puts its old modification time back changes it. What no time shows (rotten bits,
a device written to directly) is found because no digest is believed for longer than a fortnight, each for a share of
it drawn at random: about a seventh of the files is read again by every daily scan. A patch never asks here: it reads.
"""

import fcntl
import hashlib
import json
import os
import random
import stat
import time

from . import files

NAME = "digests"
BELIEVED_SECONDS = 14 * 24 * 3600
SETTLED_NS = 2 * 10**9
"""A file that was changed this short a time ago may be changed again without its times showing it."""
MAX_BYTES = 8 * 1024 * 1024


class Read(object):
    """Reads every file."""

    def __init__(self):
        self.read_bytes = 0

    def of(self, path, real):
        """SHA-256 of the regular file of the VM `path`, which is at `real`. Raises OSError."""
        self.read_bytes += os.lstat(real).st_size
        return files.checksum(real, "sha256")

    def keep(self):
        """Called when everything was asked for."""


class Known(Read):
    """Reads only what may have changed since the last scan. Remembers nothing where no patch has made `folder`: a VM
    that is only looked at is never written to."""

    def __init__(self, folder, now=None, draw=random.random):
        Read.__init__(self)
        self.folder = folder
        self.now = time.time() if now is None else now
        self.draw = draw
        self.before = load(os.path.join(folder, NAME))
        self.after = {}

    def of(self, path, real):
        identity = identity_of(real)
        entry = self.before.get(path)
        if entry is not None and entry[:5] == identity and entry[6] <= self.now < entry[7]:
            self.after[path] = entry
            return entry[5]
        digest = Read.of(self, path, real)
        if identity_of(real) == identity and identity[2] + SETTLED_NS <= self.now * 10**9:
            until = self.now + self.draw() * BELIEVED_SECONDS
            self.after[path] = identity + [digest, int(self.now), int(until)]
        return digest

    def keep(self):
        """Only what this scan saw, so that the file cannot grow; a VM that cannot take it is scanned without."""
        if self.after == self.before:
            return
        body = json.dumps(self.after, separators=(",", ":"), sort_keys=True).encode()
        content = hashlib.sha256(body).hexdigest().encode() + b"\n" + body
        if len(content) > MAX_BYTES:
            return
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return
        try:
            # Two scans at once would write into each other's new file; one that cannot wait goes without.
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files.replace_with(os.path.join(self.folder, NAME), content, 0o600)
        except OSError:
            pass
        finally:
            os.close(folder)


def identity_of(real):
    """What changes whenever the content does. Raises OSError."""
    found = os.lstat(real)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def load(path):
    """Path -> [size, mtime_ns, ctime_ns, inode, device, sha256, read at, believed until]. Empty if the file is missing,
    damaged, too long, or anybody but this user could have written it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        found = os.fstat(descriptor)
        mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
        if not mine or found.st_size > MAX_BYTES:
            return {}
        with os.fdopen(os.dup(descriptor), "rb") as file:
            checksum, _, body = file.read(MAX_BYTES).partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            return {}
        entries = json.loads(body.decode("utf-8"))
        return entries if all(well_formed(entry) for entry in entries.values()) else {}
    except (OSError, ValueError, AttributeError):
        return {}
    finally:
        os.close(descriptor)


def well_formed(entry):
    return (
        isinstance(entry, list)
        and len(entry) == 8
        and all(isinstance(number, int) for number in entry[:5] + entry[6:])
        and isinstance(entry[5], str)
        and len(entry[5]) == 64
    )
