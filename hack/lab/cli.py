"""The lab's command line: `python -m lab up`, and what one does with a lab that is up.

Exit codes: 0 done, 1 it failed, 2 the command line is wrong, 3 this machine cannot run the lab (one sentence says why).
`ssh` and `kubectl` end with the code of what they ran.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec

import click

from lab import paths
from lab.cloud.process import CloudProcess
from lab.cloud_demo.story import CloudStory
from lab.controlplane import ControlPlane, ControlPlaneError, Tool, Unavailable, binaries
from lab.demo import PAYLOADS, DemoError, Story
from lab.guest import GuestError
from lab.machines import Lab, LabError
from lab.operator import OperatorProcess
from lab.preflight import LabUnavailable
from lab.relay import Fault, RelayError
from lab.spec import DEFAULT_FLEET, VM
from lab.toolbox import ToolboxError

CANNOT_RUN = 3
_ROLE_SECONDS = 10.0
_COLUMNS = ("vm", "type", "state", "address", "release", "signature", "role", "wire")

P = ParamSpec("P")


def control_plane_dir(run_dir: Path) -> Path:
    """Where a lab's control plane keeps its files."""
    return run_dir / "control-plane"


def operator_dir(run_dir: Path) -> Path:
    """Where a lab's operator keeps its record and its log."""
    return run_dir / "operator"


def payloads_dir(run_dir: Path) -> Path:
    """Where built payloads lie for the operator to read."""
    return run_dir / "payloads"


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns the failures a person can do something about into one line and an exit code."""
    try:
        yield
    except (LabUnavailable, Unavailable) as lack:
        click.echo(str(lack), err=True)
        raise SystemExit(CANNOT_RUN) from None
    except (LabError, ToolboxError, RelayError, GuestError, ControlPlaneError) as problem:
        raise click.ClickException(str(problem)) from problem


def _with_lab(command: Callable[Concatenate[Lab, P], None]) -> Callable[P, None]:
    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        started = time.monotonic()

        def say(line: str) -> None:
            click.echo(f"{time.monotonic() - started:7.1f} s  {line}", err=True)

        with _told():
            command(Lab(click.get_current_context().obj, say=say), *args, **kwargs)

    return run


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--dir",
    "run_dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The lab's run folder.  [default: $SYSVM_LAB_DIR or .lab in the repository]",
)
@click.pass_context
def main(context: click.Context, run_dir: Path | None) -> None:
    """A small cloud on this machine: a real Kubernetes API server, and system VMs that boot systemd.

    What is built once lies in $SYSVM_LAB_CACHE (~/.cache/sysvm-lab). `down` takes everything else away again.
    """
    context.obj = (run_dir or paths.run_dir()).absolute()


@main.command()
@click.option(
    "--vms",
    "names",
    default=",".join(spec.name for spec in DEFAULT_FLEET),
    show_default=True,
    help="Which of the fleet, with commas between; empty for none.",
)
@click.option("--release", default="old", show_default=True, help="The release the VMs are laid out with.")
@click.option("--control-plane/--no-control-plane", default=True, show_default=True, help="Also the API server.")
@click.option("--cloud", is_flag=True, help="A whole cloud instead of the fleet: hypervisor hosts and their server.")
@_with_lab
def up(lab: Lab, names: str, release: str, *, control_plane: bool, cloud: bool) -> None:
    """Bring the lab up. The first time builds its roots (a minute) and its programs (some minutes)."""
    fleet = {spec.name: spec for spec in DEFAULT_FLEET}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in wanted if name not in fleet]:
        raise click.UsageError(f"not in the fleet: {', '.join(unknown)}; there are {', '.join(fleet)}")
    with ThreadPoolExecutor(1) as beside:
        server = beside.submit(ControlPlane.start, control_plane_dir(lab.run_dir)) if control_plane else None
        lab.up([] if cloud else [fleet[name] for name in wanted], release=release)
        if cloud:
            CloudProcess.start(lab, release)
        if server is not None:
            click.echo(f"API server at {server.result().url}")
    _print_status(lab)


@main.command()
@click.option("--cloud", is_flag=True, help="The story of a whole cloud: found, patched, upgraded, recreated.")
@_with_lab
def demo(lab: Lab, *, cloud: bool) -> None:
    """Run the whole story: old VMs, a release, a broken one, a mended one. The lab stays up."""
    if take_down(lab):
        click.echo("  an earlier lab was taken down")

    def say(line: str) -> None:
        click.echo(f"  {line}")

    try:
        if cloud:
            CloudStory(lab.run_dir, say, click.echo).tell()
        else:
            Story(lab.run_dir, DEFAULT_FLEET, say, click.echo).tell()
    except DemoError as problem:
        raise click.ClickException(str(problem)) from problem


@main.command()
@_with_lab
def prepare(lab: Lab) -> None:
    """Build what is built once (programs, root file systems), so that tests and the demo start at once.

    What this machine cannot have is said in a sentence and left out: the tests that need it are skipped with it.
    """
    with ThreadPoolExecutor(1) as beside:
        programs = beside.submit(binaries.find, list(Tool))
        try:
            lab.prepare()
        except LabUnavailable as lack:
            click.echo(f"no system VMs here: {lack}", err=True)
        try:
            programs.result()
        except Unavailable as lack:
            click.echo(f"no API server here: {lack}", err=True)


@main.command()
@_with_lab
def down(lab: Lab) -> None:
    """Take the lab away, also what a killed `up` left. Says what it removed; nothing there is fine."""
    click.echo("\n".join(f"removed {what}" for what in take_down(lab)) or "nothing to remove")


@main.command()
@_with_lab
def status(lab: Lab) -> None:
    """Show each VM: type, state, address, release, signature, redundancy role, fault of its wire."""
    _print_status(lab)


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@_with_lab
def ssh(lab: Lab, name: str, command: Sequence[str]) -> None:
    """Log in to a VM over its relay, as the operator does; or run COMMAND there."""
    argv = lab.ssh_command(name, command)
    os.execvp(argv[0], argv)


@main.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_with_lab
def exec_(lab: Lab, name: str, command: Sequence[str]) -> None:
    """Run COMMAND in a VM through its namespaces: works when sshd does not."""
    argv = lab.guest(name).command(command)
    os.execvp(argv[0], argv)


@main.command()
@click.argument("name")
@click.argument("kind", type=click.Choice([fault.value for fault in Fault]))
@click.option("--ms", default=200, show_default=True, help="For delay: milliseconds each way.")
@_with_lab
def fault(lab: Lab, name: str, kind: str, ms: int) -> None:
    """Break or heal the wire between this host and a VM.

    \b
    cut      reset every open connection, once
    silence  open connections stand still, new ones are never answered
    refuse   nobody listens; open connections go on
    delay    every chunk of bytes arrives later
    heal     as before
    """
    lab.fault(name, Fault(kind), delay_seconds=ms / 1000)


@main.command("cloud")
@click.argument("control", required=False)
@click.argument("values", nargs=-1)
@_with_lab
def cloud_(lab: Lab, control: str | None, values: Sequence[str]) -> None:
    """Show the management server's stand-in; or tell it: `faults patch=nothing`, `faults` to heal.

    \b
    faults    switches by name: patch, cut_job, start_fails, answer, throttle, delay_seconds, restart=SECONDS, ...
    upgrade   release=NAME: server, template and hosts get another release; hosts=false, template=false: not those
    calls     what was asked of it, by command, and every change; since=N: after the N-th
    """
    running = CloudProcess.attach(lab)
    if control is None:
        click.echo(running.describe())
        return
    given = {name: _plain(value) for name, _, value in (each.partition("=") for each in values)}
    click.echo(json.dumps(running.tell(control, given)))


def _plain(value: str) -> object:
    """A number, a truth value or a list where it is written as one, else the word itself."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


