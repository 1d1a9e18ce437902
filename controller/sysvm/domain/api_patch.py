"""CloudStack's own live patch as one more kind of group operation: what must hold before the call, and what after it.

The server patches with whatever lies on the hypervisor host of each VM, takes no lock, and answers success also when a
router was not patched at all (CloudStack 4.21, recorded: restartNetwork and restartVPC with livepatch=true drop the
results of single routers, patchSystemVm says success for "No change in the scripts checksum"). So the hosts are asked
first, and afterwards the VM over SSH and the server's books.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from sysvm.api.observed import ApiPatchCall, ContentState
from sysvm.api.reasons import Reason
from sysvm.api.rollout import GroupOperation
from sysvm.api.systemvm import DriftKind
from sysvm.domain.calls import HOLDS, Call, Command, Look, Standing, Verdict, broken, not_yet
from sysvm.domain.cloud import CloudVM, CloudVMState, CloudZone
from sysvm.domain.drift import drift_of, is_converged
from sysvm.domain.facts import Release, VMFacts
from sysvm.domain.gate import Claim, ServerPayload, gate_of, unverified, would_install
from sysvm.domain.group_operation import what_moves
from sysvm.domain.lifecycle import Aim, rules_are_back
from sysvm.domain.pairs import Trouble, primary_now
from sysvm.domain.running import failed_services, router_of

SETTLING = timedelta(seconds=60)
"""Services, roles and the server's books may take so long after the job has ended."""

LONGEST_PATCH = timedelta(minutes=15)
"""A host goes on with a patch whose server was restarted, and waits 600 s for its script (CloudStack 4.21
LibvirtPatchSystemVmCommandWrapper). Before this has passed, "nothing has changed" proves nothing."""


def call_of(command: Command, target: str) -> Call:
    """forced: without it the server does nothing where only the files, and not the checksum of the scripts, differ."""
    return Call(command, target, ("forced" if command is Command.PATCH_SYSTEM_VM else "livepatch",))


