"""What a payload's Debian packages mean for one VM: pure, from the payload and what dpkg says there.

Scripts of 4.20 begin with `#!/usr/bin/python`, which a Debian 11 template has for Python 2 or not at all, and import
netaddr (CloudStack 4.21 patch.sh, packages.ini). The packages come before the switch; the links in /usr/bin that decide
which Python scripts get belong to the switch itself, because the scripts of before still need the old ones, and need
them again on the way back. What cannot be put back that way holds the VM, and so does a package that nobody has.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sysvm.api.reasons import Reason
from sysvm.patching import protocol
from sysvm.patching.debs import Deb
from sysvm.patching.payload import Payload
from sysvm.patching.results import Obstacle

INSTALLED = "installed"
CONFIGURE = "opt/cloud/bin/configure.py"
"""Its imports stand for those of all scripts: nearly every command of the management server ends in it."""

_INTERPRETER_PACKAGE = "python-is-python3"
_INTERPRETER = "/usr/bin/python"
_INTERPRETER_LINE = b"#!/usr/bin/python"
_INTERPRETER_UNTIL = 11
"""From Debian 12 on the template has it."""
_SINCE_PYTHON_3 = "opt/cloud/bin/cs_bgppeers.py"
"""Came with 4.20, which is when all scripts became Python 3; those before run with what the old template has."""
_GONE = ("", "not-installed", "config-files")
"""States of a package that has nothing on the disk that anybody runs."""


@dataclass(frozen=True, slots=True)
class Packages:
    """What is to be done on one VM, before and with the switch."""

    install: tuple[Deb, ...] = ()
    """Missing there, in the payload's order."""
    remove: tuple[str, ...] = ()
    """Installed there, and in conflict with what comes."""
    links: Mapping[str, str] = field(default_factory=dict)
    """Links of the VM that change at the switch."""
    keep: tuple[str, ...] = ()
    """Links in /usr/bin that dpkg must neither make nor take away."""
    obstacles: tuple[Obstacle, ...] = ()


def names_to_ask_for(payload: Payload, debian_version: str | None) -> list[str]:
    """Packages whose state on a VM of this Debian decides."""
    debs = _wanted(payload, debian_version)
    names = {deb.name for deb in debs} | {name for deb in debs for name in deb.conflicts}
    return sorted(names | ({_INTERPRETER_PACKAGE} if _needs_interpreter(payload, debian_version) else set()))


def links_to_look_at(payload: Payload, debian_version: str | None) -> list[str]:
    """Absolute paths of links that the payload's packages bring."""
    return sorted(_links(payload, debian_version))


def packages_for(
    payload: Payload,
    debian_version: str | None,
    states: Mapping[str, protocol.PackageFact],
    facts: Mapping[str, protocol.FileFact],
) -> Packages:
    """`states`: what the VM says of `names_to_ask_for`. A VM whose Debian is not known needs nothing."""
    wanted = _wanted(payload, debian_version)
    install = tuple(deb for deb in wanted if not _has(states, deb.name))
    obstacles = list(_unavailable(payload, debian_version, install, states))
    conflicts = dict.fromkeys(name for deb in install for name in deb.conflicts)
    remove = tuple(name for name in conflicts if _status(states, name) not in _GONE)
    wanted_links = _links(payload, debian_version)
    links = {path: target for path, target in wanted_links.items() if _leads(facts, path) != target}
    if not obstacles:
        obstacles += _irreversible(remove, states, links, facts)
    kept = {path for deb in install for path in deb.links} | {path for name in remove for path in states[name]["links"]}
    return Packages(install, remove, links, tuple(sorted(kept)) if install else (), tuple(obstacles))


def _unavailable(
    payload: Payload,
    debian_version: str | None,
    install: tuple[Deb, ...],
    states: Mapping[str, protocol.PackageFact],
) -> list[Obstacle]:
    lacking = [deb.name for deb in install if deb.problem]
    why = "; ".join(deb.problem for deb in install if deb.problem)
    if _needs_interpreter(payload, debian_version) and not _has(states, _INTERPRETER_PACKAGE):
        lacking, why = [_INTERPRETER_PACKAGE], "the release has no agent.zip, which would bring them"
    if not lacking:
        return []
    told = f"it needs the Debian packages {', '.join(lacking)}, which cannot be had of the release ({why})"
    return [Obstacle(Reason.PACKAGES_NEEDED, f"{told}: install them, or recreate the VM")]


def _irreversible(
    remove: tuple[str, ...],
    states: Mapping[str, protocol.PackageFact],
    links: Mapping[str, str],
    facts: Mapping[str, protocol.FileFact],
) -> list[Obstacle]:
    """A roll back puts links back and leaves the rest to dpkg: more than links must not change."""
    strange = [path for path in sorted(links) if (fact := facts.get(path)) and fact["kind"] not in ("link", "absent")]
    told = [f"{path} is no link on the VM" for path in strange]
    told += [f"{name} has to go, and with it {states[name]['others'][0]}" for name in remove if states[name]["others"]]
    if not told:
        return []
    said = f"its Python has to be changed in a way that a roll back cannot undo ({'; '.join(told)[:400]})"
    return [Obstacle(Reason.INTERPRETER_CHANGE, f"{said}: recreate the VM")]


def _wanted(payload: Payload, debian_version: str | None) -> tuple[Deb, ...]:
    debs = payload.agent.debs if payload.agent is not None else ()
    return tuple(deb for deb in debs if deb.debian == _major(debian_version))


def _links(payload: Payload, debian_version: str | None) -> dict[str, str]:
    links = {path: target for deb in _wanted(payload, debian_version) for path, target in deb.links.items()}
    return links | ({_INTERPRETER: "python3"} if _needs_interpreter(payload, debian_version) else {})


def _major(debian_version: str | None) -> str:
    return (debian_version or "").partition(".")[0]


def _needs_interpreter(payload: Payload, debian_version: str | None) -> bool:
    """Scripts alone say it by their first line: without agent.zip there is no list."""
    major = _major(debian_version)
    if payload.agent is not None or not major.isdigit() or int(major) > _INTERPRETER_UNTIL:
        return False
    if not {CONFIGURE, _SINCE_PYTHON_3} <= payload.scripts.entries.keys():
        return False
    return payload.script_text(CONFIGURE).partition(b"\n")[0].split()[:1] == [_INTERPRETER_LINE]


def _status(states: Mapping[str, protocol.PackageFact], name: str) -> str:
    return states[name]["status"] if name in states else ""


def _has(states: Mapping[str, protocol.PackageFact], name: str) -> bool:
    return _status(states, name) == INSTALLED


def _leads(facts: Mapping[str, protocol.FileFact], path: str) -> str | None:
    fact = facts.get(path)
    return fact["link"] if fact is not None and fact["kind"] == "link" else None
