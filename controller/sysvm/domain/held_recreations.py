"""Recreations for which no order is given now, because a host where the new VM may come up keeps another payload.

The same is asked right before the call (`lifecycle`). There it could only wait for the time of a step and fail, and the
rollout's failure budget would pay for what is wrong with a host: so the VM waits, and says for what.
"""

from collections.abc import Mapping

from sysvm.api.methods import HostPayloadRule, Method
from sysvm.api.rollout import Rollout
from sysvm.api.systemvm import Blocker
from sysvm.domain.calls import Standing
from sysvm.domain.cloud import Snapshot
from sysvm.domain.facts import VMFacts
from sysvm.domain.lifecycle import same_payload
from sysvm.domain.members import method_of
from sysvm.domain.planner import Plan


def held_recreations(
    rollout: Rollout,
    plan: Plan,
    vms: Mapping[str, VMFacts],
    snapshot: Snapshot | None,
    payloads: Mapping[str, str],
) -> dict[str, Blocker]:
    """SystemVM name -> why it is not recreated now. `vms`: all of the endpoint, by name. `payloads`: name of a host ->
    revision of the scripts that it keeps; a host that nobody has seen holds nothing up."""
    wanted = plan.release.scripts_revision
    if snapshot is None or wanted is None:
        return {}
    if rollout.spec.snapshot.live_patch.host_payload is not HostPayloadRule.REQUIRE:
        return {}
    others = {host for host, revision in payloads.items() if revision != wanted}
    hosts = [host for host in snapshot.hosts.values() if host.name in others]
    if not hosts:
        return {}
    held: dict[str, Blocker] = {}
    for name in plan.planned:
        facts = vms.get(name)
        if facts is None or facts.identity is None or method_of(rollout, plan, facts) is not Method.RECREATE:
            continue
        vm = snapshot.vms.get(facts.identity.id or "")
        if vm is None:
            continue
        verdict = same_payload([host for host in hosts if host.zone_id == vm.zone_id], vm, others)
        if verdict.standing is not Standing.HOLDS:
            held[name] = Blocker(reason=str(verdict.reason), message=verdict.sentence[:512])
    return held
