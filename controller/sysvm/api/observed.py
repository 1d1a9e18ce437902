"""What is known of a VM by looking at it, and at what the management server and its host say of it."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from sysvm.api.base import ApiModel, ShortText, Time
from sysvm.api.template import Signature


class RedundancyRole(StrEnum):
    PRIMARY = "PRIMARY"
    BACKUP = "BACKUP"
    FAULT = "FAULT"
    UNKNOWN = "UNKNOWN"


_MAC = Annotated[str, Field(max_length=17)]


class PairGateway(ApiModel):
    """An address that keepalived moves between the routers of a pair."""

    address: Annotated[str, Field(max_length=64)]
    """The tenants' gateway."""
    held: bool
    """This router has it."""
    mac: _MAC = ""
    """Of this router's interface in that guest network."""
    asked: bool = True
    """The guest network was asked who has the address."""
    answers: Annotated[tuple[_MAC, ...], Field(max_length=4)] = ()
    """Who answered, other than this router itself."""


class PairSample(ApiModel):
    """Facts about the role of a router of a pair at one moment. None of them proves it alone."""

    at: Time
    """When they were seen."""
    keepalived: bool
    """keepalived is active."""
    state: RedundancyRole | None = None
    """What keepalived's notify script noted last, in cmdline.json."""
    heartbeat: bool
    """keepalived has written its time stamp within ten seconds."""
    public_up: bool | None = None
    """A public interface is up; absent: there is none."""
    conntrackd: bool
    """conntrackd is active and answers."""
    conntrackd_lock: Annotated[str, Field(max_length=256)] | None = None
    """A conntrackd that was killed left its lock file here: no other one starts while it is there."""
    flows: Annotated[int, Field(ge=0)] | None = None
    """Connections that it tracks itself."""
    replicated: Annotated[int, Field(ge=0)] | None = None
    """Connections that the other router has sent to it."""
    gateways: Annotated[tuple[PairGateway, ...], Field(max_length=4)] = ()
    """The addresses that keepalived moves."""


class Redundancy(ApiModel):
    """Its part in a pair of routers."""

    role: RedundancyRole
    """What the VM says of itself."""
    peers: Annotated[tuple[Annotated[str, Field(max_length=253)], ...], Field(max_length=16)] = ()
    """The other VMs of its group."""
    observed_at: Time
    """When it was seen."""
    samples: Annotated[tuple[PairSample, ...], Field(max_length=3)] = ()
    """What its role is judged by, oldest first: one sample of a usual look, three where a patch depends on it."""


class ObservedTemplate(ApiModel):
    """The disk image that the VM was made from."""

    version: Annotated[str, Field(max_length=64)]
    """Version in /etc/cloudstack-release; live patch never changes it."""


class ContentState(StrEnum):
    MATCHES = "Matches"
    DRIFTED = "Drifted"
    UNKNOWN = "Unknown"


class Obstacle(ApiModel):
    """Why a VM must not be live-patched to the release that it was compared with."""

    reason: Annotated[str, Field(max_length=64)]
    """One word for programs."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """A sentence for people."""


class ObservedContent(ApiModel):
    """Files compared with the release."""

    state: ContentState
    """Matches, Drifted, or Unknown when never compared."""
    revision: Annotated[str, Field(max_length=64)] | None = None
    """Release that it was compared with."""
    changed: Annotated[int, Field(ge=0)] = 0
    """Files that differ."""
    missing: Annotated[int, Field(ge=0)] = 0
    """Files of the release that the VM lacks."""
    extra: Annotated[int, Field(ge=0)] = 0
    """Files of an older payload that the release removed."""
    paths: Annotated[tuple[Annotated[str, Field(max_length=512)], ...], Field(max_length=10)] = ()
    """The first ten of them."""
    obstacles: Annotated[tuple[Obstacle, ...], Field(max_length=4)] = ()
    """What the comparison found that a live patch must not do; the VM is held."""
    observed_at: Time | None = None
    """When it was compared."""


class ObservedService(ApiModel):
    """A service as systemd sees it."""

    name: Annotated[str, Field(max_length=128)]
    """systemd unit without .service."""
    active: Annotated[str, Field(max_length=32)]
    """systemd's ActiveState."""
    sub: Annotated[str, Field(max_length=32)] = ""
    """systemd's SubState."""


class ApiCommand(StrEnum):
    """CloudStack's own live patch."""

    PATCH_SYSTEM_VM = "patchSystemVm"
    RESTART_NETWORK = "restartNetwork"
    RESTART_VPC = "restartVPC"


class ApiPatchCall(ApiModel):
    """The one call by which CloudStack itself would live-patch the VM, and what else that call would patch."""

    command: ApiCommand
    """patchSystemVm, or restartNetwork or restartVPC with livepatch=true."""
    id: Annotated[str, Field(max_length=64)]
    """CloudStack's id of the system VM, network or VPC."""
    name: ShortText = ""
    """Its name."""
    patches: Annotated[int, Field(ge=1)] = 1
    """How often the call patches each of these VMs: once a tier for a VPC."""
    vms: Annotated[tuple[ShortText, ...], Field(max_length=16)] = ()
    """Names of all VMs that it patches, one right after the other."""


