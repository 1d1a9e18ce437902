"""Who we are to the API server, and staying so when the token is rotated.

A service account's token is replaced in its file about every hour and the old one stops working soon after. The
official client reads it again by itself only in the cluster, and not when the server says no; here both logins are
read again every minute and at every 401.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from sysvm.kube.errors import LoginFailed

REFRESH_SECONDS = 60.0

_UNUSABLE = (ConfigException, OSError, ValueError, TypeError, yaml.YAMLError)


class Login:
    """Reads the credentials from a kubeconfig, or from the Pod's service account when ``kubeconfig`` is None.

    Only tokens are followed; a client certificate is read once.
    """

    def __init__(
        self, *, kubeconfig: Path | None, context: str | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._monotonic = monotonic
        self._configuration = Configuration()
        self._read_at = 0.0
        self._reading = asyncio.Lock()

    async def open(self) -> Configuration:
        """The configuration, kept up to date by ``refresh``. Raises LoginFailed."""
        try:
            await self._read(self._configuration)
        except _UNUSABLE as error:
            source = self._kubeconfig or "the Pod's service account"
            raise LoginFailed(f"cannot log in by {source}: {error}") from error
        self._read_at = self._monotonic()
        return self._configuration

    @property
    def token(self) -> str:
        """The token that requests carry now; empty with a client certificate."""
        return str(self._configuration.api_key.get("BearerToken", ""))

    async def refresh(self) -> None:
        """Reads the token again when that was last done a minute ago."""
        if self._monotonic() - self._read_at >= REFRESH_SECONDS:
            await self._read_again()

    async def replace(self, rejected: str) -> bool:
        """Reads the token again because the server did not accept this one. True when there is another now."""
        async with self._reading:  # of many that were rejected at once, the first one reads
            if self.token == rejected:
                await self._read_again()
        return self.token != rejected

    async def _read_again(self) -> None:
        """A file that cannot be read leaves the token that is known: it may still be good."""
        fresh = Configuration()
        self._read_at = self._monotonic()
        with contextlib.suppress(*_UNUSABLE):
            await self._read(fresh)
            self._configuration.api_key = fresh.api_key

    async def _read(self, configuration: Configuration) -> None:
        if self._kubeconfig is None:
            # mypy: the client's loaders have no annotations
            load_incluster_config(  # type: ignore[no-untyped-call]
                client_configuration=configuration, try_refresh_token=False
            )
        else:
            await load_kube_config(  # type: ignore[no-untyped-call]
                config_file=str(self._kubeconfig),
                context=self._context,
                client_configuration=configuration,
                persist_config=False,
            )
        configuration.api_key = {name: value.strip() for name, value in configuration.api_key.items()}
