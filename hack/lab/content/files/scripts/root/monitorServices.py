#!/usr/bin/python
"""By cron: restarts dead services (basic runs) and runs the health checks: monitorServices.py basic|advanced."""

import configparser
import json
import os
import subprocess
import sys
import time

CONFIG = "/etc/monitor.conf"
CHECKS = "/root/health_checks"
LOG = "/var/log/routerServiceMonitor.log"


def log(text):
    with open(LOG, "a", encoding="utf-8") as target:
        target.write("%s %s\n" % (time.strftime("%Y-%m-%d %H:%M:%S"), text))


def runs(name):
    return subprocess.run(["pidof", name], stdout=subprocess.DEVNULL).returncode == 0


def watch_services():
    """A process that is missing for about 5 seconds is started again by its unit."""
    parser = configparser.ConfigParser()
    parser.read(CONFIG)
    for section in parser.sections():
        process, unit = parser[section]["processname"], parser[section]["servicename"]
        for _ in range(5):
            if runs(process):
                break
            time.sleep(1)
        else:
            log("%s is not running, restarting %s" % (process, unit))
            if process == "apache2":
                subprocess.run(["pkill", "-9", "-x", process])
            subprocess.run(["systemctl", "restart", unit])


def run_check(path, kind):
    try:
        done = subprocess.run([path, kind], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    except OSError as error:
        return 1, str(error)
    except subprocess.TimeoutExpired:
        return 1, "no result within 60 s"
    return done.returncode, done.stdout.strip()


def run_checks(kind):
    excluded = (health_data() or {}).get("excludedHealthChecks", [])
    results, failing = {}, []
    for name in sorted(os.listdir(CHECKS)):
        path = os.path.join(CHECKS, name)
        if not os.path.isfile(path) or not os.access(path, os.X_OK) or name == "__init__.py" or name in excluded:
            continue
        started = time.time()
        code, text = run_check(path, kind)
        if not text:
            continue
        results[name] = {
            "success": "true" if code == 0 else "false",
            "lastUpdate": str(int(started * 1000)),
            "lastRunDuration": str(int((time.time() - started) * 1000)),
            "message": text,
        }
        if code:
            failing.append(name)
    write(
        "/root/%s_monitor_results.json" % kind, json.dumps({kind: results, "lastRun": {"end": time.strftime("%F %T")}})
    )
    write("/root/%s_failing_health_checks" % kind, ",".join(failing))


def health_data():
    try:
        with open("/root/health_checks_data.json", encoding="utf-8") as source:
            return json.load(source)
    except (OSError, ValueError):
        return None


def write(path, text):
    with open(path, "w", encoding="utf-8") as target:
        target.write(text + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("basic", "advanced"):
        sys.exit("usage: monitorServices.py basic|advanced")
    if sys.argv[1] == "basic":
        watch_services()
    run_checks(sys.argv[1])
