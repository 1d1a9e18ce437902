"""The moves of a plan, forward and back. What was done is read off the files; the journal only says what was tried.

Every move is one rename or exchange that counts (and links that do not), so at every moment a path is old or new. Going
back may itself be killed and repeated any number of times.
"""

import errno
import os
import stat

from . import build, files, properties
from .failures import Failure


class Lost(Failure):
    """What is needed to go back is gone. Only a person can help."""

    def __init__(self, message):
        Failure.__init__(self, "Inconsistent", message, False)


def matches(path, wanted):
    """Whether `path` is in the state `wanted`; a folder counts by being one."""
    facts = files.facts_of(path, content=False)
    if facts["kind"] != wanted["kind"]:
        return False
    if facts["kind"] in ("folder", "absent"):
        return True
    if any(facts.get(key) != value for key, value in wanted.items() if key != "sha256"):
        return False
    return "sha256" not in wanted or files.checksum(path, "sha256") == wanted["sha256"]


def sync_parents(*paths):
    for folder in sorted(set(os.path.dirname(path) for path in paths)):
        if os.path.isdir(folder):
            files.sync_folder(folder)


# ------------------------------------------------------------------------------------------ forward


def forward(move, journal, number):
    """Carry out one move. The journal says `start` before it and `done` after it."""
    journal.add("move", move=number, state="start")
    if move["op"] == "exchange":
        link_runtime(move["live"], move["stage"], move["runtime"], ordered(move))
        properties.add(move)
        try:
            # A restart after this line finds the new tree in place and the old one in the stage: the backup.
            files.exchange(move["live"], move["stage"])
            sync_parents(move["live"], move["stage"])
        except OSError as error:
            if error.errno not in files.NO_EXCHANGE:
                raise
            text = "{0} cannot be exchanged ({1}): its files were renamed one by one"
            journal.add("note", text=text.format(move["live"], error.strerror))
            # From this record on the tree is neither the one nor the other until all of its files are.
            journal.add("singly", move=number)
            for single in one_by_one(move):
                apply(single)
    else:
        apply(move)
    journal.add("move", move=number, state="done")


def apply(move):
    """One move that is no exchange."""
    live = move["live"]
    if move["op"] == "mkdir":
        files.mkdir(live, move["mode"])
        files.set_owner(live, move["uid"], move["gid"])
        sync_parents(live)
    elif move["op"] in ("put", "put-tree"):
        files.rename(move["stage"], live)
        sync_parents(live)
    elif move["op"] == "replace":
        # A restart between the two finds one file under both names: renaming it back does nothing, which is right.
        files.unlink_if_there(move["backup"])
        files.link(live, move["backup"])
        sync_parents(move["backup"])
        files.rename(move["stage"], live)
        sync_parents(live)
    elif move["op"] == "remove":
        files.rename(live, move["backup"])
        sync_parents(live, move["backup"])
    elif move["op"] == "rmdir":
        files.remove_tree(os.path.join(live, "__pycache__"))
        try:
            files.rmdir(live)
        except OSError as error:
            # Something that is not ours lies in it: then it stays, as everything that the order does not name.
            if error.errno != errno.ENOTEMPTY:
                raise
    else:
        raise Failure("SwitchFailed", "unknown move {0}".format(move["op"]), False)


def one_by_one(move):
    """An exchange as renames: for file systems that cannot exchange folders."""
    single = []
    emptied = []
    for number, witness in enumerate(move["witnesses"]):
        live = os.path.join(move["live"], witness["path"])
        backup = os.path.join(move["back"] + "." + str(number))
        old, new = witness["old"], witness["new"]
        if new["kind"] == "folder":
            single.append({"op": "mkdir", "live": live, "mode": new["mode"], "uid": new["uid"], "gid": new["gid"]})
        elif old["kind"] == "folder":
            emptied.insert(0, dict(old, op="rmdir", live=live))
        elif new["kind"] == "absent":
            single.append({"op": "remove", "live": live, "backup": backup, "old": old})
        else:
            op = "put" if old["kind"] == "absent" else "replace"
            stage = os.path.join(move["stage"], witness["path"])
            single.append({"op": op, "live": live, "stage": stage, "backup": backup, "old": old, "new": new})
    return single + emptied


# ------------------------------------------------------------------------------------------ back


