"""How a VM's difference is closed: an ordered list of small checkers, the first that has something to say decides.

Each says whether something is required, by which method, why for programs and why for people; that sentence is written
here once and shown in the plan, the SystemVM and the policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sysvm.api.policy import AllowedMethod, Method
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import DriftKind
from sysvm.domain.drift import Drift, drift_of
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.versions import Verdict


@dataclass(frozen=True, slots=True)
class Context:
    """What a checker may look at."""

    facts: VMFacts
    release: Release
    drift: Drift
    verdict: Verdict
    methods: tuple[AllowedMethod, ...]
    heal: bool
    """Whether a VM that was at the release and no longer is may be put back."""
    excluded: str | None
    """Reason that the policy gives for leaving it alone; None: not excluded."""


@dataclass(frozen=True, slots=True)
class Finding:
    method: Method
    reason: Reason
    sentence: str
    undecided: bool = False
    """The VM must be looked at again before anything can be said."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one VM and why."""

    method: Method
    """LivePatch, Hold (something should be done and is not), None (nothing to do, or not known yet)."""
    reason: Reason
    message: str
    drift: Drift
    warnings: tuple[str, ...] = ()
    undecided: bool = False
    """Not known yet: the VM must be observed, or compared with this release."""

    @property
    def kinds(self) -> tuple[DriftKind, ...]:
        """The drift in a fixed order, for statuses and plans."""
        return tuple(kind for kind in DriftKind if kind in self.drift.kinds)

    @property
    def converged(self) -> bool:
        return self.method is Method.NONE and self.drift.converged


Checker = Callable[[Context], Finding | None]


def decide(
    facts: VMFacts,
    release: Release,
    *,
    methods: Sequence[AllowedMethod] = (AllowedMethod.LIVE_PATCH,),
    heal: bool = False,
    excluded: str | None = None,
) -> Decision:
    """The decision for one VM. `excluded`: the reason (perhaps empty) if the policy leaves it alone."""
    raise NotImplementedError
