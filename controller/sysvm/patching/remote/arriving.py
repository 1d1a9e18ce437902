"""Contents that the hypervisor host sends by itself, beside the operator's own session.

A session that has begun says what may come, and from whom makes no difference: every content is counted and digested
on its way in, and takes its name only when it is what was ordered. The host starts `arrive ID` over its own connection
and writes the announced contents one behind the other. What does not come is still missing, and that is all.

It takes no lock but its own: it only adds files to a folder that a restart removes. Whoever builds from that folder
waits until it has gone.
"""

import contextlib
import fcntl
import hashlib
import os
import select
import tarfile
import time
import zlib

from . import files
from . import journal as journals
from .failures import Failure
from .wire import MAX_BYTES

EXPECTED = "expected.json"
ENCODINGS = ("identity", "zlib", "deflate")
_WINDOWS = {"zlib": zlib.MAX_WBITS, "deflate": -zlib.MAX_WBITS}
SILENT_SECONDS = 20.0
"""A host that has sent nothing for so long has gone."""
GONE_SECONDS = SILENT_SECONDS + 5.0
MEMBER_BYTES = 1024 * 1024
"""A larger file of an archive is sent by itself."""
MAX_CONTENT = 1024 * 1024 * 1024


class Checked(object):
    """The bytes of one item as they arrive, unpacked, counted and digested on their way."""

    def __init__(self, frames, item):
        self.frames = frames
        self.item = item
        self.size = 0
        self.sha256 = hashlib.sha256()

    def __iter__(self):
        try:
            for chunk in self.unpacked():
                self.size += len(chunk)
                if self.size > self.item["size"]:
                    raise Failure("StageFailed", "content {0} is longer than it says".format(self.item["sha256"]))
                self.sha256.update(chunk)
                yield chunk
        except zlib.error as error:
            raise Failure("StageFailed", "content {0}: {1}".format(self.item["sha256"], error))

    def unpacked(self):
        window = _WINDOWS.get(self.item["encoding"])
        if not window:
            for frame in self.frames:
                yield frame
            return
        unpack = zlib.decompressobj(window)
        for frame in self.frames:
            waiting = frame
            # What follows the end is dropped: zlib would collect all of it.
            while waiting and not unpack.eof:
                yield unpack.decompress(waiting, MAX_BYTES)
                waiting = unpack.unconsumed_tail
        # All was read, but what did not fit into the last piece is still in zlib: at most a few KiB.
        yield unpack.flush()

    def verify(self):
        if self.size != self.item["size"] or self.sha256.hexdigest() != self.item["sha256"]:
            raise Failure("StageFailed", "content {0} arrived damaged".format(self.item["sha256"]))


def put(folder, item, frames, suffix=".part"):
    """One content: into a file of another name, verified, on the disk, then renamed: what has its name is whole."""
    target = os.path.join(folder, item["sha256"])
    files.unlink_if_there(target + suffix)
    checked = Checked(frames, item)
    files.write_new(target + suffix, checked, 0o600)
    checked.verify()
    files.rename(target + suffix, target)
    files.sync_folder(folder)


# ------------------------------------------------------------------------------------------ the session's side


def expect(operation, folder, missing, args):
    """Writes down what may come. `missing`: {sha256: size}. Raises `Failure` for what was not ordered."""
    for item in args["items"]:
        known = missing.get(item["sha256"]) == item["size"] <= MAX_CONTENT
        sized = isinstance(item["wire_size"], int) and item["wire_size"] >= 0
        if not known or not sized or item["encoding"] not in ENCODINGS:
            raise Failure("StageFailed", "content {0} was not ordered".format(item["sha256"]), False)
    if args["archive"] is not None and args["archive"] not in missing:
        raise Failure("StageFailed", "the archive {0} was not ordered".format(args["archive"]), False)
    expected = {"folder": folder, "missing": missing, "items": args["items"], "archive": args["archive"]}
    operation.save(EXPECTED, expected)


@contextlib.contextmanager
def nobody(operation):
    """Nothing arrives while this is held. Raises `Failure` if a host goes on sending."""
    with _only_one(operation, GONE_SECONDS):
        yield


@contextlib.contextmanager
def _only_one(operation, seconds):
    descriptor = os.open(operation.path("arriving"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= end:
                    raise Failure("StageFailed", "contents of {0} are still arriving".format(operation.id))
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------ the host's side


def arrive(store, name, descriptor):
    """`arrive ID`: what a host sends on this descriptor. Exit code 0: all of it was right."""
    operation = store.operation(name)
    expected = operation.load(EXPECTED)
    report = store.report(operation)
    if expected is None or not report or report["phase"] != journals.STAGING or not report["alive"]:
        raise Failure("StageFailed", "nothing is expected for {0}".format(name), False)
    wrong = 0
    with _only_one(operation, 0.0):
        for item in expected["items"]:
            frames = _frames(descriptor, item["wire_size"])
            try:
                if not files.exists(os.path.join(expected["folder"], item["sha256"])):
                    put(expected["folder"], item, frames, ".arriving")
            except Failure:
                wrong += 1
            for _ in frames:
                pass
        if expected["archive"] is not None:
            unpack(expected)
    return 1 if wrong else 0


def _frames(descriptor, missing):
    while missing > 0:
        ready, _, _ = select.select([descriptor], [], [], SILENT_SECONDS)
        chunk = os.read(descriptor, min(missing, MAX_BYTES)) if ready else b""
        if not chunk:
            raise OSError("the host has stopped sending")
        missing -= len(chunk)
        yield chunk


def unpack(expected):
    """Every missing file that the archive holds which has just come. It has the digest that was ordered."""
    path = os.path.join(expected["folder"], expected["archive"])
    if not files.exists(path):
        return
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            if not member.isfile() or member.size > MEMBER_BYTES:
                continue
            content = archive.extractfile(member).read()
            item = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "encoding": "identity"}
            there = files.exists(os.path.join(expected["folder"], item["sha256"]))
            if expected["missing"].get(item["sha256"]) == item["size"] and not there:
                put(expected["folder"], item, [content], ".arriving")
