"""What hypervisor hosts keep for their VMs: the payload that CloudStack installs at a VM's next start or patch.

On KVM and XenServer the host's files decide, not the management server's (CloudStack 4.21 LibvirtComputingResource,
CitrixResourceBase): a VM that was brought to another release than its host has goes back at its next stop and start.
So the host is asked on the way to the VM, by one command that reads the archives only if they have changed, and its
files can be fetched over the same connection. Nothing is ever written there.
"""

import asyncio
import hashlib
import shlex
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import asyncssh

from sysvm.patching import archives
from sysvm.patching.errors import HostUnreachable, PatchingError, PayloadError
from sysvm.patching.jumps import Hop, Jumps
from sysvm.patching.payload import scripts_revision
from sysvm.patching.results import HostFile, HostFiles, HostLogin, HostPayload, HostPlace

SCRIPTS, AGENT = "cloud-scripts.tgz", "agent.zip"
_FOLDER = "/usr/share/cloudstack-common/vms"
"""On KVM (CloudStack 4.21 LibvirtComputingResource.BASEPATH)."""
_FOLDERS = {"xenserver": "/opt/xensource/packages/resources", "xcp-ng": "/opt/xensource/packages/resources"}
"""The management server puts the files there when it sets such a host up (CloudStack 4.21 xenserver patch)."""

# Arguments: the folder, and what `stat` said when the archives were last read. One line of `stat` for each file that is
# there, then, if that is news, the checksums. stat comes first: what is replaced meanwhile is read again next time.
_ASK = r"""
export LC_ALL=C
cd "$1" 2>/dev/null || exit 0
found=$(stat -L -c '%n %s %i %Y %Z' cloud-scripts.tgz agent.zip 2>/dev/null)
printf '%s\n' "$found"
[ "$found" != "$2" ] || exit 0
[ -f cloud-scripts.tgz ] || exit 0
echo sums
md5sum cloud-scripts.tgz && sha512sum cloud-scripts.tgz && sha256sum cloud-scripts.tgz || exit 1
[ ! -f agent.zip ] || sha256sum agent.zip
"""
_ASK_SECONDS = 60.0
_PIECE_BYTES = 1 << 18
_STALLED_SECONDS = 60.0
_TRIES = 5
_KEPT_ARCHIVES = 8


@dataclass
class _Known:
    """What one host said last."""

    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    asked_at: float = float("-inf")
    stat: str = ""
    files: HostFiles | None = None


@dataclass
class HostPayloads:
    """The payloads of all hosts; one for the operator, for hosts of a cloud have the same few archives: each is fetched
    once, not once a host. `folder`: where KVM hosts keep theirs."""

    jumps: Jumps
    folder: str = _FOLDER

    def __post_init__(self) -> None:
        self._known: dict[tuple[HostPlace, HostLogin, str], _Known] = {}
        self._archives: OrderedDict[str, bytes] = OrderedDict()
        self._revisions: dict[str, str | None] = {}

    async def files(
        self, place: HostPlace, login: HostLogin, hypervisor: str | None, *, max_age_seconds: float
    ) -> HostFiles | None:
        """Size and checksums of what the host keeps, not older than `max_age_seconds`; None: it keeps no payload.

        Raises `HostUnreachable`, or `PatchingError` if its answer makes no sense.
        """
        folder = _FOLDERS.get((hypervisor or "").casefold(), self.folder)
        known = self._known.setdefault((place, login, folder), _Known())
        clock = asyncio.get_running_loop().time
        async with known.asking:
            if clock() - known.asked_at > max_age_seconds:
                async with self.jumps.to(place, login) as hop:
                    said = await _run(hop, shlex.join(["sh", "-c", _ASK, "sh", folder, known.stat]))
                known.stat, known.files = _read(hop, folder, said, known)
                known.asked_at = clock()
            return known.files

    async def payload(
        self, place: HostPlace, login: HostLogin, hypervisor: str | None, *, max_age_seconds: float
    ) -> HostPayload | None:
        """What the host would install, by content. None: it keeps no payload. Raises as `files` does."""
        files = await self.files(place, login, hypervisor, max_age_seconds=max_age_seconds)
        if files is None:
            return None
        digest = files.scripts.sha256
        if digest not in self._revisions:
            self._revisions[digest] = await self._revision(place, login, files.scripts)
        return HostPayload(host=place.name, files=files, scripts_revision=self._revisions[digest])

    async def scripts_archive(self, place: HostPlace, login: HostLogin, file: HostFile) -> bytes:
        """The host's cloud-scripts.tgz, which is small. Raises `HostUnreachable`; `PayloadError` if it is another one
        by now, or larger than such an archive can be."""
        kept = self._archives.get(file.sha256)
        if kept is None:
            kept = await self._fetch(place, login, file)
            self._archives[file.sha256] = kept
            while len(self._archives) > _KEPT_ARCHIVES:
                self._archives.popitem(last=False)
        self._archives.move_to_end(file.sha256)
        return kept

    async def _revision(self, place: HostPlace, login: HostLogin, file: HostFile) -> str | None:
        try:
            packed = await self.scripts_archive(place, login, file)
            listing, _ = await asyncio.to_thread(archives.read_scripts, packed)
        except PayloadError:
            return None
        return scripts_revision({entry.path: entry for entry in listing.files})

    async def _fetch(self, place: HostPlace, login: HostLogin, file: HostFile) -> bytes:
        if file.size > archives.SCRIPTS_LIMITS.packed_bytes:
            raise PayloadError(f"{file.path} of {place.kind} {place.name} has {file.size} bytes: it is no payload")
        packed = b"".join([piece async for piece in read_file(self.jumps, place, login, file)])
        if hashlib.sha256(packed).hexdigest() != file.sha256:
            raise PayloadError(
                f"{file.path} of {place.kind} {place.name} was replaced while it was read", retryable=True
            )
        return packed


