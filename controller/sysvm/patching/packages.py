"""Debian packages that a payload needs on older templates, and a live patch does not install.

CloudStack's own patch installs them from agent.zip (CloudStack 4.21 patch.sh, packages.ini): scripts of 4.20 begin with
`#!/usr/bin/python`, which a Debian 11 template has only with the package python-is-python3. Without it not one command
of the management server would run any more, so a VM that lacks one is held.
"""

import configparser
from collections.abc import Mapping

from sysvm.patching import protocol
from sysvm.patching.payload import Payload

_LISTS = "/var/lib/dpkg/info/{}.list"
"""dpkg keeps this file for every package that is installed."""
_INTERPRETER_PACKAGE = "python-is-python3"
_INTERPRETER_LINE = b"#!/usr/bin/python"
_INTERPRETER_UNTIL = 11
"""From Debian 12 on the template has it."""
_SCRIPT = "opt/cloud/bin/configure.py"
_SINCE_PYTHON_3 = "opt/cloud/bin/cs_bgppeers.py"
"""Came with 4.20, which is when all scripts became Python 3; those before run with what the old template has."""


def paths_to_look_for(payload: Payload) -> list[str]:
    """Of the VM: whether they are there says whether a package is."""
    names = {name for _, name in _listed(payload)} | {_INTERPRETER_PACKAGE}
    return [_LISTS.format(name) for name in sorted(names)]


def missing(payload: Payload, debian_version: str | None, facts: Mapping[str, protocol.FileFact]) -> tuple[str, ...]:
    """Names of packages that this VM needs for the payload and lacks. A VM whose Debian is not known needs none."""
    major = (debian_version or "").partition(".")[0]
    wanted = [name for release, name in _listed(payload) if release == major]
    if payload.agent is None and major.isdigit() and int(major) <= _INTERPRETER_UNTIL and _needs_interpreter(payload):
        wanted.append(_INTERPRETER_PACKAGE)
    return tuple(name for name in wanted if not _is_there(facts.get(_LISTS.format(name))))


def _is_there(fact: protocol.FileFact | None) -> bool:
    return fact is not None and fact["kind"] == "file"


def _needs_interpreter(payload: Payload) -> bool:
    if not {_SCRIPT, _SINCE_PYTHON_3} <= payload.scripts.entries.keys():
        return False
    first = payload.script_text(_SCRIPT).partition(b"\n")[0].split()
    return first[:1] == [_INTERPRETER_LINE]


def _listed(payload: Payload) -> list[tuple[str, str]]:
    """(Debian release, package) of packages/packages.ini in agent.zip; what cannot be read lists nothing."""
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    try:
        parser.read_string((payload.agent.packages if payload.agent is not None else b"").decode("utf-8", "replace"))
    except configparser.Error:
        return []
    return [
        (parser[name].get("debian_os", "").strip(), parser[name].get("package_name", name).strip())
        for name in parser.sections()
    ]
