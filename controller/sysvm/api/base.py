"""What every kind shares: how a field is spelled on the wire, and the scalar types with their bounds.

The schema generator reads the constraints off these types, so a bound is written once. Absent means unset: a field that
may be missing is `T | None = None` in Python and simply not required in the schema; `null` is never written.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

GROUP = "sysvm.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
CATEGORY = "cloudstack"

OPERATION_FINALIZER = "sysvm.io/operation"
REQUESTED_AT_ANNOTATION = "sysvm.io/requestedAt"
PREDECESSOR_ANNOTATION = "sysvm.io/predecessor"
"""On a SystemVM: name of the VM whose place it took. Set when its object is made, or when that one is given up."""
ENDPOINT_LABEL = "sysvm.io/endpoint"
POLICY_LABEL = "sysvm.io/policy"


class ApiModel(BaseModel):
    """A part of an object: camelCase on the wire, immutable here, tolerant of fields that a newer version added."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dict as the API server stores it: aliases, no nulls."""
        return self.model_dump(mode="json", exclude_none=True)


def rule(expression: str, message: str) -> dict[str, str]:
    """One CEL rule for `x-kubernetes-validations`; `message` is the sentence a person reads."""
    return {"rule": expression, "message": message}


@dataclass(frozen=True)
class Says:
    """Annotation of a field: a CEL rule on its value, and the sentence a person reads when it does not hold.

    The API server reports a broken `pattern` as "should match '^[0-9]+...'"; this stands beside it for people.
    """

    expression: str
    message: str

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        schema["x-kubernetes-validations"] = [
            *schema.get("x-kubernetes-validations", ()),
            rule(self.expression, self.message),
        ]
        return schema


def matching(pattern: str, message: str) -> Says:
    """The sentence for a `pattern`."""
    return Says(f"self.matches({cel_text(pattern)})", message)


