"""CloudStack's own live patch, re-created: three files into a VM's cache folder, and a script that is run there.

The yardstick of every promise about traffic and atomicity is what people have today, on the same VM and the same
payload. The script is ours; order, arguments, paths and mistakes are CloudStack 4.21's (patch-sysvms.sh):

| | what happens |
|---|---|
| B1 | going back restores nothing: new scripts and agent stay, the signature says old |
| B2 | the backup is deleted after a failure too |
| B3 | garbage for a payload is a success, and its checksum the signature |
| B4 | a service that is down is skipped |
| B5 | a service that dies a moment after its restart is a success |
| B6 | dhcpsrvr, elbvm and ilbvm: nothing is restarted |
| B7 | live configuration is overwritten: haproxy.cfg, sshd_config, ... |
| B8 | an agent without conf/cloud.jks loses agent.properties |
| B9 | CPVM: an unknown function is called, and each patch adds the same rule |
| B10 | no lock |
| B11 | free space is not looked at |
| B12 | files that the new payload lacks stay |
| B13 | what no list of enabled services names (ssh, cron, rsyslog) is not told of its new files |
| B14 | the answer names no service; the cause is in a log on the VM |

What differs from the original: Python makes the backup of the agent (no zip here), and the keystore import has no
keytool to run; neither has an effect on services or traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab.machines import Lab

CACHE = "/var/cache/cloud"
SCRIPT = Path(__file__).parent / "files/cloudstack/patch-sysvms.sh"
LOG = "/var/log/livepatchsystemvm.log"
_SECONDS = 180.0


@dataclass(frozen=True)
class Outcome:
    """What the management server sees of a patch, and the log that stays on the VM."""

    code: int
    output: str
    log: str

    @property
    def succeeded(self) -> bool:
        """By its exit code, as CloudStack judges."""
        return self.code == 0

    @property
    def version(self) -> str | None:
        """The signature it claims; None if it claims none."""
        _, found, rest = self.output.partition("version:")
        return rest.split()[0] if found and rest.split() else None


def patch(lab: Lab, name: str, *, scripts: bytes, agent: bytes | None) -> Outcome:
    """Puts the payload on a VM and patches it. Without `agent` no agent.zip is sent."""
    files = {"cloud-scripts.tgz": scripts, "agent.zip": agent, SCRIPT.name: SCRIPT.read_bytes()}
    for file, content in files.items():
        if content is not None:
            lab.write_bytes(name, f"{CACHE}/{file}", content)
            lab.exec(name, ["chmod", "755", f"{CACHE}/{file}"])
    done = lab.exec(name, [f"{CACHE}/{SCRIPT.name}"], check=False, timeout=_SECONDS)
    log = lab.read_bytes(name, LOG).decode("utf-8", "replace")
    return Outcome(code=done.returncode, output=done.stdout + done.stderr, log=log)
