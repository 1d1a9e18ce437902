"""A payload that machines of the cloud hold: which of them are asked, and whether what they hold is one release.

Git names no digest here, so the machines must speak with one voice: what is true on some hosts only would be undone by
the next start on another. Two builds of the same files are one release, whichever archive they came in.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sysvm.api.reasons import Reason
from sysvm.api.systemvm import Identity
from sysvm.domain.cloud import CloudHost, Snapshot
from sysvm.domain.conditions import bounded
from sysvm.domain.source_status import Problem

NAMED = 10
"""Machines that a sentence names before it only counts."""
MOST_BUILDS = 4
"""Builds of one release that are compared; more are told without reading them."""


@dataclass(frozen=True, slots=True)
class HostToAsk:
    """A hypervisor host that runs selected VMs."""

    name: str
    hypervisor: str | None
    address: str | None
    """None: no management server was asked; the name is the address."""


@dataclass(frozen=True, slots=True)
class Hosts:
    """Of the selected VMs of one endpoint."""

    asked: tuple[HostToAsk, ...]
    left_out: tuple[tuple[str, str], ...]
    """Name and why, such as Maintenance: does not count as agreeing."""


@dataclass(frozen=True, slots=True)
class Build:
    """What some machines hold, by its archives."""

    scripts: str
    """Digest of cloud-scripts.tgz as alg:hex."""
    agent: str | None
    machines: tuple[str, ...]
    also: frozenset[str] = frozenset()
    """Digests of the same cloud-scripts.tgz in other algorithms."""
    revision: str | None = None
    """None: not read."""

    @property
    def told(self) -> str:
        agent = f" with agent.zip {self.agent}" if self.agent is not None else ""
        return f"cloud-scripts.tgz {self.scripts}{agent} on {named(self.machines)}"


def hosts_of(vms: Iterable[Identity], snapshot: Snapshot | None) -> Hosts:
    """The hosts that run these VMs, by name; those that are down or in maintenance apart."""
    known: Mapping[str, CloudHost] = (
        {host.name: host for host in snapshot.hosts.values()} if snapshot is not None else {}
    )
    asked: dict[str, HostToAsk] = {}
    left_out: dict[str, str] = {}
    for vm in vms:
        if vm.host is None:
            continue
        host = known.get(vm.host)
        trouble = _trouble(host) if host is not None else ""
        if trouble:
            left_out[vm.host] = trouble
        else:
            asked[vm.host] = HostToAsk(vm.host, vm.hypervisor, host.address if host is not None else None)
    return Hosts(tuple(asked[name] for name in sorted(asked)), tuple(sorted(left_out.items())))


def _trouble(host: CloudHost) -> str:
    if "Maintenance" in host.resource_state:
        return host.resource_state
    return host.state if host.state != "Up" else ""


def disagreement(builds: Sequence[Build], without: Sequence[str], left_out: Sequence[str]) -> Problem | None:
    """Why these machines are not of one mind; None: they are. `without`: machines that hold no payload.

    Builds that were not read (`revision` None) are as many releases.
    """
    if not builds:
        told = f"no payload is to be found on {named(without)}: is cloudstack-common installed there?"
        return Problem(Reason.PAYLOAD_NOT_FOUND, told + _left_out(left_out), transient=True)
    if not without and len({build.revision or build.scripts for build in builds}) == 1:
        return None
    parts = [build.told for build in sorted(builds, key=_most_first)[: MOST_BUILDS + 1]]
    if without:
        parts.append(f"none on {named(without)}")
    told = f"the machines do not hold one payload: {'; '.join(parts)}. Bring cloudstack-common to one release on all"
    return Problem(Reason.HOSTS_DISAGREE, bounded(told + _left_out(left_out), 4096))


def chosen(builds: Sequence[Build], expect: str | None) -> Build | Problem:
    """The build to install, of builds that are one release: the expected one, else the one that most machines hold."""
    if expect is None:
        return min(builds, key=_most_first)
    found = next((build for build in builds if expect == build.scripts or expect in build.also), None)
    if found is not None:
        return found
    algorithm = expect.partition(":")[0]
    held = "; ".join(
        next((digest for digest in build.also if digest.startswith(f"{algorithm}:")), build.scripts)
        + f" on {named(build.machines)}"
        for build in sorted(builds, key=_most_first)
    )
    return Problem(Reason.DIGEST_MISMATCH, f"cloud-scripts.tgz must have the digest {expect}, and it has {held}")


def warnings_of(build: Build, builds: Sequence[Build], left_out: Sequence[str]) -> tuple[str, ...]:
    """What to know though all agree."""
    others = [machine for each in builds if each is not build for machine in each.machines]
    warnings = [f"another build of the same files is on {named(others)}"] if others else []
    return (*warnings, *([_left_out(left_out).removeprefix("; ")] if left_out else ()))


def named(machines: Sequence[str]) -> str:
    """Up to ten of them."""
    rest = len(machines) - NAMED
    return ", ".join(machines[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _left_out(left_out: Sequence[str]) -> str:
    return f"; not asked: {named(left_out)}" if left_out else ""


def _most_first(build: Build) -> tuple[int, str, str]:
    return -len(build.machines), build.scripts, build.agent or ""