class ObservedManagement(ApiModel):
    """What the management server's books say of the VM. The VM itself may have been patched behind its back."""

    at: Time
    """When the server was asked."""
    template_version: Annotated[str, Field(max_length=64)] | None = None
    """Version of the template that the server believes the VM runs; it tells none for SSVM and CPVM."""
    minimum_template_version: Annotated[str, Field(max_length=64)] | None = None
    """minreq.sysvmtemplate.version of the zone; absent: the role may not read it."""
    scripts_version: Annotated[str, Field(max_length=140)] | None = None
    """Checksum of the scripts as the server recorded it at the last start or patch that it did itself."""
    software_version: Annotated[str, Field(max_length=64)] | None = None
    """Version of the server that started or patched the VM last; of an SSVM or CPVM: of its agent."""
    server_scripts_version: Annotated[str, Field(max_length=140)] | None = None
    """Checksum of the server's own scripts, with which it compares scriptsVersion; absent: it cannot be known."""
    requires_upgrade: bool | None = None
    """requiresupgrade of listRouters. It says nothing about the scripts."""
    gate_closed: bool | None = None
    """true: the server refuses to send commands to this router. Absent: that cannot be known."""
    gate: Annotated[str, Field(max_length=1024)] = ""
    """Why the gate is closed, or what is not known."""
    recreating_checks: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=32)] | None = None
    """Health checks after whose failure the server recreates a router of this zone
    (router.health.checks.failures.to.recreate.vr). Absent: the role may not read it, or the VM is no router."""
    api_patch: ApiPatchCall | None = None
    """How CloudStack itself would live-patch the VM; absent: it cannot."""
    api_patch_refused: Annotated[str, Field(max_length=512)] = ""
    """Why it cannot."""


class ObservedHostPayload(ApiModel):
    """What the hypervisor host keeps for its VMs: what CloudStack installs at a VM's next start or patch."""

    host: Annotated[str, Field(max_length=253)]
    """Hypervisor host that was asked."""
    checksum: Annotated[str, Field(max_length=140)]
    """Of its cloud-scripts.tgz, in the algorithm of the VM's signature."""
    checksums: Annotated[tuple[Annotated[str, Field(max_length=140)], ...], Field(max_length=4)] = ()
    """The same in every algorithm that CloudStack knows: MD5 up to 4.21, SHA-512 from 4.22 on."""
    revision: Annotated[str, Field(max_length=64)] | None = None
    """Digest of its scripts by content, to compare with scriptsRevision of a release; absent: the archive cannot be
    read."""


class RuleKind(StrEnum):
    FIREWALL = "Firewall"
    EGRESS = "Egress"
    PORT_FORWARDING = "PortForwarding"
    STATIC_NAT = "StaticNat"
    LOAD_BALANCER = "LoadBalancer"
    NETWORK_ACL = "NetworkACL"
    VPN_USER = "VpnUser"


RuleCounts = Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(max_length=8)]
"""How many rules there are of each `RuleKind`. A kind that is left out was not counted."""


class DataBags(ApiModel):
    """A router's copy of its rules in /etc/cloudstack. Its boot deletes it, and only the management server can send it
    again."""

    held: Annotated[int, Field(ge=0)]
    """How many data bags hold what the management server sent."""
    before: Annotated[int, Field(ge=1)] | None = None
    """How many did before the VM booted; while fewer do, or the boot has not finished."""
    fewer_since: Time | None = None
    """The first look after that boot had finished and fewer than half did."""
    lost: bool = False
    """The management server had time to send them and did not: the VM rebooted by itself and has lost its rules."""
    rules: RuleCounts = Field(default_factory=dict)
    """How many rules of each kind they hold: Firewall (ingress), Egress, PortForwarding, StaticNat, LoadBalancer,
    NetworkACL (items), VpnUser. A kind whose data bag cannot be counted is left out."""


class Observed(ApiModel):
    """What the last look found."""

    at: Time
    """When the VM was looked at."""
    template: ObservedTemplate | None = None
    """Release line of the disk image."""
    signature: Signature | None = None
    """/var/cache/cloud/cloud-scripts-signature."""
    payload_checksum: Annotated[str, Field(max_length=140)] | None = None
    """Checksum of /usr/share/cloud/cloud-scripts.tgz in the signature's algorithm."""
    content: ObservedContent | None = None
    """Files compared with the release."""
    services: Annotated[
        tuple[ObservedService, ...],
        Field(
            max_length=64, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}
        ),
    ] = ()
    """Services that CloudStack knows on this type."""
    boot_id: Annotated[str, Field(max_length=64)] | None = None
    """Changes with every boot of the VM."""
    host_payload: ObservedHostPayload | None = None
    """What the hypervisor host keeps; absent: it is not on the way to the VM, or keeps none."""
    booted: bool | None = None
    """CloudStack's boot scripts have finished."""
    data_bags: DataBags | None = None
    """What a router has of its rules; absent for an SSVM or CPVM, and since CloudStack stopped the VM."""
    management: ObservedManagement | None = None
    """What the management server's books say; absent for a VM of a Static inventory."""
