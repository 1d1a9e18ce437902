"""Calls to the stand-in management server, from the order to the result, as the operator's driver makes them.

Shared by the tests of Reboot, Recreate and CloudStack's own live patch: machine, judges and client over HTTP, without a
cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from lab.cloud import CHANGING, ManagementServer, Network, Vpc, World, management_server
from sysvm.api.endpoint import Management
from sysvm.api.rollout import GroupOperation, GroupPhase
from sysvm.cloudstack.client import Access, CloudStack, Credentials, MayChange
from sysvm.cloudstack.lifecycle import CloudJobs
from sysvm.domain import group_operation as machine
from sysvm.domain.calls import Event, Judge, Looked
from sysvm.domain.cloud import CloudVM
from sysvm.domain.facts import VMFacts
from sysvm.domain.group_operation import Limits, Todo


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Driven:
    """A cloud whose calls are made here."""

    world: World
    server: ManagementServer
    client: CloudStack
    began: list[GroupPhase] = field(default_factory=list)

    @property
    def jobs(self) -> CloudJobs:
        return CloudJobs(self.client, now)

    @property
    def calls(self) -> list[str]:
        """What was asked for that changes something."""
        return [call.command for call in self.world.calls if call.command in CHANGING]

    def routers(self, network: str) -> list[str]:
        owners: list[Network | Vpc] = [*self.world.networks.values(), *self.world.vpcs.values()]
        return [vm.name for owner in owners if owner.name == network for vm in self.world.routers_of(owner)]

    def of_type(self, type_: str) -> str:
        return next(vm.name for vm in self.world.vms.values() if vm.type == type_)

    async def drive(
        self,
        stored: GroupOperation,
        judge: Judge,
        limits: Limits,
        known: Callable[[tuple[CloudVM, ...]], tuple[VMFacts, ...]],
        *,
        restart_operator_at: GroupPhase | None = None,
    ) -> GroupOperation:
        """`known`: what looks over SSH would have found a moment ago."""
        async with asyncio.timeout(30):
            while stored.result is None:
                self.began.append(stored.phase)
                if stored.phase is restart_operator_at:
                    restart_operator_at = None
                    if stored.phase is GroupPhase.SUBMITTING:
                        await self.jobs.submit(judge.call(stored))  # and its answer dies with the process
                    stored = machine.after_restart(stored, now())
                    continue
                event: Event
                match machine.todo(stored):
                    case Todo.SUBMIT:
                        event = await self.jobs.submit(judge.call(stored))
                    case Todo.ASK_JOB:
                        event = await self.jobs.job(stored.job_id or "")
                    case _:
                        event = await self.jobs.look(stored)
                if isinstance(event, Looked):
                    event = Looked(replace(event.look, known=known(event.look.vms)))
                stored = machine.apply(stored, event, judge, limits, now())
                await asyncio.sleep(machine.pause(stored, now()).total_seconds() if machine.todo(stored) else 0)
        return stored


@contextlib.asynccontextmanager
async def served(world: World, management: Management) -> AsyncIterator[tuple[ManagementServer, CloudStack]]:
    """A management server in which every step of work takes hundredths of a second, and an administrator's client."""
    async with management_server(world, pace=0.01) as server:
        access = Access(
            url=server.url, credentials=Credentials(api_key=world.users[0].api_key, secret_key=world.users[0].secret),
            requests_per_second=1000, burst=1000,
        )  # fmt: skip
        async with CloudStack(access, may_change=MayChange.of(management)) as client:
            yield server, client
