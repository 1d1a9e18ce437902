"""One look at a VM: the questions, in the order in which each answer makes the next one possible.

Both halves of this layer begin with it: observing reports it, patching decides by it. Nothing on the VM changes.
"""

import asyncio
import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sysvm.api.endpoint import SystemVMType
from sysvm.api.observed import PairGateway, PairSample, RedundancyRole, RuleKind
from sysvm.api.reasons import Reason
from sysvm.patching import archives, framing, protocol
from sysvm.patching.boot import CMDLINE_PATH, BootArguments, parse_boot_arguments
from sysvm.patching.diff import AGENT_TREE, SCRIPTS_TREE, Difference, Previous, compare, contents_to_read, digest_args
from sysvm.patching.errors import PayloadError
from sysvm.patching.payload import Payload
from sysvm.patching.results import (
    JournalPhase,
    Observation,
    OperationReport,
    PlannedDatabag,
    PlannedServiceAction,
    SeenHostKey,
    ServiceReport,
    ServiceState,
    StepReport,
)
from sysvm.patching.services import UnitAction, plain, service_of, units_of
from sysvm.patching.session import Session

PAYLOAD_PATH = "/usr/share/cloud/cloud-scripts.tgz"
RESTARTED_BY_MONITOR = "RestartedByMonitor"
"""Begins a note of the VM about a restart that was not ours."""
_SHOWN = 8
_SHOWN_CHARACTERS = 128
_CMDLINE_BYTES = 64 * 1024
_MERGED_FILE_BYTES = 1 << 20
_PROBE_SECONDS = 60.0
_SAMPLE_PAUSE_SECONDS = 5.0
_HEARTBEAT_SECONDS = 10.0
"""CloudStack 4.21 check_heartbeat.sh counts an older one as a strike against keepalived."""
_DIGEST_SECONDS = 180.0
_READ_SECONDS = 60.0
_ANOTHERS_SECONDS = 2.0
_KEPT_LISTINGS = 16


@dataclass
class PreviousPayloads:
    """Listings of the payloads that VMs have, by checksum: a fleet shares a few, so each is fetched once."""

    _listings: OrderedDict[str, Previous] = field(default_factory=OrderedDict)
    _reading: dict[str, asyncio.Event] = field(default_factory=dict)

    async def of(self, session: Session, checksums: Mapping[str, str]) -> Previous:
        """What the VM's own cloud-scripts.tgz lists; empty if it is missing or not to be believed."""
        name = checksums.get("sha512")
        if name is None:
            return Previous()
        if name not in self._listings and name in self._reading:
            # Another VM has the same and is asked already; a slow one keeps nobody waiting for long.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ANOTHERS_SECONDS):
                    await self._reading[name].wait()
        if name in self._listings:
            self._listings.move_to_end(name)
            return self._listings[name]
        read = self._reading.setdefault(name, asyncio.Event())
        try:
            return await self._read(session, name)
        finally:
            read.set()
            self._reading.pop(name, None)

    async def _read(self, session: Session, name: str) -> Previous:
        packed = await session.read(PAYLOAD_PATH, limit=archives.SCRIPTS_LIMITS.packed_bytes, timeout=_READ_SECONDS)
        if packed is None or hashlib.sha512(packed).hexdigest() != name:
            return Previous()
        try:
            listing, _ = await asyncio.to_thread(archives.read_scripts, packed)
        except PayloadError:
            # CloudStack installs archives that were cut (its exit codes are not checked): no file can be told by them.
            previous = Previous()
        else:
            previous = Previous({entry.path: entry for entry in listing.files})
        self._listings[name] = previous
        while len(self._listings) > _KEPT_LISTINGS:
            self._listings.popitem(last=False)
        return previous


@dataclass(frozen=True, slots=True)
class Look:
    """What was found, in the VM's own words."""

    at: datetime
    boot: BootArguments
    probe: protocol.ProbeResult
    difference: Difference | None

    def type_or(self, expected: SystemVMType) -> SystemVMType:
        return self.boot.type or expected

    @property
    def active_units(self) -> tuple[str, ...]:
        return tuple(unit["unit"] for unit in self.probe["units"] if unit["active"] == "active")

    @property
    def has_gateway(self) -> bool:
        """It is a router of a pair and has an address that keepalived moves."""
        redundancy = self.probe["redundancy"]
        last = redundancy["samples"][-1:] if redundancy is not None else ()
        return any(gateway["held"] for sample in last for gateway in sample["gateways"])

    @property
    def actions(self) -> dict[str, UnitAction]:
        """For units that are active now: one that is not is never started."""
        if self.difference is None:
            return {}
        can_hold = self.probe["abilities"]["nfnetlink_queue"]
        return self.difference.unit_actions(self.active_units, can_hold=can_hold)


