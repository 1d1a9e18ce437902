"""From what a release says of its payload to the payload: each kind of source, and what it needs of the cluster.

Where Git names a digest, the digest decides. Where it names machines, what they hold is pinned: the pin is written to
the status before anybody uses the payload, and from then on it is the digest that decides, also after a restart, and
also if the machines hold something else by then.
"""

import asyncio
import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sysvm.api.base import KeyRef
from sysvm.api.payload import ManagementServerSource, PayloadFile, PinnedPayload
from sysvm.api.reasons import Reason
from sysvm.api.template import SystemVMTemplate
from sysvm.domain.payload_hosts import MOST_BUILDS, Build, chosen, disagreement, named, warnings_of
from sysvm.domain.source_status import Problem
from sysvm.engine.ports import Clock
from sysvm.engine.resources import CONFIG_MAP, SECRET
from sysvm.kube.client import Cluster
from sysvm.kube.errors import Forbidden, KubeError, NotFound
from sysvm.kube.objects import Resource
from sysvm.patching.errors import PatchingError, PayloadError
from sysvm.patching.host_source import Held, Machine, MachineSource
from sysvm.patching.keys import load_known_hosts, load_private_key
from sysvm.patching.oci import OciReference, RegistryLogin, login_for
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.results import HostFiles, HostLogin, HostPlace
from sysvm.patching.sources import PayloadPaths, PayloadSources

_DOCKER_CONFIG = ".dockerconfigjson"


@dataclass(frozen=True, slots=True)
class Fetched:
    """A payload, and what is to be pinned of it before it is used."""

    payload: Payload
    pinned: PinnedPayload | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Machines:
    """Those that hold the payload of a release."""

    asked: tuple[Machine, ...]
    left_out: tuple[str, ...] = ()
    """Down or in maintenance: told, and not counted as agreeing."""


class PayloadFetcher:
    """Fetches and reads payloads. Everything it raises is a `PayloadError`."""

    def __init__(self, cluster: Cluster, sources: PayloadSources, machines: MachineSource | None, clock: Clock) -> None:
        self._cluster = cluster
        self._sources = sources
        self._machines = machines
        self._clock = clock

    async def fetch(self, template: SystemVMTemplate, hosts: Machines) -> Fetched:
        """`hosts`: the hypervisor hosts of the VMs that are selected for the release."""
        source = template.spec.payload
        if source.package is not None:
            return Fetched(await _read(await self._sources.fetch_package(source.package)))
        if source.files is not None:
            scripts = await self._file(template, source.files.scripts)
            agent = await self._file(template, source.files.agent) if source.files.agent is not None else None
            return Fetched(await _read(PayloadPaths(scripts.scripts, agent.scripts if agent is not None else None)))
        if source.host is not None:
            return await self._from_machines(template, hosts, source.host.expect)
        if source.management_server is not None:
            servers = await self._servers(template.metadata.namespace, source.management_server)
            return await self._from_machines(template, servers, source.management_server.expect)
        raise PayloadError("the release names no source for its payload", reason=Reason.PAYLOAD_NOT_FOUND)

    # Sources with a digest

    async def _file(self, template: SystemVMTemplate, file: PayloadFile) -> PayloadPaths:
        namespace, source = template.metadata.namespace, file.source
        content: bytes | None = None
        login: RegistryLogin | None = None
        if source.config_map_ref is not None:
            content = await self._value(CONFIG_MAP, namespace, source.config_map_ref)
        if source.oci is not None and source.oci.credentials_secret_ref is not None:
            ref = KeyRef(name=source.oci.credentials_secret_ref.name, key=_DOCKER_CONFIG)
            docker_config = await self._value(SECRET, namespace, ref)
            login = login_for(OciReference.parse(source.oci.ref), docker_config, f"Secret {ref.name}")
        return PayloadPaths(await self._sources.fetch(file, content=content, login=login), None)

    # Machines

    async def _from_machines(self, template: SystemVMTemplate, machines: Machines, expect: str | None) -> Fetched:
        if self._machines is None:
            raise PayloadError("this operator has no way to the hosts", reason=Reason.NO_HOSTS)
        pinned = template.status.pinned
        if pinned is not None:
            return Fetched(await _read(await self._pinned(self._machines, pinned, machines)))
        _require(machines)
        held = await self._machines.ask(machines.asked)
        builds, without = _builds(held)
        if 1 < len(builds) <= MOST_BUILDS and not without:
            builds = [await self._with_revision(self._machines, build, held) for build in builds]
        _raise(disagreement(builds, without, machines.left_out))
        build = chosen(builds, expect)
        if isinstance(build, Problem):
            raise _error(build)
        payload = await _read(await self._machines.fetch(_holders(build, held)))
        pin = PinnedPayload(
            scripts=build.scripts,
            agent=build.agent,
            machines=sum(len(each.machines) for each in builds),
            from_=tuple(name[:253] for name in build.machines[:16]),
            at=self._clock(),
        )
        warnings = warnings_of(build, builds, machines.left_out)
        return Fetched(payload, pin, warnings)

    async def _pinned(self, source: MachineSource, pinned: PinnedPayload, machines: Machines) -> PayloadPaths:
        """What was pinned, from the cache or from a machine that still holds it."""
        kept = await source.kept(pinned.scripts, pinned.agent)
        if kept is not None:
            return kept
        _require(machines)
        held = await source.ask(machines.asked)
        builds, _ = _builds(held)
        build = next((each for each in builds if (each.scripts, each.agent) == (pinned.scripts, pinned.agent)), None)
        if build is None:
            holding = (
                "; ".join(each.told for each in builds) or f"nothing on {named([each.machine.name for each in held])}"
            )
            raise PayloadError(
                f"this release is cloud-scripts.tgz {pinned.scripts}, which no machine holds any more: there is "
                f"{holding}. Make a new SystemVMTemplate for what they hold now",
                reason=Reason.DIGEST_MISMATCH,
            )
        return await source.fetch(_holders(build, held))

    async def _with_revision(self, source: MachineSource, build: Build, held: Sequence[Held]) -> Build:
        paths = await source.fetch(_holders(build, held))
        return replace(build, revision=await source.revision(paths))

    async def _servers(self, namespace: str, source: ManagementServerSource) -> Machines:
        private_key = await self._value(SECRET, namespace, source.key_secret_ref)
        known_hosts = (await self._value(CONFIG_MAP, namespace, source.known_hosts_ref)).decode("utf-8", "replace")
        _prove_readable(SECRET, source.key_secret_ref, lambda: load_private_key(private_key))
        _prove_readable(CONFIG_MAP, source.known_hosts_ref, lambda: load_known_hosts(known_hosts))
        login = HostLogin(source.user, source.port, private_key, known_hosts, field_name="managementServer")
        places = (HostPlace(address, address, "management server") for address in sorted(source.addresses))
        return Machines(tuple(Machine(place, login) for place in places))

    # Secrets and ConfigMaps

    async def _value(self, resource: Resource, namespace: str, ref: KeyRef) -> bytes:
        what = f"{resource.kind} {ref.name}"
        missing = Reason.CREDENTIALS_MISSING if resource is SECRET else Reason.PAYLOAD_NOT_FOUND
        try:
            found = await self._cluster.get(resource, namespace, ref.name)
        except NotFound as error:
            raise PayloadError(
                f"{what} does not exist in namespace {namespace}", reason=missing, retryable=True
            ) from error
        except Forbidden as error:
            raise PayloadError(f"the operator may not read {what}: {error.message}", reason=missing) from error
        except KubeError as error:
            raise PayloadError(
                f"{what} cannot be read: {error.message}", reason=Reason.PAYLOAD_FETCH_FAILED, retryable=True
            ) from error
        encoded = (found.get("data" if resource is SECRET else "binaryData") or {}).get(ref.key)
        if encoded is not None:
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error as error:
                raise PayloadError(f"key {ref.key} of {what} is not valid base64") from error
        text = (found.get("data") or {}).get(ref.key)
        if text is None:
            raise PayloadError(f"{what} has no key {ref.key}", reason=missing, retryable=True)
        return str(text).encode()


