"""The way in is proven before the old one is let go.

sshd takes a configuration that lets nobody in as readily as any other, and a VM that nobody can log in to can only be
recreated. So after its reload the operator has to log in anew and say so over that connection; if it does not, this
patch goes back. Should this program be gone or hang by then, a timer of systemd puts the old file back by itself.
"""

import os
import time

from . import files
from .journal import Wait

SSHD_CONFIG = "/etc/ssh/sshd_config"
TIMER_MARGIN_SECONDS = 30.0
_RESTORE = (
    '[ -e "$1" ] || [ ! -e "$2" ] || { cp -a -- "$2" "$3.sysvm" && mv -f -- "$3.sysvm" "$3" && systemctl reload ssh; }'
)


def proof_path(operation_folder):
    return os.path.join(operation_folder, "login-proven")


def prove(operation):
    """Said by the operator over a connection that was opened after the reload. False: nobody waits for it."""
    report = operation.report()
    if not report or report.get("awaiting") != "login":
        return False
    files.replace_with(proof_path(operation.folder), b"", 0o600)
    return True


class Proof(object):
    def __init__(self, host, journal, service, old):
        """`old`: real path of the earlier sshd_config in the backup, None if this patch does not change it."""
        self.host = host
        self.journal = journal
        self.unit = service["unit"]
        self.seconds = service["login_seconds"]
        self.old = old
        folder = os.path.dirname(journal.path)
        self.path = proof_path(folder)
        self.timer = "sysvm-login-" + os.path.basename(folder)
        self._armed = False

    def arm(self):
        """Before the reload: what an earlier attempt of this operation proved does not count."""
        files.unlink_if_there(self.path)
        if self.old is None or self.host.scratch or not self.host.has_program("systemd-run"):
            return
        after = "--on-active={0:.0f}".format(self.seconds + TIMER_MARGIN_SECONDS)
        command = ["systemd-run", "--quiet", "--unit=" + self.timer, after, "--timer-property=AccuracySec=1s"]
        script = ["/bin/sh", "-c", _RESTORE, "sysvm", self.path, self.old, self.host.resolve(SSHD_CONFIG)]
        self._armed = self.host.run(command + script, 15.0).ok
        if not self._armed:
            self.journal.add("note", text="no timer of systemd stands behind the reload of sshd")

    def wait(self):
        """None as soon as a new login is proven, a sentence when the time is up."""
        self.journal.add("login", state="await")
        end = time.monotonic() + self.seconds
        wait = Wait(self.journal, "a new login of the operator", self.seconds)
        while not files.exists(self.path):
            wait.goes_on()
            if time.monotonic() >= end:
                self.journal.add("login", state="missed")
                self.disarm()
                text = "no new login was proven within {0:.0f} s after sshd took its new configuration"
                return text.format(self.seconds)
            self.host.wait(0.1)
        self.journal.add("login", state="proven")
        self.disarm()
        return None

    def disarm(self):
        if self._armed:
            self.host.run(["systemctl", "stop", self.timer + ".timer"], 15.0)
            self._armed = False
