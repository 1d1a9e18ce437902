"""Whether this machine can run the lab's VMs, said in one sentence before anything is made.

The command line prints it, the tests skip with it: a lack that shows up as a traceback from the eighth command of a
recipe costs an afternoon.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

from lab import cgroups

CAP_SYS_ADMIN = 21
_TRY_SECONDS = 20


class LabUnavailable(Exception):  # noqa: N818 - not a fault: the machine lacks something, and the message says what to do
    """This machine cannot run the lab's VMs. The message is one sentence for a person, with the next step."""


def check() -> None:
    """Raises LabUnavailable with the first thing that is missing."""
    if platform.system() != "Linux":
        raise LabUnavailable(
            f"The lab's system VMs are Linux containers and this is {platform.system()}: run the lab in a Linux VM."
        )
    if os.geteuid() != 0:
        raise LabUnavailable(
            "The lab's system VMs need root (mounts, network namespaces, cgroups): use sudo -E, or a VM."
        )
    if not _has_capability(CAP_SYS_ADMIN):
        raise LabUnavailable(
            "This root has no CAP_SYS_ADMIN (an unprivileged container?): start the container privileged, or use a VM."
        )
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        raise LabUnavailable(
            "This kernel has no overlay file system, which the lab's VMs need: run modprobe overlay first."
        )
    for program in ("nsenter", "unshare"):
        if shutil.which(program) is None:
            raise LabUnavailable(f"The program {program} is missing: install util-linux.")
    if not _can_unshare():
        raise LabUnavailable(
            "New namespaces are forbidden here (an unprivileged container?): start it privileged, or use a VM."
        )
    if not cgroups.hierarchies():
        raise LabUnavailable(
            "No writable cgroup hierarchy is on /sys/fs/cgroup, which the lab needs to find its processes: mount it."
        )
    if shutil.which("mmdebstrap") is None and shutil.which("apt-get") is None:
        raise LabUnavailable(
            "The lab makes its VMs with mmdebstrap, and neither it nor apt-get to fetch it is here: install mmdebstrap."
        )
    if shutil.which("perl") is None or shutil.which("apt-get") is None:
        raise LabUnavailable("mmdebstrap needs perl and apt-get, and one of them is missing: install perl and apt.")


def missing() -> str | None:
    """The sentence of `check`, or None where the lab can run: for `pytest.mark.skipif`."""
    try:
        check()
    except LabUnavailable as lack:
        return str(lack)
    return None


def _can_unshare() -> bool:
    command = ["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "true"]
    return subprocess.run(command, check=False, capture_output=True, timeout=_TRY_SECONDS).returncode == 0


def _has_capability(number: int) -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> number & 1)
    return False
