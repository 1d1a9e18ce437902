"""The objects that people write, small, as the API server takes them; and the payloads they name."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
from functools import cache
from typing import Any

Manifest = dict[str, Any]

EARLY_CONFIG = b"#!/bin/bash\nmd5sum /usr/share/cloud/cloud-scripts.tgz\n"
SECRET = "cloud-key"
SECRET_KEY = "id_rsa.cloud"


@cache
def scripts(word: str) -> bytes:
    """A `cloud-scripts.tgz` of two files; another word is another revision."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for path, content in (
            ("opt/cloud/bin/setup/cloud-early-config", EARLY_CONFIG),
            ("opt/cloud/bin/patched.sh", f"#!/bin/sh\necho {word}\n".encode()),
        ):
            info = tarfile.TarInfo(path)
            info.mode, info.size = 0o755, len(content)
            archive.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), mtime=0)


@cache
def private_key() -> str:
    """A key that can be read; nobody logs in with it."""
    import asyncssh

    return str(asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode())


def secret(namespace: str, name: str = SECRET, **data: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": data or {SECRET_KEY: private_key()},
    }


def config_map(namespace: str, name: str, archive: bytes) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace},
        "binaryData": {"scripts.tgz": base64.b64encode(archive).decode()},
    }


def endpoint(namespace: str, name: str, vms: list[Manifest], **spec: Any) -> Manifest:
    return _object(
        "CloudStackEndpoint",
        namespace,
        name,
        {
            "inventory": "Static",
            "management": "Full",
            "systemVMs": vms,
            "ssh": {"keySecretRef": {"name": SECRET, "key": SECRET_KEY}},
            "scan": {"interval": "10s"},
            **spec,
        },
    )


def vm(name: str, type_: str = "router", **more: str) -> Manifest:
    return {"name": name, "type": type_, "address": "192.0.2.1", **more}


def template(namespace: str, name: str, archive: bytes, source: str = "", *, digest: str = "") -> Manifest:
    """A release whose payload lies in the ConfigMap `source` (its own name if empty)."""
    return _object(
        "SystemVMTemplate",
        namespace,
        name,
        {
            "version": "4.20.2",
            "payload": {
                "files": {
                    "scripts": {
                        "digest": digest or f"sha256:{hashlib.sha256(archive).hexdigest()}",
                        "source": {"configMapRef": {"name": source or name, "key": "scripts.tgz"}},
                    }
                }
            },
        },
    )


def policy(namespace: str, name: str, endpoint_name: str, template_name: str, **spec: Any) -> Manifest:
    strategy = {"maxUnavailable": 10, "perHost": 10, **spec.pop("strategy", {})}
    return _object(
        "PatchPolicy",
        namespace,
        name,
        {
            "endpointRef": {"name": endpoint_name},
            "templateRef": {"name": template_name},
            "strategy": strategy,
            "checks": {"settle": "1s"},
            **spec,
        },
    )


def _object(kind: str, namespace: str, name: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "sysvm.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
