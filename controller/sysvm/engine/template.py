"""SystemVMTemplate: fetch the payload, judge it, say what it is. A bad payload stops here and touches no VM."""

import asyncio
from collections.abc import Callable

from sysvm.api.base import REQUESTED_AT_ANNOTATION, ConditionStatus
from sysvm.api.reasons import ConditionType, EventReason
from sysvm.api.template import Signature, SystemVMTemplate, SystemVMTemplateStatus
from sysvm.domain.conditions import find
from sysvm.domain.image_status import Images
from sysvm.domain.source_status import PayloadFound, Problem, template_status
from sysvm.engine.images import ImageWatch
from sysvm.engine.notices import Notices
from sysvm.engine.payload_fetch import Fetched, Machines, PayloadFetcher
from sysvm.engine.payloads import Payloads
from sysvm.engine.ports import Clock
from sysvm.engine.resources import TEMPLATE
from sysvm.engine.status import write_status
from sysvm.engine.stores import Stores
from sysvm.engine.work import Pool
from sysvm.kube.client import Cluster
from sysvm.kube.objects import Key
from sysvm.kube.queue import Again
from sysvm.patching.errors import PatchingError
from sysvm.patching.payload import Payload

MachinesOf = Callable[[SystemVMTemplate], Machines]
"""The hypervisor hosts of the VMs that are selected for a release, as they are known now."""

TRANSIENT_RETRY_SECONDS = 10.0
PERMANENT_RETRY_SECONDS = 300.0
"""A wrong digest or an unsafe archive can be mended at the source without an edit of the release."""
CONFLICT_RETRY_SECONDS = 0.5


class TemplateReconciler:
    """One key: one SystemVMTemplate."""

    def __init__(
        self,
        cluster: Cluster,
        stores: Stores,
        fetcher: PayloadFetcher,
        machines_of: MachinesOf,
        payloads: Payloads,
        fetches: Pool[None, Fetched],
        images: ImageWatch,
        notices: Notices,
        changed: Callable[[Key], None],
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._stores = stores
        self._fetcher = fetcher
        self._machines_of = machines_of
        self._payloads = payloads
        self._fetches = fetches
        self._images = images
        self._notices = notices
        self._changed = changed
        self._clock = clock

    async def reconcile(self, key: Key) -> Again | None:
        template = self._stores.templates.get(key)
        if template is None or template.metadata.deletion_timestamp is not None:
            self._payloads.forget(key)
            self._fetches.forget(key)
            self._images.forget(key)
            return None
        fetched, outcome, again = self._look(key, template)
        images, wait = self._images.look(template)
        if wait is not None and (again is None or again.after_seconds > wait):
            again = Again(wait)
        reported = await self._report(template, outcome, images)
        if fetched is None:
            return again
        if fetched.pinned is not None and not reported:
            # Somebody wrote in between. What machines hold is used only once it is pinned: a restart would find them
            # with something else, and VMs that were brought to a release that nobody can name.
            return Again(CONFLICT_RETRY_SECONDS)
        self._payloads.put(template, fetched.payload)
        self._fetches.forget(key)
        self._changed(key)
        return again

    def _look(
        self, key: Key, template: SystemVMTemplate
    ) -> tuple[Fetched | None, PayloadFound | Problem | None, Again | None]:
        """What has just arrived, what there is to say, and when to look again."""
        payload = self._payloads.get(template)
        if payload is not None:
            return None, _found(Fetched(payload), template), None
        requested = template.metadata.annotations.get(REQUESTED_AT_ANNOTATION, "")
        if requested != (template.status.last_handled_reconcile_at or ""):
            self._fetches.forget(key)
        handle = self._fetches.start(
            key,
            template.metadata.uid,
            lambda progress: self._fetcher.fetch(template, self._machines_of(template)),
        )
        if handle.result is not None:
            return handle.result, _found(handle.result, template), None
        if handle.error is not None:
            wait = TRANSIENT_RETRY_SECONDS if handle.error.retryable else PERMANENT_RETRY_SECONDS
            asyncio.get_running_loop().call_later(wait, self._fetches.forget, key)
            return None, _problem(handle.error), Again(wait + 0.1)
        return None, None, None

    async def _report(self, template: SystemVMTemplate, outcome: PayloadFound | Problem | None, images: Images) -> bool:
        """Whether the status in the cluster says so now."""
        if outcome is None and _is_known_good(template):
            return True  # read again after a restart: what a former process found stands until it is proven otherwise
        status = template_status(template, outcome, now=self._clock(), images=images)
        requested = template.metadata.annotations.get(REQUESTED_AT_ANNOTATION)
        status = status.model_copy(update={"last_handled_reconcile_at": requested})
        if not await write_status(self._cluster, TEMPLATE, template.metadata, template.status, status):
            return False
        if status.conditions != template.status.conditions:
            self._tell(template, outcome, template.status, status)
        return True

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


def _is_known_good(template: SystemVMTemplate) -> bool:
    ready = find(template.status.conditions, ConditionType.READY)
    return (
        ready is not None
        and ready.status is ConditionStatus.TRUE
        and ready.observed_generation == template.metadata.generation
    )


def _found(fetched: Fetched, template: SystemVMTemplate) -> PayloadFound:
    payload, agent = fetched.payload, fetched.payload.agent
    told = fetched.warnings or _standing(template, payload)
    return PayloadFound(
        revision=payload.revision,
        scripts_revision=payload.scripts_revision,
        signature=Signature(algorithm=payload.signature_algorithm, value=payload.signature),
        files=len(payload.scripts.entries),
        size_bytes=payload.scripts_size_bytes + (agent.size_bytes if agent is not None else 0),
        warnings=tuple(warning[:253] for warning in (*told, *payload.warnings)[:16]),
        agent_files=len(agent.entries) if agent is not None else None,
        pinned=fetched.pinned,
    )


def _standing(template: SystemVMTemplate, payload: Payload) -> tuple[str, ...]:
    """What was said of the machines when the payload was pinned, and is not to vanish at the next look."""
    if template.status.pinned is None:
        return ()
    known = {warning[:253] for warning in payload.warnings}
    return tuple(warning for warning in template.status.warnings if warning not in known)


def _problem(error: PatchingError) -> Problem:
    return Problem(reason=error.reason, message=str(error), transient=error.retryable)
