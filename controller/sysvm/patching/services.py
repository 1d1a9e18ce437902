"""The services of a system VM: one table of how each is checked, made to see a change, and known to serve.

The least action that makes a change effective is a property of the service, and so is what tenants notice of it. The
facts are those of CloudStack 4.21 on its Debian 12 template (postinit.sh, CsApp.py, CsDhcp.py, CsLoadBalancer.py,
CsRedundant.py, configure_router.py, monitorServices.py). Units that are not here are watched if the VM has them
enabled, and never acted on.

All of these run in user space. A router's core (forwarding, address translation, firewall, routes) is its kernel's: no
row acts on it, and `remote/core.py` compares it before and after.
"""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from sysvm.api.endpoint import SystemVMType
from sysvm.patching import order_words
from sysvm.patching.boot import BootArguments

_ROUTERS = frozenset({SystemVMType.ROUTER, SystemVMType.VPCROUTER})
_DHCP = _ROUTERS | {SystemVMType.DHCPSRVR}
_BALANCERS = _ROUTERS | {SystemVMType.ELBVM, SystemVMType.ILBVM}
_WEB = _DHCP | {SystemVMType.SECSTORAGE}
_AGENTS = frozenset({SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY})
_ALL = frozenset(SystemVMType)
_GUESTS = _BALANCERS | _DHCP
"""Types with interfaces in guest networks: where requests can wait. An agent's tenants come from outside."""

_LOGIN_SECONDS = 60.0
_ROLE_SECONDS = 60.0
"""From the restart of keepalived to exactly one PRIMARY."""
_STABLE_SECONDS = 10.0
"""How long a role must last, beside three adverts."""
_DRAIN: order_words.DrainLimits = {"max_old": 1, "min_memory_bytes": 64 << 20, "wait_seconds": 20.0}
"""haproxy has no hard-stop-after there: each reload keeps an old worker until its last session ends."""

Word = Literal["none", "reload", "restart", "held-restart", "stop-start"]


class UnitAction(StrEnum):
    """Weakest first; the words are those of the API."""

    NOTHING = "Nothing"
    EFFECTIVE_AT_BOOT = "EffectiveAtBoot"
    """Nothing now: only the boot scripts read what changed. No drift and no failure, but worth saying."""
    RELOAD = "Reload"
    HELD_RESTART = "HeldRestart"
    """A restart during which what asks for the service waits in the kernel."""
    RESTART = "Restart"
    STOP_START = "StopStart"
    """Stopped before the switch, started after it: what must not run while its files are exchanged."""

    @property
    def word(self) -> Word:
        """The word of the protocol."""
        return _WORDS[self]

    @property
    def acts(self) -> bool:
        """Whether the VM is told to do something with the unit now."""
        return self.word != "none"


_WORDS: dict[UnitAction, Word] = {
    UnitAction.NOTHING: "none",
    UnitAction.EFFECTIVE_AT_BOOT: "none",
    UnitAction.RELOAD: "reload",
    UnitAction.HELD_RESTART: "held-restart",
    UnitAction.RESTART: "restart",
    UnitAction.STOP_START: "stop-start",
}


class Later(StrEnum):
    """When something takes effect that no unit is acted on for."""

    NEXT_COMMAND = "AtNextCommand"
    """The management server's next command applies it."""


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
    COMMAND_SOCKET = "command socket"
    """haproxy's, in the configuration that CloudStack generates and not in the packaged one."""


class StartedBy(StrEnum):
    """Who starts a unit on a system VM: why one that is down need not be broken."""

    SYSTEM = "the system"
    ENABLED = "enabled_svcs at boot"
    CONFIGURE = "configure.py"
    NOTIFY = "keepalived's notify"
    """Of a redundant pair: on the PRIMARY only."""
    ON_DEMAND = "the management server on demand"


