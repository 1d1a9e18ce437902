"""Keeping ten thousand SystemVMs small: parts that are equal are one object, and bookkeeping of the parser goes.

VMs of one template show the same services, signatures, files and words. A parsed object holds a copy of each, and for
every part of it the set of fields that were given: together most of its memory. Models are immutable, so whoever reads
cannot tell a shared part from its own.
"""

from datetime import datetime
from sys import intern
from typing import TypeVar

from sysvm.api.base import ApiModel, Condition, NameRef
from sysvm.api.observed import ObservedService, ObservedTemplate, Obstacle, PairGateway
from sysvm.api.operation import ServiceAction
from sysvm.api.systemvm import Blocker, PlannedAction
from sysvm.api.template import Signature

T = TypeVar("T", bound=ApiModel)

_REPEATED = frozenset(
    {
        Blocker,
        NameRef,
        ObservedService,
        ObservedTemplate,
        Obstacle,
        PairGateway,
        PlannedAction,
        ServiceAction,
        Signature,
    }
)
"""Parts that many VMs have alike. Others differ from VM to VM and would only fill the table."""
TABLE_AT_MOST = 20_000
"""Then it is begun anew: who holds a part keeps it."""

_GIVEN: set[str] = set()
"""Which fields were given, for all: nothing of ours asks, and a model that is copied gets a set of its own."""


class Sharing:
    """A table of parts. Belongs to one store."""

    def __init__(self) -> None:
        self._parts: dict[object, object] = {}

    def small(self, model: T) -> T:
        """The same model, made of shared parts. It must be fresh from the parser: its fields are changed in place."""
        if len(self._parts) > TABLE_AT_MOST:
            self._parts.clear()
        self._shrink(model)
        return model

    def _shrink(self, model: ApiModel) -> None:
        fields = model.__dict__
        for name, value in fields.items():
            kind = type(value)
            if kind is str:
                fields[name] = intern(value)
            elif kind is tuple:
                if value:
                    fields[name] = tuple(self._part(item) for item in value)
            elif kind is datetime or isinstance(value, ApiModel):
                fields[name] = self._part(value)
        object.__setattr__(model, "__pydantic_fields_set__", _GIVEN)

    def _part(self, value: object) -> object:
        if isinstance(value, str):
            return intern(value) if type(value) is str else value
        if isinstance(value, datetime):
            return self._parts.setdefault(value, value)
        if isinstance(value, ApiModel):
            self._shrink(value)
            if type(value) in _REPEATED or (isinstance(value, Condition) and not value.message):
                return self._parts.setdefault((type(value), value), value)
        return value
