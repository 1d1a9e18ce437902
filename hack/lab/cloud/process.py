"""The stand-in as a process of a lab: started with it, found again by other commands, gone with it.

It is one of the lab's own processes, so `down` ends it like everything else; what it needs to be found is one file.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lab.cgroups import started_at
from lab.machines import Lab, LabError

READY = "cloud.json"
"""Below the lab's own folder: where the server listens and with which keys, written once it answers."""

_START_SECONDS = 300.0
_CONTROL_SECONDS = 60.0


def ready_file(lab: Lab) -> Path:
    return lab.private_key.parent / READY


@dataclass(frozen=True)
class CloudProcess:
    """A stand-in that answers. `users` are (key, secret) by name, `hosts` address and port by name."""

    url: str
    users: dict[str, tuple[str, str]]
    hosts: dict[str, str]
    host_key: str

    @classmethod
    def start(cls, lab: Lab, release: str) -> CloudProcess:
        """Starts one on a lab that is up without VMs; it makes hosts and VMs itself. Raises LabError with its log."""
        log = lab.private_key.parent / "cloud.log"
        command: list[str | Path] = [sys.executable, "-m", "lab.cloud", "--dir", lab.run_dir, "--release", release]
        pid = lab.cgroups.launch("lab", command, log=log)
        end = time.monotonic() + _START_SECONDS
        while not ready_file(lab).exists():
            if started_at(pid) is None or time.monotonic() > end:
                raise LabError(f"the management server did not start; {log} ends: {log.read_text()[-1000:].strip()}")
            time.sleep(0.2)
        return cls.attach(lab)

    @classmethod
    def attach(cls, lab: Lab) -> CloudProcess:
        """The one of a lab. Raises LabError when there is none."""
        try:
            known = json.loads(ready_file(lab).read_text())
        except FileNotFoundError:
            raise LabError("this lab has no management server: bring it up with --cloud") from None
        users = {name: (keys["key"], keys["secret"]) for name, keys in known["users"].items()}
        return cls(known["url"], users, known["hosts"], known["host_key"])

    def describe(self) -> str:
        """What a person needs to use it."""
        lines = [f"CloudStack API (stand-in): {self.url}"]
        lines += [f"  {name}: key {key}, secret {secret}" for name, (key, secret) in self.users.items()]
        lines += [f"hypervisor host {name}: root@{address}" for name, address in self.hosts.items()]
        return "\n".join([*lines, f"  key of the hosts: {self.host_key}"])

    def tell(self, control: str, values: dict[str, object]) -> dict[str, object]:
        """`POST /lab/<control>`. Raises LabError with its words when it refuses."""
        url = self.url.replace("/client/api", f"/lab/{control}")
        request = urllib.request.Request(
            url, data=json.dumps(values).encode(), headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=_CONTROL_SECONDS) as answer:
                told: dict[str, object] = json.loads(answer.read())
                return told
        except urllib.error.HTTPError as refused:
            raise LabError(f"{control}: {refused.read().decode(errors='replace')}") from refused
        except OSError as problem:
            raise LabError(f"the management server does not answer at {url}: {problem}") from problem
