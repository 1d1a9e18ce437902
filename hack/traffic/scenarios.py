"""The changes that are measured. Each is a release with chosen differences from what the VMs run.

`must_keep` says what the promise is. Where it is ALL, no loss is excused: nothing of a service changed, or what
changed can be reloaded. Where it is PLANNED, a kind of traffic may lose exactly if the plan, asked before, named a
loss for the service behind it. `victims` are services that the scenario itself kills. `acts` are the actions without
which the scenario has shown nothing: a restart that was not held names its loss, and would be excused by that.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from lab import Lab, SystemVMType, VMSpec
from lab.content import filler, releases
from lab.content.releases import Release
from sysvm.patching.results import JournalPhase

_MARK = "SYSVM_LAB_MARK=1"
_DROP_IN = f"[Service]\nEnvironment={_MARK}\n".encode()
_DISK_MIB = 768
"""In memory: dnsmasq syncs its leases to disk with every answer, and would wait for what else writes to the host's."""
_HAPROXY_CONF = "etc/haproxy/haproxy.cfg"


class Shape(enum.StrEnum):
    """The VMs of a scenario."""

    ROUTER = "router"
    VPC = "vpc"
    PAIR = "pair"
    STORAGE = "storage"

    def specs(self, number: int) -> tuple[VMSpec, ...]:
        """Fresh VMs; `number` makes their names, indexes and network their own."""
        if self is Shape.STORAGE:
            name = f"s-{number}-VM"
            return (VMSpec(name=name, type=SystemVMType.SECSTORAGE, index=number, tmpfs_mib=_DISK_MIB),)
        group, name = f"net-{number}", f"r-{number}-VM"
        if self in (Shape.ROUTER, Shape.VPC):
            kind = SystemVMType.ROUTER if self is Shape.ROUTER else SystemVMType.VPCROUTER
            return (VMSpec(name=name, type=kind, index=number, group=group, tmpfs_mib=_DISK_MIB),)
        return tuple(
            VMSpec(
                name=f"r-{number + place}-VM",
                type=SystemVMType.ROUTER,
                index=number + place,
                group=group,
                redundant=True,
                priority=110 - 10 * place,
                tmpfs_mib=_DISK_MIB,
            )
            for place in (0, 1)
        )


class Keep(enum.StrEnum):
    """How much may be lost."""

    ALL = "all"
    PLANNED = "planned"


