"""A backup before somebody else changes this VM: CloudStack's own live patch can neither go back nor say what it did.

It is an operation like any other, committed at once: everything that a patch of CloudStack's writes lies beside its
target as it was, and `back` restores it with the same moves as after a patch of ours. Nothing of the VM's own changes.

A restart while it is made finds Staging, and gives up; one after its last record finds a backup.
"""

import os
import stat

from . import actors, agent, build, files, steady
from . import journal as journals
from . import order as orders
from .failover import PairServices as Services
from .failures import Failure
from .store import times_of

LEFT_BY_OTHERS = actors.STAGED[:3]
"""Where CloudStack stages its patch. A patch that was cut leaves it lying, and the next boot would install it."""


def check(args):
    """(order, paths, runtime, trees). Raises `Failure` unless they have the shape that protocol.py describes."""
    order = orders.check(args["order"])
    seen = set()
    for path in args["paths"]:
        orders.check_path(path, seen)
    for path, digest in sorted(args["runtime"].items()):
        orders.check_path(path, seen)
        orders.check_digest(digest)
    for tree in args["trees"]:
        orders.check_path(tree["path"], seen)
        if not all(isinstance(pattern, str) for pattern in tree["copied"]):
            orders.refuse("patterns of {0} that are no text".format(tree["path"]))
    if order["trees"] or order["files"] or order["remove"] or order["payload"] is not None:
        orders.refuse("a backup that changes something")
    paths = list(args["paths"])
    paths += [path for path in LEFT_BY_OTHERS + (actors.PAYLOAD,) if path not in seen]
    orders.check_overlap(args, seen)
    return order, paths, args["runtime"], args["trees"]


def stage_folders(host, order, paths, trees):
    """As for an order that changes all of them."""
    return build.stage_folders(host, dict(order, remove=paths, trees=[dict(tree, files=()) for tree in trees]))


