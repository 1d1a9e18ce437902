"""The words between the operator and the program on the VM, apart from any socket.

Exists so that both ends can be tested without a connection, and so that the exact meaning of every message is written
down once. How they travel is in `framing.py`; the largest of them, the order, in `order_words.py`.

A session is one SSH exec of `bundle.command()`:

1. VM -> operator: `MAGIC` (whatever a login script printed before it is skipped), then frames. The first is a `Found`:
   whether the VM has this very program on its disk. If not: operator -> VM: `bundle.preamble()`: 4 bytes big-endian
   length and the bundle (a zip, compressed with zlib).
2. VM -> operator: a `Hello`.
3. operator -> VM: a `Request`; for `stage` byte frames follow at once, without waiting for an answer.
4. VM -> operator: any number of `Event` with the request's `id`, then exactly one `Response` with that `id`; for
   `read` the response says how many bytes follow as byte frames.

Requests are answered in order, one at a time; a `stage` may be sent before the one ahead of it is answered. End of
input ends the session; the lock of an operation that was begun but not run is released, what was staged stays for the
next `begin` of the same id. An operation that was run goes on.

Times are seconds since the epoch (float), sizes bytes, durations seconds, modes permission bits (`0o7777`), digests hex
SHA-256. Paths are absolute paths on the VM without `.` or `..`; in `TreeOrder` they are relative to the tree.
"""

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Literal, NotRequired, TypeAlias, TypeVar, cast

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from sysvm.api.reasons import Reason
from sysvm.patching.framing import ProtocolError
from sysvm.patching.order_words import Order
from sysvm.patching.results import JournalPhase

SIGNATURE_ZEROS = "0"
"""While files change, the signature file holds this character as often as the payload's checksum is long."""


T = TypeVar("T")


@cache
def _adapter(kind: Hashable) -> TypeAdapter[object]:
    return TypeAdapter(cast("type[object]", kind))


def parse(kind: type[T], value: object) -> T:
    """`value` checked against one of the TypedDicts below. Unknown keys are ignored. Raises `ProtocolError`."""
    try:
        checked = _adapter(cast("Hashable", kind)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"a {kind.__name__} with {where}: {first['msg']}") from error
    return cast("T", checked)


# ---------------------------------------------------------------------------------------------- envelope


class Found(TypedDict):
    """First frame of the VM."""

    program: Literal["kept", "wanted"]
    """`kept`: it lies on the VM's disk with the digest of the command, and is what runs."""


class Hello(TypedDict):
    """First frame of the program."""

    hello: Literal["sysvm"]
    version: int
    """`framing.VERSION`."""
    program: str
    """Digest of the bundle that runs."""
    python: str
    """Such as 3.11.2."""


Verb: TypeAlias = Literal[
    "probe",
    "digest",
    "read",
    "checks",
    "begin",
    "stage",
    "expect",
    "build",
    "keep",
    "run",
    "attach",
    "abandon",
    "report",
    "back",
    "prove-login",
    "bye",
]


class Request(TypedDict):
    id: int
    """Grows within a session."""
    verb: Verb
    args: Mapping[str, object]
    """One of the `...Args` below."""


class ErrorValue(TypedDict):
    reason: Reason
    """From api/reasons.py."""
    message: str
    """What failed, in which state the VM is now, what a person can do."""
    retryable: bool
    """The same request may succeed later without anybody doing anything."""
    changed: bool
    """False: nothing of the VM's own files or services was changed by this request."""


class Response(TypedDict):
    id: int
    result: NotRequired[Mapping[str, object]]
    """One of the `...Result` below, by the verb of the request. Exactly one of `result` and `error` is there."""
    error: NotRequired[ErrorValue]


class Event(TypedDict):
    id: int
    report: "Report"
    """Sent when the journal has grown, at most four times a second. Later ones replace earlier ones."""


# ---------------------------------------------------------------------------------------------- probe


class ProbeArgs(TypedDict):
    """Look at the VM. Changes nothing, takes no lock, writes nothing."""

    units: list[str]
    """systemd units to describe, with or without `.service`; `name@*` stands for its loaded instances."""
    paths: list[str]
    """Folders or files that will be written to: `disks` and `abilities` speak of their file systems."""
    samples: NotRequired[int]
    """Of a router of a redundant pair: how often its role is looked at, at most 5. Left out: once."""
    pause_seconds: NotRequired[float]
    """Between two samples, at most 10."""