Check = Callable[[Lab, str], bool]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One change."""

    name: str
    title: str
    release: Callable[[], Release]
    works: Check
    """Whether the change has an effect on a VM now (for a rollback: whether it has none)."""
    shape: Shape = Shape.ROUTER
    must_keep: Keep = Keep.ALL
    victims: frozenset[str] = frozenset()
    acts: tuple[str, ...] = ()
    ends: JournalPhase = JournalPhase.COMMITTED
    build_seed: int = 0
    may_fail_over: bool = False


def _scripts_only() -> Release:
    new = releases.new()
    return new.derive("scripts-only", change={releases.SECURITY_CONF: releases.old().scripts[releases.SECURITY_CONF]})


def _apache_config() -> Release:
    old = releases.old()
    text = old.scripts[releases.SECURITY_CONF] + b"FileETag None\n"
    return old.derive("apache-config", change={releases.SECURITY_CONF: text})


def _haproxy_config() -> Release:
    old = releases.old()
    text = old.edited(_HAPROXY_CONF, b"maxconn 4096", b"maxconn 8192")
    return old.derive("haproxy-config", change={_HAPROXY_CONF: text})


def _unit(unit: str) -> Callable[[], Release]:
    path = f"etc/systemd/system/{unit}.service.d/lab.conf"
    return lambda: releases.old().derive(f"{unit}-unit", add={path: _DROP_IN})


def _agent() -> Release:
    jar = filler.incompressible("another agent", 90_000)
    return releases.old().derive("agent", agent_change={releases.AGENT_JAR: jar})


def _has_file(path: str, text: bytes) -> Check:
    return lambda lab, name: text in lab.read_bytes(name, path)


def _runs_with_mark(unit: str) -> Check:
    command = f"tr '\\0' '\\n' < /proc/$(systemctl show -P MainPID {unit})/environ"
    return lambda lab, name: _MARK in lab.exec(name, command, check=False).stdout


def _apache_reread(lab: Lab, name: str) -> bool:
    answer = lab.exec(
        name, "curl -s -m 3 -D- -o /dev/null http://$(hostname -I | cut -d' ' -f1)/index.html", check=False
    )
    return "200 OK" in answer.stdout and "ETag" not in answer.stdout


def _agent_reread(lab: Lab, name: str) -> bool:
    """The agent says what it loaded; that it says so for the jar that lies there now."""
    command = "cd /usr/local/cloud/systemvm && for j in $(ls *.jar | LC_ALL=C sort); do printf '%s\\0' $j; cat $j; done"
    expected = lab.exec(name, f"({command}) | sha256sum | cut -c1-12").stdout.strip()
    return expected in lab.exec(name, "cat /run/cloud-agent.status").stdout


def _still_old(lab: Lab, name: str) -> bool:
    return releases.old().scripts[releases.SECURITY_CONF] == lab.read_bytes(name, f"/{releases.SECURITY_CONF}")


_MODULE = "/opt/cloud/bin/cs/CsFile.py"

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        name="same-files",
        title="nothing changed: another build of the same files",
        release=releases.old,
        works=_has_file(_MODULE, b"ConfigFile"),
        build_seed=1,
    ),
    Scenario(
        name="scripts-only",
        title="scripts and health checks changed, no service",
        release=_scripts_only,
        works=_has_file(_MODULE, b"ManagedFile"),
    ),
    Scenario(
        name="apache-config",
        title="a setting of apache2 changed (reloadable)",
        release=_apache_config,
        works=_apache_reread,
        acts=("apache2 reload",),
    ),
    Scenario(
        name="haproxy-config",
        title="the packaged haproxy.cfg changed (the live one is the VM's)",
        release=_haproxy_config,
        works=lambda lab, name: b"listen 198_18_" in lab.read_bytes(name, f"/{_HAPROXY_CONF}"),
    ),
    Scenario(
        name="haproxy-unit",
        title="haproxy's unit changed (needs a restart)",
        release=_unit("haproxy"),
        works=_runs_with_mark("haproxy"),
        must_keep=Keep.PLANNED,
        acts=("haproxy heldrestart",),
    ),
    Scenario(
        name="apache-unit",
        title="apache2's unit changed (needs a restart)",
        release=_unit("apache2"),
        works=_runs_with_mark("apache2"),
        must_keep=Keep.PLANNED,
        acts=("apache2 heldrestart",),
    ),
    Scenario(
        name="dnsmasq-unit",
        title="dnsmasq's unit changed (needs a restart)",
        release=_unit("dnsmasq"),
        works=_runs_with_mark("dnsmasq"),
        must_keep=Keep.PLANNED,
        acts=("dnsmasq heldrestart",),
    ),
    Scenario(
        name="vpc-unit",
        title="a VPC router (one tier): dnsmasq's unit changed",
        release=_unit("dnsmasq"),
        works=_runs_with_mark("dnsmasq"),
        shape=Shape.VPC,
        must_keep=Keep.PLANNED,
        acts=("dnsmasq heldrestart",),
    ),
    Scenario(
        name="pair",
        title="a redundant pair, BACKUP then PRIMARY: scripts and apache2's setting",
        release=releases.new,
        works=_has_file(_MODULE, b"ManagedFile"),
        shape=Shape.PAIR,
    ),
    Scenario(
        name="pair-failover",
        title="a redundant pair: keepalived's unit changed, plannedFailover Allowed",
        release=_unit("keepalived"),
        works=_runs_with_mark("keepalived"),
        shape=Shape.PAIR,
        must_keep=Keep.PLANNED,
        acts=("keepalived restart",),
        may_fail_over=True,
    ),
    Scenario(
        name="rollback",
        title="a broken release: apache2 dies when it reloads",
        release=releases.broken,
        works=_still_old,
        must_keep=Keep.PLANNED,
        victims=frozenset({"apache2"}),
        acts=("apache2 start (going back)",),
        ends=JournalPhase.ROLLED_BACK,
    ),
    Scenario(
        name="ssvm-agent",
        title="the agent of an SSVM changed",
        release=_agent,
        works=_agent_reread,
        shape=Shape.STORAGE,
    ),
)


def find(names: tuple[str, ...]) -> tuple[Scenario, ...]:
    """The scenarios of these names in their order, all for none. Raises LookupError with the names there are."""
    known = {scenario.name: scenario for scenario in SCENARIOS}
    if strange := [name for name in names if name not in known]:
        raise LookupError(f"no scenario {', '.join(strange)}: there are {', '.join(known)}")
    return tuple(scenario for scenario in SCENARIOS if not names or scenario.name in names)
