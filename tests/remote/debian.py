"""A scratch VM of Debian 11 as far as dpkg is concerned: the real dpkg, with a database of its own, and two Pythons.

Both are this machine's Python. The one that scripts get as Python 3 also sees what was installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from tests.remote.vm import BODIES, VM, entry, make_order, sha256, write
from tests.unit.patching.made_packages import netaddr_deb, python_deb

PYTHON = "/usr/bin/python"
ASIDE = "usr/bin/python.sysvm-aside"
OLD_SCRIPT = b"#!/usr/bin/python\nimport os, logging.handlers\nfrom cs.CsHelper import thing\n"
NEW_SCRIPT = b"#!/usr/bin/python\nimport os\nimport netaddr\nfrom cs.CsHelper import thing\n"
OF_DPKG = ("var/lib/dpkg", "usr/share", "usr/lib/python3")
"""dpkg's state and what it unpacked, which stay whatever becomes of the patch."""


class DebianVM(VM):
    """Its state is without dpkg's, but with what is diverted."""

    def state(self, *, folder_times: bool = False) -> dict[str, tuple]:
        rows = super().state(folder_times=folder_times)
        kept = {path: row for path, row in rows.items() if not path.startswith(OF_DPKG)}
        diversions = self.root / "var/lib/dpkg/diversions"
        kept["(diversions)"] = (diversions.read_bytes() if diversions.exists() else b"",)
        return kept

    def texts(self) -> dict[str, tuple]:
        return {path: row for path, row in super().texts().items() if path != "(diversions)"}


def missing() -> str | None:
    """Why the real dpkg cannot be used here."""
    if shutil.which("dpkg") is None or shutil.which("dpkg-deb") is None:
        return "dpkg is missing: it installs what is to be killed"
    return None if os.geteuid() == 0 else "dpkg works for root only"


def lay_out(vm: VM) -> DebianVM:
    """dpkg's database with python-is-python2 in it, as a template of 4.16 to 4.19 has it."""
    if (lacking := missing()) is not None:
        pytest.skip(lacking)
    made = DebianVM(vm.base)
    root = vm.root
    for folder in ("info", "updates", "triggers"):
        (root / "var/lib/dpkg" / folder).mkdir(parents=True)
    write(root / "var/lib/dpkg/status", b"")
    write(root / "var/lib/dpkg/available", b"")
    write(root / "etc/debian_version", b"11.9\n")
    deb = vm.base / "python-is-python2.deb"
    deb.write_bytes(python_deb(2))
    subprocess.run(["dpkg", f"--root={root}", "--install", str(deb)], check=True, capture_output=True)
    modules = root / "usr/lib/python3/dist-packages"
    for major, seen in ((2, ""), (3, f"PYTHONPATH={modules} ")):
        # Without -E, which is there to keep such a PYTHONPATH away.
        script = f'#!/bin/sh\nshift 3\n{seen}exec /usr/bin/python3 -B -s "$@"\n'
        write(root / f"usr/bin/python{major}", script.encode(), 0o755)
    write(root / "opt/cloud/bin/configure.py", OLD_SCRIPT, 0o755)
    write(root / "opt/cloud/bin/cs/CsHelper.py", b"thing = 'old'\n", 0o755)
    write(root / "opt/cloud/bin/cs/__init__.py", b"")
    return made


def staged(name: str, version: str, content: bytes) -> dict:
    BODIES[sha256(content)] = content
    return {"name": name, "version": version, "sha256": sha256(content), "size": len(content)}


def link(target: str) -> dict:
    return {**entry(PYTHON, b""), "sha256": None, "link": target}


def order(name: str = "op-1", *, script: bytes = NEW_SCRIPT, netaddr: bytes | None = None, **more: object) -> dict:
    """From OLD to NEW with the packages; `more` of the packages' part."""
    made = make_order(name)
    tree = made["trees"][0]
    scripts = {"bin/configure.py": script, "bin/cs/CsHelper.py": b"thing = 'new'\n"}
    kept = [one for one in tree["files"] if one["path"] not in scripts]
    tree["files"] = kept + [entry(path, text) for path, text in scripts.items()]
    wanted = {
        "debs": [
            staged("python-is-python3", "3.9.2-1", python_deb()),
            staged("python3-netaddr", "0.7.19-5", netaddr or netaddr_deb()),
        ],
        "remove": ["python-is-python2"],
        "keep": [PYTHON],
        "imports": ["/opt/cloud/bin/configure.py"],
        "lock_seconds": 1,
        "timeout_seconds": 30,
    }
    return {**made, "files": [*made["files"], link("python3")], "packages": {**wanted, **more}}


def packages(vm: VM) -> dict[str, str]:
    """What dpkg says of the three, as far as they are on the disk."""
    argv = ["dpkg-query", f"--admindir={vm.root}/var/lib/dpkg", "-W", "-f", "${Package} ${db:Status-Status}\\n"]
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    found = dict(line.split() for line in said.splitlines())
    return {name: status for name, status in found.items() if status not in ("not-installed", "config-files")}
