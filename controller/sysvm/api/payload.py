"""Where a release has its payload from: the part of SystemVMTemplate that says it, and what was pinned of it.

A part with a file of its own, as the images are. Two kinds of source: one that names a digest, which Git then holds
(`package`, `files`), and one that names machines of the cloud, whose files are pinned in the status when the release is
first read (`host`, `managementServer`).
"""

from typing import Annotated, ClassVar

from pydantic import Field

from sysvm.api.base import ApiModel, Digest, KeyRef, NameRef, Says, ShortText, Time, cel_text, matching, rule

_URL = "^https?://[^ ]+$"
_PATH = "^[A-Za-z0-9_][A-Za-z0-9._/-]*$"
_REPOSITORY = "[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = "([a-z0-9-]+\\.[a-z0-9.-]+(:[0-9]{1,5})?|[a-z0-9-]+:[0-9]{1,5}|\\[[0-9a-f:]+\\](:[0-9]{1,5})?)"
OCI_REFERENCE = (
    f"^{_REGISTRY}/{_REPOSITORY}(/{_REPOSITORY})*(:[A-Za-z0-9_][A-Za-z0-9._-]{{0,127}})?(@sha256:[a-f0-9]{{64}})?$"
)
_ADDRESS = "^[A-Za-z0-9:.-]+$"
_USER = "^[a-z_][a-z0-9_-]*$"


class HttpSource(ApiModel):
    """A file behind a URL."""

    url: Annotated[
        str,
        Field(min_length=8, max_length=2048, pattern=_URL),
        matching(_URL, "must be a URL that begins with http:// or https:// and holds no space"),
    ]
    """http or https. The digest decides what is accepted, not the transport."""


class OciSource(ApiModel):
    """A layer of an artifact in an OCI registry, as `oras push` makes it of a file. Only over https."""

    ref: Annotated[
        str,
        Field(min_length=3, max_length=512, pattern=OCI_REFERENCE),
        matching(
            OCI_REFERENCE,
            "must be registry/repository and perhaps :tag or @sha256:..., such as registry.example.com/cloud/agent",
        ),
    ]
    """Registry and repository. Without a tag or digest the layer is asked for by the file's own digest, which then must
    be sha256; with one, that artifact must have the file among its layers."""
    credentials_secret_ref: NameRef | None = None
    """Secret of type kubernetes.io/dockerconfigjson (key .dockerconfigjson). Without it nobody is logged in."""


class MountedSource(ApiModel):
    """A file mounted into the operator's pod."""

    path: Annotated[
        str,
        Field(min_length=1, max_length=512, pattern=_PATH),
        matching(_PATH, "must be a relative path of letters, digits, '.', '_', '-' and '/'"),
    ]
    """Path relative to the operator's payloads folder (/payloads)."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (rule("!self.path.contains('..')", "path must not contain '..'"),)


class FileSource(ApiModel):
    """Where the bytes come from; exactly one."""

    http: HttpSource | None = None
    """Fetched over http(s)."""
    oci: OciSource | None = None
    """A layer of an artifact in an OCI registry."""
    config_map_ref: KeyRef | None = None
    """binaryData or data of a ConfigMap of this namespace (at most 1 MiB: fits the scripts, not a real agent)."""
    mounted: MountedSource | None = None
    """A file of a volume that the chart mounts under /payloads."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "[has(self.http), has(self.oci), has(self.configMapRef), has(self.mounted)].filter(x, x).size() == 1",
            "exactly one of http, oci, configMapRef and mounted is needed",
        ),
    )


class PayloadFile(ApiModel):
    """One file of the payload, pinned."""

    digest: Digest
    """Digest of the file as alg:hex. Anything else that arrives is refused and no VM is touched."""
    source: FileSource
    """Where the bytes come from."""


class PayloadFiles(ApiModel):
    """The payload as single files."""

    scripts: PayloadFile
    """cloud-scripts.tgz, for every VM."""
    agent: PayloadFile | None = None
    """agent.zip, for types that run the agent (secstorage, consoleproxy). Without it their agent is left as it is."""


class PackageSource(ApiModel):
    """The package cloudstack-common as its makers publish it."""

    url: Annotated[
        str,
        Field(min_length=8, max_length=2048, pattern=_URL),
        matching(_URL, "must be a URL that begins with http:// or https:// and holds no space"),
    ]
    """http or https URL of the .deb or .rpm. The digest decides what is accepted, not the transport."""
    digest: Digest
    """Digest of the package as alg:hex. Anything else that arrives is refused and no VM is touched."""


class HostSource(ApiModel):
    """The hypervisor hosts that run the VMs: what CloudStack itself would install from."""

    expect: Digest | None = None
    """Digest that cloud-scripts.tgz must have on a host as alg:hex. Without it, what all hosts hold is taken."""


class ManagementServerSource(ApiModel):
    """The management servers, for hypervisors whose hosts hold no payload (VMware)."""

    addresses: Annotated[
        tuple[
            Annotated[
                str,
                Field(min_length=2, max_length=253, pattern=_ADDRESS),
                Says(
                    f"self.matches({cel_text(_ADDRESS)}) && (!self.contains(':') || isIP(self))",
                    "must be an IP address or a host name, without a port",
                ),
            ],
            ...,
        ],
        Field(min_length=1, max_length=8, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ]
    """All management servers of the cloud, as IP addresses or host names. All must hold the same payload."""
    port: Annotated[int, Field(ge=1, le=65535)] = 22
    """TCP port of sshd."""
    user: Annotated[
        str,
        Field(min_length=1, max_length=32, pattern=_USER),
        matching(_USER, "must be a login name: lower case letters, digits, '-' and '_', not beginning with a digit"),
    ] = "cloud"
    """Login name; it needs to read /usr/share/cloudstack-common/vms and no more."""
    key_secret_ref: KeyRef
    """Secret key that holds the private key of that login in PEM or OpenSSH format, without a passphrase."""
    known_hosts_ref: KeyRef
    """ConfigMap key in known_hosts format. A server that it does not list is sent nothing."""
    expect: Digest | None = None
    """Digest that cloud-scripts.tgz must have there as alg:hex. Without it, what all servers hold is taken."""


class PayloadSource(ApiModel):
    """What live patch installs; exactly one source."""

    package: PackageSource | None = None
    """The package cloudstack-common, pinned by its digest: the whole payload in one line, best for Git."""
    host: HostSource | None = None
    """The hypervisor hosts of the VMs that policies select for this release: all must agree. What they hold is pinned
    in the status when the release is first read."""
    management_server: ManagementServerSource | None = None
    """The management servers, by SSH: all must agree. What they hold is pinned in the status when the release is first
    read."""
    files: PayloadFiles | None = None
    """Single files, each with its digest."""

    cel: ClassVar[tuple[dict[str, str], ...]] = (
        rule(
            "[has(self.package), has(self.host), has(self.managementServer), has(self.files)].filter(x, x).size() == 1",
            "exactly one of package, host, managementServer and files is needed",
        ),
    )


class PinnedPayload(ApiModel):
    """The files that machines of the cloud held when the release was first read."""

    scripts: Digest
    """Digest of cloud-scripts.tgz as alg:hex."""
    agent: Digest | None = None
    """Digest of agent.zip as alg:hex; absent if the machines had none."""
    machines: Annotated[int, Field(ge=1)]
    """How many machines agreed."""
    from_: Annotated[tuple[ShortText, ...], Field(alias="from", max_length=16)] = ()
    """Machines that held exactly these files; at most sixteen. Others held another build of the same files."""
    at: Time
    """When that was."""
