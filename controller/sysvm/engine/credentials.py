"""SSH logins and API keys of the endpoints, read from Secrets that the operator may get but neither list nor watch.

A Secret is read when its endpoint is looked at and the last reading is older than `MAX_AGE`, so a rotated key is in
use a little later without a restart and a burst of events costs one request. Private keys stay in memory and are never
shown.
"""

import base64
import binascii
from dataclasses import dataclass
from datetime import datetime, timedelta

from sysvm.api.base import KeyRef
from sysvm.api.endpoint import CloudStackEndpoint, HostKeyPolicy, Route
from sysvm.api.reasons import Reason
from sysvm.cloudstack.errors import AccessInvalid
from sysvm.cloudstack.transport import Access, Credentials
from sysvm.engine.resources import CONFIG_MAP, SECRET
from sysvm.engine.stores import key_of
from sysvm.kube.client import Cluster
from sysvm.kube.errors import Forbidden, NotFound
from sysvm.kube.objects import Key
from sysvm.patching.keys import KeyUnreadable, load_known_hosts, load_private_key
from sysvm.patching.results import HostLogin, SSHAccount, Way

MAX_AGE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class NoAccount:
    """Why nobody can log in on the VMs of an endpoint."""

    reason: Reason
    message: str


@dataclass(frozen=True, slots=True)
class _Reading:
    at: datetime
    generation: int
    account: SSHAccount | NoAccount


@dataclass(frozen=True, slots=True)
class _AccessReading:
    at: datetime
    generation: int
    access: Access | NoAccount


