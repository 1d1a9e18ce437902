"""A system VM's root as it is after its first start by CloudStack.

The machines know nothing of CloudStack and the payloads know nothing of a particular VM; this is where the two meet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lab.content.addresses import Addressing
from lab.content.releases import Release


class Identity(Protocol):
    """What the layout needs of a VM's specification (``lab.spec.VMSpec`` has it)."""

    @property
    def name(self) -> str:
        """CloudStack's instance name, e.g. ``r-4-VM``; also the host name."""

    @property
    def type(self) -> str:
        """``secstorage consoleproxy router vpcrouter dhcpsrvr elbvm ilbvm``."""

    @property
    def redundant(self) -> bool:
        """One of a pair that runs keepalived."""


def lay_out(
    root: Path,
    vm: Identity,
    *,
    network: Addressing,
    release: Release,
    authorized_key: str,
    host_key: str,
    agent_scale: float | None = None,
) -> None:
    """Write into ``root`` (a mounted, not running root file system) what a VM of ``release`` holds before its next boot.

    ``authorized_key`` is one public key line for root; ``host_key`` an OpenSSH private key in PEM text, written as the
    VM's only host key. ``agent_scale`` as in :func:`lab.content.payloads.build_agent`. Needs root (owners).
    """
    raise NotImplementedError
