"""One live patch from the switch to its end, and the way back from every place in between.

    phase          a restart finds                                   and does
    Staging Built  nothing of the VM's own changed, but perhaps      gives up: Abandoned
                   Debian packages (`packages`), which stay
    Switching ...  old and new mixed, signature zeros                goes back: RolledBack
    Verifying      all new, signature zeros                          goes back: RolledBack
    Committing     all new and verified; tgz and signature half way  finishes: Committed
    RollingBack    old and new mixed, signature zeros                goes on going back: RolledBack
    Inconsistent   what a person has to look at, signature zeros     nothing

`Committing` is the commit record: it is written when all is proven and nothing but two renames is left.
"""

import time

from . import actors, agent, build, checks, core, databags, fence, files, hold, packages, steady, superseded, switch
from . import journal as journals
from . import order as orders
from .failover import PairServices as Services
from .failures import Failure, of
from .host import tail
from .services import acted_on
from .store import restore_times

AGAIN_SECONDS = 30.0
"""For the second quiet moment, after units were stopped that must be down while their files change."""
BACK_AGAIN_SECONDS = (0.2, 1.0, 3.0)
"""Waited before the way back is tried once more, after the system refused a change: a disk that was full for a moment,
an error that a second attempt does not meet."""


class Deadline(object):
    def __init__(self, seconds):
        self._end = time.monotonic() + seconds
        self._step_end = self._end

    def step(self, seconds):
        self._step_end = time.monotonic() + seconds

    def left(self):
        return max(0.0, min(self._end, self._step_end) - time.monotonic())

    def check(self, what):
        if time.monotonic() > min(self._end, self._step_end):
            raise Failure("TimedOut", "the time for {0} is up".format(what))


