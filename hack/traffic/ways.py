"""The two ways to make a change on VMs that carry traffic: ours, and CloudStack's own live patch re-created.

Both get the same bytes and the same VMs in the same order, and answer with how it ended by their own account.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lab import Lab
from lab.content import cloudstack_patch, payloads
from lab.content.releases import Release
from reach import patch_order, target_of
from sysvm.patching.errors import PatchingError
from sysvm.patching.live import LivePatcher
from sysvm.patching.payload import read_payload
from sysvm.patching.results import JournalPhase, Order


@dataclass(frozen=True, kw_only=True)
class Change:
    """What is to be installed."""

    scripts: bytes
    agent: bytes
    may_fail_over: bool = False
    """The policy allows a planned failover."""

    @classmethod
    def to(cls, release: Release, *, build_seed: int = 0, may_fail_over: bool = False) -> Change:
        return cls(
            scripts=payloads.build_scripts(release, build_seed=build_seed),
            agent=payloads.build_agent(release),
            may_fail_over=may_fail_over,
        )


@dataclass(frozen=True, kw_only=True)
class Account:
    """How it ended on all VMs, as the way itself tells it."""

    ended: str
    as_wanted: bool
    losses: Mapping[str, str] = field(default_factory=dict)
    """By unit: what the plan, asked before, said that tenants would notice; empty where nothing is planned."""
    actions: tuple[str, ...] = ()


class Way(Protocol):
    """Makes a change on VMs, one after the other."""

    name: str

    async def plan(self, lab: Lab, names: Sequence[str], change: Change) -> Mapping[str, str]:
        """By unit: what tenants would notice. Asked before there is traffic."""
        ...

    async def make(self, lab: Lab, names: Sequence[str], change: Change, wanted: JournalPhase) -> Account: ...


class Ours:
    """The live patch of `sysvm.patching`, over real SSH."""

    name = "ours"

    def __init__(self) -> None:
        self._patcher = LivePatcher()

    async def plan(self, lab: Lab, names: Sequence[str], change: Change) -> Mapping[str, str]:
        payload = read_payload(change.scripts, change.agent)
        seen = [await self._patcher.observe(target_of(lab, name), payload) for name in names]
        return {action.name: action.expected_loss for look in seen for action in look.actions}

    async def make(self, lab: Lab, names: Sequence[str], change: Change, wanted: JournalPhase) -> Account:
        payload = read_payload(change.scripts, change.agent)
        ended: list[str] = []
        actions: list[str] = []
        as_wanted = True
        for name in names:
            try:
                report = await self._patcher.patch(target_of(lab, name), payload, _order(name, change), lambda _: None)
            except PatchingError as problem:
                ended.append(f"{type(problem).__name__}: {problem}")
                as_wanted = False
                continue
            as_wanted &= report.phase is wanted
            ended.append(str(report.phase))
            if report.phase is not wanted:
                ended.append(f"({report.reason}: {report.message[:300]})")
            actions += [f"{service.name} {service.action.lower()}" for service in report.services]
        return Account(ended=" ".join(ended), as_wanted=as_wanted, actions=tuple(actions))


class CloudStacks:
    """The lab's re-creation of CloudStack's script. It plans nothing and promises nothing."""

    name = "CloudStack's"

    async def plan(self, lab: Lab, names: Sequence[str], change: Change) -> Mapping[str, str]:
        return {}

    async def make(self, lab: Lab, names: Sequence[str], change: Change, wanted: JournalPhase) -> Account:
        ended: list[str] = []
        as_wanted = True
        for name in names:
            outcome = await asyncio.to_thread(
                cloudstack_patch.patch, lab, name, scripts=change.scripts, agent=change.agent
            )
            as_wanted &= outcome.succeeded is (wanted is JournalPhase.COMMITTED)
            ended.append(f"exit {outcome.code}")
        return Account(ended=" ".join(ended), as_wanted=as_wanted)


def _order(name: str, change: Change) -> Order:
    return patch_order(f"traffic-{name.lower()}", may_fail_over=change.may_fail_over)