async def read_file(
    jumps: Jumps, place: HostPlace, login: HostLogin, file: HostFile, *, offset: int = 0
) -> AsyncIterator[bytes]:
    """A file of a host from `offset` on, in pieces, over the connection that its VMs share.

    A connection that is lost in the middle is made anew, and reading goes on where it was. Whoever reads must compare
    the digest: the file may be replaced meanwhile. Raises `HostUnreachable`, or `PayloadError` if it is shorter than it
    was said to be.
    """
    failures = 0
    while offset < file.size:
        before = offset
        try:
            async with jumps.to(place, login) as hop, hop.commands:
                async for piece in _tail(hop, file.path, offset):
                    offset += len(piece)
                    yield piece
        except HostUnreachable:
            failures = 1 if offset > before else failures + 1
            if failures == _TRIES:
                raise
            await asyncio.sleep(min(0.2 * 2**failures, 5.0))
            continue
        if offset < file.size:
            raise PayloadError(
                f"{file.path} of {place.kind} {place.name} ends after {offset} of {file.size} bytes: it was "
                "replaced while it was read",
                retryable=True,
            )


async def _tail(hop: Hop, path: str, offset: int) -> AsyncIterator[bytes]:
    try:
        process = await hop.ssh.create_process(f"tail -c +{offset + 1} -- {shlex.quote(path)}", encoding=None)
    except (OSError, asyncssh.Error) as error:
        raise _lost(hop, error) from error
    async with process:
        while True:
            try:
                async with asyncio.timeout(_STALLED_SECONDS):
                    piece = await process.stdout.read(_PIECE_BYTES)
            except (OSError, asyncssh.Error) as error:
                raise _lost(hop, error) from error
            if not piece:
                break
            yield piece
        try:
            async with asyncio.timeout(_STALLED_SECONDS):
                ended = await process.wait()
        except (OSError, asyncssh.Error) as error:
            raise _lost(hop, error) from error
    if ended.exit_status is None or ended.exit_signal is not None:
        raise _lost(hop, None)


async def _run(hop: Hop, command: str) -> str:
    try:
        async with asyncio.timeout(_ASK_SECONDS), hop.commands:
            done = await hop.ssh.run(command, errors="replace")
    except (OSError, asyncssh.Error) as error:
        raise _lost(hop, error) from error
    if done.exit_status is None or done.exit_signal is not None:
        raise _lost(hop, None)
    if done.exit_status != 0:
        said = str(done.stderr or "").strip()[-300:]
        raise PatchingError(f"{hop.name} cannot say which payload it keeps (status {done.exit_status}): {said}")
    return str(done.stdout or "")


def _lost(hop: Hop, error: Exception | None) -> HostUnreachable:
    why = "it did not answer in time" if isinstance(error, TimeoutError) else str(error or "it broke off")
    return HostUnreachable(f"{hop.name} was logged in to and could not be read: {why}")


def _read(hop: Hop, folder: str, said: str, known: _Known) -> tuple[str, HostFiles | None]:
    """The words of `_ASK`: what `stat` said, and the files; those that are known where nothing has changed."""
    stat, _, sums = said.partition("sums\n")
    stat = stat.strip()
    if not stat:
        return "", None
    if not sums:
        return stat, known.files if stat == known.stat else None
    sizes = {words[0]: int(words[1]) for line in stat.splitlines() if (words := line.split()) and words[1].isdigit()}
    digests = [line.split()[0] for line in sums.splitlines()]
    lengths = [len(digest) for digest in digests]
    if SCRIPTS not in sizes or lengths not in ([32, 128, 64], [32, 128, 64, 64]):
        raise PatchingError(f"{hop.name} gave no checksums of {folder}/{SCRIPTS} that make sense: {said[:200]!r}")
    scripts = HostFile(f"{folder}/{SCRIPTS}", sizes[SCRIPTS], digests[2])
    agent = HostFile(f"{folder}/{AGENT}", sizes.get(AGENT, 0), digests[3]) if len(digests) > 3 else None
    return stat, HostFiles(scripts, agent, {"md5": digests[0], "sha512": digests[1]})
