"""What is generated from the models keeps to the rules of the API, for every kind and every field."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

import generate
from sysvm.api.base import PENDING_STATUS
from sysvm.api.crds import KINDS, Kind, custom_resource_definition
from sysvm.api.schema import VALIDATIONS, JsonObject, SchemaError, as_object, filled, kind_schema, nodes

YAML_1_1_BOOLEANS = {"on", "off", "yes", "no", "y", "n", "true", "false"}
ENUMS_THAT_NEED_NO_WORDS = 4

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def fields(kind: Kind, *, part: str = "") -> list[tuple[str, JsonObject]]:
    """Everything below spec and status, list items and map values included."""
    found = [(path, node) for path, node in nodes(kind_schema(kind.model)) if path.startswith(("spec", "status"))]
    return [(path, node) for path, node in found if path.startswith(part)]


@every_kind
def test_every_field_says_what_it_does(kind: Kind) -> None:
    silent = [
        path
        for path, node in fields(kind)
        if len(str(node.get("description", ""))) < 8 and not path.endswith(("[]", "{}"))
    ]
    assert not silent


@every_kind
def test_every_object_in_a_list_says_what_it_is(kind: Kind) -> None:
    silent = [path for path, node in fields(kind) if "properties" in node and "description" not in node]
    assert not silent


@every_kind
def test_a_choice_says_what_follows_from_each_value(kind: Kind) -> None:
    unsaid = [
        (path, value)
        for path, node in fields(kind, part="spec")
        for value in list(node.get("enum", []))  # type: ignore[arg-type]
        if len(node["enum"]) <= ENUMS_THAT_NEED_NO_WORDS  # type: ignore[arg-type]
        and str(value) not in str(node.get("description", value))
    ]
    assert not unsaid


@every_kind
def test_a_default_is_named_where_it_is_short(kind: Kind) -> None:
    unsaid = [
        path
        for path, node in fields(kind)
        if isinstance(node.get("default"), int | str) and "Default: " not in str(node["description"])
    ]
    assert not unsaid


@every_kind
def test_nothing_is_unbounded(kind: Kind) -> None:
    unbounded = []
    for path, node in fields(kind):
        if node.get("type") == "array" and "maxItems" not in node:
            unbounded.append(path)
        if "additionalProperties" in node and "maxProperties" not in node:
            unbounded.append(path)
        is_bounded_text = "maxLength" in node or "enum" in node or node.get("format") == "date-time"
        if node.get("type") == "string" and not is_bounded_text:
            unbounded.append(path)
    assert not unbounded


@every_kind
def test_a_number_in_the_spec_has_a_smallest_value(kind: Kind) -> None:
    assert not [p for p, node in fields(kind, part="spec") if node.get("type") == "integer" and "minimum" not in node]


@every_kind
def test_null_is_never_written(kind: Kind) -> None:
    text = json.dumps(custom_resource_definition(kind))
    assert "null" not in text
    assert "nullable" not in text


@every_kind
def test_no_field_reads_as_a_boolean_in_yaml_1_1(kind: Kind) -> None:
    assert not [path for path, _ in fields(kind) if path.rsplit(".", 1)[-1].lower() in YAML_1_1_BOOLEANS]


@every_kind
def test_the_schema_is_structural(kind: Kind) -> None:
    for path, node in fields(kind):
        assert not {"$ref", "$defs", "title", "oneOf", "allOf", "not", "const"} & node.keys(), path
        if "x-kubernetes-int-or-string" in node:
            assert "type" not in node, path
        else:
            assert node["type"] in {"object", "array", "string", "integer", "number", "boolean"}, path
            assert "anyOf" not in node, path
        assert not ("properties" in node and "additionalProperties" in node), path
        assert ("items" in node) == (node.get("type") == "array"), path


@every_kind
def test_a_list_says_how_it_is_merged(kind: Kind) -> None:
    for path, node in fields(kind):
        if node.get("type") != "array":
            continue
        items = as_object(node["items"])
        if node["x-kubernetes-list-type"] == "map":
            keys = node["x-kubernetes-list-map-keys"]
            assert isinstance(keys, list)
            assert set(keys) <= set(items["required"]), path  # type: ignore[arg-type]
        else:
            assert node["x-kubernetes-list-type"] in {"atomic", "set"}, path


@every_kind
def test_a_pattern_that_people_meet_has_a_sentence(kind: Kind) -> None:
    speechless = [path for path, node in fields(kind, part="spec") if "pattern" in node and VALIDATIONS not in node]
    assert not speechless


@every_kind
def test_a_rule_speaks_in_sentences(kind: Kind) -> None:
    for path, node in nodes(kind_schema(kind.model)):
        for entry in node.get(VALIDATIONS, []):  # type: ignore[union-attr]
            rule = as_object(entry)
            assert set(rule) == {"rule", "message"}, path
            message = str(rule["message"])
            assert len(message.split()) >= 3, path
            assert not re.search(r"self\.(?!metadata)|\\|\^", message), f"{path}: {message}"


@every_kind
def test_a_default_fills_the_whole_object(kind: Kind) -> None:
    """`{}` and the parts spelled out are the same to the API server: the parts' own defaults are never contradicted."""
    for path, node in fields(kind, part="spec"):
        if "properties" in node and "default" in node:
            assert filled(node, node["default"]) == filled(node, {}), path


