"""From an order to a plan: everything new lies ready on its target's own file system, nothing of the VM has changed.

After `build` the switch needs no space and makes no decision: the plan is a list of moves, each of which can be told to
be done or not done by looking at the files alone.
"""

import fnmatch
import os
import posixpath
import stat
import time

from . import actors, files
from . import order as orders
from .failures import Failure
from .host import TRANSIENT_FOLDERS
from .store import times_of

OWNED = ("kind", "mode", "uid", "gid", "size", "mtime_ns")


def stage_folders(host, order):
    """{mount point: staging folder} (real paths). One for each file system that something is renamed on: beside
    /opt/cloud where that is its file system, else in a place that no daemon reads."""
    stages = {}
    homes = ["/opt"] + [posixpath.dirname(tree["path"]) for tree in order["trees"]] + ["/var/lib/sysvm"]
    for folder in orders.parent_folders(order):
        real = host.resolve(folder)
        mount, kind = host.mount_of(real)
        if kind in TRANSIENT_FOLDERS and not host.scratch:
            raise Failure(
                "BuildFailed", "{0} lies on {1} ({2}): nothing can be kept there".format(folder, mount, kind), False
            )
        if mount in stages:
            continue
        place = mount
        for home in homes:
            there = host.resolve(home)
            if os.path.isdir(there) and host.mount_of(there)[0] == mount:
                place = there
                break
        stages[mount] = os.path.join(place, ".sysvm-" + order["id"])
    return stages


class Content(object):
    """Bytes by digest: what was staged, and what lies on the VM already."""

    def __init__(self, host, order, folder):
        self.host = host
        self.folder = folder
        self._wanted = orders.contents(order)
        self._live = {}
        for path, entry in orders.entries(order):
            if entry["sha256"] is not None:
                self._look(path)
        if order["payload"] is not None:
            self._look(order["payload"]["path"])

    def _look(self, path):
        real = self.host.at(path)
        try:
            facts = files.facts_of(real)
        except OSError:
            return
        if facts.get("sha256") in self._wanted:
            self._live[facts["sha256"]] = real

    def staged(self, digest):
        return os.path.join(self.folder, digest)

    def missing(self):
        return sorted(
            digest for digest in self._wanted if digest not in self._live and not files.exists(self.staged(digest))
        )

    def size(self, digest):
        return self._wanted.get(digest)

    def source(self, digest):
        """(path, staged): a file that has these bytes, and whether it is ours to link to."""
        staged = self.staged(digest)
        if files.exists(staged):
            return staged, True
        if digest in self._live:
            return self._live[digest], False
        raise Failure("BuildFailed", "content {0} was not sent".format(digest))


