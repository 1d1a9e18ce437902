"""The API conventions as functions: what must not move does not move."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sysvm.kube import objects
from sysvm.kube.objects import Key, Object, ObjectRef, Resource

EARLY = datetime(2026, 11, 22, 10, 0, 0, tzinfo=UTC)
LATER = EARLY + timedelta(minutes=5)


def conditions_with(status: str, reason: str = "Because", message: str = "") -> list[Object]:
    return objects.set_condition([], "Ready", status, reason, message, observed_generation=1, now=EARLY)


def test_a_new_reason_or_message_is_not_a_transition() -> None:
    (ready,) = objects.set_condition(
        conditions_with("False"), "Ready", "False", "Other", "other words", observed_generation=2, now=LATER
    )
    assert ready["lastTransitionTime"] == "2026-11-22T10:00:00Z"
    assert (ready["reason"], ready["message"], ready["observedGeneration"]) == ("Other", "other words", 2)


def test_a_new_status_is_a_transition() -> None:
    (ready,) = objects.set_condition(
        conditions_with("False"), "Ready", "True", "Done", "", observed_generation=2, now=LATER
    )
    assert ready["lastTransitionTime"] == "2026-11-22T10:05:00Z"


def test_conditions_keep_their_order_and_the_input_is_not_touched() -> None:
    first = objects.set_condition(
        conditions_with("True"), "Reconciling", "True", "Working", "", observed_generation=1, now=EARLY
    )
    second = objects.set_condition(first, "Ready", "False", "No", "", observed_generation=1, now=LATER)
    assert [condition["type"] for condition in second] == ["Ready", "Reconciling"]
    assert objects.find_condition(first, "Ready")["status"] == "True"  # type: ignore[index]


def test_the_same_condition_set_again_is_no_difference() -> None:
    old = conditions_with("True")
    new = objects.set_condition(old, "Ready", "True", "Because", "", observed_generation=1, now=LATER)
    assert not objects.differs({"conditions": old}, {"conditions": new})


def test_abnormal_conditions_are_true_or_not_there() -> None:
    stalled = objects.set_abnormal(
        conditions_with("False"), "Stalled", True, "Spent", "", observed_generation=1, now=EARLY
    )
    assert objects.find_condition(stalled, "Stalled")["status"] == "True"  # type: ignore[index]
    mended = objects.set_abnormal(stalled, "Stalled", False, "", "", observed_generation=1, now=LATER)
    assert objects.find_condition(mended, "Stalled") is None


def test_a_status_that_is_no_status_is_refused() -> None:
    with pytest.raises(ValueError, match="True, False or Unknown"):
        conditions_with("true")


def test_times_are_written_in_utc() -> None:
    amsterdam = datetime(2026, 11, 22, 11, 0, 0, 5, tzinfo=timezone(timedelta(hours=1)))
    assert objects.rfc3339(amsterdam) == "2026-11-22T10:00:00Z"
    assert objects.rfc3339_micro(amsterdam) == "2026-11-22T10:00:00.000005Z"
    with pytest.raises(ValueError, match="time zone"):
        objects.rfc3339(datetime(2026, 11, 22))  # noqa: DTZ001


def with_finalizers(*finalizers: str) -> Object:
    metadata: Object = {"namespace": "n", "name": "a", "resourceVersion": "7"}
    return {"metadata": {**metadata, "finalizers": list(finalizers)} if finalizers else metadata}


def test_finalizer_patches_are_for_the_version_they_were_made_from() -> None:
    at = {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"}
    path = {"op": "add", "path": "/metadata/finalizers"}
    assert objects.add_finalizer_patch(with_finalizers(), "x/y") == [at, {**path, "value": ["x/y"]}]
    assert objects.add_finalizer_patch(with_finalizers("a"), "x/y") == [at, {**path, "value": ["a", "x/y"]}]
    assert objects.remove_finalizer_patch(with_finalizers("a", "x/y"), "x/y") == [at, {**path, "value": ["a"]}]


def test_finalizer_patches_are_empty_when_there_is_nothing_to_do() -> None:
    assert objects.add_finalizer_patch(with_finalizers("x/y"), "x/y") == []
    assert objects.remove_finalizer_patch(with_finalizers("a"), "x/y") == []


def test_owners_need_a_uid() -> None:
    owner = ObjectRef("v1", "ConfigMap", "n", "a", uid="u1")
    reference = objects.owner_reference(owner)
    assert objects.is_owned_by({"metadata": {"ownerReferences": [reference]}}, "u1")
    assert not objects.is_owned_by({"metadata": {}}, "u1")
    with pytest.raises(ValueError, match="no uid"):
        objects.owner_reference(ObjectRef("v1", "ConfigMap", "n", "a"))


def test_a_reference_to_a_list_item_takes_its_kind_from_the_resource() -> None:
    item = {"metadata": {"namespace": "n", "name": "a", "uid": "u1", "resourceVersion": "9"}}
    ref = objects.ref_to(item, Resource("apps", "v1", "deployments", "Deployment"))
    assert ref == ObjectRef("apps/v1", "Deployment", "n", "a", "u1", "9")
    assert "uid" not in ObjectRef("v1", "Pod", "n", "a").as_object()


def test_keys_read_like_kubectl_writes_them() -> None:
    assert (str(Key("n", "a")), str(Key("", "a"))) == ("n/a", "a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
JSON_OBJECTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


def apply_merge_patch(target: object, patch: object) -> object:
    """RFC 7386, as its section 2 puts it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = apply_merge_patch(result.get(name), value)
    return result


@given(JSON_OBJECTS, JSON_OBJECTS)
def test_a_merge_patch_leads_from_any_object_to_any_other(old: Object, new: Object) -> None:
    patch = objects.merge_patch_between(old, new)
    assert not objects.differs(apply_merge_patch(old, patch), new)
    assert bool(patch) == objects.differs(old, new)
