"""What a person commits for the cloud of the demo: keys, the endpoint, a release, and the set of policies of the docs.

The policies are read from docs/examples/upgrade.yaml, so that what is shown is what is documented; `policies` names all
that is changed of them.
"""

from __future__ import annotations

import base64
import copy
from typing import Any

import yaml

from lab import paths
from lab.cloud.process import CloudProcess
from lab.content.releases import Release
from lab.hosts import PORT, Hosts
from lab.machines import Lab

ENDPOINT = "prod"
DOCUMENTED = paths.REPOSITORY / "docs" / "examples" / "upgrade.yaml"
SYSTEM_VMS, REDUNDANT, SINGLE, BALANCERS = "system-vms", "redundant-routers", "single-routers", "load-balancers"
ORDER = (SYSTEM_VMS, REDUNDANT, SINGLE, BALANCERS)
"""The policies of the documented set, in the order in which they begin."""
NO_HURRY = "30m"
"""The soak of the documented set."""

_VM_KEY, _HOST_KEY = "id_rsa.cloud", "id_ed25519"

Manifest = dict[str, Any]


def _named(kind: str, name: str, namespace: str, **rest: Any) -> Manifest:
    version = "v1" if kind in ("Secret", "ConfigMap") else "sysvm.io/v1alpha1"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **rest}


def keys(lab: Lab, cloud: CloudProcess, namespace: str) -> list[Manifest]:
    """The three Secrets and the hosts' known keys that docs/examples/endpoint-cloudstack.yaml asks for."""
    hosts = Hosts(lab)
    api_key, secret_key = cloud.users["admin"]

    def secret(name: str, **values: bytes) -> Manifest:
        data = {key.replace("__", "."): base64.b64encode(value).decode() for key, value in values.items()}
        return _named("Secret", name, namespace, data=data)

    return [
        secret("cs-api", apiKey=api_key.encode(), secretKey=secret_key.encode()),
        secret("cs-ssh", **{_VM_KEY: lab.private_key.read_bytes()}),
        secret("kvm-ssh", **{_HOST_KEY: hosts.private_key.read_bytes()}),
        _named("ConfigMap", "kvm-hosts", namespace, data={"known_hosts": hosts.known_hosts()}),
    ]


def endpoint(cloud: CloudProcess, namespace: str, *, management: str) -> Manifest:
    """The cloud: its API, and the way to its VMs through the hosts that run them."""
    jump = {
        "user": "root",
        "port": PORT,
        "keySecretRef": {"name": "kvm-ssh", "key": _HOST_KEY},
        "knownHostsRef": {"name": "kvm-hosts", "key": "known_hosts"},
    }
    spec = {
        "inventory": "CloudStack",
        "management": management,
        "api": {"url": cloud.url, "credentialsSecretRef": {"name": "cs-api"}},
        "ssh": {
            "keySecretRef": {"name": "cs-ssh", "key": _VM_KEY},
            "routes": [{"hypervisors": ["KVM"], "via": "Host", "jump": jump}, {"via": "Direct"}],
        },
        "scan": {"interval": "15s"},
    }
    return _named("CloudStackEndpoint", ENDPOINT, namespace, spec=spec)


def template_name(release: Release) -> str:
    return f"systemvm-{release.version}"


def template(release: Release, namespace: str, *, image: bool = False) -> Manifest:
    """A release whose payload is what the hosts hold; with `image` also the template that the server registered."""
    spec: Manifest = {"version": release.version, "payload": {"host": {}}}
    if image:
        name = f"systemvm-kvm-{release.version}-x86_64"
        spec["images"] = {"mode": "Adopt", "items": [{"hypervisor": "KVM", "arch": "x86_64", "name": name}]}
    return _named("SystemVMTemplate", template_name(release), namespace, spec=spec)


def policies(release: Release, namespace: str) -> list[Manifest]:
    """The documented set toward a release. What differs from the file: it is not night, three VMs are more than 5 % of
    twelve, services settle for 2 s, and the pairs' canary soaks for 5 s; the single routers' for as long as documented.
    """
    found = []
    for written in yaml.safe_load_all(DOCUMENTED.read_text()):
        if written["kind"] != "PatchPolicy":
            continue
        made = copy.deepcopy(written)
        made["metadata"]["namespace"] = namespace
        spec = made["spec"]
        spec["templateRef"] = {"name": template_name(release)}
        spec.pop("windowRefs", None)
        spec["strategy"]["maxUnavailable"] = 3
        spec["checks"] = {"settle": "2s"}
        if made["metadata"]["name"] == REDUNDANT:
            spec["strategy"]["waves"][0]["soak"] = "5s"
        found.append(made)
    return found
