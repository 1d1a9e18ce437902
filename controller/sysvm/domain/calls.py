"""What is said of a call to the management server: what it is, what happened to it, and what a method says about it.

The words that the state machine (`group_operation`), the methods that judge for it, and the client that asks for it
have in common.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from sysvm.api.methods import Method, Route
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation
from sysvm.domain.cloud import CloudHost, CloudVM, CloudZone
from sysvm.domain.facts import VMFacts
from sysvm.domain.room import Room
from sysvm.domain.rule_counts import ListedRules
from sysvm.domain.templates import CloudTemplates


class Command(StrEnum):
    """Commands of the management server that change VMs, as the API spells them."""

    REBOOT_ROUTER = "rebootRouter"
    REBOOT_SYSTEM_VM = "rebootSystemVm"
    DESTROY_SYSTEM_VM = "destroySystemVm"
    RESTART_NETWORK = "restartNetwork"
    RESTART_VPC = "restartVPC"
    PATCH_SYSTEM_VM = "patchSystemVm"


@dataclass(frozen=True, slots=True)
class Call:
    """One asynchronous call."""

    command: Command
    id: str
    """Of the VM, network or VPC."""
    flags: tuple[str, ...] = ()
    """Parameters that are true: forced, cleanup, livepatch."""

    def __str__(self) -> str:
        return " ".join([str(self.command), f"id={self.id}", *(f"{flag}=true" for flag in self.flags)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that the server has not ended."""

    id: str
    command: str = ""
    """Class of the command without its package, such as RestartNetworkCmd."""
    instance_id: str | None = None
    """What it works on; not told for every command (`jobs_at_work`)."""
    created: datetime | None = None
    """By the server's clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """A group as it is now: listed for this purpose, never from a sweep of minutes ago."""

    taken_at: datetime
    vms: tuple[CloudVM, ...]
    """All VMs of the group, in any state; those that the operation replaces and those that replace them."""
    jobs: tuple[Job, ...] = ()
    """Jobs that may be at work on the group."""
    zone: CloudZone | None = None
    hosts: tuple[CloudHost, ...] = ()
    """Hypervisor hosts of the zone."""
    room: Room = field(default_factory=Room)
    """What the zone has left; only looked at before the call."""
    templates: CloudTemplates | None = None
    """What VMs could be started from; only looked at before the call."""
    rules: ListedRules | None = None
    """Tenants' rules that the server lists for the group; None: not asked."""
    known: tuple[VMFacts, ...] = ()
    """What was seen on these VMs over SSH. `identity.name` is the VM's name."""

    def facts(self, vm: CloudVM) -> VMFacts | None:
        return next((facts for facts in self.known if facts.vm == vm.name and not facts.deleting), None)


def is_call(method: Method, route: Route | None) -> bool:
    """Whether the management server carries it out, and not the VM."""
    return method in (Method.REBOOT, Method.RECREATE) or route is Route.API


# What happened


@dataclass(frozen=True, slots=True)
class Submitted:
    """The server took the call."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The server, or our own last look before the call, said no: nothing was begun."""

    reason: Reason
    sentence: str


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The call left and no answer came, or the process ended in between: unknown whether it was made."""

    sentence: str


@dataclass(frozen=True, slots=True)
class NotMade:
    """The call was not sent, because right before it something was not as it should be."""

    sentence: str


@dataclass(frozen=True, slots=True)
class NotTold:
    """The server did not answer a question; nothing follows from that."""

    sentence: str


class JobState(StrEnum):
    PENDING = "Pending"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    LOST = "Lost"
    """Cut by a restart of the server, or not known there any more: what it did must be looked at."""


@dataclass(frozen=True, slots=True)
class JobTold:
    """What the server says of the job."""

    state: JobState
    sentence: str = ""
    """The server's text."""


@dataclass(frozen=True, slots=True)
class Looked:
    """The group was listed."""

    look: Look


Event = Submitted | Refused | NoAnswer | NotMade | NotTold | JobTold | Looked


# What a method says


class Standing(StrEnum):
    HOLDS = "Holds"
    NOT_YET = "NotYet"
    BROKEN = "Broken"
    """Waiting does not help."""
    NEEDLESS = "Needless"
    """Before the call: everything is as it should be without it."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something holds, and if not, why."""

    standing: Standing
    reason: Reason | None = None
    sentence: str = ""
    """Of one that holds: what could not be verified."""


HOLDS = Verdict(Standing.HOLDS)


def not_yet(reason: Reason, sentence: str) -> Verdict:
    return Verdict(Standing.NOT_YET, reason, sentence)


def broken(reason: Reason, sentence: str) -> Verdict:
    return Verdict(Standing.BROKEN, reason, sentence)


class Judge(Protocol):
    """What one method asks of the machine. Pure: it is asked again after every restart."""

    def call(self, operation: GroupOperation) -> Call:
        """The call, from what is stored."""
        ...

    def before(self, operation: GroupOperation, look: Look) -> Verdict:
        """Whether the call may be made now. NotYet: it is looked at again until the time of a step is over. Needless:
        it is not made, and that is success."""
        ...

    def is_done(self, look: Look, vm: CloudVM) -> bool:
        """Whether the VM has what the call brings: kept from right before it (`GroupVM.done`), because what was there
        before is no effect."""
        ...

    def changed(self, operation: GroupOperation, look: Look) -> bool | None:
        """Whether the call has had an effect: asked when nothing moves any more. None: that cannot be told yet."""
        ...

    def after(self, operation: GroupOperation, look: Look) -> Verdict:
        """Whether everything is as it should be. NotYet: it is looked at again until the time of a VM is over."""
        ...
