"""The command line of the process: `sysvm-operator run`."""

import asyncio
import signal
import sys
from typing import TYPE_CHECKING

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
    try:
        asyncio.run(_run(settings))
    except LoginFailed as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0)


async def _run(settings: Settings) -> None:
    from sysvm.operator.app import App

    await until_told(App(settings))


async def until_told(app: "App") -> None:
    """Runs the operator until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)
    await app.run()
