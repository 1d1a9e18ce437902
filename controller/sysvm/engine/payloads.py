"""The payloads of the releases, in memory once they were fetched, verified and read."""

from dataclasses import dataclass

from sysvm.api.template import SystemVMTemplate
from sysvm.engine.stores import key_of
from sysvm.kube.objects import Key
from sysvm.patching.payload import Payload


@dataclass(frozen=True, slots=True)
class _Read:
    uid: str
    payload: Payload


class Payloads:
    """By SystemVMTemplate. A template that was deleted and made anew is another one: it is known by its uid."""

    def __init__(self) -> None:
        self._read: dict[Key, _Read] = {}

    def get(self, template: SystemVMTemplate | None) -> Payload | None:
        """The payload; None while it is not there."""
        known = self._read.get(key_of(template)) if template is not None else None
        return known.payload if known and template and known.uid == template.metadata.uid else None

    def put(self, template: SystemVMTemplate, payload: Payload) -> None:
        self._read[key_of(template)] = _Read(template.metadata.uid, payload)

    def forget(self, key: Key) -> None:
        self._read.pop(key, None)