class UnitState(TypedDict):
    unit: str
    """As asked for."""
    load: str
    """LoadState: loaded, not-found, masked..."""
    active: str
    """ActiveState: active, inactive, failed, activating..."""
    sub: str
    enabled: bool
    """UnitFileState is enabled, enabled-runtime, alias, static or generated."""
    main_pid: int
    restarts: int
    """NRestarts; 0 where this systemd does not count them."""
    result: str
    """Result: success, exit-code..."""


class DiskState(TypedDict):
    path: str
    """As asked for (or the nearest existing parent is what was looked at)."""
    mount: str
    """Mount point."""
    fs: str
    """Type, such as ext4, overlay, tmpfs."""
    available_bytes: int
    available_inodes: int
    """-1: this file system does not count them."""
    exchange: bool | None
    """renameat2(RENAME_EXCHANGE) exists in this kernel and this type of file system is known to have it; None: unknown.
    A probe writes nothing, so it is tried only in `build`, which falls back to renames and says so."""


class GatewayState(TypedDict):
    """One address that keepalived moves."""

    address: str
    held: bool
    """This router has it."""
    mac: str
    """Of the interface that it belongs to; empty: there is no such interface."""
    answers: list[str] | None
    """MACs of others that answered an ARP probe for it; None: it was not asked, or could not be."""


class RedundancySample(TypedDict):
    """Facts about the role at one moment; no single one proves it."""

    age_seconds: float
    """Before the answer was sent."""
    keepalived_active: bool
    redundant_state: Literal["PRIMARY", "BACKUP", "FAULT"] | None
    """`redundant_state` in /etc/cloudstack/cmdline.json."""
    heartbeat_age_seconds: float | None
    """Age of keepalived.ts; None: there is none."""
    public_up: bool | None
    """A public interface of /etc/cloudstack/ips.json is up; None: there is none, or which they are is not known."""
    conntrackd_active: bool
    """It is active and answers."""
    conntrackd_lock: str | None
    """It does not, because one that was killed left its lock file here."""
    flows: int | None
    """Connections in its own cache."""
    replicated_flows: int | None
    """Connections that the other router has sent."""
    gateways: list[GatewayState]
    """At most four."""


class RedundancyState(TypedDict):
    role: Literal["PRIMARY", "BACKUP", "FAULT", "UNKNOWN"]
    """What `/opt/cloud/bin/checkrouter.sh` says."""
    samples: list[RedundancySample]
    """In the order of their time."""


class Actor(TypedDict):
    """A sign that somebody else patches this VM, or that CloudStack's scripts run."""

    kind: Literal["process", "file"]
    what: str
    """Path, or the command line."""
    age_seconds: float
    blocking: bool
    """`begin` and `run` refuse while it is there. Not blocking: a stale payload older than 30 minutes, a
    short-lived command of CloudStack's."""


class Abilities(TypedDict):
    systemd_run: bool
    renameat2: bool
    """The kernel has the call."""
    nfnetlink_queue: bool
    """A packet queue was had for a moment and there is iptables to send packets to it: restarts can be held."""
    nft: bool
    """The nft program is there (that sets expire is not tried in a probe)."""


class Backup(TypedDict):
    id: str
    finished_at: float
    size_bytes: int
    """Space that it holds (hard links to live files not counted)."""


class Journal(TypedDict):
    """What the VM remembers of operations."""

    highest_epoch: int
    unfinished: "Report | None"
    last_finished: "Report | None"
    backups: list[Backup]
    """Newest first; the first can be gone back to by hand."""


class ProbeResult(TypedDict):
    type: str | None
    """`type=` in /var/cache/cloud/cmdline (CloudStack 4.21 patch-sysvms.sh); None: no such file or word."""
    name: str | None
    """`name=` there."""
    release: str | None
    """Third word of /etc/cloudstack-release."""
    release_line: str | None
    debian_version: str | None
    signature: str | None
    """Text of /var/cache/cloud/cloud-scripts-signature, stripped; None: missing."""
    payload_checksums: dict[str, str]
    """`md5` and `sha512` of /usr/share/cloud/cloud-scripts.tgz; empty: missing."""
    boot_id: str
    booted: bool
    """/var/cache/cloud/boot_up_done exists."""
    data_bags: int
    """Files in /etc/cloudstack that hold what the management server sent: not cmdline and ips, which the VM makes
    of its boot line, and none that is empty."""
    rules: dict[str, int]
    """How many rules of each kind (api/observed.py `RuleKind`) these files hold. A kind whose file is of more than 1
    MiB or cannot be read is left out."""
    uptime_seconds: float
    units: list[UnitState]
    enabled_services: list[str]
    """Words of /var/cache/cloud/enabled_svcs."""
    disks: list[DiskState]
    memory_available_bytes: int
    redundancy: RedundancyState | None
    """None: `redundant_router=true` is not in the cmdline."""
    failing_checks: list[str]
    """From the newest result files of CloudStack's own monitoring in /root; nothing is run."""
    checks_age_seconds: float | None
    """Age of those files; None: there are none."""
    actors: list[Actor]
    journal: Journal
    abilities: Abilities