async def _read(paths: PayloadPaths) -> Payload:
    return await asyncio.to_thread(read_payload, paths.scripts, paths.agent)


def _require(machines: Machines) -> None:
    if machines.asked:
        return
    left_out = f"; down or in maintenance: {named(machines.left_out)}" if machines.left_out else ""
    raise PayloadError(
        "no host is known that could be asked: a policy must select VMs for this release, and the endpoint must have a "
        f"route by way of their hosts{left_out}",
        reason=Reason.NO_HOSTS,
        retryable=True,
    )


def _builds(held: Sequence[Held]) -> tuple[list[Build], list[str]]:
    """What is held, with the machines that hold it; and the machines that hold nothing."""
    builds: dict[tuple[str, str | None], Build] = {}
    for each in sorted(held, key=lambda held: held.machine.name):
        if each.files is None:
            continue
        scripts, agent = _archives(each.files)
        also = frozenset(f"{algorithm}:{digest}" for algorithm, digest in each.files.checksums.items())
        known = builds.get((scripts, agent), Build(scripts, agent, (), also))
        builds[scripts, agent] = replace(known, machines=(*known.machines, each.machine.name))
    return list(builds.values()), sorted(each.machine.name for each in held if each.files is None)


def _archives(files: HostFiles) -> tuple[str, str | None]:
    agent = f"sha256:{files.agent.sha256}" if files.agent is not None else None
    return f"sha256:{files.scripts.sha256}", agent


def _holders(build: Build, held: Sequence[Held]) -> list[Held]:
    archives = build.scripts, build.agent
    return [each for each in held if each.files is not None and _archives(each.files) == archives]


def _raise(problem: Problem | None) -> None:
    if problem is not None:
        raise _error(problem)


def _error(problem: Problem) -> PayloadError:
    return PayloadError(problem.message, reason=problem.reason, retryable=problem.transient)


def _prove_readable(resource: Resource, ref: KeyRef, load: Callable[[], object]) -> None:
    try:
        load()
    except PatchingError as error:
        raise PayloadError(f"key {ref.key} of {resource.kind} {ref.name}: {error}", reason=error.reason) from error
