"""The order: one live patch, complete. Units, times and paths as in `protocol.py`, in whose `begin` it travels.

The program on the VM checks that it has this shape (`remote/order.py`).
"""

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class FileEntry(TypedDict):
    """A file or link that must be there after the operation. Entries that are already so are left alone."""

    path: str
    sha256: str | None
    """Content; None for a link."""
    size: int
    link: str | None
    """Target; None for a file."""
    mode: int
    """For a file that is new, or if `keep_mode` is false."""
    uid: int
    gid: int
    """For a path that is new, or if `keep_owner` is false."""
    keep_mode: bool
    """A path that exists keeps its live mode (but see `executable`)."""
    keep_owner: bool
    executable: bool | None
    """With `keep_mode`: True adds x where r is set, False takes x away, None leaves it."""
    expect: NotRequired[str | None]
    """Compare-and-swap: the live content must have this digest (None: must be absent) at `begin` and right before the
    switch, else the operation is refused (`OtherActor`). Left out: not compared with anything but what `build` saw.
    Needed for merged files."""


class FolderEntry(TypedDict):
    """A folder that is made if it is missing. One that exists is never changed."""

    path: str
    mode: int
    uid: int
    gid: int


class PropertiesOrder(TypedDict):
    path: str
    """Relative to the tree; a runtime file."""
    lines: list[str]
    """`key=value`, without line end."""


class TreeOrder(TypedDict):
    """A folder that is switched as one. What is neither in `files` nor removed is kept, hard-linked."""

    path: str
    """Such as /opt/cloud. It may be missing: then it is made."""
    files: list[FileEntry]
    """Paths relative to the tree."""
    folders: list[FolderEntry]
    """Relative too."""
    remove: list[str]
    """Relative: files, links or whole folders; missing ones are no error."""
    runtime: list[str]
    """fnmatch patterns on relative paths (`conf/*`): files that the VM itself writes. They are linked again right
    before the switch (units with `stop-start` are down then), and again on going back; never verified. What `files` or
    `remove` names is none of them."""
    properties: NotRequired[list[PropertiesOrder]]
    """Java properties of which the VM's own file gets the keys that it lacks, at the switch; going back takes them away
    again. No value is changed."""


class ProbeCheck(TypedDict):
    """A question to a service; an answer proves that it serves. One that fails before the switch is not asked after."""

    kind: Literal["tcp", "dns", "http", "haproxy"]
    host: str
    """An address; `guests`: the VM's own in each of its guest networks. haproxy: path of its command socket, which is
    asked for `show info`."""
    port: int
    name: NotRequired[str]
    """dns: name to ask for (any answer counts, also NXDOMAIN). http: path (any status below 500 counts)."""


class Validator(TypedDict):
    argv: list[str]
    """Run without a shell before the unit's action, after the switch. Exit code 0 or `ServiceFailed`."""
    timeout_seconds: float


class HeldPorts(TypedDict):
    """What asks for a service on the guest networks, kept waiting while it restarts."""

    protocol: Literal["udp", "tcp"]
    """Of tcp only what opens a connection."""
    ports: list[int]
    binds: NotRequired[str]
    """An haproxy configuration whose `bind` lines name more ports."""


class DrainLimits(TypedDict):
    """Looked at before anything is changed; where they do not hold in time: `HaproxyDraining`."""

    max_old: int
    """Workers of earlier reloads that may still have sessions."""
    min_memory_bytes: int
    wait_seconds: float


class PairLimits(TypedDict):
    """After its restart the router must have one role that nothing contradicts: `NoSinglePrimary`,
    `DuplicatePrimary`."""

    may_fail_over: bool
    """False: a restart of keepalived on the router that has the gateway is refused (`FailoverNotAllowed`)."""
    wait_seconds: float
    """Until a role begins."""
    stable_seconds: float
    """How long it must last, beside three adverts."""


