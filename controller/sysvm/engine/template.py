"""SystemVMTemplate: fetch the payload, judge it, say what it is. A bad payload stops here and touches no VM."""

import asyncio
import base64
import binascii
from collections.abc import Callable

from sysvm.api.base import REQUESTED_AT_ANNOTATION, ConditionStatus
from sysvm.api.reasons import ConditionType, EventReason, Reason
from sysvm.api.template import PayloadFile, Signature, SystemVMTemplate, SystemVMTemplateStatus
from sysvm.domain.conditions import find
from sysvm.domain.source_status import PayloadFound, Problem, template_status
from sysvm.engine.notices import Notices
from sysvm.engine.payloads import Payloads
from sysvm.engine.ports import Clock
from sysvm.engine.resources import CONFIG_MAP, TEMPLATE
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores
from sysvm.engine.work import Pool
from sysvm.kube.client import Cluster
from sysvm.kube.errors import KubeError, NotFound
from sysvm.kube.objects import Key
from sysvm.kube.queue import Again
from sysvm.patching.errors import PatchingError, PayloadError
from sysvm.patching.payload import Payload, read_payload
from sysvm.patching.sources import PayloadSources

TRANSIENT_RETRY_SECONDS = 10.0
PERMANENT_RETRY_SECONDS = 300.0
"""A wrong digest or an unsafe archive can be mended at the source without an edit of the release."""


class TemplateReconciler:
    """One key: one SystemVMTemplate."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        sources: PayloadSources,
        payloads: Payloads,
        fetches: Pool[None, Payload],
        notices: Notices,
        changed: Callable[[Key], None],
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._sources = sources
        self._payloads = payloads
        self._fetches = fetches
        self._notices = notices
        self._changed = changed
        self._clock = clock

    async def reconcile(self, key: Key) -> Again | None:
        template = self._stores.templates.get(key)
        if template is None or template.metadata.deletion_timestamp is not None:
            self._payloads.forget(key)
            self._fetches.forget(key)
            return None
        outcome, again = self._look(key, template)
        await self._report(template, outcome)
        return again

    def _look(self, key: Key, template: SystemVMTemplate) -> tuple[PayloadFound | Problem | None, Again | None]:
        payload = self._payloads.get(template)
        if payload is not None:
            return _found(payload), None
        requested = template.metadata.annotations.get(REQUESTED_AT_ANNOTATION, "")
        if requested != (template.status.last_handled_reconcile_at or ""):
            self._fetches.forget(key)
        handle = self._fetches.start(key, template.metadata.uid, lambda progress: self._fetch(template))
        if handle.result is not None:
            self._payloads.put(template, handle.result)
            self._fetches.forget(key)
            self._changed(key)
            return _found(handle.result), None
        if handle.error is not None:
            wait = TRANSIENT_RETRY_SECONDS if handle.error.retryable else PERMANENT_RETRY_SECONDS
            asyncio.get_running_loop().call_later(wait, self._fetches.forget, key)
            return _problem(handle.error), Again(wait + 0.1)
        return None, None

    async def _report(self, template: SystemVMTemplate, outcome: PayloadFound | Problem | None) -> None:
        if outcome is None and _is_known_good(template):
            return  # read again after a restart: what a former process found stands until it is proven otherwise
        status = template_status(template, outcome, now=self._clock())
        requested = template.metadata.annotations.get(REQUESTED_AT_ANNOTATION)
        status = status.model_copy(update={"last_handled_reconcile_at": requested})
        if not await write_status(self._cluster, TEMPLATE, template.metadata, template.status, status):
            return
        if status.conditions != template.status.conditions:
            self._tell(template, outcome, template.status, status)

    def _tell(
        self,
        template: SystemVMTemplate,
        outcome: PayloadFound | Problem | None,
        old: SystemVMTemplateStatus,
        new: SystemVMTemplateStatus,
    ) -> None:
        if isinstance(outcome, PayloadFound) and old.revision != new.revision:
            found = f"revision {outcome.revision[:8]}, {outcome.files} files"
            note = f"payload of release {template.spec.version} read: {found}"
            self._notices.tell(TEMPLATE, template.metadata, EventReason.PAYLOAD_READY, "Read", note)
        elif isinstance(outcome, Problem):
            self._notices.tell(
                TEMPLATE, template.metadata, EventReason.PAYLOAD_REFUSED, "Refuse", outcome.message, warning=True
            )

    async def _fetch(self, template: SystemVMTemplate) -> Payload:
        files = template.spec.payload.files
        scripts = await self._sources.fetch(files.scripts, content=await self._content(template, files.scripts))
        agent = None
        if files.agent is not None:
            agent = await self._sources.fetch(files.agent, content=await self._content(template, files.agent))
        return await asyncio.to_thread(read_payload, scripts, agent)

    async def _content(self, template: SystemVMTemplate, file: PayloadFile) -> bytes | None:
        ref = file.source.config_map_ref
        if ref is None:
            return None
        try:
            config_map = await self._cluster.get(CONFIG_MAP, template.metadata.namespace, ref.name)
        except NotFound as error:
            raise PayloadError(
                f"ConfigMap {ref.name} does not exist in namespace {template.metadata.namespace}",
                reason=Reason.PAYLOAD_NOT_FOUND,
                retryable=True,
            ) from error
        except KubeError as error:
            raise PayloadError(
                f"ConfigMap {ref.name} cannot be read: {error.message}",
                reason=Reason.PAYLOAD_FETCH_FAILED,
                retryable=True,
            ) from error
        encoded = (config_map.get("binaryData") or {}).get(ref.key)
        if encoded is not None:
            try:
                return base64.b64decode(encoded, validate=True)
            except binascii.Error as error:
                raise PayloadError(f"key {ref.key} of ConfigMap {ref.name} is not valid base64") from error
        text = (config_map.get("data") or {}).get(ref.key)
        if text is None:
            raise PayloadError(
                f"ConfigMap {ref.name} has no key {ref.key}", reason=Reason.PAYLOAD_NOT_FOUND, retryable=True
            )
        return str(text).encode()


def _is_known_good(template: SystemVMTemplate) -> bool:
    ready = find(template.status.conditions, ConditionType.READY)
    return (
        ready is not None
        and ready.status is ConditionStatus.TRUE
        and ready.observed_generation == template.metadata.generation
    )


def _found(payload: Payload) -> PayloadFound:
    size = payload.scripts_size_bytes + (payload.agent.size_bytes if payload.agent is not None else 0)
    return PayloadFound(
        revision=payload.revision,
        signature=Signature(algorithm=payload.signature_algorithm, value=payload.signature),
        files=len(payload.scripts.entries),
        size_bytes=size,
        warnings=tuple(warning[:253] for warning in payload.warnings[:16]),
    )


def _problem(error: PatchingError) -> Problem:
    return Problem(reason=error.reason, message=str(error), transient=error.retryable)
