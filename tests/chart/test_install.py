"""The chart on a real API server: it takes every object, and the account may do what the operator does and no more.

No kubelet and no Deployment controller run here, so the Deployment is stored and never becomes a Pod.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from kubernetes.aio import config
from kubernetes.aio.client import (
    ApiClient,
    AuthorizationV1Api,
    V1ResourceAttributes,
    V1SelfSubjectAccessReview,
    V1SelfSubjectAccessReviewSpec,
)

from lab import chart
from lab.controlplane import ControlPlane, KubectlError

KINDS = (
    "cloudstackendpoints",
    "systemvmtemplates",
    "patchpolicies",
    "systemvms",
    "rollouts",
    "rolloutapprovals",
    "maintenancewindows",
)

OPERATION = {
    "id": "a1",
    "rollout": "routers-8c1f03ab-1",
    "method": "LivePatch",
    "revision": "8c1f03ab",
    "template": "systemvm-4.20.2",
    "epoch": 1,
}
EFFECTIVE_SECONDS = 15.0


@dataclass(frozen=True)
class Ask:
    """One question to the authorizer: may the account do this?"""

    verb: str
    resource: str
    group: str = ""
    subresource: str = ""
    elsewhere: bool = False

    def attributes(self, namespace: str) -> V1ResourceAttributes:
        return V1ResourceAttributes(
            verb=self.verb,
            group=self.group,
            resource=self.resource,
            subresource=self.subresource,
            namespace="kube-system" if self.elsewhere else namespace,
        )


NEEDED = [
    *(Ask(verb, kind, "sysvm.io") for kind in KINDS for verb in ("get", "list", "watch")),
    *(Ask("patch", kind, "sysvm.io", "status") for kind in KINDS),
    *(Ask(verb, kind, "sysvm.io") for kind in ("systemvms", "rollouts") for verb in ("create", "patch", "delete")),
    *(Ask(verb, "configmaps") for verb in ("get", "create", "patch", "delete")),
    Ask("get", "secrets"),
    *(Ask(verb, "events", "events.k8s.io") for verb in ("create", "patch")),
]
LEASE = [Ask(verb, "leases", "coordination.k8s.io") for verb in ("get", "create", "update")]
REFUSED = [
    *(Ask(verb, "secrets") for verb in ("list", "watch", "create", "update", "patch", "delete")),
    *(Ask(verb, "configmaps") for verb in ("list", "watch", "update")),
    *(
        Ask(verb, kind, "sysvm.io")
        for kind in ("cloudstackendpoints", "systemvmtemplates", "patchpolicies", "rolloutapprovals")
        for verb in ("create", "update", "patch", "delete")
    ),
    *(Ask(verb, kind, "sysvm.io") for kind in ("systemvms", "rollouts") for verb in ("update", "deletecollection")),
    *(Ask("update", kind, "sysvm.io", subresource) for kind in KINDS for subresource in ("status", "finalizers")),
    *(Ask(verb, "pods") for verb in ("get", "list", "create", "delete")),
    Ask("approve", "patchpolicies", "sysvm.io"),
    Ask("breakglass", "rollouts", "sysvm.io"),
    Ask("create", "pods", subresource="exec"),
    Ask("create", "serviceaccounts", subresource="token"),
    Ask("patch", "deployments", "apps"),
    *(Ask(verb, "customresourcedefinitions", "apiextensions.k8s.io") for verb in ("list", "patch", "delete")),
    Ask("list", "namespaces"),
    Ask("create", "rolebindings", "rbac.authorization.k8s.io"),
    Ask("list", "leases", "coordination.k8s.io"),
    Ask("delete", "leases", "coordination.k8s.io"),
    Ask("get", "leases", "coordination.k8s.io", elsewhere=True),
    Ask("impersonate", "users"),
]


async def answers(client: ApiClient, questions: list[Ask], namespace: str) -> dict[Ask, bool]:
    api = AuthorizationV1Api(client)
    found = {}
    for question in questions:
        asked = V1SelfSubjectAccessReview(
            api_version="authorization.k8s.io/v1",
            kind="SelfSubjectAccessReview",
            spec=V1SelfSubjectAccessReviewSpec(resource_attributes=question.attributes(namespace)),
        )
        review: Any = await api.create_self_subject_access_review(asked)
        found[question] = bool(review.status.allowed)
    return found


async def client_of(kubeconfig: Path) -> ApiClient:
    made: ApiClient = await config.new_client_from_config(  # type: ignore[no-untyped-call]  # typed in part only
        str(kubeconfig)
    )
    return made


def system_vm(namespace: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "SystemVM",
        "metadata": {"name": "prod-r-1", "namespace": namespace},
        "spec": {"endpointRef": {"name": "prod"}, **spec},
    }


def whole_cluster(namespace: str) -> chart.Rendered:
    return chart.render("sysvm-operator", namespace, {"crds": {"enabled": False}})


def one_namespace(namespace: str) -> chart.Rendered:
    return chart.render("sysvm-operator", namespace, {"crds": {"enabled": False}, "watchNamespaces": [namespace]})


@pytest.fixture(scope="module", autouse=True)
def nothing_is_guarded_afterwards(control_plane: ControlPlane, crds: list[str]) -> Iterator[None]:
    """A deleted admission policy works on for a moment, and the next module shares the server."""
    yield
    deadline = time.monotonic() + EFFECTIVE_SECONDS
    ask = ("create", "--dry-run=server", "-f", "-")
    with_work = json.dumps(system_vm("default", operation=OPERATION))
    while control_plane.try_kubectl(*ask, stdin=with_work).returncode != 0:
        assert time.monotonic() < deadline, "an admission policy of these tests is still there"
        time.sleep(0.1)


@pytest.fixture
def installed(control_plane: ControlPlane, crds: list[str], namespace: str) -> Iterator[tuple[chart.Rendered, Path]]:
    """The release with the default values, which give it the whole cluster."""
    rendered = whole_cluster(namespace)
    yield rendered, chart.install_identity(control_plane, rendered)
    chart.uninstall(control_plane, rendered)


@pytest_asyncio.fixture
async def account(installed: tuple[chart.Rendered, Path]) -> AsyncIterator[ApiClient]:
    """A client with the token of the release's account."""
    async with await client_of(installed[1]) as client:
        yield client


