"""Payloads that machines of the cloud hold: hypervisor hosts, and management servers where hosts hold none.

CloudStack's own patch installs what lies there, so a release that is taken from there agrees with it. The files come
over SSH connections that are there anyway; each archive is fetched once, whatever number of machines holds it, and a
machine is only ever read from.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sysvm.api.reasons import Reason
from sysvm.patching.errors import PatchingError, PayloadError
from sysvm.patching.hosts import HostPayloads, read_file
from sysvm.patching.payload import read_payload
from sysvm.patching.results import HostFile, HostFiles, HostLogin, HostPlace
from sysvm.patching.sources import PayloadPaths, PayloadSources

_ASKED_AT_ONCE = 16
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Machine:
    """One that holds a payload, and how to log in there."""

    place: HostPlace
    login: HostLogin
    hypervisor: str | None = None
    """It decides in which folder; None: where CloudStack's packages put it."""
    known_as: str | None = None
    """What people tell it by where another machine has its name."""

    @property
    def name(self) -> str:
        return self.known_as or self.place.name


@dataclass(frozen=True, slots=True)
class Held:
    """What a machine holds; None: no payload."""

    machine: Machine
    files: HostFiles | None


class MachineFiles(Protocol):
    """Reads what machines hold. Implemented by `SSHMachines`."""

    async def files(self, machine: Machine) -> HostFiles | None:
        """Sizes and checksums; None: it holds no payload. Raises `PatchingError`."""
        ...

    def read(self, machine: Machine, file: HostFile) -> AsyncIterator[bytes]:
        """One file, in pieces. Raises `PatchingError`."""
        ...


@dataclass(frozen=True, slots=True)
class SSHMachines:
    """Over the connections that VMs share."""

    payloads: HostPayloads

    async def files(self, machine: Machine) -> HostFiles | None:
        return await self.payloads.files(machine.place, machine.login, machine.hypervisor, max_age_seconds=0)

    def read(self, machine: Machine, file: HostFile) -> AsyncIterator[bytes]:
        return read_file(self.payloads.jumps, machine.place, machine.login, file)


@dataclass(frozen=True, slots=True)
class MachineSource:
    """Brings what machines hold into the cache."""

    machines: MachineFiles
    sources: PayloadSources

    async def ask(self, machines: Sequence[Machine]) -> list[Held]:
        """What each holds. Raises `PayloadError` if one does not say: then it is not known whether all agree."""
        at_once = asyncio.Semaphore(_ASKED_AT_ONCE)
        failures: list[tuple[Machine, PatchingError]] = []

        async def ask_one(machine: Machine) -> Held | None:
            async with at_once:
                try:
                    return Held(machine, await self.machines.files(machine))
                except PatchingError as error:
                    failures.append((machine, error))
                    return None

        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask_one(machine)) for machine in machines]
        if failures:
            told = "; ".join(_told(machine, error) for machine, error in failures[:_NAMED])
            more = f" and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
            raise PayloadError(
                f"{len(failures)} of {len(machines)} machines cannot be asked what they hold: {told}{more}",
                reason=failures[0][1].reason,
                retryable=all(error.retryable for _, error in failures),
            )
        return [held for task in asked if (held := task.result()) is not None]

    async def fetch(self, held: Sequence[Held]) -> PayloadPaths:
        """The files of one of these, which hold the same. The next is asked if one fails. Raises `PayloadError`."""
        failure: PatchingError | None = None
        for each in held:
            if each.files is None:
                continue
            try:
                scripts = await self._file(each.machine, each.files.scripts)
                agent = await self._file(each.machine, each.files.agent) if each.files.agent is not None else None
            except PatchingError as error:
                failure = error
                continue
            return PayloadPaths(scripts, agent)
        if isinstance(failure, PayloadError):
            raise failure
        raise PayloadError(
            f"the payload cannot be read from any machine: {failure}",
            reason=failure.reason if failure is not None else Reason.PAYLOAD_NOT_FOUND,
            retryable=True,
        )

    async def kept(self, scripts: str, agent: str | None) -> PayloadPaths | None:
        """Files with these digests, if the cache still has them."""
        scripts_path = await asyncio.to_thread(self.sources.kept.find, scripts)
        if scripts_path is None or agent is None:
            return PayloadPaths(scripts_path, None) if scripts_path is not None else None
        agent_path = await asyncio.to_thread(self.sources.kept.find, agent)
        return PayloadPaths(scripts_path, agent_path) if agent_path is not None else None

    async def revision(self, paths: PayloadPaths) -> str:
        """What the files are, whatever archives they came in."""
        return (await asyncio.to_thread(read_payload, paths.scripts, paths.agent)).revision

    async def _file(self, machine: Machine, file: HostFile) -> Path:
        digest = f"sha256:{file.sha256}"
        async with self.sources.held(digest):
            found = await asyncio.to_thread(self.sources.kept.find, digest)
            if found is not None:
                return found
            async with self.sources.kept.arriving_slowly(f"{file.path} of {machine.name}", digest) as arrival:
                async for part in self.machines.read(machine, file):
                    await asyncio.to_thread(arrival.write, part)
            await asyncio.to_thread(self.sources.kept.trim)
            return self.sources.kept.path(digest)


def _told(machine: Machine, error: PatchingError) -> str:
    """The error names the machine as its cloud does."""
    return f"{machine.known_as}: {error}" if machine.known_as is not None else str(error)
