"""CloudStack's own health checks (CloudStack 4.21 monitorServices.py): a baseline, not a verdict."""

import json
import os
import time

FOLDER = "/root/health_checks"
NEVER = ("router_version_check.py",)
"""Compares the signature with the management server's database, which a patch over SSH cannot know of."""
RESULTS = ("/root/basic_monitor_results.json", "/root/advanced_monitor_results.json")


def run(host, timeout):
    """Run every check as the monitoring does, with `basic` and with `advanced`. Silent ones do not count."""
    folder = host.resolve(FOLDER)
    outcome = {"failing": [], "passed": [], "timed_out": []}
    deadline = time.monotonic() + timeout
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return outcome
    for name in names:
        path = os.path.join(folder, name)
        if name in NEVER or name.startswith(".") or not os.path.isfile(path) or not os.access(path, os.X_OK):
            continue
        verdicts = []
        for kind in ("basic", "advanced"):
            left = deadline - time.monotonic()
            done = host.run([path, kind], min(30.0, max(left, 0.1)), folder, merged=False)
            if done.code is None:
                verdicts.append("timed_out")
            elif done.output.strip():
                verdicts.append("passed" if done.ok else "failing")
        for verdict in ("failing", "timed_out", "passed"):
            if verdict in verdicts:
                outcome[verdict].append(name)
                break
    return outcome


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
