"""What the schema lets in, the models read and write back unchanged; what a newer version added is passed over."""

from __future__ import annotations

import re
from random import Random

import pytest
from pydantic import JsonValue, ValidationError

from sysvm.api.approval import RolloutApproval
from sysvm.api.base import PENDING_STATUS
from sysvm.api.crds import KINDS, Kind
from sysvm.api.endpoint import CloudStackEndpoint, SystemVMType
from sysvm.api.policy import PatchPolicy
from sysvm.api.rollout import Rollout
from sysvm.api.schema import JsonObject, as_object, filled, kind_schema
from sysvm.api.systemvm import SystemVM
from sysvm.api.template import DEFAULT_COMPATIBILITY, SystemVMTemplate
from sysvm.api.window import MaintenanceWindow

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


TEXTS = (
    "systemvm-4.20.2",
    "systemvm-kvm-4.20.2-x86_64",
    "8c1f03ab",
    "r-101-VM",
    "192.0.2.11",
    "root",
    "1h30m",
    "4.20.2",
    ">=4.16,<4.20",
    "https://example.com/cloud-scripts.tgz",
    "registry.example.com/cloud/agent:4.20.2",
    f"sha256:{'a' * 64}",
    f"SHA256:{'B' * 43}",
    "sha512",
    "Ready",
    "FREQ=DAILY",
    "22:00",
    "UTC",
)
"""For every pattern one that matches."""
COUNTS: list[int | str] = [7, "5%"]
MOMENTS = {"date-time": "2026-01-31T22:00:00Z", "date": "2026-01-31"}


def allowed(node: JsonObject, chance: Random) -> JsonValue:
    """A value that a schema allows, with every field set and no list empty."""
    if "enum" in node:
        values = node["enum"]
        assert isinstance(values, list)
        return chance.choice(values)
    if "x-kubernetes-int-or-string" in node:
        return chance.choice(COUNTS)
    if "properties" in node:
        return {name: allowed(as_object(child), chance) for name, child in as_object(node["properties"]).items()}
    if "additionalProperties" in node:
        return {key: allowed(as_object(node["additionalProperties"]), chance) for key in ("a", "b")}
    if "items" in node:
        return [allowed(as_object(node["items"]), chance) for _ in range(chance.choice([1, 2]))]
    if node["type"] == "string":
        return MOMENTS[str(node["format"])] if "format" in node else text(node, chance)
    if node["type"] == "integer":
        low, high = int(str(node.get("minimum", -5))), int(str(node.get("maximum", 2**40)))
        return chance.choice([low, high, chance.randint(low, high)])
    if node["type"] == "number":
        return float(str(node.get("minimum", 0))) + chance.random()
    assert node["type"] == "boolean"
    return chance.choice([True, False])


def text(node: JsonObject, chance: Random) -> str:
    least, most = int(str(node.get("minLength", 0))), int(str(node["maxLength"]))
    pattern = re.compile(str(node.get("pattern", "")))
    fitting = [sample for sample in TEXTS if least <= len(sample) <= most and pattern.search(sample)]
    assert fitting, f"TEXTS needs one for {pattern.pattern}"
    return chance.choice(fitting)


@every_kind
@pytest.mark.parametrize("seed", range(20))
def test_an_object_survives_being_read_and_written(kind: Kind, seed: int) -> None:
    properties = as_object(kind_schema(kind.model)["properties"])
    chance = Random(seed)
    spec, status = (allowed(as_object(properties[part]), chance) for part in ("spec", "status"))
    read = kind.model.model_validate({"metadata": {"name": "x"}, "spec": spec, "status": status})
    written = read.model_dump(mode="json", exclude_none=True)
    assert written["spec"] == spec
    assert written["status"] == status


MINIMAL: dict[type, JsonObject] = {
    CloudStackEndpoint: {"inventory": "Static", "ssh": {"keySecretRef": {"name": "s", "key": "k"}}},
    SystemVMTemplate: {
        "version": "4.20.2",
        "payload": {"files": {"scripts": {"digest": f"sha256:{'a' * 64}", "source": {"mounted": {"path": "x"}}}}},
    },
    PatchPolicy: {"endpointRef": {"name": "e"}, "templateRef": {"name": "t"}},
    SystemVM: {"endpointRef": {"name": "e"}},
    Rollout: {
        "policyRef": {"name": "p"},
        "endpointRef": {"name": "e"},
        "templateRef": {"name": "t"},
        "revision": "a" * 64,
        "number": 1,
        "planRef": {"name": "x", "digest": f"sha256:{'a' * 64}"},
        "snapshot": {"methods": ["LivePatch"], "livePatch": {}, "strategy": {}, "checks": {}},
    },
    RolloutApproval: {
        "rolloutRef": {"name": "r"},
        "wave": "w",
        "waveDigest": f"sha256:{'a' * 64}",
        "decision": "Approved",
        "approver": "alice",
    },
    MaintenanceWindow: {
        "effect": "Allow",
        "schedule": {"rrule": "FREQ=DAILY", "start": "22:00", "duration": "6h", "timeZone": "UTC"},
    },
}


@every_kind
def test_the_defaults_of_schema_and_model_are_the_same(kind: Kind) -> None:
    schema = as_object(as_object(kind_schema(kind.model)["properties"])["spec"])
    minimal = MINIMAL[kind.model]
    by_server = kind.model.model_validate({"metadata": {"name": "x"}, "spec": filled(schema, minimal)})
    by_model = kind.model.model_validate({"metadata": {"name": "x"}, "spec": minimal})
    assert by_server == by_model


@every_kind
def test_the_default_of_the_status_can_be_read(kind: Kind) -> None:
    read = kind.model.model_validate({"metadata": {"name": "x"}, "spec": MINIMAL[kind.model], "status": PENDING_STATUS})
    written = read.model_dump(mode="json", exclude_none=True)["status"]
    assert written["observedGeneration"] == -1
    assert written["conditions"] == PENDING_STATUS["conditions"]


def test_a_field_that_a_newer_version_added_is_passed_over() -> None:
    read = PatchPolicy.model_validate(
        {"metadata": {"name": "x", "managedFields": []}, "spec": {**MINIMAL[PatchPolicy], "moonPhase": [{}]}}
    )
    assert "moonPhase" not in read.to_dict()["spec"]


def test_absent_is_written_as_absent() -> None:
    spec = SystemVM.model_validate({"metadata": {"name": "x"}, "spec": MINIMAL[SystemVM]}).spec
    assert spec.to_dict() == {"endpointRef": {"name": "e"}, "priority": 100}


def test_an_object_that_was_read_cannot_be_edited() -> None:
    read = PatchPolicy.model_validate({"metadata": {"name": "x"}, "spec": MINIMAL[PatchPolicy]})
    with pytest.raises(ValidationError, match="frozen"):
        read.spec.suspend = True  # type: ignore[misc]  # what the types forbid, the model refuses


def test_only_secondary_storage_and_console_proxy_run_the_agent() -> None:
    assert {kind for kind in SystemVMType if kind.runs_agent} == {SystemVMType.SECSTORAGE, SystemVMType.CONSOLEPROXY}


def test_the_documented_table_of_compatibility_ends_in_a_row_for_todays_release() -> None:
    assert [row.supported for row in DEFAULT_COMPATIBILITY] == [False, True, True, False, True, True]
    assert DEFAULT_COMPATIBILITY[-1].from_ == DEFAULT_COMPATIBILITY[-1].to == ">=4.20"
