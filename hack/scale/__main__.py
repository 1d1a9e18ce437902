"""`python -m scale`: see the package."""

import tempfile
from pathlib import Path

import click

from lab.controlplane import ControlPlane
from scale.measuring import Figures, measure


@click.command()
@click.option("--sizes", default="100,1000,10000", show_default=True, help="Numbers of VMs, in this order.")
def main(sizes: str) -> None:
    """What so many system VMs cost the operator, on a real API server with VMs that answer at once."""
    found: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="sysvm-scale-") as folder:
        for size in (int(word) for word in sizes.split(",")):
            run = Path(folder) / str(size)
            server = ControlPlane.start(run / "server")
            try:
                found.append(measure(server, run, size, click.echo))
            finally:
                ControlPlane.stop(run / "server")
    click.echo(_table(found))


def _table(found: list[Figures]) -> str:
    base = found[0]
    memory = "| RSS | KiB a VM | idle | idle writes"
    work = "| writes a VM | CPU ms a VM | largest status"
    lines = [
        f"| VMs | all seen first | writes a VM | decided after a start {memory} | rollout {work} |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        more = one.vms - base.vms
        per_vm = f"{(one.rss - base.rss) / more / 1024:.1f}" if more else "-"
        lines.append(
            f"| {one.vms:,} | {one.first_seconds:.0f} s | {one.first_writes / one.vms:.2f} | {one.start_seconds:.1f} s "
            f"| {one.rss / 2**20:.0f} MiB | {per_vm} | {one.idle_share * 100:.2f} % | {one.idle_writes:.0f} "
            f"| {one.rollout_vms} VMs in {one.rollout_seconds:.0f} s | {one.rollout_writes / one.rollout_vms:.2f} "
            f"| {one.busy_cpu / one.rollout_vms * 1000:.0f} | {one.status_bytes / 1024:.1f} KiB |"
        )
    return "\n".join(lines)


main()
