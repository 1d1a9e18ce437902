"""Which VMs a policy speaks of, and whose VM it is when two policies want it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sysvm.api.policy import PatchPolicy, Selector
from sysvm.api.systemvm import Identity
from sysvm.domain.facts import VMFacts


@dataclass(frozen=True, slots=True)
class Conflict:
    """A VM that the policy wants and an older one keeps."""

    vm: str
    """Name in CloudStack."""
    owner: str
    """Name of the older policy."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The VMs of one policy."""

    vms: tuple[VMFacts, ...]
    """Its own, excluded ones included, by name."""
    excluded: dict[str, str]
    """SystemVM name -> reason that the policy gives (perhaps empty)."""
    conflicts: tuple[Conflict, ...]
    """Wanted, but another's: skipped."""

    @property
    def conflict_sentence(self) -> str:
        """Names up to ten VMs; empty without a conflict."""
        raise NotImplementedError


def matches(selector: Selector, identity: Identity) -> bool:
    """Whether types, zones and names fit; exclusions are not looked at. Names know * and ? and nothing else."""
    raise NotImplementedError


def exclusion(selector: Selector, identity: Identity) -> str | None:
    """The reason that the policy gives for leaving the VM alone (perhaps empty), None if it does not."""
    raise NotImplementedError


def owner_of(facts: VMFacts, policies: Iterable[PatchPolicy]) -> PatchPolicy | None:
    """The policy that decides about the VM: the oldest that selects it (creationTimestamp, then name).

    A policy that excludes the VM leaves it to others; it is the owner only if no other wants it. Policies that are
    being deleted own nothing.
    """
    raise NotImplementedError


def select(policy: PatchPolicy, policies: Sequence[PatchPolicy], vms: Iterable[VMFacts]) -> Selection:
    """The VMs of the policy's endpoint that are its own. `policies`: all of the namespace, itself included or not."""
    raise NotImplementedError
