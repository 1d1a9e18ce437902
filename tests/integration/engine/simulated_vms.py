"""System VMs that are a file: a stand-in for SSH, honest about what matters to the engine.

A real VM does not forget an operation because the operator died, and ends it alone. So the truth of this fleet lies in
a JSON file beside the process: an operation is written there with the moments of its phases when it begins, and whoever
reads the file later sees how far it is. Every VM can be told to misbehave, and keeps a journal of what was asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sysvm.api.endpoint import HostKeyPolicy, SSHAlgorithms
from sysvm.api.observed import ContentState, PairGateway, PairSample, RedundancyRole, RuleKind
from sysvm.api.reasons import Reason
from sysvm.engine.ports import Progress
from sysvm.patching.errors import HostKeyRejected, Refused, Unreachable
from sysvm.patching.payload import Payload
from sysvm.patching.results import (
    ContentReport,
    HostFile,
    HostFiles,
    HostPayload,
    JournalPhase,
    Observation,
    OperationReport,
    Order,
    PlannedServiceAction,
    SeenHostKey,
    ServiceReport,
    ServiceState,
    StepReport,
    Target,
)

PHASES = (
    (0.0, JournalPhase.STAGING, "Stage"),
    (0.4, JournalPhase.SWITCHING, "Switch"),
    (0.6, JournalPhase.SERVICES, "Services"),
    (0.8, JournalPhase.VERIFYING, "Verify"),
)
"""Share of the operation's time after which it is in that phase."""
SENT_BYTES = 90_000_000
"""All that Stage sends."""
OUTPUT = "haproxy: [ALERT] cannot bind socket"
"""What the service that breaks says."""
_NEVER = 1e12
_TICK_SECONDS = 0.03
_PATIENCE_SECONDS = 1.0
"""How long somebody talks to a silent VM."""
_OLD_SIGNATURE = "0123456789abcdef" * 2

State = dict[str, Any]
"""One VM in the file: plain JSON."""


@dataclass(frozen=True)
class Patch:
    """One operation as the VM remembers it. Times are seconds since 1970."""

    vm: str
    id: str
    revision: str
    begun: float
    ends: float
    outcome: JournalPhase


