"""CloudStackEndpoint: where the cloud is and how to reach its VMs."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import (
    ApiModel,
    Duration,
    KeyRef,
    NameRef,
    ObjectMeta,
    ObservedStatus,
    Says,
    ShortText,
    at_least,
    at_most,
    cel_text,
    matching,
    rule,
)

_VM_NAME_LABEL = "[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?"
_VM_NAME = rf"^{_VM_NAME_LABEL}(\.{_VM_NAME_LABEL})*$"
_ADDRESS = r"^[A-Za-z0-9:.\-]+$"
_API_URL = r"^https?://[A-Za-z0-9.:_\[\]-]+(/[^?#@\s]*)?$"
_INTEGRATION_PORT = "^https?://[^/]*:0*8096(/.*)?$"
_USER = "^[a-z_][a-z0-9_-]*$"


class SystemVMType(StrEnum):
    """CloudStack's own names for the roles of a system VM."""

    SECSTORAGE = "secstorage"
    CONSOLEPROXY = "consoleproxy"
    ROUTER = "router"
    VPCROUTER = "vpcrouter"
    DHCPSRVR = "dhcpsrvr"
    ELBVM = "elbvm"
    ILBVM = "ilbvm"

    @property
    def runs_agent(self) -> bool:
        """Whether the type runs CloudStack's agent (`cloud.service`)."""
        return self in (SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY)

    @property
    def is_router(self) -> bool:
        return self in (SystemVMType.ROUTER, SystemVMType.VPCROUTER, SystemVMType.DHCPSRVR)


class Inventory(StrEnum):
    CLOUDSTACK = "CloudStack"
    STATIC = "Static"


class Management(StrEnum):
    OBSERVE = "Observe"
    FULL = "Full"


class HostKeyPolicy(StrEnum):
    TRUST_ON_FIRST_USE = "TrustOnFirstUse"
    STRICT = "Strict"


class SSHAlgorithms(StrEnum):
    MODERN = "Modern"
    LEGACY = "Legacy"


class Via(StrEnum):
    DIRECT = "Direct"
    HOST = "Host"


class StaticSystemVM(ApiModel):
    """A system VM that a person lists by hand."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=63, pattern=_VM_NAME),
        matching(_VM_NAME, "must be the name of a VM, such as r-101-VM: letters, digits, and '-' or '.' between them"),
    ]
    """Name of the VM, as CloudStack shows it (r-101-VM). The SystemVM object is <endpoint>-<name> in lower case."""
    type: SystemVMType
    """CloudStack's type of the VM. Checked against the VM's own boot arguments before anything is changed."""
    address: Annotated[
        str,
        Field(min_length=2, max_length=253, pattern=_ADDRESS),
        Says(
            f"self.matches({cel_text(_ADDRESS)}) && (!self.contains(':') || isIP(self))",
            "must be an IP address or a host name, without a port",
        ),
    ]
    """Address the operator connects to."""
    group: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """VMs with the same group back each other up or share a fate (the routers of one network): never two at once."""
    host: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Hypervisor host, for the limit of VMs in work on one host. With a route via Host also where its sshd answers: a
    host name or an IP address."""
    zone: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """CloudStack zone, for selectors and for the rule that the last healthy SSVM or CPVM of a zone is left alone."""
    hypervisor: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Hypervisor such as KVM, for selectors and for spec.ssh.routes."""
    account: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """CloudStack account that owns the VM, for selectors."""
    network: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """CloudStack network that the router serves, for selectors."""


class HostKeys(ApiModel):
    """How the identity of a VM is established before anything is sent to it."""

    policy: HostKeyPolicy = HostKeyPolicy.TRUST_ON_FIRST_USE
    """TrustOnFirstUse: the first key seen is kept in the SystemVM's status and required from then on. Strict: only keys
    listed in knownHostsRef."""
    known_hosts_ref: KeyRef | None = None
    """ConfigMap key in known_hosts format; required for Strict."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule("self.policy != 'Strict' || has(self.knownHostsRef)", "policy Strict needs knownHostsRef"),
    )


class SSHLimits(ApiModel):
    """How many connections at once."""

    connections: Annotated[int, Field(ge=1, le=1000)] = 50
    """Open SSH connections to VMs of this endpoint."""
    connections_per_host: Annotated[int, Field(ge=1, le=100)] = 4
    """Open SSH connections to VMs through one hypervisor host, whose own connection they share. One of them is kept
    for looks, so it should be greater than the perHost of the policies."""