@dataclass(frozen=True, slots=True)
class Question:
    """How to know that a service serves. Asked at every place; one that has no answer before is not asked after."""

    kind: Literal["tcp", "dns", "http", "haproxy"]
    port: int
    places: tuple[Where, ...]
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What asks for a service and waits while it restarts; it comes in on the interfaces of guest networks."""

    protocol: Literal["udp", "tcp"]
    ports: tuple[int, ...] = ()
    binds: str | None = None
    """An haproxy configuration that names the ports."""


@dataclass(frozen=True, slots=True)
class Service:
    """One unit. `unit` without `.service`; `name@*` stands for its instances."""

    unit: str
    types: frozenset[SystemVMType]
    started_by: tuple[StartedBy, ...] = (StartedBy.ENABLED,)
    vital: bool = False
    """Tenants, or the operator's way in, depend on it: a VM where it is down is not healthy."""
    at_boot: tuple[str, ...] = ()
    """Paths of a payload that only the boot scripts turn into this unit's configuration."""
    reload: bool = False
    """It takes a changed configuration without a gap."""
    held: tuple[Held, ...] = ()
    """Where it must restart, nothing is lost if these wait."""
    stop_seconds: float | None = None
    """In a held restart, what has not stopped by then is killed; None: it stops at once."""
    validators: tuple[tuple[str, ...], ...] = ()
    questions: tuple[Question, ...] = ()
    drain: bool = False
    proves_login: bool = False
    of_primary: bool = False
    """On a BACKUP nobody notices what is done to it."""
    reload_loss: str = "none"
    held_loss: str = "none lost; requests wait up to half a second"
    restart_loss: str = "none"
    """What tenants notice, in words; measured in the lab where it says a time."""
    action_seconds: float = 30.0

    @property
    def follows_role(self) -> bool:
        """On a redundant pair it runs on the PRIMARY only."""
        return StartedBy.NOTIFY in self.started_by and not self.of_primary

    def expected_loss(self, action: UnitAction) -> str:
        match action:
            case UnitAction.NOTHING | UnitAction.EFFECTIVE_AT_BOOT:
                return "none"
            case UnitAction.RELOAD:
                return self.reload_loss
            case UnitAction.HELD_RESTART:
                return self.held_loss
            case UnitAction.RESTART | UnitAction.STOP_START:
                return self.restart_loss

    def holds_on(self, vm_type: SystemVMType) -> bool:
        """Whether what asks for it on this type of VM can be kept waiting."""
        return bool(self.held) and vm_type in _GUESTS

    def restart(self, vm_type: SystemVMType, *, can_hold: bool) -> UnitAction:
        """The restart that loses least on a VM that can, or cannot, hold packets."""
        return UnitAction.HELD_RESTART if can_hold and self.holds_on(vm_type) else UnitAction.RESTART


_HAPROXY_CONFIG = "/etc/haproxy/haproxy.cfg"
_HAPROXY_SOCKET = "/run/haproxy/admin.sock"