class Builder(object):
    def __init__(self, host, order, stages, content):
        self.host = host
        self.order = order
        self.stages = stages
        self.content = content
        self.now_ns = int(time.time() * 1000000000)
        self.linked = set()
        self.moves = []
        self.old = {}
        self.changed = []
        self.notes = []
        self.parents = set()

    def stage_for(self, real):
        return self.stages[self.host.mount_of(os.path.dirname(real))[0]]

    # -------------------------------------------------------------------------------------- whole

    def build(self):
        """Everything new, and the plan. What an earlier attempt left is removed first."""
        for stage in self.stages.values():
            for name in ("trees", "files", "back", "try", "debs"):
                files.remove_tree(os.path.join(stage, name))
            for name in ("files", "back", "trees"):
                files.make_folders(os.path.join(stage, name), 0o700)
        exchange = all([self.try_exchange(stage) for stage in self.stages.values()])
        self.folders()
        for number, entry in enumerate(self.order["files"]):
            self.single(number, entry)
        for number, path in enumerate(self.order["remove"]):
            self.removal(number, path)
        self.stale_payloads()
        for number, tree in enumerate(self.order["trees"]):
            self.tree(number, tree)
        payload = self.payload()
        # Where the staging folders lie, the times of before them are in the journal's first record.
        self.parents -= set(os.path.dirname(stage) for stage in self.stages.values())
        plan = {
            "moves": self.moves,
            "payload": payload,
            "debs": self.debs(),
            "signature": self.signature(),
            "times": times_of(self.parents),
            "exchange": exchange,
            "changed": sorted(self.changed),
            "notes": self.notes,
        }
        for stage in self.stages.values():
            for folder in [""] + [relative for relative, found in files.walk(stage, ()) if stat.S_ISDIR(found.st_mode)]:
                files.sync_folder(os.path.join(stage, folder))
        return plan

    def try_exchange(self, stage):
        one, other = os.path.join(stage, "try", "one"), os.path.join(stage, "try", "other")
        for folder in (one, other):
            files.make_folders(folder, 0o700)
        try:
            files.exchange(one, other)
            return True
        except OSError as error:
            if error.errno not in files.NO_EXCHANGE:
                raise
            text = "{0} cannot exchange folders: files are renamed one by one there"
            self.notes.append(text.format(self.host.name(os.path.dirname(stage))))
            return False
        finally:
            files.remove_tree(os.path.join(stage, "try"))

    # -------------------------------------------------------------------------------------- moves

    def folders(self):
        for folder in self.order["folders"]:
            real = self.host.at(folder["path"])
            if files.exists(real):
                continue
            self.parents.add(os.path.dirname(real))
            self.moves.append(
                {"op": "mkdir", "live": real, "mode": folder["mode"], "uid": folder["uid"], "gid": folder["gid"]}
            )

    def single(self, number, entry):
        real = self.host.at(entry["path"])
        facts = self.look(real, entry)
        wanted = wanted_facts(entry, facts)
        if same(facts, wanted):
            return
        if facts["kind"] in ("folder", "other"):
            raise Failure("BuildFailed", "{0} is a {1} on the VM".format(entry["path"], facts["kind"]), False)
        stage = self.stage_for(real)
        staged = os.path.join(stage, "files", "{0}".format(number))
        self.write(entry, wanted, facts, staged, real)
        op = "put" if facts["kind"] == "absent" else "replace"
        self.add_move(op, real, stage=staged, backup=os.path.join(stage, "back", "f{0}".format(number)), new=wanted)
        self.changed.append(entry["path"])

    def removal(self, number, path):
        real = self.host.at(path)
        facts = files.facts_of(real)
        self.old[real] = facts
        if facts["kind"] == "absent":
            return
        self.add_move(
            "remove", real, backup=os.path.join(self.stage_for(real), "back", "r{0}".format(number)), new=None
        )
        self.changed.append(path)

    def stale_payloads(self):
        """A payload that a patch of CloudStack's left is what the next boot installs: it goes with the switch,
        and comes back with it."""
        for path in actors.stale_payloads(self.host):
            self.removal("s" + os.path.basename(path), path)
            text = "{0} was left by another patch and would be installed by the next boot: it is removed"
            self.notes.append(text.format(path))

    def payload(self):
        """The move of the tgz, done at commit. It is no part of `moves`: until then a boot must find the old one."""
        wanted = self.order["payload"]
        if wanted is None:
            return None
        entry = dict(wanted, link=None, mode=0o644, uid=0, gid=0, keep_mode=True, keep_owner=True, executable=None)
        if self.host.scratch:
            entry.update(uid=os.getuid(), gid=os.getgid())
        real = self.host.at(wanted["path"])
        facts = self.look(real, entry)
        new = wanted_facts(entry, facts)
        if same(facts, new):
            return None
        stage = self.stage_for(real)
        staged = os.path.join(stage, "files", "payload")
        self.write(entry, new, facts, staged, real)
        self.parents.add(os.path.dirname(real))
        op = "put" if facts["kind"] == "absent" else "replace"
        return {
            "op": op,
            "live": real,
            "stage": staged,
            "backup": os.path.join(stage, "back", "payload"),
            "old": identity(facts),
            "new": new,
        }

    def debs(self):
        """Debian packages, each under a name of its own: what was staged goes when all is built."""
        folder = os.path.join(os.path.dirname(self.content.folder), "debs")
        placed = []
        for deb in (self.order.get("packages") or {}).get("debs", []):
            if not placed:
                files.make_folders(folder, 0o700)
            path = os.path.join(folder, "{0}.deb".format(len(placed)))
            source, ours = self.content.source(deb["sha256"])
            if ours:
                files.link(source, path)
            else:
                files.write_new(path, files.chunks_of(source), 0o600)
            if files.checksum(path, "sha256") != deb["sha256"]:
                raise Failure("BuildFailed", "{0} changed while it was copied".format(self.host.name(source)))
            placed.append({"name": deb["name"], "path": path})
        return placed

    def signature(self):
        """The old text, the zeros and the new text, written now: changing the signature later needs no space."""
        real = self.host.at(orders.SIGNATURE)
        facts = files.facts_of(real)
        self.old[real] = facts
        if facts["kind"] not in ("file", "absent"):
            raise Failure("BuildFailed", "{0} is a {1}".format(orders.SIGNATURE, facts["kind"]), False)
        stage = self.stage_for(real)
        self.parents.add(os.path.dirname(real))
        text = self.order["signature"]
        names = {}
        for name, content in (("zeros", "0" * len(text)), ("new", text)):
            path = os.path.join(stage, "files", "signature." + name)
            files.write_new(path, [content.encode() + b"\n"], facts.get("mode", 0o644))
            if "uid" in facts:
                files.set_owner(path, facts["uid"], facts["gid"])
            names[name] = path
        names["backup"] = os.path.join(stage, "back", "signature")
        return dict(names, live=real, old=facts, new_text=text)

    def add_move(self, op, real, **values):
        self.parents.add(os.path.dirname(real))
        self.moves.append(dict(values, op=op, live=real, old=identity(self.old[real])))

    def look(self, real, entry):
        """Facts of what is there now, compared with what the operator saw (compare-and-swap)."""
        facts = files.facts_of(real)
        self.old[real] = facts
        expect(self.host, real, facts, entry)
        return facts

    # -------------------------------------------------------------------------------------- trees

    def tree(self, number, tree):
        live = self.host.at(tree["path"])
        if os.path.islink(live) or (files.exists(live) and not os.path.isdir(live)):
            raise Failure("BuildFailed", "{0} is not a folder on the VM".format(tree["path"]), False)
        exists = os.path.isdir(live)
        if exists and self.host.mount_of(live)[0] != self.host.mount_of(os.path.dirname(live))[0]:
            raise Failure("BuildFailed", "{0} is a mount point: it cannot be exchanged".format(tree["path"]), False)
        stage = self.stage_for(live)
        new = os.path.join(stage, "trees", "{0}".format(number), os.path.basename(live))
        files.make_folders(os.path.dirname(new), 0o700)
        entries = dict((entry["path"], entry) for entry in tree["files"])
        new_folders = dict((folder["path"], folder) for folder in tree["folders"])
        witnesses = []
        folder_times = []
        files.mkdir(new, 0o755)
        if exists:
            self.copy_folder(live, new, folder_times)
            for relative, found in files.walk(live):
                self.tree_member(tree, live, new, relative, found, entries, witnesses, folder_times)
        for relative in sorted(new_folders):
            self.new_folder(new, relative, new_folders, witnesses)
        for relative in sorted(entries):
            path = os.path.join(live, relative)
            if path in self.old:
                continue
            entry = entries[relative]
            facts = self.look(path, entry)
            wanted = wanted_facts(entry, facts)
            self.new_folder(new, posixpath.dirname(relative), new_folders, witnesses)
            self.write(entry, wanted, facts, os.path.join(new, relative), path)
            witnesses.append({"path": relative, "old": identity(facts), "new": wanted})
        for path, found in reversed(folder_times):
            files.set_times(path, found.st_atime_ns, found.st_mtime_ns)
        if not witnesses:
            # Nothing in it changes, so there is nothing to exchange; the copy goes, the live one is never touched.
            files.remove_tree(new)
            return
        self.changed.extend(posixpath.join(tree["path"], witness["path"]) for witness in witnesses)
        self.parents.add(os.path.dirname(live))
        self.moves.append(
            {
                "op": "exchange" if exists else "put-tree",
                "live": live,
                "stage": new,
                "back": os.path.join(stage, "back", "t{0}".format(number)),
                "witnesses": witnesses,
                "runtime": tree["runtime"],
                "properties": tree.get("properties", []),
            }
        )

    def tree_member(self, tree, live, new, relative, found, entries, witnesses, folder_times):
        """One thing of the live tree: kept by a hard link, written anew, or left out."""
        source, target = os.path.join(live, relative), os.path.join(new, relative)
        if any(relative == path or relative.startswith(path + "/") for path in tree["remove"]):
            if not stat.S_ISDIR(found.st_mode):
                self.old[source] = files.facts_of(source)
                witnesses.append({"path": relative, "old": identity(self.old[source]), "new": {"kind": "absent"}})
            else:
                witnesses.append({"path": relative, "old": folder_facts(source), "new": {"kind": "absent"}})
            return
        if stat.S_ISDIR(found.st_mode):
            if relative in entries:
                raise Failure("BuildFailed", "{0} is a folder on the VM".format(self.host.name(source)), False)
            files.mkdir(target, 0o700)
            self.copy_folder(source, target, folder_times)
            return
        runtime = is_runtime(tree["runtime"], relative)
        entry = entries.get(relative)
        if entry is None:
            if not runtime:
                self.old[source] = files.facts_of(source)
            files.link(source, target)
            return
        facts = self.look(source, entry)
        wanted = wanted_facts(entry, facts)
        if same(facts, wanted):
            files.link(source, target)
            return
        self.write(entry, wanted, facts, target, source)
        witnesses.append({"path": relative, "old": identity(facts), "new": wanted})

    def copy_folder(self, source, target, folder_times):
        found = os.lstat(source)
        files.set_owner(target, found.st_uid, found.st_gid)
        os.chmod(target, stat.S_IMODE(found.st_mode))
        files.copy_xattrs(source, target)
        folder_times.append((target, found))

    def new_folder(self, new, relative, described, witnesses):
        """A folder that the new tree lacks, its parents first; one that is there is left as it is."""
        path = os.path.join(new, relative)
        if not relative or os.path.isdir(path):
            return
        self.new_folder(new, posixpath.dirname(relative), described, witnesses)
        facts = described.get(relative)
        files.mkdir(path, facts["mode"] if facts else 0o755)
        if facts:
            files.set_owner(path, facts["uid"], facts["gid"])
        witnesses.append({"path": relative, "old": {"kind": "absent"}, "new": folder_facts(path)})

    # -------------------------------------------------------------------------------------- content

    def write(self, entry, wanted, facts, target, live):
        """The new file or link at `target`, complete, with the owner, mode and attributes it will have."""
        if entry["link"] is not None:
            files.symlink(entry["link"], target)
            files.set_owner(target, wanted["uid"], wanted["gid"])
            return
        source, ours = self.content.source(entry["sha256"])
        if ours and entry["sha256"] not in self.linked and self.same_mount(source, target):
            # Staged bytes are already on the disk: the first place that wants them takes the file itself.
            files.link(source, target)
            self.linked.add(entry["sha256"])
        else:
            files.write_new(target, files.chunks_of(source), 0o600)
        if files.checksum(target, "sha256") != entry["sha256"]:
            raise Failure("BuildFailed", "{0} changed while it was copied".format(self.host.name(source)))
        files.set_owner(target, wanted["uid"], wanted["gid"])
        if facts["kind"] == "file":
            files.copy_xattrs(live, target)
        os.chmod(target, wanted["mode"])
        # An interpreter tells old bytecode by size and whole second
        mtime_ns = max(self.now_ns, facts.get("mtime_ns", 0) + 1000000000)
        files.set_times(target, mtime_ns, mtime_ns)

    def same_mount(self, one, other):
        return self.host.mount_of(one)[0] == self.host.mount_of(os.path.dirname(other))[0]