def cel_text(text: str) -> str:
    """A string literal of CEL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


DURATION_PATTERN = "^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?$"
_DURATION = re.compile("^(?:([0-9]{1,5})h)?(?:([0-9]{1,5})m)?(?:([0-9]{1,5})s)?$")


def compare_durations(left: str, operator: str, right: str) -> str:
    """CEL that compares two durations, each a field (`self.step`) or a literal (`10s`).

    A field whose text is no duration passes: its own rule reports it, and `duration()` would end in an error instead.
    """
    fields = [side for side in (left, right) if side.startswith("self")]
    terms = [side if side in fields else cel_text(side) for side in (left, right)]
    guards = "".join(f"!{field}.matches({cel_text(DURATION_PATTERN)}) || " for field in fields)
    return f"{guards}duration({terms[0]}) {operator} duration({terms[1]})"


def at_least(duration: str) -> Says:
    """Lower bound of a Duration."""
    return Says(compare_durations("self", ">=", duration), f"must be at least {duration}")


def at_most(duration: str) -> Says:
    """Upper bound of a Duration."""
    return Says(compare_durations("self", "<=", duration), f"must be at most {duration}")


def parse_duration(text: str) -> timedelta:
    """`1h30m`, `45s`. Raises ValueError on anything else, also on the empty string."""
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise ValueError(f"{text!r} is not a duration such as 30s, 10m or 1h30m")
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(hours=hours, minutes=minutes, seconds=seconds)


def format_duration(value: timedelta) -> str:
    """The inverse of `parse_duration`, in whole seconds: `1h30m`, `0s`."""
    total = int(value.total_seconds())
    # A unit has at most five digits, so what hours cannot hold goes on in minutes, and then in seconds.
    hours = min(total // 3600, 99_999)
    minutes = min((total - hours * 3600) // 60, 99_999)
    seconds = total - hours * 3600 - minutes * 60
    parts = (f"{hours}h" if hours else "", f"{minutes}m" if minutes else "", f"{seconds}s" if seconds else "")
    return "".join(parts) or "0s"


def _to_timedelta(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


Duration = Annotated[
    timedelta,
    BeforeValidator(_to_timedelta),
    PlainSerializer(format_duration, return_type=str),
    Field(
        json_schema_extra={
            "type": "string",
            "pattern": DURATION_PATTERN,
            "minLength": 2,
            "maxLength": 18,
            "format": None,
        }
    ),
    matching(DURATION_PATTERN, "must be a duration in hours, minutes and seconds, such as 30s, 10m or 1h30m"),
]
"""Elapsed time, written like `90s`, `10m`, `1h30m`."""


def _aware(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def format_time(value: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as Kubernetes writes times."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


Time = Annotated[
    datetime,
    AfterValidator(_aware),
    PlainSerializer(format_time, return_type=str),
    Field(json_schema_extra={"type": "string", "format": "date-time"}),
]
"""A moment, RFC 3339."""

_PERCENT_PATTERN = "^([1-9][0-9]?|100)%$"
_COUNT_OR_PERCENT = re.compile(_PERCENT_PATTERN)


def _count_or_percent(value: int | str) -> int | str:
    if isinstance(value, str) and not _COUNT_OR_PERCENT.fullmatch(value):
        raise ValueError(f"{value!r} is neither a whole number from 1 nor a percentage from 1% to 100%")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{value} is less than 1")
    return value


IntOrPercent = Annotated[
    int | str,
    AfterValidator(_count_or_percent),
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "minimum": 1,
            "pattern": _PERCENT_PATTERN,
            "maxLength": 4,
        }
    ),
    Says(
        f"type(self) == int ? self >= 1 : self.matches({cel_text(_PERCENT_PATTERN)})",
        "must be a whole number from 1, or a percentage from 1% to 100%",
    ),
]
"""A count, or a percentage such as `5%`."""

_NAME_PATTERN = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"

DnsName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=_NAME_PATTERN),
    matching(_NAME_PATTERN, "must be the name of an object: lower case letters, digits, '-' and '.'"),
]
"""Name of another object in the same namespace."""

_DIGEST_PATTERN = "^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128}|md5:[a-f0-9]{32})$"

Digest = Annotated[
    str,
    Field(max_length=140, pattern=_DIGEST_PATTERN),
    matching(
        _DIGEST_PATTERN,
        "must be sha256:, sha512: or md5: followed by all hexadecimal digits of the digest in lower case",
    ),
]
"""`alg:hex`."""

ShortText = Annotated[str, Field(max_length=253)]
LongText = Annotated[str, Field(max_length=1024)]


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(ApiModel):
    """One aspect of an object's state, as `kubectl wait --for=condition=...` reads it."""

    type: Annotated[str, Field(min_length=1, max_length=64)]
    """Name of the aspect. Ready, Reconciling and Stalled follow the kstatus contract."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: Annotated[str, Field(min_length=1, max_length=64, pattern="^[A-Za-z]([A-Za-z0-9]*)$")]
    """One word for programs; the list is part of the API."""
    message: Annotated[str, Field(max_length=4096)] = ""
    """A sentence for people."""
    observed_generation: Annotated[int, Field(ge=-1)] | None = None
    """Generation of the spec that this speaks of."""
    last_transition_time: Time
    """When `status` last changed."""


PENDING_STATUS: dict[str, Any] = {
    "observedGeneration": -1,
    "conditions": [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "Pending",
            "message": "Waiting for the operator",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }
    ],
}
"""Status of an object that no operator has seen: Flux, Helm and kubectl take an object without status for ready."""


class ObservedStatus(ApiModel):
    """The part of every status that tools read."""

    observed_generation: Annotated[int, Field(ge=-1)] = -1
    """Generation of the spec that this status answers to; -1 means no operator has seen the object yet."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = ()
    """Ready, Reconciling, Stalled and the kind's own."""
    last_handled_reconcile_at: Annotated[str, Field(max_length=64)] | None = None
    """Value of the annotation sysvm.io/requestedAt that was last acted on."""


class ObjectMeta(ApiModel):
    """What the operator reads of an object's metadata."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[dict[str, Any], ...] = ()


class NameRef(ApiModel):
    """Another object of the same namespace."""

    name: DnsName
    """Name of that object."""


class KeyRef(ApiModel):
    """One key of a Secret or ConfigMap of the same namespace."""

    name: DnsName
    """Name of the Secret or ConfigMap."""
    key: Annotated[
        str,
        Field(min_length=1, max_length=253, pattern="^[-._a-zA-Z0-9]+$"),
        matching("^[-._a-zA-Z0-9]+$", "must be a key of a Secret or ConfigMap: letters, digits, '-', '_' and '.'"),
    ]
    """Key in its data."""