SERVICES: tuple[Service, ...] = (
    Service("systemd-journald", _ALL, started_by=(StartedBy.SYSTEM,)),
    Service(
        "rsyslog",
        _ALL,
        started_by=(StartedBy.SYSTEM,),
        validators=(("rsyslogd", "-N1"),),
        restart_loss="log lines of about a second",
    ),
    Service("cron", _ALL, started_by=(StartedBy.SYSTEM,)),
    Service(
        "haproxy",
        _BALANCERS,
        vital=True,
        reload=True,
        held=(Held("tcp", binds=_HAPROXY_CONFIG),),
        validators=(("haproxy", "-c", "-f", _HAPROXY_CONFIG),),
        questions=(
            Question("haproxy", 0, (Where.COMMAND_SOCKET,)),
            Question("tcp", 35999, (Where.LOOPBACK,)),
            Question("tcp", 8081, (Where.LOOPBACK, Where.GUEST)),
        ),
        drain=True,
        held_loss="running load-balanced connections are cut; new ones wait, those from outside may be refused",
        restart_loss="running load-balanced connections are cut, new ones wait up to half a second",
    ),
    Service(
        "dnsmasq",
        _DHCP,
        started_by=(StartedBy.ENABLED, StartedBy.NOTIFY),
        vital=True,
        at_boot=("etc/dnsmasq.conf.tmpl", "etc/vpcdnsmasq.conf"),
        held=(Held("udp", (53, 67, 547)), Held("tcp", (53,))),
        validators=(("dnsmasq", "--test"),),
        questions=(Question("dns", 53, (Where.LOOPBACK, Where.GUEST, Where.GATEWAY), name="localhost"),),
        restart_loss="DNS and DHCP requests of about a tenth of a second",
    ),
    Service(
        "apache2",
        _WEB,
        vital=True,
        at_boot=("etc/apache2/vhost.template",),
        reload=True,
        held=(Held("tcp", (80, 443)),),
        stop_seconds=0.5,
        validators=(("apache2ctl", "-t"),),
        questions=(Question("http", 80, (Where.LOOPBACK, Where.GUEST, Where.GATEWAY), name="/"),),
        reload_loss="new requests may wait about a second, and a client that is less patient loses them",
        held_loss="none lost, but requests that take longer than half a second are cut; new ones wait up to a second",
        restart_loss="metadata requests of two to three seconds, of ten if a client keeps half a request open",
    ),
    Service(
        "cloud-password-server@*",
        _DHCP,
        started_by=(StartedBy.CONFIGURE, StartedBy.NOTIFY),
        vital=True,
        held=(Held("tcp", (8080,)),),
        questions=(Question("tcp", 8080, (Where.INSTANCE,)),),
        restart_loss="password requests of about a second",
    ),
    Service(
        "radvd",
        _ROUTERS,
        started_by=(StartedBy.ENABLED, StartedBy.CONFIGURE, StartedBy.NOTIFY),
        at_boot=("etc/radvd.conf.tmpl",),
        reload=True,
    ),
    Service("frr", _ROUTERS, restart_loss="BGP sessions are dropped and set up again"),
    Service(
        "ipsec",
        _ROUTERS,
        started_by=(StartedBy.CONFIGURE, StartedBy.NOTIFY),
        reload=True,
        restart_loss="VPN tunnels are dropped and set up again",
    ),
    Service(
        "xl2tpd",
        _ROUTERS,
        started_by=(StartedBy.CONFIGURE, StartedBy.NOTIFY),
        restart_loss="every L2TP session is dropped",
    ),
    Service("baremetal-vr", _DHCP, started_by=(StartedBy.ON_DEMAND,)),
    Service(
        "conntrackd",
        _ROUTERS,
        started_by=(StartedBy.CONFIGURE, StartedBy.NOTIFY),
        of_primary=True,
        restart_loss="none; until connection states are copied to the other router again, a failover would cut them",
    ),
    Service(
        "keepalived",
        _ROUTERS,
        started_by=(StartedBy.ENABLED, StartedBy.CONFIGURE),
        vital=True,
        reload=True,
        of_primary=True,
        restart_loss="a failover: NAT stops for 0.1 s, DNS, DHCP and metadata for about 1 s; "
        "load-balanced connections are cut",
        action_seconds=60.0,
    ),
    Service("nfs-common", frozenset({SystemVMType.SECSTORAGE})),
    Service("portmap", frozenset({SystemVMType.SECSTORAGE})),
    Service(
        "cloud",
        _AGENTS,
        vital=True,
        restart_loss="console sessions or running transfers of this VM are cut; the agent reconnects",
        action_seconds=90.0,
    ),
    Service(
        "ssh",
        _ALL,
        started_by=(StartedBy.SYSTEM,),
        vital=True,
        reload=True,
        validators=(("sshd", "-t"),),
        questions=(Question("tcp", 3922, (Where.LOOPBACK, Where.CONTROL)),),
        proves_login=True,
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


def service_built_from(path: str, vm_type: SystemVMType) -> Service | None:
    """The service whose configuration the boot scripts make from a path of the payload (no leading slash)."""
    for service in SERVICES:
        if vm_type in service.types and any(fnmatch.fnmatchcase(path, pattern) for pattern in service.at_boot):
            return service
    return None


def plain(unit: str) -> str:
    return unit.removesuffix(".service")


def is_meant(unit: str, wanted: str) -> bool:
    """Whether `unit` is the unit of the table, or one of its instances."""
    name = plain(unit)
    return name.startswith(wanted[:-1]) if wanted.endswith("@*") else name == wanted


def units_of(boot: BootArguments, vm_type: SystemVMType) -> tuple[str, ...]:
    """Units to look at on a VM of this type; instances spelled out where the boot line tells them."""
    found: list[str] = []
    for service in SERVICES:
        if vm_type not in service.types:
            continue
        if service.unit.endswith("@*") and vm_type is not SystemVMType.VPCROUTER:
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
    unit: str,
    action: UnitAction,
    boot: BootArguments,
    vm_type: SystemVMType,
    seconds: float,
    *,
    may_fail_over: bool | None = None,
) -> order_words.ServiceOrder:
    """What the VM is told about one unit. `seconds`: upper bound for its action, from the policy.

    `may_fail_over`: of a router of a redundant pair, whether its keepalived may be restarted while it has the gateway;
    None where it is alone.
    """
    service = service_of(unit)
    validators = service.validators if service is not None and action.acts else ()
    order: order_words.ServiceOrder = {
        "unit": unit,
        "action": action.word,
        "validators": [{"argv": list(argv), "timeout_seconds": min(20.0, seconds)} for argv in validators],
        "serving": _questions(service, unit, boot, vm_type) if service is not None else [],
        "timeout_seconds": min(service.action_seconds if service is not None else 30.0, seconds),
    }
    if may_fail_over is not None and service is not None and service.follows_role:
        order["follows_role"] = True
    if service is None or not action.acts:
        return order
    if service.of_primary and may_fail_over is not None:
        order["pair"] = {
            "may_fail_over": may_fail_over,
            "wait_seconds": min(_ROLE_SECONDS, seconds / 2),
            "stable_seconds": _STABLE_SECONDS,
        }
    if service.holds_on(vm_type):
        # For a reload, too: a service that dies of its new files is started again on the way back.
        order["hold"] = [_held_ports(held) for held in service.held]
    if action is UnitAction.HELD_RESTART and service.stop_seconds is not None:
        order["stop_seconds"] = service.stop_seconds
    if service.drain:
        order["drain"] = _DRAIN
    if service.proves_login:
        order["login_seconds"] = min(_LOGIN_SECONDS, seconds / 2)
    return order


def _held_ports(held: Held) -> order_words.HeldPorts:
    ports: order_words.HeldPorts = {"protocol": held.protocol, "ports": list(held.ports)}
    if held.binds is not None:
        ports["binds"] = held.binds
    return ports


def _questions(service: Service, unit: str, boot: BootArguments, vm_type: SystemVMType) -> list[order_words.ProbeCheck]:
    checks: list[order_words.ProbeCheck] = []
    for question in service.questions:
        hosts = [host for place in question.places for host in _hosts(place, unit, boot, vm_type)]
        for host in dict.fromkeys(hosts):
            check: order_words.ProbeCheck = {"kind": question.kind, "host": host, "port": question.port}
            if question.name is not None:
                check["name"] = question.name
            checks.append(check)
    return checks


def _hosts(place: Where, unit: str, boot: BootArguments, vm_type: SystemVMType) -> list[str]:
    match place:
        case Where.LOOPBACK:
            return ["127.0.0.1"]
        case Where.COMMAND_SOCKET:
            return [_HAPROXY_SOCKET]
        case Where.GUEST if vm_type is SystemVMType.VPCROUTER:
            return ["guests"]
        case Where.GUEST:
            address = boot.address(_GUEST_NIC[vm_type]) if vm_type in _GUEST_NIC else None
        case Where.GATEWAY:
            address = boot.words.get("guestgw") if vm_type is SystemVMType.ROUTER else None
        case Where.CONTROL:
            address = boot.address(_CONTROL_NIC.get(vm_type, "eth0"))
        case Where.INSTANCE:
            return [word for word in plain(unit).partition("@")[2].split(",") if word]
    return [address] if address else []
