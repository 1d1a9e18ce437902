"""What a lab wrote down about itself, so that another process can work with it.

Not what `down` relies on: the cgroup tree says what runs, and all else is files below one folder. Written whole or not
at all, before a step for what the step will need, and after it for what came out.
"""

from __future__ import annotations

import enum
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lab.spec import SystemVMType, VMSpec


class Phase(enum.StrEnum):
    STARTING = "starting"
    UP = "up"


@dataclass
class MachineRecord:
    """One VM: what was asked for, the number of its guest network, and its public host key."""

    spec: VMSpec
    network: int
    release: str
    host_key: str = ""


@dataclass
class HostRecord:
    """One hypervisor host: its number among the lab's hosts, and its public host key."""

    name: str
    index: int
    host_key: str


@dataclass
class LabState:
    """One lab. The toolbox process keeps its mount namespace; with its start time, for a number alone is reused."""

    phase: Phase = Phase.STARTING
    toolbox_pid: int = 0
    toolbox_started: int = 0
    slot: int = -1
    disk: str = ""
    networks: dict[str, int] = field(default_factory=dict)
    machines: dict[str, MachineRecord] = field(default_factory=dict)
    hosts: dict[str, HostRecord] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self), indent=1))
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> LabState | None:
        """The state in a file, or None when there is no file."""
        try:
            raw: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        machines = {name: _machine(record) for name, record in raw.pop("machines").items()}
        hosts = {name: HostRecord(**record) for name, record in raw.pop("hosts").items()}
        return cls(**raw | {"phase": Phase(raw["phase"]), "machines": machines, "hosts": hosts})


def _machine(raw: dict[str, Any]) -> MachineRecord:
    spec = raw["spec"] | {"type": SystemVMType(raw["spec"]["type"])}
    return MachineRecord(VMSpec(**spec), int(raw["network"]), raw["release"], raw["host_key"])