class Transaction(object):
    """Works on one operation; whoever makes it holds the VM's lock."""

    def __init__(self, host, store, operation):
        self.host = host
        self.store = store
        self.operation = operation
        self.journal = journals.Journal.open(operation.journal_path)
        self.order = operation.load("order.json")
        self.plan = operation.load("plan.json")
        self.gate = fence.Fence(host, self.journal)
        self.bags_are_ours = False
        """configure.py failed behind the closed fence, so nobody else has written a data bag."""
        self._services = None
        self.core = core.Watch(host, self.journal)

    @property
    def is_kept(self):
        """It changed nothing itself: it is the backup of what others were about to change (`keeping`)."""
        return bool(self.plan and self.plan.get("kept"))

    def close(self):
        self.journal.close()

    # -------------------------------------------------------------------------------------- before the switch

    def abandon(self, reason, message, at_boot=False):
        """End it before anything changed, but perhaps Debian packages."""
        left = packages.settle(self.host, self.journal, at_boot)
        self.journal.enter(journals.ABANDONED, reason, message + left)

    # -------------------------------------------------------------------------------------- forward

    def run(self):
        """From Built to the end. Whatever happens, the journal ends in a final phase (or this process is killed)."""
        deadline = Deadline(self.order["timeout_seconds"])
        try:
            self.run_steps(deadline)
        finally:
            self.gate.open()

    def run_steps(self, deadline):
        try:
            if self.order.get("packages"):
                self.step("Packages", lambda deadline: packages.install(self, deadline), deadline, "PackagesNeeded")
            self.step("Fence", self.fence, deadline, "OtherActor")
        except Failure as failure:
            text = "{0}; nothing was changed".format(failure.message)
            self.abandon(failure.reason, text)
            return
        failed_step = "Switch"
        try:
            self.step("Switch", self.switch, deadline, "SwitchFailed")
            failed_step = "Services"
            self.step("Services", self.serve, deadline, "ServiceFailed")
            failed_step = "Verify"
            self.step("Verify", self.verify, deadline, "VerifyFailed")
            failed_step = "Commit"
            self.step("Commit", self.commit, deadline, "SwitchFailed")
        except Failure as failure:
            # A switch that failed before its first change has its journal at Built or Switching: going back is right
            # for both, it undoes nothing that was not done.
            self.go_back(failure.reason, "{0} failed: {1}".format(failed_step, failure.message))

    def step(self, name, function, deadline, reason):
        """One step with its two records. Every failure of it comes out as a `Failure`."""
        deadline.step(self.order["step_timeout_seconds"])
        try:
            self.journal.add("step", name=name, state="start")
            message = function(deadline) or ""
            if name != "Commit":
                self.journal.add("step", name=name, state="done", message=message)
        except Exception as error:  # noqa: BLE001 - whatever went wrong here, the way back is the same
            why, message = of(error, reason)
            try:
                self.journal.add("step", name=name, state="failed", message=tail(message))
            except OSError:
                # A full journal keeps room only for going back, which is what follows.
                pass
            raise Failure(why, message)

    def fence(self, deadline):
        """Nobody else is there, and the files are those that `build` saw."""
        self.refuse_other_actors()
        databags.preflight(self.host, self.order)
        # Baseline before the switch, on the disk: whoever goes back later must know what was active.
        baseline = Services.measure(self.host, self.order)
        baseline["checks"] = self.failing_checks()
        baseline["payload"] = self.payload_facts()
        baseline["agent"] = agent.measure(self.host, self.order)
        baseline["unsteady"] = steady.unsteady(self.host, [service["unit"] for service in self.order["services"]])
        self.journal.add("baseline", value=baseline)
        if baseline["unsteady"]:
            text = "restarting before the patch, so it decides nothing: " + ", ".join(baseline["unsteady"])
            self.journal.add("note", text=text)
        self.core.begin()
        said = self.gate.close(deadline)
        self.refuse_other_actors()
        self.refuse_changes()
        return said

    def refuse_changes(self):
        """Compare and swap against hands that hold no lock."""
        changed = build.changed_since(self.host, self.plan, self.operation.load("old.json"))
        marks = self.operation.load("marks.json") or {}
        changed += [path for path in sorted(marks) if marks[path] != actors.mark(self.host, path)]
        if changed:
            raise Failure("OtherActor", "changed since it was prepared: " + ", ".join(sorted(set(changed))[:5]))

    def note_all(self, notes):
        for note in notes:
            self.journal.add("note", text=note)

    def refuse_other_actors(self):
        others = actors.blocking(self.host)
        if others:
            raise Failure("OtherActor", "somebody else patches this VM: " + "; ".join(others[:3]))

    def refuse_patching(self):
        """What a patch of others has left lying is no hindrance to undoing it; one that runs is."""
        others = [process.text for process in actors.processes(self.host) if actors.is_patching(process)]
        if others:
            raise Failure("OtherActor", "somebody else patches this VM: " + "; ".join(others[:3]))

    def failing_checks(self):
        if not self.order["run_checks"]:
            return []
        done = checks.run(self.host, self.order["step_timeout_seconds"])
        return sorted(set(done["failing"]) | set(done["timed_out"]))

    def payload_facts(self):
        return actors.mark(self.host, actors.PAYLOAD)

    def services(self):
        """The same on both ways: what asks for a unit that died waits until it runs again with its old files."""
        if self._services is None:
            self._services = Services(self.host, self.order, self.journal.baseline(), self.journal)
        return self._services

    def switch(self, deadline):
        # The record comes first: a restart that finds it goes back, which is nothing if nothing was done.
        self.journal.enter(journals.SWITCHING)
        switch.invalidate(self.plan["signature"])
        services = self.services()
        if services.stops_first():
            # That takes longer than anybody may be held.
            self.gate.hold.end()
            services.stop_first(False)
            self.gate.quiet(deadline, AGAIN_SECONDS)
        for number, move in enumerate(self.plan["moves"]):
            deadline.check("the switch")
            switch.forward(move, self.journal, number)
        held = self.gate.hold.seconds
        self.gate.open()
        self.journal.enter(journals.SWITCHED)
        self.gate.straddled()
        self.note_all(fence.clean_saved(self.host))
        return "new ssh connections were held for {0:.2f} s".format(held) if held else ""

    def serve(self, deadline):
        self.journal.enter(journals.SERVICES)
        if self.order["daemon_reload"]:
            self.daemon_reload()
        services = self.services()
        services.act(deadline)
        databags.run(self, deadline)
        agent.await_up(self, deadline)
        services.settle(deadline)

    def daemon_reload(self):
        done = self.host.run(["systemctl", "daemon-reload"], 30.0)
        if not done.ok:
            raise Failure("ServiceFailed", done.sentence())

    def verify(self, deadline):
        self.journal.enter(journals.VERIFYING)
        wrong = self.differences()
        if wrong:
            raise Failure("VerifyFailed", "not as ordered: " + ", ".join(wrong[:5]), False)
        less = self.services().compare()
        if less:
            raise Failure("VerifyFailed", "less active than before: " + _told(less), False)
        self.services().verify_role()
        known = set(self.journal.baseline()["checks"]) | set(self.order["ignored_checks"])
        worse = [name for name in self.failing_checks() if name not in known]
        if worse and self.services().became_backup():
            text = "health checks that newly fail, as they do on a router that has become BACKUP: " + ", ".join(worse)
            self.journal.add("note", text=text)
        elif worse:
            raise Failure("VerifyFailed", "health checks that newly fail: " + ", ".join(worse), False)
        agent.verify(self)
        said = self.core.verify(bool(self.order.get("databags")) or "cloud" in acted_on(self.journal.records))
        deadline.check("verifying")
        return said

    def differences(self):
        """Paths that are not what the order says: content, links, executability, what was to go."""
        wrong = []
        for path, entry in orders.entries(self.order):
            facts = files.facts_of(self.host.at(path))
            wanted = build.wanted_facts(entry, facts) if facts["kind"] != "absent" else {"kind": "file"}
            if not build.same(facts, wanted):
                wrong.append(path)
        gone = list(self.order["remove"])
        for tree in self.order["trees"]:
            gone += [tree["path"] + "/" + path for path in tree["remove"]]
        return wrong + [path for path in gone if files.exists(self.host.at(path))]

    def commit(self, deadline):
        signature = switch.signature_text(self.plan["signature"])
        if not switch.is_zeros(signature):
            raise Failure("OtherActor", "the signature was written by somebody else: {0}".format(signature[:40]))
        if self.payload_facts() != self.journal.baseline()["payload"]:
            raise Failure("OtherActor", "{0} was replaced by somebody else".format(actors.PAYLOAD))
        self.refuse_other_actors()
        deadline.check("the decision to commit")
        self.journal.enter(journals.COMMITTING)
        self.finish_commit()

    def finish_commit(self, reason=None, message=""):
        """The two renames after the decision; repeated by a restart until the last record is there."""
        payload = self.plan["payload"]
        if payload and files.exists(payload["stage"]):
            # A restart here finds the old tgz and zeros; after the rename the new tgz and zeros: both go on to the end.
            switch.apply(payload)
        switch.commit_signature(self.plan["signature"])
        self.journal.add("step", name="Commit", state="done")
        self.journal.enter(journals.COMMITTED, reason, message)

    # -------------------------------------------------------------------------------------- back

    def go_back(self, reason, message, at_boot=False):
        """Old again, services included, or Inconsistent with the signature at zeros. At boot no service is touched:
        they start later, with the old files."""
        waits = list(BACK_AGAIN_SECONDS)
        while True:
            try:
                self.try_back(reason, message, at_boot)
                return
            except Exception as error:  # noqa: BLE001 - a way back that fails must be told, whatever it was
                if not isinstance(error, OSError) or not waits:
                    why, said = of(error, "Inconsistent")
                    self.say_inconsistent(message, said, why)
                    return
            finally:
                self.let_go()
            # Every change of the way back may be repeated: nothing is lost by beginning anew.
            self.host.wait(waits.pop(0))

    def try_back(self, reason, message, at_boot):
        self.journal.enter(journals.ROLLING_BACK, reason, tail(message))
        self.journal.add("step", name="Restore", state="start")
        left = databags.restore(self, at_boot)
        # What was kept before others came is there to undo what they did.
        if not self.is_kept and superseded.settle(self, at_boot):
            return
        self._restore(at_boot)
        self.core.tell_back()
        if not at_boot:
            agent.tell_back(self)
        self.journal.add("step", name="Restore", state="done")
        kept = packages.left(self.journal.records)
        text = tail(message, 1500) + "; the VM is wholly as it was before" + kept + left
        self.journal.enter(journals.ROLLED_BACK, reason, text)

    def make_effective(self, at_boot, everywhere=False):
        """Units that were acted on or stopped (`everywhere`: all of the order) get the files that are in place now.
        Before the last record: who is killed here does it again. What fails is told; False if something did."""
        if at_boot or not self.journal.baseline():
            return True
        if everywhere:
            known = acted_on(self.journal.records)
            for service in self.order["services"]:
                if service["action"] != "none" and service["unit"] not in known:
                    self.journal.add("unit", unit=service["unit"], action=service["action"], state="start", back=False)
        try:
            if self.order["daemon_reload"]:
                self.daemon_reload()
            if everywhere:
                self.services().stop_first(True)
            self.services().act_back()
        except Failure as failure:
            self.journal.add("note", text=tail(failure.message, 500))
            return False
        return True

    def let_go(self):
        """Nobody waits for a unit any longer."""
        if self._services is not None:
            self._services.let_go()

    def verified(self):
        """Everything was proven before others came, and no unit was acted on since: only the commit was to be done."""
        for one in reversed(self.journal.records):
            if one["kind"] == "unit":
                return False
            if one["kind"] == "step" and one["name"] == "Verify" and one["state"] == "done":
                return True
        return False

    def _restore(self, at_boot):
        signature = self.plan["signature"]
        as_it_was = switch.matches(signature["live"], build.identity(signature["old"])) and not self.not_as_it_was()
        if as_it_was and not self.is_kept:
            # The original signature is there before the first change and after the last one of going back: nothing is
            # left to do, and nothing is written, because the disk may be full.
            return
        # Also when taking back a finished commit: from here on nothing takes this VM for patched.
        switch.invalidate(signature)
        baseline = self.journal.baseline()
        services = self.services() if baseline else None
        if services and not at_boot:
            services.stop_first(True)
        if self.plan["payload"]:
            switch.back(self.plan["payload"])
        begun = set(record["move"] for record in self.journal.records if record["kind"] == "move")
        if self.is_kept:
            begun = set(range(len(self.plan["moves"])))
        singly = switch.done_singly(self.journal.records)
        for number in sorted(begun, reverse=True):
            # No record: what was undone is read off the files, and the journal has no room for any number of attempts.
            switch.back(self.plan["moves"][number], number in singly)
        if self.order["daemon_reload"] and begun:
            # systemd read the units before this ran at boot, too; a refusal there only means that it reads them later
            done = self.host.run(["systemctl", "daemon-reload"], 20.0)
            if not done.ok and not at_boot:
                raise Failure("ServiceFailed", done.sentence())
        if services and not at_boot:
            services.act_back()
            self.compare_back(services)
        wrong = self.not_as_it_was()
        if wrong:
            raise switch.Lost("not as it was: " + ", ".join(wrong[:5]))
        switch.restore_signature(signature)
        restore_times(self.plan["times"])

    def compare_back(self, services):
        """The units that were acted on are what they were. A unit that nobody acted on runs with its old files
        again: what became of it is told, and is no reason to call files that are right inconsistent."""
        less = services.compare()
        units = acted_on(self.journal.records)
        ours = dict((unit, state) for unit, state in less.items() if unit in units)
        if ours:
            raise Failure("ServiceFailed", "less active than before: " + _told(ours))
        if less:
            text = "less active than before, though nothing was done to it: " + _told(less)
            self.journal.add("note", text=text)

    def not_as_it_was(self):
        """Paths that are not, byte for byte, what `build` wrote down, but for the signature, which comes last."""
        old = self.operation.load("old.json")
        wrong = []
        for real in sorted(old):
            if real == self.plan["signature"]["live"]:
                continue
            now = files.facts_of(real)
            if old[real]["kind"] == "folder":
                wrong += [] if now["kind"] == "folder" else [real]
            elif any(now.get(key) != value for key, value in old[real].items()):
                wrong.append(real)
        return [self.host.name(real) for real in wrong]

    def say_inconsistent(self, message, said, reason):
        """The end that needs a person. Tried hard: the phase must be on the disk, the signature must not match."""
        try:
            switch.invalidate(self.plan["signature"])
        except (OSError, Failure):
            pass
        text = (
            "{0}; going back failed too ({1}): {2}; the signature stays zeros, the backup is in {3}, "
            "nothing more is done by itself; look at the VM, mend or recreate it, then: python3 {4} --accept {5}"
        )
        stages = ", ".join(self.host.name(stage) for stage in self.operation.stages())
        program = "/var/lib/sysvm/program/current/sysvm.pyz"
        text = text.format(tail(message, 700), reason, tail(said, 700), stages, program, self.operation.id)
        try:
            self.journal.add("step", name="Restore", state="failed", message=tail(said, 700))
        except OSError:
            pass
        self.journal.enter(journals.INCONSISTENT, "Inconsistent", text)

    # -------------------------------------------------------------------------------------- after a restart

    def recover(self, at_boot):
        """Bring an operation that nobody works on to its end. True if there was something to do."""
        phase = self.journal.phase
        reason = "RecoveredAtBoot" if at_boot else "Interrupted"
        if phase in journals.FINAL:
            return False
        hold.clean(self.host, self.journal)
        self.note_all(fence.clean(self.host, self.journal.records))
        if phase in journals.UNTOUCHED:
            self.abandon(reason, "it was interrupted before anything was changed", at_boot)
        elif phase == journals.COMMITTING:
            try:
                self.finish_commit(reason, "it was interrupted after the decision to commit and was finished")
            except (OSError, Failure) as error:
                self.go_back(reason, "the commit could not be finished: {0}".format(of(error, "")[1]), at_boot)
        elif phase == journals.ROLLING_BACK:
            report = journals.fold(self.journal.records)
            self.go_back(report["reason"] or reason, report["message"] or "it was interrupted on its way back", at_boot)
        else:
            self.go_back(reason, "it was interrupted while {0}".format(phase.lower()), at_boot)
        return True

    def take_back(self):
        """Undo a committed operation because a person asks for it."""
        switch.check_backup(self.plan, switch.done_singly(self.journal.records))
        if self.is_kept:
            self.refuse_patching()
            for service in self.order["services"]:
                if service["action"] != "none":
                    # Others have acted on it. Its baseline is of before them.
                    self.journal.add("unit", unit=service["unit"], action=service["action"], state="start", back=False)
        else:
            self.refuse_other_actors()
            # Into the journal, which has room: the disk may be full.
            self.journal.add("baseline", value=self._baseline_now())
        self.go_back(None, "it was taken back by hand")

    def _baseline_now(self):
        """What is active now must be active afterwards; what was acted on then is acted on again."""
        baseline = Services.measure(self.host, self.order)
        baseline["checks"] = []
        baseline["unsteady"] = steady.unsteady(self.host, [service["unit"] for service in self.order["services"]])
        baseline["payload"] = self.payload_facts()
        return baseline


def _told(states):
    return ", ".join("{0} is {1}".format(unit, states[unit]) for unit in sorted(states))


def recover_all(host, store, at_boot):
    """Every operation that has not ended. Returns the reports of those that were brought to an end."""
    reports = []
    for operation, _ in store.unfinished():
        transaction = Transaction(host, store, operation)
        try:
            if transaction.recover(at_boot):
                reports.append(operation.report())
        finally:
            transaction.close()
    tidy(store, None)
    return reports


def tidy(store, keep):
    """Give back space. A failure here changes nothing that was said; the next session tries again."""
    try:
        databags.sweep(store)
        if keep is not None:
            store.prune(keep)
        store.sweep()
    except OSError:
        pass