@dataclass(frozen=True)
class Fleet:
    """The file, for the test and for the process under test alike."""

    file: Path

    @classmethod
    def of(cls, file: Path, roles: dict[str, RedundancyRole | None], *, seconds: float = 0.3) -> Fleet:
        """VMs at an old payload; an operation takes `seconds`."""
        fleet = cls(file)
        fleet.file.parent.mkdir(parents=True, exist_ok=True)
        fleet.file.write_text("{}")
        for name, role in roles.items():
            fleet.add(name, role, seconds=seconds)
        return fleet

    def add(self, name: str, role: RedundancyRole | None = None, *, seconds: float = 0.3) -> None:
        with self._changing() as vms:
            vms[name] = {
                "revision": "old",
                "signature": _OLD_SIGNATURE,
                "checksum": _OLD_SIGNATURE,
                "drifted": False,
                "role": role,
                "seconds": seconds,
                "host_key": "AAAA1",
                "unreachable": None,
                "silent": False,
                "sha1_only": False,
                "refused": None,
                "outcome": JournalPhase.COMMITTED,
                "highest_epoch": 0,
                "operations": [],
                "looks": 0,
                "patch_calls": 0,
                "release": "4.20.1",
                "boot_id": "b1",
                "data_bags": 6,
                "rules": {},
                "ahead_seconds": 0.0,
                "host": None,
                "backups": {},
            }

    def remove(self, name: str) -> None:
        """Its disk is gone, and nobody answers under its name."""
        with self._changing() as vms:
            vms.pop(name, None)

    def names(self) -> list[str]:
        return sorted(self._read())

    # What a test does to a VM

    def set(self, name: str, **changes: object) -> None:
        """Changes fields of one VM; `unreachable=Reason`, `silent=bool`, `sha1_only=bool`, `refused=(Reason,
        retryable)`, `outcome=JournalPhase`, `host_key=str`, `drifted=bool`, `seconds=float`, `role=RedundancyRole`."""
        with self._changing() as vms:
            unknown = set(changes) - set(vms[name])
            if unknown:
                raise KeyError(f"a VM has no {', '.join(sorted(unknown))}")
            vms[name].update(changes)

    def never_end(self, name: str) -> None:
        """Operations that begin from now on last until `end`."""
        self.set(name, seconds=_NEVER)

    def end(self, name: str) -> None:
        """The operation in work ends now, and later ones are quick."""
        with self._changing() as vms:
            vms[name]["seconds"] = 0.3
            for operation in vms[name]["operations"]:
                operation["ends"] = min(operation["ends"], time.time())

    # What a test asks

    def patches(self) -> list[Patch]:
        """Every operation that ever began, in the order of their beginning."""
        found = [
            Patch(name, one["id"], one["revision"], one["begun"], one["ends"], JournalPhase(one["outcome"]))
            for name, state in self._read().items()
            for one in state["operations"]
        ]
        return sorted(found, key=lambda patch: patch.begun)

    def patches_of(self, name: str) -> list[Patch]:
        return [patch for patch in self.patches() if patch.vm == name]

    def patch_calls(self) -> int:
        """How often anybody asked for a patch, also in vain."""
        return sum(state["patch_calls"] for state in self._read().values())

    def looks(self, name: str) -> int:
        return int(self._read()[name]["looks"])

    def revision(self, name: str) -> str:
        return str(self._read()[name]["revision"])

    # What the stand-in does

    def begin(self, name: str, payload: Payload, order: Order) -> None:
        """Raises `Refused`."""
        with self._changing() as vms:
            state = vms[name]
            state["patch_calls"] += 1
            if any(one["id"] == order.id for one in state["operations"]):
                return
            if state["refused"]:
                reason, retryable = state["refused"]
                raise Refused(f"{name} refuses: {reason}", reason=Reason(reason), retryable=retryable)
            if order.epoch < state["highest_epoch"]:
                raise Refused(f"{name}: old epoch", reason=Reason.EPOCH_REFUSED, retryable=False)
            if any(one["ends"] > time.time() for one in state["operations"]):
                raise Refused(f"{name}: in work for another", reason=Reason.LOCK_HELD, retryable=True)
            state["highest_epoch"] = order.epoch
            now = time.time()
            state["operations"].append(
                {
                    "id": order.id,
                    "revision": payload.revision,
                    "signature": payload.signature,
                    "begun": now,
                    "ends": now + state["seconds"],
                    "outcome": state["outcome"],
                    "applied": False,
                }
            )

    def back_up(self, name: str, order: Order) -> None:
        """Raises `Refused`."""
        with self._changing() as vms:
            state = vms[name]
            if state["refused"]:
                reason, retryable = state["refused"]
                raise Refused(f"{name} refuses: {reason}", reason=Reason(reason), retryable=retryable)
            if order.epoch < state["highest_epoch"]:
                raise Refused(f"{name}: old epoch", reason=Reason.EPOCH_REFUSED, retryable=False)
            state["highest_epoch"] = order.epoch
            before = {key: state[key] for key in ("revision", "signature", "checksum", "drifted")}
            state["backups"].setdefault(order.id, {"before": before, "outcome": JournalPhase.COMMITTED})

    def backups_of(self, name: str) -> dict[str, JournalPhase]:
        """Operation id -> how it stands: Committed, or RolledBack once it was gone back to."""
        return {id_: JournalPhase(one["outcome"]) for id_, one in self._read()[name]["backups"].items()}

    def take_back(self, name: str, operation: str, epoch: int) -> None:
        """The VM is what it was before a committed operation, at once. Raises `Refused`."""
        with self._changing() as vms:
            state = vms[name]
            one = next((one for one in state["operations"] if one["id"] == operation), None)
            if one is None and operation in state["backups"] and epoch >= state["highest_epoch"]:
                kept = state["backups"][operation]
                state.update(kept["before"])
                kept["outcome"] = JournalPhase.ROLLED_BACK
                return
            if one is None or epoch < state["highest_epoch"]:
                raise Refused(f"{name} does not go back", reason=Reason.EPOCH_REFUSED, retryable=False)
            if one["outcome"] == JournalPhase.COMMITTED and one["applied"]:
                state.update(one["before"])
                one["outcome"] = JournalPhase.ROLLED_BACK

    def look(self, name: str) -> State:
        """The VM as it is now."""
        with self._changing() as vms:
            vms[name]["looks"] += 1
            state: State = json.loads(json.dumps(vms[name]))
            return state

    def state(self, name: str) -> State:
        state: State = self._read()[name]
        return state

    def _read(self) -> dict[str, State]:
        vms: dict[str, State] = json.loads(self.file.read_text())
        return vms

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, State]]:
        with self.file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            vms = self._read()
            for state in vms.values():
                _settle(state)
            try:
                yield vms
            finally:
                fresh = self.file.with_suffix(".new")
                fresh.write_text(json.dumps(vms))
                os.replace(fresh, self.file)