class Accounts:
    """How to log in, by endpoint."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._readings: dict[Key, _Reading] = {}
        self._accesses: dict[Key, _AccessReading] = {}

    def get(self, endpoint: Key) -> SSHAccount | NoAccount | None:
        """What the last reading gave; None before the first."""
        reading = self._readings.get(endpoint)
        return None if reading is None else reading.account

    def forget(self, endpoint: Key) -> None:
        self._readings.pop(endpoint, None)
        self._accesses.pop(endpoint, None)

    async def read(self, endpoint: CloudStackEndpoint, now: datetime) -> tuple[SSHAccount | NoAccount, bool]:
        """The login as it is now, and whether it differs from the last reading. Raises `KubeError`."""
        key = key_of(endpoint)
        known = self._readings.get(key)
        fresh = known is not None and known.generation == endpoint.metadata.generation and now - known.at < MAX_AGE
        if known is not None and fresh and isinstance(known.account, SSHAccount):
            return known.account, False
        account = await self._read(endpoint)
        self._readings[key] = _Reading(now, endpoint.metadata.generation, account)
        return account, known is None or known.account != account

    async def read_access(self, endpoint: CloudStackEndpoint, now: datetime) -> Access | NoAccount:
        """How its management server is asked, as it is now. Raises `KubeError`."""
        key = key_of(endpoint)
        known = self._accesses.get(key)
        fresh = known is not None and known.generation == endpoint.metadata.generation and now - known.at < MAX_AGE
        if known is not None and fresh and isinstance(known.access, Access):
            return known.access
        access = await self._read_access(endpoint)
        self._accesses[key] = _AccessReading(now, endpoint.metadata.generation, access)
        return access

    async def _read_access(self, endpoint: CloudStackEndpoint) -> Access | NoAccount:
        api, namespace = endpoint.spec.api, endpoint.metadata.namespace
        if api is None:
            return NoAccount(Reason.INVALID_SPEC, "spec.api is missing: inventory CloudStack needs it")
        keys: list[str] = []
        for name in ("apiKey", "secretKey"):
            ref = KeyRef(name=api.credentials_secret_ref.name, key=name)
            value = await self._secret_value(namespace, ref, "the key of a CloudStack user")
            if isinstance(value, NoAccount):
                return value
            # An editor's newline at the end is no part of a key. Bytes that are no text become one that is refused.
            keys.append(value.decode("utf-8", "replace").strip())
        ca_bundle: str | None = None
        if api.ca_bundle_ref is not None:
            text = await self._known_hosts(namespace, api.ca_bundle_ref, Reason.CREDENTIALS_MISSING)
            if isinstance(text, NoAccount):
                return text
            ca_bundle = text
        try:
            return Access(
                url=api.url,
                credentials=Credentials(*keys),
                ca_bundle=ca_bundle,
                timeout=api.timeout,
                requests_per_second=api.limits.requests_per_second,
                burst=api.limits.burst,
            )
        except AccessInvalid as error:
            return NoAccount(error.reason, str(error))

    async def _read(self, endpoint: CloudStackEndpoint) -> SSHAccount | NoAccount:
        ssh = endpoint.spec.ssh
        namespace = endpoint.metadata.namespace
        private_key = await self._private_key(namespace, ssh.key_secret_ref, "CloudStack's private key")
        if isinstance(private_key, NoAccount):
            return private_key
        known_hosts: str | None = None
        if ssh.host_keys.policy is HostKeyPolicy.STRICT and ssh.host_keys.known_hosts_ref is not None:
            text = await self._known_hosts(namespace, ssh.host_keys.known_hosts_ref)
            if isinstance(text, NoAccount):
                return text
            known_hosts = text
        ways: list[Way] = []
        for route in ssh.routes:
            way = await self._way(namespace, route, ssh.limits.connections_per_host)
            if isinstance(way, NoAccount):
                return way
            ways.append(way)
        return SSHAccount(
            user=ssh.user,
            port=ssh.port,
            private_key=private_key,
            host_key_policy=ssh.host_keys.policy,
            known_hosts=known_hosts,
            algorithms=ssh.algorithms,
            connections=ssh.limits.connections,
            pool=str(key_of(endpoint)),
            ways=tuple(ways),
        )

    async def _way(self, namespace: str, route: Route, connections: int) -> Way | NoAccount:
        hypervisors = frozenset(hypervisor.casefold() for hypervisor in route.hypervisors)
        if route.jump is None:
            return Way(hypervisors, None)
        private_key = await self._private_key(
            namespace, route.jump.key_secret_ref, "the private key for the hypervisor hosts"
        )
        if isinstance(private_key, NoAccount):
            return private_key
        known_hosts = await self._known_hosts(namespace, route.jump.known_hosts_ref)
        if isinstance(known_hosts, NoAccount):
            return known_hosts
        ref = route.jump.known_hosts_ref
        try:
            load_known_hosts(known_hosts)
        except KeyUnreadable as error:
            return NoAccount(Reason.CREDENTIALS_UNREADABLE, f"key {ref.key} of ConfigMap {ref.name}: {error}")
        jump = HostLogin(
            user=route.jump.user,
            port=route.jump.port,
            private_key=private_key,
            known_hosts=known_hosts,
            connections=connections,
        )
        return Way(hypervisors, jump)

    async def _private_key(self, namespace: str, ref: KeyRef, what: str) -> bytes | NoAccount:
        private_key = await self._secret_value(namespace, ref, what)
        if isinstance(private_key, NoAccount):
            return private_key
        try:
            load_private_key(private_key)
        except KeyUnreadable as error:
            return NoAccount(Reason.CREDENTIALS_UNREADABLE, f"key {ref.key} of Secret {ref.name}: {error}")
        return private_key

    async def _secret_value(self, namespace: str, ref: KeyRef, whose: str) -> bytes | NoAccount:
        what = f"Secret {ref.name}"
        try:
            secret = await self._cluster.get(SECRET, namespace, ref.name)
        except NotFound:
            return NoAccount(
                Reason.CREDENTIALS_MISSING,
                f"{what} does not exist in namespace {namespace}: create it with {whose} in {ref.key}",
            )
        except Forbidden as error:
            return NoAccount(Reason.CREDENTIALS_MISSING, f"the operator may not read {what}: {error.message}")
        encoded = (secret.get("data") or {}).get(ref.key)
        if encoded is None:
            return NoAccount(Reason.CREDENTIALS_MISSING, f"{what} has no key {ref.key}")
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error:
            return NoAccount(Reason.CREDENTIALS_UNREADABLE, f"key {ref.key} of {what} is not valid base64")

    async def _known_hosts(
        self, namespace: str, ref: KeyRef, missing: Reason = Reason.KNOWN_HOSTS_MISSING
    ) -> str | NoAccount:
        try:
            config_map = await self._cluster.get(CONFIG_MAP, namespace, ref.name)
        except NotFound:
            return NoAccount(missing, f"ConfigMap {ref.name} does not exist in namespace {namespace}")
        except Forbidden as error:
            return NoAccount(missing, f"the operator may not read ConfigMap {ref.name}: {error.message}")
        text = (config_map.get("data") or {}).get(ref.key)
        if not isinstance(text, str):
            return NoAccount(missing, f"ConfigMap {ref.name} has no key {ref.key}")
        return text