def aim_of(call: ApiPatchCall, vm: str, group: str | None) -> Aim:
    """The call for a VM of this group."""
    command = Command(call.command)
    whole = command is not Command.PATCH_SYSTEM_VM
    return Aim(group=(group or vm) if whole else vm, call=call_of(command, call.id), whole_group=whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiPatch:
    """The judge of one call. Everything that it knows beside the group itself is given."""

    release: Release
    server: ServerPayload
    server_version: str
    """Of the management server now."""
    zones: Mapping[str, CloudZone] = field(default_factory=dict)
    """With their settings, by id."""
    most_patches: int = 2
    """livePatch.maxApiPatchesPerRouter."""
    unsettled: str | None = None
    """Why nothing is begun in this cloud now, as a sentence."""

    def call(self, operation: GroupOperation) -> Call:
        return call_of(Command(operation.command), operation.target)

    def before(self, operation: GroupOperation, look: Look) -> Verdict:
        if not look.vms:
            return broken(Reason.VM_GONE, f"{operation.command} {operation.target} has no VM any more")
        moving = what_moves(look.vms, look.jobs)
        if moving is not None:
            return not_yet(Reason.JOB_RUNNING, moving)
        if self.unsettled is not None:
            return not_yet(Reason.CLOUD_CHANGED, self.unsettled)
        found = _worst([self._may_be_patched(operation, look, vm) for vm in look.vms])
        if found.standing is Standing.HOLDS and all(self._needs_nothing(look, vm) for vm in look.vms):
            # The order came from what was known before a sweep, or from before a process ended: the call would restart
            # every service for nothing.
            names = " and ".join(vm.name for vm in look.vms)
            told = f"{names} had the release and took commands already: {operation.command} was not called"
            return Verdict(Standing.NEEDLESS, Reason.UP_TO_DATE, told)
        return found

    def _needs_nothing(self, look: Look, vm: CloudVM) -> bool:
        """By the look that was asked for, and by the server's books as they are now."""
        facts = look.facts(vm)
        gate = gate_of(vm, self.zones.get(vm.zone_id), self.server)
        return facts is not None and is_converged(facts, self.release) and gate.closed is False

    def _may_be_patched(self, operation: GroupOperation, look: Look, vm: CloudVM) -> Verdict:
        if vm.state is not CloudVMState.RUNNING:
            # A forced live patch of a stopped router starts it (CloudStack 4.21, recorded).
            return broken(Reason.VM_NOT_RUNNING, f"{vm.name} is {vm.state}")
        host = next((host for host in look.hosts if host.id == vm.host_id), None)
        if host is None or host.state != "Up":
            state = host.state if host is not None else "not listed"
            return not_yet(Reason.HOST_NOT_READY, f"host {vm.host or 'unknown'} of {vm.name} is {state}")
        facts = look.facts(vm)
        if facts is None or facts.observed is None or facts.observed.at <= operation.since:
            return not_yet(Reason.NOT_OBSERVED, f"{vm.name} and its host must be looked at first")
        kept = facts.observed.host_payload
        if kept is not None and kept.host != host.name:
            told = f"{vm.name} was seen on host {kept.host} and runs on {host.name} by now: it is looked at again"
            return not_yet(Reason.NOT_OBSERVED, told)
        installs = would_install(facts, self.release)
        if installs.checksum is None:
            refuse = broken if installs.known else not_yet
            return refuse(Reason.HOST_PAYLOAD_MISMATCH if installs.known else Reason.NOT_OBSERVED, installs.why_not)
        management = facts.observed.management
        call = management.api_patch if management is not None else None
        if call is not None and call.patches > self.most_patches:
            told = f"the call would patch {vm.name} {call.patches} times, more than {self.most_patches}"
            return broken(Reason.TOO_MANY_API_PATCHES, told)
        return HOLDS

    def changed(self, operation: GroupOperation, look: Look) -> bool | None:
        asked = operation.submitted_at or operation.started_at
        known = [facts for vm in look.vms if (facts := look.facts(vm)) is not None]
        if sum(_seen_since(facts, operation, self.release) for facts in known) < len(look.vms):
            return None
        had = {vm.id for vm in operation.before if vm.done}
        if any(self.is_done(look, vm) for vm in look.vms if vm.id not in had):
            return True
        return False if look.taken_at - asked >= LONGEST_PATCH else None

    def is_done(self, look: Look, vm: CloudVM) -> bool:
        """Files, signature and books are as the call leaves them. Services are not asked: a patch whose services then
        fail was made all the same, and is not made again."""
        facts = look.facts(vm)
        if facts is None or gate_of(vm, self.zones.get(vm.zone_id), self.server).closed:
            return False
        drift = drift_of(facts, self.release)
        return drift.certain and not drift.kinds & {DriftKind.CONTENT, DriftKind.SCRIPTS}

    def after(self, operation: GroupOperation, look: Look) -> Verdict:
        before = {vm.id for vm in operation.before}
        other = [vm.name for vm in look.vms if vm.id not in before]
        if other or len(look.vms) != len(before):
            told = f"the VMs are not those that were patched: {', '.join(other) or 'one has gone'}"
            return broken(Reason.CLAIM_NOT_VERIFIED, told)
        roles = _roles(look)
        found = _worst([self._stands_up(operation, look, vm, roles) for vm in look.vms])
        return rules_are_back(operation, look, look.vms) if found.standing is Standing.HOLDS else found

    def _stands_up(self, operation: GroupOperation, look: Look, vm: CloudVM, roles: str | None) -> Verdict:
        facts = look.facts(vm)
        if facts is None or not _seen_since(facts, operation, self.release):
            why = f": {facts.reach.message}" if facts is not None and facts.unreachable else ""
            return not_yet(Reason.NOT_OBSERVED, f"{vm.name} was not compared since the job ended{why}")
        observed = facts.observed
        signature = observed.signature if observed is not None else None
        against = unverified(
            Claim(
                vm=vm.name,
                content_matches=_matches(facts),
                signature=signature.value if signature is not None else None,
                failed_services=failed_services(facts),
                roles=roles,
                software_version=vm.software_version,
                gate=gate_of(vm, self.zones.get(vm.zone_id), self.server),
            ),
            signature=would_install(facts, self.release).checksum or self.release.signature.value,
            server_version=self.server_version,
            router=vm.type.is_router,
        )
        if not against:
            return HOLDS
        told = f"{vm.name}: {'; '.join(against)}"
        # What the files are does not change any more; the rest may still be on its way.
        if _matches(facts) and look.taken_at - operation.since < SETTLING:
            return not_yet(Reason.CLAIM_NOT_VERIFIED, told)
        return broken(Reason.CLAIM_NOT_VERIFIED, told)


@dataclass(frozen=True, slots=True)
class _NotReady:
    """Of a release or a cloud that is not known now: nothing is asked for and nothing is judged."""

    def call(self, operation: GroupOperation) -> Call:
        return call_of(Command(operation.command), operation.target)

    def before(self, operation: GroupOperation, look: Look) -> Verdict:
        return not_yet(Reason.TEMPLATE_NOT_READY, "the release, or the management server, is not known yet")

    def is_done(self, look: Look, vm: CloudVM) -> bool:
        return False

    def changed(self, operation: GroupOperation, look: Look) -> bool | None:
        return None

    def after(self, operation: GroupOperation, look: Look) -> Verdict:
        return self.before(operation, look)


NOT_READY = _NotReady()


def _matches(facts: VMFacts) -> bool:
    content = facts.observed.content if facts.observed is not None else None
    return content is not None and content.state is ContentState.MATCHES


def _seen_since(facts: VMFacts, operation: GroupOperation, release: Release) -> bool:
    """Looked at, and its files compared with the release, after the operation came into its phase."""
    observed = facts.observed
    content = observed.content if observed is not None else None
    return (
        facts.reachable
        and observed is not None
        and observed.at > operation.since
        and content is not None
        and content.revision == release.revision
        and content.observed_at is not None
        and content.observed_at > operation.since
    )


def _roles(look: Look) -> str | None:
    """What is wrong with the roles of a pair; None: nothing, or it is no pair."""
    if not any(vm.redundant for vm in look.vms):
        return None
    members = [facts for vm in look.vms if (facts := look.facts(vm)) is not None]
    found = primary_now([router_of(facts) for facts in members])
    if isinstance(found, str):
        return None
    return found.sentence if isinstance(found, Trouble) else "its routers were not seen together yet"


def _worst(verdicts: list[Verdict]) -> Verdict:
    """What is broken before what only takes time."""
    left = [verdict for verdict in verdicts if verdict.standing is not Standing.HOLDS]
    return next((each for each in left if each.standing is Standing.BROKEN), left[0] if left else HOLDS)
