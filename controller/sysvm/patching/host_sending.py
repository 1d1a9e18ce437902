"""Files of a release from the hypervisor host to its VM, without the operator's line between.

CloudStack's own patch takes that way: the host logs in to its VMs with the key that the management server gave it
(CloudStack 4.21 ModifySshKeysCommand, LibvirtPatchSystemVmCommandWrapper). Where the host holds exactly the archives of
the release, the operator tells it which ranges of them to send; they are read and sent by the host's own tools, nothing
is written there and no key is brought there. The VM was told before what it may get and believes no byte of it
unverified (remote/arriving.py), so it does not matter who answers at its address: to another machine the host sends
what everybody on it may read. Whatever does not come this way is still missing, and the operator sends it.
"""

import asyncio
import shlex
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from sysvm.patching import protocol
from sysvm.patching.framing import ProtocolError
from sysvm.patching.jumps import Hop
from sysvm.patching.payload import Payload
from sysvm.patching.results import HostFile, HostFiles, Target
from sysvm.patching.session import Session
from sysvm.patching.zip_ranges import ZipRanges, zip_ranges

HOST_KEY_FILE = "/root/.ssh/id_rsa.cloud"
"""On KVM and XenServer hosts, for root alone (CloudStack 4.21 LibvirtComputingResource, `cloudstack-ssh`)."""
WORTH_BYTES = 64 << 10
"""For less the host's login on the VM costs more than it saves."""
LONGEST_SECONDS = 300.0
_TRIES = 3
_STILL_SECONDS = 30.0
_GRACE_SECONDS = 10.0
"""For the host to end what it was given a time for."""
_KEPT_RANGES = 4
_NO_KEY = 77
TAKE = "python3 -I -B /var/lib/sysvm/program/current/sysvm.pyz arrive "