class ServiceOrder(TypedDict):
    """What to do with one unit. A unit that was not active before is only compared, never started."""

    unit: str
    action: Literal["none", "reload", "restart", "held-restart", "stop-start"]
    """`none`: only watched. `held-restart`: a restart for which what asks for it waits; where that turns out to be
    impossible it is a `restart`, with a note. `stop-start`: stopped before the switch, started after it (the agent)."""
    hold: NotRequired[list[HeldPorts]]
    """Waits during a `held-restart`; after any other action from the moment a unit died until it runs again with its
    old files."""
    drain: NotRequired[DrainLimits]
    login_seconds: NotRequired[float]
    """After the action the report's `awaiting` says `login`, and a `prove-login` over a connection opened from then on
    has to come within this time, else it goes back."""
    stop_seconds: NotRequired[float]
    """For `held-restart`: what has not stopped by then is killed, because nobody waits for longer than a hold."""
    pair: NotRequired[PairLimits]
    """Of keepalived and conntrackd on a router of a redundant pair."""
    follows_role: NotRequired[bool]
    """keepalived's notify script starts it with PRIMARY and stops it with BACKUP: not compared, and never started,
    where the router has become BACKUP meanwhile."""
    validators: list[Validator]
    serving: list[ProbeCheck]
    timeout_seconds: float
    """For the action, and for the first answer after it."""


class DatabagOrder(TypedDict):
    """One run of configure.py behind the fence, every data bag copied before and compared after: `DatabagFailed`."""

    name: str
    """Its argument, such as load_balancer.json."""
    bag: str
    """File in /etc/cloudstack without .json; a VM without it is not acted on, with a note."""
    generated: list[str]
    """What the run writes beside the bags; put back on going back."""
    unit: str | None
    """Reads what is generated: acted on with `verb` if that was put back and the unit was active."""
    verb: Literal["reload", "restart"]
    timeout_seconds: float
    """At most 60. New ssh connections are held for that long."""


class PackageOrder(TypedDict):
    """A .deb, staged like any other content."""

    name: str
    version: str
    sha256: str
    size: int


class PackagesOrder(TypedDict):
    """Debian packages that come before the fence; whatever happens later, they stay. `PackagesNeeded`,
    `InterpreterChange`, `VMBusy` (dpkg's lock), and then nothing else was changed."""

    debs: list[PackageOrder]
    """Installed in one run of dpkg, without those that are installed meanwhile."""
    remove: list[str]
    """Packages that conflict with them and go before."""
    keep: list[str]
    """Links in /usr/bin that stay as they are through both: the switch changes them, and going back puts them back."""
    imports: list[str]
    """Python scripts below a tree of the order. What they import must be there, new for the program of the new first
    line, old, if it was, for that of the old one: nothing of them is run."""
    lock_seconds: float
    """How long another program may hold dpkg's lock."""
    timeout_seconds: float
    """For one run of dpkg."""


class PayloadFile(TypedDict):
    """`/usr/share/cloud/cloud-scripts.tgz`: content staged like any other, renamed at commit, before the signature."""

    path: str
    sha256: str
    size: int


class Order(TypedDict):
    """One live patch, complete: everything that the VM needs to end it without the operator."""

    id: str
    """`^[a-z0-9-]{1,63}$`"""
    epoch: int
    revision: str
    vm_type: str
    """Must equal the VM's own (`TypeMismatch`)."""
    trees: list[TreeOrder]
    files: list[FileEntry]
    """Outside of trees."""
    folders: list[FolderEntry]
    remove: list[str]
    """Outside of trees."""
    packages: NotRequired[PackagesOrder | None]
    payload: PayloadFile | None
    """None: the file on the VM stays."""
    signature: str
    """Text of the signature after commit, without line end (MD5 or SHA-512 of the payload)."""
    daemon_reload: bool
    """Unit files change: `systemctl daemon-reload` after the switch, and after going back."""
    services: list[ServiceOrder]
    """Acted on in this order."""
    databags: NotRequired[list[DatabagOrder]]
    """Applied in this order, after the services."""
    run_checks: bool
    """Run /root/health_checks before and after; one that newly fails is `VerifyFailed`."""
    ignored_checks: list[str]
    settle_seconds: float
    """How long every unit must keep its MainPID and NRestarts after the last action."""
    step_timeout_seconds: float
    """For each of switch, services, verify."""
    timeout_seconds: float
    """From `run` to the decision to commit; later it goes back (`TimedOut`)."""
    keep_backups: int
    """Backups kept after commit, this one included (0: none, then `back` is impossible)."""
    reserve_bytes: int
    """Space that must stay free beside twice the new bytes: 64 MiB."""
    reserve_inodes: int
    """500."""
    min_memory_bytes: int
    """MemAvailable needed: 96 MiB."""