@every_kind
def test_an_object_that_no_operator_has_seen_is_not_ready(kind: Kind) -> None:
    status = as_object(as_object(kind_schema(kind.model)["properties"])["status"])
    assert status["default"] == PENDING_STATUS
    assert PENDING_STATUS["conditions"][0]["status"] == "Unknown"


@every_kind
def test_columns_and_selectable_fields_lead_to_fields(kind: Kind) -> None:
    known = {f".{path}": node for path, node in fields(kind)}
    for column in kind.columns:
        if column.json_path.startswith((".metadata", ".status.conditions[?(@.type==")):
            continue
        assert column.json_path in known, column
        assert column.type == known[column.json_path]["type"], column
    assert len(kind.selectable_fields) <= 8
    for path in kind.selectable_fields:
        assert known[path]["type"] in {"string", "boolean", "integer"}, path


@every_kind
def test_a_condition_is_found_by_type_never_by_position(kind: Kind) -> None:
    assert not [column for column in kind.columns if re.search(r"\[[0-9]", column.json_path)]


def test_names_of_kinds_do_not_collide() -> None:
    assert len({kind.plural for kind in KINDS}) == len({kind.short_name for kind in KINDS}) == len(KINDS) == 7


def test_what_a_structural_schema_cannot_say_is_refused() -> None:
    from typing import Annotated

    from pydantic import Field

    from sysvm.api.base import ApiModel, ObjectMeta

    class Either(ApiModel):
        value: str | int | None = None
        """Two types at once."""

    class Odd(ApiModel):
        value: Annotated[int, Field(multiple_of=5)] = 5
        """A bound that has no place."""

    for part, message in ((Either, "only one type"), (Odd, "multipleOf has no place")):
        kind = type("Kind", (ApiModel,), {"__annotations__": {"metadata": ObjectMeta, "spec": part, "status": part}})
        with pytest.raises(SchemaError, match=message):
            kind_schema(kind)


def test_the_generated_files_are_those_of_the_models() -> None:
    assert generate.drifted() == []


def test_drift_is_named_and_ends_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = generate.generated()
    monkeypatch.setattr(generate, "generated", lambda: made)
    assert generate.write(tmp_path) == sorted(made)
    assert generate.drifted(tmp_path) == []
    assert generate.write(tmp_path) == []
    edited, gone = tmp_path / "crds/sysvm.io_systemvms.yaml", tmp_path / "crds/sysvm.io_rollouts.yaml"
    edited.write_text(edited.read_text() + "# by hand\n")
    gone.unlink()
    (tmp_path / "crds/sysvm.io_ghosts.yaml").write_text("{}\n")
    drifted = generate.drifted(tmp_path)
    assert [path.name for path in drifted] == [
        "sysvm.io_ghosts.yaml",
        "sysvm.io_rollouts.yaml",
        "sysvm.io_systemvms.yaml",
    ]
    monkeypatch.setattr(generate, "drifted", lambda: drifted)
    monkeypatch.setattr("sys.argv", ["generate.py", "--check"])
    assert generate.main() == 1
    assert "crds/sysvm.io_systemvms.yaml is out of date" in capsys.readouterr().err


@every_kind
def test_yaml_1_1_and_1_2_read_the_same_crd(kind: Kind) -> None:
    import yaml

    text = generate.generated()[Path(f"crds/sysvm.io_{kind.plural}.yaml")]
    assert YAML(typ="safe").load(text) == yaml.safe_load(text) == custom_resource_definition(kind)
