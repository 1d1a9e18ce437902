"""Secrets that were planted, and every place that a patch writes to, searched for them.

A whole run on a real API server and a real system VM: the operator as a process with the chart's account, at debug
level, a patch that ends well, and then a key that cannot be read.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import secrets
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab, SystemVMType, VMSpec, demo, preflight
from lab.cli import take_down
from lab.content import releases

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

NAME = "r-71-VM"
KINDS = "cse,svt,svm,spp,svr,configmaps,events,leases"


class Watch:
    """Looks at the arguments of every process of this machine, those inside of the VMs included, all the time."""

    def __init__(self, canaries: dict[str, bytes]) -> None:
        self.found: set[str] = set()
        self.seen: set[bytes] = set()
        self._canaries = canaries
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._done.wait(0.02):
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    self._judge((folder / "cmdline").read_bytes())

    def _judge(self, arguments: bytes) -> None:
        if arguments in self.seen:
            return
        self.seen.add(arguments)
        self.found |= {f"{name}: {arguments[:200]!r}" for name, canary in self._canaries.items() if canary in arguments}

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def parts(key: bytes) -> dict[str, bytes]:
    """Every line of the key's body but the first, which is alike in all keys, and the same as a Secret has it."""
    lines = [line for line in key.splitlines() if line and not line.startswith(b"-----")]
    found = {f"private key, line {number}": line for number, line in enumerate(lines) if number and len(line) > 30}
    encoded = base64.b64encode(key)
    found |= {f"private key in base64, from {at}": encoded[at : at + 60] for at in range(240, len(encoded) - 60, 120)}
    assert len(found) > 3
    return found


def holding(folder: Path, canaries: dict[str, bytes], besides: list[Path]) -> Iterator[str]:
    """Files below `folder`, and the names of files, that hold a canary."""
    for path in folder.rglob("*"):
        if (
            any(path == each or path.is_relative_to(each) for each in besides)
            or not path.is_file()
            or path.is_symlink()
        ):
            continue
        content = str(path).encode() + b"\n" + path.read_bytes()
        for name, canary in canaries.items():
            if canary in content:
                yield f"{name} in {path.relative_to(folder)}"


def in_the_cluster(stage: demo.Stage, canaries: dict[str, bytes], known_hosts: str) -> Iterator[str]:
    """Objects of every kind but Secrets; compressed data (plans) is opened."""
    for item in json.loads(stage.kubectl("get", KINDS, "-o", "json"))["items"]:
        place = f"{item['kind']} {item['metadata']['name']}"
        if place == f"ConfigMap {known_hosts}":
            continue
        text = json.dumps(item).encode()
        for value in (item.get("binaryData") or {}).values():
            text += gzip.decompress(base64.b64decode(value))
        for name, canary in canaries.items():
            if canary in text:
                yield f"{name} in {place}"


@pytest.mark.timeout(900)
def test_no_secret_is_left_anywhere(tmp_path: Path) -> None:
    run_dir = tmp_path / "lab"
    lab = Lab(run_dir)
    try:
        stage = demo.raise_stage(run_dir, [VMSpec(name=NAME, type=SystemVMType.ROUTER, index=71)], lambda _: None)
        whole_run(stage)
    finally:
        take_down(lab)


def whole_run(stage: demo.Stage) -> None:
    word = f"canary{secrets.token_hex(8)}"
    keystore = f"kscanary{secrets.token_hex(8)}"
    hosts = f"hostcanary{secrets.token_hex(8)}"
    key = stage.lab.private_key.read_bytes()
    canaries = {**parts(key), "other data of the Secret": word.encode(), "comment in known_hosts": hosts.encode()}
    # The VM's own: the operator reads the boot arguments, and shows none of them.
    boot = stage.lab.read_bytes(NAME, "/var/cache/cloud/cmdline").rstrip() + f" keystore_password={keystore}\n".encode()
    stage.lab.write_bytes(NAME, "/var/cache/cloud/cmdline", boot)
    told = {**canaries, "keystore password of the VM": keystore.encode()}

    demo.start_operator(stage, environment={"SYSVM_LOG_LEVEL": "debug"})
    release = releases.new()
    login = demo.secret(stage)
    login["data"]["another"] = base64.b64encode(word.encode()).decode()
    known = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "known-hosts", "namespace": demo.NAMESPACE},
        "data": {"known_hosts": f"# {hosts}\n{stage.lab.known_hosts()}"},
    }
    endpoint = demo.endpoint(stage.lab.vms())
    reference = {"name": "known-hosts", "key": "known_hosts"}
    endpoint["spec"]["ssh"]["hostKeys"] = {"policy": "Strict", "knownHostsRef": reference}
    with Watch(told) as watch:
        demo.apply(stage, login, known, endpoint, demo.template(stage, release), demo.policy(release))
        demo.wait_condition(stage, "spp", demo.POLICY, "Ready", seconds=240)
        # A key that is bent in the middle: what is said about it quotes none of it.
        bent = key[: len(key) // 2] + word.encode() + key[len(key) // 2 :]
        login["data"][demo.KEY] = base64.b64encode(bent).decode()
        demo.apply(stage, login)
        await_reason(stage, "CredentialsUnreadable")

    log = (stage.operator_dir / "operator.log").read_text()
    assert "RolloutSucceeded" in log, "the log does not tell of the patch"
    assert len(watch.seen) > 20
    assert any(b"sysvm_remote" in arguments for arguments in watch.seen), "the program on the VM was not seen"
    assert watch.found == set()
    assert list(in_the_cluster(stage, told, "known-hosts")) == []
    assert list(holding(stage.operator_dir, told, [])) == []
    # The whole lab: root trees of the VM, its console, the API server's logs. Not the store of the API server, which
    # is where a Secret lies, nor the key itself.
    owned = [stage.lab.private_key, *stage.run_dir.glob("control-plane/etcd*")]
    assert list(holding(stage.run_dir, canaries, owned)) == []
    tree = ["/etc", "/opt", "/var", "/root", "/tmp", "/run", "/usr/local", "/usr/share/cloud", "/dev/shm"]
    for name, canary in told.items():
        said = stage.lab.exec(NAME, ["grep", "-rlsF", "--devices=skip", "-e", canary.decode(), *tree], check=False)
        places = [line for line in said.stdout.splitlines() if line != "/var/cache/cloud/cmdline"]
        assert places == [], name


def await_reason(stage: demo.Stage, reason: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        conditions = stage.get("cse", demo.ENDPOINT).get("status", {}).get("conditions", [])
        if any(each["reason"] == reason for each in conditions):
            return
        time.sleep(0.5)
    raise AssertionError(f"the endpoint never said {reason}: {conditions}")
