"""`python -m scale.deciding`: what one decision costs at 100, 1,000 and 10,000 VMs, as ratios in one run.

A plan over all VMs, and one step of admission in the middle of a rollout, beside reading the same objects once as a
LIST from a real API server.
"""

import asyncio
import gc
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from lab import chart
from lab.controlplane import ControlPlane
from sysvm.api.base import NameRef, ObjectMeta
from sysvm.api.endpoint import Management, SystemVMType
from sysvm.api.observed import ContentState, Observed, ObservedContent, ObservedTemplate
from sysvm.api.policy import PatchPolicySpec
from sysvm.api.rollout import Rollout, RolloutSpec
from sysvm.api.systemvm import Identity, SystemVM, SystemVMSpec, SystemVMStatus
from sysvm.api.template import DEFAULT_COMPATIBILITY, Signature
from sysvm.domain.admission import EndpointState, admit
from sysvm.domain.facts import Release, VMFacts, facts_of
from sysvm.domain.ledger import RunningRollout
from sysvm.domain.members import classify
from sysvm.domain.planner import Plan, plan
from sysvm.domain.rollout import outcome
from sysvm.engine.resources import SYSTEM_VM
from sysvm.kube.client import Cluster
from sysvm.operator.main import COLLECT_AFTER

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NEW = "8c1f03ab" * 8
SIZES = (100, 1000, 10000)
REPEATS = 9
NAMESPACE = "deciding"
_LATER = timedelta(seconds=5)


def release() -> Release:
    return Release(
        template_name="new",
        version="4.20.2",
        revision=NEW,
        signature=Signature(algorithm="sha512", value="bb" * 64),
        compatibility=DEFAULT_COMPATIBILITY,
    )


def system_vm(number: int) -> SystemVM:
    """One of a pair in three of four; all at the old payload."""
    name = f"r-{number}-VM"
    observed = Observed(
        at=NOW,
        template=ObservedTemplate(version="4.20.1"),
        signature=Signature(algorithm="sha512", value="aa" * 64),
        content=ObservedContent(revision=NEW, state=ContentState.DRIFTED, changed=10, observed_at=NOW),
    )
    identity = Identity(
        name=name,
        type=SystemVMType.ROUTER,
        zone=f"z{number % 4}",
        host=f"h{number % 200}",
        group=f"net{number // 2}" if number % 4 else None,
        address="192.0.2.1",
    )
    return SystemVM(
        metadata=ObjectMeta(name=f"prod-{name.lower()}", namespace=NAMESPACE, uid=f"uid-{number}", generation=1),
        spec=SystemVMSpec(endpoint_ref=NameRef(name="prod")),
        status=SystemVMStatus.model_validate(
            {
                "observedGeneration": 1,
                "conditions": [
                    {
                        "type": "Reachable",
                        "status": "True",
                        "reason": "Reachable",
                        "lastTransitionTime": "2026-11-22T00:00:00Z",
                    }
                ],
                "identity": identity.to_dict(),
                "observed": observed.to_dict(),
            }
        ),
    )


def spec() -> PatchPolicySpec:
    return PatchPolicySpec.model_validate(
        {
            "endpointRef": {"name": "prod"},
            "templateRef": {"name": "new"},
            "strategy": {
                "maxUnavailable": "5%",
                "perHost": 2,
                "waves": [{"name": "canary", "limit": 2}, {"name": "tenth", "limit": "10%"}, {"name": "rest"}],
            },
        }
    )


def rollout(made: Plan) -> Rollout:
    declared = spec()
    return Rollout(
        metadata=ObjectMeta(name="routers-8c1f03ab-1", namespace=NAMESPACE, uid="u", creation_timestamp=NOW),
        spec=RolloutSpec.model_validate(
            {
                "policyRef": {"name": made.policy},
                "endpointRef": {"name": "prod"},
                "templateRef": {"name": "new"},
                "revision": NEW,
                "number": 1,
                "planRef": {"name": "plan", "digest": made.digest},
                "snapshot": {
                    "methods": ["LivePatch"],
                    "livePatch": declared.live_patch.to_dict(),
                    "strategy": declared.strategy.to_dict(),
                    "checks": declared.checks.to_dict(),
                },
            }
        ),
    )


def processor_seconds(work: Callable[[], object]) -> float:
    """The least of several runs: other work on the machine only ever adds to it."""
    taken: list[float] = []
    for _ in range(REPEATS):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return min(taken)


