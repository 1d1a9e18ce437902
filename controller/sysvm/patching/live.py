"""Live patch of one VM from the operator's side: eleven steps, of which the VM itself carries out the last six.

`Connect Probe Diff Stage Build` are the operator's: until the end of Build nothing of the VM has changed, and giving up
is always possible. Then one request starts a detached process on the VM that does `Fence Switch Services Verify
Commit`, or `Restore`, alone; from there on the operator only watches, and after a cut, a crash or a change of leader it
asks the VM how it went. An order is carried out at most once, however often it is given.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from sysvm.api.reasons import Reason
from sysvm.patching import framing, order_words, protocol
from sysvm.patching.back import take_back
from sysvm.patching.backup import back_up
from sysvm.patching.errors import PatchingError, Refused, Unreachable
from sysvm.patching.host_sending import HostSending
from sysvm.patching.hosts import HostPayloads
from sysvm.patching.logins import LoginProof, rsa_works
from sysvm.patching.observing import (
    Look,
    PreviousPayloads,
    compare_files,
    observation_of,
    operation_report,
    probe_vm,
)
from sysvm.patching.orders import Archive, archive_of, order_for_vm
from sysvm.patching.payload import Payload
from sysvm.patching.results import (
    HostFiles,
    HostPayload,
    JournalPhase,
    Observation,
    OperationReport,
    Order,
    StepReport,
    Target,
)
from sysvm.patching.services import UnitAction
from sysvm.patching.session import RemoteFailure, Session, open_session
from sysvm.patching.ssh import Connection, SSHTransport
from sysvm.patching.staging import Transfer, batches

Progress = Callable[[OperationReport], None]

_OBSERVE_SECONDS = 300.0
_REPORT_SECONDS = 30.0
_BEGIN_SECONDS = 120.0
_GOING_BACK_SECONDS = 120.0
_BACKUP_SECONDS = 180.0
TELL_SECONDS = 1.0
"""While contents are sent, between two reports of how far they are."""
_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
_NOT_YET_RUNNING = frozenset({JournalPhase.STAGING, JournalPhase.BUILT})
"""Somebody may work on it in a session, and it ends with that session."""


@dataclass
class LivePatcher:
    """Implements `engine.ports.SystemVMs` over SSH. One for the whole operator.

    `start`: the shell command that starts the program on a VM, for tests.
    """

    transport: SSHTransport = field(default_factory=SSHTransport)
    start: str | None = None
    host_payload_seconds: float = 60.0
    """Looks at the VMs of a hypervisor host ask it for its payload at most this often."""

    def __post_init__(self) -> None:
        self._previous = PreviousPayloads()
        self.hosts = HostPayloads(self.transport.jumps)
        self.sending = HostSending() if self.start is None else None

    async def observe(self, target: Target, payload: Payload | None, *, samples: int = 1) -> Observation:
        """One look; changes nothing on the VM. With a payload every file is compared. Raises `PatchingError`."""
        try:
            async with self._conversation(target) as (connection, session), asyncio.timeout(_OBSERVE_SECONDS):
                look = await probe_vm(session, target.type, samples=samples)
                prove_name(target, look)
                if payload is not None:
                    look = await compare_files(session, look, payload, target.type, self._previous, known=True)
                found = observation_of(look, connection.host_key)
                return replace(found, host_payload=await self._seen_on_the_way(target, connection))
        except TimeoutError as error:
            raise Unreachable(
                f"{target.name} let in the login but was not looked at within {_OBSERVE_SECONDS:g} s",
                reason=Reason.SSH_TIMEOUT,
            ) from error

    async def patch(self, target: Target, payload: Payload, order: Order, progress: Progress) -> OperationReport:
        """Carries an order out, or attaches to it if the VM already knows its id. See `engine.ports.SystemVMs`."""
        attempt = _Attempt(self, target, payload, order, progress)
        deadline = time.monotonic() + order.vm_timeout_seconds + _GOING_BACK_SECONDS
        tries = 0
        while True:
            try:
                async with asyncio.timeout(max(1.0, deadline - time.monotonic())):
                    return await attempt.carry_out()
            except TimeoutError as error:
                raise _not_regained(target, order) from error
            except Unreachable as error:
                pause = _BACKOFF_SECONDS[min(tries, len(_BACKOFF_SECONDS) - 1)]
                if not attempt.known_to_vm or not error.retryable:
                    raise
                if time.monotonic() + pause >= deadline:
                    raise _not_regained(target, order) from error
            except Refused as error:
                # The session that was cut holds the VM's lock until the VM's sshd has noticed.
                pause = _BACKOFF_SECONDS[min(tries, len(_BACKOFF_SECONDS) - 1)]
                if error.reason is not Reason.LOCK_HELD or not attempt.ours or time.monotonic() + pause >= deadline:
                    raise
            tries += 1
            await asyncio.sleep(pause)

    async def take_back(self, target: Target, order: Order, operation_id: str, progress: Progress) -> OperationReport:
        """Goes back from an operation that was committed. See `patching.back`."""

        @contextlib.asynccontextmanager
        async def session() -> AsyncIterator[Session]:
            async with self._conversation(target, long=True) as (_, conversation):
                yield conversation

        return await take_back(session, target, order, operation_id, progress)

    async def back_up(self, target: Target, payload: Payload, order: Order) -> OperationReport:
        """Keeps what CloudStack's own live patch is about to change. See `engine.ports.SystemVMs`."""
        try:
            async with self._conversation(target, long=True) as (_, session), asyncio.timeout(_BACKUP_SECONDS):
                look = await probe_vm(session, target.type)
                prove_name(target, look)
                return operation_report(await back_up(session, target, payload, order, look, self._previous))
        except TimeoutError as error:
            raise Unreachable(
                f"{target.name} made no backup within {_BACKUP_SECONDS:g} s; nothing was changed",
                reason=Reason.SSH_TIMEOUT,
            ) from error

    async def report(self, target: Target, operation_id: str) -> OperationReport | None:
        """What the VM knows of an operation; None if it never heard of it."""
        async with self._conversation(target) as (_, session):
            known = await ask_report(session, operation_id)
        return operation_report(known) if known is not None else None

    async def _seen_on_the_way(self, target: Target, connection: Connection) -> HostPayload | None:
        """A host that cannot say it is no reason to know nothing of the VM; before a patch it is asked again."""
        try:
            return await self.host_payload(target, connection, max_age_seconds=self.host_payload_seconds)
        except PatchingError:
            return None

    async def host_payload(
        self, target: Target, connection: Connection, *, max_age_seconds: float
    ) -> HostPayload | None:
        """What the hypervisor host on the way keeps for its VMs; None: there is no host, or it keeps nothing."""
        hop = connection.hop
        if hop is None or target.through is None:
            return None
        hypervisor = target.through.hypervisor
        return await self.hosts.payload(hop.place, hop.login, hypervisor, max_age_seconds=max_age_seconds)

    @contextlib.asynccontextmanager
    async def _conversation(
        self, target: Target, *, long: bool = False, moved: bool = False
    ) -> AsyncIterator[tuple[Connection, Session]]:
        async with (
            self.transport.connect(target, long=long, moved=moved) as connection,
            open_session(connection.ssh, target.name, self.start) as session,
        ):
            yield connection, session

    def conversation(
        self, target: Target, *, moved: bool = False
    ) -> contextlib.AbstractAsyncContextManager[tuple[Connection, Session]]:
        """For work. `moved`: contact was lost, so the VM is looked for anew."""
        return self._conversation(target, long=True, moved=moved)

    async def close(self) -> None:
        """Closes the connections to hypervisor hosts, which outlive what passes through them."""
        await self.transport.close()

    @property
    def previous_payloads(self) -> PreviousPayloads:
        return self._previous


