"""Running commands and asking systemd, for the other modules."""

import logging
import subprocess

PUBLIC_INTERFACES = {"router": "eth2", "vpcrouter": "eth1"}
GUEST_INTERFACES = {"router": "eth0", "dhcpsrvr": "eth0", "elbvm": "eth0", "ilbvm": "eth0"}


def execute(*command, timeout=60):
    """(exit code, output) of a command; a failure is logged and left to the caller."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired) as error:
        logging.error("%s: %s", " ".join(command), error)
        return 127, str(error)
    if done.returncode:
        logging.info("%s: exit %s: %s", " ".join(command), done.returncode, done.stdout.strip())
    return done.returncode, done.stdout


def is_active(unit):
    return execute("systemctl", "is-active", "--quiet", unit)[0] == 0


def service(unit, operation):
    logging.info("%s %s", operation, unit)
    return execute("systemctl", operation, unit)[0] == 0


def addresses(device):
    """The IPv4 addresses of a device as address/prefix."""
    _, text = execute("ip", "-4", "-o", "addr", "show", "dev", device)
    return [line.split()[3] for line in text.splitlines() if " inet " in line]


def devices():
    _, text = execute("ip", "-o", "link", "show")
    names = [line.split(":")[1].strip().split("@")[0] for line in text.splitlines() if ":" in line]
    return [name for name in names if name.startswith("eth")]
