"""A folder that plays a system VM: the files of an old release, and a systemctl that remembers what it was asked.

What needs real services is tested on real system VMs; here the two ends of the live patch meet over real SSH, anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import shlex
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lab.content import payloads
from lab.content.releases import Release
from sysvm.patching.bundle import command

_SYSTEMCTL = """#!{python} -IB
import json, sys
from pathlib import Path
here = Path({folder!r})
units = json.loads((here / "units.json").read_text())
words = [word for word in sys.argv[1:] if not word.startswith("-")]
with (here / "calls.log").open("a") as log:
    log.write(" ".join(words) + "\\n")
verb, names = words[0], [word.removesuffix(".service") for word in words[1:]]
if verb == "show":
    for name in names:
        unit = units.get(name)
        if unit is None:
            print("Id=%s.service\\nLoadState=not-found\\nActiveState=inactive\\nSubState=dead\\n" % name)
            continue
        print("Id=%s.service\\nLoadState=loaded\\nActiveState=%s\\nSubState=%s\\nUnitFileState=enabled\\nMainPID=%d\\n"
              "NRestarts=0\\nResult=success\\n" % (name, unit["active"], "running", unit["pid"]))
elif verb in ("reload", "restart", "start", "stop"):
    for name in names:
        if (here / ("fail-" + name)).exists() and verb != "stop":
            (here / ("fail-" + name)).unlink()
            units[name]["active"] = "failed"
            (here / "units.json").write_text(json.dumps(units))
            sys.exit("Job for %s.service failed: the configuration is not what the daemon likes" % name)
        units[name]["active"] = "inactive" if verb == "stop" else "active"
        if verb != "reload":
            units[name]["pid"] += 1
    (here / "units.json").write_text(json.dumps(units))
elif verb == "is-active":
    print(units.get(names[0], {{}}).get("active", "inactive"))
"""


@dataclass
class ScratchVM:
    """`root` is the VM's `/`; `start` the command that runs the program for it."""

    folder: Path
    type: str = "vpcrouter"

    @property
    def root(self) -> Path:
        return self.folder / "vm"

    @property
    def start(self) -> str:
        return (
            f"PATH={shlex.quote(str(self.folder / 'bin'))} {command('--root', str(self.root), python=sys.executable)}"
        )

    @property
    def signature(self) -> str:
        return (self.root / "var/cache/cloud/cloud-scripts-signature").read_text().strip()

    @property
    def calls(self) -> list[str]:
        """What systemctl was asked to do, without questions."""
        text = (self.folder / "calls.log").read_text() if (self.folder / "calls.log").exists() else ""
        return [line for line in text.splitlines() if not line.startswith(("show", "is-active", "list-units"))]

    def lay_out(self, release: Release, *, agent: bool = False) -> ScratchVM:
        packed = payloads.build_scripts(release)
        self.root.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(self.root, filter="fully_trusted")
        (self.root / "usr/local/cloud").mkdir(parents=True)
        if agent:
            with zipfile.ZipFile(io.BytesIO(payloads.build_agent(release))) as archive:
                archive.extractall(self.root / "usr/local/cloud/systemvm")
            for script in (self.root / "usr/local/cloud/systemvm").rglob("*.sh"):
                script.chmod(0o555)
        self.write("usr/share/cloud/cloud-scripts.tgz", packed)
        signature = hashlib.md5(packed, usedforsecurity=False).hexdigest()
        self.write("var/cache/cloud/cloud-scripts-signature", f"{signature}\n".encode())
        self.write("var/cache/cloud/cmdline", f"template=domP name=r-1-VM type={self.type} eth0ip=127.0.0.1\n".encode())
        self.write("var/cache/cloud/boot_up_done", b"")
        self.write("etc/cloudstack-release", f"Cloudstack Release {release.version} Tue Apr 15 2025\n".encode())
        self.write("etc/debian_version", b"12.5\n")
        self.write("proc/meminfo", b"MemAvailable:  500000 kB\n")
        self.write("proc/sys/kernel/random/boot_id", b"11111111-2222-3333-4444-555555555555\n")
        self.write("proc/uptime", b"1000.0 1000.0\n")
        self._lend_programs()
        return self

    def write(self, path: str, content: bytes) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def fail_once(self, unit: str) -> None:
        (self.folder / f"fail-{unit}").touch()

    def manifest(self) -> dict[str, tuple[str, int]]:
        """Digest and mode of every file that the payload or CloudStack owns."""
        found = {}
        for top in ("opt/cloud", "etc", "root", "var/www", "var/cache", "usr/share", "usr/local"):
            for path in sorted((self.root / top).rglob("*")):
                if path.is_file() and not path.is_symlink():
                    name = str(path.relative_to(self.root))
                    found[name] = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode)
        return found

    def _lend_programs(self) -> None:
        programs = self.folder / "bin"
        programs.mkdir()
        script = programs / "systemctl"
        script.write_text(_SYSTEMCTL.format(python=sys.executable, folder=str(self.folder)))
        for name in ("apache2ctl", "sshd", "rsyslogd", "haproxy", "dnsmasq"):
            (programs / name).write_text("#!/bin/sh\nexit 0\n")
        for program in programs.iterdir():
            program.chmod(0o755)
        running = {"secstorage": ["apache2", "ssh", "cloud"]}.get(self.type, ["apache2", "haproxy", "dnsmasq", "ssh"])
        units = {name: {"active": "active", "pid": 100 + number} for number, name in enumerate(running)}
        (self.folder / "units.json").write_text(json.dumps(units))
