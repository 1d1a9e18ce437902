"""Values that switch on everything in the chart, and the chart rendered."""

from __future__ import annotations

from typing import Any

import pytest

from lab.controlplane import Tool, Unavailable, binaries


@pytest.fixture(scope="session", autouse=True)
def helm_is_there() -> None:
    """Without helm nothing here can run."""
    try:
        binaries.find([Tool.HELM])
    except Unavailable as missing:
        pytest.skip(str(missing))


@pytest.fixture
def full_values() -> dict[str, Any]:
    """Every value set to something that is not its default."""
    return {
        "image": {
            "repository": "registry.example/sysvm",
            "tag": "9.9",
            "digest": f"sha256:{'0' * 64}",
            "pullPolicy": "Always",
        },
        "imagePullSecrets": [{"name": "pull"}],
        "nameOverride": "patcher",
        "fullnameOverride": "the-patcher",
        "crds": {"enabled": True, "keep": False},
        "watchNamespaces": ["routers", "storage"],
        "operator": {"logLevel": "debug", "logFormat": "text", "workers": 3, "operations": 7},
        "payloads": {"volume": {"persistentVolumeClaim": {"claimName": "payloads"}}},
        "replicas": 2,
        "serviceAccount": {"create": True, "name": "account", "annotations": {"example.com/role": "patcher"}},
        "rbac": {"create": True, "aggregate": False},
        "admissionPolicies": {"enabled": True},
        "metrics": {"service": {"enabled": True, "port": 9090, "annotations": {"prometheus.io/scrape": "true"}}},
        "resources": {"limits": {"memory": "1Gi"}},
        "terminationGracePeriodSeconds": 90,
        "podSecurityContext": {"runAsNonRoot": True, "runAsUser": 1000},
        "securityContext": {"runAsUser": 1000},
        "commonLabels": {"team": "network"},
        "podLabels": {"pod": "label"},
        "podAnnotations": {"pod": "annotation"},
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
        ],
        "priorityClassName": "system-cluster-critical",
        "hostAliases": [{"ip": "192.0.2.10", "hostnames": ["kvm-1"]}],
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    }