def back(move, singly=False):
    """Undo one move that was started. Does nothing where the old is in place already. `singly`: an exchange that was
    carried out one by one."""
    live = move["live"]
    if singly:
        for single in reversed(one_by_one(move)):
            back(single)
    elif move["op"] == "exchange":
        _exchange_back(move)
    elif move["op"] == "keep-tree":
        _kept_back(move)
    elif move["op"] == "keep-runtime":
        now = files.facts_of(live)
        if files.exists(move["backup"]) and (now["kind"] == "absent" or now.get("sha256") == move["theirs"]):
            files.rename(move["backup"], live)
            sync_parents(live, move["backup"])
    elif move["op"] in ("put", "put-tree"):
        if not files.exists(move["stage"]) and files.exists(live):
            files.rename(live, move["stage"])
            sync_parents(live, move["stage"])
    elif move["op"] == "mkdir":
        try:
            files.rmdir(live)
            sync_parents(live)
        except FileNotFoundError:
            pass
        except OSError as error:
            # Somebody else's files came to lie in it: they are not ours to remove.
            if error.errno != errno.ENOTEMPTY:
                raise
    elif move["op"] == "rmdir":
        if not files.exists(live):
            files.mkdir(live, move["mode"])
            files.set_owner(live, move["uid"], move["gid"])
    elif files.exists(move["backup"]):
        files.rename(move["backup"], live)
        # If both names were one file, rename did nothing and left the second name.
        files.unlink_if_there(move["backup"])
        sync_parents(live, move["backup"])
    elif not matches(live, move["old"]):
        raise Lost("the backup of {0} is gone".format(live))


def _exchange_back(move):
    position = position_of(move)
    if position == "old":
        return
    if position == "new":
        right = properties.take_away(move)
        link_runtime(move["live"], move["stage"], move["runtime"], ordered(move) | right)
        files.exchange(move["live"], move["stage"])
        sync_parents(move["live"], move["stage"])
        return
    raise Lost("the backup of {0} is gone or was changed".format(move["live"]))


def _kept_back(move):
    """A tree that was kept before others came: they may have changed it, added to it, or removed all of it."""
    live, kept = move["live"], move["stage"]
    if files.is_folder(live) and is_as_kept(live, move["witnesses"]):
        return
    if not (files.is_folder(kept) and is_as_kept(kept, move["witnesses"])):
        raise Lost("the backup of {0} is gone or was changed".format(live))
    if files.exists(live):
        try:
            files.exchange(live, kept)
        except OSError as error:
            if error.errno not in files.NO_EXCHANGE:
                raise
            theirs = kept + ".theirs"
            files.remove_tree(theirs)
            # A restart between the two finds no tree, and goes on below.
            files.rename(live, theirs)
    if not files.exists(live):
        files.rename(kept, live)
    sync_parents(live, kept)


def is_as_kept(folder, witnesses):
    """Nothing in it is other, nothing is missing, nothing came to it; bytecode does not count."""
    found = set(relative for relative, facts in files.walk(folder) if not stat.S_ISDIR(facts.st_mode))
    wanted = set(witness["path"] for witness in witnesses)
    return found == wanted and all(matches(os.path.join(folder, one["path"]), one["old"]) for one in witnesses)


def position_of(move):
    """Which tree is in place, by what differs between them: "old", "new", or "unknown" where neither place tells."""
    if not files.is_folder(move["live"]):
        return "unknown"
    witnesses = move["witnesses"]
    live_old = all(matches(os.path.join(move["live"], witness["path"]), witness["old"]) for witness in witnesses)
    if live_old:
        return "old"
    stage_old = files.is_folder(move["stage"]) and all(
        matches(os.path.join(move["stage"], witness["path"]), witness["old"]) for witness in witnesses
    )
    return "new" if stage_old else "unknown"


def ordered(move):
    """Paths that the order itself puts or removes: which tree has them is no question of who wrote last."""
    return set(witness["path"] for witness in move["witnesses"])


def link_runtime(source, target, patterns, but):
    """Files that the VM itself writes are the same in both trees when they are exchanged; those of `but` are left."""
    if not patterns or not os.path.isdir(target):
        return
    present = set()
    for relative, found in files.walk(source):
        if not build.is_runtime(patterns, relative) or os.path.isdir(os.path.join(source, relative)):
            continue
        present.add(relative)
        if relative in but:
            continue
        there = os.path.join(target, relative)
        if files.exists(there):
            now = os.lstat(there)
            if (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino):
                continue
        files.make_folders(os.path.dirname(there), 0o755)
        beside = there + ".sysvm"
        files.unlink_if_there(beside)
        files.link(os.path.join(source, relative), beside)
        files.rename(beside, there)
    for relative, _ in list(files.walk(target)):
        path = os.path.join(target, relative)
        known = relative in present or relative in but
        if build.is_runtime(patterns, relative) and not known and not os.path.isdir(path):
            files.unlink_if_there(path)


