"""Somebody else changed this VM while we did: nothing of ours is put over theirs.

Their process is waited for, then the files say whose VM it is:

    as ordered and what the archive in place holds, signed          Committed   it is the release, by whoever's hand
    as before and what the archive in place holds, signed           RolledBack  it is what it was
    what the archive in place holds, signed                         Abandoned   it is theirs, whole
    none of these                                                   forward: what differs is written out of our own
                                                                    archive, then Committed; else Inconsistent

Signed: the signature is the checksum of the archive in place, so that CloudStack takes the VM for patched with it.

All with the reason SupersededExternally.
"""

import hashlib
import os
import tarfile
import time

from . import actors, build, files, switch
from . import journal as journals
from . import order as orders
from .failures import Failure

REASON = "SupersededExternally"
OTHERS_SECONDS = 100.0
"""Their patch with its restarts takes less than a minute."""
STAGED_SECONDS = 15.0
"""Files of theirs lie there without a process: somebody copies them, or gave up."""


def settle(work, at_boot):
    """After others have ended: True if the operation ended here, False if nothing of theirs is in our way."""
    if not at_boot:
        wait(work.host)
    theirs = happened(work)
    if not theirs:
        return False
    text = "somebody else changed this VM meanwhile ({0}): ".format(", ".join(theirs))
    signed = is_signed(work)
    ordered = not work.differences()
    whole = signed and holds_archive(work)
    as_it_was = not [name for name in work.not_as_it_was() if name != actors.PAYLOAD]
    end = None
    if whole and ordered:
        end = (journals.COMMITTED, "it has the ordered content, by their hand")
    elif as_it_was and (whole or (signed and actors.PAYLOAD not in theirs)):
        end = (journals.ROLLED_BACK, "it has the content that it had before")
    elif whole:
        end = (journals.ABANDONED, "it has the content of their archive, which stays")
    if end is not None:
        if not (ordered and work.verified()):
            # Where the release is told, its units have to run with it; whoever put back or brought others acted too.
            work.make_effective(at_boot, everywhere=ordered)
        work.journal.enter(end[0], REASON, text + end[1])
        return True
    if signed or not ordered or not work.verified():
        if not signed and actors.PAYLOAD not in theirs and nothing_foreign(work):
            # Only a signature that speaks of nothing: all files are ours or the old ones, so the way back is open.
            return False
        # Their signature goes first: a restart half way must not find mixed files that pass for whole.
        switch.invalidate(work.plan["signature"])
        repair(work)
        if not work.make_effective(at_boot, everywhere=True):
            return False
    switch.invalidate(work.plan["signature"])
    work.journal.enter(journals.COMMITTING)
    work.finish_commit(REASON, text + "what they left was brought to the ordered content")
    return True


def wait(host):
    began = time.monotonic()
    while True:
        patching = [process.text for process in actors.processes(host) if actors.is_patching(process)]
        fresh = [path for path, age in actors.staged(host) if age < actors.STALE_SECONDS]
        waited = time.monotonic() - began
        if not patching and (not fresh or waited >= STAGED_SECONDS):
            return
        if waited >= OTHERS_SECONDS:
            raise Failure("OtherActor", "somebody else still patches this VM: " + "; ".join(patching[:3]))
        host.wait(0.25)


def happened(work):
    """Which of signature and archive are neither ours nor what was there before."""
    signature = work.plan["signature"]
    text = switch.signature_text(signature)
    found = []
    ours = switch.is_zeros(text) or text == signature["new_text"]
    if not ours and not switch.matches(signature["live"], build.identity(signature["old"])):
        found.append(actors.SIGNATURE)
    now = actors.mark(work.host, actors.PAYLOAD)
    before = (work.journal.baseline() or {}).get("payload") or now
    # When a commit is taken back the baseline is of then; what was there before it is older.
    first = (work.operation.load("marks.json") or {}).get(actors.PAYLOAD) or now
    ordered = (work.order["payload"] or {}).get("sha256")
    if now["sha256"] not in (before["sha256"], first["sha256"], ordered):
        found.append(actors.PAYLOAD)
    return found


