"""From a model to the structural schema that a CustomResourceDefinition holds.

Pydantic writes JSON Schema for programs that accept `$ref`, `null` and `anyOf`; the API server accepts none of them and
wants its own extensions. What stands between the two is written here once, so that a bound, a default or a sentence
exists only on the model.
"""

import json
from collections.abc import Iterator
from typing import TypeAlias

from pydantic import BaseModel, JsonValue
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from sysvm.api.base import PENDING_STATUS

JsonObject: TypeAlias = dict[str, JsonValue]

VALIDATIONS = "x-kubernetes-validations"
INT_OR_STRING = "x-kubernetes-int-or-string"
LIST_TYPE = "x-kubernetes-list-type"

_KEY_ORDER = (
    "description",
    "type",
    INT_OR_STRING,
    "anyOf",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "default",
    LIST_TYPE,
    "x-kubernetes-list-map-keys",
    "items",
    "additionalProperties",
    "properties",
    "required",
    VALIDATIONS,
)


class SchemaError(Exception):
    """A model says something that a structural schema cannot."""


class _WithRules(GenerateJsonSchema):
    """Puts a model's `cel` rules at that model's level, wherever it is nested."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        result = super().model_schema(schema)
        rules = getattr(schema["cls"], "cel", ())
        if rules:
            result[VALIDATIONS] = list(rules)
        return result


def kind_schema(model: type[BaseModel]) -> JsonObject:
    """The `openAPIV3Schema` of a kind whose model has `spec` and `status`. Raises SchemaError."""
    document: JsonObject = model.model_json_schema(mode="serialization", schema_generator=_WithRules)
    definitions = as_object(document.get("$defs", {}))
    properties = as_object(document["properties"])
    spec = _structural(as_object(properties["spec"]), definitions)
    status = _structural(as_object(properties["status"]), definitions)
    spec.pop("default", None)
    status["default"] = json.loads(json.dumps(PENDING_STATUS))
    root: JsonObject = {
        "description": _one_line(document["description"]),
        "type": "object",
        "properties": {
            "apiVersion": {
                "description": "Version of this schema that the object is written in.",
                "type": "string",
            },
            "kind": {"description": "Kind of the object.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "required": ["spec"],
    }
    if VALIDATIONS in document:
        root[VALIDATIONS] = document[VALIDATIONS]
    return root


def filled(schema: JsonObject, value: JsonValue) -> JsonValue:
    """`value` with the defaults of `schema` in it, as the API server fills them."""
    if isinstance(value, dict):
        result: JsonObject = dict(value)
        for name, child in as_object(schema.get("properties", {})).items():
            if name not in result and "default" in as_object(child):
                result[name] = as_object(child)["default"]
            if name in result:
                result[name] = filled(as_object(child), result[name])
        return result
    if isinstance(value, list) and "items" in schema:
        return [filled(as_object(schema["items"]), item) for item in value]
    return value


def nodes(schema: JsonObject, path: str = "") -> Iterator[tuple[str, JsonObject]]:
    """Every schema below and including `schema` with its path: `spec.systemVMs[].name`, `status.methods{}`."""
    yield path, schema
    for name, child in as_object(schema.get("properties", {})).items():
        yield from nodes(as_object(child), f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from nodes(as_object(schema["items"]), f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(as_object(schema["additionalProperties"]), f"{path}{{}}")


def as_object(value: JsonValue) -> JsonObject:
    """`value`, which must be an object. Raises SchemaError."""
    if not isinstance(value, dict):
        raise SchemaError(f"expected an object, found {value!r}")
    return value


def _structural(node: JsonObject, definitions: JsonObject) -> JsonObject:
    flat = _flat(node, definitions)
    flat.pop("title", None)
    if flat.get("format", "") is None:
        del flat["format"]
    if "const" in flat:
        flat["enum"] = [flat.pop("const")]
    if "items" in flat:
        flat["items"] = _structural(as_object(flat["items"]), definitions)
        flat.setdefault(LIST_TYPE, "atomic")
    if "additionalProperties" in flat:
        flat["additionalProperties"] = _structural(as_object(flat["additionalProperties"]), definitions)
    if "properties" in flat:
        flat["properties"] = {
            name: _structural(as_object(child), definitions) for name, child in as_object(flat["properties"]).items()
        }
    if flat.get("type") == "integer":
        flat["format"] = "int64"
    _set_default(flat)
    if "description" in flat:
        flat["description"] = _one_line(flat["description"]) + _default_sentence(flat)
    unknown = flat.keys() - set(_KEY_ORDER)
    if unknown:
        raise SchemaError(f"{', '.join(sorted(unknown))} has no place in a structural schema: {node!r}")
    return {key: flat[key] for key in _KEY_ORDER if key in flat}


def _flat(node: JsonObject, definitions: JsonObject) -> JsonObject:
    """`node` without `$ref` and without the branch for null; what stands beside the reference wins."""
    if "$ref" in node:
        target = as_object(definitions[str(node["$ref"]).removeprefix("#/$defs/")])
        return _merged(_flat(target, definitions), {key: node[key] for key in node if key != "$ref"})
    branches = node.get("anyOf")
    if isinstance(branches, list) and {"type": "null"} in branches:
        others = [branch for branch in branches if branch != {"type": "null"}]
        if len(others) != 1:
            raise SchemaError(f"only one type or its absence can be declared: {node!r}")
        rest = {key: node[key] for key in node if key not in ("anyOf", "default")}
        if node.get("default") is not None:
            rest["default"] = node["default"]
        return _merged(_flat(as_object(others[0]), definitions), rest)
    return dict(node)


def _merged(under: JsonObject, over: JsonObject) -> JsonObject:
    merged = {**under, **over}
    first, second = under.get(VALIDATIONS, []), over.get(VALIDATIONS, [])
    if isinstance(first, list) and isinstance(second, list) and (first or second):
        merged[VALIDATIONS] = [*first, *second]
    return merged


def _set_default(schema: JsonObject) -> None:
    """Keeps a default only where absence would mean something else.

    An object whose parts have defaults gets `{}`: the API server fills the parts, also when a person writes only some.
    Where a rule looks at the parts, they are spelled out, because the API server checks a default by the rules before
    it fills it.
    """
    if "default" not in schema:
        return
    default = _without_empty(schema["default"])
    ruled = any("properties" in node and VALIDATIONS in node for _, node in nodes(schema))
    if "properties" in schema and not ruled and default == _without_empty(filled(schema, {})):
        schema["default"] = {}
    elif default in ("", [], {}):
        del schema["default"]
    else:
        schema["default"] = default


def _without_empty(value: JsonValue) -> JsonValue:
    """`value` without nulls, empty texts and empty lists: absent says the same."""
    if isinstance(value, dict):
        parts = {name: _without_empty(part) for name, part in value.items()}
        return {name: part for name, part in parts.items() if part is not None and part not in ("", [])}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value


def _default_sentence(schema: JsonObject) -> str:
    shown = default_text(schema)
    return f" Default: {shown}." if shown else ""


def default_text(schema: JsonObject) -> str:
    """The default in words short enough for a description; empty if there is none or its parts have their own."""
    default = schema.get("default")
    if default is None or isinstance(default, dict):
        return ""
    if isinstance(default, list):
        if any(isinstance(item, dict | list) for item in default):
            return ""
        return f"[{', '.join(map(str, default))}]"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _one_line(text: JsonValue) -> str:
    return " ".join(str(text).split())