class Keeper(build.Builder):
    """Copies what may be written in its place; what is only ever replaced gets a second name."""

    def __init__(self, host, order, paths, runtime, trees):
        stages = stage_folders(host, order, paths + sorted(runtime), trees)
        build.Builder.__init__(self, host, order, stages, None)
        self.paths = paths
        self.runtime = runtime
        self.trees = trees

    def preflight(self):
        """Space for the copies and, beside them, for what the order says that others need. Raises `DiskFull`."""
        need, count = {}, {}
        for real in self.copied():
            mount = self.host.mount_of(real)[0]
            found = os.lstat(real)
            need[mount] = need.get(mount, 0) + (found.st_size if stat.S_ISREG(found.st_mode) else 0)
            count[mount] = count.get(mount, 0) + 1
        for mount, stage in sorted(self.stages.items()):
            available, inodes = self.host.space(os.path.dirname(stage))
            wanted = need.get(mount, 0) + self.order["reserve_bytes"]
            if available < wanted:
                text = "{0} has {1} MiB free, {2} MiB are needed for a backup and CloudStack's own patch"
                raise Failure("DiskFull", text.format(self.host.name(mount) or mount, available >> 20, wanted >> 20))
            if 0 <= inodes < count.get(mount, 0) + self.order["reserve_inodes"]:
                raise Failure("DiskFull", "{0} has only {1} inodes free".format(mount, inodes))

    def copied(self):
        """Real paths of what is copied."""
        for path in self.paths + sorted(self.runtime):
            real = self.host.at(path)
            if files.exists(real):
                yield real
        for tree in self.trees:
            live = self.host.at(tree["path"])
            for relative, found in files.walk(live, ()) if os.path.isdir(live) else ():
                if not stat.S_ISDIR(found.st_mode) and build.is_runtime(tree["copied"], relative):
                    yield os.path.join(live, relative)

    def keep(self, operation, journal):
        """Everything, then the plan, then the journal's word."""
        for stage in self.stages.values():
            for name in ("files", "back", "trees"):
                files.make_folders(os.path.join(stage, name), 0o700)
        self.folders()
        for number, path in enumerate(self.paths):
            self.single_copy(number, path)
        for number, path in enumerate(sorted(self.runtime)):
            self.runtime_copy(number, path)
        for number, tree in enumerate(self.trees):
            self.tree_copy(number, tree)
        signature = self.signature()
        if signature["old"]["kind"] == "file":
            self.copy(signature["live"], signature["backup"])
        self.parents -= set(os.path.dirname(stage) for stage in self.stages.values())
        for stage in self.stages.values():
            for folder in [""] + [relative for relative, found in files.walk(stage, ()) if stat.S_ISDIR(found.st_mode)]:
                files.sync_folder(os.path.join(stage, folder))
        operation.save("old.json", self.old)
        operation.save(
            "plan.json",
            {
                "kept": True,
                "moves": self.moves,
                "payload": None,
                "signature": signature,
                "times": times_of(self.parents),
                "exchange": True,
                "changed": [],
                "notes": [],
            },
        )
        journal.add("baseline", value=self.baseline())

    def baseline(self):
        """What was active before others came must be active after their work was taken back."""
        found = Services.measure(self.host, self.order)
        found["checks"] = []
        found["payload"] = actors.mark(self.host, actors.PAYLOAD)
        found["agent"] = agent.measure(self.host, self.order)
        found["unsteady"] = steady.unsteady(self.host, [service["unit"] for service in self.order["services"]])
        return found

    # -------------------------------------------------------------------------------------- copies

    def single_copy(self, number, path):
        real = self.host.at(path)
        stage = self.stage_for(real)
        backup = os.path.join(stage, "back", "f{0}".format(number))
        aside = os.path.join(stage, "files", "{0}".format(number))
        facts = self.old[real] = files.facts_of(real)
        if facts["kind"] == "absent":
            self.add_move("put", real, stage=aside, backup=backup, new=None)
        elif facts["kind"] in ("file", "link"):
            self.copy(real, backup)
            self.add_move("replace", real, stage=aside, backup=backup, new=None)
        else:
            # CloudStack's tar cannot put a file over it either.
            del self.old[real]

    def runtime_copy(self, number, path):
        """It goes back only over what others bring: whatever the VM has written since is newer and right."""
        real = self.host.at(path)
        if files.facts_of(real)["kind"] != "file":
            return
        backup = os.path.join(self.stage_for(real), "back", "v{0}".format(number))
        self.copy(real, backup)
        self.parents.add(os.path.dirname(real))
        self.moves.append({"op": "keep-runtime", "live": real, "backup": backup, "theirs": self.runtime[path]})

    def tree_copy(self, number, tree):
        live = self.host.at(tree["path"])
        stage = self.stage_for(live)
        kept = os.path.join(stage, "trees", "{0}".format(number), os.path.basename(live))
        files.make_folders(os.path.dirname(kept), 0o700)
        self.parents.add(os.path.dirname(live))
        if not files.exists(live):
            self.moves.append({"op": "put-tree", "live": live, "stage": kept})
            return
        if os.path.islink(live) or not os.path.isdir(live):
            raise Failure("BuildFailed", "{0} is not a folder on the VM".format(tree["path"]), False)
        folder_times = []
        witnesses = []
        files.mkdir(kept, 0o700)
        self.copy_folder(live, kept, folder_times)
        for relative, found in files.walk(live, ()):
            source, target = os.path.join(live, relative), os.path.join(kept, relative)
            if stat.S_ISDIR(found.st_mode):
                files.mkdir(target, 0o700)
                self.copy_folder(source, target, folder_times)
                continue
            if stat.S_ISREG(found.st_mode) and build.is_runtime(tree["copied"], relative):
                self.copy(source, target)
            else:
                files.link(source, target)
            if "__pycache__" not in relative.split("/"):
                self.old[source] = files.facts_of(target)
                witnesses.append({"path": relative, "old": build.identity(self.old[source])})
        for path, found in reversed(folder_times):
            files.set_times(path, found.st_atime_ns, found.st_mtime_ns)
        self.moves.append({"op": "keep-tree", "live": live, "stage": kept, "witnesses": witnesses})

    def copy(self, source, target):
        """The same file or link once more, whatever becomes of the first."""
        found = os.lstat(source)
        facts = files.facts_of(source)
        if facts["kind"] == "link":
            files.symlink(facts["link"], target)
        else:
            files.write_new(target, files.chunks_of(source), 0o600)
            if files.checksum(target, "sha256") != facts["sha256"]:
                raise Failure("OtherActor", "{0} changed while it was copied".format(self.host.name(source)))
            files.copy_xattrs(source, target)
        files.set_owner(target, found.st_uid, found.st_gid)
        if facts["kind"] == "file":
            os.chmod(target, facts["mode"])
        files.set_times(target, found.st_atime_ns, found.st_mtime_ns)


def finish(operation, journal):
    """The last record: from here on there is a backup."""
    journal.add("step", name="Build", state="done")
    journal.enter(journals.COMMITTED, None, "the files as they were before a live patch of CloudStack's own are kept")