def done_singly(records):
    """Numbers of the exchanges that became renames."""
    return set(record["move"] for record in records if record["kind"] == "singly")


def check_backup(plan, singly):
    """Raises `Failure` if a committed operation cannot be gone back from any more; nothing is changed."""
    for number, move in enumerate(plan["moves"] + ([plan["payload"]] if plan["payload"] else [])):
        if move["op"] == "exchange" and number not in singly:
            whole = position_of(move) == "new"
        elif move["op"] == "keep-tree":
            whole = files.is_folder(move["stage"]) and is_as_kept(move["stage"], move["witnesses"])
        else:
            singles = one_by_one(move) if move["op"] == "exchange" else [move]
            whole = all(files.exists(one["backup"]) for one in singles if one["op"] in ("replace", "remove"))
        if not whole:
            text = "{0} was changed since, or its backup is gone: there is no way back"
            raise Failure("OtherActor", text.format(move["live"]), False)


# ------------------------------------------------------------------------------------------ signature


def signature_text(signature):
    return (files.read_text(signature["live"]) or "").strip()


def is_zeros(text):
    return bool(text) and not set(text) - set("0")


def invalidate(signature):
    """Zeros, on the disk: from here a boot of CloudStack's takes nothing of this VM for patched."""
    live = signature["live"]
    if is_zeros(signature_text(signature)):
        return
    backup = signature["backup"]
    if signature["old"]["kind"] == "file":
        if is_zeros((files.read_text(backup) or "").strip()):
            # The original came back by an exchange just before a restart.
            files.unlink_if_there(backup)
        if not files.exists(backup):
            # Without a backup what is live is the original: not yet replaced, or put back just before a restart.
            files.link(live, backup)
            sync_parents(backup)
    zeros = signature["zeros"]
    if not files.exists(zeros):
        # The first zeros are used up when a commit, or a way back that was cut at its end, is gone back from.
        zeros += ".again"
        facts = files.facts_of(live)
        files.unlink_if_there(zeros)
        files.write_new(zeros, [b"0" * len(signature["new_text"]) + b"\n"], facts.get("mode", 0o644))
        if "uid" in facts:
            files.set_owner(zeros, facts["uid"], facts["gid"])
    # A restart before this line finds the original bytes and nothing changed; after it zeros, and the original aside.
    files.rename(zeros, live)
    sync_parents(live)


def restore_signature(signature):
    """The original bytes, owner and times; the very last change of going back."""
    live = signature["live"]
    if signature["old"]["kind"] == "absent":
        files.unlink_if_there(live)
        sync_parents(live)
        return
    backup = signature["backup"]
    if not files.exists(backup):
        if not matches(live, build.identity(signature["old"])):
            raise Lost("the original signature is gone")
        return
    if not matches(live, build.identity(signature["old"])):
        _refuse_foreign(signature_text(signature))
        # A restart after this line finds the original in place and zeros aside, which `invalidate` knows.
        _exchange_or_rename(backup, live)
        if files.exists(backup):
            _keep_foreign(backup, live)
    try:
        files.unlink_if_there(backup)
    except FileNotFoundError:
        pass


def commit_signature(signature):
    """The new signature; the very last change of a commit. Raises `Failure` if the zeros were written over."""
    live, staged = signature["live"], signature["new"]
    if signature_text(signature) != signature["new_text"]:
        if not files.exists(staged):
            raise Lost("the new signature is gone")
        _refuse_foreign(signature_text(signature))
        _exchange_or_rename(staged, live)
    if files.exists(staged):
        # A restart before this looks again.
        _keep_foreign(staged, live)
        # The zeros that came out of it: with them taking this patch back later needs no space.
        files.rename(staged, signature["zeros"])


def _exchange_or_rename(source, live):
    """`source` becomes what is live, and what was live lies at `source`, where the file system can do it."""
    try:
        files.exchange(source, live)
    except OSError as error:
        if error.errno not in files.NO_EXCHANGE:
            raise
        files.rename(source, live)
    sync_parents(live)


def _keep_foreign(taken, live):
    """`taken` was live until the exchange: zeros, or what somebody wrote after our last look; that has to stay."""
    try:
        _refuse_foreign((files.read_text(taken) or "").strip())
    except Failure:
        files.exchange(taken, live)
        sync_parents(live, taken)
        raise


def _refuse_foreign(text):
    if not is_zeros(text):
        raise Failure("OtherActor", "the signature was written by somebody else: {0}".format(text[:40]))