class ChecksArgs(TypedDict):
    """Run /root/health_checks/* now, each with `basic` and `advanced` (expensive: seconds)."""

    timeout_seconds: float


class ChecksResult(TypedDict):
    failing: list[str]
    """File names; `router_version_check.py` never among them."""
    passed: list[str]
    timed_out: list[str]


# ---------------------------------------------------------------------------------------------- digest, read


class DigestArgs(TypedDict):
    """Facts of files. Runs at idle priority. Changes nothing but what the program remembers of digests."""

    paths: list[str]
    """Each gets one fact, also when nothing is there."""
    roots: list[str]
    """Folders that are listed with everything below, without `__pycache__` and without following links."""
    exclude: list[str]
    """fnmatch patterns on absolute paths, `*` crosses `/`: below `roots` what matches is neither listed nor read."""
    packages: NotRequired[list[str]]
    """Debian packages whose state is asked for, at most 100."""
    known: NotRequired[bool]
    """A file that nobody has touched since an earlier scan need not be read again (remote/digests.py). Left out: every
    file is read."""


class FileFact(TypedDict):
    path: str
    kind: Literal["file", "link", "folder", "other", "absent"]
    mode: int
    uid: int
    gid: int
    size: int
    mtime: float
    sha256: str | None
    """Regular files only."""
    link: str | None
    """Target of a symbolic link."""


class PackageFact(TypedDict):
    """What dpkg says of a package that it knows."""

    name: str
    status: str
    """Such as installed, unpacked, half-configured, half-installed, config-files."""
    version: str
    links: list[str]
    """Symbolic links in /usr/bin that belong to it."""
    others: list[str]
    """Other paths that do, at most ten, without folders and documentation."""


class DigestResult(TypedDict):
    facts: list[FileFact]
    """Sorted by path, each path once."""
    truncated: bool
    """More than 20,000 entries or 2 GiB: the rest was not looked at."""
    read_bytes: int
    """Of the files that were read; with `known` usually few."""
    packages: NotRequired[list[PackageFact]]
    """Those that were asked for and are known there."""


class ReadArgs(TypedDict):
    """Content of one regular file (a three-way merge needs it). At most 16 MiB. Missing file: `size` is -1."""

    path: str


class ReadResult(TypedDict):
    size: int
    """This many bytes follow as byte frames."""
    sha256: str | None


# ---------------------------------------------------------------------------------------------- operation


class ReportStep(TypedDict):
    name: Literal["Stage", "Build", "Packages", "Fence", "Switch", "Services", "Verify", "Commit", "Restore"]
    done: bool
    failed: bool
    seconds: float
    message: str


class ReportService(TypedDict):
    unit: str
    action: str
    ok: bool
    unavailable_seconds: float | None
    """From the last answer before a question that failed to the first one after it; 0.0: none failed; None: no
    `serving` question had an answer before. Asked on the VM itself: of a `held-restart` it is how long requests
    waited."""
    slowest_seconds: NotRequired[float | None]
    """The longest that one answer took meanwhile."""
    restoring: bool
    """Done on going back."""


class Report(TypedDict):
    """State of one operation: nothing but the fold of its journal, so any session gets the same."""

    id: str
    epoch: int
    revision: str
    phase: JournalPhase
    alive: bool
    """A process on the VM holds its lock. Not final and not alive: interrupted, `begin` or the boot recovers it."""
    step: str
    """In work, or the one that failed."""
    steps: list[ReportStep]
    services: list[ReportService]
    bytes_received: int
    reason: Reason | None
    """Why it did not end as Committed; `RecoveredAtBoot` or `Interrupted` may also stand with Committed."""
    message: str
    """A sentence with the output of what failed (bounded to 2 KiB)."""
    notes: list[str]
    """What a person may want to know and is no failure: a property that systemd refused, a fallback."""
    awaiting: NotRequired[Literal["login"] | None]
    """What the VM waits for before it goes on."""
    started_at: float
    finished_at: float | None


