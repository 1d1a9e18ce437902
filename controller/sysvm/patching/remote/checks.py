"""CloudStack's own health checks (CloudStack 4.21 monitorServices.py): a baseline, not a verdict."""

import json
import os
import re
import select
import signal
import subprocess
import time

from . import warm

FOLDER = "/root/health_checks"
NEVER = ("router_version_check.py",)
"""Compares the signature with the management server's database, which a patch over SSH cannot know of."""
RESULTS = ("/root/basic_monitor_results.json", "/root/advanced_monitor_results.json")
CHECK_SECONDS = 30.0
KINDS = ("basic", "advanced")
PYTHON = re.compile(rb"^#! ?(/\S*/python(?:3(?:\.[0-9]+)?)?)\s*$")
"""The first line of a script that a plain interpreter runs; anything more (options, env) is left to the kernel."""
ANSWER_SECONDS = 5.0
"""How much longer than a script's own time its interpreter may take to say that the time is up."""


def run(host, timeout):
    """Run every check as the monitoring does, with `basic` and with `advanced`. Silent ones do not count."""
    folder = host.resolve(FOLDER)
    outcome = {"failing": [], "passed": [], "timed_out": []}
    deadline = time.monotonic() + timeout
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return outcome
    runner = Runner(host, folder)
    try:
        for name in names:
            path = os.path.join(folder, name)
            if name in NEVER or name.startswith(".") or not os.path.isfile(path) or not os.access(path, os.X_OK):
                continue
            verdicts = [runner.verdict(path, kind, deadline) for kind in KINDS]
            for verdict in ("failing", "timed_out", "passed"):
                if verdict in verdicts:
                    outcome[verdict].append(name)
                    break
    finally:
        runner.close()
    return outcome


class Runner(object):
    """Runs checks one after the other; those that are plain Python from one interpreter each, if that works."""

    def __init__(self, host, folder):
        self.host = host
        self.folder = folder
        self.interpreters = {}

    def verdict(self, path, kind, deadline):
        """passed, failing, timed_out, or None: it had nothing to say."""
        seconds = max(min(CHECK_SECONDS, deadline - time.monotonic()), 0.1)
        answer = self.warmly(path, kind, seconds)
        if answer is None:
            done = self.host.run([path, kind], seconds, self.folder, merged=False)
            answer = {"code": done.code, "said": bool(done.output.strip())}
        if answer["code"] is None:
            return "timed_out"
        if not answer["said"]:
            return None
        return "passed" if answer["code"] == 0 else "failing"

    def warmly(self, path, kind, seconds):
        """The answer of a warm interpreter, None where it has to be done the ordinary way."""
        python = interpreter_of(path)
        if python is None:
            return None
        if python not in self.interpreters:
            self.interpreters[python] = Interpreter(self.host, python, self.folder)
        return self.interpreters[python].ask(path, kind, seconds)

    def close(self):
        for interpreter in self.interpreters.values():
            interpreter.close()


class Interpreter(object):
    """One interpreter that runs `warm`. After the first thing that goes wrong with it, it is asked no more."""

    def __init__(self, host, python, folder):
        self.process = None
        try:
            # The folder as it is in the command of a check: whoever looks for commands of CloudStack finds this one too
            self.process = subprocess.Popen(
                [python, "-c", source_of(warm), folder + "/"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=host.environment(),
                start_new_session=True,
                bufsize=0,
            )
        except OSError:
            pass

    def ask(self, path, kind, seconds):
        if self.process is None:
            return None
        request = {"path": path, "arguments": [kind], "seconds": seconds}
        try:
            self.process.stdin.write((json.dumps(request) + "\n").encode("utf-8"))
            return json.loads(self.line(time.monotonic() + seconds + ANSWER_SECONDS).decode("utf-8"))
        except (OSError, ValueError):
            # Killed by a check, out of memory, no Python: the check is not to blame and is run once more.
            self.kill()
            return None

    def line(self, deadline):
        """Raises OSError when it is gone or silent."""
        found = b""
        while not found.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise OSError("no answer")
            chunk = os.read(self.process.stdout.fileno(), 4096)
            if not chunk:
                raise OSError("gone")
            found += chunk
        return found

    def kill(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.end(None)

    def close(self):
        """It leaves when its input ends."""
        if self.process is not None:
            self.end(ANSWER_SECONDS)

    def end(self, seconds):
        process, self.process = self.process, None
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def interpreter_of(path):
    try:
        with open(path, "rb") as file:
            match = PYTHON.match(file.readline(256))
    except OSError:
        return None
    return os.fsdecode(match.group(1)) if match else None


def source_of(module):
    """Its text, wherever it was imported from: a folder, a zip, the operator's own words."""
    return module.__loader__.get_source(module.__name__)


def latest(host):
    """(failing checks, age in seconds) from the newest results that the monitoring wrote; age None: there are none."""
    failing = set()
    ages = []
    for path in RESULTS:
        text = host.text(path)
        if text is None:
            continue
        ages.append(max(0.0, time.time() - os.stat(host.resolve(path)).st_mtime))
        try:
            _collect(json.loads(text), failing)
        except ValueError:
            continue
    return sorted(failing - set(NEVER)), (round(min(ages), 1) if ages else None)


def _collect(value, failing):
    if not isinstance(value, dict):
        return
    for name, below in value.items():
        if isinstance(below, dict):
            if str(below.get("success", "true")).lower() == "false":
                failing.add(name)
            _collect(below, failing)