class Jump(ApiModel):
    """How to log in on the hypervisor hosts of a route. Nothing is installed or written there."""

    user: Annotated[
        str,
        Field(min_length=1, max_length=32, pattern=_USER),
        matching(_USER, "must be a login name: lower case letters, digits, '-' and '_', not beginning with a digit"),
    ] = "root"
    """Login name on the host. It needs TCP forwarding to the VMs, and may read the payload that the host keeps."""
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    """TCP port of the host's sshd."""
    key_secret_ref: KeyRef
    """Secret key that holds the private key for the hosts in PEM or OpenSSH format, without a passphrase."""
    known_hosts_ref: KeyRef
    """ConfigMap key with the host keys of the hosts in known_hosts format, by name or by address. A host that it does
    not list is sent nothing."""


class Route(ApiModel):
    """How the VMs of some hypervisors are reached."""

    hypervisors: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=63)], ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Hypervisors, such as KVM, in upper or lower case; empty: all."""
    via: Via
    """Direct: the operator connects to the VM itself. Host: through the hypervisor host that the VM runs on, which is
    where KVM and XenServer VMs have their control address."""
    jump: Jump | None = None
    """How to log in on those hosts."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule("(self.via == 'Host') == has(self.jump)", "via Host needs jump, and via Direct has none"),
    )