# Arguments: the key, the address, the port, the longest time, the user, the command. On standard input a line for each
# range: first byte (from one), length, path. Of what the VM says only the end comes back, and ssh's status: a VM may
# talk without end.
_SEND = r"""
[ -r "$1" ] || exit 77
status=$({ {
  while read -r first length path; do
    tail -c "+$first" -- "$path" | head -c "$length"
  done | timeout -k 5 "$4" ssh -F /dev/null -T -o BatchMode=yes -o IdentitiesOnly=yes -o IdentityAgent=none \
    -o PreferredAuthentications=publickey -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
    -o GlobalKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=10 -o ServerAliveInterval=5 \
    -o ServerAliveCountMax=3 -o ControlPath=none -o ClearAllForwardings=yes -i "$1" -p "$3" "$5@$2" "$6" \
    2>&1 >/dev/null 3>&-
  echo "$?" >&3
} | tail -c 300 >&2; } 3>&1)
exit "$status"
"""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What a host sends in one go, one range behind the other."""

    items: tuple[protocol.ExpectedItem, ...]
    ranges: tuple[tuple[HostFile, int], ...]
    """File and first byte (from zero) of each item."""
    archive: str | None
    """The item that is cloud-scripts.tgz: the VM takes its files out of it."""

    @property
    def size(self) -> int:
        return sum(item["wire_size"] for item in self.items)

    @property
    def lines(self) -> str:
        return "".join(
            f"{first + 1} {item['wire_size']} {file.path}\n"
            for item, (file, first) in zip(self.items, self.ranges, strict=True)
        )


@dataclass
class HostSending:
    """One for the operator: it remembers where files lie in an archive."""

    key_file: str = HOST_KEY_FILE
    worth_bytes: int = WORTH_BYTES
    take: str = TAKE
    """What starts the program on the VM; the operation's id follows."""
    _ranges: OrderedDict[Path | bytes, ZipRanges] = field(default_factory=OrderedDict)

    async def parcel(self, payload: Payload, files: HostFiles, archive: str, missing: Iterable[str]) -> Parcel:
        """What the host has of it. `archive`: digest of the cloud-scripts.tgz that the VM is to keep."""
        wanted = list(missing)
        items: list[protocol.ExpectedItem] = []
        ranges: list[tuple[HostFile, int]] = []
        tgz = archive if archive in wanted and files.scripts.sha256 == archive else None
        if tgz is not None:
            size = files.scripts.size
            items.append({"sha256": tgz, "size": size, "encoding": "identity", "wire_size": size})
            ranges.append((files.scripts, 0))
        agent = await self._agent(payload)
        if agent is not None and files.agent is not None and files.agent.sha256 == agent.sha256:
            for digest in wanted:
                path = payload.agent_path(digest)
                found = agent.members.get(path) if path is not None else None
                if found is None:
                    continue
                size, _ = payload.described(digest)
                items.append({"sha256": digest, "size": size, "encoding": found.encoding, "wire_size": found.length})
                ranges.append((files.agent, found.offset))
        return Parcel(tuple(items), tuple(ranges), tgz)

    async def send(
        self, session: Session, hop: Hop, target: Target, operation: str, parcel: Parcel, *, seconds: float
    ) -> tuple[tuple[str, ...], str]:
        """Has the host send it, within `seconds` for all tries. Returns what the VM still lacks of everything, and why
        something of the parcel is among it; empty: nothing is. Raises what a session raises: that the host fails is no
        failure."""
        clock = asyncio.get_running_loop().time
        end = clock() + min(seconds, LONGEST_SECONDS)
        wanted = {item["sha256"] for item in parcel.items}
        left = parcel
        missing: tuple[str, ...] = ()
        why_not = ""
        for _ in range(_TRIES):
            args: protocol.ExpectArgs = {"items": list(left.items), "archive": left.archive}
            await session.request("expect", {**args}, dict, timeout=_STILL_SECONDS)
            why_not, may_try_again = await self._command(hop, target, operation, left, end - clock())
            before, missing = missing, await _still_missing(session)
            lacking = wanted & set(missing)
            if not lacking:
                return missing, ""
            if not may_try_again or set(before) == set(missing) or end - clock() < 1.0:
                break
            left = _only(parcel, lacking)
        return missing, why_not or "not all of it arrived as it should"

    async def _agent(self, payload: Payload) -> ZipRanges | None:
        source = payload.agent_archive
        if source is None:
            return None
        if source not in self._ranges:
            try:
                self._ranges[source] = await asyncio.to_thread(zip_ranges, source)
            except (OSError, ValueError, EOFError) as error:
                raise ProtocolError(f"agent.zip of the release cannot be read any more: {error}") from error
            while len(self._ranges) > _KEPT_RANGES:
                self._ranges.popitem(last=False)
        self._ranges.move_to_end(source)
        return self._ranges[source]

    async def _command(
        self, hop: Hop, target: Target, operation: str, parcel: Parcel, seconds: float
    ) -> tuple[str, bool]:
        """Why it failed, empty if it did not, and whether a second attempt may help."""
        account = target.account
        clock = asyncio.get_running_loop().time
        end, left = clock() + seconds, 0
        try:
            async with asyncio.timeout(seconds + _GRACE_SECONDS), hop.sendings:
                # Less by what its turn took: what it sends after we have gone would keep the VM from building.
                left = max(1, int(end - clock()))
                words = [self.key_file, target.address, str(account.port), str(left), account.user]
                command = shlex.join(["sh", "-c", _SEND, "sh", *words, self.take + shlex.quote(operation)])
                done = await hop.ssh.run(command, input=parcel.lines, errors="replace")
        except TimeoutError:
            return f"it did not end within {left} s" if left else f"it sent to other VMs for {seconds:.0f} s", False
        except (OSError, asyncssh.Error) as error:
            return str(error) or type(error).__name__, True
        if done.exit_status == 0:
            return "", True
        if done.exit_status == _NO_KEY:
            return f"it has no {self.key_file} that its user {hop.login.user} may read", False
        said = str(done.stderr or "").strip()[-200:]
        return f"status {done.exit_status}" + (f", {said}" if said else ""), True


async def _still_missing(session: Session) -> tuple[str, ...]:
    args: protocol.StageArgs = {"items": []}
    told = await session.request("stage", {**args}, protocol.StageResult, timeout=_STILL_SECONDS)
    return tuple(told["missing"])


def _only(parcel: Parcel, digests: set[str]) -> Parcel:
    both = [pair for pair in zip(parcel.items, parcel.ranges, strict=True) if pair[0]["sha256"] in digests]
    archive = parcel.archive if parcel.archive in digests else None
    return Parcel(tuple(item for item, _ in both), tuple(place for _, place in both), archive)
