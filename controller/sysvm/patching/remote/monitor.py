"""CloudStack's own monitoring (CloudStack 4.21 monitorServices.py), which cron starts every few minutes on routers.

It restarts a service whose process it misses for five seconds. The fence waits for one that runs before files are
exchanged; here it is waited for once more before a unit is stopped. Cron itself is left alone: monitoring that starts
in that moment does nothing, because no unit is away for so long, and a cron that is stopped or frozen and whose hand
was killed would be a worse fault than a restart. Where it comes in between all the same, its log says so; that is told
and is no failure of the release.
"""

import os
import re
import time

from . import actors
from .journal import Wait

SCRIPT = "monitorServices.py"
LOG = "/var/log/routerServiceMonitor.log"
WAIT_SECONDS = 20.0
WORD = "RestartedByMonitor"


def running(host):
    return any(SCRIPT in [os.path.basename(word) for word in process.argv[:4]] for process in actors.processes(host))


def wait(host, journal, seconds):
    """Until none runs. A sentence if it had to be waited for."""
    began = time.monotonic()
    end = began + min(WAIT_SECONDS, seconds)
    waiting = Wait(journal, "CloudStack's monitoring to end", min(WAIT_SECONDS, seconds))
    while running(host):
        waiting.goes_on()
        if time.monotonic() >= end:
            return "CloudStack's monitoring still ran when services were restarted"
        host.wait(0.1)
    waited = time.monotonic() - began
    return "CloudStack's monitoring was waited for {0:.1f} s".format(waited) if waited > 0.2 else ""


def interfered(outcome):
    """Whether systemd gave our job up because somebody else asked for another one of the same unit."""
    return not outcome.ok and "cancel" in outcome.output.lower()


class Log(object):
    """What the monitoring writes down from now on."""

    def __init__(self, host):
        self.host = host
        self.read = len(host.text(LOG) or "")

    def restarts(self, units):
        """Sentences about restarts of these units since the last question."""
        text = self.host.text(LOG) or ""
        since = text[self.read :] if len(text) >= self.read else text
        self.read = len(text)
        lines = [line.strip() for line in since.splitlines() if "restart" in line.lower()]
        names = [unit.partition("@")[0].replace(".service", "") for unit in units]
        return [
            "{0}: {1}: {2}".format(WORD, name, line[-200:])
            for line in lines
            for name in names
            if re.search(r"(^|[^a-z0-9-]){0}($|[^a-z0-9-])".format(re.escape(name)), line)
        ]