class SSHAccess(ApiModel):
    """How to log in on the VMs."""

    user: Annotated[
        str,
        Field(min_length=1, max_length=32, pattern=_USER),
        matching(_USER, "must be a login name: lower case letters, digits, '-' and '_', not beginning with a digit"),
    ] = "root"
    """Login name. CloudStack's system VMs know root only."""
    port: Annotated[int, Field(ge=1, le=65535)] = 3922
    """TCP port of sshd."""
    key_secret_ref: KeyRef
    """Secret key that holds CloudStack's private key (id_rsa.cloud) in PEM or OpenSSH format, without a passphrase."""
    host_keys: HostKeys = HostKeys()
    """How the VM's identity is checked."""
    algorithms: SSHAlgorithms = SSHAlgorithms.MODERN
    """Modern: nothing with SHA-1 is offered, which every template since Debian 9 can do. Legacy: where a VM has nothing
    else, also RSA signatures, key exchange and message digests with SHA-1; a Warning event and the condition
    LegacyAlgorithms say so."""
    routes: Annotated[
        tuple[Route, ...], Field(max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = ()
    """The first whose hypervisors match the VM is its way; without any, all VMs are connected to directly."""
    limits: SSHLimits = SSHLimits()
    """How many connections at once."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "!has(self.routes) || size(self.routes) == 0 || !has(self.routes[size(self.routes) - 1].hypervisors) || "
            "size(self.routes[size(self.routes) - 1].hypervisors) == 0",
            "the last of routes must be for all hypervisors: leave its hypervisors out",
        ),
    )


class APILimits(ApiModel):
    """How much the management server is asked at once."""

    requests_per_second: Annotated[int, Field(ge=1, le=100)] = 5
    """Requests in a second on average. Must stay below api.throttling.max where CloudStack has throttling enabled."""
    burst: Annotated[int, Field(ge=1, le=1000)] = 10
    """Requests at once after a silence."""
    async_jobs: Annotated[int, Field(ge=1, le=64)] = 4
    """Jobs of the operator that may be open on the management server: reboots, recreations, live patches by API."""


class ManagementAPI(ApiModel):
    """Where the API of the management server is, and who asks."""

    url: Annotated[
        str,
        Field(min_length=8, max_length=1024, pattern=_API_URL),
        matching(_API_URL, "must be a URL such as https://cloud.example.com/client/api, without user and query"),
        Says(
            f"!self.matches({cel_text(_INTEGRATION_PORT)})",
            "port 8096 is the integration port, which obeys everybody without a key: it is never used",
        ),
    ]
    """URL of the API. With http:// keys stay secret, for requests are signed, but answers can be read and changed on
    the way."""
    credentials_secret_ref: NameRef
    """Secret with the keys apiKey and secretKey of a CloudStack user whose role may do what the endpoint needs."""
    ca_bundle_ref: KeyRef | None = None
    """ConfigMap key with certificates of CAs in PEM, used instead of those of the operator's image."""
    timeout: Annotated[Duration, at_least("1s"), at_most("10m")] = timedelta(seconds=30)
    """For the answer to one request. From 1s to 10m."""
    limits: APILimits = APILimits()
    """How much the management server is asked at once."""


class Scan(ApiModel):
    """How often VMs are looked at when nothing happens."""

    interval: Annotated[Duration, at_least("10s")] = timedelta(minutes=15)
    """Between two looks at signature, services and redundancy. At least 10s."""
    content: Annotated[Duration, at_least("1m")] = timedelta(hours=24)
    """Between two comparisons of every file with the release; older than twice this, content counts as unknown. At
    least 1m."""
    inventory: Annotated[Duration, at_least("10s")] = timedelta(minutes=5)
    """Between two sweeps of the management server's lists (inventory: CloudStack). A VM that is gone is forgotten after
    the second sweep without it. At least 10s."""


class CloudStackEndpointSpec(ApiModel):
    """Which VMs there are, how to reach them, and whether they may be changed."""

    inventory: Inventory
    """CloudStack: every system VM that the management server lists to the user of api. Static: the VMs listed under
    systemVMs."""
    management: Management = Management.OBSERVE
    """Observe: look and report, change nothing. Full: policies may change VMs."""
    api: ManagementAPI | None = None
    """The management server's API."""
    system_vms: Annotated[
        tuple[StaticSystemVM, ...],
        Field(
            alias="systemVMs",
            max_length=500,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = ()
    """The VMs of a Static inventory."""
    ssh: SSHAccess
    """How to log in on the VMs."""
    scan: Scan = Scan()
    """How often VMs are looked at when nothing happens."""
    suspend: bool = False
    """true: VMs are neither looked at nor changed; what is in work is finished."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "self.inventory != 'Static' || (has(self.systemVMs) && size(self.systemVMs) > 0)",
            "inventory Static needs at least one entry in systemVMs",
        ),
        rule("self.inventory == 'Static' || has(self.api)", "inventory CloudStack needs api"),
        rule(
            "self.inventory == 'Static' || !has(self.systemVMs) || size(self.systemVMs) == 0",
            "inventory CloudStack finds its VMs by itself: systemVMs must be empty",
        ),
        rule(
            # The list of one binds the names, so that lower case is made once. Longer lists would exceed the cost that
            # the API server grants a rule; there the operator reports NameConflict.
            "!has(self.systemVMs) || size(self.systemVMs) > 200 || [self.systemVMs.map(v, v.name.lowerAscii())]"
            ".all(names, names.all(n, names.indexOf(n) == names.lastIndexOf(n)))",
            "names in systemVMs must differ in more than upper and lower case",
        ),
    )


class EndpointCounts(ApiModel):
    """How many VMs."""

    system_vms: Annotated[int, Field(alias="systemVMs", ge=0)] = 0
    """Known VMs."""
    unreachable: Annotated[int, Field(ge=0)] = 0
    """VMs that could not be reached at the last look."""


class ZoneTemplateVersion(ApiModel):
    """What one zone asks of its system VMs."""

    zone: ShortText
    """Name of the zone."""
    version: Annotated[str, Field(max_length=64)]
    """Setting minreq.sysvmtemplate.version: the management server sends no commands to a router below it whose scripts
    are not its own."""


class CloudStackEndpointStatus(ObservedStatus):
    """What the operator found."""

    management_server_version: Annotated[str, Field(max_length=64)] | None = None
    """Release of the management server, such as 4.20.2.0."""
    minimum_template_version: Annotated[
        tuple[ZoneTemplateVersion, ...],
        Field(
            max_length=128, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["zone"]}
        ),
    ] = ()
    """Oldest template that the management server works with, by zone. Empty where the role may not read settings."""
    counts: EndpointCounts | None = None
    """How many VMs."""


class CloudStackEndpoint(ApiModel):
    """Where a cloud is and how its system VMs are reached. Deleting it makes the operator forget the VMs; they stay."""

    metadata: ObjectMeta
    spec: CloudStackEndpointSpec
    """Which VMs there are, how to reach them, and whether they may be changed."""
    status: CloudStackEndpointStatus = CloudStackEndpointStatus()
    """What the operator found. Written by the operator only."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "size(self.metadata.name) <= 40",
            "the name of a CloudStackEndpoint must not be longer than 40 characters: it becomes part of other names",
        ),
    )


__all__ = [
    "APILimits",
    "CloudStackEndpoint",
    "CloudStackEndpointSpec",
    "CloudStackEndpointStatus",
    "EndpointCounts",
    "HostKeyPolicy",
    "HostKeys",
    "Inventory",
    "Jump",
    "Management",
    "ManagementAPI",
    "Route",
    "SSHAccess",
    "SSHAlgorithms",
    "SSHLimits",
    "Scan",
    "StaticSystemVM",
    "SystemVMType",
    "Via",
    "ZoneTemplateVersion",
]
