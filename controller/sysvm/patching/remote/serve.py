"""One session: requests in, answers out. The words are those of protocol.py, the work is done elsewhere."""

import os
import platform
import time

from . import actors, arriving, build, checks, digests, files, keeping, login, look, packages, worker
from . import journal as journals
from . import order as orders
from .failures import NO_SPACE, Failure, of
from .host import cmdline_words
from .journal import Journal
from .store import times_of
from .transaction import Transaction, recover_all, tidy
from .wire import MAX_BYTES, VERSION, Closed

FOLLOW_SECONDS = 0.1
EVENT_SECONDS = 0.25
START_SECONDS = 15.0
OTHERWISE = {
    "begin": "StageFailed",
    "stage": "StageFailed",
    "build": "BuildFailed",
    "keep": "BuildFailed",
    "run": "SwitchFailed",
}
"""Reasons of what the system refuses, by verb."""


class Session(object):
    def __init__(self, wire, host, store, bundle, digest, keep_compiled=None):
        """`keep_compiled(folder)`: called when the program lies in that folder."""
        self.wire = wire
        self.host = host
        self.store = store
        self.bundle = bundle
        self.digest = digest
        self.keep_compiled = keep_compiled
        self.order = None
        self.operation = None
        self.journal = None
        self.content = None
        self.stages = None

    def serve(self):
        """Until the other end says bye or is gone."""
        self.wire.open()
        hello = {"hello": "sysvm", "version": VERSION, "program": self.digest, "python": platform.python_version()}
        self.wire.send(hello)
        try:
            while True:
                request = self.wire.receive()
                if request is None or not self.answer(request):
                    return
        finally:
            self.let_go()

    def answer(self, request):
        number, verb = request.get("id"), request.get("verb")
        handler = getattr(self, "do_" + str(verb).replace("-", "_"), None)
        try:
            if handler is None:
                raise Failure("ProtocolError", "unknown verb {0!r}".format(verb), False)
            result = handler(number, request.get("args") or {})
        except Closed:
            raise
        except (Failure, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, (KeyError, TypeError, ValueError)):
                error = Failure("ProtocolError", "{0}: {1}: {2}".format(verb, type(error).__name__, error), False)
            reason, message = of(error, OTHERWISE.get(verb, "ProtocolError"))
            retryable = getattr(error, "retryable", True)
            value = {"reason": reason, "message": message, "retryable": retryable, "changed": False}
            self.wire.send({"id": number, "error": value})
            return True
        content = result.pop("content", None)
        self.wire.send({"id": number, "result": result})
        if content:
            self.wire.send_bytes(content)
        return verb != "bye"

    def let_go(self):
        if self.journal is not None:
            self.journal.close()
            self.journal = None
        self.store.release_lock()
        self.operation = self.order = self.content = None

    def do_bye(self, number, args):
        return {}

    # -------------------------------------------------------------------------------------- looking

    def do_probe(self, number, args):
        samples = args.get("samples", 1), args.get("pause_seconds", 0.0)
        return look.probe(self.host, self.store, args["units"], args["paths"], *samples)

    def do_digest(self, number, args):
        with look.idle():
            found = digests.Known(self.store.home) if args.get("known") else digests.Read()
            result = look.digest(self.host, args["paths"], args["roots"], args["exclude"], found)
        if args.get("packages"):
            result["packages"] = packages.facts(self.host, args["packages"])
        return result

    def do_read(self, number, args):
        content, digest = look.read(self.host, args["path"])
        return {"size": -1 if content is None else len(content), "sha256": digest, "content": content}

    def do_checks(self, number, args):
        return checks.run(self.host, args["timeout_seconds"])

    def do_prove_login(self, number, args):
        return {"awaited": login.prove(self.store.operation(args["id"]))}

    def do_report(self, number, args):
        return {"report": self.store.report(self.store.operation(args["id"]))}

    # -------------------------------------------------------------------------------------- begin

    def do_begin(self, number, args):
        order = orders.check(args["order"])
        if self.operation is not None:
            raise Failure("ProtocolError", "this session has begun {0} already".format(self.operation.id), False)
        name = order["id"]
        ended = self.known_end(name)
        if ended:
            return ended
        if self.store.alive(name):
            return self.begun("running", [], self.store.report(self.store.operation(name)), None)
        self.store.take_lock(name)
        try:
            return self.begin(order)
        except BaseException:
            self.let_go()
            raise

    def known_end(self, name, recovered=None):
        report = self.store.report(self.store.operation(name))
        if report and report["phase"] in journals.FINAL:
            return self.begun("finished", [], report, recovered)
        return None

    @staticmethod
    def begun(state, missing, report, recovered):
        return {"state": state, "missing": missing, "report": report, "recovered": recovered}

    def begin(self, order):
        """The lock is held. Refuse, or leave a journal in phase Staging."""
        name = order["id"]
        self.store.check_epoch(order["epoch"])
        operation = self.store.operation(name)
        resumed = operation.report()
        resumable = resumed is not None and resumed["phase"] in journals.UNTOUCHED
        recovered = self.recover_others(name if resumable else None)
        ended = self.known_end(name, recovered)
        if ended:
            self.let_go()
            return ended
        self.refuse(order)
        # The highest epoch comes first: a restart after it refuses an older operator, and nothing else was written.
        self.store.raise_epoch(order["epoch"])
        self.stages = build.stage_folders(self.host, order)
        folder = self.content_folder(self.stages)
        self.content = build.Content(self.host, order, folder)
        build.preflight(self.host, order, self.stages, self.content)
        if resumable:
            self.journal = Journal.open(operation.journal_path)
            self.journal.enter(journals.STAGING)
            # The order was made of the VM as it is now, and need not name the packages that a cut left half way.
            packages.settle(self.host, self.journal, False)
        else:
            self.create(operation, order)
        self.install_program(list(self.stages.values()))
        for stage in self.stages.values():
            files.make_folders(stage, 0o700)
        files.make_folders(folder, 0o700)
        operation.save("order.json", order)
        operation.save("marks.json", actors.marks(self.host))
        self.order, self.operation = order, operation
        return self.begun("staging", self.content.missing(), None, recovered)

    # -------------------------------------------------------------------------------------- a backup alone

    def do_keep(self, number, args):
        """Take the lock, refuse or make a backup. Asked for again it is not made again."""
        order, paths, runtime, trees = keeping.check(args)
        if self.operation is not None:
            raise Failure("ProtocolError", "this session has begun {0} already".format(self.operation.id), False)
        operation = self.store.operation(order["id"])
        known = self.store.report(operation)
        if known and known["phase"] in journals.FINAL and known["phase"] != journals.ABANDONED:
            return {"report": known}
        self.store.take_lock(order["id"])
        try:
            self.store.check_epoch(order["epoch"])
            self.recover_others(None)
            self.refuse(order)
            self.store.raise_epoch(order["epoch"])
            keeper = keeping.Keeper(self.host, order, paths, runtime, trees)
            self.stages = keeper.stages
            keeper.preflight()
            self.create(operation, order)
            self.make_backup(operation, order, keeper)
            tidy(self.store, max(1, order["keep_backups"]))
        finally:
            self.let_go()
        return {"report": self.store.report(operation)}

    def make_backup(self, operation, order, keeper):
        try:
            self.install_program(list(self.stages.values()))
            for stage in self.stages.values():
                files.make_folders(stage, 0o700)
            operation.save("order.json", order)
            operation.save("marks.json", actors.marks(self.host))
            keeper.keep(operation, self.journal)
            keeping.finish(operation, self.journal)
        except (Failure, OSError):
            # A full disk refuses nothing here; if it does, the next session gives it up.
            self.journal.enter(journals.ABANDONED, None, "the backup was given up")
            tidy(self.store, None)
            raise

    def install_program(self, stages):
        self.store.install_program(self.digest, self.bundle, stages)
        if self.keep_compiled is not None:
            self.keep_compiled(os.path.dirname(self.store.program_path(self.digest)))

    def create(self, operation, order):
        """The journal comes before any staging folder: a restart finds it and knows what to remove."""
        files.make_folders(operation.folder, 0o700)
        first = {
            "kind": "begin",
            "at": round(time.time(), 3),
            "id": order["id"],
            "epoch": order["epoch"],
            "revision": order["revision"],
            "stages": sorted(self.stages.values()),
            "times": times_of(set(os.path.dirname(stage) for stage in self.stages.values())),
        }
        try:
            self.journal = Journal.create(operation.journal_path, first)
            self.journal.enter(journals.STAGING)
            self.journal.add("step", name="Stage", state="start")
        except OSError:
            files.remove_tree(operation.folder)
            raise

    def recover_others(self, keep):
        """Bring an interrupted operation to its end first; `keep` is one that this order resumes."""
        recovered = None
        for operation, _ in self.store.unfinished():
            if operation.id == keep:
                continue
            transaction = Transaction(self.host, self.store, operation)
            try:
                transaction.recover(False)
            finally:
                transaction.close()
            recovered = operation.report()
        tidy(self.store, None)
        return recovered

    def refuse(self, order):
        """Everything that must be so before a VM is touched. Raises `Failure`."""
        for operation, report in self.store.operations():
            if report["phase"] == journals.INCONSISTENT and not files.exists(operation.path("accepted")):
                text = "operation {0} left this VM inconsistent: a person has to look at it first ({1})"
                raise Failure("Inconsistent", text.format(operation.id, report["message"][:500]), False)
        kind = cmdline_words(self.host).get("type")
        if kind is None:
            raise Failure("NotASystemVM", "/var/cache/cloud/cmdline names no type", False)
        if kind != order["vm_type"]:
            raise Failure(
                "TypeMismatch", "this VM is a {0}, the order is for a {1}".format(kind, order["vm_type"]), False
            )
        if self.host.text("/var/cache/cloud/boot_up_done") is None:
            raise Failure("VMBusy", "CloudStack's boot scripts have not finished (no boot_up_done)")
        others = actors.blocking(self.host)
        if others:
            raise Failure("OtherActor", "somebody else patches this VM: " + "; ".join(others[:3]))
        for path, entry in orders.entries(order):
            if "expect" in entry:
                real = self.host.at(path)
                build.expect(self.host, real, files.facts_of(real), entry)

    def content_folder(self, stages):
        """Where content is staged: on the file system of /opt, or the first there is."""
        mount = self.host.mount_of(self.host.resolve("/opt"))[0]
        return os.path.join(stages.get(mount) or stages[sorted(stages)[0]], "content")

    def begun_operation(self):
        if self.operation is None:
            raise Failure("ProtocolError", "nothing was begun in this session", False)
        return self.operation

    # -------------------------------------------------------------------------------------- stage, build

    def do_stage(self, number, args):
        items = args["items"]
        total = 0
        failure = None
        # Frames are on their way already: on a failure the rest is read and dropped, then the error is told.
        for item in items:
            try:
                total += self.receive(item, failure is not None)
            except (Failure, OSError) as error:
                failure = failure or error
        if failure is not None:
            raise failure
        self.journal.add("received", bytes=total)
        return {"received_bytes": total, "missing": self.content.missing()}

    def receive(self, item, drop):
        """One item, of which every frame is taken whatever becomes of it."""
        frames = self.frames(item["wire_size"])
        if drop:
            for _ in frames:
                pass
            return 0
        try:
            self.begun_operation()
            size = self.content.size(item["sha256"])
            if size is None or size != item["size"] or size > arriving.MAX_CONTENT:
                raise Failure("StageFailed", "content {0} was not ordered".format(item["sha256"]), False)
            arriving.put(self.content.folder, item, frames)
            return item["wire_size"]
        finally:
            for _ in frames:
                pass

    def frames(self, missing):
        while missing > 0:
            chunk = self.wire.receive_bytes()
            missing -= len(chunk)
            if not chunk or missing < 0 or len(chunk) > MAX_BYTES:
                raise Closed("content does not have the announced size")
            yield chunk

    def do_expect(self, number, args):
        operation = self.begun_operation()
        missing = dict((digest, self.content.size(digest)) for digest in self.content.missing())
        arriving.expect(operation, self.content.folder, missing, args)
        return {}

    def do_build(self, number, args):
        with arriving.nobody(self.begun_operation()):
            return self.built(self.operation)

    def built(self, operation):
        self.content = build.Content(self.host, self.order, self.content.folder)
        missing = self.content.missing()
        if missing:
            raise Failure("StageFailed", "{0} contents are still missing".format(len(missing)))
        self.journal.add("step", name="Stage", state="done")
        self.journal.add("step", name="Build", state="start")
        builder = build.Builder(self.host, self.order, self.stages, self.content)
        try:
            plan = builder.build()
        except (Failure, OSError) as error:
            self.journal.add("step", name="Build", state="failed", message=of(error, "BuildFailed")[1])
            raise
        # What was, then the plan, then the journal's word: a restart that finds no `Built` gives up or builds again.
        operation.save("old.json", builder.old)
        operation.save("plan.json", plan)
        for note in plan["notes"]:
            self.journal.add("note", text=note)
        self.journal.add("step", name="Build", state="done")
        self.journal.enter(journals.BUILT)
        # Linked into the new trees where it was wanted; the names here are of no more use.
        files.remove_tree(self.content.folder)
        files.make_folders(self.content.folder, 0o700)
        return {
            "changes": len(plan["changed"]),
            "changed_paths": plan["changed"][:1000],
            "exchange": plan["exchange"],
            "notes": plan["notes"],
        }

    def do_abandon(self, number, args):
        operation = self.begun_operation()
        if self.journal.phase not in journals.UNTOUCHED:
            raise Failure("ProtocolError", "{0} was run already".format(operation.id), False)
        left = packages.settle(self.host, self.journal, False)
        self.journal.enter(journals.ABANDONED, None, "given up before anything was changed" + left)
        tidy(self.store, None)
        self.let_go()
        return {"report": self.store.report(operation)}

    # -------------------------------------------------------------------------------------- run, follow

    def do_run(self, number, args):
        operation = self.begun_operation()
        if operation.id != args["id"]:
            raise Failure("ProtocolError", "this session has begun {0}".format(operation.id), False)
        if self.journal.phase != journals.BUILT:
            raise Failure("ProtocolError", "{0} is not built".format(operation.id), False)
        for note in worker.start(self.host, self.store, operation, self.digest, ["run", operation.id]):
            self.journal.add("note", text=note)
        # The detached process waits for the lock; nobody else can come in between with a lower epoch, and one with a
        # higher recovers first: then the detached process finds an operation that has ended.
        self.let_go()
        return self.follow(number, operation, True)

    def do_attach(self, number, args):
        operation = self.store.operation(args["id"])
        if operation.report() is None:
            raise Failure("ProtocolError", "this VM does not know operation {0}".format(args["id"]), False)
        return self.follow(number, operation, False)

    def do_back(self, number, args):
        name = args["id"]
        operation = self.store.operation(name)
        self.store.take_lock(name)
        try:
            self.store.check_epoch(args["epoch"])
            recover_all(self.host, self.store, False)
            worker.check_back(self.store, name)
            self.store.raise_epoch(args["epoch"])
            digest = self.installed_program(operation)
            worker.start(self.host, self.store, operation, digest, ["back", name])
        finally:
            self.let_go()
        return self.follow(number, operation, True)

    def installed_program(self, operation):
        """This program, or on a full disk the one that made the patch: it takes it back as well."""
        try:
            self.install_program(operation.stages())
            return self.digest
        except OSError as error:
            installed = self.store.current_program()
            if error.errno not in NO_SPACE or installed is None:
                raise
            return installed

    def follow(self, number, operation, starting):
        """Events until the operation has ended or nobody works on it. Looks at the journal, holds nothing."""
        begun = time.monotonic()
        seen = None
        last_event = 0.0
        quiet_since = None
        first = len(journals.read(operation.journal_path) or [])
        while True:
            report = self.store.report(operation)
            records = len(journals.read(operation.journal_path) or [])
            moved = records > first or not files.exists(operation.journal_path)
            ended = report["phase"] in journals.FINAL and not report["alive"] and (moved or not starting)
            if ended:
                return {"report": report}
            now = time.monotonic()
            if report["alive"]:
                quiet_since = None
            elif quiet_since is None:
                quiet_since = now
            # A killed worker is started again by systemd within seconds; one that was never started is given longer.
            patience = START_SECONDS if starting and not moved else 5.0
            if quiet_since is not None and now - quiet_since > (patience if starting or now - begun > 5 else 2.0):
                return {"report": report}
            if report != seen and now - last_event >= EVENT_SECONDS:
                self.wire.send({"id": number, "report": report})
                seen, last_event = report, now
            time.sleep(FOLLOW_SECONDS)
