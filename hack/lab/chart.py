"""The operator's identity, permissions and settings as the chart has them.

The chart is their one source: the lab applies what it renders and runs the operator with that account and that
environment, so that a permission or a setting that the chart lacks is missed here and not on somebody's cluster.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import paths
from lab.controlplane import ControlPlane, Tool, binaries
from lab.controlplane.binaries import Progress, say

CHART = paths.REPOSITORY / "charts" / "sysvm-operator"

_HELM_SECONDS = 60.0
_ESTABLISHED_SECONDS = 30
_RUNS_PODS = frozenset({"Deployment", "Service"})

Manifest = dict[str, Any]


class ChartError(Exception):
    """helm refused the values or could not render; the message is helm's."""


@dataclass(frozen=True)
class Rendered:
    """The objects of one release, in helm's order."""

    release: str
    namespace: str
    objects: tuple[Manifest, ...]

    def of_kind(self, kind: str) -> list[Manifest]:
        """All objects of that kind."""
        return [item for item in self.objects if item["kind"] == kind]

    @property
    def service_account(self) -> str:
        """Name of the account that the operator runs as."""
        return str(self._pod()["serviceAccountName"])

    @property
    def command(self) -> tuple[str, ...]:
        """What the container runs, program first."""
        container = self._container()
        return (*container["command"], *container["args"])

    @property
    def environment(self) -> dict[str, str]:
        """The container's environment, with what the kubelet would fill in."""
        return dict(self._variables())

    def _variables(self) -> Iterator[tuple[str, str]]:
        downward = {"metadata.namespace": self.namespace, "metadata.name": f"{self.release}-lab"}
        for variable in self._container()["env"]:
            if "value" in variable:
                yield variable["name"], variable["value"]
            else:
                yield variable["name"], downward[variable["valueFrom"]["fieldRef"]["fieldPath"]]

    def _pod(self) -> Manifest:
        (deployment,) = self.of_kind("Deployment")
        pod: Manifest = deployment["spec"]["template"]["spec"]
        return pod

    def _container(self) -> Manifest:
        (container,) = self._pod()["containers"]
        found: Manifest = container
        return found


def helm(*arguments: str, stdin: str | None = None, progress: Progress = say) -> subprocess.CompletedProcess[str]:
    """Run helm; a failure is an answer.

    Raises:
        Unavailable: there is no helm and it cannot be built.
    """
    program = binaries.find([Tool.HELM], progress=progress)[Tool.HELM]
    return subprocess.run(
        [str(program), *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=_HELM_SECONDS
    )


def render(
    release: str,
    namespace: str,
    values: Mapping[str, Any] | None = None,
    *,
    chart: Path = CHART,
    progress: Progress = say,
) -> Rendered:
    """What ``helm install`` would send.

    Raises:
        ChartError: the values do not fit the schema, or a template failed.
    """
    result = helm(
        "template",
        release,
        str(chart),
        f"--namespace={namespace}",
        "--values=-",
        stdin=json.dumps(values or {}),
        progress=progress,
    )
    if result.returncode != 0:
        raise ChartError(result.stderr.strip())
    objects = tuple(item for item in yaml.load_all(result.stdout, Loader=yaml.CSafeLoader) if item)
    return Rendered(release=release, namespace=namespace, objects=objects)


def install_identity(control_plane: ControlPlane, rendered: Rendered) -> Path:
    """Apply the release but for what needs a kubelet; returns a kubeconfig of the operator's account.

    The Deployment stays out: the lab runs the operator as a process (``lab.operator``), and two would share a Lease.
    """
    crds = rendered.of_kind("CustomResourceDefinition")
    if crds:
        apply_crds(control_plane, crds)
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": rendered.namespace}}
    rest = [item for item in rendered.objects if item["kind"] not in _RUNS_PODS | {"CustomResourceDefinition"}]
    control_plane.apply([namespace, *rest])
    return control_plane.kubeconfig_for(rendered.service_account, rendered.namespace)


def apply_crds(control_plane: ControlPlane, crds: Sequence[Manifest]) -> None:
    """Apply CRDs and wait until their kinds are served."""
    control_plane.apply(crds)
    names = [f"crd/{item['metadata']['name']}" for item in crds]
    control_plane.kubectl("wait", "--for=condition=Established", f"--timeout={_ESTABLISHED_SECONDS}s", *names)


def uninstall(control_plane: ControlPlane, rendered: Rendered) -> None:
    """Delete what ``install_identity`` applied, as ``helm uninstall`` would: the CRDs and the namespace stay."""
    gone = [item for item in rendered.objects if item["kind"] not in _RUNS_PODS | {"CustomResourceDefinition"}]
    bundle = json.dumps({"apiVersion": "v1", "kind": "List", "items": gone})
    control_plane.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=bundle)
