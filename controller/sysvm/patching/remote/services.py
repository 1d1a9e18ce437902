"""systemd units: what they are, the least action, and that they stand and serve as before."""

import json
import os
import time

from . import files, hold, login, monitor
from .failures import Failure
from .host import tail
from .journal import Wait
from .questions import TRIES, TRY_AGAIN_SECONDS, GapMeter, answers, answers_in_time, questions_here

PROPERTIES = ("LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "NRestarts", "Result")
ENABLED = ("enabled", "enabled-runtime", "alias", "static", "generated", "indirect")
STOP_GAP_SECONDS = 4.0
"""CloudStack 4.21 monitorServices.py starts what it misses for 5 s, apache2 with kill -9."""


def states(host, units):
    """{unit: UnitState} by one call of systemctl; an empty state where it cannot be asked."""
    found = {}
    if not units:
        return found
    argv = ["systemctl", "show", "--no-pager", "--property=" + ",".join(("Id",) + PROPERTIES), "--"]
    done = host.run(argv + list(units), 15.0, merged=False)
    blocks = [block for block in done.output.split("\n\n") if block.strip()]
    for unit, block in zip(units, blocks + [""] * (len(units) - len(blocks))):  # noqa: B905
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        found[unit] = {
            "unit": unit,
            "load": values.get("LoadState", ""),
            "active": values.get("ActiveState", "unknown"),
            "sub": values.get("SubState", ""),
            "enabled": values.get("UnitFileState", "") in ENABLED,
            "main_pid": _number(values.get("MainPID")),
            "restarts": _number(values.get("NRestarts")),
            "result": values.get("Result", ""),
        }
    return found


def spelled_out(host, units):
    """Units with their loaded instances in the place of `name@*`: those of a VPC router go with its tiers."""
    found = []
    for unit in units:
        if not unit.endswith("@*"):
            found.append(unit)
            continue
        argv = ["systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "--", unit + ".service"]
        done = host.run(argv, 15.0, merged=False)
        names = [line.split()[0] for line in done.output.splitlines() if line.split()] if done.ok else []
        found += [name[: -len(".service")] for name in names]
    return found


def _number(text):
    return int(text) if text and text.isdigit() else 0


def is_active(state):
    return state["active"] in ("active", "reloading")


# ------------------------------------------------------------------------------------------ acting


class Services(object):
    """The units of one order, with what they were before."""

    def __init__(self, host, order, baseline, journal):
        self.host = host
        self.order = order
        self.baseline = baseline
        self.journal = journal
        self.kept = None
        """Requests of a unit that died wait until it runs again with its old files: at most as long as any hold."""
        self.log = None
        self.seen = {}
        """States of units right after their actions: another process later is not this program's work."""
        self.silent = {}
        """Since when (monotonic) a unit that died has not answered."""

    @staticmethod
    def measure(host, order):
        """The baseline: states, and which questions have an answer now.

        Raises `Failure` where a service cannot take its action now: nothing has been changed yet.
        """
        for service in order["services"]:
            if service.get("drain") and service["action"] not in ("none", "stop-start"):
                await_drained(host, service)
        units = [service["unit"] for service in order["services"]]
        serving = {}
        for service in order["services"]:
            asked = questions_here(host, service["serving"])
            serving[service["unit"]] = [check for check in asked if answers_in_time(check)]
        return {"states": states(host, units), "serving": serving, "at": time.time()}

    def was_active(self, service):
        return is_active(self.baseline["states"][service["unit"]])

    def is_gate(self, service):
        """Active before, and not restarting by itself then: only such a unit may decide anything."""
        return self.was_active(service) and service["unit"] not in self.baseline.get("unsteady", ())

    def questions(self, service):
        """The questions that had an answer before; no other may be asked after."""
        return self.baseline["serving"].get(service["unit"], [])

    def stops_first(self):
        return any(one["action"] == "stop-start" and self.was_active(one) for one in self.order["services"])

    def stop_first(self, back):
        for service in self.order["services"]:
            if service["action"] == "stop-start" and self.was_active(service):
                if not back or service["unit"] in acted_on(self.journal.records):
                    self._act(service, "stop", back)

    def act(self, deadline):
        """Validate, then act on every unit that was active."""
        self.log = monitor.Log(self.host)
        try:
            self._act_on_all(deadline)
        finally:
            self.tell_restarts()

    def tell_restarts(self):
        """What CloudStack's monitoring has restarted since our first action."""
        for said in self.log.restarts([service["unit"] for service in self.order["services"]]) if self.log else []:
            self.note(said)

    def _act_on_all(self, deadline):
        for service in self.order["services"]:
            if service["action"] == "none" or not self.was_active(service):
                continue
            deadline.check("services")
            for validator in service["validators"]:
                done = self.host.run(validator["argv"], validator["timeout_seconds"])
                if not done.ok:
                    raise Failure("ServiceFailed", "{0}: {1}".format(service["unit"], done.sentence()), False)
            action = "start" if service["action"] == "stop-start" else service["action"]
            if action in ("restart", "held-restart"):
                waited = monitor.wait(self.host, self.journal, deadline.left())
                if waited:
                    self.note(waited)
            try:
                self._act(service, action, False)
            except Failure as failure:
                if self.is_gate(service):
                    raise
                self.let_go()
                self.journal.add("note", text="restarting before the patch: " + tail(failure.message, 500))

    def act_back(self):
        """The same units once more, now with the old files: reload what lives, start what died.

        Raises `Failure` if one does not become what it was.
        """
        units = acted_on(self.journal.records)
        failed = []
        try:
            for service in self._dead_first():
                if service["unit"] not in units or not self.was_active(service):
                    continue
                try:
                    self._restore(service)
                except Failure as failure:
                    if self.is_gate(service):
                        failed.append(failure.message)
        finally:
            self.let_go()
        if failed:
            raise Failure("ServiceFailed", "; ".join(failed), False)

    def _dead_first(self):
        """Tenants wait for the one that died; there is one hold at a time."""
        waited_for = self.kept.unit if self.kept else None
        return sorted(self.order["services"], key=lambda service: service["unit"] != waited_for)

    def keep_waiting(self, service):
        """A unit that died on the way forward is started on the way back: until then, what asks for it waits."""
        if self.kept is None and service.get("hold") and not self._is_up(service["unit"]):
            self.kept = self._enter(service, "{0} died, and its requests do not wait: {1}")

    def let_go(self):
        """Nothing waits any longer. May be called at any time, and again."""
        if self.kept is not None:
            kept, self.kept = self.kept, None
            kept.leave()

    def _is_up(self, unit):
        return is_active(states(self.host, [unit])[unit])

    def _restore(self, service):
        unit = service["unit"]
        now = states(self.host, [unit])[unit]
        action = service["action"]
        if action == "stop-start" or not is_active(now):
            action = "start"
        # A unit that died of the new files may have used up its starts; only systemd's count is reset by this.
        self.host.run(["systemctl", "reset-failed", "--", unit], 10.0)
        try:
            self._act(service, action, True)
        except Failure:
            self.host.run(["systemctl", "reset-failed", "--", unit], 10.0)
            self._act(service, "restart", True)

    def _act(self, service, action, back):
        unit = service["unit"]
        # A restart that finds `start` without `done` acts on this unit again on its way back.
        limit = service["timeout_seconds"]
        self.journal.add("unit", unit=unit, action=action, state="start", back=back, seconds=limit)
        since = time.time()
        questions = [] if action == "stop" else self.questions(service)
        held = self._hold(service, action, back)
        proof = None
        if service.get("login_seconds") and not back:
            proof = login.Proof(self.host, self.journal, service, self.backup_of(login.SSHD_CONFIG))
        problem = None
        with GapMeter(questions, self.silent.pop(unit, None)) as meter:
            try:
                if proof:
                    proof.arm()
                if held and action == "held-restart" and service.get("stop_seconds"):
                    self._stop_soon(service)
                    verb = "start"
                else:
                    verb = "restart" if action == "held-restart" else action
                done = self.host.run(["systemctl", verb, "--", unit], service["timeout_seconds"])
                if monitor.interfered(done) and action != "stop":
                    self.note("{0}: {1}: {2}".format(monitor.WORD, unit, done.sentence()))
                    problem = self._await(service, questions)
                elif not done.ok:
                    problem = done.sentence()
                elif action != "stop":
                    problem = self._await(service, questions)
                if problem is not None and action != "stop" and self.unblock(service):
                    problem = self._await(service, questions)
            finally:
                if held and problem is None:
                    held.leave()
                elif held:
                    self.kept = held
            if problem is not None:
                self.keep_waiting(service)
        if meter.silent_since is not None and problem is not None:
            self.silent[unit] = meter.silent_since
        if action == "held-restart" and held is None:
            action = "restart"
        values = {"gap": meter.gap, "slowest": meter.slowest}
        self.journal.add("unit", unit=unit, action=action, state="done", back=back, ok=problem is None, **values)
        if meter.gap is not None and meter.gap > STOP_GAP_SECONDS:
            text = "{0} did not serve for {1:.1f} s: longer than CloudStack's own monitoring waits"
            self.note(text.format(unit, meter.gap))
        if problem is None and action != "stop":
            self.seen[unit] = states(self.host, [unit])[unit]
        if problem is None and proof:
            problem = proof.wait()
        if problem is not None:
            raise Failure("ServiceFailed", self.explain(unit, problem, since), False)

    def unblock(self, service):
        """Whether what kept a unit from starting was taken out of its way; of most units nothing is known."""
        return False

    def _stop_soon(self, service):
        """Whoever waits is let in after three seconds, whatever the unit does: what is too slow to stop is killed."""
        unit = service["unit"]
        self.host.run(["systemctl", "stop", "--no-block", "--", unit], 10.0)
        began = time.monotonic()
        killed = False
        while self._is_stopping(unit) and time.monotonic() - began < service["timeout_seconds"]:
            if not killed and time.monotonic() - began >= service["stop_seconds"]:
                self.host.run(["systemctl", "kill", "--signal=KILL", "--", unit], 10.0)
                self.note("{0} had not stopped after {1} s and was killed".format(unit, service["stop_seconds"]))
                killed = True
            self.host.wait(0.02)

    def _is_stopping(self, unit):
        return states(self.host, [unit])[unit]["active"] not in ("inactive", "failed")

    def backup_of(self, path):
        """Real path of what `path` was before the switch, None if the switch leaves it alone."""
        plan = json.loads(files.read_bytes(os.path.join(os.path.dirname(self.journal.path), "plan.json")).decode())
        live = self.host.at(path)
        found = [move["backup"] for move in plan["moves"] if move["live"] == live and move.get("backup")]
        return found[0] if found else None

    def _hold(self, service, action, back):
        """What asks for this unit waits from now on; None where it does not, or cannot, which is told."""
        starts_again = back and action in ("start", "restart") and service.get("hold")
        if action != "held-restart" and not starts_again:
            return None
        if self.kept is not None and self.kept.unit == service["unit"] and not self.kept.is_over:
            held, self.kept = self.kept, None
            return held
        self.let_go()
        held = self._enter(service, "{0} was restarted without holding its requests: {1}")
        if held is not None:
            self.host.wait(hold.DRAIN_SECONDS)
        return held

    def _enter(self, service, why_not):
        wanted = hold.Hold(self.host, self.journal, service["unit"], service.get("hold", []), self.order["vm_type"])
        try:
            wanted.enter()
        except hold.NotHeld as reason:
            self.note(why_not.format(service["unit"], reason))
            return None
        return wanted

    def note(self, text):
        self.journal.add("note", text=tail(text, 500))

    def _await(self, service, questions):
        """None as soon as the unit is active and answers, a sentence when its time is up."""
        unit = service["unit"]
        since = time.monotonic()
        deadline = since + service["timeout_seconds"]
        what = "{0} to {1}".format(unit, "serve" if questions else "be active")
        wait = Wait(self.journal, what, service["timeout_seconds"])
        while True:
            wait.goes_on()
            state = states(self.host, [unit])[unit]
            if state["active"] == "failed" or state["sub"] == "auto-restart":
                return "{0} failed ({1})".format(unit, state["result"])
            silent = [check for check in questions if not answers(check)]
            if is_active(state) and not silent:
                return None
            if time.monotonic() >= deadline:
                if is_active(state):
                    check = silent[0]
                    text = "{0} is active but {1} {2}:{3} does not answer"
                    return text.format(unit, check["kind"], check["host"], check["port"])
                return "{0} is {1} ({2}) instead of active".format(unit, state["active"], state["sub"])
            self.host.wait(0.02 if time.monotonic() - since < 1.0 else 0.1)

    def settle(self, deadline):
        """Every unit that was active keeps its process for `settle_seconds` and is still active then."""
        services = [service for service in self.order["services"] if self.is_gate(service)]
        units = [service["unit"] for service in services]
        first = states(self.host, units)
        first.update((unit, state) for unit, state in self.seen.items() if unit in first)
        end = time.monotonic() + self.order["settle_seconds"]
        since = time.time()
        looked = time.monotonic()
        wait = Wait(self.journal, "services to stay as they are", self.order["settle_seconds"])
        while True:
            wait.goes_on()
            now = states(self.host, units)
            for service in services:
                self._judge(service, first, now, since, looked)
            looked = time.monotonic()
            if time.monotonic() >= end:
                break
            deadline.check("services")
            # What dies of its new files does so at once, and tenants wait for it to be seen.
            often = 0.05 if time.time() - since < 1.0 else 0.25
            self.host.wait(min(often, max(0.01, end - time.monotonic())))
        for service in services:
            for check in self.questions(service):
                if not self._answers_at_last(check, deadline):
                    problem = "it no longer answers on {0} {1}:{2}".format(check["kind"], check["host"], check["port"])
                    raise Failure("ServiceFailed", self.explain(service["unit"], problem, since - 30), False)
        self.tell_restarts()
        # Asking takes a while where answers are late: a service that died meanwhile is not taken for a slow one.
        now = states(self.host, units)
        for service in services:
            self._judge(service, first, now, since, looked)

    def _judge(self, service, first, now, since, looked):
        """Raises `Failure` if a unit does not stand still. `looked` (monotonic): when it was last seen to."""
        unit = service["unit"]
        if _restarted_by_other(first[unit], now[unit]):
            text = "{3}: {0} got another main process, {2} instead of {1}, not from this program"
            self.note(text.format(unit, first[unit]["main_pid"], now[unit]["main_pid"], monitor.WORD))
            first[unit] = now[unit]
        problem = _unstable(first[unit], now[unit])
        if problem:
            if not is_active(now[unit]):
                self.silent[unit] = looked
                self.keep_waiting(service)
            raise Failure("ServiceFailed", self.explain(unit, problem, since - 30), False)

    def _answers_at_last(self, check, deadline):
        for patience in range(1, TRIES + 1):
            if answers(check, patience):
                return True
            deadline.check("services")
            if patience < TRIES:
                self.host.wait(TRY_AGAIN_SECONDS)
        return False

    def compare(self):
        """{unit: its state} of those that are less active than before; of units that were steady then."""
        units = [service["unit"] for service in self.order["services"] if self.is_gate(service)]
        now = states(self.host, units)
        return dict((unit, now[unit]["active"]) for unit in units if not is_active(now[unit]))

    def explain(self, unit, problem, since):
        """A sentence with the last words of the unit: what a person would look up first."""
        stamp = "@{0}".format(int(since))
        argv = ["journalctl", "--no-pager", "-o", "cat", "-n", "20", "--since", stamp, "-u", unit]
        said = self.host.run(argv, 10.0, merged=False)
        text = said.output.strip() if said.ok else ""
        return "{0}: {1}{2}".format(unit, tail(problem, 700), "; its last words: " + tail(text, 1200) if text else "")


def await_drained(host, service):
    """Wait until an haproxy of earlier reloads has given up its sessions and there is memory for one more."""
    limits = service["drain"]
    end = time.monotonic() + limits["wait_seconds"]
    while True:
        old = old_workers(host, service["unit"])
        memory = host.memory_available()
        if old <= limits["max_old"] and memory >= limits["min_memory_bytes"]:
            return
        if time.monotonic() >= end:
            text = "{0} still has {1} old workers with sessions, and {2} MiB of memory are available"
            raise Failure("HaproxyDraining", text.format(service["unit"], old, memory >> 20))
        host.wait(0.5)


def old_workers(host, unit):
    """Workers beside the newest one below the main process of a unit; they end with their last session."""
    main = states(host, [unit])[unit]["main_pid"]
    if not main:
        return 0
    name = (host.proc("{0}/comm".format(main)) or "").strip()
    children = (host.proc("{0}/task/{0}/children".format(main)) or "").split()
    workers = [child for child in children if (host.proc(child + "/comm") or "").strip() == name]
    return max(0, len(workers) - 1)


def _restarted_by_other(before, now):
    """Somebody restarted it and it runs: systemd itself would have counted a restart."""
    return is_active(now) and now["restarts"] <= before["restarts"] and now["main_pid"] != before["main_pid"]


def _unstable(before, now):
    if not is_active(now):
        return "became {0} ({1}) after it was active".format(now["active"], now["result"])
    if now["restarts"] != before["restarts"]:
        return "was started again {0} times".format(now["restarts"] - before["restarts"])
    if now["main_pid"] != before["main_pid"]:
        return "its main process changed from {0} to {1}".format(before["main_pid"], now["main_pid"])
    return None


def acted_on(records):
    """Units that an action was begun on, going forward."""
    return set(record["unit"] for record in records if record["kind"] == "unit" and not record["back"])
