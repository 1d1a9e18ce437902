"""What a login is made of, and what is said where a part of it is missing."""

from __future__ import annotations

import base64
import dataclasses
from datetime import UTC, datetime
from typing import Any, cast

import asyncssh
import pytest

from sysvm.api.endpoint import CloudStackEndpoint
from sysvm.api.reasons import Reason
from sysvm.engine.credentials import Accounts, NoAccount
from sysvm.kube.client import Cluster
from sysvm.kube.errors import NotFound
from sysvm.kube.objects import Object, Resource
from sysvm.patching.results import SSHAccount

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
KEY, HOST_KEY = (asyncssh.generate_private_key("ssh-ed25519").export_private_key() for _ in range(2))
KNOWN = f"kvm-1 {asyncssh.generate_private_key('ssh-ed25519').export_public_key().decode()}"


@dataclasses.dataclass
class Objects:
    """The part of `Cluster` that logins are read by."""

    content: dict[tuple[str, str], Object]

    async def get(self, resource: Resource, namespace: str, name: str) -> Object:
        try:
            return self.content[resource.kind, name]
        except KeyError:
            raise NotFound(f"{name} not found") from None


def secret(key: str, value: bytes) -> Object:
    return {"data": {key: base64.b64encode(value).decode()}}


def objects(**changes: Object | None) -> Objects:
    content: dict[tuple[str, str], Object | None] = {
        ("Secret", "cs-ssh"): secret("id", KEY),
        ("Secret", "kvm-ssh"): secret("id", HOST_KEY),
        ("ConfigMap", "kvm-hosts"): {"data": {"known_hosts": KNOWN}},
    }
    content.update(
        {
            ("ConfigMap" if name == "kvm_hosts" else "Secret", name.replace("_", "-")): value
            for name, value in changes.items()
        }
    )
    return Objects({name: value for name, value in content.items() if value is not None})


def endpoint() -> CloudStackEndpoint:
    jump = {
        "keySecretRef": {"name": "kvm-ssh", "key": "id"},
        "knownHostsRef": {"name": "kvm-hosts", "key": "known_hosts"},
    }
    ssh: dict[str, Any] = {
        "keySecretRef": {"name": "cs-ssh", "key": "id"},
        "routes": [{"hypervisors": ["KVM", "XenServer"], "via": "Host", "jump": jump}, {"via": "Direct"}],
        "limits": {"connectionsPerHost": 7},
    }
    return CloudStackEndpoint.model_validate(
        {
            "metadata": {"name": "prod", "namespace": "cloud"},
            "spec": {
                "inventory": "Static",
                "systemVMs": [{"name": "r-1-VM", "type": "router", "address": "192.0.2.1"}],
                "ssh": ssh,
            },
        }
    )


async def read(there: Objects) -> SSHAccount | NoAccount:
    account, _ = await Accounts(cast("Cluster", there)).read(endpoint(), NOW)
    return account


async def test_the_first_route_for_the_hypervisor_is_the_way() -> None:
    account = await read(objects())
    assert isinstance(account, SSHAccount)
    for hypervisor in ("KVM", "kvm", "XenServer"):
        jump = account.jump_for(hypervisor)
        assert jump is not None
        assert (jump.user, jump.port, jump.private_key, jump.connections) == ("root", 22, HOST_KEY, 7)
        assert jump.known_hosts == KNOWN
    assert account.jump_for("VMware") is None
    assert account.jump_for(None) is None
    assert HOST_KEY.decode() not in repr(account)


@pytest.mark.parametrize(
    ("there", "reason", "words"),
    [
        (objects(kvm_ssh=None), Reason.CREDENTIALS_MISSING, ("kvm-ssh", "hypervisor hosts")),
        (objects(kvm_ssh=secret("id", b"no key")), Reason.CREDENTIALS_UNREADABLE, ("kvm-ssh",)),
        (objects(kvm_hosts=None), Reason.KNOWN_HOSTS_MISSING, ("kvm-hosts",)),
        (objects(kvm_hosts={"data": {"known_hosts": "kvm-1"}}), Reason.CREDENTIALS_UNREADABLE, ("Line 1", "kvm-hosts")),
        (objects(cs_ssh=None), Reason.CREDENTIALS_MISSING, ("cs-ssh", "CloudStack's private key")),
    ],
    ids=["no key", "no private key", "no known hosts", "broken known hosts", "no key for the VMs"],
)
async def test_what_is_missing_is_named(there: Objects, reason: Reason, words: tuple[str, ...]) -> None:
    account = await read(there)
    assert isinstance(account, NoAccount)
    assert account.reason is reason
    assert all(word in account.message for word in words), account.message
