"""The lab's API server is a real one: what the operator relies on works here as on any cluster."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.controlplane import ControlPlane, KubectlError, Unavailable, processes

ENDS_WITHIN_SECONDS = 60.0


def eventually(holds: Callable[[], bool], within_seconds: float = ENDS_WITHIN_SECONDS) -> bool:
    deadline = time.monotonic() + within_seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_the_server_is_ready_and_says_its_version(control_plane: ControlPlane) -> None:
    assert control_plane.kubectl("get", "--raw=/readyz") == "ok"
    version = json.loads(control_plane.kubectl("get", "--raw=/version"))
    major, minor = int(version["major"]), int(version["minor"].rstrip("+"))
    assert (major, minor) >= (1, 32), "the CRDs need Kubernetes 1.32"


def test_every_kind_is_served_with_a_status(control_plane: ControlPlane, crds: list[str]) -> None:
    served = json.loads(control_plane.kubectl("get", "--raw=/apis/sysvm.io/v1alpha1"))
    names = {item["name"] for item in served["resources"]}
    plurals = {name.removesuffix(".sysvm.io") for name in crds}
    assert plurals | {f"{plural}/status" for plural in plurals} <= names


def test_what_is_owned_goes_with_its_owner(control_plane: ControlPlane, namespace: str) -> None:
    in_namespace = f"--namespace={namespace}"
    control_plane.kubectl("create", "configmap", "owner", in_namespace)
    uid = control_plane.kubectl("get", "configmap", "owner", in_namespace, "-o", "jsonpath={.metadata.uid}")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid}
    metadata = {"name": "owned", "namespace": namespace, "ownerReferences": [reference]}
    control_plane.apply([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}])
    control_plane.kubectl("delete", "configmap", "owner", in_namespace)
    assert eventually(lambda: control_plane.try_kubectl("get", "configmap", "owned", in_namespace).returncode != 0)


def test_a_deleted_namespace_ends_with_all_that_is_in_it(control_plane: ControlPlane, namespace: str) -> None:
    name = f"{namespace}-x"
    control_plane.kubectl("create", "namespace", name)
    control_plane.kubectl("create", "configmap", "content", f"--namespace={name}")
    control_plane.kubectl("delete", "namespace", name, "--wait=false")
    assert eventually(lambda: "NotFound" in control_plane.try_kubectl("get", "namespace", name).stderr)


def test_an_account_is_refused_what_its_roles_do_not_give(control_plane: ControlPlane, namespace: str) -> None:
    in_namespace = f"--namespace={namespace}"
    control_plane.kubectl("create", "serviceaccount", "reader", in_namespace)
    control_plane.kubectl("create", "role", "reader", "--verb=get", "--resource=configmaps", in_namespace)
    control_plane.kubectl(
        "create", "rolebinding", "reader", "--role=reader", f"--serviceaccount={namespace}:reader", in_namespace
    )
    control_plane.kubectl("create", "configmap", "seen", in_namespace)
    identity = control_plane.kubeconfig_for("reader", namespace)
    assert identity.stat().st_mode & 0o077 == 0, "a token is nobody else's to read"
    assert eventually(
        lambda: control_plane.try_kubectl("get", "configmap", "seen", kubeconfig=identity).returncode == 0
    )
    with pytest.raises(KubectlError, match=f"system:serviceaccount:{namespace}:reader.*cannot delete"):
        control_plane.kubectl("delete", "configmap", "seen", kubeconfig=identity)
    with pytest.raises(KubectlError, match="cannot list"):
        control_plane.kubectl("get", "secrets", user=f"system:serviceaccount:{namespace}:reader")


async def test_the_client_library_reaches_it(kube_client: object, namespace: str) -> None:
    from kubernetes.aio.client import ApiClient, CoreV1Api

    assert isinstance(kube_client, ApiClient)
    found = await CoreV1Api(kube_client).read_namespace(namespace)
    assert found.metadata is not None
    assert found.metadata.name == namespace


def test_a_second_start_gives_the_running_server(control_plane: ControlPlane) -> None:
    again = ControlPlane.start(control_plane.run_dir)
    assert again == control_plane


def test_a_named_cluster_is_used_and_left_alone(
    control_plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYSVM_KUBECONFIG", str(control_plane.kubeconfig))
    monkeypatch.setenv("PATH", str(control_plane.kubectl_path.parent), prepend=os.pathsep)
    adopted = ControlPlane.start(tmp_path / "cp")
    assert adopted.external
    assert adopted.url == control_plane.url
    assert ControlPlane.attach(tmp_path / "cp") == adopted
    adopted.kubectl("create", "serviceaccount", "somebody", f"--namespace={namespace}")
    identity = adopted.kubeconfig_for("somebody", namespace)
    who = adopted.kubectl("auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", kubeconfig=identity)
    assert who == f"system:serviceaccount:{namespace}:somebody"
    ControlPlane.stop(tmp_path / "cp")
    assert not (tmp_path / "cp").exists()
    assert control_plane.kubectl("get", "--raw=/readyz") == "ok"


def test_a_named_cluster_that_does_not_answer_is_said_and_nothing_started(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = json.loads(control_plane.kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json"))
    dead["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "dead").write_text(json.dumps(dead))
    monkeypatch.setenv("SYSVM_KUBECONFIG", str(tmp_path / "dead"))
    monkeypatch.setenv("PATH", str(control_plane.kubectl_path.parent), prepend=os.pathsep)
    with pytest.raises(Unavailable, match="does not answer"):
        ControlPlane.start(tmp_path / "cp")
    assert ControlPlane.attach(tmp_path / "cp") is None


def test_stop_ends_what_a_killed_parent_left(control_plane: ControlPlane, tmp_path: Path) -> None:
    if control_plane.external:
        pytest.skip("SYSVM_KUBECONFIG is set: the lab starts no server of its own")
    script = (
        "import os, signal, sys; from pathlib import Path; from lab.controlplane import ControlPlane; "
        "ControlPlane.start(Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "cp")], env=environment, check=False, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL
    left = [processes.load(tmp_path / "cp", name) for name in ("etcd", "kube-apiserver", "kube-controller-manager")]
    assert all(process is not None and process.alive() for process in left)
    assert ControlPlane.attach(tmp_path / "cp") is not None
    ControlPlane.stop(tmp_path / "cp")
    assert not any(process.alive() for process in left if process is not None)
    assert not (tmp_path / "cp").exists()


def test_a_killed_test_run_leaves_nothing_that_the_next_does_not_end(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    if control_plane.external:
        pytest.skip("SYSVM_KUBECONFIG is set: the lab starts no server of its own")
    script = (
        "import os, signal; from lab.controlplane import disposable; owner = disposable(); owner.__enter__(); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", script], env=environment, check=False, timeout=120)
        (root,) = tmp_path.glob("sysvm-lab-*")
        (folder,) = root.iterdir()
        assert ControlPlane.attach(folder / "run") is not None, "the first is still there, or the second never came"
    ControlPlane.stop(folder / "run")