def is_signed(work):
    """The signature is the checksum of the archive in place, so CloudStack takes the VM for patched with it."""
    text = switch.signature_text(work.plan["signature"])
    real = work.host.at(actors.PAYLOAD)
    names = {32: "md5", 128: "sha512"}
    return len(text) in names and files.exists(real) and files.checksum(real, names[len(text)]) == text


def nothing_foreign(work):
    """Every file of the order is the old or the ordered one."""
    new = set(work.differences())
    return not [name for name in work.not_as_it_was() if name in new and name != actors.PAYLOAD]


def members(path):
    """{absolute path: member} of the regular files of an archive, the last of each name; and the open archive."""
    archive = tarfile.open(path, "r:*")
    found = {}
    for member in archive:
        if member.isfile():
            found["/" + member.name.lstrip("./")] = member
    return archive, found


def _chunks(stream):
    while True:
        chunk = stream.read(files.CHUNK)
        if not chunk:
            return
        yield chunk


def _digest(stream):
    state = hashlib.sha256()
    for chunk in _chunks(stream):
        state.update(chunk)
    return state.hexdigest()


def holds_archive(work):
    """Every tree of ours has what the archive in place holds, and no other file of it is still as we ordered it. What
    else differs was edited on the VM."""
    try:
        archive, found = members(work.host.at(actors.PAYLOAD))
    except (FileNotFoundError, tarfile.TarError):
        return False
    new = set(work.not_as_it_was()) - set(work.differences())
    trees = tuple(tree["path"] + "/" for tree in work.order["trees"])
    compared = 0
    with archive:
        for path, member in found.items():
            if path.startswith(trees) or path in new:
                facts = files.facts_of(work.host.at(path))
                if facts.get("sha256") != _digest(archive.extractfile(member)):
                    return False
                compared += 1
    return compared > 0


def repair(work):
    """Bring every path of the order to what it says, out of the archive that was ordered. Raises `Failure`."""
    payload = work.plan["payload"]
    source = payload["stage"] if payload and files.exists(payload["stage"]) else work.host.at(actors.PAYLOAD)
    wanted = dict(orders.entries(work.order))
    stages = build.stage_folders(work.host, work.order)
    try:
        archive, found = members(source)
    except tarfile.TarError as error:
        raise Failure("Inconsistent", "what others changed cannot be mended: {0}".format(error), False)
    with archive:
        for path in work.differences():
            real, entry = work.host.at(path), wanted.get(path)
            if entry is None:
                files.remove_tree(real)
                continue
            facts = files.facts_of(real)
            right = build.wanted_facts(entry, facts)
            files.make_folders(os.path.dirname(real), 0o755)
            # Where a restart leaves it, it goes with the stage.
            beside = os.path.join(stages[work.host.mount_of(os.path.dirname(real))[0]], "mended")
            files.unlink_if_there(beside)
            if entry["link"] is not None:
                files.symlink(entry["link"], beside)
            elif facts.get("sha256") == entry["sha256"]:
                files.write_new(beside, files.chunks_of(real), right["mode"])
            elif path in found:
                files.write_new(beside, _chunks(archive.extractfile(found[path])), right["mode"])
            else:
                raise Failure("Inconsistent", "{0} was changed by others, and its content is gone".format(path), False)
            if facts["kind"] == "file":
                files.copy_xattrs(real, beside)
            files.set_owner(beside, right["uid"], right["gid"])
            files.rename(beside, real)
            files.sync_folder(os.path.dirname(real))
    wrong = work.differences()
    if wrong:
        raise Failure("Inconsistent", "changed by others and not to be mended: " + ", ".join(wrong[:5]), False)
