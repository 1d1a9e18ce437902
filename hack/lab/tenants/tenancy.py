"""Makes tenants in a lab that is up, and lets them ask.

Nothing is remembered: the namespaces live in the lab's toolbox and the processes in its cgroups, so `down` takes both
away like everything else of the lab, whatever has happened to the process that made them.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lab.content import bootline
from lab.machines import Lab
from lab.spec import VM, Segment
from lab.tenants import network
from lab.tenants.kinds import ROUTER_KINDS, STORAGE_KINDS, Kind, Tally
from lab.tenants.network import GuestPlaces, Place

RATE = 100.0
"""Requests a second of each kind."""

_CGROUP = "tenants"
_OTHER_MACHINE = ("nice", "-n", "-20")
"""Tenants do not wait for the CPU of the machine that is measured: what they would lose by that is no loss."""
_ECHO_PORT = 9001
_DNS_PORT, _DHCP_PORT, _HTTP_PORT = 53, 67, 80
_START_SECONDS = 60.0
_END_SECONDS = 15.0


class TenancyError(Exception):
    """Tenants could not be made, or their traffic does not flow. The message has what their programs said."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What one run of the probes found."""

    tallies: tuple[Tally, ...]
    late_ms: float
    """The longest that the probes themselves were kept waiting for a CPU."""

    def of(self, kind: Kind) -> Tally:
        return next(tally for tally in self.tallies if tally.kind is kind)


class Run:
    """Probes that ask until they are ended. Leaving the block without `end` throws their numbers away."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the first request."""
        return time.monotonic() - self._began

    def end(self) -> Traffic:
        """Stops asking, waits for what is under way and returns what was counted."""
        out, problems = self._process.communicate(timeout=_END_SECONDS)
        if self._process.returncode != 0:
            raise TenancyError(f"the probes ended with {self._process.returncode}: {problems.strip()[-2000:]}")
        found = json.loads(out)
        return Traffic(tallies=tuple(Tally.read(raw) for raw in found["tallies"]), late_ms=float(found["late_ms"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate(timeout=_END_SECONDS)


class Tenancy:
    """The tenants of a lab. Any number of these may hold on to the same lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._toolbox = lab.toolbox()
        self._folder = self._toolbox.path(Path("/run/netns"))

    def add(self, router: str) -> GuestPlaces:
        """Client and members on a router's guest network, and the outside host if there is none yet.

        They are made once a guest network; for the routers of a pair name either.
        """
        places = network.guest_places(self._lab.vm(router))
        self._outside()
        fresh = [place for place in (places.client, *places.members) if self._make(place)]
        if fresh:
            member = bootline.MEMBER_PORT
            self._serve([[place.namespace, "web", member] for place in places.members], places.client.namespace)
        return places

    def _outside(self) -> None:
        if self._make(network.outside()):
            self._serve([[network.OUTSIDE, kind, _ECHO_PORT] for kind in ("echo", "udp")], network.OUTSIDE)

    def _make(self, place: Place) -> bool:
        if (self._folder / place.namespace).exists():
            return False
        self._toolbox.run(["sh", "-c", place.lines()])
        return True

    def _serve(self, wanted: list[list[object]], name: str) -> None:
        log = self._lab.run_dir / "machines" / f"{name}.log"
        self._lab.cgroups.launch(
            _CGROUP,
            [*_OTHER_MACHINE, sys.executable, "-m", "lab.tenants.servers", str(self._folder), json.dumps(wanted)],
            log=log,
        )
        deadline = time.monotonic() + _START_SECONDS
        while "ready" not in (said := log.read_text(errors="replace")):
            if "Traceback" in said or time.monotonic() > deadline:
                raise TenancyError(f"the servers of {name} do not start: {said.strip()[-2000:] or 'no output'}")
            time.sleep(0.05)

    def start(self, *vms: str, rate: float = RATE, kinds: Sequence[Kind] | None = None) -> Run:
        """Starts asking the services of VMs: routers (one of a pair) and storage VMs, at most one of each.

        Returns when every kind has been answered once. Raises TenancyError when one is not.
        """
        items = [item for name in vms for item in self._items(self._lab.vm(name))]
        if kinds is not None:
            items = [item for item in items if item["kind"] in kinds]
        arguments = json.dumps({"namespaces": str(self._folder), "rate": rate, "kinds": items})
        process = subprocess.Popen(
            [*self._lab.cgroups.join(_CGROUP), *_OTHER_MACHINE, sys.executable, "-m", "lab.tenants.probes", arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
        said = os.read(process.stdout.fileno(), 6) if readable else b""
        if said != b"ready\n":
            process.kill()
            problems = process.communicate(timeout=_END_SECONDS)[1].strip()[-600:]
            raise TenancyError(
                f"no traffic through {', '.join(vms)}: {problems or f'said {said!r}, exit {process.returncode}'}"
            )
        return Run(process)

    def _items(self, vm: VM) -> list[dict[str, object]]:
        if vm.spec.type in bootline.ROUTERS:
            return self._router_items(vm)
        public = bootline.held_address(vm.nic(Segment.PUBLIC))
        assert public is not None
        self._outside()
        at = {"place": network.OUTSIDE, "address": str(public.ip), "port": _HTTP_PORT, "path": "/index.html"}
        return [{"kind": kind, **at} for kind in STORAGE_KINDS]

    def _router_items(self, vm: VM) -> list[dict[str, object]]:
        places = network.guest_places(vm)
        client, (first, second) = places.client.namespace, places.members
        gateway, outside = str(places.gateway), str(network.OUTSIDE_ADDRESS.ip)
        name = f"tenant-1.{bootline.DOMAIN}"
        found: list[dict[str, object]] = []
        for kind in ROUTER_KINDS:
            item: dict[str, object] = {"kind": kind, "place": client, "address": gateway}
            match kind:
                case Kind.NAT_TCP_NEW | Kind.NAT_TCP_LONG | Kind.NAT_UDP:
                    item |= {"address": outside, "port": _ECHO_PORT}
                case Kind.DNS_SAME_PORT | Kind.DNS_NEW_PORT | Kind.DNS_TCP:
                    item |= {"port": _DNS_PORT, "name": name}
                case Kind.DHCP_DISCOVER | Kind.DHCP_RENEW:
                    item |= {"place": second.namespace, "port": _DHCP_PORT}
                    item |= {"mac": second.mac, "own": str(second.address.ip)}
                case Kind.HTTP_NEW | Kind.HTTP_LONG:
                    item |= {"place": network.OUTSIDE, "address": str(places.balancer)}
                    item |= {"port": bootline.LOAD_BALANCER_PORT}
                case _:
                    item |= {"place": first.namespace, "port": _HTTP_PORT, "path": "/latest/meta-data/instance-id"}
            found.append(item)
        return found
