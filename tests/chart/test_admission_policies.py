"""Who may approve, break the glass and make a rollout, asked of a real API server with real identities."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import chart
from lab.controlplane import ControlPlane

EFFECTIVE_SECONDS = 15.0
DIGEST = "sha256:" + "ab" * 32


@dataclass(frozen=True)
class Guarded:
    """A release with its admission policies in force, a rollout of policy `routers`, and people with roles."""

    server: ControlPlane
    namespace: str
    operator: Path
    rendered: chart.Rendered

    def role(self, ending: str) -> str:
        (role,) = [
            item["metadata"]["name"]
            for item in self.rendered.of_kind("ClusterRole")
            if item["metadata"]["name"].endswith(ending)
        ]
        return str(role)

    def bind(self, user: str, *endings: str) -> None:
        for number, ending in enumerate(endings):
            self.server.kubectl(
                "create",
                "rolebinding",
                f"{user}-{number}",
                f"--clusterrole={self.role(ending)}",
                f"--user={user}",
                f"--namespace={self.namespace}",
            )

    def tried(self, verb: str, obj: dict[str, Any], *, user: str | None = None, operator: bool = False) -> str:
        """What the server has against it; empty if nothing."""
        identity = self.operator if operator else None
        done = self.server.try_kubectl(
            verb, "--dry-run=server", "-f", "-", stdin=json.dumps(obj), user=user, kubeconfig=identity
        )
        return "" if done.returncode == 0 else done.stderr

    def patched(self, patch: dict[str, Any], *, user: str | None = None) -> str:
        done = self.server.try_kubectl(
            "patch",
            "rollout",
            "routers-8c1f03ab-1",
            f"--namespace={self.namespace}",
            "--type=merge",
            "-p",
            json.dumps(patch),
            user=user,
        )
        return "" if done.returncode == 0 else done.stderr

    def approval(self, approver: str, *, rollout: str = "routers-8c1f03ab-1") -> dict[str, Any]:
        return {
            "apiVersion": "sysvm.io/v1alpha1",
            "kind": "RolloutApproval",
            "metadata": {"name": "one", "namespace": self.namespace},
            "spec": {
                "rolloutRef": {"name": rollout},
                "wave": "rest",
                "waveDigest": DIGEST,
                "decision": "Approved",
                "approver": approver,
            },
        }


def the_rollout(namespace: str, name: str = "routers-8c1f03ab-1", policy: str = "routers") -> dict[str, Any]:
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "policyRef": {"name": policy},
            "endpointRef": {"name": "prod"},
            "templateRef": {"name": "systemvm-4.20.2"},
            "revision": "8c1f03ab",
            "number": 1,
            "planRef": {"name": f"{name}-plan", "digest": DIGEST},
            "snapshot": {"methods": ["LivePatch"], "livePatch": {}, "strategy": {}, "checks": {}},
        },
    }


@pytest.fixture
def guarded(control_plane: ControlPlane, crds: list[str], namespace: str) -> Iterator[Guarded]:
    values = {"crds": {"enabled": False}, "watchNamespaces": [namespace]}
    rendered = chart.render("guarded", namespace, values)
    found = Guarded(control_plane, namespace, chart.install_identity(control_plane, rendered), rendered)
    control_plane.kubectl("create", "-f", "-", stdin=json.dumps(the_rollout(namespace)), kubeconfig=found.operator)
    # A policy takes effect a moment after it was made, each by itself.
    deadline = time.monotonic() + EFFECTIVE_SECONDS
    open_doors: dict[str, Callable[[], bool]] = {
        "rollout": lambda: not found.tried("create", the_rollout(namespace, "by-hand")),
        "approver": lambda: "your own user name" not in found.tried("create", found.approval("someone-else")),
        "approval": lambda: "PatchPolicy" not in found.tried("create", found.approval("guest"), user="guest"),
    }
    found.server.kubectl(
        "create", "role", "guests", "--verb=create", "--resource=rolloutapprovals.sysvm.io", f"--namespace={namespace}"
    )
    found.server.kubectl("create", "rolebinding", "guest", "--role=guests", "--user=guest", f"--namespace={namespace}")
    while waiting := [name for name, is_open in open_doors.items() if is_open()]:
        assert time.monotonic() < deadline, f"not in force: {waiting}"
        time.sleep(0.1)
    yield found
    chart.uninstall(control_plane, rendered)


def test_a_rollout_is_made_by_the_operator_alone(guarded: Guarded) -> None:
    other = the_rollout(guarded.namespace, "by-hand")
    assert "make or change a PatchPolicy instead" in guarded.tried("create", other)
    assert guarded.tried("create", other, operator=True) == ""


def test_nobody_approves_in_anothers_name_or_without_the_verb(guarded: Guarded) -> None:
    guarded.bind("alice", ":approver")
    assert guarded.tried("create", guarded.approval("alice"), user="alice") == ""
    assert "your own user name, which is alice" in guarded.tried("create", guarded.approval("bob"), user="alice")
    refused = guarded.tried("create", guarded.approval("guest"), user="guest")
    assert "needs the verb approve on the PatchPolicy routers" in refused


def test_the_verb_can_be_given_for_one_policy(guarded: Guarded) -> None:
    server, namespace = guarded.server, guarded.namespace
    other = the_rollout(namespace, "consoles-8c1f03ab-1", "consoles")
    server.kubectl("create", "-f", "-", stdin=json.dumps(other), kubeconfig=guarded.operator)
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "of-consoles", "namespace": namespace},
        "rules": [
            {"apiGroups": ["sysvm.io"], "resources": ["rolloutapprovals"], "verbs": ["create"]},
            {
                "apiGroups": ["sysvm.io"],
                "resources": ["patchpolicies"],
                "resourceNames": ["consoles"],
                "verbs": ["approve"],
            },
        ],
    }
    server.apply([role])
    server.kubectl("create", "rolebinding", "carol", "--role=of-consoles", "--user=carol", f"--namespace={namespace}")
    allowed = guarded.approval("carol", rollout="consoles-8c1f03ab-1")
    assert guarded.tried("create", allowed, user="carol") == ""
    assert "PatchPolicy routers" in guarded.tried("create", guarded.approval("carol"), user="carol")


def test_an_approval_cannot_be_edited(guarded: Guarded) -> None:
    guarded.bind("alice", ":approver")
    text = json.dumps(guarded.approval("alice"))
    guarded.server.kubectl("create", "-f", "-", stdin=text, user="alice")
    patch = ("patch", "svra", "one", f"--namespace={guarded.namespace}", "--type=merge", "-p")
    done = guarded.server.try_kubectl(*patch, json.dumps({"spec": {"skipSoak": True}}))
    assert "an approval cannot be edited: delete it and make another" in done.stderr


def test_the_glass_is_broken_and_mended_with_its_own_verb_only(guarded: Guarded) -> None:
    wish = {"spec": {"breakGlass": {"reason": "INC-77", "until": "2030-01-01T00:00:00Z"}}}
    guarded.bind("eve", ":view", ":edit")
    guarded.bind("bert", ":breakglass")
    assert guarded.patched({"spec": {"state": "Paused"}}, user="eve") == ""
    assert "needs the verb breakglass on rollouts" in guarded.patched(wish, user="eve")
    assert guarded.patched(wish, user="bert") == ""
    assert guarded.patched({"spec": {"state": "Running"}}, user="eve") == ""
    later = {"spec": {"breakGlass": {"until": "2031-01-01T00:00:00Z"}}}
    assert "needs the verb breakglass" in guarded.patched(later, user="eve")
    assert "needs the verb breakglass" in guarded.patched({"spec": {"breakGlass": None}}, user="eve")
    assert guarded.patched({"spec": {"breakGlass": None}}, user="bert") == ""