async def probe_vm(session: Session, expected: SystemVMType, *, samples: int = 1) -> Look:
    """Everything but the files. `samples`: how often the role of a router of a pair is looked at, 5 s apart."""
    cmdline = await session.read(CMDLINE_PATH, limit=_CMDLINE_BYTES, timeout=_READ_SECONDS)
    boot = parse_boot_arguments(cmdline or b"")
    vm_type = boot.type or expected
    folders = ["/", SCRIPTS_TREE, "/var/lib", *([AGENT_TREE] if vm_type.runs_agent else [])]
    args: protocol.ProbeArgs = {
        "units": list(units_of(boot, vm_type)),
        "paths": folders,
        "samples": samples,
        "pause_seconds": _SAMPLE_PAUSE_SECONDS,
    }
    probe = await session.request("probe", {**args}, protocol.ProbeResult, timeout=_PROBE_SECONDS)
    return Look(at=datetime.now(UTC), boot=boot, probe=probe, difference=None)


async def compare_files(
    session: Session,
    look: Look,
    payload: Payload,
    expected: SystemVMType,
    previous_payloads: PreviousPayloads,
    *,
    known: bool = False,
) -> Look:
    """The same look with every file compared. `known`: the VM need not read what nobody has touched since it last did;
    for a scan, never for what a patch is decided by."""
    vm_type = look.type_or(expected)
    previous = await previous_payloads.of(session, look.probe["payload_checksums"])
    debian = look.probe["debian_version"]
    args = digest_args(payload, vm_type, previous, debian_version=debian)
    args["known"] = known
    result = await session.request("digest", {**args}, protocol.DigestResult, timeout=_DIGEST_SECONDS)
    if result["truncated"]:
        raise framing.ProtocolError(
            f"{SCRIPTS_TREE} or {AGENT_TREE} holds more files than a system VM has: look what fills it"
        )
    facts = {fact["path"]: fact for fact in result["facts"]}
    texts: dict[str, bytes] = {}
    for path in contents_to_read(payload, vm_type, previous, facts):
        text = await session.read(path, limit=_MERGED_FILE_BYTES, timeout=_READ_SECONDS)
        if text is not None and hashlib.sha256(text).hexdigest() == facts[path]["sha256"]:
            texts[path] = text
    states = result.get("packages", [])
    difference = compare(payload, vm_type, previous, facts, texts, debian_version=debian, states=states)
    return Look(at=look.at, boot=look.boot, probe=look.probe, difference=difference)


def observation_of(look: Look, host_key: SeenHostKey) -> Observation:
    """The look as the engine wants it."""
    probe, journal, difference = look.probe, look.probe["journal"], look.difference
    redundancy = probe["redundancy"]
    return Observation(
        at=look.at,
        host_key=host_key,
        type=look.boot.type,
        release=probe["release"],
        debian_version=probe["debian_version"],
        signature=probe["signature"],
        payload_checksums=dict(probe["payload_checksums"]),
        boot_id=probe["boot_id"],
        booted=probe["booted"],
        data_bags=None if look.boot.type is None or look.boot.type.runs_agent else probe["data_bags"],
        rules={kind: probe["rules"][kind] for kind in RuleKind if kind in probe["rules"]},
        services=tuple(_service(unit) for unit in probe["units"] if unit["load"] not in ("not-found", "masked")),
        redundancy=RedundancyRole(redundancy["role"]) if redundancy is not None else None,
        pair_samples=pair_samples(look),
        failing_health_checks=tuple(probe["failing_checks"]),
        disk_available_bytes=min((disk["available_bytes"] for disk in probe["disks"]), default=0),
        memory_available_bytes=probe["memory_available_bytes"],
        other_actors=tuple(actor["what"] for actor in probe["actors"] if actor["blocking"]),
        unfinished=operation_report(journal["unfinished"]) if journal["unfinished"] is not None else None,
        last_finished=operation_report(journal["last_finished"]) if journal["last_finished"] is not None else None,
        highest_epoch=journal["highest_epoch"],
        content=difference.scripts_report if difference is not None else None,
        agent_content=difference.agent_report if difference is not None else None,
        actions=_packages_first(difference)
        + tuple(
            PlannedServiceAction(plain(unit), action.value, _expected_loss(look, unit, action))
            for unit, action in look.actions.items()
        )
        + _rules_later(difference),
        databags=tuple(
            PlannedDatabag(bag.title, redundancy is None, bag.expected_loss)
            for bag in (difference.databags if difference is not None else ())
        ),
    )


