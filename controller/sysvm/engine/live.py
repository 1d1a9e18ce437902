"""What a rollout reads live: taken from the stores in one place, for admission and for the rollout's own status."""

from datetime import datetime

from sysvm.api.endpoint import CloudStackEndpoint, Inventory, Management
from sysvm.api.methods import Method
from sysvm.api.policy import PatchPolicy
from sysvm.api.rollout import AppendedVM, Rollout
from sysvm.domain.approvals import glass_broken_until, wave_gate
from sysvm.domain.calendar import openings_of
from sysvm.domain.cloud import Snapshot
from sysvm.domain.cloud_changed import cloud_facts, cloud_status
from sysvm.domain.facts import VMFacts, host_payloads, release_of
from sysvm.domain.held_recreations import held_recreations
from sysvm.domain.held_since import why_too_old
from sysvm.domain.members import successors_of
from sysvm.domain.planner import Plan, decide_all
from sysvm.domain.rollout import Live
from sysvm.domain.selection import select
from sysvm.domain.starts import edited_since
from sysvm.engine.approval import wave_digests
from sysvm.engine.stores import Stores, endpoint_of, key_of, template_of
from sysvm.kube.objects import Key


def live_of(
    rollout: Rollout,
    plan: Plan,
    stores: Stores,
    vms: dict[str, VMFacts],
    now: datetime,
    *,
    guarded: bool,
    snapshot: Snapshot | None = None,
) -> Live:
    """`vms`: all of the endpoint, by name. `guarded`: the admission policies that prove who approves are installed.
    `snapshot`: the last sweep of its cloud; None of a Static inventory, and before the first one."""
    policy = stores.policies.get(Key(rollout.metadata.namespace, rollout.spec.policy_ref.name))
    opening = None
    if policy is not None and glass_broken_until(rollout, now, guarded=guarded) is None:
        opening = openings_of(policy, stores.windows.values(rollout.metadata.namespace)).at(now)
    approvals = stores.approvals_of(key_of(rollout))
    digests = wave_digests(rollout)
    payloads = host_payloads(vms.values())
    return Live(
        superseded=is_superseded(rollout, policy, stores),
        suspended=_suspended(stores.endpoints.get(endpoint_of(rollout)), policy),
        opening=opening,
        approvals={
            wave: wave_gate(rollout, wave, digests, approvals, now, guarded=guarded)
            for wave in rollout.spec.snapshot.approval.before
        },
        edited=edited_since(rollout, policy.spec) if policy is not None else (),
        newcomers=_newcomers(rollout, policy, plan, stores, vms) if policy is not None else (),
        cloud=cloud_status(rollout, plan.cloud, cloud_facts(snapshot, payloads), now=now),
        held_recreations=held_recreations(rollout, plan, vms, snapshot, payloads),
        cloud_unseen=plan.cloud is not None and snapshot is None,
        cloud_too_old=_why_too_old(stores.endpoints.get(endpoint_of(rollout)), snapshot, now),
    )


def _newcomers(
    rollout: Rollout, policy: PatchPolicy, plan: Plan, stores: Stores, vms: dict[str, VMFacts]
) -> tuple[AppendedVM, ...]:
    """VMs that the policy selects, that the plan has never heard of, and that need its release. One that took the place
    of a planned VM is that member, and no newcomer."""
    known = {entry.name for entry in plan.entries}
    unknown = [facts for name, facts in vms.items() if name not in known]
    if not unknown:
        return ()
    successors = {facts.name for facts in successors_of(rollout, plan, vms).values()}
    # A successor is there before the object of its predecessor has gone.
    recreated = {entry.group for entry in plan.entries if entry.method is Method.RECREATE} - {None}
    unknown = [facts for facts in unknown if facts.name not in successors and facts.group not in recreated]
    selection = select(policy, stores.policies_of(endpoint_of(policy)), unknown)
    decisions = decide_all(policy.spec, plan.release, selection.vms, excluded=selection.excluded)
    return tuple(
        AppendedVM(name=facts.name, uid=facts.uid)
        for facts in selection.vms
        if decisions[facts.name].method is Method.LIVE_PATCH
    )


def is_superseded(rollout: Rollout, policy: PatchPolicy | None, stores: Stores) -> bool:
    """Its policy is gone, or wants another revision. One whose release is not readable yet wants what it wanted."""
    if policy is None or policy.metadata.deletion_timestamp is not None:
        return True
    template = stores.templates.get(template_of(policy))
    if template is None:
        return policy.spec.template_ref.name != rollout.spec.template_ref.name
    release = release_of(template)
    if release is None:
        return policy.spec.template_ref.name != rollout.spec.template_ref.name
    return release.revision != rollout.spec.revision


def _why_too_old(endpoint: CloudStackEndpoint | None, snapshot: Snapshot | None, now: datetime) -> str | None:
    if endpoint is None or endpoint.spec.inventory is not Inventory.CLOUDSTACK:
        return None
    return why_too_old(snapshot, endpoint.spec.scan.inventory, now)


def _suspended(endpoint: CloudStackEndpoint | None, policy: PatchPolicy | None) -> str | None:
    if policy is not None and policy.spec.suspend:
        return f"policy {policy.metadata.name} is suspended"
    if endpoint is not None and endpoint.spec.suspend:
        return f"endpoint {endpoint.metadata.name} is suspended"
    if endpoint is not None and endpoint.spec.management is not Management.FULL:
        return f"endpoint {endpoint.metadata.name} has management: {endpoint.spec.management}: nothing is changed"
    return None
