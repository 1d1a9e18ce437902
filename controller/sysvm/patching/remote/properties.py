"""The agent's own settings when its folder is exchanged: what the VM and the management server wrote stays, keys that
only the new release knows are added, and taken away again on the way back.

It happens at the switch, when the agent is down, because until then it may write the file.
"""

import errno
import os

from . import files


def key_of(line):
    """The key of a line of a Java properties file, None of a comment or an empty line."""
    text = line.strip()
    if not text or text[:1] in ("#", "!"):
        return None
    cut = min([text.find(mark) for mark in "=:" if mark in text] or [len(text)])
    return text[:cut].strip() or None


def keys(text):
    return set(key_of(line) for line in text.splitlines()) - set([None])


def added(text, lines):
    """`text` with those of `lines` whose key it has not. A value that is there is never changed."""
    known = keys(text)
    more = [line for line in lines if key_of(line) and key_of(line) not in known]
    if not more:
        return text
    return text + ("" if not text or text.endswith("\n") else "\n") + "".join(line + "\n" for line in more)


def without(text, lines, before):
    """`text` without those of `lines` that `added` had put to `before` and that nobody has changed since."""
    ours = set(line for line in lines if key_of(line) not in keys(before))
    return "".join(line for line in text.splitlines(True) if line.rstrip("\r\n") not in ours)


def add(move):
    """Forward, the runtime files being linked into the new tree: there it gets a file of its own if a key is new."""
    for one in move.get("properties", []):
        live, new = os.path.join(move["live"], one["path"]), os.path.join(move["stage"], one["path"])
        text = files.read_text(live)
        if text is not None and added(text, one["lines"]) != text:
            write(live, new, added(text, one["lines"]))


def take_away(move):
    """Back, before the exchange. Returns the paths that are right in the old tree already, so not to be linked."""
    right = set()
    for one in move.get("properties", []):
        live, old = os.path.join(move["live"], one["path"]), os.path.join(move["stage"], one["path"])
        now, before = files.read_text(live), files.read_text(old)
        if now is None or before is None:
            continue
        if now != added(before, one["lines"]):
            # Somebody wrote to it since, and that is newer than what the old tree has.
            try:
                write(live, old, without(now, one["lines"], before))
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                # A key too many does no harm; going back must not need space.
                continue
        right.add(one["path"])
    return right


def write(like, path, text):
    """`text` at `path`, with owner, mode and attributes of `like`; another file than the one that was linked there."""
    found = os.lstat(like)
    beside = path + ".sysvm"
    files.unlink_if_there(beside)
    try:
        files.write_new(beside, [text.encode("utf-8", "surrogateescape")], 0o600)
        files.set_owner(beside, found.st_uid, found.st_gid)
        files.copy_xattrs(like, beside)
        os.chmod(beside, found.st_mode & 0o7777)
        files.rename(beside, path)
    except OSError:
        files.unlink_if_there(beside)
        raise
    files.sync_folder(os.path.dirname(path))
