"""Whether a VM's hypervisor host keeps the release that the VM is brought to.

CloudStack installs what the host keeps at a VM's next start wherever its checksum is not the VM's signature, so a VM
that is ahead of its host falls back sooner or later, and drift never ends. Content decides, as everywhere: another
build of the same files is no mismatch.
"""

from sysvm.domain.facts import Release, VMFacts


def host_mismatch(facts: VMFacts, release: Release) -> str | None:
    """What the host keeps instead, as a sentence; None: the same, or nobody knows (no host is on the way, or it keeps
    no payload)."""
    found = facts.observed.host_payload if facts.observed else None
    if found is None or release.scripts_revision is None or found.revision == release.scripts_revision:
        return None
    algorithm, _, value = found.checksum.partition(":")
    kept = f"{'another' if found.revision else 'an unreadable'} payload ({algorithm} {value[:8]})"
    return (
        f"hypervisor host {found.host} of {facts.vm} keeps {kept} and not that of {release.version} ({release.short}): "
        "a stop and start of the VM would install it"
    )


def is_build_of(facts: VMFacts, release: Release) -> bool:
    """The VM's signature is the checksum of its host's build of this release, which is what a patch leaves there."""
    observed = facts.observed
    found = observed.host_payload if observed else None
    if observed is None or observed.signature is None or found is None or found.revision != release.scripts_revision:
        return False
    return found.revision is not None and found.checksum == f"{observed.signature.algorithm}:{observed.signature.value}"