@main.command()
@click.argument("name")
@click.argument("action", type=click.Choice(["off", "on", "reboot", "stop"]))
@_with_lab
def power(lab: Lab, name: str, action: str) -> None:
    """Pull a VM's plug, switch it on, reboot it or shut it down."""
    {"off": lab.power_off, "on": lab.power_on, "reboot": lab.reboot, "stop": lab.stop}[action](name)


@main.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False, "help_option_names": []}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@_with_lab
def kubectl(lab: Lab, arguments: Sequence[str]) -> None:
    """Run kubectl against the lab's API server."""
    server = ControlPlane.attach(control_plane_dir(lab.run_dir))
    if server is None:
        raise LabError(f"no API server is up in {lab.run_dir}: bring one up first")
    raise SystemExit(server.run_kubectl(arguments))


def take_down(lab: Lab) -> list[str]:
    """Ends operator, control plane and VMs, in this order, and removes the run folder's files. What it removed."""
    removed = []
    operator = OperatorProcess.attach(operator_dir(lab.run_dir))
    if operator is not None:
        operator.stop()
        removed.append("the operator")
    shutil.rmtree(operator_dir(lab.run_dir), ignore_errors=True)
    if control_plane_dir(lab.run_dir).exists():
        ControlPlane.stop(control_plane_dir(lab.run_dir))
        removed.append("the control plane")
    shutil.rmtree(lab.run_dir / PAYLOADS, ignore_errors=True)
    removed += lab.down()
    with contextlib.suppress(OSError):
        lab.run_dir.rmdir()
    return removed


def _print_status(lab: Lab) -> None:
    if lab.is_up():
        faults = lab.faults()
        rows = [_row(lab, vm, faults.get(vm.name, "")) for vm in lab.vms()]
        widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
        for row in (tuple(field.upper() for field in _COLUMNS), *rows):
            click.echo("  ".join(field.ljust(width) for field, width in zip(row, widths, strict=True)).rstrip())
    else:
        click.echo("no VMs are up")
    server = ControlPlane.attach(control_plane_dir(lab.run_dir))
    click.echo(f"API server: {server.url if server is not None else 'down'}")
    operator = OperatorProcess.attach(operator_dir(lab.run_dir))
    click.echo(f"operator: {f'running, log in {operator.log}' if operator is not None else 'down'}")


def _row(lab: Lab, vm: VM, fault: str) -> tuple[str, ...]:
    state = "off"
    if lab.is_on(vm.name):
        state = "booting"
        with contextlib.suppress(GuestError):
            systemd = lab.exec(vm.name, ["systemctl", "is-system-running"], check=False, timeout=_ROLE_SECONDS)
            state = systemd.stdout.strip() or state
    release = _first_line(lab, vm, "/etc/cloudstack-release").removeprefix("Cloudstack Release ").split()[0]
    signature = _first_line(lab, vm, "/var/cache/cloud/cloud-scripts-signature")[:12]
    role = "-"
    if vm.spec.redundant and state in ("running", "degraded"):
        role = lab.role(vm.name).value
    return (vm.name, vm.spec.type, state, f"{vm.relay_address}:{vm.port}", release, signature, role, fault or "-")


def _first_line(lab: Lab, vm: VM, path: str) -> str:
    try:
        text = lab.read_bytes(vm.name, path).decode("utf-8", "replace").strip()
    except (FileNotFoundError, GuestError):
        return "-"
    return text.splitlines()[0] if text else "(empty)"
