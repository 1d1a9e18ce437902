"""What differs between a VM and a release.

Content decides, not the checksum of an archive: builds of the same files differ per distribution. The signature tells
what the VM claims, the comparison of files what is true; where they disagree, that is a finding of its own.
"""

from dataclasses import dataclass, field
from datetime import datetime

from sysvm.api.observed import ContentState
from sysvm.api.operation import OperationResult
from sysvm.api.reasons import Reason
from sysvm.api.systemvm import DriftKind
from sysvm.domain.facts import Release, VMFacts, is_partial, signature_contradicts_payload
from sysvm.domain.host_payload import is_build_of
from sysvm.domain.running import failed_services
from sysvm.domain.versions import is_older


@dataclass(frozen=True, slots=True)
class Drift:
    """The difference, as far as it is known."""

    kinds: frozenset[DriftKind] = frozenset()
    """What live patch would close, and Template, which it cannot, where the policy requires the release's."""
    notes: frozenset[Reason] = field(default=frozenset())
    """Findings beside it: NotObserved, NotCompared, ContentStale (then nothing is certain); PartialPatch,
    SignatureMismatch, SignatureOnly, TemplateOutdated; ServicesFailed, RulesLost, NoSinglePrimary."""
    was_at_release: bool = False
    """It differs although it was at this release before: by what its signature says, or because we brought it there."""

    @property
    def certain(self) -> bool:
        """The files were compared with this release, recently enough."""
        return not self.notes & {Reason.NOT_OBSERVED, Reason.NOT_COMPARED, Reason.CONTENT_STALE}

    @property
    def converged(self) -> bool:
        """Known to be at the release. A VM whose files were never compared is not."""
        return self.certain and not self.kinds


def drift_of(facts: VMFacts, release: Release) -> Drift:
    """Compares the last look with the release.

    | files against the release | signature = release's | differs | zeros, empty, missing |
    |---|---|---|---|
    | match | nothing | SignatureOnly: nothing to do | Scripts, PartialPatch |
    | differ | Content | Scripts | Scripts, PartialPatch |
    | never compared, another release, stale | unknown | unknown | unknown |

    A signature that does not belong to the VM's own tgz is SignatureMismatch, and Scripts even if the files match.
    Files that match and a service that has failed, rules that were lost, or a pair without exactly one PRIMARY, are
    Services.
    """
    observed = facts.observed
    if observed is None:
        return Drift(notes=frozenset({Reason.NOT_OBSERVED}))
    notes: set[Reason] = set()
    if observed.template and is_older(observed.template.version, release.version):
        notes.add(Reason.TEMPLATE_OUTDATED)
    if is_partial(observed.signature):
        notes.add(Reason.PARTIAL_PATCH)
    elif signature_contradicts_payload(observed):
        notes.add(Reason.SIGNATURE_MISMATCH)
    unknown = _why_unknown(facts, release)
    if unknown is not None:
        return Drift(notes=frozenset(notes | {unknown}))
    same_files = observed.content is not None and observed.content.state is ContentState.MATCHES
    same_signature = observed.signature is not None and (
        observed.signature.value == release.signature.value or is_build_of(facts, release)
    )
    template = {DriftKind.TEMPLATE} if release.template_required and Reason.TEMPLATE_OUTDATED in notes else set()
    if same_files and not notes & {Reason.PARTIAL_PATCH, Reason.SIGNATURE_MISMATCH}:
        return _running(facts, notes if same_signature else notes | {Reason.SIGNATURE_ONLY}, template)
    kind = DriftKind.CONTENT if same_signature and not same_files else DriftKind.SCRIPTS
    return Drift(
        kinds=frozenset({kind, *template}),
        notes=frozenset(notes),
        was_at_release=same_signature or facts.was_brought_to(release.revision),
    )


def is_converged(facts: VMFacts, release: Release) -> bool:
    """`drift_of(...).converged`, at once where the files do not match: asked of every VM at every step of admission."""
    content = facts.observed.content if facts.observed else None
    if content is None or content.state is not ContentState.MATCHES or content.revision != release.revision:
        return False
    return drift_of(facts, release).converged


def _running(facts: VMFacts, notes: set[Reason], template: set[DriftKind]) -> Drift:
    """Every file is right: what is left is whether it runs."""
    troubles: set[Reason] = set()
    if failed_services(facts):
        troubles.add(Reason.SERVICES_FAILED)
    if facts.rules_lost:
        troubles.add(Reason.RULES_LOST)
    if facts.pair_trouble:
        troubles.add(Reason.NO_SINGLE_PRIMARY)
    kinds = frozenset({DriftKind.SERVICES, *template} if troubles else template)
    return Drift(kinds=kinds, notes=frozenset(notes | troubles), was_at_release=bool(troubles))


def _why_unknown(facts: VMFacts, release: Release) -> Reason | None:
    content = facts.observed.content if facts.observed else None
    if content is None or content.state is ContentState.UNKNOWN or content.revision != release.revision:
        return Reason.NOT_COMPARED
    if _changed_since(facts, content.observed_at):
        return Reason.NOT_COMPARED
    return None if facts.content_fresh else Reason.CONTENT_STALE


def _changed_since(facts: VMFacts, compared_at: datetime | None) -> bool:
    """An operation changed the files after they were compared. One that failed cleanly left them as they were."""
    operation = facts.operation
    if operation is None or operation.result not in (OperationResult.SUCCEEDED, OperationResult.INCONSISTENT):
        return False
    ended = operation.finished_at
    return ended is not None and (compared_at is None or compared_at <= ended)
