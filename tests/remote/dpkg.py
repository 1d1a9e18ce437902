"""dpkg and dpkg-divert as changes that a fault can hit, dpkg also in its middle."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

from sysvm.patching.remote import files
from sysvm.patching.remote.host import Host, Outcome

CUT = ".systemd/cut-dpkg"
"""Holds the seconds after which dpkg, and whoever waits for it, is killed in the middle of an installation."""


def run(host: Host, argv: list[str], timeout: float, ordinary) -> Outcome:
    """`ordinary` runs it."""
    files.FAULTS.before(argv[2])
    cut = Path(host.root, CUT)
    if cut.exists() and "--install" in argv:
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(argv, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
        time.sleep(float(cut.read_text()))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os._exit(137)
    done = ordinary(argv, timeout)
    files.FAULTS.after()
    return done
