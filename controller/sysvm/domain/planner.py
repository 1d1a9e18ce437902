"""The plan of a rollout: every VM of a policy with its decision and the order of those that get work.

A pure function, canonical to the byte: the same VMs in any order give the same JSON, the same digest and the same gzip,
so that a restart makes the same ConfigMap again and an approval can sign it.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from sysvm.api.base import ApiModel
from sysvm.api.policy import Method, PatchPolicySpec
from sysvm.api.systemvm import DriftKind
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.method import Decision

REST = "rest"
"""Name of the only wave there is for now."""


class PlannedVM(ApiModel):
    """One VM in the plan."""

    name: str
    """Name of the SystemVM."""
    uid: str
    vm: str
    """Name in CloudStack."""
    group: str | None = None
    drift: tuple[DriftKind, ...] = ()
    method: Method
    reason: str
    message: str = ""
    warnings: tuple[str, ...] = ()


class Wave(ApiModel):
    """A slice of the rollout."""

    name: str
    members: tuple[str, ...]
    """SystemVM names in the order of work: groups together, BACKUP first, then priority and name."""
    digest: Annotated[str, Field(pattern="^sha256:[a-f0-9]{64}$")]
    """Of its members' entries in order: another member or another decision is another wave."""


class Plan(ApiModel):
    """What was decided."""

    policy: str
    endpoint: str
    release: Release
    applicable: int
    """VMs that percentages count: selected, not excluded, not on hold."""
    entries: tuple[PlannedVM, ...]
    """Every selected VM, by name."""
    waves: tuple[Wave, ...]

    @property
    def members(self) -> tuple[str, ...]:
        """SystemVM names that get work, in order."""
        return tuple(name for wave in self.waves for name in wave.members)

    @property
    def is_empty(self) -> bool:
        """Nothing to do: no rollout is needed."""
        return not self.members

    def entry(self, name: str) -> PlannedVM:
        """The entry of a SystemVM. Raises KeyError."""
        raise NotImplementedError

    def canonical(self) -> bytes:
        """JSON with sorted keys, no spaces, UTF-8."""
        raise NotImplementedError

    @property
    def digest(self) -> str:
        """`sha256:...` of the canonical JSON."""
        raise NotImplementedError

    def encode(self) -> bytes:
        """gzip of the canonical JSON, the same bytes every time: goes into the ConfigMap's binaryData."""
        raise NotImplementedError

    @classmethod
    def decode(cls, data: bytes, digest: str | None = None) -> "Plan":
        """The inverse. Raises UnreadablePlanError, also if the digest is given and differs."""
        raise NotImplementedError


class UnreadablePlanError(ValueError):
    """The bytes are no plan, or not the one that was signed."""


def decide_all(
    spec: PatchPolicySpec, release: Release, vms: Sequence[VMFacts], *, excluded: Mapping[str, str], retry: bool = False
) -> dict[str, Decision]:
    """SystemVM name -> decision, for all VMs of a policy (`selection.select`). `retry`: a person asked for another try
    (a changed spec or retryAt), which also puts back VMs that were at the release and no longer are."""
    raise NotImplementedError


def plan(
    policy_name: str,
    spec: PatchPolicySpec,
    release: Release,
    vms: Sequence[VMFacts],
    *,
    excluded: Mapping[str, str],
    retry: bool = False,
) -> Plan:
    """The plan for the VMs of a policy (`selection.select`). Undecided VMs get no work: wait for them first."""
    raise NotImplementedError