def operation_report(
    report: protocol.Report, *, before: tuple[StepReport, ...] = (), bytes_sent: int | None = None
) -> OperationReport:
    """The journal's words as the engine's. `before`: steps only the operator saw; `bytes_sent`: what it counted."""
    phase = JournalPhase(report["phase"])
    return OperationReport(
        id=report["id"],
        revision=report["revision"],
        phase=phase,
        step=report["step"],
        steps=before + tuple(_step(step) for step in report["steps"]),
        services=tuple(_service_report(service) for service in report["services"]),
        bytes_sent=report["bytes_received"] if bytes_sent is None else bytes_sent,
        reason=Reason(report["reason"]) if report["reason"] is not None else None,
        message=_message(report),
        started_at=_time(report["started_at"]),
        finished_at=_time(report["finished_at"]) if report["finished_at"] is not None else None,
    )


def _packages_first(difference: Difference | None) -> tuple[PlannedServiceAction, ...]:
    told = difference.package_actions if difference is not None else ()
    return tuple(PlannedServiceAction(name, action.value, "none") for name, action in told[:_SHOWN])


def _rules_later(difference: Difference | None) -> tuple[PlannedServiceAction, ...]:
    """The first of them: a template that was written anew has too many to be shown."""
    told = difference.rules_later if difference is not None else ()
    return tuple(PlannedServiceAction(name, when.value, what[:_SHOWN_CHARACTERS]) for name, when, what in told[:_SHOWN])


def _message(report: protocol.Report) -> str:
    """Of an operation that did not end well: why, and what others did to its services meanwhile."""
    if not report["message"]:
        return "; ".join(report["notes"])
    return "; ".join([report["message"], *(note for note in report["notes"] if note.startswith(RESTARTED_BY_MONITOR))])


def _time(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise framing.ProtocolError(f"the VM's journal has the time {seconds!r}, which is none") from error


def _step(step: protocol.ReportStep) -> StepReport:
    return StepReport(step["name"], step["done"], step["failed"], step["seconds"], message=step["message"])


def _service_report(service: protocol.ReportService) -> ServiceReport:
    words: dict[str, str] = {action.word: action.value for action in UnitAction if action.acts}
    action = words.get(service["action"], service["action"].capitalize())
    return ServiceReport(
        plain(service["unit"]),
        f"{action} (going back)" if service["restoring"] else action,
        service["unavailable_seconds"],
        service.get("slowest_seconds"),
    )


def _service(unit: protocol.UnitState) -> ServiceState:
    return ServiceState(
        name=plain(unit["unit"]),
        load=unit["load"],
        active=unit["active"],
        sub=unit["sub"],
        enabled=unit["enabled"],
        main_pid=unit["main_pid"],
        restarts=unit["restarts"],
    )


def _expected_loss(look: Look, unit: str, action: UnitAction) -> str:
    service = service_of(unit)
    if service is None or (service.of_primary and look.probe["redundancy"] is not None and not look.has_gateway):
        return "none"
    return service.expected_loss(action)


def pair_samples(look: Look) -> tuple[PairSample, ...]:
    """The samples with times of this side's clock; the last three."""
    redundancy = look.probe["redundancy"]
    return tuple(_pair_sample(look.at, sample) for sample in (redundancy["samples"][-3:] if redundancy else ()))


def _pair_sample(at: datetime, sample: protocol.RedundancySample) -> PairSample:
    age = sample["heartbeat_age_seconds"]
    return PairSample(
        at=at - timedelta(seconds=sample["age_seconds"]),
        keepalived=sample["keepalived_active"],
        state=RedundancyRole(sample["redundant_state"]) if sample["redundant_state"] else None,
        heartbeat=age is not None and age <= _HEARTBEAT_SECONDS,
        public_up=sample["public_up"],
        conntrackd=sample["conntrackd_active"],
        conntrackd_lock=sample["conntrackd_lock"],
        flows=sample["flows"],
        replicated=sample["replicated_flows"],
        gateways=tuple(
            PairGateway(
                address=gateway["address"],
                held=gateway["held"],
                mac=gateway["mac"],
                asked=gateway["answers"] is not None,
                answers=tuple(gateway["answers"] or ()),
            )
            for gateway in sample["gateways"]
        ),
    )
