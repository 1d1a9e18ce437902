"""What the chart renders, without a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from lab import chart
from sysvm.engine.engine import FETCHES
from sysvm.patching.payload_cache import SIZE_LIMIT_BYTES
from sysvm.patching.sources import PayloadSources

CRDS = chart.CHART.parents[1] / "crds"
KUBERNETES_BLOCKS = ("resources", "podSecurityContext", "securityContext")
SETTINGS = {
    "SYSVM_NAMESPACE",
    "SYSVM_WATCH_NAMESPACES",
    "SYSVM_LOG_LEVEL",
    "SYSVM_LOG_FORMAT",
    "SYSVM_ADMISSION_POLICIES",
    "SYSVM_HTTP_PORT",
    "SYSVM_WORKERS",
    "SYSVM_OPERATIONS",
    "SYSVM_PAYLOADS_DIR",
}


def values_file() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    return loaded


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of the values that are the chart's; a block that Kubernetes defines is one."""
    if isinstance(value, dict) and value and path not in KUBERNETES_BLOCKS:
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path


def at(value: Any, path: str) -> Any:
    for key in path.split("."):
        value = value[key]
    return value


def nested(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def known(schema: dict[str, Any], path: str) -> bool:
    for key in path.split("."):
        if key not in schema.get("properties", {}):
            return not schema.get("properties") and schema.get("type") == "object"
        schema = schema["properties"][key]
    return True


def positions(node: yaml.Node, path: str = "") -> Iterator[tuple[str, int]]:
    """Each leaf of values.yaml with the number of its line."""
    assert isinstance(node, yaml.MappingNode)
    for key, value in node.value:
        inner = f"{path}.{key.value}" if path else key.value
        if isinstance(value, yaml.MappingNode) and value.value and inner not in KUBERNETES_BLOCKS:
            yield from positions(value, inner)
        else:
            yield inner, key.start_mark.line


def container(rendered: chart.Rendered) -> dict[str, Any]:
    (deployment,) = rendered.of_kind("Deployment")
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_helm_finds_nothing_to_say_against_it() -> None:
    result = chart.helm("lint", "--strict", str(chart.CHART))
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_charts_crds_are_the_generated_ones() -> None:
    generated = {path.name: path.read_bytes() for path in CRDS.glob("*.yaml")}
    copied = {path.name: path.read_bytes() for path in (chart.CHART / "files" / "crds").glob("*.yaml")}
    assert generated, "no CRDs are generated"
    assert copied == generated, "run `python hack/generate.py`"


class TestDefaults:
    """What a person gets who sets nothing."""

    def test_the_objects_of_a_release(self) -> None:
        rendered = chart.render("sysvm-operator", "cloud")
        kinds = sorted({item["kind"] for item in rendered.objects})
        assert kinds == [
            "ClusterRole",
            "ClusterRoleBinding",
            "CustomResourceDefinition",
            "Deployment",
            "Role",
            "RoleBinding",
            "Service",
            "ServiceAccount",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ]
        cluster_scoped = set(kinds) - {"Deployment", "Role", "RoleBinding", "Service", "ServiceAccount"}
        for item in rendered.objects:
            assert (item["metadata"].get("namespace") == "cloud") is (item["kind"] not in cluster_scoped)
            assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == "sysvm-operator"

    def test_the_volume_has_room_for_what_is_kept_and_what_arrives(self) -> None:
        rendered = chart.render("sysvm-operator", "cloud")
        (deployment,) = rendered.of_kind("Deployment")
        (volume,) = deployment["spec"]["template"]["spec"]["volumes"]
        limit = int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) << 30
        assert limit > PayloadSources.cache_bytes + FETCHES * SIZE_LIMIT_BYTES, "beyond it the Pod is evicted"

    def test_the_pod_fits_the_restricted_standard(self) -> None:
        rendered = chart.render("sysvm-operator", "cloud")
        (deployment,) = rendered.of_kind("Deployment")
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container(rendered)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}
        assert pod["terminationGracePeriodSeconds"] == 60

    def test_every_setting_is_passed_and_no_other(self) -> None:
        rendered = chart.render("sysvm-operator", "cloud")
        assert set(rendered.environment) == SETTINGS
        assert rendered.environment["SYSVM_NAMESPACE"] == "cloud"
        assert rendered.environment["SYSVM_WATCH_NAMESPACES"] == ""
        assert rendered.command == ("sysvm-operator", "run")
        assert rendered.environment["SYSVM_HTTP_PORT"] == str(container(rendered)["ports"][0]["containerPort"])

    def test_the_schema_refuses_to_set_a_setting_twice(self) -> None:
        for name in SETTINGS:
            with pytest.raises(chart.ChartError, match=r"/extraEnv/0/name"):
                chart.render("sysvm-operator", "cloud", {"extraEnv": [{"name": name, "value": "1"}]})
        chart.render("sysvm-operator", "cloud", {"extraEnv": [{"name": "SYSVM_LOOKS", "value": "8"}]})

    def test_crds_stay_when_the_release_goes(self) -> None:
        for crd in chart.render("sysvm-operator", "cloud").of_kind("CustomResourceDefinition"):
            assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}

    def test_secrets_are_never_listed(self) -> None:
        rendered = chart.render("sysvm-operator", "cloud")
        rules = [rule for kind in ("Role", "ClusterRole") for item in rendered.of_kind(kind) for rule in item["rules"]]
        verbs = [rule["verbs"] for rule in rules if "secrets" in rule["resources"]]
        assert verbs == [["get"]]
        assert not any("*" in rule["verbs"] + rule["resources"] + rule["apiGroups"] for rule in rules)


