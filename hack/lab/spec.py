"""What the lab's machines are: the words that the fleet, its content and the tests share.

A `VMSpec` is what a person asks for, a `VM` is the same machine once the lab has given it keys, links and addresses.
Both are plain data, so that the code that fills a VM with files (`lab.content`) needs to know nothing about namespaces,
and the code that runs VMs nothing about CloudStack's files. The two meet in `LayOut`.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Protocol

SSH_PORT = 3922
"""The port of a system VM's sshd (CloudStack 4.21 sshd_config of the system VM template)."""

FABRIC = "lab"
"""The name of the lab's network namespace, inside its toolbox."""

BOOT_MARKER = "/var/cache/cloud/boot_up_done"
"""Written last by the boot units of a system VM (CloudStack 4.21 postinit.sh); removed first (cloud-early-config)."""

ROLE_COMMAND = "/opt/cloud/bin/checkrouter.sh"
"""Prints `Status: PRIMARY`, `BACKUP`, `FAULT` or `UNKNOWN` (CloudStack 4.21 checkrouter.sh)."""

SMALLEST_INDEX, LARGEST_INDEX = 2, 250
"""The last byte of all addresses of a VM: 1 is the gateway's, the ones above are left for tenants and for the lab."""

_NAME = re.compile(r"[a-z][A-Za-z0-9-]*[A-Za-z0-9]")


class SystemVMType(enum.StrEnum):
    """CloudStack's own type words, as in the `type=` of a VM's boot line."""

    SECSTORAGE = "secstorage"
    CONSOLEPROXY = "consoleproxy"
    ROUTER = "router"
    VPCROUTER = "vpcrouter"
    DHCPSRVR = "dhcpsrvr"
    ELBVM = "elbvm"
    ILBVM = "ilbvm"


class RedundancyRole(enum.StrEnum):
    """What ROLE_COMMAND says of a redundant router."""

    PRIMARY = "PRIMARY"
    BACKUP = "BACKUP"
    FAULT = "FAULT"
    UNKNOWN = "UNKNOWN"


class Segment(enum.StrEnum):
    """A wire of the lab: one bridge each, except GUEST, which is one bridge a group."""

    CONTROL = "control"
    PUBLIC = "public"
    PRIVATE = "private"
    GUEST = "guest"


NIC_ORDER: dict[SystemVMType, tuple[Segment, ...]] = {
    SystemVMType.SECSTORAGE: (Segment.CONTROL, Segment.PRIVATE, Segment.PUBLIC),
    SystemVMType.CONSOLEPROXY: (Segment.CONTROL, Segment.PRIVATE, Segment.PUBLIC),
    SystemVMType.ROUTER: (Segment.GUEST, Segment.CONTROL, Segment.PUBLIC),
    SystemVMType.VPCROUTER: (Segment.CONTROL, Segment.PUBLIC, Segment.GUEST),
    SystemVMType.DHCPSRVR: (Segment.GUEST, Segment.CONTROL),
    SystemVMType.ELBVM: (Segment.GUEST, Segment.CONTROL, Segment.PUBLIC),
    SystemVMType.ILBVM: (Segment.GUEST, Segment.CONTROL),
}
"""eth0, eth1, ... of each type on KVM, where sshd listens on the control NIC only (CloudStack 4.21 init.sh)."""

GATEWAY_TYPES = frozenset({SystemVMType.ROUTER, SystemVMType.VPCROUTER})
"""Types that own the gateway address of their guest network: alone, or as one of a redundant pair."""