def test_the_server_takes_every_object(
    control_plane: ControlPlane, namespace: str, full_values: dict[str, Any], crds: list[str]
) -> None:
    default = whole_cluster(namespace)
    values = full_values | {"watchNamespaces": [namespace], "crds": {"enabled": False}}
    full = chart.render("full", namespace, values)
    for rendered in (default, full):
        said = control_plane.apply(rendered.objects)
        assert said.count("serverside-applied") == len(rendered.objects)
        (deployment,) = rendered.of_kind("Deployment")
        stored = control_plane.kubectl(
            "get", "deployment", deployment["metadata"]["name"], f"--namespace={namespace}", "-o", "json"
        )
        assert "observedGeneration" not in json.loads(stored)["status"], "nothing here may have run it"
        chart.uninstall(control_plane, rendered)


class TestPermissions:
    """Asked with the account's own token."""

    async def test_everything_that_the_operator_does_is_allowed(self, account: ApiClient, namespace: str) -> None:
        found = await answers(account, NEEDED + LEASE, namespace)
        assert [question for question, allowed in found.items() if not allowed] == []

    async def test_the_default_reaches_all_namespaces(self, account: ApiClient) -> None:
        found = await answers(account, NEEDED, "default")
        assert [question for question, allowed in found.items() if not allowed] == []

    async def test_everything_else_is_refused(self, account: ApiClient, namespace: str) -> None:
        found = await answers(account, REFUSED, namespace)
        assert [question for question, allowed in found.items() if allowed] == []

    async def test_watched_namespaces_are_the_only_ones(
        self, control_plane: ControlPlane, crds: list[str], namespace: str
    ) -> None:
        kubeconfig = chart.install_identity(control_plane, one_namespace(namespace))
        async with await client_of(kubeconfig) as client:
            here = await answers(client, NEEDED + LEASE, namespace)
            there = await answers(client, NEEDED, "default")
        assert [question for question, allowed in here.items() if not allowed] == []
        # Every account may ask about itself; nothing of ours is among it.
        assert [question for question, allowed in there.items() if allowed] == []

    def test_owners_can_be_given_and_changed_where_that_is_guarded(
        self, control_plane: ControlPlane, installed: tuple[chart.Rendered, Path], namespace: str
    ) -> None:
        operator = installed[1]

        def owned_by(kind: str) -> list[dict[str, Any]]:
            owner = {"apiVersion": "sysvm.io/v1alpha1", "kind": kind, "name": "owner", "uid": str(uuid.uuid4())}
            return [owner | {"controller": True, "blockOwnerDeletion": False}]

        vm, metadata = system_vm(namespace), {"name": "plan", "namespace": namespace}
        vm["metadata"]["ownerReferences"] = owned_by("CloudStackEndpoint")
        control_plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(vm), kubeconfig=operator)
        plan = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": {"plan": "x"}}
        control_plane.kubectl("create", "-f", "-", stdin=json.dumps(plan), kubeconfig=operator)
        adopted = json.dumps({"metadata": {"ownerReferences": owned_by("Rollout")}})
        patch = ("patch", "configmap", "plan", f"--namespace={namespace}", "--type=merge", "-p", adopted)
        control_plane.kubectl(*patch, kubeconfig=operator)

    def test_an_editor_writes_policies_and_no_endpoint(
        self, control_plane: ControlPlane, installed: tuple[chart.Rendered, Path], namespace: str
    ) -> None:
        (role,) = [item for item in installed[0].of_kind("ClusterRole") if item["metadata"]["name"].endswith(":edit")]
        assert role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
        name = role["metadata"]["name"]
        control_plane.kubectl(
            "create", "rolebinding", "editors", f"--clusterrole={name}", "--user=eve", f"--namespace={namespace}"
        )

        def may(verb: str, resource: str) -> bool:
            asked = control_plane.try_kubectl("auth", "can-i", verb, resource, f"--namespace={namespace}", user="eve")
            return asked.stdout.strip() == "yes"

        assert may("create", "patchpolicies.sysvm.io")
        assert may("delete", "maintenancewindows.sysvm.io")
        assert may("patch", "rollouts.sysvm.io")
        assert not may("patch", "cloudstackendpoints.sysvm.io")
        assert not may("create", "rollouts.sysvm.io")
        assert not may("delete", "systemvms.sysvm.io")