class BeginArgs(TypedDict):
    """Take the lock, refuse or prepare. After an error nothing is left but a raised epoch."""

    order: Order


class BeginResult(TypedDict):
    state: Literal["staging", "running", "finished"]
    """`staging`: send what is `missing`, then `build`, `run`. `running`: a process on the VM works on this: `attach`.
    `finished`: this id has ended before, `report` is its end; nothing is done again."""
    missing: list[str]
    """Digests that the VM has neither staged nor at any path of the order. Each once."""
    report: Report | None
    """With `running` and `finished`."""
    recovered: Report | None
    """An earlier unfinished operation that was brought to its end first."""


class StageItem(TypedDict):
    sha256: str
    size: int
    """Of the content."""
    encoding: Literal["identity", "zlib"]
    wire_size: int
    """Bytes that travel in frames; equals `size` for identity."""


class StageArgs(TypedDict):
    """Byte frames follow: the items' bytes in order, each item in frames of its own. An item already staged may be sent
    again. May be called several times; a cut loses only the item in flight."""

    items: list[StageItem]


class StageResult(TypedDict):
    received_bytes: int
    missing: list[str]
    """What is still missing."""


class ExpectedItem(TypedDict):
    sha256: str
    size: int
    """Of the content."""
    encoding: Literal["identity", "zlib", "deflate"]
    """`deflate`: as a member of a zip has it."""
    wire_size: int


class ExpectArgs(TypedDict):
    """Contents that the hypervisor host may send beside this session: `sysvm.pyz arrive ID` on the VM reads them from
    its standard input, one behind the other. Replaces what was said before. A `stage` without items says what is still
    missing."""

    items: list[ExpectedItem]
    """Of those that are missing."""
    archive: str | None
    """One of the items that is a tar: missing files that it holds are taken out of it."""


class KeptTree(TypedDict):
    path: str
    copied: list[str]
    """fnmatch patterns on relative paths: files that are written in their place, so that they are copied. Of the rest
    another name is kept, which costs no space."""


class KeepArgs(TypedDict):
    """Make a backup before CloudStack changes the VM itself, as an operation that is committed at once: `back` restores
    it. Nothing of the VM's own is changed. Asked for again with the same id it is not made again."""

    order: Order
    """Changes nothing: no trees, files, removals or payload. `folders` go on the way back if they were missing and are
    empty. `services` are acted on when it is gone back to. `reserve_bytes` must stay free beside the copies."""
    paths: list[str]
    """Files and links that may be written, removed or made. The VM adds the archive and where CloudStack stages."""
    runtime: dict[str, str]
    """Files that the VM itself writes, and the digest of what CloudStack's archive puts over them: a file goes back
    only over exactly that, or if it is gone."""
    trees: list[KeptTree]
    """Folders that are kept whole."""


class KeepResult(TypedDict):
    report: Report
    """Committed: there is a backup with this id."""


class BuildArgs(TypedDict):
    """Build the new trees beside the old. Still nothing of the VM's own is changed."""


class BuildResult(TypedDict):
    changes: int
    """Paths that the switch will change. 0: content is already right; `run` then only commits payload and signature."""
    changed_paths: list[str]
    """At most 1,000, sorted."""
    exchange: bool
    """False: at least one file system has no exchange; renames one by one are used there."""
    notes: list[str]


class RunArgs(TypedDict):
    """Start the detached process and follow it: events, then `RunResult` at its end. A cut changes nothing any more."""

    id: str


class AttachArgs(TypedDict):
    """Follow an operation. Takes no lock. One that has ended answers at once; so does one that nobody works on
    (`alive` false, phase not final)."""

    id: str


class RunResult(TypedDict):
    report: Report


class AbandonArgs(TypedDict):
    """Give up an operation that was not run: remove what was staged; phase Abandoned. Needs `begin` in this session."""

    id: str


class ProveLoginArgs(TypedDict):
    """Said over a connection that was opened while the report's `awaiting` was `login`."""

    id: str


class ProveLoginResult(TypedDict):
    awaited: bool
    """False: nobody waits for it (any more)."""


class ReportArgs(TypedDict):
    id: str


class ReportResult(TypedDict):
    report: Report | None
    """None: this VM does not know the id."""


class BackArgs(TypedDict):
    """Go back to the backup of the latest committed operation, services included. Runs detached like `run`, events and
    `RunResult` likewise; the report's phase is then RolledBack."""

    id: str
    epoch: int


class Bye(TypedDict):
    """End of the session; the answer is an empty result."""
