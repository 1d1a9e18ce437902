"""The services of a system VM: one table of how each is checked, made to see a change, and known to serve.

The least action that makes a change effective is a property of the service, and so is what tenants notice of it. Units
that are not here are watched if the VM has them enabled, and never acted on.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from sysvm.api.endpoint import SystemVMType
from sysvm.patching import protocol
from sysvm.patching.boot import BootArguments

_ROUTERS = frozenset({SystemVMType.ROUTER, SystemVMType.VPCROUTER})
_DHCP = _ROUTERS | {SystemVMType.DHCPSRVR}
_BALANCERS = _ROUTERS | {SystemVMType.ELBVM, SystemVMType.ILBVM}
_WEB = _DHCP | {SystemVMType.SECSTORAGE}
_AGENTS = frozenset({SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY})
_ALL = frozenset(SystemVMType)


class UnitAction(StrEnum):
    """Weakest first; the words are those of the API."""

    NOTHING = "Nothing"
    RELOAD = "Reload"
    RESTART = "Restart"
    STOP_START = "StopStart"
    """Stopped before the switch, started after it: what must not run while its files are exchanged."""

    @property
    def word(self) -> Literal["none", "reload", "restart", "stop-start"]:
        """The word of the protocol."""
        return _WORDS[self]


_WORDS: dict[UnitAction, Literal["none", "reload", "restart", "stop-start"]] = {
    UnitAction.NOTHING: "none",
    UnitAction.RELOAD: "reload",
    UnitAction.RESTART: "restart",
    UnitAction.STOP_START: "stop-start",
}


def strongest(actions: Iterable[UnitAction]) -> UnitAction:
    order = list(UnitAction)
    return max(actions, key=order.index, default=UnitAction.NOTHING)


class Where(StrEnum):
    """An address that a service may answer on, known from the boot arguments."""

    LOOPBACK = "loopback"
    GUEST = "guest"
    GATEWAY = "gateway"
    CONTROL = "control"
    INSTANCE = "instance"
    """What follows the `@` of the unit."""


@dataclass(frozen=True, slots=True)
class Question:
    """How to know that a service serves. Asked at every place; one that has no answer before is not asked after."""

    kind: Literal["tcp", "dns", "http"]
    port: int
    places: tuple[Where, ...]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """One unit. `unit` without `.service`; `name@*` stands for its instances."""

    unit: str
    types: frozenset[SystemVMType]
    reload: bool = False
    """It takes a changed configuration without a gap."""
    validators: tuple[tuple[str, ...], ...] = ()
    questions: tuple[Question, ...] = ()
    reload_loss: str = "none"
    restart_loss: str = "none"
    """What tenants notice, in words; measured in the lab where it says a time."""
    action_seconds: float = 30.0

    def expected_loss(self, action: UnitAction) -> str:
        if action is UnitAction.NOTHING:
            return "none"
        return self.reload_loss if action is UnitAction.RELOAD else self.restart_loss


SERVICES: tuple[Service, ...] = (
    Service("systemd-journald", _ALL),
    Service("rsyslog", _ALL, validators=(("rsyslogd", "-N1"),), restart_loss="log lines of about a second"),
    Service("cron", _ALL),
    Service(
        "haproxy",
        _BALANCERS,
        reload=True,
        validators=(("haproxy", "-c", "-f", "/etc/haproxy/haproxy.cfg"),),
        questions=(Question("tcp", 35999, (Where.LOOPBACK,)), Question("tcp", 8081, (Where.LOOPBACK, Where.GUEST))),
        restart_loss="running load-balanced connections are cut, new ones wait up to half a second",
    ),
    Service(
        "dnsmasq",
        _DHCP,
        reload=True,
        validators=(("dnsmasq", "--test"),),
        questions=(Question("dns", 53, (Where.LOOPBACK, Where.GUEST, Where.GATEWAY), name="localhost"),),
        restart_loss="DNS and DHCP requests of about a tenth of a second",
    ),
    Service(
        "apache2",
        _WEB,
        reload=True,
        validators=(("apache2ctl", "-t"),),
        questions=(Question("http", 80, (Where.LOOPBACK, Where.GUEST, Where.GATEWAY), name="/"),),
        reload_loss="none lost; a request may wait up to a second",
        restart_loss="metadata requests of two to three seconds",
    ),
    Service(
        "cloud-password-server@*",
        _DHCP,
        questions=(Question("tcp", 8080, (Where.INSTANCE,)),),
        restart_loss="password requests of about a second",
    ),
    Service("radvd", _ROUTERS, reload=True),
    Service("frr", _ROUTERS, restart_loss="BGP sessions are dropped and set up again"),
    Service("ipsec", _ROUTERS, reload=True, restart_loss="VPN tunnels are dropped and set up again"),
    Service("xl2tpd", _ROUTERS, restart_loss="every L2TP session is dropped"),
    Service("baremetal-vr", _DHCP),
    Service("conntrackd", _ROUTERS, restart_loss="connection states are copied to the other router again"),
    Service("keepalived", _ROUTERS, reload=True, restart_loss="a restart on the PRIMARY is a failover"),
    Service("nfs-common", frozenset({SystemVMType.SECSTORAGE})),
    Service("portmap", frozenset({SystemVMType.SECSTORAGE})),
    Service(
        "cloud",
        _AGENTS,
        restart_loss="console sessions or running transfers of this VM are cut; the agent reconnects",
        action_seconds=90.0,
    ),
    Service(
        "ssh",
        _ALL,
        reload=True,
        validators=(("sshd", "-t"),),
        questions=(Question("tcp", 3922, (Where.LOOPBACK, Where.CONTROL)),),
    ),
)
"""In the order of their actions: what tenants do not see first, the agent late, the way in last."""

_BY_UNIT = {service.unit: service for service in SERVICES}
_GUEST_NIC = {SystemVMType.ROUTER: "eth0", SystemVMType.DHCPSRVR: "eth0", SystemVMType.ELBVM: "eth0"}
_CONTROL_NIC = {
    SystemVMType.ROUTER: "eth1",
    SystemVMType.DHCPSRVR: "eth1",
    SystemVMType.ELBVM: "eth1",
    SystemVMType.ILBVM: "eth1",
}
"""Where sshd listens; eth0 on the others (CloudStack 4.21 init.sh on KVM)."""


def service_of(unit: str) -> Service | None:
    """The row for a unit or one of its instances; None: not in the table."""
    name = plain(unit)
    return _BY_UNIT.get(name) or _BY_UNIT.get(f"{name.partition('@')[0]}@*")


def plain(unit: str) -> str:
    return unit.removesuffix(".service")


def units_of(boot: BootArguments, vm_type: SystemVMType) -> tuple[str, ...]:
    """Units to look at on a VM of this type, instances spelled out."""
    found: list[str] = []
    for service in SERVICES:
        if vm_type not in service.types:
            continue
        if service.unit.endswith("@*"):
            found += [service.unit.replace("*", instance) for instance in _password_instances(boot, vm_type)]
        else:
            found.append(service.unit)
    return tuple(found)


def _password_instances(boot: BootArguments, vm_type: SystemVMType) -> tuple[str, ...]:
    """Named after the addresses they serve (CloudStack 4.21 CsApp.py, CsPasswdSvc); "gateway,address" if redundant."""
    address = boot.address(_GUEST_NIC.get(vm_type, "eth0"))
    gateway = boot.words.get("guestgw")
    names = [address, gateway, f"{gateway},{address}" if gateway and address else None]
    return tuple(dict.fromkeys(name for name in names if name))


def order_for(
    unit: str, action: UnitAction, boot: BootArguments, vm_type: SystemVMType, seconds: float
) -> protocol.ServiceOrder:
    """What the VM is told about one unit. `seconds`: upper bound for its action, from the policy."""
    service = service_of(unit)
    validators = service.validators if service is not None and action is not UnitAction.NOTHING else ()
    return {
        "unit": unit,
        "action": action.word,
        "validators": [{"argv": list(argv), "timeout_seconds": min(20.0, seconds)} for argv in validators],
        "serving": _questions(service, unit, boot, vm_type) if service is not None else [],
        "timeout_seconds": min(service.action_seconds if service is not None else 30.0, seconds),
    }


def _questions(service: Service, unit: str, boot: BootArguments, vm_type: SystemVMType) -> list[protocol.ProbeCheck]:
    checks: list[protocol.ProbeCheck] = []
    for question in service.questions:
        hosts = [host for place in question.places for host in _hosts(place, unit, boot, vm_type)]
        for host in dict.fromkeys(hosts):
            check: protocol.ProbeCheck = {"kind": question.kind, "host": host, "port": question.port}
            if question.name is not None:
                check["name"] = question.name
            checks.append(check)
    return checks


def _hosts(place: Where, unit: str, boot: BootArguments, vm_type: SystemVMType) -> list[str]:
    match place:
        case Where.LOOPBACK:
            return ["127.0.0.1"]
        case Where.GUEST:
            address = boot.address(_GUEST_NIC[vm_type]) if vm_type in _GUEST_NIC else None
        case Where.GATEWAY:
            address = boot.words.get("guestgw") if vm_type is SystemVMType.ROUTER else None
        case Where.CONTROL:
            address = boot.address(_CONTROL_NIC.get(vm_type, "eth0"))
        case Where.INSTANCE:
            return [word for word in plain(unit).partition("@")[2].split(",") if word]
    return [address] if address else []