def _settle(state: State) -> None:
    """What ended since somebody last looked has its effect."""
    for one in state["operations"]:
        if one["applied"] or one["ends"] > time.time():
            continue
        one["applied"] = True
        if one["outcome"] == JournalPhase.COMMITTED:
            one["before"] = {key: state[key] for key in ("revision", "signature", "checksum")}
            state.update(revision=one["revision"], signature=one["signature"], checksum=one["signature"], drifted=False)
        elif one["outcome"] == JournalPhase.INCONSISTENT:
            state["signature"] = "0" * 32


def pair_samples(role: RedundancyRole, at: datetime, count: int) -> tuple[PairSample, ...]:
    """What a router of this role shows; without the time that real samples take."""
    holds = role is RedundancyRole.PRIMARY
    gateway = PairGateway(
        address="10.1.1.1", held=holds, mac="02:p" if holds else "02:b", answers=() if holds else ("02:p",)
    )
    return tuple(
        PairSample(
            at=at - timedelta(seconds=5 * number),
            keepalived=True,
            state=role if role is not RedundancyRole.UNKNOWN else None,
            heartbeat=True,
            public_up=holds,
            conntrackd=True,
            flows=3,
            replicated=3,
            gateways=(gateway,),
        )
        for number in reversed(range(count))
    )


@dataclass(frozen=True)
class SimulatedVMs:
    """Implements `engine.ports.SystemVMs` over a `Fleet`."""

    fleet: Fleet

    async def observe(self, target: Target, payload: Payload | None, *, samples: int = 1) -> Observation:
        key = await self._connect(target)
        state = self.fleet.look(target.name)
        content = None
        if payload is not None:
            same = state["revision"] == payload.revision and not state["drifted"]
            content = ContentReport(
                revision=payload.revision,
                state=ContentState.MATCHES if same else ContentState.DRIFTED,
                changed=0 if same else 1,
                paths=() if same else ("/opt/cloud/bin/patched.sh",),
            )
        at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=state["ahead_seconds"])
        role = RedundancyRole(state["role"]) if state["role"] else None
        return Observation(
            at=at,
            host_key=key,
            type=target.type,
            release=state["release"],
            debian_version="12.9",
            signature=state["signature"],
            payload_checksums={"md5": state["checksum"]},
            boot_id=state["boot_id"],
            booted=True,
            data_bags=state["data_bags"],
            rules={kind: state["rules"].get(kind, 0) for kind in RuleKind},
            services=(ServiceState("haproxy", "loaded", "active", "running", True, 77, 0),),
            redundancy=role,
            pair_samples=pair_samples(role, at, samples) if role is not None else (),
            failing_health_checks=(),
            disk_available_bytes=1 << 30,
            memory_available_bytes=1 << 30,
            other_actors=(),
            unfinished=None,
            last_finished=None,
            highest_epoch=state["highest_epoch"],
            content=content,
            host_payload=_kept(state),
            agent_content=None,
            actions=(PlannedServiceAction("haproxy", "Reload", "none"),) if content and content.changed else (),
        )

    async def patch(self, target: Target, payload: Payload, order: Order, progress: Progress) -> OperationReport:
        await self._connect(target)
        self.fleet.begin(target.name, payload, order)
        told: OperationReport | None = None
        while True:
            report = self._report(target.name, order.id)
            if report is None:
                raise Unreachable(f"{target.name}: the operation is gone")
            if report.phase.is_final:
                return report
            if report != told:
                told = report
                progress(report)
            await asyncio.sleep(_TICK_SECONDS)

    async def take_back(self, target: Target, order: Order, operation_id: str, progress: Progress) -> OperationReport:
        await self._connect(target)
        self.fleet.take_back(target.name, operation_id, order.epoch)
        report = self._report(target.name, operation_id)
        if report is None:
            return self._backup_report(target.name, operation_id, order.id)
        return replace(report, id=order.id, reason=None, message="it was taken back")

    async def back_up(self, target: Target, payload: Payload, order: Order) -> OperationReport:
        await self._connect(target)
        self.fleet.back_up(target.name, order)
        return self._backup_report(target.name, order.id, order.id)

    def _backup_report(self, name: str, backup: str, operation: str) -> OperationReport:
        return OperationReport(
            id=operation,
            revision="",
            phase=self.fleet.backups_of(name)[backup],
            step="Build",
            steps=(),
            services=(),
            bytes_sent=0,
        )

    async def report(self, target: Target, operation_id: str) -> OperationReport | None:
        await self._connect(target)
        return self._report(target.name, operation_id)

    async def _connect(self, target: Target) -> SeenHostKey:
        if target.name not in self.fleet.names():
            raise Unreachable(f"{target.name} is not there")
        patience = time.monotonic() + _PATIENCE_SECONDS
        while (state := self.fleet.state(target.name))["silent"]:
            if time.monotonic() > patience:
                raise Unreachable(f"{target.name} lets in and stays silent", reason=Reason.SSH_TIMEOUT)
            await asyncio.sleep(_TICK_SECONDS)
        if state["unreachable"]:
            raise Unreachable(f"{target.name} does not answer", reason=Reason(state["unreachable"]))
        if state["sha1_only"] and target.account.algorithms is not SSHAlgorithms.LEGACY:
            raise Unreachable(f"{target.name} speaks SHA-1 only")
        assert target.account.host_key_policy is HostKeyPolicy.TRUST_ON_FIRST_USE
        shown = f"ssh-ed25519 {state['host_key']}"
        fingerprint = fingerprint_of(state["host_key"])
        if target.pinned_host_key not in (None, shown) and target.accepted_fingerprint != fingerprint:
            raise HostKeyRejected(f"{target.name} shows another host key, {fingerprint}", fingerprint=fingerprint)
        return SeenHostKey("ssh-ed25519", fingerprint, shown)

    def _report(self, name: str, operation: str) -> OperationReport | None:
        state = self.fleet.state(name)
        one = next((one for one in state["operations"] if one["id"] == operation), None)
        if one is None:
            return None
        now = time.time()
        if now >= one["ends"]:
            return _final(name, one)
        share = (now - one["begun"]) / (one["ends"] - one["begun"])
        _, phase, step = next(found for found in reversed(PHASES) if share >= found[0])
        running = StepReport(step, done=False, failed=False, seconds=0.0)
        if phase is JournalPhase.STAGING:
            sent = int(SENT_BYTES * share / PHASES[1][0])
            running = replace(running, bytes_sent=sent, bytes_total=SENT_BYTES)
        return OperationReport(
            id=operation,
            revision=one["revision"],
            phase=phase,
            step=step,
            steps=(running,),
            services=(),
            bytes_sent=100,
        )


