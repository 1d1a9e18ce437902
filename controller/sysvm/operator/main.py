"""The command line of the process: `sysvm-operator run`, and what helps to write its objects."""

import asyncio
import gc
import signal
import sys
from typing import TYPE_CHECKING, TextIO

import click

from sysvm import __version__
from sysvm.operator.settings import Settings, SettingsError
from sysvm.telemetry import logs

if TYPE_CHECKING:
    from sysvm.operator.app import App


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sysvm-operator")
def main() -> None:
    """Brings Apache CloudStack system VMs to the release that a PatchPolicy declares."""


COLLECT_AFTER = (200_000, 20, 100)
"""Allocations between two looks for cycles of garbage, and looks of one generation between two of the next. What the
operator keeps has no cycles; by Python's own thresholds a plan of ten thousand VMs spends a quarter of its time in
looking for some (`python -m scale.deciding`)."""


@main.command()
def run() -> None:
    """Run the operator.

    Settings come from the environment: SYSVM_NAMESPACE, SYSVM_WATCH_NAMESPACES, SYSVM_LOG_LEVEL (debug, info, warning,
    error), SYSVM_LOG_FORMAT (json, text), SYSVM_HTTP_PORT, SYSVM_HTTP_HOST, SYSVM_WORKERS, SYSVM_OPERATIONS,
    SYSVM_LOOKS, SYSVM_PAYLOADS_DIR, SYSVM_CACHE_DIR, SYSVM_LEASE_SECONDS, SYSVM_ADMISSION_POLICIES, and KUBECONFIG or
    SYSVM_KUBECONFIG outside of a cluster.
    """
    # Imported here so that --help and --version answer at once.
    from sysvm.kube.errors import LoginFailed

    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    logs.configure(settings.log_level, settings.log_format)
    gc.set_threshold(*COLLECT_AFTER)
    try:
        asyncio.run(_run(settings))
    except LoginFailed as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0)


@main.group()
def template() -> None:
    """What helps to write a SystemVMTemplate. Needs no cluster."""


@template.command("import")
@click.argument("metadata", type=click.File("r", errors="replace"))
@click.option("--hypervisor", "hypervisors", multiple=True, help="Only this one, such as KVM; can be repeated.")
@click.option("--name", help="Name of the object; by default systemvm- and the version.")
def import_metadata(metadata: TextIO, hypervisors: tuple[str, ...], name: str | None) -> None:
    """Print the SystemVMTemplate of the images that METADATA names.

    METADATA is the metadata.ini of CloudStack's package, on a management server in
    /usr/share/cloudstack-management/templates/systemvm/. This program is not installed there: copy the file, or give -
    for stdin. The payload is that of the hypervisor hosts: pin it, or take it from the package, before you commit the
    manifest.
    """
    import yaml

    from sysvm.domain.bundled_images import HYPERVISORS, NotMetadataError, read_metadata

    unknown = [hypervisor for hypervisor in hypervisors if hypervisor.lower() not in HYPERVISORS]
    if unknown:
        raise click.ClickException(f"{unknown[0]} is none of {', '.join(HYPERVISORS.values())}")
    try:
        found = read_metadata(metadata.read(), hypervisors=[HYPERVISORS[one.lower()] for one in hypervisors])
    except NotMetadataError as error:
        raise click.ClickException(str(error)) from error
    for warning in found.warnings:
        click.echo(warning, err=True)
    click.echo(yaml.safe_dump(found.manifest(name), sort_keys=False, width=120), nl=False)


async def _run(settings: Settings) -> None:
    from sysvm.operator.app import App

    await until_told(App(settings))


async def until_told(app: "App") -> None:
    """Runs the operator until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)
    await app.run()