def costs(vms: list[SystemVM]) -> tuple[float, float, float, int]:
    """Seconds of a plan, of an admission step and of a rollout's status; and the stored plan's bytes."""
    facts: list[VMFacts] = [facts_of(vm, now=NOW) for vm in vms]
    declared, declared_release = spec(), release()
    made = plan("routers", declared, declared_release, facts, excluded={}, fleet=facts)
    if len(made.members) != len(vms):
        raise click.ClickException(f"only {len(made.members)} of {len(vms)} VMs are in the plan")
    running = rollout(made)
    known = {one.name: one for one in facts}
    now = NOW + _LATER
    status = outcome(running, made, classify(running, made, known), now=now)
    running = running.model_copy(update={"status": status})
    state = EndpointState(
        endpoint="prod",
        now=now,
        management=Management.FULL,
        epoch=1,
        vms=tuple(facts),
        rollouts=(RunningRollout(running, made),),
    )
    if not admit(state).admitted:
        raise click.ClickException("admission hands out nothing: the measurement would be of something else")
    return (
        processor_seconds(lambda: plan("routers", declared, declared_release, facts, excluded={}, fleet=facts).digest),
        processor_seconds(lambda: admit(state)),
        processor_seconds(lambda: outcome(running, made, classify(running, made, known), now=now)),
        len(made.encode()),
    )


async def list_seconds(server: ControlPlane, vms: list[SystemVM]) -> float:
    """Of one LIST of all of them into objects, by the operator's own client: the time until it is there, at best."""
    async with await Cluster.connect(kubeconfig=server.kubeconfig) as cluster:

        async def make(vm: SystemVM) -> None:
            metadata = {"name": vm.metadata.name, "namespace": NAMESPACE}
            await cluster.create(SYSTEM_VM, {"metadata": metadata, "spec": vm.spec.to_dict()})
            status = {"status": vm.status.to_dict()}
            await cluster.merge_patch(SYSTEM_VM, NAMESPACE, vm.metadata.name, status, subresource="status")

        for start in range(0, len(vms), 50):
            async with asyncio.TaskGroup() as tasks:
                for vm in vms[start : start + 50]:
                    tasks.create_task(make(vm))
        taken: list[float] = []
        for _ in range(REPEATS):
            begun = time.perf_counter()
            found = await cluster.list(SYSTEM_VM, NAMESPACE)
            taken.append(time.perf_counter() - begun)
            if len(found.items) != len(vms):
                raise click.ClickException(f"the list has {len(found.items)} of {len(vms)} VMs")
        return min(taken)


@click.command()
def main() -> None:
    """A plan and an admission step at 100, 1,000 and 10,000 VMs, and a LIST of 10,000."""
    gc.set_threshold(*COLLECT_AFTER)  # as the operator does
    found: dict[int, tuple[float, float, float, int]] = {}
    vms = [system_vm(number) for number in range(SIZES[-1])]
    for size in SIZES:
        found[size] = costs(vms[:size])
    with tempfile.TemporaryDirectory(prefix="sysvm-deciding-") as folder:
        server = ControlPlane.start(Path(folder) / "server")
        try:
            values = {"admissionPolicies": {"enabled": False}}
            chart.install_identity(server, chart.render("deciding", NAMESPACE, values))
            listed = asyncio.run(list_seconds(server, vms))
        finally:
            ControlPlane.stop(Path(folder) / "server")
    click.echo("| VMs | plan and digest | admission step | rollout status | stored plan |")
    click.echo("|--:|--:|--:|--:|--:|")
    for size, (planned, admitted, told, stored) in found.items():
        click.echo(
            f"| {size:,} | {planned * 1000:.1f} ms | {admitted * 1000:.1f} ms | {told * 1000:.1f} ms "
            f"| {stored / 1024:.0f} KiB |"
        )
    large, thousand = found[SIZES[-1]], found[1000]
    growth, share = large[0] / thousand[0], large[1] / large[0]
    click.echo(f"\nplan(10,000) / plan(1,000) = {growth:.1f} (at most 12): {_judged(growth <= 12)}")
    click.echo(
        f"plan(10,000) / LIST of 10,000 ({listed:.2f} s) = {large[0] / listed:.2f} (below 1): "
        f"{_judged(large[0] < listed)}"
    )
    click.echo(f"admission(10,000) / plan(10,000) = {share:.2f} (at most 0.1): {_judged(share <= 0.1)}")


def _judged(kept: bool) -> str:
    return "kept" if kept else "MISSED"


if __name__ == "__main__":
    main()