def _kept(state: State) -> HostPayload | None:
    """What its hypervisor host keeps; `host` of a VM: name, md5 and scripts_revision of that."""
    if not state["host"]:
        return None
    name, md5, revision = state["host"]
    path = "/usr/share/cloudstack-common/vms/cloud-scripts.tgz"
    files = HostFiles(scripts=HostFile(path, 1, "0" * 64), agent=None, checksums={"md5": md5})
    return HostPayload(host=name, files=files, scripts_revision=revision)


def fingerprint_of(host_key: str) -> str:
    return f"SHA256:{host_key.ljust(43, '0')}"


def _final(name: str, one: State) -> OperationReport:
    phase = JournalPhase(one["outcome"])
    good = phase is JournalPhase.COMMITTED
    failed = StepReport("Services", done=False, failed=True, seconds=0.1, message=OUTPUT)
    messages = {
        JournalPhase.COMMITTED: "",
        JournalPhase.ROLLED_BACK: f"haproxy did not start: {OUTPUT}; {name} is as it was before",
        JournalPhase.ABANDONED: f"nothing was changed on {name}",
        JournalPhase.INCONSISTENT: f"haproxy did not start, and going back failed on {name}",
    }
    reasons = {
        JournalPhase.COMMITTED: None,
        JournalPhase.ROLLED_BACK: Reason.SERVICE_FAILED,
        JournalPhase.ABANDONED: Reason.DISK_FULL,
        JournalPhase.INCONSISTENT: Reason.INCONSISTENT,
    }
    return OperationReport(
        id=one["id"],
        revision=one["revision"],
        phase=phase,
        step="Commit" if good else "Services",
        steps=(StepReport("Commit", done=True, failed=False, seconds=0.1),) if good else (failed,),
        services=(ServiceReport("haproxy", "Reload", 0.0),),
        bytes_sent=1234,
        reason=reasons[phase],
        message=messages[phase],
        started_at=datetime.fromtimestamp(one["begun"], UTC),
        finished_at=datetime.fromtimestamp(one["ends"], UTC),
    )