def expect(host, real, facts, entry):
    if "expect" in entry and facts.get("sha256") != entry["expect"]:
        text = "{0} is not what the order was made for: somebody changed it since"
        raise Failure("OtherActor", text.format(host.name(real)))


def folder_facts(path):
    found = os.lstat(path)
    return {"kind": "folder", "mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}


def is_runtime(patterns, relative):
    return any(fnmatch.fnmatchcase(relative, pattern) for pattern in patterns)


def wanted_facts(entry, facts):
    """What a path is to be, given what it is."""
    exists = facts["kind"] in ("file", "link")
    keep_owner = exists and entry["keep_owner"]
    wanted = {
        "uid": facts["uid"] if keep_owner else entry["uid"],
        "gid": facts["gid"] if keep_owner else entry["gid"],
    }
    if entry["link"] is not None:
        return dict(wanted, kind="link", link=entry["link"])
    mode = facts["mode"] if facts["kind"] == "file" and entry["keep_mode"] else entry["mode"]
    if entry["executable"] is True:
        mode |= (mode & 0o444) >> 2
    elif entry["executable"] is False:
        mode &= ~0o111
    return dict(wanted, kind="file", mode=mode, sha256=entry["sha256"])


def same(facts, wanted):
    return all(facts.get(key) == value for key, value in wanted.items())


def identity(facts):
    """The part of the facts that tells one state from another, whatever was remounted in between."""
    keys = ("kind", "mode", "uid", "gid", "sha256", "link")
    if facts["kind"] == "folder":
        keys = ("kind",)
    if facts["kind"] == "link":
        keys = ("kind", "uid", "gid", "link")
    return dict((key, facts[key]) for key in keys if key in facts)


def changed_since(host, plan, old):
    """Paths that differ from what `build` saw, in a tree also those that came since: another hand was there."""
    changed = []
    for real in sorted(old):
        now = files.facts_of(real, content=False)
        if any(now.get(key) != old[real].get(key) for key in OWNED + ("link",)) and old[real]["kind"] != "folder":
            changed.append(host.name(real))
    for move in plan["moves"]:
        if move["op"] == "exchange":
            for relative, found in files.walk(move["live"]):
                real = os.path.join(move["live"], relative)
                known = stat.S_ISDIR(found.st_mode) or is_runtime(move["runtime"], relative) or real in old
                if not known:
                    changed.append(host.name(real))
    return changed


def preflight(host, order, stages, content):
    """Space, inodes and memory for the whole way there and back. Raises `DiskFull` or `MemoryLow`."""
    need = {}
    missing_somewhere = {}
    for path, entry in orders.entries(order):
        real = host.at(path)
        if entry["sha256"] is not None and files.facts_of(real).get("sha256") != entry["sha256"]:
            mount = host.mount_of(real)[0]
            need[mount] = need.get(mount, 0) + entry["size"]
    if order["payload"] is not None:
        mount = host.mount_of(host.at(order["payload"]["path"]))[0]
        need[mount] = need.get(mount, 0) + order["payload"]["size"]
    for deb in (order.get("packages") or {}).get("debs", []):
        # Packed and unpacked, on whatever file system; half of it is asked for twice below.
        for path in ("/var/lib/dpkg", "/usr"):
            mount = host.mount_of(host.at(path))[0]
            need[mount] = need.get(mount, 0) + 4 * deb["size"]
    count = len(list(orders.entries(order)))
    for mount, stage in sorted(stages.items()):
        available, inodes = host.space(os.path.dirname(stage))
        wanted = 2 * need.get(mount, 0) + order["reserve_bytes"]
        if available < wanted:
            text = "{0} has {1} MiB free, {2} MiB are needed; nothing was changed"
            missing_somewhere[mount] = text.format(host.name(mount) or mount, available >> 20, (wanted >> 20) + 1)
        elif 0 <= inodes < count + order["reserve_inodes"]:
            text = "{0} has {1} inodes free, {2} are needed; nothing was changed"
            missing_somewhere[mount] = text.format(mount, inodes, count + order["reserve_inodes"])
    if missing_somewhere:
        raise Failure("DiskFull", "; ".join(missing_somewhere[mount] for mount in sorted(missing_somewhere)))
    memory = host.memory_available()
    if memory < order["min_memory_bytes"]:
        text = "{0} MiB of memory are available, {1} MiB are needed; nothing was changed"
        raise Failure("MemoryLow", text.format(memory >> 20, order["min_memory_bytes"] >> 20))