class TestWorkIsHandedOutByTheOperatorAlone:
    """spec.operation of a SystemVM, asked with real identities."""

    def test_even_an_administrator_is_told_what_to_do_instead(
        self, control_plane: ControlPlane, installed: tuple[chart.Rendered, Path], namespace: str
    ) -> None:
        with_work = json.dumps(system_vm(namespace, operation=OPERATION))
        operator = installed[1]

        def tried(identity: Path | None) -> str:
            ask = ("create", "--dry-run=server", "-f", "-")
            return control_plane.try_kubectl(*ask, stdin=with_work, kubeconfig=identity).stderr

        # A policy takes effect a moment after it was made, and that of another release ends a moment after it went.
        deadline = time.monotonic() + EFFECTIVE_SECONDS
        while not (tried(None) and not tried(operator)):
            assert time.monotonic() < deadline, f"administrator: {tried(None)}; operator: {tried(operator)}"
            time.sleep(0.1)
        assert "only it may write it: make or change a PatchPolicy instead" in tried(None)

        control_plane.kubectl("create", "-f", "-", stdin=with_work, kubeconfig=operator)
        patch = ("patch", "systemvm", "prod-r-1", f"--namespace={namespace}", "--type=merge", "-p")
        with pytest.raises(KubectlError, match="PatchPolicy instead"):
            control_plane.kubectl(*patch, json.dumps({"spec": {"operation": None}}))
        with pytest.raises(KubectlError, match="PatchPolicy instead"):
            control_plane.kubectl(*patch, json.dumps({"spec": {"operation": {"attempt": 2}}}))
        control_plane.kubectl(*patch, json.dumps({"spec": {"hold": {"reason": "CHG-1"}}}))
        control_plane.kubectl(*patch, json.dumps({"spec": {"operation": {"attempt": 2}}}), kubeconfig=operator)


def test_helm_installs_upgrades_and_leaves_the_crds(
    control_plane: ControlPlane, crds: list[str], namespace: str
) -> None:
    if control_plane.external:
        pytest.skip("SYSVM_KUBECONFIG is set: helm would take over the CRDs of that cluster")
    to_server = (f"--kubeconfig={control_plane.kubeconfig}", f"--namespace={namespace}")
    # The CRDs are there already for the other tests of the session.
    arguments = ("upgrade", "--install", "sysvm-operator", str(chart.CHART), "--take-ownership", *to_server)
    for values in ((), ("--set=operator.workers=3",)):
        done = chart.helm(*arguments, *values)
        assert done.returncode == 0, done.stderr
    workers = "jsonpath={.spec.template.spec.containers[0].env[?(@.name=='SYSVM_WORKERS')].value}"
    assert control_plane.kubectl("get", "deployment", "sysvm-operator", "-n", namespace, "-o", workers) == "3"
    gone = chart.helm("uninstall", "sysvm-operator", *to_server)
    assert gone.returncode == 0, gone.stderr
    left = control_plane.kubectl("get", "crd", *crds, "-o", "jsonpath={.items[*].metadata.deletionTimestamp}")
    assert left == ""
    assert control_plane.try_kubectl("get", "deployment", "sysvm-operator", "-n", namespace).returncode != 0
