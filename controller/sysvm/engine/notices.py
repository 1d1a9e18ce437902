"""Telling people: one call writes the Kubernetes Event and the log line, so that neither says more than the other."""

import logging

from sysvm.api.base import API_VERSION, ObjectMeta
from sysvm.api.reasons import EventReason
from sysvm.engine.ports import Recorder
from sysvm.kube.events import EventType
from sysvm.kube.objects import ObjectRef, Resource

logger = logging.getLogger("sysvm.engine")

_LOG_FIELD = {
    "CloudStackEndpoint": "endpoint",
    "SystemVMTemplate": "template",
    "PatchPolicy": "policy",
    "SystemVM": "systemvm",
    "Rollout": "rollout",
    "MaintenanceWindow": "window",
}


def reference(resource: Resource, metadata: ObjectMeta) -> ObjectRef:
    """The object as an Event names it."""
    return ObjectRef(API_VERSION, resource.kind, metadata.namespace, metadata.name, metadata.uid)


class Notices:
    """Events and logs about what was done."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def tell(
        self,
        resource: Resource,
        metadata: ObjectMeta,
        reason: EventReason,
        action: str,
        note: str,
        *,
        warning: bool = False,
        **about: object,
    ) -> None:
        """`note` is the sentence. `about` adds fields to the log line (rollout, operation, ...)."""
        self._recorder.event(
            reference(resource, metadata),
            EventType.WARNING if warning else EventType.NORMAL,
            str(reason),
            action,
            note,
        )
        fields = {_LOG_FIELD[resource.kind]: f"{metadata.namespace}/{metadata.name}", "reason": str(reason), **about}
        logger.log(logging.WARNING if warning else logging.INFO, "%s", note, extra=fields)