def prove_name(target: Target, look: Look) -> None:
    """Behind hypervisor hosts the same address is another VM on every host, so the VM must say that it is the one.

    Not asked of a VM that is reached directly: there a person may have given it a name of his own. Raises
    `Unreachable`: the VM that was meant was not reached.
    """
    name = look.boot.name
    if target.through is None or name == target.name:
        return
    answers = f"{name} answers" if name else "a machine answers that has no name in CloudStack's boot arguments"
    raise Unreachable(
        f"{target.name} was looked for at {target.address} behind its hypervisor host, and {answers} there. Nothing "
        "was changed. Is the address right, and does the VM run on that host?",
        reason=Reason.WRONG_VM,
    )


async def ask_report(session: Session, operation_id: str) -> protocol.Report | None:
    args: protocol.ReportArgs = {"id": operation_id}
    result = await session.request("report", {**args}, protocol.ReportResult, timeout=_REPORT_SECONDS)
    return result["report"]


def _not_regained(target: Target, order: Order) -> Unreachable:
    return Unreachable(
        f"Contact with {target.name} was lost during operation {order.id} and not regained within its time. The VM "
        "ends the operation alone, wholly new or wholly old; the next look at it tells which.",
        reason=Reason.CONNECTION_LOST,
    )


class _Attempt:
    """One order, over as many connections as it takes."""

    def __init__(
        self, patcher: LivePatcher, target: Target, payload: Payload, order: Order, progress: Progress
    ) -> None:
        self.known_to_vm = False
        """The VM may have heard of the order: from here on silence does not mean that nothing happens."""
        self.ours = False
        """The VM has said that it has this operation."""
        self._patcher = patcher
        self._target = target
        self._payload = payload
        self._order = order
        self._progress = progress
        self._steps: list[StepReport] = []
        self._bytes_before = 0
        self._started_at = datetime.now(UTC)
        self._last: OperationReport | None = None
        self._rsa_before = False
        self._connected_before = False

    async def carry_out(self) -> OperationReport:
        """One connection. Returns the end of the operation, or raises."""
        self._steps = []
        began = time.monotonic()
        moved, self._connected_before = self._connected_before, True
        async with self._patcher.conversation(self._target, moved=moved) as (connection, session):
            try:
                self._note("Connect", began, session.bytes_sent)
                return await self._converse(session, connection)
            finally:
                self._bytes_before += session.bytes_sent

    async def _converse(self, session: Session, connection: Connection) -> OperationReport:
        known = await ask_report(session, self._order.id)
        if known is not None:
            self.known_to_vm = self.ours = True
            if JournalPhase(known["phase"]).is_final:
                return self._result(known, session)
            if known["alive"] and JournalPhase(known["phase"]) not in _NOT_YET_RUNNING:
                return await self._attach(session)
        work = _Work(session, connection)
        for name, step in OPERATOR_STEPS:
            ended = await self._step(name, step, work)
            if ended is not None:
                return ended
        return await self._run(session)

    async def _step(self, name: str, step: "StepFunction", work: "_Work") -> OperationReport | None:
        """One of the operator's steps. Returns a report if the operation has ended with it."""
        session, began, sent = work.session, time.monotonic(), work.session.bytes_sent
        try:
            ended = await step(self, work)
        except RemoteFailure as failure:
            return await self._give_up(name, failure, began, work)
        self._note(name, began, session.bytes_sent - sent, work.message)
        self._tell(JournalPhase.STAGING if name != "Build" else JournalPhase.BUILT, name, session)
        work.message = ""
        return ended

    async def _give_up(self, name: str, failure: RemoteFailure, began: float, work: "_Work") -> OperationReport:
        """Before `run` nothing of the VM has changed. What was begun is taken back, what was not is refused."""
        if not work.begun:
            raise Refused(str(failure), reason=failure.reason, retryable=failure.retryable) from failure
        args: protocol.AbandonArgs = {"id": self._order.id}
        with contextlib.suppress(RemoteFailure):
            await work.session.request("abandon", {**args}, protocol.Bye, timeout=_REPORT_SECONDS)
        self._steps.append(
            StepReport(name, done=False, failed=True, seconds=time.monotonic() - began, message=str(failure))
        )
        report = self._operator_report(JournalPhase.ABANDONED, name, work.session)
        return replace(report, reason=failure.reason, message=str(failure), finished_at=datetime.now(UTC))

    async def probe(self, work: "_Work") -> None:
        work.look = await probe_vm(work.session, self._target.type)
        prove_name(self._target, work.look)
        found = work.look.boot.type
        if found is None:
            raise Refused(
                f"{self._target.name} has no boot arguments of CloudStack with a type, so it is not known what it is: "
                "nothing was changed. Is the address right?",
                reason=Reason.NOT_A_SYSTEM_VM,
                retryable=False,
            )
        if found is not self._target.type:
            raise Refused(
                f"{self._target.name} says that it is a {found.value}, and the inventory that it is a "
                f"{self._target.type.value}: nothing was changed. Correct the type or the address.",
                reason=Reason.TYPE_MISMATCH,
                retryable=False,
            )

    async def diff(self, work: "_Work") -> None:
        look = await compare_files(
            work.session, work.probed, self._payload, self._target.type, self._patcher.previous_payloads
        )
        if look.difference is None:
            raise framing.ProtocolError("a comparison has no result")
        work.look = look
        for obstacle in look.difference.obstacles:
            raise Refused(
                f"{self._target.name} cannot take this release while it runs: {obstacle.message}; nothing was changed.",
                reason=obstacle.reason,
                retryable=False,
            )
        if look.has_gateway and look.actions.get("keepalived") is UnitAction.RESTART and not self._order.may_fail_over:
            raise Refused(
                f"{self._target.name} is the PRIMARY of its pair and its keepalived must be restarted, which is a "
                "failover, and livePatch.plannedFailover is Never: nothing was changed.",
                reason=Reason.FAILOVER_NOT_ALLOWED,
                retryable=False,
            )
        work.contents = dict(look.difference.contents)
        archive = await self._archive_to_keep(work)
        if archive.sha256 != self._payload.scripts_sha256:
            work.contents[archive.sha256] = archive.content
        work.order = order_for_vm(self._order, self._target, self._payload, look, archive)
        if any("login_seconds" in service for service in work.order["services"]):
            self._rsa_before = await rsa_works(self._patcher.transport, self._target)
        if look.difference.kept:
            work.message = f"Kept because the VM edits them: {', '.join(look.difference.kept)}"

    async def _archive_to_keep(self, work: "_Work") -> Archive:
        """The archive whose copy and checksum the VM gets. Where the host's has the same content it is the host's, so
        that a start, the command gate and CloudStack's own patch find what they compare with."""
        ours = archive_of(self._payload)
        connection = work.connection
        if connection is None or connection.hop is None:
            return ours
        found = await self._patcher.host_payload(self._target, connection, max_age_seconds=0.0)
        if found is None:
            return ours
        if found.scripts_revision != self._payload.scripts_revision:
            if not self._order.same_as_host:
                return ours
            raise Refused(
                f"Hypervisor host {found.host} of {self._target.name} keeps another payload than this release, which a "
                "stop and start of the VM would install, and livePatch.hostPayload is Require: nothing was changed.",
                reason=Reason.HOST_PAYLOAD_MISMATCH,
                retryable=False,
            )
        work.host_files = found.files
        scripts = found.files.scripts
        if scripts.sha256 == ours.sha256:
            return ours
        hop = connection.hop
        packed = await self._patcher.hosts.scripts_archive(hop.place, hop.login, scripts)
        return Archive(packed, scripts.sha256, found.files.checksums[self._payload.signature_algorithm])

    async def stage(self, work: "_Work") -> OperationReport | None:
        args: protocol.BeginArgs = {"order": work.ready_order}
        # From the moment it is sent, an answer that does not come proves nothing.
        self.known_to_vm = True
        begun = await work.session.request("begin", {**args}, protocol.BeginResult, timeout=_BEGIN_SECONDS)
        if begun["state"] == "finished" and begun["report"] is not None:
            return self._result(begun["report"], work.session)
        if begun["state"] == "running":
            report = begun["report"]
            if report is None or JournalPhase(report["phase"]) in _NOT_YET_RUNNING:
                raise Unreachable(
                    f"An earlier session still holds operation {self._order.id} on {self._target.name}",
                    reason=Reason.INTERRUPTED,
                )
            return await self._attach(work.session)
        work.begun = self.ours = True
        missing, from_host = await self._sent_by_host(work, tuple(begun["missing"]))
        transfer = await asyncio.to_thread(lambda: Transfer(list(batches(self._payload, work.contents, missing))))
        telling = self._telling(transfer, work.session)
        seconds = self._order.step_timeout_seconds
        requests = transfer.requests(self._payload, telling)
        await work.session.request_all("stage", requests, protocol.StageResult, timeout=seconds)
        work.message = f"{from_host}{len(missing)} contents, {transfer.total_bytes} bytes"
        return None

    async def _sent_by_host(self, work: "_Work", missing: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
        """What is missing once the VM's hypervisor host has sent what it holds of the release, and how that went."""
        hop, files = work.connection.hop if work.connection is not None else None, work.host_files
        payload = work.ready_order["payload"]
        sending = self._patcher.sending
        if hop is None or files is None or sending is None:
            return missing, ""
        parcel = await sending.parcel(self._payload, files, payload["sha256"] if payload is not None else "", missing)
        if parcel.size < sending.worth_bytes:
            return missing, ""
        seconds = self._order.step_timeout_seconds / 2
        left, why_not = await sending.send(work.session, hop, self._target, self._order.id, parcel, seconds=seconds)
        came = len(set(missing) - set(left))
        if why_not:
            return left, f"{hop.name} sent {came} contents itself and no more ({why_not}); "
        return left, f"{came} contents, {parcel.size} bytes from {hop.name} itself; "

    def _telling(self, transfer: Transfer, session: Session) -> Callable[[], None]:
        """To be called while contents are sent: says now and then how far they are."""
        began = told = time.monotonic()
        total = transfer.total_bytes

        def tell() -> None:
            nonlocal told
            now = time.monotonic()
            if now - told < TELL_SECONDS:
                return
            told = now
            step = StepReport("Stage", False, False, round(now - began, 3), transfer.sent_bytes, bytes_total=total)
            report = self._operator_report(JournalPhase.STAGING, "Stage", session)
            self._progress(replace(report, steps=(*report.steps, step)))

        return tell

    async def build(self, work: "_Work") -> None:
        args: protocol.BuildArgs = {}
        built = await work.session.request(
            "build", {**args}, protocol.BuildResult, timeout=self._order.step_timeout_seconds
        )
        work.message = "; ".join([f"{built['changes']} paths change", *built["notes"]])

    async def _run(self, session: Session) -> OperationReport:
        args: protocol.RunArgs = {"id": self._order.id}
        try:
            result = await self._follow(session, "run", {**args})
        except RemoteFailure as failure:
            known = await ask_report(session, self._order.id)
            if known is not None and (failure.changed or JournalPhase(known["phase"]).is_final):
                return self._end(known, session)
            return await self._give_up("Fence", failure, time.monotonic(), _Work(session, begun=True))
        return self._end(result["report"], session)

    async def _attach(self, session: Session) -> OperationReport:
        args: protocol.AttachArgs = {"id": self._order.id}
        result = await self._follow(session, "attach", {**args})
        return self._end(result["report"], session)

    async def _follow(
        self, session: Session, verb: Literal["run", "attach"], args: dict[str, object]
    ) -> protocol.RunResult:
        """Watch the VM work, and log in anew where it waits for that."""
        transport = self._patcher.transport
        start = self._patcher.start
        proof = LoginProof(transport, self._target, self._order.id, start, rsa_before=self._rsa_before)
        on_report = self._on_report(session)

        def saw(report: protocol.Report) -> None:
            proof.saw(report)
            on_report(report)

        async with proof:
            return await session.request(verb, args, protocol.RunResult, timeout=self._watch_seconds, on_report=saw)

    def _end(self, report: protocol.Report, session: Session) -> OperationReport:
        """Raises `Unreachable` where nobody works on it any more: a later `begin` or the boot brings it to its end."""
        if not JournalPhase(report["phase"]).is_final:
            raise Unreachable(
                f"Operation {self._order.id} on {self._target.name} was interrupted at {report['step']}",
                reason=Reason.INTERRUPTED,
            )
        return self._result(report, session)

    @property
    def _watch_seconds(self) -> float:
        return self._order.vm_timeout_seconds + _GOING_BACK_SECONDS

    def _on_report(self, session: Session) -> Callable[[protocol.Report], None]:
        def on_report(report: protocol.Report) -> None:
            self._progress(self._result(report, session))

        return on_report

    def _result(self, report: protocol.Report, session: Session) -> OperationReport:
        sent = self._bytes_before + session.bytes_sent
        found = operation_report(report, bytes_sent=max(sent, report["bytes_received"]))
        ours = {step.name: step for step in self._steps}
        # Both ends know Stage and Build; the operator's entry has the bytes and how they came, the VM's the verdict.
        theirs = tuple(_both(step, ours[step.name]) if step.name in ours else step for step in found.steps)
        names = {step.name for step in theirs}
        before = tuple(step for step in self._steps if step.name not in names)
        return replace(found, steps=before + theirs)

    def _note(self, name: str, began: float, bytes_sent: int, message: str = "") -> None:
        seconds = round(time.monotonic() - began, 3)
        self._steps.append(StepReport(name, True, False, seconds, bytes_sent=bytes_sent, message=message))

    def _tell(self, phase: JournalPhase, step: str, session: Session) -> None:
        self._progress(self._operator_report(phase, step, session))

    def _operator_report(self, phase: JournalPhase, step: str, session: Session) -> OperationReport:
        return OperationReport(
            id=self._order.id,
            revision=self._payload.revision,
            phase=phase,
            step=step,
            steps=tuple(self._steps),
            services=(),
            bytes_sent=self._bytes_before + session.bytes_sent,
            started_at=self._started_at,
        )


def _both(theirs: StepReport, ours: StepReport) -> StepReport:
    return replace(theirs, bytes_sent=ours.bytes_sent, message=theirs.message or ours.message)


@dataclass
class _Work:
    """What the operator's steps hand on to each other within one connection."""

    session: Session
    connection: Connection | None = None
    look: Look | None = None
    order: order_words.Order | None = None
    contents: dict[str, bytes] = field(default_factory=dict)
    host_files: HostFiles | None = None
    """What the hypervisor host on the way holds, if that is this release."""
    begun: bool = False
    message: str = ""

    @property
    def probed(self) -> Look:
        if self.look is None:
            raise PatchingError("Diff before Probe")
        return self.look

    @property
    def ready_order(self) -> order_words.Order:
        if self.order is None:
            raise PatchingError("Stage before Diff")
        return self.order


StepFunction = Callable[[_Attempt, _Work], Awaitable[OperationReport | None]]

OPERATOR_STEPS: tuple[tuple[str, StepFunction], ...] = (
    ("Probe", _Attempt.probe),
    ("Diff", _Attempt.diff),
    ("Stage", _Attempt.stage),
    ("Build", _Attempt.build),
)
"""Between Connect and the one request after which the VM goes on alone."""
