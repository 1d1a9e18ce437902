"""The lock file of a conntrackd that was killed, because of which no other one starts.

conntrackd makes its lock file before it learns to stop in order, and Debian 12's unit does not remove what is left. So
one that is restarted while it starts (CloudStack 4.21 CsRedundant.py does so for itself and keepalived's notify script
does, with no word between the two), or that is killed for memory, leaves a file behind; from then on each new one ends
at once, and the pair's connections are copied no more. A restart of keepalived by a patch sets off that notify script.
"""

import os
import re

from . import actors, files

UNIT = "conntrackd"
CONFIGURATION = "/etc/conntrackd/conntrackd.conf"
ACTION_SECONDS = 30.0
LONGEST_PATH = 256
LOOKS = 5
LOOK_EVERY = 0.1
"""systemd tries again each tenth of a second; such a try runs for a few hundredths and is not one that works."""


def left_lock(host):
    """The lock file that is there although no conntrackd runs; None: there is none, or somebody has it."""
    named = re.search(r"^\s*LockFile\s+(\S+)", host.text(CONFIGURATION) or "", re.MULTILINE)
    if named is None or not named.group(1).startswith("/") or len(named.group(1)) > LONGEST_PATH:
        return None
    path = named.group(1)
    for look in range(LOOKS):
        if look:
            host.wait(LOOK_EVERY)
        if not files.exists(host.at(path)):
            return None
        if not _runs(host):
            return path
    return None


def unblock(host):
    """Start it again if nothing but a left lock file is in its way. What was done, as a sentence, or None.

    Killed between its steps this leaves a router that systemd's next try mends: nothing is stopped, for a conntrackd
    that is stopped while it starts is how such a file comes to be.
    """
    path = left_lock(host)
    if path is None:
        return None
    files.unlink_if_there(host.at(path))
    # systemd may have given up; one that has not takes the start for its own next try.
    host.run(["systemctl", "reset-failed", "--", UNIT], ACTION_SECONDS)
    done = host.run(["systemctl", "start", "--", UNIT], ACTION_SECONDS)
    how = "and it was started again" if done.ok else "and it does not start: " + done.sentence()
    return "conntrackd was killed while it started and left its lock file {0}: removed, {1}".format(path, how)


def _runs(host):
    return any(os.path.basename(process.argv[0]) == UNIT for process in actors.processes(host))