@dataclass(frozen=True, kw_only=True)
class VMSpec:
    """One system VM as a person asks for it.

    `name` is CloudStack's (`r-101-VM`) and becomes the host name. `index` (2 to 250, unique in a lab) is the number all
    addresses of the VM end in. VMs of one `group` share a guest network, and two with `redundant` set are a pair whose
    higher `priority` (VRRP, 1 to 254) becomes PRIMARY. `host` is the hypervisor host the VM is said to run on; where
    the lab has a host of that name, the VM's control address can be reached from there only, and `link_local` may
    give it one that another host's VM has too. `public_address` (within 198.18.0.0/16) is one that a network keeps
    whichever router serves it. `tmpfs_mib` puts the VM's disk on a tmpfs of that size, so that it can be filled.
    """

    name: str
    type: SystemVMType
    index: int
    group: str | None = None
    redundant: bool = False
    priority: int = 100
    host: str = "host-1"
    tmpfs_mib: int | None = None
    link_local: str | None = None
    public_address: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > 60:
            raise ValueError(f"{self.name!r} is no VM name: at most 60 letters, digits and dashes, as in r-101-VM")
        if not SMALLEST_INDEX <= self.index <= LARGEST_INDEX:
            raise ValueError(f"{self.name}: index {self.index} is outside {SMALLEST_INDEX} to {LARGEST_INDEX}")
        if not 1 <= self.priority <= 254:
            raise ValueError(f"{self.name}: priority {self.priority} is outside 1 to 254")
        if self.redundant and (self.type not in GATEWAY_TYPES or self.group is None):
            raise ValueError(f"{self.name}: only a router or vpcrouter with a group can be redundant")
        if self.tmpfs_mib is not None and self.tmpfs_mib < 8:
            raise ValueError(f"{self.name}: a disk of {self.tmpfs_mib} MiB is too small to boot from; give 8 or more")

    @property
    def network(self) -> str:
        """The guest network the VM belongs to: its group, or one of its own."""
        return self.group or self.name


@dataclass(frozen=True, kw_only=True)
class Nic:
    """One interface inside the VM.

    The lab makes the interface anew at every boot and brings it up. It sets the address only of the control NIC, so
    that sshd can be reached whatever the guest does; the guest's own boot units set the others. `virtual_address` is
    what the PRIMARY of a redundant pair holds besides (on the public side: instead of `address`, which is then None).
    `gateway` is the next hop toward the outside, on the interface that has one. `mac` stays the same for the life of
    the VM. `namespace` is where the bridge is: the lab's own, or a hypervisor host's.
    """

    name: str
    segment: Segment
    bridge: str
    mac: str
    address: IPv4Interface | None
    virtual_address: IPv4Interface | None = None
    gateway: IPv4Address | None = None
    namespace: str = FABRIC


@dataclass(frozen=True, kw_only=True)
class VM:
    """A system VM of a lab that is up: the spec, and what the lab gave it.

    `relay_address`:`port` is where the host (and an operator on it) reaches the VM's sshd. `control_address` is the
    VM's link-local address on the control wire, reachable only from inside the lab's network namespace. `host_key` is
    the public part, in the form `ssh-ed25519 AAAA... NAME`. `root` is the VM's live file system as this process can
    reach it, through the lab's mount namespace.

    An absolute symbolic link below `root` points out of it, to the host's own files: code that writes there must
    replace links, not follow them. `Lab.read_bytes` and `Lab.write_bytes` resolve paths inside the VM.
    """

    spec: VMSpec
    nics: tuple[Nic, ...]
    control_address: IPv4Address
    relay_address: IPv4Address
    host_key: str
    root: Path
    port: int = SSH_PORT

    @property
    def name(self) -> str:
        return self.spec.name

    def nic(self, segment: Segment) -> Nic:
        """The first NIC on a segment. Raises KeyError if the type has none there."""
        for nic in self.nics:
            if nic.segment is segment:
                return nic
        raise KeyError(f"{self.name} ({self.spec.type}) has no {segment} NIC")


class LayOut(Protocol):
    """Fills a new VM's disk before its first boot; `lab.content.lay_out` is the one that makes a system VM of it.

    Already there: a plain Debian 12 with the packages of a system VM (no service of theirs is enabled but ssh), its
    `/etc/hostname` and `/etc/hosts`. Not there, so for this function: sshd's configuration (port 3922),
    `authorized_key` (one line, no newline) for root, `host_key` (an OpenSSH private key in PEM text) as the VM's only
    host key, and everything of CloudStack at `release`.
    """

    def __call__(self, root: Path, vm: VM, *, release: str, authorized_key: str, host_key: str) -> None: ...


DEFAULT_FLEET: tuple[VMSpec, ...] = (
    VMSpec(name="r-101-VM", type=SystemVMType.ROUTER, index=101, group="net-1", redundant=True, priority=110),
    VMSpec(
        name="r-102-VM", type=SystemVMType.ROUTER, index=102, group="net-1", redundant=True, priority=100, host="host-2"
    ),
    VMSpec(name="r-103-VM", type=SystemVMType.ROUTER, index=103, group="net-2"),
    VMSpec(name="s-104-VM", type=SystemVMType.SECSTORAGE, index=104, group="ssvm-zone-1", host="host-2"),
)
"""A redundant router pair, a single router and a secondary storage VM."""