class TestValues:
    """What a person sets takes effect, or is refused with a sentence."""

    def test_every_value_takes_effect(self, full_values: dict[str, Any]) -> None:
        default = chart.render("sysvm-operator", "cloud")
        idle = []
        for path in leaves(values_file()):
            value = at(values_file(), path)
            changed = nested(path, not value if isinstance(value, bool) else at(full_values, path))
            if path == "serviceAccount.create":
                changed["serviceAccount"]["name"] = "account"
            if chart.render("sysvm-operator", "cloud", changed).objects == default.objects:
                idle.append(path)
        assert not idle

    def test_all_together(self, full_values: dict[str, Any]) -> None:
        rendered = chart.render("release", "cloud", full_values)
        assert container(rendered)["image"] == f"registry.example/sysvm@sha256:{'0' * 64}"
        assert rendered.service_account == "account"
        assert rendered.environment["SYSVM_WATCH_NAMESPACES"] == "routers,storage"
        assert rendered.environment["SYSVM_OPERATIONS"] == "7"
        assert rendered.environment["HTTPS_PROXY"] == "http://proxy.example:3128"
        assert not rendered.of_kind("ClusterRole")
        watched = {item["metadata"]["namespace"] for item in rendered.of_kind("Role")}
        assert watched == {"routers", "storage", "cloud"}
        assert all("annotations" not in item["metadata"] for item in rendered.of_kind("CustomResourceDefinition"))
        mounts = {mount["mountPath"]: mount for mount in container(rendered)["volumeMounts"]}
        assert mounts["/payloads"]["readOnly"] is True
        assert "/more" in mounts

    def test_an_account_of_ones_own_needs_a_name(self) -> None:
        with pytest.raises(chart.ChartError, match=r"serviceAccount\.name says which account"):
            chart.render("sysvm-operator", "cloud", {"serviceAccount": {"create": False}})

    def test_crds_can_be_left_to_somebody_else(self) -> None:
        assert not chart.render("x", "cloud", {"crds": {"enabled": False}}).of_kind("CustomResourceDefinition")

    @pytest.mark.parametrize(
        ("values", "sentence"),
        [
            ({"replicas": "two"}, r"/replicas.*got string, want integer"),
            ({"replicas": -1}, r"/replicas.*minimum"),
            ({"replica": 2}, r"additional properties 'replica' not allowed"),
            ({"operator": {"loglevel": "debug"}}, r"/operator.*additional properties 'loglevel' not allowed"),
            ({"operator": {"logLevel": "verbose"}}, r"/operator/logLevel.*must be one of 'debug', 'info'"),
            ({"operator": {"workers": 0}}, r"/operator/workers.*minimum"),
            ({"watchNamespaces": "routers"}, r"/watchNamespaces.*got string, want array"),
            ({"watchNamespaces": ["Routers"]}, r"/watchNamespaces/0.*does not match pattern"),
            ({"image": {"digest": "latest"}}, r"/image/digest.*does not match pattern"),
            ({"extraEnv": [{"name": "SYSVM_WORKERS", "value": "1"}]}, r"/extraEnv/0/name.*'not' failed"),
        ],
    )
    def test_a_wrong_value_is_refused_with_its_place(self, values: dict[str, Any], sentence: str) -> None:
        with pytest.raises(chart.ChartError, match=sentence):
            chart.render("sysvm-operator", "cloud", values)

    def test_schema_and_values_know_the_same_names(self) -> None:
        schema = json.loads((chart.CHART / "values.schema.json").read_text())
        unknown = [path for path in leaves(values_file()) if not known(schema, path)]
        assert not unknown, f"values.schema.json lacks {unknown}"
        # `global` is helm's own: parent charts pass it down.
        assert set(schema["properties"]) - {"global"} == set(values_file())

    def test_every_value_says_what_it_is(self) -> None:
        text = (chart.CHART / "values.yaml").read_text()
        lines = text.splitlines()
        root = yaml.compose(text)
        assert root is not None
        silent = [path for path, line in positions(root) if not lines[line - 1].lstrip().startswith("#")]
        assert not silent


def test_the_notes_say_that_a_new_install_observes() -> None:
    result = chart.helm("install", "sysvm-operator", str(chart.CHART), "--namespace=cloud", "--dry-run=client")
    assert result.returncode == 0, result.stderr
    notes = result.stdout[result.stdout.index("NOTES:") :]
    assert "It observes." in notes
    assert "management: Full" in notes
